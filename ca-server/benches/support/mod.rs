//! The real ca-server as a process of its own, and agents that join it as any agent does.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use ca_server::api::client::AdminClient;
use hyper_util::rt::TokioIo;
use mesh_identity::{BundleSet, SpiffeId, X509Svid};
use mesh_runtime::addresses::Addresses;
use mesh_runtime::clock::Clock;
use mesh_tls::{Authorizer, ClientConfig, IdentityCell, PrivateKey, TlsIdentity};
use proto::convert::IssuedX509Svid;
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::agent::v1::attest_agent_request::{Params, Step};
use proto::spire::api::server::agent::v1::{
    AgentX509svidParams, AttestAgentRequest, attest_agent_response,
};
use proto::spire::api::types::AttestationData;
use rcgen::{CertificateParams, KeyPair};
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, KeyPair as _};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

/// A folder on the disk that is measured: the first argument, or `target/tmp`.
pub(crate) fn folder() -> tempfile::TempDir {
    let named = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with("--"));
    let folder = named.map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    tempfile::tempdir_in(folder).expect("a folder")
}

/// A running ca-server.
pub(crate) struct Server {
    child: Child,
    /// Where agents connect.
    pub(crate) address: String,
    /// Where administrators do.
    pub(crate) socket: PathBuf,
}

impl Server {
    /// Starts it in a folder, on what the folder holds, and returns once its doors are open.
    pub(crate) fn start(folder: &Path) -> Self {
        let dir = folder.display();
        let config = folder.join("ca.yaml");
        let text = format!(
            "apiVersion: config.finial.dev/v1\nkind: CaServerConfig\ntrustDomain: bench.test\n\
             listen: {{ address: 127.0.0.1:0, adminSocket: {dir}/admin.sock }}\n\
             store: {{ sled: {{ path: {dir}/store }} }}\nkeys: {{ sealingKey: {dir}/sealing.key }}\n\
             audit: {{ dir: {dir}/audit }}\ntelemetry: {{ metrics: {{ address: 127.0.0.1:0 }} }}\n\
             limits: {{ attestationsPerSecond: 0, signaturesPerSecond: 0, connections: 20000 }}\nlog: {{ level: warn }}\n"
        );
        std::fs::write(&config, text).expect("the configuration can be written");
        let addresses = folder.join("addresses.json");
        std::fs::remove_file(&addresses).ok();
        let child = Command::new(env!("CARGO_BIN_EXE_ca-server"))
            .args(["run", "--config"])
            .arg(&config)
            .arg("--addresses-file")
            .arg(&addresses)
            .spawn()
            .expect("ca-server starts");
        let mut server = Self {
            child,
            address: String::new(),
            socket: folder.join("admin.sock"),
        };
        for _ in 0..12_000 {
            if let Ok(bound) = Addresses::read(&addresses) {
                server.address = bound.get("grpc").expect("its door").to_owned();
                return server;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("ca-server did not bind its doors");
    }

    fn stat(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).expect("it runs")
    }

    /// CPU seconds so far.
    pub(crate) fn cpu(&self) -> f64 {
        cpu_seconds(&self.stat("stat"))
    }

    /// Resident memory now, in MB.
    pub(crate) fn resident_mb(&self) -> f64 {
        let status = self.stat("status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("there");
        let kib: f64 = line
            .split_ascii_whitespace()
            .next()
            .and_then(|number| number.parse().ok())
            .expect("a number");
        kib * 1024.0 / 1e6
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// CPU seconds, user and system, of a process: what counts on a machine that does other things too.
pub(crate) fn cpu_seconds(stat: &str) -> f64 {
    let (_, rest) = stat.rsplit_once(')').expect("the name ends");
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("a number");
    (ticks(11) + ticks(12)) / 100.0
}

/// A fresh key and a signing request by it.
pub(crate) fn request() -> (KeyPair, Vec<u8>) {
    let key = KeyPair::generate().expect("a key");
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .expect("a request");
    (key, csr.der().to_vec())
}

/// Makes agents known to one server.
pub(crate) struct Nodes {
    address: String,
    bundles: BundleSet,
    servers: Authorizer,
    admin: AdminClient,
    bootstrap: Arc<ClientConfig>,
}

/// An attested agent that has not connected as itself yet.
pub(crate) struct Node {
    /// Its identity.
    pub(crate) id: SpiffeId,
    tls: Arc<ClientConfig>,
}

impl Nodes {
    /// Trusts what the administrators' door says.
    pub(crate) async fn of(server: &Server) -> Self {
        let admin = AdminClient::connect(&server.socket)
            .await
            .expect("the socket answers");
        let bundles: BundleSet = std::iter::once(admin.bundle().await.expect("a bundle")).collect();
        let servers =
            Authorizer::exactly("spiffe://bench.test/spire/server".parse().expect("an ID"));
        let bootstrap = mesh_tls::bootstrap_client_config(
            bundles.clone(),
            servers.clone(),
            &[b"h2"],
            Clock::system().as_fn(),
        );
        Self {
            address: server.address.clone(),
            bundles,
            servers,
            admin,
            bootstrap,
        }
    }

    /// A join token.
    pub(crate) async fn token(&self) -> String {
        let (token, _) = self.admin.create_token(None, 3600).await.expect("a token");
        token
    }

    /// Attests an agent.
    pub(crate) async fn attest(&self, token: String) -> Node {
        let (key, csr) = request();
        let ask = AttestAgentRequest {
            step: Some(Step::Params(Params {
                data: Some(AttestationData {
                    r#type: "join_token".into(),
                    payload: token.into_bytes(),
                }),
                params: Some(AgentX509svidParams { csr }),
            })),
        };
        let channel = connect(&self.address, self.bootstrap.clone()).await;
        let mut answers = AgentClient::new(channel)
            .attest_agent(tokio_stream::once(ask))
            .await
            .expect("attested")
            .into_inner();
        let answer = answers.message().await.expect("an answer");
        let Some(attest_agent_response::Step::Result(result)) = answer.and_then(|a| a.step) else {
            panic!("no result");
        };
        let svid: X509Svid = IssuedX509Svid::try_from(result.svid.expect("an SVID"))
            .expect("a sound one")
            .svid;
        let id = svid.id().clone();
        let clock = Clock::system();
        let key = PrivateKey::from_pkcs8(key.serialize_der()).expect("a key");
        let identity =
            TlsIdentity::new(svid, key, self.bundles.clone(), clock.now()).expect("an identity");
        let cell = IdentityCell::new(identity);
        let tls = mesh_tls::client_config(&cell, self.servers.clone(), &[b"h2"], clock.as_fn());
        Node { id, tls }
    }

    /// Connects an agent as itself.
    pub(crate) async fn connect(&self, node: &Node) -> Channel {
        connect(&self.address, node.tls.clone()).await
    }
}

async fn connect(address: &str, tls: Arc<ClientConfig>) -> Channel {
    let address = address.to_owned();
    let connector = tower::service_fn(move |_| {
        let (address, tls) = (address.clone(), tls.clone());
        async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let (stream, _) = mesh_tls::connect(&tls, stream)
                .await
                .map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://ca-server")
        .connect_with_connector(connector)
        .await
        .expect("connected")
}

/// Verifications and signatures by ring, and signatures alone, per CPU second of one core, without anything else.
pub(crate) fn limits() -> (f64, f64) {
    let random = SystemRandom::new();
    let algorithm = &signature::ECDSA_P256_SHA256_ASN1_SIGNING;
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
    let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).expect("a key");
    let public = signature::UnparsedPublicKey::new(
        &signature::ECDSA_P256_SHA256_ASN1,
        key.public_key().as_ref(),
    );
    let message = [7_u8; 600];
    let clock = Clock::system();
    let own = || cpu_seconds(&std::fs::read_to_string("/proc/self/stat").expect("we run"));
    let rate = |work: &dyn Fn()| {
        let (cpu, start, mut done) = (own(), clock.monotonic(), 0_u32);
        while start.elapsed() < Duration::from_secs(2) {
            work();
            done += 1;
        }
        f64::from(done) / (own() - cpu)
    };
    let sign = || key.sign(&random, &message).expect("a signature");
    let both = rate(&|| {
        public
            .verify(&message, sign().as_ref())
            .expect("a good one");
    });
    (
        both,
        rate(&|| {
            sign();
        }),
    )
}
