//! What an agent is told, step by step, compared with what it should hold.

use proptest::prelude::*;

use super::*;
use crate::registry::tests::{entry, id, node, own};
use crate::registry::{Derivation, Derived, NotAuthorized};
use crate::store::{Node, Stores};

const A: &str = "/spire/agent/join_token/a";

/// An agent that applies what it is told.
#[derive(Default)]
struct Agent {
    entries: BTreeMap<EntryId, u64>,
    bundles: BTreeMap<TrustDomain, u64>,
    at: u64,
}

impl Agent {
    fn apply(&mut self, step: Step) {
        if step.snapshot {
            self.entries.clear();
            self.bundles.clear();
        }
        for entry in step.entries {
            self.entries.insert(entry.id.clone(), entry.revision);
        }
        for gone in step.removed_entries {
            self.entries.remove(&gone);
        }
        for bundle in step.bundles {
            self.bundles
                .insert(bundle.trust_domain.clone(), bundle.revision);
        }
        for gone in step.removed_bundles {
            self.bundles.remove(&gone);
        }
        self.at = step.revision;
    }

    fn holds(&self, view: &AgentView) -> bool {
        let told = Told::of(view);
        self.entries == told.entries && self.bundles == told.bundles
    }
}

async fn setting() -> (Stores, Arc<Registry>) {
    let stores = Stores::memory(&own());
    stores
        .nodes
        .attest(node(A, &["k8s_psat:cluster:prod"]))
        .await
        .unwrap();
    let registry = Registry::open(stores.changes.clone()).await.unwrap();
    (stores, registry)
}

fn position(registry: &Registry, revision: u64) -> Option<Position> {
    Some(Position {
        epoch: registry.epoch().to_owned(),
        revision,
    })
}

#[tokio::test]
async fn the_first_step_is_a_snapshot_and_the_next_only_what_changed() {
    let (stores, registry) = setting().await;
    stores
        .entries
        .create(entry("web", "/web", A, &["unix:uid:1"]))
        .await
        .unwrap();
    let mut follower = Follower::new(registry.clone(), id(A));
    let first = follower.first(None).await.unwrap().unwrap();
    assert!(first.snapshot && first.entries.len() == 1);
    assert_eq!(follower.next().await.unwrap(), None);
    stores
        .entries
        .create(entry("pay", "/pay", A, &["unix:uid:2"]))
        .await
        .unwrap();
    let step = follower.next().await.unwrap().unwrap();
    assert!(!step.snapshot && step.revision > first.revision);
    assert_eq!(
        step.entries
            .iter()
            .map(|e| e.id.as_str())
            .collect::<Vec<_>>(),
        ["pay"]
    );
    stores
        .entries
        .delete(&"web".parse().unwrap())
        .await
        .unwrap();
    let step = follower.next().await.unwrap().unwrap();
    assert_eq!(step.removed_entries, ["web".parse().unwrap()]);
}

#[tokio::test]
async fn a_change_for_another_agent_is_not_told() {
    let (stores, registry) = setting().await;
    let mut follower = Follower::new(registry, id(A));
    follower.first(None).await.unwrap().unwrap();
    stores
        .entries
        .create(entry(
            "pay",
            "/pay",
            "/spire/agent/join_token/b",
            &["unix:uid:2"],
        ))
        .await
        .unwrap();
    assert_eq!(follower.next().await.unwrap(), None);
}

#[tokio::test]
async fn an_agent_that_was_away_resumes_with_a_change_and_not_with_everything() {
    let (stores, registry) = setting().await;
    for name in ["a", "b", "c"] {
        stores
            .entries
            .create(entry(name, &format!("/{name}"), A, &["unix:uid:1"]))
            .await
            .unwrap();
    }
    let mut agent = Agent::default();
    agent.apply(
        Follower::new(registry.clone(), id(A))
            .first(None)
            .await
            .unwrap()
            .unwrap(),
    );
    stores.entries.delete(&"b".parse().unwrap()).await.unwrap();
    stores
        .entries
        .create(entry("d", "/d", A, &["unix:uid:1"]))
        .await
        .unwrap();
    let step = Follower::new(registry.clone(), id(A))
        .first(position(&registry, agent.at))
        .await
        .unwrap()
        .unwrap();
    assert!(!step.snapshot && step.entries.len() == 1 && step.removed_entries.len() == 1);
    agent.apply(step);
    assert!(agent.holds(&registry.view(&id(A))));
}

#[tokio::test]
async fn another_epoch_or_a_revision_from_the_future_gets_a_snapshot() {
    let (_, registry) = setting().await;
    let other = Some(Position {
        epoch: "other".into(),
        revision: 1,
    });
    assert!(
        Follower::new(registry.clone(), id(A))
            .first(other)
            .await
            .unwrap()
            .unwrap()
            .snapshot
    );
    let future = position(&registry, 1_000_000);
    assert!(
        Follower::new(registry, id(A))
            .first(future)
            .await
            .unwrap()
            .unwrap()
            .snapshot
    );
}

#[tokio::test]
async fn a_change_for_one_agent_makes_no_new_view_for_another() {
    let (stores, registry) = setting().await;
    let at = registry.view(&id(A)).revision;
    let other = entry("pay", "/pay", "/spire/agent/join_token/b", &["unix:uid:2"]);
    stores.entries.create(other).await.unwrap();
    registry.refresh().await.unwrap();
    let same = registry.view_after(&id(A), at).unwrap_err();
    assert!(same > at);
    let own = entry("web", "/web", A, &["unix:uid:1"]);
    stores.entries.create(own).await.unwrap();
    registry.refresh().await.unwrap();
    assert_eq!(registry.view_after(&id(A), same).unwrap().entries.len(), 1);
}

#[tokio::test]
async fn names_that_came_and_went_are_forgotten_and_no_change_is_missed_for_it() {
    let (stores, registry) = setting().await;
    let mut follower = Follower::new(registry.clone(), id(A));
    follower.first(None).await.unwrap().unwrap();
    let mut looks = 0;
    for number in 0..1100 {
        let parent = format!("/spire/agent/join_token/gone{number}");
        let name = format!("e{number}");
        let passing = entry(&name, "/pay", &parent, &["unix:uid:2"]);
        let before = registry.refresh().await.unwrap();
        stores.entries.create(passing).await.unwrap();
        registry.refresh().await.unwrap();
        stores.entries.delete(&name.parse().unwrap()).await.unwrap();
        registry.refresh().await.unwrap();
        looks += usize::from(registry.view_after(&id(A), before).is_ok());
        assert_eq!(follower.next().await.unwrap(), None);
    }
    assert_eq!(looks, 1, "once, everybody looked");
    let own = entry("web", "/web", A, &["unix:uid:1"]);
    stores.entries.create(own).await.unwrap();
    assert_eq!(follower.next().await.unwrap().unwrap().entries.len(), 1);
}

#[derive(Clone, Debug)]
enum Act {
    Create(usize, usize),
    Delete(usize),
    Reselect(bool),
    Follow,
    Reconnect,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0..6_usize, 0..5_usize).prop_map(|(name, parent)| Act::Create(name, parent)),
        2 => (0..6_usize).prop_map(Act::Delete),
        1 => any::<bool>().prop_map(Act::Reselect),
        3 => Just(Act::Follow),
        2 => Just(Act::Reconnect),
    ];
    proptest::collection::vec(act, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever happens, and however often an agent reconnects, after each step it holds exactly its view.
    #[test]
    fn an_agent_that_applies_every_step_holds_exactly_its_view(acts in acts()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let parents = [A, "/spire/agent/join_token/b", "/spire/server", "/e0", "/e1"];
            let (stores, registry) = setting().await;
            let mut agent = Agent::default();
            let mut follower = Follower::new(registry.clone(), id(A));
            agent.apply(follower.first(None).await.unwrap().unwrap());
            for act in acts {
                match act {
                    Act::Create(name, parent) => {
                        let new = entry(&format!("e{name}"), &format!("/e{}", name % 3), parents[parent], &["k8s_psat:cluster:prod"]);
                        stores.entries.create(new).await.unwrap();
                    }
                    Act::Delete(name) => {
                        stores.entries.delete(&format!("e{name}").parse().unwrap()).await.unwrap();
                    }
                    Act::Reselect(prod) => {
                        let selectors: &[&str] = if prod { &["k8s_psat:cluster:prod"] } else { &[] };
                        stores.nodes.attest(node(A, selectors)).await.unwrap();
                    }
                    Act::Follow => {
                        if let Some(step) = follower.next().await.unwrap() {
                            agent.apply(step);
                        }
                        prop_assert!(agent.holds(&registry.view(&id(A))));
                    }
                    Act::Reconnect => {
                        follower = Follower::new(registry.clone(), id(A));
                        let resume = position(&registry, agent.at);
                        agent.apply(follower.first(resume).await.unwrap().unwrap());
                        prop_assert!(agent.holds(&registry.view(&id(A))));
                    }
                }
            }
            Ok(())
        })?;
    }
}

/// Facts that a test decides.
struct Facts {
    now: std::sync::Mutex<Derived>,
    generation: tokio::sync::watch::Sender<u64>,
}

impl Facts {
    fn waiting() -> Arc<Self> {
        Arc::new(Self {
            now: std::sync::Mutex::new(Derived::Waiting),
            generation: tokio::sync::watch::Sender::new(0),
        })
    }

    fn know(&self, names: &[&str]) {
        self.generation.send_modify(|generation| *generation += 1);
        let entries = names.iter().map(|name| {
            let entry = entry(name, &format!("/{name}"), A, &["k8s:pod-uid:1"]);
            (entry.id.clone(), Arc::new(entry))
        });
        *self.now.lock().unwrap() = Derived::Known {
            generation: *self.generation.borrow(),
            entries: entries.collect(),
        };
    }
}

impl Derivation for Facts {
    fn of(&self, _: &Node) -> Derived {
        self.now.lock().unwrap().clone()
    }

    fn may_have_changed(&self, _: &Node, since: u64) -> bool {
        *self.generation.borrow() > since
    }

    fn is_admin(&self, _: &SpiffeId) -> bool {
        false
    }

    fn generation(&self) -> tokio::sync::watch::Receiver<u64> {
        self.generation.subscribe()
    }
}

async fn derived_setting() -> (Stores, Arc<Facts>, Arc<Registry>) {
    let (stores, _) = setting().await;
    let facts = Facts::waiting();
    let registry = Registry::with(stores.changes.clone(), facts.clone())
        .await
        .unwrap();
    (stores, facts, registry)
}

fn names<'a>(ids: impl Iterator<Item = &'a EntryId>) -> Vec<&'a str> {
    ids.map(EntryId::as_str).collect()
}

#[tokio::test]
async fn what_is_derived_from_facts_comes_and_goes_without_any_change_of_the_store() {
    let (_, facts, registry) = derived_setting().await;
    facts.know(&["pod-a"]);
    let mut follower = Follower::new(registry.clone(), id(A));
    let first = follower.first(None).await.unwrap().unwrap();
    assert!(first.snapshot);
    assert_eq!(
        names(first.entries.iter().map(|entry| &entry.id)),
        ["pod-a"]
    );
    assert_eq!(follower.next().await.unwrap(), None);
    facts.know(&["pod-b"]);
    let step = follower.next().await.unwrap().unwrap();
    assert!(!step.snapshot && step.revision == first.revision);
    assert_eq!(names(step.entries.iter().map(|entry| &entry.id)), ["pod-b"]);
    assert_eq!(names(step.removed_entries.iter()), ["pod-a"]);
    facts.know(&["pod-b"]);
    assert_eq!(follower.next().await.unwrap(), None);
}

#[tokio::test]
async fn an_agent_keeps_what_it_holds_until_the_facts_are_known() {
    let (stores, facts, registry) = derived_setting().await;
    let mut fresh = Follower::new(registry.clone(), id(A));
    assert_eq!(
        fresh.first(None).await.unwrap(),
        None,
        "there is nothing that may be said"
    );
    let at = registry.refresh().await.unwrap();
    stores
        .entries
        .create(entry("stored", "/stored", A, &["unix:uid:1"]))
        .await
        .unwrap();
    // One that comes back hears of the store meanwhile, and nothing that would take a pod's identity away.
    let mut back = Follower::new(registry.clone(), id(A));
    let change = back.first(position(&registry, at)).await.unwrap().unwrap();
    assert!(!change.snapshot && change.removed_entries.is_empty());
    assert_eq!(
        names(change.entries.iter().map(|entry| &entry.id)),
        ["stored"]
    );
    assert_eq!(back.next().await.unwrap(), None);
    facts.know(&["pod-a"]);
    let all = back.next().await.unwrap().unwrap();
    assert!(all.snapshot);
    assert_eq!(
        names(all.entries.iter().map(|entry| &entry.id)),
        ["pod-a", "stored"]
    );
    assert_eq!(fresh.first(None).await.unwrap().unwrap().entries.len(), 2);
}

#[tokio::test]
async fn what_was_derived_when_an_agent_was_here_last_is_told_anew() {
    let (_, facts, registry) = derived_setting().await;
    facts.know(&["pod-a"]);
    let at = registry.refresh().await.unwrap();
    let mut back = Follower::new(registry.clone(), id(A));
    assert!(
        back.first(position(&registry, at))
            .await
            .unwrap()
            .unwrap()
            .snapshot
    );
}

#[tokio::test]
async fn a_derived_entry_is_authorized_while_the_facts_say_so_and_undecided_while_they_are_not_known()
 {
    let (_, facts, registry) = derived_setting().await;
    let agent = node(A, &[]);
    let pod = "pod-a".parse().unwrap();
    assert!(matches!(
        registry.authorize(&agent, &pod),
        Err(NotAuthorized::NotYet { .. })
    ));
    facts.know(&["pod-a"]);
    assert_eq!(
        registry.authorize(&agent, &pod).unwrap().spiffe_id(),
        &id("/pod-a")
    );
    facts.know(&[]);
    assert!(matches!(
        registry.authorize(&agent, &pod),
        Err(NotAuthorized::NotYours { .. })
    ));
}
