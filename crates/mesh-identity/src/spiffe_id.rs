//! Decides what a SPIFFE ID is (SPIFFE-ID 2), in one pass and with one allocation.
//! Trusts nothing about its input.
//! Never normalises: two IDs are the same if and only if their bytes are, so nothing that compares strings can be fooled.

use std::{cmp::Ordering, fmt, hash, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::trust_domain::{
    MAX_TRUST_DOMAIN_BYTES, TrustDomain, deserialize_text, is_trust_domain_byte, show_byte,
};

/// Longest SPIFFE ID, in bytes. SPIFFE-ID 2.3 asks that this many are accepted and no more are made;
/// a longer one is refused, since nobody may make it.
pub const MAX_SPIFFE_ID_BYTES: usize = 2048;

pub(crate) const SCHEME: &str = "spiffe://";

/// A SPIFFE ID: `spiffe://trust.domain` or `spiffe://trust.domain/a/path`. Cheap to clone.
#[derive(Clone)]
pub struct SpiffeId {
    /// Its text is the whole ID.
    domain: TrustDomain,
}

impl SpiffeId {
    /// Joins a trust domain and a path (`""`, or `/` and at least one segment).
    pub fn from_parts(domain: &TrustDomain, path: &str) -> Result<Self, SpiffeIdError> {
        let len = domain.end() + path.len();
        if len > MAX_SPIFFE_ID_BYTES {
            return Err(SpiffeIdError::TooLong(len));
        }
        if path.is_empty() {
            return Ok(domain.id());
        }
        if !path.starts_with('/') {
            return Err(SpiffeIdError::PathStart);
        }
        check_path(path.as_bytes(), domain.end())?;
        let mut text = String::with_capacity(len);
        text.push_str(&domain.whole_text()[..domain.end()]);
        text.push_str(path);
        let end = u16::try_from(domain.end()).expect("a checked trust domain ends before byte 265");
        Ok(Self {
            domain: TrustDomain::from_checked(text.into(), end),
        })
    }

    /// The trust domain that the ID belongs to. Costs nothing.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The path, with its leading slash, or `""`.
    pub fn path(&self) -> &str {
        &self.as_str()[self.domain.end()..]
    }

    /// The whole ID.
    pub fn as_str(&self) -> &str {
        self.domain.whole_text()
    }

    /// Whether the ID lies in that trust domain.
    pub fn is_member_of(&self, domain: &TrustDomain) -> bool {
        self.domain == *domain
    }

    /// Whether the ID names a trust domain itself, not a workload in it.
    pub fn is_path_less(&self) -> bool {
        self.path().is_empty()
    }

    /// Reads an ID from bytes of unknown encoding, as they lie in a certificate.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SpiffeIdError> {
        let end = check(bytes)?;
        // Only ASCII passed the check, so this cannot fail; a second look is cheaper than an unsafe block.
        let text = std::str::from_utf8(bytes).expect("the check lets only ASCII pass");
        Ok(Self {
            domain: TrustDomain::from_checked(Arc::from(text), end),
        })
    }

    /// Only for `trust_domain.rs`: a domain whose text ends with its name.
    pub(crate) fn from_domain(domain: TrustDomain) -> Self {
        debug_assert_eq!(domain.whole_text().len(), domain.end());
        Self { domain }
    }
}

/// Why a text is not a SPIFFE ID. Positions are byte offsets into the given text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// The text is longer than [`MAX_SPIFFE_ID_BYTES`].
    #[error("a SPIFFE ID has at most {MAX_SPIFFE_ID_BYTES} bytes; this one has {0}")]
    TooLong(usize),
    /// The text does not start with `spiffe://`, in lower case.
    #[error("a SPIFFE ID starts with spiffe:// in lower case")]
    Scheme,
    /// Nothing stands between `spiffe://` and the path.
    #[error("the trust domain of a SPIFFE ID cannot be empty")]
    NoTrustDomain,
    /// The trust domain is longer than [`MAX_TRUST_DOMAIN_BYTES`].
    #[error("the trust domain of a SPIFFE ID has at most {MAX_TRUST_DOMAIN_BYTES} bytes")]
    TrustDomainTooLong,
    /// A byte that may not occur in a trust domain: userinfo, port, query, fragment, percent sign and upper case too.
    #[error(
        "byte {at} of the SPIFFE ID, in its trust domain, is {}; only a-z, 0-9, '.', '-' and '_' are allowed there",
        show_byte(*byte)
    )]
    TrustDomainByte {
        /// Offset of the byte.
        at: usize,
        /// The byte.
        byte: u8,
    },
    /// A byte that may not occur in a path: query, fragment and percent sign too.
    #[error(
        "byte {at} of the SPIFFE ID, in its path, is {}; only letters, digits, '.', '-' and '_' are allowed there",
        show_byte(*byte)
    )]
    PathByte {
        /// Offset of the byte.
        at: usize,
        /// The byte.
        byte: u8,
    },
    /// Two slashes in a row.
    #[error("the path segment at byte {at} of the SPIFFE ID is empty")]
    EmptySegment {
        /// Offset where the segment would start.
        at: usize,
    },
    /// A segment `.` or `..`.
    #[error("the path segment at byte {at} of the SPIFFE ID is '.' or '..'")]
    DotSegment {
        /// Offset where the segment starts.
        at: usize,
    },
    /// The path, or the ID without a path, ends in a slash.
    #[error("a SPIFFE ID cannot end in a slash")]
    TrailingSlash,
    /// A path given apart does not start with a slash.
    #[error("the path of a SPIFFE ID starts with a slash")]
    PathStart,
}

impl SpiffeIdError {
    /// The code of this error in `docs/errors`.
    pub fn code(&self) -> &'static str {
        "FNL0301"
    }
}

/// Checks the whole text and says where the trust domain ends.
fn check(text: &[u8]) -> Result<u16, SpiffeIdError> {
    if text.len() > MAX_SPIFFE_ID_BYTES {
        return Err(SpiffeIdError::TooLong(text.len()));
    }
    let rest = text
        .strip_prefix(SCHEME.as_bytes())
        .ok_or(SpiffeIdError::Scheme)?;
    let name_len = match rest.iter().position(|&b| !is_trust_domain_byte(b)) {
        None => rest.len(),
        Some(i) if rest[i] == b'/' => i,
        Some(i) => {
            return Err(SpiffeIdError::TrustDomainByte {
                at: SCHEME.len() + i,
                byte: rest[i],
            });
        }
    };
    if name_len == 0 {
        return Err(SpiffeIdError::NoTrustDomain);
    }
    if name_len > MAX_TRUST_DOMAIN_BYTES {
        return Err(SpiffeIdError::TrustDomainTooLong);
    }
    let end = SCHEME.len() + name_len;
    check_path(&text[end..], end)?;
    Ok(u16::try_from(end).expect("a scheme and 255 bytes fit 16 bits"))
}

/// Checks a path that is empty or starts with a slash. `base` is where it starts in the whole ID.
fn check_path(path: &[u8], base: usize) -> Result<(), SpiffeIdError> {
    if is_plainly_right(path) {
        Ok(())
    } else {
        check_path_by_segment(path, base)
    }
}

/// Whether every byte is allowed, no slash is followed by a slash or a dot, and the last byte is no slash.
/// Says no to some right paths (`/.a`), never yes to a wrong one. No branch in the loop: the compiler makes vectors of it.
fn is_plainly_right(path: &[u8]) -> bool {
    let Some((&last, but_last)) = path.split_last() else {
        return true;
    };
    let mut wrong = !is_path_byte(last);
    for (&b, &next) in but_last.iter().zip(&path[1..]) {
        let dubious = (b == b'/') & ((next == b'/') | (next == b'.'));
        wrong |= !(is_path_byte(b) | (b == b'/')) | dubious;
    }
    !wrong
}

/// The exact rule, which also says what is wrong.
fn check_path_by_segment(path: &[u8], base: usize) -> Result<(), SpiffeIdError> {
    let mut segment = 0; // where the open segment's slash is
    for (i, &b) in path.iter().enumerate() {
        if is_path_byte(b) {
            continue;
        }
        if b != b'/' {
            return Err(SpiffeIdError::PathByte {
                at: base + i,
                byte: b,
            });
        }
        if i > 0 {
            check_segment(&path[segment + 1..i], base + segment + 1)?;
        }
        segment = i;
    }
    match path.get(segment + 1..) {
        None => Ok(()), // no path at all
        Some([]) => Err(SpiffeIdError::TrailingSlash),
        Some(last) => check_segment(last, base + segment + 1),
    }
}

fn check_segment(segment: &[u8], at: usize) -> Result<(), SpiffeIdError> {
    match segment {
        b"" => Err(SpiffeIdError::EmptySegment { at }),
        b"." | b".." => Err(SpiffeIdError::DotSegment { at }),
        _ => Ok(()),
    }
}

/// Bytes that a path segment is made of.
fn is_path_byte(b: u8) -> bool {
    (b | 0x20).wrapping_sub(b'a') < 26
        || b.wrapping_sub(b'0') < 10
        || b == b'-'
        || b == b'.'
        || b == b'_'
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        let end = check(text.as_bytes())?;
        Ok(Self {
            domain: TrustDomain::from_checked(Arc::from(text), end),
        })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeId({})", self.as_str())
    }
}

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for SpiffeId {}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl hash::Hash for SpiffeId {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for SpiffeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_text(deserializer, "a SPIFFE ID")
    }
}

#[cfg(test)]
mod tests;
