//! Any text as a host: refused, or one canonical spelling that reads as itself.
//! Trusts nothing; libFuzzer makes the text.
//! Never looks at why a host is refused beyond printing it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_policy::CanonicalHost;

fuzz_target!(|text: &str| {
    match CanonicalHost::parse(text) {
        Err(refusal) => assert!(!refusal.to_string().is_empty()),
        Ok(host) => {
            let shown = host.to_string();
            let again = CanonicalHost::parse(&shown).expect("the canonical form is a host");
            assert!(!again.is_rewritten(), "{text}: {shown}");
            assert_eq!((again.name(), again.port()), (host.name(), host.port()));
            assert!(host.is_rewritten() || host.name().len() <= text.len());
            assert!(!host.name().bytes().any(|b| b.is_ascii_uppercase()));
        }
    }
});
