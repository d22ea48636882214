//! Peers that no library of ours would be: with certificates that are almost right, and with key exchanges of their own choice.
//! Trusts rustls for the handshake; its client believes anything and shows anything.
//! Never counts a failed handshake alone as a refusal: nothing may have reached the application either.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_identity::test_util::{Made, Spec};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::world::{Pair, exchange, now};

/// Everybody who has an identity may do everything: whoever is refused is refused for what he is.
const ANYONE: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { name: anyone, namespace: payments }\nspec: { rules: [ {} ] }\n";

#[derive(Debug)]
struct Believer(Arc<CryptoProvider>);

type Signature = Result<HandshakeSignatureValid, Error>;

impl ServerCertVerifier for Believer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Signature {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Signature {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// What a client with this certificate, offering these key exchanges (all, if none is named), is answered.
async fn ask(door: SocketAddr, shown: &Made, groups: &[&str]) -> String {
    let mut provider = CryptoProvider::clone(CryptoProvider::get_default().unwrap());
    if !groups.is_empty() {
        let known = |group: &&dyn rustls::crypto::SupportedKxGroup| {
            groups.contains(&group.name().as_str().unwrap())
        };
        provider.kx_groups.retain(known);
        assert_eq!(provider.kx_groups.len(), groups.len());
    }
    let provider = Arc::new(provider);
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(shown.key_pkcs8()));
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Believer(provider)))
        .with_client_auth_cert(shown.chain.clone(), key)
        .unwrap();
    let stream = TcpStream::connect(door).await.unwrap();
    let name = ServerName::try_from("pay").unwrap();
    match TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
    {
        Ok(mut stream) => exchange(&mut stream, b"GET /a HTTP/1.1\r\nHost: pay\r\n\r\n", 0).await,
        Err(error) => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_40_and_41_a_certificate_that_is_almost_right_opens_no_door() {
    let pair = Pair::start(ANYONE).await;
    let door = pair.pay.door("inbound");
    let right = "spiffe://dev.test/shop";
    let spec = || {
        Spec::leaf(right).valid(
            now() - Duration::from_secs(10),
            now() + Duration::from_secs(600),
        )
    };
    let answer = ask(door, &pair.world.root.sign(spec()), &[]).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "a right one: {answer}");
    let served = pair.application.heads().len();

    let uris = |uris: &[&str]| Spec {
        uris: uris.iter().map(|uri| uri.as_bytes().to_vec()).collect(),
        ..spec()
    };
    let long = format!("spiffe://dev.test/{}", "a".repeat(2048));
    let mut wrong = vec![
        ("no name", uris(&[])),
        ("two identities", uris(&[right, "spiffe://dev.test/admin"])),
        (
            "an identity and a web address",
            uris(&[right, "https://dev.test/"]),
        ),
        (
            "the same text as a DNS name",
            Spec {
                dns_names: vec![right.into()],
                ..uris(&[])
            },
        ),
        (
            "a trust domain in capitals",
            uris(&["spiffe://DEV.test/shop"]),
        ),
        ("an escape", uris(&["spiffe://dev.test/%2e"])),
        ("dots", uris(&["spiffe://dev.test/../shop"])),
        ("a slash at the end", uris(&["spiffe://dev.test/shop/"])),
        ("a query", uris(&["spiffe://dev.test/shop?x"])),
        ("a fragment", uris(&["spiffe://dev.test/shop#x"])),
        ("a port", uris(&["spiffe://dev.test:80/shop"])),
        ("a user", uris(&["spiffe://u@dev.test/shop"])),
        ("another scheme", uris(&["https://dev.test/shop"])),
        ("too long", uris(&[&long])),
        ("beyond ASCII", uris(&["spiffe://dev.test/sh\u{f6}p"])),
        ("a NUL", uris(&["spiffe://dev.test/shop\0"])),
        ("another trust domain", uris(&["spiffe://other.test/shop"])),
        (
            "expired",
            spec().valid(
                now() - Duration::from_secs(900),
                now() - Duration::from_secs(300),
            ),
        ),
    ];
    wrong.push((
        "an authority",
        Spec {
            ca: Some(true),
            ..spec()
        },
    ));
    for (what, spec) in wrong {
        let answer = ask(door, &pair.world.root.sign(spec), &[]).await;
        assert!(!answer.contains("HTTP/1.1"), "{what}: {answer}");
    }
    assert_eq!(
        pair.application.heads().len(),
        served,
        "nothing reached the application"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_classical_key_exchange_is_refused_where_a_policy_requires_post_quantum_keys() {
    let demand = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: { name: keys, namespace: payments }\nspec: { requirePostQuantum: true }\n";
    let pair = Pair::start(&format!("{ANYONE}{demand}")).await;
    let door = pair.pay.door("inbound");
    let shop = pair.world.issue("shop", Duration::from_secs(600));
    let answer = ask(door, &shop, &["X25519"]).await;
    assert!(!answer.contains("HTTP/1.1"), "{answer}");
    let line = pair.pay.line(|l| l["error"] == "FNL3006").await;
    assert_eq!(
        (&line["tls_group"], &line["source"]),
        (&"X25519".into(), &"spiffe://dev.test/shop".into())
    );
    assert!(pair.application.heads().is_empty());
    let answer = ask(door, &shop, &["X25519MLKEM768"]).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    pair.policy(ANYONE);
    for _ in 0..100 {
        let answer = ask(door, &shop, &["X25519"]).await;
        if answer.starts_with("HTTP/1.1 200") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("without the demand a classical key exchange is let in");
}
