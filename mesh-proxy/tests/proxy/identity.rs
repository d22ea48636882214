//! Identity at the doors: rotation without a lost request, refusals of frames and of wrong servers, ends of certificates.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::world::{DOMAIN, Pair, SHOP_ANYTHING, World, allow, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_48_another_server_than_expected_gets_nothing() {
    let pair = Pair::start(&allow(SHOP_ANYTHING)).await;
    let mut stream = TcpStream::connect(pair.shop.door("outbound.wrong"))
        .await
        .unwrap();
    let answer =
        crate::world::exchange(&mut stream, b"GET /a HTTP/1.1\r\nHost: pay\r\n\r\n", 0).await;
    assert!(
        answer.starts_with("HTTP/1.1 502") && answer.contains("x-finial-error: FNL3021"),
        "{answer}"
    );
    assert!(pair.application.heads().is_empty());
    assert!(
        pair.shop.line(|l| l["error"] == "FNL3021").await["why"]
            .as_str()
            .unwrap()
            .contains("spiffe://dev.test/pay")
    );
}

/// Certificates of six seconds, replaced every two on both sides, for twelve seconds; kept connections and new ones all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn px_43_rotation_under_load_loses_no_request() {
    let life = Duration::from_secs(6);
    let pair = Pair::with_life(&allow(SHOP_ANYTHING), life).await;
    let door = pair.shop.door("outbound.pay");
    let stop = Arc::new(AtomicBool::new(false));
    let (done, failed) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(std::sync::Mutex::new(Vec::new())),
    );
    let mut clients = Vec::new();
    for kept in [true, true, false] {
        let (stop, done, failed) = (Arc::clone(&stop), Arc::clone(&done), Arc::clone(&failed));
        clients.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let stream = TcpStream::connect(door).await.unwrap();
                let (mut client, connection) =
                    hyper::client::conn::http1::handshake(TokioIo::new(stream))
                        .await
                        .unwrap();
                let connection = tokio::spawn(connection);
                loop {
                    let request = hyper::Request::get("/load")
                        .header("host", "pay")
                        .body(Empty::<Bytes>::new())
                        .unwrap();
                    match client.send_request(request).await {
                        Ok(answer) if answer.status() == 200 => {
                            answer.collect().await.unwrap();
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(answer) => failed.lock().unwrap().push(format!(
                            "{} {:?}",
                            answer.status(),
                            answer.headers()
                        )),
                        Err(error) => failed.lock().unwrap().push(error.to_string()),
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    if !kept || stop.load(Ordering::Relaxed) || client.is_closed() {
                        break;
                    }
                }
                drop(client);
                connection.await.ok();
            }
        }));
    }
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        pair.shop_agent.push(pair.world.frame("shop", life));
        pair.pay_agent.push(pair.world.frame("pay", life));
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert!(
        failed.lock().unwrap().is_empty(),
        "{:?}",
        failed.lock().unwrap()
    );
    assert!(
        done.load(Ordering::Relaxed) > 500,
        "{}",
        done.load(Ordering::Relaxed)
    );
    let (_, metrics) = pair.shop.page("/metrics").await;
    assert!(
        metrics.contains("mesh_proxy_identity_updates_total 7"),
        "{metrics}"
    );
    let serials: std::collections::BTreeSet<String> = pair
        .pay
        .lines()
        .iter()
        .filter_map(|l| l["peer_serial"].as_str().map(str::to_owned))
        .collect();
    assert!(
        serials.len() > 2,
        "connections were made again with newer certificates: {serials:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_frame_is_refused_whole_and_the_identity_in_use_stays() {
    let pair = Pair::start(&allow(SHOP_ANYTHING)).await;
    let other = pair.world.frame("shop", Duration::from_secs(600));
    let mut wrong_key = pair.world.frame("shop", Duration::from_secs(600));
    wrong_key.svids[0].x509_svid_key = other.svids[0].x509_svid_key.clone();
    let mut wrong_name = pair.world.frame("shop", Duration::from_secs(600));
    wrong_name.svids[0].spiffe_id = format!("spiffe://{DOMAIN}/admin");
    let mut no_bundle = pair.world.frame("shop", Duration::from_secs(600));
    no_bundle.svids[0].bundle.clear();
    let mut nothing = pair.world.frame("shop", Duration::from_secs(600));
    nothing.svids.clear();
    for (i, frame) in [wrong_key, wrong_name, no_bundle, nothing]
        .into_iter()
        .enumerate()
    {
        pair.shop_agent.push(frame);
        let count = format!(
            "mesh_proxy_identity_failures_total{{code=\"FNL3040\"}} {}",
            i + 1
        );
        let mut page = String::new();
        for _ in 0..100 {
            page = pair.shop.page("/metrics").await.1;
            if page.contains(&count) {
                break;
            }
        }
        assert!(
            page.contains(&count),
            "{count}\n{page}\n{}",
            pair.shop.log()
        );
        assert!(pair.get("/a").await.starts_with("HTTP/1.1 200"));
    }
}

/// The frame's own certificate does not verify with its bundle, so it is refused; its roots are what the authority trusts now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_withdrawn_root_is_no_longer_trusted_though_the_frame_that_withdrew_it_is_refused() {
    let pair = Pair::start(&allow(SHOP_ANYTHING)).await;
    assert!(pair.get("/a").await.starts_with("HTTP/1.1 200"));
    let mut withdrawn = pair.world.frame("shop", Duration::from_secs(600));
    withdrawn.svids[0].bundle = World::new().root.bundle(DOMAIN).to_der_concat();
    pair.shop_agent.push(withdrawn);
    let mut answer = String::new();
    for _ in 0..100 {
        answer = pair.get("/a").await;
        // A request that ran when the connection was cut is 502; from then on there is no connection to be had.
        if answer.contains("FNL3020") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(answer.contains("FNL3020"), "{answer}");
    // What was withdrawn bites first; the frame is counted as refused after that.
    let mut page = String::new();
    for _ in 0..100 {
        page = pair.shop.page("/metrics").await.1;
        if page.contains("mesh_proxy_identity_failures_total{code=\"FNL3040\"} 1") {
            break;
        }
    }
    for line in [
        "mesh_proxy_identity_failures_total{code=\"FNL3040\"} 1",
        "code=\"FNL3032\"} 1",
    ] {
        assert!(page.contains(line), "{line}\n{page}");
    }
    pair.shop_agent
        .push(pair.world.frame("shop", Duration::from_secs(600)));
    for _ in 0..100 {
        answer = pair.get("/a").await;
        if answer.starts_with("HTTP/1.1 200") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("a good frame does not mend it: {answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn px_45_a_stream_does_not_outlive_the_certificates_and_a_dead_identity_opens_nothing() {
    let pair = Pair::with_life(&allow(SHOP_ANYTHING), Duration::from_secs(4)).await;
    assert!(pair.get("/a").await.starts_with("HTTP/1.1 200"));
    // Nobody renews. A request on a kept connection works until the end, and not after it.
    let mut kept = TcpStream::connect(pair.shop.door("outbound.pay"))
        .await
        .unwrap();
    let request = b"GET /a HTTP/1.1\r\nHost: pay\r\n\r\n";
    assert!(
        crate::world::exchange(&mut kept, request, 0)
            .await
            .starts_with("HTTP/1.1 200")
    );
    tokio::time::sleep(Duration::from_secs(5)).await;
    let answer = crate::world::exchange(&mut kept, request, 0).await;
    assert!(answer.starts_with("HTTP/1.1 50"), "{answer}");
    pair.shop_agent
        .push(pair.world.frame("shop", Duration::from_secs(600)));
    pair.pay_agent
        .push(pair.world.frame("pay", Duration::from_secs(600)));
    let mut answer = String::new();
    for _ in 0..50 {
        answer = pair.get("/a").await;
        if answer.starts_with("HTTP/1.1 200") {
            break;
        }
    }
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn px_49_the_agent_may_go_and_come_back() {
    let pair = Pair::start(&allow(SHOP_ANYTHING)).await;
    let Pair {
        world,
        shop_agent,
        shop,
        application,
        pay,
        pay_agent,
    } = pair;
    drop(shop_agent);
    std::fs::remove_file(world.path("shop.sock")).ok();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let ask = async || {
        let mut stream = TcpStream::connect(shop.door("outbound.pay")).await.unwrap();
        crate::world::exchange(&mut stream, b"GET /a HTTP/1.1\r\nHost: pay\r\n\r\n", 0).await
    };
    assert!(
        ask().await.starts_with("HTTP/1.1 200"),
        "the identity in use is good until it ends"
    );
    let again = world.agent("shop", Duration::from_secs(600));
    eventually("a second identity arrives", || {
        (shop.log().matches(" identity ").count() > 1).then_some(())
    })
    .await;
    assert!(ask().await.starts_with("HTTP/1.1 200"));
    drop((again, application, pay, pay_agent));
}

/// One gRPC stream, no other traffic; certificates of six seconds. With renewal it lives two and a half times as long, without it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_outlives_its_certificates_only_while_both_sides_prove_themselves_again() {
    let life = Duration::from_secs(6);
    let pair = Pair::with_life(&allow(SHOP_ANYTHING), life).await;
    let (sender, frames) =
        tokio::sync::mpsc::channel::<Result<http_body::Frame<Bytes>, std::convert::Infallible>>(4);
    let body = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(frames));
    let stream = TcpStream::connect(pair.shop.door("outbound.pay"))
        .await
        .unwrap();
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::post("http://pay/svc/Stream")
        .header("content-type", "application/grpc")
        .body(body)
        .unwrap();
    let mut answer = client.send_request(request).await.unwrap();
    for round in 0..60 {
        if round % 12 == 0 {
            pair.shop_agent.push(pair.world.frame("shop", life));
            pair.pay_agent.push(pair.world.frame("pay", life));
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
        sender
            .send(Ok(http_body::Frame::data(Bytes::from_static(b"x"))))
            .await
            .unwrap();
        let frame = tokio::time::timeout(Duration::from_secs(2), answer.frame())
            .await
            .expect("an echo")
            .expect("the stream goes on");
        assert_eq!(frame.unwrap().into_data().unwrap(), "x", "round {round}");
    }
    let cut = tokio::time::timeout(Duration::from_secs(9), answer.frame())
        .await
        .expect("without renewal the stream ends");
    assert!(cut.is_none_or(|frame| frame.is_err()));
}
