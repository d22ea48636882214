//! The life of a connection of the local application to another workload: through mutual TLS to the one that must be there.
//! Trusts whoever reaches the loopback door: it belongs to the workload, as its network does.
//! Never talks to another identity than the one that is configured, and never without our own.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use mesh_identity::SpiffeId;
use mesh_runtime::accept::Permit as Slot;
use mesh_runtime::clock::Clock;
use mesh_runtime::drain::{DrainWatch, Held};
use mesh_runtime::errors::ErrorChain;
use mesh_tls::{Authorizer, ClientConfig, ClientStream, IdentityCell, Peer};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::{Limits, Outbound, Protocol};
use crate::connections::{Cut, Life, Registry, Trust};
use crate::http::exchange::Side;
use crate::http::pool::Pool;
use crate::http::{self, Signal, Versions, request};
use crate::l4;
use crate::metrics::{Edge, ProxyMetrics};
use crate::record::Recorder;

/// A door for the local application.
pub(crate) struct OutboundDoor {
    pub(crate) name: Arc<str>,
    pub(crate) to: std::net::SocketAddr,
    pub(crate) server: SpiffeId,
    pub(crate) protocol: Protocol,
    pub(crate) cell: IdentityCell,
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) connections: Registry,
    pub(crate) limits: Limits,
    pub(crate) recorder: Recorder,
    pub(crate) metrics: ProxyMetrics,
    pub(crate) clock: Clock,
}

/// The TLS configuration of a door: exactly one identity may be there.
pub(crate) fn tls(door: &Outbound, cell: &IdentityCell, clock: &Clock) -> Arc<ClientConfig> {
    let alpn: &[&[u8]] = match door.protocol {
        Protocol::Http => &[b"h2", b"http/1.1"],
        Protocol::Tcp => &[],
    };
    mesh_tls::client_config(
        cell,
        Authorizer::exactly(door.server_id.clone()),
        alpn,
        clock.as_fn(),
    )
}

impl OutboundDoor {
    /// One connection of the application, from its acceptance to its end.
    pub(crate) async fn serve(self: Arc<Self>, stream: TcpStream, slot: Slot, drain: DrainWatch) {
        let (now, address) = (self.clock.now(), stream.peer_addr().ok());
        let _open = (self.connections).open("outbound", &self.name, address, now);
        let held = drain.hold();
        match self.protocol {
            Protocol::Http => self.http(stream, held).await,
            Protocol::Tcp => self.tcp(stream, held).await,
        }
        drop(slot);
    }

    async fn http(&self, stream: TcpStream, held: Held) {
        let Ok(address) = stream.peer_addr() else {
            return;
        };
        let side = Arc::new(Side::new(
            "outbound",
            Arc::clone(&self.name),
            self.cell.current().id().as_str().into(),
            self.server.as_str().into(),
            self.edge(),
            address,
            None,
            self.recorder.clone(),
            self.metrics.clone(),
            self.clock.clone(),
        ));
        let pool = Arc::clone(&self.pool);
        let shared = Arc::clone(&side);
        let cut = http::serve(
            &self.limits,
            Versions::Either,
            stream,
            &side,
            signals(held),
            move |request| {
                let (side, pool) = (Arc::clone(&shared), Arc::clone(&pool));
                async move { request::outbound(&side, &pool, request).await }
            },
        )
        .await;
        if let Some(cut) = cut {
            self.metrics.cut(cut.code());
        }
    }

    async fn tcp(&self, stream: TcpStream, held: Held) {
        let began = (self.clock.now(), self.clock.monotonic());
        let limit = self.limits.connect.get();
        let trust = Trust::watch(&self.cell);
        let (upstream, peer) = match timeout(limit, self.connect()).await {
            Ok(Ok(connected)) => connected,
            Ok(Err(failed)) => {
                self.metrics.traffic().tcp(&self.edge(), "UF");
                return self.write(began, &l4::Carried::default(), None, Some(failed));
            }
            Err(_) => {
                self.metrics.traffic().tcp(&self.edge(), "UF");
                return self.write(
                    began,
                    &l4::Carried::default(),
                    None,
                    Some(("FNL3028", format!("no connection within {limit:?}"))),
                );
            }
        };
        let life = Life::new(
            self.clock.now(),
            peer.not_after,
            self.cell.current().not_after(),
            0.0,
        );
        let alert = upstream.alert();
        let end = async {
            tokio::select! {
                () = self.clock.sleep_until(life.end) => Cut::Expired,
                () = trust.withdrawn(&peer, &self.clock) => Cut::Trust,
                () = held.forced() => Cut::Drain,
            }
        };
        let mut counters = self.metrics.traffic().tcp(&self.edge(), "-");
        let carried = l4::carry(stream, upstream, &counters, self.limits.idle.get(), end).await;
        if let Some(cut) = carried.cut {
            self.metrics.cut(cut.code());
        }
        let why = match (&carried.cut, alert.get(), &carried.failed) {
            (Some(cut), ..) => Some((cut.code(), cut.to_string())),
            (None, Some(alert), _) => Some((alert.code(), alert.to_string())),
            (None, None, Some(error)) => Some(("FNL3029", error.to_string())),
            (None, None, None) => None,
        };
        if why.is_some() {
            counters.ended("UC");
        }
        self.write(began, &carried, Some(&peer), why);
    }

    fn edge(&self) -> Edge {
        let traffic = self.metrics.traffic();
        let own = traffic.own(self.cell.current().id().as_str());
        Edge::outbound(own, traffic.peer(self.server.as_str()), &self.name)
    }

    async fn connect(&self) -> Result<(ClientStream<TcpStream>, Peer), (&'static str, String)> {
        let stream = TcpStream::connect(self.to)
            .await
            .map_err(|error| ("FNL3037", error.to_string()))?;
        // A socket that is already gone shows itself at the first write.
        stream.set_nodelay(true).ok();
        match mesh_tls::connect(&self.tls, stream).await {
            Ok((stream, peer)) => {
                self.metrics.handshake("client", "ok", Some(&peer.session));
                Ok((stream, peer))
            }
            Err(error) => {
                self.metrics.handshake("client", error.code(), None);
                Err((error.code(), ErrorChain(&error).to_string()))
            }
        }
    }

    fn write(
        &self,
        began: (std::time::SystemTime, tokio::time::Instant),
        carried: &l4::Carried,
        peer: Option<&Peer>,
        why: Option<(&'static str, String)>,
    ) {
        let own = self.cell.current();
        let took = self.clock.monotonic().saturating_duration_since(began.1);
        self.recorder.line(|line| {
            line.time("time", began.0);
            line.text("direction", "outbound");
            line.text("door", &self.name);
            line.text("source", own.id().as_str());
            line.text("destination", self.server.as_str());
            line.plain("peer", &self.to);
            line.text("protocol", "tcp");
            if let Some((code, why)) = &why {
                line.text("error", code);
                line.text("why", why);
            }
            line.number("bytes_received", carried.from_client);
            line.number("bytes_sent", carried.to_client);
            line.number(
                "duration_us",
                u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            );
            if let Some(peer) = peer {
                line.text("tls_cipher", peer.session.cipher);
                line.text("tls_group", peer.session.key_exchange);
                line.text("peer_serial", &peer.serial);
            }
        });
    }
}

/// What a connection of the application is told: only the end of the proxy.
fn signals(held: Held) -> FuturesUnordered<BoxFuture<'static, Signal>> {
    let held = Arc::new(held);
    let first = Arc::clone(&held);
    let retire = async move {
        first.draining().await;
        Signal::Retire
    };
    let cut = async move {
        held.forced().await;
        Signal::Cut(Cut::Drain)
    };
    [retire.boxed(), cut.boxed()].into_iter().collect()
}
