//! What a connection must be, whoever asks and whatever for: with TLS or without, with which key exchange, and until when.
//! Trusts the policy in force for what it demands, and the clock for when certificates end.
//! Never lets a connection go on that would not be let in now.

use std::net::SocketAddr;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use mesh_policy::Posture;
use mesh_runtime::clock::Clock;
use mesh_runtime::drain::Held;
use mesh_tls::{Peer, Session};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{InboundDoor, Known};
use crate::connections::{self, Cut};
use crate::http::Signal;
use crate::policy::Policies;

impl InboundDoor {
    /// What the policy in force demands of the transport.
    pub(super) fn posture(&self) -> Posture {
        self.policies
            .current()
            .policy
            .posture(self.application.port())
    }

    /// Whether the first byte is that of a TLS handshake. `None`: nothing came in time.
    pub(super) async fn begins_with_tls(&self, stream: &TcpStream) -> Option<bool> {
        const HANDSHAKE: u8 = 22;
        let mut first = [0];
        match timeout(self.limits.handshake.get(), stream.peek(&mut first)).await {
            Ok(Ok(1)) => Some(first[0] == HANDSHAKE),
            _ => None,
        }
    }

    pub(super) fn refused_transport(&self, peer: &Peer, address: SocketAddr) {
        const CODE: &str = "FNL3006";
        self.metrics.handshake("server", CODE, Some(&peer.session));
        let group = peer.session.key_exchange;
        tracing::warn!(code = CODE, peer = %address, id = %peer.id, group, "refused: no post-quantum key exchange");
        self.recorder.line(|line| {
            line.time("time", self.clock.now());
            line.text("direction", "inbound");
            line.text("event", "handshake");
            line.text("error", CODE);
            line.text("source", peer.id.as_str());
            line.plain("peer", &address);
            line.text("tls_group", group);
        });
    }

    /// Ends when the certificates of a TCP connection, or the trust in them, do. Without certificates it never does.
    pub(super) async fn certificates_end(&self, known: Known, peer: Option<&Peer>) -> Cut {
        let (Some((life, trust)), Some(peer)) = (known, peer) else {
            return std::future::pending().await;
        };
        tokio::select! {
            () = self.clock.sleep_until(life.end) => Cut::Expired,
            () = trust.withdrawn(peer, &self.clock) => Cut::Trust,
        }
    }

    pub(super) async fn transport_ends(&self, peer: Option<&Peer>) {
        transport_ends(
            self.policies.clone(),
            self.application.port(),
            peer.map(|peer| is_post_quantum(&peer.session)),
            self.clock.clone(),
        )
        .await;
    }

    /// What an HTTP connection is told during its life.
    pub(super) fn signals(
        &self,
        known: Known,
        peer: Option<&Peer>,
        held: Held,
    ) -> FuturesUnordered<BoxFuture<'static, Signal>> {
        let held = Arc::new(held);
        let signals = FuturesUnordered::new();
        let transport = transport_ends(
            self.policies.clone(),
            self.application.port(),
            peer.map(|peer| is_post_quantum(&peer.session)),
            self.clock.clone(),
        );
        let retire_at = known.as_ref().map(|(life, _)| life.retire);
        let (clock, draining) = (self.clock.clone(), Arc::clone(&held));
        let retire = async move {
            let old = async {
                match retire_at {
                    Some(at) => clock.sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = old => {}
                () = draining.draining() => {}
            }
            Signal::Retire
        };
        signals.push(retire.boxed());
        let ends = async move {
            tokio::select! {
                () = transport => Signal::Cut(Cut::Policy),
                () = held.forced() => Signal::Cut(Cut::Drain),
            }
        };
        signals.push(ends.boxed());
        if let (Some((life, trust)), Some(peer)) = (known, peer) {
            let (cell, peer, clock, proofs) = (
                self.cell.clone(),
                peer.clone(),
                self.clock.clone(),
                self.proofs.clone(),
            );
            let cut = async move {
                Signal::Cut(tokio::select! {
                    () = connections::expired(life, &peer.id, &proofs, &cell, &clock) => Cut::Expired,
                    () = trust.withdrawn(&peer, &clock) => Cut::Trust,
                })
            };
            signals.push(cut.boxed());
        }
        signals
    }
}

/// Whether a key exchange withstands a quantum computer.
pub(super) fn is_post_quantum(session: &Session) -> bool {
    session.key_exchange.contains("MLKEM")
}

/// Ends when the policy in force no longer lets in what was negotiated: `None` is no TLS, otherwise whether the key exchange is
/// a post-quantum one.
async fn transport_ends(policies: Policies, port: u16, tls: Option<bool>, clock: Clock) {
    let mut changes = policies.subscribe();
    loop {
        changes.borrow_and_update();
        let posture = policies.current().policy.posture(port);
        let admitted = match tls {
            Some(post_quantum) => post_quantum || !posture.post_quantum,
            None => posture.admits_plaintext(clock.now()),
        };
        if !admitted {
            return;
        }
        let ends = async {
            match (tls, posture.plaintext_until) {
                (None, Some(until)) => clock.sleep_until(until).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() {
                return std::future::pending().await; // the program ends
            },
            () = ends => {}
        }
    }
}
