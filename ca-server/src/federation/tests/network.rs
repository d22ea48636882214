//! Endpoints over real sockets and real TLS, good ones and bad ones.

use std::sync::Arc;

use mesh_tls::{ClientPolicy, IdentityCell, PrivateKey, ServerConfig, TlsIdentity};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use mesh_tls::Authorizer;

#[expect(
    clippy::disallowed_methods,
    reason = "certificates made here must be valid for the machine's clock"
)]
fn real_now() -> SystemTime {
    SystemTime::now()
}

fn clock() -> Clock {
    Clock::manual(mesh_identity::test_util::now())
}

/// TLS as the endpoint `id` of a trust domain has it.
fn spiffe_tls(root: &Made, id: &str) -> Arc<ServerConfig> {
    let made = root.leaf(id);
    let domain = made.svid().id().trust_domain().as_str().to_owned();
    let key = PrivateKey::from_pkcs8(made.key_pkcs8()).unwrap();
    let identity = TlsIdentity::new(
        made.svid(),
        key,
        root.bundles(&domain),
        mesh_identity::test_util::now(),
    );
    mesh_tls::server_config(
        &IdentityCell::new(identity.unwrap()),
        ClientPolicy::Optional(Authorizer::any_verified()),
        &[b"http/1.1"],
        clock().as_fn(),
    )
}

/// How an endpoint answers one request.
#[derive(Clone)]
enum Answer {
    /// This, and the end.
    Bytes(Vec<u8>),
    /// This, and then nothing more.
    Hang(Vec<u8>),
}

/// Serves on a port; answers by the path that is asked for, and counts.
async fn serve(
    tls: Arc<ServerConfig>,
    answer: impl Fn(&str, u16) -> Answer + Send + Sync + 'static,
) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let paths = Arc::new(Mutex::new(Vec::new()));
    let (seen, answer) = (paths.clone(), Arc::new(answer));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (tls, seen, answer) = (tls.clone(), seen.clone(), answer.clone());
            tokio::spawn(async move {
                let Ok((mut stream, _)) = mesh_tls::accept(&tls, stream).await else {
                    return;
                };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                let head = String::from_utf8(head).unwrap();
                let path = head.split(' ').nth(1).unwrap().to_owned();
                let answer = answer(&path, port);
                seen.lock().unwrap().push(path);
                let (Answer::Bytes(bytes) | Answer::Hang(bytes)) = &answer;
                // The client may have had enough before all is written.
                drop(stream.write_all(bytes).await);
                drop(stream.flush().await);
                match answer {
                    Answer::Bytes(_) => drop(stream.shutdown().await),
                    Answer::Hang(_) => std::future::pending().await,
                }
            });
        }
    });
    (port, paths)
}

fn ok(body: &[u8]) -> Answer {
    with("", body)
}

fn with(headers: &str, body: &[u8]) -> Answer {
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    Answer::Bytes([head.as_bytes(), body].concat())
}

fn redirect(status: u16, to: &str) -> Answer {
    let head =
        format!("HTTP/1.1 {status} Elsewhere\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n");
    Answer::Bytes(head.into_bytes())
}

fn https() -> Https {
    let root = rcgen_root();
    let web = mesh_tls::web_client_config([root], &[b"http/1.1"], clock().as_fn()).unwrap();
    Https::new(Some(web), clock())
}

fn rcgen_root() -> rustls_pki_types::CertificateDer<'static> {
    web_ca().0.der().clone()
}

/// An authority of the Web, for tests that need one.
fn web_ca() -> (rcgen::Certificate, rcgen::Issuer<'static, rcgen::KeyPair>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    (certificate, rcgen::Issuer::new(params, key))
}

/// TLS as an endpoint of the Web named `localhost` has it, and who it is known by.
fn web_tls(clock: &Clock) -> (rustls_pki_types::CertificateDer<'static>, Arc<ServerConfig>) {
    let (ca, issuer) = web_ca();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
    let leaf = params.signed_by(&key, &issuer).unwrap();
    let identity =
        mesh_tls::WebIdentity::from_pem(leaf.pem().as_bytes(), key.serialize_pem().as_bytes());
    let shown = mesh_tls::Shown::Web(identity.unwrap());
    let tls = mesh_tls::public_server_config(shown, &[b"http/1.1"], clock.as_fn());
    (ca.der().clone(), tls)
}

async fn fetch(port: u16, path: &str, by: &Endpoint) -> Result<Vec<u8>, FetchError> {
    let url: EndpointUrl = format!("https://127.0.0.1:{port}{path}").parse().unwrap();
    https().fetch(&url, by).await
}

fn by(root: &Made, id: &str) -> Endpoint {
    Endpoint::Spiffe {
        id: id.parse().unwrap(),
        bundles: root.bundles("other.test"),
    }
}

const ID: &str = "spiffe://other.test/endpoint";

#[tokio::test]
async fn fed_8_26_30_fe_11_an_endpoint_is_known_by_exactly_its_id_under_the_bundle_that_we_have() {
    let root = Made::root("other.test");
    let (port, _) = serve(spiffe_tls(&root, ID), |_, _| ok(b"{}")).await;
    assert_eq!(fetch(port, "/", &by(&root, ID)).await.unwrap(), b"{}");
    let another = by(&root, "spiffe://other.test/another");
    let unknown = by(&Made::root("other.test"), ID);
    for wrong in [another, unknown] {
        let refused = fetch(port, "/", &wrong).await.unwrap_err();
        assert!(matches!(refused, FetchError::Tls(_)), "{refused}");
    }
    // What is known by an ID is never known by a name instead.
    let refused = fetch(port, "/", &Endpoint::Web).await.unwrap_err();
    assert!(matches!(refused, FetchError::Tls(_)), "{refused}");
}

#[tokio::test]
async fn fed_21_an_endpoint_of_the_web_is_known_by_the_configured_name() {
    let clock = Clock::manual(real_now());
    let (ca, tls) = web_tls(&clock);
    let (port, _) = serve(tls, |_, _| ok(b"{}")).await;
    let fetch = async |roots: Vec<rustls_pki_types::CertificateDer<'static>>, host: &str| {
        let web = mesh_tls::web_client_config(roots, &[b"http/1.1"], clock.as_fn()).unwrap();
        let url: EndpointUrl = format!("https://{host}:{port}/").parse().unwrap();
        Https::new(Some(web), clock.clone())
            .fetch(&url, &Endpoint::Web)
            .await
    };
    let good = fetch(vec![ca.clone()], "localhost").await;
    assert_eq!(good.unwrap(), b"{}");
    let other_name = fetch(vec![ca], "127.0.0.1").await;
    let other_root = fetch(vec![rcgen_root()], "localhost").await;
    for refused in [other_name, other_root] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), "FNL0419", "{refused}");
    }
}

#[tokio::test]
async fn fed_19_23_24_32_fe_10_a_redirect_is_followed_to_as_good_a_place_and_forgotten() {
    let root = Made::root("other.test");
    let (port, paths) = serve(spiffe_tls(&root, ID), |path, port| match path {
        "/first" => redirect(302, "/second"),
        "/second" => redirect(301, &format!("https://127.0.0.1:{port}/third")),
        "/third" => ok(b"there"),
        "/http" => redirect(302, "http://127.0.0.1/"),
        "/userinfo" => redirect(302, &format!("https://me@127.0.0.1:{port}/third")),
        "/relative" => redirect(302, "//127.0.0.1/third"),
        "/loop" => redirect(307, "/loop"),
        _ => Answer::Bytes(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec()),
    })
    .await;
    let by = by(&root, ID);
    for _ in 0..2 {
        assert_eq!(fetch(port, "/first", &by).await.unwrap(), b"there");
    }
    let asked = paths.lock().unwrap().clone();
    assert_eq!(
        asked,
        ["/first", "/second", "/third", "/first", "/second", "/third"]
    );
    for path in ["/http", "/userinfo", "/relative"] {
        let refused = fetch(port, path, &by).await.unwrap_err();
        assert!(matches!(refused, FetchError::BadRedirect(_)), "{refused}");
    }
    let refused = fetch(port, "/loop", &by).await.unwrap_err();
    assert!(matches!(refused, FetchError::TooManyRedirects), "{refused}");
    let refused = fetch(port, "/none", &by).await.unwrap_err();
    assert!(matches!(refused, FetchError::Status(_)), "{refused}");
    // FED-32: the next hop must show the same ID.
    let (other, _) = serve(spiffe_tls(&root, "spiffe://other.test/b"), |_, _| ok(b"{}")).await;
    let (first, _) = serve(spiffe_tls(&root, ID), move |_, _| {
        redirect(302, &format!("https://127.0.0.1:{other}/"))
    })
    .await;
    let refused = fetch(first, "/", &by).await.unwrap_err();
    assert!(matches!(refused, FetchError::Tls(_)), "{refused}");
}

#[tokio::test]
async fn fe_09_a_huge_or_encoded_document_is_cut_off() {
    let root = Made::root("other.test");
    let (port, _) = serve(spiffe_tls(&root, ID), |path, _| match path {
        "/huge" => ok(&vec![b' '; fetch::LARGEST_DOCUMENT + 1]),
        "/endless" => {
            let head = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_vec();
            Answer::Bytes([head, vec![b' '; fetch::LARGEST_DOCUMENT + 1]].concat())
        }
        _ => with("content-encoding: gzip\r\n", b"\x1f\x8b"),
    })
    .await;
    let by = by(&root, ID);
    for path in ["/huge", "/endless"] {
        let refused = fetch(port, path, &by).await.unwrap_err();
        assert!(matches!(refused, FetchError::TooLarge), "{refused}");
    }
    let refused = fetch(port, "/gzip", &by).await.unwrap_err();
    assert!(matches!(refused, FetchError::Encoded), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn fe_09_an_endpoint_that_never_ends_is_left() {
    let root = Made::root("other.test");
    let (port, _) = serve(spiffe_tls(&root, ID), |path, _| match path {
        "/silent" => Answer::Hang(Vec::new()),
        _ => Answer::Hang(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{".to_vec()),
    })
    .await;
    for path in ["/silent", "/body"] {
        let refused = fetch(port, path, &by(&root, ID)).await.unwrap_err();
        assert!(matches!(refused, FetchError::TimedOut), "{refused}");
    }
}

/// An endpoint that serves a bundle.
async fn serving(tls: Arc<ServerConfig>, bundle: &Bundle) -> (u16, Arc<Mutex<Vec<String>>>) {
    let document = bundle.to_spiffe_json();
    serve(tls, move |_, _| ok(&document)).await
}

#[tokio::test]
async fn fe_13_thirty_days_of_failure_keep_the_bundle_and_keys_that_changed_meanwhile_need_a_hand()
{
    let clock = clock();
    let (ca, web) = web_tls(&clock);
    let trusted = mesh_tls::web_client_config([ca], &[b"http/1.1"], clock.as_fn()).unwrap();
    let fetch = Arc::new(Https::new(Some(trusted), clock.clone()));
    let (federation, stores, _) = federation(fetch, &clock);
    let domain: TrustDomain = "other.test".parse().unwrap();
    let (old, new) = (Made::root("other.test"), Made::root("other.test"));
    let bundle = |root: &Made, sequence| root.bundle("other.test").with_sequence(sequence);
    let moved_to = async |port: u16| {
        let moved = federation.update::<StoreError>(&domain, |present| {
            let mut moved = present.clone();
            moved.bundle_endpoint_url = format!("https://localhost:{port}/");
            Ok((moved, None))
        });
        moved.await.unwrap();
    };
    let (port, _) = serving(spiffe_tls(&old, ID), &bundle(&old, 2)).await;
    let relationship = Relationship {
        trust_domain: domain.clone(),
        bundle_endpoint_url: format!("https://localhost:{port}/"),
        profile: EndpointProfile::HttpsSpiffe {
            endpoint_id: ID.parse().unwrap(),
        },
        revision: 0,
    };
    let first = StoredBundle::from(&bundle(&old, 1));
    federation.create(relationship, Some(first)).await.unwrap();
    let refresh = async || federation.refresh(&domain).await.map(Option::unwrap);
    assert_eq!(refresh().await.unwrap(), Refreshed::Updated);
    let good_at = federation.health(&domain).unwrap().good_at;
    let kept = stores.bundles.get(&domain).await.unwrap();
    assert_eq!(kept.as_ref().map(|kept| kept.sequence), Some(2));

    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = nobody.local_addr().unwrap().port();
    drop(nobody);
    moved_to(port).await;
    for day in 1..=30 {
        clock.advance(Duration::from_secs(24 * 3600));
        refresh().await.unwrap_err();
        assert_eq!(
            stores.bundles.get(&domain).await.unwrap(),
            kept,
            "day {day}"
        );
        let health = federation.health(&domain).unwrap();
        assert_eq!(health.good_at, good_at, "how old it is, is told");
        assert!(health.failing.is_some());
        let pause = health.due_at.duration_since(clock.now()).unwrap();
        assert!(pause <= Duration::from_secs(300), "and it is not given up");
    }
    // Back with other keys: not known by the old bundle, and not by a name of the Web either.
    for tls in [spiffe_tls(&new, ID), web] {
        let (port, asked) = serving(tls, &bundle(&new, 3)).await;
        moved_to(port).await;
        let refused = refresh().await.unwrap_err();
        assert!(
            matches!(refused, RefreshError::Fetch(FetchError::Tls(_))),
            "{refused}"
        );
        assert!(
            asked.lock().unwrap().is_empty(),
            "nothing was even asked for"
        );
        assert_eq!(stores.bundles.get(&domain).await.unwrap(), kept);
    }
    let (port, _) = serving(spiffe_tls(&new, ID), &bundle(&new, 4)).await;
    moved_to(port).await;
    let by_hand = StoredBundle::from(&bundle(&new, 3));
    stores.bundles.put(by_hand).await.unwrap();
    assert_eq!(refresh().await.unwrap(), Refreshed::Updated);
    let health = federation.health(&domain).unwrap();
    assert!(health.good_at > good_at && health.failing.is_none());
}
