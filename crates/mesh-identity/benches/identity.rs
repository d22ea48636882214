//! Prints what parsing an ID and verifying a chain cost, beside the limit that the same machine sets in the same run:
//! `cargo bench -p mesh-identity`. The limit of parsing is copying the text once, that of verifying is ring's bare signature check.
//! Never a gate: numbers are for people.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_identity::{
    Bundle, SpiffeId, X509Svid,
    test_util::{Made, now},
    verify::verify_x509_svid,
};
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _,
        UnparsedPublicKey,
    },
};

fn main() {
    let typical = "spiffe://prod.example.org/ns/payments/sa/checkout";
    let longest = format!("spiffe://td/{}", "a".repeat(2048 - 12));
    for text in [typical, &longest] {
        let bytes = text.len();
        let limit = time(|| Arc::<str>::from(black_box(text)));
        let parse = time(|| black_box(text).parse::<SpiffeId>());
        line(
            &format!("SPIFFE ID parse, {bytes} bytes"),
            parse,
            "one copy of the text",
            limit,
        );
    }
    let id: SpiffeId = typical.parse().expect("it is one");
    let limit = time(|| black_box(typical) == black_box(id.as_str()));
    let same = time(|| black_box(&id).trust_domain() == black_box(&id).trust_domain());
    line(
        "trust domains of two IDs compared",
        same,
        "memcmp of the ID",
        limit,
    );

    let bare = bare_verification();
    let root = Made::root("td");
    let leaf = root.leaf("spiffe://td/pay");
    let below = root.intermediate("td", "ca 1").leaf("spiffe://td/pay");
    let bundles = root.bundles("td");
    let now = now();
    for (name, made, signatures) in [
        ("leaf and root", &leaf, 1),
        ("leaf, intermediate, root", &below, 2),
    ] {
        let verify = time(|| verify_x509_svid(black_box(&made.chain), &bundles, now));
        let limit = format!("{signatures} bare P-256 verification(s)");
        line(
            &format!("chain verification, {name}"),
            verify,
            &limit,
            bare * f64::from(signatures),
        );
    }
    let mut spoilt = leaf.chain.clone();
    let mut bytes = spoilt[0].to_vec();
    let at = bytes
        .windows(8)
        .position(|w| w == b"spiffe:/")
        .expect("the ID is there");
    bytes[at] = b'S';
    spoilt[0] = bytes.into();
    let refuse = time(|| verify_x509_svid(black_box(&spoilt), &bundles, now));
    line(
        "chain refused for its name",
        refuse,
        "1 bare P-256 verification",
        bare,
    );

    let svid = below.svid().to_der_concat();
    let copy = time(|| black_box(&svid).to_vec());
    line(
        "X509-SVID of two certificates read",
        time(|| X509Svid::from_der_concat(black_box(&svid))),
        "one copy",
        copy,
    );
    let json = root.bundle("td").to_spiffe_json();
    let td = root.bundle("td").trust_domain().clone();
    let copy = time(|| black_box(&json).to_vec());
    let read = time(|| Bundle::from_spiffe_json(td.clone(), black_box(&json)));
    line("SPIFFE bundle of one root read", read, "one copy", copy);
}

fn bare_verification() -> f64 {
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)
        .expect("ring makes keys");
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.as_ref(), &random)
        .expect("its own key");
    let message = [7; 350]; // about the signed part of a leaf
    let signature = key.sign(&random, &message).expect("ring signs");
    let public =
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.public_key().as_ref().to_vec());
    time(|| public.verify(black_box(&message), signature.as_ref()))
}

fn line(name: &str, ns: f64, limit_name: &str, limit: f64) {
    println!(
        "{name:<44} {ns:>10.1} ns/op   limit ({limit_name}) {limit:>10.1} ns/op   x{:.2}",
        ns / limit
    );
}

/// Nanoseconds for one call: the best of many short rounds, each short enough to fit between two interruptions.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn time<T>(mut call: impl FnMut() -> T) -> f64 {
    let mut calls = 1u32;
    let mut best = f64::INFINITY;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        let round = Instant::now();
        for _ in 0..calls {
            black_box(call());
        }
        let took = round.elapsed();
        if took < Duration::from_millis(1) {
            calls = calls.saturating_mul(2);
        } else {
            best = best.min(took.as_secs_f64() * 1e9 / f64::from(calls));
        }
    }
    best
}
