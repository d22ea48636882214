//! Decides whether a node holds the key of a certificate that an outside authority gave it: path, challenge, signature, as SPIRE's `x509pop`.
//! Trusts the configured roots, and a leaf that may sign. Never trusts a certificate alone: whoever saw it once could show it.
//! Never does work that a stranger's numbers decide: certificates, keys and path building are bounded before anything is verified.

mod error;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_identity::{Selector, SpiffeId, TrustDomain};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, UnparsedPublicKey, VerificationAlgorithm,
};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime, pem::PemObject};
use serde::{Deserialize, Serialize};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, VerifiedPath};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION,
};
use x509_parser::prelude::FromDer;

use super::{AttestedNode, Surroundings};
use crate::config::X509PopConfig;

pub use self::error::{RootsError, X509PopRefused};

/// Most certificates between leaf and root, as in SPIRE.
const MOST_INTERMEDIATES: usize = 4;

/// The length of each side's random number.
const NONCE: usize = 32;

/// The longest number of an ECDSA signature on the curves that are verified.
const LONGEST_NUMBER: usize = 48;

/// The roots of an outside authority.
pub(super) struct X509Pop {
    roots: Vec<Root>,
    around: Surroundings,
}

struct Root {
    anchor: TrustAnchor<'static>,
    fingerprint: String,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// A node whose certificate is good and which has yet to prove that it holds the key.
pub struct Challenged {
    node: AttestedNode,
    key: LeafKey,
    nonce: [u8; NONCE],
}

enum LeafKey {
    /// An `RSAPublicKey` in DER.
    Rsa(Vec<u8>),
    /// A point on a curve.
    Ecdsa(&'static dyn VerificationAlgorithm, Vec<u8>),
}

#[derive(Deserialize)]
struct Evidence {
    certificates: Vec<String>,
}

#[derive(Default, Serialize)]
struct Challenge {
    rsa_signature: Option<Nonce>,
    ecdsa_signature: Option<Nonce>,
}

#[derive(Serialize)]
struct Nonce {
    nonce: String,
}

#[derive(Deserialize)]
struct Answer {
    rsa_signature: Option<RsaAnswer>,
    ecdsa_signature: Option<EcdsaAnswer>,
}

#[derive(Deserialize)]
struct RsaAnswer {
    nonce: String,
    signature: String,
}

#[derive(Deserialize)]
struct EcdsaAnswer {
    nonce: String,
    r: String,
    s: String,
}

impl X509Pop {
    /// Reads the roots.
    pub(super) fn open(settings: &X509PopConfig, around: Surroundings) -> Result<Self, RootsError> {
        let mut roots = Vec::new();
        for path in &settings.ca_bundles {
            let pem = std::fs::read(path).map_err(|cause| RootsError::File {
                path: path.clone(),
                cause,
            })?;
            let before = roots.len();
            for der in CertificateDer::pem_slice_iter(&pem) {
                let root = der.ok().and_then(|der| Root::read(&der));
                roots.push(root.ok_or_else(|| RootsError::Certificate { path: path.clone() })?);
            }
            if roots.len() == before {
                return Err(RootsError::None { path: path.clone() });
            }
        }
        Ok(Self { roots, around })
    }

    /// Judges what a node shows, and asks it for a proof of the key.
    pub(super) fn challenge(&self, evidence: &[u8]) -> Result<Challenged, X509PopRefused> {
        let chain = shown(evidence)?;
        let (leaf_der, intermediates) = chain.split_first().ok_or(X509PopRefused::Evidence)?;
        let leaf = certificate(leaf_der)?;
        let authorities = self.authorities(leaf_der, intermediates)?;
        let key = LeafKey::of(&leaf)?;
        let mut nonce = [0; NONCE];
        SystemRandom::new()
            .fill(&mut nonce)
            .map_err(|_| X509PopRefused::Random)?;
        let fingerprint = fingerprint(leaf_der);
        let node = AttestedNode {
            id: self.agent_id(&fingerprint)?,
            kind: "x509pop",
            selectors: selectors(&self.around.trust_domain, &leaf, &authorities)?,
            can_reattest: true,
            kubernetes: None,
            alias: None,
            evidence_id: fingerprint,
        };
        Ok(Challenged { node, key, nonce })
    }

    /// The fingerprints of the authorities on each path from a valid root to the leaf; without such a path, a refusal.
    fn authorities(
        &self,
        leaf: &[u8],
        intermediates: &[Vec<u8>],
    ) -> Result<BTreeSet<String>, X509PopRefused> {
        let now = self.around.clock.now();
        let valid = |root: &&Root| root.not_before <= now && now <= root.not_after;
        let roots: Vec<&Root> = self.roots.iter().filter(valid).collect();
        let anchors: Vec<TrustAnchor<'_>> = roots.iter().map(|root| root.anchor.clone()).collect();
        let leaf = CertificateDer::from(leaf);
        let intermediates: Vec<CertificateDer<'_>> = intermediates
            .iter()
            .map(|der| CertificateDer::from(der.as_slice()))
            .collect();
        let leaf = EndEntityCert::try_from(&leaf).map_err(X509PopRefused::Path)?;
        let time = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();

        // A path is complete and right when it is shown here; no is said so that the others are shown too.
        let found = RefCell::new(BTreeSet::new());
        let look = |path: &VerifiedPath<'_>| {
            let mut found = found.borrow_mut();
            let mut anchored = anchors.iter().zip(&roots);
            let root = anchored.find(|(anchor, _)| std::ptr::eq(*anchor, path.anchor()));
            found.extend(root.map(|(_, root)| root.fingerprint.clone()));
            found.extend(
                path.intermediate_certificates()
                    .map(|ca| fingerprint(&ca.der())),
            );
            Err(webpki::Error::UnknownIssuer)
        };
        let ended = leaf.verify_for_usage(
            ALGORITHMS,
            &anchors,
            &intermediates,
            UnixTime::since_unix_epoch(time),
            AnyPurpose,
            None,
            Some(&look),
        );
        let found = found.take();
        match ended {
            Err(error) if found.is_empty() => Err(X509PopRefused::Path(error)),
            _ => Ok(found),
        }
    }

    fn agent_id(&self, fingerprint: &str) -> Result<SpiffeId, X509PopRefused> {
        let path = format!("/spire/agent/x509pop/{fingerprint}");
        SpiffeId::from_parts(&self.around.trust_domain, &path).map_err(|_| X509PopRefused::Name)
    }
}

/// The certificates of the evidence, the leaf first; at least one.
fn shown(evidence: &[u8]) -> Result<Vec<Vec<u8>>, X509PopRefused> {
    let shown: Evidence = serde_json::from_slice(evidence).map_err(|_| X509PopRefused::Evidence)?;
    match shown.certificates.len() {
        0 => Err(X509PopRefused::Evidence),
        many if many > 1 + MOST_INTERMEDIATES => Err(X509PopRefused::TooMany(many)),
        _ => shown.certificates.iter().map(|text| decode(text)).collect(),
    }
}

fn certificate(der: &[u8]) -> Result<X509Certificate<'_>, X509PopRefused> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(X509PopRefused::Unreadable),
    }
}

/// Reads bytes as evidence, as the leaf in it, and as the answer of a node whose key is on P-256.
pub(super) fn read_for_fuzzing(bytes: &[u8], own: &TrustDomain) {
    let chain = shown(bytes).unwrap_or_default();
    for der in chain.iter().map(Vec::as_slice).chain([bytes]) {
        if let Ok(leaf) = certificate(der) {
            LeafKey::of(&leaf).ok();
            selectors(own, &leaf, &BTreeSet::new()).ok();
        }
    }
    let asked = |id| Challenged {
        node: AttestedNode {
            id,
            kind: "x509pop",
            selectors: BTreeSet::new(),
            can_reattest: true,
            kubernetes: None,
            alias: None,
            evidence_id: String::new(),
        },
        // No point of the curve: nobody holds its key.
        key: LeafKey::Ecdsa(&ECDSA_P256_SHA256_ASN1, vec![4; 65]),
        nonce: [0; NONCE],
    };
    let id = SpiffeId::from_parts(own, "/spire/agent/x509pop/00");
    let proven = id.map(|id| asked(id).prove(bytes).is_ok());
    assert_ne!(proven, Ok(true), "nobody could sign this");
}

/// What an entry may ask of the node.
fn selectors(
    own: &TrustDomain,
    leaf: &X509Certificate<'_>,
    authorities: &BTreeSet<String>,
) -> Result<BTreeSet<Selector>, X509PopRefused> {
    let mut values = vec![format!("serialnumber:{}", serial(leaf.raw_serial()))];
    // Several common names are rare; SPIRE's library keeps the last.
    let mut names = leaf.subject().iter_common_name();
    if let Some(name) = names.by_ref().last() {
        let name = name.as_str().map_err(|_| X509PopRefused::Name)?;
        values.extend((!name.is_empty()).then(|| format!("subject:cn:{name}")));
    }
    values.extend(
        authorities
            .iter()
            .map(|one| format!("ca:fingerprint:{one}")),
    );
    let said = said(own, leaf)?;
    values.extend(said.iter().map(|(key, value)| format!("san:{key}:{value}")));
    values
        .iter()
        .map(|value| Selector::new("x509pop", value).map_err(|_| X509PopRefused::Name))
        .collect()
}

/// What the outside authority says of the node in URIs `x509pop://<our trust domain>/<key>/<value>`.
fn said(
    own: &TrustDomain,
    leaf: &X509Certificate<'_>,
) -> Result<BTreeMap<String, String>, X509PopRefused> {
    let names = leaf
        .subject_alternative_name()
        .map_err(|_| X509PopRefused::Unreadable)?;
    let prefix = format!("x509pop://{}/", own);
    let uris = names.iter().flat_map(|names| &names.value.general_names);
    Ok(uris
        .filter_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(&prefix),
            _ => None,
        })
        // A path in other words than the plain ones is nothing that anybody should be selected by.
        .filter(|path| !path.contains(['%', '?', '#']))
        .filter_map(|path| path.trim_matches('/').split_once('/'))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect())
}

impl Root {
    fn read(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let moment = |seconds: i64| {
            u64::try_from(seconds)
                .ok()
                .and_then(|since| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(since)))
        };
        Some(Self {
            anchor: webpki::anchor_from_trusted_cert(der).ok()?.to_owned(),
            fingerprint: fingerprint(der),
            not_before: moment(certificate.validity().not_before.timestamp())?,
            not_after: moment(certificate.validity().not_after.timestamp())?,
        })
    }
}

impl LeafKey {
    /// The key of a leaf that may sign.
    fn of(leaf: &X509Certificate<'_>) -> Result<Self, X509PopRefused> {
        let usage = leaf.key_usage().map_err(|_| X509PopRefused::Unreadable)?;
        if !usage.is_some_and(|usage| usage.value.digital_signature()) {
            return Err(X509PopRefused::NotForSignatures);
        }
        let spki = leaf.public_key();
        let key = spki.subject_public_key.data.to_vec();
        let kind = &spki.algorithm.algorithm;
        if *kind == OID_PKCS1_RSAENCRYPTION {
            return Ok(Self::Rsa(key));
        }
        let curve = spki.algorithm.parameters.as_ref();
        match curve.and_then(|curve| curve.as_oid().ok()) {
            Some(curve) if *kind == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == OID_EC_P256 => {
                Ok(Self::Ecdsa(&ECDSA_P256_SHA256_ASN1, key))
            }
            Some(curve) if *kind == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == OID_NIST_EC_P384 => {
                Ok(Self::Ecdsa(&ECDSA_P384_SHA256_ASN1, key))
            }
            _ => Err(X509PopRefused::KeyKind),
        }
    }
}

impl Challenged {
    /// Which agent the node will be, if it proves itself.
    pub fn id(&self) -> &SpiffeId {
        &self.node.id
    }

    /// What is asked, in SPIRE's JSON.
    pub fn document(&self) -> Vec<u8> {
        let nonce = Some(Nonce {
            nonce: STANDARD.encode(self.nonce),
        });
        let challenge = match self.key {
            LeafKey::Rsa(_) => Challenge {
                rsa_signature: nonce,
                ..Challenge::default()
            },
            LeafKey::Ecdsa(..) => Challenge {
                ecdsa_signature: nonce,
                ..Challenge::default()
            },
        };
        serde_json::to_vec(&challenge).expect("text and numbers are JSON")
    }

    /// Judges the answer: the node's own random number is in what it signs, so that nobody can choose what it signs.
    pub fn prove(self, answer: &[u8]) -> Result<AttestedNode, X509PopRefused> {
        let answer: Answer = serde_json::from_slice(answer).map_err(|_| X509PopRefused::Answer)?;
        let proven = match (&self.key, answer.rsa_signature, answer.ecdsa_signature) {
            (LeafKey::Rsa(key), Some(answer), None) => {
                let (message, signature) = (self.message(&answer.nonce)?, part(&answer.signature)?);
                mesh_tls::rsa_pss_sha256_fits(key, &message, &signature)
            }
            (LeafKey::Ecdsa(algorithm, key), None, Some(answer)) => {
                let message = self.message(&answer.nonce)?;
                let signature = in_der(&part(&answer.r)?, &part(&answer.s)?)?;
                UnparsedPublicKey::new(*algorithm, key)
                    .verify(&message, &signature)
                    .is_ok()
            }
            _ => return Err(X509PopRefused::Answer),
        };
        match proven {
            true => Ok(self.node),
            false => Err(X509PopRefused::NoPossession),
        }
    }

    fn message(&self, nonce: &str) -> Result<Vec<u8>, X509PopRefused> {
        let nonce = part(nonce)?;
        match nonce.len() == NONCE {
            true => Ok([&self.nonce[..], &nonce].concat()),
            false => Err(X509PopRefused::Answer),
        }
    }
}

fn decode(text: &str) -> Result<Vec<u8>, X509PopRefused> {
    STANDARD.decode(text).map_err(|_| X509PopRefused::Evidence)
}

fn part(text: &str) -> Result<Vec<u8>, X509PopRefused> {
    STANDARD.decode(text).map_err(|_| X509PopRefused::Answer)
}

/// Two numbers as the library wants them (RFC 3279, 2.2.3).
fn in_der(r: &[u8], s: &[u8]) -> Result<Vec<u8>, X509PopRefused> {
    let mut numbers = Vec::new();
    for number in [r, s] {
        let start = number.iter().position(|byte| *byte != 0);
        let number = &number[start.ok_or(X509PopRefused::NoPossession)?..];
        if number.len() > LONGEST_NUMBER {
            return Err(X509PopRefused::NoPossession);
        }
        let sign = &[0][..usize::from(number[0] >= 0x80)];
        let length = u8::try_from(sign.len() + number.len()).expect("at most 49");
        numbers.extend([&[0x02, length], sign, number].concat());
    }
    let length = u8::try_from(numbers.len()).expect("at most 102");
    Ok([&[0x30, length], numbers.as_slice()].concat())
}

/// SHA-1, which is no protection here: it is the name that SPIRE gives to certificates.
fn fingerprint(der: &[u8]) -> String {
    hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, der).as_ref())
}

fn serial(raw: &[u8]) -> String {
    let start = raw.iter().position(|byte| *byte != 0);
    hex(&raw[start.unwrap_or(raw.len().saturating_sub(1))..])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The outside authority made the certificate for whatever it likes.
struct AnyPurpose;

impl ExtendedKeyUsageValidator for AnyPurpose {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        for purpose in purposes {
            purpose?; // malformed ones
        }
        Ok(())
    }
}

static ALGORITHMS: &[&dyn rustls_pki_types::SignatureVerificationAlgorithm] = &[
    webpki::ring::ECDSA_P256_SHA256,
    webpki::ring::ECDSA_P256_SHA384,
    webpki::ring::ECDSA_P384_SHA256,
    webpki::ring::ECDSA_P384_SHA384,
    webpki::ring::ED25519,
    webpki::ring::RSA_PKCS1_2048_8192_SHA256,
    webpki::ring::RSA_PKCS1_2048_8192_SHA384,
    webpki::ring::RSA_PKCS1_2048_8192_SHA512,
    webpki::ring::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    webpki::ring::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    webpki::ring::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

#[cfg(test)]
mod tests;
