//! Decides whether a new identity reaches the next handshake and leaves open connections alone.
//! Trusts the serial numbers of certificates to tell old from new.
//! Never restarts or rebuilds a configuration.

use std::{sync::Arc, time::Duration};

use mesh_identity::{
    BundleSet,
    test_util::{Made, Spec, now},
    verify::VerifyError,
};
use mesh_tls::{
    Authorizer, ClientPolicy, IdentityCell, PeerRefused, TlsIdentityError, client_config,
    server_config,
};

use crate::common::{
    Hands, PAY, Raw, TD, WEB, World, client_of, id, identity, key, meet, meet_well, refusal,
    server_of,
};

#[tokio::test]
async fn a_swap_reaches_new_connections_and_leaves_open_ones_alone() {
    let world = World::new();
    let (pay, web) = (world.cell(&world.pay), world.cell(&world.web));
    let (server, client) = (server_of(&pay), client_of(&web));
    let mut before = meet_well(&server, &client).await;
    before.talk().await;

    let (new_pay, new_web) = (world.root.leaf(PAY), world.root.leaf(WEB));
    pay.publish(identity(&new_pay, world.bundles()));
    web.publish(identity(&new_web, world.bundles()));

    let mut after = meet_well(&server, &client).await;
    before.talk().await;
    after.talk().await;
    assert_eq!(before.server_serial(), world.pay.svid().serial());
    assert_eq!(before.client_serial(), world.web.svid().serial());
    assert_eq!(after.server_serial(), new_pay.svid().serial());
    assert_eq!(after.client_serial(), new_web.svid().serial());
}

#[tokio::test]
async fn an_emptied_bundle_refuses_the_next_handshake_and_leaves_open_ones_alone() {
    let world = World::new();
    let (pay, web) = (world.cell(&world.pay), world.cell(&world.web));
    let (server, client) = (server_of(&pay), client_of(&web));
    let mut open = meet_well(&server, &client).await;
    open.talk().await;

    pay.replace_bundles(BundleSet::new());
    let no_bundle = PeerRefused::NotVerified(VerifyError::NoBundle(TD.parse().unwrap()));
    let (refused, _) = meet(&server, &client).await;
    assert_eq!(refusal(refused), no_bundle);
    open.talk().await;

    // The same on the client's side, and back again.
    web.replace_bundles(BundleSet::new());
    let (_, refused) = meet(&server, &client).await;
    assert_eq!(refusal(refused), no_bundle);
    pay.replace_bundles(world.bundles());
    web.replace_bundles(world.bundles());
    meet_well(&server, &client).await.talk().await;
    open.talk().await;
}

#[tokio::test]
async fn a_root_can_be_added_swapped_and_dropped_without_a_refusal_in_between() {
    let old = World::new();
    let new = World::new();
    let (pay, web) = (old.cell(&old.pay), old.cell(&old.web));
    let (server, client) = (server_of(&pay), client_of(&web));
    let both = || {
        let authorities = [old.root.authority(), new.root.authority()];
        let bundle = mesh_identity::Bundle::new(TD.parse().unwrap(), authorities).unwrap();
        BundleSet::from_iter([bundle])
    };
    let works = async || meet_well(&server, &client).await.talk().await;

    works().await;
    pay.replace_bundles(both());
    works().await;
    web.replace_bundles(both());
    works().await;
    pay.publish(identity(&new.pay, both()));
    works().await;
    web.publish(identity(&new.web, both()));
    works().await;
    pay.publish(identity(&new.pay, new.bundles()));
    works().await;
    web.publish(identity(&new.web, new.bundles()));
    works().await;
    let (refused, _) = meet(&server, &Raw::new(&old.web).client().into()).await;
    assert!(matches!(refusal(refused), PeerRefused::NotVerified(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_during_a_storm_of_swaps_all_succeed() {
    let world = Arc::new(World::new());
    let (pay, web) = (world.cell(&world.pay), world.cell(&world.web));
    let (server, client) = (server_of(&pay), client_of(&web));
    let storm = tokio::spawn({
        let world = Arc::clone(&world);
        async move {
            loop {
                pay.publish(identity(&world.root.leaf(PAY), world.bundles()));
                web.publish(identity(&world.root.leaf(WEB), world.bundles()));
                tokio::task::yield_now().await;
            }
        }
    });
    let mut serials = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let mut pair = meet_well(&server, &client).await;
        pair.talk().await;
        serials.insert(pair.server_serial().to_owned());
    }
    storm.abort();
    assert!(
        serials.len() > 10,
        "the storm blew: {} identities seen",
        serials.len()
    );
}

#[tokio::test]
async fn a_bad_publish_keeps_the_last_good_identity() {
    let world = World::new();
    let cell = world.cell(&world.pay);
    let (server, client) = (server_of(&cell), world.client());
    let mut changes = cell.subscribe();
    let fresh = world.root.leaf(PAY);
    let yesterday = now() - Duration::from_secs(86_400);
    let expired = world
        .root
        .sign(Spec::leaf(PAY).valid(yesterday, now() - Duration::from_secs(1)));
    let foreign = Made::root(TD).leaf(PAY);

    let other_key = cell.try_publish(fresh.svid(), key(&world.web), world.bundles(), now());
    assert!(
        matches!(other_key, Err(TlsIdentityError::OtherKey(_))),
        "{other_key:?}"
    );
    for (leaf, bundles) in [
        (&expired, world.bundles()),
        (&foreign, world.bundles()),
        (&fresh, BundleSet::new()),
        (&fresh, Made::root("foreign.test").bundles("foreign.test")),
    ] {
        let refused = cell.try_publish(leaf.svid(), key(leaf), bundles, now());
        assert!(
            matches!(refused, Err(TlsIdentityError::NotAccepted(_))),
            "{refused:?}"
        );
    }

    assert!(!changes.has_changed().unwrap());
    assert_eq!(cell.current().svid().serial(), world.pay.svid().serial());
    let mut pair = meet_well(&server, &client).await;
    pair.talk().await;
    assert_eq!(pair.server_serial(), world.pay.svid().serial());

    cell.try_publish(fresh.svid(), key(&fresh), world.bundles(), now())
        .unwrap();
    changes.changed().await.unwrap();
    assert_eq!(changes.borrow().svid().serial(), fresh.svid().serial());
    assert_eq!(
        meet_well(&server, &client).await.server_serial(),
        fresh.svid().serial()
    );
}

#[test]
fn an_identity_tells_what_it_is_and_not_its_key() {
    let world = World::new();
    let identity = identity(&world.pay, world.bundles());
    assert_eq!(*identity.id(), id(PAY));
    assert_eq!(identity.not_after(), world.pay.svid().not_after());
    assert!(identity.bundles().get(&TD.parse().unwrap()).is_some());
    let mut shown = format!("{identity:?}");
    shown += &format!("{:?}", IdentityCell::new(identity));
    assert!(shown.contains(PAY) && shown.contains(TD), "{shown}");
    assert!(!shown.contains("key"), "{shown}");
}

#[tokio::test]
async fn an_expired_client_is_refused_also_on_a_second_connection() {
    let world = World::new();
    let hands = Hands::at_now();
    let anyone = ClientPolicy::Required(Authorizer::any_verified());
    let server = server_config(&world.cell(&world.pay), anyone, &[], hands.clock());
    let minute = Duration::from_secs(60);
    let short = world
        .root
        .sign(Spec::leaf(WEB).valid(now() - minute, now() + minute));
    // A client that resumes wherever it can: the configuration, and so its store of tickets, stays the same.
    let client = Arc::new(Raw::new(&short).client());

    let mut first = meet_well(&server, &client).await;
    first.talk().await;
    hands.advance(minute * 2);
    for _ in 0..2 {
        let (refused, _) = meet(&server, &client).await;
        let expired = VerifyError::Expired {
            id: id(WEB),
            not_after: now() + minute,
        };
        assert_eq!(refusal(refused), PeerRefused::NotVerified(expired));
    }
}

#[tokio::test]
async fn an_expired_server_is_refused_also_on_a_second_connection() {
    let world = World::new();
    let hands = Hands::at_now();
    let minute = Duration::from_secs(60);
    let short = world
        .root
        .sign(Spec::leaf(PAY).valid(now() - minute, now() + minute));
    // A server that sends tickets and lets clients resume.
    let server = Arc::new(Raw::new(&short).server());
    let pay = Authorizer::exactly(id(PAY));
    let client = client_config(&world.cell(&world.web), pay, &[], hands.clock());

    let mut first = meet_well(&server, &client).await;
    first.talk().await;
    hands.advance(minute * 2);
    for _ in 0..2 {
        let (_, refused) = meet(&server, &client).await;
        let expired = VerifyError::Expired {
            id: id(PAY),
            not_after: now() + minute,
        };
        assert_eq!(refusal(refused), PeerRefused::NotVerified(expired));
    }
}
