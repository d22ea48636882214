//! Our proxy and a real Envoy, in both directions.

use finial::dev::files;

use super::*;

const TILL: &str = "spiffe://dev.test/till";

#[tokio::test(flavor = "multi_thread")]
async fn our_proxy_and_envoy_call_each_other_through_three_rotations_without_a_failed_request() {
    let Some(peers) = Peers::find() else {
        return;
    };
    let world = World::start(short).await;
    let app = Echo::start().await;
    let (chain, key) = stranger(&world);
    let usual = Proof::Secret("default");
    let only = |id| Peer::Only {
        roots: "ROOTCA",
        id,
    };

    // Envoy calls our inbound side.
    let pay = world.pay(app.address()).await;
    let inbound = pay.address("inbound");
    let setup = Setup::new(world.path("agent.sock"), false)
        .outbound("pay", usual, only(PAY), inbound)
        .outbound("not-it", usual, only(BANK), inbound)
        .outbound("far", Proof::Files(&chain, &key), only(PAY), inbound)
        .outbound("nobody", Proof::Nothing, only(PAY), inbound);
    let shop = Envoy::start(&world, &peers.envoy(), "shop", setup).await;

    // Our outbound side calls Envoy.
    let application = app.address().to_string();
    let setup = Setup::new(world.path("agent.sock"), true)
        .inbound("bank", usual, only(TILL), &application)
        .inbound("for-shop", usual, only(SHOP), &application)
        .inbound(
            "far",
            Proof::Files(&chain, &key),
            Peer::Anybody,
            &application,
        );
    let bank = Envoy::start(&world, &peers.envoy(), "bank", setup).await;
    let till = till(&world, &bank).await;

    let inwards = Traffic::start(&shop.address("pay").await, &KINDS);
    let outwards = Traffic::start(till.address("outbound.bank"), &KINDS);
    let turned = served_through_rotations(&[(&shop, SHOP), (&bank, BANK)]).await;
    assert!(turned, "not every certificate turned {CERTIFICATES} times");
    for proxy in [&pay, &till] {
        let turned = soon(async || {
            let turns = proxy.metric("mesh_proxy_identity_updates_total").await;
            turns.unwrap_or_default() >= CERTIFICATES as f64
        });
        assert!(turned.await, "{} turned too seldom", proxy.name());
    }
    nothing_failed(&inwards);
    nothing_failed(&outwards);

    // Each side knows the other by its ID.
    let caller = async |address: &str| {
        let answer = send(address, "POST", "/charge").await.expect("an answer");
        let caller = answer.header("x-echo-x-forwarded-client-cert");
        caller.unwrap_or_default().to_owned()
    };
    let seen = caller(&shop.address("pay").await).await;
    assert!(seen.contains(&format!("URI={SHOP}")), "{seen}");
    let seen = caller(till.address("outbound.bank")).await;
    assert!(seen.contains(&format!("URI={TILL}")), "{seen}");

    // What the policy does not allow is refused with a decision, a peer that is not meant before any request.
    let answer = send(&shop.address("pay").await, "GET", "/charge").await;
    assert_eq!(answer.expect("an answer").status, 403);
    for door in ["not-it", "far", "nobody"] {
        let answer = send(&shop.address(door).await, "POST", "/charge").await;
        assert_eq!(answer.expect("an answer").status, 503, "{door}");
    }
    for door in ["not-it", "not-me", "far"] {
        let address = till.address(&format!("outbound.{door}"));
        let answer = send(address, "POST", "/charge").await;
        let status = answer.expect("an answer").status;
        assert!([502, 503].contains(&status), "{door}: {status}");
    }
    let refused = bank.count("listener.for-shop.ssl.fail_verify_san").await;
    assert!(refused > 0, "Envoy took somebody else for shop");
    let refused = shop.count("cluster.not-it.ssl.fail_verify_san").await;
    assert!(refused > 0, "Envoy took pay for the bank");
}

/// A proxy of ours with a door to `bank`, and one to each of those that it must not reach.
async fn till(world: &World, bank: &Envoy) -> mesh_tests::daemon::Daemon {
    let usual = bank.address("bank").await;
    let (for_shop, far) = (bank.address("for-shop").await, bank.address("far").await);
    let doors = [
        ("bank", BANK, &usual),
        ("not-it", PAY, &usual),
        ("not-me", BANK, &for_shop),
        ("far", BANK, &far),
    ];
    let doors: String = doors
        .iter()
        .map(|(name, id, to)| {
            format!(
                "  - {{ name: {name}, listen: 127.0.0.1:0, to: \"{to}\", serverId: \"{id}\", protocol: http }}\n"
            )
        })
        .collect();
    let config = files::caller(&world.text(), "till", &usual);
    let (head, rest) = config.split_once("outbound:\n").expect("a door");
    let (_, tail) = rest.split_once("accessLog:").expect("an access log");
    let config = format!("{head}outbound:\n{doors}accessLog:{tail}");
    world.proxy("till", &config).await
}
