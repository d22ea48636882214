//! Every verb of `spire-server` that our authority serves, with what SPIRE's program makes of the answers.

use mesh_tests::{spire::Verbs, world::World};
use serde_json::{Value, json};

/// Runs all of them but the agents' against a server with one agent.
pub(super) fn all(server: &Verbs, world: &World) {
    healthcheck(server);
    tokens(server);
    entries(server);
    entries_from_a_file(server, world);
    updates(server);
    bundle(server, world);
    logger(server);
    debug(server);
}

fn healthcheck(server: &Verbs) {
    assert_eq!(server.text(&["healthcheck"]), "Server is healthy.\n");
    assert!(
        server
            .text(&["healthcheck", "-verbose", "-shallow"])
            .ends_with("Server is healthy.\n")
    );
}

fn tokens(server: &Verbs) {
    let text = server.text(&["token", "generate"]);
    assert!(
        text.starts_with("Token: ") && text.contains("Missing SPIFFE ID"),
        "{text}"
    );
    let token = server.json(&[
        "token",
        "generate",
        "-spiffeID",
        "spiffe://dev.test/node",
        "-ttl",
        "60",
    ]);
    assert_eq!(token["value"].as_str().map(str::len), Some(36), "{token}");
    let end: i64 = token["expires_at"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .unwrap_or_default();
    assert!(end > 1_700_000_000, "{token}");
    server.refused(
        &["token", "generate", "-ttl", "0"],
        &["code = InvalidArgument", "ttl is required"],
    );
    server.refused(
        &["token", "generate", "-spiffeID", "spiffe://far.test/node"],
        &["code = InvalidArgument", "trust domain"],
    );
}

const PARENT: &str = "spiffe://dev.test/parent";

fn create(server: &Verbs, path: &str, more: &[&str]) -> Value {
    let id = format!("spiffe://dev.test{path}");
    let base = [
        "entry",
        "create",
        "-parentID",
        PARENT,
        "-spiffeID",
        &id,
        "-selector",
        "unix:uid:1000",
    ];
    let answer = server.json(&[&base[..], more].concat());
    let result = &answer["results"][0];
    assert_eq!(result["status"]["code"], 0, "{answer}");
    result["entry"].clone()
}

fn ids(list: &Value) -> Vec<&str> {
    list["entries"]
        .as_array()
        .map(|entries| {
            entries
                .iter()
                .filter_map(|entry| entry["id"].as_str())
                .collect()
        })
        .unwrap_or_default()
}

fn entries(server: &Verbs) {
    let web = create(
        server,
        "/web",
        &[
            "-entryID",
            "web",
            "-selector",
            "unix:path:/bin/web",
            "-x509SVIDTTL",
            "60",
            "-jwtSVIDTTL",
            "30",
            "-dns",
            "web.test",
            "-dns",
            "www.web.test",
            "-hint",
            "outside",
            "-entryExpiry",
            "4102444800",
            "-admin",
            "-disableX509SVIDPrefetch",
            "-jwtSVIDIncludeJTI",
        ],
    );
    assert_eq!(web["id"], "web");
    assert_eq!(
        web["spiffe_id"],
        json!({ "trust_domain": "dev.test", "path": "/web" })
    );
    assert_eq!(web["selectors"].as_array().map(Vec::len), Some(2), "{web}");
    assert_eq!(web["x509_svid_ttl"], 60);
    assert_eq!(web["jwt_svid_ttl"], 30);
    assert_eq!(web["dns_names"], json!(["web.test", "www.web.test"]));
    assert_eq!(web["hint"], "outside");
    assert_eq!(web["expires_at"], "4102444800");
    assert_eq!(web["admin"], true);
    assert_eq!(
        web["additional_attributes"],
        json!({ "disable_x509_svid_prefetch": true, "jwt_svid_include_jti": true })
    );
    create(server, "/below", &["-entryID", "below", "-downstream"]);
    create(server, "/kept", &["-entryID", "kept", "-storeSVID"]);

    // A node alias has no parent flag; SPIRE's command makes the server's ID its parent.
    let node = server.text(&[
        "entry",
        "create",
        "-node",
        "-spiffeID",
        "spiffe://dev.test/nodes",
        "-selector",
        "k8s_psat:cluster:rig",
    ]);
    assert!(
        node.contains("Parent ID               : spiffe://dev.test/spire/server"),
        "{node}"
    );

    let again = [
        "entry",
        "create",
        "-parentID",
        PARENT,
        "-spiffeID",
        "spiffe://dev.test/kept",
        "-selector",
        "unix:uid:1000",
    ];
    server.refused(
        &again,
        &[
            "code: AlreadyExists",
            "similar entry already exists",
            "failed to create one or more entries",
        ],
    );
    let wrong = |more: &[&str], word: &str| {
        let base = [
            "entry",
            "create",
            "-parentID",
            PARENT,
            "-selector",
            "unix:uid:1",
        ];
        server.refused(
            &[&base[..], more].concat(),
            &["code: InvalidArgument", word],
        );
    };
    wrong(&["-spiffeID", "spiffe://far.test/x"], "trust domain");
    wrong(&["-spiffeID", "spiffe://dev.test"], "path");
    wrong(
        &["-spiffeID", "spiffe://dev.test/x", "-dns", "no dns name"],
        "dns",
    );

    shown(server);
    filtered(server);

    assert!(
        server
            .text(&["entry", "delete", "-entryID", "kept"])
            .contains("Deleted entry with ID: kept")
    );
    server.refused(
        &["entry", "delete", "-entryID", "kept"],
        &["code: NotFound", "entry not found"],
    );
}

fn shown(server: &Verbs) {
    let one = server.text(&["entry", "show", "-entryID", "web"]);
    for row in [
        "Found 1 entry",
        "Entry ID                : web",
        "SPIFFE ID               : spiffe://dev.test/web",
        "X509-SVID TTL           : 60",
        "JWT-SVID TTL            : 30",
        "Selector                : unix:path:/bin/web",
        "DNS name                : web.test",
        "Admin                   : true",
        "Hint                    : outside",
        "Expiration time         : 2100-01-01 00:00:00 +0000 UTC",
        "DisableX509SvidPrefetch : true",
        "JwtSvidIncludeJti       : true",
    ] {
        assert!(one.contains(row), "no {row:?} in {one}");
    }
    server.refused(
        &["entry", "show", "-entryID", "nobody"],
        &["code = NotFound", "entry not found"],
    );
}

fn filtered(server: &Verbs) {
    let shows = |filter: &[&str], expected: &[&str]| {
        let list = server.json(&[&["entry", "show"], filter].concat());
        let mut found = ids(&list);
        found.sort_unstable();
        assert_eq!(found, expected, "{filter:?}: {list}");
        let count = server.json(&[&["entry", "count"], filter].concat());
        assert_eq!(
            count["count"].as_i64(),
            Some(expected.len().try_into().expect("a small number")),
            "{filter:?}"
        );
    };
    shows(&["-parentID", PARENT], &["kept", "web"]);
    shows(&["-parentID", PARENT, "-downstream"], &["below"]);
    shows(&["-spiffeID", "spiffe://dev.test/web"], &["web"]);
    shows(&["-hint", "outside"], &["web"]);
    shows(&["-selector", "unix:path:/bin/web"], &["web"]);
    let both = [
        "-parentID",
        PARENT,
        "-selector",
        "unix:uid:1000",
        "-selector",
        "unix:path:/bin/web",
        "-matchSelectorsOn",
    ];
    for (how, expected) in [
        ("exact", &["web"][..]),
        ("superset", &["web"]),
        ("any", &["kept", "web"]),
        ("subset", &["kept", "web"]),
    ] {
        shows(&[&both[..], &[how]].concat(), expected);
    }
    shows(&["-spiffeID", "spiffe://dev.test/none"], &[]);
    assert!(
        server
            .text(&["entry", "count", "-hint", "outside"])
            .contains("1 registration entry")
    );
}

fn entries_from_a_file(server: &Verbs, world: &World) {
    let entry = |path: &str, uid: &str| {
        json!({
            "selectors": [{ "type": "unix", "value": uid }],
            "spiffe_id": format!("spiffe://dev.test{path}"),
            "parent_id": PARENT,
            "x509_svid_ttl": 120,
        })
    };
    let data = world.write(
        "entries.json",
        &json!({ "entries": [entry("/file/a", "uid:1"), entry("/file/b", "uid:2")] }).to_string(),
    );
    let answer = server.json(&["entry", "create", "-data", &data.display().to_string()]);
    let made: Vec<_> = (0..2)
        .map(|at| answer["results"][at]["entry"]["id"].clone())
        .collect();
    assert!(made.iter().all(Value::is_string), "{answer}");
    let file = world.write("ids.json", &json!({ "ids": made }).to_string());
    let text = server.text(&["entry", "delete", "-file", &file.display().to_string()]);
    assert!(text.contains("Deleted 2 entries successfully"), "{text}");
}

fn updates(server: &Verbs) {
    let base = [
        "entry",
        "update",
        "-entryID",
        "web",
        "-parentID",
        PARENT,
        "-spiffeID",
        "spiffe://dev.test/web",
        "-selector",
        "unix:uid:2000",
    ];
    let answer = server.json(&[&base[..], &["-hint", "inside", "-x509SVIDTTL", "90"]].concat());
    let entry = &answer["results"][0]["entry"];
    assert_eq!(entry["hint"], "inside", "{answer}");
    assert_eq!(entry["x509_svid_ttl"], 90);
    assert_eq!(
        entry["selectors"],
        json!([{ "type": "unix", "value": "uid:2000" }])
    );
    // The command names the whole entry: what is not named is taken away, except for the two attributes.
    assert_eq!(entry["admin"], false);
    assert_eq!(entry["dns_names"], json!([]));
    let revision = |entry: &Value| {
        entry["revision_number"]
            .as_str()
            .and_then(|text| text.parse::<u64>().ok())
            .unwrap_or_default()
    };
    let next = server.json(&[&base[..], &["-disableX509SVIDPrefetch"]].concat());
    let next = &next["results"][0]["entry"];
    assert!(revision(next) > revision(entry), "{next}");
    assert_eq!(
        next["additional_attributes"]["disable_x509_svid_prefetch"],
        true
    );

    let mut nobody = base;
    nobody[3] = "nobody";
    server.refused(&nobody, &["code: NotFound", "failed to update"]);
    let mut bad = base;
    bad[7] = "spiffe://far.test/web";
    server.refused(&bad, &["code: InvalidArgument"]);
}

fn bundle(server: &Verbs, world: &World) {
    let pem = server.text(&["bundle", "show"]);
    assert!(pem.starts_with("-----BEGIN CERTIFICATE-----"), "{pem}");
    assert_eq!(
        pem,
        std::fs::read_to_string(world.path("bundle.pem")).unwrap_or_default()
    );
    let spiffe: Value =
        serde_json::from_str(&server.text(&["bundle", "show", "-format", "spiffe"]))
            .expect("a SPIFFE bundle document");
    assert_eq!(spiffe["keys"][0]["use"], "x509-svid");
    assert!(spiffe["spiffe_sequence"].as_u64() > Some(0), "{spiffe}");
    let wire = server.json(&["bundle", "show"]);
    assert_eq!(wire["trust_domain"], "dev.test");
    assert!(wire["x509_authorities"][0]["asn1"].is_string(), "{wire}");
}

fn logger(server: &Verbs) {
    let launched = server.json(&["logger", "get"]);
    assert_eq!(
        launched["current_level"], launched["launch_level"],
        "{launched}"
    );
    assert_eq!(
        server.json(&["logger", "set", "-level", "debug"])["current_level"],
        "DEBUG"
    );
    assert!(
        server
            .text(&["logger", "get"])
            .contains("Logger Level : debug")
    );
    assert_eq!(server.json(&["logger", "reset"]), launched);
    assert!(
        server
            .text(&["logger", "set", "-level", "warn"])
            .contains("Logger Level : warning")
    );
    server.text(&["logger", "reset"]);
}

fn debug(server: &Verbs) {
    let info = server.json(&["debug", "getinfo"]);
    assert_eq!(info["agents_count"], 1, "{info}");
    assert!(info["entries_count"].as_i64() > Some(0), "{info}");
    assert_eq!(
        info["svid_chain"][0]["id"]["path"], "/spire/server",
        "{info}"
    );
    let text = server.text(&["debug", "getinfo"]);
    assert!(
        text.contains("Registered Agents:       1")
            && text.contains("spiffe://dev.test/spire/server"),
        "{text}"
    );
}

/// Finds the agent by every filter, bans it and evicts it.
pub(super) fn agents(server: &Verbs, world: &World) {
    let id = world.agent_id();
    let list = server.json(&["agent", "list"]);
    assert_eq!(list["agents"].as_array().map(Vec::len), Some(1), "{list}");
    let agent = &list["agents"][0];
    assert_eq!(agent["attestation_type"], "join_token");
    assert_eq!(agent["banned"], false);
    assert_eq!(agent["can_reattest"], false);
    let serial = agent["x509svid_serial_number"].as_str().unwrap_or_default();
    assert!(
        serial.len() > 15 && serial.bytes().all(|digit| digit.is_ascii_digit()),
        "{agent}"
    );
    let text = server.text(&["agent", "list"]);
    assert!(
        text.contains("Found 1 attested agent:") && text.contains(id),
        "{text}"
    );
    assert_eq!(
        server.json(&["agent", "show", "-spiffeID", id])["id"],
        agent["id"]
    );
    assert!(
        server
            .text(&["agent", "show", "-spiffeID", id])
            .contains("Attestation type  : join_token")
    );
    server.refused(
        &[
            "agent",
            "show",
            "-spiffeID",
            "spiffe://dev.test/spire/agent/x/y",
        ],
        &["code = NotFound", "agent not found"],
    );

    let counts = |filter: &[&str], expected: usize| {
        let list = server.json(&[&["agent", "list"], filter].concat());
        let found = list["agents"].as_array().map_or(0, Vec::len);
        assert_eq!(found, expected, "{filter:?}: {list}");
        let count = server.json(&[&["agent", "count"], filter].concat());
        assert_eq!(count["count"].as_u64(), Some(expected as u64), "{filter:?}");
    };
    counts(&[], 1);
    counts(&["-attestationType", "join_token"], 1);
    counts(&["-attestationType", "k8s_psat"], 0);
    counts(&["-banned", "true"], 0);
    counts(&["-banned", "false"], 1);
    counts(&["-canReattest", "true"], 0);
    counts(&["-canReattest", "false"], 1);
    counts(&["-expiresBefore", "2100-01-01 00:00:00 +0000 +00"], 1);
    counts(&["-expiresBefore", "2020-01-01 00:00:00 +0000 +00"], 0);
    for how in ["exact", "any", "superset", "subset"] {
        let filter = [
            "-selector",
            "k8s_psat:cluster:none",
            "-matchSelectorsOn",
            how,
        ];
        counts(&filter, 0);
    }
    assert!(
        server
            .text(&["agent", "count"])
            .contains("1 attested agent")
    );

    assert!(
        server
            .text(&["agent", "purge", "-dryRun"])
            .contains("No agents to purge")
    );
    assert_eq!(
        server.json(&["agent", "purge", "-expiredFor", "1s"])["expired_agents"],
        json!([])
    );

    assert!(
        server
            .text(&["agent", "ban", "-spiffeID", id])
            .contains("Agent banned successfully")
    );
    assert!(
        server
            .text(&["agent", "show", "-spiffeID", id])
            .contains("Banned            : true")
    );
    counts(&["-banned", "true"], 1);
    assert!(
        server
            .text(&["agent", "evict", "-spiffeID", id])
            .contains("Agent evicted successfully")
    );
    counts(&[], 0);
    server.refused(
        &["agent", "evict", "-spiffeID", id],
        &["code = NotFound", "agent not found"],
    );
}
