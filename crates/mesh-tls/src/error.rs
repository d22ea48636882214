//! Decides how a handshake that failed is told: who refused whom, and why.
//! Trusts the verifier's own words about a peer, and quotes a peer's alert as what it is: the peer's word.
//! Never loses the reason in a chain of "operation was canceled".

use std::{error::Error as StdError, io};

use mesh_identity::{SpiffeId, verify::VerifyError};
use rustls::{AlertDescription, CertificateError, Error as TlsError};

/// Why we refused a peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerRefused {
    /// Its certificates prove no identity.
    #[error("the peer's certificates prove no identity")]
    NotVerified(#[source] VerifyError),
    /// Its identity is proven and is not one that may talk to us here.
    #[error("the peer is {0}, which is not permitted here")]
    NotPermitted(SpiffeId),
    /// It showed no certificate where one is required.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// It does not hold the key of the certificate that it showed.
    #[error("the peer did not prove that it holds the key of its certificate")]
    NoPossession,
}

impl PeerRefused {
    /// The code of this error in `docs/errors`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotVerified(cause) => cause.code(),
            Self::NotPermitted(_) => "FNL0410",
            Self::NoCertificate => "FNL0411",
            Self::NoPossession => "FNL0412",
        }
    }

    /// The ID that the peer has proven, or claimed in a certificate whose time is not now.
    pub fn id(&self) -> Option<&SpiffeId> {
        match self {
            Self::NotPermitted(id)
            | Self::NotVerified(
                VerifyError::Expired { id, .. } | VerifyError::NotYetValid { id, .. },
            ) => Some(id),
            Self::NotVerified(_) | Self::NoCertificate | Self::NoPossession => None,
        }
    }
}

/// The other end ended the connection with a TLS alert: its word, not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the other end refused the connection with the TLS alert {}", alert_name(*.0))]
pub struct PeerAlert(pub AlertDescription);

impl PeerAlert {
    /// The code of this error in `docs/errors`.
    pub fn code(&self) -> &'static str {
        "FNL0413"
    }
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// We refused the peer.
    #[error("the TLS peer was refused")]
    PeerRefused(#[source] PeerRefused),
    /// A server of the Web has no certificate that is good for its name.
    #[error("the Web server's certificate was refused")]
    WebCertificate(#[source] TlsError),
    /// The peer refused us, and said so.
    #[error("the TLS peer refused us")]
    RefusedByPeer(#[source] PeerAlert),
    /// Both speak TLS but have no version, cipher, key exchange or application protocol in common.
    #[error("the TLS peer has nothing in common with us")]
    Incompatible(#[source] TlsError),
    /// What came was not TLS or broke its rules; plain HTTP on a TLS port ends here.
    #[error("the other end does not follow TLS")]
    NotTls(#[source] TlsError),
    /// The other end closed the connection inside the handshake.
    #[error("the connection was closed during the TLS handshake")]
    Closed,
    /// The connection itself failed.
    #[error("the connection failed during the TLS handshake")]
    Io(#[source] io::Error),
    /// TLS failed on our side.
    #[error("the TLS handshake failed on our side")]
    Internal(#[source] TlsError),
}

impl HandshakeError {
    /// The code of this error in `docs/errors`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::PeerRefused(reason) => reason.code(),
            Self::RefusedByPeer(alert) => alert.code(),
            Self::WebCertificate(_) => "FNL0419",
            Self::Incompatible(_) => "FNL0414",
            Self::NotTls(_) => "FNL0415",
            Self::Closed => "FNL0416",
            Self::Io(_) => "FNL0417",
            Self::Internal(_) => "FNL0418",
        }
    }

    /// Sorts what the TLS layer said; `refusal` is what our verifier said in the same step.
    pub(crate) fn sort(error: io::Error, refusal: Option<PeerRefused>) -> Self {
        if let Some(reason) = refusal {
            return Self::PeerRefused(reason);
        }
        let tls = match error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<TlsError>())
        {
            Some(tls) => tls.clone(),
            None if error.kind() == io::ErrorKind::UnexpectedEof => return Self::Closed,
            None => return Self::Io(error),
        };
        match tls {
            TlsError::AlertReceived(alert) => Self::RefusedByPeer(PeerAlert(alert)),
            TlsError::NoCertificatesPresented => Self::PeerRefused(PeerRefused::NoCertificate),
            TlsError::PeerIncompatible(_) | TlsError::NoApplicationProtocol => {
                Self::Incompatible(tls)
            }
            // Our verifier speaks for itself; what is left is rustls's own reading of the certificate.
            TlsError::InvalidCertificate(
                CertificateError::BadEncoding
                | CertificateError::BadSignature
                | CertificateError::Other(_),
            )
            | TlsError::PeerMisbehaved(_)
            | TlsError::InvalidMessage(_)
            | TlsError::InappropriateMessage { .. }
            | TlsError::InappropriateHandshakeMessage { .. }
            | TlsError::PeerSentOversizedRecord
            | TlsError::DecryptError => Self::NotTls(tls),
            _ => Self::Internal(tls),
        }
    }
}

/// Looks through a chain of errors for the alert of the other end. A TLS 1.3 client learns only after its handshake that it was
/// refused, and by then the alert lies below the errors of HTTP libraries.
pub fn alert_in(error: &(dyn StdError + 'static)) -> Option<AlertDescription> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(PeerAlert(alert)) = error.downcast_ref() {
            return Some(*alert);
        }
        if let Some(TlsError::AlertReceived(alert)) = error.downcast_ref() {
            return Some(*alert);
        }
        // io::Error shows its inner error's source as its own, so the inner one has to be asked for.
        next = match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// The name of RFC 8446, section 6: rustls's, in its spelling.
fn alert_name(alert: AlertDescription) -> String {
    if let AlertDescription::Unknown(number) = alert {
        return number.to_string();
    }
    let camel = format!("{alert:?}");
    let mut name = String::with_capacity(camel.len() + 4);
    let mut before = None;
    let mut chars = camel.chars().peekable();
    while let Some(c) = chars.next() {
        // A word begins after a small letter, or with the last capital of an abbreviation.
        let starts = match before {
            None => false,
            Some(before) if char::is_ascii_lowercase(&before) => c.is_ascii_uppercase(),
            Some(_) => c.is_ascii_uppercase() && chars.peek().is_some_and(char::is_ascii_lowercase),
        };
        if starts {
            name.push('_');
        }
        name.push(c.to_ascii_lowercase());
        before = Some(c);
    }
    name
}

#[cfg(test)]
mod tests;
