//! What an administrator asks of the agents.

use std::time::SystemTime;

use mesh_identity::SpiffeId;
use mesh_runtime::errors::untrusted;
use proto::spire::api::server::agent::v1 as wire;
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::types;
use time::OffsetDateTime;
use tonic::transport::Channel;

use super::{AdminClient, ClientError, PAGE, moment, selector_match};
use crate::registry::AgentFilter;

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

impl AdminClient {
    fn agent_client(&self) -> AgentClient<Channel> {
        AgentClient::new(self.channel.clone())
    }

    /// All agents.
    pub async fn agents(&self) -> Result<Vec<ListedAgent>, ClientError> {
        self.agents_of(&AgentFilter::default()).await
    }

    /// The agents that a filter wants.
    pub async fn agents_of(&self, filter: &AgentFilter) -> Result<Vec<ListedAgent>, ClientError> {
        let mut agents = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = wire::ListAgentsRequest {
                filter: Some(wire::list_agents_request::Filter {
                    by_attestation_type: filter.attestation_type.clone().unwrap_or_default(),
                    by_selector_match: selectors(filter),
                    by_banned: filter.banned,
                    by_can_reattest: filter.can_reattest,
                    by_expires_before: expires_before(filter),
                }),
                output_mask: None,
                page_size: PAGE,
                page_token,
            };
            let page = self.agent_client().list_agents(request).await?.into_inner();
            agents.extend(page.agents.into_iter().map(read));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(agents);
            }
        }
    }

    /// How many agents a filter wants.
    pub async fn count_agents(&self, filter: &AgentFilter) -> Result<i32, ClientError> {
        let request = wire::CountAgentsRequest {
            filter: Some(wire::count_agents_request::Filter {
                by_attestation_type: filter.attestation_type.clone().unwrap_or_default(),
                by_selector_match: selectors(filter),
                by_banned: filter.banned,
                by_can_reattest: filter.can_reattest,
                by_expires_before: expires_before(filter),
            }),
        };
        Ok(self
            .agent_client()
            .count_agents(request)
            .await?
            .into_inner()
            .count)
    }

    /// One agent.
    pub async fn agent(&self, id: &SpiffeId) -> Result<ListedAgent, ClientError> {
        let request = wire::GetAgentRequest {
            id: Some(id.into()),
            output_mask: None,
        };
        Ok(read(
            self.agent_client().get_agent(request).await?.into_inner(),
        ))
    }

    /// Shuts an agent out for good.
    pub async fn ban_agent(&self, id: &SpiffeId) -> Result<(), ClientError> {
        let request = wire::BanAgentRequest {
            id: Some(id.into()),
        };
        self.agent_client().ban_agent(request).await?;
        Ok(())
    }

    /// Forgets an agent; it may attest again.
    pub async fn evict_agent(&self, id: &SpiffeId) -> Result<(), ClientError> {
        let request = wire::DeleteAgentRequest {
            id: Some(id.into()),
        };
        self.agent_client().delete_agent(request).await?;
        Ok(())
    }
}

fn selectors(filter: &AgentFilter) -> Option<types::SelectorMatch> {
    let (selectors, how) = filter.selectors.as_ref()?;
    Some(selector_match(selectors, *how))
}

/// In the form of Go's clients.
fn expires_before(filter: &AgentFilter) -> String {
    let Some(moment) = filter.expires_before else {
        return String::new();
    };
    let moment = OffsetDateTime::from(moment).to_offset(time::UtcOffset::UTC);
    format!(
        "{} {:02}:{:02}:{:02} +0000 +00",
        moment.date(),
        moment.hour(),
        moment.minute(),
        moment.second()
    )
}

fn read(wire: types::Agent) -> ListedAgent {
    let id = wire.id.unwrap_or_default();
    ListedAgent {
        id: untrusted(&format!("spiffe://{}{}", id.trust_domain, id.path)),
        attestation_type: untrusted(&wire.attestation_type),
        expires_at: moment(wire.x509svid_expires_at),
        serial: untrusted(&wire.x509svid_serial_number),
        banned: wire.banned,
        can_reattest: wire.can_reattest,
        version: untrusted(&wire.agent_version),
        selectors: wire
            .selectors
            .into_iter()
            .map(|selector| untrusted(&format!("{}:{}", selector.r#type, selector.value)))
            .collect(),
    }
}
