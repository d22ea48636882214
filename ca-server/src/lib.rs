//! The truth: who may be whom. This map lists the crate's modules in reading order.

// starting
pub mod app;
pub mod cli;
pub mod config;

// deciding
pub mod attestation;
pub mod authority;
pub mod federation;
pub mod issuance;
pub mod registry;

// handing out
pub mod api;
pub mod feed;
pub mod public;

// surroundings
pub mod kubernetes;
pub mod store;

// remembering
pub mod fleet;
pub mod metrics;

// proving
#[doc(hidden)]
pub mod fuzzing;
