//! Attestation with a question in the middle, over the wire: what is answered, recorded and remembered.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_tls::{Possession, WebIdentity};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};

use super::*;
use crate::config::{NodeAttestor, X509PopConfig};

/// A server that trusts an outside authority, and a node that has a certificate of it.
async fn world() -> (Server, WebIdentity) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &root).unwrap();
    let node = WebIdentity::from_pem(leaf.pem().as_bytes(), key.serialize_pem().as_bytes());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("roots.pem");
    std::fs::write(&path, root.pem()).unwrap();
    let pop = NodeAttestor::X509Pop(X509PopConfig {
        ca_bundles: vec![path],
    });
    let server = Server::with(|config| config.attestation.node = vec![pop]).await;
    (server, node.unwrap())
}

/// One exchange: `answer` turns the challenge into what is sent next, or hangs up.
async fn attest(
    server: &Server,
    node: &WebIdentity,
    answer: impl FnOnce(Vec<u8>) -> Option<attest_agent_request::Step>,
) -> Result<Option<agent_wire::attest_agent_response::Result>, Status> {
    let (asks, rest) = mpsc::channel(2);
    let shown: Vec<_> = node.chain().map(|der| STANDARD.encode(der)).collect();
    let params = agent_wire::attest_agent_request::Params {
        data: Some(types::AttestationData {
            r#type: "x509pop".into(),
            payload: json!({ "certificates": shown }).to_string().into(),
        }),
        params: Some(agent_wire::AgentX509svidParams {
            csr: key_and_csr().1,
        }),
    };
    let ask = |step| agent_wire::AttestAgentRequest { step: Some(step) };
    let first = ask(attest_agent_request::Step::Params(params));
    asks.send(first).await.unwrap();
    let mut answers = AgentClient::new(server.anonymous().await)
        .attest_agent(ReceiverStream::new(rest))
        .await?
        .into_inner();
    let Some(attest_agent_response::Step::Challenge(challenge)) =
        answers.message().await?.unwrap().step
    else {
        panic!("the server asks first");
    };
    let Some(answer) = answer(challenge) else {
        return Ok(None);
    };
    asks.send(ask(answer)).await.unwrap();
    match answers.message().await?.unwrap().step.unwrap() {
        attest_agent_response::Step::Result(result) => Ok(Some(result)),
        attest_agent_response::Step::Challenge(_) => panic!("one question is enough"),
    }
}

fn right(node: &WebIdentity, challenge: &[u8]) -> attest_agent_request::Step {
    let asked: Value = serde_json::from_slice(challenge).unwrap();
    let asked = asked["ecdsa_signature"]["nonce"].as_str().unwrap();
    let message = [STANDARD.decode(asked).unwrap(), vec![7; 32]].concat();
    let Some(Possession::Ecdsa { r, s }) = node.prove(&message) else {
        panic!("a key on P-256");
    };
    let answer = json!({ "ecdsa_signature": {
        "nonce": STANDARD.encode([7; 32]), "r": STANDARD.encode(r), "s": STANDARD.encode(s),
    }});
    attest_agent_request::Step::ChallengeResponse(answer.to_string().into())
}

#[tokio::test]
async fn a_node_with_a_certificate_of_another_authority_attests_and_attests_again() {
    let (server, node) = world().await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let result = attest(&server, &node, |ask| Some(right(&node, &ask))).await;
        let result = result.unwrap().unwrap();
        assert!(result.reattestable);
        let svid = IssuedX509Svid::try_from(result.svid.unwrap()).unwrap().svid;
        let id = svid.id().clone();
        assert!(id.path().starts_with("/spire/agent/x509pop/"), "{id}");
        let stored = server.stores.nodes.get(&id).await.unwrap().unwrap();
        assert_eq!(
            (stored.attestation_type.as_str(), stored.can_reattest),
            ("x509pop", true)
        );
        assert_eq!(stored.serial, svid.serial());
        ids.push(id);
    }
    assert_eq!(ids[0], ids[1], "it is the same node");
    let records = server.audit.of("node.attest");
    assert_eq!(records.len(), 2);
    assert_eq!(records[0]["outcome"], "success");
    assert_eq!(records[0]["object"]["name"], ids[0].as_str());

    server.stores.nodes.set_banned(&ids[0], true).await.unwrap();
    let banned = attest(&server, &node, |ask| Some(right(&node, &ask))).await;
    assert_eq!(reason(&banned.unwrap_err()), Some(Reason::AgentBanned));
}

#[tokio::test]
async fn a_wrong_answer_and_no_answer_leave_a_record_and_no_agent() {
    let (server, node) = world().await;
    let wrong = [
        (Code::PermissionDenied, "FNL1076"),
        (Code::InvalidArgument, "FNL1260"),
        (Code::InvalidArgument, "FNL1075"),
        (Code::InvalidArgument, "FNL1101"),
    ];
    for (number, (code, _)) in wrong.iter().enumerate() {
        let refused = attest(&server, &node, |ask| {
            use attest_agent_request::Step;
            Some(match number {
                0 => {
                    let Step::ChallengeResponse(answer) = right(&node, &ask) else {
                        panic!("an answer");
                    };
                    let mut answer: Value = serde_json::from_slice(&answer).unwrap();
                    answer["ecdsa_signature"]["nonce"] = STANDARD.encode([8; 32]).into();
                    Step::ChallengeResponse(answer.to_string().into())
                }
                1 => Step::Params(Default::default()),
                2 => Step::ChallengeResponse(b"{}".into()),
                _ => Step::ChallengeResponse(vec![b' '; 64 * 1024]),
            })
        });
        let refused = refused.await.unwrap_err();
        assert_eq!(refused.code(), *code, "{number}: {refused}");
    }
    let records = server.audit.of("node.attest");
    let codes: Vec<_> = records.iter().map(|record| &record["code"]).collect();
    let expected: Vec<_> = wrong.iter().map(|(_, code)| *code).collect();
    assert_eq!(codes, expected, "{records:?}");
    assert!(records.iter().all(|record| record["outcome"] == "denied"));
    let name = records[0]["object"]["name"].as_str().unwrap();
    assert!(
        name.contains("/x509pop/"),
        "the record names who it would have been"
    );

    assert!(attest(&server, &node, |_| None).await.unwrap().is_none());
    for _ in 0..100 {
        if server.audit.of("node.attest").len() == 5 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let records = server.audit.of("node.attest");
    assert_eq!(records.len(), 5, "who hangs up leaves a record");
    assert_ne!(records[4]["outcome"], "success");
    assert!(server.stores.nodes.list().await.unwrap().is_empty());
}
