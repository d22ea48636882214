//! Decides TLS towards the rest of the world: our public endpoints, and endpoints of others that are known by the Web PKI.
//! Trusts the roots it is given, and the host's name as it was configured. TLS 1.3, and 1.2 with forward secrecy, because
//! SPIFFE Federation asks for Mozilla's intermediate profile (section 5.1); nothing of the mesh itself is spoken here.

use std::{io, sync::Arc};

use rustls::{
    ClientConfig, Error as TlsError, RootCertStore, ServerConfig,
    client::{Resumption, WebPkiServerVerifier},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use crate::{
    ClientStream, Clock, HandshakeError, IdentityCell,
    config::{Current, Time},
    provider::{any_signing_key, public_provider},
};

/// The configuration of a client of servers that are known by a name and the Web PKI below these roots.
/// A root that cannot be read is left out, as Web clients do; without any, nothing could be verified.
pub fn web_client_config(
    roots: impl IntoIterator<Item = CertificateDer<'static>>,
    alpn: &[&[u8]],
    clock: Clock,
) -> Result<Arc<ClientConfig>, NoWebRoots> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots);
    let provider = public_provider();
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider))
            .build()
            .map_err(|_| NoWebRoots)?;
    let mut config =
        ClientConfig::builder_with_details(Arc::clone(provider), Arc::new(Time(clock)))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .expect("the provider has suites and groups for both")
            .with_webpki_verifier(verifier)
            .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

/// There is no root to verify Web servers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no usable root to verify Web servers with")]
pub struct NoWebRoots;

impl NoWebRoots {
    /// The code of this error in `docs/errors`.
    pub fn code(&self) -> &'static str {
        "FNL0420"
    }
}

/// The client's side of a handshake with a server that must have this name.
pub async fn connect_web<IO>(
    config: &Arc<ClientConfig>,
    name: ServerName<'static>,
    io: IO,
) -> Result<ClientStream<IO>, HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let connector = TlsConnector::from(Arc::clone(config));
    match connector.connect(name, io).await {
        Ok(stream) => Ok(ClientStream::new(stream)),
        Err(error) => Err(sort(error)),
    }
}

fn sort(error: io::Error) -> HandshakeError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        Some(TlsError::InvalidCertificate(reason)) => {
            HandshakeError::WebCertificate(TlsError::InvalidCertificate(reason.clone()))
        }
        _ => HandshakeError::sort(error, None),
    }
}

/// What a public endpoint shows.
#[derive(Debug, Clone)]
pub enum Shown {
    /// Our own X509-SVID, whichever is in use.
    Svid(IdentityCell),
    /// A certificate of the Web PKI.
    Web(WebIdentity),
}

/// A certificate of another PKI, such as the Web's, with its key. The key is never printed.
#[derive(Clone)]
pub struct WebIdentity(pub(crate) Arc<CertifiedKey>);

impl WebIdentity {
    /// Reads a chain, leaf first, and the leaf's key.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, WebIdentityError> {
        let chain = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| WebIdentityError::Chain)?;
        if chain.is_empty() {
            return Err(WebIdentityError::Chain);
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| WebIdentityError::Key)?;
        let key = any_signing_key(&key).map_err(|_| WebIdentityError::Key)?;
        let certified = CertifiedKey::new(chain, key);
        certified
            .keys_match()
            .map_err(|_| WebIdentityError::Mismatch)?;
        Ok(Self(Arc::new(certified)))
    }
}

impl std::fmt::Debug for WebIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebIdentity").finish_non_exhaustive()
    }
}

/// Why a certificate of another PKI cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WebIdentityError {
    /// The chain.
    #[error("the certificate chain is not PEM, or empty")]
    Chain,
    /// The key.
    #[error("the private key is not PEM, or of a kind that cannot sign here")]
    Key,
    /// They do not belong together.
    #[error("the private key is not that of the certificate")]
    Mismatch,
}

impl WebIdentityError {
    /// The code of this error in `docs/errors`.
    pub fn code(&self) -> &'static str {
        "FNL0421"
    }
}

/// The configuration of a public endpoint. It asks for no client certificate (SPIFFE Federation 5.1).
pub fn public_server_config(shown: Shown, alpn: &[&[u8]], clock: Clock) -> Arc<ServerConfig> {
    let resolver: Arc<dyn ResolvesServerCert> = match shown {
        Shown::Svid(cell) => Arc::new(Current(cell)),
        Shown::Web(identity) => Arc::new(Fixed(identity)),
    };
    let provider = public_provider();
    let mut config =
        ServerConfig::builder_with_details(Arc::clone(provider), Arc::new(Time(clock)))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .expect("the provider has suites and groups for both")
            .with_no_client_auth()
            .with_cert_resolver(resolver);
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Arc::new(config)
}

#[derive(Debug)]
struct Fixed(WebIdentity);

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.0))
    }
}
