//! Decides whether what we signed is what we meant: parsed and verified as any peer would, before it leaves.
//! Trusts nothing of the signing side. A refusal here is a fault of ours and is loud.

use std::time::SystemTime;

use mesh_identity::BundleSet;
use mesh_identity::jwt::{JwtError, verify_jwt_svid};
use mesh_identity::verify::{VerifyError, verify_x509_svid};
use mesh_identity::{SvidError, X509Svid};

use crate::authority::{LeafTemplate, SignedLeaf, SignedToken, TokenTemplate};

/// What we signed is not what we meant.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotWhatWeMeant {
    /// It is no X509-SVID.
    #[error("the certificate that was signed is not an X509-SVID")]
    NotAnSvid(#[source] SvidError),
    /// A peer would refuse it.
    #[error("a peer would refuse the certificate that was signed")]
    Refused(#[source] VerifyError),
    /// A verifier would refuse the token.
    #[error("a verifier would refuse the token that was signed")]
    RefusedToken(#[source] JwtError),
    /// It says something else.
    #[error("what was signed differs in its {0}")]
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
        ("authority", verified.authority != signed.root_id),
        ("start", verified.not_before != signed.not_before),
        ("end", verified.not_after != signed.not_after),
        (
            "life, which outlives its authority",
            verified.valid_until < signed.not_after,
        ),
        (
            "life, which is longer than it may be",
            now.checked_add(template.ttl)
                .is_some_and(|most| signed.not_after > most),
        ),
    ];
    match differs.iter().find(|(_, differs)| *differs) {
        Some((what, _)) => Err(NotWhatWeMeant::Differs(what)),
        None => Ok(svid),
    }
}

/// Looks again at a signed token.
pub(super) fn as_verifier_would(
    signed: &SignedToken,
    template: &TokenTemplate,
    bundles: &BundleSet,
    now: SystemTime,
) -> Result<(), NotWhatWeMeant> {
    let token = signed.token.expose();
    let proven = verify_jwt_svid(token, bundles, &template.audience, now)
        .map_err(NotWhatWeMeant::RefusedToken)?;
    let asked = template.audience.iter().filter(|value| !value.is_empty());
    let differs = [
        ("SPIFFE ID", proven.id != template.spiffe_id),
        ("audience", !proven.audience.iter().eq(asked)),
        ("authority", proven.key_id != signed.authority_id),
        ("end", proven.expires_at != signed.expires_at),
        (
            "life, which is longer than it may be",
            now.checked_add(template.ttl)
                .is_some_and(|most| signed.expires_at > most),
        ),
    ];
    match differs.iter().find(|(_, differs)| *differs) {
        Some((what, _)) => Err(NotWhatWeMeant::Differs(what)),
        None => Ok(()),
    }
}
