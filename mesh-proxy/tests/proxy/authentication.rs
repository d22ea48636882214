//! What a door demands before the policy is asked: a transport, and tokens that are good.
//! Trusts real proxies and real clocks.
//! Never waits for a moment; each assertion says what it waits for.

use std::time::Duration;

use mesh_identity::test_util::jwt::JwtSigner;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::world::{Pair, eventually, exchange, now};

fn document(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{ name: {name}, namespace: shop }}\nspec: {spec}\n"
    )
}

fn anyone() -> String {
    document("AuthorizationPolicy", "anyone", "{ rules: [ {} ] }")
}

fn peer(spec: &str) -> String {
    document("PeerAuthentication", "transport", spec)
}

/// A request to the inbound door without TLS.
async fn plain(pair: &Pair, headers: &str) -> String {
    let mut stream = TcpStream::connect(pair.pay.door("inbound")).await.unwrap();
    let request = format!("GET /a HTTP/1.1\r\nHost: pay\r\n{headers}\r\n");
    exchange(&mut stream, request.as_bytes(), 0).await
}

/// A TLS alert and nothing of HTTP.
fn refused(answer: &str) -> bool {
    answer.len() < 16 && !answer.contains("HTTP")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_49_px_24_plaintext_is_let_in_only_by_a_policy_with_an_end_and_never_with_an_identity()
 {
    let pair = Pair::start(&anyone()).await;
    assert!(refused(&plain(&pair, "").await), "strict");
    assert!(pair.application.heads().is_empty());
    pair.policy(
        &(anyone() + &peer("{ mtls: { mode: PERMISSIVE }, permissiveUntil: \"2200-01-01\" }")),
    );
    eventually("the policy is in force", || {
        pair.pay.log().contains("generation=2").then_some(())
    })
    .await;
    let answer = plain(
        &pair,
        "X-Forwarded-Client-Cert: URI=spiffe://dev.test/shop\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!answer.contains("x-forwarded-client-cert"), "{answer}");
    let line = pair.pay.line(|l| l["source"] == "unknown").await;
    assert!(line.get("tls_group").is_none(), "{line}");
    let metrics = pair.pay.page("/metrics").await.1;
    assert!(
        metrics.contains("connection_security_policy=\"none\""),
        "{metrics}"
    );
    assert!(
        pair.get("/b").await.starts_with("HTTP/1.1 200"),
        "TLS goes on beside it"
    );

    // Strict again: what is open without TLS ends.
    let mut open = TcpStream::connect(pair.pay.door("inbound")).await.unwrap();
    let first = exchange(&mut open, b"GET /c HTTP/1.1\r\nHost: pay\r\n\r\n", 0).await;
    assert!(first.starts_with("HTTP/1.1 200"), "{first}");
    pair.policy(&anyone());
    let ended = tokio::time::timeout(Duration::from_secs(3), open.read(&mut [0; 16])).await;
    assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
    assert!(refused(&plain(&pair, "").await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permissive_policy_whose_date_has_passed_is_strict() {
    let pair = Pair::start(
        &(anyone() + &peer("{ mtls: { mode: PERMISSIVE }, permissiveUntil: \"2020-01-01\" }")),
    )
    .await;
    assert!(refused(&plain(&pair, "").await));
    assert!(pair.get("/b").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_proxies_satisfy_a_door_that_requires_post_quantum_keys() {
    let pair = Pair::start(&(anyone() + &peer("{ requirePostQuantum: true }"))).await;
    assert!(pair.get("/b").await.starts_with("HTTP/1.1 200"));
    let line = pair.pay.line(|l| l["path"] == "/b").await;
    assert_eq!(line["tls_group"], "X25519MLKEM768");
}

const ISSUER: &str = "https://login.test";

fn keys(signer: &JwtSigner) -> String {
    String::from_utf8(signer.bundle("login.test").to_jwks_json()).unwrap()
}

fn token(signer: &JwtSigner, change: &Value) -> String {
    let seconds = now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let mut claims = json!({ "iss": ISSUER, "sub": "ann", "aud": "pay", "exp": seconds + 300, "groups": ["staff", "x"] });
    for (name, value) in change.as_object().unwrap() {
        claims[name] = value.clone();
    }
    signer.sign(&signer.header(), &claims)
}

async fn with(pair: &Pair, headers: &str) -> String {
    let request = format!("GET /a HTTP/1.1\r\nHost: pay\r\n{headers}Connection: close\r\n\r\n");
    pair.send(request.as_bytes()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_60_a_token_that_is_not_good_is_refused_and_a_good_one_is_what_policies_ask_about()
{
    let signer = JwtSigner::new("k1");
    let pair = Pair::start("").await;
    let file = pair.world.write("keys.json", &keys(&signer));
    let text = document(
        "RequestAuthentication",
        "login",
        &format!(
            "{{ jwtRules: [ {{ issuer: \"{ISSUER}\", audiences: [pay], jwksUri: \"file://{}\" }} ] }}",
            file.display()
        ),
    ) + &document(
        "AuthorizationPolicy",
        "staff",
        "{ rules: [ { from: [ { source: { requestPrincipals: [\"https://login.test/ann\"] } } ], when: [ { key: \"request.auth.claims[groups]\", values: [staff] }, { key: request.auth.audiences, values: [pay] } ] } ] }",
    );
    pair.policy(&text);
    eventually("the policy is in force", || {
        pair.pay.log().contains("generation=2").then_some(())
    })
    .await;
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let good = token(&signer, &json!({}));
    let answer = with(&pair, &bearer(&good)).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        !answer.contains(&good),
        "the application does not see the token"
    );
    for (what, headers, status) in [
        ("none", String::new(), "403"),
        (
            "another scheme",
            "Authorization: Basic YTpi\r\n".to_owned(),
            "403",
        ),
        (
            "other groups",
            bearer(&token(&signer, &json!({ "groups": ["guests"] }))),
            "403",
        ),
        (
            "other subject",
            bearer(&token(&signer, &json!({ "sub": "eve" }))),
            "403",
        ),
        (
            "expired",
            bearer(&token(&signer, &json!({ "exp": 1 }))),
            "401",
        ),
        (
            "other audience",
            bearer(&token(&signer, &json!({ "aud": "bank" }))),
            "401",
        ),
        (
            "other issuer",
            bearer(&token(&signer, &json!({ "iss": "https://evil.test" }))),
            "401",
        ),
        (
            "other key",
            bearer(&token(&JwtSigner::new("k1"), &json!({}))),
            "401",
        ),
        ("no token", bearer("nonsense"), "401"),
        ("two", bearer(&good) + &bearer(&good), "401"),
    ] {
        let answer = with(&pair, &headers).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{what}: {answer}"
        );
        if status == "401" {
            assert!(
                answer.contains("www-authenticate: Bearer error=\"invalid_token\""),
                "{what}: {answer}"
            );
            assert!(answer.contains("FNL3005"), "{what}: {answer}");
        }
    }
    let refused = pair.pay.line(|l| l["error"] == "FNL3005").await;
    assert!(!refused.to_string().contains(&good[..40]), "{refused}");

    // New keys take the place of the old ones; damaged ones let nobody in.
    let newer = JwtSigner::new("k2");
    pair.world.write("keys.json", &keys(&newer));
    eventually("the new keys are in force", || {
        pair.pay.log().contains("generation=3").then_some(())
    })
    .await;
    assert!(
        with(&pair, &bearer(&good))
            .await
            .starts_with("HTTP/1.1 401")
    );
    assert!(
        with(&pair, &bearer(&token(&newer, &json!({}))))
            .await
            .starts_with("HTTP/1.1 200")
    );
    pair.world.write("keys.json", "{");
    eventually("the damaged keys are reported", || {
        pair.pay.log().contains("FNL3052").then_some(())
    })
    .await;
    assert!(
        with(&pair, &bearer(&token(&newer, &json!({}))))
            .await
            .starts_with("HTTP/1.1 401")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_with_the_token_by_which_it_was_let_in() {
    let signer = JwtSigner::new("k1");
    let pair = Pair::start("").await;
    let file = pair.world.write("keys.json", &keys(&signer));
    let text = document(
        "RequestAuthentication",
        "login",
        &format!(
            "{{ jwtRules: [ {{ issuer: \"{ISSUER}\", jwksUri: \"file://{}\" }} ] }}",
            file.display()
        ),
    ) + &document(
        "AuthorizationPolicy",
        "staff",
        "{ rules: [ { from: [ { source: { requestPrincipals: [\"https://login.test/ann\"] } } ] } ] }",
    );
    pair.policy(&text);
    eventually("the policy is in force", || {
        pair.pay.log().contains("generation=2").then_some(())
    })
    .await;
    let seconds = now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    // It counts for as long as clocks may differ; two seconds of that are left.
    let ends = seconds + 2 - mesh_identity::jwt::LEEWAY.as_secs();
    let shown = token(&signer, &json!({ "exp": ends }));

    let (sender, frames) = tokio::sync::mpsc::channel::<
        Result<http_body::Frame<bytes::Bytes>, std::convert::Infallible>,
    >(4);
    let body = http_body_util::StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(frames));
    let stream = TcpStream::connect(pair.shop.door("outbound.pay"))
        .await
        .unwrap();
    let (mut client, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(stream),
    )
    .await
    .unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::post("http://pay/svc.Echo/Stream")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {shown}"))
        .body(body)
        .unwrap();
    let mut answer = client.send_request(request).await.unwrap();
    assert!(
        !answer.headers().contains_key("x-finial-error"),
        "{answer:?}"
    );
    let said = || {
        Ok(http_body::Frame::data(bytes::Bytes::from_static(
            b"message",
        )))
    };
    sender.send(said()).await.unwrap();
    let back = http_body_util::BodyExt::frame(&mut answer)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        back.into_data().unwrap(),
        "message",
        "it is carried while the token counts"
    );
    let end =
        async { while let Some(Ok(_)) = http_body_util::BodyExt::frame(&mut answer).await {} };
    tokio::time::timeout(Duration::from_secs(8), end)
        .await
        .expect("it ends with its token");
    let line = pair.pay.line(|l| l["path"] == "/svc.Echo/Stream").await;
    assert_eq!(line["error"], "FNL3031", "{line}");
    assert!(
        pair.pay
            .audit()
            .iter()
            .any(|r| r["action"] == "connection.cut")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jwt_svids_of_a_trust_domain_are_believed_by_the_keys_of_the_workload_api() {
    let pair = Pair::start("").await;
    let text = document(
        "RequestAuthentication",
        "svids",
        "{ jwtRules: [ { issuer: \"spiffe://dev.test\", audiences: [pay] } ] }",
    ) + &document(
        "AuthorizationPolicy",
        "cron",
        "{ rules: [ { from: [ { source: { requestPrincipals: [\"spiffe://dev.test/cron\"] } } ] } ] }",
    );
    let signer = JwtSigner::new("k1");
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let svid = |signer: &JwtSigner, id: &str, audience: &str| {
        let seconds = now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let claims = json!({ "sub": id, "aud": [audience], "exp": seconds + 300 });
        signer.sign(&signer.header(), &claims)
    };
    let good = bearer(&svid(&signer, "spiffe://dev.test/cron", "pay"));
    let serve = |signer: &JwtSigner| {
        let keys = signer.bundle("dev.test").to_jwks_json();
        let bundles = [("spiffe://dev.test".to_owned(), keys)].into();
        let frame = proto::spiffe::workload::JwtBundlesResponse { bundles };
        pair.pay_agent.keys.send_replace(frame);
    };
    let becomes = async |headers: &str, wanted: &str| {
        let mut answer = String::new();
        for _ in 0..60 {
            answer = with(&pair, headers).await;
            if answer.starts_with(&format!("HTTP/1.1 {wanted}")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("not {wanted}: {answer}");
    };
    pair.policy(&text);
    becomes(&good, "401").await;
    serve(&signer);
    becomes(&good, "200").await;
    for (what, token, status) in [
        (
            "another workload",
            svid(&signer, "spiffe://dev.test/other", "pay"),
            "403",
        ),
        (
            "another audience",
            svid(&signer, "spiffe://dev.test/cron", "bank"),
            "401",
        ),
        (
            "another trust domain",
            svid(&signer, "spiffe://other.test/cron", "pay"),
            "401",
        ),
        (
            "another key",
            svid(&JwtSigner::new("k1"), "spiffe://dev.test/cron", "pay"),
            "401",
        ),
    ] {
        let answer = with(&pair, &bearer(&token)).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{what}: {answer}"
        );
    }
    // Keys that a frame no longer has count no longer.
    serve(&JwtSigner::new("k2"));
    becomes(&good, "401").await;
}
