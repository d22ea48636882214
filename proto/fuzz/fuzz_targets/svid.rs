//! Any bytes as an X509SVID of the server: refused, or the same SVID after another trip over the wire.
//! Trusts nothing; libFuzzer makes the bytes.
//! Never looks at the text of a refusal beyond printing it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use proto::{convert::IssuedX509Svid, spire::api::types};

fuzz_target!(|bytes: &[u8]| {
    let Ok(wire) = types::X509svid::decode(bytes) else {
        return;
    };
    match IssuedX509Svid::try_from(wire) {
        Err(refusal) => drop(refusal.to_string()),
        Ok(issued) => {
            let again = types::X509svid::from(&issued);
            assert_eq!(
                IssuedX509Svid::try_from(again).expect("our own SVID is read"),
                issued
            );
        }
    }
});
