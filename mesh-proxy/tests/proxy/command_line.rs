//! What an operator types.

use std::process::{Command, Output};
use std::time::Duration;

use crate::world::{Proxy, SHOP_ANYTHING, World, allow};

fn mesh_proxy(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mesh-proxy"))
        .args(args)
        .env_remove("SPIFFE_ENDPOINT_SOCKET")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_printed_defaults_are_a_valid_configuration_and_print_the_same_again() {
    let world = World::new();
    let defaults = mesh_proxy(&["config", "print-defaults"]);
    assert!(defaults.status.success());
    let path = world.write("defaults.yaml", &text(&defaults.stdout));
    let valid = mesh_proxy(&["validate", "--config", path.to_str().unwrap()]);
    assert!(valid.status.success(), "{}", text(&valid.stderr));
    let schema: serde_json::Value =
        serde_json::from_slice(&mesh_proxy(&["config", "schema"]).stdout).unwrap();
    assert!(schema["properties"]["inbound"].is_object());
}

#[test]
fn every_mistake_of_a_configuration_is_told_at_once_with_its_line() {
    let world = World::new();
    let path = world.write(
        "bad.yaml",
        "apiVersion: config.finial.dev/v1\nkind: MeshProxyConfig\nworkloadApi: { socket: \"relative.sock\" }\ninbound: { listen: \"127.0.0.1:0\", aplication: \"127.0.0.1:1\" }\noutbound:\n  - { name: A, listen: \"0.0.0.0:1\", to: \"127.0.0.1:2\", serverId: \"spiffe://TD/x\" }\n",
    );
    let out = mesh_proxy(&["validate", "--config", path.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(3));
    let told = text(&out.stderr);
    for piece in [
        "aplication",
        "did you mean `application`",
        "bad.yaml:4:",
        "bad.yaml:6:",
    ] {
        assert!(told.contains(piece), "{piece} is not in\n{told}");
    }
}

#[test]
fn validate_reads_the_policy_file_too() {
    let world = World::new();
    let config = |policy: &str| {
        let policy = world.write("policy.yaml", policy);
        world.write("c.yaml", &format!("apiVersion: config.finial.dev/v1\nkind: MeshProxyConfig\npolicy: {{ file: \"{}\" }}\n", policy.display()))
    };
    let good = config(&allow(SHOP_ANYTHING));
    assert!(
        mesh_proxy(&["validate", "--config", good.to_str().unwrap()])
            .status
            .success()
    );
    let bad = config(&allow("form: []"));
    let out = mesh_proxy(&["validate", "--config", bad.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(3));
    let told = text(&out.stderr);
    assert!(
        told.contains("FNL3051")
            && told.contains("FNL0502")
            && told.contains("did you mean `from`?"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn healthcheck_tells_ready_not_ready_and_silence_apart() {
    let world = World::new();
    let agent = world.agent("pay", Duration::from_secs(600));
    let policy = world.path("later.yaml");
    let doors = format!(
        "inbound: {{ listen: \"127.0.0.1:0\", application: \"127.0.0.1:1\" }}\npolicy: {{ file: \"{}\" }}",
        policy.display()
    );
    let proxy = Proxy::start(&world, "pay", &agent, &doors).await;
    let address = proxy.door("metrics").to_string();
    let ask = || mesh_proxy(&["healthcheck", "--address", &address]);
    let waiting = tokio::task::block_in_place(ask);
    assert_eq!(
        waiting.status.code(),
        Some(3),
        "no policy at a cold start is not ready"
    );
    assert!(
        text(&waiting.stdout).contains("policy"),
        "{}",
        text(&waiting.stdout)
    );
    world.write("later.yaml", &allow(SHOP_ANYTHING));
    proxy.ready().await;
    assert_eq!(tokio::task::block_in_place(ask).status.code(), Some(0));
    drop(proxy);
    assert_eq!(tokio::task::block_in_place(ask).status.code(), Some(4));
}

#[test]
fn without_a_workload_api_the_proxy_says_so_and_does_not_start() {
    let world = World::new();
    let path = world.write(
        "c.yaml",
        "apiVersion: config.finial.dev/v1\nkind: MeshProxyConfig\n",
    );
    let out = mesh_proxy(&["run", "--config", path.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(1));
    assert!(
        text(&out.stderr).contains("SPIFFE_ENDPOINT_SOCKET"),
        "{}",
        text(&out.stderr)
    );
}
