//! Decides whether a peer's certificates prove a SPIFFE ID now: X509-SVID 5 on top of RFC 5280 path validation by rustls-webpki.
//! Trusts only the roots in the bundle of the trust domain that the leaf claims, each checked when the bundle was loaded.
//! Never looks at a root of another trust domain, a host name or a subject, and never skips a step because of an earlier success.

use std::{cell::RefCell, time::SystemTime};

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, VerifiedPath, ring};

use crate::{
    BundleSet, CertificateError, ProfileError, SpiffeId, TrustDomain, X509Authority,
    profile::{check_intermediate, check_leaf},
    x509::{Certificate, has_ended, serial_text},
};

/// Most certificates that a peer may show, the leaf among them.
pub const MAX_CHAIN_CERTIFICATES: usize = 8;

/// Most authorities between leaf and root. Our own count, lower than what webpki would follow.
pub const MAX_INTERMEDIATES: usize = 4;

/// What a chain has proven.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifiedSvid {
    /// Who the peer is.
    pub id: SpiffeId,
    /// From when on the leaf is valid.
    pub not_before: SystemTime,
    /// Until when the leaf is valid.
    pub not_after: SystemTime,
    /// Until when the whole path is valid, the root included: never later than `not_after`.
    pub valid_until: SystemTime,
    /// The leaf's serial number in lower-case hex.
    pub serial: String,
    /// The subject key identifier of the root, in lower-case hex.
    pub authority: String,
    /// Whether that root is marked as tainted.
    pub authority_tainted: bool,
}

/// Verifies a chain, leaf first, at a moment.
pub fn verify_x509_svid(
    chain: &[CertificateDer<'_>],
    bundles: &BundleSet,
    now: SystemTime,
) -> Result<VerifiedSvid, VerifyError> {
    let (leaf_der, rest) = chain.split_first().ok_or(VerifyError::Empty)?;
    if chain.len() > MAX_CHAIN_CERTIFICATES {
        return Err(VerifyError::TooManyCertificates(chain.len()));
    }
    let leaf = Certificate::parse(leaf_der).map_err(VerifyError::Unreadable)?;
    let id = check_leaf(&leaf).map_err(VerifyError::Leaf)?;
    if now < leaf.not_before {
        return Err(VerifyError::NotYetValid {
            id,
            not_before: leaf.not_before,
        });
    }
    if has_ended(leaf.not_after, now) {
        return Err(VerifyError::Expired {
            id,
            not_after: leaf.not_after,
        });
    }
    let Some(bundle) = bundles.get(id.trust_domain()) else {
        return Err(VerifyError::NoBundle(id.trust_domain().clone()));
    };
    let roots: Vec<&X509Authority> = bundle
        .x509_authorities()
        .iter()
        .filter(|root| root.is_valid_at(now))
        .collect();
    if roots.is_empty() {
        return Err(VerifyError::NoRoot(id.trust_domain().clone()));
    }
    let anchors: Vec<TrustAnchor<'_>> = roots.iter().map(|root| borrow(root.anchor())).collect();
    let time = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .map(UnixTime::since_unix_epoch)
        .map_err(|_| VerifyError::Clock)?;
    let end_entity = EndEntityCert::try_from(leaf_der).map_err(VerifyError::Path)?;

    // webpki asks about each path that it would accept, and goes on looking when we refuse one.
    let refused = RefCell::new(None);
    let accepted = RefCell::new(None);
    let judge = |path: &VerifiedPath<'_>| {
        let root = anchors
            .iter()
            .zip(&roots)
            .find_map(|(anchor, root)| std::ptr::eq(anchor, path.anchor()).then_some(*root));
        match root
            .ok_or(VerifyError::UnknownAuthority)
            .and_then(|root| check_path(path, &id, root))
        {
            Ok(found) => {
                accepted.replace(Some(found));
                Ok(())
            }
            Err(error) => {
                refused.replace(Some(error));
                Err(webpki::Error::UnknownIssuer)
            }
        }
    };
    let result = end_entity.verify_for_usage(
        ALGORITHMS,
        &anchors,
        rest,
        time,
        BothTlsPurposes,
        None,
        Some(&judge),
    );
    if let Err(error) = result {
        return Err(refused
            .into_inner()
            .unwrap_or_else(|| path_error(error, rest, &id)));
    }
    let (root, path_ends) = accepted.into_inner().ok_or(VerifyError::UnknownAuthority)?;
    Ok(VerifiedSvid {
        not_before: leaf.not_before,
        not_after: leaf.not_after,
        valid_until: leaf.not_after.min(path_ends),
        serial: serial_text(leaf.serial),
        authority: root.subject_key_id().to_owned(),
        authority_tainted: root.is_tainted(),
        id,
    })
}

/// What webpki does not ask of the authorities on a path whose signatures and times are right.
fn check_path<'r>(
    path: &VerifiedPath<'_>,
    id: &SpiffeId,
    root: &'r X509Authority,
) -> Result<(&'r X509Authority, SystemTime), VerifyError> {
    let mut ends = root.not_after();
    let mut intermediates = 0;
    for der in path.intermediate_certificates().map(|ca| ca.der()) {
        let ca = Certificate::parse(&der).map_err(VerifyError::UnreadableIntermediate)?;
        check_intermediate(&ca, id.trust_domain()).map_err(VerifyError::Intermediate)?;
        ends = ends.min(ca.not_after);
        intermediates += 1;
    }
    if intermediates > MAX_INTERMEDIATES {
        return Err(VerifyError::TooDeep(intermediates));
    }
    // Self-issued ones count too, as webpki counts them below: stricter than RFC 5280 6.1.4.
    if root
        .path_len()
        .is_some_and(|most| usize::try_from(most).is_ok_and(|most| intermediates > most))
    {
        return Err(VerifyError::PathLength);
    }
    Ok((root, ends))
}

/// Names our own reason where webpki's is coarser.
fn path_error(error: webpki::Error, rest: &[CertificateDer<'_>], id: &SpiffeId) -> VerifyError {
    use webpki::Error as E;
    match error {
        E::CertExpired { .. } => VerifyError::IntermediateExpired,
        E::CertNotValidYet { .. } => VerifyError::IntermediateNotYetValid,
        E::UnknownIssuer => VerifyError::UnknownAuthority,
        E::InvalidSignatureForPublicKey => VerifyError::Signature(error),
        // webpki's own words would list all that is supported, in bytes
        E::UnsupportedSignatureAlgorithmContext(_)
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => VerifyError::SignatureAlgorithm,
        E::PathLenConstraintViolated => VerifyError::PathLength,
        E::NameConstraintViolation => {
            // The refusal of URI constraints has its own reason; constraints on DNS names or addresses are webpki's to judge.
            let on_uris = rest.iter().any(|der| {
                let ca = Certificate::parse(der);
                ca.is_ok_and(|ca| ca.name_constraints.is_some_and(|nc| nc.on_uris))
            });
            if on_uris {
                VerifyError::Intermediate(ProfileError::UriConstraints)
            } else {
                VerifyError::NameConstraints
            }
        }
        E::MaximumPathDepthExceeded
        | E::MaximumPathBuildCallsExceeded
        | E::MaximumSignatureChecksExceeded
        | E::MaximumNameConstraintComparisonsExceeded => VerifyError::TooHard(error),
        other => {
            // An authority with a fault of ours that webpki saw first, such as a missing cA.
            let fault = rest.iter().find_map(|der| {
                let ca = Certificate::parse(der).ok()?;
                check_intermediate(&ca, id.trust_domain()).err()
            });
            fault.map_or(VerifyError::Path(other), VerifyError::Intermediate)
        }
    }
}

/// A view of an anchor; its contents stay where they are.
fn borrow<'a>(anchor: &'a TrustAnchor<'static>) -> TrustAnchor<'a> {
    TrustAnchor {
        subject: anchor.subject.as_ref().into(),
        subject_public_key_info: anchor.subject_public_key_info.as_ref().into(),
        name_constraints: anchor
            .name_constraints
            .as_ref()
            .map(|nc| nc.as_ref().into()),
    }
}

/// Extended key usage is judged by `profile.rs` for leaf and authorities alike.
struct BothTlsPurposes;

impl ExtendedKeyUsageValidator for BothTlsPurposes {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        for purpose in purposes {
            purpose?; // malformed ones
        }
        Ok(())
    }
}

/// Named one by one, so that neither a feature of another crate nor an update widens them.
static ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    ring::ECDSA_P256_SHA256,
    ring::ECDSA_P256_SHA384,
    ring::ECDSA_P384_SHA256,
    ring::ECDSA_P384_SHA384,
    ring::ED25519,
    ring::RSA_PKCS1_2048_8192_SHA256,
    ring::RSA_PKCS1_2048_8192_SHA384,
    ring::RSA_PKCS1_2048_8192_SHA512,
    ring::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    ring::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    ring::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// Why a chain proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// No certificate.
    #[error("the peer showed no certificate")]
    Empty,
    /// More certificates than [`MAX_CHAIN_CERTIFICATES`].
    #[error("the peer showed {0} certificates; at most {MAX_CHAIN_CERTIFICATES} are accepted")]
    TooManyCertificates(usize),
    /// The leaf cannot be read.
    #[error("the peer's certificate cannot be read")]
    Unreadable(#[source] CertificateError),
    /// The leaf is no X509-SVID.
    #[error("the peer's certificate is not an X509-SVID")]
    Leaf(#[source] ProfileError),
    /// The leaf's time has not come.
    #[error("the X509-SVID of {id} is not valid yet")]
    NotYetValid {
        /// Whose.
        id: SpiffeId,
        /// When it will be.
        not_before: SystemTime,
    },
    /// The leaf's time is over.
    #[error("the X509-SVID of {id} has expired")]
    Expired {
        /// Whose.
        id: SpiffeId,
        /// When it did.
        not_after: SystemTime,
    },
    /// There is no bundle for the peer's trust domain.
    #[error("there is no bundle for trust domain {0}, so none of its identities is trusted")]
    NoBundle(TrustDomain),
    /// The bundle of the peer's trust domain holds no root that is valid now.
    #[error("the bundle of trust domain {0} holds no root that is valid now")]
    NoRoot(TrustDomain),
    /// The time lies before 1970.
    #[error("the time is before 1970")]
    Clock,
    /// No root of the peer's trust domain signed the chain.
    #[error("no root of the peer's trust domain leads to its certificate")]
    UnknownAuthority,
    /// An issuer has the right name and a signature does not fit its key.
    #[error("a signature in the chain does not fit the key of its issuer")]
    Signature(#[source] webpki::Error),
    /// A signature of a kind that is not accepted, SHA-1 among them.
    #[error("a signature in the chain is of a kind that is not accepted")]
    SignatureAlgorithm,
    /// An intermediate's time is over.
    #[error("an intermediate certificate has expired")]
    IntermediateExpired,
    /// An intermediate's time has not come.
    #[error("an intermediate certificate is not valid yet")]
    IntermediateNotYetValid,
    /// An intermediate on the path cannot be read.
    #[error("an intermediate certificate cannot be read")]
    UnreadableIntermediate(#[source] CertificateError),
    /// An intermediate on the path is not fit to be an authority of this trust domain.
    #[error("an intermediate certificate is not fit to sign for this trust domain")]
    Intermediate(#[source] ProfileError),
    /// More intermediates on the path than [`MAX_INTERMEDIATES`].
    #[error(
        "{0} intermediates lie between leaf and root; at most {MAX_INTERMEDIATES} are accepted"
    )]
    TooDeep(usize),
    /// More authorities below one than its path length allows.
    #[error("the chain is longer than one of its authorities allows")]
    PathLength,
    /// A name lies outside what an authority may sign.
    #[error("a name in the certificate lies outside the name constraints of its authority")]
    NameConstraints,
    /// Looking for a path took more work than any honest chain needs.
    #[error("the chain takes too much work to verify")]
    TooHard(#[source] webpki::Error),
    /// Any other fault found by path validation.
    #[error("the chain breaks a rule of path validation")]
    Path(#[source] webpki::Error),
}

impl VerifyError {
    /// The code of this error in `docs/errors`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Leaf(source) | Self::Intermediate(source) => source.code(),
            Self::Empty => "FNL0330",
            Self::Unreadable(_) | Self::UnreadableIntermediate(_) => "FNL0331",
            Self::NotYetValid { .. } | Self::IntermediateNotYetValid | Self::Clock => "FNL0332",
            Self::Expired { .. } | Self::IntermediateExpired => "FNL0333",
            Self::NoBundle(_) => "FNL0334",
            Self::NoRoot(_) => "FNL0335",
            Self::UnknownAuthority => "FNL0336",
            Self::Signature(_) | Self::SignatureAlgorithm => "FNL0337",
            Self::TooManyCertificates(_) | Self::TooDeep(_) | Self::TooHard(_) => "FNL0338",
            Self::PathLength | Self::NameConstraints | Self::Path(_) => "FNL0339",
        }
    }
}

#[cfg(test)]
mod combinations;
#[cfg(test)]
mod tests;
