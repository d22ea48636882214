//! The real program: each verb against a running server, its output and its exit code.

#![allow(
    clippy::unwrap_used,
    reason = "clippy takes the helpers of an integration test for product code"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

struct Server {
    child: Child,
    directory: tempfile::TempDir,
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ca-server"))
}

fn config(directory: &Path) -> PathBuf {
    let dir = directory.display();
    let text = format!(
        "apiVersion: config.finial.dev/v1\nkind: CaServerConfig\ntrustDomain: dev.test\n\
         listen: {{ address: 127.0.0.1:0, adminSocket: {dir}/admin.sock }}\n\
         store: {{ sled: {{ path: {dir}/store }} }}\nkeys: {{ sealingKey: {dir}/sealing.key }}\n\
         audit: {{ dir: {dir}/audit }}\ntelemetry: {{ metrics: {{ address: 127.0.0.1:0 }} }}\n"
    );
    let path = directory.join("ca.yaml");
    std::fs::write(&path, text).unwrap();
    path
}

impl Server {
    fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    fn start_in(directory: tempfile::TempDir) -> Self {
        let config = config(directory.path());
        let addresses = directory.path().join("addresses.json");
        std::fs::remove_file(&addresses).ok();
        let child = program()
            .args(["run", "--config"])
            .arg(config)
            .arg("--addresses-file")
            .arg(&addresses)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // From here on its drop ends the process, whatever happens.
        let server = Self { child, directory };
        for _ in 0..600 {
            if addresses.exists() {
                return server;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the server did not bind its doors");
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        program()
            .args(arguments)
            .arg("--admin-socket")
            .arg(self.directory.path().join("admin.sock"))
            .output()
            .unwrap()
    }

    fn text(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.text(&[arguments, &["-o", "json"]].concat())).unwrap()
    }

    fn stop(mut self) -> tempfile::TempDir {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(
            self.child.wait().unwrap().success(),
            "a clean stop is exit 0"
        );
        let taken = tempfile::tempdir().unwrap();
        std::mem::replace(&mut self.directory, taken)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

#[test]
fn the_daemons_own_verbs_need_no_server() {
    let directory = tempfile::tempdir().unwrap();
    let good = config(directory.path());
    let validate = |path: &Path| {
        program()
            .arg("validate")
            .arg("--config")
            .arg(path)
            .output()
            .unwrap()
    };
    assert_eq!(code(&validate(&good)), 0);

    let bad = directory.path().join("bad.yaml");
    std::fs::write(&bad, "apiVersion: config.finial.dev/v1\nkind: CaServerConfig\ntrust_domain: x\nlifetimes: { x509Svid: 48h }\n").unwrap();
    let refused = validate(&bad);
    let text = String::from_utf8(refused.stderr.clone()).unwrap();
    assert_eq!(code(&refused), 3);
    assert!(
        text.contains("FNL0102")
            && text.contains("^^^")
            && text.contains("did you mean `trustDomain`"),
        "{text}"
    );

    let defaults = program()
        .args(["config", "print-defaults"])
        .output()
        .unwrap()
        .stdout;
    let printed = directory.path().join("defaults.yaml");
    std::fs::write(&printed, &defaults).unwrap();
    assert_eq!(code(&validate(&printed)), 0);
    let shown = program()
        .args(["config", "show", "--config"])
        .arg(&printed)
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8(shown.stdout).unwrap(),
        String::from_utf8(program().args(["config", "show"]).output().unwrap().stdout).unwrap()
    );
    let schema: Value = serde_json::from_slice(
        &program()
            .args(["config", "schema"])
            .output()
            .unwrap()
            .stdout,
    )
    .unwrap();
    assert!(schema["properties"]["trustDomain"].is_object());
    assert_eq!(code(&program().arg("nonsense").output().unwrap()), 2);
}

#[test]
fn a_server_that_is_not_there_is_exit_4() {
    let output = program()
        .args(["agent", "list", "--admin-socket", "/nowhere/admin.sock"])
        .output()
        .unwrap();
    assert_eq!(code(&output), 4);
    assert!(String::from_utf8_lossy(&output.stderr).contains("FNL1301"));
}

#[test]
fn the_verbs_of_an_administrator_against_a_running_server() {
    let server = Server::start();
    assert_eq!(server.text(&["healthcheck"]), "ready\n");

    let token = server.json(&[
        "token",
        "generate",
        "--spiffe-id",
        "spiffe://dev.test/node",
        "--ttl",
        "60",
    ]);
    assert_eq!(token["token"].as_str().unwrap().len(), 36);
    assert!(server.text(&["token", "generate"]).starts_with("Token: "));
    assert_eq!(code(&server.ask(&["token", "generate", "--ttl", "0"])), 1);
    assert_eq!(
        code(&server.ask(&[
            "token",
            "generate",
            "--spiffe-id",
            "spiffe://dev.test/spire/server"
        ])),
        1
    );

    let create = [
        "entry",
        "create",
        "--spiffe-id",
        "spiffe://dev.test/web",
        "--parent-id",
        "spiffe://dev.test/spire/agent/join_token/x",
        "--selector",
        "unix:uid:1000",
        "--selector",
        "unix:path:/bin/web",
        "--ttl",
        "60",
        "--dns",
        "web.test",
    ];
    let entry = server.json(&create);
    assert_eq!(
        entry["selectors"],
        serde_json::json!(["unix:path:/bin/web", "unix:uid:1000"])
    );
    let id = entry["id"].as_str().unwrap();
    let again = server.ask(&create);
    assert_eq!(code(&again), 1);
    assert!(String::from_utf8_lossy(&again.stderr).contains("similar entry already exists"));

    let all = server.json(&["entry", "show"]);
    assert_eq!(all["entries"][0], entry);
    assert_eq!(
        server.json(&["entry", "show", "--entry-id", id])["entries"][0],
        entry
    );
    assert_eq!(
        server.json(&["entry", "show", "--spiffe-id", "spiffe://dev.test/no"])["entries"],
        serde_json::json!([])
    );
    let table = server.text(&["entry", "show"]);
    assert!(
        table.starts_with("Found 1 entry\n") && table.contains("unix:uid:1000"),
        "{table}"
    );

    // The spelling of SPIRE's flags.
    let spire = server.text(&[
        "entry",
        "create",
        "--spiffeID",
        "spiffe://dev.test/pay",
        "--parentID",
        "spiffe://dev.test/web",
        "--selector",
        "unix:uid:1",
    ]);
    assert!(
        spire.contains("SPIFFE ID        : spiffe://dev.test/pay"),
        "{spire}"
    );

    server.text(&["entry", "delete", "--entry-id", id]);
    assert_eq!(code(&server.ask(&["entry", "delete", "--entry-id", id])), 1);

    assert!(
        server
            .text(&["bundle", "show"])
            .starts_with("-----BEGIN CERTIFICATE-----")
    );
    let bundle: Value =
        serde_json::from_str(&server.text(&["bundle", "show", "--format", "spiffe"])).unwrap();
    assert_eq!(bundle["keys"][0]["use"], "x509-svid");
    assert_eq!(
        server.json(&["agent", "list"])["agents"],
        serde_json::json!([])
    );
    assert_eq!(server.text(&["agent", "list"]), "Found 0 attested agents\n");
}

#[test]
fn what_was_acknowledged_is_there_after_a_restart_and_the_socket_is_gone_in_between() {
    let server = Server::start();
    let bundle = server.text(&["bundle", "show"]);
    server.text(&[
        "entry",
        "create",
        "--entry-id",
        "kept",
        "--spiffe-id",
        "spiffe://dev.test/web",
        "--parent-id",
        "spiffe://dev.test/spire/agent/join_token/x",
        "--selector",
        "unix:uid:1",
    ]);
    let directory = server.stop();
    assert!(!directory.path().join("admin.sock").exists());
    let records = std::fs::read_to_string(directory.path().join("audit/audit.jsonl")).unwrap();
    assert!(records.contains("entry.create") && records.contains("log.stop"));
    let server = Server::start_in(directory);
    assert_eq!(server.text(&["bundle", "show"]), bundle);
    assert_eq!(server.json(&["entry", "show"])["entries"][0]["id"], "kept");
}

#[test]
fn a_second_server_on_the_same_store_says_why_it_does_not_start() {
    let server = Server::start();
    let output = program()
        .args(["run", "--config"])
        .arg(server.directory.path().join("ca.yaml"))
        .output()
        .unwrap();
    assert_eq!(code(&output), 1);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("error[FNL0202]"), "{text}");
}
