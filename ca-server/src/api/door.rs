//! Decides nothing: carries a connection's bytes together with what is known of its other end, for tonic.
//! Trusts the handshake that was done before. Holds the connection's place under the cap and in the drain.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use mesh_runtime::accept::{HTTP2_OPENING, PathAuthority, Patience, Permit};
use mesh_runtime::drain::Held;
use mesh_tls::{HandshakeError, ServerConfig, ServerStream};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::server::Connected;

use super::caller::Connection;

/// How long the HTTP/2 opening may take after the handshake; tonic itself would wait for ever.
const OPENING: Duration = Duration::from_secs(5);

/// A connection after its handshake.
pub struct Io {
    stream: Patience<Stream>,
    connection: Connection,
    _permit: Permit,
    _held: Held,
}

enum Stream {
    Tls(Box<ServerStream<TcpStream>>),
    Unix(UnixStream, PathAuthority),
}

/// What tonic puts beside each request.
#[derive(Clone, Debug)]
pub struct OtherEnd(pub Connection);

impl Io {
    /// The handshake of a connection over TCP.
    pub async fn tls(
        config: Arc<ServerConfig>,
        stream: TcpStream,
        permit: Permit,
        held: Held,
    ) -> Result<Self, HandshakeError> {
        let address: SocketAddr = stream.peer_addr().map_err(HandshakeError::Io)?;
        let (stream, peer) = mesh_tls::accept(&config, stream).await?;
        Ok(Self {
            stream: Patience::new(Stream::Tls(Box::new(stream)), HTTP2_OPENING, OPENING),
            connection: Connection::Tcp {
                address,
                peer: peer.map(Arc::new),
            },
            _permit: permit,
            _held: held,
        })
    }

    /// A local connection: the kernel says who.
    pub fn unix(
        stream: UnixStream,
        socket: Arc<PathBuf>,
        permit: Permit,
        held: Held,
    ) -> io::Result<Self> {
        let credentials = getsockopt(&stream, PeerCredentials).map_err(io::Error::from)?;
        Ok(Self {
            connection: Connection::Unix {
                uid: credentials.uid(),
                gid: credentials.gid(),
                pid: Some(credentials.pid()).filter(|pid| *pid > 0),
                socket,
            },
            stream: Patience::new(
                Stream::Unix(stream, PathAuthority::default()),
                HTTP2_OPENING,
                OPENING,
            ),
            _permit: permit,
            _held: held,
        })
    }
}

impl Connected for Io {
    type ConnectInfo = OtherEnd;

    fn connect_info(&self) -> OtherEnd {
        OtherEnd(self.connection.clone())
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(context, buffer),
            Self::Unix(stream, authority) => {
                let before = buffer.filled().len();
                let read = Pin::new(stream).poll_read(context, buffer);
                authority.pass(&mut buffer.filled_mut()[before..]);
                read
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
            Self::Unix(stream, _) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(context, slices),
            Self::Unix(stream, _) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Unix(stream, _) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(context),
            Self::Unix(stream, _) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
            Self::Unix(stream, _) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
