//! Decides what the rest of a program learns about the other end of a connection.
//! Trusts that the connection was made with a configuration of ours, so that its certificates were verified in its handshake.
//! Never re-reads anything that the peer can change later.

use std::{sync::Arc, time::SystemTime};

use mesh_identity::{
    BundleSet, SpiffeId, X509Svid,
    verify::{VerifiedSvid, VerifyError, verify_x509_svid},
};
use rustls::{ClientConnection, CommonState, ServerConnection};
use rustls_pki_types::CertificateDer;

/// The proven identity at the other end. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub id: SpiffeId,
    /// Until when its certificate is valid. The connection should not outlive this.
    pub not_after: SystemTime,
    /// The serial number of its certificate, in lower-case hex: ties a connection to a record of issuance.
    pub serial: String,
    /// The chain that it showed, leaf first.
    pub chain: Arc<[CertificateDer<'static>]>,
    /// What was negotiated.
    pub session: Session,
}

impl Peer {
    /// The client of a finished handshake; none if it came without a certificate or the handshake is not finished.
    pub fn from_server_conn(connection: &ServerConnection) -> Option<Self> {
        Self::of(connection)
    }

    /// The server of a finished handshake; none if the handshake is not finished.
    pub fn from_client_conn(connection: &ClientConnection) -> Option<Self> {
        Self::of(connection)
    }

    /// Asks the question of the handshake again, with other bundles or at another time: has the anchor gone, has it expired?
    pub fn verify_again(
        &self,
        bundles: &BundleSet,
        now: SystemTime,
    ) -> Result<VerifiedSvid, VerifyError> {
        verify_x509_svid(&self.chain, bundles, now)
    }

    fn of(state: &CommonState) -> Option<Self> {
        if state.is_handshaking() {
            return None; // certificates may be there already, but possession is not proven yet
        }
        let chain = state.peer_certificates()?;
        // The leaf alone: what else a peer sent may be of no use to the path and is kept only as it is.
        let leaf = X509Svid::parse(chain.get(..1)?.to_vec()).ok()?;
        Some(Self {
            id: leaf.id().clone(),
            not_after: leaf.not_after(),
            serial: leaf.serial().to_owned(),
            chain: chain.into(),
            session: Session::of(state),
        })
    }
}

/// What the two ends agreed on. The version is always TLS 1.3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The cipher suite, such as `TLS13_AES_256_GCM_SHA384`.
    pub cipher: &'static str,
    /// The key exchange, such as `X25519MLKEM768`.
    pub key_exchange: &'static str,
    /// The application protocol, if one was negotiated.
    pub alpn: Option<Vec<u8>>,
}

impl Session {
    /// Reads what a connection agreed on; also for a client without a certificate. Names are empty before the handshake is finished.
    pub fn of(state: &CommonState) -> Self {
        let cipher = state
            .negotiated_cipher_suite()
            .and_then(|suite| suite.suite().as_str());
        let group = state
            .negotiated_key_exchange_group()
            .and_then(|group| group.name().as_str());
        Self {
            cipher: cipher.unwrap_or_default(),
            key_exchange: group.unwrap_or_default(),
            alpn: state.alpn_protocol().map(<[u8]>::to_vec),
        }
    }

    /// Whether recorded traffic stays secret from a future quantum computer.
    pub fn is_post_quantum(&self) -> bool {
        self.key_exchange.contains("MLKEM")
    }
}
