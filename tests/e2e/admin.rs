//! What an administrator does with agents on ca-server's own command line. The entries are in ca-server's own tests; these verbs need
//! an agent that has attested.

use mesh_tests::{programs, world::World};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_finds_counts_bans_and_evicts_an_agent() {
    let world = World::start(|config| config).await;
    let id = world.agent_id();
    let list = world.ca_json(&["agent", "list"]);
    let agent = &list["agents"][0];
    assert_eq!(agent["id"], id);
    assert_eq!(agent["attestationType"], "join_token");
    assert_eq!(&world.ca_json(&["agent", "show", "--spiffe-id", id]), agent);
    let table = text(&world, &["agent", "show", "-spiffeID", id]);
    assert!(table.contains("Attestation type : join_token"), "{table}");

    let finds = |filter: &[&str], expected: usize| {
        let list = world.ca_json(&[&["agent", "list"], filter].concat());
        assert_eq!(
            list["agents"].as_array().map(Vec::len),
            Some(expected),
            "{filter:?}"
        );
        let count = world.ca_json(&[&["agent", "count"], filter].concat());
        assert_eq!(count, json!({ "count": expected }), "{filter:?}");
    };
    finds(&[], 1);
    finds(&["--attestation-type", "join_token"], 1);
    finds(&["-attestationType", "k8s_psat"], 0);
    finds(&["--banned", "true"], 0);
    finds(&["-banned", "false"], 1);
    finds(&["--can-reattest", "false"], 1);
    finds(&["-canReattest", "true"], 0);
    finds(&["--expires-before", "2100-01-01T00:00:00Z"], 1);
    finds(&["-expiresBefore", "2020-01-01 00:00:00 +0100 +01"], 0);
    finds(&["--selector", "k8s_psat:cluster:none"], 0);
    finds(&["-selector", "a:b", "-matchSelectorsOn", "any"], 0);
    finds(&["--selector", "a:b", "--match-selectors-on", "exact"], 0);
    assert_eq!(text(&world, &["agent", "count"]), "1 attested agent\n");
    assert_eq!(
        run(&world, &["agent", "list", "--expires-before", "soon"]).0,
        2
    );

    // Join-token agents could not come back, so purging leaves them alone however old they are.
    assert_eq!(
        world.ca_json(&["agent", "purge", "--expired-for", "0s"]),
        json!({ "purged": [] })
    );
    let dry = ["agent", "purge", "-expiredFor", "1h", "-dryRun"];
    assert_eq!(text(&world, &dry), "no agent purgeable\n");
    assert_eq!(
        world.ca_json(&["agent", "purge", "--dry-run"]),
        json!({ "purgeable": [] })
    );

    assert_eq!(
        world.ca_json(&["agent", "ban", "--spiffe-id", id]),
        json!({ "banned": [id] })
    );
    finds(&["--banned", "true"], 1);
    let evicted = text(&world, &["agent", "evict", "--spiffe-id", id]);
    assert_eq!(evicted, format!("agent evicted: {id}\n"));
    finds(&[], 0);
    let (code, error) = run(&world, &["agent", "evict", "--spiffe-id", id]);
    assert!(code == 1 && error.contains("agent not found"), "{error}");
    let (code, error) = run(&world, &["agent", "ban", "--spiffe-id", id, "-o", "json"]);
    let error: Value = serde_json::from_str(&error).unwrap_or_default();
    assert!(code == 1 && error["code"] == "FNL1302", "{error}");
}

fn run(world: &World, arguments: &[&str]) -> (i32, String) {
    let socket = world.file("ca-admin.sock");
    let all = [arguments, &["-q", "--admin-socket", &socket]].concat();
    let output = programs::run("ca-server", &all, &world.path(""));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap_or(-1), error)
}

fn text(world: &World, arguments: &[&str]) -> String {
    let socket = world.file("ca-admin.sock");
    let all = [arguments, &["-q", "--admin-socket", &socket]].concat();
    programs::succeed("ca-server", &all, &world.path(""))
}
