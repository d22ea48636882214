//! Any bytes as a request of SPIRE's API: refused, or values that mean the same after another trip over the wire.
//! Trusts nothing; libFuzzer makes the bytes.
//! Never reaches a store, a key or a network.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| ca_server::fuzzing::request(bytes));
