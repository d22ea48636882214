//! Who may look into the programs that hold signing keys: nobody of their own user, and no core file is left.

use std::{
    fs::{self, Permissions},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    process::{Command, Stdio},
    time::Duration,
};

use finial::dev::files;
use mesh_tests::{eventually, programs, world::World};
use nix::unistd::{Uid, chown};

/// Nobody, as most systems number them.
const NOBODY: u32 = 65534;

#[tokio::test(flavor = "multi_thread")]
async fn ca_36_the_programs_that_hold_keys_leave_no_core() {
    let world = World::start(|config| config).await;
    for daemon in [world.ca(), world.agent.as_ref().expect("it runs")] {
        let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).expect("limits");
        let core = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max core file size"))
            .expect("the limit of core files");
        let values: Vec<_> = core.split_whitespace().take(2).collect();
        assert_eq!(values, ["0", "0"], "{limits}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ca_36_another_process_of_its_user_cannot_read_the_authoritys_memory() {
    if !Uid::effective().is_root() {
        eprintln!("skipped: only root can start a program as another user and look from there");
        return;
    }
    let folder = tempfile::Builder::new()
        .prefix("fnl")
        .tempdir()
        .expect("a temporary folder");
    let program = folder.path().join("ca-server");
    fs::copy(programs::path("ca-server"), &program).expect("a copy of the program");
    let config = folder.path().join("ca.yaml");
    let text = folder.path().display().to_string();
    fs::write(&config, files::ca_server(&text)).expect("a configuration");
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("ours");
    chown(folder.path(), Some(Uid::from_raw(NOBODY)), None).expect("root may");
    let mut server = Command::new(&program)
        .args(["run", "--config"])
        .arg(&config)
        .current_dir(folder.path())
        .uid(NOBODY)
        .stdin(Stdio::null())
        .spawn()
        .expect("ca-server starts");
    let socket = folder.path().join("ca-admin.sock");
    let started = eventually::within(Duration::from_secs(30), async || {
        tokio::time::sleep(Duration::from_millis(50)).await;
        socket.exists()
    });
    let started = started.await;
    let looked = |file: &str| {
        let looked = Command::new("cat")
            .arg(format!("/proc/{}/{file}", server.id()))
            .uid(NOBODY)
            .stdout(Stdio::null())
            .output()
            .expect("cat runs");
        (
            looked.status.success(),
            String::from_utf8_lossy(&looked.stderr).into_owned(),
        )
    };
    let seen: Vec<_> = ["environ", "maps", "mem"]
        .map(|file| (file, looked(file)))
        .into();
    let owner = fs::metadata(format!("/proc/{}/mem", server.id())).map(|facts| facts.uid());
    server.kill().expect("it runs");
    server.wait().expect("it ends");
    assert!(started, "ca-server did not open its admin socket");
    for (file, (read, said)) in seen {
        assert!(
            !read && said.contains("Permission denied"),
            "{file}: {said}"
        );
    }
    assert_eq!(
        owner.expect("it ran"),
        0,
        "what cannot be dumped belongs to root"
    );
}
