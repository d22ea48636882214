//! Measures one decision: `cargo bench -p mesh-policy`. Prints nanoseconds per call for 1, 10, 1 000 and 10 000 policies.
//! Trusts nothing; asserts that each verdict is the expected one.
//! Never runs in `cargo test`.

use std::hint::black_box;

use mesh_identity::SpiffeId;
use mesh_policy::{
    CanonicalPath, CompiledPolicy, Door, Facts, HttpFacts, PolicySet, Protocol, decide,
};

fn main() {
    // `cargo test --benches` starts this too; there it has nothing to do.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let peer: SpiffeId = "spiffe://dev.test/ns/shop/sa/shop"
        .parse()
        .expect("a SPIFFE ID");
    for count in [1_usize, 10, 1000, 10_000] {
        let yaml: String = (0..count).map(|i| policy(i, i + 1 == count)).collect();
        let set = PolicySet::from_yaml(&yaml).expect("a good policy");
        let policy = CompiledPolicy::new(&set, Door::of_unknown(Protocol::Http));
        measure(
            &format!("decide, {count} policies, the last one allows"),
            || {
                let path = CanonicalPath::parse(black_box("/charge/2026/11")).expect("canonical");
                let facts = Facts::new(Some(black_box(&peer)), 8080)
                    .with(HttpFacts::new("POST", "pay.test", path));
                assert!(decide(&policy, &facts).is_allowed());
            },
        );
    }
    measure("canonical path of 64 bytes", || {
        let path = "/api/v1/users/0123456789/orders/0123456789/items/0123456789/state";
        black_box(CanonicalPath::parse(black_box(path)).is_ok());
    });
}

fn policy(i: usize, last: bool) -> String {
    // Each policy names one more caller; the one that asks comes last.
    format!(
        "---\napiVersion: mesh.finial.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{ name: p{i} }}\nspec:\n  rules:\n    - from: [ {{ source: {{ principals: [\"dev.test/ns/shop/sa/other{i}\", \"{}\"] }} }} ]\n      to: [ {{ operation: {{ methods: [POST], paths: [\"/charge/*\"] }} }} ]\n",
        if last {
            "dev.test/ns/shop/sa/shop"
        } else {
            "dev.test/ns/shop/sa/none"
        },
    )
}

#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock of the machine"
)]
fn measure(what: &str, mut call: impl FnMut()) {
    const CALLS: u32 = 1_000_000;
    for _ in 0..CALLS / 10 {
        call();
    }
    let start = std::time::Instant::now();
    for _ in 0..CALLS {
        call();
    }
    println!(
        "{what}: {:.1} ns",
        start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
    );
}
