//! Any bytes as the payload of a node's attestation: refused before any call, or claims to compare.
//! Trusts nothing; libFuzzer makes the bytes.
//! Never reaches a store, a key or a network.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| ca_server::fuzzing::evidence(bytes));
