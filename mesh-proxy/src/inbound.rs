//! The life of a connection that comes in, in the order of architecture.md story 3: accept, handshake, who, may it, serve.
//! Trusts the handshake for who it is, and the policy in force for everything after.
//! Never reaches the application with a byte that nobody allowed.

mod carry;
mod transport;

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_runtime::accept::Permit as Slot;
use mesh_runtime::clock::Clock;
use mesh_runtime::drain::{DrainWatch, Held};
use mesh_runtime::errors::ErrorChain;
use mesh_tls::{
    Authorizer, ClientPolicy, HandshakeError, IdentityCell, Peer, ServerConfig, ServerStream,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::config::{Limits, Protocol};
use crate::connections::{Entry, Life, Proofs, Registry, Trust};
use crate::decide::Caller;
use crate::http::pool::Pool;
use crate::metrics::ProxyMetrics;
use crate::policy::Policies;
use crate::record::{ANONYMOUS, Recorder};

/// The part of its life by which a connection retires here before it ends: less than on the side that sends (`pool.rs`).
const RETIRE_EARLY: f64 = 0.1;

/// The code of a handshake that took too long.
const SLOW: &str = "FNL3030";

/// The door for others.
pub(crate) struct InboundDoor {
    pub(crate) protocol: Protocol,
    pub(crate) application: SocketAddr,
    pub(crate) trusted_proxies: usize,
    pub(crate) cell: IdentityCell,
    pub(crate) tls: Arc<ServerConfig>,
    pub(crate) handshakes: Semaphore,
    pub(crate) policies: Policies,
    pub(crate) proofs: Proofs,
    pub(crate) pool: Arc<Pool>,
    pub(crate) connections: Registry,
    pub(crate) limits: Limits,
    pub(crate) recorder: Recorder,
    pub(crate) metrics: ProxyMetrics,
    pub(crate) clock: Clock,
}

/// The TLS configuration of the door. Anyone with a proven identity may shake hands: who may do what is the policy's to say,
/// and only so does a refused caller learn the number of the decision.
pub(crate) fn tls(cell: &IdentityCell, protocol: Protocol, clock: &Clock) -> Arc<ServerConfig> {
    let alpn: &[&[u8]] = match protocol {
        Protocol::Http => &[b"h2", b"http/1.1"],
        Protocol::Tcp => &[],
    };
    mesh_tls::server_config(
        cell,
        ClientPolicy::Required(Authorizer::any_verified()),
        alpn,
        clock.as_fn(),
    )
}

impl InboundDoor {
    /// One connection, from its acceptance to its end.
    pub(crate) async fn serve(self: Arc<Self>, stream: TcpStream, slot: Slot, drain: DrainWatch) {
        let held = drain.hold();
        let Ok(address) = stream.peer_addr() else {
            return;
        };
        let now = self.clock.now();
        let entry = (self.connections).open("inbound", &"inbound".into(), Some(address), now);
        if self.posture().admits_plaintext(self.clock.now()) {
            match self.begins_with_tls(&stream).await {
                Some(true) => {}
                Some(false) => {
                    let arrived = self.stranger(address);
                    self.carry(stream, arrived, None, held).await;
                    return drop(slot);
                }
                None => return,
            }
        }
        let trust = Trust::watch(&self.cell);
        let Some((stream, peer)) = self.handshake(stream, address).await else {
            return;
        };
        if self.posture().post_quantum && !transport::is_post_quantum(&peer.session) {
            self.refused_transport(&peer, address);
            return;
        }
        if !self.has_a_place(&peer, address, &entry) {
            return;
        }
        let own = self.cell.current();
        let life = Life::new(
            self.clock.now(),
            peer.not_after,
            own.not_after(),
            RETIRE_EARLY,
        );
        self.proofs.note(&peer.id, peer.not_after, self.clock.now());
        let arrived = self.arrived(&stream, peer, address);
        self.carry(stream, arrived, Some((life, trust)), held).await;
        drop(slot);
    }

    async fn carry<S>(&self, stream: S, arrived: Arrived, known: Known, held: Held)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match self.protocol {
            Protocol::Http => self.http(stream, arrived, known, held).await,
            Protocol::Tcp => self.tcp(stream, arrived, known, held).await,
        }
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        address: SocketAddr,
    ) -> Option<(ServerStream<TcpStream>, Peer)> {
        let limit = self.limits.handshake.get();
        let shaken = timeout(limit, async {
            // Who says nothing takes no turn from those who do.
            stream.peek(&mut [0]).await.ok()?;
            // The wait for a turn counts too: a flood of handshakes is shed here.
            let _turn = self.handshakes.acquire().await.ok()?;
            Some(mesh_tls::accept(&self.tls, stream).await)
        })
        .await;
        match shaken {
            Ok(Some(Ok((stream, Some(peer))))) => {
                self.metrics.handshake("server", "ok", Some(&peer.session));
                Some((stream, peer))
            }
            // Unreachable while certificates are required; no identity is no entry.
            Ok(Some(Ok((_, None))) | None) => None,
            Ok(Some(Err(error))) => {
                self.refused_handshake(&error, address);
                None
            }
            Err(_) => {
                self.metrics.handshake("server", SLOW, None);
                tracing::debug!(code = SLOW, peer = %address, limit = ?limit, "handshake too slow");
                None
            }
        }
    }

    /// Nobody takes all places: an identity has its share of the connections of this door.
    fn has_a_place(&self, peer: &Peer, address: SocketAddr, entry: &Entry) -> bool {
        const CODE: &str = "FNL3036";
        let most = self.limits.connections_per_peer;
        let Err(refused) = entry.belongs_to(&peer.id.as_str().into(), most) else {
            return true;
        };
        self.metrics.handshake("server", CODE, Some(&peer.session));
        tracing::debug!(code = CODE, peer = %address, id = %peer.id, "{refused}");
        self.recorder.line(|line| {
            line.time("time", self.clock.now());
            line.text("direction", "inbound");
            line.text("event", "handshake");
            line.text("error", CODE);
            line.text("source", peer.id.as_str());
            line.plain("peer", &address);
            line.text("why", &refused.to_string());
        });
        false
    }

    fn refused_handshake(&self, error: &HandshakeError, address: SocketAddr) {
        let code = error.code();
        self.metrics.handshake("server", code, None);
        // A port scan is no event; a peer that we refused, with its reason, is one.
        match error {
            HandshakeError::PeerRefused(_) => {
                tracing::warn!(code, peer = %address, error = %ErrorChain(error), "handshake refused")
            }
            _ => {
                tracing::debug!(code, peer = %address, error = %ErrorChain(error), "handshake failed")
            }
        }
        self.recorder.line(|line| {
            line.time("time", self.clock.now());
            line.text("direction", "inbound");
            line.text("event", "handshake");
            line.text("error", code);
            line.plain("peer", &address);
            line.text("why", &ErrorChain(error).to_string());
        });
    }

    /// A connection whose caller has proven who he is.
    fn arrived(
        &self,
        stream: &ServerStream<TcpStream>,
        peer: Peer,
        address: SocketAddr,
    ) -> Arrived {
        // The caller's word: compared, never shown as anything else.
        let sni = stream.get_ref().1.server_name();
        Arrived {
            caller: Arc::new(Caller {
                peer: Some(peer.id.clone()),
                sni: sni.map(|name| name.to_ascii_lowercase().into()),
                ..self.nobody(address)
            }),
            source: peer.id.as_str().into(),
            peer: Some(peer),
            address,
        }
    }

    /// A connection without TLS, at a door that lets those in for a time.
    fn stranger(&self, address: SocketAddr) -> Arrived {
        Arrived {
            peer: None,
            address,
            caller: Arc::new(self.nobody(address)),
            source: ANONYMOUS.into(),
        }
    }

    fn nobody(&self, address: SocketAddr) -> Caller {
        Caller {
            peer: None,
            address: address.ip().to_canonical(),
            application: self.application,
            sni: None,
            trusted_proxies: self.trusted_proxies,
        }
    }
}

/// A connection that came in, and what is known about who made it.
struct Arrived {
    peer: Option<Peer>,
    address: SocketAddr,
    caller: Arc<Caller>,
    source: Arc<str>,
}

/// How long certificates and the trust in them hold; a connection without TLS has none.
type Known = Option<(Life, Trust)>;
/// How many handshakes may run at the same time, as a semaphore.
pub(crate) fn handshakes(limits: &Limits) -> Semaphore {
    Semaphore::new(limits.handshakes.min(Semaphore::MAX_PERMITS))
}
