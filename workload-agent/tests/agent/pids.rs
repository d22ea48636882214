//! A pid that comes to mean another process (AG-04): in a pid namespace of its own, where the next pid can be chosen.
//! The driver is this very test program again, the first process of that namespace, with the agent beside it.

use std::{
    io::Write,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::Path,
    process::{Child, Command},
    time::Duration,
};

use crate::{
    ca::Ca,
    peers::{ROLE, is_root, open, over, paths, receive_fd},
    rig::{directory, join_token, next, yaml},
};

/// Rounds in which the pid of the caller was given to another process.
const HITS: u32 = 200;
/// Rounds that are played for them: a thread that starts at the wrong moment takes the pid away.
const MOST_ROUNDS: u32 = 2 * HITS;
const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";

#[tokio::test]
async fn ag_04_a_pid_that_is_used_again_brings_the_new_process_nothing_of_the_old_ones_connection()
{
    if !is_root("a pid namespace") {
        return;
    }
    let ca = Ca::start().await;
    let dir = directory();
    let here = |name: &str| dir.path().join(name);
    let path = |program: &Path| format!("unix:path:{}", program.display());
    ca.entry("victim", "/victim", &[&path(&here("victim"))]);
    let sleep = Path::new("/bin/sleep").canonicalize().unwrap();
    ca.entry("heir", "/heir", &[&path(&sleep)]);
    ca.token("pids");
    std::fs::write(here("bundle.pem"), ca.bundle().to_pem()).unwrap();
    std::fs::write(
        here("agent.yaml"),
        yaml(&ca, dir.path(), &join_token("pids")),
    )
    .unwrap();
    std::fs::copy(std::env::current_exe().unwrap(), here("victim")).unwrap();
    std::fs::set_permissions(here("victim"), std::fs::Permissions::from_mode(0o755)).unwrap();

    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "pids::driver", "--nocapture"])
        .env(ROLE, dir.path());
    let played = tokio::task::spawn_blocking(move || command.output());
    let Ok(played) = played.await.unwrap() else {
        println!("skipped: there is no `unshare` on this machine (package util-linux)");
        return;
    };
    let (said, complained) = (
        String::from_utf8_lossy(&played.stdout).into_owned(),
        String::from_utf8_lossy(&played.stderr).into_owned(),
    );
    if complained.contains("unshare failed") || said.contains("skipped:") {
        println!("skipped: this machine allows no pid namespace in which pids are chosen\n{said}");
        return;
    }
    assert!(
        played.status.success() && said.contains("used again: "),
        "{said}\n{complained}"
    );
}

/// Runs in the namespace.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the role of a helper process can come to a test only by the environment"
)]
fn driver() {
    let Ok(dir) = std::env::var(ROLE) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(play(Path::new(&dir)));
}

async fn play(dir: &Path) {
    if let Err(error) = choose_next_pid(1000) {
        println!("skipped: {LAST_PID} cannot be written: {error}");
        return;
    }
    let mut agent = Command::new(env!("CARGO_BIN_EXE_workload-agent"))
        .args(["run", "-q", "--config"])
        .arg(dir.join("agent.yaml"))
        .spawn()
        .unwrap();
    let handover = UnixListener::bind(dir.join("handover.sock")).unwrap();
    let mut hits = 0;
    for round in 0..MOST_ROUNDS {
        let mut victim = start(dir);
        let (mut line, _) = handover.accept().unwrap();
        let connection = receive_fd(&line);
        let pid = victim.id();
        // Every second one has been served before it ends. The first has to wait for the agent to be in step.
        let served = round % 2 == 0;
        let mut client = over(connection).await.ok();
        let mut stream = None;
        if served {
            for _ in 0..400 {
                stream = open(client.as_mut().unwrap()).await.ok();
                if stream.is_some() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            let first = next(stream.as_mut().expect("the victim is served"));
            assert_eq!(paths(&first.await.unwrap()), ["/victim"]);
        }
        line.write_all(b"x").unwrap();
        victim.wait().unwrap();
        choose_next_pid(pid).unwrap();
        let mut heir = Command::new("/bin/sleep").arg("600").spawn().unwrap();
        hits += u32::from(heir.id() == pid);

        // The connection is the victim's, and its pid now is the heir's: nobody is given anything on it.
        if let Some(stream) = &mut stream {
            let told = next(stream).await.map(|context| paths(&context));
            assert!(told.is_err(), "{told:?}");
        }
        if let Some(client) = &mut client
            && let Ok(mut stream) = open(client).await
        {
            let told = next(&mut stream).await.map(|context| paths(&context));
            panic!("a connection of a process that has ended was served: {told:?}");
        }
        heir.kill().unwrap();
        heir.wait().unwrap();
        if hits == HITS {
            break;
        }
    }
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert_eq!(hits, HITS, "the pid was chosen often enough");
    println!("used again: {hits}");
}

/// The process that connects and goes away.
fn start(dir: &Path) -> Child {
    let role = format!(
        "{}|{}|exit",
        dir.join("public/api.sock").display(),
        dir.join("handover.sock").display()
    );
    let socket = dir.join("public/api.sock");
    while !socket.exists() {
        std::thread::sleep(Duration::from_millis(25));
    }
    Command::new(dir.join("victim"))
        .args(["--exact", "peers::helper", "--nocapture"])
        .env(ROLE, role)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

fn choose_next_pid(pid: u32) -> std::io::Result<()> {
    std::fs::write(LAST_PID, (pid - 1).to_string())
}
