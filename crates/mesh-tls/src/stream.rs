//! Decides nothing: carries bytes over a finished handshake and keeps the alert if the other end refuses us afterwards.
//! Trusts rustls for every byte.
//! Never turns a refusal by the other end into a bare "broken pipe".

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use rustls::{AlertDescription, ClientConnection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{PeerAlert, alert_in};

/// The server's end of a connection.
pub type ServerStream<IO> = tokio_rustls::server::TlsStream<IO>;

/// Where a connection's alert is kept. Clones are handles on the same place; take one before a library swallows the stream.
#[derive(Debug, Clone, Default)]
pub struct AlertSlot(Arc<OnceLock<AlertDescription>>);

impl AlertSlot {
    /// The alert with which the other end refused us, if it did.
    pub fn get(&self) -> Option<PeerAlert> {
        self.0.get().copied().map(PeerAlert)
    }
}

/// The client's end of a connection.
pub struct ClientStream<IO> {
    tls: tokio_rustls::client::TlsStream<IO>,
    alert: AlertSlot,
}

impl<IO> ClientStream<IO> {
    pub(crate) fn new(tls: tokio_rustls::client::TlsStream<IO>) -> Self {
        Self {
            tls,
            alert: AlertSlot::default(),
        }
    }

    /// Where the alert will be if the other end refuses us: HTTP libraries report such an end as "operation was canceled".
    pub fn alert(&self) -> AlertSlot {
        self.alert.clone()
    }

    /// The transport and the TLS connection.
    pub fn get_ref(&self) -> (&IO, &ClientConnection) {
        self.tls.get_ref()
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> ClientStream<IO> {
    /// Notes an alert, and makes it the error that the caller sees.
    fn keep(&self, error: io::Error) -> io::Error {
        match alert_in(&error) {
            Some(alert) => {
                let alert = *self.alert.0.get_or_init(|| alert);
                io::Error::new(io::ErrorKind::ConnectionAborted, PeerAlert(alert))
            }
            None => error,
        }
    }

    /// A write failed. If the other end refused us, its alert came before the end of the connection and waits to be read.
    /// Application data that waits too stays where it is, for the next read.
    fn explain(&mut self, context: &mut Context<'_>, error: io::Error) -> io::Error {
        if self.alert.get().is_some() || alert_in(&error).is_some() {
            return self.keep(error);
        }
        let (io, connection) = self.tls.get_mut();
        let mut bytes = [0; 4096];
        while connection.wants_read() {
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut *io).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                _ => break, // nothing waits, the end, or a broken transport
            }
            let mut rest = buffer.filled();
            while !rest.is_empty() {
                if !matches!(connection.read_tls(&mut rest), Ok(1..)) {
                    return error; // the connection takes no more before somebody reads
                }
                match connection.process_new_packets() {
                    Ok(_) => {}
                    Err(tls @ rustls::Error::AlertReceived(_)) => {
                        return self.keep(io::Error::other(tls));
                    }
                    Err(_) => return error,
                }
            }
        }
        error
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for ClientStream<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = ready!(Pin::new(&mut this.tls).poll_read(context, buffer));
        Poll::Ready(result.map_err(|error| this.keep(error)))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ClientStream<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = ready!(Pin::new(&mut this.tls).poll_write(context, bytes));
        Poll::Ready(result.map_err(|error| this.explain(context, error)))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = ready!(Pin::new(&mut this.tls).poll_write_vectored(context, slices));
        Poll::Ready(result.map_err(|error| this.explain(context, error)))
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = ready!(Pin::new(&mut this.tls).poll_flush(context));
        Poll::Ready(result.map_err(|error| this.explain(context, error)))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = ready!(Pin::new(&mut this.tls).poll_shutdown(context));
        Poll::Ready(result.map_err(|error| this.explain(context, error)))
    }
}

impl<IO: fmt::Debug> fmt::Debug for ClientStream<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientStream")
            .field("io", self.tls.get_ref().0)
            .finish_non_exhaustive()
    }
}
