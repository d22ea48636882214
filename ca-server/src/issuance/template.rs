//! Decides what a certificate or token of ours will say: from the authorised entry or the attested node, and from nothing else.
//! Trusts the types of its arguments, which cannot be made without the checks before.
//! Never looks at what the requester wrote.

use std::time::Duration;

use mesh_identity::SpiffeId;

use crate::authority::{BACKDATE, LeafTemplate, TokenTemplate};
use crate::registry::AuthorizedEntry;

/// The default lives of what we issue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lives {
    /// An X509-SVID whose entry does not say otherwise.
    pub x509_svid: Duration,
    /// A JWT-SVID whose entry does not say otherwise.
    pub jwt_svid: Duration,
    /// The SVID of an agent.
    pub agent_svid: Duration,
}

/// The token of a workload.
pub(super) fn token(
    entry: &AuthorizedEntry,
    audience: Vec<String>,
    lives: &Lives,
) -> TokenTemplate {
    TokenTemplate {
        spiffe_id: entry.spiffe_id().clone(),
        audience,
        ttl: entry.jwt_svid_ttl().unwrap_or(lives.jwt_svid),
        with_token_id: entry.with_token_id(),
    }
}

/// The certificate of a workload.
pub(super) fn workload(entry: &AuthorizedEntry, lives: &Lives) -> LeafTemplate {
    LeafTemplate {
        spiffe_id: entry.spiffe_id().clone(),
        dns_names: entry.dns_names().to_vec(),
        subject: Vec::new(),
        // What the entry asks for beyond the authority's life is capped by the authority, without an error, as in SPIRE.
        ttl: entry.x509_svid_ttl().unwrap_or(lives.x509_svid),
        not_before_backdate: BACKDATE,
    }
}

/// The certificate of an agent or of this server itself.
pub(super) fn infrastructure(id: &SpiffeId, lives: &Lives) -> LeafTemplate {
    LeafTemplate {
        spiffe_id: id.clone(),
        dns_names: Vec::new(),
        subject: Vec::new(),
        ttl: lives.agent_svid,
        not_before_backdate: BACKDATE,
    }
}
