//! The configuration of a proxy: its doors, where its identity and its policy come from, and its limits.
//! Trusts `mesh_runtime::config` for strictness and places; decides only what goes together.
//! Never has a default that lets someone in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;

use mesh_identity::SpiffeId;
use mesh_runtime::addresses::socket_path;
use mesh_runtime::config::{ByteSize, Config, Findings, HumanDuration};
use mesh_runtime::telemetry::{LogOptions, OtlpOptions};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Everything a proxy is told.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyConfig {
    /// Where the identity comes from.
    pub workload_api: WorkloadApi,
    /// The door for others: mutual TLS in, the local application behind it. Absent: nobody comes in.
    pub inbound: Option<Inbound>,
    /// The doors for the local application, one for each service that it calls.
    pub outbound: Vec<Outbound>,
    /// Which workload this proxy serves, so that policies can select it. Absent: every policy of the file is meant for it.
    pub workload: Option<Workload>,
    /// Who may come in.
    pub policy: PolicySource,
    /// One JSON line per request and per TCP connection.
    pub access_log: AccessLog,
    /// The tamper-evident record of decisions.
    pub audit: Audit,
    /// Bounds, each of them enforced at every door.
    pub limits: Limits,
    /// How the proxy ends.
    pub drain: Drain,
    /// What operators see.
    pub telemetry: Telemetry,
    /// The log.
    pub log: LogOptions,
    /// Threads that carry traffic. One is the cheapest and is enough for most applications.
    pub workers: Workers,
}

/// Where the identity comes from.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadApi {
    /// The socket of the SPIFFE Workload API: `unix:///run/…/agent.sock`. Also by SPIFFE_ENDPOINT_SOCKET.
    pub socket: String,
}

/// What is spoken at a door.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1, HTTP/2 and gRPC; each request is decided.
    #[default]
    Http,
    /// Bytes; each connection is decided.
    Tcp,
}

/// What the local application speaks behind an HTTP door.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ApplicationProtocol {
    /// gRPC goes to it as HTTP/2, everything else as HTTP/1.1.
    #[default]
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 without TLS only.
    Http2,
}

/// The door for others.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Inbound {
    /// Where others connect, with mutual TLS.
    pub listen: SocketAddr,
    /// The local application.
    pub application: SocketAddr,
    /// `http` or `tcp`.
    #[serde(default)]
    pub protocol: Protocol,
    /// `auto`, `http1` or `http2`.
    #[serde(default)]
    pub application_protocol: ApplicationProtocol,
    /// How many proxies in front of this one are believed in `X-Forwarded-For`, for `remoteIpBlocks` and `remote.ip`.
    #[serde(default)]
    pub trusted_proxies: u8,
}

/// A door for the local application.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Outbound {
    /// Its name in logs, metrics and the addresses file.
    pub name: String,
    /// Where the application connects, without TLS: an address of this machine only.
    pub listen: SocketAddr,
    /// Where the other proxy listens.
    pub to: SocketAddr,
    /// Who must be there.
    #[schemars(with = "String")]
    pub server_id: SpiffeId,
    /// `http` or `tcp`.
    #[serde(default)]
    pub protocol: Protocol,
}

/// Which workload this is, as selectors and namespaces of policies see it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Its namespace. Policies of other namespaces do not speak of it.
    pub namespace: String,
    /// The namespace whose policies speak of every workload, such as `istio-system`. Absent: there is none.
    #[serde(default)]
    pub root_namespace: Option<String>,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The services that it stands behind.
    #[serde(default)]
    pub services: Vec<String>,
}

impl From<&Workload> for mesh_policy::Workload {
    fn from(workload: &Workload) -> Self {
        Self {
            namespace: workload.namespace.clone(),
            root_namespace: workload.root_namespace.clone(),
            labels: workload.labels.clone().into_iter().collect(),
            services: workload.services.clone(),
        }
    }
}

/// Where the policy comes from.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicySource {
    /// A file of AuthorizationPolicy documents, read again whenever it changes. Absent: everything is denied.
    pub file: Option<PathBuf>,
    /// How the keys of issuers are fetched that the policy names by an https address.
    pub keys: KeyFetching,
}

/// How keys are fetched from the Web.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct KeyFetching {
    /// A file of roots, in PEM, by which the servers of keys are verified. Absent: the roots of the system.
    pub ca_file: Option<PathBuf>,
    /// How often keys are asked for again; a second at least.
    pub every: HumanDuration,
    /// Whether this machine itself may serve keys, for tests and development.
    pub loopback: bool,
}

impl Default for KeyFetching {
    fn default() -> Self {
        Self {
            ca_file: None,
            every: HumanDuration::from_secs(300),
            loopback: false,
        }
    }
}

/// Where the access log goes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AccessLog {
    /// `stdout`, `none`, or a file to append to.
    pub path: String,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self {
            path: "stdout".to_owned(),
        }
    }
}

/// Where the audit record goes.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Audit {
    /// A directory. Absent: denials are only in the access log.
    pub dir: Option<PathBuf>,
}

/// Bounds.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Open connections per door; more wait in the kernel.
    pub connections: usize,
    /// Open connections of one identity at the inbound door, whatever the number of its workloads is.
    pub connections_per_peer: usize,
    /// Handshakes at the same time.
    pub handshakes: usize,
    /// Longest time of one handshake.
    pub handshake: HumanDuration,
    /// Longest time to connect to the application or to another proxy, handshake included.
    pub connect: HumanDuration,
    /// Longest time until the head of a request is there, also between two requests of one connection.
    pub header_read: HumanDuration,
    /// Longest time in which nothing of a request's body comes, until its answer begins. A gRPC call may be silent for as long as it likes.
    pub body_idle: HumanDuration,
    /// Largest head of a request.
    pub header_bytes: ByteSize,
    /// Requests at the same time on one HTTP/2 connection.
    pub streams: u32,
    /// A connection is closed when nothing of an answer that was asked for on it is taken for so long.
    pub stalled: HumanDuration,
    /// A connection on which nothing happens for so long is closed.
    pub idle: HumanDuration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_peer: 1024,
            handshakes: 64,
            handshake: HumanDuration::from_secs(5),
            connect: HumanDuration::from_secs(5),
            header_read: HumanDuration::from_secs(30),
            body_idle: HumanDuration::from_secs(60),
            header_bytes: ByteSize::from_bytes(64 * 1024),
            streams: 256,
            stalled: HumanDuration::from_secs(300),
            idle: HumanDuration::from_secs(3600),
        }
    }
}

/// How the proxy ends.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Drain {
    /// Between unready and the end of accepting, so that load balancers look away.
    pub notice: HumanDuration,
    /// How long requests and connections may go on after that.
    pub deadline: HumanDuration,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            notice: HumanDuration::from_secs(0),
            deadline: HumanDuration::from_secs(10),
        }
    }
}

/// What operators see.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Telemetry {
    /// The admin port.
    pub metrics: MetricsPort,
    /// Traces.
    pub otlp: OtlpOptions,
}

/// The admin port: `/live`, `/ready`, `/metrics`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MetricsPort {
    /// An address of this machine; port 0 chooses one.
    pub address: SocketAddr,
}

impl Default for MetricsPort {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }
}

/// Threads that carry traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Workers(pub usize);

impl Default for Workers {
    fn default() -> Self {
        Self(1)
    }
}

impl Config for ProxyConfig {
    const KIND: &'static str = "MeshProxyConfig";
    const ENV_PREFIX: &'static str = "MESH_PROXY";
    const STANDARD_ENV: &'static [(&'static str, &'static str)] = &[
        ("RUST_LOG", "log.level"),
        ("SPIFFE_ENDPOINT_SOCKET", "workloadApi.socket"),
    ];

    fn check(&self, found: &mut Findings) {
        self.check_doors(found);
        self.check_limits(found);
        if !self.workload_api.socket.is_empty() && socket_path(&self.workload_api.socket).is_none()
        {
            found.problem_with_hint(
                "FNL3060",
                &["workloadApi.socket"],
                "the Workload API is reached by an absolute path",
                "unix:///run/finial/agent.sock",
            );
        }
    }
}

impl ProxyConfig {
    fn check_doors(&self, found: &mut Findings) {
        let mut names = BTreeSet::new();
        for (i, door) in self.outbound.iter().enumerate() {
            let at = |field: &str| format!("outbound.{i}.{field}");
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            if door.name.is_empty() || door.name.len() > 63 || !door.name.bytes().all(plain) {
                found.problem(
                    "FNL3061",
                    &[&at("name")],
                    "a door's name has 1 to 63 small letters, digits and `-`",
                );
            }
            if !names.insert(door.name.as_str()) {
                found.problem(
                    "FNL3062",
                    &[&at("name")],
                    format!("the name `{}` is used twice", door.name),
                );
            }
            if !door.listen.ip().is_loopback() {
                found.problem_with_hint(
                    "FNL3063",
                    &[&at("listen")],
                    "an outbound door speaks with the identity of this workload for whoever reaches it",
                    "listen on 127.0.0.1 or [::1]",
                );
            }
            if door.server_id.path().is_empty() {
                found.problem(
                    "FNL3064",
                    &[&at("serverId")],
                    "a trust domain alone is no workload",
                );
            }
        }
        if !self.telemetry.metrics.address.ip().is_loopback() {
            found.problem(
                "FNL3065",
                &["telemetry.metrics.address"],
                "the admin port is for this machine only",
            );
        }
    }

    fn check_limits(&self, found: &mut Findings) {
        let limits = &self.limits;
        for (field, zero) in [
            ("connections", limits.connections == 0),
            ("connectionsPerPeer", limits.connections_per_peer == 0),
            ("handshakes", limits.handshakes == 0),
            ("handshake", limits.handshake.is_zero()),
            ("connect", limits.connect.is_zero()),
            ("headerRead", limits.header_read.is_zero()),
            ("bodyIdle", limits.body_idle.is_zero()),
            ("headerBytes", limits.header_bytes.as_bytes() < 8192),
            ("streams", limits.streams == 0),
            ("stalled", limits.stalled.is_zero()),
            ("idle", limits.idle.is_zero()),
        ] {
            if zero {
                found.problem(
                    "FNL3066",
                    &[&format!("limits.{field}")],
                    "this limit would let nothing through",
                );
            }
        }
        if self.workers.0 == 0 || self.workers.0 > 64 {
            found.problem("FNL3067", &["workers"], "workers is a number from 1 to 64");
        }
    }
}
