//! Callers who take their time, and callers who take all places.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::frames::{Client, DATA, END_HEADERS, HEADERS, head};

use crate::world::{Pair, SHOP_ANYTHING, allow, exchange, started};

const LIFE: Duration = Duration::from_secs(600);

async fn pair(limits: &str) -> Pair {
    Pair::with_config(
        &allow(SHOP_ANYTHING),
        LIFE,
        &format!("limits: {{ {limits} }}"),
    )
    .await
}

async fn closes<S: tokio::io::AsyncRead + Unpin>(stream: &mut S) -> Vec<u8> {
    let mut all = Vec::new();
    let end = stream.read_to_end(&mut all);
    // However it ends: it ends.
    let _ended = tokio::time::timeout(Duration::from_secs(8), end)
        .await
        .expect("it is closed");
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_36_a_handshake_a_head_and_a_body_that_do_not_come_are_given_up() {
    let pair = pair("handshake: 1s, headerRead: 1s, bodyIdle: 1s").await;
    let door = pair.pay.door("inbound");
    let began = started();
    let mut silent = TcpStream::connect(door).await.unwrap();
    let mut slow = TcpStream::connect(door).await.unwrap();
    // The first bytes of a ClientHello that never goes on.
    slow.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
    let mut head = pair.world.dial("shop", door, &[b"http/1.1"]).await;
    head.write_all(b"GET /head HTTP/1.1\r\nHost: pay\r\n")
        .await
        .unwrap();
    let mut body = pair.world.dial("shop", door, &[b"http/1.1"]).await;
    body.write_all(b"POST /body HTTP/1.1\r\nHost: pay\r\nContent-Length: 100\r\n\r\nfirst")
        .await
        .unwrap();
    let (silent, slow, head, body) = tokio::join!(
        closes(&mut silent),
        closes(&mut slow),
        closes(&mut head),
        closes(&mut body)
    );
    assert!(began.elapsed() < Duration::from_secs(8));
    assert!(silent.is_empty() && slow.len() < 16, "{slow:?}");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(!text(&head).contains("HTTP/1.1 200"), "{}", text(&head));
    let body = text(&body);
    assert!(body.starts_with("HTTP/1.1 408"), "{body}");
    assert!(body.contains("x-finial-error: FNL3016"), "{body}");
    let line = pair.pay.line(|l| l["path"] == "/body").await;
    assert_eq!(
        (&line["status"], &line["bytes_received"]),
        (&408.into(), &5.into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_comes_slowly_but_does_come_is_carried() {
    let pair = pair("bodyIdle: 1s").await;
    let door = pair.pay.door("inbound");
    let mut stream = pair.world.dial("shop", door, &[b"http/1.1"]).await;
    stream
        .write_all(b"POST /slowly HTTP/1.1\r\nHost: pay\r\nContent-Length: 4\r\n\r\n")
        .await
        .unwrap();
    for byte in b"slow" {
        tokio::time::sleep(Duration::from_millis(400)).await;
        stream.write_all(&[*byte]).await.unwrap();
        stream.flush().await.unwrap();
    }
    let answer = exchange(&mut stream, b"", 0).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("slow"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_has_its_share_of_the_connections_and_others_have_theirs() {
    let pair = pair("connectionsPerPeer: 3").await;
    let door = pair.pay.door("inbound");
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = pair.world.dial("shop", door, &[b"http/1.1"]).await;
        let answer = exchange(&mut stream, b"GET /a HTTP/1.1\r\nHost: pay\r\n\r\n", 0).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        held.push(stream);
    }
    let ask = b"GET /a HTTP/1.1\r\nHost: pay\r\n\r\n";
    let refused = pair.world.raw("shop", door, ask, 0).await;
    assert!(!refused.contains("HTTP/1.1"), "{refused}");
    let line = pair.pay.line(|l| l["error"] == "FNL3036").await;
    assert_eq!(line["source"], "spiffe://dev.test/shop");
    let other = pair.world.raw("other", door, ask, 0).await;
    assert!(
        other.starts_with("HTTP/1.1 403"),
        "another is judged, not turned away: {other}"
    );
    held.clear();
    let mut again = String::new();
    for _ in 0..100 {
        again = pair.world.raw("shop", door, ask, 0).await;
        if again.starts_with("HTTP/1.1 200") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no place again: {again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_say_nothing_keep_nobody_from_his_handshake() {
    let pair = pair("handshakes: 4, handshake: 4s").await;
    let door = pair.pay.door("inbound");
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(door).await.unwrap());
    }
    let began = started();
    let answer = pair.get("/others").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_35_an_answer_that_nobody_takes_ends_its_connection() {
    let pair = pair("stalled: 1s").await;
    let door = pair.pay.door("inbound");
    // A window of one byte, and an answer of many.
    let mut client = Client::connect(&pair.world, "shop", door, &[(4, 1)]).await;
    let ask = head("POST", "/echo", &[]);
    assert!(client.send(HEADERS, END_HEADERS, 1, &ask).await);
    for _ in 0..3 {
        assert!(client.send(DATA, 0, 1, &[7; 16_000]).await);
    }
    assert!(
        client.is_closed(Duration::from_secs(8)).await,
        "it is still open"
    );
    let line = pair.pay.line(|l| l["path"] == "/echo").await;
    assert_ne!(line["error"], Value::Null, "{line}");
    let metrics = pair.pay.page("/metrics").await.1;
    assert!(
        metrics.contains("mesh_proxy_cut_total{code=\"FNL3039\"} 1"),
        "{metrics}"
    );
    assert!(pair.get("/others").await.starts_with("HTTP/1.1 200"));
}
