//! Decides who may do what: from the YAML of an AuthorizationPolicy to a verdict, without I/O and without a clock.
//! Trusts that `Facts::peer` was proven by a handshake.
//! Never allows by default, never skips what it cannot read, never allocates while deciding.
//!
//! The road, in reading order:
//!
//! * `document` reads YAML into a tree in which every node knows its line and column;
//! * [`validate`] turns that tree into a [`PolicySet`] or into *all* of its problems at once ([`problem`]);
//! * [`model`] is what a policy is after that: conditions of one shape;
//! * [`authentication`] is what a door demands before that: the transport, and whose tokens it believes by which [`keys`];
//! * [`compile`] makes the [`CompiledPolicy`] of one door of one workload;
//! * [`facts`] is what is known of a connection or a request: a path is canonical or refused;
//! * [`decide`] is the pure function from facts to a [`Verdict`];
//! * [`lint`] tells what a valid file may not have meant; [`simulate`] asks cases and recorded requests,
//!   and [`suggest`] writes what they needed;
//! * [`explain`] tells, for one verdict, every rule that was tried and which condition failed; [`inventory`] lists what is in force.
//!
//! The names are Istio's. Where the meaning differs it is stricter, and the differences are listed in
//! `docs/decisions/0503-authorization-policy-in-full.md`.

pub mod authentication;
pub mod compile;
pub mod decide;
mod document;
pub mod explain;
pub mod facts;
pub mod inventory;
pub mod keys;
pub mod lint;
pub mod model;
mod pattern;
pub mod problem;
mod reader;
pub mod simulate;
pub mod suggest;
pub mod validate;

pub use authentication::{JwtRule, Posture};
pub use compile::{Cause, CompiledPolicy, Door, Protocol, Unenforceable, Workload};
pub use decide::{Effect, Hit, Reason, Shadow, Verdict, decide};
pub use explain::{Explanation, Failed, Tried, explain};
pub use facts::{
    CanonicalHost, CanonicalPath, Facts, Headers, HostRefusal, HttpFacts, PathRefusal, Token,
};
pub use inventory::Listed;
pub use keys::{KeySource, KeyUrl};
pub use model::{Action, Mode, ValidPolicy};
pub use problem::{PolicyErrors, Problem};
pub use validate::PolicySet;
