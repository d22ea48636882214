//! Any text as a policy file: refused with places inside the text, or a set that decides without a panic and explains what it decided.
//! Trusts nothing; libFuzzer makes the text.
//! Never meets a verdict that its explanation contradicts, nor an allowed stranger.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use mesh_identity::SpiffeId;
use mesh_policy::{
    CanonicalPath, CompiledPolicy, Door, Facts, HttpFacts, PolicySet, Protocol, decide, explain,
};

fn caller() -> &'static SpiffeId {
    static CALLER: OnceLock<SpiffeId> = OnceLock::new();
    CALLER.get_or_init(|| "spiffe://dev.test/shop".parse().expect("it is an ID"))
}

fuzz_target!(|text: &str| {
    let set = match PolicySet::from_yaml(text) {
        Err(errors) => {
            assert!(!errors.problems().is_empty());
            let shown = errors.render("fuzz.yaml", text);
            assert!(!shown.contains('\u{1b}'), "a control character is printed");
            return;
        }
        Ok(set) => set,
    };
    let path = CanonicalPath::parse("/api/orders/7").expect("it is canonical");
    let http = HttpFacts::new("GET", "pay.test", path);
    for protocol in [Protocol::Http, Protocol::Tcp] {
        let policy = CompiledPolicy::new(&set, Door::of_unknown(protocol));
        for peer in [None, Some(caller())] {
            let facts = Facts {
                http: (protocol == Protocol::Http).then_some(http),
                ..Facts::new(peer, 8080)
            };
            let verdict = decide(&policy, &facts);
            assert_eq!(verdict, explain(&policy, &facts).verdict);
            assert!(
                !(set.policies().is_empty() && verdict.is_allowed()),
                "allowed by nothing"
            );
        }
    }
});
