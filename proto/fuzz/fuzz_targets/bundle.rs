//! Any bytes as a Bundle: refused, or the same bundle after another trip over the wire.
//! Trusts nothing; libFuzzer makes the bytes.
//! Never looks at the text of a refusal beyond printing it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use proto::{convert::CarriedBundle, spire::api::types};

fuzz_target!(|bytes: &[u8]| {
    let Ok(wire) = types::Bundle::decode(bytes) else {
        return;
    };
    match CarriedBundle::try_from(wire) {
        Err(refusal) => drop(refusal.to_string()),
        Ok(bundle) => {
            let again = types::Bundle::from(&bundle);
            assert_eq!(
                CarriedBundle::try_from(again).expect("our own bundle is read"),
                bundle
            );
        }
    }
});
