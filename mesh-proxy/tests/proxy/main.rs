//! The real proxy as a process, between a real Workload API and real applications.
//! One file for each topic; the names of the tests say what holds.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod admin;
mod authentication;
mod command_line;
mod floods;
mod frames;
mod grammar;
mod identity;
mod keys;
mod limits;
mod mesh_rows;
mod policy;
mod strangers;
mod tcp;
mod tracing;
mod traffic;
mod wire;
mod world;
