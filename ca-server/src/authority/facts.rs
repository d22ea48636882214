//! What the certificate of an authority says, read once. Trusts nothing but the parser; takes no decision.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::ParsedExtension;

use super::times::Times;

/// Whether a certificate names itself as its issuer.
pub(super) fn is_self_issued(certificate: &CertificateDer<'_>) -> bool {
    x509_parser::parse_x509_certificate(certificate)
        .is_ok_and(|(_, parsed)| parsed.subject().as_raw() == parsed.issuer().as_raw())
}

/// What a certificate of an authority says.
pub(super) struct Facts {
    /// Hex of its subject key id.
    pub(super) authority_id: String,
    pub(super) times: Times,
    /// Its SubjectPublicKeyInfo.
    pub(super) public_key: Vec<u8>,
}

pub(super) fn facts(certificate: &CertificateDer<'_>) -> Result<Facts, String> {
    let (rest, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
    let key_id =
        parsed
            .iter_extensions()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
                _ => None,
            });
    match key_id {
        Some(id) if rest.is_empty() => Ok(Facts {
            authority_id: hex(id),
            times: Times {
                not_before: parsed.validity().not_before.to_datetime().into(),
                not_after: parsed.validity().not_after.to_datetime().into(),
            },
            public_key: parsed.public_key().raw.to_vec(),
        }),
        _ => Err("it is not a certificate with a key id".into()),
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            write!(text, "{byte:02x}").ok();
            text
        })
}
