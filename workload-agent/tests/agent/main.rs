//! The agent as others meet it: a true agent on real Unix sockets, with a CA that really signs at the other end.
//! Trusts nothing but the public surface. Never needs a network beyond loopback.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on ends; clippy exempts test functions but not what they call"
)]

mod ca;
mod cli;
mod clock;
mod crowd;
mod delegated;
mod handover;
mod helper;
mod jwt;
mod lifecycle;
mod operators;
mod peers;
mod pids;
mod rig;
mod sds;
mod workload_api;
