//! Entries that go while somebody is served by them, with the real programs.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use mesh_tests::{eventually, programs, world::World};
use tokio::time::Instant;

/// Within this time nobody is served any more (the threat model's row).
const LIMIT: Duration = Duration::from_secs(5);

fn id(name: &str) -> String {
    format!("spiffe://dev.test/{name}")
}

/// A workload that follows its identities until the agent ends its stream, and prints them into a file.
fn watcher(world: &World, program: &Path, into: &Path) -> Child {
    Command::new(program)
        .args(["api", "watch", "-o", "json", "--socket"])
        .arg(world.path("agent.sock"))
        .stdout(File::create(into).expect("a file"))
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn ca_17_the_open_stream_of_an_entry_that_is_deleted_or_moved_ends_within_five_seconds() {
    let world = World::start(|config| config).await;
    for name in ["deleted", "moved"] {
        let program = world.own_program(name, &programs::path("workload-agent"));
        let path = program.display().to_string();
        world.entry(name, &path);
        let entry = world.ca_json(&["entry", "show", "--spiffe-id", &id(name)]);
        let entry = entry["entries"][0]["id"]
            .as_str()
            .expect("an id")
            .to_owned();
        let told = world.path(&format!("{name}.told"));
        // Who comes before the agent has heard of the entry is sent away, and comes again.
        let mut stream = None;
        let served = eventually::within(Duration::from_secs(20), async || {
            let open = stream.get_or_insert_with(|| watcher(&world, &program, &told));
            if open.try_wait().expect("it is ours").is_some() {
                stream = None;
            }
            fs::read_to_string(&told).is_ok_and(|told| told.contains(&id(name)))
        });
        assert!(served.await, "{name} was never served");
        let mut stream = stream.expect("it was served");

        match name {
            "deleted" => world.ca_json(&["entry", "delete", "--entry-id", &entry]),
            _ => {
                let elsewhere = id("nowhere");
                let selector = format!("unix:path:{path}");
                let moved = ["entry", "update", "--entry-id", &entry, "--spiffe-id"];
                let same = id(name);
                let to = [&same, "--parent-id", &elsewhere, "--selector", &selector];
                world.ca_json(&[&moved[..], &to].concat())
            }
        };
        let done = Instant::now();
        let ended = eventually::within(LIMIT, async || {
            stream.try_wait().expect("it is ours").is_some()
        });
        let ended = ended.await;
        println!("{name}: the stream ended after {:?}", done.elapsed());
        if !ended {
            stream.kill().expect("it runs");
        }
        let output = stream.wait_with_output().expect("its output");
        assert!(ended, "{name}: still served after {LIMIT:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("FNL2104"), "{name}: {said}");
        let again = Command::new(&program)
            .args(["api", "fetch", "x509", "--socket"])
            .arg(world.path("agent.sock"))
            .output()
            .expect("the program runs");
        let said = String::from_utf8_lossy(&again.stderr);
        assert!(
            said.contains("FNL2104"),
            "{name} is not served again: {said}"
        );
    }
}
