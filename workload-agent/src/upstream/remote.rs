//! Decides how the CA is reached: one address, mutual TLS, and only a server that proves `/spire/server` in our own trust domain.
//! Trusts the identity that it is given. Never connects before it has something to say.

use std::{sync::Arc, time::Duration};

use mesh_identity::{BundleSet, SpiffeId, TrustDomain};
use mesh_runtime::clock::Clock;
use mesh_tls::{Authorizer, ClientConfig, IdentityCell};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::bootstrap::Bootstrap;

/// How long a connection may take to be made, TLS included.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// A silent connection is asked this often whether it still lives, and has this long to answer.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(10));

/// The ca-server, as the configuration names it.
#[derive(Debug)]
pub struct Remote {
    /// `host:port`.
    pub address: String,
    /// Whose server it must be.
    pub trust_domain: TrustDomain,
    server: SpiffeId,
}

impl Remote {
    /// The server of a trust domain at an address.
    pub fn new(address: String, trust_domain: TrustDomain) -> Self {
        let server = SpiffeId::from_parts(&trust_domain, "/spire/server")
            .expect("a constant path that is well formed");
        Self {
            address,
            trust_domain,
            server,
        }
    }

    /// A connection that is made when it is first used, and again whenever it breaks.
    pub(crate) fn channel(&self, tls: Arc<ClientConfig>) -> Channel {
        let address: Arc<str> = self.address.as_str().into();
        let connector = tower::service_fn(move |_: Uri| {
            let (address, tls) = (Arc::clone(&address), Arc::clone(&tls));
            async move {
                let work = async {
                    let tcp = TcpStream::connect(&*address).await?;
                    tcp.set_nodelay(true)?;
                    let (stream, _) = mesh_tls::connect(&tls, tcp)
                        .await
                        .map_err(std::io::Error::other)?;
                    Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
                };
                tokio::time::timeout(CONNECT_WITHIN, work)
                    .await
                    .unwrap_or_else(|_| {
                        Err(std::io::Error::new(
                            std::io::ErrorKind::TimedOut,
                            "no connection within the time limit",
                        ))
                    })
            }
        });
        // The URI only names the authority of the requests; the connector knows where to go and does the TLS.
        Endpoint::from_static("http://ca-server")
            .http2_keep_alive_interval(KEEP_ALIVE.0)
            .keep_alive_timeout(KEEP_ALIVE.1)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(connector)
    }

    fn servers(&self) -> Authorizer {
        Authorizer::exactly(self.server.clone())
    }
}

/// TLS without a certificate of our own, against a bundle that the configuration names.
pub(crate) fn bootstrap_tls(
    remote: &Remote,
    bundles: BundleSet,
    clock: &Clock,
) -> Arc<ClientConfig> {
    mesh_tls::bootstrap_client_config(bundles, remote.servers(), &[b"h2"], clock.as_fn())
}

/// A connection as this agent.
pub(super) fn new_channel(bootstrap: &Bootstrap, cell: &IdentityCell) -> Channel {
    let remote = &bootstrap.remote;
    remote.channel(mesh_tls::client_config(
        cell,
        remote.servers(),
        &[b"h2"],
        bootstrap.clock.as_fn(),
    ))
}
