//! Any bytes as an answer of the Workload API: refused, or every identity fits its certificate and has its bundle.
//! Trusts nothing; libFuzzer makes the bytes.
//! Never looks at the text of a refusal beyond printing it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use proto::{
    convert::workload::{X509Context, bundles_from_wire, x509_bundles_response},
    spiffe::workload,
};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(wire) = workload::X509svidResponse::decode(bytes) {
        match X509Context::try_from(wire) {
            Err(refusal) => drop(refusal.to_string()),
            Ok(context) => {
                assert!(!context.identities().is_empty());
                for identity in context.identities() {
                    assert!(
                        context
                            .bundles()
                            .get(identity.svid.id().trust_domain())
                            .is_some()
                    );
                }
            }
        }
    }
    if let Ok(wire) = workload::X509BundlesResponse::decode(bytes)
        && let Ok(bundles) = bundles_from_wire(wire)
    {
        let again = x509_bundles_response(bundles.iter().map(AsRef::as_ref));
        assert_eq!(
            bundles_from_wire(again).expect("our own bundles are read"),
            bundles
        );
    }
});
