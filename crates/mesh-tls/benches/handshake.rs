//! Decides how many full mutual handshakes one thread does per CPU second in memory, both ends together, beside the limit:
//! bare rustls with its own WebPKI verifiers, same provider, same kind of certificates, in the same run and in turns.
//! Never touches a socket. Run: cargo bench -p mesh-tls --bench handshake

#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_identity::test_util::{Made, Spec, now};
use mesh_tls::{
    Authorizer, ClientConfig, ClientPolicy, IdentityCell, Peer, PrivateKey, ServerConfig,
    TlsIdentity, client_config, install_default_provider, server_config, server_name,
};
use rustls::{
    ClientConnection, RootCertStore, ServerConnection,
    client::{Resumption, WebPkiServerVerifier},
    crypto::CryptoProvider,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::TLS13,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(1500);

struct Ends {
    name: &'static str,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    dials: ServerName<'static>,
}

impl Ends {
    /// One handshake through memory; returns the time spent by (client, server).
    fn meet(&self, buffer: &mut Vec<u8>) -> (Duration, Duration) {
        let (mut at_client, mut at_server) = (Duration::ZERO, Duration::ZERO);
        let mut time = Instant::now();
        let mut lap = |total: &mut Duration| {
            let next = Instant::now();
            *total += next - time;
            time = next;
        };
        let mut client =
            ClientConnection::new(Arc::clone(&self.client), self.dials.clone()).unwrap();
        lap(&mut at_client);
        let mut server = ServerConnection::new(Arc::clone(&self.server)).unwrap();
        lap(&mut at_server);
        while client.is_handshaking() || server.is_handshaking() {
            buffer.clear();
            while client.wants_write() {
                client.write_tls(buffer).unwrap();
            }
            lap(&mut at_client);
            let mut rest = buffer.as_slice();
            while !rest.is_empty() {
                server.read_tls(&mut rest).unwrap();
                server.process_new_packets().unwrap();
            }
            buffer.clear();
            while server.wants_write() {
                server.write_tls(buffer).unwrap();
            }
            lap(&mut at_server);
            let mut rest = buffer.as_slice();
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
                client.process_new_packets().unwrap();
            }
            lap(&mut at_client);
        }
        if self.name == "mesh-tls" {
            // What our programs always ask for belongs to the price.
            assert!(Peer::from_client_conn(&client).is_some());
            lap(&mut at_client);
            assert!(Peer::from_server_conn(&server).is_some());
            lap(&mut at_server);
        }
        (at_client, at_server)
    }

    fn round(&self) -> Round {
        let mut buffer = Vec::with_capacity(16 * 1024);
        let (mut client, mut server) = (Duration::ZERO, Duration::ZERO);
        let (start, cpu) = (Instant::now(), cpu_time());
        let mut count = 0u32;
        while start.elapsed() < ROUND {
            let (c, s) = self.meet(&mut buffer);
            client += c;
            server += s;
            count += 1;
        }
        // On a busy machine only the time on the CPU can be compared; the laps tell how the ends share it.
        let spent = match (cpu, cpu_time()) {
            (Some(before), Some(after)) => after - before,
            _ => start.elapsed(),
        };
        let each = spent / count;
        let share = client.as_secs_f64() / (client + server).as_secs_f64();
        let client = each.mul_f64(share);
        Round {
            per_second: each.as_secs_f64().recip(),
            client,
            server: each - client,
        }
    }
}

/// How long this thread has been on a CPU; Linux only.
fn cpu_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(Duration::from_nanos(
        text.split_whitespace().next()?.parse().ok()?,
    ))
}

#[derive(Clone, Copy)]
struct Round {
    per_second: f64,
    client: Duration,
    server: Duration,
}

fn main() {
    install_default_provider();
    let ends = [ours(), limit()];
    for one in &ends {
        one.meet(&mut Vec::new()); // warm
    }
    let mut rounds: [Vec<Round>; 2] = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (one, results) in ends.iter().zip(&mut rounds) {
            results.push(one.round());
        }
    }
    let provider = CryptoProvider::get_default().unwrap();
    println!(
        "full mutual TLS 1.3 handshakes in memory, per CPU second of one thread, both ends, {:?}",
        provider.kx_groups[0].name()
    );
    let mut medians = Vec::new();
    for (one, results) in ends.iter().zip(&mut rounds) {
        results.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
        let (least, median, most) = (results[0], results[ROUNDS / 2], results[ROUNDS - 1]);
        println!(
            "{:24} {:7.0}/s  (of {ROUNDS} rounds: {:.0} to {:.0})   client end {:4} us, server end {:4} us",
            one.name,
            median.per_second,
            least.per_second,
            most.per_second,
            median.client.as_micros(),
            median.server.as_micros(),
        );
        medians.push(median.per_second);
    }
    println!(
        "share of the limit       {:7.1} %",
        100.0 * medians[0] / medians[1]
    );
}

const TD: &str = "td.test";

fn leaf(root: &Made, path: &str) -> Made {
    let id = format!("spiffe://{TD}/{path}");
    root.sign(Spec {
        dns_names: vec!["peer.test".into()],
        ..Spec::leaf(&id)
    })
}

fn ours() -> Ends {
    let root = Made::root(TD);
    let cell = |path: &str| {
        let leaf = leaf(&root, path);
        let key = PrivateKey::from_pkcs8(leaf.key_pkcs8()).unwrap();
        IdentityCell::new(TlsIdentity::new(leaf.svid(), key, root.bundles(TD), now()).unwrap())
    };
    let clients = ClientPolicy::Required(Authorizer::trust_domain(TD.parse().unwrap()));
    let pay = Authorizer::exactly(format!("spiffe://{TD}/pay").parse().unwrap());
    Ends {
        name: "mesh-tls",
        server: server_config(&cell("pay"), clients, &[b"h2"], Arc::new(now)),
        client: client_config(&cell("web"), pay, &[b"h2"], Arc::new(now)),
        dials: server_name(),
    }
}

fn limit() -> Ends {
    let root = Made::root(TD);
    let (pay, web) = (leaf(&root, "pay"), leaf(&root, "web"));
    let key = |leaf: &Made| PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf.key_pkcs8()));
    let mut roots = RootCertStore::empty();
    roots.add(root.der.clone()).unwrap();
    let roots = Arc::new(roots);
    let clients = WebPkiClientVerifier::builder(Arc::clone(&roots))
        .build()
        .unwrap();
    let servers = WebPkiServerVerifier::builder(roots).build().unwrap();
    let mut server = ServerConfig::builder_with_protocol_versions(&[&TLS13])
        .with_client_cert_verifier(clients)
        .with_single_cert(pay.chain.clone(), key(&pay))
        .unwrap();
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    server.alpn_protocols = vec![b"h2".to_vec()];
    let mut client = ClientConfig::builder_with_protocol_versions(&[&TLS13])
        .with_webpki_verifier(servers)
        .with_client_auth_cert(web.chain.clone(), key(&web))
        .unwrap();
    client.resumption = Resumption::disabled();
    client.alpn_protocols = vec![b"h2".to_vec()];
    Ends {
        name: "bare rustls, WebPKI",
        server: Arc::new(server),
        client: Arc::new(client),
        dials: "peer.test".try_into().unwrap(),
    }
}
