//! SPIRE's verbs for minting, and for turning the authorities by hand.

use mesh_tests::{spire::Verbs, world::World};

const MINTED: &str = "spiffe://dev.test/minted";

/// Runs all of them.
pub(super) fn all(server: &Verbs, world: &World) {
    x509(server, world);
    jwt(server, world);
    for kind in ["x509", "jwt"] {
        turned(server, kind);
    }
    for verb in ["taint", "revoke"] {
        server.refused(
            &["upstreamauthority", verb, "-subjectKeyID", "00"],
            &["code = FailedPrecondition", "upstream authority"],
        );
    }
}

fn x509(server: &Verbs, world: &World) {
    let folder = world.text();
    let mint = [
        "x509",
        "mint",
        "-spiffeID",
        MINTED,
        "-dns",
        "minted.test",
        "-ttl",
        "30s",
    ];
    let text = server.text(&[&mint[..], &["-write", &folder]].concat());
    assert!(text.contains("X509-SVID written to"), "{text}");
    super::agent::verify(&world.path("bundle.pem"), &world.path("svid.pem"));
    let text = server.text(&mint);
    assert!(
        text.contains("X509-SVID:\n-----BEGIN CERTIFICATE-----") && text.contains("Root CAs:"),
        "{text}"
    );
    let json = server.json(&mint);
    assert_eq!(
        json["x509_svid"].as_array().map(Vec::len),
        Some(1),
        "{json}"
    );
    server.refused(
        &["x509", "mint", "-spiffeID", "spiffe://far.test/minted"],
        &["unable to mint SVID", "code = InvalidArgument"],
    );
    server.refused(
        &[
            "x509",
            "mint",
            "-spiffeID",
            "spiffe://dev.test/spire/server",
        ],
        &["code = InvalidArgument"],
    );
}

fn jwt(server: &Verbs, world: &World) {
    let mint = [
        "jwt",
        "mint",
        "-spiffeID",
        MINTED,
        "-audience",
        "bank",
        "-ttl",
        "30s",
    ];
    let token = server.text(&mint);
    assert_eq!(token.trim().split('.').count(), 3, "{token}");
    let json = server.json(&[&mint[..], &["-audience", "shop"]].concat());
    assert_eq!(json["svid"]["id"]["path"], "/minted", "{json}");
    let file = world.file("minted.jwt");
    let text = server.text(&[&mint[..], &["-write", &file]].concat());
    assert!(text.contains("JWT-SVID written to"), "{text}");
    server.refused(
        &[
            "jwt",
            "mint",
            "-spiffeID",
            "spiffe://far.test/m",
            "-audience",
            "bank",
        ],
        &["unable to mint SVID", "code = InvalidArgument"],
    );
}

/// The id of the authority in one state.
fn id(server: &Verbs, kind: &str, state: &str) -> String {
    let shown = server.json(&["localauthority", kind, "show"]);
    shown[state]["authority_id"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn turned(server: &Verbs, kind: &str) {
    let say = |verb: &str, id: &str| {
        let base = ["localauthority", kind, verb, "-authorityID", id];
        server.say(&base)
    };
    let refused = |verb: &str, id: &str, code: &str| {
        let said = say(verb, id);
        assert!(
            said.code == 1 && said.err.contains(&format!("code = {code}")),
            "{kind} {verb}: {said:?}"
        );
    };
    let first = id(server, kind, "active");
    assert!(!first.is_empty(), "{kind}");
    let text = server.text(&["localauthority", kind, "show"]);
    assert!(text.contains(&first), "{text}");
    refused("activate", "nobody", "InvalidArgument");
    refused("taint", &first, "InvalidArgument");
    refused("revoke", &first, "InvalidArgument");

    let text = server.text(&["localauthority", kind, "prepare"]);
    let next = id(server, kind, "prepared");
    assert!(!next.is_empty() && text.contains(&next), "{text}");
    // Workloads must know the new authority before it signs, so this may have to wait for the agent.
    let mut said = say("activate", &next);
    for _ in 0..40 {
        if said.code == 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(250));
        said = say("activate", &next);
    }
    assert_eq!(said.code, 0, "{kind}: {said:?}");
    assert_eq!(id(server, kind, "active"), next);
    assert_eq!(id(server, kind, "old"), first);
    refused("revoke", &first, "Internal");
    let tainted = say("taint", &first);
    assert!(
        tainted.code == 0 && tainted.out.contains(&first),
        "{kind}: {tainted:?}"
    );
    let revoked = say("revoke", &first);
    assert!(
        revoked.code == 0 && revoked.out.contains(&first),
        "{kind}: {revoked:?}"
    );
}
