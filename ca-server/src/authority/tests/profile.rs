//! R-DUMP rows of spiffe.md, A.1 and A.2, for what this authority issues.

use std::collections::HashSet;
use std::fs;
use std::process::Command;

use mesh_identity::SpiffeId;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{
    OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_EXTENDED_KEY_USAGE, OID_X509_EXT_KEY_USAGE,
    OID_X509_EXT_SUBJECT_ALT_NAME,
};

use super::*;

fn parse(der: &[u8]) -> X509Certificate<'_> {
    let (rest, certificate) = x509_parser::parse_x509_certificate(der).expect("a certificate");
    assert!(rest.is_empty());
    certificate
}

fn root(rig: &Rig) -> Vec<u8> {
    rig.authority.bundle().borrow().x509_authorities[0]
        .der
        .clone()
}

/// URI and DNS names in the SAN, and whether it is critical.
fn names(certificate: &X509Certificate<'_>) -> (Vec<String>, Vec<String>, bool) {
    let extension = certificate
        .get_extension_unique(&OID_X509_EXT_SUBJECT_ALT_NAME)
        .expect("one")
        .expect("present");
    let ParsedExtension::SubjectAlternativeName(san) = extension.parsed_extension() else {
        panic!("not parsed")
    };
    let mut uris = Vec::new();
    let mut dns = Vec::new();
    for name in &san.general_names {
        match name {
            GeneralName::URI(uri) => uris.push((*uri).to_owned()),
            GeneralName::DNSName(name) => dns.push((*name).to_owned()),
            other => panic!("unexpected name {other:?}"),
        }
    }
    (uris, dns, extension.critical)
}

#[tokio::test]
async fn id_20_id_21_id_22_the_authority_carries_an_svid_of_its_own_trust_domain_without_path() {
    let rig = Rig::new().await;
    let root = root(&rig);
    assert_eq!(names(&parse(&root)).0, ["spiffe://example.test"]);
}

#[tokio::test]
async fn id_07_the_trust_domain_is_written_in_lower_case() {
    assert!("Example.Test".parse::<TrustDomain>().is_err());
    let rig = Rig::new().await;
    let leaf = rig.sign("/Upper", at(0));
    assert_eq!(
        names(&parse(&leaf.chain[0])).0,
        ["spiffe://example.test/Upper"]
    );
}

#[tokio::test]
async fn id_16_id_17_an_id_of_2048_bytes_is_issued_and_a_longer_one_cannot_be() {
    let rig = Rig::new().await;
    let path = "/".to_owned() + &"p".repeat(2048 - "spiffe://example.test/".len());
    let leaf = rig.sign(&path, at(0));
    assert_eq!(names(&parse(&leaf.chain[0])).0[0].len(), 2048);
    assert!(verified(&leaf, &rig.bundle(), at(0)));
    assert!(SpiffeId::from_parts(&domain(), &(path + "p")).is_err());
}

#[tokio::test]
async fn id_23_a_flipped_bit_in_the_signed_part_does_not_verify() {
    let rig = Rig::new().await;
    let leaf = rig.sign("/pay", at(0));
    let der = leaf.chain[0].to_vec();
    let root = root(&rig);
    let root = parse(&root);
    assert!(
        parse(&der)
            .verify_signature(Some(root.public_key()))
            .is_ok()
    );
    let at_id = der
        .windows(4)
        .position(|bytes| bytes == b"/pay")
        .expect("the id is inside");
    let key = parse(&der).public_key().subject_public_key.data.to_vec();
    let at_key = der
        .windows(key.len())
        .position(|bytes| bytes == key)
        .expect("the key is inside");
    for place in [at_id + 1, at_key + 20] {
        let mut changed = der.clone();
        changed[place] ^= 1;
        assert!(
            parse(&changed)
                .verify_signature(Some(root.public_key()))
                .is_err()
        );
    }
}

#[tokio::test]
async fn x509_01_x509_02_the_id_is_the_one_uri_name() {
    let rig = Rig::new().await;
    let named = LeafTemplate {
        dns_names: vec![
            "pay.example".parse().expect("a name"),
            "*.pay.example".parse().expect("a name"),
        ],
        ..template("/pay")
    };
    let leaf = rig
        .authority
        .sign_leaf(&named, &spki(), at(0))
        .expect("signed");
    let (uris, dns, _) = names(&parse(&leaf.chain[0]));
    assert_eq!(uris, ["spiffe://example.test/pay"]);
    assert_eq!(dns, ["pay.example", "*.pay.example"]);
    assert!(verified(&leaf, &rig.bundle(), at(0)));
}

#[tokio::test]
async fn x509_05_a_leaf_without_path_or_of_another_trust_domain_is_not_issued() {
    let rig = Rig::new().await;
    for id in [
        "spiffe://example.test",
        "spiffe://other.test/pay",
        "spiffe://sub.example.test/pay",
    ] {
        let foreign = LeafTemplate {
            spiffe_id: id.parse().expect("an id"),
            ..template("/pay")
        };
        let refused = rig.authority.sign_leaf(&foreign, &spki(), at(0));
        assert!(matches!(refused, Err(SignError::NotOurs { .. })), "{id}");
    }
}

#[tokio::test]
async fn x509_06_the_subject_is_empty_and_so_the_names_are_critical() {
    let rig = Rig::new().await;
    let leaf = rig.sign("/pay", at(0));
    let leaf = parse(&leaf.chain[0]);
    assert_eq!(leaf.subject().iter().count(), 0);
    assert!(names(&leaf).2);
}

#[tokio::test]
async fn x509_07_x509_09_x509_34_the_authority_is_self_signed_and_names_the_trust_domain_of_its_leaves()
 {
    let rig = Rig::new().await;
    let root = root(&rig);
    let root = parse(&root);
    assert!(root.verify_signature(None).is_ok());
    assert_eq!(root.subject().as_raw(), root.issuer().as_raw());
    assert!(
        root.subject()
            .to_string()
            .starts_with("C=US, O=SPIFFE, serialNumber="),
        "{}",
        root.subject()
    );
    let leaf = rig.sign("/pay", at(0));
    let leaf = parse(&leaf.chain[0]);
    assert_eq!(leaf.issuer().as_raw(), root.subject().as_raw());
    assert!(names(&leaf).0[0].starts_with(&names(&root).0[0]));
}

#[tokio::test]
async fn x509_11_x509_12_basic_constraints_say_ca_for_the_authority_and_not_for_the_leaf() {
    let rig = Rig::new().await;
    let (root, leaf) = (root(&rig), rig.sign("/pay", at(0)));
    for (der, is_ca) in [(root.as_slice(), true), (leaf.chain[0].as_ref(), false)] {
        let certificate = parse(der);
        let extension = certificate.get_extension_unique(&OID_X509_EXT_BASIC_CONSTRAINTS);
        let extension = extension.expect("one").expect("present");
        assert!(extension.critical);
        let ParsedExtension::BasicConstraints(constraints) = extension.parsed_extension() else {
            panic!("not parsed")
        };
        assert_eq!(
            (constraints.ca, constraints.path_len_constraint),
            (is_ca, None)
        );
    }
}

#[tokio::test]
async fn x509_15_to_x509_20_key_usage_is_critical_and_only_what_is_needed() {
    let rig = Rig::new().await;
    let (root, leaf) = (root(&rig), rig.sign("/pay", at(0)));
    let flags = |der: &[u8]| {
        let certificate = parse(der);
        let extension = certificate
            .get_extension_unique(&OID_X509_EXT_KEY_USAGE)
            .expect("one")
            .expect("present");
        assert!(extension.critical);
        let ParsedExtension::KeyUsage(usage) = extension.parsed_extension() else {
            panic!("not parsed")
        };
        usage.flags
    };
    // Bits 5 and 6: keyCertSign, cRLSign. Bit 0: digitalSignature.
    assert_eq!(flags(&root), 0b110_0000);
    assert_eq!(flags(&leaf.chain[0]), 0b1);
}

#[tokio::test]
async fn x509_21_x509_22_a_leaf_is_for_servers_and_for_clients() {
    let rig = Rig::new().await;
    let leaf = rig.sign("/pay", at(0));
    let leaf = parse(&leaf.chain[0]);
    let extension = leaf
        .get_extension_unique(&OID_X509_EXT_EXTENDED_KEY_USAGE)
        .expect("one")
        .expect("present");
    let ParsedExtension::ExtendedKeyUsage(usage) = extension.parsed_extension() else {
        panic!("not parsed")
    };
    assert!(usage.server_auth && usage.client_auth);
    assert!(!usage.any && !usage.code_signing && !usage.ocsp_signing && usage.other.is_empty());
}

#[tokio::test]
async fn key_ids_are_sha1_of_the_key_bits_and_the_leaf_points_to_its_authority() {
    let rig = Rig::new().await;
    let (root, leaf) = (root(&rig), rig.sign("/pay", at(0)));
    let ids = |der: &[u8]| {
        let certificate = parse(der);
        let mut ids = (String::new(), String::new());
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => ids.0 = facts::hex(id.0),
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    ids.1 = facts::hex(id.key_identifier.as_ref().expect("a key id").0);
                }
                _ => {}
            }
        }
        assert_eq!(
            ids.0,
            facts::hex(&keys::key_id(
                &certificate.public_key().subject_public_key.data
            ))
        );
        ids
    };
    let (root, own) = ids(&root);
    assert_eq!(root, own);
    assert_eq!(ids(&leaf.chain[0]).1, root);
    assert_eq!(
        (leaf.authority_id.as_str(), root.len()),
        (root.as_str(), 40)
    );
}

#[tokio::test]
async fn the_chain_is_the_leaf_alone_and_its_times_are_as_promised() {
    let rig = Rig::new().await;
    let leaf = rig.sign("/pay", at(100));
    assert_eq!(
        (leaf.chain.len(), leaf.not_before, leaf.not_after),
        (1, at(90), at(160))
    );
    let parsed = parse(&leaf.chain[0]);
    assert_eq!(
        SystemTime::from(parsed.validity().not_before.to_datetime()),
        leaf.not_before
    );
    assert_eq!(
        SystemTime::from(parsed.validity().not_after.to_datetime()),
        leaf.not_after
    );
    let root = root(&rig);
    let root = parse(&root);
    assert_eq!(
        SystemTime::from(root.validity().not_before.to_datetime()),
        at(0) - BACKDATE
    );
    assert_eq!(
        SystemTime::from(root.validity().not_after.to_datetime()),
        at(0) + LIFE
    );
}

#[tokio::test]
async fn ca_22_a_leaf_never_outlives_nor_precedes_its_authority() {
    let rig = Rig::new().await;
    let for_ever = LeafTemplate {
        ttl: Duration::MAX,
        not_before_backdate: Duration::MAX,
        ..template("/pay")
    };
    let leaf = rig
        .authority
        .sign_leaf(&for_ever, &spki(), at(1))
        .expect("signed");
    assert_eq!(
        (leaf.not_before, leaf.not_after),
        (at(0) - BACKDATE, at(0) + LIFE)
    );
    let none = LeafTemplate {
        ttl: Duration::ZERO,
        ..template("/pay")
    };
    assert_eq!(
        rig.authority.sign_leaf(&none, &spki(), at(1)),
        Err(SignError::NoTime)
    );
}

#[tokio::test]
async fn ca_40_nothing_is_signed_outside_the_authoritys_own_validity() {
    let rig = Rig::new().await;
    for now in [
        at(0) - Duration::from_secs(90 * 24 * 3600),
        at(0) + LIFE,
        at(40 * 24 * 3600),
    ] {
        assert_eq!(
            rig.authority.sign_leaf(&template("/pay"), &spki(), now),
            Err(SignError::NoAuthority)
        );
    }
}

#[tokio::test]
async fn ca_20_keys_of_other_kinds_and_broken_ones_are_refused_in_no_time() {
    let rig = Rig::new().await;
    let good = spki();
    let mut trailing = good.clone();
    trailing.push(0);
    // secp256k1 in place of P-256.
    let p256 = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    let at_curve = good
        .windows(p256.len())
        .position(|bytes| bytes == p256)
        .expect("names its curve");
    let mut other_curve = good.clone();
    other_curve[at_curve + 9] = 0x01;
    for bad in [
        &[][..],
        b"\x30\x00",
        &good[..good.len() - 1],
        &trailing,
        &other_curve,
    ] {
        let refused = rig.authority.sign_leaf(&template("/pay"), bad, at(0));
        assert!(
            matches!(refused, Err(SignError::PublicKey { .. })),
            "{bad:02x?}"
        );
    }
}

#[tokio::test]
async fn ca_21_the_key_of_an_authority_is_never_certified_as_a_leaf() {
    let rig = Rig::new().await;
    rig.authority.advance(at(301)).await.expect("prepared");
    let bundle = rig.authority.bundle();
    let roots = bundle.borrow().x509_authorities.clone();
    assert_eq!(roots.len(), 2);
    for root in roots {
        let key = parse(&root.der).public_key().raw.to_vec();
        assert_eq!(
            rig.authority.sign_leaf(&template("/pay"), &key, at(301)),
            Err(SignError::OwnKey)
        );
    }
}

#[tokio::test]
async fn ca_05_serials_are_positive_short_and_never_the_same() {
    let rig = Rig::new().await;
    let mut seen = HashSet::new();
    for _ in 0..100_000 {
        let serial = keys::new_serial().expect("random numbers");
        assert!(serial[0] & 0x80 == 0 && serial.len() <= 20);
        assert!(seen.insert(serial));
    }
    let leaf = rig.sign("/pay", at(0));
    assert_eq!(parse(&leaf.chain[0]).raw_serial(), unhex(&leaf.serial));
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex"))
        .collect()
}

#[tokio::test]
async fn every_kind_of_key_that_we_certify_verifies() {
    let rig = Rig::new().await;
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
    ] {
        let key = rcgen::KeyPair::generate_for(algorithm).expect("a key");
        let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
        let leaf = rig
            .authority
            .sign_leaf(&template("/pay"), &spki, at(0))
            .expect("signed");
        assert!(verified(&leaf, &rig.bundle(), at(0)));
        assert_eq!(parse(&leaf.chain[0]).public_key().raw, spki);
    }
}

#[tokio::test]
async fn the_machines_openssl_reads_and_strictly_verifies_what_we_issue() {
    if Command::new("openssl").arg("version").output().is_err() {
        println!("skipped: there is no openssl on this machine (Debian: apt-get install openssl)");
        return;
    }
    let rig = Rig::new().await;
    let folder = rig.folder.path();
    let file = |name: &str, der: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, pem(der)).expect("written");
        path
    };
    let openssl = |args: &[&str]| {
        let out = Command::new("openssl")
            .args(args)
            .output()
            .expect("openssl runs");
        (
            out.status.success(),
            String::from_utf8_lossy(&out.stdout).into_owned()
                + &String::from_utf8_lossy(&out.stderr),
        )
    };
    let root = file("root.pem", &root(&rig));
    let root = root.to_str().expect("UTF-8");
    let mut leaves: Vec<String> = Vec::new();
    for n in 0..100 {
        let named = LeafTemplate {
            dns_names: vec!["pay.example".parse().expect("a name")],
            ..template("/pay")
        };
        let leaf = rig
            .authority
            .sign_leaf(&named, &spki(), at(0))
            .expect("signed");
        leaves.push(
            file(&format!("leaf{n}.pem"), &leaf.chain[0])
                .to_str()
                .expect("UTF-8")
                .to_owned(),
        );
    }
    let mut verify = vec![
        "verify",
        "-x509_strict",
        "-check_ss_sig",
        "-attime",
        "1800000001",
        "-CAfile",
        root,
    ];
    verify.extend(leaves.iter().map(String::as_str));
    let (good, text) = openssl(&verify);
    assert!(good && text.matches(": OK").count() == 100, "{text}");

    let (_, text) = openssl(&["x509", "-in", root, "-noout", "-text"]);
    for part in [
        "Issuer: C = US, O = SPIFFE, serialNumber = ",
        "CA:TRUE",
        "X509v3 Key Usage: critical\n                Certificate Sign, CRL Sign",
        "URI:spiffe://example.test\n",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let (_, text) = openssl(&["x509", "-in", &leaves[0], "-noout", "-text"]);
    for part in [
        "Subject: \n",
        "X509v3 Basic Constraints: critical\n                CA:FALSE",
        "X509v3 Key Usage: critical\n                Digital Signature\n",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "X509v3 Subject Alternative Name: critical\n                URI:spiffe://example.test/pay, DNS:pay.example\n",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

pub(super) fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = body
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).expect("ASCII"))
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}
