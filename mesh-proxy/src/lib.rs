//! mesh-proxy, the doorman: lets traffic of one workload in and out, under mutual TLS and under policy.
//! Trusts the handshake for who is at the other end, and the policy in force for what he may.
//! Never lets anything in by default, and never forwards what it did not decide.
//!
//! In reading order: [`cli`] and [`app`] start it; `config` says what it is told; `identity` and `feed` bring what it shows and
//! what it obeys (`policy` holds it); `inbound` and `outbound` are the lives of connections, `http` and `l4` what flows on them;
//! `decide` asks the policy, `connections` ends what may not go on, `record`, `explanations` and `metrics` remember,
//! and `admin` shows it.

mod admin;
pub mod app;
pub mod cli;
pub mod config;
mod connections;
mod decide;
mod explanations;
pub mod feed;
mod http;
pub mod identity;
mod inbound;
mod keys;
mod l4;
mod metrics;
mod outbound;
mod policy;
mod record;
mod token;
