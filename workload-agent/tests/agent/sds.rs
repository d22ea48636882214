//! Envoy's secret discovery service on the workload socket (C.11): what an Envoy asks and what it is answered.

use std::time::Duration;

use prost::Message;
use proto::envoy::{
    config::core::v3::Node,
    extensions::transport_sockets::tls::v3::{self as tls, secret::Type},
    service::{
        discovery::v3 as wire,
        secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient,
    },
};
use rustls_pki_types::pem::PemObject;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::{
    ca::Ca,
    rig::{Agent, channel, eventually, my_uid, quiet, raw},
};

/// Both ends of one stream of an Envoy.
struct Talk<Q, A> {
    asks: mpsc::Sender<Q>,
    answers: Streaming<A>,
}

impl<Q, A> Talk<Q, A> {
    async fn ask(&self, ask: Q) {
        assert!(self.asks.send(ask).await.is_ok(), "the stream is open");
    }

    async fn answer(&mut self) -> Result<A, Status> {
        raw(&mut self.answers).await
    }

    async fn is_quiet(&mut self) -> bool {
        quiet(&mut self.answers, Duration::from_millis(400)).await
    }
}

async fn client(agent: &Agent) -> SecretDiscoveryServiceClient<Channel> {
    SecretDiscoveryServiceClient::new(channel(&agent.socket()).await)
}

/// A stream whose first request asks for these names.
async fn stream(
    agent: &Agent,
    names: &[&str],
) -> Talk<wire::DiscoveryRequest, wire::DiscoveryResponse> {
    let (asks, coming) = mpsc::channel(8);
    let first = asks.send(ask(names, None)).await;
    assert!(first.is_ok());
    let answers = client(agent)
        .await
        .stream_secrets(ReceiverStream::new(coming))
        .await
        .unwrap()
        .into_inner();
    Talk { asks, answers }
}

async fn delta(
    agent: &Agent,
    first: wire::DeltaDiscoveryRequest,
) -> Talk<wire::DeltaDiscoveryRequest, wire::DeltaDiscoveryResponse> {
    let (asks, coming) = mpsc::channel(8);
    let sent = asks.send(first).await;
    assert!(sent.is_ok());
    let answers = client(agent)
        .await
        .delta_secrets(ReceiverStream::new(coming))
        .await
        .unwrap()
        .into_inner();
    Talk { asks, answers }
}

fn ask(names: &[&str], to: Option<&wire::DiscoveryResponse>) -> wire::DiscoveryRequest {
    wire::DiscoveryRequest {
        resource_names: names.iter().map(|&name| name.into()).collect(),
        type_url: SECRET.into(),
        version_info: to.map(|to| to.version_info.clone()).unwrap_or_default(),
        response_nonce: to.map(|to| to.nonce.clone()).unwrap_or_default(),
        ..Default::default()
    }
}

fn subscribe(names: &[&str]) -> wire::DeltaDiscoveryRequest {
    wire::DeltaDiscoveryRequest {
        resource_names_subscribe: names.iter().map(|&name| name.into()).collect(),
        ..Default::default()
    }
}

const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

fn secrets(answer: &wire::DiscoveryResponse) -> Vec<tls::Secret> {
    assert_eq!(answer.type_url, SECRET);
    let read = answer.resources.iter().map(|any| {
        assert_eq!(any.type_url, SECRET);
        tls::Secret::decode(&*any.value).unwrap()
    });
    read.collect()
}

fn names(answer: &wire::DiscoveryResponse) -> Vec<String> {
    secrets(answer).into_iter().map(|s| s.name).collect()
}

/// The leaf of the certificate in an answer's only secret.
fn certificate(answer: &wire::DiscoveryResponse) -> mesh_identity::X509Svid {
    let [secret] = &secrets(answer)[..] else {
        panic!("one secret, not {:?}", names(answer));
    };
    let Some(Type::TlsCertificate(found)) = &secret.r#type else {
        panic!("{} is no certificate", secret.name);
    };
    let chain = &found.certificate_chain.as_ref().unwrap().inline_bytes;
    mesh_identity::X509Svid::from_pem(chain).unwrap()
}

async fn with_two_entries() -> (Ca, Agent) {
    let ca = Ca::start().await;
    ca.entry("a", "/pay", &[&my_uid()]);
    ca.entry("b", "/ad", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    (ca, agent)
}

#[tokio::test]
async fn an_envoy_gets_its_certificate_without_a_header_and_each_name_is_answered() {
    let (_ca, agent) = with_two_entries().await;
    let mut talk = stream(&agent, &["default"]).await;
    let first = talk.answer().await.unwrap();
    assert_eq!((&*first.version_info, first.nonce.len()), ("1", 8));
    assert_eq!(certificate(&first).id().as_str(), "spiffe://dev.test/pay");

    let all = [
        "ALL",
        "ROOTCA",
        "default",
        "spiffe://dev.test",
        "spiffe://dev.test/ad",
    ];
    talk.ask(ask(&all, Some(&first))).await;
    let second = talk.answer().await.unwrap();
    assert_eq!(second.version_info, "2");
    assert_eq!(names(&second), all);

    let mut nameless = stream(&agent, &[]).await;
    let everything = nameless.answer().await.unwrap();
    assert_eq!(
        names(&everything),
        [
            "spiffe://dev.test",
            "spiffe://dev.test/ad",
            "spiffe://dev.test/pay"
        ]
    );
}

#[tokio::test]
async fn the_key_in_the_answer_is_that_of_the_certificate() {
    let (ca, agent) = with_two_entries().await;
    let mut talk = stream(&agent, &["spiffe://dev.test/pay"]).await;
    let answer = talk.answer().await.unwrap();
    let Some(Type::TlsCertificate(found)) = secrets(&answer).remove(0).r#type else {
        panic!("a certificate");
    };
    let key =
        rustls_pki_types::PrivateKeyDer::from_pem_slice(&found.private_key.unwrap().inline_bytes);
    let pair = rcgen::KeyPair::try_from(&key.unwrap()).unwrap();
    let svid = certificate(&answer);
    assert_eq!(
        rcgen::PublicKeyData::subject_public_key_info(&pair),
        svid.spki()
    );
    let bundles = mesh_identity::BundleSet::from_iter([ca.bundle()]);
    mesh_identity::verify::verify_x509_svid(svid.chain(), &bundles, crate::ca::now()).unwrap();
}

#[tokio::test]
async fn a_rotation_is_pushed_with_the_next_version_and_a_stream_of_roots_hears_nothing_of_it() {
    let (ca, agent) = with_two_entries().await;
    let mut leaves = stream(&agent, &["default"]).await;
    let first = leaves.answer().await.unwrap();
    leaves.ask(ask(&["default"], Some(&first))).await;
    let mut roots = stream(&agent, &["ROOTCA"]).await;
    let root = roots.answer().await.unwrap();
    roots.ask(ask(&["ROOTCA"], Some(&root))).await;
    assert!(leaves.is_quiet().await, "an acknowledgement has no answer");

    // The entry now asks for another lifetime, so a new SVID is made.
    ca.entry_with("a", "/pay", &[&my_uid()], |entry| {
        entry.dns_names = vec!["pay.test".into()]
    });
    let second = leaves.answer().await.unwrap();
    assert_eq!(second.version_info, "2");
    assert_ne!(certificate(&second).serial(), certificate(&first).serial());
    assert!(roots.is_quiet().await);

    ca.rotate_root(true);
    let wider = roots.answer().await.unwrap();
    assert_eq!(wider.version_info, "2");
}

#[tokio::test]
async fn a_name_that_is_not_the_callers_ends_the_stream_with_invalid_argument() {
    let (ca, agent) = with_two_entries().await;
    ca.entry("c", "/other", &["unix:uid:4242"]);
    let mut talk = stream(&agent, &["default", "spiffe://dev.test/other"]).await;
    let status = talk.answer().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status.message().contains("spiffe://dev.test/other"),
        "{status}"
    );
    assert!(!status.message().contains("default"), "{status}");
}

#[tokio::test]
async fn without_an_identity_there_is_no_secret_not_even_the_roots() {
    let ca = Ca::start().await;
    ca.entry("c", "/other", &["unix:uid:4242"]);
    let agent = Agent::start(&ca).await;
    for names in [&["default"][..], &["ROOTCA"], &["ALL"], &[]] {
        let mut talk = stream(&agent, names).await;
        let status = talk.answer().await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{names:?}");
        assert!(status.message().contains("FNL2104"), "{status}");
        let fetched = client(&agent).await.fetch_secrets(ask(names, None)).await;
        assert_eq!(fetched.unwrap_err().code(), Code::PermissionDenied);
    }
}

#[tokio::test]
async fn a_lost_entitlement_ends_the_stream() {
    let (ca, agent) = with_two_entries().await;
    let mut one = stream(&agent, &["spiffe://dev.test/ad"]).await;
    one.answer().await.unwrap();
    let mut all = stream(&agent, &[]).await;
    all.answer().await.unwrap();
    ca.remove_entry("b");
    assert_eq!(
        one.answer().await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let fewer = all.answer().await.unwrap();
    assert_eq!(
        names(&fewer),
        ["spiffe://dev.test", "spiffe://dev.test/pay"]
    );
    ca.remove_entry("a");
    assert_eq!(
        all.answer().await.unwrap_err().code(),
        Code::PermissionDenied
    );
}

#[tokio::test]
async fn a_stale_request_is_ignored_and_a_refused_answer_is_not_sent_again() {
    let (_ca, agent) = with_two_entries().await;
    let mut talk = stream(&agent, &["default"]).await;
    let first = talk.answer().await.unwrap();
    let mut stale = ask(&["ROOTCA"], Some(&first));
    stale.response_nonce = "ffffffff".into();
    talk.ask(stale).await;
    let mut nack = ask(&["default"], Some(&first));
    nack.error_detail = Some(proto::google::rpc::Status {
        code: 13,
        message: "key does not match".into(),
    });
    talk.ask(nack.clone()).await;
    assert!(talk.is_quiet().await);
    // The list of a refusal counts all the same.
    nack.resource_names = vec!["ROOTCA".into()];
    talk.ask(nack).await;
    assert_eq!(names(&talk.answer().await.unwrap()), ["ROOTCA"]);
}

#[tokio::test]
async fn differences_hold_what_changed_and_a_client_that_comes_back_hears_nothing_twice() {
    let (ca, agent) = with_two_entries().await;
    let mut talk = delta(&agent, subscribe(&["*"])).await;
    let first = talk.answer().await.unwrap();
    let versions: std::collections::BTreeMap<_, _> = first
        .resources
        .iter()
        .map(|r| (r.name.clone(), r.version.clone()))
        .collect();
    assert_eq!(versions.len(), 3);
    let mut ack = subscribe(&[]);
    ack.response_nonce = first.nonce;
    talk.ask(ack).await;

    ca.remove_entry("b");
    let second = talk.answer().await.unwrap();
    assert!(second.resources.is_empty());
    assert_eq!(second.removed_resources, ["spiffe://dev.test/ad"]);

    let mut back = subscribe(&[]);
    back.initial_resource_versions = versions;
    let mut again = delta(&agent, back).await;
    let third = again.answer().await.unwrap();
    assert!(third.resources.is_empty());
    assert_eq!(third.removed_resources, ["spiffe://dev.test/ad"]);
    assert!(again.is_quiet().await);
}

#[tokio::test]
async fn fetch_answers_once_and_plain_roots_come_when_the_node_asks_for_them() {
    let (_ca, agent) = with_two_entries().await;
    let mut plain = ask(&["ROOTCA"], None);
    let no = prost_types::Value {
        kind: Some(prost_types::value::Kind::BoolValue(true)),
    };
    plain.node = Some(Node {
        metadata: Some(prost_types::Struct {
            fields: [("disable_spiffe_cert_validation".to_owned(), no)].into(),
        }),
        ..Node::default()
    });
    for (request, has_plain) in [(ask(&["ROOTCA"], None), false), (plain.clone(), true)] {
        let answer = client(&agent).await.fetch_secrets(request).await.unwrap();
        let Some(Type::ValidationContext(context)) = secrets(answer.get_ref()).remove(0).r#type
        else {
            panic!("a validation context");
        };
        assert_eq!(context.trusted_ca.is_some(), has_plain);
        assert_eq!(context.custom_validator_config.is_some(), !has_plain);
    }
    plain.resource_names = vec!["ALL".into()];
    let refused = client(&agent).await.fetch_secrets(plain).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal);
}

#[tokio::test]
async fn a_slow_envoy_gets_the_newest_secrets_and_streams_are_counted() {
    let (ca, agent) = with_two_entries().await;
    let mut talk = stream(&agent, &["ROOTCA"]).await;
    let first = talk.answer().await.unwrap();
    assert!(
        agent
            .metrics()
            .await
            .contains("workload_agent_api_streams{api=\"sds\"} 1")
    );
    for _ in 0..5 {
        ca.rotate_root(true);
    }
    let newest = ca.bundle().x509_authorities().len();
    let mut answers = 0;
    let mut last = first;
    loop {
        let Some(Type::ValidationContext(context)) = secrets(&last).remove(0).r#type else {
            panic!("a validation context");
        };
        let any = context
            .custom_validator_config
            .unwrap()
            .typed_config
            .unwrap();
        let config = tls::SpiffeCertValidatorConfig::decode(&*any.value).unwrap();
        let pem = config.trust_domains[0]
            .trust_bundle
            .clone()
            .unwrap()
            .inline_bytes;
        if String::from_utf8(pem)
            .unwrap()
            .matches("BEGIN CERTIFICATE")
            .count()
            == newest
        {
            break;
        }
        last = talk.answer().await.unwrap();
        answers += 1;
    }
    assert!(answers <= 5, "{answers} answers for five changes");
    drop(talk);
    eventually("the stream is not counted any more", async || {
        agent
            .metrics()
            .await
            .contains("workload_agent_api_streams{api=\"sds\"} 0")
    })
    .await;
}
