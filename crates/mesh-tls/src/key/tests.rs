//! Decides whether keys are read strictly and never shown.

use mesh_identity::test_util::{KeyKind, Made, Spec};

use super::*;

fn pkcs8(kind: KeyKind) -> Vec<u8> {
    Made::root_with(Spec {
        key: kind,
        ..Spec::authority("td.test", "root")
    })
    .key_pkcs8()
}

#[test]
fn keys_of_each_supported_kind_are_read() {
    for kind in [KeyKind::P256, KeyKind::P384, KeyKind::Ed25519] {
        let der = pkcs8(kind);
        let key = PrivateKey::from_pkcs8(der.clone()).unwrap();
        assert_eq!(key.pkcs8(), der);
    }
}

#[test]
fn anything_else_is_refused_without_a_word_about_its_content() {
    let good = pkcs8(KeyKind::P256);
    for bad in [&[][..], b"secret", &good[..good.len() - 1], &good[1..]] {
        let error = PrivateKey::from_pkcs8(bad.to_vec()).unwrap_err();
        assert_eq!(error.code(), "FNL0401");
        assert!(std::error::Error::source(&error).is_none());
        assert!(!error.to_string().contains("secret"));
    }
}

#[test]
fn debug_output_names_the_kind_only() {
    let key = PrivateKey::from_pkcs8(pkcs8(KeyKind::P256)).unwrap();
    assert_eq!(format!("{key:?}"), "PrivateKey(ECDSA, redacted)");
}

#[test]
fn a_key_cannot_be_cloned() {
    // Compiles only as long as exactly one of the two implementations fits.
    trait Ambiguous<A> {
        fn fits() {}
    }
    impl<T> Ambiguous<()> for T {}
    struct Cloned;
    impl<T: Clone> Ambiguous<Cloned> for T {}
    <PrivateKey as Ambiguous<_>>::fits();
}
