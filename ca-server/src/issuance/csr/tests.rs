//! Requests that are accepted, and every way to be refused.

use rcgen::{CertificateParams, KeyPair, SanType};

use super::*;

fn request(key: &KeyPair, params: CertificateParams) -> Vec<u8> {
    params.serialize_request(key).unwrap().der().to_vec()
}

fn plain(key: &KeyPair) -> Vec<u8> {
    request(key, CertificateParams::default())
}

#[test]
fn p256_p384_and_ed25519_are_accepted_and_only_the_key_is_taken() {
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
    ] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let csr = VerifiedCsr::parse(&plain(&key)).unwrap();
        assert_eq!(
            csr.spki(),
            rcgen::PublicKeyData::subject_public_key_info(&key)
        );
    }
}

#[test]
fn ca_18_names_and_extensions_in_the_request_do_not_matter() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["evil.test".into()]).unwrap();
    params.subject_alt_names.push(SanType::URI(
        "spiffe://other.test/admin".try_into().unwrap(),
    ));
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "root");
    let csr = VerifiedCsr::parse(&request(&key, params)).unwrap();
    assert_eq!(csr.spki(), VerifiedCsr::parse(&plain(&key)).unwrap().spki());
}

#[test]
fn ca_19_a_broken_self_signature_is_refused() {
    let key = KeyPair::generate().unwrap();
    let mut der = plain(&key);
    // The last byte belongs to the signature's second number.
    *der.last_mut().unwrap() ^= 1;
    assert_eq!(VerifiedCsr::parse(&der), Err(CsrError::NoPossession));
}

#[test]
fn another_key_in_a_signed_request_is_refused() {
    let (mine, theirs) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let der = plain(&mine);
    let (old, new) = (
        rcgen::PublicKeyData::subject_public_key_info(&mine),
        rcgen::PublicKeyData::subject_public_key_info(&theirs),
    );
    let at = der
        .windows(old.len())
        .position(|window| window == old)
        .unwrap();
    let mut swapped = der;
    swapped[at..at + new.len()].copy_from_slice(&new);
    assert_eq!(VerifiedCsr::parse(&swapped), Err(CsrError::NoPossession));
}

#[test]
fn ca_19_trailing_bytes_pem_and_junk_are_refused() {
    let key = KeyPair::generate().unwrap();
    let mut der = plain(&key);
    der.push(0);
    assert_eq!(VerifiedCsr::parse(&der), Err(CsrError::TrailingBytes(1)));
    let pem = CertificateParams::default()
        .serialize_request(&key)
        .unwrap()
        .pem()
        .unwrap();
    assert_eq!(VerifiedCsr::parse(pem.as_bytes()), Err(CsrError::Malformed));
    assert_eq!(VerifiedCsr::parse(b""), Err(CsrError::Malformed));
    assert_eq!(
        VerifiedCsr::parse(&vec![0x30; LONGEST_CSR + 1]),
        Err(CsrError::TooLong(LONGEST_CSR + 1))
    );
}

/// A request with an RSA key of any size and exponent; its signature is not looked at before the key is judged.
fn rsa(bits: usize, exponent: &[u8]) -> Vec<u8> {
    use mesh_identity::test_util::tlv;
    let mut modulus = vec![0xff; bits / 8];
    modulus.insert(0, 0);
    let key = tlv(0x30, &[tlv(0x02, &modulus), tlv(0x02, exponent)].concat());
    let algorithm = tlv(
        0x30,
        &[
            tlv(0x06, &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1]),
            vec![5, 0],
        ]
        .concat(),
    );
    let spki = tlv(
        0x30,
        &[algorithm, tlv(0x03, &[&[0], &key[..]].concat())].concat(),
    );
    let info = tlv(
        0x30,
        &[tlv(0x02, &[0]), tlv(0x30, &[]), spki, tlv(0xa0, &[])].concat(),
    );
    let signature_algorithm = tlv(
        0x30,
        &[
            tlv(0x06, &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11]),
            vec![5, 0],
        ]
        .concat(),
    );
    tlv(
        0x30,
        &[info, signature_algorithm, tlv(0x03, &[0, 1])].concat(),
    )
}

#[test]
fn ca_20_weak_and_huge_rsa_keys_are_refused_before_their_signature_is_verified() {
    assert_eq!(
        VerifiedCsr::parse(&rsa(1024, &[1, 0, 1])),
        Err(CsrError::RsaSize(1024))
    );
    assert_eq!(
        VerifiedCsr::parse(&rsa(65_536, &[1, 0, 1])),
        Err(CsrError::RsaSize(65_536))
    );
    assert_eq!(
        VerifiedCsr::parse(&rsa(2048, &[1])),
        Err(CsrError::RsaExponent)
    );
    assert_eq!(
        VerifiedCsr::parse(&rsa(2048, &[3])),
        Err(CsrError::RsaExponent)
    );
    assert_eq!(
        VerifiedCsr::parse(&rsa(2048, &[1, 0, 1])),
        Err(CsrError::NoPossession)
    );
}

proptest::proptest! {
    #[test]
    fn anything_else_is_refused_without_a_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
        proptest::prop_assert!(VerifiedCsr::parse(&bytes).is_err());
    }

    #[test]
    fn one_changed_byte_never_yields_another_key(at in 0..200_usize, with in 1..=255_u8) {
        let key = KeyPair::generate().unwrap();
        let mut der = plain(&key);
        let at = at % der.len();
        der[at] ^= with;
        if let Ok(csr) = VerifiedCsr::parse(&der) {
            proptest::prop_assert_eq!(csr.spki(), rcgen::PublicKeyData::subject_public_key_info(&key));
        }
    }
}
