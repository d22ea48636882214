//! What processes may hold, with plain values.

use std::time::Duration;

use mesh_identity::test_util::{self, Made, Spec};

use super::*;

fn entry(id: &str, selectors: &[&str]) -> Entry {
    Entry {
        id: id.parse().unwrap(),
        spiffe_id: format!("spiffe://dev.test/{id}").parse().unwrap(),
        parent_id: "spiffe://dev.test/spire/agent/join_token/x"
            .parse()
            .unwrap(),
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
    }
}

fn facts(texts: &[&str]) -> BTreeSet<Selector> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn roster(entries: &[Entry]) -> Roster {
    Roster::new(entries.iter().cloned().map(Arc::new))
}

fn held(root: &Made, entry: &Entry, expires: SystemTime) -> HeldSvid {
    let leaf = root.sign(
        Spec::leaf(entry.spiffe_id.as_str()).valid(expires - Duration::from_secs(7200), expires),
    );
    HeldSvid {
        entry: Arc::new(entry.clone()),
        svid: leaf.svid(),
        key: SvidKey::from_pkcs8(leaf.key_pkcs8()),
        renew_at: expires,
    }
}

#[test]
fn an_entry_matches_when_all_its_selectors_are_facts() {
    let entries = [
        entry("a", &["unix:uid:1"]),
        entry("b", &["unix:uid:1", "unix:path:/bin/x"]),
        entry("c", &["unix:uid:2"]),
        entry("d", &["unix:path:/bin/x", "unix:sha256:00"]),
    ];
    let roster = roster(&entries);
    let matching = |texts: &[&str]| -> Vec<String> {
        roster
            .matching(&facts(texts), test_util::now())
            .iter()
            .map(|e| e.id.to_string())
            .collect()
    };
    assert_eq!(matching(&["unix:uid:1"]), ["a"]);
    assert_eq!(
        matching(&["unix:uid:1", "unix:path:/bin/x", "unix:gid:7"]),
        ["a", "b"]
    );
    assert_eq!(matching(&["unix:path:/bin/x"]), Vec::<String>::new());
    assert_eq!(matching(&[]), Vec::<String>::new());
    assert!(roster.wanted.sha256);
}

#[test]
fn the_index_finds_what_a_walk_over_all_entries_finds() {
    let kinds = [
        "unix:uid:1",
        "unix:uid:2",
        "unix:gid:1",
        "unix:path:/a",
        "unix:path:/b",
        "unix:sha256:aa",
    ];
    let subset = |bits: usize| -> Vec<&str> {
        (0..6)
            .filter(|n| bits & (1 << n) != 0)
            .map(|n| kinds[n])
            .collect()
    };
    let entries: Vec<_> = (1..64)
        .map(|bits| entry(&format!("e{bits:02}"), &subset(bits)))
        .collect();
    let roster = roster(&entries);
    for bits in 0..64 {
        let seen = facts(&subset(bits));
        let by_walk: Vec<_> = entries
            .iter()
            .filter(|e| e.matches(&seen))
            .map(|e| e.id.clone())
            .collect();
        let by_index: Vec<_> = roster
            .matching(&seen, test_util::now())
            .iter()
            .map(|e| e.id.clone())
            .collect();
        assert_eq!(by_index, by_walk);
    }
}

#[test]
fn entries_for_nodes_and_for_stores_are_not_for_processes() {
    let mut alias = entry("alias", &["unix:uid:1"]);
    alias.parent_id = "spiffe://dev.test/spire/server".parse().unwrap();
    let mut stored = entry("stored", &["unix:uid:1"]);
    stored.store_svid = true;
    assert!(roster(&[alias, stored]).is_empty());
}

#[test]
fn an_expired_svid_is_never_part_of_the_state() {
    let (root, now) = (Made::root("dev.test"), test_util::now());
    let (a, b) = (entry("a", &["unix:uid:1"]), entry("b", &["unix:uid:1"]));
    let vault = Vault::new("dev.test".parse().unwrap());
    vault.replace(
        roster(&[a.clone(), b.clone()]),
        [root.bundle("dev.test")].into_iter().collect(),
        now,
    );
    let soon = now + Duration::from_secs(60);
    vault.keep(vec![
        held(&root, &a, soon),
        held(&root, &b, now + Duration::from_secs(3600)),
    ]);
    let count = |at| match vault.view().standing(&facts(&["unix:uid:1"]), at) {
        Standing::Ready(set) => (set.identities.len(), set.waiting.len()),
        other => panic!("{other:?}"),
    };
    assert_eq!(count(now), (2, 0));
    assert_eq!(count(soon), (1, 1));
    let late = vault
        .view()
        .standing(&facts(&["unix:uid:1"]), now + Duration::from_secs(4000));
    assert!(matches!(late, Standing::NothingReady { entries } if entries.len() == 2));
}

#[test]
fn an_svid_goes_with_its_entry_and_with_its_identity() {
    let (root, now) = (Made::root("dev.test"), test_util::now());
    let mut a = entry("a", &["unix:uid:1"]);
    let bundles = || [root.bundle("dev.test")].into_iter().collect();
    let vault = Vault::new("dev.test".parse().unwrap());
    vault.replace(roster(std::slice::from_ref(&a)), bundles(), now);
    vault.keep(vec![held(&root, &a, now + Duration::from_secs(3600))]);
    a.selectors = facts(&["unix:uid:2"]);
    vault.replace(roster(std::slice::from_ref(&a)), bundles(), now);
    assert!(
        vault.view().held(&a.id).is_some(),
        "the same identity for somebody else"
    );
    a.spiffe_id = "spiffe://dev.test/another".parse().unwrap();
    vault.replace(roster(std::slice::from_ref(&a)), bundles(), now);
    assert!(vault.view().held(&a.id).is_none());
    // One that comes late, for an entry that is gone or changed, is not kept either.
    vault.keep(vec![held(
        &root,
        &entry("a", &["unix:uid:1"]),
        now + Duration::from_secs(3600),
    )]);
    assert!(vault.view().held(&a.id).is_none());
}

#[test]
fn before_the_first_update_nothing_is_known_and_after_a_ban_nothing_is_left() {
    let (root, now) = (Made::root("dev.test"), test_util::now());
    let vault = Vault::new("dev.test".parse().unwrap());
    assert!(matches!(
        vault.view().standing(&facts(&["unix:uid:1"]), now),
        Standing::NotSynced
    ));
    let a = entry("a", &["unix:uid:1"]);
    vault.replace(
        roster(std::slice::from_ref(&a)),
        [root.bundle("dev.test")].into_iter().collect(),
        now,
    );
    vault.keep(vec![held(&root, &a, now + Duration::from_secs(3600))]);
    vault.withdraw_all();
    assert!(matches!(
        vault.view().standing(&facts(&["unix:uid:1"]), now),
        Standing::NoIdentity
    ));
    assert_eq!(vault.view().svids().count(), 0);
}

#[test]
fn pins_are_counted() {
    let vault = Arc::new(Vault::new("dev.test".parse().unwrap()));
    let id: EntryId = "a".parse().unwrap();
    let pins = vault.watch_pins();
    let (one, two) = (vault.pin(vec![id.clone()]), vault.pin(vec![id.clone()]));
    assert_eq!(pins.borrow().get(&id), Some(&2));
    drop(one);
    drop(two);
    assert!(pins.borrow().is_empty());
}

#[test]
fn a_key_is_never_printed() {
    assert_eq!(
        format!("{:?}", SvidKey::from_pkcs8(b"secret".to_vec())),
        "SvidKey"
    );
}
