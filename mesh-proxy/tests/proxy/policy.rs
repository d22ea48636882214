//! Policy at the doors: denials with their reasons, and changes while traffic runs.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::world::{Pair, SHOP_ANYTHING, allow, deny, eventually, started};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_tells_the_caller_a_number_and_the_operator_the_reason() {
    let pair = Pair::start(&allow(&format!(
        "{SHOP_ANYTHING}\nto: [ {{ operation: {{ paths: [/charge] }} }} ]"
    )))
    .await;
    let answer = pair.get("/admin/keys").await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(answer.contains("x-finial-error: FNL3001"), "{answer}");
    assert!(
        !answer.contains("/charge") && !answer.contains("allow-shop"),
        "a stranger learns nothing of the policy: {answer}"
    );
    let id = answer.split("x-finial-decision: ").nth(1).unwrap()[..26].to_owned();
    let line = pair.pay.line(|l| l["decision"] == id.as_str()).await;
    assert_eq!(
        (&line["effect"], &line["status"], &line["error"]),
        (&"deny".into(), &403.into(), &"FNL3001".into())
    );
    assert_eq!(
        line["why"],
        "no rule allows it; nearest is policy payments/allow-shop rule r: paths: /admin/keys is not in [/charge]"
    );
    let record = eventually("the denial is in the audit record", || {
        pair.pay
            .audit()
            .into_iter()
            .find(|r| r["object"]["id"] == id.as_str())
    })
    .await;
    assert_eq!(
        (&record["action"], &record["outcome"], &record["code"]),
        (&"authz.deny".into(), &"denied".into(), &"FNL3001".into())
    );
    assert_eq!(
        (&record["actor"]["id"], &record["object"]["name"]),
        (&"spiffe://dev.test/shop".into(), &"GET /admin/keys".into())
    );
    assert!(
        pair.application.heads().is_empty(),
        "nothing reached the application"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_caller_with_a_good_certificate_is_denied() {
    let pair = Pair::start(&allow(SHOP_ANYTHING)).await;
    let answer = pair
        .world
        .raw(
            "mallory",
            pair.pay.door("inbound"),
            b"GET /a HTTP/1.1\r\nHost: pay\r\n\r\n",
            0,
        )
        .await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert_eq!(
        pair.pay.line(|l| l["status"] == 403).await["source"],
        "spiffe://dev.test/mallory"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_callers_are_denied_in_their_own_language() {
    let pair = Pair::start(&allow(&format!(
        "{SHOP_ANYTHING}\nto: [ {{ operation: {{ paths: [/ok] }} }} ]"
    )))
    .await;
    let stream = TcpStream::connect(pair.shop.door("outbound.pay"))
        .await
        .unwrap();
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::post("http://pay/svc/Denied")
        .header("content-type", "application/grpc+proto")
        .body(http_body_util::Empty::<Bytes>::new())
        .unwrap();
    let answer = client.send_request(request).await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["grpc-status"]),
        (200, &"7".parse::<http::HeaderValue>().unwrap())
    );
    assert!(
        answer.headers()["grpc-message"]
            .to_str()
            .unwrap()
            .contains("FNL3001")
    );
    assert_eq!(answer.headers()["x-finial-error"], "FNL3001");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn po_15_a_bad_policy_changes_nothing_and_says_so_and_a_good_one_is_in_force_within_a_second()
{
    let pair = Pair::start(&allow(SHOP_ANYTHING)).await;
    assert!(pair.get("/a").await.starts_with("HTTP/1.1 200"));
    pair.policy(&allow("form: []"));
    eventually("the refusal is logged", || {
        pair.pay.log().contains("FNL3051").then_some(())
    })
    .await;
    assert!(
        pair.pay.log().contains("did you mean `from`?"),
        "{}",
        pair.pay.log()
    );
    assert!(
        pair.get("/a").await.starts_with("HTTP/1.1 200"),
        "the last good policy stays"
    );
    let refused = eventually("the refusal is audited", || {
        pair.pay
            .audit()
            .into_iter()
            .find(|r| r["action"] == "policy.apply" && r["outcome"] == "failure")
    })
    .await;
    assert_eq!(refused["code"], "FNL3051");
    assert!(
        pair.pay
            .page("/metrics")
            .await
            .1
            .contains("mesh_proxy_config_rejected_total 1")
    );
    std::fs::remove_file(pair.world.path("policy.yaml")).unwrap();
    eventually("the missing file is logged", || {
        pair.pay.log().contains("FNL3050").then_some(())
    })
    .await;
    assert!(
        pair.get("/a").await.starts_with("HTTP/1.1 200"),
        "a missing file takes nothing away"
    );
    let changed = started();
    pair.policy(&(allow(SHOP_ANYTHING) + &deny("to: [ { operation: { paths: [\"/a*\"] } } ]")));
    loop {
        let answer = pair.get("/a").await;
        if answer.starts_with("HTTP/1.1 403") {
            break;
        }
        assert!(changed.elapsed() < Duration::from_secs(5));
    }
    assert!(
        changed.elapsed() < Duration::from_millis(1500),
        "{:?}",
        changed.elapsed()
    );
    assert!(pair.get("/b").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_51_an_open_grpc_stream_is_cut_when_the_policy_no_longer_allows_it() {
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
    let request = hyper::Request::post("http://pay/svc/Stream")
        .header("content-type", "application/grpc")
        .body(body)
        .unwrap();
    let mut answer = client.send_request(request).await.unwrap();
    sender
        .send(Ok(http_body::Frame::data(Bytes::from_static(b"one"))))
        .await
        .unwrap();
    assert_eq!(
        answer.frame().await.unwrap().unwrap().into_data().unwrap(),
        "one"
    );
    // A change that still allows it leaves it alone.
    pair.policy(&(allow(SHOP_ANYTHING) + &deny("to: [ { operation: { paths: [/other] } } ]")));
    eventually("the policy is in force", || {
        pair.pay.log().contains("generation=2").then_some(())
    })
    .await;
    sender
        .send(Ok(http_body::Frame::data(Bytes::from_static(b"two"))))
        .await
        .unwrap();
    assert_eq!(
        answer.frame().await.unwrap().unwrap().into_data().unwrap(),
        "two"
    );
    let changed = started();
    pair.policy(&allow(
        "from: [ { source: { principals: [\"spiffe://dev.test/other\"] } } ]",
    ));
    let cut = tokio::time::timeout(Duration::from_secs(5), answer.frame())
        .await
        .expect("the stream is cut");
    assert!(cut.is_none_or(|frame| frame.is_err()));
    assert!(
        changed.elapsed() < Duration::from_millis(1500),
        "{:?}",
        changed.elapsed()
    );
    assert_eq!(
        pair.pay.line(|l| l["error"] == "FNL3031").await["path"],
        "/svc/Stream"
    );
    eventually("the cut is audited", || {
        pair.pay
            .audit()
            .into_iter()
            .find(|r| r["action"] == "connection.cut")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_waits_for_the_application_learns_that_it_is_no_longer_allowed() {
    let pair = Pair::start(&allow(SHOP_ANYTHING)).await;
    let door = pair.shop.door("outbound.pay");
    let waiting = tokio::spawn(async move {
        let mut stream = TcpStream::connect(door).await.unwrap();
        crate::world::exchange(&mut stream, b"GET /slow HTTP/1.1\r\nHost: pay\r\n\r\n", 0).await
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    pair.policy("");
    let answer = waiting.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_of_a_denial_leads_to_the_rules_that_came_nearest() {
    let pair = Pair::start(&allow(&format!(
        "{SHOP_ANYTHING}\nto: [ {{ operation: {{ paths: [/charge] }} }} ]"
    )))
    .await;
    let answer = pair.get("/admin/keys").await;
    let id = answer.split("x-finial-decision: ").nth(1).unwrap()[..26].to_owned();
    let (status, page) = pair.pay.page(&format!("/explain/{id}")).await;
    assert_eq!(status, 200, "{page}");
    let told: serde_json::Value =
        serde_json::from_str(page.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(
        (
            &told["reason"],
            &told["source"],
            &told["asked"],
            &told["code"]
        ),
        (
            &"no_rule".into(),
            &"spiffe://dev.test/shop".into(),
            &"GET /admin/keys".into(),
            &"FNL3001".into()
        )
    );
    assert_eq!(
        told["nearest"][0]["failed"][0],
        "paths: /admin/keys is not in [/charge]"
    );
    assert_eq!(told["nearest"][0]["policy"], "payments/allow-shop");
    for unknown in ["/explain/01J9Z", "/explain/", "/explain"] {
        assert_eq!(pair.pay.page(unknown).await.0, 404, "{unknown}");
    }
}

/// A policy of any shape.
fn any(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{ name: {name}, namespace: shop }}\nspec: {spec}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_in_shadow_mode_is_counted_and_logged_and_an_audited_request_is_on_record() {
    let pair = Pair::start(
        &(any("all", "{ rules: [ {} ] }")
            + &any(
                "strict",
                "{ mode: Shadow, action: DENY, rules: [ { name: keys, to: [ { operation: { paths: [\"/keys*\"] } } ] } ] }",
            )
            + &any(
                "watch",
                "{ action: AUDIT, rules: [ { to: [ { operation: { methods: [GET], paths: [/keys] } } ] } ] }",
            )),
    )
    .await;
    for path in ["/keys", "/other"] {
        assert!(pair.get(path).await.starts_with("HTTP/1.1 200"), "{path}");
    }
    let line = pair.pay.line(|l| l["path"] == "/keys").await;
    assert_eq!(
        (
            &line["effect"],
            &line["shadow"],
            &line["shadow_policy"],
            &line["shadow_rule"]
        ),
        (
            &"allow".into(),
            &"deny".into(),
            &"shop/strict".into(),
            &"keys".into()
        )
    );
    assert_eq!(line["audit_policy"], "shop/watch");
    let other = pair.pay.line(|l| l["path"] == "/other").await;
    assert!(other.get("shadow").is_none() && other.get("audit_policy").is_none());
    let (_, metrics) = pair.pay.page("/metrics").await;
    assert!(
        metrics.contains(
            r#"mesh_proxy_authorization_decisions_total{direction="inbound",decision="deny",reason="deny_rule",policy="shop/strict",mode="shadow"} 1"#
        ),
        "{metrics}"
    );
    let record = eventually("the audited request is on record", || {
        pair.pay
            .audit()
            .into_iter()
            .find(|r| r["action"] == "authz.audit")
    })
    .await;
    assert_eq!(
        (&record["object"]["name"], &record["decision"]["policy"]),
        (&"GET /keys".into(), &"shop/watch".into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_15_conditions_see_the_headers_and_addresses_that_the_application_will_see() {
    let pair = Pair::start(&any(
        "conditions",
        "{ rules: [ { when: [ { key: \"request.headers[x-role]\", values: [admin] }, { key: source.ip, values: [\"127.0.0.0/8\"] }, { key: remote.ip, values: [127.0.0.1] }, { key: \"request.headers[x-envoy-internal]\", notValues: [\"*\"] } ] } ] }",
    ))
    .await;
    let with = |headers: &str| {
        let request = format!("GET /a HTTP/1.1\r\nHost: pay\r\n{headers}Connection: close\r\n\r\n");
        let pair = &pair;
        async move { pair.send(request.as_bytes()).await }
    };
    for (headers, allowed) in [
        ("X-Role: admin\r\n", true),
        ("", false),
        ("X-Role: user\r\n", false),
        ("X-Role: admin\r\nX-Role: user\r\n", false),
        ("X-Role: admin, user\r\n", false),
        // A claim that is taken away speaks neither for nor against the caller.
        ("X-Role: admin\r\nX-Envoy-Internal: true\r\n", true),
        ("X-Role: admin\r\nX-Forwarded-For: 10.0.0.1\r\n", true),
    ] {
        let answer = with(headers).await;
        assert_eq!(
            answer.starts_with("HTTP/1.1 200"),
            allowed,
            "{headers:?}: {answer}"
        );
    }
    let denied = pair.pay.line(|l| l["status"] == 403).await;
    assert!(
        !denied["why"].as_str().unwrap().contains("user"),
        "a header's value is not shown: {denied}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_66_half_a_file_a_swapped_link_and_a_kill_leave_the_old_policy_or_none() {
    let mut pair = Pair::start(&allow(SHOP_ANYTHING)).await;
    let path = pair.world.path("policy.yaml");
    let whole = allow(SHOP_ANYTHING) + &deny("to: [ { operation: { paths: [\"/b\"] } } ]");

    // As Kubernetes mounts a ConfigMap: the file is a link over a link that is swapped.
    let dirs = ["one", "two"].map(|name| pair.world.path(name));
    for (dir, text) in dirs.iter().zip([&allow(SHOP_ANYTHING), &whole]) {
        std::fs::create_dir(dir).unwrap();
        std::fs::write(dir.join("policy.yaml"), text).unwrap();
    }
    let link = |to: &std::path::Path, at: &std::path::Path| {
        let beside = std::path::PathBuf::from(format!("{}.link", at.display()));
        std::os::unix::fs::symlink(to, &beside).unwrap();
        std::fs::rename(&beside, at).unwrap();
    };
    let data = pair.world.path("..data");
    link(&dirs[0], &data);
    link(&data.join("policy.yaml"), &path);
    assert!(pair.get("/b").await.starts_with("HTTP/1.1 200"));
    link(&dirs[1], &data);
    eventually("the new policy is in force", || {
        pair.pay.log().contains("rules=2").then_some(())
    })
    .await;
    assert!(pair.get("/b").await.starts_with("HTTP/1.1 403"));

    // Half of a file is no file: what was in force stays.
    let half = &whole[..whole.len() - 30];
    std::fs::write(dirs[1].join("policy.yaml"), half).unwrap();
    eventually("half a file is refused", || {
        pair.pay.log().contains("FNL3051").then_some(())
    })
    .await;
    assert!(pair.get("/a").await.starts_with("HTTP/1.1 200"));
    assert!(pair.get("/b").await.starts_with("HTTP/1.1 403"));

    // Killed in between, it begins again with half a file, and so with nothing.
    pair.pay.child.kill().unwrap();
    pair.pay.child.wait().unwrap();
    let doors = format!(
        "inbound: {{ listen: \"127.0.0.1:0\", application: \"{}\" }}\npolicy: {{ file: \"{}\" }}",
        pair.application.address,
        path.display()
    );
    let again = crate::world::Proxy::start(&pair.world, "again", &pair.pay_agent, &doors).await;
    let ask = b"GET /a HTTP/1.1\r\nHost: pay\r\n\r\n";
    let answer = pair.world.raw("shop", again.door("inbound"), ask, 0).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(answer.contains("FNL3002"), "{answer}");
}
