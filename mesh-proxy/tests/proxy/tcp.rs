//! Doors that carry bytes.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::world::{Proxy, SHOP_ANYTHING, World, allow, deny, echo_bytes, eventually, started};

async fn pair(policy: &str) -> (World, Vec<crate::world::Agent>, Proxy, Proxy) {
    let world = World::new();
    let application = echo_bytes().await;
    let agents = vec![
        world.agent("shop", Duration::from_secs(600)),
        world.agent("pay", Duration::from_secs(600)),
    ];
    let policy = world.write("policy.yaml", policy);
    let doors = format!(
        "inbound: {{ listen: \"127.0.0.1:0\", application: \"{application}\", protocol: tcp }}\npolicy: {{ file: \"{}\" }}",
        policy.display()
    );
    let pay = Proxy::start(&world, "pay", &agents[1], &doors).await;
    let doors = format!(
        "outbound: [ {{ name: pay, listen: \"127.0.0.1:0\", to: \"{}\", serverId: \"spiffe://dev.test/pay\", protocol: tcp }} ]",
        pay.door("inbound")
    );
    let shop = Proxy::start(&world, "shop", &agents[0], &doors).await;
    pay.ready().await;
    shop.ready().await;
    (world, agents, shop, pay)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn px_41_bytes_pass_both_ways_and_half_close_is_passed_on() {
    let (_world, _agents, shop, pay) = pair(&allow(SHOP_ANYTHING)).await;
    let mut stream = TcpStream::connect(shop.door("outbound.pay")).await.unwrap();
    let sent: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 253) as u8).collect();
    let (mut from, mut to) = stream.split();
    let write = async {
        to.write_all(&sent).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let (_, read) = tokio::join!(write, from.read_to_end(&mut back));
    read.unwrap();
    assert_eq!(back.len(), sent.len() + 5);
    assert!(back.starts_with(&sent) && back.ends_with(b"<end>"));
    let line = pay.line(|l| l["protocol"] == "tcp").await;
    assert_eq!(
        (&line["effect"], &line["rule"], &line["bytes_received"]),
        (&"allow".into(), &"r".into(), &1_000_000.into())
    );
    let (_, metrics) = pay.page("/metrics").await;
    for (name, value) in [
        ("istio_tcp_connections_opened_total{", " 1"),
        ("istio_tcp_connections_closed_total{", " 1"),
        ("istio_tcp_received_bytes_total{", " 1000000"),
        ("istio_tcp_sent_bytes_total{", " 1000005"),
    ] {
        let series = metrics.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(series.ends_with(value), "{series}");
        assert!(series.contains("request_protocol=\"tcp\""), "{series}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_53_rules_with_http_fields_allow_nothing_on_tcp_and_say_so() {
    let (_world, _agents, shop, pay) = pair(&allow(&format!(
        "{SHOP_ANYTHING}\nto: [ {{ operation: {{ methods: [GET] }} }} ]"
    )))
    .await;
    let mut stream = TcpStream::connect(shop.door("outbound.pay")).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).await.ok();
    assert!(back.is_empty(), "{back:?}");
    assert!(pay.log().contains("FNL0510"), "{}", pay.log());
    assert_eq!(
        pay.line(|l| l["effect"] == "deny").await["error"],
        "FNL3003"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn px_44_an_open_connection_is_cut_when_the_policy_no_longer_allows_it() {
    let (world, _agents, shop, pay) = pair(&allow(SHOP_ANYTHING)).await;
    let mut stream = TcpStream::connect(shop.door("outbound.pay")).await.unwrap();
    let mut buffer = [0; 5];
    stream.write_all(b"hello").await.unwrap();
    stream.read_exact(&mut buffer).await.unwrap();
    let changed = started();
    world.write(
        "policy.yaml",
        &(allow(SHOP_ANYTHING) + &deny("from: [ { source: { principals: [\"*\"] } } ]")),
    );
    let end = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut buffer))
        .await
        .expect("the connection is cut");
    assert!(matches!(end, Ok(0) | Err(_)));
    assert!(
        changed.elapsed() < Duration::from_millis(1500),
        "{:?}",
        changed.elapsed()
    );
    let line = pay.line(|l| l["error"] == "FNL3031").await;
    assert_eq!(line["bytes_received"], 5);
    eventually("the cut is audited", || {
        pay.audit().into_iter().find(|r| r["code"] == "FNL3031")
    })
    .await;
}
