//! A real Envoy in a test: installed by `tests/rig/peers.sh`, configured from a few pieces, asked over its own admin port.
//! Its certificates and roots come from the agent's socket unless a test says otherwise.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use finial::dev::http;
use serde_json::{Value, json};

use crate::{eventually, world::World};

/// How an Envoy proves who it is.
#[derive(Clone, Copy)]
pub enum Proof<'a> {
    /// By the secret of this name from the agent.
    Secret(&'a str),
    /// By a chain and a key in files.
    Files(&'a Path, &'a Path),
    /// Not at all.
    Nothing,
}

/// Whom an Envoy takes at the other end.
#[derive(Clone, Copy)]
pub enum Peer<'a> {
    /// Who has this SPIFFE ID, by the roots under this name.
    Only {
        /// The secret with the roots.
        roots: &'a str,
        /// The peer's SPIFFE ID.
        id: &'a str,
    },
    /// Anybody.
    Anybody,
}

/// The configuration of one Envoy.
pub struct Setup {
    agent: PathBuf,
    api: &'static str,
    metadata: Value,
    listeners: Vec<Value>,
    clusters: Vec<Value>,
}

impl Setup {
    /// Asks this agent, by StreamSecrets or (`delta`) by DeltaSecrets.
    pub fn new(agent: PathBuf, delta: bool) -> Self {
        Self {
            agent,
            api: if delta { "DELTA_GRPC" } else { "GRPC" },
            metadata: json!({}),
            listeners: Vec::new(),
            clusters: Vec::new(),
        }
    }

    /// Wants plain roots instead of the SPIFFE validator.
    pub fn without_spiffe_validator(mut self) -> Self {
        self.metadata = json!({ "disable_spiffe_cert_validation": true });
        self
    }

    /// A listener with TLS whose requests go in plain text to `to`; it tells the application who called.
    pub fn inbound(mut self, name: &str, proof: Proof, peer: Peer, to: &str) -> Self {
        let tls = json!({
            "@type": format!("{TLS}DownstreamTlsContext"),
            "require_client_certificate": matches!(peer, Peer::Only { .. }),
            "common_tls_context": self.tls(proof, peer, &["h2", "http/1.1"]),
        });
        self.listeners.push(listener(name, Some(tls)));
        self.clusters.push(cluster(name, to, None));
        self
    }

    /// A listener in plain text whose requests go with TLS to `to`. A connection carries a few requests, then the next is made.
    pub fn outbound(mut self, name: &str, proof: Proof, peer: Peer, to: &str) -> Self {
        let tls = json!({
            "@type": format!("{TLS}UpstreamTlsContext"),
            "common_tls_context": self.tls(proof, peer, &[]),
        });
        self.listeners.push(listener(name, None));
        self.clusters.push(cluster(name, to, Some(tls)));
        self
    }

    fn tls(&self, proof: Proof, peer: Peer, alpn: &[&str]) -> Value {
        let mut context = json!({
            "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
            "alpn_protocols": alpn,
        });
        match proof {
            Proof::Secret(name) => {
                context["tls_certificate_sds_secret_configs"] = json!([self.secret(name)]);
            }
            Proof::Files(chain, key) => {
                context["tls_certificates"] = json!([{
                    "certificate_chain": { "filename": chain },
                    "private_key": { "filename": key },
                }]);
            }
            Proof::Nothing => {}
        }
        if let Peer::Only { roots, id } = peer {
            context["combined_validation_context"] = json!({
                "default_validation_context": {
                    "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": id } }],
                },
                "validation_context_sds_secret_config": self.secret(roots),
            });
        }
        context
    }

    fn secret(&self, name: &str) -> Value {
        json!({
            "name": name,
            "sds_config": {
                "resource_api_version": "V3",
                "api_config_source": {
                    "api_type": self.api,
                    "transport_api_version": "V3",
                    "grpc_services": [{ "envoy_grpc": { "cluster_name": AGENT } }],
                },
            },
        })
    }

    fn bootstrap(mut self, name: &str) -> Value {
        let socket = json!({ "pipe": { "path": self.agent } });
        let http2 = json!({ "explicit_http_config": { "http2_protocol_options": {} } });
        self.clusters
            .push(json!({
                "name": AGENT,
                "type": "STATIC",
                "connect_timeout": "5s",
                "typed_extension_protocol_options": { HTTP: protocol(http2) },
                "load_assignment": { "cluster_name": AGENT, "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": socket } }] }] },
            }));
        json!({
            "node": { "id": name, "cluster": "tests", "metadata": self.metadata },
            "admin": { "address": socket_address("127.0.0.1:0") },
            "static_resources": { "listeners": self.listeners, "clusters": self.clusters },
        })
    }
}

const AGENT: &str = "workload-agent";
const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.";
const HTTP: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

fn protocol(mut options: Value) -> Value {
    options["@type"] = json!(format!("type.googleapis.com/{HTTP}"));
    options
}

fn socket_address(address: &str) -> Value {
    let (host, port) = address.rsplit_once(':').expect("host:port");
    let port: u16 = port.parse().expect("a port");
    json!({ "socket_address": { "address": host, "port_value": port } })
}

fn transport_socket(tls: Value) -> Value {
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": tls })
}

fn listener(name: &str, tls: Option<Value>) -> Value {
    const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters";
    let manager = json!({
        "@type": format!("{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": name,
        "codec_type": "AUTO",
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": { "uri": true },
        "route_config": { "virtual_hosts": [{
            "name": name,
            "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": name, "timeout": "0s" } }],
        }] },
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": { "@type": format!("{FILTERS}.http.router.v3.Router") },
        }],
    });
    let mut chain = json!({
        "filters": [{ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager }],
    });
    if let Some(tls) = tls {
        chain["transport_socket"] = transport_socket(tls);
    }
    json!({
        "name": name,
        "stat_prefix": name,
        "address": socket_address("127.0.0.1:0"),
        "filter_chains": [chain],
    })
}

fn cluster(name: &str, to: &str, tls: Option<Value>) -> Value {
    let mut options = json!({ "use_downstream_protocol_config": { "http2_protocol_options": {} } });
    if tls.is_some() {
        options["common_http_protocol_options"] = json!({ "max_requests_per_connection": 20 });
    }
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "typed_extension_protocol_options": { HTTP: protocol(options) },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": socket_address(to) } }] }],
        },
    });
    if let Some(tls) = tls {
        cluster["transport_socket"] = transport_socket(tls);
    }
    cluster
}

/// A running Envoy; killed when dropped, and its log printed if the test failed.
pub struct Envoy {
    name: String,
    child: Child,
    log: PathBuf,
    admin: String,
}

impl Envoy {
    /// Starts it under a path of its own, registered as the identity `name`, and waits until its listeners serve.
    pub async fn start(world: &World, program: &Path, name: &str, setup: Setup) -> Self {
        let own = world.own_program(&format!("{name}-envoy"), program);
        world.entry(name, &own.display().to_string());
        let config = world.write(
            &format!("{name}-envoy.json"),
            &setup.bootstrap(name).to_string(),
        );
        let reported = world.path(&format!("{name}-envoy.admin"));
        let log = world.path(&format!("{name}-envoy.log"));
        let out = File::create(&log).expect("a log file");
        let child = Command::new(&own)
            .args(["--concurrency", "1", "--disable-hot-restart"])
            .args(["--log-level", "warning", "-c"])
            .arg(&config)
            .arg("--admin-address-path")
            .arg(&reported)
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a second handle"))
            .stderr(out)
            .spawn()
            .expect("Envoy starts");
        let mut envoy = Self {
            name: name.to_owned(),
            child,
            log,
            admin: String::new(),
        };
        let ready = eventually::within(Duration::from_secs(60), async || {
            assert!(
                envoy
                    .child
                    .try_wait()
                    .expect("its state is known")
                    .is_none(),
                "Envoy ended"
            );
            envoy.admin = fs::read_to_string(&reported).unwrap_or_default();
            !envoy.admin.is_empty() && envoy.ask("/ready").await.starts_with("LIVE")
        });
        assert!(ready.await, "Envoy did not become ready");
        envoy
    }

    /// The address of one of its listeners.
    pub async fn address(&self, listener: &str) -> String {
        let all = self.json("/listeners?format=json").await;
        let all = all["listener_statuses"].as_array().expect("listeners");
        let own = all.iter().find(|status| status["name"] == listener);
        let at = &own.expect("the listener")["local_address"]["socket_address"];
        format!(
            "{}:{}",
            at["address"].as_str().expect("a host"),
            at["port_value"]
        )
    }

    /// One of its counters.
    pub async fn count(&self, name: &str) -> u64 {
        let text = self.ask(&format!("/stats?filter=^{name}$")).await;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.strip_prefix(": ")?.trim().parse().ok())
            .unwrap_or_default()
    }

    /// The serial numbers of the certificates that it uses at this moment under this SPIFFE ID.
    pub async fn serials(&self, id: &str) -> BTreeSet<String> {
        let certificates = self.json("/certs").await;
        let all = certificates["certificates"].as_array().cloned();
        let chains = all.unwrap_or_default().into_iter();
        chains
            .flat_map(|one| one["cert_chain"].as_array().cloned().unwrap_or_default())
            .filter(|one| one["subject_alt_names"][0]["uri"] == id)
            .filter_map(|one| one["serial_number"].as_str().map(str::to_owned))
            .collect()
    }

    async fn json(&self, path: &str) -> Value {
        let text = self.ask(path).await;
        serde_json::from_str(&text).unwrap_or_default()
    }

    async fn ask(&self, path: &str) -> String {
        http::get(&self.admin, path)
            .await
            .map(|answer| answer.text())
            .unwrap_or_default()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let end = &lines[lines.len().saturating_sub(60)..];
            eprintln!(
                "---- end of the log of Envoy {}\n{}",
                self.name,
                end.join("\n")
            );
        }
    }
}
