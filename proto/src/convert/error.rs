//! Why a message was refused: the field, and one reason.
//! It trusts the conversions to name the field they looked at.
//! It never carries the refused value when that could be a secret.

use std::fmt;

use mesh_identity::{
    BundleError, DnsNameError, EntryError, EntryIdError, SelectorError, SpiffeId, SpiffeIdError,
    SvidError, TrustDomain, TrustDomainError,
};

/// A message that was refused whole. `Display` says what is wrong, with the path of the field;
/// [`source`](std::error::Error::source) says why, where a domain parser refused the value.
#[derive(Debug)]
pub struct WireError {
    field: String,
    reason: Reason,
}

impl WireError {
    pub(super) fn new(field: impl Into<String>, reason: impl Into<Reason>) -> Self {
        Self {
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// The same refusal, seen from the message around.
    pub(super) fn within(mut self, outer: &str) -> Self {
        self.field = match self.field.is_empty() {
            true => outer.to_owned(),
            false => format!("{outer}.{}", self.field),
        };
        self
    }

    /// The same refusal, seen from the list around.
    pub(super) fn within_item(self, list: &str, index: usize) -> Self {
        self.within(&format!("{list}[{index}]"))
    }

    /// The path of the field, like `entries[3].selectors[0]`.
    pub fn field(&self) -> &str {
        &self.field
    }

    /// What is wrong with it.
    pub fn reason(&self) -> &Reason {
        &self.reason
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.is_empty() {
            true => write!(f, "the message {}", self.reason),
            false => write!(f, "{} {}", self.field, self.reason),
        }
    }
}

impl std::error::Error for WireError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.reason.source()
    }
}

/// One reason each; the text continues "`field` …".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// A field that must be set is not.
    #[error("is required and was not set")]
    Missing,
    /// A field that must stay empty in this kind of message is not.
    #[error("must be empty in a snapshot")]
    NotInSnapshot,
    /// No SPIFFE ID.
    #[error("is not a SPIFFE ID")]
    SpiffeId(#[from] SpiffeIdError),
    /// No trust domain name.
    #[error("is not a trust domain name")]
    TrustDomain(#[from] TrustDomainError),
    /// Not the SPIFFE ID of a trust domain.
    #[error("is {0}, which names more than a trust domain")]
    HasPath(SpiffeId),
    /// No selector.
    #[error("is not a selector")]
    Selector(#[from] SelectorError),
    /// No entry ID.
    #[error("is not an entry ID")]
    EntryId(#[from] EntryIdError),
    /// No DNS name.
    #[error("is not a DNS name")]
    DnsName(#[from] DnsNameError),
    /// An entry that may not exist in this trust domain.
    #[error("is not a valid entry")]
    Entry(#[from] EntryError),
    /// Roots that cannot be used.
    #[error("is not a usable bundle")]
    Bundle(#[from] BundleError),
    /// A chain that is no X509-SVID.
    #[error("is not an X509-SVID")]
    Svid(#[from] SvidError),
    /// A number below zero where none can be.
    #[error("is {0}, and cannot be negative")]
    Negative(i64),
    /// A moment that this machine's clock cannot express.
    #[error("is {0} seconds since 1970, which is out of range")]
    Time(i64),
    /// Another identity than the one beside it.
    #[error("is {stated}, but the certificate names {certified}")]
    OtherId {
        /// In the field.
        stated: SpiffeId,
        /// In the leaf certificate.
        certified: SpiffeId,
    },
    /// Another end of life than the one beside it.
    #[error("is {stated}, but the certificate says {certified}")]
    OtherExpiry {
        /// In the field, in seconds since 1970.
        stated: i64,
        /// In the leaf certificate, in seconds since 1970.
        certified: i64,
    },
    /// Two bundles for one trust domain, in one message.
    #[error("is a second bundle for {0}")]
    SecondBundle(TrustDomain),
    /// The same entry twice in one change, or both changed and removed.
    #[error("names entry {0} a second time")]
    SecondEntry(mesh_identity::EntryId),
    /// A part of another revision amid the parts of one.
    #[error("belongs to another revision than the part before it")]
    OtherRevision,
    /// More than the reader is ready to hold.
    #[error("has more than {0} items")]
    TooMany(usize),
    /// Longer than the reader is ready to hold.
    #[error("has more than {0} bytes")]
    TooLong(usize),
}

impl Reason {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(self)
    }
}
