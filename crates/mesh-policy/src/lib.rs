//! Decides who may do what: from the YAML of an AuthorizationPolicy to a verdict, without I/O and without a clock.
//! Trusts that `Facts::peer` was proven by a handshake.
//! Never allows by default, never skips what it cannot read, never allocates while deciding.
//!
//! The road, in reading order:
//!
//! * `document` reads YAML into a tree in which every node knows its line and column;
//! * [`validate`] turns that tree into a [`PolicySet`] or into *all* of its problems at once;
//! * [`compile`] makes the [`CompiledPolicy`] of one door of one workload;
//! * [`facts`] is what is known of a connection or a request: a path is canonical or refused;
//! * [`decide`] is the pure function from facts to a [`Verdict`];
//! * [`explain`] tells, for one verdict, every rule that was tried and which condition failed.
//!
//! The names are Istio's. Where the meaning differs it is stricter, and the differences are listed in
//! `docs/decisions/0500-authorization-policy.md`.

pub mod compile;
pub mod decide;
mod document;
pub mod explain;
pub mod facts;
mod pattern;
pub mod validate;

pub use compile::{CompiledPolicy, Door, Protocol, Unenforceable};
pub use decide::{Effect, Reason, Verdict, decide};
pub use explain::{Explanation, explain};
pub use facts::{CanonicalHost, CanonicalPath, Facts, HostRefusal, HttpFacts, PathRefusal};
pub use validate::{Action, PolicyErrors, PolicySet, Problem, ValidPolicy};
