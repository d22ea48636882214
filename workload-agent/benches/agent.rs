//! How long a process waits for its identity, how fast a new entry reaches the socket, and what an idle agent holds in memory.
//! Trusts the tests' CA, which really signs. Run: `cargo bench -p workload-agent`.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on ends")]

#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../tests/agent/ca.rs"]
mod ca;
#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../tests/agent/rig.rs"]
mod rig;

use std::time::{Duration, Instant};

use tonic::Code;

use ca::Ca;
use rig::{Agent, my_uid, next};

const ROUNDS: usize = 2000;

#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark measures the real clock"
)]
fn start() -> Instant {
    Instant::now()
}

fn show(what: &str, mut samples: Vec<Duration>) {
    samples.sort_unstable();
    let at = |part: f64| samples[((samples.len() - 1) as f64 * part) as usize];
    let micros = |d: Duration| d.as_secs_f64() * 1e6;
    println!(
        "{what}: n={} p50={:.0}us p90={:.0}us p99={:.0}us max={:.0}us",
        samples.len(),
        micros(at(0.5)),
        micros(at(0.9)),
        micros(at(0.99)),
        micros(at(1.0))
    );
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        limit().await;
        first_svid(1, 1).await;
        first_svid(1000, 1).await;
        entry_to_socket().await;
        reconnect_storm().await;
        idle_memory(0).await;
        idle_memory(100).await;
    });
}

/// What the machine gives: the same bytes over the same kind of socket, without an agent.
async fn limit() {
    let dir = rig::directory();
    let path = dir.path().join("echo.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.ok();
            });
        }
    });
    let mut samples = Vec::new();
    for _ in 0..ROUNDS {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let before = start();
        let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
        stream.write_all(&[0; 1500]).await.unwrap();
        stream.read_exact(&mut [0; 1500]).await.unwrap();
        samples.push(before.elapsed());
    }
    show("limit: connect and echo 1500 bytes", samples);
}

/// Connect, HTTP/2, attestation, matching, first message, parsed by the client.
async fn first_svid(entries: usize, mine: usize) {
    let ca = Ca::start().await;
    ca.entries((0..entries).map(|n| {
        let uid = if n < mine {
            my_uid()
        } else {
            format!("unix:uid:{}", 100_000 + n)
        };
        (format!("e{n:05}"), format!("/e{n}"), vec![uid])
    }));
    let agent = Agent::start(&ca).await;
    agent.fetch().await.unwrap();
    let mut samples = Vec::new();
    for _ in 0..ROUNDS {
        let before = start();
        agent.fetch().await.unwrap();
        samples.push(before.elapsed());
    }
    show(
        &format!("connect to first SVID, warm, {entries} entries"),
        samples,
    );
}

/// A stream is open; an entry is created at the CA; its SVID is there.
async fn entry_to_socket() {
    let ca = Ca::start().await;
    ca.entry("base", "/base", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let mut stream = agent.svids().await.unwrap();
    next(&mut stream).await.unwrap();
    let mut samples = Vec::new();
    for n in 0..200 {
        let before = start();
        ca.entry("changing", &format!("/changing-{n}"), &[&my_uid()]);
        loop {
            let context = next(&mut stream).await.unwrap();
            if context
                .identities()
                .iter()
                .any(|i| i.svid.id().path() == format!("/changing-{n}"))
            {
                break;
            }
        }
        samples.push(before.elapsed());
    }
    show("entry created to SVID on an open stream", samples);
}

/// AG-16: 1,000 clients that reconnect as fast as they may, without any traffic to the CA.
async fn reconnect_storm() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    agent.fetch().await.unwrap();
    let signed = ca.seen().signed.len();
    let before = start();
    let mut done = 0;
    while before.elapsed() < Duration::from_secs(3) {
        let calls = (0..32).map(|_| agent.fetch());
        for outcome in futures::future::join_all(calls).await {
            match outcome {
                Ok(_) => done += 1,
                Err(status) => assert_ne!(status.code(), Code::PermissionDenied),
            }
        }
    }
    let rate = f64::from(done) / before.elapsed().as_secs_f64();
    println!(
        "reconnects: {rate:.0} connections with first SVID per second (client and agent in this process), {} calls to the CA",
        ca.seen().signed.len() - signed
    );
}

/// The real program, idle.
async fn idle_memory(entries: usize) {
    let ca = Ca::start().await;
    ca.token("bench");
    ca.entries((0..entries).map(|n| {
        (
            format!("e{n:05}"),
            format!("/e{n}"),
            vec![format!("unix:uid:{}", 100_000 + n)],
        )
    }));
    let dir = rig::directory();
    std::fs::write(dir.path().join("bundle.pem"), ca.bundle().to_pem()).unwrap();
    let config = dir.path().join("agent.yaml");
    std::fs::write(
        &config,
        rig::yaml(&ca, dir.path(), &rig::join_token("bench")),
    )
    .unwrap();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_workload-agent"))
        .args(["run", "-q", "--config"])
        .arg(&config)
        .spawn()
        .unwrap();
    rig::eventually("all SVIDs are made", async || {
        ca.seen().signed.len() >= entries && !ca.seen().hellos.is_empty()
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let rss = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap()
        .trim()
        .to_owned();
    println!("idle RSS of workload-agent with {entries} SVIDs: {rss}");
    child.kill().unwrap();
    child.wait().unwrap();
}
