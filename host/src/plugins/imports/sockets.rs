//! `sockets`: byte streams to servers on this machine.

use std::{
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use wasmtime::component::Resource;

use super::{blocking, io_error};
use crate::plugins::{
    bindings::{
        Error,
        golem::provider::sockets::{Host, HostConnection},
    },
    call::CallState,
    limits,
};

trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl Stream for UnixStream {}
impl Stream for TcpStream {}

/// An open stream of a call; closed with it at the latest.
pub struct Connection {
    stream: Box<dyn Stream>,
    /// For messages.
    peer: String,
}

impl CallState {
    fn keep(
        &mut self,
        stream: impl Stream + 'static,
        peer: String,
    ) -> Result<Resource<Connection>, Error> {
        let open = self.resources.iter_mut().count();
        if open >= limits::CONNECTIONS_PER_CALL {
            return Err(Error::ResourceExhausted(format!(
                "this call has {open} connections open already; close one first"
            )));
        }
        self.resources
            .push(Connection { stream: Box::new(stream), peer })
            .map_err(|error| Error::ResourceExhausted(error.to_string()))
    }

    fn connection(&mut self, connection: &Resource<Connection>) -> Result<&mut Connection, Error> {
        self.resources
            .get_mut(connection)
            .map_err(|error| Error::InvalidArgument(error.to_string()))
    }
}

impl Host for CallState {
    async fn connect_unix(
        &mut self,
        path: String,
        timeout_ms: u32,
    ) -> Result<Resource<Connection>, Error> {
        let shown = PathBuf::from(&path);
        let connecting = async {
            if shown.is_absolute() {
                self.plugin.grants.socket(&shown)?;
                return UnixStream::connect(&shown)
                    .await
                    .map_err(|error| io_error("connect to", &shown, &error));
            }
            let (directory, name) = self.own_socket(shown.clone()).await?;
            // Through the open directory: the path stays short, as unix sockets need it, and nobody can swap a
            // directory on the way.
            let path = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
            UnixStream::connect(path).await.map_err(|error| io_error("connect to", &shown, &error))
        };
        let stream = within(timeout_ms, &path, connecting).await?;
        self.keep(stream, path)
    }

    async fn connect_loopback(
        &mut self,
        port: u16,
        timeout_ms: u32,
    ) -> Result<Resource<Connection>, Error> {
        self.plugin.grants.loopback()?;
        let peer = format!("port {port} on this machine");
        let connecting = async {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port))
                .await
                .map_err(|error| io_error("connect to", Path::new(&peer), &error))
        };
        let stream = within(timeout_ms, &peer, connecting).await?;
        self.keep(stream, peer)
    }
}

impl CallState {
    /// The open directory of a socket in the plugin's own directory, and its name there.
    async fn own_socket(&mut self, path: PathBuf) -> Result<(OwnedFd, String), Error> {
        let root = self.plugin.directory.handle.clone();
        blocking(move || {
            use cap_std::fs::FileTypeExt;
            let failed = |error: std::io::Error| io_error("connect to", &path, &error);
            let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
                Error::InvalidArgument(format!("{} names no socket", path.display()))
            })?;
            let parent = match path.parent() {
                Some(parent) if parent != Path::new("") => root.open_dir(parent),
                _ => root.try_clone(),
            }
            .map_err(failed)?;
            if !parent.symlink_metadata(name).map_err(failed)?.file_type().is_socket() {
                return Err(Error::InvalidArgument(format!("{} is not a socket", path.display())));
            }
            Ok((OwnedFd::from(parent.into_std_file()), name.to_owned()))
        })
        .await
    }
}

impl HostConnection for CallState {
    async fn read(
        &mut self,
        connection: Resource<Connection>,
        max_bytes: u32,
        timeout_ms: u32,
    ) -> Result<Vec<u8>, Error> {
        let connection = self.connection(&connection)?;
        let mut bytes = vec![0; (max_bytes as usize).clamp(1, limits::STREAM_READ_BYTES)];
        let (stream, peer) = (&mut connection.stream, &connection.peer);
        let length = within(timeout_ms, peer, async {
            stream
                .read(&mut bytes)
                .await
                .map_err(|error| io_error("read from", Path::new(peer), &error))
        })
        .await?;
        bytes.truncate(length);
        Ok(bytes)
    }

    async fn write(
        &mut self,
        connection: Resource<Connection>,
        bytes: Vec<u8>,
        timeout_ms: u32,
    ) -> Result<(), Error> {
        let connection = self.connection(&connection)?;
        let (stream, peer) = (&mut connection.stream, &connection.peer);
        within(timeout_ms, peer, async {
            stream
                .write_all(&bytes)
                .await
                .map_err(|error| io_error("write to", Path::new(peer), &error))
        })
        .await
    }

    async fn drop(&mut self, connection: Resource<Connection>) -> wasmtime::Result<()> {
        self.resources.delete(connection)?;
        Ok(())
    }
}

async fn within<T>(
    timeout_ms: u32,
    peer: &str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    timeout(Duration::from_millis(timeout_ms.into()), work).await.unwrap_or_else(|_| {
        Err(Error::DeadlineExceeded(format!("{peer} did not answer within {timeout_ms} ms")))
    })
}
