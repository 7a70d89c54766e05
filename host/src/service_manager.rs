//! What a service manager is told about this process: one datagram to the socket that it named when it started us, as
//! `sd_notify(3)` describes. Nothing where there is none.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// How far this process has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Requests are answered.
    Ready,
    /// It was told to end.
    Stopping,
}

impl State {
    fn message(self) -> &'static [u8] {
        match self {
            State::Ready => b"READY=1",
            State::Stopping => b"STOPPING=1",
        }
    }
}

/// Tells the service manager, if there is one.
pub fn tell(state: State) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else {
        return;
    };
    if let Err(error) = send(socket.as_bytes(), state) {
        tracing::warn!(
            "the service manager cannot be told that the provider is {state:?}: {error}"
        );
    }
}

fn send(socket: &[u8], state: State) -> io::Result<()> {
    let address = match socket.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => {
            SocketAddr::from_pathname(std::path::Path::new(std::ffi::OsStr::from_bytes(socket)))?
        }
    };
    let datagram = UnixDatagram::unbound()?;
    // A manager that does not read must not hold the start.
    datagram.set_nonblocking(true)?;
    datagram.send_to_addr(state.message(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_is_told_at_its_socket_whether_that_is_a_file_or_a_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("notify");
        let manager = UnixDatagram::bind(&file).unwrap();
        send(file.as_os_str().as_bytes(), State::Ready).unwrap();
        let mut message = [0; 64];
        let length = manager.recv(&mut message).unwrap();
        assert_eq!(&message[..length], b"READY=1");

        let name = format!("golem-provider-test-{}", uuid::Uuid::new_v4());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        send(format!("@{name}").as_bytes(), State::Stopping).unwrap();
        let length = manager.recv(&mut message).unwrap();
        assert_eq!(&message[..length], b"STOPPING=1");

        assert!(send(b"/nowhere/at/all", State::Ready).is_err());
    }
}
