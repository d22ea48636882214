//! What every program of Finial needs to run, and nothing about identities or policies.
//! Decides how they start, stop, log, count, record and read their configuration; never links another crate of ours.
//!
//! In reading order: [`clock`] time as an argument · [`errors`] how failures are shown · [`config`] strict YAML, all
//! mistakes at once · [`cli`] what the daemons' command lines share · [`telemetry`] logs and secrets · [`tasks`] who runs and who stops · [`readiness`] · [`drain`] ·
//! [`accept`] connections in · [`metrics`] and [`admin`] the port for operators · [`addresses`] what was bound · [`files`] small files,
//! whole or not at all · [`memory`] · [`ids`] ·
//! [`audit`] the record that cannot be quietly changed.

pub mod accept;
pub mod addresses;
pub mod admin;
pub mod audit;
pub mod cli;
pub mod clock;
pub mod config;
pub mod drain;
pub mod errors;
pub mod files;
pub mod ids;
pub mod memory;
pub mod metrics;
pub mod readiness;
pub mod tasks;
pub mod telemetry;
