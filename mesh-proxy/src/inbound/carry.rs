//! What is carried on a connection that came in: requests, each decided by itself, or bytes, decided once and again at each change.
//! Trusts `transport.rs` for the connection.
//! Never opens the way to the application without a permit, and never ends without its record.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_policy::Reason;
use mesh_runtime::drain::Held;
use mesh_tls::{Peer, Session};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Arrived, InboundDoor, Known};
use crate::connections::Cut;
use crate::decide::{self, Caller, Decided, Permit, reason_label};
use crate::http::exchange::{Side, TlsFacts};
use crate::http::request::{self, Judge};
use crate::http::{self, Versions};
use crate::l4;
use crate::metrics::Edge;
use crate::policy::Policies;
use crate::record::Judged;

impl InboundDoor {
    pub(super) async fn http<S>(&self, stream: S, arrived: Arrived, known: Known, held: Held)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (peer, address) = (arrived.peer.as_ref(), arrived.address);
        let own = self.cell.current();
        let side = Arc::new(Side::new(
            "inbound",
            "inbound".into(),
            Arc::clone(&arrived.source),
            own.id().as_str().into(),
            self.edge(&arrived.source, peer.is_some()),
            address,
            peer.map(tls_facts),
            self.recorder.clone(),
            self.metrics.clone(),
            self.clock.clone(),
        ));
        let judge = Arc::new(Judge {
            policies: self.policies.clone(),
            caller: Arc::clone(&arrived.caller),
            client_cert: peer.map(|peer| http::headers::client_cert(own.id(), peer)),
        });
        let versions = match peer.map(|peer| peer.session.alpn.as_deref()) {
            Some(Some(b"h2")) => Versions::Http2,
            Some(_) => Versions::Http1,
            None => Versions::Either,
        };
        let signals = self.signals(known, peer, held);
        let pool = Arc::clone(&self.pool);
        let shared = Arc::clone(&side);
        let cut = http::serve(
            &self.limits,
            versions,
            stream,
            &side,
            signals,
            move |request| {
                let (side, judge, pool) =
                    (Arc::clone(&shared), Arc::clone(&judge), Arc::clone(&pool));
                async move { request::inbound(&side, &judge, &pool, request).await }
            },
        )
        .await;
        if let Some(cut) = cut {
            self.cut(cut, &side.source, address);
        }
    }

    pub(super) async fn tcp<S>(&self, stream: S, arrived: Arrived, known: Known, held: Held)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Arrived {
            peer,
            address,
            caller,
            source,
        } = arrived;
        let began = (self.clock.now(), self.clock.monotonic());
        // Subscribed before it is decided: a change in between is seen, not missed.
        let mut changes = self.policies.subscribe();
        changes.borrow_and_update();
        let port = self.application.port();
        let id = self.recorder.next_id(began.0);
        let asked = format!("tcp {port}");
        let own: Arc<str> = self.cell.current().id().as_str().into();
        let mut record = TcpRecord {
            door: self,
            source: &source,
            own: &own,
            peer: peer.as_ref(),
            address,
            id,
            began,
            decided: None,
            denied: false,
        };
        let edge = self.edge(&source, peer.is_some());
        let opened = |flags| self.metrics.traffic().tcp(&edge, flags);
        let permit = match decide::connection(&self.policies, &caller) {
            Ok(permit) => permit,
            Err(denied) => {
                let code = if denied.decided.reason == Reason::NotReady {
                    "FNL3004"
                } else {
                    "FNL3003"
                };
                let judged = Judged {
                    id,
                    source: &source,
                    peer: address,
                    decided: &denied.decided,
                    asked: &asked,
                };
                self.recorder.denied(&judged, code, &denied, began.0);
                record.decided = Some(denied.decided);
                record.denied = true;
                drop(opened("DENY"));
                record.write(&l4::Carried::default(), Some(code), Some(&denied.why));
                return;
            }
        };
        {
            let judged = Judged {
                id,
                source: &source,
                peer: address,
                decided: permit.decided(),
                asked: &asked,
            };
            self.recorder.aside(&judged);
            self.recorder.allowed(&judged, began.0);
        }
        record.decided = Some(permit.decided().clone());
        let upstream = match self.open(&permit).await {
            Ok(upstream) => upstream,
            Err(error) => {
                drop(opened("UF"));
                record.write(
                    &l4::Carried::default(),
                    Some("FNL3026"),
                    Some(&error.to_string()),
                );
                return;
            }
        };
        let end = async {
            tokio::select! {
                cut = self.certificates_end(known, peer.as_ref()) => cut,
                () = self.transport_ends(peer.as_ref()) => Cut::Policy,
                () = denied_later(&self.policies, &mut changes, &caller) => Cut::Policy,
                () = held.forced() => Cut::Drain,
            }
        };
        let mut counters = opened("-");
        let carried = l4::carry(stream, upstream, &counters, self.limits.idle.get(), end).await;
        let why = match (&carried.cut, &carried.failed) {
            (Some(cut), _) => Some((cut.code(), cut.to_string())),
            (None, Some(error)) => Some(("FNL3027", error.to_string())),
            (None, None) => None,
        };
        if let Some(cut) = carried.cut {
            counters.ended(cut.flag());
            self.cut(cut, &source, address);
        } else if carried.failed.is_some() {
            counters.ended("UC");
        }
        record.write(
            &carried,
            why.as_ref().map(|w| w.0),
            why.as_ref().map(|w| w.1.as_str()),
        );
    }

    fn edge(&self, source: &str, mutual_tls: bool) -> Edge {
        let traffic = self.metrics.traffic();
        let own = traffic.own(self.cell.current().id().as_str());
        Edge::inbound(traffic.peer(source), own, mutual_tls)
    }

    /// Opens the way to the application. Without a permit there is none.
    async fn open(&self, _: &Permit) -> std::io::Result<TcpStream> {
        let late = || {
            std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                "the application does not accept connections",
            )
        };
        let stream = timeout(
            self.limits.connect.get(),
            TcpStream::connect(self.application),
        )
        .await
        .map_err(|_| late())??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn cut(&self, cut: Cut, source: &Arc<str>, address: SocketAddr) {
        self.metrics.cut(cut.code());
        // The proxy's own end and idleness are nobody's denial.
        if !matches!(cut, Cut::Idle | Cut::Stalled | Cut::Drain) {
            tracing::info!(code = cut.code(), %source, peer = %address, "{cut}");
            self.recorder
                .cut(source, address, cut.code(), &cut.to_string());
        }
    }
}

fn tls_facts(peer: &Peer) -> TlsFacts {
    let Session {
        cipher,
        key_exchange,
        ..
    } = &peer.session;
    TlsFacts {
        serial: peer.serial.as_str().into(),
        cipher,
        group: key_exchange,
    }
}
/// The record of one TCP connection.
struct TcpRecord<'a> {
    door: &'a InboundDoor,
    source: &'a Arc<str>,
    own: &'a Arc<str>,
    peer: Option<&'a Peer>,
    address: SocketAddr,
    id: decide::DecisionId,
    began: (std::time::SystemTime, tokio::time::Instant),
    decided: Option<Decided>,
    denied: bool,
}

impl TcpRecord<'_> {
    fn write(&self, carried: &l4::Carried, code: Option<&'static str>, why: Option<&str>) {
        let metrics = &self.door.metrics;
        if let Some(decided) = &self.decided {
            let word = if self.denied { "deny" } else { "allow" };
            metrics
                .decision_counter(word, reason_label(decided.reason), decided.policy.as_ref())
                .inc();
            metrics.shadowed(decided.aside.as_deref());
        }
        let took = self
            .door
            .clock
            .monotonic()
            .saturating_duration_since(self.began.1);
        self.door.recorder.line(|line| {
            line.time("time", self.began.0);
            line.text("direction", "inbound");
            line.text("door", "inbound");
            line.bytes("decision", &self.id.text());
            if let Some(decided) = &self.decided {
                line.text("effect", if self.denied { "deny" } else { "allow" });
                line.text("reason", reason_label(decided.reason));
                if let (Some(policy), Some(rule)) = (&decided.policy, &decided.rule) {
                    line.text("policy", policy);
                    line.text("rule", rule);
                }
                line.text("policy_rev", &decided.revision);
                line.aside(decided.aside.as_deref());
            }
            line.text("source", self.source);
            line.text("destination", self.own);
            line.plain("peer", &self.address);
            line.text("protocol", "tcp");
            line.number("port", self.door.application.port().into());
            if let Some(code) = code {
                line.text("error", code);
            }
            if let Some(why) = why {
                line.text("why", why);
            }
            line.number("bytes_received", carried.from_client);
            line.number("bytes_sent", carried.to_client);
            line.number(
                "duration_us",
                u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            );
            if let Some(peer) = self.peer {
                line.text("tls_cipher", peer.session.cipher);
                line.text("tls_group", peer.session.key_exchange);
                line.text("peer_serial", &peer.serial);
            }
        });
    }
}

/// Ends when the policy in force no longer allows the connection.
async fn denied_later(
    policies: &Policies,
    changes: &mut tokio::sync::watch::Receiver<u64>,
    caller: &Caller,
) {
    while changes.changed().await.is_ok() {
        changes.borrow_and_update();
        if decide::connection(policies, caller).is_err() {
            return;
        }
    }
    std::future::pending().await
}
