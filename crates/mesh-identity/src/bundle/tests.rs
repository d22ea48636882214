//! Tests of `bundle.rs` and its pages.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::test_util::{KeyKind, Made, Spec, jwt::JwtSigner, now, usage};

fn td() -> TrustDomain {
    "td".parse().unwrap()
}

fn parse(document: &Value) -> Result<Bundle, BundleError> {
    Bundle::from_spiffe_json(td(), document.to_string().as_bytes())
}

fn published(bundle: &Bundle) -> Value {
    serde_json::from_slice(&bundle.to_spiffe_json()).unwrap()
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// A key as SPIRE publishes it.
fn key(root: &Made) -> Value {
    published(&root.bundle("td"))["keys"][0].clone()
}

fn keys_used(document: &Value) -> usize {
    parse(document).unwrap().x509_authorities().len()
}

// --- publishing

#[test]
fn x509_30_a_published_key_has_the_use_x509_svid() {
    assert_eq!(key(&Made::root("td"))["use"], "x509-svid");
}

#[test]
fn x509_31_a_published_key_has_no_kid_at_all() {
    let key = key(&Made::root("td"));
    assert!(!key.as_object().unwrap().contains_key("kid")); // absent, not empty
}

#[test]
fn x509_32_x509_33_a_published_key_has_one_certificate_in_standard_base64_with_padding() {
    for _ in 0..4 {
        let root = Made::root("td"); // lengths differ, and so does the padding
        let key = key(&root);
        let x5c = key["x5c"].as_array().unwrap();
        assert_eq!(x5c.len(), 1);
        assert_eq!(x5c[0], base64(&root.der));
    }
}

#[test]
fn tdb_10_a_published_key_has_kty_and_use_with_the_parameters_of_its_kind() {
    for (kind, kty, crv) in [
        (KeyKind::P256, "EC", "P-256"),
        (KeyKind::P384, "EC", "P-384"),
        (KeyKind::Ed25519, "OKP", "Ed25519"),
    ] {
        let root = Made::root_with(Spec {
            key: kind,
            ..Spec::authority("td", "root")
        });
        let key = key(&root);
        assert_eq!(
            (&key["kty"], &key["crv"], &key["use"]),
            (&json!(kty), &json!(crv), &json!("x509-svid"))
        );
    }
}

#[test]
fn tdb_11_a_published_document_holds_defined_members_only() {
    let root = Made::root("td");
    let bundle = root
        .bundle("td")
        .with_sequence(7)
        .with_refresh_hint(Some(Duration::from_secs(9)));
    let document = published(&bundle);
    let names = |value: &Value| {
        value
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(
        names(&document),
        ["keys", "spiffe_refresh_hint", "spiffe_sequence"]
    );
    assert_eq!(
        names(&document["keys"][0]),
        ["crv", "kty", "use", "x", "x5c", "y"]
    );
}

#[test]
fn tdb_2_tdb_3_the_sequence_is_an_integer_of_64_bits() {
    let root = Made::root("td");
    for sequence in [0, 1, 1 << 53, (1 << 53) + 1, u64::MAX] {
        let bundle = root.bundle("td").with_sequence(sequence);
        let text = String::from_utf8(bundle.to_spiffe_json()).unwrap();
        assert!(
            text.contains(&format!("\"spiffe_sequence\":{sequence}")),
            "{text}"
        );
        let read = Bundle::from_spiffe_json(td(), text.as_bytes()).unwrap();
        assert_eq!(
            (read.sequence(), read.declared_sequence()),
            (sequence, Some(sequence))
        );
    }
    let without = parse(&json!({"keys": []})).unwrap();
    assert_eq!((without.sequence(), without.declared_sequence()), (0, None));
}

#[test]
fn tdb_3_a_sequence_that_is_no_integer_is_refused() {
    for wrong in [
        json!(1.0),
        json!(1.5),
        json!(-1),
        json!("1"),
        json!(null),
        json!([1]),
        json!(1e3),
    ] {
        let error = parse(&json!({"keys": [], "spiffe_sequence": wrong})).unwrap_err();
        assert!(
            matches!(error, BundleError::Json { .. }),
            "{wrong}: {error:?}"
        );
    }
    let too_large = br#"{"keys":[],"spiffe_sequence":18446744073709551616}"#;
    assert!(Bundle::from_spiffe_json(td(), too_large).is_err());
}

#[test]
fn tdb_5_tdb_6_the_refresh_hint_is_published_in_whole_seconds() {
    let hint = Duration::from_millis(300_900);
    let bundle = Made::root("td").bundle("td").with_refresh_hint(Some(hint));
    assert_eq!(published(&bundle)["spiffe_refresh_hint"], 300);
    assert_eq!(bundle.refresh_hint(), Some(Duration::from_secs(300)));
    assert_eq!(parse(&published(&bundle)).unwrap(), bundle);
    for wrong in [json!(0.5), json!(-300), json!("300"), json!(null)] {
        assert!(
            parse(&json!({"keys": [], "spiffe_refresh_hint": wrong})).is_err(),
            "{wrong}"
        );
    }
}

#[test]
fn tdb_7_keys_are_published_even_when_there_are_none() {
    let empty = Bundle::new(td(), []).unwrap();
    assert_eq!(empty.to_spiffe_json(), br#"{"keys":[]}"#);
}

// --- reading

#[test]
fn tdb_1_a_minimal_document_and_undefined_members_are_accepted() {
    let root = Made::root("td");
    let full = key(&root);
    let minimal = json!({"keys": [{"kty": "EC", "use": "x509-svid", "x5c": full["x5c"]}]});
    assert_eq!(keys_used(&minimal), 1);
    let mut extended = full.clone();
    extended["kid"] = json!("");
    extended["future"] = json!({"deep": [1, 2]});
    extended["alg"] = json!("ES256");
    let document = json!({"keys": [extended], "future": true, "spiffe_future": [1]});
    assert_eq!(parse(&document).unwrap(), root.bundle("td"));
}

#[test]
fn tdb_7_a_document_without_keys_is_refused() {
    for text in [
        "",
        "{}",
        "[]",
        "null",
        "7",
        "\"keys\"",
        r#"{"keys":null}"#,
        r#"{"keys":{}}"#,
        r#"{"keys":"x"}"#,
        r#"{"Keys":[]}"#,
        r#"{"keys":[}"#,
        r#"{"keys":[]}x"#,
        r#"{"keys":[]} {}"#,
        r#"{"keys":[7]}"#,
        r#"{"keys":[],"keys":[]}"#,
        "{\"keys\":[],}",
        "\u{feff}{\"keys\":[]}",
    ] {
        let error = Bundle::from_spiffe_json(td(), text.as_bytes()).unwrap_err();
        assert!(
            matches!(error, BundleError::Json { .. }),
            "{text:?}: {error:?}"
        );
    }
    assert!(Bundle::from_spiffe_json(td(), b"{\"keys\":[],\"\xff\":1}").is_err());
}

#[test]
fn an_array_in_place_of_an_object_is_refused_at_every_level() {
    let key = key(&Made::root("td"));
    let members = json!([
        key["kty"], key["use"], key["x5c"], null, null, null, null, null
    ]);
    for document in [
        json!([[]]),
        json!([[key], 1, 2]),
        json!({"keys": [members]}),
    ] {
        assert!(
            matches!(parse(&document), Err(BundleError::Json { .. })),
            "{document}"
        );
    }
    for document in [json!([{}]), json!({"trust_domains": {"td": [[]]}})] {
        let error = BundleSet::from_bundle_map_json(document.to_string().as_bytes()).unwrap_err();
        assert!(matches!(error, BundleError::Json { .. }), "{document}");
    }
}

#[test]
fn an_error_in_a_document_names_line_and_column() {
    let error = Bundle::from_spiffe_json(td(), b"{\n  \"keys\": 7\n}").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the bundle is not a SPIFFE bundle document: line 2, column 11: invalid type: integer `7`, expected a sequence"
    );
}

#[test]
fn an_error_quotes_no_more_than_a_line_of_a_strangers_document() {
    let long = "x".repeat(100_000);
    let error = parse(&json!({"keys": long})).unwrap_err();
    assert!(error.to_string().len() < 400, "{}", error.to_string().len());
    let error = parse(&json!({"keys": "\u{1b}[2J\n"}))
        .unwrap_err()
        .to_string();
    assert!(
        !error.contains('\u{1b}') && !error.contains('\n'),
        "{error}"
    );
}

#[test]
fn a_member_that_occurs_twice_is_refused() {
    let root = Made::root("td");
    let good = serde_json::to_string(&key(&root)).unwrap();
    let twice = good.replacen("\"kty\":\"EC\"", "\"kty\":\"EC\",\"kty\":\"EC\"", 1);
    let document = format!("{{\"keys\":[{twice}]}}");
    assert!(matches!(
        Bundle::from_spiffe_json(td(), document.as_bytes()),
        Err(BundleError::Json { what, .. }) if what.contains("duplicate field")
    ));
}

#[test]
fn fe_02_tdb_8_tdb_10_keys_of_an_unknown_kty_or_use_are_ignored_and_the_rest_is_kept() {
    let root = Made::root("td");
    let good = key(&root);
    let with = |member: &str, value: Value| {
        let mut key = good.clone();
        key[member] = value;
        key
    };
    let without = |member: &str| {
        let mut key = good.clone();
        key.as_object_mut().unwrap().remove(member);
        key
    };
    let ignored = [
        with("kty", json!("AKP")),
        with("kty", json!("oct")),
        with("kty", json!("ec")),
        with("kty", json!(7)),
        without("kty"),
        with("use", json!("wit-svid")),
        with("use", json!("X509-SVID")),
        with("use", json!("sig")),
        with("use", json!("")),
        with("use", json!(["x509-svid"])),
        without("use"),
        json!({}),
        json!({"kty": "AKP", "use": "x509-svid", "x5c": "whatever"}),
    ];
    for key in &ignored {
        let document = json!({"keys": [key, good, key]});
        assert_eq!(parse(&document).unwrap(), root.bundle("td"), "{key}");
    }
}

#[test]
fn fe_03_x509_35_a_key_whose_x5c_is_missing_or_empty_is_ignored_and_the_rest_is_kept() {
    let root = Made::root("td");
    let good = key(&root);
    let mut missing = good.clone();
    missing.as_object_mut().unwrap().remove("x5c");
    let mut empty = good.clone();
    empty["x5c"] = json!([]);
    let document = json!({"keys": [missing, good, empty]});
    assert_eq!(parse(&document).unwrap(), root.bundle("td"));
    assert_eq!(keys_used(&json!({"keys": [missing, empty]})), 0);
}

#[test]
fn fe_03_x509_36_of_several_certificates_in_x5c_only_the_first_counts() {
    let (root, other) = (Made::root("td"), Made::root("td"));
    let mut key = key(&root);
    for second in [json!(base64(&other.der)), json!("rubbish"), json!(7)] {
        key["x5c"] = json!([base64(&root.der), second]);
        assert_eq!(parse(&json!({"keys": [key]})).unwrap(), root.bundle("td"));
    }
}

#[test]
fn a_damaged_certificate_refuses_the_document_whole() {
    let root = Made::root("td");
    let good = key(&root);
    let standard = base64(&root.der);
    let mut cut = root.der.to_vec();
    cut.pop();
    for x5c in [
        json!("text"),
        json!([7]),
        json!([null]),
        json!([""]),
        json!([standard.trim_end_matches('=').to_owned() + "*"]),
        json!([format!("{standard}\n")]),
        json!([format!(" {standard}")]),
        json!([base64(&cut)]),
        json!([base64(&[&root.der[..], b"\0"].concat())]),
        json!([root.bundle("td").to_pem()]),
    ] {
        let mut bad = good.clone();
        bad["x5c"] = x5c;
        let error = parse(&json!({"keys": [good, bad]})).unwrap_err();
        let place = matches!(
            error,
            BundleError::X5c { position: 1 } | BundleError::Unreadable { position: 1, .. }
        );
        assert!(place, "{error:?}");
    }
}

#[test]
fn x509_32_base64url_in_x5c_is_refused() {
    // 0xfb 0xff gives "+/8=" and "-_8=": make a certificate whose base64 holds such a letter
    let root = (0..50)
        .map(|_| Made::root("td"))
        .find(|root| base64(&root.der).contains(['+', '/']))
        .unwrap();
    let mut bad = key(&root);
    bad["x5c"] = json!([base64(&root.der).replace('+', "-").replace('/', "_")]);
    assert_eq!(
        parse(&json!({"keys": [bad]})),
        Err(BundleError::X5c { position: 0 })
    );
    let mut unpadded = key(&root);
    let padded = (0..50)
        .map(|_| Made::root("td"))
        .find(|root| root.der.len() % 3 != 0)
        .unwrap();
    unpadded["x5c"] = json!([base64(&padded.der).trim_end_matches('=')]);
    assert_eq!(
        parse(&json!({"keys": [unpadded]})),
        Err(BundleError::X5c { position: 0 })
    );
}

#[test]
fn key_parameters_that_are_not_those_of_the_certificate_refuse_the_document() {
    let (root, other) = (Made::root("td"), Made::root("td"));
    for (member, value) in [
        ("kty", json!("RSA")),
        ("kty", json!("OKP")),
        ("crv", json!("P-384")),
        ("x", key(&other)["x"].clone()),
        ("y", key(&other)["y"].clone()),
        ("y", json!(7)),
    ] {
        let mut bad = key(&root);
        bad[member] = value;
        assert_eq!(
            parse(&json!({"keys": [bad]})),
            Err(BundleError::OtherKey { position: 0 }),
            "{member}"
        );
    }
}

// --- roots

fn root_refused(spoil: impl FnOnce(&mut Spec), expected: ProfileError) {
    let mut spec = Spec::authority("td", "root");
    spoil(&mut spec);
    let root = Made::root_with(spec);
    let error = X509Authority::parse(root.der.clone()).unwrap_err();
    assert_eq!(
        error,
        BundleError::Profile {
            position: 0,
            source: expected.clone()
        }
    );
    assert_eq!(error.code(), expected.code());
    let good = Made::root("td");
    let der = [good.der.as_ref(), root.der.as_ref()].concat();
    let whole = Bundle::from_der_concat(td(), &der).unwrap_err();
    assert_eq!(
        whole,
        BundleError::Profile {
            position: 1,
            source: expected
        }
    );
}

#[test]
fn m2_roots_are_checked_when_a_bundle_is_loaded() {
    root_refused(|spec| spec.ca = None, ProfileError::NotAuthority);
    root_refused(|spec| spec.ca = Some(false), ProfileError::NotAuthority);
    root_refused(
        |spec| spec.basic_constraints_critical = false,
        ProfileError::BasicConstraintsNotCritical,
    );
    root_refused(|spec| spec.key_usage = None, ProfileError::NoKeyUsage);
    root_refused(
        |spec| spec.key_usage_critical = false,
        ProfileError::KeyUsageNotCritical,
    );
    root_refused(
        |spec| spec.key_usage = Some(usage::CRL_SIGN),
        ProfileError::NoKeyCertSign,
    );
    root_refused(
        |spec| (spec.subject, spec.san_critical) = (None, true),
        ProfileError::NoSubject,
    );
    root_refused(
        |spec| spec.extra.push((vec![1, 2, 3], true, vec![5, 0])),
        ProfileError::UnknownCritical("1.2.3".into()),
    );
    root_refused(
        |spec| spec.uris = vec![b"spiffe://td/ca".to_vec()],
        ProfileError::AuthorityWithPath("spiffe://td/ca".parse().unwrap()),
    );
    root_refused(
        |spec| spec.eku = Some(vec![crate::test_util::purpose::CODE_SIGNING]),
        ProfileError::ExtendedKeyUsage("serverAuth"),
    );
    root_refused(
        |spec| spec.permitted = vec![(6, b"td".to_vec())],
        ProfileError::UriConstraints,
    );
}

#[test]
fn id_21_a_root_of_another_trust_domain_does_not_get_into_a_bundle() {
    let root = Made::root("other");
    let expected = ProfileError::ForeignAuthority {
        id: "spiffe://other".parse().unwrap(),
        expected: td(),
    };
    for error in [
        Bundle::new(td(), [root.authority()]).unwrap_err(),
        Bundle::from_der_concat(td(), &root.der).unwrap_err(),
        Bundle::from_pem(td(), root.bundle("other").to_pem().as_bytes()).unwrap_err(),
        Bundle::from_spiffe_json(td(), &root.bundle("other").to_spiffe_json()).unwrap_err(),
    ] {
        assert_eq!(
            error,
            BundleError::Profile {
                position: 0,
                source: expected.clone()
            }
        );
    }
}

#[test]
fn a_root_without_an_id_or_with_serial_number_zero_is_accepted() {
    let spec = Spec {
        uris: Vec::new(),
        serial: Some(vec![0]),
        ..Spec::authority("td", "old root")
    };
    let root = Made::root_with(spec);
    assert_eq!(root.bundle("td").x509_authorities()[0].id(), None);
}

#[test]
fn x509_34_a_published_root_is_the_self_signed_one_that_was_put_in() {
    let root = Made::root("td");
    let document = published(&root.bundle("td"));
    let read = parse(&document).unwrap();
    let der = read.x509_authorities()[0].der();
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    let (_, certificate) = X509Certificate::from_der(der).unwrap();
    certificate.verify_signature(None).unwrap();
}

#[test]
fn an_authority_says_what_it_is() {
    let spec = Spec::authority("td", "root").valid(now(), now() + Duration::from_secs(60));
    let root = Made::root_with(spec).authority();
    assert_eq!(
        (root.not_before(), root.not_after()),
        (now(), now() + Duration::from_secs(60))
    );
    assert!(root.is_valid_at(now()) && root.is_valid_at(now() + Duration::from_secs(60)));
    assert!(!root.is_valid_at(now() - Duration::from_secs(1)));
    assert!(!root.is_valid_at(now() + Duration::from_secs(61)));
    assert_eq!(root.subject_key_id().len(), 40);
    assert_eq!(root.id().unwrap().as_str(), "spiffe://td");
    assert!(root.clone().with_tainted(true).is_tainted() && !root.is_tainted());
}

#[test]
fn a_key_that_we_cannot_verify_with_is_refused_by_name() {
    // A P-256 point under the OID of P-521, and a 1024 bit modulus.
    let ec = crate::test_util::Made::root("td").spki();
    assert!(jwk::Key::of_certificate(&ec).is_some());
    let mut other_curve = ec.clone();
    let at = ec.windows(3).position(|w| w == [3, 1, 7]).unwrap();
    other_curve[at + 2] = 6;
    assert_eq!(jwk::Key::of_certificate(&other_curve), None);
    let rsa = |bytes: usize| {
        use crate::test_util::{oid_bytes, tlv};
        let modulus = [vec![0, 0xc1], vec![7; bytes - 1]].concat();
        let key = tlv(0x30, &[tlv(2, &modulus), tlv(2, &[1, 0, 1])].concat());
        let algorithm = [
            tlv(6, &oid_bytes(&[1, 2, 840, 113_549, 1, 1, 1])),
            vec![5, 0],
        ]
        .concat();
        tlv(
            0x30,
            &[tlv(0x30, &algorithm), tlv(3, &[vec![0], key].concat())].concat(),
        )
    };
    assert!(matches!(jwk::Key::of(&rsa(256)), Some(jwk::Key::Rsa { e, .. }) if e == [1, 0, 1]));
    assert_eq!(jwk::Key::of(&rsa(128)), None);
    assert_eq!(jwk::Key::of(&rsa(1025)), None);
}

// --- the other forms

#[test]
fn wapi_24_pem_and_concatenated_der_read_back() {
    let (one, two) = (Made::root("td"), Made::root("td"));
    let bundle = Bundle::new(td(), [one.authority(), two.authority()]).unwrap();
    assert_eq!(
        Bundle::from_pem(td(), bundle.to_pem().as_bytes()).unwrap(),
        bundle
    );
    assert_eq!(
        Bundle::from_der_concat(td(), &bundle.to_der_concat()).unwrap(),
        bundle
    );
    assert_eq!(
        bundle.to_der_concat(),
        [one.der.as_ref(), two.der.as_ref()].concat()
    );
    assert!(
        Bundle::from_der_concat(td(), b"")
            .unwrap()
            .x509_authorities()
            .is_empty()
    );
    assert_eq!(
        Bundle::from_pem(td(), b"# none\n"),
        Err(BundleError::Pem(PemError::Empty))
    );
}

#[test]
fn t9_an_intermediate_that_is_an_authority_may_be_a_root_but_a_leaf_may_not() {
    let root = Made::root("td");
    let leaf = root.leaf("spiffe://td/a");
    assert!(Bundle::from_der_concat(td(), &leaf.der).is_err());
    assert!(Bundle::from_der_concat(td(), &root.intermediate("td", "ca").der).is_ok());
}

#[test]
fn a_root_given_twice_counts_once_and_stays_tainted() {
    let root = Made::root("td");
    let twice = [root.authority(), root.authority().with_tainted(true)];
    let bundle = Bundle::new(td(), twice).unwrap();
    assert_eq!(bundle.x509_authorities().len(), 1);
    assert!(bundle.x509_authorities()[0].is_tainted());
}

#[test]
fn t32_size_and_number_are_bounded() {
    let large = vec![b' '; MAX_BUNDLE_BYTES + 1];
    for error in [
        Bundle::from_spiffe_json(td(), &large).unwrap_err(),
        Bundle::from_pem(td(), &large).unwrap_err(),
        Bundle::from_der_concat(td(), &large).unwrap_err(),
        BundleSet::from_bundle_map_json(&large).unwrap_err(),
    ] {
        assert_eq!(error, BundleError::TooLarge(MAX_BUNDLE_BYTES + 1));
    }
    let first = Made::root("td");
    let roots = (0..=MAX_AUTHORITIES).map(|n| {
        let serial = Some(vec![
            1,
            u8::try_from(n >> 8).unwrap(),
            u8::try_from(n & 255).unwrap(),
        ]);
        first
            .again(Spec {
                serial,
                ..Spec::authority("td", "root")
            })
            .authority()
    });
    assert_eq!(Bundle::new(td(), roots), Err(BundleError::TooMany));
}

// --- bundle maps

#[test]
fn tdb_12_a_bundle_map_has_trust_domains_even_when_there_are_none() {
    assert_eq!(
        BundleSet::new().to_bundle_map_json(),
        br#"{"trust_domains":{}}"#
    );
    assert!(
        BundleSet::from_bundle_map_json(br#"{"trust_domains":{}}"#)
            .unwrap()
            .is_empty()
    );
    for text in [
        "{}",
        "[]",
        r#"{"trust_domains":null}"#,
        r#"{"trust_domains":[]}"#,
        r#"{"keys":[]}"#,
    ] {
        assert!(
            BundleSet::from_bundle_map_json(text.as_bytes()).is_err(),
            "{text}"
        );
    }
}

#[test]
fn tdb_13_a_published_map_names_each_trust_domain_once() {
    let (one, two) = (Made::root("one"), Made::root("two"));
    let set = BundleSet::from_iter([one.bundle("one"), two.bundle("two"), one.bundle("one")]);
    let text = String::from_utf8(set.to_bundle_map_json()).unwrap();
    assert_eq!(text.matches("\"one\":").count(), 1);
    assert_eq!(
        BundleSet::from_bundle_map_json(text.as_bytes()).unwrap(),
        set
    );
    assert_eq!(set.len(), 2);
}

#[test]
fn fe_04_tdb_14_a_map_that_names_a_trust_domain_twice_is_refused() {
    for text in [
        r#"{"trust_domains":{"td":{"keys":[]},"td":{"keys":[]}}}"#,
        r#"{"trust_domains":{"td":{"keys":[]},"t\u0064":{"keys":[]}}}"#,
        r#"{"trust_domains":{},"trust_domains":{}}"#,
    ] {
        assert!(
            matches!(
                BundleSet::from_bundle_map_json(text.as_bytes()),
                Err(BundleError::Json { .. })
            ),
            "{text}"
        );
    }
}

#[test]
fn t7_the_names_of_a_map_are_bare() {
    for name in ["spiffe://td", "TD", "", "td/a"] {
        let text = json!({"trust_domains": {name: {"keys": []}}}).to_string();
        let error = BundleSet::from_bundle_map_json(text.as_bytes()).unwrap_err();
        assert!(
            matches!(error, BundleError::Name { .. }),
            "{name}: {error:?}"
        );
    }
}

#[test]
fn tdb_15_tdb_16_a_member_of_a_map_has_no_refresh_hint_of_its_own() {
    let hint = Some(Duration::from_secs(5));
    let set = BundleSet::from_iter([Made::root("td").bundle("td").with_refresh_hint(hint)]);
    let text = String::from_utf8(set.to_bundle_map_json()).unwrap();
    assert!(!text.contains("refresh_hint"));
    let hinted = r#"{"trust_domains":{"td":{"keys":[],"spiffe_refresh_hint":5}}}"#;
    let read = BundleSet::from_bundle_map_json(hinted.as_bytes()).unwrap();
    assert_eq!(read.get(&td()).unwrap().refresh_hint(), None);
}

#[test]
fn tdb_17_one_bad_member_refuses_the_map_whole() {
    let good = published(&Made::root("one").bundle("one"));
    let bad = published(&Made::root("other").bundle("other"));
    let text = json!({"trust_domains": {"one": good, "two": bad}}).to_string();
    let error = BundleSet::from_bundle_map_json(text.as_bytes()).unwrap_err();
    assert!(
        matches!(&error, BundleError::Member { domain, .. } if domain.as_str() == "two"),
        "{error:?}"
    );
}

#[test]
fn fed_7_a_set_keeps_trust_domains_apart() {
    let mut set = BundleSet::new();
    assert!(set.insert(Made::root("one").bundle("one")).is_none());
    assert!(set.insert(Made::root("two").bundle("two")).is_none());
    let replaced = set
        .insert(Bundle::new("one".parse().unwrap(), []).unwrap())
        .unwrap();
    assert_eq!(replaced.x509_authorities().len(), 1);
    let sizes: Vec<_> = set
        .iter()
        .map(|b| (b.trust_domain().as_str(), b.x509_authorities().len()))
        .collect();
    assert_eq!(sizes, [("one", 0), ("two", 1)]);
    assert!(set.get(&td()).is_none());
    assert!(set.remove(&"two".parse().unwrap()).is_some() && set.len() == 1);
}

proptest! {
    #[test]
    fn bytes_of_any_kind_never_panic(bytes in any::<Vec<u8>>()) {
        let _json = Bundle::from_spiffe_json(td(), &bytes);
        let _map = BundleSet::from_bundle_map_json(&bytes);
        let _pem = Bundle::from_pem(td(), &bytes);
        let der = Bundle::from_der_concat(td(), &bytes);
        prop_assert_eq!(der.is_ok(), bytes.is_empty());
    }

    #[test]
    fn what_was_published_reads_back(
        count in 0usize..3,
        sequence in proptest::option::of(any::<u64>()),
        hint in proptest::option::of(any::<u64>()),
    ) {
        let roots = some_roots()[..count].iter().cloned();
        let mut bundle = Bundle::new(td(), roots).unwrap().with_refresh_hint(hint.map(Duration::from_secs));
        bundle.sequence = sequence;
        prop_assert_eq!(&Bundle::from_spiffe_json(td(), &bundle.to_spiffe_json()).unwrap(), &bundle);
    }

    #[test]
    fn documents_of_any_shape_are_refused_or_hold_only_what_they_say(document in any_json()) {
        if let Ok(bundle) = Bundle::from_spiffe_json(td(), document.to_string().as_bytes()) {
            prop_assert!(document["keys"].is_array());
            prop_assert!(bundle.x509_authorities().is_empty()); // nothing generated is a certificate
        }
    }

    #[test]
    fn one_changed_byte_of_a_document_never_adds_a_root(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let bundle = Bundle::new(td(), some_roots().iter().cloned()).unwrap().with_sequence(7);
        let mut json = bundle.to_spiffe_json();
        let at = at.index(json.len());
        json[at] = byte;
        if let Ok(read) = Bundle::from_spiffe_json(td(), &json) {
            for root in read.x509_authorities() {
                // Roots are not signed by anybody we know, so damage to a signature cannot be seen; damage to a key can:
                // the parameters beside the certificate say another one.
                let same_key = bundle.x509_authorities().iter().any(|known| known.root.key == root.root.key);
                prop_assert!(same_key);
            }
        }
    }
}

fn some_roots() -> &'static [X509Authority] {
    static ROOTS: std::sync::OnceLock<Vec<X509Authority>> = std::sync::OnceLock::new();
    ROOTS.get_or_init(|| vec![Made::root("td").authority(), Made::root("td").authority()])
}

fn any_json() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        Just("EC"),
        Just("RSA"),
        Just("x509-svid"),
        Just("jwt-svid"),
        Just("AAAA"),
        Just("")
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    let names = prop_oneof![
        Just("keys"),
        Just("kty"),
        Just("use"),
        Just("x5c"),
        Just("spiffe_sequence"),
        Just("spiffe_refresh_hint"),
        Just("kid")
    ];
    leaf.prop_recursive(4, 40, 5, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((names.clone(), inner), 0..5).prop_map(|members| {
                Value::Object(
                    members
                        .into_iter()
                        .map(|(k, v)| (k.to_owned(), v))
                        .collect(),
                )
            }),
        ]
    })
}

// --- JWT authorities

fn jwt_document() -> Value {
    let (one, two) = (
        JwtSigner::new("k1"),
        JwtSigner::of_kind("k2", KeyKind::P384),
    );
    let bundle = Made::root("td")
        .bundle("td")
        .with_jwt_authorities([one.authority(), two.authority()])
        .unwrap();
    published(&bundle)
}

#[test]
fn jwt_16_jwt_17_tdb_11_a_published_jwt_authority_has_its_use_its_kid_and_its_key_alone() {
    let document = jwt_document();
    for (at, kid, crv) in [(1, "k1", "P-256"), (2, "k2", "P-384")] {
        let key = document["keys"][at].as_object().unwrap();
        assert_eq!(
            key.keys().collect::<Vec<_>>(),
            ["crv", "kid", "kty", "use", "x", "y"]
        );
        assert_eq!(
            (&key["use"], &key["kid"]),
            (&json!("jwt-svid"), &json!(kid))
        );
        assert_eq!((&key["kty"], &key["crv"]), (&json!("EC"), &json!(crv)));
    }
    let read = parse(&document).unwrap();
    assert_eq!(
        (read.x509_authorities().len(), read.jwt_authorities().len()),
        (1, 2)
    );
    assert_eq!(published(&read), document);
    assert_eq!(read.jwt_authority("k2"), Some(&read.jwt_authorities()[1]));
    assert_eq!(read.jwt_authority("k3"), None);
}

#[test]
fn wapi_45_wapi_46_a_jwks_holds_jwt_authorities_without_use_and_an_empty_list_when_there_are_none()
{
    let bundle = parse(&jwt_document()).unwrap().with_sequence(7);
    let jwks: Value = serde_json::from_slice(&bundle.to_jwks_json()).unwrap();
    assert_eq!(jwks.as_object().unwrap().len(), 1);
    assert_eq!(jwks["keys"].as_array().unwrap().len(), 2);
    for key in jwks["keys"].as_array().unwrap() {
        let names: Vec<_> = key.as_object().unwrap().keys().collect();
        assert_eq!(names, ["crv", "kid", "kty", "x", "y"]);
    }
    assert_eq!(
        Made::root("td").bundle("td").to_jwks_json(),
        br#"{"keys":[]}"#
    );
}

#[test]
fn jwt_17_a_jwt_authority_without_a_usable_kid_refuses_the_document() {
    for kid in [
        json!(null),
        json!(""),
        json!(1),
        json!("a\nb"),
        json!("x".repeat(256)),
    ] {
        let mut document = jwt_document();
        document["keys"][1]["kid"] = kid;
        let refused = parse(&document).unwrap_err();
        let source = JwtAuthorityError::KeyId;
        assert_eq!(
            refused,
            BundleError::JwtKey {
                position: 1,
                source
            }
        );
        assert_eq!(refused.code(), "FNL0347");
    }
}

#[test]
fn tdb_8_tdb_10_a_jwt_key_of_an_unknown_kty_or_use_is_ignored_and_the_rest_kept() {
    for (name, value) in [
        ("kty", json!("AKP")),
        ("kty", json!("OKP")),
        ("kty", json!("oct")),
        ("kty", json!(null)),
        ("use", json!("JWT-SVID")),
        ("use", json!("wit-svid")),
        ("use", json!(null)),
    ] {
        let mut document = jwt_document();
        document["keys"][1][name] = value.clone();
        let read = parse(&document).unwrap();
        assert_eq!(read.jwt_authorities().len(), 1, "{name} {value}");
        assert_eq!(read.x509_authorities().len(), 1);
    }
}

#[test]
fn a_jwt_key_with_damaged_parameters_refuses_the_document() {
    for (name, value) in [
        ("crv", json!("P-257")),
        ("crv", json!("p-256")),
        ("crv", json!("P-384")),
        ("crv", json!(null)),
        ("x", json!("AA")),
        ("x", json!("")),
        ("y", json!(null)),
        ("y", json!("=")),
        ("kty", json!("RSA")),
    ] {
        let mut document = jwt_document();
        document["keys"][1][name] = value.clone();
        let source = JwtAuthorityError::Key;
        let refused = Err(BundleError::JwtKey {
            position: 1,
            source,
        });
        assert_eq!(parse(&document), refused, "{name} {value}");
    }
}

#[test]
fn one_key_id_names_one_key() {
    let (one, other) = (JwtSigner::new("k1"), JwtSigner::new("k1"));
    let marked = one.authority().with_tainted(true);
    let bundle = Bundle::new(td(), []).unwrap();
    let twice = bundle
        .clone()
        .with_jwt_authorities([marked, one.authority()])
        .unwrap();
    assert_eq!(twice.jwt_authorities().len(), 1);
    assert!(twice.jwt_authorities()[0].is_tainted());
    let refused = bundle.with_jwt_authorities([one.authority(), other.authority()]);
    assert_eq!(refused, Err(BundleError::KeyIdTwice));
}

#[test]
fn no_more_jwt_authorities_than_the_limit() {
    let signers = (0..=MAX_AUTHORITIES).map(|n| {
        let spki = JwtSigner::new("k").authority().to_spki();
        JwtAuthority::from_spki(&n.to_string(), &spki).unwrap()
    });
    let refused = Bundle::new(td(), []).unwrap().with_jwt_authorities(signers);
    assert_eq!(refused, Err(BundleError::TooMany));
}

#[test]
fn jwt_authorities_keep_their_key_through_both_forms() {
    for kind in [KeyKind::P256, KeyKind::P384] {
        let authority = JwtSigner::of_kind("k1", kind).authority();
        assert_eq!(
            JwtAuthority::from_spki("k1", &authority.to_spki()).unwrap(),
            authority
        );
    }
    let ed25519 = Made::root_with(Spec {
        key: KeyKind::Ed25519,
        ..Spec::authority("td", "root")
    });
    let refused = JwtAuthority::from_spki("k1", &ed25519.spki());
    assert_eq!(refused, Err(JwtAuthorityError::Key));
    for wrong in [&[][..], &[0x30, 0], &[ed25519.spki(), vec![0]].concat()] {
        assert_eq!(
            JwtAuthority::from_spki("k1", wrong),
            Err(JwtAuthorityError::Key)
        );
    }
}
