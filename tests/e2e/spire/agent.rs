//! A real `spire-agent` on our authority: join token, node alias, sync, Workload API, renewal, and its end.

use std::{fs, path::Path, process::Command, time::Duration};

use mesh_tests::{
    eventually,
    spire::{Spire, Verbs},
    world::World,
};
use tokio::time::sleep;

const WEB: &str = "spiffe://dev.test/web";

#[tokio::test(flavor = "multi_thread")]
async fn a_spire_agent_attests_syncs_renews_and_serves_until_it_is_banned() {
    let Some(spire) = Spire::find() else {
        return;
    };
    let world = World::with_ca(|config| config.replace("agentSvid: 60s", "agentSvid: 20s")).await;
    let server = spire.server(world.path("ca-admin.sock"));
    let token = server.json(&["token", "generate", "-spiffeID", "spiffe://dev.test/node"]);
    let token = token["value"].as_str().expect("a token").to_owned();
    let id = format!("spiffe://dev.test/spire/agent/join_token/{token}");
    let bundle = world.path("bundle.pem");
    let address = world.ca().address("grpc").to_owned();

    let mut agent = spire
        .agent(&world.path("spire-agent"), &address, &bundle, &token)
        .await;
    let first_serial = serial(&server, &id);

    // The entry hangs below the node's alias, so the agent gets it only if the alias works.
    let uid = format!("unix:uid:{}", nix::unistd::getuid());
    let created = server.json(&[
        "entry",
        "create",
        "-entryID",
        "web",
        "-parentID",
        "spiffe://dev.test/node",
        "-spiffeID",
        WEB,
        "-selector",
        &uid,
        "-x509SVIDTTL",
        "10",
        "-dns",
        "web.test",
        "-hint",
        "first",
    ]);
    assert_eq!(created["results"][0]["status"]["code"], 0, "{created}");
    let files = world.path("fetched");
    fs::create_dir_all(&files).expect("a folder");
    let mut seen = String::new();
    let served = soon(async || {
        seen = fetch(&agent.verbs, &files).unwrap_or_default();
        !seen.is_empty()
    });
    assert!(served.await, "the agent never served the entry");
    verified(&files, &bundle);
    let answer = agent.verbs.json(&["api", "fetch", "x509"]);
    let svid = &answer["svids"][0];
    assert_eq!(svid["spiffe_id"], WEB, "{answer}");
    assert_eq!(svid["hint"], "first", "{answer}");

    tokens(&agent.verbs);
    let watching = agent
        .verbs
        .follow(&["api", "watch"], &world.path("watched"));

    // Both lives are short: the workload's SVID turns every five seconds, the agent's own every ten.
    for _ in 0..2 {
        let before = seen.clone();
        let renewed = soon(async || {
            seen = fetch(&agent.verbs, &files).unwrap_or_default();
            !seen.is_empty() && seen != before
        });
        assert!(renewed.await, "the workload's SVID was not renewed");
        verified(&files, &bundle);
    }
    let said = watching.said();
    assert!(said.matches("Received 1 svid").count() >= 2, "{said}");
    drop(watching);
    let renewed = soon(async || serial(&server, &id) != first_serial);
    assert!(renewed.await, "the agent's own SVID was not renewed");
    let version = server.json(&["agent", "show", "-spiffeID", &id])["agent_version"].clone();
    assert!(
        version
            .as_str()
            .is_some_and(|version| version.starts_with("1.15")),
        "{version}"
    );

    // A change of the entry reaches the workload, and so does its end.
    let updated = server.json(&[
        "entry",
        "update",
        "-entryID",
        "web",
        "-parentID",
        "spiffe://dev.test/node",
        "-spiffeID",
        "spiffe://dev.test/shop",
        "-selector",
        &uid,
    ]);
    assert_eq!(updated["results"][0]["status"]["code"], 0, "{updated}");
    let told = soon(async || {
        let said = agent
            .verbs
            .say(&["api", "fetch", "x509", "-output", "json"]);
        said.out.contains("spiffe://dev.test/shop")
    });
    assert!(told.await, "the changed entry did not arrive");
    server.text(&["entry", "delete", "-entryID", "web"]);
    let gone = soon(async || {
        let said = agent.verbs.say(&["api", "fetch", "x509"]);
        said.code != 0 && said.err.contains("PermissionDenied")
    });
    assert!(gone.await, "the deleted entry is still served");

    server.text(&["agent", "ban", "-spiffeID", &id]);
    let ended = soon(async || agent.ended().is_some());
    assert!(ended.await, "a banned agent shuts down");
    // A renewal that the ban overtakes half-way is told that its SVID is no longer the active one.
    let log = agent.log();
    assert!(
        log.contains("banned") || log.contains("SVID is not active"),
        "it says why"
    );
}

/// JWT-SVIDs by way of SPIRE's agent: fetched for one audience, valid for it, and for no other.
fn tokens(agent: &Verbs) {
    let fetched = agent.json(&["api", "fetch", "jwt", "-audience", "shop", "-spiffeID", WEB]);
    let token = find(&fetched, "svid").expect("a token").to_owned();
    assert_eq!(find(&fetched, "spiffe_id"), Some(WEB), "{fetched}");
    let valid = agent.json(&[
        "api",
        "validate",
        "jwt",
        "-audience",
        "shop",
        "-svid",
        &token,
    ]);
    assert_eq!(find(&valid, "spiffe_id"), Some(WEB), "{valid}");
    let for_another = [
        "api",
        "validate",
        "jwt",
        "-audience",
        "bank",
        "-svid",
        &token,
    ];
    agent.refused(&for_another, &["audience"]);
    let (head, signature) = token.rsplit_once('.').expect("three parts");
    let reversed: String = signature.chars().rev().collect();
    let forged = format!("{head}.{reversed}");
    agent.refused(
        &[
            "api",
            "validate",
            "jwt",
            "-audience",
            "shop",
            "-svid",
            &forged,
        ],
        &[],
    );
    let others = [
        "api",
        "fetch",
        "jwt",
        "-audience",
        "shop",
        "-spiffeID",
        "spiffe://dev.test/other",
    ];
    agent.refused(&others, &["PermissionDenied"]);
}

/// The first text under a name, wherever it stands.
fn find<'a>(value: &'a serde_json::Value, name: &str) -> Option<&'a str> {
    match value {
        serde_json::Value::Object(fields) => fields
            .get(name)
            .and_then(serde_json::Value::as_str)
            .or_else(|| fields.values().find_map(|value| find(value, name))),
        serde_json::Value::Array(items) => items.iter().find_map(|value| find(value, name)),
        _ => None,
    }
}

/// Asks a few times a second: each question may be a program of its own.
async fn soon(mut condition: impl AsyncFnMut() -> bool) -> bool {
    eventually::within(Duration::from_secs(30), async || {
        let met = condition().await;
        if !met {
            sleep(Duration::from_millis(300)).await;
        }
        met
    })
    .await
}

/// Fetches with SPIRE's client, which writes files, and returns the certificate.
fn fetch(agent: &Verbs, files: &Path) -> Option<String> {
    let folder = files.display().to_string();
    let said = agent.say(&["api", "fetch", "x509", "-timeout", "5s", "-write", &folder]);
    (said.code == 0).then(|| fs::read_to_string(files.join("svid.0.pem")).unwrap_or_default())
}

/// OpenSSL finds the chain and the key in order, by the bundle that the agent handed out and by ours.
fn verified(files: &Path, bundle: &Path) {
    for anchors in [files.join("bundle.0.pem"), bundle.to_owned()] {
        verify(&anchors, &files.join("svid.0.pem"));
    }
    let public = |arguments: &[&str], file: &str| {
        let output = Command::new("openssl")
            .args(arguments)
            .arg("-in")
            .arg(files.join(file))
            .output();
        output.expect("openssl runs").stdout
    };
    let certified = public(&["x509", "-noout", "-pubkey"], "svid.0.pem");
    assert!(!certified.is_empty());
    assert_eq!(certified, public(&["pkey", "-pubout"], "svid.0.key"));
}

/// OpenSSL finds the chain in order.
pub(super) fn verify(anchors: &Path, chain: &Path) {
    let output = Command::new("openssl")
        .args(["verify", "-x509_strict", "-purpose", "sslclient", "-CAfile"])
        .args([anchors, chain])
        .output()
        .expect("openssl runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn serial(server: &Verbs, id: &str) -> String {
    let agent = server.json(&["agent", "show", "-spiffeID", id]);
    agent["x509svid_serial_number"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}
