//! SVIDs per second over mutual-TLS gRPC against the real program, and per CPU second of it, beside what one core can do at
//! most, measured in the same run by ring: for an X.509-SVID one verification and one signature, for a JWT-SVID one signature.
//! `cargo bench -p ca-server --bench issuance [FOLDER]`: the folder decides which disk is written (default: target/tmp).

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ca_server::api::client::{AdminClient, NewEntry};
use mesh_runtime::clock::Clock;
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use proto::spire::api::server::svid::v1::{
    BatchNewX509svidRequest, NewJwtsvidRequest, NewX509svidParams,
};
use tonic::transport::Channel;

use self::support::{Nodes, Server, limits, request};

/// How long each case is measured.
const LOOK: Duration = Duration::from_secs(5);

/// Entries that are asked for in turn.
const ENTRIES: usize = 100;

fn main() {
    mesh_tls::install_default_provider();
    let folder = support::folder();
    let (pair, sign) = limits();
    println!(
        "limit of one core (ring, P-256): {pair:.0} verifications + signatures, or {sign:.0} signatures, per CPU second"
    );
    let server = Server::start(folder.path());
    println!("resident after start: {:.1} MB", server.resident_mb());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let channel = join(&server).await;
        println!(
            "{:>8} {:>10} {:>9} {:>10} {:>14} {:>10}",
            "kind", "in flight", "per call", "SVIDs/s", "SVIDs/CPU s", "of limit"
        );
        for (in_flight, per_call) in [
            (1, 1),
            (16, 1),
            (64, 1),
            (256, 1),
            (1, 10),
            (8, 10),
            (1, 50),
            (8, 50),
        ] {
            measure(&server, &channel, Kind::X509(per_call), in_flight, pair).await;
        }
        for in_flight in [1, 64] {
            measure(&server, &channel, Kind::Jwt, in_flight, sign).await;
        }
    });
    println!("resident after all: {:.1} MB", server.resident_mb());
}

#[derive(Clone, Copy)]
enum Kind {
    /// So many certificates in one call.
    X509(usize),
    Jwt,
}

async fn measure(server: &Server, channel: &Channel, kind: Kind, in_flight: usize, limit: f64) {
    let csrs: Arc<Vec<Vec<u8>>> = Arc::new((0..64).map(|_| request().1).collect());
    let done = Arc::new(AtomicU64::new(0));
    let (cpu, start) = (server.cpu(), Clock::system().monotonic());
    let callers = (0..in_flight).map(|caller| {
        let (channel, csrs, done) = (channel.clone(), csrs.clone(), done.clone());
        tokio::spawn(async move {
            let mut client = SvidClient::new(channel);
            let mut next = caller;
            while start.elapsed() < LOOK {
                let good = match kind {
                    Kind::X509(per_call) => {
                        let good = certificates(&mut client, &csrs, &mut next, per_call).await;
                        assert_eq!(good, per_call, "every certificate is issued");
                        good
                    }
                    Kind::Jwt => token(&mut client, &mut next).await,
                };
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
    let (name, per_call) = match kind {
        Kind::X509(per_call) => ("X.509", per_call),
        Kind::Jwt => ("JWT", 1),
    };
    println!(
        "{name:>8} {in_flight:>10} {per_call:>9} {:>10.0} {per_cpu:>14.0} {:>9.0}%",
        issued / took,
        per_cpu / limit * 100.0
    );
}

async fn certificates(
    client: &mut SvidClient<Channel>,
    csrs: &[Vec<u8>],
    next: &mut usize,
    per_call: usize,
) -> usize {
    let params = (0..per_call).map(|_| {
        *next += 1;
        NewX509svidParams {
            entry_id: format!("e{}", *next % ENTRIES),
            csr: csrs[*next % csrs.len()].clone(),
        }
    });
    let ask = BatchNewX509svidRequest {
        params: params.collect(),
    };
    let answer = client.batch_new_x509svid(ask).await.expect("an answer");
    let results = &answer.get_ref().results;
    results.iter().filter(|r| r.svid.is_some()).count()
}

async fn token(client: &mut SvidClient<Channel>, next: &mut usize) -> usize {
    *next += 1;
    let ask = NewJwtsvidRequest {
        entry_id: format!("e{}", *next % ENTRIES),
        audience: vec!["bank".into()],
    };
    let answer = client.new_jwtsvid(ask).await.expect("an answer");
    answer.get_ref().svid.iter().count()
}

/// Attests an agent, gives it its entries, and connects it.
async fn join(server: &Server) -> Channel {
    let nodes = Nodes::of(server).await;
    let admin = AdminClient::connect(&server.socket)
        .await
        .expect("the socket answers");
    let node = nodes.attest(nodes.token().await).await;
    for number in 0..ENTRIES {
        let id = format!("spiffe://bench.test/w/{number}");
        let entry = NewEntry {
            id: format!("e{number}"),
            selectors: vec!["unix:uid:1000".parse().expect("a selector")],
            ..NewEntry::new(id.parse().expect("an ID"), node.id.clone())
        };
        admin.create_entry(&entry).await.expect("an entry");
    }
    nodes.connect(&node).await
}
