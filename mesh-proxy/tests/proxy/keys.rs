//! Keys of issuers that are served over https: fetched, renewed, kept when the server fails, and never asked for where they cannot be.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_identity::test_util::Spec;
use mesh_identity::test_util::jwt::JwtSigner;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::world::{DOMAIN, Pair, Proxy, World, eventually, now};

const ISSUER: &str = "https://login.test";

/// A server of keys for `localhost`, under the root of the world.
struct KeyServer {
    port: u16,
    /// Status line and body of the next answers.
    answer: Arc<Mutex<(&'static str, String)>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl KeyServer {
    async fn start(world: &World, keys: String) -> Self {
        let made = world.root.sign(
            Spec {
                uris: Vec::new(),
                dns_names: vec!["localhost".into()],
                ..Spec::leaf("spiffe://dev.test/keys")
            }
            .valid(
                now() - Duration::from_secs(10),
                now() + Duration::from_secs(600),
            ),
        );
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.key_pkcs8()));
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(made.chain.clone(), key)
            .unwrap();
        let (acceptor, listener) = (
            TlsAcceptor::from(Arc::new(config)),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        );
        let port = listener.local_addr().unwrap().port();
        let answer = Arc::new(Mutex::new(("200 OK", keys)));
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (told, seen) = (Arc::clone(&answer), Arc::clone(&asked));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                seen.lock().unwrap().push("connected".to_owned());
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut buffer = [0; 4096];
                let read = stream.read(&mut buffer).await.unwrap_or(0);
                let asked = String::from_utf8_lossy(&buffer[..read]).into_owned();
                seen.lock().unwrap().push(asked);
                let (status, body) = told.lock().unwrap().clone();
                let text = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(text.as_bytes()).await.ok();
                stream.shutdown().await.ok();
            }
        });
        Self {
            port,
            answer,
            asked,
        }
    }

    fn serves(&self, status: &'static str, body: String) {
        *self.answer.lock().unwrap() = (status, body);
    }
}

fn keys(signer: &JwtSigner) -> String {
    String::from_utf8(signer.bundle("login.test").to_jwks_json()).unwrap()
}

fn token(signer: &JwtSigner) -> String {
    let seconds = now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let claims = json!({ "iss": ISSUER, "sub": "ann", "exp": seconds + 300 });
    signer.sign(&signer.header(), &claims)
}

fn policy(port: u16) -> String {
    let document = |kind: &str, spec: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{ name: login, namespace: shop }}\nspec: {spec}\n"
        )
    };
    document(
        "RequestAuthentication",
        &format!(
            "{{ jwtRules: [ {{ issuer: \"{ISSUER}\", jwksUri: \"https://localhost:{port}/keys?v=1\" }} ] }}"
        ),
    ) + &document(
        "AuthorizationPolicy",
        "{ rules: [ { from: [ { source: { requestPrincipals: [\"https://login.test/ann\"] } } ] } ] }",
    )
}

/// The status that the holder of a token is answered.
async fn status(pair: &Pair, proxy: &Proxy, signer: &JwtSigner) -> String {
    let request = format!(
        "GET /a HTTP/1.1\r\nHost: pay\r\nAuthorization: Bearer {}\r\n\r\n",
        token(signer)
    );
    let door = proxy.door("inbound");
    let answer = pair.world.raw("shop", door, request.as_bytes(), 0).await;
    answer.split(' ').nth(1).unwrap_or("closed").to_owned()
}

async fn becomes(pair: &Pair, proxy: &Proxy, signer: &JwtSigner, wanted: &str) {
    let mut last = String::new();
    for _ in 0..60 {
        last = status(pair, proxy, signer).await;
        if last == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{last}, not {wanted}");
}

async fn proxy(pair: &Pair, server: &KeyServer, name: &str, keys: &str) -> Proxy {
    pair.policy(&policy(server.port));
    let doors = format!(
        "inbound: {{ listen: \"127.0.0.1:0\", application: \"{}\" }}\npolicy: {{ file: \"{}\", keys: {{ {keys} }} }}",
        pair.application.address,
        pair.world.path("policy.yaml").display()
    );
    let proxy = Proxy::start(&pair.world, name, &pair.pay_agent, &doors).await;
    proxy.ready().await;
    proxy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_fetched_renewed_and_kept_while_their_server_fails() {
    let pair = Pair::start("").await;
    let (first, second) = (JwtSigner::new("k1"), JwtSigner::new("k2"));
    let server = KeyServer::start(&pair.world, keys(&first)).await;
    let roots = pair.world.root.bundle(DOMAIN).to_pem();
    let roots = pair.world.write("web-roots.pem", &roots);
    let fetching = format!("caFile: \"{}\", every: 1s, loopback: true", roots.display());
    let proxy = proxy(&pair, &server, "web", &fetching).await;
    becomes(&pair, &proxy, &first, "200").await;
    assert_eq!(status(&pair, &proxy, &second).await, "401");
    let asked = server.asked.lock().unwrap().join("\n");
    assert!(asked.contains("GET /keys?v=1 HTTP/1.1"), "{asked}");

    for (what, answer) in [
        ("500 Internal Server Error", String::new()),
        ("302 Found", keys(&second)),
        ("200 OK", "{".to_owned()),
        ("200 OK", "{\"keys\":[]}".to_owned()),
        (
            "200 OK",
            format!("{}{}", keys(&second), " ".repeat(300_000)),
        ),
    ] {
        let before = server.asked.lock().unwrap().len();
        server.serves(what, answer);
        eventually("it is asked again", || {
            (server.asked.lock().unwrap().len() > before + 3).then_some(())
        })
        .await;
        assert_eq!(
            status(&pair, &proxy, &first).await,
            "200",
            "the last good keys stay"
        );
        assert_eq!(status(&pair, &proxy, &second).await, "401", "{what}");
    }
    assert!(proxy.log().contains("FNL3053"), "{}", proxy.log());
    assert!(
        proxy.log().contains("the last good keys stay"),
        "{}",
        proxy.log()
    );

    server.serves("200 OK", keys(&second));
    becomes(&pair, &proxy, &second, "200").await;
    assert_eq!(status(&pair, &proxy, &first).await, "401");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_keys_every_token_is_refused_and_this_machine_is_never_asked() {
    let pair = Pair::start("").await;
    let signer = JwtSigner::new("k1");
    let server = KeyServer::start(&pair.world, keys(&signer)).await;
    let roots = pair.world.root.bundle(DOMAIN).to_pem();
    let roots = pair.world.write("web-roots.pem", &roots);
    let fetching = format!("caFile: \"{}\", every: 1s", roots.display());
    let here = proxy(&pair, &server, "here", &fetching).await;
    eventually("the refusal is logged", || {
        here.log().contains("FNL3053").then_some(())
    })
    .await;
    assert_eq!(status(&pair, &here, &signer).await, "401");
    assert!(
        here.log().contains("address of this machine"),
        "{}",
        here.log()
    );
    assert!(server.asked.lock().unwrap().is_empty());

    // Another authority than the one that is trusted for it.
    let other = World::new();
    let others = other.root.bundle(DOMAIN).to_pem();
    let others = pair.world.write("other-roots.pem", &others);
    let fetching = format!(
        "caFile: \"{}\", every: 1s, loopback: true",
        others.display()
    );
    let unknown = proxy(&pair, &server, "unknown", &fetching).await;
    eventually("the refusal is logged", || {
        unknown.log().contains("FNL3053").then_some(())
    })
    .await;
    assert_eq!(status(&pair, &unknown, &signer).await, "401");
    assert!(
        unknown.log().contains("did not prove its name"),
        "{}",
        unknown.log()
    );
}
