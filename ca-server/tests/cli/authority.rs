//! `ca-server authority`: the turns by hand, in our spelling and in SPIRE's.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_identity::test_util::Made;
use serde_json::{Value, json};

use super::server::{Server, code, program};

fn state(server: &Server, kind: &str) -> Value {
    server.json(&["authority", kind, "show"])[kind].clone()
}

fn id(authority: &Value) -> String {
    authority["authorityId"].as_str().unwrap().to_owned()
}

#[test]
fn an_authority_of_either_kind_is_prepared_activated_tainted_and_revoked() {
    let server = Server::start();
    for kind in ["x509", "jwt"] {
        let before = state(&server, kind);
        let first = id(&before["active"]);
        assert_eq!(
            (&before["prepared"], &before["old"]),
            (&Value::Null, &Value::Null)
        );
        let prepared = server.json(&["authority", kind, "prepare"])["prepared"].clone();
        let second = id(&prepared);
        assert_eq!(state(&server, kind)["prepared"], prepared);
        let turn = |verb, id: &str| server.json(&["authority", kind, verb, "--authority-id", id]);
        assert_eq!(turn("activate", &second), json!({ "activated": prepared }));
        let after = state(&server, kind);
        assert_eq!(after["active"], prepared);
        assert_eq!(after["old"], before["active"]);

        let (exit, why) = server.refused(&["authority", kind, "revoke", "--authority-id", &first]);
        assert_eq!(exit, 1);
        assert!(why.contains("FNL1302") && why.contains("FNL1039"), "{why}");
        assert_eq!(turn("taint", &first)["tainted"], before["active"]);
        assert_eq!(turn("revoke", &first)["revoked"], before["active"]);
        assert_eq!(state(&server, kind)["old"], Value::Null);
    }
    let none = json!({ "count": 0, "agents": [] });
    let table = server.text(&["authority", "show"]);
    assert!(
        !table.contains("waits") && !table.contains("Tainted"),
        "{table}"
    );
    let both = server.json(&["authority", "show"]);
    assert_eq!((&both["waitsFor"], &both["tainted"]), (&none, &json!([])));
    assert_eq!(both["x509"], state(&server, "x509"));
    assert_eq!(both["jwt"], state(&server, "jwt"));
}

#[test]
fn spires_verbs_for_its_authorities_do_the_same() {
    let server = Server::start();
    let table = server.text(&["localauthority", "x509", "show"]);
    let blocks: Vec<&str> = table.split("\n\n").collect();
    assert!(
        blocks[0].starts_with("Active X.509 authority:\nAuthority ID     : "),
        "{table}"
    );
    assert_eq!(
        blocks[1..],
        [
            "Prepared X.509 authority:\nnone",
            "Old X.509 authority:\nnone\n"
        ]
    );
    let first = id(&state(&server, "jwt")["active"]);
    let prepared = server.text(&["localauthority", "jwt", "prepare"]);
    assert!(
        prepared.starts_with("JWT authority prepared:\n"),
        "{prepared}"
    );
    let second = id(&state(&server, "jwt")["prepared"]);
    server.text(&["localauthority", "jwt", "activate", "-authorityID", &second]);
    server.text(&["localauthority", "jwt", "taint", "-authorityID", &first]);
    server.text(&["localauthority", "jwt", "revoke", "-authorityID", &first]);
    assert_eq!(id(&state(&server, "jwt")["active"]), second);
    assert_eq!(
        code(
            &program()
                .args(["authority", "x509", "taint"])
                .output()
                .unwrap()
        ),
        2,
        "an id is asked for before anybody is"
    );
}

fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}

/// Puts an upstream authority into files.
fn put(folder: &Path, root: &Made) {
    std::fs::write(folder.join("up.pem"), pem("CERTIFICATE", &root.der)).unwrap();
    let key = folder.join("up.key");
    std::fs::write(&key, pem("PRIVATE KEY", &root.key_pkcs8())).unwrap();
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn an_upstream_authority_is_shown_replaced_tainted_and_revoked() {
    let (first, second) = (Made::root("dev.test"), Made::root("dev.test"));
    let ids = [&first, &second].map(|root| root.authority().subject_key_id().to_owned());
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), &first);
    let dir = folder.path().display().to_string();
    let more = format!(
        "upstreamAuthority: {{ disk: {{ certificate: {dir}/up.pem, key: {dir}/up.key }} }}\n"
    );
    let server = Server::start_with(folder, &more);
    let shown = state(&server, "x509")["active"].clone();
    assert_eq!(shown["upstreamAuthorityId"], ids[0]);
    let text = server.text(&["authority", "x509", "show"]);
    assert!(
        text.contains(&format!("Upstream ID      : {}", ids[0])),
        "{text}"
    );
    // The command verifies what it was given with the bundle of the server.
    let minted = server.json(&[
        "svid",
        "mint",
        "x509",
        "--spiffe-id",
        "spiffe://dev.test/web",
    ]);
    let chain = minted["x509Svid"].as_str().unwrap();
    assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 2);

    let taint = |id: &str| server.ask(&["authority", "upstream", "taint", "--subject-key-id", id]);
    let why = String::from_utf8(taint(&ids[0]).stderr).unwrap();
    assert!(
        why.contains("FNL1038"),
        "what it signs with is not tainted: {why}"
    );
    let local = ["authority", "x509", "taint", "--authority-id", &id(&shown)];
    let (exit, why) = server.refused(&local);
    assert!(exit == 1 && why.contains("FNL1068"), "{why}");

    put(server.path(), &second);
    let prepared = server.json(&["authority", "x509", "prepare"])["prepared"].clone();
    assert_eq!(prepared["upstreamAuthorityId"], ids[1]);
    let prepared = id(&prepared);
    server.text(&["authority", "x509", "activate", "--authority-id", &prepared]);
    assert_eq!(code(&taint(&ids[0])), 0);
    let revoke = ["upstreamauthority", "revoke", "-subjectKeyID", &ids[0]];
    assert_eq!(
        server.text(&revoke),
        format!("upstream authority revoked: {}\n", ids[0])
    );
    assert_eq!(server.text(&["bundle", "show"]).matches("BEGIN").count(), 1);
}

#[test]
fn what_a_tainted_authority_signed_is_counted_until_a_later_one_takes_its_place() {
    let server = Server::start();
    let mint = [
        "svid",
        "mint",
        "x509",
        "--spiffe-id",
        "spiffe://dev.test/web",
    ];
    server.text(&mint);
    let first = id(&state(&server, "x509")["active"]);
    let prepared = server.json(&["authority", "x509", "prepare"])["prepared"].clone();
    server.text(&[
        "authority",
        "x509",
        "activate",
        "--authority-id",
        &id(&prepared),
    ]);
    server.text(&["authority", "x509", "taint", "--authority-id", &first]);
    let left = || server.json(&["authority", "show"])["tainted"].clone();
    let of = |svids: u64| json!([{ "authorityId": first, "svids": svids, "heldBy": { "count": 0, "agents": [] } }]);
    let table = server.text(&["authority", "show"]);
    assert!(table.contains("Tainted X.509 authority:"), "{table}");
    // The server replaces its own at once; nobody replaces what an administrator asked for.
    let goes = |wanted: &Value| {
        (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            left() == *wanted
        })
    };
    assert!(goes(&of(1)), "{}", left());
    server.text(&mint);
    assert!(goes(&of(0)), "{}", left());
}
