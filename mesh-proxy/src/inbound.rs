//! The life of a connection that comes in, in the order of architecture.md story 3: accept, handshake, who, may it, serve.
//! Trusts the handshake for who it is, and the policy in force for everything after.
//! Never reaches the application with a byte that nobody allowed.

use std::net::SocketAddr;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use hyper_util::rt::TokioIo;
use mesh_policy::Reason;
use mesh_runtime::accept::Permit as Slot;
use mesh_runtime::clock::Clock;
use mesh_runtime::drain::{DrainWatch, Held};
use mesh_runtime::errors::ErrorChain;
use mesh_tls::{
    Authorizer, ClientPolicy, HandshakeError, IdentityCell, Peer, ServerConfig, ServerStream,
    Session,
};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::config::{Limits, Protocol};
use crate::connections::{self, Cut, Life, Proofs, Trust};
use crate::decide::{self, Caller, Decided, Permit, reason_label};
use crate::http::exchange::{Side, TlsFacts};
use crate::http::pool::Pool;
use crate::http::request::{self, Judge};
use crate::http::{self, Signal, Versions};
use crate::l4;
use crate::metrics::{ProxyMetrics, TcpLabels};
use crate::policy::Policies;
use crate::record::{Judged, Recorder};

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
        let _open = self.metrics.open("inbound");
        let held = drain.hold();
        let Ok(address) = stream.peer_addr() else {
            return;
        };
        let trust = Trust::watch(&self.cell);
        let Some((stream, peer)) = self.handshake(stream, address).await else {
            return;
        };
        let own = self.cell.current();
        let life = Life::new(
            self.clock.now(),
            peer.not_after,
            own.not_after(),
            RETIRE_EARLY,
        );
        self.proofs.note(&peer.id, peer.not_after, self.clock.now());
        match self.protocol {
            Protocol::Http => self.http(stream, peer, address, (life, trust), held).await,
            Protocol::Tcp => self.tcp(stream, peer, address, (life, trust), held).await,
        }
        drop(slot);
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        address: SocketAddr,
    ) -> Option<(ServerStream<TcpStream>, Peer)> {
        let limit = self.limits.handshake.get();
        let shaken = timeout(limit, async {
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

    async fn http(
        &self,
        stream: ServerStream<TcpStream>,
        peer: Peer,
        address: SocketAddr,
        (life, trust): (Life, Trust),
        held: Held,
    ) {
        let own = self.cell.current();
        let side = Arc::new(Side::new(
            "inbound",
            "inbound".into(),
            peer.id.as_str().into(),
            own.id().as_str().into(),
            address,
            Some(tls_facts(&peer)),
            self.recorder.clone(),
            self.metrics.clone(),
            self.clock.clone(),
        ));
        let judge = Arc::new(Judge {
            policies: self.policies.clone(),
            caller: Arc::new(self.caller(&stream, &peer, address)),
            client_cert: http::headers::client_cert(own.id(), &peer),
        });
        let versions = match peer.session.alpn.as_deref() {
            Some(b"h2") => Versions::Http2,
            _ => Versions::Http1,
        };
        let signals = self.signals((life, trust), &peer, held);
        let pool = Arc::clone(&self.pool);
        let shared = Arc::clone(&side);
        let cut = http::serve(
            &http::server(&self.limits, versions),
            TokioIo::new(stream),
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

    async fn tcp(
        &self,
        stream: ServerStream<TcpStream>,
        peer: Peer,
        address: SocketAddr,
        (life, trust): (Life, Trust),
        held: Held,
    ) {
        let began = (self.clock.now(), self.clock.monotonic());
        // Subscribed before it is decided: a change in between is seen, not missed.
        let mut changes = self.policies.subscribe();
        changes.borrow_and_update();
        let (source, port): (Arc<str>, u16) = (peer.id.as_str().into(), self.application.port());
        let id = self.recorder.next_id(began.0);
        let asked = format!("tcp {port}");
        let own: Arc<str> = self.cell.current().id().as_str().into();
        let mut record = TcpRecord {
            door: self,
            source: &source,
            own: &own,
            peer: &peer,
            address,
            id,
            began,
            decided: None,
            denied: false,
        };
        let caller = self.caller(&stream, &peer, address);
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
                () = self.clock.sleep_until(life.end) => Cut::Expired,
                () = trust.withdrawn(&peer, &self.clock) => Cut::Trust,
                () = denied_later(&self.policies, &mut changes, &caller) => Cut::Policy,
                () = held.forced() => Cut::Drain,
            }
        };
        let carried = l4::carry(stream, upstream, self.limits.idle.get(), end).await;
        let why = match (&carried.cut, &carried.failed) {
            (Some(cut), _) => Some((cut.code(), cut.to_string())),
            (None, Some(error)) => Some(("FNL3027", error.to_string())),
            (None, None) => None,
        };
        if let Some(cut) = carried.cut {
            self.cut(cut, &source, address);
        }
        record.write(
            &carried,
            why.as_ref().map(|w| w.0),
            why.as_ref().map(|w| w.1.as_str()),
        );
    }

    /// What this connection says about everything that is asked on it.
    fn caller(&self, stream: &ServerStream<TcpStream>, peer: &Peer, address: SocketAddr) -> Caller {
        // The caller's word: compared, never shown as anything else.
        let sni = stream.get_ref().1.server_name();
        Caller {
            peer: Some(peer.id.clone()),
            address: address.ip().to_canonical(),
            application: self.application,
            sni: sni.map(|name| name.to_ascii_lowercase().into()),
            trusted_proxies: self.trusted_proxies,
        }
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

    /// What an HTTP connection is told during its life.
    fn signals(
        &self,
        (life, trust): (Life, Trust),
        peer: &Peer,
        held: Held,
    ) -> FuturesUnordered<BoxFuture<'static, Signal>> {
        let (cell, peer, clock, proofs) = (
            self.cell.clone(),
            peer.clone(),
            self.clock.clone(),
            self.proofs.clone(),
        );
        let held = Arc::new(held);
        let retire = {
            let (clock, held) = (clock.clone(), Arc::clone(&held));
            async move {
                tokio::select! {
                    () = clock.sleep_until(life.retire) => {}
                    () = held.draining() => {}
                }
                Signal::Retire
            }
        };
        let cut = async move {
            let cut = tokio::select! {
                () = connections::expired(life, &peer.id, &proofs, &cell, &clock) => Cut::Expired,
                () = trust.withdrawn(&peer, &clock) => Cut::Trust,
                () = held.forced() => Cut::Drain,
            };
            Signal::Cut(cut)
        };
        [retire.boxed(), cut.boxed()].into_iter().collect()
    }

    fn cut(&self, cut: Cut, source: &Arc<str>, address: SocketAddr) {
        self.metrics.cut(cut.code());
        // The proxy's own end and idleness are nobody's denial.
        if matches!(cut, Cut::Policy | Cut::Trust | Cut::Expired) {
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
    peer: &'a Peer,
    address: SocketAddr,
    id: decide::DecisionId,
    began: (std::time::SystemTime, tokio::time::Instant),
    decided: Option<Decided>,
    denied: bool,
}

impl TcpRecord<'_> {
    fn write(&self, carried: &l4::Carried, code: Option<&'static str>, why: Option<&str>) {
        let metrics = &self.door.metrics;
        let labels = TcpLabels {
            reporter: "destination",
            source_principal: metrics.peer_label(self.source),
            destination_principal: metrics.peer_label(self.own),
            response_flags: if self.denied { "DENY" } else { "-" },
        };
        metrics.tcp_opened(&labels);
        metrics.tcp_closed(&labels, carried.from_client, carried.to_client);
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
            line.text("tls_cipher", self.peer.session.cipher);
            line.text("tls_group", self.peer.session.key_exchange);
            line.text("peer_serial", &self.peer.serial);
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

/// How many handshakes may run at the same time, as a semaphore.
pub(crate) fn handshakes(limits: &Limits) -> Semaphore {
    Semaphore::new(limits.handshakes.min(Semaphore::MAX_PERMITS))
}
