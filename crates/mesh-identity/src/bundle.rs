//! Decides what a trust domain's bundle is: checked roots, with a sequence number and a refresh hint (SPIFFE Trust Domain and Bundle 4).
//! Trusts the caller about which trust domain a document belongs to; every root is checked here, since webpki never looks at roots.
//! Never merges roots of two trust domains, never takes half a document.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls_pki_types::{CertificateDer, TrustAnchor};

use crate::{
    CertificateError, JwtAuthority, JwtAuthorityError, PemError, ProfileError, SpiffeId,
    TrustDomain, TrustDomainError, der, pem,
    profile::{check_authority, check_authority_domain},
    svid::ConcatDer as _,
    x509::{Certificate, has_ended, hex},
};

mod json;
pub(crate) mod jwk;

/// Largest bundle document that is read, in bytes.
pub const MAX_BUNDLE_BYTES: usize = 4 * 1024 * 1024;

/// Most roots that one bundle may hold, and most JWT authorities.
pub const MAX_AUTHORITIES: usize = 256;

/// One root of a trust domain, checked and ready to verify with. Cheap to clone.
#[derive(Clone)]
pub struct X509Authority {
    root: Arc<Root>,
    tainted: bool,
}

struct Root {
    der: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
    id: Option<SpiffeId>,
    not_before: SystemTime,
    not_after: SystemTime,
    subject_key_id: String,
    path_len: Option<u32>,
    key: jwk::Key,
}

impl X509Authority {
    /// Reads and checks one root: an authority by its own extensions, with a key that we can verify with.
    pub fn parse(der: impl Into<CertificateDer<'static>>) -> Result<Self, BundleError> {
        Self::parse_at(der.into(), 0)
    }

    fn parse_at(der: CertificateDer<'static>, position: usize) -> Result<Self, BundleError> {
        let root = Certificate::parse(&der)
            .map_err(|source| BundleError::Unreadable { position, source })?;
        let id =
            check_authority(&root).map_err(|source| BundleError::Profile { position, source })?;
        let key = jwk::Key::of_certificate(root.spki).ok_or(BundleError::Key { position })?;
        let anchor = webpki::anchor_from_trusted_cert(&der)
            .map_err(|_| BundleError::Anchor { position })?
            .to_owned();
        let root = Root {
            anchor,
            id,
            not_before: root.not_before,
            not_after: root.not_after,
            subject_key_id: hex(root.subject_key_id.unwrap_or_default()),
            path_len: root.basic.and_then(|basic| basic.path_len),
            key,
            der,
        };
        Ok(Self {
            root: Arc::new(root),
            tainted: false,
        })
    }

    /// The certificate.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.root.der
    }

    /// The SPIFFE ID in the certificate, where there is one.
    pub fn id(&self) -> Option<&SpiffeId> {
        self.root.id.as_ref()
    }

    /// From when on it is valid.
    pub fn not_before(&self) -> SystemTime {
        self.root.not_before
    }

    /// Until when it is valid; this second still counts.
    pub fn not_after(&self) -> SystemTime {
        self.root.not_after
    }

    /// Whether that moment lies in its validity. A root outside it verifies nothing (docs/decisions/0101).
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.root.not_before <= now && !has_ended(self.root.not_after, now)
    }

    /// The subject key identifier in lower-case hex; `""` if the certificate has none.
    pub fn subject_key_id(&self) -> &str {
        &self.root.subject_key_id
    }

    /// Whether SVIDs signed by it are to be replaced. It still verifies.
    pub fn is_tainted(&self) -> bool {
        self.tainted
    }

    /// The same root, marked or not.
    #[must_use]
    pub fn with_tainted(mut self, tainted: bool) -> Self {
        self.tainted = tainted;
        self
    }

    pub(crate) fn anchor(&self) -> &TrustAnchor<'static> {
        &self.root.anchor
    }

    pub(crate) fn path_len(&self) -> Option<u32> {
        self.root.path_len
    }
}

impl std::fmt::Debug for X509Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("X509Authority")
            .field("subject_key_id", &self.root.subject_key_id)
            .field("not_after", &self.root.not_after)
            .field("tainted", &self.tainted)
            .finish_non_exhaustive()
    }
}

/// Equal if certificate and mark are.
impl PartialEq for X509Authority {
    fn eq(&self, other: &Self) -> bool {
        self.root.der == other.root.der && self.tainted == other.tainted
    }
}

impl Eq for X509Authority {}

/// What a trust domain is verified with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    trust_domain: TrustDomain,
    authorities: Vec<X509Authority>,
    jwt_authorities: Vec<JwtAuthority>,
    sequence: Option<u64>,
    refresh_hint: Option<Duration>,
}

impl Bundle {
    /// A bundle of these roots; a root given twice counts once. Without a root nothing in the domain can be verified.
    pub fn new(
        trust_domain: TrustDomain,
        authorities: impl IntoIterator<Item = X509Authority>,
    ) -> Result<Self, BundleError> {
        let mut roots: Vec<X509Authority> = Vec::new();
        for (position, authority) in authorities.into_iter().enumerate() {
            check_authority_domain(authority.id(), &trust_domain)
                .map_err(|source| BundleError::Profile { position, source })?;
            match roots.iter().position(|root| root.der() == authority.der()) {
                Some(known) => roots[known].tainted |= authority.tainted,
                None if roots.len() == MAX_AUTHORITIES => return Err(BundleError::TooMany),
                None => roots.push(authority),
            }
        }
        Ok(Self {
            trust_domain,
            authorities: roots,
            jwt_authorities: Vec::new(),
            sequence: None,
            refresh_hint: None,
        })
    }

    /// The same bundle with these JWT authorities in place of those it had; one given twice counts once, two keys under one
    /// key ID are refused, since a token could not say which is meant.
    pub fn with_jwt_authorities(
        mut self,
        authorities: impl IntoIterator<Item = JwtAuthority>,
    ) -> Result<Self, BundleError> {
        self.jwt_authorities.clear();
        for authority in authorities {
            let same_id = |known: &JwtAuthority| known.key_id() == authority.key_id();
            match self.jwt_authorities.iter().position(same_id) {
                Some(at) if self.jwt_authorities[at].same_key(&authority) => {
                    let tainted = self.jwt_authorities[at].is_tainted() || authority.is_tainted();
                    self.jwt_authorities[at] = authority.with_tainted(tainted);
                }
                Some(_) => return Err(BundleError::KeyIdTwice),
                None if self.jwt_authorities.len() == MAX_AUTHORITIES => {
                    return Err(BundleError::TooMany);
                }
                None => self.jwt_authorities.push(authority),
            }
        }
        Ok(self)
    }

    /// The same bundle with a sequence number.
    #[must_use]
    pub fn with_sequence(mut self, sequence: u64) -> Self {
        self.sequence = Some(sequence);
        self
    }

    /// The same bundle with a refresh hint, in whole seconds; a part of a second is dropped.
    #[must_use]
    pub fn with_refresh_hint(mut self, hint: Option<Duration>) -> Self {
        self.refresh_hint = hint.map(|hint| Duration::from_secs(hint.as_secs()));
        self
    }

    /// Whose bundle it is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Its roots, in the order they came.
    pub fn x509_authorities(&self) -> &[X509Authority] {
        &self.authorities
    }

    /// The keys that verify its JWT-SVIDs, in the order they came. Without one it has no JWT-SVIDs (JWT-SVID 5.3).
    pub fn jwt_authorities(&self) -> &[JwtAuthority] {
        &self.jwt_authorities
    }

    /// The JWT authority of that key ID.
    pub fn jwt_authority(&self, key_id: &str) -> Option<&JwtAuthority> {
        self.jwt_authorities.iter().find(|a| a.key_id() == key_id)
    }

    /// The sequence number, 0 if the document had none.
    pub fn sequence(&self) -> u64 {
        self.sequence.unwrap_or(0)
    }

    /// The sequence number, if the document had one. Without one, the last fetch wins.
    pub fn declared_sequence(&self) -> Option<u64> {
        self.sequence
    }

    /// How often the publisher asks to be polled.
    pub fn refresh_hint(&self) -> Option<Duration> {
        self.refresh_hint
    }

    /// Reads a SPIFFE bundle document.
    pub fn from_spiffe_json(domain: TrustDomain, json: &[u8]) -> Result<Self, BundleError> {
        check_size(json)?;
        json::read(domain, json)
    }

    /// Writes a SPIFFE bundle document.
    pub fn to_spiffe_json(&self) -> Vec<u8> {
        json::write(self)
    }

    /// Writes the JWT authorities alone as a JWK set, as the Workload API's JWT profile carries it (SPIFFE Workload API 6.2.2).
    pub fn to_jwks_json(&self) -> Vec<u8> {
        json::write_jwks(self)
    }

    /// Reads PEM: at least one root, and nothing else.
    pub fn from_pem(domain: TrustDomain, text: &[u8]) -> Result<Self, BundleError> {
        check_size(text)?;
        let certificates = pem::read_certificates(text).map_err(BundleError::Pem)?;
        Self::from_ders(domain, certificates.into_iter().map(|(_, der)| der))
    }

    /// Writes the roots as PEM.
    pub fn to_pem(&self) -> String {
        let mut text = String::new();
        for authority in &self.authorities {
            pem::write_certificate(authority.der(), &mut text);
        }
        text
    }

    /// Reads concatenated DER, as the Workload API carries it. No bytes are a bundle without roots.
    pub fn from_der_concat(domain: TrustDomain, bytes: &[u8]) -> Result<Self, BundleError> {
        check_size(bytes)?;
        let parts = der::split_sequences(bytes)
            .map_err(|e| BundleError::Concatenation(CertificateError::from(e)))?;
        Self::from_ders(domain, parts.into_iter().map(<[u8]>::to_vec))
    }

    /// Writes the roots as concatenated DER.
    pub fn to_der_concat(&self) -> Vec<u8> {
        let roots: Vec<_> = self
            .authorities
            .iter()
            .map(|root| root.der().clone())
            .collect();
        roots.concat_der()
    }

    fn from_ders(
        domain: TrustDomain,
        ders: impl Iterator<Item = Vec<u8>>,
    ) -> Result<Self, BundleError> {
        let roots = ders
            .enumerate()
            .map(|(position, der)| X509Authority::parse_at(der.into(), position))
            .collect::<Result<Vec<_>, _>>()?;
        Self::new(domain, roots)
    }
}

fn check_size(input: &[u8]) -> Result<(), BundleError> {
    if input.len() > MAX_BUNDLE_BYTES {
        Err(BundleError::TooLarge(input.len()))
    } else {
        Ok(())
    }
}

/// The bundles of several trust domains, each apart from the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BundleSet {
    bundles: BTreeMap<TrustDomain, Arc<Bundle>>,
}

/// Reads a JSON Web Key Set of an issuer that is no trust domain: the keys that can verify its tokens.
///
/// # Errors
/// When it is too large, no JSON, or holds a damaged key or two keys of one key ID.
pub fn read_jwks(json: &[u8]) -> Result<Vec<JwtAuthority>, BundleError> {
    if json.len() > MAX_BUNDLE_BYTES {
        return Err(BundleError::TooLarge(json.len()));
    }
    json::read_jwks(json)
}

impl BundleSet {
    /// No bundle at all: nothing can be verified.
    pub fn new() -> Self {
        Self::default()
    }

    /// The bundle of that trust domain, and of no other.
    pub fn get(&self, domain: &TrustDomain) -> Option<&Arc<Bundle>> {
        self.bundles.get(domain)
    }

    /// Puts a bundle in place of the one of the same trust domain, which is returned.
    pub fn insert(&mut self, bundle: impl Into<Arc<Bundle>>) -> Option<Arc<Bundle>> {
        let bundle = bundle.into();
        self.bundles.insert(bundle.trust_domain().clone(), bundle)
    }

    /// Takes a bundle out.
    pub fn remove(&mut self, domain: &TrustDomain) -> Option<Arc<Bundle>> {
        self.bundles.remove(domain)
    }

    /// All of them, ordered by trust domain.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Bundle>> {
        self.bundles.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bundles.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bundles.is_empty()
    }

    /// Reads a SPIFFE Bundle Map, all of it or nothing.
    pub fn from_bundle_map_json(json: &[u8]) -> Result<Self, BundleError> {
        check_size(json)?;
        json::read_map(json)
    }

    /// Writes a SPIFFE Bundle Map. Members carry no refresh hint (a map has one source, not many).
    pub fn to_bundle_map_json(&self) -> Vec<u8> {
        json::write_map(self)
    }
}

impl<B: Into<Arc<Bundle>>> FromIterator<B> for BundleSet {
    fn from_iter<I: IntoIterator<Item = B>>(bundles: I) -> Self {
        let mut set = Self::new();
        for bundle in bundles {
            set.insert(bundle);
        }
        set
    }
}

/// Why a bundle was refused, whole. Positions count roots (or keys of a document) from 0.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// More bytes than [`MAX_BUNDLE_BYTES`].
    #[error("the bundle has {0} bytes; at most {MAX_BUNDLE_BYTES} are read")]
    TooLarge(usize),
    /// More roots, or more JWT authorities, than [`MAX_AUTHORITIES`].
    #[error("the bundle has more than {MAX_AUTHORITIES} roots or JWT authorities")]
    TooMany,
    /// Not the JSON that a bundle is.
    #[error("the bundle is not a SPIFFE bundle document: line {line}, column {column}: {what}")]
    Json {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What was wrong there.
        what: String,
    },
    /// An `x5c` value is not standard base64 with padding.
    #[error("key {position}: x5c is not standard base64")]
    X5c {
        /// Which key.
        position: usize,
    },
    /// The key parameters of a JWK are not those of its certificate.
    #[error("key {position}: the key parameters are not those of the certificate in x5c")]
    OtherKey {
        /// Which key.
        position: usize,
    },
    /// A key for JWT-SVIDs cannot be used.
    #[error("key {position} cannot be a JWT authority")]
    JwtKey {
        /// Which key.
        position: usize,
        /// Why.
        #[source]
        source: JwtAuthorityError,
    },
    /// Two JWT authorities have the same key ID and different keys.
    #[error("two JWT authorities have one key ID")]
    KeyIdTwice,
    /// A name in a Bundle Map is no trust domain.
    #[error("the bundle map names {name:?}, which is not a trust domain")]
    Name {
        /// The name, cut short if it is long.
        name: String,
        /// Why.
        #[source]
        source: TrustDomainError,
    },
    /// A member of a Bundle Map was refused, and so the map.
    #[error("the bundle of {domain} was refused")]
    Member {
        /// Whose bundle.
        domain: TrustDomain,
        /// Why.
        #[source]
        source: Box<BundleError>,
    },
    /// The PEM text was refused.
    #[error("the bundle is not PEM")]
    Pem(#[source] PemError),
    /// The bytes cannot be cut into certificates.
    #[error("the bundle is not concatenated DER")]
    Concatenation(#[source] CertificateError),
    /// A root cannot be read.
    #[error("root {position} cannot be read")]
    Unreadable {
        /// Which one.
        position: usize,
        /// Why.
        #[source]
        source: CertificateError,
    },
    /// A root has the wrong shape.
    #[error("root {position} does not fit a trust domain")]
    Profile {
        /// Which one.
        position: usize,
        /// Why.
        #[source]
        source: ProfileError,
    },
    /// A root with a key that we cannot verify with.
    #[error(
        "root {position} has a key of an unsupported kind; supported are EC P-256 and P-384, RSA from 2048 to 8192 bits, Ed25519"
    )]
    Key {
        /// Which one.
        position: usize,
    },
    /// webpki refused to make a trust anchor of a root.
    #[error("root {position} cannot be used as a trust anchor")]
    Anchor {
        /// Which one.
        position: usize,
    },
}

impl BundleError {
    /// The code of this error in `docs/errors`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Pem(source) => source.code(),
            Self::Profile { source, .. } => source.code(),
            Self::Member { source, .. } => source.code(),
            Self::TooLarge(_) | Self::TooMany => "FNL0310",
            Self::Json { .. } | Self::X5c { .. } | Self::OtherKey { .. } | Self::Name { .. } => {
                "FNL0311"
            }
            Self::Concatenation(_) | Self::Unreadable { .. } | Self::Anchor { .. } => "FNL0312",
            Self::Key { .. } => "FNL0313",
            Self::JwtKey { source, .. } => source.code(),
            Self::KeyIdTwice => JwtAuthorityError::CODE,
        }
    }
}

#[cfg(test)]
mod tests;
