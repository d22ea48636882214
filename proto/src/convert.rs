//! From wire to domain and back. A message is read whole or refused whole; the refusal names the field and has one reason.
//! It trusts nothing in a message; what it returns was checked by the domain's own parsers.
//! It never guesses, repairs or drops what it cannot read, and never decides whether the sender may say it.
//!
//! Reading is `TryFrom` (or a named constructor where it needs to know more than the message), writing is `From`.

mod bundle;
mod denial;
mod entry;
mod error;
pub mod feed;
mod identity;
mod log_level;
mod svid;
pub mod workload;

#[cfg(test)]
mod tests;

pub use bundle::CarriedBundle;
pub use denial::{denied_because, permission_denied};
pub use error::{Reason, WireError};
pub use identity::{selectors_from_wire, selectors_to_wire, trust_domain_from_wire};
pub use log_level::{log_level_from_wire, log_level_to_wire};
pub use svid::IssuedX509Svid;
