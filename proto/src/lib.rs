//! The wire: every gRPC message that Finial's programs exchange.
//! It trusts nothing that it is sent: a message that is only partly right is refused whole, with the field that is wrong.
//! It never decides who may do what, opens a connection, or prints a key or a token.
//!
//! Modules follow the protobuf packages: `spire.api.server.svid.v1` is [`spire::api::server::svid::v1`]. The Workload API has no
//! package on the wire; here it is [`spiffe::workload`]. The code in `src/gen` is generated; see `tests/current.rs`.

pub mod codec;
pub mod convert;
mod redact;

/// One module of generated code; the lints are off where nobody here writes.
macro_rules! generated {
    ($name:ident, $file:literal) => {
        #[allow(
            unreachable_pub,
            rustdoc::all,
            clippy::all,
            clippy::disallowed_methods,
            clippy::unwrap_used,
            reason = "written by tonic-prost-build"
        )]
        pub mod $name {
            include!(concat!("gen/", $file));
        }
    };
}

/// What SPIFFE itself defines.
pub mod spiffe {
    generated!(workload, "_.rs");
}

/// SPIRE's services, name for name and number for number.
pub mod spire {
    /// The agent's debug service lies outside `spire.api` on the wire.
    pub mod agent {
        /// State of a running agent.
        pub mod debug {
            generated!(v1, "spire.agent.debug.v1.rs");
        }
    }
    /// Everything else.
    pub mod api {
        generated!(types, "spire.api.types.rs");

        /// What an agent serves on its admin socket.
        pub mod agent {
            pub use super::super::agent::debug;
            /// Identities for trusted local processes to hand on.
            pub mod delegatedidentity {
                generated!(v1, "spire.api.agent.delegatedidentity.v1.rs");
            }
            /// Log level of the agent.
            pub mod logger {
                generated!(v1, "spire.api.agent.logger.v1.rs");
            }
        }

        /// What a server serves.
        pub mod server {
            /// Attestation and administration of nodes.
            pub mod agent {
                generated!(v1, "spire.api.server.agent.v1.rs");
            }
            /// Trust bundles, our own and foreign ones.
            pub mod bundle {
                generated!(v1, "spire.api.server.bundle.v1.rs");
            }
            /// State of a running server.
            pub mod debug {
                generated!(v1, "spire.api.server.debug.v1.rs");
            }
            /// Registration entries.
            pub mod entry {
                generated!(v1, "spire.api.server.entry.v1.rs");
            }
            /// Signing keys and their rotation.
            pub mod localauthority {
                generated!(v1, "spire.api.server.localauthority.v1.rs");
            }
            /// Log level of the server.
            pub mod logger {
                generated!(v1, "spire.api.server.logger.v1.rs");
            }
            /// Issuance.
            pub mod svid {
                generated!(v1, "spire.api.server.svid.v1.rs");
            }
            /// Federation relationships.
            pub mod trustdomain {
                generated!(v1, "spire.api.server.trustdomain.v1.rs");
            }
        }
    }
}

/// Envoy's secret discovery service and what it needs, name for name and number for number.
pub mod envoy {
    /// What every discovery service of Envoy shares.
    pub mod config {
        /// Who asks, and where bytes are.
        pub mod core {
            generated!(v3, "envoy.config.core.v3.rs");
        }
    }
    /// Envoy's extensions.
    pub mod extensions {
        /// Extensions of its sockets.
        pub mod transport_sockets {
            /// Certificates, keys and how peers are verified.
            pub mod tls {
                generated!(v3, "envoy.extensions.transport_sockets.tls.v3.rs");
            }
        }
    }
    /// Envoy's services.
    pub mod service {
        /// How resources are asked for and answered.
        pub mod discovery {
            generated!(v3, "envoy.service.discovery.v3.rs");
        }
        /// Secrets.
        pub mod secret {
            generated!(v3, "envoy.service.secret.v3.rs");
        }
    }
    /// Small values.
    pub mod r#type {
        generated!(v3, "envoy.r#type.v3.rs");
    }
}

/// gRPC's own services.
pub mod grpc {
    /// Whether a server serves.
    pub mod health {
        generated!(v1, "grpc.health.v1.rs");
    }
}

/// Every file of the wire as an encoded `google.protobuf.FileDescriptorSet`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!("gen/descriptors.bin");

/// What Envoy takes from Google's packages.
pub mod google {
    generated!(rpc, "google.rpc.rs");
}

/// What SPIRE has no service for.
pub mod finial {
    /// The stream of entries and bundles from a server to its agents.
    pub mod feed {
        generated!(v1, "finial.feed.v1.rs");
    }
    /// How a change of authorities goes on.
    pub mod authority {
        generated!(v1, "finial.authority.v1.rs");
    }
    /// A backup of a running server.
    pub mod backup {
        generated!(v1, "finial.backup.v1.rs");
    }
    /// Why a process gets an identity, or none.
    pub mod explain {
        generated!(v1, "finial.explain.v1.rs");
    }
}
