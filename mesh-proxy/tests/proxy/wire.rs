//! Bytes that two programs could read differently: refused, or one canonical request and nothing else.

use crate::world::{Pair, SHOP_ANYTHING, allow, deny};

/// "ALLOW shop `/*`, DENY `/admin*`": the harder setup of mesh.md C1.
async fn pair() -> Pair {
    Pair::start(
        &(allow(&format!(
            "{SHOP_ANYTHING}\nto: [ {{ operation: {{ paths: [\"/*\"] }} }} ]"
        )) + &deny("to: [ { operation: { paths: [\"/admin*\"] } } ]")),
    )
    .await
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("closed")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn po_01_to_08_no_spelling_of_admin_reaches_the_application() {
    let pair = pair().await;
    let door = pair.pay.door("inbound");
    let spellings = [
        "//admin",
        "///admin",
        "/public//../admin",
        "/./admin",
        "/x/../admin",
        "/public/../admin",
        "/public/./../admin",
        "/admin/.",
        "/%61dmin",
        "/admin%2Fx",
        "/admin%2fx",
        "/public%2f..%2fadmin",
        "/%2e%2e/admin",
        "/%2E%2E/admin",
        "/x/%2E./admin",
        "/public\\..\\admin",
        "/a%5Cb",
        "/admin%00",
        "/admin;a=b",
        "/public/..;/admin",
        "/public;/../admin",
        "/admin",
        "/admin/",
        "/admin?x",
        "/admin/keys",
        "/admin%C0%AF",
        "/%c1%9cadmin",
        "/admin%3F",
        "/admin%23x",
        "/caf%c3%a9",
        "*",
    ];
    for path in spellings {
        let request = format!("GET {path} HTTP/1.1\r\nHost: pay\r\n\r\n");
        let answer = pair.world.raw("shop", door, request.as_bytes(), 0).await;
        assert!(
            ["400", "403", "closed"].contains(&status(&answer)),
            "{path}: {answer}"
        );
        assert!(
            pair.application.heads().is_empty(),
            "{path} reached the application: {:?}",
            pair.application.heads()
        );
    }
    // A fragment is neither decided nor forwarded.
    let answer = pair
        .world
        .raw(
            "shop",
            door,
            b"GET /public#/../admin HTTP/1.1\r\nHost: pay\r\n\r\n",
            0,
        )
        .await;
    assert!(
        status(&answer) == "400" || answer.contains("GET /public HTTP/1.1\n"),
        "{answer}"
    );
    let answer = pair
        .world
        .raw(
            "shop",
            door,
            b"GET /admin#x HTTP/1.1\r\nHost: pay\r\n\r\n",
            0,
        )
        .await;
    assert!(["400", "403"].contains(&status(&answer)), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_forwarded_is_byte_by_byte_what_was_decided() {
    let pair = pair().await;
    for path in [
        "/%2561dmin",
        "/ADMIN",
        "/caf%C3%A9/x",
        "/a%20b?q=%2f..%2fadmin&x=;",
        "/public?/admin",
        "/a/b/",
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: pay\r\n\r\n");
        let answer = pair
            .world
            .raw("shop", pair.pay.door("inbound"), request.as_bytes(), 0)
            .await;
        assert!(
            answer.contains(&format!("\nGET {path} HTTP/1.1\n")),
            "{path}: {answer}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn px_10_mesh_c1_12_and_23_the_smuggling_matrix_ends_in_a_refusal_or_in_one_canonical_request()
 {
    let pair = pair().await;
    let door = pair.pay.door("inbound");
    let hidden = "GET /SMUGGLED HTTP/1.1\r\nHost: pay\r\n\r\n";
    let cases = [
        format!(
            "POST /a HTTP/1.1\r\nHost: pay\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"
        ),
        format!(
            "POST /a HTTP/1.1\r\nHost: pay\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{hidden}"
        ),
        format!(
            "POST /a HTTP/1.1\r\nHost: pay\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"
        ),
        format!(
            "POST /a HTTP/1.1\r\nHost: pay\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{hidden}"
        ),
        format!(
            "POST /a HTTP/1.1\r\nHost: pay\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{hidden}"
        ),
        format!(
            "POST /a HTTP/1.1\r\nHost: pay\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n{hidden}"
        ),
        format!(
            "POST /a HTTP/1.1\r\nHost: pay\r\nTransfer-Encoding:\u{b}chunked\r\n\r\n0\r\n\r\n{hidden}"
        ),
        format!(
            "POST /a HTTP/1.1\r\nHost: pay\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello{hidden}"
        ),
        format!(
            "POST /a HTTP/1.1\r\nHost: pay\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello{hidden}"
        ),
        format!("POST /a HTTP/1.1\r\nHost: pay\r\nContent-Length: 5, 5\r\n\r\nhello{hidden}"),
        format!("POST /a HTTP/1.1\r\nHost: pay\r\nContent-Length: +5\r\n\r\nhello{hidden}"),
        format!("POST /a HTTP/1.1\r\nHost: pay\r\nContent-Length: -1\r\n\r\n{hidden}"),
        format!(
            "POST /a HTTP/1.0\r\nHost: pay\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"
        ),
        format!(
            "POST /a HTTP/1.1\r\nHost: pay\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF0\r\n{hidden}"
        ),
        format!(
            "POST /a HTTP/1.1\r\nHost: pay\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n{hidden}"
        ),
        format!(
            "POST /a HTTP/1.1\r\nHost: pay\r\nTransfer-Encoding: chunked\r\n\r\n1;a=\nb\r\na\r\n0\r\n\r\n{hidden}"
        ),
        format!("GET /a HTTP/1.1\r\nHost: pay\r\n X: obs-fold\r\n\r\n{hidden}"),
        format!("GET /a HTTP/1.1\r\nHost: pay\r\nHost: other\r\n\r\n{hidden}"),
        format!("GET /a HTTP/1.1\r\n\r\n{hidden}"),
        format!("GET http://other/a HTTP/1.1\r\nHost: pay\r\n\r\n{hidden}"),
        format!("GET http://pay/a HTTP/1.1\r\n\r\n{hidden}"),
        format!("GET ftp://pay/a HTTP/1.1\r\nHost: pay\r\n\r\n{hidden}"),
        format!("GET /a HTTP/1.1\r\nHost: u@pay\r\n\r\n{hidden}"),
        format!("GET /a HTTP/1.1\r\nHost: pay, other\r\n\r\n{hidden}"),
        format!(
            "GET /a HTTP/1.1\r\nHost: pay\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n{hidden}"
        ),
        format!(
            "GET /a HTTP/1.1\r\nHost: pay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n{hidden}"
        ),
        format!("CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: 169.254.169.254:80\r\n\r\n{hidden}"),
        format!("get /a HTTP/1.1\r\nHost: pay\r\n\r\n{hidden}"),
        format!("TRACE /a HTTP/1.1\r\nHost: pay\r\n\r\n{hidden}"),
        format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{hidden}"),
        format!("GET /a\0b HTTP/1.1\r\nHost: pay\r\n\r\n{hidden}"),
        format!("GET /a HTTP/1.1\r\nHost: pay\r\nX: a\0b\r\n\r\n{hidden}"),
        format!(
            "GET /a HTTP/1.1\r\nHost: pay\r\nExpect: something\r\nContent-Length: 4\r\n\r\nabcd{hidden}"
        ),
    ];
    for (number, case) in cases.into_iter().enumerate() {
        let case = case.replace("/SMUGGLED", &format!("/SMUGGLED-{number}"));
        let before = pair.application.heads().len();
        let answer = pair.world.raw("shop", door, case.as_bytes(), 9).await;
        let reached: Vec<String> = pair.application.heads().split_off(before);
        let first = status(&answer).to_owned();
        // A refused request that leaves the connection usable may be followed by the next one: then that one was a request of its own
        // to the proxy, too, and the marker is an honest request. It must never come out of a body.
        // Two equal lengths are one length: the body ends where both say.
        let honest = (!case.contains("ontent-Length") && !case.contains("ransfer-Encoding"))
            || case.contains("Length: 5\r\nContent-Length: 5\r\n\r\n");
        for head in &reached {
            assert!(
                !head.contains("SMUGGLED") || honest,
                "{case:?}\n{answer}\n{reached:?}"
            );
            assert!(
                !head.to_lowercase().contains("transfer-encoding")
                    || !head.to_lowercase().contains("content-length"),
                "{head}"
            );
        }
        if first.starts_with('4') || first.starts_with('5') || first == "closed" {
            assert!(
                reached.iter().all(|head| head.contains("SMUGGLED")),
                "{case:?} was refused and still reached the application: {reached:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_21_and_px_20_identity_is_said_by_the_proxy_alone() {
    let pair = pair().await;
    let mut request = String::from(
        "GET /who HTTP/1.1\r\nHost: pay\r\nConnection: x-forwarded-client-cert, authorization, close-not\r\nAuthorization: Bearer app\r\n",
    );
    for claim in [
        "X-Forwarded-Client-Cert",
        "x_forwarded_client_cert",
        "X-FORWARDED_CLIENT-CERT",
        "X-Envoy-Internal",
        "x-envoy-original-path",
        "l5d-client-id",
        "X-Real-IP",
        "Forwarded",
        "X-Finial-Decision",
    ] {
        request.push_str(&format!("{claim}: URI=spiffe://dev.test/admin\r\n"));
    }
    request.push_str("\r\n");
    let answer = pair
        .world
        .raw("shop", pair.pay.door("inbound"), request.as_bytes(), 0)
        .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!answer.contains("spiffe://dev.test/admin"), "{answer}");
    let ours: Vec<&str> = answer
        .lines()
        .filter(|l| l.starts_with("x-forwarded-client-cert: "))
        .collect();
    assert_eq!(ours.len(), 1, "{answer}");
    assert!(
        ours[0].starts_with("x-forwarded-client-cert: By=spiffe://dev.test/pay;Hash=")
            && ours[0].ends_with(";URI=spiffe://dev.test/shop"),
        "{}",
        ours[0]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn px_16_mesh_c1_14_doubtful_authorities_are_refused_in_http_2_too() {
    let pair = pair().await;
    let door = pair.pay.door("inbound");
    let send = async |uri: &str, host: Option<&str>, method: &str| {
        let stream = pair.world.dial("shop", door, &[b"h2"]).await;
        let (mut client, connection) = hyper::client::conn::http2::handshake(
            hyper_util::rt::TokioExecutor::new(),
            hyper_util::rt::TokioIo::new(stream),
        )
        .await
        .unwrap();
        tokio::spawn(connection);
        let mut request = hyper::Request::builder().method(method).uri(uri);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        client
            .send_request(
                request
                    .body(http_body_util::Empty::<bytes::Bytes>::new())
                    .unwrap(),
            )
            .await
            .map(|answer| answer.status().as_u16())
    };
    assert_eq!(send("https://pay/a", None, "GET").await.unwrap(), 200);
    assert_eq!(send("https://Pay./a", None, "GET").await.unwrap(), 200);
    assert_eq!(
        send("https://pay/a", Some("other"), "GET").await.unwrap(),
        400
    );
    assert_eq!(send("https://u@pay/a", None, "GET").await.unwrap(), 400);
    assert_eq!(
        send("https://pay/a%2f..%2fb", None, "GET").await.unwrap(),
        400
    );
    assert_eq!(send("https://pay//a", None, "GET").await.unwrap(), 400);
    assert_eq!(send("https://pay/admin", None, "GET").await.unwrap(), 403);
    assert_eq!(send("https://pay/a", None, "get").await.unwrap(), 405);
    assert!(
        send("https://pay:80", None, "CONNECT")
            .await
            .is_ok_and(|status| status == 501)
    );
    assert!(
        pair.application
            .heads()
            .iter()
            .all(|head| head.starts_with("GET /a ")),
        "{:?}",
        pair.application.heads()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn px_40_heads_beyond_the_limits_are_refused_without_contact_upstream() {
    let pair = pair().await;
    let door = pair.pay.door("inbound");
    let long_path = format!("GET /{} HTTP/1.1\r\nHost: pay\r\n\r\n", "a".repeat(9000));
    assert_eq!(
        status(&pair.world.raw("shop", door, long_path.as_bytes(), 0).await),
        "414"
    );
    let many = format!(
        "GET /a HTTP/1.1\r\nHost: pay\r\n{}\r\n",
        "X-A: b\r\n".repeat(200)
    );
    assert_eq!(
        status(&pair.world.raw("shop", door, many.as_bytes(), 0).await),
        "431"
    );
    let large = format!(
        "GET /a HTTP/1.1\r\nHost: pay\r\nX-A: {}\r\n\r\n",
        "b".repeat(200_000)
    );
    assert!(["431", "closed"].contains(&status(
        &pair.world.raw("shop", door, large.as_bytes(), 0).await
    )));
    assert!(pair.application.heads().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn px_03_what_is_not_tls_reaches_nothing() {
    let pair = pair().await;
    for bytes in [
        &b"GET /a HTTP/1.1\r\nHost: pay\r\n\r\n"[..],
        b"SSH-2.0-x\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1\r\n",
    ] {
        let mut stream = tokio::net::TcpStream::connect(pair.pay.door("inbound"))
            .await
            .unwrap();
        let answer = crate::world::exchange(&mut stream, bytes, 0).await;
        assert!(!answer.contains("HTTP/"), "{answer}");
    }
    assert!(pair.application.heads().is_empty());
    let (_, metrics) = pair.pay.page("/metrics").await;
    let failed = metrics
        .lines()
        .find(|l| l.starts_with("mesh_proxy_tls_handshakes_total{") && !l.contains("\"ok\""))
        .unwrap();
    assert!(
        failed.contains("cipher=\"unknown\",group=\"unknown\""),
        "{failed}"
    );
}
