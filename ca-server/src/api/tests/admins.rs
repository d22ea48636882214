//! Administrators by configuration (`admin.ids`): of our trust domain and of others, for as long as these are known here.

use mesh_identity::test_util::Made;
use proto::spire::api::server::bundle::v1 as bundle_wire;
use proto::spire::api::server::bundle::v1::batch_delete_federated_bundle_request::Mode;

use super::*;

const OPERATOR: &str = "spiffe://other.test/operator";

/// A server that `ids` administer.
async fn administered_by(ids: &[&str]) -> Server {
    let ids = ids.iter().map(|id| id.parse().unwrap()).collect();
    Server::with(|config| config.admin.ids = ids).await
}

impl Server {
    /// A connection of the holder of an identity below a root; the handshake of one who is not believed fails.
    async fn holder(&self, root: &Made, id: &str) -> Option<Channel> {
        let made = root.leaf(id);
        let key = PrivateKey::from_pkcs8(made.key_pkcs8()).unwrap();
        let mut bundles = self.bundles().await;
        bundles.insert(root.bundle(made.svid().id().trust_domain().as_str()));
        let identity = TlsIdentity::new(made.svid(), key, bundles, self.clock.now()).unwrap();
        let cell = IdentityCell::new(identity);
        let tls = mesh_tls::client_config(&cell, self.server_id(), &[b"h2"], self.clock.as_fn());
        self.try_channel(tls).await.ok()
    }

    async fn knows(&self, root: &Made, domain: &str) {
        let ask = bundle_wire::BatchSetFederatedBundleRequest {
            bundle: vec![(&root.bundle(domain)).into()],
            output_mask: None,
        };
        let mut client = BundleClient::new(admin_channel(self).await);
        client.batch_set_federated_bundle(ask).await.unwrap();
    }
}

/// What an administrator's call comes to.
async fn administers(channel: Option<Channel>) -> Result<(), Code> {
    let channel = channel.ok_or(Code::Unavailable)?;
    let ask = entry_wire::CountEntriesRequest::default();
    let answer = EntryClient::new(channel).count_entries(ask).await;
    answer.map(drop).map_err(|status| match status.code() {
        Code::PermissionDenied => Code::PermissionDenied,
        // TLS 1.3 tells a client that it is refused after the handshake.
        _ => Code::Unavailable,
    })
}

/// The same on new connections, until it comes to that: the door learns of a bundle a moment after the store.
async fn comes_to(server: &Server, root: &Made, id: &str, expected: Result<(), Code>) {
    let mut last = None;
    for _ in 0..200 {
        let outcome = administers(server.holder(root, id).await).await;
        if outcome == expected {
            return;
        }
        last = Some(outcome);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{id}: {last:?} instead of {expected:?}");
}

#[tokio::test]
async fn ca_25_an_administrator_of_another_trust_domain_is_exactly_the_one_that_is_configured_while_its_bundle_is_known()
 {
    let server = administered_by(&[OPERATOR]).await;
    let (root, third) = (Made::root("other.test"), Made::root("third.test"));
    comes_to(&server, &root, OPERATOR, Err(Code::Unavailable)).await;
    server.knows(&root, "other.test").await;
    server.knows(&third, "third.test").await;
    comes_to(&server, &root, OPERATOR, Ok(())).await;
    let records = server.audit.of("entry.count");
    assert_eq!(records.last().unwrap()["actor"]["id"], OPERATOR);

    let denied = Err(Code::PermissionDenied);
    for id in [
        "spiffe://other.test/operators",
        "spiffe://other.test/Operator",
        "spiffe://other.test/spire/agent/x",
    ] {
        assert_eq!(administers(server.holder(&root, id).await).await, denied);
    }
    // The same path elsewhere: a trust domain that is federated with but has no administrator here is not even let in.
    let elsewhere = server.holder(&third, "spiffe://third.test/operator").await;
    assert_eq!(administers(elsewhere).await, Err(Code::Unavailable));
    let agent = server.join().await;
    server.entry("operator", &agent.id).await;
    let (key, csr) = key_and_csr();
    let own = issue(&agent, "operator", csr).await.unwrap();
    let own = server.agent(own, key).await;
    assert_eq!(own.id.path(), "/operator");
    assert_eq!(administers(Some(own.channel)).await, denied);

    let open = server.holder(&root, OPERATOR).await;
    assert_eq!(administers(open.clone()).await, Ok(()));
    let ask = bundle_wire::BatchDeleteFederatedBundleRequest {
        trust_domains: vec!["other.test".into()],
        mode: Mode::Restrict.into(),
    };
    let mut client = BundleClient::new(admin_channel(&server).await);
    client.batch_delete_federated_bundle(ask).await.unwrap();
    assert_eq!(administers(open).await, denied, "on an open connection too");
    comes_to(&server, &root, OPERATOR, Err(Code::Unavailable)).await;
    // Another root of the same name, as of a trust domain that was set up anew.
    server.knows(&Made::root("other.test"), "other.test").await;
    comes_to(&server, &root, OPERATOR, Err(Code::Unavailable)).await;
}

#[tokio::test]
async fn an_identity_of_ours_administers_by_configuration_without_an_admin_entry() {
    let server = administered_by(&["spiffe://dev.test/operator"]).await;
    let agent = server.join().await;
    for (name, expected) in [
        ("operator", Ok(())),
        ("nobody", Err(Code::PermissionDenied)),
    ] {
        server.entry(name, &agent.id).await;
        let (key, csr) = key_and_csr();
        let svid = issue(&agent, name, csr).await.unwrap();
        let caller = server.agent(svid, key).await;
        assert_eq!(administers(Some(caller.channel)).await, expected, "{name}");
    }
}
