//! Tests of `svid.rs`.

use proptest::prelude::*;

use super::*;
use crate::test_util::{Made, Spec, now, usage};

#[test]
fn a_chain_says_who_until_when_and_with_which_key() {
    let root = Made::root("td");
    let spec = Spec {
        serial: Some(vec![1, 2, 3]),
        ..Spec::leaf("spiffe://td/pay")
    };
    let spec = spec.valid(now(), now() + std::time::Duration::from_secs(20));
    let made = root.intermediate("td", "ca").sign(spec);
    let svid = made.svid();
    assert_eq!(svid.id().as_str(), "spiffe://td/pay");
    assert_eq!(svid.serial(), "010203");
    assert_eq!(svid.not_before(), now());
    assert_eq!(svid.not_after(), now() + std::time::Duration::from_secs(20));
    assert_eq!(svid.spki(), made.spki());
    assert_eq!((svid.chain(), svid.leaf()), (&*made.chain, &made.der));
    assert!(format!("{svid:?}").starts_with("X509Svid { id: SpiffeId(spiffe://td/pay)"));
}

#[test]
fn wapi_22_concatenated_der_and_pem_read_back_leaf_first() {
    let root = Made::root("td");
    let made = root.intermediate("td", "ca").leaf("spiffe://td/pay");
    let svid = made.svid();
    assert_eq!(
        svid.to_der_concat(),
        [made.chain[0].as_ref(), made.chain[1].as_ref()].concat()
    );
    assert_eq!(
        X509Svid::from_der_concat(&svid.to_der_concat()).unwrap(),
        svid
    );
    assert_eq!(X509Svid::from_pem(svid.to_pem().as_bytes()).unwrap(), svid);
    let swapped = [made.chain[1].as_ref(), made.chain[0].as_ref()].concat();
    let error = X509Svid::from_der_concat(&swapped).unwrap_err();
    assert!(matches!(
        error,
        SvidError::Profile {
            position: 0,
            source: ProfileError::SigningLeaf(_)
        }
    ));
}

#[test]
fn what_is_no_svid_is_refused_with_the_place() {
    let root = Made::root("td");
    let made = root.intermediate("td", "ca").leaf("spiffe://td/pay");
    assert_eq!(X509Svid::parse(Vec::new()), Err(SvidError::Empty));
    assert_eq!(X509Svid::from_der_concat(b""), Err(SvidError::Empty));
    let many = vec![made.der.clone(); 9];
    assert_eq!(X509Svid::parse(many.clone()), Err(SvidError::TooLong(9)));
    assert_eq!(
        X509Svid::from_der_concat(&many.concat_der()),
        Err(SvidError::TooLong(9))
    );
    let mut cut = made.svid().to_der_concat();
    cut.pop();
    assert!(matches!(
        X509Svid::from_der_concat(&cut),
        Err(SvidError::Concatenation(e)) if e.at == made.der.len()
    ));
    assert!(matches!(
        X509Svid::from_pem(b""),
        Err(SvidError::Pem(PemError::Empty))
    ));
    let not_fit = root.sign(Spec {
        key_usage: Some(usage::CRL_SIGN),
        ..Spec::authority("td", "ca")
    });
    let error = X509Svid::parse(not_fit.leaf("spiffe://td/pay").chain).unwrap_err();
    assert_eq!(
        error,
        SvidError::Profile {
            position: 1,
            source: ProfileError::NoKeyCertSign
        }
    );
    let foreign = root
        .sign(Spec::authority("other", "ca"))
        .leaf("spiffe://td/pay");
    assert!(matches!(
        X509Svid::parse(foreign.chain),
        Err(SvidError::Profile {
            position: 1,
            source: ProfileError::ForeignAuthority { .. }
        })
    ));
    let garbage = vec![made.der.clone(), vec![0x30, 0].into()];
    assert!(matches!(
        X509Svid::parse(garbage),
        Err(SvidError::Unreadable { position: 1, .. })
    ));
}

proptest! {
    #[test]
    fn bytes_of_any_kind_never_panic(bytes in any::<Vec<u8>>()) {
        prop_assert!(X509Svid::from_der_concat(&bytes).is_err());
        prop_assert!(X509Svid::from_pem(&bytes).is_err());
    }
}
