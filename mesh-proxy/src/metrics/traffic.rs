//! Traffic under Istio's names and labels (ux D.2), so that dashboards that were made for Istio show this mesh.
//! Trusts identities that a handshake proved, and what the configuration says about this workload.
//! Never leaves a label empty (Prometheus drops it and Kiali the series), and never grows without bound: beyond a number of
//! peers they share one set of labels.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use mesh_runtime::metrics::{Counter, Family, Gauge, Histogram, Metrics};
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use crate::config::Workload;

/// Peers that get labels of their own.
const MOST_PEERS: usize = 1000;

/// What is not known.
const UNKNOWN: &str = "unknown";

/// Kiali's name for the only cluster.
const CLUSTER: &str = "Kubernetes";

/// One workload, as labels name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Party {
    principal: Arc<str>,
    workload: Arc<str>,
    namespace: Arc<str>,
    service: Arc<str>,
    app: Arc<str>,
    version: Arc<str>,
    revision: Arc<str>,
}

impl Party {
    /// Of a peer: what its proven identity says, and nothing else.
    fn of(id: &str) -> Self {
        let path = id
            .strip_prefix("spiffe://")
            .and_then(|rest| rest.split_once('/'))
            .map_or("", |(_, path)| path);
        let kubernetes = path
            .strip_prefix("ns/")
            .and_then(|rest| rest.split_once("/sa/"));
        let (namespace, workload) = match kubernetes {
            Some((namespace, account)) => (namespace, account),
            None if path.is_empty() => (UNKNOWN, UNKNOWN),
            None => (UNKNOWN, path),
        };
        let workload: Arc<str> = workload.into();
        Self {
            principal: id.into(),
            namespace: namespace.into(),
            service: Arc::clone(&workload),
            app: Arc::clone(&workload),
            workload,
            version: UNKNOWN.into(),
            revision: UNKNOWN.into(),
        }
    }

    /// Of this workload, of which the configuration may say more than its identity does.
    fn own(id: &str, configured: Option<&Workload>) -> Self {
        let mut party = Self::of(id);
        let Some(workload) = configured else {
            return party;
        };
        let label = |names: &[&str]| {
            names
                .iter()
                .find_map(|name| workload.labels.get(*name))
                .filter(|value| !value.is_empty())
                .map(|value| Arc::<str>::from(value.as_str()))
        };
        if !workload.namespace.is_empty() {
            party.namespace = workload.namespace.as_str().into();
        }
        if let Some(app) = label(&["app", "app.kubernetes.io/name"]) {
            (party.app, party.service) = (Arc::clone(&app), app);
        }
        if let Some(service) = label(&["service.istio.io/canonical-name"]) {
            party.service = service;
        }
        if let Some(version) = label(&["version", "app.kubernetes.io/version"]) {
            (party.version, party.revision) = (Arc::clone(&version), version);
        }
        if let Some(revision) = label(&["service.istio.io/canonical-revision"]) {
            party.revision = revision;
        }
        party
    }

    fn encode(&self, side: &str, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (name, value) in [
            ("cluster", CLUSTER),
            ("workload", &self.workload),
            ("workload_namespace", &self.namespace),
            ("canonical_service", &self.service),
            ("canonical_revision", &self.revision),
            ("app", &self.app),
            ("version", &self.version),
            ("principal", &self.principal),
        ] {
            (format!("{side}_{name}"), value).encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

/// Who calls whom, as seen from one side, and how the way between them is protected.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Edge {
    reporter: &'static str,
    source: Arc<Party>,
    destination: Arc<Party>,
    service: Arc<str>,
    security: &'static str,
}

impl Edge {
    /// A call that came in.
    pub(crate) fn inbound(source: Arc<Party>, own: Arc<Party>, mutual_tls: bool) -> Self {
        Self {
            reporter: "destination",
            source,
            service: Arc::clone(&own.service),
            destination: own,
            security: if mutual_tls { "mutual_tls" } else { "none" },
        }
    }

    /// A call that goes out, through the door of this name. It goes over mutual TLS or not at all.
    pub(crate) fn outbound(own: Arc<Party>, server: Arc<Party>, door: &Arc<str>) -> Self {
        Self {
            reporter: "source",
            source: own,
            destination: server,
            service: Arc::clone(door),
            security: "mutual_tls",
        }
    }
}

impl EncodeLabelSet for Edge {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        ("reporter", self.reporter).encode(encoder.encode_label())?;
        self.source.encode("source", encoder)?;
        self.destination.encode("destination", encoder)?;
        for (name, value) in [
            ("destination_service", &*self.service),
            ("destination_service_name", &*self.service),
            (
                "destination_service_namespace",
                &*self.destination.namespace,
            ),
            ("connection_security_policy", self.security),
        ] {
            (name, value).encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

/// How a request ended, in what a label can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ending {
    status: u16,
    flags: &'static str,
    grpc: bool,
    grpc_status: Option<u16>,
}

impl Ending {
    /// `grpc`: it was a gRPC call, and perhaps has a status.
    pub(crate) fn new(status: u16, flags: &'static str, grpc: Option<Option<u16>>) -> Self {
        /// The application chooses the number; only those that exist get a series.
        const LAST: u16 = 16;
        Self {
            status,
            flags,
            grpc: grpc.is_some(),
            grpc_status: grpc.flatten().filter(|status| *status <= LAST),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct RequestLabels {
    edge: Edge,
    ending: Ending,
}

impl EncodeLabelSet for RequestLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        let Ending {
            grpc,
            status,
            grpc_status,
            flags,
        } = self.ending;
        self.edge.encode(encoder)?;
        let protocol = if grpc { "grpc" } else { "http" };
        ("request_protocol", protocol).encode(encoder.encode_label())?;
        ("response_code", status).encode(encoder.encode_label())?;
        match grpc_status {
            Some(status) => ("grpc_response_status", status).encode(encoder.encode_label())?,
            None => ("grpc_response_status", UNKNOWN).encode(encoder.encode_label())?,
        }
        ("response_flags", flags).encode(encoder.encode_label())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct TcpLabels {
    edge: Edge,
    flags: &'static str,
}

impl EncodeLabelSet for TcpLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        self.edge.encode(encoder)?;
        ("request_protocol", "tcp").encode(encoder.encode_label())?;
        ("response_flags", self.flags).encode(encoder.encode_label())
    }
}

/// The counters of one kind of request on one connection, looked up once and kept.
#[derive(Clone, Debug)]
pub(crate) struct RequestCounters {
    total: Counter,
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
    /// Messages of a gRPC call.
    messages: Option<(Counter, Counter)>,
}

/// The sizes of one request and its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) request_bytes: u64,
    pub(crate) request_messages: u64,
    pub(crate) response_bytes: u64,
    pub(crate) response_messages: u64,
}

impl RequestCounters {
    pub(crate) fn count(&self, took: std::time::Duration, sizes: Sizes) {
        self.total.inc();
        self.duration.observe(took.as_secs_f64() * 1000.0);
        self.request_bytes.observe(sizes.request_bytes as f64);
        self.response_bytes.observe(sizes.response_bytes as f64);
        if let Some((requests, responses)) = &self.messages {
            requests.inc_by(sizes.request_messages);
            responses.inc_by(sizes.response_messages);
        }
    }
}

/// The counters of one TCP connection. Dropping it says that the connection has ended.
#[derive(Debug)]
pub(crate) struct TcpCounters {
    traffic: Traffic,
    labels: TcpLabels,
    /// Bytes from the client.
    pub(crate) received: Counter,
    /// Bytes to the client.
    pub(crate) sent: Counter,
}

impl TcpCounters {
    /// How it ended, if not by its own will.
    pub(crate) fn ended(&mut self, flags: &'static str) {
        self.labels.flags = flags;
    }
}

impl Drop for TcpCounters {
    fn drop(&mut self) {
        self.traffic
            .inner
            .tcp_closed
            .get_or_create(&self.labels)
            .inc();
    }
}

/// The families. Clones are handles.
#[derive(Clone, Debug)]
pub(crate) struct Traffic {
    inner: Arc<Inner>,
}

type Histograms = Family<RequestLabels, Histogram, fn() -> Histogram>;

#[derive(Debug)]
struct Inner {
    requests: Family<RequestLabels, Counter>,
    durations: Histograms,
    request_bytes: Histograms,
    response_bytes: Histograms,
    request_messages: Family<RequestLabels, Counter>,
    response_messages: Family<RequestLabels, Counter>,
    tcp_opened: Family<TcpLabels, Counter>,
    tcp_closed: Family<TcpLabels, Counter>,
    tcp_sent: Family<TcpLabels, Counter>,
    tcp_received: Family<TcpLabels, Counter>,
    workload: Option<Workload>,
    own: Mutex<Option<Arc<Party>>>,
    peers: Mutex<HashMap<Arc<str>, Arc<Party>>>,
}

fn milliseconds() -> Histogram {
    Histogram::new([
        0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0,
        30000.0, 60000.0, 300_000.0,
    ])
}

fn bytes() -> Histogram {
    Histogram::new([1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8])
}

impl Traffic {
    pub(crate) fn new(registry: &Metrics, workload: Option<Workload>) -> Self {
        let build: Family<Vec<(&'static str, &'static str)>, Gauge> = Family::default();
        let tag = vec![("component", "proxy"), ("tag", env!("CARGO_PKG_VERSION"))];
        build.get_or_create(&tag).set(1);
        registry.register("istio_build", "What was built", build);
        let inner = Inner {
            requests: Family::default(),
            durations: Family::new_with_constructor(milliseconds as fn() -> Histogram),
            request_bytes: Family::new_with_constructor(bytes as fn() -> Histogram),
            response_bytes: Family::new_with_constructor(bytes as fn() -> Histogram),
            request_messages: Family::default(),
            response_messages: Family::default(),
            tcp_opened: Family::default(),
            tcp_closed: Family::default(),
            tcp_sent: Family::default(),
            tcp_received: Family::default(),
            workload,
            own: Mutex::default(),
            peers: Mutex::default(),
        };
        for (name, help, family) in [
            ("istio_requests", "Requests", &inner.requests),
            (
                "istio_request_messages",
                "gRPC messages from clients",
                &inner.request_messages,
            ),
            (
                "istio_response_messages",
                "gRPC messages to clients",
                &inner.response_messages,
            ),
        ] {
            registry.register(name, help, family.clone());
        }
        for (name, help, family) in [
            (
                "istio_request_duration_milliseconds",
                "Duration of requests",
                &inner.durations,
            ),
            (
                "istio_request_bytes",
                "Bytes of the bodies of requests",
                &inner.request_bytes,
            ),
            (
                "istio_response_bytes",
                "Bytes of the bodies of answers",
                &inner.response_bytes,
            ),
        ] {
            registry.register(name, help, family.clone());
        }
        for (name, help, family) in [
            (
                "istio_tcp_connections_opened",
                "TCP connections opened",
                &inner.tcp_opened,
            ),
            (
                "istio_tcp_connections_closed",
                "TCP connections closed",
                &inner.tcp_closed,
            ),
            (
                "istio_tcp_sent_bytes",
                "Bytes to the client of a TCP connection",
                &inner.tcp_sent,
            ),
            (
                "istio_tcp_received_bytes",
                "Bytes from the client of a TCP connection",
                &inner.tcp_received,
            ),
        ] {
            registry.register(name, help, family.clone());
        }
        Self {
            inner: Arc::new(inner),
        }
    }

    /// A peer by its proven identity; beyond a number of them they are one.
    pub(crate) fn peer(&self, id: &str) -> Arc<Party> {
        let mut peers = self
            .inner
            .peers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = peers.get(id) {
            return Arc::clone(known);
        }
        if peers.len() >= MOST_PEERS {
            return Arc::new(Party::of("overflow"));
        }
        let party = Arc::new(Party::of(id));
        peers.insert(Arc::clone(&party.principal), Arc::clone(&party));
        party
    }

    /// This workload, by the identity that it shows.
    pub(crate) fn own(&self, id: &str) -> Arc<Party> {
        let mut own = self
            .inner
            .own
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match &*own {
            Some(known) if *known.principal == *id => Arc::clone(known),
            _ => {
                let party = Arc::new(Party::own(id, self.inner.workload.as_ref()));
                *own = Some(Arc::clone(&party));
                party
            }
        }
    }

    pub(crate) fn requests(&self, edge: &Edge, ending: Ending) -> RequestCounters {
        let inner = &self.inner;
        let labels = RequestLabels {
            edge: edge.clone(),
            ending,
        };
        let counter =
            |family: &Family<RequestLabels, Counter>| family.get_or_create(&labels).clone();
        RequestCounters {
            total: counter(&inner.requests),
            duration: inner.durations.get_or_create(&labels).clone(),
            request_bytes: inner.request_bytes.get_or_create(&labels).clone(),
            response_bytes: inner.response_bytes.get_or_create(&labels).clone(),
            messages: ending.grpc.then(|| {
                (
                    counter(&inner.request_messages),
                    counter(&inner.response_messages),
                )
            }),
        }
    }

    /// A TCP connection begins; `flags` is `-`, or why it ends at once.
    pub(crate) fn tcp(&self, edge: &Edge, flags: &'static str) -> TcpCounters {
        let inner = &self.inner;
        let labels = TcpLabels {
            edge: edge.clone(),
            flags,
        };
        inner.tcp_opened.get_or_create(&labels).inc();
        TcpCounters {
            received: inner.tcp_received.get_or_create(&labels).clone(),
            sent: inner.tcp_sent.get_or_create(&labels).clone(),
            traffic: self.clone(),
            labels,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(page: &str, begin: &str) -> Vec<(String, String)> {
        let line = page
            .lines()
            .find(|line| line.starts_with(begin))
            .unwrap_or_else(|| panic!("{begin} is not in {page}"));
        let inside = &line[line.find('{').unwrap() + 1..line.rfind('}').unwrap()];
        inside
            .split("\",")
            .map(|pair| pair.split_once("=\"").unwrap())
            .map(|(name, value)| (name.to_owned(), value.trim_end_matches('"').to_owned()))
            .collect()
    }

    fn value<'a>(labels: &'a [(String, String)], name: &str) -> &'a str {
        &labels.iter().find(|(own, _)| own == name).unwrap().1
    }

    #[test]
    fn every_label_that_dashboards_ask_for_is_there_and_none_is_empty() {
        let registry = Metrics::new("mesh_proxy");
        let workload = Workload {
            namespace: "payments".to_owned(),
            root_namespace: None,
            labels: [("app", "pay"), ("version", "v2")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            services: Vec::new(),
        };
        let traffic = Traffic::new(&registry, Some(workload));
        let own = traffic.own("spiffe://td/ns/payments/sa/pay-account");
        for (peer, tls) in [("spiffe://td/ns/shops/sa/shop", true), ("unknown", false)] {
            let edge = Edge::inbound(traffic.peer(peer), Arc::clone(&own), tls);
            let ending = Ending::new(200, "-", None);
            let took = std::time::Duration::from_millis(3);
            traffic
                .requests(&edge, ending)
                .count(took, Sizes::default());
            drop(traffic.tcp(&edge, "-"));
        }
        let page = registry.classic_text();
        for name in ["istio_requests_total{", "istio_tcp_sent_bytes_total{"] {
            for line in page.lines().filter(|line| line.starts_with(name)) {
                assert!(!line.contains("=\"\""), "{line}");
            }
            let found = labels(&page, name);
            for side in ["source", "destination"] {
                for label in [
                    "cluster",
                    "workload",
                    "workload_namespace",
                    "canonical_service",
                    "canonical_revision",
                    "app",
                    "version",
                    "principal",
                ] {
                    value(&found, &format!("{side}_{label}"));
                }
            }
            for label in [
                "destination_service",
                "destination_service_name",
                "destination_service_namespace",
                "request_protocol",
                "response_flags",
                "connection_security_policy",
            ] {
                value(&found, label);
            }
        }
        let with_tls = page
            .lines()
            .find(|l| l.starts_with("istio_requests_total{") && l.contains("mutual_tls"))
            .unwrap();
        let found = labels(with_tls, "istio");
        for (label, wanted) in [
            ("reporter", "destination"),
            ("source_workload", "shop"),
            ("source_workload_namespace", "shops"),
            ("source_principal", "spiffe://td/ns/shops/sa/shop"),
            ("destination_workload", "pay-account"),
            ("destination_app", "pay"),
            ("destination_version", "v2"),
            ("destination_service_name", "pay"),
            ("destination_service_namespace", "payments"),
            ("grpc_response_status", "unknown"),
            ("response_code", "200"),
        ] {
            assert_eq!(value(&found, label), wanted, "{label}");
        }
        assert!(
            page.contains("istio_build{component=\"proxy\",tag=\""),
            "{page}"
        );
    }

    #[test]
    fn mesh_c1_37_a_hundred_thousand_peers_and_statuses_are_a_bounded_number_of_series() {
        let registry = Metrics::new("mesh_proxy");
        let traffic = Traffic::new(&registry, None);
        let own = traffic.own("spiffe://td/own");
        for number in 0..100_000_u32 {
            let peer = traffic.peer(&format!("spiffe://td/peer-{number}"));
            let edge = Edge::inbound(peer, Arc::clone(&own), true);
            let ending = Ending::new(200, "-", Some(Some((number % 60_000) as u16 + 17)));
            traffic
                .requests(&edge, ending)
                .count(std::time::Duration::ZERO, Sizes::default());
        }
        let page = registry.classic_text();
        let series = page
            .lines()
            .filter(|line| line.starts_with("istio_requests_total{"))
            .count();
        assert_eq!(series, MOST_PEERS + 1);
        let overflow: Vec<_> = page
            .lines()
            .filter(|line| {
                line.starts_with("istio_requests_total{")
                    && line.contains("source_principal=\"overflow\"")
            })
            .collect();
        assert_eq!(overflow.len(), 1, "{overflow:?}");
        assert!(overflow[0].ends_with(" 99000"), "{overflow:?}");
    }
}
