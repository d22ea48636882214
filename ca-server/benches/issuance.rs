//! X.509-SVIDs per second over mutual-TLS gRPC against the real program, and per CPU second of it, beside what one core can do
//! at most: one verification and one signature by ring, measured in the same run.
//! `cargo bench -p ca-server --bench issuance [FOLDER]`: the folder decides which disk is written (default: target/tmp).

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ca_server::api::client::{AdminClient, NewEntry};
use hyper_util::rt::TokioIo;
use mesh_identity::{BundleSet, X509Svid};
use mesh_runtime::addresses::Addresses;
use mesh_runtime::clock::Clock;
use mesh_tls::{Authorizer, ClientConfig, IdentityCell, PrivateKey, TlsIdentity};
use proto::convert::IssuedX509Svid;
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::agent::v1::attest_agent_request::{Params, Step};
use proto::spire::api::server::agent::v1::{
    AgentX509svidParams, AttestAgentRequest, attest_agent_response,
};
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use proto::spire::api::server::svid::v1::{BatchNewX509svidRequest, NewX509svidParams};
use proto::spire::api::types::AttestationData;
use rcgen::{CertificateParams, KeyPair};
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, KeyPair as _};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

/// How long each case is measured.
const LOOK: Duration = Duration::from_secs(5);

/// Entries that are asked for in turn.
const ENTRIES: usize = 100;

struct Server {
    child: Child,
    address: String,
    socket: PathBuf,
}

impl Server {
    fn start(folder: &Path) -> Self {
        let dir = folder.display();
        let config = folder.join("ca.yaml");
        let text = format!(
            "apiVersion: config.finial.dev/v1\nkind: CaServerConfig\ntrustDomain: bench.test\n\
             listen: {{ address: 127.0.0.1:0, adminSocket: {dir}/admin.sock }}\n\
             store: {{ sled: {{ path: {dir}/store }} }}\nkeys: {{ sealingKey: {dir}/sealing.key }}\n\
             audit: {{ dir: {dir}/audit }}\ntelemetry: {{ metrics: {{ address: 127.0.0.1:0 }} }}\n\
             limits: {{ attestationsPerSecond: 0, signaturesPerSecond: 0 }}\nlog: {{ level: warn }}\n"
        );
        std::fs::write(&config, text).expect("the configuration can be written");
        let addresses = folder.join("addresses.json");
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
        for _ in 0..400 {
            if let Ok(bound) = Addresses::read(&addresses) {
                server.address = bound.get("grpc").expect("its door").to_owned();
                return server;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        panic!("ca-server did not bind its doors");
    }

    fn stat(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).expect("it runs")
    }

    fn cpu(&self) -> f64 {
        cpu_seconds(&self.stat("stat"))
    }

    fn resident_mb(&self) -> f64 {
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
        kib / 1024.0
    }
}

/// CPU seconds, user and system, of a process: what counts on a machine that does other things too.
fn cpu_seconds(stat: &str) -> f64 {
    let (_, rest) = stat.rsplit_once(')').expect("the name ends");
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("a number");
    (ticks(11) + ticks(12)) / 100.0
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn main() {
    mesh_tls::install_default_provider();
    let folder = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with("--"));
    let folder = folder.map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let folder = tempfile::tempdir_in(folder).expect("a folder");
    let limit = limit();
    println!(
        "limit of one core (ring, P-256): {limit:.0} verifications + signatures per CPU second"
    );
    let server = Server::start(folder.path());
    println!("resident after start: {:.1} MB", server.resident_mb());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(measure(&server, limit));
    println!("resident after all: {:.1} MB", server.resident_mb());
}

async fn measure(server: &Server, limit: f64) {
    let admin = AdminClient::connect(&server.socket)
        .await
        .expect("the socket answers");
    let channel = join(server, &admin).await;
    let csrs: Arc<Vec<Vec<u8>>> = Arc::new((0..64).map(|_| request().1).collect());
    println!(
        "{:>10} {:>9} {:>10} {:>14} {:>10}",
        "in flight", "per call", "SVIDs/s", "SVIDs/CPU s", "of limit"
    );
    for (in_flight, per_call) in [(1, 1), (16, 1), (64, 1), (256, 1), (1, 50), (8, 50)] {
        let done = Arc::new(AtomicU64::new(0));
        let clock = Clock::system();
        let (cpu, start) = (server.cpu(), clock.monotonic());
        let callers = (0..in_flight).map(|caller| {
            let (channel, csrs, done) = (channel.clone(), csrs.clone(), done.clone());
            tokio::spawn(async move {
                let mut client = SvidClient::new(channel);
                let mut next = caller;
                while start.elapsed() < LOOK {
                    let params = (0..per_call).map(|_| {
                        next += 1;
                        NewX509svidParams {
                            entry_id: format!("e{}", next % ENTRIES),
                            csr: csrs[next % csrs.len()].clone(),
                        }
                    });
                    let ask = BatchNewX509svidRequest {
                        params: params.collect(),
                    };
                    let answer = client.batch_new_x509svid(ask).await.expect("an answer");
                    let good = answer.get_ref().results.iter().filter(|r| r.svid.is_some());
                    let good = good.count();
                    assert_eq!(good, per_call, "every certificate is issued");
                    done.fetch_add(good as u64, Ordering::Relaxed);
                }
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            caller.await.expect("no caller fails");
        }
        let took = start.elapsed().as_secs_f64();
        let issued = done.load(Ordering::Relaxed) as f64;
        let per_cpu = issued / (server.cpu() - cpu);
        println!(
            "{in_flight:>10} {per_call:>9} {:>10.0} {per_cpu:>14.0} {:>9.0}%",
            issued / took,
            per_cpu / limit * 100.0
        );
    }
}

fn request() -> (KeyPair, Vec<u8>) {
    let key = KeyPair::generate().expect("a key");
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .expect("a request");
    (key, csr.der().to_vec())
}

/// Attests an agent, gives it its entries, and connects it.
async fn join(server: &Server, admin: &AdminClient) -> Channel {
    let clock = Clock::system();
    let bundles: BundleSet = std::iter::once(admin.bundle().await.expect("a bundle")).collect();
    let servers = Authorizer::exactly("spiffe://bench.test/spire/server".parse().expect("an ID"));
    let bootstrap = mesh_tls::bootstrap_client_config(
        bundles.clone(),
        servers.clone(),
        &[b"h2"],
        clock.as_fn(),
    );
    let (token, _) = admin.create_token(None, 600).await.expect("a token");
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
    let channel = connect(&server.address, bootstrap).await;
    let mut answers = AgentClient::new(channel)
        .attest_agent(tokio_stream::once(ask))
        .await
        .expect("attested")
        .into_inner();
    let step = answers
        .message()
        .await
        .expect("an answer")
        .and_then(|answer| answer.step);
    let Some(attest_agent_response::Step::Result(result)) = step else {
        panic!("no result");
    };
    let svid: X509Svid = IssuedX509Svid::try_from(result.svid.expect("an SVID"))
        .expect("a sound one")
        .svid;
    let parent_id = svid.id().clone();
    for number in 0..ENTRIES {
        let id = format!("spiffe://bench.test/w/{number}");
        let entry = NewEntry {
            id: format!("e{number}"),
            selectors: vec!["unix:uid:1000".parse().expect("a selector")],
            ..NewEntry::new(id.parse().expect("an ID"), parent_id.clone())
        };
        admin.create_entry(&entry).await.expect("an entry");
    }
    let key = PrivateKey::from_pkcs8(key.serialize_der()).expect("a key");
    let identity = TlsIdentity::new(svid, key, bundles, clock.now()).expect("an identity");
    let cell = IdentityCell::new(identity);
    let tls = mesh_tls::client_config(&cell, servers, &[b"h2"], clock.as_fn());
    connect(&server.address, tls).await
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

/// Verifications and signatures per CPU second, without anything else.
fn limit() -> f64 {
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
    let (cpu, start, mut pairs) = (own(), clock.monotonic(), 0_u32);
    while start.elapsed() < Duration::from_secs(2) {
        let signed = key.sign(&random, &message).expect("a signature");
        public
            .verify(&message, signed.as_ref())
            .expect("a good one");
        pairs += 1;
    }
    f64::from(pairs) / (own() - cpu)
}
