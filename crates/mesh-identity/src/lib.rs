//! What an identity is: SPIFFE IDs, SVIDs, bundles, registration entries, and whether a chain proves one.
//! Trusts nothing it is given; every value here was parsed strictly and is never normalised.
//! Never does I/O and never reads the clock: time is an argument.
//!
//! Reading order: [`SpiffeId`] and [`TrustDomain`] (names), [`Selector`] and [`Entry`] (who gets which name),
//! [`X509Svid`] and [`Bundle`] (documents), [`verify`] and [`jwt`] (the decisions).

mod bundle;
mod der;
mod dns_name;
mod entry;
pub mod jwt;
mod pem;
mod profile;
mod selector;
mod spiffe_id;
mod svid;
mod trust_domain;
pub mod verify;
mod x509;

#[cfg(feature = "test-util")]
pub mod test_util;

pub use bundle::{
    Bundle, BundleError, BundleSet, MAX_AUTHORITIES, MAX_BUNDLE_BYTES, X509Authority, read_jwks,
};
pub use dns_name::{DnsName, DnsNameError};
pub use entry::{Entry, EntryError, EntryId, EntryIdError, MAX_HINT_BYTES};
pub use jwt::{JwtAuthority, JwtAuthorityError, JwtSvid};
pub use pem::PemError;
pub use profile::ProfileError;
pub use selector::{Selector, SelectorError};
pub use spiffe_id::{MAX_SPIFFE_ID_BYTES, SpiffeId, SpiffeIdError};
pub use svid::{SvidError, X509Svid};
pub use trust_domain::{MAX_TRUST_DOMAIN_BYTES, TrustDomain, TrustDomainError};
pub use x509::CertificateError;
