//! The local-authority service: the states, the turns, and what agents hear of them.

use proto::spire::api::server::localauthority::v1 as wire;
use proto::spire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;

use super::*;

type Client = LocalAuthorityClient<Channel>;

async fn client(server: &Server) -> Client {
    LocalAuthorityClient::new(admin_channel(server).await)
}

async fn jwt_state(client: &mut Client) -> wire::GetJwtAuthorityStateResponse {
    let ask = wire::GetJwtAuthorityStateRequest {};
    client
        .get_jwt_authority_state(ask)
        .await
        .unwrap()
        .into_inner()
}

async fn x509_state(client: &mut Client) -> wire::GetX509AuthorityStateResponse {
    let ask = wire::GetX509AuthorityStateRequest {};
    client
        .get_x509_authority_state(ask)
        .await
        .unwrap()
        .into_inner()
}

fn by_id(id: &str) -> String {
    id.to_owned()
}

#[tokio::test]
async fn ca_52_ca_53_a_jwt_authority_is_replaced_tainted_and_revoked_and_agents_hear_of_each_step()
{
    let server = Server::start().await;
    let agent = server.join().await;
    let mut follow = Feed::open(&agent, "", 0).await;
    let mut keys = async || {
        let update = follow.next().await.unwrap();
        let own = update.bundles.iter().map(|carried| &carried.bundle);
        let keys = own.flat_map(|bundle| bundle.jwt_authorities());
        keys.map(|key| (key.key_id().to_owned(), key.is_tainted()))
            .collect::<Vec<_>>()
    };
    let mut client = client(&server).await;
    let first = jwt_state(&mut client).await;
    assert_eq!((first.prepared, first.old), (None, None));
    let first = first.active.unwrap();
    let one = first.authority_id.clone();
    assert!(first.expires_at > 0 && first.upstream_authority_subject_key_id.is_empty());
    assert_eq!(keys().await, [(one.clone(), false)]);

    let prepared = client
        .prepare_jwt_authority(wire::PrepareJwtAuthorityRequest {})
        .await;
    let prepared = prepared.unwrap().into_inner().prepared_authority.unwrap();
    let two = prepared.authority_id.clone();
    assert_eq!(keys().await, [(one.clone(), false), (two.clone(), false)]);
    let state = jwt_state(&mut client).await;
    assert_eq!(
        (state.active, state.prepared, state.old),
        (Some(first.clone()), Some(prepared.clone()), None)
    );

    let activate = wire::ActivateJwtAuthorityRequest {
        authority_id: by_id(&two),
    };
    let activated = client
        .activate_jwt_authority(activate)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(activated.activated_authority, Some(prepared.clone()));
    let state = jwt_state(&mut client).await;
    assert_eq!(
        (state.active, state.prepared, state.old),
        (Some(prepared), None, Some(first.clone()))
    );

    let revoke = wire::RevokeJwtAuthorityRequest {
        authority_id: by_id(&one),
    };
    let refused = client
        .revoke_jwt_authority(revoke.clone())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Internal);
    let taint = wire::TaintJwtAuthorityRequest {
        authority_id: by_id(&one),
    };
    let tainted = client
        .taint_jwt_authority(taint)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(tainted.tainted_authority, Some(first.clone()));
    assert_eq!(keys().await, [(one.clone(), true), (two.clone(), false)]);
    let revoked = client
        .revoke_jwt_authority(revoke)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(revoked.revoked_authority, Some(first));
    assert_eq!(keys().await, [(two, false)]);
    let records = server.audit.records();
    for action in [
        "authority.prepare",
        "authority.activate",
        "authority.taint",
        "authority.revoke",
    ] {
        let of_action = records.iter().filter(|r| r["action"] == action);
        assert!(
            of_action.clone().any(|r| r["outcome"] == "success"),
            "{action}"
        );
    }
    let denied = records
        .iter()
        .filter(|r| r["action"] == "authority.revoke" && r["code"] == "FNL1039");
    assert_eq!(denied.count(), 1);
}

#[tokio::test]
async fn ca_52_ca_53_an_x509_authority_is_replaced_tainted_and_revoked() {
    let server = Server::start().await;
    let mut client = client(&server).await;
    let one = x509_state(&mut client).await.active.unwrap().authority_id;
    let roots = async || {
        let bundle = server.admin.bundle().await.unwrap();
        let roots = bundle.x509_authorities().iter();
        roots
            .map(|root| (root.subject_key_id().to_owned(), root.is_tainted()))
            .collect::<Vec<_>>()
    };
    assert_eq!(roots().await, [(one.clone(), false)]);
    let prepared = client
        .prepare_x509_authority(wire::PrepareX509AuthorityRequest {})
        .await;
    let two = prepared
        .unwrap()
        .into_inner()
        .prepared_authority
        .unwrap()
        .authority_id;
    let activate = wire::ActivateX509AuthorityRequest {
        authority_id: by_id(&two),
    };
    client.activate_x509_authority(activate).await.unwrap();
    let taint = wire::TaintX509AuthorityRequest {
        authority_id: by_id(&one),
    };
    client.taint_x509_authority(taint).await.unwrap();
    assert_eq!(roots().await, [(one.clone(), true), (two.clone(), false)]);
    let revoke = wire::RevokeX509AuthorityRequest {
        authority_id: by_id(&one),
    };
    client.revoke_x509_authority(revoke).await.unwrap();
    assert_eq!(roots().await, [(two.clone(), false)]);
    assert_eq!(
        x509_state(&mut client).await.active.unwrap().authority_id,
        two
    );
    // Who trusts the new one alone still reaches this server: its own SVID was replaced when the old one was tainted.
    let reachable = async || {
        let bundles = server.bundles().await;
        let tls = mesh_tls::bootstrap_client_config(
            bundles,
            server.server_id(),
            &[b"h2"],
            server.clock.as_fn(),
        );
        server.try_channel(tls).await.is_ok()
    };
    for _ in 0..100 {
        if reachable().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the server shows an SVID that nobody trusts");
}

#[tokio::test]
async fn ca_53_turns_that_the_state_does_not_allow_have_spires_codes() {
    let server = Server::start().await;
    let mut client = client(&server).await;
    let active = jwt_state(&mut client).await.active.unwrap().authority_id;
    for (id, says) in [
        ("", "no authority ID provided"),
        ("x", "unexpected authority ID"),
        (&active, "unable to use current authority"),
    ] {
        let taint = wire::TaintJwtAuthorityRequest {
            authority_id: by_id(id),
        };
        let refused = client.taint_jwt_authority(taint).await.unwrap_err();
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::InvalidArgument, says)
        );
        let revoke = wire::RevokeX509AuthorityRequest {
            authority_id: by_id(id),
        };
        let refused = client.revoke_x509_authority(revoke).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let activate = wire::ActivateJwtAuthorityRequest {
        authority_id: by_id(&active),
    };
    let refused = client.activate_jwt_authority(activate).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal);
    let upstream = wire::TaintX509UpstreamAuthorityRequest {
        subject_key_id: by_id("aa"),
    };
    let refused = client
        .taint_x509_upstream_authority(upstream)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let upstream = wire::RevokeX509UpstreamAuthorityRequest {
        subject_key_id: by_id("aa"),
    };
    let refused = client
        .revoke_x509_upstream_authority(upstream)
        .await
        .unwrap_err();
    assert_eq!(refused.message(), "upstream authority is not configured");
    let wit = client
        .get_wit_authority_state(wire::GetWitAuthorityStateRequest {})
        .await;
    assert_eq!(wit.unwrap_err().code(), Code::Unimplemented);
}
