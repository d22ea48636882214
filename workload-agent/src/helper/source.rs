//! Decides what the helper takes from the Workload API: whole answers, the identity with the wanted hint, tokens that the agent verifies.
//! Trusts the agent at the socket. Never uses a part of an answer.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    time::{Duration, SystemTime},
};

use hyper_util::rt::TokioIo;
use mesh_identity::BundleSet;
use proto::{
    convert::{WireError, workload::X509Context},
    spiffe::workload::{
        JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, ValidateJwtsvidRequest,
        X509svidRequest, X509svidResponse, spiffe_workload_api_client::SpiffeWorkloadApiClient,
    },
};
use tokio::net::UnixStream;
use tonic::{
    Request, Status, Streaming,
    metadata::MetadataValue,
    transport::{Channel, Endpoint, Uri},
};

use super::{content::Identity, folder::FolderError};

/// The longest answer: bundles of many trust domains.
const LONGEST_ANSWER: usize = 64 << 20;
/// How long a single question may take.
const WITHIN: Duration = Duration::from_secs(30);

/// Why there is nothing new to write.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The agent's word, or none.
    #[error("the agent does not give it")]
    Refused(#[source] Box<Status>),
    /// It ended the stream.
    #[error("the agent ended the stream")]
    Ended,
    /// It cannot be read.
    #[error("the agent's answer cannot be used")]
    Answer(#[source] WireError),
    /// None has the hint.
    #[error("none of the identities has the hint `{0}`")]
    NoSuchHint(String),
    /// An identity whose trust domain has no root.
    #[error("there is no root of the identity's trust domain")]
    NoBundle,
    /// The agent's verdict about its own token has no end.
    #[error("the token does not say when it expires")]
    NoExpiry,
    /// Its time is over.
    #[error("the token has expired already")]
    ExpiredToken,
    /// The disk.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

impl From<Status> for Fault {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

/// The Workload API at a socket.
pub(super) struct Source(Channel);

/// A whole answer about X.509.
pub(super) struct X509(X509Context);

/// A token.
pub(super) struct Token {
    pub(super) text: String,
    pub(super) expires_at: SystemTime,
}

impl X509 {
    /// The first identity, or the one with the hint.
    pub(super) fn pick(&self, hint: &str) -> Result<Identity<'_>, Fault> {
        let found = match hint {
            "" => self.0.identities().first(),
            hint => self.0.by_hint(hint),
        };
        let identity = found.ok_or_else(|| Fault::NoSuchHint(hint.to_owned()))?;
        Ok(Identity {
            svid: &identity.svid,
            key: &identity.key,
        })
    }

    pub(super) fn bundles(&self) -> &BundleSet {
        self.0.bundles()
    }
}

impl Source {
    /// Connects when it is asked, and again when the agent was away.
    pub(super) fn new(socket: &Path) -> Self {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        Self(Endpoint::from_static("http://agent").connect_with_connector_lazy(connector))
    }

    fn client(&self) -> SpiffeWorkloadApiClient<Channel> {
        SpiffeWorkloadApiClient::new(self.0.clone()).max_decoding_message_size(LONGEST_ANSWER)
    }

    pub(super) async fn x509(&self) -> Result<Streaming<X509svidResponse>, Fault> {
        let asked = self
            .client()
            .fetch_x509svid(marked(X509svidRequest {}))
            .await;
        Ok(asked?.into_inner())
    }

    pub(super) async fn jwt_bundles(&self) -> Result<Streaming<JwtBundlesResponse>, Fault> {
        let ask = marked(JwtBundlesRequest {});
        Ok(self.client().fetch_jwt_bundles(ask).await?.into_inner())
    }

    /// The agent itself says whether and until when the token is good.
    pub(super) async fn token(&self, audience: &[String], hint: &str) -> Result<Token, Fault> {
        let mut ask = marked(JwtsvidRequest {
            audience: audience.to_vec(),
            spiffe_id: String::new(),
        });
        ask.set_timeout(WITHIN);
        let answer = self.client().fetch_jwtsvid(ask).await?.into_inner();
        let mut svids = answer.svids.into_iter();
        let svid = svids
            .find(|svid| hint.is_empty() || svid.hint == hint)
            .ok_or_else(|| Fault::NoSuchHint(hint.to_owned()))?;
        let mut ask = marked(ValidateJwtsvidRequest {
            audience: audience.first().cloned().unwrap_or_default(),
            svid: svid.svid.clone(),
        });
        ask.set_timeout(WITHIN);
        let proven = self.client().validate_jwtsvid(ask).await?.into_inner();
        Ok(Token {
            text: svid.svid,
            expires_at: proven.claims.and_then(expiry).ok_or(Fault::NoExpiry)?,
        })
    }
}

fn expiry(claims: prost_types::Struct) -> Option<SystemTime> {
    let Some(prost_types::value::Kind::NumberValue(seconds)) = claims.fields.get("exp")?.kind
    else {
        return None;
    };
    let since = Duration::try_from_secs_f64(seconds).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(since)
}

pub(super) async fn next_x509(stream: &mut Streaming<X509svidResponse>) -> Result<X509, Fault> {
    let message = stream.message().await?.ok_or(Fault::Ended)?;
    X509Context::try_from(message)
        .map(X509)
        .map_err(Fault::Answer)
}

/// The JWK sets by the ID of their trust domain.
pub(super) async fn next_jwt_bundles(
    stream: &mut Streaming<JwtBundlesResponse>,
) -> Result<BTreeMap<String, Vec<u8>>, Fault> {
    let message = stream.message().await?.ok_or(Fault::Ended)?;
    match message.bundles.is_empty() {
        true => Err(Fault::NoBundle),
        false => Ok(message.bundles.into_iter().collect()),
    }
}

/// The header that every Workload API call carries.
fn marked<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}
