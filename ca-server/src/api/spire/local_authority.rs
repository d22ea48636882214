//! `spire.api.server.localauthority.v1`: the authorities of this server, and the turns that an operator takes by hand.

use mesh_runtime::audit::Object;
use mesh_runtime::errors::untrusted;
use proto::spire::api::server::localauthority::v1 as wire;
use tonic::{Code, Request, Response, Status};

use super::super::{Call, Parts, Refusal};
use super::{not_served, seconds};
use crate::authority::{AuthorityKind, SlotState, SlotStatus};

/// The service.
pub(crate) struct Service {
    parts: Parts,
}

/// What is done to an authority that is named by its id.
enum Turn {
    Activate,
    Taint,
    Revoke,
}

/// The authorities of one kind. Of several old ones the newest, for SPIRE has one.
struct States {
    active: Option<wire::AuthorityState>,
    prepared: Option<wire::AuthorityState>,
    old: Option<wire::AuthorityState>,
}

impl Service {
    pub(super) fn new(parts: Parts) -> Self {
        Self { parts }
    }

    fn states(&self, kind: AuthorityKind) -> States {
        let status = self.parts.authority.status();
        let status = status.borrow();
        let newest = |state| {
            let mut of_kind = status.iter().filter(|slot| slot.kind == kind);
            of_kind.rfind(|slot| slot.state == state).map(shown)
        };
        States {
            active: newest(SlotState::Active),
            prepared: newest(SlotState::Prepared),
            old: newest(SlotState::Old),
        }
    }

    async fn prepare(
        &self,
        call: &Call,
        kind: AuthorityKind,
    ) -> Result<wire::AuthorityState, Status> {
        let prepared = self.parts.authority.prepare(kind, self.parts.clock.now());
        let prepared = prepared.await.map_err(|error| call.refuse(error))?;
        call.about(Object::new("authority").name(&prepared.authority_id));
        Ok(shown(&prepared))
    }

    async fn turn(
        &self,
        call: &Call,
        kind: AuthorityKind,
        turn: Turn,
        id: &str,
    ) -> Result<wire::AuthorityState, Status> {
        call.about(Object::new("authority").name(untrusted(id)));
        let authority = &self.parts.authority;
        let turned = match turn {
            Turn::Activate => authority.activate(kind, id).await,
            Turn::Taint => authority.taint(kind, id).await,
            Turn::Revoke => authority.revoke(kind, id).await,
        };
        turned
            .map(|slot| shown(&slot))
            .map_err(|error| call.refuse(error))
    }

    async fn turn_upstream(&self, call: &Call, turn: Turn, id: &str) -> Result<(), Status> {
        call.about(Object::new("upstream-authority").name(untrusted(id)));
        let authority = &self.parts.authority;
        if !authority.has_upstream() {
            return Err(no_upstream(call));
        }
        let turned = match turn {
            Turn::Revoke => authority.revoke_upstream(id).await,
            Turn::Activate | Turn::Taint => authority.taint_upstream(id).await,
        };
        turned.map_err(|error| call.refuse(error))
    }
}

fn shown(slot: &SlotStatus) -> wire::AuthorityState {
    wire::AuthorityState {
        authority_id: slot.authority_id.clone(),
        expires_at: seconds(slot.not_after),
        upstream_authority_subject_key_id: slot.upstream_id.clone().unwrap_or_default(),
    }
}

fn no_upstream(call: &Call) -> Status {
    call.refuse(Refusal::new(
        "FNL1280",
        Code::FailedPrecondition,
        "upstream authority is not configured",
    ))
}

#[tonic::async_trait]
impl wire::local_authority_server::LocalAuthority for Service {
    async fn get_jwt_authority_state(
        &self,
        request: Request<wire::GetJwtAuthorityStateRequest>,
    ) -> Result<Response<wire::GetJwtAuthorityStateResponse>, Status> {
        Call::of(&request)?;
        let States {
            active,
            prepared,
            old,
        } = self.states(AuthorityKind::Jwt);
        Ok(Response::new(wire::GetJwtAuthorityStateResponse {
            active,
            prepared,
            old,
        }))
    }

    async fn prepare_jwt_authority(
        &self,
        request: Request<wire::PrepareJwtAuthorityRequest>,
    ) -> Result<Response<wire::PrepareJwtAuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let prepared = self.prepare(&call, AuthorityKind::Jwt).await?;
        Ok(Response::new(wire::PrepareJwtAuthorityResponse {
            prepared_authority: Some(prepared),
        }))
    }

    async fn activate_jwt_authority(
        &self,
        request: Request<wire::ActivateJwtAuthorityRequest>,
    ) -> Result<Response<wire::ActivateJwtAuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let id = request.into_inner().authority_id;
        let activated = self
            .turn(&call, AuthorityKind::Jwt, Turn::Activate, &id)
            .await?;
        Ok(Response::new(wire::ActivateJwtAuthorityResponse {
            activated_authority: Some(activated),
        }))
    }

    async fn taint_jwt_authority(
        &self,
        request: Request<wire::TaintJwtAuthorityRequest>,
    ) -> Result<Response<wire::TaintJwtAuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let id = request.into_inner().authority_id;
        let tainted = self
            .turn(&call, AuthorityKind::Jwt, Turn::Taint, &id)
            .await?;
        Ok(Response::new(wire::TaintJwtAuthorityResponse {
            tainted_authority: Some(tainted),
        }))
    }

    async fn revoke_jwt_authority(
        &self,
        request: Request<wire::RevokeJwtAuthorityRequest>,
    ) -> Result<Response<wire::RevokeJwtAuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let id = request.into_inner().authority_id;
        let revoked = self
            .turn(&call, AuthorityKind::Jwt, Turn::Revoke, &id)
            .await?;
        Ok(Response::new(wire::RevokeJwtAuthorityResponse {
            revoked_authority: Some(revoked),
        }))
    }

    async fn get_x509_authority_state(
        &self,
        request: Request<wire::GetX509AuthorityStateRequest>,
    ) -> Result<Response<wire::GetX509AuthorityStateResponse>, Status> {
        Call::of(&request)?;
        let States {
            active,
            prepared,
            old,
        } = self.states(AuthorityKind::X509);
        Ok(Response::new(wire::GetX509AuthorityStateResponse {
            active,
            prepared,
            old,
        }))
    }

    async fn prepare_x509_authority(
        &self,
        request: Request<wire::PrepareX509AuthorityRequest>,
    ) -> Result<Response<wire::PrepareX509AuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let prepared = self.prepare(&call, AuthorityKind::X509).await?;
        Ok(Response::new(wire::PrepareX509AuthorityResponse {
            prepared_authority: Some(prepared),
        }))
    }

    async fn activate_x509_authority(
        &self,
        request: Request<wire::ActivateX509AuthorityRequest>,
    ) -> Result<Response<wire::ActivateX509AuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let id = request.into_inner().authority_id;
        let activated = self
            .turn(&call, AuthorityKind::X509, Turn::Activate, &id)
            .await?;
        Ok(Response::new(wire::ActivateX509AuthorityResponse {
            activated_authority: Some(activated),
        }))
    }

    async fn taint_x509_authority(
        &self,
        request: Request<wire::TaintX509AuthorityRequest>,
    ) -> Result<Response<wire::TaintX509AuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let id = request.into_inner().authority_id;
        let tainted = self
            .turn(&call, AuthorityKind::X509, Turn::Taint, &id)
            .await?;
        Ok(Response::new(wire::TaintX509AuthorityResponse {
            tainted_authority: Some(tainted),
        }))
    }

    async fn revoke_x509_authority(
        &self,
        request: Request<wire::RevokeX509AuthorityRequest>,
    ) -> Result<Response<wire::RevokeX509AuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let id = request.into_inner().authority_id;
        let revoked = self
            .turn(&call, AuthorityKind::X509, Turn::Revoke, &id)
            .await?;
        Ok(Response::new(wire::RevokeX509AuthorityResponse {
            revoked_authority: Some(revoked),
        }))
    }

    async fn taint_x509_upstream_authority(
        &self,
        request: Request<wire::TaintX509UpstreamAuthorityRequest>,
    ) -> Result<Response<wire::TaintX509UpstreamAuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let id = request.into_inner().subject_key_id;
        self.turn_upstream(&call, Turn::Taint, &id).await?;
        Ok(Response::new(wire::TaintX509UpstreamAuthorityResponse {
            upstream_authority_subject_key_id: id,
        }))
    }

    async fn revoke_x509_upstream_authority(
        &self,
        request: Request<wire::RevokeX509UpstreamAuthorityRequest>,
    ) -> Result<Response<wire::RevokeX509UpstreamAuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let id = request.into_inner().subject_key_id;
        self.turn_upstream(&call, Turn::Revoke, &id).await?;
        Ok(Response::new(wire::RevokeX509UpstreamAuthorityResponse {
            upstream_authority_subject_key_id: id,
        }))
    }

    async fn get_wit_authority_state(
        &self,
        _: Request<wire::GetWitAuthorityStateRequest>,
    ) -> Result<Response<wire::GetWitAuthorityStateResponse>, Status> {
        Err(not_served())
    }

    async fn prepare_wit_authority(
        &self,
        _: Request<wire::PrepareWitAuthorityRequest>,
    ) -> Result<Response<wire::PrepareWitAuthorityResponse>, Status> {
        Err(not_served())
    }

    async fn activate_wit_authority(
        &self,
        _: Request<wire::ActivateWitAuthorityRequest>,
    ) -> Result<Response<wire::ActivateWitAuthorityResponse>, Status> {
        Err(not_served())
    }

    async fn taint_wit_authority(
        &self,
        _: Request<wire::TaintWitAuthorityRequest>,
    ) -> Result<Response<wire::TaintWitAuthorityResponse>, Status> {
        Err(not_served())
    }

    async fn revoke_wit_authority(
        &self,
        _: Request<wire::RevokeWitAuthorityRequest>,
    ) -> Result<Response<wire::RevokeWitAuthorityResponse>, Status> {
        Err(not_served())
    }
}
