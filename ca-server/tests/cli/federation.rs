//! `ca-server bundle` and `ca-server federation`: other trust domains.

use serde_json::{Value, json};

use super::server::{Server, code};

/// The authority of another trust domain in a PEM file.
fn pem(server: &Server, domain: &str) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.subject_alt_names = vec![rcgen::SanType::URI(
        format!("spiffe://{domain}").try_into().unwrap(),
    )];
    let path = server.path().join(format!("{domain}.pem"));
    std::fs::write(&path, params.self_signed(&key).unwrap().pem()).unwrap();
    path.display().to_string()
}

/// The same as a SPIFFE bundle document: what the server makes of the PEM.
fn document(server: &Server, domain: &str) -> String {
    server.text(&[
        "bundle",
        "set",
        "--id",
        domain,
        "--path",
        &pem(server, domain),
    ]);
    let listed = ["bundle", "list", "--id", domain, "--format", "spiffe"];
    let text = server.text(&listed);
    let (_, json) = text.split_once('\n').unwrap();
    let path = server.path().join(format!("{domain}.json"));
    std::fs::write(&path, json).unwrap();
    server.text(&["bundle", "delete", "--id", domain]);
    path.display().to_string()
}

#[test]
fn bundles_of_other_trust_domains_are_set_listed_counted_and_deleted() {
    let server = Server::start();
    assert_eq!(server.json(&["bundle", "count"])["count"], 1, "our own");
    assert_eq!(server.json(&["bundle", "list"])["bundles"], json!({}));
    let own = server.json(&["bundle", "show"]);
    assert_eq!(own["keys"][0]["use"], "x509-svid");

    let (pem, document) = (pem(&server, "far.test"), document(&server, "wide.test"));
    let set = server.json(&["bundle", "set", "--id", "far.test", "--path", &pem]);
    assert_eq!(set, json!({ "set": ["far.test"] }));
    let text = server.text(&[
        "bundle",
        "set",
        "-id",
        "spiffe://wide.test",
        "-path",
        &document,
        "-format",
        "spiffe",
    ]);
    assert_eq!(text, "bundle set: wide.test\n");
    assert_eq!(server.text(&["bundle", "count"]), "3 bundles\n");
    let list = server.json(&["bundle", "list"]);
    let names: Vec<_> = list["bundles"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["far.test", "wide.test"]);
    let one = server.text(&["bundle", "list", "--id", "far.test"]);
    assert!(
        one.starts_with("# far.test\n-----BEGIN CERTIFICATE-----"),
        "{one}"
    );
    let one = server.text(&["bundle", "list", "--id", "far.test", "--format", "spiffe"]);
    assert!(one.contains("x509-svid"), "{one}");

    let (exit, error) = server.refused(&["bundle", "set", "--id", "far.test", "--path", &document]);
    assert!(
        exit == 1 && error.contains("FNL1305") && error.contains("wide.test.json"),
        "{error}"
    );
    assert_eq!(
        server
            .refused(&["bundle", "set", "--id", "dev.test", "--path", &pem])
            .0,
        1
    );
    assert_eq!(server.refused(&["bundle", "list", "--id", "no.test"]).0, 1);

    let base = [
        "entry",
        "create",
        "--parent-id",
        "spiffe://dev.test/node",
        "--selector",
        "a:b",
        "--federates-with",
        "far.test",
        "--spiffe-id",
    ];
    let federating = server.json(&[&base[..], &["spiffe://dev.test/web"]].concat());
    assert_eq!(federating["federatesWith"], json!(["far.test"]));
    assert_eq!(
        server.json(&["entry", "count", "--federates-with", "far.test"])["count"],
        1
    );
    let (exit, error) = server.refused(&["bundle", "delete", "--id", "far.test"]);
    assert!(exit == 1 && error.starts_with("error[FNL1302]"), "{error}");
    assert_eq!(
        server.json(&["bundle", "delete", "-id", "far.test", "-mode", "dissociate"]),
        json!({ "deleted": ["far.test"] })
    );
    assert_eq!(
        server.json(&["entry", "show"])["entries"][0]["federatesWith"],
        json!([])
    );
    server.text(&["bundle", "delete", "--id", "wide.test", "--mode", "delete"]);
    assert_eq!(server.json(&["bundle", "count"])["count"], 1);
    assert_eq!(
        code(&server.ask(&["bundle", "delete", "--id", "far.test", "--mode", "some"])),
        2
    );
}

#[test]
fn relationships_are_made_from_flags_and_files_and_found_again() {
    let server = Server::start();
    let (far_pem, document) = (pem(&server, "far.test"), document(&server, "wide.test"));
    let web = server.json(&[
        "federation",
        "create",
        "--trust-domain",
        "far.test",
        "--bundle-endpoint-url",
        "https://far.test/bundle",
        "--bundle-endpoint-profile",
        "https_web",
        "--trust-domain-bundle-path",
        &far_pem,
        "--trust-domain-bundle-format",
        "pem",
    ]);
    let far = json!({
        "trustDomain": "far.test",
        "bundleEndpointUrl": "https://far.test/bundle",
        "bundleEndpointProfile": "https_web",
        "endpointSpiffeId": null,
    });
    assert_eq!(web["relationships"], json!([far]));
    assert_eq!(server.json(&["bundle", "count"])["count"], 2);
    let spiffe = [
        "-trustDomain",
        "wide.test",
        "-bundleEndpointURL",
        "https://wide.test/bundle",
        "-bundleEndpointProfile",
        "https_spiffe",
        "-endpointSpiffeID",
        "spiffe://wide.test/endpoint",
        "-trustDomainBundlePath",
        &document,
        "-trustDomainBundleFormat",
        "spiffe",
    ];
    let text = server.text(&[&["federation", "create"], &spiffe[..]].concat());
    assert!(
        text.contains("Endpoint ID      : spiffe://wide.test/endpoint\n"),
        "{text}"
    );
    let (exit, error) = server.refused(&[&["federation", "create"], &spiffe[..]].concat());
    assert!(exit == 1 && error.contains("error[FNL1302]"), "{error}");
    let missing = [&["federation", "create"], &spiffe[..6]].concat();
    assert_eq!(
        code(&server.ask(&missing)),
        2,
        "https_spiffe needs to know who answers"
    );

    let list = server.json(&["federation", "list"]);
    assert_eq!(list["relationships"].as_array().unwrap().len(), 2);
    assert_eq!(
        server.json(&["federation", "show", "--trust-domain", "far.test"])["relationships"],
        json!([far])
    );
    let mut moved = spiffe;
    moved[3] = "https://other.test/bundle";
    moved[6] = "--endpoint-spiffe-id";
    let updated = server.json(&[&["federation", "update"], &moved[..8]].concat());
    assert_eq!(
        updated["relationships"][0]["bundleEndpointUrl"],
        "https://other.test/bundle"
    );

    let file = server.path().join("relationships.json");
    let item = |domain: &str| {
        json!({
            "trustDomain": domain,
            "bundleEndpointURL": format!("https://{domain}/b"),
            "bundleEndpointProfile": "https_web",
            "trustDomainBundle": std::fs::read_to_string(pem(&server, domain)).unwrap(),
            "trustDomainBundleFormat": "pem",
        })
    };
    let write = |value: Value| std::fs::write(&file, value.to_string()).unwrap();
    let path = file.display().to_string();
    write(json!({ "federationRelationships": [item("a.test"), item("far.test")] }));
    let output = server.ask(&["federation", "create", "--data", &path, "-o", "json"]);
    assert_eq!(code(&output), 1);
    let made: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(made["relationships"][0]["trustDomain"], "a.test");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("FNL1306") && error.contains("far.test: "),
        "{error}"
    );
    let mut bad = item("b.test");
    bad["bundleEndpointProfile"] = json!("https_spiffe");
    write(json!({ "federationRelationships": [bad] }));
    let (_, error) = server.refused(&["federation", "create", "--data", &path]);
    assert!(
        error.contains("federationRelationships[0].endpointSPIFFEID"),
        "{error}"
    );

    for domain in ["far.test", "wide.test", "a.test"] {
        server.text(&["federation", "delete", "--id", domain]);
    }
    assert_eq!(
        server.text(&["federation", "list"]),
        "Found 0 federation relationships\n"
    );
    assert_eq!(
        server
            .refused(&["federation", "delete", "--id", "far.test"])
            .0,
        1
    );
    assert_eq!(
        server
            .refused(&["federation", "show", "--trust-domain", "far.test"])
            .0,
        1
    );
    assert_eq!(
        server
            .refused(&["federation", "refresh", "--id", "far.test"])
            .0,
        1
    );
}
