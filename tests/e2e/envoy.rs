//! A real Envoy takes its certificates and roots from the agent by SDS, and speaks mutual TLS with another Envoy and with our proxy, while
//! every certificate turns several times.

mod mesh;

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use finial::dev::http::send;
use mesh_tests::{
    echo::Echo,
    envoy::{Envoy, Peer, Proof, Setup},
    eventually,
    peers::Peers,
    traffic::{Kind, Traffic},
    world::World,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use tokio::time::sleep;

const PAY: &str = "spiffe://dev.test/pay";
const SHOP: &str = "spiffe://dev.test/shop";
/// An ID of the same trust domain that nobody in these tests has.
const BANK: &str = "spiffe://dev.test/bank";
const FAR: &str = "spiffe://far.test/pay";
const KINDS: [Kind; 4] = [
    Kind::KeepAlive,
    Kind::NewConnections,
    Kind::Http2,
    Kind::GrpcStream,
];
/// Certificates that each side has used in the end: the first and three rotations.
const CERTIFICATES: usize = 4;

/// SVIDs live ten seconds, so that they turn every five.
fn short(config: String) -> String {
    config.replace("x509Svid: 20s", "x509Svid: 10s")
}

#[tokio::test(flavor = "multi_thread")]
async fn two_envoys_with_secrets_of_the_agent_serve_through_three_rotations_without_a_failed_request()
 {
    let Some(peers) = Peers::find() else {
        return;
    };
    let world = World::start(short).await;
    let app = Echo::start().await;
    let app = app.address().to_string();
    let (far_chain, far_key) = stranger(&world);
    let far = Proof::Files(&far_chain, &far_key);
    let (usual, all) = (Proof::Secret("default"), "ALL");
    let shop_by = |roots| Peer::Only { roots, id: SHOP };
    // The server asks as SPIRE's examples do; one listener expects somebody else, one is a stranger's.
    let bank_by = Peer::Only {
        roots: "ROOTCA",
        id: BANK,
    };
    let setup = Setup::new(world.path("agent.sock"), false)
        .inbound("pay", usual, shop_by("ROOTCA"), &app)
        .inbound("all", usual, shop_by(all), &app)
        .inbound("for-bank", usual, bank_by, &app)
        .inbound("far", far, Peer::Anybody, &app);
    let pay = Envoy::start(&world, &peers.envoy(), "pay", setup).await;
    let (at, at_all) = (pay.address("pay").await, pay.address("all").await);
    let (for_bank, at_far) = (pay.address("for-bank").await, pay.address("far").await);

    // The client asks by SPIFFE IDs, in the other dialect, and verifies by plain roots.
    let own = Proof::Secret(SHOP);
    let only = |id| Peer::Only {
        roots: "spiffe://dev.test",
        id,
    };
    let setup = Setup::new(world.path("agent.sock"), true)
        .without_spiffe_validator()
        .outbound("pay", own, only(PAY), &at)
        .outbound("all", own, only(PAY), &at_all)
        .outbound("not-me", own, only(PAY), &for_bank)
        .outbound("not-it", own, only(BANK), &at)
        .outbound("far-server", own, only(FAR), &at_far)
        .outbound("far-client", far, only(PAY), &at)
        .outbound("nobody", Proof::Nothing, only(PAY), &at);
    let shop = Envoy::start(&world, &peers.envoy(), "shop", setup).await;

    let traffic = Traffic::start(&shop.address("pay").await, &KINDS);
    let seen = served_through_rotations(&[(&pay, PAY), (&shop, SHOP)]).await;
    assert!(seen, "not every certificate turned {CERTIFICATES} times");
    for (envoy, factory) in [
        (&pay, "listener.pay.server_ssl_socket_factory"),
        (&shop, "cluster.pay.client_ssl_socket_factory"),
    ] {
        let name = format!("{factory}.ssl_context_update_by_sds");
        let turned = soon(async || envoy.count(&name).await >= CERTIFICATES as u64);
        assert!(turned.await, "{name}");
    }
    nothing_failed(&traffic);
    let handshakes = pay.count("listener.pay.ssl.handshake").await;
    assert!(handshakes > 20, "only {handshakes} handshakes");

    let answer = send(&shop.address("all").await, "POST", "/charge").await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let caller = answer.header("x-echo-x-forwarded-client-cert");
    assert!(caller.is_some_and(|caller| caller.contains(SHOP)));

    // Who is not meant, and who is of no trust domain that is known, is refused by either side, each for its own reason.
    assert_eq!(pay.count("listener.pay.ssl.fail_verify_error").await, 0);
    assert_eq!(pay.count("listener.pay.ssl.fail_verify_no_cert").await, 0);
    for (door, refuser, why) in [
        ("not-me", &pay, "listener.for-bank.ssl.fail_verify_san"),
        ("not-it", &shop, "cluster.not-it.ssl.fail_verify_san"),
        (
            "far-server",
            &shop,
            "cluster.far-server.ssl.fail_verify_error",
        ),
        ("far-client", &pay, "listener.pay.ssl.fail_verify_error"),
        ("nobody", &pay, "listener.pay.ssl.fail_verify_no_cert"),
    ] {
        let answer = send(&shop.address(door).await, "POST", "/charge").await;
        assert_eq!(answer.expect("an answer").status, 503, "{door}");
        assert!(refuser.count(why).await > 0, "{door}: no {why}");
    }
}

/// Waits until each of these has used enough certificates, one after the other.
async fn served_through_rotations(envoys: &[(&Envoy, &str)]) -> bool {
    let mut seen = vec![BTreeSet::new(); envoys.len()];
    eventually::within(Duration::from_secs(90), async || {
        for ((envoy, id), seen) in envoys.iter().zip(&mut seen) {
            seen.append(&mut envoy.serials(id).await);
        }
        sleep(Duration::from_millis(300)).await;
        seen.iter().all(|seen| seen.len() >= CERTIFICATES)
    })
    .await
}

/// What another part of the same programs has done by now, or will have in a moment.
async fn soon(condition: impl AsyncFnMut() -> bool) -> bool {
    eventually::within(Duration::from_secs(20), condition).await
}

fn nothing_failed(traffic: &Traffic) {
    for (kind, counts) in traffic.counts() {
        assert!(counts.sent() > 200, "{kind:?} sent only {}", counts.sent());
        assert_eq!(
            counts.failed(),
            0,
            "{kind:?}: the first failure: {}",
            counts.first_failure()
        );
    }
}

/// A certificate by a root that nobody here trusts, with `pay`'s path in another trust domain: its chain and its key.
fn stranger(world: &World) -> (PathBuf, PathBuf) {
    let params = |id: &str, is_ca, usage| {
        let mut params = CertificateParams::default();
        params.is_ca = is_ca;
        params.key_usages = vec![usage];
        params.subject_alt_names = vec![SanType::URI(id.try_into().expect("ASCII"))];
        params
    };
    let ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params("spiffe://far.test", ca, KeyUsagePurpose::KeyCertSign);
    let root = Issuer::new(root, KeyPair::generate().expect("a key"));
    let key = KeyPair::generate().expect("a key");
    let leaf = params(FAR, IsCa::ExplicitNoCa, KeyUsagePurpose::DigitalSignature);
    let leaf = leaf.signed_by(&key, &root).expect("a certificate");
    let write = |name: &str, text: String| {
        let path = world.path(name);
        fs::write(&path, text).expect("a file");
        path
    };
    (
        write("far.pem", leaf.pem()),
        write("far.key", key.serialize_pem()),
    )
}
