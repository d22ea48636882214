//! SPIRE's verbs for other trust domains: their bundles, and the relationships with them.

use mesh_tests::{spire::Verbs, world::World};
use serde_json::{Value, json};

/// Runs all of them, and leaves nothing behind.
pub(super) fn all(server: &Verbs, world: &World) {
    let pem = authority(world, "far.test");
    bundles(server, world, &pem);
    relationships(server, world, &pem);
}

/// The authority of another trust domain in a PEM file.
fn authority(world: &World, domain: &str) -> String {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let id = format!("spiffe://{domain}").try_into().expect("a URI");
    params.subject_alt_names = vec![rcgen::SanType::URI(id)];
    let certificate = params.self_signed(&key).expect("a certificate");
    let path = world.write(&format!("{domain}.pem"), &certificate.pem());
    path.display().to_string()
}

fn bundles(server: &Verbs, world: &World, pem: &str) {
    assert_eq!(server.text(&["bundle", "count"]), "1 bundle\n");
    let id = ["-id", "spiffe://far.test"];
    let set = [&["bundle", "set", "-path", pem], &id[..]].concat();
    assert_eq!(server.text(&set), "bundle set.\n");
    assert_eq!(server.json(&["bundle", "count"])["count"], 2);
    let stored = std::fs::read_to_string(pem).unwrap_or_default();
    let same = |listed: &str| {
        listed
            .replace("\r", "")
            .contains(stored.replace('\r', "").trim())
    };
    let listed = server.text(&["bundle", "list"]);
    assert!(listed.contains("* far.test") && same(&listed), "{listed}");
    assert!(same(&server.text(&[&["bundle", "list"], &id[..]].concat())));
    let document = server.text(&[&["bundle", "list", "-format", "spiffe"], &id[..]].concat());
    let path = world.write("far.json", &document).display().to_string();
    let set = [
        &["bundle", "set", "-format", "spiffe", "-path", &path],
        &id[..],
    ]
    .concat();
    assert_eq!(server.text(&set), "bundle set.\n");
    let listed = server.json(&["bundle", "list"]);
    assert_eq!(listed["bundles"][0]["trust_domain"], "far.test", "{listed}");
    server.refused(
        &["bundle", "list", "-id", "spiffe://no.test"],
        &["code = NotFound", "bundle not found"],
    );
    let own = authority(world, "dev.test");
    server.refused(
        &["bundle", "set", "-id", "spiffe://dev.test", "-path", &own],
        &["failed to set federated bundle"],
    );

    let federating = |entry: &str| {
        let name = format!("spiffe://dev.test/federating/{entry}");
        let base = [
            "entry",
            "create",
            "-parentID",
            "spiffe://dev.test/parent",
            "-selector",
            "a:b",
        ];
        let more = [
            "-entryID",
            entry,
            "-spiffeID",
            &name,
            "-federatesWith",
            "spiffe://far.test",
        ];
        server.json(&[&base[..], &more].concat())
    };
    let created = federating("federating");
    let entry = &created["results"][0]["entry"];
    assert_eq!(entry["federates_with"], json!(["far.test"]), "{created}");
    let finds = [
        "entry",
        "count",
        "-federatesWith",
        "spiffe://far.test",
        "-matchFederatesWithOn",
    ];
    for how in ["exact", "any", "superset", "subset"] {
        assert_eq!(
            server.json(&[&finds[..], &[how]].concat())["count"],
            1,
            "{how}"
        );
    }
    let delete = |mode: &[&'static str]| [&["bundle", "delete", "-id", "far.test"], mode].concat();
    server.refused(
        &delete(&[]),
        &["failed to delete federated bundle", "far.test"],
    );
    assert_eq!(
        server.text(&delete(&["-mode", "dissociate"])),
        "bundle deleted.\n"
    );
    let shown = server.json(&["entry", "show", "-entryID", "federating"]);
    assert_eq!(shown["entries"][0]["federates_with"], json!([]), "{shown}");
    server.refused(&delete(&[]), &["bundle not found"]);
    server.text(&set);
    federating("with-it");
    server.text(&delete(&["-mode", "delete"]));
    server.refused(
        &["entry", "show", "-entryID", "with-it"],
        &["code = NotFound"],
    );
    server.text(&["entry", "delete", "-entryID", "federating"]);
}

fn relationships(server: &Verbs, world: &World, pem: &str) {
    let none = server.text(&["federation", "list"]);
    assert!(none.contains("Found 0 federation relationships"), "{none}");
    let web = [
        "-trustDomain",
        "far.test",
        "-bundleEndpointURL",
        "https://far.test/bundle",
        "-bundleEndpointProfile",
        "https_web",
        "-trustDomainBundlePath",
        pem,
    ];
    let create = [&["federation", "create"], &web[..]].concat();
    let created = server.text(&create);
    for row in [
        "Trust domain              : far.test",
        "Bundle endpoint URL       : https://far.test/bundle",
        "Bundle endpoint profile   : https_web",
    ] {
        assert!(created.contains(row), "no {row:?} in {created}");
    }
    assert_eq!(
        server.json(&["bundle", "count"])["count"],
        2,
        "the first bundle is there"
    );
    server.refused(
        &create,
        &[
            "code: AlreadyExists",
            "failed to create one or more federation relationships",
        ],
    );
    let spiffe = [
        "-trustDomain",
        "far.test",
        "-bundleEndpointURL",
        "https://new.far.test/bundle",
        "-bundleEndpointProfile",
        "https_spiffe",
        "-endpointSpiffeID",
        "spiffe://far.test/endpoint",
    ];
    let updated = server.json(&[&["federation", "update"], &spiffe[..]].concat());
    let relationship = &updated["results"][0]["federation_relationship"];
    assert_eq!(
        relationship["https_spiffe"]["endpoint_spiffe_id"], "spiffe://far.test/endpoint",
        "{updated}"
    );
    let mut unknown = spiffe;
    unknown[1] = "no.test";
    unknown[7] = "spiffe://no.test/endpoint";
    server.refused(
        &[&["federation", "update"], &unknown[..]].concat(),
        &["code: NotFound"],
    );
    let shown = server.text(&["federation", "show", "-trustDomain", "far.test"]);
    assert!(
        shown.contains("Endpoint SPIFFE ID        : spiffe://far.test/endpoint"),
        "{shown}"
    );
    server.refused(
        &["federation", "show", "-trustDomain", "no.test"],
        &["code = NotFound"],
    );

    // Nobody listens there, and what is known stays.
    let mut silent = web;
    silent[3] = "https://127.0.0.1:1/bundle";
    server.text(&[&["federation", "update"], &silent[..]].concat());
    server.refused(
        &["federation", "refresh", "-id", "far.test"],
        &["failed to refresh bundle"],
    );
    server.refused(
        &["federation", "refresh", "-id", "no.test"],
        &["there is no federation relationship with trust domain"],
    );
    assert_eq!(server.json(&["bundle", "count"])["count"], 2);

    let data = json!({ "federationRelationships": [
        { "trustDomain": "a.test", "bundleEndpointURL": "https://a.test/b", "bundleEndpointProfile": "https_web" },
        { "trustDomain": "b.test", "bundleEndpointURL": "https://b.test/b", "bundleEndpointProfile": "https_web" },
    ] });
    let file = world
        .write("relationships.json", &data.to_string())
        .display()
        .to_string();
    server.text(&["federation", "create", "-data", &file]);
    let listed = server.json(&["federation", "list"]);
    let names: Vec<_> = listed["federation_relationships"]
        .as_array()
        .map(|all| {
            all.iter()
                .filter_map(|one: &Value| one["trust_domain"].as_str())
                .collect()
        })
        .unwrap_or_default();
    assert_eq!(names, ["a.test", "b.test", "far.test"], "{listed}");
    for name in names {
        let text = server.text(&["federation", "delete", "-id", name]);
        assert_eq!(text, "federation relationship deleted.\n");
    }
    server.refused(
        &["federation", "delete", "-id", "far.test"],
        &["failed to delete federation relationship"],
    );
    server.text(&["bundle", "delete", "-id", "far.test"]);
}
