//! Clocks that differ, with the real programs: an authority whose machine is ahead of the nodes.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use finial::dev::files;
use mesh_tests::{daemon::Daemon, eventually, programs, world::World};

/// Ten minutes: no back-dating of certificates covers that.
const AHEAD: u32 = 600;

/// ca-server as on a machine whose wall clock is ahead. None, with the reason printed, where there is no C compiler.
fn ahead(world: &World) -> Option<PathBuf> {
    let library = world.path("ahead.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("rig/clock/ahead.c");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wall", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .status();
    match compiled {
        Ok(status) => assert!(status.success(), "{}", source.display()),
        Err(error) => {
            println!(
                "skipped: no C compiler `cc` ({error}); Debian: apt-get install gcc libc6-dev"
            );
            return None;
        }
    }
    let program = programs::path("ca-server");
    let script = format!(
        "#!/bin/sh\nexport LD_PRELOAD={} FINIAL_CLOCK_AHEAD={AHEAD}\nexec {} \"$@\"\n",
        library.display(),
        program.display()
    );
    let script = world.write("ca-server-ahead", &script);
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("ours");
    Some(script)
}

#[tokio::test(flavor = "multi_thread")]
async fn ca_41_a_server_ten_minutes_ahead_is_refused_in_plain_words_and_joined_when_its_clock_is_right()
 {
    // The agent must find the server again at the same place.
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let place = free.local_addr().expect("its address").to_string();
    drop(free);
    let mut world = World::with_ca(|config| {
        config
            .replacen("address: 127.0.0.1:0", &format!("address: {place}"), 1)
            .replace("x509Authority: 10m", "x509Authority: 24h")
    })
    .await;
    let Some(program) = ahead(&world) else {
        return;
    };
    world.ca.take().expect("it runs").stop().await;
    let (config, folder) = (world.path("ca.yaml"), world.path(""));
    world.ca = Some(Daemon::start_ready("ca-server", &program, &config, &folder).await);

    let token = world.ca_json(&["token", "generate", "--ttl", "600"]);
    world.write("join-token", token["token"].as_str().expect("a token"));
    let config = world.write("agent.yaml", &files::workload_agent(&world.text(), &place));
    let program = programs::path("workload-agent");
    let mut agent = Daemon::start("workload-agent", &program, &config, &folder).await;
    let said = eventually::within(Duration::from_secs(20), async || {
        agent.log().contains("is not valid yet")
    });
    assert!(said.await, "the agent says that it is a matter of time");
    let joined = world.ca_json(&["agent", "count"]);
    assert_eq!(joined["count"], 0, "{joined}");

    world.ca.take().expect("it runs").stop().await;
    world.start_ca().await;
    agent.ready().await.expect("joined");
    let joined = world.ca_json(&["agent", "count"]);
    assert_eq!(joined["count"], 1, "{joined}");
}
