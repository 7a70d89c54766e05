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

/// How many connections the descriptors of this process are good for. What crowds may take is bounded, so that no crowd of
/// SSH clients keeps requests out, no crowd of requests SSH clients, and neither of them a VM from being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Connections {
    pub(super) of_api: usize,
    pub(super) of_ssh: usize,
}

impl Connections {
    /// Of what may be open at the same time.
    fn sharing(descriptors: u64) -> Connections {
        /// What SSH gets before the API has all that it may have.
        const SSH_FIRST: u64 = 2048;
        /// Idle clients of an API cost little, so there may be many; but nobody has more clients than this.
        const MOST_OF_API: u64 = 10_240;
        /// For the database, logs, plugins and their programs, pipes for bulk streams.
        const MOST_OF_OWN: u64 = 1024;
        let left = descriptors - (descriptors / 4).min(MOST_OF_OWN);
        // A client's and the machine's.
        let of_ssh_first = 2 * (left / 3).min(SSH_FIRST);
        let of_api = (left - of_ssh_first).min(MOST_OF_API);
        let of_ssh = (left - of_api) / 2;
        let number = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        Connections { of_api: number(of_api), of_ssh: number(of_ssh) }
    }
}

/// Raises the limit of descriptors, and shares out what it is then. The default of 1,024 is too small for a provider; the
/// kernel lets every process raise it up to the hard limit.
pub(super) fn raise_descriptor_limit() -> Connections {
    let limit = getrlimit(Resource::Nofile);
    let wanted =
        limit.maximum.map_or(WANTED_DESCRIPTORS, |maximum| maximum.min(WANTED_DESCRIPTORS));
    if limit.current.is_none_or(|current| current >= wanted) {
        return Connections::sharing(limit.current.unwrap_or(WANTED_DESCRIPTORS));
    }
    let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => Connections::sharing(wanted),
        Err(error) => {
            tracing::warn!("cannot raise the number of open files to {wanted}: {error}");
            Connections::sharing(limit.current.unwrap_or(wanted))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn with_the_usual_limits_everybody_has_plenty() {
        assert_eq!(Connections::sharing(65_536), Connections { of_api: 10_240, of_ssh: 27_136 });
        assert_eq!(Connections::sharing(16_384), Connections { of_api: 10_240, of_ssh: 2560 });
        assert_eq!(Connections::sharing(1024), Connections { of_api: 256, of_ssh: 256 });
    }

    proptest! {
        #[test]
        fn however_few_descriptors_there_are_some_are_left(descriptors in 0..1_000_000_u64) {
            let connections = Connections::sharing(descriptors);
            let taken = (connections.of_api + 2 * connections.of_ssh) as u64;
            prop_assert!(taken <= descriptors - (descriptors / 4).min(1024));
            if descriptors >= 256 {
                prop_assert!(connections.of_api >= 64 && connections.of_ssh >= 64);
            }
        }
    }
}
