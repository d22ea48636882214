//! Tests of `verify.rs`: what a peer may show, row by row of the standard, and a table of spoilt certificates.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{
    Bundle, SpiffeIdError,
    test_util::{
        BAD_IDS, GOOD_IDS, KeyKind, Made, Spec, jwt::JwtSigner, now, oid_bytes, purpose, tlv, usage,
    },
};

const ID: &str = "spiffe://td/pay";

fn verify(made: &Made, bundles: &BundleSet) -> Result<VerifiedSvid, VerifyError> {
    verify_x509_svid(&made.chain, bundles, now())
}

/// A leaf spoilt like this, signed by a right root.
fn leaf(spoil: impl FnOnce(&mut Spec)) -> Result<VerifiedSvid, VerifyError> {
    let root = Made::root("td");
    let mut spec = Spec::leaf(ID);
    spoil(&mut spec);
    verify(&root.sign(spec), &root.bundles("td"))
}

fn leaf_refused(spoil: impl FnOnce(&mut Spec), expected: ProfileError) {
    assert_eq!(leaf(spoil), Err(VerifyError::Leaf(expected)));
}

/// A right leaf below an intermediate spoilt like this.
fn below(spoil: impl FnOnce(&mut Spec)) -> Result<VerifiedSvid, VerifyError> {
    let root = Made::root("td");
    let mut spec = Spec::authority("td", "ca 1");
    spoil(&mut spec);
    verify(&root.sign(spec).leaf(ID), &root.bundles("td"))
}

fn intermediate_refused(spoil: impl FnOnce(&mut Spec), expected: ProfileError) {
    assert_eq!(below(spoil), Err(VerifyError::Intermediate(expected)));
}

fn hours(n: u64) -> Duration {
    Duration::from_secs(3600 * n)
}

// --- what is accepted

#[test]
fn a_right_chain_proves_its_id_and_says_how_long() {
    let root =
        Made::root_with(Spec::authority("td", "root").valid(now() - hours(9), now() + hours(9)));
    let ca = root.sign(Spec::authority("td", "ca 1").valid(now() - hours(3), now() + hours(3)));
    let spec = Spec {
        serial: Some(vec![0x7f, 0xab]),
        ..Spec::leaf(ID).valid(now() - hours(1), now() + hours(4))
    };
    let proven = verify(&ca.sign(spec), &root.bundles("td")).unwrap();
    assert_eq!(proven.id.as_str(), ID);
    assert_eq!(proven.serial, "7fab");
    assert_eq!(
        (proven.not_before, proven.not_after),
        (now() - hours(1), now() + hours(4))
    );
    assert_eq!(proven.valid_until, now() + hours(3));
    assert_eq!(proven.authority, root.authority().subject_key_id());
    assert!(!proven.authority.is_empty() && !proven.authority_tainted);
}

#[test]
fn every_supported_kind_of_key_signs_a_chain() {
    for key in [KeyKind::P256, KeyKind::P384, KeyKind::Ed25519] {
        let root = Made::root_with(Spec {
            key,
            ..Spec::authority("td", "root")
        });
        let ca = root.sign(Spec {
            key,
            ..Spec::authority("td", "ca")
        });
        verify(
            &ca.sign(Spec {
                key,
                ..Spec::leaf(ID)
            }),
            &root.bundles("td"),
        )
        .unwrap();
    }
}

#[test]
fn x509_4_other_alternative_names_may_be_there_in_any_number() {
    leaf(|spec| spec.dns_names = (0..50).map(|n| format!("n{n}.example")).collect()).unwrap();
    let others = [
        tlv(0x86, ID.as_bytes()),
        tlv(0x87, &[127, 0, 0, 1]),
        tlv(0x81, b"a@example.org"),
        tlv(0x82, b"spiffe.example"),
        tlv(0x88, &oid_bytes(&[1, 2, 3])),
        tlv(0xa4, &tlv(0x30, &[])),
    ];
    leaf(|spec| {
        spec.uris.clear();
        spec.extra
            .push((vec![2, 5, 29, 17], false, tlv(0x30, &others.concat())));
    })
    .unwrap();
}

#[test]
fn x509_7_an_authority_without_an_id_is_accepted() {
    below(|spec| spec.uris.clear()).unwrap();
}

#[test]
fn x509_12_a_leaf_without_basic_constraints_is_no_authority_and_accepted() {
    leaf(|spec| spec.ca = None).unwrap();
    leaf(|spec| spec.basic_constraints_critical = false).unwrap();
}

#[test]
fn x509_19_key_encipherment_and_key_agreement_do_no_harm() {
    leaf(|spec| {
        spec.key_usage =
            Some(usage::DIGITAL_SIGNATURE | usage::KEY_ENCIPHERMENT | usage::KEY_AGREEMENT)
    })
    .unwrap();
}

#[test]
fn x509_21_a_leaf_without_extended_key_usage_is_accepted() {
    leaf(|spec| spec.eku = None).unwrap();
}

#[test]
fn x509_23_extended_key_usage_may_be_critical_and_may_sit_on_authorities() {
    leaf(|spec| spec.eku_critical = true).unwrap();
    let both = vec![purpose::SERVER_AUTH, purpose::CLIENT_AUTH];
    below(|spec| (spec.eku, spec.eku_critical) = (Some(both), true)).unwrap();
    below(|spec| spec.eku = Some(vec![purpose::ANY])).unwrap();
}

// --- names

#[test]
fn x509_1_a_leaf_without_a_uri_is_refused_wherever_else_an_id_stands() {
    leaf_refused(|spec| spec.uris.clear(), ProfileError::NoUri);
    leaf_refused(
        |spec| {
            spec.uris.clear();
            spec.dns_names.push(ID.into());
            spec.subject = Some(ID.into());
        },
        ProfileError::NoUri,
    );
}

#[test]
fn x509_3_more_than_one_uri_is_refused_whatever_they_are() {
    let other = |uri: &str| uri.as_bytes().to_vec();
    for extra in ["spiffe://td/other", "https://example.org", ID, ""] {
        leaf_refused(
            |spec| spec.uris.push(other(extra)),
            ProfileError::SeveralUris(2),
        );
        leaf_refused(
            |spec| spec.uris.insert(0, other(extra)),
            ProfileError::SeveralUris(2),
        );
    }
    leaf_refused(
        |spec| spec.uris = vec![other(ID); 3],
        ProfileError::SeveralUris(3),
    );
    // the names, twice as an extension, do not get around it
    let twice = leaf(|spec| {
        let names = tlv(0x30, &tlv(0x86, b"spiffe://td/other"));
        spec.extra.push((vec![2, 5, 29, 17], false, names));
    });
    assert!(
        matches!(twice, Err(VerifyError::Unreadable(e)) if e.what == "an extension occurs twice")
    );
}

#[test]
fn x509_5_x509_29_a_leaf_whose_id_has_no_path_is_refused() {
    leaf_refused(
        |spec| spec.uris = vec![b"spiffe://td".to_vec()],
        ProfileError::PathLessLeaf("spiffe://td".parse().unwrap()),
    );
}

#[test]
fn x509_28_a_uri_that_is_no_spiffe_id_is_refused() {
    leaf_refused(
        |spec| spec.uris = vec![b"https://td/pay".to_vec()],
        ProfileError::NotSpiffeId(SpiffeIdError::Scheme),
    );
}

#[test]
fn po_20_in_a_certificate_the_table_of_ids_gets_the_same_verdict_as_in_the_parser() {
    let root = Made::root("td");
    let bundles: BundleSet = GOOD_IDS
        .iter()
        .map(|id| id.parse::<SpiffeId>().unwrap().trust_domain().clone())
        .map(|domain| Bundle::new(domain, [unnamed_root(&root).authority()]).unwrap())
        .collect();
    for id in GOOD_IDS {
        let parsed: SpiffeId = id.parse().unwrap();
        let verdict = verify(&root.sign(Spec::leaf(id)), &bundles);
        if parsed.is_path_less() {
            assert_eq!(
                verdict,
                Err(VerifyError::Leaf(ProfileError::PathLessLeaf(parsed)))
            );
        } else {
            assert_eq!(verdict.unwrap().id, parsed);
        }
    }
    for id in BAD_IDS {
        let verdict = verify(&root.sign(Spec::leaf(id)), &bundles);
        let error = id.parse::<SpiffeId>().unwrap_err();
        assert_eq!(
            verdict,
            Err(VerifyError::Leaf(ProfileError::NotSpiffeId(error))),
            "{id:?}"
        );
    }
}

/// The same root without an ID, so that it fits any trust domain.
fn unnamed_root(root: &Made) -> Made {
    root.again(Spec {
        uris: Vec::new(),
        ..Spec::authority("td", "root of td")
    })
}

#[test]
fn an_id_that_is_not_text_is_refused() {
    leaf_refused(
        |spec| spec.uris = vec![b"spiffe://td/\xff".to_vec()],
        ProfileError::NotSpiffeId(SpiffeIdError::PathByte { at: 12, byte: 0xff }),
    );
}

#[test]
fn id_16_an_id_of_2048_bytes_is_proven() {
    let id = format!("spiffe://td/{}", "a".repeat(2048 - 12));
    let proven = leaf(|spec| spec.uris = vec![id.as_bytes().to_vec()]).unwrap();
    assert_eq!(proven.id.as_str(), id);
}

#[test]
fn x509_6_alternative_names_beside_an_empty_subject_must_be_critical() {
    leaf(|spec| (spec.subject, spec.san_critical) = (None, true)).unwrap();
    leaf_refused(|spec| spec.subject = None, ProfileError::NamesNotCritical);
}

// --- signing certificates as leaves, and leaves as signing certificates

#[test]
fn x509_10_x509_25_a_signing_certificate_is_no_credential() {
    let root = Made::root("td");
    let bundles = root.bundles("td");
    let refused = Err(VerifyError::Leaf(ProfileError::SigningLeaf("cA is true")));
    let ca = root.intermediate("td", "ca 1");
    assert_eq!(verify(&ca, &bundles), refused);
    assert_eq!(
        verify_x509_svid(std::slice::from_ref(&root.der), &bundles, now()),
        refused
    );
    let with_path = Spec {
        uris: vec![ID.into()],
        ..Spec::authority("td", "ca 2")
    };
    assert_eq!(verify(&root.sign(with_path), &bundles), refused);
    leaf_refused(
        |spec| spec.ca = Some(true),
        ProfileError::SigningLeaf("cA is true"),
    );
}

#[test]
fn x509_20_x509_26_a_leaf_with_key_cert_sign_is_refused() {
    leaf_refused(
        |spec| spec.key_usage = Some(usage::DIGITAL_SIGNATURE | usage::KEY_CERT_SIGN),
        ProfileError::SigningLeaf("keyCertSign is set"),
    );
}

#[test]
fn x509_20_x509_27_a_leaf_with_crl_sign_is_refused() {
    leaf_refused(
        |spec| spec.key_usage = Some(usage::DIGITAL_SIGNATURE | usage::CRL_SIGN),
        ProfileError::SigningLeaf("cRLSign is set"),
    );
}

#[test]
fn x509_11_a_leaf_cannot_sign_another_one() {
    let root = Made::root("td");
    let forged = root.leaf("spiffe://td/mallory").leaf(ID);
    assert_eq!(
        verify(&forged, &root.bundles("td")),
        Err(VerifyError::Intermediate(ProfileError::NotAuthority))
    );
    intermediate_refused(|spec| spec.ca = None, ProfileError::NotAuthority);
    intermediate_refused(|spec| spec.ca = Some(false), ProfileError::NotAuthority);
    intermediate_refused(
        |spec| spec.basic_constraints_critical = false,
        ProfileError::BasicConstraintsNotCritical,
    );
}

// --- usages

#[test]
fn x509_15_key_usage_must_be_present_in_leaves_and_authorities() {
    leaf_refused(|spec| spec.key_usage = None, ProfileError::NoKeyUsage);
    intermediate_refused(|spec| spec.key_usage = None, ProfileError::NoKeyUsage);
}

#[test]
fn x509_16_key_usage_must_be_critical_in_leaves_and_authorities() {
    leaf_refused(
        |spec| spec.key_usage_critical = false,
        ProfileError::KeyUsageNotCritical,
    );
    intermediate_refused(
        |spec| spec.key_usage_critical = false,
        ProfileError::KeyUsageNotCritical,
    );
}

#[test]
fn x509_17_an_authority_without_key_cert_sign_signs_nothing() {
    intermediate_refused(
        |spec| spec.key_usage = Some(usage::CRL_SIGN),
        ProfileError::NoKeyCertSign,
    );
    intermediate_refused(
        |spec| spec.key_usage = Some(usage::DIGITAL_SIGNATURE),
        ProfileError::NoKeyCertSign,
    );
    below(|spec| spec.key_usage = Some(usage::KEY_CERT_SIGN)).unwrap();
}

#[test]
fn x509_18_a_leaf_without_digital_signature_is_refused() {
    leaf_refused(
        |spec| spec.key_usage = Some(usage::KEY_AGREEMENT),
        ProfileError::NoDigitalSignature,
    );
}

#[test]
fn x509_22_extended_key_usage_without_both_tls_purposes_is_refused() {
    let no = |missing| ProfileError::ExtendedKeyUsage(missing);
    leaf_refused(
        |spec| spec.eku = Some(vec![purpose::SERVER_AUTH]),
        no("clientAuth"),
    );
    leaf_refused(
        |spec| spec.eku = Some(vec![purpose::CLIENT_AUTH]),
        no("serverAuth"),
    );
    leaf_refused(
        |spec| spec.eku = Some(vec![purpose::CODE_SIGNING]),
        no("serverAuth"),
    );
    leaf_refused(|spec| spec.eku = Some(vec![purpose::ANY]), no("serverAuth"));
    intermediate_refused(
        |spec| spec.eku = Some(vec![purpose::SERVER_AUTH]),
        no("clientAuth"),
    );
    intermediate_refused(
        |spec| spec.eku = Some(vec![purpose::CODE_SIGNING]),
        no("serverAuth"),
    );
    leaf(|spec| {
        spec.eku = Some(vec![
            purpose::CODE_SIGNING,
            purpose::CLIENT_AUTH,
            purpose::SERVER_AUTH,
        ])
    })
    .unwrap();
}

// --- authorities and their IDs

#[test]
fn x509_8_an_authority_whose_id_has_a_path_is_refused() {
    intermediate_refused(
        |spec| spec.uris = vec![b"spiffe://td/ca".to_vec()],
        ProfileError::AuthorityWithPath("spiffe://td/ca".parse().unwrap()),
    );
    intermediate_refused(
        |spec| spec.uris = vec![b"https://td".to_vec()],
        ProfileError::NotSpiffeId(SpiffeIdError::Scheme),
    );
    intermediate_refused(
        |spec| spec.uris = vec![b"spiffe://td".to_vec(), b"spiffe://td".to_vec()],
        ProfileError::SeveralUris(2),
    );
}

#[test]
fn x509_9_an_authority_of_another_trust_domain_signs_nothing_here() {
    intermediate_refused(
        |spec| spec.uris = vec![b"spiffe://other".to_vec()],
        ProfileError::ForeignAuthority {
            id: "spiffe://other".parse().unwrap(),
            expected: "td".parse().unwrap(),
        },
    );
}

// --- name constraints (docs/decisions/0100)

#[test]
fn x509_13_uri_name_constraints_are_refused_whether_they_fit_or_not() {
    type Spoil = fn(&mut Spec);
    let cases: [Spoil; 6] = [
        |spec| spec.permitted = vec![(6, b"td".to_vec())],
        |spec| spec.permitted = vec![(6, b".td".to_vec())],
        |spec| spec.permitted = vec![(6, b"other".to_vec())],
        |spec| spec.excluded = vec![(6, b"td".to_vec())],
        |spec| spec.excluded = vec![(6, b"other".to_vec())],
        |spec| spec.permitted = vec![(2, b"example.org".to_vec()), (6, b"td".to_vec())],
    ];
    for spoil in cases {
        intermediate_refused(spoil, ProfileError::UriConstraints);
        let mut spec = Spec::authority("td", "root");
        spoil(&mut spec);
        let root = Made::root_with(spec);
        let refused = X509Authority::parse(root.der.clone()).unwrap_err();
        assert!(
            matches!(
                refused,
                crate::BundleError::Profile {
                    source: ProfileError::UriConstraints,
                    ..
                }
            ),
            "{refused:?}"
        );
    }
}

#[test]
fn x509_13_dns_name_constraints_bind_the_dns_names_below() {
    let root = Made::root("td");
    let within = Spec {
        permitted: vec![(2, b"example.org".to_vec())],
        ..Spec::authority("td", "ca 1")
    };
    let ca = root.sign(within);
    let named = |name: &str| Spec {
        dns_names: vec![name.into()],
        ..Spec::leaf(ID)
    };
    verify(&ca.sign(named("web.example.org")), &root.bundles("td")).unwrap();
    verify(&ca.leaf(ID), &root.bundles("td")).unwrap();
    let outside = verify(&ca.sign(named("web.example.com")), &root.bundles("td"));
    assert_eq!(outside, Err(VerifyError::NameConstraints));
    let constrained = Made::root_with(Spec {
        excluded: vec![(2, b"example.com".to_vec())],
        ..Spec::authority("td", "root")
    });
    let outside = verify(
        &constrained.sign(named("web.example.com")),
        &constrained.bundles("td"),
    );
    assert_eq!(outside, Err(VerifyError::NameConstraints));
}

#[test]
fn x509_13_a_wildcard_that_reaches_over_a_dns_constraint_is_refused() {
    let root = Made::root("td");
    let wild = Spec {
        dns_names: vec!["*.example.org".into()],
        ..Spec::leaf(ID)
    };
    let within = Spec {
        permitted: vec![(2, b"example.org".to_vec())],
        ..Spec::authority("td", "ca 1")
    };
    verify(
        &root.sign(within.clone()).sign(wild.clone()),
        &root.bundles("td"),
    )
    .unwrap();
    let but_one = Spec {
        excluded: vec![(2, b"bar.example.org".to_vec())],
        ..within
    };
    let only_one = Spec {
        permitted: vec![(2, b"foo.example.org".to_vec())],
        ..Spec::authority("td", "ca 2")
    };
    for spec in [but_one, only_one] {
        let verdict = verify(&root.sign(spec).sign(wild.clone()), &root.bundles("td"));
        assert_eq!(verdict, Err(VerifyError::NameConstraints));
    }
}

#[test]
fn x509_24_a_self_issued_authority_counts_against_a_path_length_like_any_other() {
    let short = Made::root_with(Spec {
        path_len: Some(0),
        ..Spec::authority("td", "root")
    });
    let renewed = short.sign(Spec::authority("td", "root"));
    assert_eq!(
        verify(&renewed.leaf(ID), &short.bundles("td")),
        Err(VerifyError::PathLength)
    );
}

#[test]
fn x509_13_constraints_that_are_not_evaluated_refuse_the_names_that_they_would_bind() {
    let root = Made::root("td");
    let names = [tlv(0x86, ID.as_bytes()), tlv(0x81, b"a@example.org")].concat();
    let with_mail = Spec {
        uris: Vec::new(),
        extra: vec![(vec![2, 5, 29, 17], false, tlv(0x30, &names))],
        ..Spec::leaf(ID)
    };
    for base in ["example.org", "example.com"] {
        let ca = Spec {
            permitted: vec![(1, base.into())],
            ..Spec::authority("td", "ca 1")
        };
        let ca = root.sign(ca);
        assert_eq!(
            verify(&ca.sign(with_mail.clone()), &root.bundles("td")),
            Err(VerifyError::NameConstraints)
        );
        // without a mail address there is nothing that the constraint could bind
        verify(&ca.leaf(ID), &root.bundles("td")).unwrap();
    }
}

#[test]
fn name_constraints_in_a_leaf_are_refused() {
    leaf_refused(
        |spec| spec.permitted = vec![(2, b"example.org".to_vec())],
        ProfileError::ConstrainedLeaf,
    );
}

// --- RFC 5280 path validation

#[test]
fn x509_24_an_expired_leaf_is_refused_and_its_last_second_is_not() {
    let root = Made::root("td");
    let bundles = root.bundles("td");
    let (from, to) = (now() - hours(1), now() + hours(1));
    let made = root.sign(Spec::leaf(ID).valid(from, to));
    let at = |moment| verify_x509_svid(&made.chain, &bundles, moment);
    let id: SpiffeId = ID.parse().unwrap();
    let second = Duration::from_secs(1);
    assert!(at(from).is_ok() && at(to).is_ok());
    assert_eq!(
        at(to + second),
        Err(VerifyError::Expired {
            id: id.clone(),
            not_after: to
        })
    );
    assert_eq!(
        at(from - second),
        Err(VerifyError::NotYetValid {
            id,
            not_before: from
        })
    );
    // X.509 counts in whole seconds, and the last one belongs to the certificate to its end
    assert!(at(to + second - Duration::from_nanos(1)).is_ok());
    assert!(at(from - Duration::from_nanos(1)).is_err());
}

#[test]
fn ca_54_an_expired_intermediate_is_refused() {
    let past = (now() - hours(2), now() - hours(1));
    let future = (now() + hours(1), now() + hours(2));
    assert_eq!(
        below(|spec| (spec.not_before, spec.not_after) = past),
        Err(VerifyError::IntermediateExpired)
    );
    assert_eq!(
        below(|spec| (spec.not_before, spec.not_after) = future),
        Err(VerifyError::IntermediateNotYetValid)
    );
}

#[test]
fn ca_54_an_expired_root_verifies_nothing_and_its_valid_sibling_does() {
    let old =
        Made::root_with(Spec::authority("td", "root 1").valid(now() - hours(2), now() - hours(1)));
    let young =
        Made::root_with(Spec::authority("td", "root 2").valid(now() + hours(1), now() + hours(2)));
    let good = Made::root_with(Spec::authority("td", "root 3"));
    let none = BundleSet::from_iter([Bundle::new(
        "td".parse().unwrap(),
        [old.authority(), young.authority()],
    )
    .unwrap()]);
    assert_eq!(
        verify(&old.leaf(ID), &none),
        Err(VerifyError::NoRoot("td".parse().unwrap()))
    );
    assert_eq!(
        verify(&young.leaf(ID), &none),
        Err(VerifyError::NoRoot("td".parse().unwrap()))
    );
    let all = [old.authority(), young.authority(), good.authority()];
    let all = BundleSet::from_iter([Bundle::new("td".parse().unwrap(), all).unwrap()]);
    verify(&good.leaf(ID), &all).unwrap();
    assert_eq!(
        verify(&old.leaf(ID), &all),
        Err(VerifyError::UnknownAuthority)
    );
    assert_eq!(
        verify(&young.leaf(ID), &all),
        Err(VerifyError::UnknownAuthority)
    );
}

#[test]
fn id_23_flipping_any_bit_of_a_certificate_ends_its_validity() {
    let root = Made::root("td");
    let bundles = root.bundles("td");
    let made = root.leaf(ID);
    for at in 0..made.der.len() {
        let mut bytes = made.der.to_vec();
        bytes[at] ^= 1 << (at % 8);
        let verdict = verify_x509_svid(&[bytes.into()], &bundles, now());
        assert!(verdict.is_err(), "byte {at}: {verdict:?}");
    }
}

#[test]
fn id_24_nothing_but_an_x509_certificate_counts() {
    let root = Made::root("td");
    let bundles = root.bundles("td");
    let made = root.leaf(ID);
    let jwt = b"eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJzcGlmZmU6Ly90ZC9wYXkifQ.AA".to_vec();
    let pem = made.svid().to_pem().into_bytes();
    for bytes in [
        jwt,
        pem,
        ID.as_bytes().to_vec(),
        made.spki(),
        made.key_pkcs8(),
        Vec::new(),
    ] {
        let verdict = verify_x509_svid(&[bytes.into()], &bundles, now());
        assert!(
            matches!(verdict, Err(VerifyError::Unreadable(_))),
            "{verdict:?}"
        );
    }
    assert_eq!(
        verify_x509_svid(&[], &bundles, now()),
        Err(VerifyError::Empty)
    );
}

#[test]
fn a_self_made_leaf_is_refused() {
    let root = Made::root("td");
    let own = Made::root_with(Spec::leaf(ID));
    assert_eq!(
        verify_x509_svid(std::slice::from_ref(&own.der), &root.bundles("td"), now()),
        Err(VerifyError::UnknownAuthority)
    );
    // not even when it lies in the bundle, where it cannot get
    assert!(X509Authority::parse(own.der.clone()).is_err());
}

#[test]
fn a_missing_or_foreign_intermediate_is_noticed() {
    let root = Made::root("td");
    let made = root.intermediate("td", "ca 1").leaf(ID);
    let bundles = root.bundles("td");
    assert_eq!(
        verify_x509_svid(&made.chain[..1], &bundles, now()),
        Err(VerifyError::UnknownAuthority)
    );
    // an authority with the right name and another key
    let impostor = root.intermediate("td", "ca 1");
    let chain = [made.der.clone(), impostor.der.clone()];
    assert!(matches!(
        verify_x509_svid(&chain, &bundles, now()),
        Err(VerifyError::Signature(_))
    ));
    // a root with the right name and another key
    let other = Made::root("td");
    assert!(matches!(
        verify(&root.leaf(ID), &other.bundles("td")),
        Err(VerifyError::Signature(_))
    ));
}

#[test]
fn of_two_roots_with_one_name_each_verifies_what_it_signed() {
    let (old, new) = (Made::root("td"), Made::root("td"));
    let roots = [old.authority().with_tainted(true), new.authority()];
    let bundles = BundleSet::from_iter([Bundle::new("td".parse().unwrap(), roots).unwrap()]);
    for (root, tainted) in [(&old, true), (&new, false)] {
        let proven = verify(&root.leaf(ID), &bundles).unwrap();
        assert_eq!(proven.authority, root.authority().subject_key_id());
        assert_eq!(proven.authority_tainted, tainted);
    }
    // the same key certified anew, with another path length: one that allows the path is found
    let short = Made::root_with(Spec {
        path_len: Some(0),
        ..Spec::authority("td", "root")
    });
    let long = short.again(Spec::authority("td", "root"));
    let made = short.intermediate("td", "ca 1").leaf(ID);
    for roots in [
        [short.authority(), long.authority()],
        [long.authority(), short.authority()],
    ] {
        let both = BundleSet::from_iter([Bundle::new("td".parse().unwrap(), roots).unwrap()]);
        verify(&made, &both).unwrap();
    }
}

#[test]
fn order_of_intermediates_and_strangers_among_them_do_not_matter() {
    let root = Made::root("td");
    let one = root.intermediate("td", "ca 1");
    let two = one.intermediate("td", "ca 2");
    let made = two.leaf(ID);
    let stranger = Made::root("other").intermediate("other", "ca 9");
    let not_even_fit = root.sign(Spec {
        key_usage: None,
        ..Spec::authority("td", "ca 8")
    });
    let chain = [
        made.der.clone(),
        one.der.clone(),
        stranger.der.clone(),
        not_even_fit.der.clone(),
        two.der.clone(),
        root.der.clone(),
    ];
    verify_x509_svid(&chain, &root.bundles("td"), now()).unwrap();
}

#[test]
fn when_one_path_is_unfit_another_one_is_looked_for() {
    let root = Made::root("td");
    let unfit = root.sign(Spec {
        key_usage: Some(usage::DIGITAL_SIGNATURE),
        ..Spec::authority("td", "ca 1")
    });
    let made = unfit.leaf(ID);
    // the same authority, name and key, certified again as it should be
    let fit_spec = Spec::authority("td", "ca 1");
    let fit = root.certify(&unfit, fit_spec);
    let bundles = root.bundles("td");
    assert_eq!(
        verify(&made, &bundles),
        Err(VerifyError::Intermediate(ProfileError::NoKeyCertSign))
    );
    let chain = [made.der.clone(), unfit.der.clone(), fit];
    verify_x509_svid(&chain, &bundles, now()).unwrap();
}

#[test]
fn a_chain_is_counted() {
    let root = Made::root("td");
    let bundles = root.bundles("td");
    let mut ca = root.intermediate("td", "ca 1");
    for n in 2..=MAX_INTERMEDIATES {
        ca = ca.intermediate("td", &format!("ca {n}"));
    }
    verify(&ca.leaf(ID), &bundles).unwrap();
    let deeper = ca.intermediate("td", "one more");
    assert_eq!(
        verify(&deeper.leaf(ID), &bundles),
        Err(VerifyError::TooDeep(MAX_INTERMEDIATES + 1))
    );
    let made = root.leaf(ID);
    let many = vec![made.der.clone(); MAX_CHAIN_CERTIFICATES + 1];
    assert_eq!(
        verify_x509_svid(&many, &bundles, now()),
        Err(VerifyError::TooManyCertificates(9))
    );
}

#[test]
fn x509_24_path_lengths_are_obeyed_in_intermediates_and_in_roots() {
    let root = Made::root("td");
    let short = root.sign(Spec {
        path_len: Some(0),
        ..Spec::authority("td", "ca 1")
    });
    verify(&short.leaf(ID), &root.bundles("td")).unwrap();
    let below = short.intermediate("td", "ca 2").leaf(ID);
    assert_eq!(
        verify(&below, &root.bundles("td")),
        Err(VerifyError::PathLength)
    );

    let short = Made::root_with(Spec {
        path_len: Some(0),
        ..Spec::authority("td", "root")
    });
    verify(&short.leaf(ID), &short.bundles("td")).unwrap();
    let below = short.intermediate("td", "ca 1").leaf(ID);
    assert_eq!(
        verify(&below, &short.bundles("td")),
        Err(VerifyError::PathLength)
    );

    let one = Made::root_with(Spec {
        path_len: Some(1),
        ..Spec::authority("td", "root")
    });
    verify(&one.intermediate("td", "ca 1").leaf(ID), &one.bundles("td")).unwrap();
}

#[test]
fn x509_24_critical_extensions_that_are_not_understood_are_refused() {
    let unknown = (vec![1, 3, 6, 1, 4, 1, 99999, 1], true, vec![5, 0]);
    let error = ProfileError::UnknownCritical("1.3.6.1.4.1.99999.1".into());
    leaf_refused(|spec| spec.extra.push(unknown.clone()), error.clone());
    let policy = (vec![2, 5, 29, 36], true, tlv(0x30, &tlv(0x80, &[0])));
    leaf_refused(
        |spec| spec.extra.push(policy.clone()),
        ProfileError::UnknownCritical("2.5.29.36".into()),
    );
    for extra in [unknown.clone(), policy] {
        assert!(matches!(
            below(|spec| spec.extra.push(extra)),
            Err(VerifyError::Intermediate(ProfileError::UnknownCritical(_)))
        ));
    }
    leaf(|spec| {
        spec.extra
            .push((unknown.0.clone(), false, unknown.2.clone()))
    })
    .unwrap();
    leaf_refused(
        |spec| {
            spec.extra
                .push((vec![2, 5, 29, 31], true, tlv(0x30, &tlv(0x30, &[]))))
        },
        ProfileError::UnknownCritical("2.5.29.31".into()),
    );
}

#[test]
fn x509_24_serial_numbers_are_positive_and_at_most_20_bytes() {
    leaf(|spec| spec.serial = Some(vec![0x7f; 20])).unwrap();
    leaf_refused(
        |spec| spec.serial = Some(vec![0x7f; 21]),
        ProfileError::Serial,
    );
    leaf_refused(|spec| spec.serial = Some(vec![0]), ProfileError::Serial);
    intermediate_refused(
        |spec| spec.serial = Some(vec![0x7f; 21]),
        ProfileError::Serial,
    );
}

// --- trust domains

#[test]
fn wapi_14_a_root_of_one_trust_domain_proves_nothing_in_another_although_both_are_loaded() {
    let (one, two) = (Made::root("one"), Made::root("two"));
    let both = BundleSet::from_iter([one.bundle("one"), two.bundle("two")]);
    verify(&one.leaf("spiffe://one/a"), &both).unwrap();
    verify(&two.leaf("spiffe://two/a"), &both).unwrap();
    assert_eq!(
        verify(&one.leaf("spiffe://two/a"), &both),
        Err(VerifyError::UnknownAuthority)
    );
    assert_eq!(
        verify(&two.leaf("spiffe://one/a"), &both),
        Err(VerifyError::UnknownAuthority)
    );
    // nor does an authority below it, or a cross-signed one that the peer brings along
    let below = one.intermediate("two", "ca").leaf("spiffe://two/a");
    assert_eq!(verify(&below, &both), Err(VerifyError::UnknownAuthority));
    // a root with the same name
    let same_name = Made::root_with(Spec::authority("one", "root of two"));
    assert!(matches!(
        verify(&same_name.leaf("spiffe://two/a"), &both),
        Err(VerifyError::Signature(_))
    ));
}

#[test]
fn wapi_14_without_a_bundle_for_the_peers_trust_domain_it_is_not_trusted() {
    let root = Made::root("td");
    for id in [
        "spiffe://other/a",
        "spiffe://td.evil/a",
        "spiffe://evil-td/a",
        "spiffe://t/d/a",
    ] {
        let domain = id.parse::<SpiffeId>().unwrap().trust_domain().clone();
        assert_eq!(
            verify(&root.leaf(id), &root.bundles("td")),
            Err(VerifyError::NoBundle(domain))
        );
    }
    assert!(matches!(
        verify(&root.leaf(ID), &BundleSet::new()),
        Err(VerifyError::NoBundle(_))
    ));
}

#[test]
fn fe_05_x509_37_tdb_9_wapi_52_a_bundle_without_roots_trusts_nobody() {
    let root = Made::root("td");
    let domain: TrustDomain = "td".parse().unwrap();
    let jwt_only = JwtSigner::new("a").bundle("td").to_spiffe_json();
    for json in [br#"{"keys":[]}"#.as_slice(), &jwt_only] {
        let empty = Bundle::from_spiffe_json(domain.clone(), json).unwrap();
        let set = BundleSet::from_iter([empty]);
        assert_eq!(
            verify(&root.leaf(ID), &set),
            Err(VerifyError::NoRoot(domain.clone()))
        );
    }
}

#[test]
fn a_tainted_root_still_verifies_and_says_so() {
    let root = Made::root("td");
    let tainted = root.authority().with_tainted(true);
    let set = BundleSet::from_iter([Bundle::new("td".parse().unwrap(), [tainted]).unwrap()]);
    assert!(verify(&root.leaf(ID), &set).unwrap().authority_tainted);
}

#[test]
fn a_time_before_1970_is_an_error_and_not_a_panic() {
    let root = Made::root("td");
    let early = SystemTime::UNIX_EPOCH - Duration::from_secs(86_400 * 365 * 15);
    let spec = |base: Spec| base.valid(early, now());
    let old = Made::root_with(spec(Spec::authority("td", "root")));
    let made = old.sign(spec(Spec::leaf(ID)));
    let moment = SystemTime::UNIX_EPOCH - hours(1);
    assert_eq!(
        verify_x509_svid(&made.chain, &old.bundles("td"), moment),
        Err(VerifyError::Clock)
    );
    assert!(matches!(
        verify_x509_svid(&root.leaf(ID).chain, &root.bundles("td"), moment),
        Err(VerifyError::NotYetValid { .. })
    ));
}

#[test]
fn many_authorities_of_one_name_do_not_take_long_to_refuse() {
    // eight certificates that all name each other: path building is bounded
    let root = Made::root("td");
    let mut chain = vec![];
    let same = Spec::authority("td", "same");
    let start = Made::root_with(same.clone());
    chain.push(start.leaf(ID).der);
    for _ in 0..7 {
        chain.push(Made::root_with(same.clone()).der);
    }
    assert!(verify_x509_svid(&chain, &root.bundles("td"), now()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn chains_of_any_bytes_are_refused(chain in proptest::collection::vec(any::<Vec<u8>>(), 0..4)) {
        let root = Made::root("td");
        let chain: Vec<CertificateDer<'_>> = chain.into_iter().map(Into::into).collect();
        prop_assert!(verify_x509_svid(&chain, &root.bundles("td"), now()).is_err());
    }

    #[test]
    fn a_damaged_intermediate_never_lets_another_id_through(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let root = Made::root("td");
        let made = root.intermediate("td", "ca 1").leaf(ID);
        let mut bytes = made.chain[1].to_vec();
        let at = at.index(bytes.len());
        let same = bytes[at] == byte;
        bytes[at] = byte;
        let chain = [made.der.clone(), bytes.into()];
        let verdict = verify_x509_svid(&chain, &root.bundles("td"), now());
        prop_assert_eq!(verdict.is_ok(), same);
    }
}
