//! Any bytes as an Entry: refused, or the same entry after another trip over the wire.
//! Trusts nothing; libFuzzer makes the bytes.
//! Never looks at the text of a refusal beyond printing it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_identity::Entry;
use prost::Message as _;
use proto::spire::api::types;

fuzz_target!(|bytes: &[u8]| {
    let Ok(wire) = types::Entry::decode(bytes) else {
        return;
    };
    match Entry::try_from(&wire) {
        Err(refusal) => drop(refusal.to_string()),
        Ok(entry) => {
            let again = types::Entry::from(&entry);
            assert_eq!(
                Entry::try_from(&again).expect("our own entry is read"),
                entry
            );
        }
    }
});
