//! How long a process waits for its identity, how fast a new entry reaches the socket, what ten thousand streams cost, and what an
//! idle agent holds in memory.
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
use proto::spiffe::workload::{self as wire, spiffe_workload_api_client::SpiffeWorkloadApiClient};
use rig::{Agent, my_uid, next, with_header};

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
    raise_descriptor_limit();
    // `-- streams` measures those alone.
    let streams_only = std::env::args().any(|argument| argument == "streams");
    runtime.block_on(async {
        if streams_only {
            for connections in [100, STREAMS] {
                streams(connections).await;
            }
            return;
        }
        limit().await;
        first_svid(1, 1).await;
        first_svid(1000, 1).await;
        entry_to_socket().await;
        reconnect_storm().await;
        idle_memory(0).await;
        idle_memory(100).await;
        cost_of_a_fetch().await;
        tokens().await;
        restart(1000).await;
        for connections in [100, STREAMS] {
            streams(connections).await;
        }
    });
}

/// Each connection takes one here and one there.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
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

/// The program on its own, with a directory.
struct Program {
    child: std::process::Child,
    dir: tempfile::TempDir,
}

impl Program {
    fn start(ca: &Ca) -> Self {
        ca.token("bench");
        let dir = rig::directory();
        std::fs::write(dir.path().join("bundle.pem"), ca.bundle().to_pem()).unwrap();
        let config = rig::yaml(ca, dir.path(), &rig::join_token("bench"));
        std::fs::write(dir.path().join("agent.yaml"), config).unwrap();
        let child = Self::spawn(dir.path());
        Self { child, dir }
    }

    fn spawn(dir: &std::path::Path) -> std::process::Child {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_workload-agent"));
        command.args(["run", "-q", "--config"]);
        command.arg(dir.join("agent.yaml")).spawn().unwrap()
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("public/api.sock")
    }

    async fn channel(&self) -> tonic::transport::Channel {
        rig::channel(&self.socket()).await
    }

    async fn fetch(&self) -> Result<(), tonic::Status> {
        let mut client = SpiffeWorkloadApiClient::new(self.channel().await);
        let answer = client.fetch_x509svid(with_header(wire::X509svidRequest {}));
        next(&mut answer.await?.into_inner()).await.map(drop)
    }

    async fn serves(&self) {
        rig::eventually("it serves", async || {
            self.socket().exists() && self.fetch().await.is_ok()
        })
        .await;
    }

    /// Resident memory in KiB.
    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.unwrap().trim().trim_end_matches(" kB");
        number.parse().unwrap()
    }

    /// Processor time so far: the kernel counts in hundredths of a second.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace();
        let ticks = fields
            .skip(11)
            .take(2)
            .map(|ticks| ticks.parse::<u64>().unwrap());
        Duration::from_millis(10 * ticks.sum::<u64>())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What one fetch on a connection of its own costs the agent.
async fn cost_of_a_fetch() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    let program = Program::start(&ca);
    program.serves().await;
    let (before, mut samples) = (program.cpu(), Vec::new());
    for _ in 0..ROUNDS * 2 {
        let began = start();
        program.fetch().await.unwrap();
        samples.push(began.elapsed());
    }
    let each = (program.cpu() - before) / u32::try_from(samples.len()).unwrap();
    show("connect to first SVID, warm, the program", samples);
    println!("processor time of the agent per fetch: {each:?}");
}

/// JWT-SVIDs that the agent has, and that it has to ask for.
async fn tokens() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    let program = Program::start(&ca);
    program.serves().await;
    let client = SpiffeWorkloadApiClient::new(program.channel().await);
    for (what, fresh) in [("kept", false), ("asked for", true)] {
        let (began, mut done) = (start(), 0_u32);
        while began.elapsed() < Duration::from_secs(3) {
            let calls = (0..16).map(|n| {
                let audience = if fresh {
                    format!("a{done}-{n}")
                } else {
                    "same".into()
                };
                let mut client = client.clone();
                async move {
                    let ask = wire::JwtsvidRequest {
                        audience: vec![audience],
                        spiffe_id: String::new(),
                    };
                    client.fetch_jwtsvid(with_header(ask)).await.unwrap();
                }
            });
            futures::future::join_all(calls).await;
            done += 16;
        }
        let rate = f64::from(done) / began.elapsed().as_secs_f64();
        println!("JWT-SVIDs that are {what}: {rate:.0} per second, 16 at a time");
    }
}

/// From the start of the program, with the CA away, to the first answer.
async fn restart(workloads: usize) {
    let ca = Ca::start().await;
    ca.entries((0..workloads).map(|n| {
        let uid = if n == 0 {
            my_uid()
        } else {
            format!("unix:uid:{}", 100_000 + n)
        };
        (format!("e{n:05}"), format!("/e{n}"), vec![uid])
    }));
    let mut program = Program::start(&ca);
    program.serves().await;
    rig::eventually("all SVIDs are made", async || {
        ca.seen().signed.len() >= workloads
    })
    .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    ca.down().await;
    program.child.kill().unwrap();
    program.child.wait().unwrap();
    let began = start();
    program.child = Program::spawn(program.dir.path());
    loop {
        // The socket of the killed one is still there and refuses.
        if let Ok(stream) = tokio::net::UnixStream::connect(program.socket()).await {
            drop(stream);
            if program.fetch().await.is_ok() {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    println!(
        "restart with {workloads} workloads and without the CA, to the first answer: {:?}",
        began.elapsed()
    );
}

/// Streams that stay open.
const STREAMS: usize = 10_000;

/// Memory of open streams, and how long until each has a changed bundle.
async fn streams(connections: usize) {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    let program = Program::start(&ca);
    program.serves().await;
    let empty = program.resident();
    let mut open = Vec::with_capacity(STREAMS);
    for _ in 0..connections {
        let client = SpiffeWorkloadApiClient::new(program.channel().await);
        for _ in 0..STREAMS / connections {
            let ask = with_header(wire::X509svidRequest {});
            let mut stream = client
                .clone()
                .fetch_x509svid(ask)
                .await
                .unwrap()
                .into_inner();
            stream.message().await.unwrap().unwrap();
            open.push(stream);
        }
    }
    let (full, cpu) = (program.resident(), program.cpu());
    let idle = start();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let resting = (program.cpu() - cpu).as_secs_f64() / idle.elapsed().as_secs_f64();
    let cpu = program.cpu();
    let mut waiting = tokio::task::JoinSet::new();
    for mut stream in open {
        waiting.spawn(async move {
            stream.message().await.unwrap().unwrap();
            (stream, start())
        });
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let began = start();
    ca.rotate_root(true);
    let mut told = waiting.join_all().await;
    let last = told.iter().map(|(_, at)| *at - began).max().unwrap();
    let first = told.iter().map(|(_, at)| *at - began).min().unwrap();
    let each = (program.cpu() - cpu) / u32::try_from(STREAMS).unwrap();
    println!(
        "{STREAMS} streams on {connections} connections: {:.0} MiB (empty {:.0}), {:.1} % of a core at rest, a changed bundle at the \
         first after {first:?} and at the last after {last:?}, processor time of the agent per stream {each:?}",
        full as f64 / 1024.0,
        empty as f64 / 1024.0,
        resting * 100.0
    );
    told.clear();
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
