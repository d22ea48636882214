//! What is found about processes that try to look like others.

use std::{
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command},
};

use super::{
    super::{AttestError, find, k8s::K8sAttestor},
    *,
};

const LIMIT: u64 = 1 << 30;

fn subject(pid: u32) -> Subject {
    Subject {
        process: Process::open(i32::try_from(pid).unwrap()).unwrap(),
        credentials: Credentials::Current,
    }
}

fn attest(
    unix: &UnixAttestor,
    subject: &Subject,
    wanted: Wanted,
) -> Result<Attestation, AttestError> {
    find(unix, &K8sAttestor::on_this_node(), subject, wanted).map(|(found, _)| found)
}

fn values<'a>(found: &'a Attestation, name: &str) -> Vec<&'a str> {
    let prefix = format!("{name}:");
    found
        .facts
        .iter()
        .filter_map(|fact| fact.value().strip_prefix(prefix.as_str()))
        .collect()
}

/// A copy of `sleep` of our own that runs until it is killed.
fn sleeper(program: &Path) -> Running {
    std::fs::copy("/bin/sleep", program).unwrap();
    std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let running = Running(Command::new(program).arg("600").spawn().unwrap());
    // The child is our own image until it has run the program.
    while std::fs::read_link(format!("/proc/{}/exe", running.0.id())).unwrap()
        != program.canonicalize().unwrap()
    {
        std::thread::yield_now();
    }
    running
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
async fn this_process_is_found_with_uid_gid_path_and_digest() {
    let found = attest(
        &UnixAttestor::new(LIMIT),
        &subject(std::process::id()),
        Wanted::ALL,
    )
    .unwrap();
    assert_eq!(values(&found, "uid"), [nix::unistd::geteuid().to_string()]);
    assert_eq!(values(&found, "gid"), [nix::unistd::getegid().to_string()]);
    let exe = std::env::current_exe().unwrap().canonicalize().unwrap();
    assert_eq!(values(&found, "path"), [exe.to_str().unwrap()]);
    let digest = ring::digest::digest(&ring::digest::SHA256, &std::fs::read(exe).unwrap());
    let digest: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(values(&found, "sha256"), [digest]);
    assert_eq!(found.failed, []);
}

#[tokio::test]
async fn the_uid_of_the_socket_counts_and_not_the_one_in_proc() {
    let mut subject = subject(std::process::id());
    subject.credentials = Credentials::Socket {
        uid: 4242,
        gid: 4243,
    };
    let found = attest(&UnixAttestor::new(LIMIT), &subject, Wanted::default()).unwrap();
    assert_eq!(
        (values(&found, "uid"), values(&found, "gid")),
        (vec!["4242"], vec!["4243"])
    );
    assert!(values(&found, "sha256").is_empty(), "not asked for");
}

#[tokio::test]
async fn a_process_that_has_exited_is_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let running = sleeper(&dir.path().join("program"));
    let gone = subject(running.0.id());
    drop(running);
    assert!(matches!(
        attest(&UnixAttestor::new(LIMIT), &gone, Wanted::ALL),
        Err(AttestError::Gone)
    ));
}

#[tokio::test]
async fn a_zombie_is_nobody() {
    // Stays alive until its input ends, so that it can be held first.
    let mut child = Command::new("/bin/cat")
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let process = Process::open(i32::try_from(child.id()).unwrap()).unwrap();
    drop(child.stdin.take());
    tokio::time::timeout(std::time::Duration::from_secs(5), process.exited())
        .await
        .unwrap();
    // Not waited for: /proc/PID is still there.
    let subject = Subject {
        process,
        credentials: Credentials::Current,
    };
    assert!(matches!(
        attest(&UnixAttestor::new(LIMIT), &subject, Wanted::ALL),
        Err(AttestError::Gone)
    ));
    child.wait().unwrap();
}

#[tokio::test]
async fn a_program_that_was_replaced_or_deleted_has_no_path_but_keeps_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    let running = sleeper(&program);
    let attestor = UnixAttestor::new(LIMIT);
    let before = attest(&attestor, &subject(running.0.id()), Wanted::ALL).unwrap();
    assert_eq!(values(&before, "path").len(), 1);

    let other = dir.path().join("other");
    std::fs::copy("/bin/true", &other).unwrap();
    std::fs::rename(&other, &program).unwrap();
    let replaced = attest(&attestor, &subject(running.0.id()), Wanted::ALL).unwrap();
    assert!(values(&replaced, "path").is_empty());
    assert!(
        replaced
            .failed
            .iter()
            .any(|failed| failed.name == "unix:path"),
        "{:?}",
        replaced.failed
    );
    assert_eq!(
        values(&replaced, "sha256"),
        values(&before, "sha256"),
        "the program that runs is still the old one"
    );

    std::fs::remove_file(&program).unwrap();
    let deleted = attest(&attestor, &subject(running.0.id()), Wanted::ALL).unwrap();
    assert!(
        values(&deleted, "path").is_empty(),
        "not even with the kernel's ` (deleted)`"
    );
}

#[tokio::test]
async fn a_file_named_as_the_kernel_names_deleted_ones_is_not_the_deleted_one() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    let running = sleeper(&program);
    std::fs::rename(&program, dir.path().join("moved")).unwrap();
    std::fs::remove_file(dir.path().join("moved")).unwrap();
    std::fs::copy("/bin/true", dir.path().join("program (deleted)")).unwrap();
    let found = attest(
        &UnixAttestor::new(LIMIT),
        &subject(running.0.id()),
        Wanted::ALL,
    )
    .unwrap();
    assert!(values(&found, "path").is_empty());
}

#[tokio::test]
async fn a_program_larger_than_the_limit_has_no_digest() {
    let found = attest(
        &UnixAttestor::new(1024),
        &subject(std::process::id()),
        Wanted::ALL,
    )
    .unwrap();
    assert!(values(&found, "sha256").is_empty());
    assert!(
        found.failed[0].reason.contains("more than the 1024"),
        "{:?}",
        found.failed
    );
}

#[test]
fn a_digest_is_remembered_until_the_file_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "one").unwrap();
    let attestor = UnixAttestor::new(LIMIT);
    let digest = || {
        let mut file = File::open(&path).unwrap();
        let meta = file.metadata().unwrap();
        attestor.digest(&mut file, &meta).unwrap()
    };
    let first = digest();
    assert_eq!(digest(), first);
    assert_eq!(attestor.lock().order.len(), 1);
    // Same length, and the modification time set back as an owner can: the change time tells.
    let times = std::fs::metadata(&path).unwrap().modified().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all(b"two").unwrap();
    file.set_modified(times).unwrap();
    assert_ne!(digest(), first);
}

#[test]
fn remembered_digests_are_bounded() {
    let mut digests = Digests::default();
    for inode in 0..(REMEMBERED as u64 + 100) {
        let key = FileKey {
            dev: 1,
            inode,
            size: 1,
            modified: (0, 0),
            changed: (0, 0),
        };
        digests.put(key, String::new());
    }
    assert_eq!(
        (digests.known.len(), digests.order.len()),
        (REMEMBERED, REMEMBERED)
    );
}

#[tokio::test]
async fn ag_09_the_own_name_of_a_process_is_no_fact() {
    std::fs::write(
        format!("/proc/self/task/{}/comm", nix::unistd::gettid()),
        "x) kubepods",
    )
    .unwrap();
    let found = attest(
        &UnixAttestor::new(LIMIT),
        &subject(std::process::id()),
        Wanted::ALL,
    )
    .unwrap();
    assert!(
        !found
            .facts
            .iter()
            .any(|fact| fact.as_str().contains("kubepods"))
    );
}

#[tokio::test]
async fn a_path_in_mounts_of_its_own_is_no_fact() {
    let dir = tempfile::tempdir().unwrap();
    let (honest, evil) = (dir.path().join("honest"), dir.path().join("evil"));
    std::fs::copy("/bin/true", &honest).unwrap();
    std::fs::copy("/bin/sleep", &evil).unwrap();
    let script = format!(
        "mount --bind {} {h} && exec {h} 600",
        evil.display(),
        h = honest.display()
    );
    let spawned = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .spawn();
    let Ok(child) = spawned else {
        println!("skipped: there is no `unshare` on this machine (package util-linux)");
        return;
    };
    let running = Running(child);
    for _ in 0..200 {
        let exe = std::fs::read_link(format!("/proc/{}/exe", running.0.id())).unwrap_or_default();
        if exe == honest {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let shown = std::fs::read_link(format!("/proc/{}/exe", running.0.id())).unwrap_or_default();
    if shown != honest {
        println!("skipped: this user may not make a mount namespace");
        return;
    }
    let found = attest(
        &UnixAttestor::new(LIMIT),
        &subject(running.0.id()),
        Wanted::ALL,
    )
    .unwrap();
    assert!(
        values(&found, "path").is_empty(),
        "the kernel says {shown:?}, and the agent sees another file there"
    );
}
