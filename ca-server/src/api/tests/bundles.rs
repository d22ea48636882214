//! Bundles of other trust domains: set by hand, seen by the agents whose workloads federate with them, and removed again.

use mesh_identity::test_util::{Made, Spec};
use proto::spire::api::server::bundle::v1 as bundle_wire;
use proto::spire::api::server::bundle::v1::batch_delete_federated_bundle_request::Mode;

use super::*;

async fn client(server: &Server) -> BundleClient<Channel> {
    BundleClient::new(admin_channel(server).await)
}

fn foreign(domain: &str) -> types::Bundle {
    types::Bundle {
        sequence_number: 7,
        refresh_hint: 60,
        ..(&Made::root(domain).bundle(domain)).into()
    }
}

fn codes(statuses: impl IntoIterator<Item = Option<types::Status>>) -> Vec<Code> {
    let codes = statuses
        .into_iter()
        .map(|status| Code::from(status.unwrap().code));
    codes.collect()
}

async fn create(server: &Server, bundle: Vec<types::Bundle>) -> Vec<Code> {
    let ask = bundle_wire::BatchCreateFederatedBundleRequest {
        bundle,
        output_mask: None,
    };
    let mut client = client(server).await;
    let answer = client.batch_create_federated_bundle(ask);
    let results = answer.await.unwrap().into_inner().results;
    codes(results.into_iter().map(|result| result.status))
}

async fn delete(server: &Server, domain: &str, mode: Mode) -> types::Status {
    let ask = bundle_wire::BatchDeleteFederatedBundleRequest {
        trust_domains: vec![domain.into()],
        mode: mode.into(),
    };
    let mut client = client(server).await;
    let answer = client.batch_delete_federated_bundle(ask);
    let result = answer.await.unwrap().into_inner().results.pop().unwrap();
    assert_eq!(result.trust_domain, domain);
    result.status.unwrap()
}

async fn get(channel: Channel, domain: &str) -> Result<types::Bundle, Status> {
    let ask = bundle_wire::GetFederatedBundleRequest {
        trust_domain: domain.into(),
        output_mask: None,
    };
    let answer = BundleClient::new(channel).get_federated_bundle(ask).await;
    answer.map(tonic::Response::into_inner)
}

/// An entry that federates.
async fn federating(server: &Server, name: &str, parent: &SpiffeId, domains: &[&str]) -> Code {
    let entry = types::Entry {
        id: name.into(),
        spiffe_id: Some(
            (&format!("spiffe://dev.test/{name}")
                .parse::<SpiffeId>()
                .unwrap())
                .into(),
        ),
        parent_id: Some(parent.into()),
        selectors: vec![types::Selector {
            r#type: "unix".into(),
            value: "uid:1".into(),
        }],
        federates_with: domains.iter().map(|domain| (*domain).into()).collect(),
        ..Default::default()
    };
    let ask = entry_wire::BatchCreateEntryRequest {
        entries: vec![entry],
        output_mask: None,
    };
    let mut client = EntryClient::new(admin_channel(server).await);
    let results = client
        .batch_create_entry(ask)
        .await
        .unwrap()
        .into_inner()
        .results;
    codes(results.into_iter().map(|result| result.status))[0]
}

#[tokio::test]
async fn each_bundle_of_a_batch_has_its_own_status_in_spires_words() {
    let server = Server::start().await;
    let statuses = create(
        &server,
        vec![
            foreign("other.test"),
            foreign("other.test"),
            foreign("dev.test"),
            types::Bundle {
                trust_domain: "Not A Name".into(),
                ..foreign("third.test")
            },
            types::Bundle {
                x509_authorities: vec![types::X509Certificate {
                    asn1: vec![1, 2, 3],
                    tainted: false,
                }],
                ..foreign("third.test")
            },
            types::Bundle {
                trust_domain: "spiffe://fourth.test".into(),
                ..foreign("fourth.test")
            },
        ],
    )
    .await;
    let bad = Code::InvalidArgument;
    assert_eq!(
        statuses,
        [Code::Ok, Code::AlreadyExists, bad, bad, bad, Code::Ok]
    );
    let records = server.audit.of("bundle.create");
    let outcomes = records.iter().filter(|r| r["outcome"] == "success").count();
    assert_eq!((records.len(), outcomes), (6, 2));
    let count = client(&server)
        .await
        .count_bundles(bundle_wire::CountBundlesRequest {})
        .await
        .unwrap();
    assert_eq!(count.into_inner().count, 3, "two and our own");
}

#[tokio::test]
async fn an_update_needs_a_bundle_and_keeps_what_its_mask_leaves_out() {
    let server = Server::start().await;
    let old = foreign("other.test");
    let new = types::Bundle {
        sequence_number: 9,
        ..foreign("other.test")
    };
    let update = async |mask: Option<types::BundleMask>| {
        let ask = bundle_wire::BatchUpdateFederatedBundleRequest {
            bundle: vec![new.clone()],
            input_mask: mask,
            output_mask: None,
        };
        let mut client = client(&server).await;
        let answer = client.batch_update_federated_bundle(ask);
        answer.await.unwrap().into_inner().results.pop().unwrap()
    };
    let missing = update(None).await.status.unwrap();
    assert_eq!(
        (Code::from(missing.code), missing.message.as_str()),
        (Code::NotFound, "bundle not found")
    );
    create(&server, vec![old.clone()]).await;
    let only_sequence = types::BundleMask {
        sequence_number: true,
        ..Default::default()
    };
    let updated = update(Some(only_sequence)).await.bundle.unwrap();
    let expected = types::Bundle {
        sequence_number: 9,
        ..old
    };
    assert_eq!(updated, expected);
    assert_eq!(update(None).await.bundle.unwrap(), new);
    assert_eq!(
        get(admin_channel(&server).await, "other.test")
            .await
            .unwrap(),
        new
    );
}

#[tokio::test]
async fn setting_adds_or_replaces_and_lists_come_in_pages_with_masks() {
    let server = Server::start().await;
    for domain in ["b.test", "a.test", "c.test", "b.test"] {
        let ask = bundle_wire::BatchSetFederatedBundleRequest {
            bundle: vec![foreign(domain)],
            output_mask: Some(types::BundleMask::default()),
        };
        let answer = client(&server).await.batch_set_federated_bundle(ask).await;
        let result = answer.unwrap().into_inner().results.pop().unwrap();
        assert_eq!(result.status.unwrap().code, 0);
        assert_eq!(
            result.bundle.unwrap(),
            types::Bundle {
                trust_domain: domain.into(),
                ..Default::default()
            }
        );
    }
    let (mut token, mut seen) = (String::new(), Vec::new());
    loop {
        let ask = bundle_wire::ListFederatedBundlesRequest {
            output_mask: Some(types::BundleMask {
                x509_authorities: true,
                ..Default::default()
            }),
            page_size: 2,
            page_token: token,
        };
        let page = client(&server).await.list_federated_bundles(ask).await;
        let page = page.unwrap().into_inner();
        for bundle in page.bundles {
            assert_eq!(
                (bundle.x509_authorities.len(), bundle.sequence_number),
                (1, 0)
            );
            seen.push(bundle.trust_domain);
        }
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ["a.test", "b.test", "c.test"]);
}

#[tokio::test]
async fn an_entry_federates_only_with_a_trust_domain_that_has_a_bundle() {
    let server = Server::start().await;
    let agent = server.join().await;
    let bad = Code::InvalidArgument;
    assert_eq!(
        federating(&server, "web", &agent.id, &["other.test"]).await,
        bad
    );
    create(&server, vec![foreign("other.test")]).await;
    assert_eq!(
        federating(&server, "web", &agent.id, &["other.test"]).await,
        Code::Ok
    );
}

#[tokio::test]
async fn t_35_a_foreign_bundle_reaches_the_agents_that_serve_who_federates_and_leaves_them() {
    let server = Server::start().await;
    let (agent, other) = (server.join().await, server.join().await);
    create(&server, vec![foreign("other.test")]).await;
    let mut feed = Feed::open(&agent, "", 0).await;
    assert_eq!(feed.next().await.unwrap().bundles.len(), 1);
    federating(&server, "web", &agent.id, &["other.test"]).await;
    let update = feed.next().await.unwrap();
    let domains: Vec<_> = update
        .bundles
        .iter()
        .map(|carried| carried.bundle.trust_domain().as_str())
        .collect();
    assert_eq!(domains, ["other.test"]);
    assert!(get(agent.channel.clone(), "other.test").await.is_ok());
    let refused = get(other.channel.clone(), "other.test").await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let status = delete(&server, "other.test", Mode::Dissociate).await;
    assert_eq!(status.code, 0, "{}", status.message);
    let gone = feed.next().await.unwrap();
    assert_eq!(gone.removed_bundles[0].as_str(), "other.test");
    let refused = get(agent.channel.clone(), "other.test").await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
}

#[tokio::test]
async fn fed_34_a_bundle_that_is_used_goes_only_with_a_word_about_its_entries() {
    let server = Server::start().await;
    let agent = server.join().await;
    create(&server, vec![foreign("other.test"), foreign("third.test")]).await;
    federating(&server, "web", &agent.id, &["other.test", "third.test"]).await;
    let refused = delete(&server, "other.test", Mode::Restrict).await;
    assert_eq!(Code::from(refused.code), Code::FailedPrecondition);
    assert!(
        refused
            .message
            .ends_with("cannot delete bundle; federated with 1 registration entries")
    );
    assert_eq!(
        delete(&server, "other.test", Mode::Dissociate).await.code,
        0
    );
    let left = server.admin.entry("web").await.unwrap().federates_with;
    assert_eq!(left.len(), 1);
    assert_eq!(delete(&server, "third.test", Mode::Delete).await.code, 0);
    assert!(server.admin.entry("web").await.is_err());
    assert_eq!(server.audit.of("entry.delete")[0]["object"]["id"], "web");
    for (domain, code) in [
        ("third.test", Code::NotFound),
        ("dev.test", Code::InvalidArgument),
        ("", Code::InvalidArgument),
    ] {
        let status = delete(&server, domain, Mode::Restrict).await;
        assert_eq!(Code::from(status.code), code, "{domain}");
    }
    let ask = bundle_wire::BatchDeleteFederatedBundleRequest {
        trust_domains: vec![],
        mode: 9,
    };
    let unknown = client(&server)
        .await
        .batch_delete_federated_bundle(ask)
        .await;
    assert_eq!(unknown.unwrap_err().code(), Code::InvalidArgument);
}

/// A root of somebody else for our own trust domain.
fn root_for_us(name: &str) -> types::X509Certificate {
    (&Made::root_with(Spec::authority("dev.test", name)).authority()).into()
}

async fn append(
    channel: Channel,
    ask: bundle_wire::AppendBundleRequest,
) -> Result<types::Bundle, Status> {
    let answer = BundleClient::new(channel).append_bundle(ask).await;
    answer.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn an_administrator_appends_authorities_to_our_bundle_and_everybody_hears_of_them() {
    let server = Server::start().await;
    let agent = server.join().await;
    let mut feed = Feed::open(&agent, "", 0).await;
    feed.next().await.unwrap();
    let before = types::Bundle::from(&server.admin.bundle().await.unwrap());
    let root = root_for_us("theirs");
    let mut token_key = before.jwt_authorities[0].clone();
    token_key.key_id = "theirs".into();
    let ask = bundle_wire::AppendBundleRequest {
        x509_authorities: vec![root.clone()],
        jwt_authorities: vec![token_key.clone()],
        output_mask: Some(types::BundleMask {
            x509_authorities: true,
            ..Default::default()
        }),
        ..Default::default()
    };
    let refused = append(agent.channel.clone(), ask.clone()).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    let answer = append(admin_channel(&server).await, ask).await.unwrap();
    assert_eq!(answer.trust_domain, "dev.test");
    assert!(answer.x509_authorities.contains(&root));
    assert!(answer.jwt_authorities.is_empty() && answer.sequence_number == 0);

    let now = types::Bundle::from(&server.admin.bundle().await.unwrap());
    assert_eq!(now.sequence_number, before.sequence_number + 1);
    assert!(now.x509_authorities.contains(&root) && now.x509_authorities.len() == 2);
    assert!(now.jwt_authorities.contains(&token_key) && now.jwt_authorities.len() == 2);
    let update = feed.next().await.unwrap();
    let own = types::Bundle::from(&update.bundles[0]);
    assert!(own.x509_authorities.contains(&root) && own.jwt_authorities.contains(&token_key));
    let records = server.audit.of("bundle.append");
    let outcomes: Vec<_> = records.iter().map(|record| &record["outcome"]).collect();
    assert_eq!(outcomes, ["denied", "success"]);
    assert_eq!(records[1]["object"]["name"], "dev.test");
}

#[tokio::test]
async fn what_cannot_be_appended_is_refused_with_its_reason_and_nothing_changes() {
    let server = Server::start().await;
    let before = server.admin.bundle().await.unwrap();
    let none = bundle_wire::AppendBundleRequest::default();
    let garbage = types::X509Certificate {
        asn1: vec![1, 2, 3],
        tainted: false,
    };
    let wit = bundle_wire::AppendBundleRequest {
        wit_authorities: vec![types::WitKey::default()],
        ..none.clone()
    };
    let half = bundle_wire::AppendBundleRequest {
        x509_authorities: vec![root_for_us("theirs"), garbage],
        ..none.clone()
    };
    let of_another = bundle_wire::AppendBundleRequest {
        x509_authorities: vec![(&Made::root("other.test").authority()).into()],
        ..none.clone()
    };
    for (ask, code, says) in [
        (none, Code::InvalidArgument, "no authorities to append"),
        (half, Code::InvalidArgument, "x509_authorities[1].asn1"),
        (of_another, Code::InvalidArgument, "x509_authorities"),
        (wit, Code::Unimplemented, "WIT"),
    ] {
        let refused = append(admin_channel(&server).await, ask).await;
        let refused = refused.expect_err(says);
        assert_eq!(refused.code(), code, "{refused:?}");
        assert!(refused.message().contains(says), "{refused:?}");
    }
    assert_eq!(server.admin.bundle().await.unwrap(), before);
}
