//! The audit log of a running server, read without it: searched, verified, and found out when it was changed.

use std::io::{Read, Write};
use std::net::TcpStream;
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

/// A server that made entries and stopped; its directory and its log's.
fn stopped_log() -> (tempfile::TempDir, String) {
    let server = Server::start();
    server.has_entries();
    let directory = server.stop();
    let log = directory.path().join("audit").to_str().unwrap().to_owned();
    (directory, log)
}

fn kept(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn printed(arguments: &[&str]) -> String {
    let (code, out, err) = offline(arguments);
    assert_eq!(code, 0, "{arguments:?}: {err}");
    out
}

fn refused(arguments: &[&str], code: &str) {
    let (exit, out, err) = offline(arguments);
    assert_eq!((exit, out.as_str()), (3, ""), "{arguments:?}: {err}");
    assert!(err.contains(code), "{arguments:?}: {err}");
}

#[test]
fn one_record_is_proved_to_somebody_who_has_the_public_key_only() {
    let (directory, log) = stopped_log();
    let home = directory.path();
    let (found, dir) = (
        printed(&[
            "audit",
            "search",
            "-o",
            "json",
            "--dir",
            &log,
            "--action",
            "entry.create",
            "--last",
            "1",
        ]),
        ["--dir", log.as_str()],
    );
    let record: Value = serde_json::from_str(&found).unwrap();
    let id = record["id"].as_str().unwrap();
    let proof = printed(&[&["audit", "prove", id], &dir[..]].concat());
    assert!(proof.starts_with("c2sp.org/tlog-proof@v1\n"), "{proof}");
    let number = record["seq"].to_string();
    assert_eq!(
        printed(&[&["audit", "prove", &number], &dir[..]].concat()),
        proof
    );
    let config = home.join("ca.yaml");
    assert_eq!(
        printed(&["audit", "prove", id, "--config", config.to_str().unwrap()]),
        proof
    );

    let outside = tempfile::tempdir().unwrap();
    let key = std::fs::read_to_string(home.join("audit/checkpoint.pub")).unwrap();
    let key = kept(outside.path(), "key", &key);
    let file = kept(outside.path(), "proof", &proof);
    let verify = ["audit", "verify", "--proof", &file, "--key", &key];
    assert!(printed(&verify).contains("spiffe://dev.test/api"));
    let told: Value =
        serde_json::from_str(&printed(&[&verify[..], &["-o", "json"]].concat())).unwrap();
    assert_eq!(
        (&told["record"], &told["number"]),
        (&record, &record["seq"])
    );

    let forged = kept(
        outside.path(),
        "forged",
        &proof.replacen("index ", "index 1", 1),
    );
    refused(
        &["audit", "verify", "--proof", &forged, "--key", &key],
        "FNL0214",
    );
    assert_eq!(
        offline(&["audit", "verify", "--proof", &file]).0,
        2,
        "a proof is nothing without a key"
    );
    let bad = kept(outside.path(), "bad", "no key");
    assert_eq!(
        offline(&["audit", "verify", "--proof", &file, "--key", &bad]).0,
        1
    );
    refused(
        &[&["audit", "prove", "01ARZ3NDEKTSV4RRFFQ69G5FAV"], &dir[..]].concat(),
        "FNL0217",
    );
    assert_eq!(offline(&[&["audit", "prove"], &dir[..]].concat()).0, 2);
}

#[test]
fn a_checkpoint_that_was_kept_shows_whether_the_log_was_only_continued() {
    let (directory, log) = stopped_log();
    let outside = tempfile::tempdir().unwrap();
    let dir = ["--dir", log.as_str()];
    let first = printed(&[&["audit", "checkpoint", "--size", "1"], &dir[..]].concat());
    let newest = printed(&[&["audit", "checkpoint"], &dir[..]].concat());
    let json: Value = serde_json::from_str(&printed(
        &[&["audit", "checkpoint", "-o", "json"], &dir[..]].concat(),
    ))
    .unwrap();
    assert_eq!(json["note"], newest.as_str());
    assert!(newest.starts_with("dev.test/ca-server/audit\n"), "{newest}");
    refused(
        &[&["audit", "checkpoint", "--size", "2"], &dir[..]].concat(),
        "FNL0218",
    );

    let first = kept(outside.path(), "first", &first);
    let newest = kept(outside.path(), "newest", &newest);
    let proof = printed(&[&["audit", "prove", "--since", &first], &dir[..]].concat());
    assert!(proof.starts_with("old 1\n"), "{proof}");
    let proof = kept(outside.path(), "proof", &proof);
    let key = directory.path().join("audit/checkpoint.pub");
    let key = key.to_str().unwrap();
    let verify = ["audit", "verify", "--proof", &proof, "--key", key];
    assert!(
        printed(&[&verify[..], &["--checkpoint", &first]].concat()).contains("continues that of 1")
    );
    refused(&verify, "FNL0214");
    printed(
        &[
            &[
                "audit",
                "verify",
                "--checkpoint",
                &first,
                "--checkpoint",
                &newest,
            ],
            &dir[..],
        ]
        .concat(),
    );

    // The end is cut off, and the list of checkpoints with it: only what was kept shows it.
    let path = directory.path().join("audit/audit.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let whole: Vec<&str> = text.lines().collect();
    std::fs::write(&path, format!("{}\n", whole[0])).unwrap();
    let list = directory.path().join("audit/audit.checkpoints");
    let notes = std::fs::read_to_string(&list).unwrap();
    refused(&[&["audit", "verify"], &dir[..]].concat(), "FNL0208");
    let over_one = std::fs::read_to_string(&first).unwrap();
    let end = notes.find(&over_one).unwrap() + over_one.len();
    std::fs::write(&list, &notes[..end]).unwrap();
    printed(&[&["audit", "verify"], &dir[..]].concat());
    refused(
        &[&["audit", "verify", "--closed"], &dir[..]].concat(),
        "FNL0208",
    );
    refused(
        &[&["audit", "verify", "--checkpoint", &newest], &dir[..]].concat(),
        "FNL0208",
    );
}

#[test]
fn a_record_changed_together_with_the_whole_chain_is_found_by_the_checkpoints() {
    let (directory, log) = stopped_log();
    let dir = ["--dir", log.as_str()];
    let told = verified(&[&dir[..], &["--closed"]].concat());
    assert!(told["checkpoints"].as_u64().unwrap() > 1);
    assert_eq!(
        (&told["unsigned"], &told["closed"]),
        (&0.into(), &true.into())
    );
    let key = directory.path().join("audit/checkpoint.pub");
    verified(&[&dir[..], &["--key", key.to_str().unwrap()]].concat());
    assert!(printed(&[&["audit", "verify"], &dir[..]].concat()).contains("lies beside the log"));

    let path = directory.path().join("audit/audit.jsonl");
    let text = std::fs::read_to_string(&path)
        .unwrap()
        .replace("dev.test/web", "dev.test/WEB");
    let mut prev = "0".repeat(64);
    let mut rewritten = String::new();
    for line in text.lines() {
        let at = line.find("\"prev\":\"").unwrap() + 8;
        let line = format!("{}{prev}{}\n", &line[..at], &line[at + 64..]);
        let hash = ring::digest::digest(&ring::digest::SHA256, line.trim_end().as_bytes());
        prev = hash
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        rewritten += &line;
    }
    std::fs::write(&path, rewritten).unwrap();
    assert_eq!(
        offline(&["audit", "verify", path.to_str().unwrap()]).0,
        0,
        "the chain fits"
    );
    refused(&[&["audit", "verify"], &dir[..]].concat(), "FNL0208");
    let (code, _, err) = offline(&[
        "run",
        "--config",
        directory.path().join("ca.yaml").to_str().unwrap(),
    ]);
    assert!(
        code == 1 && err.contains("FNL0208"),
        "the server does not sign it: {err}"
    );
}

#[test]
fn a_period_is_exported_and_verified_where_there_is_no_log() {
    let (directory, log) = stopped_log();
    let dir = ["--dir", log.as_str()];
    let all = printed(&[&["audit", "export"], &dir[..]].concat());
    assert_eq!(
        all,
        std::fs::read_to_string(directory.path().join("audit/audit.jsonl")).unwrap()
    );
    let table = printed(&[&["audit", "export", "--format", "csv"], &dir[..]].concat());
    assert!(table.starts_with("time,seq,id,action,"), "{table}");
    assert_eq!(table.lines().count(), all.lines().count() + 1);
    let first = table.lines().nth(1).unwrap();
    let second: Value = serde_json::from_str(all.lines().nth(1).unwrap()).unwrap();
    let chained = second["prev"].as_str().unwrap();
    assert!(
        first.ends_with(chained),
        "the hash is that of the chain: {first}"
    );
    let times: Vec<String> = all
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["time"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let period = [
        "--from",
        times[1].as_str(),
        "--until",
        times[times.len() - 1].as_str(),
    ];
    let part = printed(&[&["audit", "export"], &dir[..], &period].concat());
    assert_eq!(part.lines().next(), all.lines().nth(1));
    assert!(!part.contains("log.stop"));

    let outside = tempfile::tempdir().unwrap();
    let to = outside.path().join("evidence");
    let to = to.to_str().unwrap();
    let export = [&["audit", "export", "--to", to], &dir[..], &period].concat();
    let told: Value =
        serde_json::from_str(&printed(&[&export[..], &["-o", "json"]].concat())).unwrap();
    assert_eq!(
        (&told["first"], &told["signed"]),
        (&2.into(), &told["last"])
    );
    assert_eq!(offline(&export).0, 1, "nothing is written over");
    let key = directory.path().join("audit/checkpoint.pub");
    let verify = ["--dir", to, "--key", key.to_str().unwrap()];
    assert_eq!(verified(&verify)["unsigned"], 0);
    let records = Path::new(to).join("audit.jsonl");
    assert_eq!(std::fs::read_to_string(&records).unwrap(), part);
    std::fs::write(&records, part.replace("dev.test/web", "dev.test/WEB")).unwrap();
    refused(&[&["audit", "verify"], &verify[..]].concat(), "FNL0216");

    let nothing = [
        "--from",
        "2001-01-01T00:00:00Z",
        "--until",
        "2001-01-02T00:00:00+01:00",
    ];
    refused(
        &[&["audit", "export"], &dir[..], &nothing].concat(),
        "FNL0224",
    );
    assert_eq!(
        offline(&[&["audit", "export", "--from", "yesterday"], &dir[..]].concat()).0,
        2
    );
}

#[test]
fn the_server_signs_its_log_while_it_runs_and_shows_how_old_that_is() {
    let server = Server::start();
    let dir = server.path().join("audit");
    let told = verified(&["--dir", dir.to_str().unwrap()]);
    assert!(told["checkpoints"].as_u64().unwrap() >= 2, "{told}");
    assert_eq!(told["closed"], false);
    let (code, _, err) = offline(&[
        "audit",
        "verify",
        "--closed",
        "--dir",
        dir.to_str().unwrap(),
    ]);
    assert_eq!(code, 3, "{err}");

    let addresses = std::fs::read_to_string(server.path().join("addresses.json")).unwrap();
    let addresses: Value = serde_json::from_str(&addresses).unwrap();
    let mut stream = TcpStream::connect(addresses["metrics"].as_str().unwrap()).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut shown = String::new();
    stream.read_to_string(&mut shown).unwrap();
    let value = |name: &str| -> f64 {
        let line = shown
            .lines()
            .find(|line| line.starts_with(&format!("ca_server_audit_{name} ")));
        line.unwrap_or_else(|| panic!("{name} in {shown}"))
            .rsplit(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    };
    assert!(value("last_checkpoint_timestamp_seconds") > 1.7e9);
    assert!(value("tree_size") >= 1.0 && value("unsigned_records") < 1000.0);
    assert!(value("chain_intact") == 1.0);
}
