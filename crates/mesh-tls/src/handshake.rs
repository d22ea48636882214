//! Decides that a connection is ready: the handshake is done, the peer is verified, and whoever asks gets both together.
//! Trusts the configuration for every rule.
//! Never hands out a stream without saying who is at its other end. Time limits are the caller's.

use std::{future::poll_fn, io, pin::pin, sync::Arc};

use rustls::{ClientConfig, Error as TlsError, PeerMisbehaved, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{
    ClientStream, HandshakeError, Peer, ServerStream, server_name, verifier::take_refusal,
};

/// The server's side of a handshake. The peer is absent only if the configuration's [`crate::ClientPolicy`] makes certificates optional.
/// Dropping the future ends the handshake; bound its time.
pub async fn accept<IO>(
    config: &Arc<ServerConfig>,
    io: IO,
) -> Result<(ServerStream<IO>, Option<Peer>), HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let stream = judged(TlsAcceptor::from(Arc::clone(config)).accept(io)).await?;
    let connection = stream.get_ref().1;
    let peer = match connection.peer_certificates() {
        None => None,
        Some(_) => Some(Peer::from_server_conn(connection).ok_or_else(unreadable)?),
    };
    Ok((stream, peer))
}

/// The client's side of a handshake.
///
/// In TLS 1.3 a server judges the client after the client is done: `Ok` means that *we* accept the server. Whether it accepts us shows
/// with its first bytes; an alert instead of them is kept, see [`ClientStream::alert`].
pub async fn connect<IO>(
    config: &Arc<ClientConfig>,
    io: IO,
) -> Result<(ClientStream<IO>, Peer), HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let stream = judged(TlsConnector::from(Arc::clone(config)).connect(server_name(), io)).await?;
    let peer = Peer::from_client_conn(stream.get_ref().1).ok_or_else(unreadable)?;
    Ok((ClientStream::new(stream), peer))
}

/// Runs a handshake and keeps what the verifier says in the very poll that fails.
async fn judged<S>(handshake: impl Future<Output = io::Result<S>>) -> Result<S, HandshakeError> {
    let mut handshake = pin!(handshake);
    poll_fn(|context| {
        take_refusal();
        handshake
            .as_mut()
            .poll(context)
            .map_err(|error| HandshakeError::sort(error, take_refusal()))
    })
    .await
}

/// A verified peer whose certificate cannot be read again: it cannot be, and is refused rather than believed.
fn unreadable() -> HandshakeError {
    HandshakeError::NotTls(TlsError::PeerMisbehaved(
        PeerMisbehaved::BadCertChainExtensions,
    ))
}
