//! The plan, with plain values: no sleeping.

use std::collections::BTreeSet;

use mesh_identity::{
    Selector,
    test_util::{Made, Spec},
};

use super::*;
use crate::vault::Roster;

const HOUR: Duration = Duration::from_secs(3600);

fn start() -> SystemTime {
    mesh_identity::test_util::now()
}

fn entry(id: &str) -> Entry {
    Entry {
        id: id.parse().unwrap(),
        spiffe_id: format!("spiffe://dev.test/{id}").parse().unwrap(),
        parent_id: "spiffe://dev.test/spire/agent/join_token/x"
            .parse()
            .unwrap(),
        selectors: BTreeSet::from(["unix:uid:1".parse::<Selector>().unwrap()]),
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
        created_at: start(),
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    }
}

struct World {
    vault: Arc<Vault>,
    root: Made,
    entries: Vec<Entry>,
    failures: Failures,
}

impl World {
    fn new(entries: Vec<Entry>) -> Self {
        let vault = Arc::new(Vault::new("dev.test".parse().unwrap()));
        let world = Self {
            vault,
            root: Made::root("dev.test"),
            entries,
            failures: Failures::default(),
        };
        world.publish();
        world
    }

    fn publish(&self) {
        let bundles = [self.root.bundle("dev.test")].into_iter().collect();
        self.vault.replace(
            Roster::new(self.entries.iter().cloned().map(Arc::new)),
            bundles,
            start(),
        );
    }

    fn hold(&self, id: &str, life: Duration, renew_after: Duration) {
        let entry = self
            .entries
            .iter()
            .find(|entry| entry.id.as_str() == id)
            .unwrap()
            .clone();
        let leaf = self
            .root
            .sign(Spec::leaf(entry.spiffe_id.as_str()).valid(start() - HOUR, start() + life));
        self.vault.keep(vec![HeldSvid {
            entry: Arc::new(entry),
            svid: leaf.svid(),
            key: SvidKey::from_pkcs8(leaf.key_pkcs8()),
            renew_at: start() + renew_after,
        }]);
    }

    fn plan(&self, pinned: &[&str], after: Duration) -> Plan {
        let pinned = pinned.iter().map(|id| (id.parse().unwrap(), 1)).collect();
        plan(
            &self.vault.view(),
            &pinned,
            &self.failures,
            start(),
            start() + after,
        )
    }
}

fn names(ids: &[EntryId]) -> Vec<&str> {
    ids.iter().map(EntryId::as_str).collect()
}

#[test]
fn what_is_missing_is_made_and_what_is_fresh_is_left_alone() {
    let world = World::new(vec![entry("a"), entry("b")]);
    world.hold("a", HOUR, HOUR / 2);
    let plan = world.plan(&[], Duration::ZERO);
    assert_eq!(names(&plan.renew), ["b"]);
    assert_eq!(plan.wake_at, Some(start() + HOUR / 2));
}

#[test]
fn an_svid_is_renewed_when_its_moment_has_come() {
    let world = World::new(vec![entry("a")]);
    world.hold("a", HOUR, HOUR / 2);
    assert!(
        world
            .plan(&[], HOUR / 2 - Duration::from_secs(1))
            .renew
            .is_empty()
    );
    assert_eq!(names(&world.plan(&[], HOUR / 2).renew), ["a"]);
}

#[test]
fn an_expired_svid_is_discarded_and_made_anew() {
    let world = World::new(vec![entry("a")]);
    world.hold("a", HOUR, HOUR / 2);
    let plan = world.plan(&[], HOUR);
    assert_eq!(
        (names(&plan.discard), names(&plan.renew)),
        (vec!["a"], vec!["a"])
    );
}

#[test]
fn streams_that_wait_come_before_all_else_then_what_expires_first() {
    let world = World::new(vec![entry("a"), entry("b"), entry("c"), entry("d")]);
    world.hold("a", HOUR, Duration::ZERO);
    world.hold("b", HOUR / 2, Duration::ZERO);
    assert_eq!(
        names(&world.plan(&["d"], Duration::from_secs(1)).renew),
        ["d", "c", "b", "a"]
    );
}

#[test]
fn a_changed_entry_is_renewed_at_once_if_its_certificate_would_differ() {
    let mut world = World::new(vec![entry("a")]);
    world.hold("a", HOUR, HOUR / 2);
    world.entries[0]
        .selectors
        .insert("unix:gid:5".parse().unwrap());
    world.entries[0].revision = 2;
    world.publish();
    assert!(
        world.plan(&[], Duration::ZERO).renew.is_empty(),
        "selectors are not in the certificate"
    );
    world.entries[0].dns_names = vec!["a.test".parse().unwrap()];
    world.publish();
    assert_eq!(names(&world.plan(&[], Duration::ZERO).renew), ["a"]);
}

#[test]
fn an_svid_of_a_root_that_is_no_longer_trusted_is_renewed_at_once_and_served_until_then() {
    let mut world = World::new(vec![entry("a")]);
    world.hold("a", HOUR, HOUR / 2);
    world.root = Made::root("dev.test");
    world.publish();
    let plan = world.plan(&[], Duration::ZERO);
    assert_eq!((names(&plan.renew), plan.discard.len()), (vec!["a"], 0));
    world.hold("a", HOUR, HOUR / 2);
    assert!(world.plan(&[], Duration::ZERO).renew.is_empty());
}

#[test]
fn what_is_not_made_ahead_waits_for_a_stream() {
    let mut lazy = entry("a");
    lazy.disable_x509_svid_prefetch = true;
    let world = World::new(vec![lazy]);
    assert!(world.plan(&[], Duration::ZERO).renew.is_empty());
    assert_eq!(names(&world.plan(&["a"], Duration::ZERO).renew), ["a"]);
}

#[test]
fn only_so_many_are_made_ahead_but_every_stream_gets_its_own() {
    let world = World::new(
        (0..MOST_AHEAD + 5)
            .map(|n| entry(&format!("e{n:05}")))
            .collect(),
    );
    let last = format!("e{:05}", MOST_AHEAD + 4);
    assert_eq!(world.plan(&[], Duration::ZERO).renew.len(), MOST_AHEAD);
    let plan = world.plan(&[&last], Duration::ZERO);
    assert_eq!(
        (plan.renew.len(), plan.renew[0].as_str()),
        (MOST_AHEAD + 1, last.as_str())
    );
}

#[test]
fn a_failure_makes_that_identity_wait_and_no_other_and_a_changed_entry_forgets_it() {
    let mut world = World::new(vec![entry("a"), entry("b")]);
    let failed = Arc::new(world.entries[0].clone());
    for _ in 0..3 {
        world.failures.failed(&failed, start(), &Random::new());
    }
    let plan = world.plan(&[], Duration::ZERO);
    assert_eq!(names(&plan.renew), ["b"]);
    let again = plan.wake_at.unwrap().duration_since(start()).unwrap();
    assert!(
        (Duration::from_secs(3)..=Duration::from_secs(5)).contains(&again),
        "{again:?}"
    );
    world.entries[0].revision = 2;
    world.publish();
    assert_eq!(names(&world.plan(&[], Duration::ZERO).renew), ["a", "b"]);
}

#[test]
fn an_entry_that_ran_out_is_not_renewed_and_the_streams_are_woken_once() {
    let mut short = entry("a");
    short.expires_at = Some(start() + Duration::from_secs(10));
    let world = World::new(vec![short]);
    world.hold("a", HOUR, HOUR / 2);
    let plan = world.plan(&[], Duration::ZERO);
    assert_eq!(
        (plan.wake_at, plan.lapsed),
        (Some(start() + Duration::from_secs(10)), false)
    );
    let plan = world.plan(&[], Duration::from_secs(10));
    assert!(plan.lapsed && plan.renew.is_empty());
    let later = super::plan(
        &world.vault.view(),
        &HashMap::new(),
        &world.failures,
        start() + HOUR / 4,
        start() + HOUR / 3,
    );
    assert!(!later.lapsed);
}

#[test]
fn ag_20_a_clock_that_jumps_makes_no_busy_loop() {
    let random = Random::new();
    // An SVID that is already over when it comes.
    assert!(renew_at(start(), start() - HOUR, &random) >= start() + SHORTEST_REST);
    for _ in 0..100 {
        let at = renew_at(start(), start() + HOUR, &random)
            .duration_since(start())
            .unwrap();
        assert!(
            (HOUR.mul_f64(0.45)..=HOUR.mul_f64(0.55)).contains(&at),
            "{at:?}"
        );
    }
}

#[test]
fn ag_20_a_clock_that_went_back_renews_what_seems_to_be_of_the_future_and_forgets_pauses() {
    let mut world = World::new(vec![entry("a"), entry("b")]);
    world.hold("a", HOUR, HOUR / 2);
    world.hold("b", HOUR, HOUR / 2);
    // Both were made an hour before `start`; a clock that is a minute off is no reason.
    let plan_at = |world: &World, now: SystemTime| {
        plan(
            &world.vault.view(),
            &HashMap::new(),
            &world.failures,
            now,
            now,
        )
    };
    assert!(plan_at(&world, start() - HOUR - AHEAD).renew.is_empty());
    let back = start() - 2 * HOUR;
    let seen = plan_at(&world, back);
    assert_eq!(seen.renew.len(), 2);
    assert!(seen.discard.is_empty(), "what is held is served meanwhile");

    // One that failed just before the clock went back is not silent for the hour that the clock lost.
    let random = Random::new();
    let failed = Arc::new(world.entries[0].clone());
    world.failures.failed(&failed, start(), &random);
    assert_eq!(plan_at(&world, back).renew.len(), 2);
    // And one that fails under the new clock rests as always.
    world.failures.failed(&failed, back, &random);
    assert_eq!(plan_at(&world, back).renew, [world.entries[1].id.clone()]);
}

#[test]
fn pauses_grow_to_a_limit() {
    assert_eq!(grown(RETRY, 0), Duration::from_secs(1));
    assert_eq!(grown(RETRY, 3), Duration::from_secs(8));
    assert_eq!(grown(RETRY, u32::MAX), Duration::from_secs(60));
}

#[test]
fn a_request_proves_possession_and_names_only_the_identity() {
    let id: SpiffeId = "spiffe://dev.test/a".parse().unwrap();
    let (key, csr) = make_key(Some(&id)).unwrap();
    let csr = rcgen::CertificateSigningRequestParams::from_der(&csr.into()).unwrap();
    assert_eq!(
        rcgen::PublicKeyData::subject_public_key_info(&csr.public_key),
        rcgen::PublicKeyData::subject_public_key_info(&key)
    );
    assert_eq!(
        csr.params.subject_alt_names,
        [SanType::URI(id.as_str().try_into().unwrap())]
    );
}
