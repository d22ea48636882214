//! The JWT profile of the SPIFFE Workload API, row by row (WAPI-40 to WAPI-52).

use std::collections::BTreeMap;

use mesh_identity::{
    BundleSet,
    jwt::verify_jwt_svid,
    test_util::jwt::{JwtSigner, claims},
};
use proto::spiffe::workload as wire;
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::{
    ca::{self, Ca},
    rig::{Agent, eventually, my_uid, quiet, raw, with_header},
};

async fn fetch(agent: &Agent, audience: &[&str], id: &str) -> Result<Vec<wire::Jwtsvid>, Status> {
    let ask = wire::JwtsvidRequest {
        audience: audience.iter().map(|&value| value.into()).collect(),
        spiffe_id: id.into(),
    };
    let answer = agent.client().await.fetch_jwtsvid(with_header(ask)).await?;
    Ok(answer.into_inner().svids)
}

async fn validate(
    agent: &Agent,
    audience: &str,
    svid: &str,
) -> Result<wire::ValidateJwtsvidResponse, Status> {
    let ask = wire::ValidateJwtsvidRequest {
        audience: audience.into(),
        svid: svid.into(),
    };
    let answer = agent
        .client()
        .await
        .validate_jwtsvid(with_header(ask))
        .await?;
    Ok(answer.into_inner())
}

fn bundles(ca: &Ca) -> BundleSet {
    [ca.bundle()].into_iter().collect()
}

/// A token of a signer, valid now.
fn token(signer: &JwtSigner, id: &str, change: impl FnOnce(&mut Value)) -> String {
    let now = ca::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let mut said = claims(id, "bank");
    said["iat"] = json!(now);
    said["exp"] = json!(now + 300);
    change(&mut said);
    signer.sign(&signer.header(), &said)
}

#[tokio::test]
async fn wapi_12_wapi_40_wapi_42_all_audiences_go_into_the_token_and_without_one_it_is_refused() {
    let ca = Ca::start().await;
    ca.entry_with("pay", "/pay", &[&my_uid()], |entry| {
        entry.hint = "main".into()
    });
    let agent = Agent::start(&ca).await;
    let svids = fetch(&agent, &["bank", "shop"], "").await.unwrap();
    assert_eq!(svids.len(), 1);
    assert_eq!(
        (svids[0].spiffe_id.as_str(), svids[0].hint.as_str()),
        ("spiffe://dev.test/pay", "main")
    );
    for audience in ["bank", "shop"] {
        let proven =
            verify_jwt_svid(&svids[0].svid, &bundles(&ca), &[audience], ca::now()).unwrap();
        assert_eq!(
            (proven.id.as_str(), proven.audience.len()),
            ("spiffe://dev.test/pay", 2)
        );
    }
    for none in [&[][..], &[""]] {
        let refused = fetch(&agent, none, "").await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let again = fetch(&agent, &["shop", "bank"], "").await.unwrap();
    assert_eq!(again, svids, "kept");
    assert_eq!(ca.seen().tokens, ["pay"]);
}

#[tokio::test]
async fn wapi_41_wapi_43_every_identity_or_the_one_that_is_named_and_never_somebody_elses() {
    let ca = Ca::start().await;
    ca.entry_with("a", "/one", &[&my_uid()], |entry| {
        entry.hint = "same".into()
    });
    ca.entry_with("b", "/two", &[&my_uid()], |entry| {
        entry.hint = "same".into()
    });
    ca.entry("c", "/other", &["unix:uid:4242"]);
    let agent = Agent::start(&ca).await;
    let ids = |svids: &[wire::Jwtsvid]| {
        svids
            .iter()
            .map(|svid| svid.spiffe_id.clone())
            .collect::<Vec<_>>()
    };
    let all = fetch(&agent, &["bank"], "").await.unwrap();
    assert_eq!(
        ids(&all),
        ["spiffe://dev.test/one", "spiffe://dev.test/two"]
    );
    assert_eq!(
        (all[0].hint.as_str(), all[1].hint.as_str()),
        ("same", ""),
        "hints are unique"
    );
    let two = fetch(&agent, &["bank"], "spiffe://dev.test/two")
        .await
        .unwrap();
    assert_eq!(ids(&two), ["spiffe://dev.test/two"]);
    for id in [
        "spiffe://dev.test/other",
        "spiffe://dev.test/none",
        "spiffe://other.test/one",
    ] {
        let refused = fetch(&agent, &["bank"], id).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{id}");
        assert!(refused.message().contains("FNL2104"));
    }
    let refused = fetch(&agent, &["bank"], "not-an-id").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn h_08_if_one_of_several_tokens_cannot_be_had_the_call_fails_as_a_whole() {
    let ca = Ca::start().await;
    ca.entry("a", "/one", &[&my_uid()]);
    ca.entry("b", "/two", &[&my_uid()]);
    ca.knobs()
        .refuse_entries
        .insert("b".into(), Code::Internal as i32);
    let agent = Agent::start_unready(&ca).await;
    eventually("the entries are known", async || {
        fetch(&agent, &["bank"], "spiffe://dev.test/one")
            .await
            .is_ok()
    })
    .await;
    let refused = fetch(&agent, &["bank"], "").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
}

#[tokio::test]
async fn wapi_47_without_an_identity_permission_denied() {
    let ca = Ca::start().await;
    ca.entry("other", "/other", &["unix:uid:4242"]);
    let agent = Agent::start(&ca).await;
    let refused = fetch(&agent, &["bank"], "").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let mut client = agent.client().await;
    let refused = client
        .fetch_jwt_bundles(with_header(wire::JwtBundlesRequest {}))
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn wapi_44_wapi_45_t_38_jwt_bundles_are_keyed_by_id_and_hold_nothing_but_jwt_keys() {
    let ca = Ca::start().await;
    ca.foreign_jwt("b.test", &JwtSigner::new("foreign"));
    ca.foreign_jwt("stranger.test", &JwtSigner::new("stranger"));
    ca.entry_with("pay", "/pay", &[&my_uid()], |entry| {
        entry.federates_with = vec!["b.test".into()]
    });
    let agent = Agent::start(&ca).await;
    let mut client = agent.client().await;
    let stream = client
        .fetch_jwt_bundles(with_header(wire::JwtBundlesRequest {}))
        .await;
    let mut stream = stream.unwrap().into_inner();
    let jwks: BTreeMap<_, Value> = raw(&mut stream)
        .await
        .unwrap()
        .bundles
        .into_iter()
        .map(|(name, text)| (name, serde_json::from_slice(&text).unwrap()))
        .collect();
    let names: Vec<_> = jwks.keys().collect();
    assert_eq!(names, ["spiffe://b.test", "spiffe://dev.test"]);
    for document in jwks.values() {
        assert_eq!(document.as_object().unwrap().len(), 1, "keys alone");
        let key = document["keys"][0].as_object().unwrap();
        assert_eq!(
            key.keys().collect::<Vec<_>>(),
            ["crv", "kid", "kty", "x", "y"]
        );
    }
    // A new X.509 root is no news to this stream.
    ca.rotate_root(true);
    assert!(quiet(&mut stream, std::time::Duration::from_millis(700)).await);
}

#[tokio::test]
async fn wapi_48_wapi_49_t_27_a_token_is_validated_and_every_fault_is_invalid_argument() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let svid = fetch(&agent, &["bank"], "").await.unwrap().remove(0).svid;
    let proven = validate(&agent, "bank", &svid).await.unwrap();
    assert_eq!(proven.spiffe_id, "spiffe://dev.test/pay");
    let claims = proven.claims.unwrap().fields;
    assert!(claims.contains_key("exp") && claims.contains_key("sub"));
    let one_text = token(ca.jwt(), "spiffe://dev.test/a", |said| {
        said["aud"] = json!("bank");
        said["extra"] = json!({"deep": [1, true, null]});
    });
    let claims = validate(&agent, "bank", &one_text)
        .await
        .unwrap()
        .claims
        .unwrap()
        .fields;
    assert!(
        format!("{:?}", claims["aud"]).contains("ListValue"),
        "always a list"
    );
    assert!(
        claims.contains_key("extra"),
        "our own trust domain may say more"
    );

    let expired = token(ca.jwt(), "spiffe://dev.test/a", |said| {
        said["exp"] = json!(1_700_000_000)
    });
    let stranger = token(&JwtSigner::new("test-key"), "spiffe://dev.test/a", |_| {});
    let unknown = token(ca.jwt(), "spiffe://unknown.test/a", |_| {});
    for (audience, svid) in [
        ("", svid.as_str()),
        ("bank", ""),
        ("shop", &svid),
        ("bank", "x.y.z"),
        ("bank", &expired),
        ("bank", &stranger),
        ("bank", &unknown),
        ("bank", &format!("{svid}A")),
    ] {
        let refused = validate(&agent, audience, svid).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
}

#[tokio::test]
async fn wapi_51_foreign_tokens_by_their_own_bundle_for_those_who_federate_and_cut_to_known_claims()
{
    let ca = Ca::start().await;
    let signer = JwtSigner::new("foreign");
    ca.foreign_jwt("b.test", &signer);
    let foreign = token(&signer, "spiffe://b.test/a", |said| {
        said["extra"] = json!("x")
    });
    let agent = Agent::start(&ca).await;
    // No entry of its own: our own bundle and no other.
    let own = token(ca.jwt(), "spiffe://dev.test/a", |_| {});
    validate(&agent, "bank", &own).await.unwrap();
    let refused = validate(&agent, "bank", &foreign).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    ca.entry_with("pay", "/pay", &[&my_uid()], |entry| {
        entry.federates_with = vec!["b.test".into()]
    });
    eventually("the entry is known", async || {
        validate(&agent, "bank", &foreign).await.is_ok()
    })
    .await;
    let claims = validate(&agent, "bank", &foreign)
        .await
        .unwrap()
        .claims
        .unwrap()
        .fields;
    assert!(!claims.contains_key("extra") && claims.contains_key("sub"));
    let crossed = token(ca.jwt(), "spiffe://b.test/a", |_| {});
    assert!(validate(&agent, "bank", &crossed).await.is_err());
}
