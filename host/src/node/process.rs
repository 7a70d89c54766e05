//! What the provider needs of its process: signals, descriptors.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Descriptors that are wanted: two per SSH connection, one per request, some per VM.
const WANTED_DESCRIPTORS: u64 = 65_536;

/// Cancels the token at the first SIGTERM or SIGINT. A second one ends the process at once, for operators in a hurry.
pub(super) fn watch_signals(stop: CancellationToken) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if stop.is_cancelled() {
                tracing::warn!("told to end a second time; ending at once");
                std::process::exit(1);
            }
            stop.cancel();
        }
    });
    Ok(())
}

/// Descriptors that this process was born with, such as a lock of the shell that started it, are not handed on to
/// programs of plugins. Those the provider opens itself never are.
pub(super) fn close_inherited_descriptors_on_exec() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let descriptors = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|descriptor| *descriptor > 2)
        .collect::<Vec<_>>();
    for descriptor in descriptors {
        // SAFETY: the number was an open descriptor a moment ago, and nothing else runs in this process yet that could close
        // it, but for the directory listing itself: setting a flag on a closed descriptor is refused and does no harm.
        let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor) };
        let _ = rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC);
    }
}

/// The default of 1,024 is too small for a provider; the kernel lets every process raise it up to the hard limit.
pub(super) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let wanted =
        limit.maximum.map_or(WANTED_DESCRIPTORS, |maximum| maximum.min(WANTED_DESCRIPTORS));
    if limit.current.is_some_and(|current| current < wanted)
        && let Err(error) =
            setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum })
    {
        tracing::warn!("cannot raise the number of open files to {wanted}: {error}");
    }
}
