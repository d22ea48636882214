//! The README's first command.

use std::{
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use finial::dev::programs::forget_package;
use mesh_tests::{env, eventually, programs};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ has a parent")
}

#[test]
fn cargo_dev_once_plays_the_whole_scene_within_twenty_seconds() {
    programs::path("finial"); // build apart
    let mut cargo = Command::new(env::read("CARGO").unwrap_or_else(|| "cargo".into()));
    forget_package(&mut cargo);
    let Output {
        status,
        stdout,
        stderr,
    } = cargo
        .args(["dev", "--once", "-o", "jsonl"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let (said, complained) = (
        String::from_utf8_lossy(&stdout),
        String::from_utf8_lossy(&stderr),
    );
    assert!(status.success(), "{said}\n{complained}");
    for event in [
        "ca.ready",
        "agent.attested",
        "proxy.identity",
        "request.allowed",
        "request.denied",
        "plaintext.refused",
        "policy.applied",
        "policy.refused",
        "proxy.rotated",
        "audit.verified",
    ] {
        assert!(
            said.contains(&format!("\"event\":\"{event}\"")),
            "no {event} in\n{said}"
        );
    }
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "a real process is timed")]
async fn ctrl_c_ends_dev_mode_within_two_seconds_and_leaves_nothing_behind() {
    let dir = tempfile::Builder::new()
        .prefix("fnl")
        .tempdir()
        .expect("a folder");
    let mut finial = Command::new(programs::path("finial"));
    forget_package(&mut finial); // a downloaded finial, which has nothing to build
    let mut child = Ended(
        finial
            .args(["dev", "up", "--dir"])
            .arg(dir.path().join("f"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("finial starts"),
    );
    let agent = dir.path().join("f/dev/agent.sock");
    let up = eventually::within(Duration::from_secs(20), || {
        let there = agent.exists();
        async move { there }
    });
    assert!(up.await, "dev mode did not come up");
    let began = Instant::now();
    kill(Pid::from_raw(child.0.id().cast_signed()), Signal::SIGINT).expect("it runs");
    child.0.wait().expect("its status");
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "it took {:?}",
        began.elapsed()
    );
    assert_eq!(
        std::fs::read_dir(dir.path()).expect("readable").count(),
        0,
        "files were left behind"
    );
    let left = processes_below(dir.path());
    assert!(left.is_empty(), "processes were left behind: {left:?}");
}

/// A dev mode that a failing test does not leave behind; it stops its own processes when it is interrupted.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGINT).ok();
            self.0.wait().ok();
        }
    }
}

/// Processes whose command line names the folder.
fn processes_below(dir: &Path) -> Vec<String> {
    let name = dir.display().to_string();
    let all = std::fs::read_dir("/proc").expect("a Linux system");
    all.filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(&name))
        .collect()
}
