//! What is said about processes, and that the proposed command never widens anything.

use std::sync::Arc;

use mesh_identity::{Entry, test_util};

use super::*;

fn facts(texts: &[&str]) -> BTreeSet<Selector> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn seen(texts: &[&str]) -> Attestation {
    Attestation {
        facts: facts(texts),
        failed: Vec::new(),
    }
}

fn roster(entries: &[(&str, &[&str])]) -> Roster {
    Roster::new(entries.iter().map(|(id, selectors)| {
        Arc::new(Entry {
            id: id.parse().unwrap(),
            spiffe_id: format!("spiffe://dev.test/{id}").parse().unwrap(),
            parent_id: agent(),
            selectors: facts(selectors),
            x509_svid_ttl: None,
            jwt_svid_ttl: None,
            federates_with: BTreeSet::new(),
            admin: false,
            downstream: false,
            expires_at: None,
            dns_names: Vec::new(),
            revision: 1,
            store_svid: false,
            hint: String::new(),
            created_at: test_util::now(),
            disable_x509_svid_prefetch: false,
            jwt_svid_include_jti: false,
        })
    }))
}

fn agent() -> SpiffeId {
    "spiffe://dev.test/spire/agent/join_token/x"
        .parse()
        .unwrap()
}

const PAY: &[&str] = &[
    "unix:uid:1001",
    "unix:path:/srv/pay/bin/pay",
    "unix:gid:1001",
];

#[test]
fn a_process_with_an_identity_needs_no_fix() {
    let found = explain(
        seen(PAY),
        Some(&roster(&[("pay", &["unix:uid:1001"])])),
        Some(&agent()),
        test_util::now(),
    );
    assert_eq!(found.matching.len(), 1);
    assert_eq!((found.closest, found.fix.as_str()), (None, ""));
}

#[test]
fn the_closest_entry_is_compared_and_the_fix_names_every_selector() {
    let roster = roster(&[
        ("far", &["unix:uid:1", "unix:gid:1", "unix:path:/x"]),
        (
            "pay",
            &[
                "unix:gid:2000",
                "unix:path:/srv/pay/bin/pay",
                "unix:uid:1001",
            ],
        ),
        ("wild", &["unix:uid:7"]),
    ]);
    let found = explain(seen(PAY), Some(&roster), Some(&agent()), test_util::now());
    let closest = found.closest.unwrap();
    assert_eq!(closest.id.as_str(), "pay");
    let compared: Vec<_> = closest
        .selectors
        .iter()
        .map(|(s, present)| (s.as_str(), *present))
        .collect();
    assert_eq!(
        compared,
        [
            ("unix:gid:2000", false),
            ("unix:path:/srv/pay/bin/pay", true),
            ("unix:uid:1001", true)
        ]
    );
    assert_eq!(
        found.fix,
        "ca-server entry create --parent-id spiffe://dev.test/spire/agent/join_token/x --spiffe-id spiffe://dev.test/pay \
         --selector unix:gid:1001 --selector unix:path:/srv/pay/bin/pay --selector unix:uid:1001"
    );
}

#[test]
fn a_selector_without_counterpart_is_not_dropped_from_the_fix() {
    let roster = roster(&[("pay", &["unix:uid:1001", "k8s:ns:shop"])]);
    let found = explain(seen(PAY), Some(&roster), Some(&agent()), test_util::now());
    // Not `--selector unix:uid:1001` alone, which would give the identity to all of that user's programs.
    assert!(
        found.fix.contains("--selector unix:path:/srv/pay/bin/pay"),
        "{}",
        found.fix
    );
}

#[test]
fn without_any_entry_the_fix_is_a_template_for_this_process() {
    let found = explain(
        seen(PAY),
        Some(&roster(&[])),
        Some(&agent()),
        test_util::now(),
    );
    assert!(
        found.fix.contains("--spiffe-id spiffe://dev.test/NAME"),
        "{}",
        found.fix
    );
    let before = explain(seen(PAY), None, None, test_util::now());
    assert!(
        before.fix.contains("--parent-id AGENT-ID"),
        "{}",
        before.fix
    );
}

#[test]
fn what_a_shell_would_read_is_quoted() {
    let hostile = ["unix:uid:1", "unix:path:/tmp/a b; rm -rf $HOME'x"];
    let found = explain(
        seen(&hostile),
        Some(&roster(&[])),
        Some(&agent()),
        test_util::now(),
    );
    assert!(
        found
            .fix
            .contains(r"--selector 'unix:path:/tmp/a b; rm -rf $HOME'\''x'"),
        "{}",
        found.fix
    );
}
