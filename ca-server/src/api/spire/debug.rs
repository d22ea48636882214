//! `spire.api.server.debug.v1`: what this server is at the moment, for local administrators.

use std::time::Duration;

use mesh_identity::{SpiffeId, X509Authority};
use mesh_tls::IdentityCell;
use proto::spire::api::server::debug::v1 as wire;
use proto::spire::api::server::debug::v1::get_info_response::Cert;
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

use super::super::{Call, Parts};
use crate::issuance::IssueError;

/// The service.
pub(crate) struct Service {
    parts: Parts,
    started: Instant,
}

impl Service {
    pub(super) fn new(parts: Parts) -> Self {
        let started = parts.clock.monotonic();
        Self { parts, started }
    }

    fn uptime(&self) -> Duration {
        self.parts.clock.monotonic() - self.started
    }
}

/// The own chain with the authority that signed it, leaf first.
fn chain(identity: &IdentityCell, roots: &[X509Authority]) -> Vec<Cert> {
    let current = identity.current();
    let svid = current.svid();
    let mut chain: Vec<Cert> = svid
        .chain()
        .iter()
        .enumerate()
        .filter_map(|(place, der)| shown(der, (place == 0).then(|| svid.id())))
        .collect();
    let signer = svid.chain().last().and_then(|der| signer_of(der));
    let root = roots
        .iter()
        .find(|root| signer.as_deref() == Some(root.subject_key_id()));
    chain.extend(root.and_then(|root| shown(root.der(), root.id())));
    chain
}

fn shown(der: &[u8], id: Option<&SpiffeId>) -> Option<Cert> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(Cert {
        id: id.map(Into::into),
        expires_at: certificate.validity().not_after.timestamp(),
        subject: certificate.subject().to_string(),
    })
}

/// The key identifier, lower-case hex, of who signed a certificate.
fn signer_of(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    certificate.extensions().iter().find_map(|extension| {
        let ParsedExtension::AuthorityKeyIdentifier(signer) = extension.parsed_extension() else {
            return None;
        };
        let id = signer.key_identifier.as_ref()?;
        Some(id.0.iter().map(|byte| format!("{byte:02x}")).collect())
    })
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[tonic::async_trait]
impl wire::debug_server::Debug for Service {
    async fn get_info(
        &self,
        request: Request<wire::GetInfoRequest>,
    ) -> Result<Response<wire::GetInfoResponse>, Status> {
        let call = Call::of(&request)?;
        let registry = &self.parts.registry;
        registry
            .refresh()
            .await
            .map_err(|error| call.refuse(error))?;
        let (entries, agents) = registry.counts();
        let bundles = self.parts.bundles.list().await;
        let bundles = bundles.map_err(|error| call.refuse(error))?.len();
        let stored = self.parts.authority.bundle().borrow().clone();
        let own = stored
            .to_bundle()
            .map_err(|error| call.refuse(IssueError::from(error)))?;
        Ok(Response::new(wire::GetInfoResponse {
            svid_chain: chain(&self.parts.identity, own.x509_authorities()),
            uptime: i32::try_from(self.uptime().as_secs()).unwrap_or(i32::MAX),
            agents_count: count(agents),
            // Our own is one of them, as in SPIRE.
            federated_bundles_count: count(bundles + 1),
            entries_count: count(entries),
        }))
    }
}
