//! Figures of the whole mesh, with the real programs: an entry's way to the socket, and resting memory.
//!
//! `cargo bench -p mesh-tests` (optimised programs, some 20 s). Not part of the tests.

use std::{fs, time::Duration};

use mesh_tests::{admin, daemon::Daemon, echo::Echo, world::World};
use proto::{
    spiffe::workload::{X509svidRequest, spiffe_workload_api_client::SpiffeWorkloadApiClient},
    spire::api::server::entry::v1::entry_client::EntryClient,
};
use tokio::time::{Instant, sleep};
use tonic::Request;

const ENTRIES: usize = 200;

#[tokio::main]
async fn main() {
    let world = World::start(|config| {
        config
            .replace("x509Svid: 20s", "x509Svid: 1h")
            .replace("10m", "24h")
    })
    .await;
    entry_to_socket(&world).await;

    let app = Echo::start().await;
    let pay = world.pay(app.address()).await;
    let shop = world.caller("shop", &pay).await;
    sleep(Duration::from_secs(2)).await;
    for (name, daemon) in [
        ("ca-server", world.ca()),
        ("workload-agent", world.agent.as_ref().expect("it runs")),
        ("mesh-proxy in", &pay),
        ("mesh-proxy out", &shop),
    ] {
        println!("idle RSS {name:<15} {:>6.1} MB", resident(daemon));
    }
}

/// From the call that creates an entry to the update that carries its certificate, on an open stream.
async fn entry_to_socket(world: &World) {
    let uid = nix::unistd::getuid().to_string();
    let parent = world
        .agent_id()
        .trim_start_matches("spiffe://dev.test")
        .to_owned();
    let selector = ("unix", format!("uid:{uid}"));
    let channel = admin::connect(world.path("ca-admin.sock"))
        .await
        .expect("the admin socket");
    let mut entries = EntryClient::new(channel);
    let create = async |entries: &mut EntryClient<_>, name: &str| {
        let entry = admin::entry(
            name,
            &format!("/bench/{name}"),
            &parent,
            (selector.0, &selector.1),
        );
        admin::create(entries, entry)
            .await
            .expect("it is acknowledged");
    };
    create(&mut entries, "first").await;
    sleep(Duration::from_millis(500)).await;

    let channel = admin::connect(world.path("agent.sock"))
        .await
        .expect("the workload socket");
    let mut request = Request::new(X509svidRequest {});
    request
        .metadata_mut()
        .insert("workload.spiffe.io", "true".parse().expect("ASCII"));
    let mut workload = SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(64 << 20);
    let mut stream = workload
        .fetch_x509svid(request)
        .await
        .expect("a stream")
        .into_inner();

    let mut times = Vec::with_capacity(ENTRIES);
    for number in 0..ENTRIES {
        let name = format!("e{number}");
        let began = Instant::now();
        create(&mut entries, &name).await;
        let wanted = format!("spiffe://dev.test/bench/{name}");
        loop {
            let update = stream
                .message()
                .await
                .expect("an open stream")
                .expect("an update");
            if update.svids.iter().any(|svid| svid.spiffe_id == wanted) {
                break;
            }
        }
        times.push(began.elapsed());
    }
    times.sort();
    println!(
        "entry created to SVID on the socket, {ENTRIES} entries: p50 {:.1} ms  p99 {:.1} ms  max {:.1} ms",
        millis(times[ENTRIES / 2]),
        millis(times[ENTRIES * 99 / 100]),
        millis(times[ENTRIES - 1]),
    );
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn resident(daemon: &Daemon) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("it runs");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .expect("a resident size");
    let kilobytes: f64 = line
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a number");
    kilobytes / 1000.0
}
