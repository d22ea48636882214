//! `ca-server entry`: every verb and every flag, in our spelling and in SPIRE's.

use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use super::server::{Server, code, program};

const AGENT: &str = "spiffe://dev.test/spire/agent/join_token/x";

/// Creates one in SPIRE's spelling, with as little as it takes.
fn create(server: &Server, id: &str, more: &[&str]) -> Value {
    let name = format!("spiffe://dev.test/{id}");
    let base = [
        "entry",
        "create",
        "-entryID",
        id,
        "-spiffeID",
        &name,
        "-parentID",
        AGENT,
        "-selector",
        "unix:uid:1",
    ];
    server.json(&[&base[..], more].concat())
}

fn ids(list: &Value) -> Vec<&str> {
    let entries = list["entries"].as_array().unwrap();
    entries
        .iter()
        .map(|entry| entry["id"].as_str().unwrap())
        .collect()
}

#[test]
fn an_entry_has_every_field_that_its_flags_name() {
    let server = Server::start();
    let entry = server.json(&[
        "entry",
        "create",
        "--entry-id",
        "web",
        "--spiffe-id",
        "spiffe://dev.test/web",
        "--parent-id",
        AGENT,
        "--selector",
        "unix:uid:1000",
        "--selector",
        "unix:path:/bin/web",
        "--x509-svid-ttl",
        "60",
        "--jwt-svid-ttl",
        "30",
        "--dns",
        "web.test",
        "--hint",
        "outside",
        "--admin",
        "--downstream",
        "--entry-expiry",
        "4102444800",
        "--disable-x509-svid-prefetch",
        "--jwt-svid-include-jti",
    ]);
    for (field, value) in [
        ("id", json!("web")),
        ("spiffeId", json!("spiffe://dev.test/web")),
        ("parentId", json!(AGENT)),
        ("selectors", json!(["unix:path:/bin/web", "unix:uid:1000"])),
        ("x509SvidTtl", json!(60)),
        ("jwtSvidTtl", json!(30)),
        ("dnsNames", json!(["web.test"])),
        ("hint", json!("outside")),
        ("admin", json!(true)),
        ("downstream", json!(true)),
        ("storeSvid", json!(false)),
        ("expiresAt", json!("2100-01-01T00:00:00Z")),
        ("disableX509SvidPrefetch", json!(true)),
        ("jwtSvidIncludeJti", json!(true)),
    ] {
        assert_eq!(entry[field], value, "{field}");
    }
    let shown = server.json(&["entry", "show", "--entry-id", "web"]);
    assert_eq!(shown["entries"], json!([entry]));
    let table = server.text(&["entry", "show"]);
    for row in [
        "Found 1 entry\n",
        "Entry ID         : web\n",
        "X509-SVID TTL    : 60\n",
        "JWT-SVID TTL     : 30\n",
        "Selector         : unix:uid:1000\n",
        "Admin            : true\n",
        "No prefetch      : true\n",
    ] {
        assert!(table.contains(row), "no {row:?} in {table}");
    }

    let spires = create(
        &server,
        "pay",
        &[
            "-x509SVIDTTL",
            "90",
            "-jwtSVIDTTL",
            "45",
            "-storeSVID",
            "-entryExpiry",
            "4102444800",
            "-jwtSVIDIncludeJTI",
        ],
    );
    assert_eq!(spires["x509SvidTtl"], 90);
    assert_eq!(spires["jwtSvidTtl"], 45);
    assert_eq!(spires["storeSvid"], true);
    assert_eq!(spires["jwtSvidIncludeJti"], true);
    let stored = create(&server, "kept", &["--store-svid", "--ttl", "5"]);
    assert_eq!(stored["storeSvid"], true);
    assert_eq!(stored["x509SvidTtl"], 5);
    let late = create(
        &server,
        "late",
        &["-disableX509SVIDPrefetch=true", "-admin=false"],
    );
    assert_eq!(late["disableX509SvidPrefetch"], true);
    assert_eq!(late["admin"], false);

    let node = server.json(&[
        "entry",
        "create",
        "--node",
        "--spiffe-id",
        "spiffe://dev.test/nodes",
        "--selector",
        "k8s_psat:cluster:rig",
    ]);
    assert_eq!(node["parentId"], "spiffe://dev.test/spire/server");
}

#[test]
fn a_command_line_that_cannot_be_right_is_exit_2_and_one_that_the_server_refuses_is_exit_1() {
    let server = Server::start();
    create(&server, "web", &[]);
    let usage: &[&[&str]] = &[
        &["entry", "create"],
        &[
            "entry",
            "create",
            "--spiffe-id",
            "spiffe://dev.test/a",
            "--selector",
            "unix:uid:1",
        ],
        &[
            "entry",
            "create",
            "--spiffe-id",
            "no id",
            "--parent-id",
            AGENT,
            "--selector",
            "unix:uid:1",
        ],
        &[
            "entry",
            "create",
            "--node",
            "--parent-id",
            AGENT,
            "--spiffe-id",
            "spiffe://dev.test/a",
            "--selector",
            "a:b",
        ],
        &[
            "entry",
            "create",
            "--data",
            "x.json",
            "--spiffe-id",
            "spiffe://dev.test/a",
        ],
        &["entry", "update", "--entry-id", "web"],
        &["entry", "delete"],
        &[
            "entry",
            "show",
            "--entry-id",
            "web",
            "--spiffe-id",
            "spiffe://dev.test/a",
        ],
        &["entry", "show", "--match-selectors-on", "some"],
    ];
    for arguments in usage {
        assert_eq!(code(&server.ask(arguments)), 2, "{arguments:?}");
    }
    let again = [
        "entry",
        "create",
        "--spiffe-id",
        "spiffe://dev.test/web",
        "--parent-id",
        AGENT,
        "--selector",
        "unix:uid:1",
    ];
    let (exit, error) = server.refused(&again);
    assert_eq!(exit, 1);
    assert!(
        error.starts_with("error[FNL1302]: similar entry already exists\n"),
        "{error}"
    );
    let (exit, error) = server.refused(&[&again[..], &["-o", "json"]].concat());
    assert_eq!(exit, 1);
    let error: Value = serde_json::from_str(&error).unwrap();
    assert_eq!(error["code"], "FNL1302");
    let mut foreign = again;
    foreign[3] = "spiffe://far.test/web";
    let (exit, error) = server.refused(&foreign);
    assert!(
        exit == 1 && error.contains("spiffe://far.test/web"),
        "{error}"
    );
    assert_eq!(
        server.refused(&["entry", "show", "--entry-id", "nobody"]).0,
        1
    );
    assert_eq!(server.json(&["entry", "count"])["count"], 1);
}

#[test]
fn entries_are_found_by_every_filter_and_counted_by_the_same() {
    let server = Server::start();
    create(&server, "a", &["-hint", "first"]);
    create(&server, "b", &["-selector", "unix:gid:2", "-downstream"]);
    let finds = |filter: &[&str], expected: &[&str]| {
        let list = server.json(&[&["entry", "list"], filter].concat());
        assert_eq!(ids(&list), expected, "{filter:?}");
        let count = server.json(&[&["entry", "count"], filter].concat());
        assert_eq!(count["count"], expected.len(), "{filter:?}");
    };
    finds(&[], &["a", "b"]);
    finds(&["--spiffe-id", "spiffe://dev.test/a"], &["a"]);
    finds(&["-spiffeID", "spiffe://dev.test/no"], &[]);
    finds(&["--parent-id", AGENT], &["a", "b"]);
    finds(&["-parentID", "spiffe://dev.test/other"], &[]);
    finds(&["--hint", "first"], &["a"]);
    finds(&["--downstream"], &["b"]);
    finds(&["--selector", "unix:gid:2"], &["b"]);
    let one = ["--selector", "unix:uid:1"];
    finds(
        &[&one[..], &["--match-selectors-on", "exact"]].concat(),
        &["a"],
    );
    finds(
        &[&one[..], &["-matchSelectorsOn", "superset"]].concat(),
        &["a", "b"],
    );
    finds(
        &[&one[..], &["-matchSelectorsOn", "subset"]].concat(),
        &["a"],
    );
    finds(
        &[&one[..], &["-matchSelectorsOn", "any"]].concat(),
        &["a", "b"],
    );
    finds(&["--federates-with", "far.test"], &[]);
    finds(
        &[
            "-federatesWith",
            "spiffe://far.test",
            "-matchFederatesWithOn",
            "any",
        ],
        &[],
    );
    finds(
        &[
            "-federatesWith",
            "far.test",
            "--match-federates-with-on",
            "exact",
        ],
        &[],
    );
    assert_eq!(
        server.text(&["entry", "count", "--hint", "first"]),
        "1 entry\n"
    );
}

#[test]
fn an_update_replaces_the_entry_but_keeps_the_two_switches() {
    let server = Server::start();
    let old = create(
        &server,
        "web",
        &["-admin", "-dns", "web.test", "-jwtSVIDIncludeJTI"],
    );
    let update = [
        "entry",
        "update",
        "-entryID",
        "web",
        "-spiffeID",
        "spiffe://dev.test/shop",
        "-parentID",
        AGENT,
        "-selector",
        "unix:uid:2",
        "-hint",
        "new",
    ];
    let new = server.json(&update);
    assert_eq!(new["spiffeId"], "spiffe://dev.test/shop");
    assert_eq!(new["selectors"], json!(["unix:uid:2"]));
    assert_eq!(new["hint"], "new");
    assert_eq!(new["admin"], false, "what is not named is reset");
    assert_eq!(new["dnsNames"], json!([]));
    assert_eq!(new["jwtSvidIncludeJti"], true, "as in SPIRE");
    assert_eq!(new["createdAt"], old["createdAt"]);
    assert!(new["revision"].as_u64() > old["revision"].as_u64());

    let ours = server.json(&[
        "entry",
        "update",
        "--entry-id",
        "web",
        "--spiffe-id",
        "spiffe://dev.test/shop",
        "--parent-id",
        AGENT,
        "--selector",
        "unix:uid:3",
        "--disable-x509-svid-prefetch",
    ]);
    assert_eq!(ours["disableX509SvidPrefetch"], true);
    let mut nobody = update;
    nobody[3] = "nobody";
    assert_eq!(server.refused(&nobody).0, 1);
}

#[test]
fn a_file_holds_many_entries_and_each_has_its_own_fate() {
    let server = Server::start();
    let entry = |id: &str, uid: &str| {
        json!({
            "entry_id": id,
            "spiffe_id": format!("spiffe://dev.test/{id}"),
            "parent_id": AGENT,
            "selectors": [{ "type": "unix", "value": uid }],
            "x509_svid_ttl": 60,
            "admin": true,
            "additional_attributes": { "jwt_svid_include_jti": true },
        })
    };
    let path = server.path().join("entries.json");
    let file = path.display().to_string();
    let write = |value: Value| std::fs::write(&path, value.to_string()).unwrap();

    write(json!({ "entries": [entry("a", "uid:1"), entry("b", "uid:2")] }));
    let made = server.json(&["entry", "create", "--data", &file]);
    assert_eq!(ids(&made), ["a", "b"]);
    assert_eq!(made["entries"][1]["x509SvidTtl"], 60);
    assert_eq!(made["entries"][1]["jwtSvidIncludeJti"], true);

    // One of the two is there already: the other one is made, and the command says which was not.
    write(json!({ "entries": [entry("a", "uid:1"), entry("c", "uid:3")] }));
    let output = server.ask(&["entry", "create", "--data", &file, "-o", "json"]);
    assert_eq!(code(&output), 1);
    let made: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(ids(&made), ["c"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("FNL1306")
            && error.contains("spiffe://dev.test/a: similar entry already exists"),
        "{error}"
    );

    write(json!({ "entries": [entry("a", "uid:7")] }));
    let updated = server.json(&["entry", "update", "-data", &file]);
    assert_eq!(updated["entries"][0]["selectors"], json!(["unix:uid:7"]));

    for (text, words) in [
        ("{", "FNL1305"),
        (r#"{"entries":[{"spiffe_id":"x"}]}"#, "FNL1305"),
        (r#"{"entries":[],"extra":1}"#, "unknown field `extra`"),
    ] {
        std::fs::write(&path, text).unwrap();
        let (exit, error) = server.refused(&["entry", "create", "--data", &file]);
        assert!(
            exit == 1 && error.contains(words) && error.contains("entries.json"),
            "{error}"
        );
    }
    let mut bad = entry("d", "uid:9");
    bad["federates_with"] = json!(["no domain"]);
    write(json!({ "entries": [bad] }));
    let (_, error) = server.refused(&["entry", "create", "--data", &file]);
    assert!(error.contains("entries[0].federates_with"), "{error}");
    let (exit, error) = server.refused(&["entry", "create", "--data", "/nowhere.json"]);
    assert!(exit == 1 && error.contains("FNL1304"), "{error}");

    let ids_file = server.path().join("ids.json");
    std::fs::write(
        &ids_file,
        json!({ "ids": ["a", "b", "nobody"] }).to_string(),
    )
    .unwrap();
    let output = server.ask(&["entry", "delete", "-file", &ids_file.display().to_string()]);
    assert_eq!(code(&output), 1);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.ends_with("Deleted 2 entries\n"), "{text}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("nobody: entry not found"), "{error}");
    assert_eq!(ids(&server.json(&["entry", "show"])), ["c"]);
}

#[test]
fn standard_input_is_a_file_too() {
    let server = Server::start();
    create(&server, "web", &[]);
    let mut child = program()
        .args(["entry", "delete", "--file", "-", "--admin-socket"])
        .arg(server.path().join("admin.sock"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(br#"{"ids":["web"]}"#).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 0);
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "Deleted entry with ID: web\n"
    );
    assert_eq!(
        server.refused(&["entry", "delete", "--entry-id", "web"]).0,
        1
    );
    assert_eq!(server.json(&["entry", "count"])["count"], 0);
}
