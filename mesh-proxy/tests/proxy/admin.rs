//! What the admin port shows, to whom, and that nothing can be changed there.

use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpStream;

use crate::world::{Pair, SHOP_ANYTHING, allow, deny, eventually, exchange};

fn json(page: &(u16, String)) -> Value {
    assert_eq!(page.0, 200, "{}", page.1);
    let (head, body) = page.1.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: application/json"), "{head}");
    assert!(head.contains("x-content-type-options: nosniff"), "{head}");
    serde_json::from_str(body).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pages_show_configuration_certificates_policy_and_connections() {
    let policy = allow(SHOP_ANYTHING) + &deny("to: [ { operation: { methods: [PUT] } } ]");
    let pair = Pair::start(&policy).await;
    let mut open = TcpStream::connect(pair.shop.door("outbound.pay"))
        .await
        .unwrap();
    let answer = exchange(&mut open, b"GET /a HTTP/1.1\r\nHost: pay\r\n\r\n", 0).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let dump = json(&pair.pay.page("/config_dump").await);
    let application = pair.application.address.to_string();
    assert_eq!(
        dump["config"]["inbound"]["application"],
        application.as_str()
    );
    assert_eq!(
        dump["config"]["limits"]["handshakes"], 64,
        "defaults are shown too"
    );

    let certs = json(&pair.pay.page("/certs").await);
    assert_eq!(certs["identity"]["id"], "spiffe://dev.test/pay");
    let pem = certs["chain_pem"].as_str().unwrap();
    assert!(pem.starts_with("-----BEGIN CERTIFICATE-----"), "{pem}");
    assert_eq!(certs["bundles"][0]["trust_domain"], "dev.test");

    let in_force = json(&pair.pay.page("/policy").await);
    assert_eq!(
        (&in_force["ready"], &in_force["generation"]),
        (&true.into(), &1.into())
    );
    assert_eq!(in_force["rules"][0]["action"], "DENY");
    assert_eq!(in_force["rules"][1]["policy"], "payments/allow-shop");

    let open_now = json(&pair.pay.page("/connections").await);
    assert_eq!(open_now["open"], 1, "{open_now}");
    assert_eq!(open_now["connections"][0]["peer"], "spiffe://dev.test/shop");
    let open_here = json(&pair.shop.page("/connections").await);
    assert_eq!(open_here["connections"][0]["door"], "pay", "{open_here}");

    let drain = json(&pair.shop.page("/drain").await);
    assert_eq!(
        (&drain["draining"], &drain["open"]),
        (&false.into(), &1.into())
    );
    drop(open);
    eventually("the end of a connection is seen", || {
        pair.shop
            .lines()
            .iter()
            .any(|l| l["path"] == "/a")
            .then_some(())
    })
    .await;
    for _ in 0..100 {
        if json(&pair.shop.page("/drain").await)["open"] == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("a closed connection is still shown as open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_64_the_admin_port_is_read_from_this_machine_only_and_never_shows_a_key() {
    let pair = Pair::start(&allow(SHOP_ANYTHING)).await;
    let ask = async |method: &str, path: &str, headers: &str| {
        let mut stream = TcpStream::connect(pair.pay.door("metrics")).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
        exchange(&mut stream, request.as_bytes(), 9).await
    };
    for path in [
        "/config_dump",
        "/certs",
        "/policy",
        "/connections",
        "/drain",
        "/explain/x",
    ] {
        for method in ["POST", "PUT", "DELETE"] {
            let local = "Host: localhost\r\nOrigin: http://evil.test\r\nContent-Length: 0\r\n";
            let answer = ask(method, path, local).await;
            assert!(
                answer.starts_with("HTTP/1.1 405"),
                "{method} {path}: {answer}"
            );
        }
        // A web page whose name was pointed at this machine.
        let answer = ask("GET", path, "Host: evil.test\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{path}: {answer}");
        let shown = ask("GET", path, "Host: localhost\r\n").await;
        assert!(
            !shown.contains("PRIVATE") && !shown.contains("<html"),
            "{path}: {shown}"
        );
    }
    for path in ["/shutdown", "/quitquitquit", "/logging"] {
        let answer = ask("POST", path, "Host: localhost\r\nContent-Length: 0\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
    }
    assert!(pair.get("/still").await.starts_with("HTTP/1.1 200"));
}
