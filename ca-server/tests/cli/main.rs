//! The real program: each verb against a running server, its output and its exit code.

#![allow(
    clippy::unwrap_used,
    reason = "clippy takes the helpers of an integration test for product code"
)]

mod audit;
mod authority;
mod backup;
mod entry;
mod federation;
mod log_level;
mod server;
mod small;
mod svid;

use std::path::Path;

use serde_json::Value;

use self::server::{Server, code, config, program};

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
        .arg(server.path().join("ca.yaml"))
        .output()
        .unwrap();
    assert_eq!(code(&output), 1);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("error[FNL0202]"), "{text}");
}
