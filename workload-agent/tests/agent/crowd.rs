//! Many callers at once: what a crowd costs the node and the CA. The agent is a process of its own, to be measured.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use futures::future::join_all;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proto::spiffe::workload::{self as wire, spiffe_workload_api_client::SpiffeWorkloadApiClient};
use tempfile::TempDir;
use tonic::Streaming;

use crate::{
    ca::Ca,
    rig::{channel, directory, eventually, join_token, my_uid, raw, with_header, yaml},
};

/// What the memory of an agent is held to: more than the plan's 64 MiB, for a connection costs 33 KiB, and 24 of them are buffers of
/// the HTTP/2 library that cannot be made smaller.
const MEMORY: u64 = 96 * 1024 * 1024;
const WORKLOADS: usize = 2000;

/// An agent in a process of its own.
struct Agent {
    child: Child,
    dir: TempDir,
}

impl Agent {
    /// Starts it in this memory cgroup, if there is one, and returns when it serves.
    async fn start(ca: &Ca, within: Option<&MemoryGroup>) -> Self {
        let token = uuid::Uuid::new_v4().to_string();
        ca.token(&token);
        let dir = directory();
        fs::write(dir.path().join("bundle.pem"), ca.bundle().to_pem()).unwrap();
        let config = dir.path().join("agent.yaml");
        let text = yaml(ca, dir.path(), &join_token(&token));
        fs::write(
            &config,
            format!("{text}limits:\n  connectionsPerUid: 4096\n"),
        )
        .unwrap();
        // The shell enters the cgroup and becomes the agent: that never runs outside.
        let enter = match within {
            Some(group) => format!("echo $$ > {}/cgroup.procs && ", group.0.display()),
            None => String::new(),
        };
        let script = format!("{enter}exec \"$0\" run -q --config \"$1\"");
        let child = Command::new("/bin/sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_workload-agent")])
            .arg(config)
            .spawn()
            .unwrap();
        let agent = Self { child, dir };
        eventually("it serves", async || {
            agent.socket().exists() && agent.open().await.is_some()
        })
        .await;
        agent
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("public/api.sock")
    }

    /// A stream on a connection of its own, after its first message.
    async fn open(&self) -> Option<Streaming<wire::X509svidResponse>> {
        let mut client = SpiffeWorkloadApiClient::new(channel(&self.socket()).await);
        let ask = with_header(wire::X509svidRequest {});
        let mut stream = client.fetch_x509svid(ask).await.ok()?.into_inner();
        raw(&mut stream).await.ok()?;
        Some(stream)
    }

    /// Time on a processor so far.
    fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace();
        let ticks: u64 = fields
            .skip(11)
            .take(2)
            .map(|t| t.parse::<u64>().unwrap())
            .sum();
        // A tick is a hundredth of a second, whatever the kernel's own clock.
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Ten clients in place of the plan's thousand: this is a build for tests, on machines with few processors.
#[tokio::test]
async fn ag_16_clients_that_reconnect_ten_times_a_second_cost_the_ca_nothing_and_less_than_a_processor()
 {
    let ca = Ca::start().await;
    ca.entry("any", "/any", &[&my_uid()]);
    let agent = Agent::start(&ca, None).await;
    let asked = || {
        let seen = ca.seen();
        (seen.signed.len(), seen.hellos.len(), seen.batches.len())
    };
    let (before, cpu, started) = (asked(), agent.cpu(), tokio::time::Instant::now());
    let clients = (0..10).map(|_| async {
        let mut beat = tokio::time::interval(Duration::from_millis(100));
        for _ in 0..50 {
            beat.tick().await;
            agent.open().await.expect("each is served");
        }
    });
    join_all(clients).await;
    assert_eq!(asked(), before, "the CA hears of no reconnect");
    let (spent, took) = (agent.cpu() - cpu, started.elapsed());
    assert!(spent < took, "{spent:?} of processor time in {took:?}");
    assert!(
        spent < Duration::from_millis(10) * 500,
        "{spent:?} for 500 reconnects"
    );
}

#[tokio::test]
async fn two_thousand_workloads_are_served_and_renewed_within_96_mib() {
    let Some(group) = MemoryGroup::make() else {
        println!("skipped: this user may not make a memory cgroup");
        return;
    };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    if hard < 2 * WORKLOADS as u64 {
        println!("skipped: this process may open {hard} files only");
        return;
    }
    let ca = Ca::start().await;
    ca.entry("any", "/any", &[&my_uid()]);
    let agent = Agent::start(&ca, Some(&group)).await;
    let mut streams = Vec::new();
    while streams.len() < WORKLOADS {
        let some = join_all((0..50).map(|_| agent.open())).await;
        streams.extend(some.into_iter().map(|one| one.expect("each is served")));
    }
    ca.entry_with("any", "/any", &[&my_uid()], |entry| {
        entry.dns_names = vec!["x.test".into()]
    });
    for renewed in join_all(streams.iter_mut().map(raw)).await {
        assert_eq!(renewed.unwrap().svids.len(), 1);
    }
    assert_eq!(group.killed(), 0, "{}", group.said());
    assert!(agent.open().await.is_some(), "it lives");
}

/// A cgroup that holds its processes to [`MEMORY`], removed when dropped; end its processes first.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// In the first version of cgroups or in the second; none where that is not allowed.
    fn make() -> Option<Self> {
        let name = format!("agent-test-{}", std::process::id());
        let (first, second) = (
            Path::new("/sys/fs/cgroup/memory"),
            Path::new("/sys/fs/cgroup"),
        );
        let (path, limit) = if first.exists() {
            (first.join(name), "memory.limit_in_bytes")
        } else {
            fs::write(second.join("cgroup.subtree_control"), "+memory").ok()?;
            (second.join(name), "memory.max")
        };
        fs::create_dir(&path).ok()?;
        let group = Self(path);
        fs::write(group.0.join(limit), MEMORY.to_string()).ok()?;
        Some(group)
    }

    /// What the kernel counts, by the name of the file that this version has.
    fn said(&self) -> String {
        ["memory.oom_control", "memory.events"]
            .iter()
            .find_map(|file| fs::read_to_string(self.0.join(file)).ok())
            .unwrap()
    }

    /// Processes that were killed for want of memory.
    fn killed(&self) -> u64 {
        let said = self.said();
        let line = said.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.expect("a counter").trim().parse().unwrap()
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // A cgroup can be removed some moments after its last process was.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
