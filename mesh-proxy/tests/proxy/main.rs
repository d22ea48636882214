//! The real proxy as a process, between a real Workload API and real applications.
//! One file for each topic; the names of the tests say what holds.

mod command_line;
mod identity;
mod policy;
mod tcp;
mod traffic;
mod wire;
mod world;
