//! Decides whether the certificates of a peer prove an identity that may talk to us, for servers and clients alike.
//! Trusts `mesh_identity::verify` for the proof, the bundles current at this handshake, and the provider for signatures of the handshake.
//! Never looks at a host name, never tells a peer which authorities we trust, never accepts a TLS 1.2 signature.

use std::{cell::Cell, error::Error as StdError, fmt, sync::Arc};

use mesh_identity::{BundleSet, verify::VerifyError, verify::verify_x509_svid};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerIncompatible, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::verify_tls13_signature,
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::{Authorizer, Clock, IdentityCell, PeerRefused, provider::provider};

/// Where the bundles come from.
pub(crate) enum Trust {
    /// What the cell holds at the moment of the handshake.
    Cell(IdentityCell),
    /// Fixed ones, before there is an identity.
    Fixed(Arc<BundleSet>),
}

pub(crate) struct Verifier {
    trust: Trust,
    permitted: Authorizer,
    clock: Clock,
    required: bool,
}

impl Verifier {
    pub(crate) fn new(trust: Trust, permitted: Authorizer, clock: Clock, required: bool) -> Self {
        Self {
            trust,
            permitted,
            clock,
            required,
        }
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
    ) -> Result<(), PeerRefused> {
        let mut chain = Vec::with_capacity(1 + rest.len());
        chain.push(CertificateDer::from(leaf.as_ref()));
        chain.extend(rest.iter().map(|der| CertificateDer::from(der.as_ref())));
        let now = (self.clock)();
        let verified = match &self.trust {
            Trust::Cell(cell) => {
                cell.with_bundles(|bundles| verify_x509_svid(&chain, bundles, now))
            }
            Trust::Fixed(bundles) => verify_x509_svid(&chain, bundles, now),
        }
        .map_err(PeerRefused::NotVerified)?;
        if self.permitted.permits(&verified.id) {
            Ok(())
        } else {
            Err(PeerRefused::NotPermitted(verified.id))
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(end_entity, intermediates).map_err(refuse)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_possession(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    /// Empty: a stranger learns nothing about our authorities.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(end_entity, intermediates).map_err(refuse)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_possession(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("permitted", &self.permitted)
            .finish_non_exhaustive()
    }
}

fn check_possession(
    message: &[u8],
    cert: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let algorithms = &provider().signature_verification_algorithms;
    verify_tls13_signature(message, cert, signature, algorithms)
        .inspect_err(|_| LAST_REFUSAL.set(Some(PeerRefused::NoPossession)))
}

thread_local! {
    /// The reason of the newest refusal on this thread. rustls's error cannot carry it beside the right alert, and one verifier serves
    /// many connections; but the verifier and the error it causes belong to one poll, and so to one thread (decision 0201).
    static LAST_REFUSAL: Cell<Option<PeerRefused>> = const { Cell::new(None) };
}

/// Takes what the verifier said during the poll that just ended. Called before a poll too, so that nothing old is taken for new.
pub(crate) fn take_refusal() -> Option<PeerRefused> {
    LAST_REFUSAL.take()
}

/// Chooses the alert that tells the peer what is wrong with it, as far as that reveals nothing about us, and keeps the whole reason.
fn refuse(reason: PeerRefused) -> Error {
    use VerifyError as V;
    let error = match &reason {
        PeerRefused::NotPermitted(_) => CertificateError::ApplicationVerificationFailure,
        PeerRefused::NotVerified(cause) => match cause {
            V::Expired { .. } | V::IntermediateExpired => CertificateError::Expired,
            V::NotYetValid { .. } | V::IntermediateNotYetValid => CertificateError::NotValidYet,
            V::NoBundle(_) | V::NoRoot(_) | V::UnknownAuthority => CertificateError::UnknownIssuer,
            V::Signature(_) => CertificateError::BadSignature,
            V::Unreadable(_) | V::UnreadableIntermediate(_) => CertificateError::BadEncoding,
            other => {
                let cause: Arc<dyn StdError + Send + Sync> = Arc::new(other.clone());
                CertificateError::Other(OtherError(cause))
            }
        },
        PeerRefused::NoCertificate | PeerRefused::NoPossession => CertificateError::BadSignature,
    };
    LAST_REFUSAL.set(Some(reason));
    error.into()
}
