//! Our bundle endpoint, read by our own client of others' endpoints.

use mesh_identity::Bundle;

use proto::spire::api::server::localauthority::v1::PrepareX509AuthorityRequest;
use proto::spire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient as AuthorityClient;

use super::*;
use crate::config::{BundleEndpointConfig, BundleEndpointProfile, HttpsWebConfig};
use crate::federation::{Endpoint as Known, Fetch as _, FetchError, Https};

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
