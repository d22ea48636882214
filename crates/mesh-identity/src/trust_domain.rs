//! Decides what a trust domain name is: 1 to 255 bytes of `a-z 0-9 . - _` (SPIFFE-ID 2.1), compared byte by byte.
//! Trusts nothing about its input.
//! Never lowers a letter, never decodes, never treats an address or DNS look-alike specially.

use std::{cmp::Ordering, fmt, hash, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::spiffe_id::{SCHEME, SpiffeId};

/// Longest trust domain name, in bytes (the RFC 3986 limit for a host; SPIFFE-ID 2.3).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// The name of a trust domain, such as `dev.test`. Cheap to clone.
#[derive(Clone)]
pub struct TrustDomain {
    /// `spiffe://<name>` and perhaps a path: the text of the ID it came from, shared with that ID.
    text: Arc<str>,
    /// Where the name ends in `text`. At most 9 + 255.
    end: u16,
}

impl TrustDomain {
    /// The bare name, without a scheme.
    pub fn as_str(&self) -> &str {
        &self.text[SCHEME.len()..usize::from(self.end)]
    }

    /// The path-less SPIFFE ID that names the trust domain itself: `spiffe://<name>`.
    pub fn id(&self) -> SpiffeId {
        SpiffeId::from_domain(self.alone())
    }

    /// The same name, sharing no memory with a longer ID.
    fn alone(&self) -> Self {
        let end = usize::from(self.end);
        if self.text.len() == end {
            self.clone()
        } else {
            Self {
                text: Arc::from(&self.text[..end]),
                end: self.end,
            }
        }
    }

    /// Only for `spiffe_id.rs`, which has checked `text` and found where the name ends.
    pub(crate) fn from_checked(text: Arc<str>, end: u16) -> Self {
        Self { text, end }
    }

    /// The whole text that the name lies in. Only for `spiffe_id.rs`.
    pub(crate) fn whole_text(&self) -> &str {
        &self.text
    }

    /// Where the name ends in `whole_text`. Only for `spiffe_id.rs`.
    pub(crate) fn end(&self) -> usize {
        usize::from(self.end)
    }
}

/// Why a text is not a trust domain name. Positions are byte offsets into the given text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustDomainError {
    /// The name is empty.
    #[error("a trust domain name cannot be empty")]
    Empty,
    /// The name is longer than [`MAX_TRUST_DOMAIN_BYTES`].
    #[error("a trust domain name has at most {MAX_TRUST_DOMAIN_BYTES} bytes; this one has {0}")]
    TooLong(usize),
    /// A byte that may not occur in a trust domain name.
    #[error(
        "byte {at} of the trust domain name is {}; only a-z, 0-9, '.', '-' and '_' are allowed",
        show_byte(*byte)
    )]
    Byte {
        /// Offset of the byte.
        at: usize,
        /// The byte.
        byte: u8,
    },
}

impl TrustDomainError {
    /// The code of this error in `docs/errors`.
    pub fn code(&self) -> &'static str {
        "FNL0302"
    }
}

/// Prints one byte so that it is safe in a terminal.
pub(crate) fn show_byte(byte: u8) -> String {
    if byte.is_ascii_graphic() || byte == b' ' {
        format!("'{}'", char::from(byte))
    } else {
        format!("0x{byte:02x}")
    }
}

impl FromStr for TrustDomain {
    type Err = TrustDomainError;

    fn from_str(name: &str) -> Result<Self, TrustDomainError> {
        if name.is_empty() {
            return Err(TrustDomainError::Empty);
        }
        if name.len() > MAX_TRUST_DOMAIN_BYTES {
            return Err(TrustDomainError::TooLong(name.len()));
        }
        if let Some(at) = name.bytes().position(|b| !is_trust_domain_byte(b)) {
            return Err(TrustDomainError::Byte {
                at,
                byte: name.as_bytes()[at],
            });
        }
        let end = SCHEME.len() + name.len();
        let mut text = String::with_capacity(end);
        text.push_str(SCHEME);
        text.push_str(name);
        let end = u16::try_from(end).expect("a scheme and 255 bytes fit 16 bits");
        Ok(Self {
            text: text.into(),
            end,
        })
    }
}

/// Bytes that a trust domain name is made of.
pub(crate) fn is_trust_domain_byte(b: u8) -> bool {
    NAME_BYTES[usize::from(b)]
}

static NAME_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut b = 0u8;
    while b < 128 {
        table[b as usize] = matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        b += 1;
    }
    table
};

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustDomain({})", self.as_str())
    }
}

impl PartialEq for TrustDomain {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for TrustDomain {}

impl PartialOrd for TrustDomain {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for TrustDomain {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl hash::Hash for TrustDomain {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl Serialize for TrustDomain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for TrustDomain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_text(deserializer, "a trust domain name")
    }
}

/// Reads a value that is a checked string, without an owned copy where the format allows.
pub(crate) fn deserialize_text<'de, D, T>(
    deserializer: D,
    what: &'static str,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr,
    T::Err: fmt::Display,
{
    struct Text<T>(&'static str, std::marker::PhantomData<T>);

    impl<T: FromStr<Err: fmt::Display>> de::Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }

    deserializer.deserialize_str(Text(what, std::marker::PhantomData))
}

#[cfg(test)]
mod tests;
