//! Decides whether one certificate has the shape of an X509-SVID leaf or of an authority (X509-SVID 2 to 5, RFC 5280 4).
//! Trusts that `x509.rs` read the certificate as it is written.
//! Never looks at signatures, at time or at other certificates: that is `verify.rs`.

use crate::{
    SpiffeId, SpiffeIdError, TrustDomain,
    x509::{Certificate, oid_text},
};

/// Why a certificate does not have the shape that X509-SVID asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// No URI among the alternative names.
    #[error("it has no URI among its alternative names, so no SPIFFE ID")]
    NoUri,
    /// More than one URI among the alternative names.
    #[error("it has {0} URIs among its alternative names; exactly one is allowed")]
    SeveralUris(usize),
    /// The URI is no SPIFFE ID.
    #[error("its URI is not a SPIFFE ID")]
    NotSpiffeId(#[source] SpiffeIdError),
    /// A leaf whose ID names a trust domain.
    #[error("its SPIFFE ID {0} has no path; only a signing certificate may have such an ID")]
    PathLessLeaf(SpiffeId),
    /// A leaf with cA=true, keyCertSign or cRLSign.
    #[error("it is a signing certificate ({0}) and cannot be the credential of a peer")]
    SigningLeaf(&'static str),
    /// Key usage is missing.
    #[error("it has no key usage")]
    NoKeyUsage,
    /// Key usage is not critical.
    #[error("its key usage is not marked critical")]
    KeyUsageNotCritical,
    /// A leaf without digitalSignature.
    #[error("its key usage lacks digitalSignature")]
    NoDigitalSignature,
    /// Extended key usage without both TLS purposes.
    #[error(
        "its extended key usage lacks {0}; it must hold both serverAuth and clientAuth, or be absent"
    )]
    ExtendedKeyUsage(&'static str),
    /// A critical extension that we do not process.
    #[error("it has a critical extension that is not understood: OID {0}")]
    UnknownCritical(String),
    /// No subject, and alternative names that are not critical.
    #[error("its subject is empty, but its alternative names are not marked critical")]
    NamesNotCritical,
    /// The serial number is not positive or has more than 20 bytes.
    #[error("its serial number is not a positive number of at most 20 bytes")]
    Serial,
    /// Name constraints in a leaf.
    #[error("it has name constraints although it is no authority")]
    ConstrainedLeaf,
    /// An authority without cA=true.
    #[error("it is not an authority: basic constraints with cA=true are missing")]
    NotAuthority,
    /// Basic constraints of an authority that are not critical.
    #[error("its basic constraints are not marked critical")]
    BasicConstraintsNotCritical,
    /// An authority without keyCertSign.
    #[error("its key usage lacks keyCertSign")]
    NoKeyCertSign,
    /// An authority without a subject.
    #[error("its subject is empty, so nothing can name it as issuer")]
    NoSubject,
    /// An authority whose ID has a path.
    #[error("it is an authority, but its SPIFFE ID {0} has a path")]
    AuthorityWithPath(SpiffeId),
    /// An authority of another trust domain.
    #[error("its SPIFFE ID {id} is not in trust domain {expected}")]
    ForeignAuthority {
        /// The authority's ID.
        id: SpiffeId,
        /// Where it should be.
        expected: TrustDomain,
    },
    /// Name constraints on URIs, which we refuse to evaluate (docs/decisions/0100).
    #[error("it has name constraints on URIs, which are refused")]
    UriConstraints,
}

impl ProfileError {
    /// The code of this error in `docs/errors`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoUri | Self::SeveralUris(_) | Self::NotSpiffeId(_) | Self::PathLessLeaf(_) => {
                "FNL0320"
            }
            Self::SigningLeaf(_) => "FNL0321",
            Self::NoKeyUsage | Self::KeyUsageNotCritical | Self::NoDigitalSignature => "FNL0322",
            Self::ExtendedKeyUsage(_) => "FNL0323",
            Self::UnknownCritical(_) => "FNL0324",
            Self::NamesNotCritical | Self::Serial | Self::ConstrainedLeaf => "FNL0325",
            Self::NotAuthority
            | Self::BasicConstraintsNotCritical
            | Self::NoKeyCertSign
            | Self::NoSubject => "FNL0326",
            Self::AuthorityWithPath(_) | Self::ForeignAuthority { .. } => "FNL0327",
            Self::UriConstraints => "FNL0328",
        }
    }
}

/// The ID of a leaf, if the certificate may be one.
pub(crate) fn check_leaf(leaf: &Certificate<'_>) -> Result<SpiffeId, ProfileError> {
    if leaf.basic.is_some_and(|basic| basic.ca) {
        return Err(ProfileError::SigningLeaf("cA is true"));
    }
    let usage = leaf.key_usage.ok_or(ProfileError::NoKeyUsage)?;
    if usage.key_cert_sign {
        return Err(ProfileError::SigningLeaf("keyCertSign is set"));
    }
    if usage.crl_sign {
        return Err(ProfileError::SigningLeaf("cRLSign is set"));
    }
    if !usage.critical {
        return Err(ProfileError::KeyUsageNotCritical);
    }
    if !usage.digital_signature {
        return Err(ProfileError::NoDigitalSignature);
    }
    if let Some(eku) = leaf.eku {
        // anyExtendedKeyUsage does not stand for the two that X509-SVID 4.4 names.
        if !eku.server_auth {
            return Err(ProfileError::ExtendedKeyUsage("serverAuth"));
        }
        if !eku.client_auth {
            return Err(ProfileError::ExtendedKeyUsage("clientAuth"));
        }
    }
    if leaf.name_constraints.is_some() {
        return Err(ProfileError::ConstrainedLeaf);
    }
    check_both(leaf)?;
    check_serial(leaf)?;
    let id = id_of(leaf)?.ok_or(ProfileError::NoUri)?;
    if id.is_path_less() {
        return Err(ProfileError::PathLessLeaf(id));
    }
    Ok(id)
}

/// The ID of an authority, where it has one, if the certificate may be an authority below a root.
pub(crate) fn check_intermediate(
    ca: &Certificate<'_>,
    domain: &TrustDomain,
) -> Result<(), ProfileError> {
    check_serial(ca)?;
    let id = check_authority(ca)?;
    check_authority_domain(id.as_ref(), domain)
}

/// The ID of a root, where it has one, if the certificate may be an authority at all.
pub(crate) fn check_authority(ca: &Certificate<'_>) -> Result<Option<SpiffeId>, ProfileError> {
    let basic = ca
        .basic
        .filter(|basic| basic.ca)
        .ok_or(ProfileError::NotAuthority)?;
    if !basic.critical {
        return Err(ProfileError::BasicConstraintsNotCritical);
    }
    let usage = ca.key_usage.ok_or(ProfileError::NoKeyUsage)?;
    if !usage.critical {
        return Err(ProfileError::KeyUsageNotCritical);
    }
    if !usage.key_cert_sign {
        return Err(ProfileError::NoKeyCertSign);
    }
    if let Some(eku) = ca.eku.filter(|eku| !eku.any) {
        if !eku.server_auth {
            return Err(ProfileError::ExtendedKeyUsage("serverAuth"));
        }
        if !eku.client_auth {
            return Err(ProfileError::ExtendedKeyUsage("clientAuth"));
        }
    }
    if ca.subject.is_empty() {
        return Err(ProfileError::NoSubject);
    }
    if ca
        .name_constraints
        .is_some_and(|constraints| constraints.on_uris)
    {
        return Err(ProfileError::UriConstraints);
    }
    check_both(ca)?;
    let id = id_of(ca)?;
    match id {
        Some(id) if !id.is_path_less() => Err(ProfileError::AuthorityWithPath(id)),
        id => Ok(id),
    }
}

/// An authority that says to which trust domain it belongs must say the right one.
pub(crate) fn check_authority_domain(
    id: Option<&SpiffeId>,
    domain: &TrustDomain,
) -> Result<(), ProfileError> {
    match id {
        Some(id) if !id.is_member_of(domain) => Err(ProfileError::ForeignAuthority {
            id: id.clone(),
            expected: domain.clone(),
        }),
        _ => Ok(()),
    }
}

/// What RFC 5280 asks of every certificate.
fn check_both(certificate: &Certificate<'_>) -> Result<(), ProfileError> {
    if let Some(oid) = certificate.unknown_critical {
        return Err(ProfileError::UnknownCritical(oid_text(oid)));
    }
    if certificate.subject.is_empty() && certificate.san.is_some_and(|san| !san.critical) {
        return Err(ProfileError::NamesNotCritical);
    }
    Ok(())
}

/// RFC 5280 4.1.2.2. Roots are exempt: old ones with serial number 0 exist and harm nobody.
fn check_serial(certificate: &Certificate<'_>) -> Result<(), ProfileError> {
    match certificate.serial {
        [0] => Err(ProfileError::Serial),
        [first, ..] if first & 0x80 != 0 => Err(ProfileError::Serial),
        serial if serial.len() > 20 => Err(ProfileError::Serial),
        _ => Ok(()),
    }
}

fn id_of(certificate: &Certificate<'_>) -> Result<Option<SpiffeId>, ProfileError> {
    match certificate.san {
        Some(san) if san.uris > 1 => Err(ProfileError::SeveralUris(san.uris)),
        Some(san) if san.uris == 1 => SpiffeId::from_bytes(san.first_uri)
            .map(Some)
            .map_err(ProfileError::NotSpiffeId),
        _ => Ok(None),
    }
}
