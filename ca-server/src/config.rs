//! Decides what the server's configuration may say: one section per part, and the rules between sections.
//! Trusts nothing that it does not know. Never starts a server whose SVIDs would outlive what signs them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use mesh_identity::{SpiffeId, TrustDomain};
use mesh_runtime::config::{ByteSize, Config, FIELDS_DISAGREE, Findings, HumanDuration};
use mesh_runtime::telemetry::{LogOptions, OtlpOptions};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::authority::{
    AuthoritySettings, KeyType, KeyTypes, MOST_AUDIENCES, SHORTEST_LIFE, TokenSettings,
    UpstreamAuthority,
};
use crate::kubernetes::{PublishConfig, WorkloadsConfig};

/// Everything that a ca-server can be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CaServerConfig {
    /// The trust domain whose authority this server is.
    #[schemars(with = "String")]
    pub trust_domain: TrustDomain,
    /// Where agents and administrators come in.
    pub listen: ListenConfig,
    /// Who administers over the network, besides the holders of admin entries.
    pub admin: AdminConfig,
    /// Where entries, agents, tokens and records are kept.
    pub store: StoreConfig,
    /// How the CA keys are protected at rest.
    pub keys: KeysConfig,
    /// How long things live.
    pub lifetimes: LifetimesConfig,
    /// How nodes prove what they are.
    pub attestation: AttestationConfig,
    /// Other trust domains.
    pub federation: FederationConfig,
    /// The audit record.
    pub audit: AuditConfig,
    /// Bounds on what strangers and agents may ask for.
    pub limits: LimitsConfig,
    /// What operators see.
    pub telemetry: TelemetryConfig,
    /// The log.
    pub log: LogOptions,
    /// Who signs the X.509 authorities of this server. Absent: they sign themselves.
    pub upstream_authority: Option<UpstreamAuthority>,
    /// What tokens say of their issuer (`iss`), for verifiers that ask for it. Absent: nothing, as the SPIFFE ID names it already.
    pub jwt_issuer: Option<String>,
}

/// The `listen` section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ListenConfig {
    /// Mutual TLS for agents; port 0 chooses one.
    pub address: SocketAddr,
    /// The socket of the local administrators.
    pub admin_socket: PathBuf,
    /// Uids that are administrators on the socket, besides root and this process's own.
    pub admin_uids: Vec<u32>,
    /// Gids whose members are administrators on the socket.
    pub admin_gids: Vec<u32>,
}

/// The `admin` section.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AdminConfig {
    /// Identities with the rights of an administrator, without an entry: SPIRE's `admin_ids`. One of another trust domain counts
    /// while that trust domain's bundle is known here.
    #[schemars(with = "Vec<String>")]
    pub ids: Vec<SpiffeId>,
}

/// The `store` section.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StoreConfig {
    /// The embedded store.
    pub sled: SledConfig,
}

/// The `store.sled` section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SledConfig {
    /// The directory of the store.
    pub path: PathBuf,
    /// Changes are refused while less than this is free on its disk.
    pub free_space_reserve: ByteSize,
    /// Memory for its page cache.
    pub cache: ByteSize,
}

/// The `keys` section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct KeysConfig {
    /// The file with the key that seals the CA keys in the store; made on the first start.
    pub sealing_key: PathBuf,
    /// What new X.509 authorities are made of; one that exists stays what it is.
    pub ca_key_type: KeyType,
    /// The same for JWT authorities; absent: as `caKeyType`.
    pub jwt_key_type: Option<KeyType>,
}

/// The `lifetimes` section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LifetimesConfig {
    /// An X.509 authority.
    pub x509_authority: HumanDuration,
    /// An X509-SVID whose entry does not say otherwise.
    pub x509_svid: HumanDuration,
    /// A JWT-SVID whose entry does not say otherwise; if not set, 5 minutes or what the authority can grant.
    pub jwt_svid: Option<HumanDuration>,
    /// The SVID of an agent, and of this server itself.
    pub agent_svid: HumanDuration,
    /// How often others should ask for the bundle.
    pub bundle_refresh_hint: HumanDuration,
}

/// The `attestation` section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AttestationConfig {
    /// The ways in which a node may prove itself.
    pub node: Vec<NodeAttestor>,
}

/// The `federation` section.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FederationConfig {
    /// A PEM file with the roots that bundle endpoints of the profile `https_web` are verified with. Absent: those of this machine.
    pub web_roots: Option<PathBuf>,
    /// Where others fetch our bundle. Absent: nowhere.
    pub bundle_endpoint: Option<BundleEndpointConfig>,
}

/// The `federation.bundleEndpoint` section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BundleEndpointConfig {
    /// HTTPS for anybody; port 0 chooses one.
    pub address: SocketAddr,
    /// By what the endpoint is known.
    pub profile: BundleEndpointProfile,
}

/// By what our bundle endpoint is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum BundleEndpointProfile {
    /// By this server's own SPIFFE ID.
    HttpsSpiffe(HttpsSpiffeConfig),
    /// By a certificate of the Web PKI.
    HttpsWeb(HttpsWebConfig),
}

/// The `httpsSpiffe` profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpsSpiffeConfig {}

/// The `httpsWeb` profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpsWebConfig {
    /// The certificate chain, PEM, leaf first.
    pub certificate: PathBuf,
    /// The key of the leaf, PEM.
    pub key: PathBuf,
}

impl Default for BundleEndpointConfig {
    fn default() -> Self {
        Self {
            // Beside the door of the agents, which has 8443.
            address: ([0, 0, 0, 0], 8444).into(),
            profile: BundleEndpointProfile::HttpsSpiffe(HttpsSpiffeConfig {}),
        }
    }
}

/// One way in which a node may prove itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(
    clippy::large_enum_variant,
    reason = "a handful of these exist, once, while starting"
)]
pub enum NodeAttestor {
    /// A secret that lets one node in, once.
    JoinToken(JoinTokenConfig),
    /// A projected service-account token of a Kubernetes pod.
    K8sPsat(K8sPsatConfig),
    /// A certificate of an outside authority, and a proof that the node holds its key.
    X509Pop(X509PopConfig),
}

/// The `x509Pop` attestor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct X509PopConfig {
    /// PEM files with the roots below which the nodes' certificates are. Read at the start.
    pub ca_bundles: Vec<PathBuf>,
}

/// The `joinToken` attestor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct JoinTokenConfig {}

/// The `k8sPsat` attestor: one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct K8sPsatConfig {
    /// The cluster's name, as agents say it and as it stands in their SPIFFE IDs.
    pub cluster: String,
    /// The kubeconfig file of that cluster; absent: the cluster that this server runs in.
    pub kubeconfig: Option<PathBuf>,
    /// Audiences of which a token must carry one. Never the API server's own.
    pub audiences: Vec<String>,
    /// The cluster's token issuer; a token of another issuer is not sent to it. Absent: not compared.
    pub issuer: Option<String>,
    /// Service accounts of agents, each `namespace:name`.
    pub service_accounts: Vec<String>,
    /// Node labels that become selectors; only those below `node-restriction.kubernetes.io/` cannot be set by the node itself.
    pub node_labels: Vec<String>,
    /// Pod labels that become selectors.
    pub pod_labels: Vec<String>,
    /// The DaemonSet that must own the agent's pod; absent: any pod of an allowed account.
    pub daemon_set: Option<String>,
    /// The longest wait for one answer of the API server.
    pub timeout: HumanDuration,
    /// The cluster's pods get identities by rule. Absent: only by stored entries.
    pub workloads: Option<WorkloadsConfig>,
    /// The trust bundle is published in the cluster. Absent: it is not.
    pub publish_bundle: Option<PublishConfig>,
}

/// The `audit` section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AuditConfig {
    /// The directory of the audit log, of its checkpoints and of the key that signs them.
    pub dir: PathBuf,
    /// How often the log is signed, beside each 1000 records, start and stop.
    pub checkpoint_every: HumanDuration,
}

/// The `limits` section. Zero switches a rate off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LimitsConfig {
    /// Attestations per second of one agent, or from one address of strangers.
    pub attestations_per_second: u32,
    /// Signatures per second for one agent or administrator.
    pub signatures_per_second: u32,
    /// Status reports per second of one agent.
    pub statuses_per_second: u32,
    /// Open connections.
    pub connections: u32,
    /// Streams on one connection.
    pub streams_per_connection: u32,
    /// Certificates in one request.
    pub certificates_per_request: u32,
    /// Audiences in one token; whoever of them gets it can use it towards the others.
    pub audiences_per_token: u32,
}

/// The `telemetry` section.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TelemetryConfig {
    /// Metrics, liveness and readiness.
    pub metrics: MetricsConfig,
    /// Traces.
    pub otlp: OtlpOptions,
}

/// The `telemetry.metrics` section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MetricsConfig {
    /// The admin port; loopback, unless scrapers come from elsewhere.
    pub address: SocketAddr,
}

impl Default for CaServerConfig {
    fn default() -> Self {
        Self {
            trust_domain: "example.org".parse().expect("a trust domain name"),
            listen: ListenConfig::default(),
            admin: AdminConfig::default(),
            store: StoreConfig::default(),
            keys: KeysConfig::default(),
            lifetimes: LifetimesConfig::default(),
            attestation: AttestationConfig::default(),
            federation: FederationConfig::default(),
            audit: AuditConfig::default(),
            limits: LimitsConfig::default(),
            telemetry: TelemetryConfig::default(),
            log: LogOptions::default(),
            upstream_authority: None,
            jwt_issuer: None,
        }
    }
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            address: ([0, 0, 0, 0], 8443).into(),
            admin_socket: DEFAULT_ADMIN_SOCKET.into(),
            admin_uids: Vec::new(),
            admin_gids: Vec::new(),
        }
    }
}

/// Where the administrators' socket is, unless the configuration says otherwise.
pub const DEFAULT_ADMIN_SOCKET: &str = "/run/ca-server/admin.sock";

impl Default for SledConfig {
    fn default() -> Self {
        Self {
            path: "/var/lib/ca-server/store".into(),
            free_space_reserve: ByteSize::from_mib(64),
            cache: ByteSize::from_mib(16),
        }
    }
}

impl Default for KeysConfig {
    fn default() -> Self {
        Self {
            sealing_key: "/var/lib/ca-server/sealing.key".into(),
            ca_key_type: KeyType::default(),
            jwt_key_type: None,
        }
    }
}

impl Default for LifetimesConfig {
    fn default() -> Self {
        Self {
            x509_authority: HumanDuration::from_secs(24 * 3600),
            x509_svid: HumanDuration::from_secs(3600),
            jwt_svid: None,
            agent_svid: HumanDuration::from_secs(3600),
            bundle_refresh_hint: HumanDuration::from_secs(300),
        }
    }
}

impl Default for AttestationConfig {
    fn default() -> Self {
        Self {
            node: vec![NodeAttestor::JoinToken(JoinTokenConfig {})],
        }
    }
}

impl Default for K8sPsatConfig {
    fn default() -> Self {
        Self {
            cluster: String::new(),
            kubeconfig: None,
            audiences: vec!["ca-server".into(), "spire-server".into()],
            issuer: None,
            service_accounts: Vec::new(),
            node_labels: Vec::new(),
            pod_labels: Vec::new(),
            daemon_set: None,
            timeout: HumanDuration::from_secs(5),
            workloads: None,
            publish_bundle: None,
        }
    }
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            dir: "/var/log/ca-server/audit".into(),
            checkpoint_every: HumanDuration::from_secs(60),
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            attestations_per_second: 10,
            signatures_per_second: 500,
            statuses_per_second: 10,
            connections: 16_384,
            streams_per_connection: 128,
            certificates_per_request: 1000,
            audiences_per_token: MOST_AUDIENCES.try_into().unwrap_or(u32::MAX),
        }
    }
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self {
            address: ([127, 0, 0, 1], 9464).into(),
        }
    }
}

/// The code of lives that cannot be kept.
const SVID_OUTLIVES_AUTHORITY: &str = "FNL0117";

/// The shortest SVID: below this it would be renewed without pause.
pub const SHORTEST_SVID: Duration = Duration::from_secs(2);

impl CaServerConfig {
    /// The section that the authority is made from.
    pub fn authority(&self) -> AuthoritySettings {
        AuthoritySettings {
            trust_domain: self.trust_domain.clone(),
            lifetime: self.lifetimes.x509_authority.get(),
            refresh_hint: self.lifetimes.bundle_refresh_hint.get(),
            sealing_key: self.keys.sealing_key.clone(),
            tokens: TokenSettings {
                issuer: self.jwt_issuer.clone(),
                most_audiences: usize::try_from(self.limits.audiences_per_token)
                    .unwrap_or(usize::MAX),
            },
            upstream: self.upstream_authority.clone(),
            key_types: KeyTypes {
                x509: self.keys.ca_key_type,
                jwt: self.keys.jwt_key_type.unwrap_or(self.keys.ca_key_type),
            },
        }
    }
}

/// The longest `jwtIssuer`, in bytes; it stands in every token.
const LONGEST_ISSUER: usize = 1024;

/// The life of a JWT-SVID where nobody says otherwise (JWT-21).
const JWT_SVID: Duration = Duration::from_secs(300);

impl CaServerConfig {
    /// The life of a JWT-SVID whose entry does not say otherwise.
    pub fn jwt_svid(&self) -> Duration {
        let most = self.authority().longest_svid();
        let configured = self.lifetimes.jwt_svid.map(HumanDuration::get);
        configured.unwrap_or(JWT_SVID.min(most))
    }
}

impl Config for CaServerConfig {
    const KIND: &'static str = "CaServerConfig";
    const ENV_PREFIX: &'static str = "CA_SERVER";

    fn check(&self, found: &mut Findings) {
        self.check_lifetimes(found);
        self.check_attestors(found);
        if let Err(error) = self.log.check() {
            found.problem(FIELDS_DISAGREE, &["log.level"], error.to_string());
        }
        if !(1..=3600).contains(&self.audit.checkpoint_every.as_secs()) {
            found.problem(
                FIELDS_DISAGREE,
                &["audit.checkpointEvery"],
                "the audit log is signed between every 1s and every 1h",
            );
        }
        let named = |issuer: &str| {
            !issuer.is_empty()
                && issuer.len() <= LONGEST_ISSUER
                && !issuer.chars().any(|c| c.is_control() || c.is_whitespace())
        };
        if !self.jwt_issuer.as_deref().is_none_or(named) {
            found.problem(
                FIELDS_DISAGREE,
                &["jwtIssuer"],
                format!("an issuer has 1 to {LONGEST_ISSUER} bytes and no space in them"),
            );
        }
        if self.limits.audiences_per_token == 0 {
            found.problem(
                FIELDS_DISAGREE,
                &["limits.audiencesPerToken"],
                "a token has at least one audience",
            );
        }
        for (index, id) in self.admin.ids.iter().enumerate() {
            let place = format!("admin.ids.{index}");
            if id.path().is_empty() {
                let says =
                    format!("`{id}` is a trust domain; an administrator is one of its members");
                found.problem(FIELDS_DISAGREE, &[place.as_str()], says);
            } else if id.is_member_of(&self.trust_domain) && id.path().starts_with("/spire/") {
                let says = format!("`{id}` is reserved for agents and servers");
                found.problem(FIELDS_DISAGREE, &[place.as_str()], says);
            }
        }
        if self.listen.admin_socket.as_os_str().len() > 107 {
            found.problem(
                FIELDS_DISAGREE,
                &["listen.adminSocket"],
                "the path of a Unix socket has at most 107 bytes",
            );
        }
    }
}

impl CaServerConfig {
    fn check_lifetimes(&self, found: &mut Findings) {
        let lives = &self.lifetimes;
        let authority = "lifetimes.x509Authority";
        if lives.x509_authority.get() < SHORTEST_LIFE {
            found.problem(
                FIELDS_DISAGREE,
                &[authority],
                format!("an authority lives at least {SHORTEST_LIFE:?}"),
            );
            return;
        }
        // An authority hands over to the next one before its end; what it signs last must still fit into what is left.
        let longest = self.authority().longest_svid();
        let jwt = lives.jwt_svid;
        for (name, path, life) in [
            ("x509Svid", "lifetimes.x509Svid", lives.x509_svid),
            ("agentSvid", "lifetimes.agentSvid", lives.agent_svid),
        ]
        .into_iter()
        .chain(jwt.map(|life| ("jwtSvid", "lifetimes.jwtSvid", life)))
        {
            if life.get() < SHORTEST_SVID {
                found.problem(
                    FIELDS_DISAGREE,
                    &[path],
                    format!("an SVID lives at least {SHORTEST_SVID:?}"),
                );
            } else if life > lives.x509_authority {
                found.problem(
                    SVID_OUTLIVES_AUTHORITY,
                    &[path, authority],
                    format!(
                        "{name} ({life}) outlives x509Authority ({})",
                        lives.x509_authority
                    ),
                );
            } else if life.get() > longest {
                found.problem_with_hint(
                    SVID_OUTLIVES_AUTHORITY,
                    &[path, authority],
                    format!(
                        "{name} ({life}) cannot always be granted by an x509Authority of {}",
                        lives.x509_authority
                    ),
                    format!(
                        "at most {}, which is what an authority has left when the next one takes over",
                        HumanDuration::from(longest)
                    ),
                );
            }
        }
        if lives.bundle_refresh_hint.is_zero() {
            found.problem(
                FIELDS_DISAGREE,
                &["lifetimes.bundleRefreshHint"],
                "the bundle cannot be asked for without pause",
            );
        }
    }

    fn check_attestors(&self, found: &mut Findings) {
        let mut clusters = std::collections::BTreeSet::new();
        let mut outside = false;
        for (index, attestor) in self.attestation.node.iter().enumerate() {
            let cluster = match attestor {
                NodeAttestor::K8sPsat(cluster) => cluster,
                NodeAttestor::X509Pop(pop) => {
                    let path = format!("attestation.node.{index}.x509Pop");
                    if pop.ca_bundles.is_empty() {
                        let why =
                            "name at least one file with the roots of the nodes' certificates";
                        found.problem(FIELDS_DISAGREE, &[&format!("{path}.caBundles")], why);
                    }
                    if std::mem::replace(&mut outside, true) {
                        let why = "x509Pop stands here twice; one attestor takes several files";
                        found.problem(FIELDS_DISAGREE, &[&path], why);
                    }
                    continue;
                }
                NodeAttestor::JoinToken(_) => continue,
            };
            let path = |field: &str| format!("attestation.node.{index}.k8sPsat.{field}");
            let mut refuse = |field: &str, why: &str| {
                found.problem(FIELDS_DISAGREE, &[&path(field)], why);
            };
            let segment = format!("/{}", cluster.cluster);
            if cluster.cluster.contains('/')
                || SpiffeId::from_parts(&self.trust_domain, &segment).is_err()
            {
                refuse(
                    "cluster",
                    "the cluster's name becomes one segment of SPIFFE IDs: letters, digits, `.`, `-`, `_`",
                );
            }
            if !clusters.insert(cluster.cluster.clone()) {
                refuse("cluster", "two attestors have this cluster's name");
            }
            if cluster.audiences.is_empty() || cluster.audiences.iter().any(String::is_empty) {
                refuse(
                    "audiences",
                    "at least one audience, and no empty one: without it the API server's own audience would do",
                );
            }
            let account = |text: &String| {
                text.split_once(':').is_some_and(|(namespace, name)| {
                    !namespace.is_empty() && !name.is_empty() && !name.contains(':')
                })
            };
            if cluster.service_accounts.is_empty() || !cluster.service_accounts.iter().all(account)
            {
                refuse(
                    "serviceAccounts",
                    "name the agents' service accounts, each as `namespace:name`",
                );
            }
            if cluster.timeout.is_zero() || cluster.timeout.get() > Duration::from_secs(10) {
                refuse("timeout", "between 1ms and 10s");
            }
        }
    }
}

#[cfg(test)]
mod tests;
