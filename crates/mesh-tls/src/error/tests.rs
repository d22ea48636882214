//! Decides whether each failure is told as what it is.

use rustls::{InvalidMessage, PeerIncompatible, PeerMisbehaved};

use super::*;

#[test]
fn alerts_have_the_names_of_rfc_8446() {
    for (alert, name) in [
        (AlertDescription::UnknownCA, "unknown_ca"),
        (AlertDescription::AccessDenied, "access_denied"),
        (AlertDescription::BadRecordMac, "bad_record_mac"),
        (
            AlertDescription::CertificateRequired,
            "certificate_required",
        ),
        (AlertDescription::UnknownPSKIdentity, "unknown_psk_identity"),
        (
            AlertDescription::NoApplicationProtocol,
            "no_application_protocol",
        ),
        (AlertDescription::Unknown(200), "200"),
    ] {
        assert_eq!(alert_name(alert), name);
    }
}

fn sorted(error: TlsError) -> &'static str {
    HandshakeError::sort(io::Error::other(error), None).code()
}

#[test]
fn each_error_of_tls_has_one_side_to_blame() {
    assert_eq!(
        sorted(TlsError::AlertReceived(AlertDescription::UnknownCA)),
        "FNL0413"
    );
    assert_eq!(sorted(TlsError::NoCertificatesPresented), "FNL0411");
    assert_eq!(
        sorted(PeerIncompatible::NoKxGroupsInCommon.into()),
        "FNL0414"
    );
    assert_eq!(sorted(TlsError::NoApplicationProtocol), "FNL0414");
    assert_eq!(sorted(PeerMisbehaved::InvalidKeyShare.into()), "FNL0415");
    assert_eq!(sorted(InvalidMessage::InvalidContentType.into()), "FNL0415");
    assert_eq!(sorted(TlsError::FailedToGetRandomBytes), "FNL0418");
}

#[test]
fn the_transport_is_told_from_tls() {
    let eof = io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof");
    assert_eq!(HandshakeError::sort(eof, None).code(), "FNL0416");
    let reset = io::Error::from(io::ErrorKind::ConnectionReset);
    assert_eq!(HandshakeError::sort(reset, None).code(), "FNL0417");
}

#[test]
fn the_verifiers_own_reason_wins() {
    let tls = io::Error::other(TlsError::InvalidCertificate(CertificateError::BadSignature));
    let error = HandshakeError::sort(tls, Some(PeerRefused::NoPossession));
    assert_eq!(error.code(), "FNL0412");
}

#[test]
fn a_refusal_tells_each_level_once() {
    let id: SpiffeId = "spiffe://td.test/web".parse().unwrap();
    let error = HandshakeError::PeerRefused(PeerRefused::NotPermitted(id));
    let mut chain = vec![error.to_string()];
    let mut next = error.source();
    while let Some(cause) = next {
        chain.push(cause.to_string());
        next = cause.source();
    }
    assert_eq!(
        chain,
        [
            "the TLS peer was refused",
            "the peer is spiffe://td.test/web, which is not permitted here"
        ]
    );
}
