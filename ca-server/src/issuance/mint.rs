//! Certificates that an administrator asks for. Here, and only here, the request's names are the wish (spiffe.md C.9, T-39).
//! Trusts the permit table for who may ask; trusts nothing in the request.
//! Never certifies a name outside our trust domain or one that belongs to servers and agents.

use std::collections::BTreeSet;
use std::time::Duration;

use mesh_identity::{DnsName, DnsNameError, SpiffeId, SpiffeIdError, TrustDomain, X509Svid};
use mesh_runtime::audit::{Object, Outcome};
use mesh_runtime::errors::Coded;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use super::{Attribution, CsrError, IssueError, Issuer, VerifiedCsr};
use crate::authority::{BACKDATE, LeafTemplate};

/// Most attributes that a subject may have, and most DNS names.
const MOST_NAMES: usize = 64;

/// Longest attribute of a subject, in bytes; the largest upper bound of RFC 5280 for those that people use.
const LONGEST_ATTRIBUTE: usize = 200;

/// A certificate request whose names were read and found fit for our trust domain.
#[derive(Clone, Debug)]
pub struct MintRequest {
    csr: VerifiedCsr,
    id: SpiffeId,
    dns_names: Vec<DnsName>,
    subject: Vec<(Vec<u64>, String)>,
}

impl MintRequest {
    /// Reads a request in DER.
    pub fn parse(der: &[u8], own: &TrustDomain) -> Result<Self, MintError> {
        let csr = VerifiedCsr::parse(der)?;
        let (_, request) =
            X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
        let (mut uris, mut names) = (Vec::new(), Vec::new());
        for extension in request.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(san) = extension else {
                continue;
            };
            for name in &san.general_names {
                match name {
                    GeneralName::URI(uri) => uris.push(*uri),
                    GeneralName::DNSName(name) => names.push(*name),
                    _ => {}
                }
            }
        }
        let id = match uris[..] {
            [] => return Err(MintError::NoUri),
            [uri] => uri.parse::<SpiffeId>().map_err(MintError::Id)?,
            _ => return Err(MintError::ManyUris),
        };
        if !id.is_member_of(own) || id.is_path_less() || is_reserved(&id) {
            return Err(MintError::NotAWorkload(id));
        }
        let mut subject = Vec::new();
        for attribute in request.certification_request_info.subject.iter_attributes() {
            let kind: Option<Vec<u64>> = attribute.attr_type().iter().map(Iterator::collect);
            let text = attribute
                .as_str()
                .ok()
                .filter(|text| !text.is_empty() && text.len() <= LONGEST_ATTRIBUTE);
            match (kind, text) {
                (Some(kind), Some(text)) => subject.push((kind, text.to_owned())),
                _ => return Err(MintError::Subject),
            }
        }
        let kinds: BTreeSet<&Vec<u64>> = subject.iter().map(|(kind, _)| kind).collect();
        if kinds.len() != subject.len() || subject.len() > MOST_NAMES {
            return Err(MintError::Subject);
        }
        Ok(Self {
            csr,
            id,
            dns_names: dns_names(&names)?,
            subject,
        })
    }

    /// Whom the certificate will name.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }
}

/// Whether a path belongs to servers and agents.
pub fn is_reserved(id: &SpiffeId) -> bool {
    let path = id.path();
    path == "/spire" || path.starts_with("/spire/")
}

fn dns_names(names: &[&str]) -> Result<Vec<DnsName>, MintError> {
    if names.len() > MOST_NAMES {
        return Err(MintError::TooManyNames);
    }
    let names: Vec<DnsName> = names
        .iter()
        .map(|name| name.parse().map_err(MintError::DnsName))
        .collect::<Result<_, _>>()?;
    let under = |name: &DnsName| {
        let (_, parent) = name.as_str().split_once('.').unwrap_or_default();
        format!("*.{parent}")
    };
    let wildcards: BTreeSet<&str> = names
        .iter()
        .map(DnsName::as_str)
        .filter(|name| name.starts_with("*."))
        .collect();
    let covered = |name: &&DnsName| {
        !name.as_str().starts_with("*.") && wildcards.contains(under(name).as_str())
    };
    match names.iter().find(covered) {
        Some(name) => Err(MintError::Covered(name.clone())),
        None => Ok(names),
    }
}

impl Issuer {
    /// Issues the certificate that an administrator asks for.
    pub async fn mint(
        &self,
        caller: &Attribution,
        request: &MintRequest,
        ttl: Option<Duration>,
    ) -> Result<X509Svid, IssueError> {
        let started = self.clock.monotonic();
        let mut record = self.begin("svid.mint", caller);
        record.object(Object::new("svid").name(request.id.as_str()));
        let template = LeafTemplate {
            spiffe_id: request.id.clone(),
            dns_names: request.dns_names.clone(),
            subject: request.subject.clone(),
            ttl: ttl.unwrap_or(self.lives.x509_svid),
            not_before_backdate: BACKDATE,
        };
        let signed = self.sign(&template, &request.csr, None, None, self.clock.now());
        let answer = match signed {
            Ok(signed) => match self.issued.record(vec![signed.record.clone()]).await {
                Ok(()) => Ok(signed),
                Err(error) => Err(IssueError::Store(error)),
            },
            Err(error) => Err(error),
        };
        let answer = match answer {
            Ok(signed) => {
                record.object(signed.object());
                match record.finish(Outcome::Success, None).await {
                    Ok(_) => Ok(signed.svid),
                    Err(error) => Err(error.into()),
                }
            }
            Err(error) => {
                error.refuse(record);
                Err(error)
            }
        };
        self.metrics
            .issuance(std::slice::from_ref(&answer), started.elapsed());
        answer
    }
}

/// Why a request's names are not certified. The words are SPIRE's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// The request proves nothing.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// No URI.
    #[error("CSR URI SAN is required")]
    NoUri,
    /// More than one URI.
    #[error("only one URI SAN is expected")]
    ManyUris,
    /// Not a SPIFFE ID.
    #[error("CSR URI SAN is not a valid SPIFFE ID")]
    Id(#[source] SpiffeIdError),
    /// Of another trust domain, without a path, or of a server or agent.
    #[error("CSR URI SAN is invalid: {0} does not name a workload of this trust domain")]
    NotAWorkload(SpiffeId),
    /// Not a DNS name.
    #[error("CSR DNS name is not valid")]
    DnsName(#[source] DnsNameError),
    /// A wildcard of the same list covers it.
    #[error("CSR DNS name {} is covered by a wildcard of the same request", .0.as_str())]
    Covered(DnsName),
    /// More than we certify.
    #[error("a certificate has at most {MOST_NAMES} DNS names")]
    TooManyNames,
    /// An attribute that is no text, too long, or there twice.
    #[error(
        "the subject has an attribute twice, one that is not text, or one of more than {LONGEST_ATTRIBUTE} bytes"
    )]
    Subject,
}

impl Coded for MintError {
    fn code(&self) -> &'static str {
        match self {
            Self::Csr(error) => error.code(),
            Self::NoUri | Self::ManyUris | Self::Id(_) | Self::NotAWorkload(_) => "FNL1211",
            Self::DnsName(_) | Self::Covered(_) | Self::TooManyNames | Self::Subject => "FNL1212",
        }
    }
}
