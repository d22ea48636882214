//! Decides whether a list of certificates has the shape of an X509-SVID, and says what it states.
//! Trusts nothing about the bytes, but believes what they say: no signature is checked here.
//! Never holds a private key.

use std::{ops::Range, sync::Arc, time::SystemTime};

use rustls_pki_types::CertificateDer;

use crate::{
    CertificateError, PemError, ProfileError, SpiffeId, der, pem,
    profile::{check_intermediate, check_leaf},
    verify::MAX_CHAIN_CERTIFICATES,
    x509::{Certificate, serial_text},
};

/// A chain, leaf first, that has the shape of an X509-SVID. Cheap to clone. Whether it is *valid* is for
/// [`crate::verify::verify_x509_svid`] to say.
#[derive(Clone)]
pub struct X509Svid {
    inner: Arc<Inner>,
}

struct Inner {
    id: SpiffeId,
    chain: Vec<CertificateDer<'static>>,
    not_before: SystemTime,
    not_after: SystemTime,
    serial: String,
    /// Where the public key lies in the leaf.
    spki: Range<usize>,
}

impl X509Svid {
    /// Takes a chain, leaf first. The leaf must be fit to be a leaf and the others to be authorities of its trust domain.
    pub fn parse(chain: Vec<CertificateDer<'static>>) -> Result<Self, SvidError> {
        let (leaf_der, rest) = chain.split_first().ok_or(SvidError::Empty)?;
        if chain.len() > MAX_CHAIN_CERTIFICATES {
            return Err(SvidError::TooLong(chain.len()));
        }
        let leaf = Certificate::parse(leaf_der).map_err(|source| SvidError::Unreadable {
            position: 0,
            source,
        })?;
        let id = check_leaf(&leaf).map_err(|source| SvidError::Profile {
            position: 0,
            source,
        })?;
        for (position, der) in (1..).zip(rest) {
            let ca = Certificate::parse(der)
                .map_err(|source| SvidError::Unreadable { position, source })?;
            check_intermediate(&ca, id.trust_domain())
                .map_err(|source| SvidError::Profile { position, source })?;
        }
        let inner = Inner {
            id,
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            serial: serial_text(leaf.serial),
            spki: leaf.spki_at..leaf.spki_at + leaf.spki.len(),
            chain,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Reads concatenated DER, leaf first, as the Workload API carries it.
    pub fn from_der_concat(bytes: &[u8]) -> Result<Self, SvidError> {
        let parts = der::split_sequences(bytes)
            .map_err(|e| SvidError::Concatenation(CertificateError::from(e)))?;
        if parts.len() > MAX_CHAIN_CERTIFICATES {
            return Err(SvidError::TooLong(parts.len()));
        }
        Self::parse(
            parts
                .into_iter()
                .map(|der| CertificateDer::from(der.to_vec()))
                .collect(),
        )
    }

    /// Writes concatenated DER, leaf first.
    pub fn to_der_concat(&self) -> Vec<u8> {
        self.inner.chain.concat_der()
    }

    /// Reads PEM, leaf first.
    pub fn from_pem(text: &[u8]) -> Result<Self, SvidError> {
        let certificates = pem::read_certificates(text).map_err(SvidError::Pem)?;
        Self::parse(
            certificates
                .into_iter()
                .map(|(_, der)| CertificateDer::from(der))
                .collect(),
        )
    }

    /// Writes PEM, leaf first.
    pub fn to_pem(&self) -> String {
        let mut text = String::new();
        for der in &self.inner.chain {
            pem::write_certificate(der, &mut text);
        }
        text
    }

    /// Whose identity it states.
    pub fn id(&self) -> &SpiffeId {
        &self.inner.id
    }

    /// From when on the leaf is valid.
    pub fn not_before(&self) -> SystemTime {
        self.inner.not_before
    }

    /// Until when the leaf is valid; this second still counts.
    pub fn not_after(&self) -> SystemTime {
        self.inner.not_after
    }

    /// The leaf's serial number in lower-case hex.
    pub fn serial(&self) -> &str {
        &self.inner.serial
    }

    /// All certificates, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.inner.chain
    }

    /// The leaf.
    pub fn leaf(&self) -> &CertificateDer<'static> {
        &self.inner.chain[0]
    }

    /// The leaf's SubjectPublicKeyInfo, in DER.
    pub fn spki(&self) -> &[u8] {
        &self.leaf()[self.inner.spki.clone()]
    }
}

/// Two chains are equal if their bytes are.
impl PartialEq for X509Svid {
    fn eq(&self, other: &Self) -> bool {
        self.inner.chain == other.inner.chain
    }
}

impl Eq for X509Svid {}

impl std::fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("X509Svid")
            .field("id", &self.inner.id)
            .field("serial", &self.inner.serial)
            .field("certificates", &self.inner.chain.len())
            .finish_non_exhaustive()
    }
}

/// Joins DER certificates.
pub(crate) trait ConcatDer {
    fn concat_der(&self) -> Vec<u8>;
}

impl ConcatDer for [CertificateDer<'_>] {
    fn concat_der(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.iter().map(|der| der.len()).sum());
        for der in self {
            bytes.extend_from_slice(der);
        }
        bytes
    }
}

/// Why certificates do not have the shape of an X509-SVID. Position 0 is the leaf.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    /// No certificate.
    #[error("the chain is empty")]
    Empty,
    /// Too many certificates.
    #[error("the chain has {0} certificates; at most {MAX_CHAIN_CERTIFICATES} are accepted")]
    TooLong(usize),
    /// The bytes cannot be cut into certificates.
    #[error("the chain is not concatenated DER")]
    Concatenation(#[source] CertificateError),
    /// The PEM text was refused.
    #[error("the chain is not PEM")]
    Pem(#[source] PemError),
    /// A certificate cannot be read.
    #[error("certificate {position} of the chain cannot be read")]
    Unreadable {
        /// Which one.
        position: usize,
        /// Why.
        #[source]
        source: CertificateError,
    },
    /// A certificate has the wrong shape.
    #[error("certificate {position} of the chain does not fit an X509-SVID")]
    Profile {
        /// Which one.
        position: usize,
        /// Why.
        #[source]
        source: ProfileError,
    },
}

impl SvidError {
    /// The code of this error in `docs/errors`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Profile { source, .. } => source.code(),
            Self::Pem(source) => source.code(),
            Self::Empty | Self::TooLong(_) | Self::Concatenation(_) | Self::Unreadable { .. } => {
                "FNL0306"
            }
        }
    }
}

#[cfg(test)]
mod tests;
