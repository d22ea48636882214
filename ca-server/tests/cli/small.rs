//! Health, tokens and the own bundle.

use serde_json::Value;

use super::server::{Server, code};

#[test]
fn health_tokens_and_the_bundle_of_a_running_server() {
    let server = Server::start();
    assert_eq!(server.text(&["healthcheck"]), "ready\n");
    assert_eq!(
        server.text(&["healthcheck", "-shallow", "-verbose"]),
        "ready\n"
    );
    assert_eq!(server.text(&["healthcheck", "-q"]), "");
    assert_eq!(server.json(&["healthcheck"])["ready"], true);

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
    assert!(
        server
            .text(&[
                "token",
                "generate",
                "-spiffeID",
                "spiffe://dev.test/n",
                "-ttl",
                "9"
            ])
            .starts_with("Token: ")
    );
    assert_eq!(code(&server.ask(&["token", "generate", "--ttl", "0"])), 1);
    let reserved = [
        "token",
        "generate",
        "--spiffe-id",
        "spiffe://dev.test/spire/server",
    ];
    assert_eq!(code(&server.ask(&reserved)), 1);
    assert_eq!(
        code(&server.ask(&["token", "generate", "--spiffe-id", "x"])),
        2
    );

    let pem = server.text(&["bundle", "show"]);
    assert!(pem.starts_with("-----BEGIN CERTIFICATE-----"), "{pem}");
    let bundle: Value =
        serde_json::from_str(&server.text(&["bundle", "show", "--format", "spiffe"])).unwrap();
    assert_eq!(bundle["keys"][0]["use"], "x509-svid");
}

#[test]
fn spires_spelling_is_understood_and_hinted_at_once_on_standard_error() {
    let server = Server::start();
    let socket = server.path().join("admin.sock").display().to_string();
    let spires = ["entry", "count", "-socketPath", &socket, "-output", "json"];
    let output = super::server::program().args(spires).output().unwrap();
    assert_eq!(code(&output), 0);
    let count: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(count["count"], 0);
    let hint = String::from_utf8(output.stderr).unwrap();
    assert_eq!(hint.lines().count(), 1, "{hint}");
    assert!(hint.starts_with("hint: "), "{hint}");

    let pretty = [
        "entry",
        "count",
        "-socketPath",
        &socket,
        "-output",
        "pretty",
        "-q",
    ];
    let output = super::server::program().args(pretty).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "0 entries\n");
    assert!(output.stderr.is_empty(), "quiet is quiet");

    let ours = server.ask(&["entry", "count"]);
    assert!(ours.stderr.is_empty(), "who speaks our way needs no hint");
}
