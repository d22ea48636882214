//! Decides whether mesh-tls keeps its word, from outside: real handshakes in memory, over TCP and with OpenSSL.
//! Trusts the certificate factory of mesh-identity.
//! Never uses a private part of the crate, and never waits for a port or a time of day.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod alert;
mod common;
mod openssl;
mod peers;
mod rotation;
mod session;
