//! The agent as others meet it: a true agent on real Unix sockets, with a CA that really signs at the other end.
//! Trusts nothing but the public surface. Never needs a network beyond loopback.

mod ca;
mod lifecycle;
mod rig;
mod workload_api;
