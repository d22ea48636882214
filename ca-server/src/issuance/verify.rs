//! Decides whether what we signed is what we meant: parsed and verified as any peer would, before it leaves.
//! Trusts nothing of the signing side. A refusal here is a fault of ours and is loud.

use std::time::SystemTime;

use mesh_identity::BundleSet;
use mesh_identity::verify::{VerifyError, verify_x509_svid};
use mesh_identity::{SvidError, X509Svid};

use crate::authority::{LeafTemplate, SignedLeaf};

/// What we signed is not what we meant.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotWhatWeMeant {
    /// It is no X509-SVID.
    #[error("the certificate that was signed is not an X509-SVID")]
    NotAnSvid(#[source] SvidError),
    /// A peer would refuse it.
    #[error("a peer would refuse the certificate that was signed")]
    Refused(#[source] VerifyError),
    /// It says something else.
    #[error("the certificate that was signed differs in its {0}")]
    Differs(&'static str),
}

/// Looks again at a signed leaf.
pub(super) fn as_peer_would(
    signed: &SignedLeaf,
    template: &LeafTemplate,
    spki: &[u8],
    bundles: &BundleSet,
    now: SystemTime,
) -> Result<X509Svid, NotWhatWeMeant> {
    let svid = X509Svid::parse(signed.chain.clone()).map_err(NotWhatWeMeant::NotAnSvid)?;
    let verified =
        verify_x509_svid(&signed.chain, bundles, now).map_err(NotWhatWeMeant::Refused)?;
    let differs = [
        ("SPIFFE ID", verified.id != template.spiffe_id),
        ("serial number", verified.serial != signed.serial),
        ("public key", svid.spki() != spki),
        ("authority", verified.authority != signed.authority_id),
        ("start", verified.not_before != signed.not_before),
        ("end", verified.not_after != signed.not_after),
        (
            "life, which outlives its authority",
            verified.valid_until < signed.not_after,
        ),
        (
            "life, which is longer than it may be",
            signed.not_after > now + template.ttl,
        ),
    ];
    match differs.iter().find(|(_, differs)| *differs) {
        Some((what, _)) => Err(NotWhatWeMeant::Differs(what)),
        None => Ok(svid),
    }
}
