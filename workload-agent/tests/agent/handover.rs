//! One agent takes another's place, as programs: under load no caller is refused, streams come back, and what is not its predecessor stays.

use std::{
    io::{Read, Write},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use proto::spiffe::workload as wire;
use tempfile::TempDir;

use crate::{
    ca::Ca,
    rig::{channel, directory, eventually, join_token, my_uid, next, with_header, yaml},
};

/// The program, with its directory; killed when dropped.
struct Program(Child);

impl Program {
    fn start(config: &Path, more: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_workload-agent"));
        command.args(["run", "--config"]).arg(config).args(more);
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the program ends", async || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }

    fn runs(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn configured(ca: &Ca, more: &str) -> (TempDir, PathBuf) {
    let dir = directory();
    std::fs::write(dir.path().join("bundle.pem"), ca.bundle().to_pem()).unwrap();
    let token = uuid::Uuid::new_v4().to_string();
    ca.token(&token);
    let text = yaml(ca, dir.path(), &join_token(&token)) + more;
    let config = dir.path().join("agent.yaml");
    std::fs::write(&config, text).unwrap();
    (dir, config)
}

async fn fetch(socket: &Path) -> Result<String, tonic::Status> {
    let mut client =
        wire::spiffe_workload_api_client::SpiffeWorkloadApiClient::new(channel(socket).await);
    let stream = client.fetch_x509svid(with_header(wire::X509svidRequest {}));
    let context = next(&mut stream.await?.into_inner()).await?;
    Ok(context.identities()[0].svid.serial().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn ag_26_a_new_agent_takes_over_under_load_and_no_caller_is_refused() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    let audit = directory();
    let record = format!("audit:\n  dir: {}/audit\n", audit.path().display());
    let (dir, config) = configured(&ca, &record);
    let socket = dir.path().join("public/api.sock");
    let mut agent = Program::start(&config, &["--take-over"]);
    eventually("the first agent serves", async || {
        socket.exists() && fetch(&socket).await.is_ok()
    })
    .await;
    let (serial, inode) = (
        fetch(&socket).await.unwrap(),
        std::fs::metadata(&socket).unwrap().ino(),
    );

    let (done, over) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let callers: Vec<_> = (0..6)
        .map(|_| {
            let (socket, done, over) = (socket.clone(), Arc::clone(&done), Arc::clone(&over));
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    fetch(&socket).await.expect("no caller is refused");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    // A workload that keeps its stream, and opens it again as soon as it ends.
    let (opened, longest) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let stream = tokio::spawn({
        let (socket, opened, longest, over) = (
            socket.clone(),
            Arc::clone(&opened),
            Arc::clone(&longest),
            Arc::clone(&over),
        );
        async move {
            let mut lost = tokio::time::Instant::now();
            while !over.load(Ordering::Relaxed) {
                let mut client = wire::spiffe_workload_api_client::SpiffeWorkloadApiClient::new(
                    channel(&socket).await,
                );
                let answer = client
                    .fetch_x509svid(with_header(wire::X509svidRequest {}))
                    .await;
                let mut stream = answer.expect("a stream is opened").into_inner();
                next(&mut stream).await.expect("and told the state at once");
                longest.fetch_max(lost.elapsed().as_millis() as usize, Ordering::Relaxed);
                opened.fetch_add(1, Ordering::Relaxed);
                while next(&mut stream).await.is_ok() {}
                lost = tokio::time::Instant::now();
            }
        }
    });
    for turn in 1..=3 {
        let before = done.load(Ordering::Relaxed);
        let mut successor = Program::start(&config, &["--take-over"]);
        assert!(
            agent.ended().await.success(),
            "the old agent ends in good order"
        );
        eventually("the stream is back and others are served", async || {
            opened.load(Ordering::Relaxed) > turn && done.load(Ordering::Relaxed) > before + 20
        })
        .await;
        assert!(successor.runs());
        agent = successor;
    }
    over.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(
        fetch(&socket).await.unwrap(),
        serial,
        "the same SVID through all of it"
    );
    assert_eq!(
        std::fs::metadata(&socket).unwrap().ino(),
        inode,
        "the very same socket"
    );
    assert!(
        longest.load(Ordering::Relaxed) < 5000,
        "{longest:?} ms without a stream"
    );
    assert_eq!(ca.seen().attested.len(), 1, "no agent attested anew");
    stream.abort();

    // What the last one inherited is removed as if it had been its own.
    let pid = nix::unistd::Pid::from_raw(agent.0.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(agent.ended().await.success());
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_keeps_its_place_from_those_who_are_not_its_successor() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    let (dir, config) = configured(&ca, "");
    let socket = dir.path().join("public/api.sock");
    let mut agent = Program::start(&config, &[]);
    eventually("it serves", async || {
        socket.exists() && fetch(&socket).await.is_ok()
    })
    .await;

    let door = dir.path().join("private/admin.sock.handover");
    assert_eq!(
        std::fs::metadata(&door).unwrap().permissions().mode() & 0o777,
        0o600
    );
    // One that goes away, one that says something else, one that listens and does not take it.
    drop(UnixStream::connect(&door).unwrap());
    let mut other = UnixStream::connect(&door).unwrap();
    other.write_all(b"please").unwrap();
    drop(other);
    let mut silent = UnixStream::connect(&door).unwrap();
    let mut offer = [0; 4096];
    let read = silent.read(&mut offer).unwrap();
    assert!(String::from_utf8_lossy(&offer[..read]).contains("api.sock"));
    drop(silent);

    // A second agent without the flag, and one with another state.
    let run = |config: PathBuf, more: Vec<&'static str>| {
        tokio::task::spawn_blocking(move || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_workload-agent"));
            command.args(["run", "--config"]).arg(config).args(more);
            command.output().unwrap()
        })
    };
    let second = run(config.clone(), vec![]).await.unwrap();
    assert!(
        String::from_utf8_lossy(&second.stderr).contains("FNL2011"),
        "{second:?}"
    );
    let text = std::fs::read_to_string(&config).unwrap();
    let changed = dir.path().join("changed.yaml");
    std::fs::write(&changed, text.replace("/data\n", "/elsewhere\n")).unwrap();
    let another = run(changed, vec!["--take-over"]).await.unwrap();
    let said = String::from_utf8_lossy(&another.stderr).into_owned();
    assert!(
        said.contains("FNL2037") && said.contains("the data directory"),
        "{said}"
    );
    assert!(!another.status.success() && agent.runs());
    fetch(&socket).await.unwrap();
}
