//! Feeds `mesh_identity_fuzz::trust_domain`; what it asserts stands there.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_identity_fuzz::trust_domain(data));
