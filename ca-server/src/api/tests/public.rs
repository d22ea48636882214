//! Our bundle endpoint, read by our own client of others' endpoints.

use mesh_identity::Bundle;

use proto::spire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient as AuthorityClient;
use proto::spire::api::server::localauthority::v1::{
    GetX509AuthorityStateRequest, PrepareX509AuthorityRequest,
};

use super::*;
use crate::config::{BundleEndpointConfig, BundleEndpointProfile, HttpsWebConfig};
use crate::federation::{Around, Endpoint as Known, Federation, Fetch as _, FetchError, Https};
use crate::metrics::Metrics;
use crate::store::{EndpointProfile, Relationship, StoredBundle};

async fn server(profile: BundleEndpointProfile) -> Server {
    Server::with(|config| {
        config.federation.bundle_endpoint = Some(BundleEndpointConfig {
            address: ([127, 0, 0, 1], 0).into(),
            profile,
        });
    })
    .await
}

async fn spiffe_server() -> (Server, Known) {
    let server = server(BundleEndpointConfig::default().profile).await;
    let known = Known::Spiffe {
        id: "spiffe://dev.test/spire/server".parse().unwrap(),
        bundles: server.bundles().await,
    };
    (server, known)
}

fn port(server: &Server) -> &str {
    let address = server.bundle_endpoint.as_ref().unwrap();
    address.rsplit_once(':').unwrap().1
}

async fn fetch(server: &Server, path: &str, known: &Known) -> Result<Vec<u8>, FetchError> {
    let url = format!("https://127.0.0.1:{}{path}", port(server));
    let https = Https::new(None, server.clock.clone());
    https.fetch(&url.parse().unwrap(), known).await
}

#[tokio::test]
async fn fe_14_fed_9_16_17_29_anybody_reads_our_newest_bundle_under_our_id() {
    let (server, known) = spiffe_server().await;
    let read = async || {
        let document = fetch(&server, "/", &known).await.unwrap();
        let newest = server.admin.bundle().await.unwrap();
        assert_eq!(document, newest.to_spiffe_json());
        Bundle::from_spiffe_json(own(), &document).unwrap()
    };
    let first = read().await;
    assert!(
        first.sequence() > 0 && first.refresh_hint().is_some(),
        "TDB-2, TDB-5"
    );
    // An authority is there before it signs: what the endpoint says follows the bundle.
    let mut client = AuthorityClient::new(admin_channel(&server).await);
    client
        .prepare_x509_authority(PrepareX509AuthorityRequest {})
        .await
        .unwrap();
    let second = read().await;
    assert_eq!(
        second.x509_authorities().len(),
        first.x509_authorities().len() + 1
    );
    assert!(second.sequence() > first.sequence(), "TDB-4");
}

#[tokio::test]
async fn fed_18_only_one_page_is_there_and_it_is_only_read() {
    let (server, known) = spiffe_server().await;
    let missing = fetch(&server, "/other", &known).await.unwrap_err();
    assert!(matches!(
        missing,
        FetchError::Status(http::StatusCode::NOT_FOUND)
    ));
    let tls = mesh_tls::bootstrap_client_config(
        server.bundles().await,
        server.server_id(),
        &[b"http/1.1"],
        server.clock.as_fn(),
    );
    let ask = async |request: &str| {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let stream = TcpStream::connect(server.bundle_endpoint.as_ref().unwrap());
        let (mut stream, _) = mesh_tls::connect(&tls, stream.await.unwrap())
            .await
            .unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap().to_lowercase()
    };
    let got = ask("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(got.starts_with("http/1.1 200"), "{got}");
    assert!(got.contains("content-type: application/json"), "{got}");
    let posted = ask("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await;
    assert!(posted.starts_with("http/1.1 405"), "{posted}");
}

#[tokio::test]
async fn fed_15_the_endpoint_shows_a_certificate_of_the_web_where_it_has_one() {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let files = tempfile::tempdir().unwrap();
    let web = HttpsWebConfig {
        certificate: files.path().join("chain.pem"),
        key: files.path().join("key.pem"),
    };
    std::fs::write(&web.certificate, certificate.pem()).unwrap();
    std::fs::write(&web.key, key.serialize_pem()).unwrap();
    let server = server(BundleEndpointProfile::HttpsWeb(web)).await;
    let roots = [certificate.der().clone()];
    let tls = mesh_tls::web_client_config(roots, &[b"http/1.1"], server.clock.as_fn()).unwrap();
    let url = format!("https://localhost:{}/", port(&server))
        .parse()
        .unwrap();
    let https = Https::new(Some(tls), server.clock.clone());
    let document = https.fetch(&url, &Known::Web).await.unwrap();
    let newest = server.admin.bundle().await.unwrap();
    assert_eq!(document, newest.to_spiffe_json());
}

/// Another trust domain that federates with ours over its bundle endpoint.
async fn partner(server: &Server) -> (Federation, Stores) {
    let own: TrustDomain = "partner.test".parse().unwrap();
    let stores = Stores::memory(&own);
    let partner = Federation::new(Around {
        own,
        relationships: stores.relationships.clone(),
        bundles: stores.bundles.clone(),
        fetch: Arc::new(Https::new(None, server.clock.clone())),
        audit: AuditLog::memory("partner", &server.clock).0,
        metrics: Metrics::new(),
        clock: server.clock.clone(),
    });
    let relationship = Relationship {
        trust_domain: crate::api::tests::own(),
        bundle_endpoint_url: format!("https://127.0.0.1:{}/", port(server)),
        profile: EndpointProfile::HttpsSpiffe {
            endpoint_id: "spiffe://dev.test/spire/server".parse().unwrap(),
        },
        revision: 0,
    };
    let bundle = StoredBundle::from(&server.admin.bundle().await.unwrap());
    partner.create(relationship, Some(bundle)).await.unwrap();
    (partner, stores)
}

#[tokio::test]
async fn fe_15_a_partner_that_polls_has_a_new_authority_a_whole_interval_before_it_signs() {
    let seconds = Duration::from_secs;
    let server = Server::with(|config| {
        config.lifetimes.x509_authority = seconds(600).into();
        config.lifetimes.x509_svid = seconds(60).into();
        config.lifetimes.agent_svid = seconds(60).into();
        config.federation.bundle_endpoint = Some(BundleEndpointConfig {
            address: ([127, 0, 0, 1], 0).into(),
            ..BundleEndpointConfig::default()
        });
    })
    .await;
    let (partner, stores) = partner(&server).await;
    let mut client = AuthorityClient::new(admin_channel(&server).await);
    let mut active = async || {
        let ask = GetX509AuthorityStateRequest {};
        let state = client.get_x509_authority_state(ask).await.unwrap();
        state.into_inner().active.unwrap().authority_id
    };
    let (first, start) = (active().await, server.clock.now());
    let (mut seen, mut interval) = (None, Duration::ZERO);
    let signs = loop {
        server.clock.advance(seconds(5));
        // The rotation takes its step meanwhile.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = server.clock.now();
        assert!(now < start + seconds(600), "no turn was taken");
        let health = partner.health(&own());
        if health.is_none_or(|health| health.due_at <= now) {
            partner.refresh(&own()).await.unwrap();
            let due = partner.health(&own()).unwrap().due_at;
            interval = due.duration_since(now).unwrap();
        }
        let bundle = stores.bundles.get(&own()).await.unwrap().unwrap();
        if bundle.x509_authorities.len() > 1 {
            seen.get_or_insert(now);
        }
        if active().await != first {
            break now;
        }
    };
    let lead = signs.duration_since(seen.expect("seen")).unwrap();
    assert!(
        !interval.is_zero() && lead >= interval,
        "{lead:?} of {interval:?}"
    );
}
