//! Our agent on a real `spire-server`: join token, sync by revisions, SVIDs and tokens, renewal, an outage, and its end.
//! Trusts nothing of ours for the verdict that the server gives: its own command line says what it holds.

use std::{fs, path::Path, time::Duration};

use finial::dev::files;
use mesh_tests::{
    daemon::Daemon,
    eventually, programs,
    spire::{Spire, Verbs},
};
use serde_json::{Value, json};
use tokio::time::sleep;

const AGENT: &str = "workload-agent";

/// More than one page of SPIRE's: the server then sends revisions first.
const MANY: u32 = 600;

#[tokio::test(flavor = "multi_thread")]
async fn our_agent_attests_syncs_renews_and_serves_on_a_real_spire_server_until_it_is_banned() {
    let Some(spire) = Spire::find() else {
        return;
    };
    let dir = tempfile::Builder::new()
        .prefix("fnl")
        .tempdir()
        .expect("a temporary folder");
    let path = |name: &str| dir.path().join(name);
    let mut server = spire.authority(&path("spire"));
    server.start().await;
    let pem = server.verbs.text(&["bundle", "show", "-format", "pem"]);
    fs::write(path("bundle.pem"), pem).expect("a bundle");
    let token = server.verbs.json(&["token", "generate"]);
    let token = token["value"].as_str().expect("a token").to_owned();
    fs::write(path("join-token"), &token).expect("a token");
    let id = format!("spiffe://dev.test/spire/agent/join_token/{token}");

    let config = files::workload_agent(&dir.path().display().to_string(), &server.address)
        .replace("server:\n", "server:\n  syncInterval: 500ms\n");
    fs::write(path("agent.yaml"), config).expect("a configuration");
    let agent = Daemon::start_ready(
        AGENT,
        &programs::path(AGENT),
        &path("agent.yaml"),
        dir.path(),
    )
    .await;
    let first_serial = serial(&server.verbs, &id);

    // A foreign bundle for those who federate, an entry with a short life, and both arrive.
    let foreign = far(&path("far.pem"));
    server.verbs.text(&[
        "bundle",
        "set",
        "-id",
        "spiffe://far.test",
        "-path",
        &foreign,
    ]);
    let uid = format!("unix:uid:{}", nix::unistd::getuid());
    let web = |id: &str| {
        json!({ "entries": [{
            "entry_id": "web", "parent_id": id, "spiffe_id": "spiffe://dev.test/web",
            "selectors": [selector(&uid)], "x509_svid_ttl": 10, "hint": "first",
            "dns_names": ["web.test"], "federates_with": ["far.test"],
        }]})
    };
    create(&server.verbs, &path("web.json"), &web(&id));
    let fetch = || fetched(dir.path());
    let mut seen = Value::Null;
    let served = soon(async || {
        seen = fetch();
        !seen["bundles"]["far.test"].is_null()
    });
    assert!(
        served.await,
        "the entry and its bundles never arrived: {seen}"
    );
    let svid = &seen["svids"][0];
    assert_eq!(svid["spiffeId"], "spiffe://dev.test/web");
    assert_eq!(svid["hint"], "first");
    for _ in 0..2 {
        let before = svid_serial(&seen);
        let renewed = soon(async || {
            seen = fetch();
            seen["svids"][0]["serial"].is_string() && svid_serial(&seen) != before
        });
        assert!(renewed.await, "the workload's SVID was not renewed");
    }

    // SPIRE signs a token and we verify it with the keys that came with its bundle.
    let socket = path("agent.sock").display().to_string();
    let token = programs::succeed(
        AGENT,
        &[
            "api",
            "fetch",
            "jwt",
            "-o",
            "json",
            "--audience",
            "bank",
            "--socket",
            &socket,
        ],
        dir.path(),
    );
    let token: Value = serde_json::from_str(&token).expect("JSON");
    let token = token["svids"][0]["svid"]
        .as_str()
        .expect("a token")
        .to_owned();
    let arguments = [
        "api",
        "validate",
        "jwt",
        "--audience",
        "bank",
        "--svid",
        &token,
    ];
    let said = programs::succeed(
        AGENT,
        &[&arguments[..], &["--socket", &socket]].concat(),
        dir.path(),
    );
    assert!(said.contains("spiffe://dev.test/web"), "{said}");

    // The agent's own SVID lives thirty seconds.
    let renewed = soon(async || serial(&server.verbs, &id) != first_serial);
    assert!(renewed.await, "the agent's own SVID was not renewed");

    // With more entries than fit a page the server sends revisions, and only what is new is fetched.
    let many: Vec<_> = (0..MANY)
        .map(|n| {
            json!({
                "entry_id": format!("many-{n:04}"), "parent_id": id,
                "spiffe_id": format!("spiffe://dev.test/many/{n}"),
                "selectors": [{ "type": "unix", "value": format!("uid:{}", 100_000 + n) }],
                "x509_svid_ttl": 600,
            })
        })
        .collect();
    create(
        &server.verbs,
        &path("many.json"),
        &json!({ "entries": many }),
    );
    let metrics = agent.address("metrics").to_owned();
    let all = format!("workload_agent_svids_cached{{type=\"x509\"}} {}", MANY + 1);
    let made = eventually::within(Duration::from_secs(60), async || {
        let text = scrape(&metrics).await;
        if !text.contains(&all) {
            sleep(Duration::from_millis(300)).await;
        }
        text.contains(&all)
    });
    assert!(made.await, "{} entries were not all served", MANY + 1);
    update(&server.verbs, &id, &uid, "spiffe://dev.test/shop");
    let told = soon(async || fetch()["svids"][0]["spiffeId"] == "spiffe://dev.test/shop");
    assert!(told.await, "the changed entry did not arrive");

    // Without its server the agent serves on; when the server is back the agent is in step again.
    server.kill();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(fetch()["svids"][0]["spiffeId"], "spiffe://dev.test/shop");
    server.start().await;
    update(&server.verbs, &id, &uid, "spiffe://dev.test/back");
    let back = soon(async || fetch()["svids"][0]["spiffeId"] == "spiffe://dev.test/back");
    assert!(back.await, "the agent did not come back");
    server.verbs.text(&["entry", "delete", "-entryID", "web"]);
    let gone = soon(async || fetch().is_null());
    assert!(gone.await, "the deleted entry is still served");

    server.verbs.text(&["agent", "ban", "-spiffeID", &id]);
    let ended = soon(async || agent.log().contains("FNL2027"));
    assert!(ended.await, "a banned agent stops and says why");
}

/// Tries a few times a second: each question may be a program of its own.
async fn soon(mut condition: impl AsyncFnMut() -> bool) -> bool {
    eventually::within(Duration::from_secs(40), async || {
        let met = condition().await;
        if !met {
            sleep(Duration::from_millis(300)).await;
        }
        met
    })
    .await
}

/// What this user gets from the agent; null if nothing.
fn fetched(dir: &Path) -> Value {
    let socket = dir.join("agent.sock").display().to_string();
    let arguments = ["api", "fetch", "x509", "-o", "json", "--socket", &socket];
    let output = programs::run(AGENT, &arguments, dir);
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn svid_serial(seen: &Value) -> String {
    seen["svids"][0]["serial"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn selector(text: &str) -> Value {
    let (kind, value) = text.split_once(':').expect("a type and a value");
    json!({ "type": kind, "value": value })
}

fn create(server: &Verbs, file: &Path, entries: &Value) {
    fs::write(file, entries.to_string()).expect("a file");
    let file = file.display().to_string();
    let created = server.json(&["entry", "create", "-data", &file]);
    let results = created["results"].as_array().expect("results");
    assert!(
        results.iter().all(|result| result["status"]["code"] == 0),
        "{created}"
    );
}

fn update(server: &Verbs, parent: &str, selector: &str, id: &str) {
    let updated = server.json(&[
        "entry",
        "update",
        "-entryID",
        "web",
        "-parentID",
        parent,
        "-spiffeID",
        id,
        "-selector",
        selector,
    ]);
    assert_eq!(updated["results"][0]["status"]["code"], 0, "{updated}");
}

fn serial(server: &Verbs, id: &str) -> String {
    let agent = server.json(&["agent", "show", "-spiffeID", id]);
    agent["x509svid_serial_number"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

async fn scrape(address: &str) -> String {
    finial::dev::http::get(address, "/metrics")
        .await
        .map(|answer| answer.text())
        .unwrap_or_default()
}

/// A root of another trust domain, in a file.
fn far(file: &Path) -> String {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let id = "spiffe://far.test".try_into().expect("ASCII");
    params.subject_alt_names = vec![rcgen::SanType::URI(id)];
    let root = params.self_signed(&key).expect("a root");
    fs::write(file, root.pem()).expect("a file");
    file.display().to_string()
}
