//! What trusted local processes get on the admin socket: SPIRE's DelegatedIdentity (C.12) and the agent's own state.

use std::{process::Stdio, time::Duration};

use mesh_identity::{X509Svid, jwt::verify_jwt_svid};
use proto::spire::api::{
    agent::{
        debug::v1::{GetInfoRequest, debug_client::DebugClient},
        delegatedidentity::v1::{self as wire, delegated_identity_client::DelegatedIdentityClient},
    },
    types,
};
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::{
    ca::{self, Ca},
    rig::{Agent, channel, my_uid, quiet, raw},
};

type Svids = Streaming<wire::SubscribeToX509sviDsResponse>;

/// An agent for which the holders of `/delegate` are delegates.
async fn agent(ca: &Ca) -> Agent {
    Agent::start_changed(ca, |yaml| {
        yaml.replace(
            "private/admin.sock\n",
            "private/admin.sock\n  authorizedDelegates: [\"spiffe://dev.test/delegate\"]\n",
        )
    })
    .await
}

async fn client(agent: &Agent) -> DelegatedIdentityClient<Channel> {
    DelegatedIdentityClient::new(channel(&agent.admin_socket()).await)
}

fn selectors(of: &[&str]) -> Vec<types::Selector> {
    let read = of.iter().map(|text| {
        let (kind, value) = text.split_once(':').unwrap();
        types::Selector {
            r#type: kind.into(),
            value: value.into(),
        }
    });
    read.collect()
}

async fn svids(agent: &Agent, of: &[&str], pid: i32) -> Result<Svids, Status> {
    let ask = wire::SubscribeToX509sviDsRequest {
        selectors: selectors(of),
        pid,
    };
    let answer = client(agent).await.subscribe_to_x509svi_ds(ask).await;
    answer.map(tonic::Response::into_inner)
}

async fn tokens(
    agent: &Agent,
    audience: &[&str],
    of: &[&str],
    pid: i32,
) -> Result<Vec<types::Jwtsvid>, Status> {
    let ask = wire::FetchJwtsviDsRequest {
        audience: audience.iter().map(|&value| value.into()).collect(),
        selectors: selectors(of),
        pid,
    };
    let answer = client(agent).await.fetch_jwtsvi_ds(ask).await;
    answer.map(|answer| answer.into_inner().svids)
}

/// The IDs in a message, each checked to be the one in its certificate.
fn ids(message: &wire::SubscribeToX509sviDsResponse) -> Vec<String> {
    let read = message.x509_svids.iter().map(|given| {
        let svid = given.x509_svid.as_ref().unwrap();
        let chain = svid.cert_chain.concat();
        let parsed = X509Svid::from_der_concat(&chain).unwrap();
        let id = svid.id.as_ref().unwrap();
        let id = format!("spiffe://{}{}", id.trust_domain, id.path);
        assert_eq!(parsed.id().as_str(), id);
        assert!(!given.x509_svid_key.is_empty() && svid.expires_at > 1_700_000_000);
        id
    });
    read.collect()
}

fn code<T>(answer: Result<T, Status>) -> Code {
    answer.map(drop).expect_err("refused").code()
}

const SHOP: &[&str] = &["k8s:ns:shop", "k8s:pod-name:shop-1"];

#[tokio::test]
async fn a_delegate_is_given_what_the_workload_it_vouches_for_may_have_and_hears_of_each_change() {
    let ca = Ca::start().await;
    ca.entry("d", "/delegate", &[&my_uid()]);
    ca.foreign_bundle("far.test");
    ca.entry_with("a", "/shop", &["k8s:ns:shop"], |entry| {
        entry.hint = "first".into();
        entry.federates_with = vec!["far.test".into()];
    });
    // Power over a CA is not handed on.
    ca.entry_with("b", "/boss", &["k8s:ns:shop"], |entry| entry.admin = true);
    ca.entry_with("c", "/ca", &["k8s:ns:shop"], |entry| {
        entry.downstream = true
    });
    let agent = agent(&ca).await;
    let mut stream = svids(&agent, SHOP, 0).await.unwrap();
    let first = raw(&mut stream).await.unwrap();
    assert_eq!(ids(&first), ["spiffe://dev.test/shop"]);
    let given = first.x509_svids[0].x509_svid.as_ref().unwrap();
    assert_eq!(given.hint, "first");
    assert_eq!(first.federates_with, ["spiffe://far.test"]);
    // Changes that are none for this workload are not told.
    ca.entry("other", "/other", &["k8s:ns:other"]);
    assert!(quiet(&mut stream, Duration::from_millis(400)).await);

    ca.entry("z", "/shop/second", SHOP);
    let second = raw(&mut stream).await.unwrap();
    assert_eq!(
        ids(&second),
        ["spiffe://dev.test/shop", "spiffe://dev.test/shop/second"]
    );
    ca.remove_entry("a");
    ca.remove_entry("z");
    let mut last = raw(&mut stream).await.unwrap();
    if !last.x509_svids.is_empty() {
        last = raw(&mut stream).await.unwrap();
    }
    assert!(last.x509_svids.is_empty() && last.federates_with.is_empty());
}

#[tokio::test]
async fn who_is_no_delegate_is_refused_and_who_ceases_to_be_one_hears_nothing_more() {
    let ca = Ca::start().await;
    ca.entry("a", "/shop", &["k8s:ns:shop"]);
    let agent = agent(&ca).await;
    let refused = svids(&agent, SHOP, 0)
        .await
        .expect_err("no entry of its own");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("no identity issued"));

    ca.entry("n", "/nobody", &[&my_uid()]);
    crate::rig::eventually("another refusal", async || {
        let refused = svids(&agent, SHOP, 0).await.expect_err("not a delegate");
        assert_eq!(refused.code(), Code::PermissionDenied);
        refused.message() == "caller not configured as an authorized delegate"
    })
    .await;
    assert_eq!(
        code(tokens(&agent, &["bank"], SHOP, 0).await),
        Code::PermissionDenied
    );
    let bundles = client(&agent)
        .await
        .subscribe_to_x509_bundles(wire::SubscribeToX509BundlesRequest {})
        .await;
    assert_eq!(code(bundles), Code::PermissionDenied);

    ca.entry("d", "/delegate", &[&my_uid()]);
    crate::rig::eventually("the new delegate", async || {
        svids(&agent, SHOP, 0).await.is_ok()
    })
    .await;
    let mut stream = svids(&agent, SHOP, 0).await.unwrap();
    raw(&mut stream).await.unwrap();
    ca.remove_entry("d");
    let end = raw(&mut stream).await.expect_err("the stream ends");
    assert_eq!(end.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_workload_is_named_by_selectors_or_by_a_living_process_and_not_by_both() {
    let ca = Ca::start().await;
    ca.entry("d", "/delegate", &[&my_uid()]);
    let agent = agent(&ca).await;
    for (of, pid) in [(SHOP, 1), (&[], 0), (&[], -1), (SHOP, -1)] {
        assert_eq!(code(svids(&agent, of, pid).await), Code::InvalidArgument);
        let answer = tokens(&agent, &["bank"], of, pid).await;
        assert_eq!(code(answer), Code::InvalidArgument);
    }
    for broken in [":x", "k8s:"] {
        let answer = svids(&agent, &[broken], 0).await;
        assert_eq!(code(answer), Code::InvalidArgument, "{broken}");
    }
    let answer = tokens(&agent, &[], SHOP, 0).await;
    assert_eq!(code(answer), Code::InvalidArgument);
    let nobody = svids(&agent, &[], i32::MAX).await;
    assert_eq!(code(nobody), Code::PermissionDenied);
}

#[tokio::test]
async fn a_process_that_is_named_is_looked_at_by_the_agent_and_its_end_ends_the_stream() {
    let ca = Ca::start().await;
    ca.entry("d", "/delegate", &[&my_uid()]);
    let mut child = tokio::process::Command::new("sleep")
        .arg("600")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    let program = std::fs::canonicalize("/proc/self/exe").unwrap();
    let mut path = program.clone();
    // The child may still be on its way to the program.
    while path == program {
        tokio::time::sleep(Duration::from_millis(10)).await;
        path = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    }
    ca.entry("s", "/sleeper", &[&format!("unix:path:{}", path.display())]);
    let agent = agent(&ca).await;
    let mut stream = svids(&agent, &[], pid).await.unwrap();
    let first = raw(&mut stream).await.unwrap();
    let found = ids(&first);
    assert!(
        found.contains(&"spiffe://dev.test/sleeper".to_owned()),
        "{found:?}"
    );
    let given = tokens(&agent, &["bank"], &[], pid).await.unwrap();
    assert!(
        given
            .iter()
            .any(|token| token.id.as_ref().unwrap().path == "/sleeper")
    );

    child.kill().await.unwrap();
    let end = raw(&mut stream).await.expect_err("the stream ends");
    assert_eq!(end.code(), Code::PermissionDenied);
    assert!(end.message().contains("ended"), "{end}");
    let late = tokens(&agent, &["bank"], &[], pid).await;
    assert_eq!(code(late), Code::PermissionDenied);
}

#[tokio::test]
async fn a_process_that_is_named_and_becomes_another_program_is_judged_again_though_nothing_else_changed()
 {
    let ca = Ca::start().await;
    ca.entry("d", "/delegate", &[&my_uid()]);
    let shell = std::fs::canonicalize("/bin/sh").unwrap();
    ca.entry("s", "/shell", &[&format!("unix:path:{}", shell.display())]);
    let mut child = tokio::process::Command::new(&shell)
        .args(["-c", "read line && exec sleep 600"])
        .stdin(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    let agent = agent(&ca).await;
    let of_the_shell = |message: &wire::SubscribeToX509sviDsResponse| {
        ids(message).contains(&"spiffe://dev.test/shell".to_owned())
    };
    let mut stream = svids(&agent, &[], pid).await.unwrap();
    assert!(of_the_shell(&raw(&mut stream).await.unwrap()));
    let mut line = child.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut line, b"\n")
        .await
        .unwrap();
    assert!(!of_the_shell(&raw(&mut stream).await.unwrap()));
    assert!(child.try_wait().unwrap().is_none(), "it lives");
}

#[tokio::test]
async fn a_delegate_is_given_tokens_and_every_bundle_of_the_agent() {
    let ca = Ca::start().await;
    ca.entry("d", "/delegate", &[&my_uid()]);
    ca.entry("a", "/shop", &["k8s:ns:shop"]);
    ca.foreign_bundle("far.test");
    let agent = agent(&ca).await;
    let given = tokens(&agent, &["bank"], SHOP, 0).await.unwrap();
    let [token] = &given[..] else {
        panic!("one token, not {}", given.len());
    };
    let bundles = [ca.bundle()].into_iter().collect();
    let proven = verify_jwt_svid(&token.token, &bundles, &["bank"], ca::now()).unwrap();
    assert_eq!(proven.id.as_str(), "spiffe://dev.test/shop");
    assert!(token.expires_at > token.issued_at && token.issued_at > 0);
    let nothing = tokens(&agent, &["bank"], &["k8s:ns:other"], 0).await;
    assert_eq!(code(nothing), Code::PermissionDenied);

    let mut delegate = client(&agent).await;
    let roots = delegate
        .subscribe_to_x509_bundles(wire::SubscribeToX509BundlesRequest {})
        .await;
    let mut roots = roots.unwrap().into_inner();
    let told = raw(&mut roots).await.unwrap().ca_certificates;
    let names: Vec<_> = told.keys().map(String::as_str).collect();
    assert_eq!(names, ["spiffe://dev.test", "spiffe://far.test"]);
    assert_eq!(told["spiffe://dev.test"], ca.bundle().to_der_concat());
    let keys = delegate
        .subscribe_to_jwt_bundles(wire::SubscribeToJwtBundlesRequest {})
        .await;
    let mut keys = keys.unwrap().into_inner();
    let told = raw(&mut keys).await.unwrap().bundles;
    assert_eq!(told["spiffe://dev.test"], ca.bundle().to_jwks_json());
    // A new root is told to who asked for roots, and to nobody else.
    ca.rotate_root(true);
    let told = raw(&mut roots).await.unwrap().ca_certificates;
    assert_eq!(told["spiffe://dev.test"], ca.bundle().to_der_concat());
    assert!(quiet(&mut keys, Duration::from_millis(400)).await);
}

#[tokio::test]
async fn an_administrator_sees_the_own_chain_and_what_is_cached() {
    let ca = Ca::start().await;
    ca.entry("a", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    agent.fetch().await.unwrap();
    let info = DebugClient::new(channel(&agent.admin_socket()).await)
        .get_info(GetInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    let leaf = info.svid_chain.first().expect("the own chain");
    let id = leaf.id.as_ref().expect("an ID");
    assert!(id.path.starts_with("/spire/agent/"), "{id:?}");
    assert!(leaf.expires_at > info.last_sync_success && info.last_sync_success > 1_700_000_000);
    assert_eq!(
        (info.cached_x509_svids_count, info.cached_jwt_svids_count),
        (1, 0)
    );
    assert!((0..60).contains(&info.uptime));
}
