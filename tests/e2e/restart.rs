//! An agent that starts while its authority is away: the real program, killed, gives the same identities to the same processes at once.

use std::{fs, path::Path, process::Command, time::Duration};

use mesh_tests::{daemon::Daemon, eventually, programs, world::World};
use tokio::time::Instant;

/// What a caller at this path gets, as which user.
fn fetch(program: &Path, world: &World, uid: Option<u32>) -> Result<String, String> {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(program);
    command
        .args(["api", "fetch", "x509", "-o", "json", "--socket"])
        .arg(world.path("agent.sock"));
    if let Some(uid) = uid {
        command.uid(uid);
    }
    let output = command.output().expect("the program runs");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_and_started_while_the_authority_is_away_serves_within_a_second_who_is_entitled()
 {
    let mut world = World::start(|config| config.replace("x509Svid: 20s", "x509Svid: 90s")).await;
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(world.path(""), fs::Permissions::from_mode(0o755)).expect("ours");
    let copy = |name: &str| {
        let path = world.path(name);
        fs::copy(programs::path("workload-agent"), &path).expect("a copy of the program");
        path
    };
    let (entitled, stranger) = (copy("pay"), copy("stranger"));
    world.entry("pay", &entitled.display().to_string());
    let mut before = String::new();
    let served = eventually::within(Duration::from_secs(20), async || {
        before = fetch(&entitled, &world, None).unwrap_or_default();
        before.contains("spiffe://dev.test/pay")
    });
    assert!(served.await, "never served");
    // It is kept from then on, not in the same moment.
    let state = world.path("agent/node-state.sealed");
    let size = |path: &Path| fs::metadata(path).map_or(0, |facts| facts.len());
    let kept = eventually::within(Duration::from_secs(10), async || size(&state) > 2500);
    assert!(kept.await, "nothing was kept: {} bytes", size(&state));

    world.ca.take().expect("it runs").kill();
    world.agent.take().expect("it runs").kill();
    let started = Instant::now();
    let agent = Daemon::start(
        "workload-agent",
        &programs::path("workload-agent"),
        &world.path("agent.yaml"),
        &world.path(""),
    )
    .await;
    let after = fetch(&entitled, &world, None).expect("served at once");
    let took = started.elapsed();
    println!("served {took:?} after the start");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(before, after, "the same SVID and bundle");

    let refused = fetch(&stranger, &world, None).expect_err("another program");
    assert!(refused.contains("FNL2104"), "{refused}");
    if nix::unistd::getuid().is_root() {
        let refused = fetch(&entitled, &world, Some(65_534)).expect_err("another user");
        assert!(refused.contains("FNL2104"), "{refused}");
    }
    assert!(agent.stop().await.success());
}
