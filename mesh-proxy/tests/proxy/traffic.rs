//! Requests that should pass do pass, in each version of HTTP, and the proxy ends without losing one.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::world::{Pair, SHOP_ANYTHING, allow, eventually, started};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_passes_both_proxies_and_leaves_one_line_on_each_side() {
    let pair = Pair::start(&allow(&format!(
        "{SHOP_ANYTHING}\nto: [ {{ operation: {{ methods: [POST], paths: [/charge] }} }} ]"
    )))
    .await;
    let answer = pair.send(b"POST /charge?card=secret HTTP/1.1\r\nHost: Pay.:80\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        answer.contains("POST /charge?card=secret HTTP/1.1") && answer.ends_with("hello"),
        "{answer}"
    );
    assert!(
        answer.contains("host: pay:80\n"),
        "the canonical host is forwarded: {answer}"
    );
    assert!(
        !answer.contains("x-finial-error"),
        "an application cannot say that we refused: {answer}"
    );
    let inbound = pair.pay.line(|l| l["path"] == "/charge").await;
    assert_eq!(inbound["effect"], "allow");
    assert_eq!(
        (&inbound["policy"], &inbound["rule"]),
        (&"payments/allow-shop".into(), &"r".into())
    );
    assert_eq!(
        (&inbound["source"], &inbound["destination"]),
        (
            &"spiffe://dev.test/shop".into(),
            &"spiffe://dev.test/pay".into()
        )
    );
    assert_eq!(
        (&inbound["status"], &inbound["bytes_received"]),
        (&200.into(), &5.into())
    );
    assert_eq!(inbound["tls_group"], "X25519MLKEM768");
    assert!(
        !pair
            .pay
            .lines()
            .iter()
            .any(|l| l.to_string().contains("secret")),
        "no query in a log"
    );
    let outbound = pair.shop.line(|l| l["path"] == "/charge").await;
    assert_eq!(
        (&outbound["door"], &outbound["direction"]),
        (&"pay".into(), &"outbound".into())
    );
    let allowed = eventually("the first allowed request is in the audit record", || {
        pair.pay
            .audit()
            .into_iter()
            .find(|r| r["action"] == "authz.allow")
    })
    .await;
    assert_eq!(allowed["decision"]["policy"], "payments/allow-shop");
    let (_, metrics) = pair.pay.page("/metrics").await;
    let series = |name: &str| -> String {
        metrics
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_else(|| panic!("no {name} in {metrics}"))
            .to_owned()
    };
    let requests = series("istio_requests_total{");
    for label in [
        "reporter=\"destination\"",
        "source_principal=\"spiffe://dev.test/shop\"",
        "source_workload=\"shop\"",
        "destination_principal=\"spiffe://dev.test/pay\"",
        "connection_security_policy=\"mutual_tls\"",
        "response_code=\"200\"",
    ] {
        assert!(requests.contains(label), "{label}: {requests}");
    }
    assert!(
        series("istio_request_bytes_sum{").ends_with(" 5.0"),
        "{metrics}"
    );
    assert!(
        !metrics.contains("=\"\"") && !metrics.contains("/charge"),
        "no label is empty and none says what was asked for: {metrics}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_share_one_connection_and_a_keep_alive_one_is_used_again() {
    let pair = Pair::start(&allow(SHOP_ANYTHING)).await;
    let mut stream = TcpStream::connect(pair.shop.door("outbound.pay"))
        .await
        .unwrap();
    for i in 0..50 {
        let answer = crate::world::exchange(
            &mut stream,
            format!("GET /{i} HTTP/1.1\r\nHost: pay\r\n\r\n").as_bytes(),
            9,
        )
        .await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains(&format!("GET /{i} ")),
            "{answer}"
        );
    }
    let (_, metrics) = pair.shop.page("/metrics").await;
    let handshakes = metrics
        .lines()
        .find(|l| l.starts_with("mesh_proxy_tls_handshakes_total{role=\"client\",result=\"ok\""))
        .unwrap();
    assert!(handshakes.ends_with(" 1"), "{handshakes}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_streams_pass_in_both_directions_with_their_trailers() {
    let pair = Pair::start(&allow(SHOP_ANYTHING)).await;
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
    let request = hyper::Request::post("http://pay/svc.Echo/Stream")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap();
    let mut answer = client.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    for i in 0..20 {
        let sent = format!("message {i}");
        sender
            .send(Ok(http_body::Frame::data(Bytes::from(sent.clone()))))
            .await
            .unwrap();
        let frame = answer.frame().await.unwrap().unwrap();
        assert_eq!(
            frame.into_data().unwrap(),
            sent,
            "each message comes back while the stream is open"
        );
    }
    drop(sender);
    let trailers = loop {
        match answer.frame().await.unwrap().unwrap().into_trailers() {
            Ok(trailers) => break trailers,
            Err(data) => assert!(data.into_data().unwrap().is_empty()),
        }
    };
    assert_eq!(trailers["grpc-status"], "0");
    assert!(
        !trailers.contains_key("x-forwarded-client-cert"),
        "no claim of identity in a trailer"
    );
    assert!(
        pair.application.heads()[0].contains("HTTP/2.0")
            && pair.application.heads()[0].contains("te: trailers")
    );
    assert_eq!(
        pair.pay.line(|l| l["protocol"] == "grpc").await["grpc_status"],
        0
    );
    let (_, metrics) = pair.pay.page("/metrics").await;
    let series = |name: &str| metrics.lines().find(|line| line.starts_with(name));
    let requests = series("istio_requests_total{").unwrap();
    assert!(
        requests.contains("request_protocol=\"grpc\"")
            && requests.contains("grpc_response_status=\"0\""),
        "{requests}"
    );
    assert!(series("istio_request_messages_total{").is_some_and(|l| !l.ends_with(" 0")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_2_passes_and_a_large_body_comes_back_whole() {
    let pair = Pair::start(&allow(SHOP_ANYTHING)).await;
    let stream = TcpStream::connect(pair.shop.door("outbound.pay"))
        .await
        .unwrap();
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let sent = Bytes::from(
        (0..3_000_000_u32)
            .map(|i| (i % 251) as u8)
            .collect::<Vec<_>>(),
    );
    let request = hyper::Request::post("http://pay/echo")
        .body(http_body_util::Full::new(sent.clone()))
        .unwrap();
    let answer = client.send_request(request).await.unwrap();
    assert_eq!(answer.collect().await.unwrap().to_bytes(), sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn px_46_what_is_under_way_at_sigterm_is_answered_and_then_the_proxy_ends() {
    let mut pair = Pair::start(&allow(SHOP_ANYTHING)).await;
    let door = pair.shop.door("outbound.pay");
    let stream = TcpStream::connect(door).await.unwrap();
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::get("/slow")
        .header("host", "pay")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let answer = tokio::spawn(async move {
        client
            .send_request(request)
            .await
            .unwrap()
            .collect()
            .await
            .unwrap()
            .to_bytes()
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    pair.shop.terminate();
    pair.pay.terminate();
    assert_eq!(answer.await.unwrap(), "slow");
    let began = started();
    let ended = eventually("both proxies end", || {
        Some((
            pair.shop.child.try_wait().unwrap()?,
            pair.pay.child.try_wait().unwrap()?,
        ))
    })
    .await;
    assert!(ended.0.success() && ended.1.success());
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    assert!(TcpStream::connect(door).await.is_err());
    let end = pair.pay.audit();
    assert_eq!(end.last().unwrap()["action"], "log.stop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_is_down_gives_503_with_a_code() {
    let pair = Pair::start(&allow(SHOP_ANYTHING)).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let doors = format!(
        "inbound: {{ listen: \"127.0.0.1:0\", application: \"{closed}\" }}\npolicy: {{ file: \"{}\" }}",
        pair.world.path("policy.yaml").display()
    );
    let lonely = crate::world::Proxy::start(&pair.world, "lonely", &pair.pay_agent, &doors).await;
    lonely.ready().await;
    let answer = pair
        .world
        .raw(
            "shop",
            lonely.door("inbound"),
            b"GET /a HTTP/1.1\r\nHost: pay\r\n\r\n",
            0,
        )
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("x-finial-error: FNL3020"),
        "{answer}"
    );
}
