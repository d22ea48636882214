//! What each name means, with plain values.

use std::{sync::Arc, time::Duration};

use mesh_identity::{
    Bundle, Entry,
    test_util::{self, Made, Spec},
};
use proto::envoy::{config::core::v3::BuildVersion, r#type::v3::SemanticVersion};

use super::*;
use crate::vault::{HeldSvid, SvidKey};

fn identity(root: &Made, id: &str) -> Identity {
    let until = test_util::now() + Duration::from_secs(3600);
    let leaf = root.sign(Spec::leaf(id).valid(test_util::now(), until));
    let entry = Entry {
        id: "e".parse().unwrap(),
        spiffe_id: id.parse().unwrap(),
        parent_id: "spiffe://dev.test/agent".parse().unwrap(),
        selectors: BTreeSet::new(),
        x509_svid_ttl: None,
        jwt_svid_ttl: None,
        federates_with: BTreeSet::new(),
        admin: false,
        downstream: false,
        expires_at: None,
        dns_names: Vec::new(),
        revision: 1,
        store_svid: false,
        hint: String::new(),
        created_at: test_util::now(),
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    };
    Identity {
        held: Arc::new(HeldSvid {
            entry: Arc::new(entry),
            svid: leaf.svid(),
            key: SvidKey::from_pkcs8(leaf.key_pkcs8()),
            renew_at: until,
        }),
        hint: String::new(),
    }
}

/// Two identities of dev.test, which federates with a.test.
fn state() -> IdentitySet {
    let root = Made::root("dev.test");
    let bundle = |root: &Made, domain: &str| Arc::new(root.bundle(domain));
    IdentitySet {
        identities: vec![
            identity(&root, "spiffe://dev.test/pay"),
            identity(&root, "spiffe://dev.test/ad"),
        ],
        bundle: bundle(&root, "dev.test"),
        federated: [(
            "a.test".parse().unwrap(),
            bundle(&Made::root("a.test"), "a.test"),
        )]
        .into(),
        waiting: Vec::new(),
    }
}

fn asked(names: &[&str]) -> Asked {
    Asked {
        all: names.is_empty(),
        names: names.iter().map(|&name| name.into()).collect(),
    }
}

fn ask(state: &IdentitySet, names: &[&str], validator: Validator) -> Result<Vec<Secret>, NotGiven> {
    secrets(state, &asked(names), &SdsOptions::default(), validator)
}

fn names(secrets: &[Secret]) -> Vec<&str> {
    secrets.iter().map(|secret| &*secret.name).collect()
}

fn read(secret: &Secret) -> tls::secret::Type {
    assert_eq!(secret.resource.type_url, SECRET);
    let read = tls::Secret::decode(&*secret.resource.value).unwrap();
    assert_eq!(read.name, secret.name);
    read.r#type.unwrap()
}

/// Trust domain and PEM of a context for the SPIFFE validator.
fn domains(secret: &Secret) -> Vec<(String, String)> {
    let tls::secret::Type::ValidationContext(context) = read(secret) else {
        panic!("no validation context");
    };
    assert_eq!(context.trusted_ca, None);
    let custom = context.custom_validator_config.unwrap();
    assert_eq!(custom.name, "envoy.tls.cert_validator.spiffe");
    let config = custom.typed_config.unwrap();
    assert_eq!(config.type_url, VALIDATOR_CONFIG);
    let config = tls::SpiffeCertValidatorConfig::decode(&*config.value).unwrap();
    let domains = config.trust_domains.into_iter();
    domains
        .map(|d| {
            (
                d.name,
                String::from_utf8(d.trust_bundle.unwrap().inline_bytes).unwrap(),
            )
        })
        .collect()
}

#[test]
fn the_default_name_and_the_id_give_a_certificate_with_its_key_in_pem() {
    let state = state();
    for (name, at) in [("default", 0), ("spiffe://dev.test/ad", 1)] {
        let found = ask(&state, &[name], Validator::Spiffe).unwrap();
        let tls::secret::Type::TlsCertificate(found_tls) = read(&found[0]) else {
            panic!("no certificate");
        };
        let held = &state.identities[at].held;
        assert_eq!(
            found_tls.certificate_chain.unwrap().inline_bytes,
            held.svid.to_pem().into_bytes()
        );
        let key = String::from_utf8(found_tls.private_key.unwrap().inline_bytes).unwrap();
        assert!(key.starts_with("-----BEGIN PRIVATE KEY-----\n"));
        assert_eq!(
            found[0].identity,
            Some((held.svid.id().to_string(), held.svid.serial().into()))
        );
    }
}

#[test]
fn bundles_are_found_by_their_names_and_sorted_in_the_one_for_all() {
    let state = state();
    let own = ("dev.test".to_owned(), state.bundle.to_pem());
    let other = state.federated.values().next().unwrap();
    let other = ("a.test".to_owned(), other.to_pem());
    for (name, wanted) in [
        ("ROOTCA", vec![own.clone()]),
        ("spiffe://dev.test", vec![own.clone()]),
        ("spiffe://a.test", vec![other.clone()]),
        ("ALL", vec![other, own]),
    ] {
        let found = ask(&state, &[name], Validator::Spiffe).unwrap();
        assert_eq!(domains(&found[0]), wanted, "{name}");
    }
}

#[test]
fn several_names_are_all_answered_also_those_that_mean_the_same() {
    let found = ask(
        &state(),
        &[
            "ROOTCA",
            "ALL",
            "spiffe://dev.test",
            "default",
            "spiffe://dev.test/pay",
        ],
        Validator::Spiffe,
    )
    .unwrap();
    assert_eq!(found.len(), 5);
}

#[test]
fn without_a_name_everything_comes_under_its_id() {
    let found = ask(&state(), &[], Validator::Spiffe).unwrap();
    assert_eq!(
        names(&found),
        [
            "spiffe://a.test",
            "spiffe://dev.test",
            "spiffe://dev.test/ad",
            "spiffe://dev.test/pay"
        ]
    );
}

#[test]
fn one_name_that_is_not_the_callers_refuses_the_whole_request_and_is_named_in_bounds() {
    let state = state();
    for stranger in [
        "spiffe://dev.test/other",
        "spiffe://c.test",
        "rootca",
        "",
        "*",
    ] {
        let error = ask(&state, &["default", stranger], Validator::Spiffe).err();
        assert_eq!(error, Some(NotGiven::NotYours(vec![stranger.into()])));
    }
    let many: Vec<String> = (0..100)
        .map(|n| format!("{n}\n{}", "x".repeat(10_000)))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let told = ask(&state, &many, Validator::Spiffe)
        .err()
        .unwrap()
        .to_string();
    assert!(told.len() < 4096 && !told.contains('\n'), "{}", told.len());
}

#[test]
fn plain_roots_hold_one_trust_domain_and_the_name_for_all_has_no_answer() {
    let state = state();
    let found = ask(&state, &["ROOTCA"], Validator::TrustedCa).unwrap();
    let tls::secret::Type::ValidationContext(context) = read(&found[0]) else {
        panic!("no validation context");
    };
    assert_eq!(context.custom_validator_config, None);
    assert_eq!(
        context.trusted_ca.unwrap().inline_bytes,
        state.bundle.to_pem().into_bytes()
    );
    assert_eq!(
        ask(&state, &["ALL"], Validator::TrustedCa).err(),
        Some(NotGiven::NeedsValidator("ALL".into()))
    );
}

#[test]
fn names_follow_the_configuration() {
    let options = SdsOptions {
        default_svid_name: "mine".into(),
        default_bundle_name: "ours".into(),
        default_all_bundles_name: "everyones".into(),
        ..SdsOptions::default()
    };
    let state = state();
    let found = secrets(
        &state,
        &asked(&["mine", "ours", "everyones"]),
        &options,
        Validator::Spiffe,
    );
    assert_eq!(names(&found.unwrap()), ["everyones", "mine", "ours"]);
    assert!(secrets(&state, &asked(&["default"]), &options, Validator::Spiffe).is_err());
}

#[test]
fn a_trust_domain_without_roots_is_left_out_and_cannot_be_asked_for() {
    let mut state = state();
    let domain: mesh_identity::TrustDomain = "empty.test".parse().unwrap();
    let empty = Bundle::from_spiffe_json(domain.clone(), br#"{"keys":[]}"#).unwrap();
    state.federated.insert(domain, Arc::new(empty));
    let all = ask(&state, &["ALL"], Validator::Spiffe).unwrap();
    assert_eq!(domains(&all[0]).len(), 2);
    assert!(ask(&state, &["spiffe://empty.test"], Validator::Spiffe).is_err());
}

#[test]
fn a_version_is_the_contents_own() {
    let (one, two) = (state(), state());
    let version = |state: &IdentitySet, name| {
        let found = ask(state, &[name], Validator::Spiffe).unwrap();
        found[0].version.clone()
    };
    for name in ["default", "ROOTCA", "ALL"] {
        assert_eq!(version(&one, name), version(&one, name));
        assert_ne!(version(&one, name), version(&two, name));
    }
}

#[test]
fn the_validator_is_what_operators_want_and_this_envoy_can() {
    let metadata = |value| Node {
        metadata: Some(prost_types::Struct {
            fields: [(
                NO_VALIDATOR.to_owned(),
                prost_types::Value { kind: Some(value) },
            )]
            .into(),
        }),
        ..Node::default()
    };
    let build = |major_number, minor_number| Node {
        user_agent_version_type: Some(UserAgentVersionType::UserAgentBuildVersion(BuildVersion {
            version: Some(SemanticVersion {
                major_number,
                minor_number,
            }),
        })),
        ..Node::default()
    };
    use prost_types::value::Kind;
    let text = |text: &str| metadata(Kind::StringValue(text.into()));
    let options = SdsOptions::default();
    for node in [
        metadata(Kind::BoolValue(true)),
        text("true"),
        text("1"),
        build(1, 17),
        build(1, 9),
        build(0, 99),
    ] {
        assert_eq!(Validator::of(Some(&node), &options), Validator::TrustedCa);
    }
    for node in [
        Node::default(),
        metadata(Kind::BoolValue(false)),
        metadata(Kind::NumberValue(1.0)),
        text("false"),
        text("yes"),
        build(1, 18),
        build(2, 0),
    ] {
        assert_eq!(Validator::of(Some(&node), &options), Validator::Spiffe);
    }
    assert_eq!(Validator::of(None, &options), Validator::Spiffe);
    let disabled = SdsOptions {
        disable_spiffe_cert_validation: true,
        ..options
    };
    assert_eq!(Validator::of(None, &disabled), Validator::TrustedCa);
}
