//! The identity of this proxy: frames of the SPIFFE Workload API, each taken whole or refused, published as a `TlsIdentity`.
//! Trusts the socket's owner for what the identity is; checks every frame as a peer would.
//! Never shows half a frame, and never gives up the last good certificate before it expires by itself while nobody answers; what is
//! withdrawn, trust or the identity, goes at once.

pub(crate) mod stream;
pub(crate) mod tokens;

use std::convert::Infallible;
use std::path::PathBuf;

use mesh_identity::{Bundle, BundleError, BundleSet, SpiffeId, SvidError, TrustDomain, X509Svid};
use mesh_runtime::errors::Coded;
use mesh_runtime::readiness::{Part, ReadyPart};
use mesh_runtime::tasks::Stop;
use mesh_tls::{IdentityCell, PrivateKey, TlsIdentity, TlsIdentityError};
use proto::spiffe::workload::{X509svid, X509svidRequest, X509svidResponse};
use tokio::sync::watch;
use tonic::{Code, Response, Status, Streaming};

use self::stream::{Client, Follower, Link, ask};

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
    pub(crate) link: Link,
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
    /// Follows the stream until stopped.
    pub(crate) async fn run(self, ready: Part, stop: Stop) -> Result<(), Infallible> {
        let link = self.link.clone();
        let mut following = Following {
            source: self,
            ready: Ready {
                first: Some(ready),
                since: None,
            },
        };
        link.follow(&mut following, "workload-api", &stop).await;
        Ok(())
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

    fn read(&self, frame: X509svidResponse) -> Result<TlsIdentity, FrameError> {
        let (svid, key, bundles) = read_frame(frame)?;
        let domain = svid.id().trust_domain().clone();
        TlsIdentity::new(svid, key, bundles.clone(), self.link.clock.now()).map_err(|cause| {
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
            .duration_since(self.link.clock.now())
            .unwrap_or_default();
        self.link.metrics.identity_updated(identity.not_after());
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

/// The source, and who waits for it.
struct Following {
    source: Source,
    ready: Ready,
}

impl Follower for Following {
    type Frame = X509svidResponse;

    async fn open(mut client: Client) -> Result<Response<Streaming<X509svidResponse>>, Status> {
        client.fetch_x509svid(ask(X509svidRequest {})).await
    }

    fn take(&mut self, frame: X509svidResponse) -> Result<(), FrameError> {
        let identity = self.source.read(frame)?;
        self.source.put(identity, &mut self.ready);
        Ok(())
    }

    fn failed(&mut self, error: &IdentityError) {
        self.ready.wait_for("no identity from the Workload API yet");
        if error.is_withdrawal() {
            self.source.withdraw(&self.ready);
        }
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

#[cfg(test)]
mod tests;
