//! The life of a connection that comes in, in the order of architecture.md story 3: accept, handshake, who, may it, serve.
//! Trusts the handshake for who it is, and the policy in force for everything after.
//! Never reaches the application with a byte that nobody allowed.

use std::net::SocketAddr;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use hyper_util::rt::TokioIo;
use mesh_policy::{Posture, Reason};
use mesh_runtime::accept::Permit as Slot;
use mesh_runtime::clock::Clock;
use mesh_runtime::drain::{DrainWatch, Held};
use mesh_runtime::errors::ErrorChain;
use mesh_tls::{
    Authorizer, ClientPolicy, HandshakeError, IdentityCell, Peer, ServerConfig, ServerStream,
    Session,
};
use tokio::io::{AsyncRead, AsyncWrite};
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
use crate::record::{ANONYMOUS, Judged, Recorder};

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
        if self.posture().post_quantum && !is_post_quantum(&peer.session) {
            self.refused_transport(&peer, address);
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

    async fn http<S>(&self, stream: S, arrived: Arrived, known: Known, held: Held)
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

    async fn tcp<S>(&self, stream: S, arrived: Arrived, known: Known, held: Held)
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
                cut = self.certificates_end(known, peer.as_ref()) => cut,
                () = self.transport_ends(peer.as_ref()) => Cut::Policy,
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

    /// What the policy in force demands of the transport.
    fn posture(&self) -> Posture {
        self.policies
            .current()
            .policy
            .posture(self.application.port())
    }

    /// Whether the first byte is that of a TLS handshake. `None`: nothing came in time.
    async fn begins_with_tls(&self, stream: &TcpStream) -> Option<bool> {
        const HANDSHAKE: u8 = 22;
        let mut first = [0];
        match timeout(self.limits.handshake.get(), stream.peek(&mut first)).await {
            Ok(Ok(1)) => Some(first[0] == HANDSHAKE),
            _ => None,
        }
    }

    fn refused_transport(&self, peer: &Peer, address: SocketAddr) {
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

    /// Ends when the certificates of a TCP connection, or the trust in them, do. Without certificates it never does.
    async fn certificates_end(&self, known: Known, peer: Option<&Peer>) -> Cut {
        let (Some((life, trust)), Some(peer)) = (known, peer) else {
            return std::future::pending().await;
        };
        tokio::select! {
            () = self.clock.sleep_until(life.end) => Cut::Expired,
            () = trust.withdrawn(peer, &self.clock) => Cut::Trust,
        }
    }

    async fn transport_ends(&self, peer: Option<&Peer>) {
        transport_ends(
            self.policies.clone(),
            self.application.port(),
            peer.map(|peer| is_post_quantum(&peer.session)),
            self.clock.clone(),
        )
        .await;
    }

    /// What an HTTP connection is told during its life.
    fn signals(
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

/// Whether a key exchange withstands a quantum computer.
fn is_post_quantum(session: &Session) -> bool {
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

/// A connection that came in, and what is known about who made it.
struct Arrived {
    peer: Option<Peer>,
    address: SocketAddr,
    caller: Arc<Caller>,
    source: Arc<str>,
}

/// How long certificates and the trust in them hold; a connection without TLS has none.
type Known = Option<(Life, Trust)>;

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

/// How many handshakes may run at the same time, as a semaphore.
pub(crate) fn handshakes(limits: &Limits) -> Semaphore {
    Semaphore::new(limits.handshakes.min(Semaphore::MAX_PERMITS))
}
