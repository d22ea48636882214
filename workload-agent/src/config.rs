//! Decides what an operator can set, and whether it goes together.
//! Trusts `mesh_runtime::config` for reading. Never reads a file that the configuration only names: the part that needs it does.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use mesh_identity::{SpiffeId, TrustDomain};
use mesh_runtime::{
    addresses::socket_path,
    config::{ByteSize, Config, Findings, HumanDuration},
    telemetry::{LogOptions, OtlpOptions, Secret},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// More often than this no server is asked.
const SHORTEST_SYNC: Duration = Duration::from_millis(500);

/// The configuration of the workload-agent.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentConfig {
    /// The trust domain that this node belongs to, such as `example.org`.
    pub trust_domain: String,
    /// Where the ca-server is, and how to know it on first contact.
    pub server: ServerOptions,
    /// Where the agent keeps, sealed, what a restart goes on with. Made with mode 0700.
    pub data_dir: PathBuf,
    /// The file with the key that seals it, made on the first start. Absent: `sealing.key` in `dataDir`, which protects a copied file
    /// but not a copied directory. Elsewhere, such as on a file system in memory, it protects that too.
    pub sealing_key: Option<PathBuf>,
    /// The socket that workloads use.
    pub workload_api: WorkloadApiOptions,
    /// The socket for administrators of this node.
    pub admin: AdminOptions,
    /// How this node proves what it is: exactly one of the methods.
    pub node_attestation: NodeAttestation,
    /// Where it is recorded which process was given which identity.
    pub audit: AuditOptions,
    /// Metrics and health for operators.
    pub telemetry: TelemetryOptions,
    /// What is logged.
    pub log: LogOptions,
    /// Bounds that keep one caller from crowding out the others.
    pub limits: LimitOptions,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            trust_domain: String::new(),
            server: ServerOptions::default(),
            data_dir: "/var/lib/finial/workload-agent".into(),
            sealing_key: None,
            workload_api: WorkloadApiOptions::default(),
            admin: AdminOptions::default(),
            node_attestation: NodeAttestation::default(),
            audit: AuditOptions::default(),
            telemetry: TelemetryOptions::default(),
            log: LogOptions::default(),
            limits: LimitOptions::default(),
        }
    }
}

/// Where the ca-server is.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerOptions {
    /// `host:port` of its gRPC door.
    pub address: String,
    /// A file with the trust bundle that its certificate must verify against on first contact.
    pub trust_bundle: PathBuf,
    /// The form of that file.
    pub trust_bundle_format: BundleFormat,
    /// How often a server that cannot push updates is asked for them: SPIRE's. Ours pushes, and this has no effect.
    pub sync_interval: HumanDuration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            address: String::new(),
            trust_bundle: PathBuf::new(),
            trust_bundle_format: BundleFormat::default(),
            sync_interval: HumanDuration::from_secs(5),
        }
    }
}

/// The form of a trust bundle file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BundleFormat {
    /// Certificates in PEM.
    #[default]
    Pem,
    /// A SPIFFE bundle in JSON.
    Spiffe,
}

/// The socket that workloads use.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadApiOptions {
    /// An absolute path, or `unix:///path`. Its directory must be writable by root and the agent only.
    pub socket: String,
    /// Envoy's secret discovery service on the same socket.
    pub sds: SdsOptions,
}

impl Default for WorkloadApiOptions {
    fn default() -> Self {
        Self {
            socket: "/run/finial/workload/api.sock".into(),
            sds: SdsOptions::default(),
        }
    }
}

/// Envoy's secret discovery service. The names are what Envoy's configuration asks for.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SdsOptions {
    /// Not served at all.
    pub disabled: bool,
    /// The caller's first identity.
    pub default_svid_name: String,
    /// The roots of the own trust domain.
    pub default_bundle_name: String,
    /// The roots of the own trust domain and of those that the caller federates with.
    pub default_all_bundles_name: String,
    /// Roots as a plain list instead of one for each trust domain: for an Envoy without the SPIFFE certificate validator.
    /// The name for all bundles has no answer then.
    pub disable_spiffe_cert_validation: bool,
}

impl Default for SdsOptions {
    fn default() -> Self {
        Self {
            disabled: false,
            default_svid_name: "default".into(),
            default_bundle_name: "ROOTCA".into(),
            default_all_bundles_name: "ALL".into(),
            disable_spiffe_cert_validation: false,
        }
    }
}

/// The socket for administrators.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AdminOptions {
    /// An absolute path, or `unix:///path`.
    pub socket: String,
    /// Who may use it besides root and the agent's own user.
    pub allowed_uids: Vec<u32>,
    /// Identities whose holders may ask for the identities of other workloads of this node and hand them on (SPIRE's DelegatedIdentity
    /// API). Their processes must be of a user who may use the socket.
    #[schemars(with = "Vec<String>")]
    pub authorized_delegates: Vec<SpiffeId>,
}

impl Default for AdminOptions {
    fn default() -> Self {
        Self {
            socket: "/run/finial/agent/admin.sock".into(),
            allowed_uids: Vec::new(),
            authorized_delegates: Vec::new(),
        }
    }
}

/// How this node proves what it is.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeAttestation {
    /// A token that the ca-server made for this node; it works once.
    pub join_token: Option<JoinTokenOptions>,
    /// A service-account token that Kubernetes projects into the agent's pod.
    pub k8s_psat: Option<K8sPsatOptions>,
    /// A certificate that an outside authority gave this node, with its key.
    pub x509_pop: Option<X509PopOptions>,
}

/// A certificate of an outside authority. The files are read anew at each attestation.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct X509PopOptions {
    /// The node's certificate in PEM; intermediates may follow it.
    pub certificate_file: PathBuf,
    /// Its private key in PEM: RSA, or ECDSA on P-256.
    pub private_key_file: PathBuf,
    /// More intermediates, if they lie in a file of their own.
    pub intermediates_file: Option<PathBuf>,
}

/// A join token: from a file, or given directly.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct JoinTokenOptions {
    /// A file that holds the token. Read when the node attests, not before.
    pub token_file: Option<PathBuf>,
    /// The token itself; a file is better, since environment and arguments can be read by others.
    pub token: Option<Secret<String>>,
}

/// A projected service-account token.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct K8sPsatOptions {
    /// The name under which the ca-server knows this cluster.
    pub cluster: String,
    /// The projected token. Read anew at each attestation.
    pub token_file: PathBuf,
}

impl Default for K8sPsatOptions {
    fn default() -> Self {
        Self {
            cluster: String::new(),
            token_file: "/var/run/secrets/tokens/spire-agent".into(),
        }
    }
}

/// The audit record.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AuditOptions {
    /// A directory of its own. Absent: refusals are only in the log. With it, an identity that cannot be recorded is not given out.
    pub dir: Option<PathBuf>,
}

/// Metrics and health.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TelemetryOptions {
    /// The admin port.
    pub metrics: MetricsOptions,
    /// Traces.
    pub otlp: OtlpOptions,
}

/// The admin port: `/live`, `/ready`, `/metrics`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MetricsOptions {
    /// Where it listens; port 0 chooses one.
    pub address: SocketAddr,
}

impl Default for MetricsOptions {
    fn default() -> Self {
        Self {
            address: ([127, 0, 0, 1], 9990).into(),
        }
    }
}

/// Bounds.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LimitOptions {
    /// Connections on the workload socket, in all. The descriptor limit may lower it.
    pub connections: usize,
    /// Connections from one uid; at most seven of eight.
    pub connections_per_uid: usize,
    /// Open streams and calls of one uid, over all its connections and every way to be given identities.
    pub streams_per_uid: usize,
    /// The largest program file that gets a `unix:sha256` selector.
    pub executable_size: ByteSize,
}

impl Default for LimitOptions {
    fn default() -> Self {
        Self {
            connections: 16384,
            connections_per_uid: 12288,
            streams_per_uid: 16384,
            executable_size: ByteSize::from_mib(256),
        }
    }
}

impl Config for AgentConfig {
    const KIND: &'static str = "WorkloadAgentConfig";
    const ENV_PREFIX: &'static str = "WORKLOAD_AGENT";

    fn check(&self, found: &mut Findings) {
        if let Err(error) = self.trust_domain.parse::<TrustDomain>() {
            let hint = "the name without spiffe://, such as example.org";
            found.problem_with_hint(
                "FNL2000",
                &["trustDomain"],
                format!("not a trust domain: {error}"),
                hint,
            );
        }
        match self.server.address.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {}
            _ => found.problem_with_hint(
                "FNL2001",
                &["server.address"],
                "not an address",
                "host:port, such as ca.example.org:8443",
            ),
        }
        if self.server.trust_bundle.as_os_str().is_empty() {
            let hint = "`ca-server bundle show --format pem` prints it";
            found.problem_with_hint(
                "FNL2002",
                &["server.trustBundle"],
                "no trust bundle is named: the first contact would trust anyone",
                hint,
            );
        }
        if self.server.sync_interval.get() < SHORTEST_SYNC {
            found.problem_with_hint(
                "FNL2009",
                &["server.syncInterval"],
                "so many questions would be a burden to the server",
                "at least 500ms; SPIRE's own agent takes 5s",
            );
        }
        for (path, socket) in [
            ("workloadApi.socket", &self.workload_api.socket),
            ("admin.socket", &self.admin.socket),
        ] {
            if socket_path(socket).is_none() {
                found.problem_with_hint(
                    "FNL2003",
                    &[path],
                    "not the path of a socket",
                    "an absolute path, or unix:///path",
                );
            }
        }
        if socket_path(&self.workload_api.socket) == socket_path(&self.admin.socket) {
            found.problem(
                "FNL2004",
                &["admin.socket", "workloadApi.socket"],
                "both sockets have the same path",
            );
        }
        let sds = &self.workload_api.sds;
        let names = [
            ("workloadApi.sds.defaultSvidName", &sds.default_svid_name),
            (
                "workloadApi.sds.defaultBundleName",
                &sds.default_bundle_name,
            ),
            (
                "workloadApi.sds.defaultAllBundlesName",
                &sds.default_all_bundles_name,
            ),
        ];
        for (at, (path, name)) in names.iter().enumerate() {
            // An empty or foreign meaning would hand one secret out under another's name.
            if name.is_empty()
                || name.starts_with("spiffe:")
                || names[..at].iter().any(|(_, other)| other == name)
            {
                found.problem_with_hint(
                    "FNL2120",
                    &[path],
                    "not a name of its own for a secret",
                    "three different names, none a SPIFFE ID; the usual ones are default, ROOTCA and ALL",
                );
            }
        }
        self.node_attestation.check(found);
        if !self.telemetry.metrics.address.ip().is_loopback() {
            tracing::debug!("the admin port listens beyond loopback");
        }
        if self.limits.connections == 0 || self.limits.connections_per_uid == 0 {
            found.problem(
                "FNL2008",
                &["limits"],
                "a limit of 0 connections would refuse everyone",
            );
        }
    }
}

impl NodeAttestation {
    fn check(&self, found: &mut Findings) {
        match (&self.join_token, &self.k8s_psat, &self.x509_pop) {
            (Some(token), None, None) => {
                if token.token_file.is_some() == token.token.is_some() {
                    found.problem(
                        "FNL2005",
                        &["nodeAttestation.joinToken"],
                        "give tokenFile or token, one of the two",
                    );
                }
            }
            (None, Some(psat), None) => {
                if psat.cluster.is_empty() {
                    found.problem(
                        "FNL2006",
                        &["nodeAttestation.k8sPsat.cluster"],
                        "the cluster has no name",
                    );
                }
            }
            (None, None, Some(pop)) => {
                let files = [
                    ("certificateFile", &pop.certificate_file),
                    ("privateKeyFile", &pop.private_key_file),
                ];
                for (name, _) in files.iter().filter(|(_, path)| path.as_os_str().is_empty()) {
                    let path = format!("nodeAttestation.x509Pop.{name}");
                    found.problem("FNL2030", &[&path], "no file is named");
                }
            }
            _ => found.problem_with_hint(
                "FNL2007",
                &["nodeAttestation"],
                "exactly one way to attest is needed",
                "joinToken, k8sPsat or x509Pop",
            ),
        }
    }
}

impl AgentConfig {
    /// Where workloads come.
    pub fn workload_socket(&self) -> PathBuf {
        socket_path(&self.workload_api.socket).unwrap_or_default()
    }

    /// Where administrators come.
    pub fn admin_socket(&self) -> PathBuf {
        socket_path(&self.admin.socket).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
