//! Client libraries that others wrote, as workloads on the agent's real socket: what each of them was given, and that its own checks
//! took it, through three rotations.

mod crates;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use mesh_tests::{peers::Peers, world::World};
use serde_json::{Value, json};

/// The first certificate and three rotations.
const CERTIFICATES: usize = 4;

/// SVIDs live ten seconds, so that they turn every five.
fn short(config: String) -> String {
    config.replace("x509Svid: 20s", "x509Svid: 10s")
}

#[tokio::test(flavor = "multi_thread")]
async fn ag_13_the_clients_for_python_and_go_are_given_what_they_expect_through_three_rotations() {
    let Some(peers) = Peers::find() else {
        return;
    };
    let world = World::start(short).await;
    let python = peers.python();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("rig/clients/client.py");
    // The kernel knows a script by its interpreter.
    let interpreter = python.canonicalize().expect("an interpreter");
    world.entry("python", &interpreter.display().to_string());
    let go = world.own_program("go-client", &peers.go_client());
    world.entry("go", &go.display().to_string());

    let clients = [
        ("python", started(&world, python, Some(&script))),
        ("go", started(&world, go, None)),
    ];
    for (name, client) in clients {
        let client = tokio::task::spawn_blocking(|| client.wait_with_output());
        let output = client.await.expect("no panic").expect("its output");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
        let found: Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
        let id = json!(format!("spiffe://dev.test/{name}"));
        assert_eq!(found["id"], id, "{found}");
        assert_eq!(found["jwtSubject"], id, "{found}");
        for bundles in ["x509Bundles", "jwtBundles"] {
            assert_eq!(found[bundles], json!(["spiffe://dev.test"]), "{found}");
        }
        // Each token was taken, and refused for another audience, by the agent and by the library itself.
        for by in ["validatedBy", "wrongRefused"] {
            assert_eq!(
                words(&found[by]),
                BTreeSet::from(["agent", "client"]),
                "{found}"
            );
        }
        assert_eq!(words(&found["serials"]).len(), CERTIFICATES, "{found}");
    }
}

fn words(list: &Value) -> BTreeSet<&str> {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(Value::as_str).collect()
}

/// A client on the agent's socket, which ends when it has seen enough certificates.
fn started(world: &World, program: PathBuf, script: Option<&Path>) -> std::process::Child {
    Command::new(program)
        .args(script)
        .arg(world.path("agent.sock"))
        .args(["bank", &CERTIFICATES.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the client starts")
}
