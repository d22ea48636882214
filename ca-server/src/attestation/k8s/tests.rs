//! Every check against a small true API server: HTTP, TokenReview, pods and nodes, with answers that a test can bend.

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_runtime::clock::Clock;
use mesh_runtime::errors::Coded;
use serde_json::{Value, json};
use std::sync::Arc;

use super::*;
use crate::fleet::Fleet;
use crate::store::{Attested, Node as StoredNode, Stores};

/// What the fake cluster holds. The token itself says who it is for, as a real one does.
#[derive(Clone)]
struct World {
    status: Value,
    pod: Option<Value>,
    node: Option<Value>,
    other_pod: Option<Value>,
    answer: Answer,
    seen: Vec<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Answer {
    Well,
    Status(u16),
    Redirect,
    Never,
    Junk,
}

const POD_UID: &str = "6f1c3c1e-pod";
const NODE_UID: &str = "9a77-node";
const JTI: &str = "11111111-2222-3333-4444-555555555555";
const NOW: u64 = 1_800_000_000;

fn good_status() -> Value {
    json!({
        "authenticated": true,
        "audiences": ["ca-server"],
        "user": {
            "username": "system:serviceaccount:finial:agent",
            "uid": "sa-uid",
            "groups": ["system:serviceaccounts", "system:serviceaccounts:finial", "system:authenticated"],
            "extra": {
                "authentication.kubernetes.io/pod-name": ["agent-x1"],
                "authentication.kubernetes.io/pod-uid": [POD_UID],
                "authentication.kubernetes.io/node-name": ["node-a"],
                "authentication.kubernetes.io/node-uid": [NODE_UID],
                "authentication.kubernetes.io/credential-id": [format!("JTI={JTI}")],
            }
        }
    })
}

fn good_pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "agent-x1", "namespace": "finial", "uid": POD_UID, "labels": {"app": "agent"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "finial-agent", "uid": "ds", "controller": true}],
        },
        "spec": {"nodeName": "node-a", "serviceAccountName": "agent", "containers": []},
        "status": {"phase": "Running", "hostIP": "10.1.2.3"},
    })
}

fn good_node() -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a", "uid": NODE_UID, "labels": {"node-restriction.kubernetes.io/pool": "a"}}})
}

fn good_claims() -> Value {
    json!({
        "iss": "https://kubernetes.default.svc",
        "aud": ["ca-server"],
        "exp": NOW + 600, "iat": NOW, "nbf": NOW,
        "jti": JTI,
        "sub": "system:serviceaccount:finial:agent",
        "kubernetes.io": {
            "namespace": "finial",
            "serviceaccount": {"name": "agent", "uid": "sa-uid"},
            "pod": {"name": "agent-x1", "uid": POD_UID},
            "node": {"name": "node-a", "uid": NODE_UID},
        }
    })
}

fn token(claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!(
        "{}.{}.c2ln",
        part(&json!({"alg": "RS256", "kid": "k"})),
        part(claims)
    )
}

struct Setting {
    cluster: Cluster,
    world: Arc<Mutex<World>>,
    stores: Stores,
    fleet: Fleet,
    clock: Clock,
}

impl Setting {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut K8sPsatConfig)) -> Self {
        let world = Arc::new(Mutex::new(World {
            status: good_status(),
            pod: Some(good_pod()),
            node: Some(good_node()),
            other_pod: None,
            answer: Answer::Well,
            seen: Vec::new(),
        }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = world.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let world = shared.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(world.clone(), request));
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                        .ok();
                });
            }
        });
        let own = "dev.test".parse().unwrap();
        let stores = Stores::memory(&own);
        let fleet = Fleet::new();
        let clock = Clock::frozen(UNIX_EPOCH + Duration::from_secs(NOW));
        let around = Surroundings {
            trust_domain: own,
            tokens: stores.tokens.clone(),
            nodes: stores.nodes.clone(),
            fleet: fleet.clone(),
            clock: clock.clone(),
        };
        let mut settings = K8sPsatConfig {
            cluster: "prod".into(),
            service_accounts: vec!["finial:agent".into()],
            issuer: Some("https://kubernetes.default.svc".into()),
            timeout: mesh_runtime::config::HumanDuration::from_millis(500),
            node_labels: vec!["node-restriction.kubernetes.io/pool".into()],
            pod_labels: vec!["app".into()],
            ..K8sPsatConfig::default()
        };
        change(&mut settings);
        mesh_tls::install_default_provider();
        let config = kube::Config::new(format!("http://{address}").parse().unwrap());
        let client = kube::Client::try_from(config).unwrap();
        Self {
            cluster: Cluster::with_client(settings, client, around),
            world,
            stores,
            fleet,
            clock,
        }
    }

    fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn attest_with(
        &self,
        claims: &Value,
        csr: &VerifiedCsr,
    ) -> Result<AttestedNode, K8sRefused> {
        let payload = json!({"cluster": "prod", "token": token(claims)}).to_string();
        let evidence = Evidence::parse(payload.as_bytes())?;
        self.cluster.attest(evidence, csr).await
    }

    async fn attest(&self) -> Result<AttestedNode, K8sRefused> {
        self.attest_with(&good_claims(), &csr()).await
    }

    /// The code of the refusal after a change of the world.
    async fn refusal(change: impl FnOnce(&mut World)) -> &'static str {
        let setting = Self::new().await;
        change(&mut setting.world());
        setting.attest().await.unwrap_err().code()
    }

    /// The code of the refusal of changed claims, and how many calls reached the API server.
    async fn claims_refusal(change: impl FnOnce(&mut Value)) -> (&'static str, usize) {
        let setting = Self::new().await;
        let mut claims = good_claims();
        change(&mut claims);
        let code = setting
            .attest_with(&claims, &csr())
            .await
            .unwrap_err()
            .code();
        let calls = setting.world().seen.len();
        (code, calls)
    }
}

fn csr() -> VerifiedCsr {
    let key = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::default()
        .serialize_request(&key)
        .unwrap();
    VerifiedCsr::parse(request.der()).unwrap()
}

async fn answer(
    world: Arc<Mutex<World>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let method = request.method().clone();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let now = {
        let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
        world.seen.push(format!("{method} {path}"));
        world.clone()
    };
    let reply = |status: u16, value: &Value| {
        Ok(Response::builder()
            .status(StatusCode::from_u16(status).unwrap())
            .header("content-type", "application/json")
            .body(Full::from(value.to_string()))
            .unwrap())
    };
    let failure = |code: u16, reason: &str| json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason});
    if method == Method::POST && path == "/apis/authentication.k8s.io/v1/tokenreviews" {
        match now.answer {
            Answer::Well => {}
            Answer::Status(code) => return reply(code, &failure(code, "Forbidden")),
            Answer::Redirect => {
                return Ok(Response::builder()
                    .status(StatusCode::FOUND)
                    .header("location", "/elsewhere")
                    .body(Full::default())
                    .unwrap());
            }
            Answer::Never => std::future::pending().await,
            Answer::Junk => return reply(201, &json!({"kind": "Status", "status": "Success"})),
        }
        let mut review: Value = serde_json::from_slice(&body).unwrap();
        review["status"] = now.status;
        return reply(201, &review);
    }
    let object = match path.as_str() {
        "/api/v1/namespaces/finial/pods/agent-x1" => now.pod,
        "/api/v1/namespaces/finial/pods/agent-old" => now.other_pod,
        "/api/v1/nodes/node-a" => now.node,
        _ => None,
    };
    match object {
        Some(object) => reply(200, &object),
        None => reply(404, &failure(404, "NotFound")),
    }
}

#[tokio::test]
async fn a_good_token_proves_its_node_with_all_selectors() {
    let node = Setting::new().await.attest().await.unwrap();
    assert_eq!(
        node.id.as_str(),
        format!("spiffe://dev.test/spire/agent/k8s_psat/prod/{NODE_UID}")
    );
    assert!(node.can_reattest);
    assert_eq!(node.evidence_id, JTI);
    let selectors: Vec<String> = node.selectors.iter().map(ToString::to_string).collect();
    for wanted in [
        "k8s_psat:cluster:prod".to_owned(),
        "k8s_psat:agent_ns:finial".to_owned(),
        "k8s_psat:agent_sa:agent".to_owned(),
        "k8s_psat:agent_pod_name:agent-x1".to_owned(),
        format!("k8s_psat:agent_pod_uid:{POD_UID}"),
        "k8s_psat:agent_node_name:node-a".to_owned(),
        format!("k8s_psat:agent_node_uid:{NODE_UID}"),
        "k8s_psat:agent_node_ip:10.1.2.3".to_owned(),
        "k8s_psat:agent_node_label:node-restriction.kubernetes.io/pool:a".to_owned(),
        "k8s_psat:agent_pod_label:app:agent".to_owned(),
    ] {
        assert!(
            selectors.contains(&wanted),
            "{wanted} is not in {selectors:?}"
        );
    }
}

#[test]
fn evidence_that_is_not_cluster_and_token_is_refused() {
    for bad in [
        &b""[..],
        b"{}",
        b"[]",
        b"{\"cluster\":\"prod\"}",
        b"{\"cluster\":\"prod\",\"token\":\"\"}",
        b"\xff",
    ] {
        assert_eq!(Evidence::parse(bad).unwrap_err().code(), "FNL1121");
    }
}

#[tokio::test]
async fn n3_what_the_token_itself_rules_out_costs_no_call() {
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 14] = [
        ("FNL1124", |c| {
            c["kubernetes.io"]["namespace"] = json!("../../nodes")
        }),
        ("FNL1124", |c| {
            c["kubernetes.io"]["pod"]["name"] = json!("a/b?c")
        }),
        ("FNL1124", |c| {
            c["kubernetes.io"]["node"]["name"] = json!("..")
        }),
        ("FNL1127", |c| c["iss"] = json!("https://other")),
        ("FNL1128", |c| c["aud"] = json!(["vault"])),
        ("FNL1128", |c| c["aud"] = json!([])),
        ("FNL1129", |c| c["exp"] = json!(NOW)),
        ("FNL1124", |c| c["exp"] = json!(null)),
        ("FNL1124", |c| c["jti"] = json!("")),
        ("FNL1124", |c| c["kubernetes.io"] = json!(null)),
        ("FNL1125", |c| c["kubernetes.io"]["pod"] = json!(null)),
        ("FNL1126", |c| c["kubernetes.io"]["node"] = json!(null)),
        ("FNL1126", |c| {
            c["kubernetes.io"]["node"] = json!({"name": "node-a"})
        }),
        ("FNL1124", |c| {
            c["kubernetes.io"]["serviceaccount"] = json!({"name": ""})
        }),
    ];
    for (code, change) in cases {
        assert_eq!(Setting::claims_refusal(change).await, (code, 0));
    }
}

#[tokio::test]
async fn n3_a_token_that_is_no_jwt_is_refused_without_a_call() {
    let setting = Setting::new().await;
    for bad in ["x", "a.b", "a.b.c.d", "..", "a.!!.c"] {
        let payload = json!({"cluster": "prod", "token": bad}).to_string();
        let evidence = Evidence::parse(payload.as_bytes()).unwrap();
        assert_eq!(
            setting
                .cluster
                .attest(evidence, &csr())
                .await
                .unwrap_err()
                .code(),
            "FNL1123"
        );
    }
    assert!(setting.world().seen.is_empty());
}

#[tokio::test]
async fn n6_ca_06_ca_07_ca_09_every_way_in_which_a_review_says_no_is_a_refusal_of_its_own() {
    type Change = fn(&mut World);
    let cases: [(&str, Change); 9] = [
        ("FNL1132", |w| {
            w.status = json!({"error": "[invalid bearer token]", "user": {}})
        }),
        ("FNL1132", |w| w.status["error"] = json!("also an error")), // CA-09
        ("FNL1133", |w| w.status = json!({"user": {}})),
        ("FNL1133", |w| w.status["authenticated"] = json!(false)),
        ("FNL1134", |w| w.status["audiences"] = json!([])), // CA-06
        ("FNL1134", |w| w.status["audiences"] = json!(null)),
        ("FNL1134", |w| w.status["audiences"] = json!(["vault"])), // CA-07
        ("FNL1131", |w| w.status = json!(null)),
        ("FNL1135", |w| w.status["user"] = json!(null)),
    ];
    for (number, (code, change)) in cases.into_iter().enumerate() {
        assert_eq!(Setting::refusal(change).await, code, "case {number}");
    }
}

#[tokio::test]
async fn a_token_of_a_pod_that_is_gone_has_another_reason_than_a_forged_one() {
    let no = json!({"error": "[invalid bearer token]", "user": {}});
    assert_eq!(Setting::refusal(|w| w.status = no.clone()).await, "FNL1132");
    let gone = Setting::refusal(|w| {
        w.status = no.clone();
        w.pod = None;
    });
    assert_eq!(gone.await, "FNL1158");
}

#[tokio::test]
async fn ca_11_an_api_server_that_fails_slow_redirects_or_talks_nonsense_fails_closed() {
    for answer in [
        Answer::Status(403),
        Answer::Status(401),
        Answer::Status(500),
        Answer::Redirect,
        Answer::Never,
    ] {
        assert_eq!(Setting::refusal(|w| w.answer = answer).await, "FNL1130");
    }
    let junk = Setting::refusal(|w| w.answer = Answer::Junk).await;
    assert!(["FNL1130", "FNL1131"].contains(&junk), "{junk}");
}

#[tokio::test]
async fn n13_a_token_for_workloads_does_not_attest_a_node_whoever_vouches_for_it() {
    // The agent's own account, pod and node, but minted for the audience of workloads: no call is made.
    let workload = |c: &mut Value| c["aud"] = json!(["finial-workload"]);
    assert_eq!(Setting::claims_refusal(workload).await, ("FNL1128", 0));
    // A token that names the audience of nodes itself, while the API server confirms that of workloads only.
    assert_eq!(
        Setting::refusal(|w| w.status["audiences"] = json!(["finial-workload"])).await,
        "FNL1134"
    );
    // The right audience in the hands of a workload: its account is not an agent's.
    let account = "system:serviceaccount:shop:web";
    assert_eq!(
        Setting::refusal(|w| w.status["user"]["username"] = json!(account)).await,
        "FNL1136"
    );
}

#[tokio::test]
async fn n7_ca_08_a_user_that_is_no_service_account_or_not_an_agents_is_refused() {
    for user in [
        "system:node:x",
        "system:serviceaccount:a",
        "system:serviceaccount:a:b:c",
        "system:serviceaccount::agent",
        "finial:agent",
    ] {
        assert_eq!(
            Setting::refusal(|w| w.status["user"]["username"] = json!(user)).await,
            "FNL1135",
            "{user}"
        );
    }
    assert_eq!(
        Setting::refusal(|w| w.status["user"]["groups"] = json!(["system:authenticated"])).await,
        "FNL1135"
    );
    assert_eq!(
        Setting::refusal(|w| w.status["user"]["username"] = json!("system:serviceaccount:shop:web")).await,
        "FNL1136"
    );
}

#[tokio::test]
async fn n8_each_fact_must_be_there_exactly_once_and_be_the_tokens() {
    for key in [
        "pod-name",
        "pod-uid",
        "node-name",
        "node-uid",
        "credential-id",
    ] {
        let key = format!("authentication.kubernetes.io/{key}");
        let change = |value: Value| {
            let key = key.clone();
            move |w: &mut World| w.status["user"]["extra"][key] = value
        };
        assert_eq!(
            Setting::refusal(change(json!([]))).await,
            "FNL1137",
            "{key}"
        );
        assert_eq!(
            Setting::refusal(change(json!(["a", "b"]))).await,
            "FNL1137",
            "{key}"
        );
        assert_eq!(
            Setting::refusal(change(json!(["other"]))).await,
            "FNL1138",
            "{key}"
        );
    }
}

#[tokio::test]
async fn n9_n10_ca_10_a_pod_that_is_not_the_tokens_live_pod_is_refused() {
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 8] = [
        ("FNL1141", |p| p["metadata"]["uid"] = json!("another")),
        ("FNL1144", |p| {
            p["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"})
        }),
        ("FNL1143", |p| p["spec"]["serviceAccountName"] = json!("")),
        ("FNL1142", |p| {
            p["spec"]["serviceAccountName"] = json!("web")
        }),
        ("FNL1145", |p| p["spec"]["nodeName"] = json!("node-b")),
        ("FNL1146", |p| {
            p["metadata"]["deletionTimestamp"] = json!("2026-11-25T00:00:00Z")
        }),
        ("FNL1147", |p| p["status"]["phase"] = json!("Failed")),
        ("FNL1147", |p| p["status"]["phase"] = json!("Succeeded")),
    ];
    for (code, change) in cases {
        assert_eq!(
            Setting::refusal(|w| change(w.pod.as_mut().unwrap())).await,
            code
        );
    }
    assert_eq!(Setting::refusal(|w| w.pod = None).await, "FNL1140");
}

#[tokio::test]
async fn n11_a_node_that_is_gone_or_was_made_again_is_refused() {
    assert_eq!(Setting::refusal(|w| w.node = None).await, "FNL1149");
    assert_eq!(
        Setting::refusal(|w| w.node.as_mut().unwrap()["metadata"]["uid"] = json!("new")).await,
        "FNL1150"
    );
}

#[tokio::test]
async fn n14_a_pod_outside_the_expected_daemon_set_is_refused() {
    let wanted = Setting::with(|s| s.daemon_set = Some("finial-agent".into())).await;
    assert!(wanted.attest().await.is_ok());
    let other = Setting::with(|s| s.daemon_set = Some("another".into())).await;
    assert_eq!(other.attest().await.unwrap_err().code(), "FNL1148");
}

async fn store_former(setting: &Setting, pod_name: &str, pod_uid: &str) -> SpiffeId {
    let id: SpiffeId = format!("spiffe://dev.test/spire/agent/k8s_psat/prod/{NODE_UID}")
        .parse()
        .unwrap();
    let stored = setting
        .stores
        .nodes
        .attest(StoredNode {
            id: id.clone(),
            attestation_type: "k8s_psat".into(),
            selectors: BTreeSet::new(),
            serial: "01".into(),
            expires_at: setting.clock.now() + Duration::from_secs(60),
            renewed: None,
            can_reattest: true,
            banned: false,
            kubernetes: Some(KubernetesFacts {
                namespace: "finial".into(),
                pod_name: pod_name.into(),
                pod_uid: pod_uid.into(),
                ..KubernetesFacts::default()
            }),
            agent_version: String::new(),
            attested_at: setting.clock.now(),
            revision: 0,
        })
        .await
        .unwrap();
    assert!(matches!(stored, Attested::Stored { .. }));
    id
}

#[tokio::test]
async fn n12_ca_13_a_ban_wins() {
    let setting = Setting::new().await;
    let id = store_former(&setting, "agent-x1", POD_UID).await;
    setting.stores.nodes.set_banned(&id, true).await.unwrap();
    assert_eq!(setting.attest().await.unwrap_err().code(), "FNL1151");
}

#[tokio::test]
async fn n14_a_second_agent_of_a_node_waits_until_the_first_ones_pod_is_gone() {
    let setting = Setting::new().await;
    store_former(&setting, "agent-old", "old-uid").await;
    let mut old = good_pod();
    old["metadata"]["name"] = json!("agent-old");
    old["metadata"]["uid"] = json!("old-uid");
    setting.world().other_pod = Some(old);
    assert_eq!(setting.attest().await.unwrap_err().code(), "FNL1152");
    setting.world().other_pod = None;
    assert!(setting.attest().await.is_ok());
}

#[tokio::test]
async fn n5_n15_the_same_token_with_the_same_key_is_a_retry() {
    let (setting, csr) = (Setting::new().await, csr());
    let first = setting.attest_with(&good_claims(), &csr).await.unwrap();
    assert_eq!(
        setting.attest_with(&good_claims(), &csr).await.unwrap(),
        first
    );
}

#[tokio::test]
async fn decision_9_a_restarted_agent_may_bring_a_new_key_but_not_beside_a_live_one() {
    let setting = Setting::new().await;
    let node = setting.attest().await.unwrap();
    assert!(
        setting.attest().await.is_ok(),
        "nobody is connected: a restart"
    );
    let live = setting.fleet.connect(&node.id, setting.clock.now());
    assert_eq!(setting.attest().await.unwrap_err().code(), "FNL1154");
    drop(live);
    assert!(setting.attest().await.is_ok());
}

#[tokio::test]
async fn decision_9_a_token_is_not_taken_with_another_key_beside_an_agent_of_spire_that_polls() {
    let setting = Setting::new().await;
    let node = setting.attest().await.unwrap();
    setting.fleet.heard(&node.id, setting.clock.now());
    assert_eq!(setting.attest().await.unwrap_err().code(), "FNL1154");
    setting.clock.advance(crate::fleet::SILENCE);
    assert!(setting.attest().await.is_ok());
}

#[tokio::test]
async fn ca_12_one_token_with_a_hundred_keys_at_once_has_no_success_that_another_pod_could_use() {
    let setting = Arc::new(Setting::new().await);
    // The token was first used by another pod of another node: nobody here may use it again.
    let used = JtiUse {
        jti: format!("prod/{JTI}"),
        spki_hash: [7; 32],
        expires_at: UNIX_EPOCH + Duration::from_secs(NOW + 660),
        holder: "another".into(),
    };
    setting.stores.tokens.spend_jti(used).await.unwrap();
    let attempts = (0..100).map(|_| {
        let setting = setting.clone();
        tokio::spawn(async move { setting.attest().await.unwrap_err().code() })
    });
    let mut refused = 0;
    for attempt in attempts.collect::<Vec<_>>() {
        match attempt.await.unwrap() {
            "FNL1153" => refused += 1,
            // No more than 32 wait for the API server at once, and on a slow machine some wait too long, or it answers too late.
            other => assert!(
                ["FNL1130", "FNL1139", "FNL1157"].contains(&other),
                "{other}"
            ),
        }
    }
    assert!(refused > 0);
}

#[tokio::test]
async fn the_token_is_in_no_error() {
    let secret = token(&good_claims());
    for answer in [Answer::Status(403), Answer::Junk, Answer::Redirect] {
        let setting = Setting::new().await;
        setting.world().answer = answer;
        let error = setting.attest().await.unwrap_err();
        let text = format!("{error:?} {}", mesh_runtime::errors::ErrorChain(&error));
        assert!(
            !text.contains(&secret) && !text.contains(secret.split('.').nth(1).unwrap()),
            "{text}"
        );
    }
}
