//! Decides what a selector is: `type:value`, one fact about a node or a process.
//! Trusts nothing about its input.
//! Never splits at any colon but the first: values hold colons of their own.

use std::{cmp::Ordering, fmt, hash, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::trust_domain::{deserialize_text, show_byte};

/// Longest selector type, in bytes.
const MAX_KIND_BYTES: usize = 255;
/// Longest selector value, in bytes: a Linux path (4096) and some more.
const MAX_VALUE_BYTES: usize = 8192;

/// One fact, such as `unix:uid:1000` (type `unix`, value `uid:1000`). Cheap to clone.
#[derive(Clone)]
pub struct Selector {
    text: Arc<str>,
    /// Where the first colon is.
    colon: u16,
}

impl Selector {
    /// Joins a type and a value.
    pub fn new(kind: &str, value: &str) -> Result<Self, SelectorError> {
        let colon = check(kind, value)?;
        let mut text = String::with_capacity(kind.len() + 1 + value.len());
        text.push_str(kind);
        text.push(':');
        text.push_str(value);
        Ok(Self {
            text: text.into(),
            colon,
        })
    }

    /// The part before the first colon: who found the fact.
    pub fn kind(&self) -> &str {
        &self.text[..usize::from(self.colon)]
    }

    /// The part after the first colon.
    pub fn value(&self) -> &str {
        &self.text[usize::from(self.colon) + 1..]
    }

    /// The whole selector, `type:value`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Why a text is not a selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// There is no colon.
    #[error("a selector is written type:value; there is no colon")]
    NoColon,
    /// Nothing stands before the first colon.
    #[error("the type of a selector cannot be empty")]
    EmptyKind,
    /// Nothing stands after the first colon.
    #[error("the value of a selector cannot be empty")]
    EmptyValue,
    /// The type is too long.
    #[error("the type of a selector has at most {MAX_KIND_BYTES} bytes; this one has {0}")]
    KindTooLong(usize),
    /// The value is too long.
    #[error("the value of a selector has at most {MAX_VALUE_BYTES} bytes; this one has {0}")]
    ValueTooLong(usize),
    /// The type holds a colon, a blank, a control character or something that is not ASCII.
    #[error("byte {at} of the selector's type is {}; a type is printable ASCII without a colon", show_byte(*byte))]
    KindByte {
        /// Offset in the type.
        at: usize,
        /// The byte.
        byte: u8,
    },
    /// The value holds a NUL.
    #[error("byte {at} of the selector's value is a NUL")]
    Nul {
        /// Offset in the value.
        at: usize,
    },
}

impl SelectorError {
    /// The code of this error in `docs/errors`.
    pub fn code(&self) -> &'static str {
        "FNL0303"
    }
}

fn check(kind: &str, value: &str) -> Result<u16, SelectorError> {
    if kind.is_empty() {
        return Err(SelectorError::EmptyKind);
    }
    if value.is_empty() {
        return Err(SelectorError::EmptyValue);
    }
    if kind.len() > MAX_KIND_BYTES {
        return Err(SelectorError::KindTooLong(kind.len()));
    }
    if value.len() > MAX_VALUE_BYTES {
        return Err(SelectorError::ValueTooLong(value.len()));
    }
    if let Some(at) = kind
        .bytes()
        .position(|b| !b.is_ascii_graphic() || b == b':')
    {
        return Err(SelectorError::KindByte {
            at,
            byte: kind.as_bytes()[at],
        });
    }
    if let Some(at) = value.bytes().position(|b| b == 0) {
        return Err(SelectorError::Nul { at });
    }
    Ok(u16::try_from(kind.len()).expect("255 fits 16 bits"))
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let (kind, value) = text.split_once(':').ok_or(SelectorError::NoColon)?;
        let colon = check(kind, value)?;
        Ok(Self {
            text: Arc::from(text),
            colon,
        })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Selector({:?})", &*self.text)
    }
}

impl PartialEq for Selector {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Selector {}

impl hash::Hash for Selector {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl PartialOrd for Selector {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Selector {
    /// By type, then by value.
    fn cmp(&self, other: &Self) -> Ordering {
        (self.kind(), self.value()).cmp(&(other.kind(), other.value()))
    }
}

impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_text(deserializer, "a selector, type:value")
    }
}

#[cfg(test)]
mod tests;
