//! Decides whether a TLS peer is who it says and may talk to us; there is no other verifier and no other TLS configuration in Finial.
//! Trusts the bundles it is given, the clock it is given and the chosen [`Authorizer`]; a host name proves nothing here, except
//! towards the Web (`public`), where TLS 1.2 is spoken too.
//! Never resumes a session, never sends a ticket or early data, never speaks anything older than TLS 1.3 inside the mesh.
//!
//! Reading order: [`TlsIdentity`] (what we show, checked as a peer would), [`IdentityCell`] (swapped live),
//! [`Authorizer`] (who may be at the other end), [`server_config`] and [`client_config`], then [`accept`] and [`connect`].

mod authorizer;
mod cell;
mod config;
mod error;
mod handshake;
mod identity;
mod key;
mod peer;
mod possession;
mod provider;
mod public;
mod stream;
mod verifier;

pub use authorizer::Authorizer;
pub use cell::IdentityCell;
pub use config::{
    ClientPolicy, Clock, bootstrap_client_config, client_config, server_config, server_name,
};
pub use error::{HandshakeError, PeerAlert, PeerRefused, alert_in};
pub use handshake::{accept, connect};
pub use identity::{TlsIdentity, TlsIdentityError};
pub use key::{KeyError, PrivateKey};
pub use peer::{Peer, Session};
pub use possession::{Possession, rsa_pss_sha256_fits};
pub use provider::{RsaSize, install_default_provider, new_rsa_key};
pub use public::{
    NoWebRoots, Shown, WebIdentity, WebIdentityError, connect_web, public_server_config,
    web_client_config,
};
pub use rustls::{AlertDescription, ClientConfig, ServerConfig};
pub use stream::{AlertSlot, ClientStream, ServerStream};
