//! Signatures made here and by OpenSSL; what each side accepts.

use std::path::Path;
use std::process::Command;

use super::*;

/// A self-signed certificate with a key that OpenSSL made: chain, key, public key.
fn certificate(dir: &Path, kind: &[&str]) -> (Vec<u8>, Vec<u8>) {
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    let output = Command::new("openssl")
        .args(["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=node"])
        .args(kind)
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    (std::fs::read(cert).unwrap(), std::fs::read(key).unwrap())
}

/// The RSAPublicKey in a PEM of a private key.
fn rsa_public(dir: &Path) -> Vec<u8> {
    let output = Command::new("openssl")
        .args(["rsa", "-RSAPublicKey_out", "-outform", "DER", "-in"])
        .arg(dir.join("key.pem"))
        .output()
        .unwrap();
    output.stdout
}

#[test]
fn rsa_proofs_are_accepted_with_a_salt_like_the_digest_and_with_the_longest_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (chain, key) = certificate(dir.path(), &["-newkey", "rsa:2048"]);
    let identity = WebIdentity::from_pem(&chain, &key).unwrap();
    let Some(Possession::Rsa(signature)) = identity.prove(b"message") else {
        panic!("an RSA key signs");
    };
    let public = rsa_public(dir.path());
    assert!(rsa_pss_sha256_fits(&public, b"message", &signature));
    assert!(!rsa_pss_sha256_fits(&public, b"another", &signature));
    let mut broken = signature.clone();
    broken[17] ^= 1;
    assert!(!rsa_pss_sha256_fits(&public, b"message", &broken));
    assert!(!rsa_pss_sha256_fits(&public, b"message", b""));
    assert!(!rsa_pss_sha256_fits(b"no key", b"message", &signature));

    std::fs::write(dir.path().join("message"), b"message").unwrap();
    for (salt, good) in [("32", true), ("-2", true), ("20", false), ("0", false)] {
        let output = Command::new("openssl")
            .args([
                "dgst",
                "-sha256",
                "-sigopt",
                "rsa_padding_mode:pss",
                "-sigopt",
            ])
            .arg(format!("rsa_pss_saltlen:{salt}"))
            .args(["-sign", "key.pem", "message"])
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let fits = rsa_pss_sha256_fits(&public, b"message", &output.stdout);
        assert_eq!(fits, good, "salt {salt}");
    }
}

#[test]
fn ecdsa_proofs_come_as_two_numbers_and_other_kinds_of_keys_make_none() {
    let dir = tempfile::tempdir().unwrap();
    let curve = |name: &str| format!("ec_paramgen_curve:{name}");
    let ec = |name: &str| {
        let (chain, key) = certificate(dir.path(), &["-newkey", "ec", "-pkeyopt", &curve(name)]);
        WebIdentity::from_pem(&chain, &key).unwrap()
    };
    let identity = ec("P-256");
    for _ in 0..64 {
        let Some(Possession::Ecdsa { r, s }) = identity.prove(b"message") else {
            panic!("a key on P-256 signs");
        };
        for number in [r, s] {
            assert!(number.len() <= 32 && number[0] != 0);
        }
    }
    assert!(ec("P-384").prove(b"message").is_none());
    let (chain, key) = certificate(dir.path(), &["-newkey", "ed25519"]);
    let identity = WebIdentity::from_pem(&chain, &key).unwrap();
    assert!(identity.prove(b"message").is_none());
    assert_eq!(identity.chain().count(), 1);
}

#[test]
fn only_a_whole_signature_has_two_numbers() {
    let good = [0x30, 7, 2, 2, 0, 200, 2, 1, 5];
    assert_eq!(numbers(&good), Some((vec![200], vec![5])));
    for length in 0..good.len() {
        assert_eq!(numbers(&good[..length]), None);
    }
    assert_eq!(numbers(&[0x30, 8, 2, 2, 0, 200, 2, 1, 5, 0]), None);
    assert_eq!(
        numbers(&[0x30, 6, 2, 1, 0, 2, 1, 5]),
        None,
        "zero is no part of a signature"
    );
}
