//! The proof: true programs, started as a user starts them. One topic per file.

mod admin;
mod admin_socket;
mod authority;
mod clients;
mod clock;
mod crash;
mod deploy;
mod dev;
mod entries;
mod envoy;
mod kubernetes;
mod kubernetes_pods;
mod memory;
mod restart;
mod rotation;
mod rules;
mod security_rows;
mod spire;
mod spire_upstream;
mod traces;
mod workload_rows;
mod x509pop;
