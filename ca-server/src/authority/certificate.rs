//! What we put in a certificate: the profile of an authority and of a leaf (X509-SVID; spiffe.md C.5).
//! Takes names from a template and a bare public key; nothing else of a request reaches this place.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_identity::{SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyUsagePurpose, PublicKeyData, SanType,
    SerialNumber, SignatureAlgorithm,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::above::Above;
use super::facts::{facts, hex};
use super::keys::{CaKey, key_id, new_serial};
use super::times::{Times, whole_seconds};
use super::{AuthorityError, BACKDATE, LeafTemplate, SignError, SignedLeaf};

/// `serialNumber` as a part of a name (X.520).
const SERIAL_NUMBER: [u64; 4] = [2, 5, 4, 5];

/// The dates that X.509 can write in four digits of a year.
const LATEST: u64 = 253_402_300_799;

/// An authority that can sign.
pub(super) struct Signer {
    issuer: Issuer<'static, CaKey>,
    authority_id: String,
    /// Hex of the subject key id of the root that its leaves verify by: its own, if nothing is above it.
    root_id: String,
    /// What a verifier needs between a leaf and the root.
    intermediates: Vec<CertificateDer<'static>>,
    times: Times,
}

/// A new authority: its self-signed certificate and the one who signs with it.
pub(super) struct NewAuthority {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) signer: Signer,
}

impl Signer {
    /// Makes a self-signed authority for a key.
    pub(super) fn self_signed(
        trust_domain: &TrustDomain,
        key: CaKey,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<NewAuthority, AuthorityError> {
        let failed = |reason: String| AuthorityError::Make { reason };
        let times = Times {
            not_before: now - BACKDATE,
            not_after: now + lifetime,
        };
        let certificate = authority_params(trust_domain, &key, times)
            .map_err(failed)?
            .self_signed(&key)
            .map_err(|error| failed(error.to_string()))?
            .der()
            .clone();
        let signer = Self::restore(&certificate, key, None).map_err(failed)?;
        Ok(NewAuthority {
            signer,
            certificate,
        })
    }

    /// The authority of a certificate that we made, for its key, below what signed it. Issuer name and key id are taken from the
    /// certificate, so that leaves repeat them byte for byte.
    pub(super) fn restore(
        certificate: &CertificateDer<'_>,
        key: CaKey,
        above: Option<&Above>,
    ) -> Result<Self, String> {
        let facts = facts(certificate)?;
        if facts.public_key != key.subject_public_key_info() {
            return Err("the key is not that of the certificate".into());
        }
        let issuer =
            Issuer::from_ca_cert_der(certificate, key).map_err(|error| error.to_string())?;
        let own = || std::iter::once(certificate.clone().into_owned());
        Ok(Self {
            issuer,
            root_id: above
                .map_or(&facts.authority_id, |above| &above.root_id)
                .clone(),
            authority_id: facts.authority_id,
            intermediates: above.map_or_else(Vec::new, |above| {
                own().chain(above.chain.iter().cloned()).collect()
            }),
            times: facts.times,
        })
    }

    /// Signs a leaf.
    pub(super) fn sign(
        &self,
        template: &LeafTemplate,
        subject_public_key: &[u8],
        now: SystemTime,
    ) -> Result<SignedLeaf, SignError> {
        if now < self.times.not_before || now >= self.times.not_after {
            return Err(SignError::NoAuthority);
        }
        let failed = |reason: String| SignError::Failed { reason };
        let subject = SubjectKey::parse(subject_public_key)?;
        let serial = new_serial().ok_or_else(|| failed("no random numbers".into()))?;
        let start = now
            .checked_sub(template.not_before_backdate)
            .unwrap_or(UNIX_EPOCH)
            .max(self.times.not_before);
        let end = now
            .checked_add(template.ttl)
            .map_or(self.times.not_after, |end| end.min(self.times.not_after));
        let (not_before, not_after) = (whole_seconds(start), whole_seconds(end));
        if not_after <= now {
            return Err(SignError::NoTime);
        }
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = date(not_before);
        params.not_after = date(not_after);
        // As a rule no name at all: the SPIFFE ID is the identity, and the SAN is critical for that (X509-6).
        params.distinguished_name = subject_name(&template.subject).map_err(failed)?;
        params.subject_alt_names = vec![uri(&template.spiffe_id).map_err(failed)?];
        for name in &template.dns_names {
            let name = name
                .as_str()
                .to_owned()
                .try_into()
                .map_err(|error: rcgen::Error| failed(error.to_string()))?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.key_identifier_method = KeyIdMethod::PreSpecified(key_id(subject.bits));
        params.use_authority_key_identifier_extension = true;
        let leaf = params
            .signed_by(&subject, &self.issuer)
            .map_err(|error| failed(error.to_string()))?;
        let mut chain = vec![leaf.der().clone()];
        chain.extend(self.intermediates.iter().cloned());
        Ok(SignedLeaf {
            chain,
            serial: hex(&serial),
            authority_id: self.authority_id.clone(),
            root_id: self.root_id.clone(),
            not_before,
            not_after,
        })
    }
}

/// Attributes that X.520 writes as printable strings: country, serial number, qualifier.
const PRINTABLE: [&[u64]; 3] = [&[2, 5, 4, 6], &SERIAL_NUMBER, &[2, 5, 4, 46]];

fn subject_name(subject: &[(Vec<u64>, String)]) -> Result<DistinguishedName, String> {
    let mut name = DistinguishedName::new();
    for (kind, text) in subject {
        let value = match PRINTABLE.contains(&kind.as_slice()) {
            true => DnValue::PrintableString(
                text.as_str()
                    .try_into()
                    .map_err(|error: rcgen::Error| error.to_string())?,
            ),
            false => DnValue::Utf8String(text.clone()),
        };
        name.push(DnType::from_oid(kind), value);
    }
    Ok(name)
}

/// What the certificate of an authority of ours says, whoever signs it.
pub(super) fn authority_params(
    trust_domain: &TrustDomain,
    key: &CaKey,
    times: Times,
) -> Result<CertificateParams, String> {
    let serial = new_serial().ok_or("no random numbers")?;
    let number = hex(&serial)
        .try_into()
        .map_err(|error: rcgen::Error| error.to_string())?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CountryName, "US");
    params
        .distinguished_name
        .push(DnType::OrganizationName, "SPIFFE");
    params.distinguished_name.push(
        DnType::CustomDnType(SERIAL_NUMBER.to_vec()),
        DnValue::PrintableString(number),
    );
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = date(times.not_before);
    params.not_after = date(times.not_after);
    params.subject_alt_names = vec![uri(&trust_domain.id())?];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.key_identifier_method = KeyIdMethod::PreSpecified(key_id(key.der_bytes()));
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// A public key that we certify.
struct SubjectKey<'a> {
    bits: &'a [u8],
    algorithm: &'static SignatureAlgorithm,
}

impl<'a> SubjectKey<'a> {
    fn parse(spki: &'a [u8]) -> Result<Self, SignError> {
        let refused = |reason: &str| SignError::PublicKey {
            reason: reason.to_owned(),
        };
        let (rest, parsed) =
            SubjectPublicKeyInfo::from_der(spki).map_err(|_| refused("it is not a public key"))?;
        if !rest.is_empty() {
            return Err(refused("bytes follow it"));
        }
        // The key's bits lie at the end of its DER; borrowing them from there outlives the parse.
        let bits = spki
            .len()
            .checked_sub(parsed.subject_public_key.data.len())
            .and_then(|start| spki.get(start..));
        let bits = bits.filter(|bits| *bits == parsed.subject_public_key.data.as_ref());
        let bits = bits.ok_or_else(|| refused("it is not in DER"))?;
        let known = [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ED25519,
            &rcgen::PKCS_RSA_SHA256,
        ];
        // What we will write must be what we were given: this settles algorithm, parameters and encoding at once.
        let same = known
            .into_iter()
            .map(|algorithm| SubjectKey { bits, algorithm });
        same.into_iter()
            .find(|key| key.subject_public_key_info() == spki)
            .ok_or_else(|| refused("it is neither P-256, P-384, Ed25519 nor RSA, in DER"))
    }
}

impl PublicKeyData for SubjectKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.bits
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

fn uri(id: &SpiffeId) -> Result<SanType, String> {
    let text = id
        .as_str()
        .to_owned()
        .try_into()
        .map_err(|error: rcgen::Error| error.to_string())?;
    Ok(SanType::URI(text))
}

fn date(time: SystemTime) -> OffsetDateTime {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
        .min(LATEST);
    OffsetDateTime::UNIX_EPOCH + Duration::from_secs(seconds)
}
