//! The audit log of a running server, read without it: searched, verified, and found out when it was changed.

use std::path::Path;

use serde_json::Value;

use super::server::{Server, code, program};

fn offline(arguments: &[&str]) -> (i32, String, String) {
    let output = program().args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (code(&output), text(&output.stdout), text(&output.stderr))
}

fn verified(arguments: &[&str]) -> Value {
    let (code, out, err) = offline(&[&["audit", "verify", "-o", "json"], arguments].concat());
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).unwrap()
}

fn changed(log: &Path, change: impl FnOnce(&mut Vec<String>)) -> String {
    let mut lines: Vec<String> = std::fs::read_to_string(log)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    change(&mut lines);
    let bad = log.with_file_name("changed.jsonl");
    std::fs::write(&bad, lines.join("\n") + "\n").unwrap();
    bad.to_str().unwrap().to_owned()
}

#[test]
fn the_audit_log_is_searched_and_verified_without_the_server() {
    let server = Server::start();
    for name in ["web", "api"] {
        let id = format!("spiffe://dev.test/{name}");
        let entry = [
            "--parent-id",
            "spiffe://dev.test/node",
            "--selector",
            "unix:uid:1",
        ];
        server.text(&[&["entry", "create", "--spiffe-id", &id], &entry[..]].concat());
    }
    assert_ne!(
        code(&server.ask(&["entry", "show", "--entry-id", "nowhere"])),
        0
    );
    let directory = server.stop();
    let config = directory.path().join("ca.yaml");
    let config = ["--config", config.to_str().unwrap()];

    let whole = verified(&config);
    assert!(whole["records"].as_u64().unwrap() > 4);
    let head = whole["head"].as_str().unwrap();
    verified(&[&config[..], &["--contains", head]].concat());

    let search = |arguments: &[&str]| {
        let (code, out, err) =
            offline(&[&["audit", "search", "-o", "json"], &config[..], arguments].concat());
        assert_eq!(code, 0, "{err}");
        let records = out.lines().map(|line| serde_json::from_str(line).unwrap());
        records.collect::<Vec<Value>>()
    };
    assert_eq!(search(&["--action", "entry.create"]).len(), 2);
    assert!(search(&["--action", "entry"]).len() > 2);
    assert!(search(&["--action", "ent"]).is_empty(), "no half words");
    let web = search(&["--action", "entry.create", "--object", "dev.test/web"]);
    assert_eq!(web.len(), 1);
    assert!(!search(&["--outcome", "denied"]).is_empty());
    assert!(search(&["--actor", "uid:"]).len() > 2);
    assert_eq!(search(&["--last", "1"])[0]["action"], "log.stop");
    let (_, lines, _) = offline(
        &[
            &["audit", "search", "--action", "entry.create"],
            &config[..],
        ]
        .concat(),
    );
    assert_eq!(lines.lines().count(), 2, "{lines}");

    let log = directory.path().join("audit/audit.jsonl");
    for change in [
        |lines: &mut Vec<String>| lines[2] = lines[2].replace("dev.test", "dev.tesT"),
        |lines: &mut Vec<String>| drop(lines.remove(2)),
        |lines: &mut Vec<String>| lines.swap(2, 3),
    ] {
        let bad = changed(&log, change);
        let (code, _, err) = offline(&["audit", "verify", &bad]);
        assert_eq!(code, 3, "{err}");
        assert!(err.contains("FNL0207") && err.contains("record 3"), "{err}");
    }
    // A cut-off end fits the chain; what somebody remembers of it does not.
    let cut = changed(&log, |lines| drop(lines.pop()));
    assert_eq!(offline(&["audit", "verify", &cut]).0, 0);
    assert_eq!(offline(&["audit", "verify", &cut, "--contains", head]).0, 3);
    let later = changed(&log, |lines| drop(lines.remove(0)));
    assert_eq!(offline(&["audit", "verify", &later]).0, 3);
    assert_eq!(offline(&["audit", "verify", &later, "--anywhere"]).0, 0);
    assert_eq!(offline(&["audit", "verify", "/nowhere/audit.jsonl"]).0, 1);
    assert_eq!(offline(&["audit", "verify", &cut, "--contains", "7"]).0, 2);
}
