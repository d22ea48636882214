//! Decides which certificates a PEM text holds (RFC 7468), and refuses a text that holds anything else.
//! Trusts nothing: a damaged boundary, a private key or a stray base64 line is an error with its line number.
//! Never skips a block that it does not understand.

use base64::{Engine as _, engine::general_purpose::STANDARD};

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Why a PEM text was refused. Lines count from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// The text is not UTF-8.
    #[error("the PEM text is not UTF-8 from byte {0} on")]
    NotText(usize),
    /// A block that is no certificate.
    #[error("line {line}: a PEM block {label:?}; only CERTIFICATE blocks belong here")]
    Label {
        /// Where.
        line: usize,
        /// The label, cut short if it is long.
        label: String,
    },
    /// Dashes that make no boundary where one could be.
    #[error("line {0}: a damaged PEM boundary")]
    Boundary(usize),
    /// A block that does not end.
    #[error("line {0}: the CERTIFICATE block that begins here does not end")]
    Unterminated(usize),
    /// The content of a block is not base64.
    #[error("line {0}: the CERTIFICATE block that begins here is not standard base64")]
    Base64(usize),
    /// No block at all.
    #[error("there is no CERTIFICATE block")]
    Empty,
}

impl PemError {
    /// The code of this error in `docs/errors`.
    pub fn code(&self) -> &'static str {
        "FNL0305"
    }
}

/// The DER of each certificate, with the line on which it begins.
pub(crate) fn read_certificates(text: &[u8]) -> Result<Vec<(usize, Vec<u8>)>, PemError> {
    let text = std::str::from_utf8(text).map_err(|e| PemError::NotText(e.valid_up_to()))?;
    let mut certificates = Vec::new();
    let mut block: Option<(usize, String)> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim_end();
        match &mut block {
            None if line == BEGIN => block = Some((number, String::new())),
            // Explanations between blocks are allowed (RFC 7468 5.2), but nothing that resembles a boundary.
            None if line.contains("---") => return Err(boundary_error(number, line)),
            None => {}
            Some((begin, base64)) if line == END => {
                let der = STANDARD
                    .decode(&*base64)
                    .map_err(|_| PemError::Base64(*begin))?;
                certificates.push((*begin, der));
                block = None;
            }
            Some(_) if line.contains('-') => return Err(boundary_error(number, line)),
            Some((_, base64)) => base64.push_str(line.trim_start()),
        }
    }
    match block {
        Some((begin, _)) => Err(PemError::Unterminated(begin)),
        None if certificates.is_empty() => Err(PemError::Empty),
        None => Ok(certificates),
    }
}

fn boundary_error(line_number: usize, line: &str) -> PemError {
    let label = line
        .strip_prefix("-----BEGIN ")
        .and_then(|rest| rest.strip_suffix("-----"))
        .filter(|label| *label != "CERTIFICATE");
    match label {
        Some(label) => PemError::Label {
            line: line_number,
            label: label.chars().take(40).collect(),
        },
        None => PemError::Boundary(line_number),
    }
}

/// Writes one certificate as RFC 7468 asks: 64 characters to the line.
pub(crate) fn write_certificate(der: &[u8], out: &mut String) {
    out.push_str(BEGIN);
    out.push('\n');
    let base64 = STANDARD.encode(der);
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = more;
    }
    out.push_str(END);
    out.push('\n');
}

#[cfg(test)]
mod tests;
