//! The harness: real programs as processes, a real API server, and what surrounds them in a test.

pub mod admin;
pub mod cgroup;
pub mod daemon;
pub mod echo;
pub mod env;
pub mod envoy;
pub mod eventually;
pub mod kube;
pub mod peers;
pub mod programs;
pub mod spire;
pub mod traffic;
pub mod world;
