//! Decides what a registration entry is, when it is well formed (SPIRE's rules) and which processes it matches.
//! Trusts the types of its fields, each of which was parsed.
//! Never decides who may store an entry, nor whether a parent or a federated bundle exists.

use std::{
    borrow::Borrow,
    collections::BTreeSet,
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    DnsName, Selector, SpiffeId, TrustDomain,
    trust_domain::{deserialize_text, show_byte},
};

/// Longest hint, in bytes (SPIFFE Workload API: "should not exceed 1024 bytes").
pub const MAX_HINT_BYTES: usize = 1024;

/// Longest lifetime that SPIRE's wire type, an `int32` of seconds, can carry.
const MAX_TTL: Duration = Duration::from_secs(i32::MAX as u64);

/// Who gets which identity: a process with all these selectors, below that parent, may have that SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Name of the entry.
    pub id: EntryId,
    /// The identity it gives.
    pub spiffe_id: SpiffeId,
    /// The agent, node alias or workload below which it applies; `/spire/server` makes it a node alias.
    pub parent_id: SpiffeId,
    /// All of these must be found on the process.
    pub selectors: BTreeSet<Selector>,
    /// Lifetime of X509-SVIDs; `None` leaves it to the server.
    pub x509_svid_ttl: Option<Duration>,
    /// Lifetime of JWT-SVIDs; `None` leaves it to the server.
    pub jwt_svid_ttl: Option<Duration>,
    /// Foreign trust domains whose bundles the process sees.
    pub federates_with: BTreeSet<TrustDomain>,
    /// The holder may call the admin API.
    pub admin: bool,
    /// The holder may ask for an intermediate CA.
    pub downstream: bool,
    /// After this the entry may be pruned. Housekeeping, not security.
    pub expires_at: Option<SystemTime>,
    /// Names for the certificate, in order; the first is the important one.
    pub dns_names: Vec<DnsName>,
    /// Rises with each change.
    pub revision: u64,
    /// The SVID goes to a store, not to the Workload API.
    pub store_svid: bool,
    /// Passed to the process so that it can tell its identities apart; `""` for none.
    pub hint: String,
    /// When the entry was made; the older one keeps a duplicate hint.
    pub created_at: SystemTime,
    /// The agent makes the X509-SVID when it is asked for, not ahead.
    pub disable_x509_svid_prefetch: bool,
    /// JWT-SVIDs get a `jti` claim.
    pub jwt_svid_include_jti: bool,
}

impl Entry {
    /// Whether a process with these facts gets this identity: the selectors are a subset of the facts.
    /// An entry without selectors matches nothing.
    pub fn matches(&self, facts: &BTreeSet<Selector>) -> bool {
        !self.selectors.is_empty() && self.selectors.is_subset(facts)
    }

    /// Whether the entry makes alias IDs for nodes, rather than identities for processes.
    pub fn is_node_alias(&self) -> bool {
        self.parent_id.path() == "/spire/server"
    }

    /// Checks what SPIRE's create call checks, as far as one entry alone tells.
    pub fn validate(&self, own: &TrustDomain) -> Result<(), EntryError> {
        if !self.spiffe_id.is_member_of(own) {
            return Err(EntryError::ForeignId(self.spiffe_id.clone()));
        }
        match self.spiffe_id.path() {
            "" => return Err(EntryError::PathLessId(self.spiffe_id.clone())),
            path if path == "/spire" || path.starts_with("/spire/") => {
                return Err(EntryError::ReservedId(self.spiffe_id.clone()));
            }
            _ => {}
        }
        if !self.parent_id.is_member_of(own) {
            return Err(EntryError::ForeignParent(self.parent_id.clone()));
        }
        if self.parent_id.is_path_less() {
            return Err(EntryError::PathLessParent(self.parent_id.clone()));
        }
        let Some(first) = self.selectors.first() else {
            return Err(EntryError::NoSelector);
        };
        for (ttl, field) in [
            (self.x509_svid_ttl, "x509_svid_ttl"),
            (self.jwt_svid_ttl, "jwt_svid_ttl"),
        ] {
            match ttl {
                Some(ttl) if ttl < Duration::from_secs(1) || ttl > MAX_TTL => {
                    return Err(EntryError::Ttl { field, ttl });
                }
                _ => {}
            }
        }
        if self.federates_with.contains(own) {
            return Err(EntryError::FederatesWithItself(own.clone()));
        }
        if self.hint.len() > MAX_HINT_BYTES {
            return Err(EntryError::LongHint(self.hint.len()));
        }
        if self.store_svid {
            if self.disable_x509_svid_prefetch {
                return Err(EntryError::StoredWithoutPrefetch);
            }
            if let Some(other) = self.selectors.iter().find(|s| s.kind() != first.kind()) {
                return Err(EntryError::StoredWithMixedSelectors {
                    one: first.kind().into(),
                    other: other.kind().into(),
                });
            }
        }
        Ok(())
    }
}

/// Why an entry is not well formed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// `spiffe_id` lies in another trust domain.
    #[error("spiffe_id {0} is not in the server's trust domain")]
    ForeignId(SpiffeId),
    /// `spiffe_id` has no path.
    #[error("spiffe_id {0} has no path; it names the trust domain itself")]
    PathLessId(SpiffeId),
    /// `spiffe_id` is `/spire` or below it.
    #[error("spiffe_id {0} is reserved: /spire belongs to servers and agents")]
    ReservedId(SpiffeId),
    /// `parent_id` lies in another trust domain.
    #[error("parent_id {0} is not in the server's trust domain")]
    ForeignParent(SpiffeId),
    /// `parent_id` has no path.
    #[error("parent_id {0} has no path")]
    PathLessParent(SpiffeId),
    /// There is no selector.
    #[error("selectors: at least one is needed")]
    NoSelector,
    /// A lifetime below one second or beyond what the wire can carry.
    #[error("{field}: {ttl:?} is not between 1 and {} seconds", i32::MAX)]
    Ttl {
        /// Which lifetime.
        field: &'static str,
        /// What was asked for.
        ttl: Duration,
    },
    /// The own trust domain stands among the foreign ones.
    #[error("federates_with: {0} is the server's own trust domain")]
    FederatesWithItself(TrustDomain),
    /// The hint has more than [`MAX_HINT_BYTES`] bytes.
    #[error("hint: at most {MAX_HINT_BYTES} bytes; this one has {0}")]
    LongHint(usize),
    /// `store_svid` together with `disable_x509_svid_prefetch`.
    #[error("store_svid cannot be combined with disable_x509_svid_prefetch")]
    StoredWithoutPrefetch,
    /// `store_svid` with selectors of several types.
    #[error("store_svid needs selectors of one type; there are {one} and {other}")]
    StoredWithMixedSelectors {
        /// One type.
        one: String,
        /// Another one.
        other: String,
    },
}

impl EntryError {
    /// The code of this error in `docs/errors`.
    pub fn code(&self) -> &'static str {
        "FNL0304"
    }
}

/// Name of an entry: 1 to 255 bytes of `A-Z a-z 0-9 - . _`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(Box<str>);

impl EntryId {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for EntryId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Why a text cannot name an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryIdError {
    /// Nothing there.
    #[error("an entry ID cannot be empty")]
    Empty,
    /// More than 255 bytes.
    #[error("an entry ID has at most 255 bytes; this one has {0}")]
    TooLong(usize),
    /// A byte that may not occur.
    #[error("byte {at} of the entry ID is {}; only letters, digits, '-', '.' and '_' are allowed", show_byte(*byte))]
    Byte {
        /// Offset of the byte.
        at: usize,
        /// The byte.
        byte: u8,
    },
}

impl EntryIdError {
    /// The code of this error in `docs/errors`.
    pub fn code(&self) -> &'static str {
        "FNL0308"
    }
}

impl FromStr for EntryId {
    type Err = EntryIdError;

    fn from_str(text: &str) -> Result<Self, EntryIdError> {
        if text.is_empty() {
            return Err(EntryIdError::Empty);
        }
        if text.len() > 255 {
            return Err(EntryIdError::TooLong(text.len()));
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        if let Some(at) = text.bytes().position(|b| !allowed(b)) {
            return Err(EntryIdError::Byte {
                at,
                byte: text.as_bytes()[at],
            });
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EntryId({})", self.0)
    }
}

impl Serialize for EntryId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for EntryId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_text(deserializer, "an entry ID")
    }
}

#[cfg(test)]
mod tests;
