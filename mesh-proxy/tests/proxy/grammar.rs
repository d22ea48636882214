//! Requests that are written carelessly or with intent, one form after the other, and what becomes of each.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::frames::{Client, DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, field, head};
use crate::world::{Pair, Proxy, SHOP_ANYTHING, allow, eventually};

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("closed")
}

async fn raw(pair: &Pair, request: &[u8]) -> String {
    pair.world
        .raw("shop", pair.pay.door("inbound"), request, 0)
        .await
}

fn get(headers: &[u8]) -> Vec<u8> {
    [b"GET /a HTTP/1.1\r\nHost: pay\r\n", headers, b"\r\n"].concat()
}

/// A policy that asks for a header.
fn asks_for(name: &str, value: &str) -> String {
    allow(&format!(
        "{SHOP_ANYTHING}\nwhen: [ {{ key: \"request.headers[{name}]\", values: [\"{value}\"] }} ]"
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_16_names_of_headers_are_folded_and_bad_syntax_is_refused() {
    let pair = Pair::start(&asks_for("x-role", "admin")).await;
    for (headers, wanted) in [
        ("X-Role: admin\r\n", "200"),
        ("x-rOLE:admin\r\n", "200"),
        ("X_Role: admin\r\n", "403"),
        ("X-Role : admin\r\n", "400"),
        (" X-Role: admin\r\n", "400"),
        ("X-Other: a\r\n X-Role: admin\r\n", "400"),
        ("X Role: admin\r\n", "400"),
        (": admin\r\n", "400"),
    ] {
        let answer = raw(&pair, &get(headers.as_bytes())).await;
        assert_eq!(status(&answer), wanted, "{headers:?}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_17_values_are_compared_as_bytes_and_control_characters_are_refused() {
    let pair = Pair::start(&asks_for("x-name", "caf\u{e9}")).await;
    for (value, wanted) in [
        ("caf\u{e9}".as_bytes(), &["200"][..]),
        (b"caf\xe9", &["403"]),
        (b"caf", &["403"]),
        (b"caf\xc3\xa9\0", &["400"]),
        (b"caf\x01", &["400"]),
        (b"caf\rX-Name: x", &["400"]),
        // A line feed alone may end a line (RFC 9112 2.2); it never stands in a value.
        (b"x\nX-Other: caf\xc3\xa9", &["400", "403"]),
    ] {
        let headers = [b"X-Name: ", value, b"\r\n"].concat();
        let answer = raw(&pair, &get(&headers)).await;
        assert!(wanted.contains(&status(&answer)), "{value:?}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_18_connection_takes_away_what_the_caller_sent_and_nothing_that_we_say() {
    let pair = Pair::start(&allow(SHOP_ANYTHING)).await;
    let answer = raw(
        &pair,
        &get(b"Connection: x-forwarded-client-cert, authorization, l5d-client-id, host, x-mine\r\nAuthorization: Bearer x\r\nX-Mine: 1\r\nX-Kept: 1\r\n"),
    )
    .await;
    assert_eq!(status(&answer), "200", "{answer}");
    let seen = |name: &str| answer.lines().any(|line| line.starts_with(name));
    assert!(seen("x-forwarded-client-cert: By="), "{answer}");
    assert!(seen("host: pay") && seen("x-kept: 1"), "{answer}");
    assert!(!seen("authorization") && !seen("x-mine"), "{answer}");
    // What the application will not see says nothing to a policy either.
    let asking = Pair::start(&asks_for("x-role", "admin")).await;
    let answer = raw(&asking, &get(b"Connection: x-role\r\nX-Role: admin\r\n")).await;
    assert_eq!(status(&answer), "403", "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_19_the_method_is_the_one_of_the_request_line() {
    let only_get = format!("{SHOP_ANYTHING}\nto: [ {{ operation: {{ methods: [GET] }} }} ]");
    let pair = Pair::start(&allow(&only_get)).await;
    let long = "G".repeat(1024);
    for (line, headers, wanted) in [
        ("GET", "X-HTTP-Method-Override: DELETE\r\n", &["200"][..]),
        (
            "POST",
            "X-HTTP-Method-Override: GET\r\nContent-Length: 0\r\n",
            &["403"],
        ),
        ("get", "", &["405"]),
        ("Get", "", &["405"]),
        ("GET\t", "", &["400", "405"]),
        ("PRI", "", &["400", "405", "closed"]),
        (long.as_str(), "", &["400", "405"]),
    ] {
        let request = format!("{line} /a HTTP/1.1\r\nHost: pay\r\n{headers}\r\n");
        let answer = raw(&pair, request.as_bytes()).await;
        assert!(wanted.contains(&status(&answer)), "{line}: {answer}");
    }
    let heads = pair.application.heads();
    assert_eq!(heads.len(), 1, "{heads:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_20_a_scheme_is_known_in_any_case_and_a_foreign_one_is_refused() {
    let pair = Pair::start(&allow(SHOP_ANYTHING)).await;
    for (target, wanted) in [
        ("hTtP://pay/a", &["200", "400"][..]),
        ("ftp://pay/a", &["400"]),
        ("file:///a", &["400"]),
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: pay\r\n\r\n");
        let answer = raw(&pair, request.as_bytes()).await;
        assert!(wanted.contains(&status(&answer)), "{target}: {answer}");
    }
    let before = pair.application.heads().len();
    for scheme in ["ftp", "wss", "a b"] {
        let mut client = connect(&pair).await;
        let block = [
            &[0x82][..],
            &field(":scheme", scheme),
            &field(":path", "/a"),
            &field(":authority", "pay"),
        ]
        .concat();
        client
            .send(HEADERS, END_HEADERS | END_STREAM, 1, &block)
            .await;
        let answer = client.until(|frame| frame.stream == 1).await;
        assert!(
            answer.is_none_or(|frame| frame.status() != Some(200)),
            "{scheme}"
        );
    }
    assert_eq!(pair.application.heads().len(), before);
}

async fn connect(pair: &Pair) -> Client {
    Client::connect(&pair.world, "shop", pair.pay.door("inbound"), &[]).await
}

/// An application of bytes: it remembers what it is sent, and answers each head with what `answer` says about it.
struct Bytes {
    address: std::net::SocketAddr,
    sent: std::sync::Arc<std::sync::Mutex<Vec<u8>>>,
}

impl Bytes {
    async fn start(answer: fn(&str) -> Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let sent = std::sync::Arc::default();
        let all = std::sync::Arc::clone(&sent);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let all: std::sync::Arc<std::sync::Mutex<Vec<u8>>> = std::sync::Arc::clone(&all);
                tokio::spawn(async move {
                    let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
                    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                        all.lock().unwrap().extend_from_slice(&buffer[..read]);
                        head.extend_from_slice(&buffer[..read]);
                        if head.windows(4).any(|four| four == b"\r\n\r\n") {
                            let text = String::from_utf8_lossy(&head).into_owned();
                            head.clear();
                            if stream.write_all(&answer(&text)).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
        Self { address, sent }
    }

    fn sent(&self) -> String {
        String::from_utf8_lossy(&self.sent.lock().unwrap()).into_owned()
    }

    /// A proxy in front of it.
    async fn proxy(&self, pair: &Pair) -> Proxy {
        let doors = format!(
            "inbound: {{ listen: \"127.0.0.1:0\", application: \"{}\" }}\npolicy: {{ file: \"{}\" }}",
            self.address,
            pair.world.path("policy.yaml").display()
        );
        let proxy = Proxy::start(&pair.world, "bytes", &pair.pay_agent, &doors).await;
        proxy.ready().await;
        proxy
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_24_chunks_that_lie_and_trailers_that_claim_reach_nobody() {
    let pair = Pair::start(&allow(SHOP_ANYTHING)).await;
    let application =
        Bytes::start(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()).await;
    let proxy = application.proxy(&pair).await;
    let head = "POST /a HTTP/1.1\r\nHost: pay\r\nTransfer-Encoding: chunked\r\n\r\n";
    let hidden = "GET /SMUGGLED HTTP/1.1\r\nHost: pay\r\n\r\n";
    for body in [
        format!("FFFFFFFFFFFFFFFF0\r\n{hidden}"),
        format!("10000000000000000\r\n{hidden}"),
        format!("1;a=\nb\r\nx\r\n0\r\n\r\n{hidden}"),
        format!("2\nxx\n0\n\n{hidden}"),
        format!("1\r\nxx\r\n0\r\n\r\n{hidden}"),
        format!("-1\r\n\r\n0\r\n\r\n{hidden}"),
    ] {
        let request = format!("{head}{body}");
        pair.world
            .raw("shop", proxy.door("inbound"), request.as_bytes(), 9)
            .await;
        let sent = application.sent();
        assert!(!sent.contains("GET /SMUGGLED"), "{body:?} became {sent:?}");
    }
    let request = format!(
        "{head}1\r\nx\r\n0\r\nX-Forwarded-Client-Cert: forged\r\nContent-Length: 77\r\nHost: forged\r\n\r\n"
    );
    pair.world
        .raw("shop", proxy.door("inbound"), request.as_bytes(), 0)
        .await;
    assert!(
        !application.sent().contains("forged"),
        "{}",
        application.sent()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_25_a_body_that_nobody_read_never_becomes_the_next_request() {
    let pair = Pair::start(&allow(SHOP_ANYTHING)).await;
    // Answers each head at once, and does not read the body.
    let application = Bytes::start(|head| match head.contains("/early") {
        true => b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly".to_vec(),
        false => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(),
    })
    .await;
    let proxy = application.proxy(&pair).await;
    let hidden = "GET /SMUGGLED HTTP/1.1\r\nHost: pay\r\n\r\n";
    for method in ["POST", "GET", "DELETE"] {
        let request = format!(
            "{method} /early HTTP/1.1\r\nHost: pay\r\nContent-Length: {}\r\n\r\n{hidden}GET /second HTTP/1.1\r\nHost: pay\r\nConnection: close\r\n\r\n",
            hidden.len()
        );
        let answer = pair
            .world
            .raw("shop", proxy.door("inbound"), request.as_bytes(), 9)
            .await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{method}: {answer}");
    }
    let judged = eventually("the requests are logged", || {
        let lines = proxy.lines();
        (lines.iter().filter(|l| l["path"] == "/early").count() == 3).then_some(lines)
    })
    .await;
    assert!(
        judged.iter().all(|l| l["path"] != "/SMUGGLED"),
        "{judged:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_26_and_27_what_http_1_could_not_say_is_an_error_of_the_stream() {
    let pair = Pair::start(&allow(SHOP_ANYTHING)).await;
    let get = |more: &[u8]| head("GET", "/down", more);
    let path = |path: &str| head("GET", path, &[]);
    for (what, block) in [
        ("connection", get(&field("connection", "x"))),
        (
            "transfer-encoding",
            get(&field("transfer-encoding", "chunked")),
        ),
        ("keep-alive", get(&field("keep-alive", "5"))),
        ("capitals", get(&field("X-Role", "admin"))),
        (
            "a line in a value",
            get(&field("x-a", "b\r\nx-forwarded-client-cert: c")),
        ),
        ("a line in a name", get(&field("x-a\r\nx-b", "c"))),
        (
            "a late pseudo header",
            get(&[field("x-a", "b"), field(":path", "/admin")].concat()),
        ),
        ("two paths", get(&field(":path", "/admin"))),
        ("an unknown pseudo header", get(&field(":proto", "x"))),
        ("a space in the path", path("/down HTTP/1.1\r\nx: y")),
        ("a space in the method", head("GET /down", "/down", &[])),
        (
            "a length without a body",
            get(&field("content-length", "5")),
        ),
    ] {
        let mut client = connect(&pair).await;
        client
            .send(HEADERS, END_HEADERS | END_STREAM, 1, &block)
            .await;
        let answer = client.until(|frame| frame.stream == 1).await;
        let refused = answer.as_ref().is_none_or(|frame| {
            frame.kind == RST_STREAM || (frame.kind == HEADERS && frame.status() != Some(200))
        });
        assert!(refused, "{what}: {answer:?}");
    }
    let heads = pair.application.heads();
    assert!(
        heads.is_empty(),
        "nothing reached the application: {heads:?}"
    );

    // More than was announced, and trailers that end nothing.
    for more in ["too much", "trailers without an end"] {
        let mut client = connect(&pair).await;
        let length = head("POST", "/echo", &field("content-length", "5"));
        client.send(HEADERS, END_HEADERS, 1, &length).await;
        if more == "too much" {
            client.send(DATA, END_STREAM, 1, b"more than five").await;
        } else {
            client.send(DATA, 0, 1, b"five!").await;
            client
                .send(HEADERS, END_HEADERS, 1, &field("x-a", "b"))
                .await;
        }
        let reset = client
            .until(|frame| frame.kind == RST_STREAM || frame.kind == 7)
            .await;
        assert!(reset.is_some(), "{more}: {:?}", client.seen);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_28_and_29_bytes_behind_an_upgrade_or_a_connect_go_nowhere() {
    let pair = Pair::start(&allow(SHOP_ANYTHING)).await;
    let application = Bytes::start(|_| {
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
            .to_vec()
    })
    .await;
    let proxy = application.proxy(&pair).await;
    let door = proxy.door("inbound");
    for head in [
        "GET /a HTTP/1.1\r\nHost: pay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: pay\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
        "CONNECT pay:80 HTTP/1.1\r\nHost: pay:80\r\n\r\n",
        "CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: 169.254.169.254:80\r\n\r\n",
    ] {
        let request = format!("{head}EARLY-BYTES");
        let answer = pair.world.raw("shop", door, request.as_bytes(), 9).await;
        assert!(
            ["501", "400", "closed"].contains(&status(&answer)),
            "{head}: {answer}"
        );
    }
    assert_eq!(application.sent(), "", "nothing reached the application");
    // An application that changes the protocol unasked.
    let answer = pair.world.raw("shop", door, &get(b""), 0).await;
    assert_eq!(status(&answer), "502", "{answer}");
    assert!(!application.sent().contains("EARLY-BYTES"));

    let mut client = Client::connect(&pair.world, "shop", door, &[]).await;
    let before = application.sent();
    let authority = field(":authority", "pay:80");
    let block = [field(":method", "CONNECT"), authority].concat();
    client.send(HEADERS, END_HEADERS, 1, &block).await;
    client.send(DATA, 0, 1, b"EARLY-BYTES").await;
    let answer = client.until(|frame| frame.stream == 1).await;
    assert!(
        answer.is_none_or(|frame| frame.status() != Some(200)),
        "{:?}",
        client.seen
    );
    assert_eq!(application.sent(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_30_a_doubtful_answer_is_not_passed_on_and_spoils_no_other() {
    let pair = Pair::start(&allow(SHOP_ANYTHING)).await;
    let application = Bytes::start(|head| {
        let of = |path: &str| head.contains(path);
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        if of("/two-lengths") {
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 30\r\n\r\nok".to_owned()
        } else if of("/no-http") {
            "SSH-2.0-OpenSSH\r\n\r\n".to_owned()
        } else if of("/bad-header") {
            "HTTP/1.1 200 OK\r\nX-A\0: b\r\nContent-Length: 2\r\n\r\nok".to_owned()
        } else if of("/no-content") {
            format!(
                "HTTP/1.1 204 No Content\r\n\r\n{}",
                "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nSMUGGLED"
            )
        } else if of("/more") {
            format!("{ok}HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nSMUGGLED")
        } else {
            ok.to_owned()
        }
        .into_bytes()
    })
    .await;
    let proxy = application.proxy(&pair).await;
    let door = proxy.door("inbound");
    for (path, wanted) in [
        ("/two-lengths", "502"),
        ("/no-http", "502"),
        ("/bad-header", "502"),
        ("/no-content", "204"),
        ("/more", "200"),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: pay\r\n\r\n");
        let answer = pair.world.raw("shop", door, request.as_bytes(), 0).await;
        assert_eq!(status(&answer), wanted, "{path}: {answer}");
        for _ in 0..3 {
            let next = pair
                .world
                .raw("shop", door, b"GET /next HTTP/1.1\r\nHost: pay\r\n\r\n", 0)
                .await;
            assert!(!next.contains("SMUGGLED"), "after {path}: {next}");
            assert!(
                ["200", "502"].contains(&status(&next)),
                "after {path}: {next}"
            );
        }
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let next = pair
        .world
        .raw("shop", door, b"GET /next HTTP/1.1\r\nHost: pay\r\n\r\n", 0)
        .await;
    assert_eq!(status(&next), "200", "{next}");
}
