//! Relationships with other trust domains as SPIRE's tools keep them.

use mesh_identity::test_util::Made;
use proto::spire::api::server::trustdomain::v1 as wire;
use proto::spire::api::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use proto::spire::api::types::federation_relationship::BundleEndpointProfile;

use super::*;

async fn client(server: &Server) -> TrustDomainClient<Channel> {
    TrustDomainClient::new(admin_channel(server).await)
}

fn web(domain: &str) -> types::FederationRelationship {
    types::FederationRelationship {
        trust_domain: domain.into(),
        bundle_endpoint_url: format!("https://{domain}/bundle"),
        bundle_endpoint_profile: Some(BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {})),
        trust_domain_bundle: None,
    }
}

fn spiffe(domain: &str) -> types::FederationRelationship {
    types::FederationRelationship {
        bundle_endpoint_profile: Some(BundleEndpointProfile::HttpsSpiffe(
            types::HttpsspiffeProfile {
                endpoint_spiffe_id: format!("spiffe://{domain}/spire/server"),
            },
        )),
        trust_domain_bundle: Some((&Made::root(domain).bundle(domain)).into()),
        ..web(domain)
    }
}

async fn create(
    server: &Server,
    relationships: Vec<types::FederationRelationship>,
) -> Vec<(Code, String, Option<types::FederationRelationship>)> {
    let ask = wire::BatchCreateFederationRelationshipRequest {
        federation_relationships: relationships,
        output_mask: None,
    };
    let mut client = client(server).await;
    let answer = client.batch_create_federation_relationship(ask).await;
    let results = answer.unwrap().into_inner().results.into_iter();
    results
        .map(|result| {
            let status = result.status.unwrap();
            let relationship = result.federation_relationship;
            (Code::from(status.code), status.message, relationship)
        })
        .collect()
}

async fn update(
    server: &Server,
    relationship: types::FederationRelationship,
    input_mask: Option<types::FederationRelationshipMask>,
) -> (Code, String, Option<types::FederationRelationship>) {
    let ask = wire::BatchUpdateFederationRelationshipRequest {
        federation_relationships: vec![relationship],
        input_mask,
        output_mask: None,
    };
    let mut client = client(server).await;
    let answer = client.batch_update_federation_relationship(ask).await;
    let result = answer.unwrap().into_inner().results.pop().unwrap();
    let status = result.status.unwrap();
    let relationship = result.federation_relationship;
    (Code::from(status.code), status.message, relationship)
}

async fn get(server: &Server, domain: &str) -> Result<types::FederationRelationship, Status> {
    let ask = wire::GetFederationRelationshipRequest {
        trust_domain: domain.into(),
        output_mask: None,
    };
    let answer = client(server).await.get_federation_relationship(ask).await;
    answer.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_relationship_is_created_shown_and_removed_and_its_bundle_stays() {
    let server = Server::start().await;
    let created = create(&server, vec![spiffe("other.test"), web("third.test")]).await;
    assert_eq!(created[0].2.as_ref(), Some(&spiffe_of(&server).await));
    assert_eq!(created[1].2.as_ref(), Some(&web("third.test")));
    assert_eq!(get(&server, "third.test").await.unwrap(), web("third.test"));
    let ask = wire::BatchDeleteFederationRelationshipRequest {
        trust_domains: ["other.test", "other.test", "", "Not A Name"]
            .map(Into::into)
            .into(),
    };
    let mut client = client(&server).await;
    let answer = client.batch_delete_federation_relationship(ask).await;
    let statuses: Vec<_> = answer
        .unwrap()
        .into_inner()
        .results
        .into_iter()
        .map(|result| result.status.unwrap())
        .map(|status| (Code::from(status.code), status.message))
        .collect();
    assert_eq!(statuses[0].0, Code::Ok);
    let not_found = "federation relationship not found".to_owned();
    assert_eq!(statuses[1], (Code::NotFound, not_found));
    let missing = "missing trust domain".to_owned();
    assert_eq!(statuses[2], (Code::InvalidArgument, missing));
    assert_eq!(statuses[3].0, Code::InvalidArgument);
    let gone = get(&server, "other.test").await.unwrap_err();
    assert_eq!(
        (gone.code(), gone.message()),
        (Code::NotFound, "federation relationship does not exist")
    );
    let bundles = server.stores.bundles.list().await.unwrap();
    assert_eq!(bundles[0].trust_domain.as_str(), "other.test");
    assert_eq!(server.audit.of("federation.create").len(), 2);
    assert_eq!(server.audit.of("federation.delete").len(), 4);
}

/// The relationship with `other.test` as the server has it: its bundle is a new one on each call of [`spiffe`].
async fn spiffe_of(server: &Server) -> types::FederationRelationship {
    let stored = server.stores.bundles.list().await.unwrap();
    types::FederationRelationship {
        trust_domain_bundle: Some((&stored[0].to_bundle().unwrap()).into()),
        ..spiffe("other.test")
    }
}

#[tokio::test]
async fn what_a_relationship_may_not_be_is_refused_in_spires_words() {
    let server = Server::start().await;
    let with = |change: &dyn Fn(&mut types::FederationRelationship)| {
        let mut relationship = web("other.test");
        change(&mut relationship);
        relationship
    };
    let answers = create(
        &server,
        vec![
            with(&|wire| wire.trust_domain.clear()),
            with(&|wire| wire.bundle_endpoint_url = "http://other.test/".into()),
            with(&|wire| wire.bundle_endpoint_url = "https://me@other.test/".into()),
            with(&|wire| wire.bundle_endpoint_profile = None),
            with(&|wire| {
                let profile = types::HttpsspiffeProfile::default();
                wire.bundle_endpoint_profile = Some(BundleEndpointProfile::HttpsSpiffe(profile));
            }),
            with(&|wire| {
                wire.trust_domain_bundle = spiffe("third.test").trust_domain_bundle;
            }),
            web("dev.test"),
            web("other.test"),
            web("other.test"),
        ],
    )
    .await;
    let convert = "failed to convert federation relationship: ";
    let expected = [
        (
            Code::InvalidArgument,
            format!("{convert}failed to parse trust domain: "),
        ),
        (
            Code::InvalidArgument,
            format!("{convert}bundle endpoint URL must use the https scheme"),
        ),
        (
            Code::InvalidArgument,
            format!("{convert}bundle endpoint URL must not contain user info"),
        ),
        (
            Code::InvalidArgument,
            format!("{convert}unsupported bundle endpoint profile type"),
        ),
        (
            Code::InvalidArgument,
            format!("{convert}failed to parse endpoint SPIFFE ID: "),
        ),
        (
            Code::InvalidArgument,
            format!("{convert}trust domain bundle (\"third.test\") must match"),
        ),
        (
            Code::InvalidArgument,
            "unable to create federation relationship for server trust domain".into(),
        ),
        (Code::Ok, "OK".into()),
        (
            Code::AlreadyExists,
            "failed to create federation relationship".into(),
        ),
    ];
    for ((code, message, _), (wanted, words)) in answers.iter().zip(expected) {
        assert_eq!(*code, wanted, "{message}");
        assert!(message.starts_with(&words), "{message}");
    }
    assert!(server.stores.bundles.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn an_update_changes_what_its_mask_names() {
    let server = Server::start().await;
    let (code, message, _) = update(&server, web("other.test"), None).await;
    assert_eq!(
        (code, message.as_str()),
        (Code::NotFound, "failed to update federation relationship")
    );
    create(&server, vec![web("other.test")]).await;
    let change = types::FederationRelationship {
        bundle_endpoint_url: "https://elsewhere.test/".into(),
        ..spiffe("other.test")
    };
    let only_url = types::FederationRelationshipMask {
        bundle_endpoint_url: true,
        ..Default::default()
    };
    let (_, _, now) = update(&server, change.clone(), Some(only_url)).await;
    let expected = types::FederationRelationship {
        bundle_endpoint_url: "https://elsewhere.test/".into(),
        ..web("other.test")
    };
    assert_eq!(now.unwrap(), expected);
    let (_, _, now) = update(&server, change.clone(), None).await;
    assert_eq!(now.unwrap(), change, "with the bundle that came with it");
    let only_bundle = types::FederationRelationshipMask {
        trust_domain_bundle: true,
        ..Default::default()
    };
    let (code, _, now) = update(&server, web("other.test"), Some(only_bundle)).await;
    assert_eq!(
        code,
        Code::Ok,
        "no bundle in the update leaves the one that is there"
    );
    assert_eq!(now.unwrap(), change);
}

#[tokio::test]
async fn relationships_come_in_pages_and_with_masks() {
    let server = Server::start().await;
    let domains = ["c.test", "a.test", "b.test"];
    create(&server, domains.map(web).into()).await;
    let (mut token, mut seen) = (String::new(), Vec::new());
    loop {
        let ask = wire::ListFederationRelationshipsRequest {
            output_mask: Some(types::FederationRelationshipMask::default()),
            page_size: 2,
            page_token: token,
        };
        let page = client(&server)
            .await
            .list_federation_relationships(ask)
            .await;
        let page = page.unwrap().into_inner();
        for relationship in page.federation_relationships {
            assert!(relationship.bundle_endpoint_url.is_empty());
            assert!(relationship.bundle_endpoint_profile.is_none());
            seen.push(relationship.trust_domain);
        }
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ["a.test", "b.test", "c.test"]);
}
