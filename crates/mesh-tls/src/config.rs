//! Decides every setting of TLS in Finial; no other place builds a rustls configuration.
//! Trusts the [`IdentityCell`] for what to show and whom to believe, read at each handshake, so a configuration is never rebuilt.
//! Never leaves a rustls default in place that skips the verifier: resumption does, so both sides have none (security.md M1).

use std::{
    fmt,
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_identity::BundleSet;
use rustls::{
    ClientConfig, ConfigBuilder, ServerConfig, SignatureScheme, WantsVerifier,
    client::{ResolvesClientCert, Resumption},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
    time_provider::TimeProvider,
    version::TLS13,
};
use rustls_pki_types::{ServerName, UnixTime};

use crate::{
    Authorizer, IdentityCell,
    provider::provider,
    verifier::{Trust, Verifier},
};

/// Where the time comes from; each handshake asks it.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// What a server asks of its clients.
#[derive(Debug, Clone)]
pub enum ClientPolicy {
    /// A client without a certificate is refused.
    Required(Authorizer),
    /// A client may come without a certificate and is then nobody; a certificate that it does show must be valid and permitted.
    Optional(Authorizer),
}

/// The configuration of a server that shows the cell's identity and asks this of its clients.
/// `alpn` lists application protocols in order of preference; with an empty list none is negotiated.
pub fn server_config(
    cell: &IdentityCell,
    clients: ClientPolicy,
    alpn: &[&[u8]],
    clock: Clock,
) -> Arc<ServerConfig> {
    let (permitted, required) = match clients {
        ClientPolicy::Required(permitted) => (permitted, true),
        ClientPolicy::Optional(permitted) => (permitted, false),
    };
    let verifier = Verifier::new(
        Trust::Cell(cell.clone()),
        permitted,
        Arc::clone(&clock),
        required,
    );
    let builder = ServerConfig::builder_with_details(Arc::clone(provider()), Arc::new(Time(clock)));
    let mut config = tls13(builder)
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(Current(cell.clone())));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.send_half_rtt_data = false; // nothing is said to a client before it is verified
    Arc::new(config)
}

/// The configuration of a client that shows the cell's identity and talks to these servers only.
pub fn client_config(
    cell: &IdentityCell,
    servers: Authorizer,
    alpn: &[&[u8]],
    clock: Clock,
) -> Arc<ClientConfig> {
    let verifier = Verifier::new(Trust::Cell(cell.clone()), servers, Arc::clone(&clock), true);
    let builder = ClientConfig::builder_with_details(Arc::clone(provider()), Arc::new(Time(clock)));
    let config = tls13(builder)
        .dangerous() // rustls's word for "not the web's rules"
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(Current(cell.clone())));
    finish_client(config, alpn)
}

/// The configuration of a client that has no identity yet and verifies servers by fixed bundles: for the first attestation.
pub fn bootstrap_client_config(
    bundles: BundleSet,
    servers: Authorizer,
    alpn: &[&[u8]],
    clock: Clock,
) -> Arc<ClientConfig> {
    let trust = Trust::Fixed(Arc::new(bundles));
    let verifier = Verifier::new(trust, servers, Arc::clone(&clock), true);
    let builder = ClientConfig::builder_with_details(Arc::clone(provider()), Arc::new(Time(clock)));
    let config = tls13(builder)
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    finish_client(config, alpn)
}

/// The name that rustls wants from a client. SPIFFE verification ignores names, and none is sent: this one stands for "no name".
pub fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into())
}

fn tls13<Side: rustls::ConfigSide>(
    builder: ConfigBuilder<Side, rustls::WantsVersions>,
) -> ConfigBuilder<Side, WantsVerifier> {
    builder
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has suites and groups for TLS 1.3")
}

fn finish_client(mut config: ClientConfig, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    Arc::new(config)
}

/// Shows the identity that the cell holds at the moment of the handshake.
#[derive(Debug)]
pub(crate) struct Current(pub(crate) IdentityCell);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.certified())
    }
}

impl ResolvesClientCert for Current {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        // The hints of the server are not looked at: we have one identity, and the server judges it.
        Some(self.0.certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Our clock, for rustls's own use of time.
pub(crate) struct Time(pub(crate) Clock);

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        let since = (self.0)().duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(
            since.as_secs(),
        )))
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Time")
    }
}
