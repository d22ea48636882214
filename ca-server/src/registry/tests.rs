//! Who may have what: the parent chain, aliases, circles, and the two ways of walking compared with each other.

use std::collections::BTreeSet;
use std::time::{Duration, UNIX_EPOCH};

use mesh_identity::Selector;

use super::*;
use crate::store::Stores;

pub(crate) fn own() -> TrustDomain {
    "dev.test".parse().unwrap()
}

pub(crate) fn id(path: &str) -> SpiffeId {
    SpiffeId::from_parts(&own(), path).unwrap()
}

pub(crate) fn entry(name: &str, spiffe: &str, parent: &str, selectors: &[&str]) -> Entry {
    Entry {
        id: name.parse().unwrap(),
        spiffe_id: id(spiffe),
        parent_id: id(parent),
        selectors: selectors.iter().map(|s| s.parse().unwrap()).collect(),
        x509_svid_ttl: None,
        jwt_svid_ttl: None,
        federates_with: BTreeSet::new(),
        admin: false,
        downstream: false,
        expires_at: None,
        dns_names: Vec::new(),
        revision: 0,
        store_svid: false,
        hint: String::new(),
        created_at: UNIX_EPOCH,
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    }
}

pub(crate) fn node(path: &str, selectors: &[&str]) -> Node {
    Node {
        id: id(path),
        attestation_type: "join_token".into(),
        selectors: selectors
            .iter()
            .map(|s| s.parse::<Selector>().unwrap())
            .collect(),
        serial: "01".into(),
        expires_at: UNIX_EPOCH + Duration::from_secs(1 << 33),
        renewed: None,
        can_reattest: false,
        banned: false,
        kubernetes: None,
        agent_version: String::new(),
        attested_at: UNIX_EPOCH,
        revision: 0,
    }
}

const A: &str = "/spire/agent/join_token/a";
const B: &str = "/spire/agent/join_token/b";

async fn registry(entries: Vec<Entry>, nodes: Vec<Node>) -> (Stores, Arc<Registry>) {
    let stores = Stores::memory(&own());
    for entry in entries {
        stores.entries.create(entry).await.unwrap();
    }
    for node in nodes {
        stores.nodes.attest(node).await.unwrap();
    }
    let registry = Registry::open(stores.changes.clone()).await.unwrap();
    (stores, registry)
}

fn ids(view: &AgentView) -> Vec<&str> {
    view.entries.keys().map(EntryId::as_str).collect()
}

#[tokio::test]
async fn ca_14_an_agent_gets_its_own_entries_and_never_another_agents() {
    let (_, registry) = registry(
        vec![
            entry("web", "/web", A, &["unix:uid:1"]),
            entry("pay", "/pay", B, &["unix:uid:1"]),
        ],
        vec![node(A, &[]), node(B, &[])],
    )
    .await;
    assert_eq!(ids(&registry.view(&id(A))), ["web"]);
    let a = node(A, &[]);
    assert!(registry.authorize(&a, &"web".parse().unwrap()).is_ok());
    assert_eq!(
        registry.authorize(&a, &"pay".parse().unwrap()).unwrap_err(),
        NotAuthorized::NotYours {
            id: "pay".parse().unwrap()
        }
    );
    assert_eq!(
        registry
            .authorize(&a, &"none".parse().unwrap())
            .unwrap_err()
            .code(),
        registry
            .authorize(&a, &"pay".parse().unwrap())
            .unwrap_err()
            .code(),
        "whether an entry exists is not told"
    );
}

#[tokio::test]
async fn entries_below_a_node_alias_reach_the_nodes_that_it_matches() {
    let (_, registry) = registry(
        vec![
            entry(
                "alias",
                "/cluster/prod",
                "/spire/server",
                &["k8s_psat:cluster:prod"],
            ),
            entry("web", "/web", "/cluster/prod", &["unix:uid:1"]),
            entry("sub", "/sub", "/web", &["unix:uid:2"]),
        ],
        vec![
            node(A, &["k8s_psat:cluster:prod", "k8s_psat:agent_ns:x"]),
            node(B, &["k8s_psat:cluster:dev"]),
        ],
    )
    .await;
    assert_eq!(ids(&registry.view(&id(A))), ["sub", "web"]);
    assert!(ids(&registry.view(&id(B))).is_empty());
}

#[tokio::test]
async fn ca_16_circles_of_parents_end_and_lead_nowhere() {
    let (_, registry) = registry(
        vec![
            entry("self", "/x", "/x", &["unix:uid:1"]),
            entry("one", "/y", "/z", &["unix:uid:1"]),
            entry("two", "/z", "/y", &["unix:uid:1"]),
            entry("in", "/y", A, &["unix:uid:9"]),
        ],
        vec![node(A, &[])],
    )
    .await;
    assert_eq!(ids(&registry.view(&id(A))), ["in", "one", "two"]);
    assert!(
        registry
            .authorize(&node(A, &[]), &"self".parse().unwrap())
            .is_err()
    );
}

#[tokio::test]
async fn a_banned_agent_has_nothing() {
    let (stores, registry) = registry(
        vec![entry("web", "/web", A, &["unix:uid:1"])],
        vec![node(A, &[])],
    )
    .await;
    stores.nodes.set_banned(&id(A), true).await.unwrap();
    registry.refresh().await.unwrap();
    let view = registry.view(&id(A));
    assert!(view.node.is_none() && view.entries.is_empty());
}

#[tokio::test]
async fn a_refresh_shows_what_was_acknowledged() {
    let (stores, registry) = registry(vec![], vec![node(A, &[])]).await;
    stores
        .entries
        .create(entry("web", "/web", A, &["unix:uid:1"]))
        .await
        .unwrap();
    registry.refresh().await.unwrap();
    assert_eq!(ids(&registry.view(&id(A))), ["web"]);
    stores
        .entries
        .delete(&"web".parse().unwrap())
        .await
        .unwrap();
    registry.refresh().await.unwrap();
    assert!(ids(&registry.view(&id(A))).is_empty());
}

#[tokio::test]
async fn t_35_a_foreign_bundle_goes_only_to_nodes_with_an_entitled_workload() {
    let stores = Stores::memory(&own());
    let foreign: TrustDomain = "other.test".parse().unwrap();
    stores
        .bundles
        .put(StoredBundle {
            trust_domain: foreign.clone(),
            x509_authorities: vec![vec![1].into()],
            jwt_authorities: Vec::new(),
            sequence: 1,
            refresh_hint: None,
            revision: 0,
        })
        .await
        .unwrap();
    let mut federated = entry("web", "/web", A, &["unix:uid:1"]);
    federated.federates_with.insert(foreign.clone());
    stores.entries.create(federated).await.unwrap();
    stores.nodes.attest(node(A, &[])).await.unwrap();
    stores.nodes.attest(node(B, &[])).await.unwrap();
    let registry = Registry::open(stores.changes.clone()).await.unwrap();
    assert!(registry.view(&id(A)).bundles.contains_key(&foreign));
    assert!(!registry.view(&id(B)).bundles.contains_key(&foreign));
}

mod model {
    use proptest::prelude::*;

    use super::*;

    const PLACES: &[&str] = &["/a", "/b", "/c", "/d", "/spire/server", A, B];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Downwards (what an agent is told) and upwards (what it may ask for) are the same set, whatever the parents.
        #[test]
        fn ca_16_what_is_told_is_what_is_granted(
            edges in proptest::collection::vec((0..4_usize, 0..PLACES.len(), 0..2_usize), 0..14)
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let selectors = ["k8s_psat:cluster:prod", "k8s_psat:cluster:dev"];
                let entries = edges.iter().enumerate().map(|(number, (what, parent, which))| {
                    entry(&format!("e{number:02}"), PLACES[*what], PLACES[*parent], &[selectors[*which]])
                });
                let agent = node(A, &["k8s_psat:cluster:prod"]);
                let (stores, registry) = registry(entries.collect(), vec![agent.clone(), node(B, &[])]).await;
                let view = registry.view(&agent.id);
                for entry in stores.entries.list().await.unwrap() {
                    prop_assert_eq!(
                        registry.authorize(&agent, &entry.id).is_ok(),
                        view.entries.contains_key(&entry.id),
                        "{} below {}", entry.spiffe_id, entry.parent_id
                    );
                }
                Ok(())
            })?;
        }
    }
}

mod query {
    use super::*;

    fn all() -> Vec<Arc<Entry>> {
        ["a", "b", "c", "d", "e"]
            .iter()
            .map(|name| {
                Arc::new(entry(
                    name,
                    &format!("/{name}"),
                    A,
                    &["unix:uid:1", "unix:gid:2"],
                ))
            })
            .collect()
    }

    fn named(entry: &Entry) -> (String, usize) {
        (entry.id.to_string(), 1)
    }

    fn cut_of(page: &Page, make: impl Fn(&Entry) -> (String, usize)) -> Paged<String> {
        cut(all().into_iter(), page, |entry| entry.id.as_str(), make)
    }

    #[tokio::test]
    async fn a_page_of_the_book_is_read_in_parts_and_has_what_is_wanted() {
        let stores = Stores::memory(&own());
        let many: Vec<String> = (0..1100).map(|n| format!("e{n:04}")).collect();
        for name in &many {
            let selector = format!("unix:uid:{name}");
            let entry = entry(name, &format!("/{}", &name[4..]), A, &[&selector]);
            stores.entries.create(entry).await.unwrap();
        }
        let book = EntryBook::new(own(), stores.entries.clone(), stores.bundles.clone());
        let (everything, in_one) = (EntryFilter::default(), Page::default());
        let whole = book.page(&everything, &in_one, named).await.unwrap();
        assert_eq!(whole.items, many);
        let sevens = EntryFilter {
            spiffe_id: Some(id("/7")),
            ..Default::default()
        };
        let (mut token, mut seen, mut pages) = (String::new(), Vec::new(), 0);
        loop {
            let page = Page::new(55, &token).unwrap();
            let paged = book.page(&sevens, &page, named).await.unwrap();
            assert_eq!(paged.items.len(), 55);
            seen.extend(paged.items);
            pages += 1;
            if paged.next.is_empty() {
                break;
            }
            token = paged.next;
        }
        let wanted: Vec<_> = many
            .iter()
            .filter(|name| name.ends_with('7'))
            .cloned()
            .collect();
        assert_eq!((seen, pages), (wanted, 2));
    }

    #[test]
    fn t_30_a_page_ends_before_it_is_larger_than_a_client_reads() {
        let large = |entry: &Entry| (entry.id.to_string(), ROOM / 2);
        let page = |token: &str| {
            let page = Page::new(0, token).unwrap();
            cut_of(&page, large)
        };
        let first = page("");
        assert_eq!(first.items, ["a", "b"]);
        let second = page(&first.next);
        assert_eq!(second.items, ["c", "d"]);
        let last = page(&second.next);
        assert_eq!((last.items, last.next.as_str()), (vec!["e".into()], ""));
        let huge = |entry: &Entry| (entry.id.to_string(), ROOM * 2);
        let alone = cut_of(&Page::default(), huge);
        assert_eq!(alone.items, ["a"], "what is larger goes out alone");
        assert!(!alone.next.is_empty());
    }

    #[test]
    fn pages_follow_each_other_and_the_last_has_no_token() {
        let (mut token, mut seen) = (String::new(), Vec::new());
        loop {
            let page = Page::new(2, &token).unwrap();
            let paged = cut_of(&page, named);
            seen.extend(paged.items);
            if paged.next.is_empty() {
                break;
            }
            token = paged.next;
        }
        assert_eq!(seen, ["a", "b", "c", "d", "e"]);
        assert_eq!(cut_of(&Page::default(), named).items.len(), 5);
    }

    #[test]
    fn a_negative_page_and_a_huge_token_are_refused() {
        assert_eq!(Page::new(-1, "").unwrap_err(), PageError::Size(-1));
        for token in [&*"x".repeat(5000), "not base64", "_w"] {
            assert_eq!(Page::new(1, token).unwrap_err(), PageError::Token);
        }
    }

    #[test]
    fn selectors_match_in_four_ways() {
        let one: BTreeSet<Selector> = ["unix:uid:1".parse().unwrap()].into();
        let both: BTreeSet<Selector> =
            ["unix:uid:1".parse().unwrap(), "unix:gid:2".parse().unwrap()].into();
        let wants = |selectors: &BTreeSet<Selector>, how| {
            let filter = EntryFilter {
                selectors: Some((selectors.clone(), how)),
                ..EntryFilter::default()
            };
            filter.wants(&all()[0])
        };
        assert!(wants(&both, Match::Exact) && !wants(&one, Match::Exact));
        assert!(wants(&one, Match::Superset) && wants(&one, Match::Any));
        assert!(wants(&both, Match::Subset) && !wants(&one, Match::Subset));
    }
}
