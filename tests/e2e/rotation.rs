//! Rotation under load, with the real programs.

use std::time::Duration;

use mesh_tests::{
    echo::Echo,
    traffic::{Kind, Traffic},
    world::World,
};
use tokio::time::sleep;

/// How long the traffic flows: three lives of an SVID, so both sides rotate six times or so.
const LOAD: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn leaf_rotations_of_both_sides_under_every_kind_of_traffic_fail_no_request() {
    let world = World::start(|config| config).await;
    let app = Echo::start().await;
    let pay = world.pay(app.address()).await;
    let shop = world.caller("shop", &pay).await;
    let kinds = [
        Kind::KeepAlive,
        Kind::NewConnections,
        Kind::Http2,
        Kind::GrpcStream,
    ];
    let traffic = Traffic::start(shop.address("outbound.pay"), &kinds);

    sleep(LOAD).await;

    for (kind, counts) in traffic.counts() {
        println!(
            "{kind:?}: {} sent, {} failed",
            counts.sent(),
            counts.failed()
        );
        assert!(counts.sent() > 1000, "{kind:?} sent only {}", counts.sent());
        assert_eq!(
            counts.failed(),
            0,
            "{kind:?}: the first failure: {}",
            counts.first_failure()
        );
    }
    for (name, proxy) in [("shop", &shop), ("pay", &pay)] {
        let identities = proxy
            .metric("mesh_proxy_identity_updates_total")
            .await
            .unwrap_or_default();
        assert!(
            identities >= 4.0,
            "{name} took over only {identities} identities"
        );
    }
}
