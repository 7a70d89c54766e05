//! Byte streams to servers on this machine.

use core::time::Duration;

use crate::bindings::golem::provider::sockets as import;
use crate::{Result, clock};

/// An open stream; closed when dropped.
pub struct Connection(import::Connection);

impl Connection {
    /// Connects to a unix socket: a path in the plugin's own directory, or an absolute one that was granted.
    pub fn unix(path: &str, timeout: Duration) -> Result<Self> {
        import::connect_unix(path, clock::millis(timeout)).map(Self)
    }

    /// Connects to a TCP port on 127.0.0.1. Needs the grant `loopback`.
    pub fn loopback(port: u16, timeout: Duration) -> Result<Self> {
        import::connect_loopback(port, clock::millis(timeout)).map(Self)
    }

    /// Waits for at least one byte. Empty at the end of the stream.
    pub fn read(&self, max_bytes: u32, timeout: Duration) -> Result<Vec<u8>> {
        self.0.read(max_bytes, clock::millis(timeout))
    }

    /// Writes all of it.
    pub fn write(&self, bytes: &[u8], timeout: Duration) -> Result<()> {
        self.0.write(bytes, clock::millis(timeout))
    }
}
