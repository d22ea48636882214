//! Any bytes as a certificate request: refused, or a key whose owner signed it.
//! Trusts nothing; libFuzzer makes the bytes.
//! Never reaches a store, a key or a network.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| ca_server::fuzzing::csr(bytes));
