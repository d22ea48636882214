//! Every combination of the fields that decide whether a certificate is the credential of a peer, each made by one builder, signed by a
//! trusted root, and judged: accepted exactly when each field alone is as X509-SVID 3 to 5 says.

use super::*;
use crate::test_util::{Made, Spec, now, purpose, usage};

const DOMAIN: &str = "example.org";

/// Bits of key usage and whether it is critical; the leaf is good with them.
fn usages() -> Vec<(Option<u8>, bool, bool)> {
    let bits = usage::DIGITAL_SIGNATURE;
    vec![
        (None, true, false),
        (Some(bits), true, true),
        (Some(bits), false, false),
        (Some(bits | usage::KEY_ENCIPHERMENT), true, true),
        (Some(bits | usage::KEY_AGREEMENT), true, true),
        (Some(usage::KEY_ENCIPHERMENT), true, false),
        (Some(bits | usage::KEY_CERT_SIGN), true, false),
        (Some(bits | usage::CRL_SIGN), true, false),
    ]
}

/// Purposes.
fn purposes() -> Vec<(Option<Vec<&'static [u64]>>, bool)> {
    let (server, client) = (purpose::SERVER_AUTH, purpose::CLIENT_AUTH);
    vec![
        (None, true),
        (Some(vec![server, client]), true),
        (Some(vec![client, purpose::CODE_SIGNING, server]), true),
        (Some(vec![server]), false),
        (Some(vec![client]), false),
        (Some(vec![purpose::ANY]), false),
    ]
}

/// URIs among the alternative names.
fn uris() -> Vec<(Vec<Vec<u8>>, bool)> {
    let one = |uri: &str| vec![uri.as_bytes().to_vec()];
    let good = "spiffe://example.org/web";
    let mut all = vec![
        (one(good), true),
        (one("spiffe://example.org/Web-1._x/y"), true),
        (Vec::new(), false),
        (vec![good.into(), good.into()], false),
        (vec![good.into(), b"https://example.org/".to_vec()], false),
        (
            one(&format!("spiffe://example.org/{}", "a".repeat(2048))),
            false,
        ),
        (
            vec!["spiffe://example.org/w\u{e9}b".as_bytes().to_vec()],
            false,
        ),
        (vec![b"spiffe://example.org/web\0".to_vec()], false),
    ];
    for wrong in [
        "spiffe://example.org",
        "spiffe://example.org/",
        "spiffe://example.org/web/",
        "spiffe://example.org//web",
        "spiffe://example.org/../web",
        "spiffe://example.org/./web",
        "spiffe://example.org/%77eb",
        "spiffe://example.org/web?x",
        "spiffe://example.org/web#x",
        "spiffe://me@example.org/web",
        "spiffe://example.org:443/web",
        "spiffe://example.org.evil/web",
        "spiffe://evil-example.org/web",
        "spiffe://EXAMPLE.org/web",
        "SPIFFE://example.org/web",
        "https://example.org/web",
        "",
    ] {
        all.push((one(wrong), false));
    }
    all
}

#[test]
fn ca_02_a_leaf_is_accepted_exactly_when_each_of_its_fields_is_right_in_every_combination() {
    let root = Made::root(DOMAIN);
    let trust = root.bundles(DOMAIN);
    let (mut cases, mut accepted) = (0, 0);
    for (uris, fit) in uris() {
        for (key_usage, key_usage_critical, usable) in usages() {
            for (eku, meant) in purposes() {
                for ca in [None, Some(false), Some(true)] {
                    let leaf = root.sign(Spec {
                        uris: uris.clone(),
                        key_usage,
                        key_usage_critical,
                        eku: eku.clone(),
                        ca,
                        ..Spec::leaf("spiffe://example.org/web")
                    });
                    let right = fit && usable && meant && ca != Some(true);
                    let judged = verify_x509_svid(&[leaf.der], &trust, now());
                    assert_eq!(
                        judged.is_ok(),
                        right,
                        "{uris:?} {key_usage:?} {key_usage_critical} {eku:?} {ca:?}: {judged:?}"
                    );
                    cases += 1;
                    accepted += usize::from(right);
                }
            }
        }
    }
    println!("{cases} combinations, {accepted} of them right");
    assert!(
        cases > 3_000 && accepted == 2 * 3 * 3 * 2,
        "{cases}, {accepted}"
    );
}
