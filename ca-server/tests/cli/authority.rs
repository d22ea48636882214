//! `ca-server authority`: the turns by hand, in our spelling and in SPIRE's.

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
    let both = server.json(&["authority", "show"]);
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
