//! The token siblings of story 1: same gate, same second look, same record.
//! Trusts the registry for who may have what and the authority for the signature.
//! Never writes a token down: the record has its names and its end, and the token leaves in the answer alone.

use std::time::Duration;

use mesh_identity::{EntryId, SpiffeId};
use mesh_runtime::audit::{Action, Object, Outcome, Record};
use mesh_runtime::span;

use super::{Attribution, IssueError, Issuer, template, verify};
use crate::authority::{SignedToken, TokenTemplate};
use crate::store::Node;

/// A token on its way to its workload.
#[derive(Debug)]
pub struct IssuedToken {
    /// Whose it is.
    pub id: SpiffeId,
    /// What tells it from other identities of the same workload.
    pub hint: String,
    /// The token and its times.
    pub signed: SignedToken,
}

impl Issuer {
    /// Issues a JWT-SVID to an agent for a workload of its node.
    pub async fn issue_token(
        &self,
        agent: &Node,
        caller: &Attribution,
        entry_id: &EntryId,
        audience: Vec<String>,
    ) -> Result<IssuedToken, IssueError> {
        let mut record = self.begin("svid.issue", caller);
        record.object(Object::new("entry").id(entry_id.as_str()));
        let issued = self
            .registry
            .authorize(agent, entry_id)
            .map_err(IssueError::from)
            .and_then(|entry| {
                let template = template::token(&entry, audience, &self.lives);
                self.sign_token(&template, entry.hint())
            });
        self.finish(record, issued, Some(entry_id)).await
    }

    /// Issues a JWT-SVID that an administrator asks for, of any workload of our trust domain.
    pub async fn mint_token(
        &self,
        caller: &Attribution,
        id: SpiffeId,
        audience: Vec<String>,
        ttl: Option<Duration>,
    ) -> Result<IssuedToken, IssueError> {
        let mut record = self.begin("svid.mint", caller);
        record.object(Object::new("jwt-svid").name(id.as_str()));
        let template = TokenTemplate {
            spiffe_id: id,
            audience,
            ttl: ttl.unwrap_or(self.lives.jwt_svid),
            with_token_id: false,
        };
        let issued = self.sign_token(&template, "");
        self.finish(record, issued, None).await
    }

    fn sign_token(&self, template: &TokenTemplate, hint: &str) -> Result<IssuedToken, IssueError> {
        let _signing = span!("sign jwt-svid", finial.svid.id = %template.spiffe_id).entered();
        let now = self.clock.now();
        let signed = self.authority.sign_token(template, now)?;
        verify::as_verifier_would(&signed, template, &self.trust()?.bundles, now).inspect_err(
            |error| {
                let error = mesh_runtime::errors::ErrorChain(error);
                tracing::error!(id = %template.spiffe_id, %error, "a token that was signed was not handed out");
            },
        )?;
        Ok(IssuedToken {
            id: template.spiffe_id.clone(),
            hint: hint.to_owned(),
            signed,
        })
    }

    /// A token leaves only when its record is written.
    async fn finish(
        &self,
        mut record: Record,
        issued: Result<IssuedToken, IssueError>,
        entry: Option<&EntryId>,
    ) -> Result<IssuedToken, IssueError> {
        let answer = match issued {
            Ok(token) => {
                let mut object = Object::new("jwt-svid").name(token.id.as_str());
                if let Some(entry) = entry {
                    object = object.id(entry.as_str());
                }
                if let Some(token_id) = &token.signed.token_id {
                    object = object.serial(token_id);
                }
                record.object(object);
                match record.finish(Outcome::Success, None).await {
                    Ok(_) => Ok(token),
                    Err(error) => Err(error.into()),
                }
            }
            Err(error) => {
                error.refuse(record);
                Err(error)
            }
        };
        self.metrics.token(&answer);
        answer
    }

    pub(super) fn begin(&self, action: &'static str, caller: &Attribution) -> Record {
        let mut record = self.audit.begin(Action(action), caller.actor.clone());
        record.origin(caller.origin.clone());
        record
    }
}
