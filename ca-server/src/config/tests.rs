//! The configuration's rules, with the place of each mistake.

use mesh_runtime::config::{self, Sources};

use super::*;

fn load(yaml: &str) -> Result<CaServerConfig, String> {
    let text = format!("apiVersion: config.finial.dev/v1\nkind: CaServerConfig\n{yaml}");
    config::load::<CaServerConfig>(&Sources::new().text("ca.yaml", &text))
        .map(|loaded| loaded.value)
        .map_err(|errors| errors.to_string())
}

#[test]
fn the_defaults_are_valid_and_print_defaults_loads_back_to_exactly_them() {
    let printed = config::print_defaults::<CaServerConfig>();
    let loaded = config::load::<CaServerConfig>(&Sources::new().text("defaults.yaml", &printed));
    assert_eq!(loaded.unwrap().value, CaServerConfig::default());
}

#[test]
fn an_svid_that_outlives_its_authority_is_refused_with_caret_and_both_lines() {
    let error = load("lifetimes: { x509Authority: 24h, x509Svid: 48h }\n").unwrap_err();
    assert!(
        error.contains("error[FNL0117]: x509Svid (48h) outlives x509Authority (24h)"),
        "{error}"
    );
    assert!(
        error.contains("ca.yaml:3:44      also: line 3:29"),
        "{error}"
    );
    assert!(error.contains("^^^"), "{error}");
}

#[test]
fn an_svid_longer_than_what_an_authority_has_left_at_handover_is_refused_with_the_longest_that_fits()
 {
    let error = load("lifetimes: { x509Authority: 24h, agentSvid: 5h }\n").unwrap_err();
    assert!(
        error.contains("FNL0117") && error.contains("at most 4h"),
        "{error}"
    );
}

#[test]
fn the_audit_log_is_signed_neither_without_pause_nor_hardly_ever() {
    for every in ["0s", "500ms", "61m"] {
        let error = load(&format!("audit: {{ checkpointEvery: {every} }}\n")).unwrap_err();
        assert!(error.contains("between every 1s and every 1h"), "{error}");
    }
    let config = load("audit: { checkpointEvery: 5s }\n").unwrap();
    assert_eq!(config.audit.checkpoint_every.as_secs(), 5);
}

#[test]
fn the_short_lives_of_dev_mode_are_accepted() {
    let config =
        load("lifetimes: { x509Authority: 10m, x509Svid: 20s, agentSvid: 20s }\n").unwrap();
    assert_eq!(config.lifetimes.x509_svid.as_secs(), 20);
}

#[test]
fn all_mistakes_of_a_cluster_are_told_at_once() {
    let error = load(
        "attestation:\n  node:\n    - k8sPsat: { cluster: a/b, audiences: [], serviceAccounts: [x], timeout: 1m }\n",
    )
    .unwrap_err();
    for field in [
        "cluster",
        "audience",
        "namespace:name",
        "between 1ms and 10s",
    ] {
        assert!(error.contains(field), "{field} is missing in {error}");
    }
}

#[test]
fn both_attestors_can_be_configured() {
    let config = load(
        "attestation:\n  node:\n    - joinToken: {}\n    - k8sPsat: { cluster: prod, serviceAccounts: [finial:agent] }\n",
    )
    .unwrap();
    assert_eq!(config.attestation.node.len(), 2);
}

#[test]
fn an_unknown_field_is_refused() {
    let error = load("trust_domain: dev.test\n").unwrap_err();
    assert!(
        error.contains("FNL0102") && error.contains("trustDomain"),
        "{error}"
    );
}

#[test]
fn an_uppercase_trust_domain_is_refused_and_never_normalised() {
    // ID-7
    assert!(load("trustDomain: Dev.Test\n").is_err());
}

#[test]
fn jwt_10_the_issuer_and_the_most_audiences_of_tokens_can_be_said_and_must_make_sense() {
    let text = "jwtIssuer: https://oidc.dev.test\nlimits: { audiencesPerToken: 1 }\n";
    let tokens = load(text).unwrap().authority().tokens;
    assert_eq!(tokens.issuer.as_deref(), Some("https://oidc.dev.test"));
    assert_eq!(tokens.most_audiences, 1);
    let defaults = load("").unwrap().authority().tokens;
    assert_eq!(defaults, TokenSettings::default());
    let error = load("jwtIssuer: ''\nlimits: { audiencesPerToken: 0 }\n").unwrap_err();
    assert!(
        error.contains("no space in them") && error.contains("at least one audience"),
        "{error}"
    );
}

#[test]
fn the_key_type_of_tokens_follows_that_of_certificates_unless_it_is_said() {
    let kinds = |yaml: &str| load(yaml).unwrap().authority().key_types;
    let of = |x509, jwt| KeyTypes { x509, jwt };
    assert_eq!(kinds(""), of(KeyType::EcP256, KeyType::EcP256));
    assert_eq!(
        kinds("keys: { caKeyType: rsa-4096 }\n"),
        of(KeyType::Rsa4096, KeyType::Rsa4096)
    );
    assert_eq!(
        kinds("keys: { caKeyType: ec-p384, jwtKeyType: rsa-2048 }\n"),
        of(KeyType::EcP384, KeyType::Rsa2048)
    );
    let error = load("keys: { caKeyType: rsa-1024 }\n").unwrap_err();
    assert!(error.contains("ec-p256"), "{error}");
}

#[test]
fn x509pop_needs_roots_and_stands_there_once() {
    let node = |text: &str| load(&format!("attestation: {{ node: [{text}] }}\n"));
    let error = node("x509Pop: {}").unwrap_err();
    assert!(error.contains("name at least one file"), "{error}");
    let error = node("x509Pop: { caBundles: [/a] }, x509Pop: { caBundles: [/b] }").unwrap_err();
    assert!(error.contains("stands here twice"), "{error}");
    let config = node("joinToken: {}, x509Pop: { caBundles: [/a, /b] }").unwrap();
    let NodeAttestor::X509Pop(pop) = &config.attestation.node[1] else {
        panic!("the second is x509Pop");
    };
    assert_eq!(pop.ca_bundles.len(), 2);
}

#[test]
fn only_a_member_that_is_no_agent_of_ours_can_be_an_administrator() {
    let with = |id: &str| {
        load(&format!(
            "trustDomain: dev.test\nadmin: {{ ids: [\"{id}\"] }}\n"
        ))
    };
    for id in [
        "spiffe://dev.test/ops",
        "spiffe://other.test/ops",
        "spiffe://other.test/spire/agent/x",
    ] {
        assert_eq!(with(id).expect(id).admin.ids[0].as_str(), id);
    }
    for (id, says) in [
        ("spiffe://dev.test", "is a trust domain"),
        ("spiffe://other.test", "is a trust domain"),
        ("spiffe://dev.test/spire/agent/x", "reserved"),
        ("https://other.test/ops", "starts with spiffe://"),
    ] {
        let error = with(id).expect_err(id);
        assert!(error.contains(says), "{id}: {error}");
    }
}
