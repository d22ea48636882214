//! The keys of issuers that are fetched from the Web: asked for again and again, the last good ones kept.
//! Trusts the Web's authorities for the name that the policy wrote, and nothing else: no redirect, no address of this machine or its link.
//! Never waits or reads without an end, and never has keys that were not fetched: until then every token of the issuer is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use mesh_identity::JwtAuthority;
use mesh_policy::KeyUrl;
use mesh_runtime::clock::Clock;
use mesh_runtime::errors::Coded;
use mesh_runtime::tasks::Stop;
use mesh_runtime::telemetry::{Repetition, Said};
use mesh_tls::{ClientConfig, HandshakeError};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::config::KeyFetching;
use crate::policy::Policies;

/// One fetch, from the name to the last byte.
const LONGEST: Duration = Duration::from_secs(10);
/// A set of a hundred large keys has a fifth of it.
const LARGEST: usize = 256 * 1024;
/// After a failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The keys that were fetched. Clones are handles.
#[derive(Clone, Debug, Default)]
pub(crate) struct WebKeys {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    known: Mutex<BTreeMap<KeyUrl, Fetched>>,
    version: AtomicU64,
}

/// A set of keys as it came, and what is in it.
#[derive(Clone, Debug)]
pub(crate) struct Fetched {
    pub(crate) text: Arc<str>,
    pub(crate) keys: Vec<JwtAuthority>,
}

impl WebKeys {
    /// Changes whenever keys do.
    pub(crate) fn version(&self) -> u64 {
        self.inner.version.load(Ordering::Acquire)
    }

    pub(crate) fn get(&self, url: &KeyUrl) -> Option<Fetched> {
        let known = self
            .inner
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        known.get(url).cloned()
    }

    fn put(&self, url: &KeyUrl, fetched: Fetched) {
        let mut known = self
            .inner
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if known.get(url).is_some_and(|old| old.text == fetched.text) {
            return;
        }
        known.insert(url.clone(), fetched);
        drop(known);
        self.inner.version.fetch_add(1, Ordering::Release);
    }

    fn keep(&self, wanted: &BTreeSet<KeyUrl>) {
        let mut known = self
            .inner
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        known.retain(|url, _| wanted.contains(url));
    }
}

/// Why keys were not fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// The name leads nowhere.
    #[error("its host has no address")]
    Name(#[source] io::Error),
    /// It leads where no keys of others are.
    #[error("its host leads to {0}, an address of this machine or of its link")]
    Forbidden(IpAddr),
    /// Nobody answers.
    #[error("it cannot be reached")]
    Connect(#[source] io::Error),
    /// There is nothing to verify it with.
    #[error("there are no roots to verify it with")]
    NoRoots,
    /// It is not who it must be.
    #[error("it did not prove its name")]
    Tls(#[source] HandshakeError),
    /// It does not speak HTTP.
    #[error("it broke off, or does not follow HTTP")]
    Http(#[source] hyper::Error),
    /// It has no keys for us.
    #[error("it answered with status {0}")]
    Status(StatusCode),
    /// More than any set of keys has.
    #[error("it answered with more than {LARGEST} bytes")]
    TooLarge,
    /// Not within the time.
    #[error("it did not answer within {LONGEST:?}")]
    Slow,
    /// Not a set of keys.
    #[error("its answer is no set of keys")]
    Keys(#[source] mesh_identity::BundleError),
    /// A set without a key that signs tokens.
    #[error("its answer has no key that signs tokens")]
    Empty,
}

impl Coded for FetchError {
    fn code(&self) -> &'static str {
        "FNL3053"
    }
}

/// The roots for the Web cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the roots in {path} cannot be read")]
pub(crate) struct RootsError {
    path: PathBuf,
    #[source]
    cause: rustls_pki_types::pem::Error,
}

/// Fetches what the policy in force names.
pub(crate) struct Fetcher {
    pub(crate) keys: WebKeys,
    pub(crate) tls: Option<Arc<ClientConfig>>,
    pub(crate) loopback: bool,
    pub(crate) every: Duration,
    pub(crate) policies: Policies,
    pub(crate) clock: Clock,
}

/// When an address is asked again, and how it fared.
#[derive(Debug)]
struct Due {
    at: Instant,
    pause: Duration,
    quiet: Repetition,
}

impl Fetcher {
    /// With the roots of the system, or those of a file.
    pub(crate) fn new(
        config: &KeyFetching,
        policies: Policies,
        clock: Clock,
    ) -> Result<Self, RootsError> {
        let roots = match &config.ca_file {
            Some(path) => read_roots(path)?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        Ok(Self {
            keys: WebKeys::default(),
            // Without roots nobody can be verified, and so nobody is asked.
            tls: mesh_tls::web_client_config(roots, &[b"http/1.1"], clock.as_fn()).ok(),
            loopback: config.loopback,
            every: config.every.get().max(FIRST_PAUSE),
            policies,
            clock,
        })
    }

    /// Fetches until stopped.
    pub(crate) async fn run(self, stop: Stop) -> Result<(), Infallible> {
        let mut changes = self.policies.subscribe();
        let mut due: BTreeMap<KeyUrl, Due> = BTreeMap::new();
        loop {
            changes.borrow_and_update();
            let wanted: BTreeSet<_> = self.policies.current().policy.key_urls().cloned().collect();
            self.keys.keep(&wanted);
            due.retain(|url, _| wanted.contains(url));
            let now = self.clock.monotonic();
            for url in wanted {
                due.entry(url).or_insert_with(|| Due {
                    at: now,
                    pause: FIRST_PAUSE,
                    quiet: Repetition::new("keys"),
                });
            }
            let asked = due.iter_mut().filter(|(_, due)| due.at <= now);
            let all = join_all(asked.map(|(url, due)| self.one(url, due)));
            if stop.unless_stopped(all).await.is_none() {
                return Ok(());
            }
            let next = due.values().map(|due| due.at).min();
            let pause = next.map(|at| at.saturating_duration_since(self.clock.monotonic()));
            let woken = async {
                tokio::select! {
                    () = self.clock.sleep(pause.unwrap_or(Duration::MAX)), if pause.is_some() => {}
                    changed = changes.changed() => if changed.is_err() {
                        std::future::pending::<()>().await; // the program ends
                    },
                }
            };
            if stop.unless_stopped(woken).await.is_none() {
                return Ok(());
            }
        }
    }

    async fn one(&self, url: &KeyUrl, due: &mut Due) {
        let fetched = timeout(LONGEST, self.fetch(url)).await;
        let pause = match fetched.unwrap_or(Err(FetchError::Slow)) {
            Ok(fetched) => {
                due.quiet.succeeded();
                due.pause = FIRST_PAUSE;
                self.keys.put(url, fetched);
                self.every
            }
            Err(error) => {
                if due.quiet.failed(&error) == Said::Logged {
                    let kept = match self.keys.get(url) {
                        Some(_) => "the last good keys stay",
                        None => "every token of their issuer is refused",
                    };
                    tracing::error!(code = error.code(), %url, "no keys could be fetched: {kept}");
                }
                let pause = due.pause;
                due.pause = (pause * 2).min(self.every);
                pause
            }
        };
        due.at = self.clock.monotonic() + pause;
    }

    async fn fetch(&self, url: &KeyUrl) -> Result<Fetched, FetchError> {
        let tls = self.tls.as_ref().ok_or(FetchError::NoRoots)?;
        let addresses = self.addresses(url).await?;
        let stream = TcpStream::connect(&addresses[..])
            .await
            .map_err(FetchError::Connect)?;
        let unnamed = |_| FetchError::Name(io::ErrorKind::InvalidInput.into());
        let name = ServerName::try_from(url.host.clone()).map_err(unnamed)?;
        let stream = mesh_tls::connect_web(tls, name, stream)
            .await
            .map_err(FetchError::Tls)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(FetchError::Http)?;
        // It lives as long as the answer is read.
        let connection = tokio::spawn(connection);
        let host = match url.port {
            443 => url.host.clone(),
            port => format!("{}:{port}", url.host),
        };
        let request = Request::get(&url.path)
            .header(header::HOST, host)
            .header(header::ACCEPT, "application/json")
            .body(Empty::<Bytes>::new())
            .map_err(|_| FetchError::Name(io::ErrorKind::InvalidInput.into()))?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(FetchError::Http)?;
        if answer.status() != StatusCode::OK {
            return Err(FetchError::Status(answer.status()));
        }
        let body = Limited::new(answer.into_body(), LARGEST).collect().await;
        connection.abort();
        let body = match body {
            Ok(body) => body.to_bytes(),
            Err(error) => {
                return Err(match error.downcast::<hyper::Error>() {
                    Ok(error) => FetchError::Http(*error),
                    Err(_) => FetchError::TooLarge,
                });
            }
        };
        let keys = mesh_identity::read_jwks(&body).map_err(FetchError::Keys)?;
        if keys.is_empty() {
            return Err(FetchError::Empty);
        }
        Ok(Fetched {
            text: String::from_utf8_lossy(&body).into(),
            keys,
        })
    }

    /// Resolved once: what was judged is what is connected to.
    async fn addresses(&self, url: &KeyUrl) -> Result<Vec<SocketAddr>, FetchError> {
        let found: Vec<_> = tokio::net::lookup_host((url.host.as_str(), url.port))
            .await
            .map_err(FetchError::Name)?
            .collect();
        let forbidden = found
            .iter()
            .map(|address| address.ip())
            .find(|address| is_forbidden(*address, self.loopback));
        match forbidden {
            Some(address) => Err(FetchError::Forbidden(address)),
            None if found.is_empty() => Err(FetchError::Name(io::ErrorKind::NotFound.into())),
            None => Ok(found),
        }
    }
}

/// Addresses of this machine and of its link, where a cloud's metadata is: keys of others are never there (CVE-2024-45809).
fn is_forbidden(address: IpAddr, loopback: bool) -> bool {
    const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    let address = address.to_canonical();
    if address.is_loopback() {
        return !loopback;
    }
    let of_link = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address == METADATA,
    };
    of_link || address.is_unspecified() || address.is_multicast()
}

fn read_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, RootsError> {
    let failed = |cause| RootsError {
        path: path.to_owned(),
        cause,
    };
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mesh_c1_59_no_address_of_this_machine_or_its_link_is_asked_for_keys() {
        for bad in [
            "127.0.0.1",
            "127.8.8.8",
            "::1",
            "::ffff:127.0.0.1",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fe80::1",
            "fd00:ec2::254",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            assert!(is_forbidden(bad.parse().unwrap(), false), "{bad}");
        }
        for good in ["192.0.2.1", "10.0.0.1", "2001:db8::1", "fd00::1"] {
            assert!(!is_forbidden(good.parse().unwrap(), false), "{good}");
        }
        assert!(!is_forbidden("127.0.0.1".parse().unwrap(), true));
        assert!(is_forbidden("169.254.169.254".parse().unwrap(), true));
    }
}
