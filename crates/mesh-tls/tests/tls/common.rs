//! Decides how the tests make two ends and let them meet.
//! Trusts itself: `Raw` ends accept anybody and show anything, to play the wrong peer.
//! Never part of a program.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use mesh_identity::{
    BundleSet, SpiffeId,
    test_util::{Made, now},
};
use mesh_tls::{
    Authorizer, ClientConfig, ClientPolicy, ClientStream, Clock, HandshakeError, IdentityCell,
    Peer, PeerRefused, PrivateKey, ServerConfig, ServerStream, TlsIdentity, accept, client_config,
    connect, install_default_provider, server_config,
};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    server::danger::{ClientCertVerified, ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

pub(crate) const TD: &str = "td.test";
pub(crate) const WEB: &str = "spiffe://td.test/web";
pub(crate) const PAY: &str = "spiffe://td.test/pay";

/// A trust domain with two workloads.
pub(crate) struct World {
    pub(crate) root: Made,
    pub(crate) web: Made,
    pub(crate) pay: Made,
}

impl World {
    pub(crate) fn new() -> Self {
        install_default_provider();
        let root = Made::root(TD);
        let web = root.leaf(WEB);
        let pay = root.leaf(PAY);
        Self { root, web, pay }
    }

    pub(crate) fn bundles(&self) -> BundleSet {
        self.root.bundles(TD)
    }

    pub(crate) fn cell(&self, leaf: &Made) -> IdentityCell {
        IdentityCell::new(identity(leaf, self.bundles()))
    }

    /// `pay` as a server that lets any verified client in.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        server_of(&self.cell(&self.pay))
    }

    /// `web` as a client of `pay`.
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        client_of(&self.cell(&self.web))
    }
}

pub(crate) fn server_of(cell: &IdentityCell) -> Arc<ServerConfig> {
    let anyone = ClientPolicy::Required(Authorizer::any_verified());
    server_config(cell, anyone, &[], clock())
}

pub(crate) fn client_of(cell: &IdentityCell) -> Arc<ClientConfig> {
    client_config(cell, Authorizer::exactly(id(PAY)), &[], clock())
}

pub(crate) fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

pub(crate) fn key(leaf: &Made) -> PrivateKey {
    PrivateKey::from_pkcs8(leaf.key_pkcs8()).unwrap()
}

pub(crate) fn identity(leaf: &Made, bundles: BundleSet) -> TlsIdentity {
    TlsIdentity::new(leaf.svid(), key(leaf), bundles, now()).unwrap()
}

/// A clock that stands still.
pub(crate) fn clock() -> Clock {
    Arc::new(now)
}

/// A clock that the test moves.
pub(crate) struct Hands(Arc<Mutex<SystemTime>>);

impl Hands {
    pub(crate) fn at_now() -> Self {
        Self(Arc::new(Mutex::new(now())))
    }

    pub(crate) fn advance(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }

    pub(crate) fn clock(&self) -> Clock {
        let time = Arc::clone(&self.0);
        Arc::new(move || *time.lock().unwrap())
    }
}

pub(crate) type ServerEnd = (ServerStream<DuplexStream>, Option<Peer>);
pub(crate) type ClientEnd = (ClientStream<DuplexStream>, Peer);

/// Lets two ends meet in memory.
pub(crate) async fn meet(
    server: &Arc<ServerConfig>,
    client: &Arc<ClientConfig>,
) -> (
    Result<ServerEnd, HandshakeError>,
    Result<ClientEnd, HandshakeError>,
) {
    let (here, there) = duplex(64 * 1024);
    tokio::join!(accept(server, here), connect(client, there))
}

/// Both ends of a handshake that must succeed.
pub(crate) async fn meet_well(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Pair {
    let (server, client) = meet(server, client).await;
    Pair {
        server: server.unwrap(),
        client: client.unwrap(),
    }
}

pub(crate) struct Pair {
    pub(crate) server: ServerEnd,
    pub(crate) client: ClientEnd,
}

impl Pair {
    /// Says something in both directions.
    pub(crate) async fn talk(&mut self) {
        let mut heard = [0; 4];
        self.client.0.write_all(b"ping").await.unwrap();
        self.client.0.flush().await.unwrap();
        self.server.0.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"ping");
        self.server.0.write_all(b"pong").await.unwrap();
        self.server.0.flush().await.unwrap();
        self.client.0.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"pong");
    }

    pub(crate) fn client_serial(&self) -> &str {
        &self.server.1.as_ref().unwrap().serial
    }

    pub(crate) fn server_serial(&self) -> &str {
        &self.client.1.serial
    }
}

/// The reason why we refused a peer.
#[track_caller]
pub(crate) fn refusal<T: Debug>(result: Result<T, HandshakeError>) -> PeerRefused {
    match result {
        Err(HandshakeError::PeerRefused(reason)) => reason,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// Shows any chain with any key and believes anything, with rustls's defaults for all the rest.
pub(crate) struct Raw {
    provider: CryptoProvider,
    certified: Option<Arc<CertifiedKey>>,
}

impl Raw {
    pub(crate) fn new(shown: &Made) -> Self {
        Self::with(shown.chain.clone(), shown)
    }

    pub(crate) fn with(chain: Vec<CertificateDer<'static>>, key_of: &Made) -> Self {
        let mut raw = Self::nobody();
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key_of.key_pkcs8()));
        let key = raw.provider.key_provider.load_private_key(der).unwrap();
        raw.certified = Some(Arc::new(CertifiedKey::new(chain, key)));
        raw
    }

    pub(crate) fn nobody() -> Self {
        install_default_provider();
        let provider = CryptoProvider::clone(CryptoProvider::get_default().unwrap());
        Self {
            provider,
            certified: None,
        }
    }

    /// Offers these key exchanges only, in the provider's order.
    pub(crate) fn only_groups(mut self, names: &[&str]) -> Self {
        self.provider
            .kx_groups
            .retain(|group| names.contains(&group.name().as_str().unwrap()));
        assert_eq!(self.provider.kx_groups.len(), names.len());
        self
    }

    pub(crate) fn client(self) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(Arc::new(self.provider))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Believer));
        match self.certified {
            Some(shown) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown)))
            }
            None => builder.with_no_client_auth(),
        }
    }

    pub(crate) fn server(self) -> ServerConfig {
        let shown = self.certified.expect("a server shows something");
        ServerConfig::builder_with_provider(Arc::new(self.provider))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_client_cert_verifier(Arc::new(Believer))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(shown)))
    }
}

/// Believes anything.
#[derive(Debug)]
struct Believer;

fn schemes() -> Vec<SignatureScheme> {
    let provider = CryptoProvider::get_default().unwrap();
    provider
        .signature_verification_algorithms
        .supported_schemes()
}

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
        unreachable!("TLS 1.3 only")
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
        schemes()
    }
}

impl ClientCertVerifier for Believer {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Signature {
        unreachable!("TLS 1.3 only")
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
        schemes()
    }
}
