//! What an administrator asks of the authorities, X.509 and JWT alike.

use std::time::SystemTime;

use mesh_runtime::errors::untrusted;
use proto::finial::authority::v1::authority_client::AuthorityClient;
use proto::finial::authority::v1::{Agents, GetProgressRequest};
use proto::spire::api::server::localauthority::v1 as wire;
use proto::spire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use tonic::transport::Channel;

use super::{AdminClient, ClientError, moment};
use crate::authority::AuthorityKind;

/// An authority as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedAuthority {
    /// X.509: hex of the subject key id. JWT: the key id.
    pub id: String,
    /// When it ends.
    pub expires_at: SystemTime,
    /// Hex of the subject key id of the upstream authority that signed it, if one did.
    pub upstream: Option<String>,
}

/// The authorities of one kind. Of several old ones the newest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedAuthorities {
    /// The one that signs.
    pub active: Option<ListedAuthority>,
    /// The one that is known and does not sign yet.
    pub prepared: Option<ListedAuthority>,
    /// The one that signed before.
    pub old: Option<ListedAuthority>,
}

/// What is done to an authority that is named by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthorityTurn {
    /// The prepared one signs from now on.
    Activate,
    /// All that an old one signed is to be replaced.
    Taint,
    /// A tainted one leaves the bundle.
    Revoke,
}

/// What is done to a root above authorities of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamTurn {
    /// All that was signed below it is to be replaced.
    Taint,
    /// A tainted one leaves the bundle.
    Revoke,
}

impl AdminClient {
    fn authority_client(&self) -> LocalAuthorityClient<Channel> {
        LocalAuthorityClient::new(self.channel.clone())
    }

    /// The authorities of one kind.
    pub async fn authorities(&self, kind: AuthorityKind) -> Result<ListedAuthorities, ClientError> {
        let mut client = self.authority_client();
        let (active, prepared, old) = match kind {
            AuthorityKind::X509 => {
                let ask = wire::GetX509AuthorityStateRequest {};
                let answer = client.get_x509_authority_state(ask).await?.into_inner();
                (answer.active, answer.prepared, answer.old)
            }
            AuthorityKind::Jwt => {
                let ask = wire::GetJwtAuthorityStateRequest {};
                let answer = client.get_jwt_authority_state(ask).await?.into_inner();
                (answer.active, answer.prepared, answer.old)
            }
        };
        Ok(ListedAuthorities {
            active: active.map(listed),
            prepared: prepared.map(listed),
            old: old.map(listed),
        })
    }

    /// Makes the next authority.
    pub async fn prepare_authority(
        &self,
        kind: AuthorityKind,
    ) -> Result<ListedAuthority, ClientError> {
        let mut client = self.authority_client();
        let prepared = match kind {
            AuthorityKind::X509 => {
                let ask = wire::PrepareX509AuthorityRequest {};
                let answer = client.prepare_x509_authority(ask).await?;
                answer.into_inner().prepared_authority
            }
            AuthorityKind::Jwt => {
                let ask = wire::PrepareJwtAuthorityRequest {};
                let answer = client.prepare_jwt_authority(ask).await?;
                answer.into_inner().prepared_authority
            }
        };
        the_one(prepared)
    }

    /// Turns an authority.
    pub async fn turn_authority(
        &self,
        kind: AuthorityKind,
        turn: AuthorityTurn,
        authority_id: &str,
    ) -> Result<ListedAuthority, ClientError> {
        let authority_id = authority_id.to_owned();
        let mut client = self.authority_client();
        let turned = match (kind, turn) {
            (AuthorityKind::X509, AuthorityTurn::Activate) => {
                let ask = wire::ActivateX509AuthorityRequest { authority_id };
                let answer = client.activate_x509_authority(ask).await?;
                answer.into_inner().activated_authority
            }
            (AuthorityKind::X509, AuthorityTurn::Taint) => {
                let ask = wire::TaintX509AuthorityRequest { authority_id };
                let answer = client.taint_x509_authority(ask).await?;
                answer.into_inner().tainted_authority
            }
            (AuthorityKind::X509, AuthorityTurn::Revoke) => {
                let ask = wire::RevokeX509AuthorityRequest { authority_id };
                let answer = client.revoke_x509_authority(ask).await?;
                answer.into_inner().revoked_authority
            }
            (AuthorityKind::Jwt, AuthorityTurn::Activate) => {
                let ask = wire::ActivateJwtAuthorityRequest { authority_id };
                let answer = client.activate_jwt_authority(ask).await?;
                answer.into_inner().activated_authority
            }
            (AuthorityKind::Jwt, AuthorityTurn::Taint) => {
                let ask = wire::TaintJwtAuthorityRequest { authority_id };
                let answer = client.taint_jwt_authority(ask).await?;
                answer.into_inner().tainted_authority
            }
            (AuthorityKind::Jwt, AuthorityTurn::Revoke) => {
                let ask = wire::RevokeJwtAuthorityRequest { authority_id };
                let answer = client.revoke_jwt_authority(ask).await?;
                answer.into_inner().revoked_authority
            }
        };
        the_one(turned)
    }
}

/// Agents by their SPIFFE ID.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SomeAgents {
    /// How many.
    pub count: u64,
    /// Some of them.
    pub ids: Vec<String>,
}

/// What is left of a tainted authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedTaint {
    /// Its id.
    pub authority_id: String,
    /// Certificates that have not ended and whose holder was given no later one.
    pub svids: u64,
    /// Who holds them.
    pub agents: SomeAgents,
}

/// How a change of authorities goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthorityProgress {
    /// For whom a turn that is due waits.
    pub waits_for: SomeAgents,
    /// The tainted X.509 authorities.
    pub tainted: Vec<ListedTaint>,
}

impl AdminClient {
    /// For whom a turn waits, and who still holds what tainted authorities signed.
    pub async fn authority_progress(&self) -> Result<AuthorityProgress, ClientError> {
        let mut client = AuthorityClient::new(self.channel.clone());
        let answer = client
            .get_progress(GetProgressRequest {})
            .await?
            .into_inner();
        let tainted = answer.tainted.into_iter().map(|tainted| ListedTaint {
            authority_id: untrusted(&tainted.authority_id),
            svids: tainted.svids,
            agents: some(tainted.agents),
        });
        Ok(AuthorityProgress {
            waits_for: some(answer.waits_for),
            tainted: tainted.collect(),
        })
    }

    /// Taints or revokes a root above authorities of the server.
    pub async fn turn_upstream_authority(
        &self,
        turn: UpstreamTurn,
        subject_key_id: &str,
    ) -> Result<(), ClientError> {
        let subject_key_id = subject_key_id.to_owned();
        let mut client = self.authority_client();
        match turn {
            UpstreamTurn::Taint => {
                let ask = wire::TaintX509UpstreamAuthorityRequest { subject_key_id };
                client.taint_x509_upstream_authority(ask).await.map(drop)?;
            }
            UpstreamTurn::Revoke => {
                let ask = wire::RevokeX509UpstreamAuthorityRequest { subject_key_id };
                client.revoke_x509_upstream_authority(ask).await.map(drop)?;
            }
        }
        Ok(())
    }
}

fn listed(state: wire::AuthorityState) -> ListedAuthority {
    let upstream = untrusted(&state.upstream_authority_subject_key_id);
    ListedAuthority {
        id: untrusted(&state.authority_id),
        expires_at: moment(state.expires_at),
        upstream: Some(upstream).filter(|id| !id.is_empty()),
    }
}

fn some(agents: Option<Agents>) -> SomeAgents {
    agents.map_or_else(SomeAgents::default, |agents| SomeAgents {
        count: agents.count,
        ids: agents.ids.iter().map(|id| untrusted(id)).collect(),
    })
}

fn the_one(state: Option<wire::AuthorityState>) -> Result<ListedAuthority, ClientError> {
    let missing = || ClientError::Unreadable("it names no authority".into());
    state.map(listed).ok_or_else(missing)
}
