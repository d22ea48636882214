//! Decides which peers get in: each wrong certificate is refused in both directions, for its own reason and with its own alert.
//! Trusts the factory to make exactly the fault it is asked for.
//! Never accepts "some error": the reason is compared.

use std::time::Duration;

use mesh_identity::{
    BundleSet, ProfileError,
    test_util::{Made, Spec, now, purpose, usage},
    verify::VerifyError,
};
use mesh_tls::{
    AlertDescription, Authorizer, ClientPolicy, HandshakeError, IdentityCell, PeerRefused, accept,
    alert_in, bootstrap_client_config, client_config, server_config,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

use crate::common::{
    PAY, Raw, TD, WEB, World, clock, id, identity, meet, meet_well, refusal, server_of,
};

const DAY: Duration = Duration::from_secs(86_400);

#[tokio::test]
async fn two_right_ends_learn_each_others_identity() {
    let world = World::new();
    let mut pair = meet_well(&world.server(), &world.client()).await;
    pair.talk().await;

    let client = pair.server.1.unwrap();
    assert_eq!(client.id, id(WEB));
    assert_eq!(client.serial, world.web.svid().serial());
    assert_eq!(client.not_after, world.web.svid().not_after());
    assert_eq!(&client.chain[..], &world.web.chain[..]);
    assert_eq!(
        client.verify_again(&world.bundles(), now()).unwrap().id,
        id(WEB)
    );
    let withdrawn = client.verify_again(&BundleSet::new(), now());
    assert_eq!(withdrawn, Err(VerifyError::NoBundle(TD.parse().unwrap())));

    let server = pair.client.1;
    assert_eq!(server.id, id(PAY));
    assert_eq!(server.serial, world.pay.svid().serial());
    assert_eq!(server.session, client.session);
}

/// Lets the wrong one play the client and then the server; says why it was refused, and with which alert.
async fn refused_both_ways(world: &World, wrong: &Made) -> (VerifyError, AlertDescription) {
    let (server, client) = meet(&world.server(), &Raw::new(wrong).client().into()).await;
    let as_client = refusal(server);
    // The client had finished before the server judged it; the alert comes with the first read.
    let (mut stream, _) = client.unwrap_or_else(|error| panic!("{error:?}"));
    let told = alert_in(&stream.read_u8().await.unwrap_err()).expect("an alert");

    let (server, client) = meet(&Raw::new(wrong).server().into(), &world.client()).await;
    let as_server = refusal(client);
    match server {
        Err(HandshakeError::RefusedByPeer(alert)) => assert_eq!(alert.0, told),
        other => panic!("the wrong server must learn that it was refused: {other:?}"),
    }
    assert_eq!(as_client, as_server, "one verifier, one answer");
    match as_client {
        PeerRefused::NotVerified(reason) => (reason, told),
        other => panic!("refused for another reason: {other}"),
    }
}

/// The same for a leaf that breaks a rule of X509-SVID.
async fn breaks(world: &World, wrong: &Made) -> ProfileError {
    match refused_both_ways(world, wrong).await {
        (VerifyError::Leaf(rule), AlertDescription::CertificateUnknown) => rule,
        other => panic!("refused for another reason: {other:?}"),
    }
}

fn leaf() -> Spec {
    Spec::leaf(WEB)
}

#[tokio::test]
async fn two_uri_sans_are_refused() {
    let world = World::new();
    let wrong = world.root.sign(Spec {
        uris: vec![WEB.into(), PAY.into()],
        ..leaf()
    });
    assert_eq!(breaks(&world, &wrong).await, ProfileError::SeveralUris(2));
    let other = world.root.sign(Spec {
        uris: vec![WEB.into(), b"https://x".to_vec()],
        ..leaf()
    });
    assert_eq!(breaks(&world, &other).await, ProfileError::SeveralUris(2));
}

/// Lets a wrong client meet our server alone: for IDs that a `Raw` end cannot even read from its own certificate.
async fn client_breaks(world: &World, wrong: &Made) -> ProfileError {
    let (server, _) = meet(&world.server(), &Raw::new(wrong).client().into()).await;
    match refusal(server) {
        PeerRefused::NotVerified(VerifyError::Leaf(rule)) => rule,
        other => panic!("refused for another reason: {other:?}"),
    }
}

#[tokio::test]
async fn a_path_less_id_is_refused() {
    let world = World::new();
    let rule = breaks(&world, &world.root.leaf("spiffe://td.test")).await;
    assert_eq!(rule, ProfileError::PathLessLeaf(id("spiffe://td.test")));
}

#[tokio::test]
async fn an_upper_case_trust_domain_is_refused() {
    let world = World::new();
    for upper in [
        "spiffe://TD.test/web",
        "spiffe://TD.TEST/web",
        "SPIFFE://td.test/web",
    ] {
        let rule = breaks(&world, &world.root.leaf(upper)).await;
        assert!(matches!(rule, ProfileError::NotSpiffeId(_)), "{rule:?}");
    }
}

#[tokio::test]
async fn a_certificate_authority_shown_as_a_leaf_is_refused() {
    let world = World::new();
    // An honest intermediate, one with a workload's ID, and a leaf that only claims cA.
    let honest = world.root.intermediate(TD, "intermediate");
    let with_path = Spec {
        uris: vec![WEB.into()],
        ..Spec::authority(TD, "intermediate")
    };
    let claims = Spec {
        ca: Some(true),
        ..leaf()
    };
    for wrong in [honest, world.root.sign(with_path), world.root.sign(claims)] {
        let rule = breaks(&world, &wrong).await;
        assert!(
            matches!(
                rule,
                ProfileError::SigningLeaf(_) | ProfileError::PathLessLeaf(_)
            ),
            "{rule:?}"
        );
    }
}

#[tokio::test]
async fn a_root_shown_as_a_leaf_is_refused() {
    let mut world = World::new();
    world.root.chain = vec![world.root.der.clone()];
    let rule = breaks(&world, &world.root).await;
    assert!(
        matches!(
            rule,
            ProfileError::SigningLeaf(_) | ProfileError::PathLessLeaf(_)
        ),
        "{rule:?}"
    );
}

#[tokio::test]
async fn a_leaf_with_key_cert_sign_is_refused() {
    let world = World::new();
    for bit in [usage::KEY_CERT_SIGN, usage::CRL_SIGN] {
        let key_usage = Some(usage::DIGITAL_SIGNATURE | bit);
        let wrong = world.root.sign(Spec {
            key_usage,
            ..leaf()
        });
        let rule = breaks(&world, &wrong).await;
        assert!(matches!(rule, ProfileError::SigningLeaf(_)), "{rule:?}");
    }
}

#[tokio::test]
async fn a_leaf_without_a_spiffe_id_is_refused() {
    let world = World::new();
    let none = Spec {
        uris: vec![],
        ..leaf()
    };
    let dns_with_the_same_text = Spec {
        dns_names: vec![WEB.into()],
        ..none.clone()
    };
    for wrong in [none, dns_with_the_same_text] {
        assert_eq!(
            breaks(&world, &world.root.sign(wrong)).await,
            ProfileError::NoUri
        );
    }
    let other = world.root.sign(Spec {
        uris: vec![b"https://td.test/web".to_vec()],
        ..leaf()
    });
    let rule = breaks(&world, &other).await;
    assert!(matches!(rule, ProfileError::NotSpiffeId(_)), "{rule:?}");
}

#[tokio::test]
async fn malformed_ids_in_a_certificate_are_refused() {
    let world = World::new();
    let too_long = format!("spiffe://td.test/{}", "a".repeat(2048));
    for uri in [
        b"spiffe://td.test/%2e".as_slice(),
        b"spiffe://td.test/web/",
        b"spiffe://td.test/../web",
        b"spiffe://td.test/web?x",
        b"spiffe://td.test:443/web",
        b"spiffe://user@td.test/web",
        b"spiffe://td.test/web\0",
        b"spiffe://td.test/w\xe9b",
        too_long.as_bytes(),
    ] {
        let wrong = world.root.sign(Spec {
            uris: vec![uri.to_vec()],
            ..leaf()
        });
        let rule = client_breaks(&world, &wrong).await;
        assert!(
            matches!(rule, ProfileError::NotSpiffeId(_)),
            "{uri:?}: {rule:?}"
        );
    }
}

#[tokio::test]
async fn id_16_an_id_of_exactly_2048_bytes_is_accepted_end_to_end() {
    let world = World::new();
    let long = format!("spiffe://td.test/{}", "a".repeat(2048 - 17));
    assert_eq!(long.len(), 2048);
    let cell = world.cell(&world.root.leaf(&long));
    let client = client_config(&cell, Authorizer::exactly(id(PAY)), &[], clock());
    let mut pair = meet_well(&world.server(), &client).await;
    pair.talk().await;
    assert_eq!(pair.server.1.unwrap().id.as_str(), long);
}

#[tokio::test]
async fn a_leaf_for_one_direction_only_is_refused_in_both() {
    let world = World::new();
    for only in [purpose::SERVER_AUTH, purpose::CLIENT_AUTH] {
        let wrong = world.root.sign(Spec {
            eku: Some(vec![only]),
            ..leaf()
        });
        let rule = breaks(&world, &wrong).await;
        assert!(
            matches!(rule, ProfileError::ExtendedKeyUsage(_)),
            "{rule:?}"
        );
    }
}

#[tokio::test]
async fn fe_01_a_foreign_authority_cannot_sign_our_ids_even_with_both_bundles_loaded() {
    let world = World::new();
    let foreign = Made::root("foreign.test");
    let both = BundleSet::from_iter([world.root.bundle(TD), foreign.bundle("foreign.test")]);
    let server = server_of(&IdentityCell::new(identity(&world.pay, both)));

    // Its own identities are welcome …
    let friend = Raw::new(&foreign.leaf("spiffe://foreign.test/web")).client();
    let (accepted, _) = meet(&server, &friend.into()).await;
    assert_eq!(
        accepted.unwrap().1.unwrap().id,
        id("spiffe://foreign.test/web")
    );

    // … and ours from its hand are not, directly or through an authority that it signed for us.
    let direct = foreign.leaf(WEB);
    let through = foreign.intermediate(TD, "intermediate").leaf(WEB);
    for forged in [direct, through] {
        let (refused, _) = meet(&server, &Raw::new(&forged).client().into()).await;
        assert_eq!(
            refusal(refused),
            PeerRefused::NotVerified(VerifyError::UnknownAuthority)
        );
    }
}

#[tokio::test]
async fn a_trust_domain_without_a_bundle_is_refused() {
    let world = World::new();
    let stranger = Made::root("stranger.test").leaf("spiffe://stranger.test/web");
    let (reason, alert) = refused_both_ways(&world, &stranger).await;
    assert_eq!(
        reason,
        VerifyError::NoBundle("stranger.test".parse().unwrap())
    );
    assert_eq!(alert, AlertDescription::UnknownCA);
}

#[tokio::test]
async fn another_root_of_the_same_name_is_refused() {
    let world = World::new();
    let (reason, _) = refused_both_ways(&world, &Made::root(TD).leaf(WEB)).await;
    assert!(
        matches!(
            reason,
            VerifyError::UnknownAuthority | VerifyError::Signature(_)
        ),
        "{reason:?}"
    );
}

#[tokio::test]
async fn expired_and_not_yet_valid_certificates_are_refused() {
    let world = World::new();
    let past = (now() - DAY * 2, now() - DAY);
    let expired = world.root.sign(leaf().valid(past.0, past.1));
    let (reason, alert) = refused_both_ways(&world, &expired).await;
    assert_eq!(
        reason,
        VerifyError::Expired {
            id: id(WEB),
            not_after: past.1
        }
    );
    assert_eq!(alert, AlertDescription::CertificateExpired);

    let early = world.root.sign(leaf().valid(now() + DAY, now() + DAY * 2));
    let (reason, alert) = refused_both_ways(&world, &early).await;
    assert_eq!(
        reason,
        VerifyError::NotYetValid {
            id: id(WEB),
            not_before: now() + DAY
        }
    );
    assert_eq!(alert, AlertDescription::CertificateExpired);

    let old = world
        .root
        .sign(Spec::authority(TD, "old").valid(past.0, past.1));
    let (reason, alert) = refused_both_ways(&world, &old.leaf(WEB)).await;
    assert_eq!(reason, VerifyError::IntermediateExpired);
    assert_eq!(alert, AlertDescription::CertificateExpired);
}

#[tokio::test]
async fn a_chain_with_its_intermediate_is_accepted_and_without_it_is_not() {
    let world = World::new();
    let leaf = world.root.intermediate(TD, "intermediate").leaf(WEB);
    let (accepted, _) = meet(&world.server(), &Raw::new(&leaf).client().into()).await;
    assert_eq!(accepted.unwrap().1.unwrap().chain.len(), 2);

    let bare = Raw::with(leaf.chain[..1].to_vec(), &leaf).client();
    let (refused, _) = meet(&world.server(), &bare.into()).await;
    assert_eq!(
        refusal(refused),
        PeerRefused::NotVerified(VerifyError::UnknownAuthority)
    );
}

#[tokio::test]
async fn certificates_that_lead_nowhere_do_not_hide_the_peer() {
    let world = World::new();
    // Some peers send their root too, or something that has nothing to do with them.
    let mut chain = world.web.chain.clone();
    chain.push(world.root.der.clone());
    chain.push(Made::root("foreign.test").der);
    let (accepted, _) = meet(
        &world.server(),
        &Raw::with(chain, &world.web).client().into(),
    )
    .await;
    assert_eq!(accepted.unwrap().1.unwrap().id, id(WEB));
}

#[tokio::test]
async fn px_09_an_overlong_chain_is_refused() {
    let world = World::new();
    let mut chain = world.web.chain.clone();
    chain.extend((0..50).map(|_| world.root.der.clone()));
    let (refused, _) = meet(
        &world.server(),
        &Raw::with(chain, &world.web).client().into(),
    )
    .await;
    assert_eq!(
        refusal(refused),
        PeerRefused::NotVerified(VerifyError::TooManyCertificates(51))
    );
}

#[tokio::test]
async fn a_stolen_certificate_without_its_key_is_refused() {
    let world = World::new();
    let thief = Made::root(TD).leaf(WEB);
    let as_client = Raw::with(world.web.chain.clone(), &thief).client();
    let (refused, _) = meet(&world.server(), &as_client.into()).await;
    assert_eq!(refusal(refused), PeerRefused::NoPossession);

    let as_server = Raw::with(world.pay.chain.clone(), &thief).server();
    let (_, refused) = meet(&as_server.into(), &world.client()).await;
    assert_eq!(refusal(refused), PeerRefused::NoPossession);
}

#[tokio::test]
async fn a_verified_peer_that_is_not_the_expected_one_is_refused_with_access_denied() {
    let world = World::new();
    // The server at the address is `web`, the client wants `pay`.
    let (server, client) = meet(&server_of(&world.cell(&world.web)), &world.client()).await;
    assert_eq!(refusal(client), PeerRefused::NotPermitted(id(WEB)));
    match server {
        Err(HandshakeError::RefusedByPeer(alert)) => {
            assert_eq!(alert.0, AlertDescription::AccessDenied);
        }
        other => panic!("{other:?}"),
    }
    // The server lets only `pay` in, the client is `web`.
    let only = ClientPolicy::Required(Authorizer::exactly(id(PAY)));
    let server = server_config(&world.cell(&world.pay), only, &[], clock());
    let (refused, _) = meet(&server, &world.client()).await;
    assert_eq!(refusal(refused), PeerRefused::NotPermitted(id(WEB)));
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_where_one_is_required() {
    let world = World::new();
    let (server, client) = meet(&world.server(), &Raw::nobody().client().into()).await;
    assert_eq!(refusal(server), PeerRefused::NoCertificate);
    let (mut stream, _) = client.unwrap();
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(
        alert_in(&error),
        Some(AlertDescription::CertificateRequired)
    );
}

#[tokio::test]
async fn an_optional_certificate_may_be_absent_but_not_wrong() {
    let world = World::new();
    let optional = ClientPolicy::Optional(Authorizer::trust_domain(TD.parse().unwrap()));
    let server = server_config(&world.cell(&world.pay), optional, &[], clock());

    let exactly = Authorizer::exactly(id(PAY));
    let nobody = bootstrap_client_config(world.bundles(), exactly, &[], clock());
    let mut pair = meet_well(&server, &nobody).await;
    pair.talk().await;
    assert_eq!(pair.server.1, None);

    let mut pair = meet_well(&server, &world.client()).await;
    pair.talk().await;
    assert_eq!(pair.server.1.unwrap().id, id(WEB));

    let expired = world.root.sign(leaf().valid(now() - DAY * 2, now() - DAY));
    let (refused, _) = meet(&server, &Raw::new(&expired).client().into()).await;
    let reason = refusal(refused);
    assert_eq!(reason.id(), Some(&id(WEB)), "the record names who came");
    assert_eq!(reason.code(), "FNL0333");
}

#[tokio::test]
async fn a_bootstrap_client_believes_its_bundle_only() {
    let world = World::new();
    let optional = ClientPolicy::Optional(Authorizer::any_verified());
    let server = server_config(&world.cell(&world.pay), optional, &[], clock());
    let wrong = Made::root(TD).bundles(TD);
    let client = bootstrap_client_config(wrong, Authorizer::exactly(id(PAY)), &[], clock());
    let (_, refused) = meet(&server, &client).await;
    let reason = refusal(refused);
    assert!(matches!(reason, PeerRefused::NotVerified(_)), "{reason:?}");
}

#[tokio::test]
async fn what_is_not_tls_is_called_so() {
    let world = World::new();
    let server = world.server();
    let (here, mut there) = duplex(1024);
    there
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let error = accept(&server, here).await.unwrap_err();
    assert_eq!(error.code(), "FNL0415", "{error:?}");

    let (here, there) = duplex(1024);
    drop(there);
    let error = accept(&server, here).await.unwrap_err();
    assert_eq!(error.code(), "FNL0416", "{error:?}");
}
