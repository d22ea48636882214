//! The identity of this proxy: frames of the SPIFFE Workload API, each taken whole or refused, published as a `TlsIdentity`.
//! Trusts the socket's owner for what the identity is; checks every frame as a peer would.
//! Never shows half a frame, and never gives up the last good certificate before it expires by itself while nobody answers; what is
//! withdrawn, trust or the identity, goes at once.

pub(crate) mod tokens;

use std::convert::Infallible;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use mesh_identity::{Bundle, BundleError, BundleSet, SpiffeId, SvidError, TrustDomain, X509Svid};
use mesh_runtime::clock::Clock;
use mesh_runtime::errors::Coded;
use mesh_runtime::readiness::{Part, ReadyPart};
use mesh_runtime::tasks::Stop;
use mesh_runtime::telemetry::Repetition;
use mesh_tls::{IdentityCell, PrivateKey, TlsIdentity, TlsIdentityError};
use proto::spiffe::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use proto::spiffe::workload::{X509svid, X509svidRequest, X509svidResponse};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tonic::Code;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::metrics::ProxyMetrics;

/// The header without which no Workload API answers: it keeps web pages from asking.
const SECURITY_HEADER: &str = "workload.spiffe.io";
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often it is looked whether another server took the place of one that said no for good.
const LOOK_FOR_ANOTHER: Duration = Duration::from_secs(1);
/// A frame with a hundred bundles is far below this.
const LARGEST_FRAME: usize = 4 * 1024 * 1024;

/// Why there is no (new) identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The socket does not answer.
    #[error("the Workload API at {path} does not answer")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        cause: tonic::transport::Error,
    },
    /// The API answered with an error. `PermissionDenied` means: no identity for this process.
    #[error("the Workload API answered {:?}: {}", .0.code(), .0.message())]
    Answer(#[source] Box<tonic::Status>),
    /// The stream ended without an error.
    #[error("the Workload API ended the stream")]
    Ended,
    /// A frame was refused whole; the identity in use stays.
    #[error("a frame of the Workload API is refused")]
    Frame(#[source] FrameError),
}

impl IdentityError {
    /// Whether it says that there is no identity for this process, and not only that none can be had now.
    fn is_withdrawal(&self) -> bool {
        matches!(self, Self::Answer(status) if status.code() == Code::PermissionDenied)
    }

    /// Whether the same server will say the same again: it does not know the request (SPIFFE Workload Endpoint, sections 5 and 6).
    fn is_final(&self) -> bool {
        matches!(self, Self::Answer(status)
            if matches!(status.code(), Code::InvalidArgument | Code::Unimplemented))
    }
}

impl Coded for IdentityError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "FNL3041",
            Self::Answer(_) => "FNL3042",
            Self::Ended => "FNL3043",
            Self::Frame(_) => "FNL3040",
        }
    }
}

/// What is wrong with a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// No identity in it.
    #[error("it has no identity")]
    Empty,
    /// The chain is no X509-SVID.
    #[error("its certificate chain")]
    Svid(#[source] SvidError),
    /// The text and the certificate name different identities.
    #[error("it says {said}, its certificate {proven}")]
    OtherId {
        /// What the frame says.
        said: String,
        /// What the certificate says.
        proven: SpiffeId,
    },
    /// The key cannot be read.
    #[error("its private key")]
    Key(#[source] mesh_tls::KeyError),
    /// A bundle cannot be read.
    #[error("its bundle of {domain}")]
    Bundle {
        /// Of which trust domain.
        domain: String,
        /// Why.
        #[source]
        cause: BundleError,
    },
    /// It has no root of its own trust domain, which the Workload API demands: a mistake, not a withdrawal.
    #[error("its bundle of {0} holds no root")]
    NoRoot(TrustDomain),
    /// A bundle is not named by a trust domain.
    #[error("a bundle is named `{0}`, which is no trust domain")]
    Domain(String),
    /// A peer would not accept it.
    #[error("it is not usable")]
    Unusable(#[source] TlsIdentityError),
}

/// Where the identity comes from, and where it goes.
pub(crate) struct Source {
    pub(crate) socket: PathBuf,
    pub(crate) clock: Clock,
    pub(crate) metrics: ProxyMetrics,
    /// Filled with the first identity; after that the cell itself is swapped.
    pub(crate) publish: watch::Sender<Option<IdentityCell>>,
}

/// Tells whether there is an identity to work with.
struct Ready {
    /// Until there is a first one.
    first: Option<Part>,
    /// From then on.
    since: Option<ReadyPart>,
}

impl Ready {
    fn wait_for(&self, reason: &str) {
        if let Some(part) = &self.first {
            part.waiting_for(reason);
        }
    }

    fn yes(&mut self) {
        if let Some(part) = self.first.take() {
            self.since = Some(part.done());
        } else if let Some(part) = &self.since {
            part.ready_again();
        }
    }

    fn no(&self, reason: &str) {
        if let Some(part) = &self.since {
            part.not_ready(reason);
        }
    }
}

impl Source {
    /// Follows the stream until stopped; reconnects with a growing pause.
    pub(crate) async fn run(self, ready: Part, stop: Stop) -> Result<(), Infallible> {
        let mut ready = Ready {
            first: Some(ready),
            since: None,
        };
        let trouble = Repetition::new("workload-api");
        let mut pause = FIRST_PAUSE;
        loop {
            let server = socket_file(&self.socket);
            let follow = self.follow(&mut ready, &trouble, &mut pause);
            let Some(error) = stop.unless_stopped(follow).await else {
                return Ok(());
            };
            trouble.failed(&error);
            self.metrics.identity_failed(error.code());
            ready.wait_for("no identity from the Workload API yet");
            if error.is_withdrawal() {
                self.withdraw(&ready);
            }
            if error.is_final() {
                let Some(()) = stop.unless_stopped(self.another_than(server)).await else {
                    return Ok(());
                };
                pause = FIRST_PAUSE;
                continue;
            }
            // Up to a quarter more, so that the proxies of a node do not come back in step.
            let jitter = pause.mul_f64(f64::from(fraction()) / 1024.0);
            if stop
                .unless_stopped(self.clock.sleep(pause + jitter))
                .await
                .is_none()
            {
                return Ok(());
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Waits until there is another socket than the one that said no for good. The same server would say the same again, so it
    /// is not asked (WEP-9, WEP-20); one that is started anew makes a socket of its own.
    async fn another_than(&self, server: Option<SocketFile>) {
        while socket_file(&self.socket) == server {
            self.clock.sleep(LOOK_FOR_ANOTHER).await;
        }
    }

    /// The identity in use is not ours any more: no peer is trusted from here on, so none is spoken to and open connections are
    /// judged again. The next frame brings it back.
    fn withdraw(&self, ready: &Ready) {
        let Some(cell) = self.publish.borrow().clone() else {
            return;
        };
        ready.no("the Workload API says that this process has no identity any more");
        if !cell.current().bundles().is_empty() {
            cell.replace_bundles(BundleSet::new());
            tracing::warn!(
                "the identity was withdrawn: nobody is served or called until there is one again"
            );
        }
    }

    /// One connection, until it fails.
    async fn follow(
        &self,
        ready: &mut Ready,
        trouble: &Repetition,
        pause: &mut Duration,
    ) -> IdentityError {
        let channel = match connect(&self.socket).await {
            Ok(channel) => channel,
            Err(error) => return error,
        };
        let mut client =
            SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(LARGEST_FRAME);
        let mut request = tonic::Request::new(X509svidRequest {});
        request
            .metadata_mut()
            .insert(SECURITY_HEADER, MetadataValue::from_static("true"));
        let mut frames = match client.fetch_x509svid(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => return IdentityError::Answer(Box::new(status)),
        };
        loop {
            let frame = match frames.message().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return IdentityError::Ended,
                Err(status) => return IdentityError::Answer(Box::new(status)),
            };
            match self.take(frame) {
                Ok(identity) => {
                    self.put(identity, ready);
                    trouble.succeeded();
                    *pause = FIRST_PAUSE;
                }
                // The stream goes on: the next frame may be good. What is in use stays.
                Err(error) => {
                    let error = IdentityError::Frame(error);
                    self.metrics.identity_failed(error.code());
                    trouble.failed(&error);
                }
            }
        }
    }

    fn take(&self, frame: X509svidResponse) -> Result<TlsIdentity, FrameError> {
        let (svid, key, bundles) = read_frame(frame)?;
        let domain = svid.id().trust_domain().clone();
        TlsIdentity::new(svid, key, bundles.clone(), self.clock.now()).map_err(|cause| {
            if matches!(cause, TlsIdentityError::NotAccepted(_)) {
                self.trust_only(&domain, bundles);
            }
            FrameError::Unusable(cause)
        })
    }

    /// The roots of a frame whose certificate they do not accept: an authority was withdrawn before our new certificate came.
    /// Peers are judged by them at once (decision 0202); the certificate that we show stays.
    fn trust_only(&self, domain: &TrustDomain, bundles: BundleSet) {
        let cell = self.publish.borrow().clone();
        if let Some(cell) = cell.filter(|cell| cell.current().id().trust_domain() == domain) {
            cell.replace_bundles(bundles);
            tracing::warn!(
                "the trust bundles are replaced; the certificate in use stays, though they do not accept it"
            );
        }
    }

    fn put(&self, identity: TlsIdentity, ready: &mut Ready) {
        let (id, serial) = (identity.id().clone(), identity.svid().serial().to_owned());
        let left = identity
            .not_after()
            .duration_since(self.clock.now())
            .unwrap_or_default();
        self.metrics.identity_updated(identity.not_after());
        let known = self.publish.borrow().clone();
        match known {
            Some(cell) => cell.publish(identity),
            None => {
                self.publish.send_replace(Some(IdentityCell::new(identity)));
            }
        }
        ready.yes();
        tracing::info!(%id, %serial, expires_in_s = left.as_secs(), "identity");
    }
}

fn read_frame(frame: X509svidResponse) -> Result<(X509Svid, PrivateKey, BundleSet), FrameError> {
    // The first one is the default identity (SPIFFE Workload API 5.1).
    let first = frame.svids.into_iter().next().ok_or(FrameError::Empty)?;
    let X509svid {
        spiffe_id,
        x509_svid,
        x509_svid_key,
        bundle,
        ..
    } = first;
    let key = PrivateKey::from_pkcs8(x509_svid_key).map_err(FrameError::Key)?;
    let svid = X509Svid::from_der_concat(&x509_svid).map_err(FrameError::Svid)?;
    if svid.id().as_str() != spiffe_id {
        return Err(FrameError::OtherId {
            said: spiffe_id.escape_debug().take(256).collect(),
            proven: svid.id().clone(),
        });
    }
    let own = read_bundle(svid.id().trust_domain().clone(), &bundle)?;
    if own.x509_authorities().is_empty() {
        return Err(FrameError::NoRoot(own.trust_domain().clone()));
    }
    let mut bundles = BundleSet::new();
    bundles.insert(own);
    for (name, roots) in &frame.federated_bundles {
        let domain = domain_of(name)?;
        if domain == *svid.id().trust_domain() {
            continue; // our own roots come in `bundle`
        }
        bundles.insert(read_bundle(domain, roots)?);
    }
    Ok((svid, key, bundles))
}

/// The trust domain by which a bundle is named, with or without its scheme.
fn domain_of(name: &str) -> Result<TrustDomain, FrameError> {
    let domain = name
        .strip_prefix("spiffe://")
        .unwrap_or(name)
        .trim_end_matches('/');
    domain
        .parse()
        .map_err(|_| FrameError::Domain(name.escape_debug().take(256).collect()))
}

fn read_bundle(domain: TrustDomain, roots: &[u8]) -> Result<Bundle, FrameError> {
    let name = domain.to_string();
    Bundle::from_der_concat(domain, roots).map_err(|cause| FrameError::Bundle {
        domain: name,
        cause,
    })
}

/// What tells one socket at a path from the next: device, inode, and when it was made or moved there.
type SocketFile = (u64, u64, i64, i64);

fn socket_file(path: &Path) -> Option<SocketFile> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec()))
}

async fn connect(socket: &Path) -> Result<Channel, IdentityError> {
    let path = socket.to_owned();
    let dial = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The URI is only a name for the connection: a Unix socket has none.
    Endpoint::from_static("http://workload-api")
        .connect_timeout(Duration::from_secs(5))
        .connect_with_connector(dial)
        .await
        .map_err(|cause| IdentityError::Unreachable {
            path: socket.to_owned(),
            cause,
        })
}

/// A number from 0 to 255 that differs between processes and calls.
fn fraction() -> u8 {
    uuid::Uuid::new_v4().as_bytes()[0]
}

#[cfg(test)]
mod tests;
