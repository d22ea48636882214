//! The SPIFFE Workload API, row by row: the numbers are those of the specification's list (WEP-, WAPI-).

use std::time::Duration;

use http_body_util::BodyExt;
use mesh_identity::{X509Svid, verify::verify_x509_svid};
use prost::Message;
use proto::spiffe::workload::{self as wire, spiffe_workload_api_client::SpiffeWorkloadApiClient};
use tonic::{Code, Request, Status};
use tower::{Service, ServiceExt};

use crate::{
    ca::{self, Ca},
    rig::{Agent, my_uid, next, quiet, raw, with_header},
};

/// Calls every RPC of the service with requests made by `make`, and gives back each status.
async fn every_rpc(
    agent: &Agent,
    make: impl Fn(&mut Request<()>),
) -> Vec<(&'static str, Option<Status>)> {
    fn shaped<T>(message: T, make: &impl Fn(&mut Request<()>)) -> Request<T> {
        let mut shape = Request::new(());
        make(&mut shape);
        let mut request = Request::new(message);
        *request.metadata_mut() = shape.metadata().clone();
        request
    }
    let mut c = agent.client().await;
    vec![
        (
            "FetchX509SVID",
            c.fetch_x509svid(shaped(wire::X509svidRequest {}, &make))
                .await
                .err(),
        ),
        (
            "FetchX509Bundles",
            c.fetch_x509_bundles(shaped(wire::X509BundlesRequest {}, &make))
                .await
                .err(),
        ),
        (
            "FetchJWTSVID",
            c.fetch_jwtsvid(shaped(wire::JwtsvidRequest::default(), &make))
                .await
                .err(),
        ),
        (
            "FetchJWTBundles",
            c.fetch_jwt_bundles(shaped(wire::JwtBundlesRequest {}, &make))
                .await
                .err(),
        ),
        (
            "ValidateJWTSVID",
            c.validate_jwtsvid(shaped(wire::ValidateJwtsvidRequest::default(), &make))
                .await
                .err(),
        ),
        (
            "FetchWITSVID",
            c.fetch_witsvid(shaped(wire::WitsvidRequest::default(), &make))
                .await
                .err(),
        ),
        (
            "FetchWITBundles",
            c.fetch_wit_bundles(shaped(wire::WitBundlesRequest {}, &make))
                .await
                .err(),
        ),
    ]
}

async fn with_one_entry() -> (Ca, Agent) {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    (ca, agent)
}

#[tokio::test]
async fn wep_07_wep_08_a_missing_or_wrong_header_is_invalid_argument_on_every_rpc() {
    let (_ca, agent) = with_one_entry().await;
    let wrong: [&[&'static str]; 7] = [
        &[],
        &["True"],
        &["TRUE"],
        &["false"],
        &["1"],
        &[""],
        &["true", "true"],
    ];
    for values in wrong {
        let answers = every_rpc(&agent, |request| {
            for value in values {
                request
                    .metadata_mut()
                    .append("workload.spiffe.io", value.parse().unwrap());
            }
        })
        .await;
        for (method, status) in answers {
            let code = status.map(|status| status.code());
            assert_eq!(
                code,
                Some(Code::InvalidArgument),
                "{method} with {values:?}"
            );
        }
    }
}

#[tokio::test]
async fn wep_08_the_header_is_judged_before_the_caller() {
    // No entry and no CA: with the header the answer would be Unavailable or PermissionDenied.
    let ca = Ca::start().await;
    ca.down().await;
    let agent = Agent::start_unready(&ca).await;
    for (method, status) in every_rpc(&agent, |_| {}).await {
        assert_eq!(
            status.map(|s| s.code()),
            Some(Code::InvalidArgument),
            "{method}"
        );
    }
}

/// What a client built before this agent existed sends: HTTP/2 in the clear, five header fields, an empty message.
fn as_any_client_sends_it(path: &str) -> http::Request<tonic::body::Body> {
    let empty = bytes::Bytes::from_static(&[0, 0, 0, 0, 0]);
    http::Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("workload.spiffe.io", "true")
        .body(tonic::body::Body::new(http_body_util::Full::new(empty)))
        .unwrap()
}

#[tokio::test]
async fn wep_03_wep_10_wep_15_wep_17_plain_grpc_is_served_and_the_caller_has_no_part_in_its_attestation()
 {
    let (_ca, agent) = with_one_entry().await;
    let mut channel = crate::rig::channel(&agent.socket()).await;
    let request = as_any_client_sends_it("/SpiffeWorkloadAPI/FetchX509SVID");
    let answer = channel.ready().await.unwrap().call(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "application/grpc");
    let frame = answer.into_body().frame().await.unwrap().unwrap();
    let data = frame.into_data().expect("a message before the trailers");
    let message = wire::X509svidResponse::decode(&data[5..]).unwrap();
    assert_eq!(message.svids[0].spiffe_id, "spiffe://dev.test/pay");

    let request = as_any_client_sends_it("/SpiffeWorkloadAPI/FetchMore");
    let answer = channel.ready().await.unwrap().call(request).await.unwrap();
    assert_eq!(
        answer.headers()["grpc-status"],
        (Code::Unimplemented as i32).to_string().as_str()
    );
}

#[tokio::test]
async fn wep_05_no_door_on_the_network_gives_out_identities() {
    let (_ca, agent) = with_one_entry().await;
    agent.fetch().await.unwrap();
    let on_the_network: Vec<_> = agent
        .app
        .addresses()
        .iter()
        .filter(|(_, address)| address.parse::<std::net::SocketAddr>().is_ok())
        .map(|(name, address)| (name.to_owned(), address.to_owned()))
        .collect();
    let [(name, address)] = on_the_network.as_slice() else {
        panic!("one address on the network: {on_the_network:?}");
    };
    assert_eq!(name, "metrics");
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    if let Ok(channel) = channel.connect().await {
        let asked = SpiffeWorkloadApiClient::new(channel)
            .fetch_x509svid(with_header(wire::X509svidRequest {}))
            .await;
        assert!(asked.is_err());
    }
}

#[tokio::test]
async fn wep_18_unavailable_while_nothing_is_known_yet() {
    let ca = Ca::start().await;
    ca.down().await;
    let agent = Agent::start_unready(&ca).await;
    assert_eq!(agent.fetch().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(agent.bundles().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn wep_19_wapi_20_without_identity_permission_denied_and_nothing_but_a_code_and_a_number() {
    let ca = Ca::start().await;
    ca.entry("other", "/other", &["unix:uid:4242"]);
    let agent = Agent::start(&ca).await;
    let status = agent.fetch().await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(
        status.message().contains("FNL2104") && status.message().contains("correlation id"),
        "{status}"
    );
    for secret in ["4242", "other", "selector", "uid"] {
        assert!(!status.message().contains(secret), "{status}");
    }
}

#[tokio::test]
async fn ag_12_without_an_entry_it_is_no_at_once_and_when_the_entry_goes_the_stream_ends_and_tells_nothing()
 {
    let ca = Ca::start().await;
    let agent = Agent::start(&ca).await;
    let asked = tokio::time::Instant::now();
    let refused = agent.fetch().await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(asked.elapsed() < Duration::from_secs(1));

    ca.entry("pay", "/pay", &[&my_uid()]);
    crate::rig::eventually("the entry is there", async || agent.fetch().await.is_ok()).await;
    let (mut svids, mut bundles) = (agent.svids().await.unwrap(), agent.bundles().await.unwrap());
    next(&mut svids).await.unwrap();
    raw(&mut bundles).await.unwrap();
    ca.remove_entry("pay");
    // A message, also an empty one, would come out here in place of the status.
    let ends = [
        next(&mut svids).await.map(drop),
        raw(&mut bundles).await.map(drop),
    ];
    for end in ends {
        assert_eq!(end.unwrap_err().code(), Code::PermissionDenied);
    }
    assert_eq!(
        agent.fetch().await.unwrap_err().code(),
        Code::PermissionDenied
    );
}

#[tokio::test]
async fn wapi_01_the_x509_and_the_jwt_profile_are_served() {
    let (ca, agent) = with_one_entry().await;
    let mut client = agent.client().await;
    let x509 = agent.fetch().await.unwrap();
    assert_eq!(x509.identities()[0].svid.id().path(), "/pay");
    agent.bundles().await.unwrap();
    let ask = wire::JwtsvidRequest {
        audience: vec!["bank".into()],
        spiffe_id: String::new(),
    };
    let jwt = client.fetch_jwtsvid(with_header(ask)).await.unwrap();
    let token = jwt.into_inner().svids.remove(0);
    assert_eq!(token.spiffe_id, "spiffe://dev.test/pay");
    client
        .fetch_jwt_bundles(with_header(wire::JwtBundlesRequest {}))
        .await
        .unwrap();
    let ask = wire::ValidateJwtsvidRequest {
        audience: "bank".into(),
        svid: token.svid,
    };
    let valid = client.validate_jwtsvid(with_header(ask)).await.unwrap();
    assert_eq!(valid.into_inner().spiffe_id, "spiffe://dev.test/pay");
    assert_eq!(ca.seen().tokens, ["pay"]);
}

#[tokio::test]
async fn wapi_02_wit_is_switched_off_and_all_its_rpcs_are_unimplemented() {
    let (_ca, agent) = with_one_entry().await;
    let answers = every_rpc(&agent, |request| {
        request
            .metadata_mut()
            .insert("workload.spiffe.io", "true".parse().unwrap());
    })
    .await;
    for (method, status) in answers {
        let wanted = match method {
            "FetchWITSVID" | "FetchWITBundles" => Some(Code::Unimplemented),
            // Their requests lack what is mandatory.
            "FetchJWTSVID" | "ValidateJWTSVID" => Some(Code::InvalidArgument),
            _ => None,
        };
        assert_eq!(status.map(|s| s.code()), wanted, "{method}");
    }
}

#[tokio::test]
async fn wapi_04_the_path_has_no_package() {
    let (_ca, agent) = with_one_entry().await;
    let mut grpc = tonic::client::Grpc::new(crate::rig::channel(&agent.socket()).await);
    for (path, works) in [
        ("/SpiffeWorkloadAPI/FetchX509SVID", true),
        ("/spiffe.workload.SpiffeWorkloadAPI/FetchX509SVID", false),
    ] {
        grpc.ready().await.unwrap();
        let codec =
            tonic_prost::ProstCodec::<wire::X509svidRequest, wire::X509svidResponse>::default();
        let path = path.parse::<http::uri::PathAndQuery>().unwrap();
        let answer = grpc
            .server_streaming(with_header(wire::X509svidRequest {}), path, codec)
            .await;
        assert_eq!(answer.is_ok(), works);
    }
}

#[tokio::test]
async fn wapi_06_each_message_is_the_full_state() {
    let ca = Ca::start().await;
    ca.entry("a-short", "/short", &[&my_uid()]);
    ca.entry("b-long", "/long", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let mut stream = agent.svids().await.unwrap();
    let first = next(&mut stream).await.unwrap();
    // Only one of the two is made anew.
    ca.entry_with("a-short", "/short", &[&my_uid()], |entry| {
        entry.dns_names = vec!["x.test".into()]
    });
    let second = next(&mut stream).await.unwrap();
    assert_eq!(
        (first.identities().len(), second.identities().len()),
        (2, 2)
    );
    assert_ne!(
        first.identities()[0].svid.serial(),
        second.identities()[0].svid.serial()
    );
    assert_eq!(
        first.identities()[1].svid.serial(),
        second.identities()[1].svid.serial()
    );
}

#[tokio::test]
async fn wapi_07_the_first_message_comes_without_delay_on_every_stream() {
    let (_ca, agent) = with_one_entry().await;
    agent.fetch().await.unwrap();
    let mut client = agent.client().await;
    for _ in 0..5 {
        let before = tokio::time::Instant::now();
        let mut stream = client
            .fetch_x509svid(with_header(wire::X509svidRequest {}))
            .await
            .unwrap()
            .into_inner();
        next(&mut stream).await.unwrap();
        assert!(
            before.elapsed() < Duration::from_millis(250),
            "{:?}",
            before.elapsed()
        );
    }
}

#[tokio::test]
async fn wapi_08_entitlement_rotation_and_bundle_changes_are_pushed() {
    let (ca, agent) = with_one_entry().await;
    let mut stream = agent.svids().await.unwrap();
    next(&mut stream).await.unwrap();
    ca.entry("shop", "/shop", &[&my_uid()]);
    assert_eq!(next(&mut stream).await.unwrap().identities().len(), 2);
    ca.rotate_root(true);
    let context = next(&mut stream).await.unwrap();
    assert_eq!(
        context
            .bundles()
            .get(&"dev.test".parse().unwrap())
            .unwrap()
            .x509_authorities()
            .len(),
        2
    );
    ca.remove_entry("shop");
    assert_eq!(next(&mut stream).await.unwrap().identities().len(), 1);
}

#[tokio::test]
async fn a_change_that_is_none_for_this_process_sends_nothing() {
    let (ca, agent) = with_one_entry().await;
    let mut stream = agent.svids().await.unwrap();
    next(&mut stream).await.unwrap();
    ca.entry("foreign", "/foreign", &["unix:uid:4242"]);
    ca.foreign_bundle("other.test");
    assert!(quiet(&mut stream, Duration::from_millis(500)).await);
}

#[tokio::test]
async fn wapi_15_the_order_is_by_entry_id_and_does_not_change() {
    let ca = Ca::start().await;
    for (id, path) in [("c", "/c"), ("a", "/z"), ("b", "/a")] {
        ca.entry(id, path, &[&my_uid()]);
    }
    let agent = Agent::start(&ca).await;
    for _ in 0..3 {
        let context = agent.fetch().await.unwrap();
        let paths: Vec<_> = context
            .identities()
            .iter()
            .map(|i| i.svid.id().path().to_owned())
            .collect();
        assert_eq!(paths, ["/z", "/a", "/c"]);
    }
}

#[tokio::test]
async fn wapi_21_wapi_22_wapi_23_wapi_24_every_field_is_there_and_fits_the_others() {
    let (_ca, agent) = with_one_entry().await;
    let mut stream = agent.svids().await.unwrap();
    let message = raw(&mut stream).await.unwrap();
    let svid = &message.svids[0];
    assert_eq!(svid.spiffe_id, "spiffe://dev.test/pay");
    let chain =
        X509Svid::from_der_concat(&svid.x509_svid).expect("wapi_22: concatenated DER, leaf first");
    let key = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(
        &svid.x509_svid_key.as_slice().into(),
        &rcgen::PKCS_ECDSA_P256_SHA256,
    )
    .expect("wapi_23: PKCS#8, unencrypted, in DER");
    assert_eq!(
        rcgen::PublicKeyData::subject_public_key_info(&key),
        chain.spki(),
        "wapi_24: the key fits the leaf"
    );
    let bundle = mesh_identity::Bundle::from_der_concat("dev.test".parse().unwrap(), &svid.bundle)
        .expect("concatenated DER");
    let bundles = [bundle].into_iter().collect();
    verify_x509_svid(chain.chain(), &bundles, ca::now())
        .expect("wapi_24: the leaf verifies against the bundle");
    assert!(message.crl.is_empty());
    assert!(
        !bundles
            .get(&"dev.test".parse().unwrap())
            .unwrap()
            .x509_authorities()
            .iter()
            .any(|root| chain.chain().contains(root.der())),
        "the root is not in the chain"
    );
}

#[tokio::test]
async fn wapi_25_a_hint_is_unique_and_the_oldest_entry_keeps_it() {
    let ca = Ca::start().await;
    for (id, created) in [
        ("a-young", 1_700_000_300),
        ("b-old", 1_700_000_100),
        ("c-middle", 1_700_000_200),
    ] {
        ca.entry_with(id, &format!("/{id}"), &[&my_uid()], |entry| {
            entry.hint = "internal".into();
            entry.created_at = created;
        });
    }
    let agent = Agent::start(&ca).await;
    let context = agent.fetch().await.unwrap();
    let hints: Vec<_> = context
        .identities()
        .iter()
        .map(|i| i.hint.as_str())
        .collect();
    assert_eq!(hints, ["", "internal", ""]);
}

#[tokio::test]
async fn wapi_27_entitlement_that_is_lost_ends_the_stream_with_permission_denied() {
    let (ca, agent) = with_one_entry().await;
    let (mut svids, mut bundles) = (agent.svids().await.unwrap(), agent.bundles().await.unwrap());
    next(&mut svids).await.unwrap();
    raw(&mut bundles).await.unwrap();
    ca.remove_entry("pay");
    assert_eq!(
        next(&mut svids).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    assert_eq!(
        raw(&mut bundles).await.unwrap_err().code(),
        Code::PermissionDenied
    );
}

#[tokio::test]
async fn wapi_27_an_entry_that_runs_out_is_a_lost_entitlement() {
    let ca = Ca::start().await;
    let end = ca::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs()
        + 3;
    ca.entry_with("pay", "/pay", &[&my_uid()], |entry| {
        entry.expires_at = i64::try_from(end).unwrap()
    });
    let agent = Agent::start(&ca).await;
    let mut stream = agent.svids().await.unwrap();
    next(&mut stream).await.unwrap();
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn wapi_29_t_35_federated_bundles_are_keyed_by_id_and_only_for_the_entitled() {
    let ca = Ca::start().await;
    ca.foreign_bundle("friend.test");
    ca.foreign_bundle("stranger.test");
    ca.entry_with("pay", "/pay", &[&my_uid()], |entry| {
        entry.federates_with = vec!["friend.test".into()]
    });
    let agent = Agent::start(&ca).await;
    let (mut svids, mut bundles) = (agent.svids().await.unwrap(), agent.bundles().await.unwrap());
    let message = raw(&mut svids).await.unwrap();
    assert_eq!(
        message.federated_bundles.keys().collect::<Vec<_>>(),
        ["spiffe://friend.test"]
    );
    let mut keys: Vec<_> = raw(&mut bundles)
        .await
        .unwrap()
        .bundles
        .into_keys()
        .collect();
    keys.sort();
    assert_eq!(keys, ["spiffe://dev.test", "spiffe://friend.test"]);
    // A foreign root that changes is pushed to those who may see it; redaction is absence (WAPI-11).
    ca.foreign_bundle("friend.test");
    raw(&mut svids).await.unwrap();
    ca.entry("pay", "/pay", &[&my_uid()]);
    assert!(raw(&mut svids).await.unwrap().federated_bundles.is_empty());
}

#[tokio::test]
async fn wapi_31_wapi_32_bundles_hold_the_own_trust_domain_under_field_two() {
    use prost::Message;
    let (ca, agent) = with_one_entry().await;
    let mut stream = agent.bundles().await.unwrap();
    let message = raw(&mut stream).await.unwrap();
    let own = &message.bundles["spiffe://dev.test"];
    assert_eq!(*own, ca.bundle().to_der_concat());
    // Field 2, length-delimited: 0x12. Field 1 (crl) is empty and absent.
    assert_eq!(message.encode_to_vec()[0], 0x12);
    assert!(
        quiet(&mut stream, Duration::from_millis(200)).await,
        "identical messages are not repeated"
    );
}

#[tokio::test]
async fn wapi_33_without_entitlement_there_are_no_bundles() {
    let ca = Ca::start().await;
    ca.entry("other", "/other", &["unix:uid:4242"]);
    let agent = Agent::start(&ca).await;
    assert_eq!(
        agent.bundles().await.unwrap_err().code(),
        Code::PermissionDenied
    );
}

#[tokio::test]
async fn h_08_what_is_ready_is_served_while_another_identity_is_missing() {
    let ca = Ca::start().await;
    ca.knobs()
        .refuse_entries
        .insert("a".into(), Code::Internal.into());
    ca.entry("a", "/a", &[&my_uid()]);
    ca.entry("b", "/b", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let mut stream = agent.svids().await.unwrap();
    let first = next(&mut stream).await.unwrap();
    assert_eq!(first.identities()[0].svid.id().path(), "/b");
    ca.knobs().refuse_entries.clear();
    assert_eq!(next(&mut stream).await.unwrap().identities().len(), 2);
}

#[tokio::test]
async fn entries_that_are_not_made_ahead_are_made_when_a_stream_asks() {
    let ca = Ca::start().await;
    ca.entry_with("pay", "/pay", &[&my_uid()], |entry| {
        entry.additional_attributes = Some(proto::spire::api::types::entry::AdditionalAttributes {
            disable_x509_svid_prefetch: true,
            jwt_svid_include_jti: false,
        });
    });
    let agent = Agent::start(&ca).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(ca.seen().signed.is_empty());
    agent.fetch().await.unwrap();
    assert_eq!(ca.seen().signed, ["pay"]);
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused() {
    let (_ca, agent) = with_one_entry().await;
    let mut client = agent.client().await;
    let request = with_header(wire::ValidateJwtsvidRequest {
        audience: "a".into(),
        svid: "x".repeat(1 << 20),
    });
    let status = client.validate_jwtsvid(request).await.unwrap_err();
    assert!(
        matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted),
        "{status}"
    );
}

#[tokio::test]
async fn ag_15_a_slow_reader_gets_the_newest_state_and_not_each_one() {
    let (ca, agent) = with_one_entry().await;
    let mut stream = agent.svids().await.unwrap();
    next(&mut stream).await.unwrap();
    // Large messages, so that the windows fill up: 40 roots of changes while nobody reads.
    for n in 0..200 {
        ca.entry_with("pay", "/pay", &[&my_uid()], |entry| {
            entry.dns_names = vec![format!("n{n}.test")]
        });
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    crate::rig::eventually("the last one is signed", async || {
        agent.fetch().await.is_ok_and(|c| {
            String::from_utf8_lossy(c.identities()[0].svid.leaf()).contains("n199.test")
        })
    })
    .await;
    let mut seen = 0;
    loop {
        let context = next(&mut stream).await.unwrap();
        seen += 1;
        if String::from_utf8_lossy(context.identities()[0].svid.leaf()).contains("n199.test") {
            break;
        }
    }
    assert!(seen <= 200, "{seen}");
}

#[tokio::test]
async fn each_identity_that_is_given_out_and_each_refusal_is_recorded() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    ca.token("audited");
    let dir = crate::rig::directory();
    let audit = dir.path().join("audit");
    let attestation = format!(
        "{}\naudit: {{ dir: {} }}",
        crate::rig::join_token("audited"),
        audit.display()
    );
    let agent = Agent::start_in(&ca, dir, &attestation).await;
    agent.ready().await;
    let mut stream = agent.svids().await.unwrap();
    next(&mut stream).await.unwrap();
    ca.entry("shop", "/shop", &[&my_uid()]);
    next(&mut stream).await.unwrap();
    ca.remove_entry("pay");
    next(&mut stream).await.unwrap();
    ca.remove_entry("shop");
    let status = next(&mut stream).await.unwrap_err();
    agent.app.tasks().stop();
    agent.app.join().await.unwrap();

    let file = audit.join(mesh_runtime::audit::FILE_NAME);
    mesh_runtime::audit::verify(&[&file]).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let records: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let fetches: Vec<_> = records
        .iter()
        .filter(|record| record["action"] == "identity.fetch")
        .collect();
    let ids: Vec<_> = fetches
        .iter()
        .map(|record| record["object"]["id"].as_str().unwrap_or("-"))
        .collect();
    assert_eq!(
        ids,
        ["spiffe://dev.test/pay", "spiffe://dev.test/shop", "-"]
    );
    assert_eq!(fetches[0]["actor"]["pid"], std::process::id());
    assert_eq!(fetches[0]["outcome"], "success");
    assert_eq!(
        (&fetches[2]["outcome"], &fetches[2]["code"]),
        (&"denied".into(), &"FNL2104".into())
    );
    assert!(
        status
            .message()
            .contains(fetches[2]["request_id"].as_str().unwrap())
    );
    assert!(!text.contains("unix:"), "no selectors in the record");
}

#[tokio::test]
async fn m_04_a_connection_that_says_nothing_does_not_stay() {
    use tokio::io::AsyncReadExt;
    let (_ca, agent) = with_one_entry().await;
    let mut silent = tokio::net::UnixStream::connect(agent.socket())
        .await
        .unwrap();
    let mut rest = Vec::new();
    // The server's own settings come first; then nothing, and the end.
    let end = tokio::time::timeout(Duration::from_secs(15), silent.read_to_end(&mut rest)).await;
    assert!(end.is_ok(), "closed within 15 s");
}
