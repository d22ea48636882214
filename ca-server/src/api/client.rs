//! The other side of the admin socket: what the command line asks. Wire → values, so that the command line knows no wire.
//! Trusts whoever listens on the socket, as the user who named it does.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper_util::rt::TokioIo;
use mesh_identity::{Bundle, DnsName, Entry, Selector, SpiffeId};
use mesh_runtime::errors::{Coded, untrusted};
use proto::convert::{CarriedBundle, selectors_to_wire};
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::agent::v1::{CreateJoinTokenRequest, ListAgentsRequest};
use proto::spire::api::server::bundle::v1::GetBundleRequest;
use proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::list_entries_request::Filter;
use proto::spire::api::server::entry::v1::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, GetEntryRequest, ListEntriesRequest,
};
use proto::spire::api::types;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tower::service_fn;

/// The longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Objects in one page of a list.
const PAGE: i32 = 500;

/// An administrator's connection.
#[derive(Clone)]
pub struct AdminClient {
    channel: Channel,
}

/// An entry as an administrator writes it.
#[derive(Clone, Debug)]
pub struct NewEntry {
    /// Its id; empty: the server chooses.
    pub id: String,
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// Below what.
    pub parent_id: SpiffeId,
    /// For which processes.
    pub selectors: Vec<Selector>,
    /// How long X509-SVIDs live, in seconds; 0: the server's default.
    pub x509_svid_ttl: i32,
    /// Further names.
    pub dns_names: Vec<DnsName>,
    /// The hint.
    pub hint: String,
    /// Whether the holder is an administrator.
    pub admin: bool,
}

/// An agent as it is listed.
#[derive(Clone, Debug)]
pub struct ListedAgent {
    /// Its SPIFFE ID.
    pub id: String,
    /// How it proved itself.
    pub attestation_type: String,
    /// When its SVID ends.
    pub expires_at: SystemTime,
    /// The serial number of that, decimal.
    pub serial: String,
    /// Whether it is shut out.
    pub banned: bool,
    /// Whether it attests again.
    pub can_reattest: bool,
    /// What it calls its version.
    pub version: String,
    /// What was found out about its node.
    pub selectors: Vec<String>,
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

    /// Creates an entry.
    pub async fn create_entry(&self, new: &NewEntry) -> Result<Entry, ClientError> {
        let entry = types::Entry {
            id: new.id.clone(),
            spiffe_id: Some((&new.spiffe_id).into()),
            parent_id: Some((&new.parent_id).into()),
            selectors: selectors_to_wire(&new.selectors),
            x509_svid_ttl: new.x509_svid_ttl,
            dns_names: new
                .dns_names
                .iter()
                .map(|name| name.as_str().to_owned())
                .collect(),
            hint: new.hint.clone(),
            admin: new.admin,
            ..types::Entry::default()
        };
        let answer = EntryClient::new(self.channel.clone())
            .batch_create_entry(BatchCreateEntryRequest {
                entries: vec![entry],
                output_mask: None,
            })
            .await?
            .into_inner();
        let result = answer
            .results
            .into_iter()
            .next()
            .ok_or_else(|| ClientError::Unreadable("no result".into()))?;
        item(result.status)?;
        read_entry(result.entry)
    }

    /// Removes an entry.
    pub async fn delete_entry(&self, id: &str) -> Result<(), ClientError> {
        let answer = EntryClient::new(self.channel.clone())
            .batch_delete_entry(BatchDeleteEntryRequest {
                ids: vec![id.to_owned()],
            })
            .await?
            .into_inner();
        match answer.results.into_iter().next() {
            Some(result) => item(result.status),
            None => Err(ClientError::Unreadable("no result".into())),
        }
    }

    /// One entry.
    pub async fn entry(&self, id: &str) -> Result<Entry, ClientError> {
        let entry = EntryClient::new(self.channel.clone())
            .get_entry(GetEntryRequest {
                id: id.to_owned(),
                output_mask: None,
            })
            .await?
            .into_inner();
        read_entry(Some(entry))
    }

    /// All entries, or those with an identity or a parent.
    pub async fn entries(
        &self,
        spiffe_id: Option<&SpiffeId>,
        parent_id: Option<&SpiffeId>,
    ) -> Result<Vec<Entry>, ClientError> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let page = EntryClient::new(self.channel.clone())
                .list_entries(ListEntriesRequest {
                    filter: Some(Filter {
                        by_spiffe_id: spiffe_id.map(Into::into),
                        by_parent_id: parent_id.map(Into::into),
                        ..Filter::default()
                    }),
                    output_mask: None,
                    page_size: PAGE,
                    page_token,
                })
                .await?
                .into_inner();
            for entry in page.entries {
                all.push(read_entry(Some(entry))?);
            }
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(all);
            }
        }
    }

    /// Our own bundle.
    pub async fn bundle(&self) -> Result<Bundle, ClientError> {
        let wire = BundleClient::new(self.channel.clone())
            .get_bundle(GetBundleRequest { output_mask: None })
            .await?
            .into_inner();
        CarriedBundle::try_from(wire)
            .map(|carried| carried.bundle)
            .map_err(|error| ClientError::Unreadable(error.to_string()))
    }

    /// All agents.
    pub async fn agents(&self) -> Result<Vec<ListedAgent>, ClientError> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let page = AgentClient::new(self.channel.clone())
                .list_agents(ListAgentsRequest {
                    filter: None,
                    output_mask: None,
                    page_size: PAGE,
                    page_token,
                })
                .await?
                .into_inner();
            all.extend(page.agents.into_iter().map(read_agent));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(all);
            }
        }
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

fn read_entry(wire: Option<types::Entry>) -> Result<Entry, ClientError> {
    let wire = wire.ok_or_else(|| ClientError::Unreadable("no entry".into()))?;
    Entry::try_from(&wire).map_err(|error| ClientError::Unreadable(error.to_string()))
}

fn read_agent(wire: types::Agent) -> ListedAgent {
    let id = wire.id.unwrap_or_default();
    ListedAgent {
        id: untrusted(&format!("spiffe://{}{}", id.trust_domain, id.path)),
        attestation_type: wire.attestation_type,
        expires_at: moment(wire.x509svid_expires_at),
        serial: wire.x509svid_serial_number,
        banned: wire.banned,
        can_reattest: wire.can_reattest,
        version: untrusted(&wire.agent_version),
        selectors: wire
            .selectors
            .into_iter()
            .map(|selector| format!("{}:{}", selector.r#type, selector.value))
            .collect(),
    }
}

fn moment(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
