//! Decides which DNS names may stand in an SVID: ASCII, IDNA-valid labels, one `*` at most and only as the first label.
//! Trusts nothing about its input.
//! Never changes a name: no lowering, no punycode of its own.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::trust_domain::{deserialize_text, show_byte};

/// A DNS name, or a wildcard such as `*.example.org`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DnsName(Box<str>);

impl DnsName {
    /// The name as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is not such a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DnsNameError {
    /// Nothing there.
    #[error("a DNS name cannot be empty")]
    Empty,
    /// More than 253 bytes.
    #[error("a DNS name has at most 253 bytes; this one has {0}")]
    TooLong(usize),
    /// A label without a byte: a leading, trailing or doubled dot.
    #[error("the label at byte {at} of the DNS name is empty")]
    EmptyLabel {
        /// Where the label starts.
        at: usize,
    },
    /// A label of more than 63 bytes.
    #[error("the label at byte {at} of the DNS name has more than 63 bytes")]
    LongLabel {
        /// Where the label starts.
        at: usize,
    },
    /// A byte that is no letter, digit or hyphen.
    #[error("byte {at} of the DNS name is {}; labels are made of letters, digits and '-'", show_byte(*byte))]
    Byte {
        /// Offset of the byte.
        at: usize,
        /// The byte.
        byte: u8,
    },
    /// A hyphen at the start or the end of a label, or third and fourth without `xn` before them.
    #[error("the label at byte {at} of the DNS name has a hyphen where none may be")]
    Hyphen {
        /// Where the label starts.
        at: usize,
    },
    /// `*` elsewhere than alone in the first label, or with nothing behind it.
    #[error("a wildcard is the whole first label of a longer DNS name")]
    Wildcard,
    /// An `xn--` label that is not punycode for a name that needs it.
    #[error("the label at byte {at} of the DNS name is not valid punycode")]
    Punycode {
        /// Where the label starts.
        at: usize,
    },
}

impl DnsNameError {
    /// The code of this error in `docs/errors`.
    pub fn code(&self) -> &'static str {
        "FNL0307"
    }
}

impl FromStr for DnsName {
    type Err = DnsNameError;

    fn from_str(name: &str) -> Result<Self, DnsNameError> {
        if name.is_empty() {
            return Err(DnsNameError::Empty);
        }
        if name.len() > 253 {
            return Err(DnsNameError::TooLong(name.len()));
        }
        let mut at = 0;
        for label in name.split('.') {
            if label.contains('*') {
                if label != "*" || at != 0 || name.len() < 3 {
                    return Err(DnsNameError::Wildcard);
                }
            } else {
                check_label(label.as_bytes(), at)?;
            }
            at += label.len() + 1;
        }
        Ok(Self(name.into()))
    }
}

fn check_label(label: &[u8], at: usize) -> Result<(), DnsNameError> {
    if label.is_empty() {
        return Err(DnsNameError::EmptyLabel { at });
    }
    if label.len() > 63 {
        return Err(DnsNameError::LongLabel { at });
    }
    if let Some(i) = label
        .iter()
        .position(|b| !b.is_ascii_alphanumeric() && *b != b'-')
    {
        return Err(DnsNameError::Byte {
            at: at + i,
            byte: label[i],
        });
    }
    if label.starts_with(b"-") || label.ends_with(b"-") {
        return Err(DnsNameError::Hyphen { at });
    }
    if is_a_label(label) {
        if !decodes_to_more_than_ascii(&label[4..]) {
            return Err(DnsNameError::Punycode { at });
        }
    } else if label.get(2..4) == Some(b"--") {
        return Err(DnsNameError::Hyphen { at });
    }
    Ok(())
}

fn is_a_label(label: &[u8]) -> bool {
    label
        .get(..4)
        .is_some_and(|p| p.eq_ignore_ascii_case(b"xn--"))
}

/// Runs the decoder of RFC 3492, 6.2, and says whether it ends well with a character beyond ASCII.
fn decodes_to_more_than_ascii(text: &[u8]) -> bool {
    let (basic, tail) = match text.iter().rposition(|&b| b == b'-') {
        Some(0) => return false, // a delimiter with nothing before it
        Some(i) => (i, &text[i + 1..]),
        None => (0, text),
    };
    if tail.is_empty() {
        return false; // ASCII alone needs no punycode
    }
    let (mut code, mut bias, mut position) = (128u32, 72u32, 0u32);
    let mut count = u32::try_from(basic).expect("a label has at most 63 bytes");
    let mut digits = tail.iter();
    while digits.len() > 0 {
        let (old, mut weight, mut k) = (position, 1u32, 36u32);
        loop {
            let digit = match digits.next() {
                Some(b @ b'a'..=b'z') => u32::from(b - b'a'),
                Some(b @ b'A'..=b'Z') => u32::from(b - b'A'),
                Some(b @ b'0'..=b'9') => u32::from(b - b'0') + 26,
                _ => return false,
            };
            let Some(sum) = digit
                .checked_mul(weight)
                .and_then(|d| position.checked_add(d))
            else {
                return false;
            };
            position = sum;
            let threshold = k.saturating_sub(bias).clamp(1, 26);
            if digit < threshold {
                break;
            }
            let Some(next) = weight.checked_mul(36 - threshold) else {
                return false;
            };
            weight = next;
            k += 36;
        }
        count += 1;
        bias = adapt(position - old, count, old == 0);
        let Some(next) = code.checked_add(position / count) else {
            return false;
        };
        code = next;
        position = position % count + 1;
        if char::from_u32(code).is_none() {
            return false;
        }
    }
    true
}

/// RFC 3492, 6.1.
fn adapt(delta: u32, count: u32, first: bool) -> u32 {
    let mut delta = if first { delta / 700 } else { delta / 2 };
    delta += delta / count;
    let mut k = 0;
    while delta > 455 {
        delta /= 35;
        k += 36;
    }
    k + 36 * delta / (delta + 38)
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DnsName({})", self.0)
    }
}

impl Serialize for DnsName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for DnsName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_text(deserializer, "a DNS name")
    }
}

#[cfg(test)]
mod tests;
