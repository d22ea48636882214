//! Decides which cryptography TLS uses: TLS 1.3 suites, X25519MLKEM768 first, then X25519, then P-256.
//! Trusts aws-lc-rs, or ring where a build asks for it; this is the only file that names either to rustls.
//! Never offers a TLS 1.2 suite inside the mesh, whatever features other crates switch on; towards the Web only those with
//! forward secrecy and authenticated encryption.

use std::sync::{Arc, LazyLock};

use rustls::{
    SignatureScheme, SupportedCipherSuite,
    crypto::{CryptoProvider, SupportedKxGroup},
    sign::SigningKey,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

#[cfg(all(feature = "aws-lc-rs", not(feature = "ring-only")))]
use rustls::crypto::aws_lc_rs as chosen;
#[cfg(feature = "ring-only")]
use rustls::crypto::ring as chosen;

#[cfg(not(any(feature = "aws-lc-rs", feature = "ring-only")))]
compile_error!("mesh-tls needs a provider: the feature aws-lc-rs (default) or ring-only");

/// Key exchanges in the order of preference.
const GROUPS: &[&dyn SupportedKxGroup] = &[
    #[cfg(not(feature = "ring-only"))]
    chosen::kx_group::X25519MLKEM768,
    chosen::kx_group::X25519,
    chosen::kx_group::SECP256R1,
];

/// AES-256 first: a quantum search halves the strength of a symmetric key, and AES instructions make it cost next to nothing.
const SUITES: &[SupportedCipherSuite] = &[
    chosen::cipher_suite::TLS13_AES_256_GCM_SHA384,
    chosen::cipher_suite::TLS13_AES_128_GCM_SHA256,
    chosen::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
];

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: SUITES.to_vec(),
        kx_groups: GROUPS.to_vec(),
        ..chosen::default_provider()
    })
});

/// Makes our provider the one of the whole process. The first line of each `main`: libraries such as kube take the process default.
/// A second call changes nothing.
pub fn install_default_provider() {
    // An error means that a default is installed already, and it stays.
    drop(CryptoProvider::install_default(CryptoProvider::clone(
        &PROVIDER,
    )));
}

/// Mozilla's intermediate profile: what the mesh speaks, and TLS 1.2 with ephemeral keys and AEAD.
const PUBLIC_SUITES: &[SupportedCipherSuite] = &[
    chosen::cipher_suite::TLS13_AES_256_GCM_SHA384,
    chosen::cipher_suite::TLS13_AES_128_GCM_SHA256,
    chosen::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    chosen::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    chosen::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    chosen::cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    chosen::cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    chosen::cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    chosen::cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];

static PUBLIC: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    let mut kx_groups = GROUPS.to_vec();
    kx_groups.push(chosen::kx_group::SECP384R1);
    Arc::new(CryptoProvider {
        cipher_suites: PUBLIC_SUITES.to_vec(),
        kx_groups,
        ..chosen::default_provider()
    })
});

pub(crate) fn public_provider() -> &'static Arc<CryptoProvider> {
    &PUBLIC
}

/// Parses a key in any of the usual forms.
pub(crate) fn any_signing_key(
    key: &PrivateKeyDer<'_>,
) -> Result<Arc<dyn SigningKey>, rustls::Error> {
    chosen::sign::any_supported_type(key)
}

pub(crate) fn provider() -> &'static Arc<CryptoProvider> {
    &PROVIDER
}

/// Parses a PKCS#8 key from where it lies, so that no copy escapes the owner's zeroing.
pub(crate) fn signing_key(pkcs8: &[u8]) -> Result<Arc<dyn SigningKey>, rustls::Error> {
    chosen::sign::any_supported_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8)))
}

/// The RSA keys that are made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RsaSize {
    /// 2048 bits.
    Bits2048,
    /// 4096 bits.
    Bits4096,
}

/// A new RSA key in PKCS#8, for an authority whose verifiers know nothing better; ring signs with it and cannot make one.
/// It takes some tenths of a second, sometimes seconds. `None` if it cannot be made, as in a build without aws-lc-rs.
pub fn new_rsa_key(size: RsaSize) -> Option<Zeroizing<Vec<u8>>> {
    #[cfg(all(feature = "aws-lc-rs", not(feature = "ring-only")))]
    {
        use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
        use aws_lc_rs::rsa::{KeyPair, KeySize};
        let size = match size {
            RsaSize::Bits2048 => KeySize::Rsa2048,
            RsaSize::Bits4096 => KeySize::Rsa4096,
        };
        let pkcs8: Pkcs8V1Der<'_> = KeyPair::generate(size).ok()?.as_der().ok()?;
        Some(Zeroizing::new(pkcs8.as_ref().to_vec()))
    }
    #[cfg(feature = "ring-only")]
    {
        let _ = size;
        None
    }
}

/// Whether an RSA key made this signature: RSASSA-PSS with SHA-256, of a salt that is as long as the digest or as long as fits.
pub(crate) fn rsa_pss_sha256(public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let of_the_digest = provider()
        .signature_verification_algorithms
        .mapping
        .iter()
        .filter(|(scheme, _)| *scheme == SignatureScheme::RSA_PSS_SHA256)
        .flat_map(|(_, algorithms)| *algorithms)
        .any(|one| one.verify_signature(public_key, message, signature).is_ok());
    of_the_digest || rsa_pss_sha256_longest_salt(public_key, message, signature)
}

#[cfg(not(feature = "ring-only"))]
fn rsa_pss_sha256_longest_salt(public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    use aws_lc_rs::signature::{
        RSA_PSS_2048_8192_SHA256, RsaParameters, RsaPssSaltLength, UnparsedPublicKey,
    };
    static LONGEST: RsaParameters =
        RSA_PSS_2048_8192_SHA256.with_pss_salt_length(RsaPssSaltLength::Max);
    UnparsedPublicKey::new(&LONGEST, public_key)
        .verify(message, signature)
        .is_ok()
}

/// ring knows no other salt than one as long as the digest.
#[cfg(feature = "ring-only")]
fn rsa_pss_sha256_longest_salt(_: &[u8], _: &[u8], _: &[u8]) -> bool {
    false
}
