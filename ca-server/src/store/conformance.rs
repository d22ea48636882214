//! What every store must do, whatever it is made of: ordinary functions that each store's tests call.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::join_all;
use mesh_identity::{Entry, SpiffeId, TrustDomain};

use super::*;

/// Makes one test per function below: `suite!(async || (stores, what keeps them alive))`.
macro_rules! suite {
    ($open:expr) => {
        $crate::store::conformance::suite!($open;
            an_entry_is_created_read_and_listed_in_the_order_of_ids
            the_same_parent_id_and_selectors_again_answer_the_existing_entry
            an_id_is_given_once
            an_update_needs_the_revision_that_was_read
            an_update_cannot_make_two_entries_equal
            a_deleted_entry_leaves_a_tombstone_and_frees_its_place
            an_entry_made_again_is_there_and_not_gone
            expired_entries_are_removed_and_others_stay
            revisions_never_repeat_and_the_newest_one_is_watched
            changes_since_a_revision_lead_from_one_state_to_the_other
            a_revision_from_the_future_asks_for_everything
            eight_clients_changing_one_entry_lose_no_update
            a_ban_wins_over_attestation_and_empties_the_serials
            a_renewed_serial_is_good_beside_the_current_one_until_it_is_promoted
            attesting_again_with_the_same_selectors_is_no_news
            an_evicted_agent_is_gone_and_may_return
            a_join_token_is_good_once_among_many_at_the_same_time
            a_join_token_knows_why_it_is_refused
            a_jti_belongs_to_the_first_key
            a_jti_is_tied_to_another_key_only_from_the_one_it_has
            pruning_forgets_what_has_ended_and_nothing_else
            the_own_bundle_gets_a_higher_sequence_only_when_its_content_differs
            foreign_bundles_are_stored_replaced_and_removed
            a_bundle_is_replaced_only_by_who_saw_the_newest
            what_becomes_of_entries_when_a_bundle_goes_is_the_callers_choice
            relationships_are_stored_with_their_first_bundle_and_removed_without_it
            the_journal_is_read_as_it_was_written
            a_certificate_is_remembered_before_it_is_handed_out
            pruning_many_certificates_forgets_them_all
            what_an_authority_signed_is_held_until_a_later_one_takes_its_place_or_it_ends
            rows_of_every_size_up_to_the_limit_come_back
        );
    };
    ($open:expr; $($name:ident)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                let (stores, _alive) = ($open)().await;
                $crate::store::conformance::$name(stores).await;
            }
        )*
    };
}
pub(super) use suite;

pub(super) fn domain() -> TrustDomain {
    "example.test".parse().expect("a trust domain")
}

pub(super) fn id(path: &str) -> SpiffeId {
    SpiffeId::from_parts(&domain(), path).expect("a path")
}

pub(super) fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

pub(super) fn entry(name: &str) -> Entry {
    Entry {
        id: name.parse().expect("an entry id"),
        spiffe_id: id(&format!("/{name}")),
        parent_id: id("/spire/agent/x"),
        selectors: BTreeSet::from(["unix:uid:1000".parse().expect("a selector")]),
        x509_svid_ttl: Some(Duration::from_secs(60)),
        jwt_svid_ttl: None,
        federates_with: BTreeSet::from(["other.test".parse().expect("a trust domain")]),
        admin: false,
        downstream: true,
        expires_at: None,
        dns_names: vec![
            "a.example".parse().expect("a name"),
            "b.example".parse().expect("a name"),
        ],
        revision: 0,
        store_svid: false,
        hint: "hint".into(),
        created_at: at(0),
        disable_x509_svid_prefetch: true,
        jwt_svid_include_jti: false,
    }
}

pub(super) fn node(name: &str) -> Node {
    Node {
        id: id(&format!("/spire/agent/{name}")),
        attestation_type: "k8s_psat".into(),
        selectors: BTreeSet::from(["k8s_psat:cluster:c".parse().expect("a selector")]),
        serial: "01".into(),
        expires_at: at(60),
        renewed: None,
        can_reattest: true,
        banned: false,
        kubernetes: Some(KubernetesFacts {
            node_uid: "u".into(),
            ..KubernetesFacts::default()
        }),
        agent_version: String::new(),
        attested_at: at(0),
        revision: 0,
    }
}

pub(super) fn certificate(serial: &str, ends: u64) -> IssuedRecord {
    IssuedRecord {
        serial: serial.into(),
        spiffe_id: id("/w"),
        entry_id: Some("e".parse().expect("an entry id")),
        agent_id: None,
        authority_id: "ab".into(),
        not_after: at(ends),
        issued_at: at(0),
    }
}

fn jti(name: &str, key: u8, ends: u64) -> JtiUse {
    JtiUse {
        jti: name.into(),
        spki_hash: [key; 32],
        expires_at: at(ends),
        holder: "agent".into(),
    }
}

pub(super) async fn create(stores: &Stores, name: &str) -> Arc<Entry> {
    match stores.entries.create(entry(name)).await.expect("stored") {
        CreatedEntry::New(entry) => entry,
        other => panic!("{name} was not new: {other:?}"),
    }
}

pub(super) async fn an_entry_is_created_read_and_listed_in_the_order_of_ids(stores: Stores) {
    let b = create(&stores, "b").await;
    let a = create(&stores, "a").await;
    assert_eq!((b.revision, a.revision), (1, 2));
    assert_eq!(
        *b,
        Entry {
            revision: 1,
            ..entry("b")
        }
    );
    assert_eq!(
        stores.entries.get(&b.id).await.expect("read"),
        Some(b.clone())
    );
    assert_eq!(
        stores
            .entries
            .get(&"c".parse().expect("an id"))
            .await
            .expect("read"),
        None
    );
    let all = [a, b];
    assert_eq!(stores.entries.list().await.expect("read"), all);
    for (after, most, found) in [
        (None, 2, &all[..]),
        (None, 1, &all[..1]),
        (Some("a"), 9, &all[1..]),
        (Some("aa"), 9, &all[1..]),
        (Some("b"), 9, &[]),
        (None, 0, &[]),
    ] {
        let read = stores.entries.after(after, most).await.expect("read");
        assert_eq!(read, found, "{after:?}, {most}");
    }
}

pub(super) async fn the_same_parent_id_and_selectors_again_answer_the_existing_entry(
    stores: Stores,
) {
    let first = create(&stores, "a").await;
    let again = Entry {
        id: "z".parse().expect("an id"),
        hint: "other".into(),
        ..entry("a")
    };
    let answer = stores
        .entries
        .create(again.clone())
        .await
        .expect("answered");
    assert_eq!(answer, CreatedEntry::AlreadyExists(first));
    let differs = Entry {
        selectors: BTreeSet::from(["unix:uid:2".parse().expect("a selector")]),
        ..again
    };
    assert!(matches!(
        stores.entries.create(differs).await,
        Ok(CreatedEntry::New(_))
    ));
}

pub(super) async fn an_id_is_given_once(stores: Stores) {
    let first = create(&stores, "a").await;
    let other = Entry {
        spiffe_id: id("/other"),
        ..entry("a")
    };
    assert_eq!(
        stores.entries.create(other).await.expect("answered"),
        CreatedEntry::IdTaken(first)
    );
}

pub(super) async fn an_update_needs_the_revision_that_was_read(stores: Stores) {
    let read = create(&stores, "a").await;
    let change = |hint: &str| Entry {
        hint: hint.into(),
        ..(*read).clone()
    };
    let UpdatedEntry::Done(first) = stores
        .entries
        .update(change("first"))
        .await
        .expect("answered")
    else {
        panic!("refused")
    };
    assert_eq!((first.revision, first.hint.as_str()), (2, "first"));
    let second = stores
        .entries
        .update(change("second"))
        .await
        .expect("answered");
    assert_eq!(second, UpdatedEntry::Changed(first));
    let unknown = Entry {
        id: "z".parse().expect("an id"),
        ..change("x")
    };
    assert_eq!(
        stores.entries.update(unknown).await.expect("answered"),
        UpdatedEntry::NotFound
    );
}

pub(super) async fn an_update_cannot_make_two_entries_equal(stores: Stores) {
    let a = create(&stores, "a").await;
    let b = create(&stores, "b").await;
    let clash = Entry {
        spiffe_id: a.spiffe_id.clone(),
        ..(*b).clone()
    };
    assert_eq!(
        stores.entries.update(clash).await.expect("answered"),
        UpdatedEntry::AlreadyExists(a.clone())
    );
    // A changed triple frees the old one.
    let moved = Entry {
        spiffe_id: id("/moved"),
        ..(*a).clone()
    };
    assert!(matches!(
        stores.entries.update(moved).await,
        Ok(UpdatedEntry::Done(_))
    ));
    let again = Entry {
        id: "again".parse().expect("an id"),
        ..entry("a")
    };
    assert!(matches!(
        stores.entries.create(again).await,
        Ok(CreatedEntry::New(_))
    ));
}

pub(super) async fn a_deleted_entry_leaves_a_tombstone_and_frees_its_place(stores: Stores) {
    let a = create(&stores, "a").await;
    assert_eq!(
        stores.entries.delete(&a.id).await.expect("deleted"),
        Some(a.clone())
    );
    assert_eq!(stores.entries.delete(&a.id).await.expect("answered"), None);
    assert_eq!(stores.entries.get(&a.id).await.expect("read"), None);
    let changes = stores.changes.since(1).await.expect("read").expect("known");
    assert_eq!(
        (changes.revision, changes.removed_entries),
        (2, vec![a.id.clone()])
    );
    assert_eq!(create(&stores, "a").await.revision, 3);
}

pub(super) async fn an_entry_made_again_is_there_and_not_gone(stores: Stores) {
    let a = create(&stores, "a").await;
    stores.entries.delete(&a.id).await.expect("deleted");
    let again = create(&stores, "a").await;
    let changes = stores.changes.since(0).await.expect("read").expect("known");
    assert_eq!(
        (changes.entries, changes.removed_entries),
        (vec![again], vec![])
    );
}

pub(super) async fn expired_entries_are_removed_and_others_stay(stores: Stores) {
    let ends = |name: &str, seconds| Entry {
        expires_at: Some(at(seconds)),
        ..entry(name)
    };
    for new in [ends("soon", 10), ends("later", 20), entry("never")] {
        assert!(matches!(
            stores.entries.create(new).await,
            Ok(CreatedEntry::New(_))
        ));
    }
    let gone = stores
        .entries
        .delete_expired(at(10))
        .await
        .expect("removed");
    assert_eq!(
        gone.iter()
            .map(|entry| entry.id.to_string())
            .collect::<Vec<_>>(),
        ["soon"]
    );
    assert_eq!(stores.entries.list().await.expect("read").len(), 2);
    assert!(
        stores
            .entries
            .delete_expired(at(10))
            .await
            .expect("answered")
            .is_empty()
    );
}

pub(super) async fn revisions_never_repeat_and_the_newest_one_is_watched(stores: Stores) {
    let mut newest = stores.changes.newest();
    assert_eq!(*newest.borrow_and_update(), 0);
    let names: Vec<String> = (0..50).map(|n| format!("e{n}")).collect();
    let made = join_all(names.iter().map(|name| create(&stores, name))).await;
    let revisions: BTreeSet<u64> = made.iter().map(|entry| entry.revision).collect();
    assert_eq!(revisions, (1..=50).collect());
    newest.changed().await.expect("the store lives");
    assert_eq!(*newest.borrow_and_update(), 50);
    assert!(!stores.changes.epoch().is_empty());
}

pub(super) async fn changes_since_a_revision_lead_from_one_state_to_the_other(stores: Stores) {
    let [a, b, c] = [
        create(&stores, "a").await,
        create(&stores, "b").await,
        create(&stores, "c").await,
    ];
    let before = stores.changes.everything().await.expect("read");
    assert_eq!(
        (before.revision, before.entries),
        (3, vec![a.clone(), b.clone(), c.clone()])
    );
    stores.entries.delete(&b.id).await.expect("deleted");
    let UpdatedEntry::Done(a) = stores
        .entries
        .update(Entry {
            hint: "new".into(),
            ..(*a).clone()
        })
        .await
        .expect("updated")
    else {
        panic!("refused")
    };
    let d = create(&stores, "d").await;
    let changes = stores
        .changes
        .since(before.revision)
        .await
        .expect("read")
        .expect("known");
    assert_eq!(changes.revision, 6);
    assert_eq!(changes.entries, [a.clone(), d.clone()]);
    assert_eq!(changes.removed_entries, std::slice::from_ref(&b.id));
    assert_eq!(
        stores.changes.everything().await.expect("read").entries,
        [c, a, d]
    );
    let nothing = stores.changes.since(6).await.expect("read").expect("known");
    assert_eq!(
        nothing,
        ChangeSet {
            revision: 6,
            ..ChangeSet::default()
        }
    );
}

pub(super) async fn a_revision_from_the_future_asks_for_everything(stores: Stores) {
    create(&stores, "a").await;
    assert_eq!(stores.changes.since(2).await.expect("read"), None);
}

pub(super) async fn eight_clients_changing_one_entry_lose_no_update(stores: Stores) {
    let made = create(&stores, "a").await;
    let count_up = async || {
        let mut done = 0;
        while done < 20 {
            let read = stores
                .entries
                .get(&made.id)
                .await
                .expect("read")
                .expect("there");
            let number: u64 = read.hint.parse().unwrap_or(0);
            let change = Entry {
                hint: (number + 1).to_string(),
                ..(*read).clone()
            };
            match stores.entries.update(change).await.expect("answered") {
                UpdatedEntry::Done(_) => done += 1,
                UpdatedEntry::Changed(now) => assert!(now.revision > read.revision),
                other => panic!("{other:?}"),
            }
        }
    };
    join_all((0..8).map(|_| count_up())).await;
    let last = stores
        .entries
        .get(&made.id)
        .await
        .expect("read")
        .expect("there");
    assert_eq!((last.hint.as_str(), last.revision), ("160", 161));
}

pub(super) async fn a_ban_wins_over_attestation_and_empties_the_serials(stores: Stores) {
    let made = node("a");
    let Attested::Stored {
        node: stored,
        previous: None,
    } = stores.nodes.attest(made.clone()).await.expect("stored")
    else {
        panic!("not new")
    };
    assert_eq!(
        *stored,
        Node {
            revision: 1,
            ..made.clone()
        }
    );
    let banned = stores
        .nodes
        .set_banned(&made.id, true)
        .await
        .expect("stored")
        .expect("there");
    assert!(
        banned.banned
            && banned.serial.is_empty()
            && !banned.has_serial("01")
            && !banned.has_serial("")
    );
    assert_eq!(
        stores.nodes.attest(made.clone()).await.expect("answered"),
        Attested::Banned(banned.clone())
    );
    assert_eq!(
        stores.nodes.get(&made.id).await.expect("read"),
        Some(banned)
    );
    let renewed = RenewedSerial {
        serial: "02".into(),
        expires_at: at(90),
    };
    assert_eq!(
        stores
            .nodes
            .renew(&made.id, "01", renewed)
            .await
            .expect("answered"),
        None
    );
    let changes = stores.changes.since(1).await.expect("read").expect("known");
    assert_eq!((changes.revision, changes.nodes.len()), (2, 1));
}

pub(super) async fn a_renewed_serial_is_good_beside_the_current_one_until_it_is_promoted(
    stores: Stores,
) {
    let id = node("a").id;
    stores.nodes.attest(node("a")).await.expect("stored");
    let renewed = |serial: &str| RenewedSerial {
        serial: serial.into(),
        expires_at: at(90),
    };
    assert_eq!(
        stores
            .nodes
            .renew(&id, "99", renewed("02"))
            .await
            .expect("answered"),
        None
    );
    let both = stores
        .nodes
        .renew(&id, "01", renewed("02"))
        .await
        .expect("answered")
        .expect("there");
    assert!(both.has_serial("01") && both.has_serial("02") && !both.has_serial("03"));
    assert_eq!(
        stores.nodes.promote(&id, "03").await.expect("answered"),
        None
    );
    let one = stores
        .nodes
        .promote(&id, "02")
        .await
        .expect("answered")
        .expect("there");
    assert!(one.has_serial("02") && !one.has_serial("01"));
    assert_eq!((one.expires_at, one.revision), (at(90), 1));
    // Renewal with a certificate that was not used before promotes it on the way.
    stores
        .nodes
        .renew(&id, "02", renewed("03"))
        .await
        .expect("answered")
        .expect("there");
    let last = stores
        .nodes
        .renew(&id, "03", renewed("04"))
        .await
        .expect("answered")
        .expect("there");
    assert!(last.has_serial("03") && last.has_serial("04") && !last.has_serial("02"));
    assert_eq!(*stores.changes.newest().borrow(), 1);
}

pub(super) async fn attesting_again_with_the_same_selectors_is_no_news(stores: Stores) {
    stores.nodes.attest(node("a")).await.expect("stored");
    let again = Node {
        serial: "02".into(),
        ..node("a")
    };
    let Attested::Stored {
        node: stored,
        previous: Some(previous),
    } = stores.nodes.attest(again).await.expect("stored")
    else {
        panic!("refused")
    };
    assert_eq!(
        (
            stored.revision,
            stored.serial.as_str(),
            previous.serial.as_str()
        ),
        (1, "02", "01")
    );
    let other = Node {
        selectors: BTreeSet::from(["k8s_psat:cluster:d".parse().expect("a selector")]),
        ..node("a")
    };
    let Attested::Stored { node: stored, .. } = stores.nodes.attest(other).await.expect("stored")
    else {
        panic!("refused")
    };
    assert_eq!(stored.revision, 2);
    let told = stores
        .nodes
        .set_agent_version(&stored.id, "1.2")
        .await
        .expect("stored")
        .expect("there");
    assert_eq!((told.agent_version.as_str(), told.revision), ("1.2", 2));
}

pub(super) async fn an_evicted_agent_is_gone_and_may_return(stores: Stores) {
    let id = node("a").id;
    stores.nodes.attest(node("a")).await.expect("stored");
    stores.nodes.attest(node("b")).await.expect("stored");
    assert_eq!(stores.nodes.list().await.expect("read").len(), 2);
    assert!(stores.nodes.delete(&id).await.expect("deleted").is_some());
    assert_eq!(stores.nodes.delete(&id).await.expect("answered"), None);
    let changes = stores.changes.since(2).await.expect("read").expect("known");
    assert_eq!(changes.removed_nodes, [id]);
    let back = stores.nodes.attest(node("a")).await.expect("stored");
    assert!(matches!(back, Attested::Stored { previous: None, .. }));
}

fn token(name: &str, ends: u64) -> NewToken {
    NewToken {
        hash: token_hash(name),
        expires_at: at(ends),
        agent_id: Some(id("/alias")),
    }
}

pub(super) async fn a_join_token_is_good_once_among_many_at_the_same_time(stores: Stores) {
    assert!(stores.tokens.create(token("t", 60)).await.expect("stored"));
    let tries = (0..100).map(|_| stores.tokens.spend(token_hash("t"), at(1)));
    let outcomes: Vec<Spent> = join_all(tries)
        .await
        .into_iter()
        .collect::<Result<_, _>>()
        .expect("answered");
    let good = outcomes.iter().filter(|outcome| {
        **outcome
            == Spent::Good {
                agent_id: Some(id("/alias")),
            }
    });
    assert_eq!(good.count(), 1);
    assert_eq!(
        outcomes
            .iter()
            .filter(|outcome| **outcome == Spent::Used)
            .count(),
        99
    );
}

pub(super) async fn a_join_token_knows_why_it_is_refused(stores: Stores) {
    assert!(stores.tokens.create(token("t", 60)).await.expect("stored"));
    assert!(
        !stores
            .tokens
            .create(token("t", 90))
            .await
            .expect("answered")
    );
    assert_eq!(
        stores
            .tokens
            .spend(token_hash("u"), at(1))
            .await
            .expect("answered"),
        Spent::Unknown
    );
    assert_eq!(
        stores
            .tokens
            .spend(token_hash("t"), at(60))
            .await
            .expect("answered"),
        Spent::Expired
    );
    assert!(matches!(
        stores.tokens.spend(token_hash("t"), at(59)).await,
        Ok(Spent::Good { .. })
    ));
    assert_eq!(
        stores
            .tokens
            .spend(token_hash("t"), at(59))
            .await
            .expect("answered"),
        Spent::Used
    );
}

pub(super) async fn a_jti_belongs_to_the_first_key(stores: Stores) {
    let tries = (0..20).map(|n| stores.tokens.spend_jti(jti("j", n % 2, 60)));
    let outcomes: Vec<SpentJti> = join_all(tries)
        .await
        .into_iter()
        .collect::<Result<_, _>>()
        .expect("answered");
    assert_eq!(
        outcomes
            .iter()
            .filter(|outcome| **outcome == SpentJti::First)
            .count(),
        1
    );
    let same = outcomes
        .iter()
        .filter(|outcome| matches!(outcome, SpentJti::SameKeyAgain(_)))
        .count();
    let other = outcomes
        .iter()
        .filter(|outcome| matches!(outcome, SpentJti::OtherKey(_)))
        .count();
    assert_eq!((same, other), (9, 10));
}

pub(super) async fn a_jti_is_tied_to_another_key_only_from_the_one_it_has(stores: Stores) {
    stores
        .tokens
        .spend_jti(jti("j", 1, 60))
        .await
        .expect("stored");
    assert!(
        !stores
            .tokens
            .rebind_jti("j", [9; 32], jti("j", 2, 60))
            .await
            .expect("answered")
    );
    assert!(
        !stores
            .tokens
            .rebind_jti("k", [1; 32], jti("k", 2, 60))
            .await
            .expect("answered")
    );
    assert!(
        stores
            .tokens
            .rebind_jti("j", [1; 32], jti("j", 2, 60))
            .await
            .expect("answered")
    );
    assert!(
        !stores
            .tokens
            .rebind_jti("j", [1; 32], jti("j", 3, 60))
            .await
            .expect("answered")
    );
    let again = stores
        .tokens
        .spend_jti(jti("j", 2, 60))
        .await
        .expect("answered");
    assert_eq!(again, SpentJti::SameKeyAgain(jti("j", 2, 60)));
}

pub(super) async fn pruning_forgets_what_has_ended_and_nothing_else(stores: Stores) {
    for (name, ends) in [("a", 10), ("b", 20)] {
        stores
            .tokens
            .create(token(name, ends))
            .await
            .expect("stored");
        stores
            .tokens
            .spend_jti(jti(name, 1, ends))
            .await
            .expect("stored");
        stores
            .issued
            .record(vec![certificate(name, ends)])
            .await
            .expect("stored");
    }
    assert_eq!(stores.tokens.prune(at(15)).await.expect("pruned"), 2);
    assert_eq!(stores.issued.prune(at(15)).await.expect("pruned"), 1);
    assert_eq!(
        stores
            .tokens
            .spend(token_hash("a"), at(1))
            .await
            .expect("answered"),
        Spent::Unknown
    );
    assert_eq!(
        stores
            .tokens
            .spend_jti(jti("a", 2, 60))
            .await
            .expect("answered"),
        SpentJti::First
    );
    assert!(matches!(
        stores.tokens.spend_jti(jti("b", 2, 60)).await,
        Ok(SpentJti::OtherKey(_))
    ));
    assert!(matches!(
        stores.tokens.spend(token_hash("b"), at(1)).await,
        Ok(Spent::Good { .. })
    ));
    assert_eq!(stores.issued.get("a").await.expect("read"), None);
    assert_eq!(
        stores.issued.get("b").await.expect("read"),
        Some(certificate("b", 20))
    );
    assert_eq!(stores.issued.prune(at(15)).await.expect("pruned"), 0);
    assert_eq!(stores.issued.count().await.expect("counted"), 1);
}

pub(super) async fn the_own_bundle_gets_a_higher_sequence_only_when_its_content_differs(
    stores: Stores,
) {
    let content = |authorities: &[&[u8]]| BundleContent {
        x509_authorities: authorities.iter().map(|der| der.to_vec().into()).collect(),
        jwt_authorities: Vec::new(),
        refresh_hint: Duration::from_secs(5),
    };
    assert_eq!(stores.bundles.own().await.expect("read"), None);
    let first = stores
        .journal
        .write(b"1".to_vec(), content(&[b"a"]))
        .await
        .expect("written");
    assert_eq!(
        (first.sequence, first.revision, &first.trust_domain),
        (1, 1, &domain())
    );
    let same = stores
        .journal
        .write(b"2".to_vec(), content(&[b"a"]))
        .await
        .expect("written");
    assert_eq!(same, first);
    let next = stores
        .journal
        .write(b"3".to_vec(), content(&[b"a", b"b"]))
        .await
        .expect("written");
    assert_eq!((next.sequence, next.revision), (2, 2));
    assert_eq!(
        stores.bundles.own().await.expect("read"),
        Some(next.clone())
    );
    assert_eq!(stores.bundles.list().await.expect("read"), []);
    let changes = stores.changes.since(1).await.expect("read").expect("known");
    assert_eq!(changes.own_bundle, Some(next));
}

pub(super) async fn foreign_bundles_are_stored_replaced_and_removed(stores: Stores) {
    let other: TrustDomain = "other.test".parse().expect("a trust domain");
    let bundle = |sequence| StoredBundle {
        trust_domain: "other.test".parse().expect("a trust domain"),
        x509_authorities: vec![vec![7; 600].into()],
        jwt_authorities: Vec::new(),
        sequence,
        refresh_hint: None,
        revision: 0,
    };
    let first = stores.bundles.put(bundle(8)).await.expect("stored");
    assert_eq!(first.revision, 1);
    assert_eq!(stores.bundles.put(bundle(8)).await.expect("stored"), first);
    let next = stores.bundles.put(bundle(9)).await.expect("stored");
    assert_eq!((next.sequence, next.revision), (9, 2));
    assert_eq!(
        stores.bundles.get(&other).await.expect("read"),
        Some(next.clone())
    );
    assert_eq!(
        stores.bundles.list().await.expect("read"),
        std::slice::from_ref(&next)
    );
    assert_eq!(
        stores
            .changes
            .everything()
            .await
            .expect("read")
            .foreign_bundles,
        std::slice::from_ref(&next)
    );
    assert_eq!(
        stores
            .bundles
            .delete(&other, Users::Restrict)
            .await
            .expect("answered"),
        DeletedBundle::Done {
            bundle: next,
            users: vec![]
        }
    );
    assert_eq!(
        stores
            .bundles
            .delete(&other, Users::Restrict)
            .await
            .expect("answered"),
        DeletedBundle::NotFound
    );
    let changes = stores.changes.since(2).await.expect("read").expect("known");
    assert_eq!(
        (changes.revision, changes.removed_trust_domains),
        (3, vec![other])
    );
}

pub(super) async fn a_bundle_is_replaced_only_by_who_saw_the_newest(stores: Stores) {
    let bundle = |sequence| StoredBundle {
        trust_domain: "other.test".parse().expect("a trust domain"),
        x509_authorities: vec![vec![7; 600].into()],
        jwt_authorities: Vec::new(),
        sequence,
        refresh_hint: None,
        revision: 0,
    };
    let replace = async |sequence, expected| {
        let replaced = stores.bundles.replace(bundle(sequence), expected).await;
        replaced.expect("answered")
    };
    assert_eq!(replace(1, Some(1)).await, Replaced::Other(None));
    let Replaced::Done(first) = replace(1, None).await else {
        panic!("it is new");
    };
    assert_eq!(replace(2, None).await, Replaced::Other(Some(first.clone())));
    assert_eq!(
        replace(2, Some(first.revision + 1)).await,
        Replaced::Other(Some(first.clone()))
    );
    let Replaced::Done(second) = replace(2, Some(first.revision)).await else {
        panic!("nobody was faster");
    };
    assert_eq!((second.sequence, second.revision), (2, 2));
}

pub(super) async fn what_becomes_of_entries_when_a_bundle_goes_is_the_callers_choice(
    stores: Stores,
) {
    let other: TrustDomain = "other.test".parse().expect("a trust domain");
    let third: TrustDomain = "third.test".parse().expect("a trust domain");
    for domain in [&other, &third] {
        let bundle = StoredBundle {
            trust_domain: domain.clone(),
            x509_authorities: vec![vec![7; 600].into()],
            jwt_authorities: Vec::new(),
            sequence: 1,
            refresh_hint: None,
            revision: 0,
        };
        stores.bundles.put(bundle).await.expect("stored");
    }
    for (name, domains) in [
        ("a", vec![&other, &third]),
        ("b", vec![&third]),
        ("c", vec![]),
    ] {
        let mut new = entry(name);
        new.federates_with = domains.into_iter().cloned().collect();
        stores.entries.create(new).await.expect("stored");
    }
    let delete = async |domain: &TrustDomain, users| {
        let deleted = stores.bundles.delete(domain, users).await;
        deleted.expect("answered")
    };
    let names = async || {
        let entries = stores.entries.list().await.expect("read");
        let names = entries.iter().map(|entry| {
            let domains = entry.federates_with.iter().map(ToString::to_string);
            (entry.id.to_string(), domains.collect::<Vec<_>>())
        });
        names.collect::<Vec<_>>()
    };
    let before = names().await;
    assert_eq!(
        delete(&third, Users::Restrict).await,
        DeletedBundle::InUse(2)
    );
    assert_eq!(names().await, before);
    assert!(stores.bundles.get(&third).await.expect("read").is_some());
    let DeletedBundle::Done { users, .. } = delete(&third, Users::Dissociate).await else {
        panic!("it goes");
    };
    assert_eq!(users.len(), 2);
    assert_eq!(names().await[0].1, ["other.test"]);
    assert!(names().await[1].1.is_empty());
    assert!(stores.bundles.get(&third).await.expect("read").is_none());
    let DeletedBundle::Done { users, .. } = delete(&other, Users::Delete).await else {
        panic!("it goes");
    };
    assert_eq!(users[0].id.as_str(), "a");
    let left: Vec<_> = names().await.into_iter().map(|(name, _)| name).collect();
    assert_eq!(left, ["b", "c"]);
}

pub(super) async fn relationships_are_stored_with_their_first_bundle_and_removed_without_it(
    stores: Stores,
) {
    let other: TrustDomain = "other.test".parse().expect("a trust domain");
    let relationship = |url: &str| Relationship {
        trust_domain: "other.test".parse().expect("a trust domain"),
        bundle_endpoint_url: url.into(),
        profile: EndpointProfile::HttpsSpiffe {
            endpoint_id: "spiffe://other.test/spire/server".parse().expect("an ID"),
        },
        revision: 0,
    };
    let bundle = StoredBundle {
        trust_domain: other.clone(),
        x509_authorities: vec![vec![7; 600].into()],
        jwt_authorities: Vec::new(),
        sequence: 1,
        refresh_hint: None,
        revision: 0,
    };
    let replace = async |url: &str, expected, bundle| {
        let relationship = relationship(url);
        let relationships = &stores.relationships;
        let replaced = relationships.replace(relationship, expected, bundle).await;
        replaced.expect("answered")
    };
    let missing = replace("https://a", Some(1), None).await;
    assert_eq!(missing, ReplacedRelationship::Other(None));
    let ReplacedRelationship::Done(first) = replace("https://a", None, Some(bundle)).await else {
        panic!("it is new");
    };
    assert!(stores.bundles.get(&other).await.expect("read").is_some());
    let taken = replace("https://b", None, None).await;
    assert_eq!(taken, ReplacedRelationship::Other(Some(first.clone())));
    let second = replace("https://b", Some(first.revision), None).await;
    let ReplacedRelationship::Done(second) = second else {
        panic!("nobody was faster");
    };
    assert!(second.revision > first.revision);
    let all = stores.relationships.list().await.expect("read");
    assert_eq!(all, std::slice::from_ref(&second));
    let gone = stores.relationships.delete(&other).await.expect("answered");
    assert_eq!(gone, Some(second));
    let gone = stores.relationships.delete(&other).await.expect("answered");
    assert_eq!(gone, None);
    assert!(stores.bundles.get(&other).await.expect("read").is_some());
    assert_eq!(stores.relationships.get(&other).await.expect("read"), None);
}

fn jwt_key(n: usize) -> StoredJwtKey {
    StoredJwtKey {
        key_id: format!("key {n}"),
        public_key: vec![3; 91],
        expires_at: Some(at(9)),
        tainted: n.is_multiple_of(2),
    }
}

pub(super) async fn the_journal_is_read_as_it_was_written(stores: Stores) {
    assert_eq!(stores.journal.read().await.expect("read"), None);
    for journal in [vec![1; 10], vec![2; 20_000], vec![3; 5]] {
        let content = BundleContent {
            x509_authorities: vec![journal.clone().into()],
            jwt_authorities: vec![jwt_key(journal.len())],
            refresh_hint: Duration::ZERO,
        };
        stores
            .journal
            .write(journal.clone(), content)
            .await
            .expect("written");
        assert_eq!(stores.journal.read().await.expect("read"), Some(journal));
    }
}

pub(super) async fn a_certificate_is_remembered_before_it_is_handed_out(stores: Stores) {
    let record = IssuedRecord {
        agent_id: Some(id("/spire/agent/a")),
        entry_id: None,
        ..certificate("ff", 9)
    };
    stores
        .issued
        .record(vec![record.clone(), certificate("fe", 9)])
        .await
        .expect("stored");
    assert_eq!(stores.issued.get("ff").await.expect("read"), Some(record));
    assert_eq!(stores.issued.get("00").await.expect("read"), None);
    assert_eq!(stores.issued.count().await.expect("counted"), 2);
    // Certificates are no news for agents.
    assert_eq!(*stores.changes.newest().borrow(), 0);
}

pub(super) async fn pruning_many_certificates_forgets_them_all(stores: Stores) {
    for ends in [10, 20] {
        // Calls of one and of several certificates, more of them than one step forgets.
        let calls = (0..2_250).map(|n| {
            let ends = |n: u64| certificate(&format!("{ends}-{n}"), ends);
            stores.issued.record(vec![ends(2 * n), ends(2 * n + 1)])
        });
        for stored in join_all(calls).await {
            stored.expect("stored");
        }
    }
    assert_eq!(stores.issued.prune(at(15)).await.expect("pruned"), 4_500);
    assert_eq!(stores.issued.count().await.expect("counted"), 4_500);
    assert_eq!(stores.issued.get("10-4499").await.expect("read"), None);
    assert!(stores.issued.get("20-4499").await.expect("read").is_some());
}

pub(super) async fn rows_of_every_size_up_to_the_limit_come_back(stores: Stores) {
    for size in [0, 1, 4_090, 4_096, 4_097, 8_192, 60_000, 1_000_000] {
        let content = BundleContent {
            x509_authorities: vec![vec![8; size].into()],
            jwt_authorities: Vec::new(),
            refresh_hint: Duration::ZERO,
        };
        let stored = stores
            .journal
            .write(vec![9; size], content)
            .await
            .expect("stored");
        assert_eq!(stored.x509_authorities[0].der.len(), size);
        assert_eq!(
            stores
                .journal
                .read()
                .await
                .expect("read")
                .map(|journal| journal.len()),
            Some(size)
        );
    }
    let content = BundleContent {
        x509_authorities: vec![],
        jwt_authorities: vec![],
        refresh_hint: Duration::ZERO,
    };
    let refused = stores
        .journal
        .write(vec![9; codec::MAX_ROW + 1], content)
        .await;
    assert!(matches!(refused, Err(StoreError::TooLarge { .. })));
    assert_eq!(
        stores
            .journal
            .read()
            .await
            .expect("read")
            .map(|journal| journal.len()),
        Some(1_000_000)
    );
}

pub(super) async fn what_an_authority_signed_is_held_until_a_later_one_takes_its_place_or_it_ends(
    stores: Stores,
) {
    let signed = |serial: &str, agent: &str, entry: Option<&str>, authority: &str, second: u64| {
        IssuedRecord {
            serial: serial.into(),
            agent_id: Some(id(&format!("/spire/agent/{agent}"))),
            entry_id: entry.map(|entry| entry.parse().expect("an entry id")),
            authority_id: authority.into(),
            issued_at: at(second),
            not_after: at(second + 10),
            ..certificate("00", 0)
        }
    };
    let held = async |second: u64| -> Vec<String> {
        let held = stores
            .issued
            .held(BTreeSet::from(["old".to_owned()]), at(second));
        let mut held: Vec<_> = held
            .await
            .expect("read")
            .into_iter()
            .map(|one| one.serial)
            .collect();
        held.sort();
        held
    };
    for (serial, agent, entry, authority, second) in [
        ("01", "a", None, "old", 0),
        ("02", "a", Some("web"), "old", 1),
        ("03", "b", Some("web"), "old", 2),
        ("04", "b", Some("web"), "old", 3),
        ("05", "a", Some("db"), "new", 3),
    ] {
        let record = signed(serial, agent, entry, authority, second);
        stores.issued.record(vec![record]).await.expect("stored");
    }
    assert_eq!(held(4).await, ["01", "02", "04"], "one of each holder");
    let later = vec![
        signed("06", "a", None, "new", 5),
        signed("07", "b", Some("web"), "new", 5),
    ];
    stores.issued.record(later).await.expect("stored");
    assert_eq!(held(5).await, ["02"], "what came later counts");
    assert_eq!(held(11).await, [""; 0], "and what has ended does not");
}
