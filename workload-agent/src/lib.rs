//! The workload-agent: one per node, the only one that local processes ask for their identity.
//! Trusts the kernel about callers and its ca-server about entries. Never gives a key to another process than its own,
//! never lets one leave the node.
//!
//! Reading order: [`app`] ties the parts together. In: [`identity`] (what this node is), [`bootstrap`] (how it proves that) and
//! [`upstream`] (what the CA says).
//! In the middle: [`vault`] (what is held), [`rotation`] (what to renew), [`tokens`] (JWT-SVIDs),
//! [`state`] (what survives a restart). Out: [`api`] (the sockets), [`attestor`] (who asks),
//! [`explain`] (why or why not). Beside: [`helper`] (a workload itself, for programs that read files).

pub mod api;
pub mod app;
pub mod attestor;
pub mod bootstrap;
pub mod cli;
pub mod config;
pub mod explain;
pub mod handover;
pub mod helper;
pub mod identity;
pub mod metrics;
pub mod rotation;
pub mod state;
pub mod tokens;
pub mod upstream;
pub mod vault;

/// The code for "no identity for this process", the same in status, log, command line and documentation.
pub const NO_IDENTITY: &str = "FNL2104";
