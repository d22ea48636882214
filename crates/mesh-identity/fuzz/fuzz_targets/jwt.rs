//! Feeds `mesh_identity_fuzz::jwt`; what it asserts stands there.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_identity_fuzz::jwt(data));
