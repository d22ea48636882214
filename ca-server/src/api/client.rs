//! The other side of the admin socket: what the command line asks. Wire → values, so that the command line knows no wire.
//! Trusts whoever listens on the socket, as the user who named it does.

mod agent;
mod authority;
mod backup;
mod bundle;
mod entry;
mod federation;
mod logger;
mod svid;

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper_util::rt::TokioIo;
use mesh_identity::{Selector, SpiffeId};
use mesh_runtime::errors::{Coded, untrusted};
use proto::convert::selectors_to_wire;
use proto::grpc::health::v1::HealthCheckRequest;
use proto::grpc::health::v1::health_check_response::ServingStatus;
use proto::grpc::health::v1::health_client::HealthClient;
use proto::spire::api::server::agent::v1::CreateJoinTokenRequest;
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::types;
use proto::spire::api::types::selector_match::MatchBehavior;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower::service_fn;

pub use self::agent::ListedAgent;
pub use self::authority::{
    AuthorityProgress, AuthorityTurn, ListedAuthorities, ListedAuthority, ListedTaint, SomeAgents,
    UpstreamTurn,
};
pub use self::backup::FetchError;
pub use self::entry::NewEntry;
pub use self::federation::{ListedRelationship, NewRelationship};
pub use self::logger::LogLevels;
pub use self::svid::MintedToken;
use crate::registry::Match;

/// The longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Objects in one page of a list.
const PAGE: i32 = 500;

/// An administrator's connection.
#[derive(Clone)]
pub struct AdminClient {
    channel: Channel,
}

/// Why an answer did not come, or was "no".
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no ca-server can be reached at {socket}")]
    Unreachable {
        /// Where.
        socket: String,
        /// Why.
        #[source]
        cause: tonic::transport::Error,
    },
    /// It refused.
    #[error("{message}")]
    Refused {
        /// gRPC's word.
        grpc: Code,
        /// Its reason.
        message: String,
        /// Its code, if it gave one.
        fnl: Option<String>,
    },
    /// It answered with something that cannot be read.
    #[error("the server's answer cannot be read: {0}")]
    Unreadable(String),
}

impl Coded for ClientError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "FNL1301",
            Self::Refused { .. } => "FNL1302",
            Self::Unreadable(_) => "FNL1303",
        }
    }
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        Self::Refused {
            grpc: status.code(),
            message: untrusted(status.message()),
            fnl: status
                .metadata()
                .get("x-finial-error")
                .and_then(|code| code.to_str().ok())
                .map(untrusted),
        }
    }
}

fn item(status: Option<types::Status>) -> Result<(), ClientError> {
    match status {
        Some(status) if status.code == 0 => Ok(()),
        Some(status) => Err(ClientError::Refused {
            grpc: Code::from_i32(status.code),
            message: untrusted(&status.message),
            fnl: None,
        }),
        None => Err(ClientError::Unreadable("an item without a status".into())),
    }
}

impl AdminClient {
    /// Connects to the admin socket.
    pub async fn connect(socket: &Path) -> Result<Self, ClientError> {
        let path = socket.to_owned();
        let connector = service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The name is needed by HTTP and means nothing on a socket.
        let channel = Endpoint::from_static("http://ca-server")
            .timeout(TIMEOUT)
            .connect_with_connector(connector)
            .await
            .map_err(|cause| ClientError::Unreachable {
                socket: socket.display().to_string(),
                cause,
            })?;
        Ok(Self { channel })
    }

    /// Makes a join token: its text and its end.
    pub async fn create_token(
        &self,
        agent_id: Option<&SpiffeId>,
        ttl: i32,
    ) -> Result<(String, SystemTime), ClientError> {
        let ask = CreateJoinTokenRequest {
            ttl,
            token: String::new(),
            agent_id: agent_id.map(Into::into),
        };
        let token = AgentClient::new(self.channel.clone())
            .create_join_token(ask)
            .await?
            .into_inner();
        Ok((token.value, moment(token.expires_at)))
    }

    /// Whether the server is ready.
    pub async fn is_ready(&self) -> Result<bool, ClientError> {
        let answer = HealthClient::new(self.channel.clone())
            .check(HealthCheckRequest {
                service: String::new(),
            })
            .await?
            .into_inner();
        Ok(answer.status() == ServingStatus::Serving)
    }
}

fn moment(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// One fate for each item, or the answer is no answer.
fn all<T>(
    fates: Vec<Result<T, ClientError>>,
    asked: usize,
) -> Result<Vec<Result<T, ClientError>>, ClientError> {
    match fates.len() == asked {
        true => Ok(fates),
        false => Err(ClientError::Unreadable(
            "not one result for each item".into(),
        )),
    }
}

/// A set of selectors in a filter.
fn selector_match<'a>(
    selectors: impl IntoIterator<Item = &'a Selector>,
    how: Match,
) -> types::SelectorMatch {
    let how = match how {
        Match::Exact => MatchBehavior::MatchExact,
        Match::Subset => MatchBehavior::MatchSubset,
        Match::Superset => MatchBehavior::MatchSuperset,
        Match::Any => MatchBehavior::MatchAny,
    };
    types::SelectorMatch {
        selectors: selectors_to_wire(selectors),
        r#match: how.into(),
    }
}
