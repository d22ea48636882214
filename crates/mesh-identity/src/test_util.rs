//! Makes certificates for tests, right ones and deliberately wrong ones.
//! Trusts its caller completely and panics where a program would return an error.
//! Never compiled into a program: it exists behind the feature `test-util` only.

use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, DnType, Issuer, KeyPair,
    PublicKeyData as _, SerialNumber,
};
use rustls_pki_types::CertificateDer;

use crate::{Bundle, BundleSet, TrustDomain, X509Authority, X509Svid};

pub mod jwt;

/// A moment inside the validity of everything that the factory makes by default: 2026-06-01 00:00:00 UTC.
pub fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_780_272_000)
}

/// Key usage bits, as they lie in the first byte of the extension.
pub mod usage {
    /// digitalSignature
    pub const DIGITAL_SIGNATURE: u8 = 0x80;
    /// keyEncipherment
    pub const KEY_ENCIPHERMENT: u8 = 0x20;
    /// keyAgreement
    pub const KEY_AGREEMENT: u8 = 0x08;
    /// keyCertSign
    pub const KEY_CERT_SIGN: u8 = 0x04;
    /// cRLSign
    pub const CRL_SIGN: u8 = 0x02;
}

/// Purposes for extended key usage.
pub mod purpose {
    /// serverAuth
    pub const SERVER_AUTH: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 3, 1];
    /// clientAuth
    pub const CLIENT_AUTH: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 3, 2];
    /// codeSigning
    pub const CODE_SIGNING: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 3, 3];
    /// anyExtendedKeyUsage
    pub const ANY: &[u64] = &[2, 5, 29, 37, 0];
}

/// What a certificate shall say. Start from [`Spec::leaf`] or [`Spec::authority`] and spoil it.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Common name; `None` leaves the subject empty.
    pub subject: Option<String>,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// Serial number, big endian; `None` makes a random one.
    pub serial: Option<Vec<u8>>,
    /// Alternative names that are URIs, as raw bytes, in order.
    pub uris: Vec<Vec<u8>>,
    /// Alternative names that are DNS names; they follow the URIs.
    pub dns_names: Vec<String>,
    /// Whether the alternative names are critical.
    pub san_critical: bool,
    /// Bits of key usage (see [`usage`]); `None` leaves the extension out.
    pub key_usage: Option<u8>,
    /// Whether key usage is critical.
    pub key_usage_critical: bool,
    /// Extended key usage; `None` leaves the extension out.
    pub eku: Option<Vec<&'static [u64]>>,
    /// Whether extended key usage is critical.
    pub eku_critical: bool,
    /// cA; `None` leaves basic constraints out.
    pub ca: Option<bool>,
    /// Whether basic constraints are critical.
    pub basic_constraints_critical: bool,
    /// pathLen of basic constraints.
    pub path_len: Option<u8>,
    /// Permitted subtrees: tag number of the general name (2 DNS, 6 URI) and its bytes.
    pub permitted: Vec<(u8, Vec<u8>)>,
    /// Excluded subtrees, likewise.
    pub excluded: Vec<(u8, Vec<u8>)>,
    /// Whether subject and authority key identifiers are there.
    pub key_ids: bool,
    /// Further extensions: OID, critical, content.
    pub extra: Vec<(Vec<u64>, bool, Vec<u8>)>,
    /// Kind of key.
    pub key: KeyKind,
}

/// Kind of key of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA on P-256.
    P256,
    /// ECDSA on P-384.
    P384,
    /// Ed25519.
    Ed25519,
}

impl KeyKind {
    fn generate(self) -> KeyPair {
        let algorithm = match self {
            Self::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Self::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            Self::Ed25519 => &rcgen::PKCS_ED25519,
        };
        KeyPair::generate_for(algorithm).expect("ring makes keys")
    }
}

impl Spec {
    /// A right leaf with this ID, valid from 2020 to 2049.
    pub fn leaf(id: &str) -> Self {
        Self {
            subject: Some("leaf".into()),
            not_before: SystemTime::UNIX_EPOCH + Duration::from_secs(1_577_836_800),
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(2_493_072_000),
            serial: None,
            uris: vec![id.as_bytes().to_vec()],
            dns_names: Vec::new(),
            san_critical: false,
            key_usage: Some(usage::DIGITAL_SIGNATURE),
            key_usage_critical: true,
            eku: Some(vec![purpose::SERVER_AUTH, purpose::CLIENT_AUTH]),
            eku_critical: false,
            ca: Some(false),
            basic_constraints_critical: true,
            path_len: None,
            permitted: Vec::new(),
            excluded: Vec::new(),
            key_ids: true,
            extra: Vec::new(),
            key: KeyKind::P256,
        }
    }

    /// A right authority of this trust domain with this common name, valid from 2020 to 2049.
    pub fn authority(domain: &str, name: &str) -> Self {
        Self {
            subject: Some(name.into()),
            key_usage: Some(usage::KEY_CERT_SIGN | usage::CRL_SIGN),
            eku: None,
            ca: Some(true),
            ..Self::leaf(&format!("spiffe://{domain}"))
        }
    }

    /// Another validity.
    #[must_use]
    pub fn valid(mut self, not_before: SystemTime, not_after: SystemTime) -> Self {
        (self.not_before, self.not_after) = (not_before, not_after);
        self
    }

    fn params(&self, key: &KeyPair, issuer_key_id: Option<&[u8]>) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(name) = &self.subject {
            params
                .distinguished_name
                .push(DnType::CommonName, name.as_str());
        }
        params.not_before = self.not_before.into();
        params.not_after = self.not_after.into();
        params.serial_number = self.serial.as_deref().map(SerialNumber::from_slice);
        params.custom_extensions = self.extensions(key, issuer_key_id);
        params
    }

    fn extensions(&self, key: &KeyPair, issuer_key_id: Option<&[u8]>) -> Vec<CustomExtension> {
        let mut list = Vec::new();
        if self.key_ids {
            list.push(extension(&[2, 5, 29, 14], false, tlv(0x04, &key_id(key))));
            if let Some(id) = issuer_key_id {
                list.push(extension(&[2, 5, 29, 35], false, tlv(0x30, &tlv(0x80, id))));
            }
        }
        let mut names: Vec<u8> = self.uris.iter().flat_map(|uri| tlv(0x86, uri)).collect();
        names.extend(
            self.dns_names
                .iter()
                .flat_map(|name| tlv(0x82, name.as_bytes())),
        );
        if !names.is_empty() {
            list.push(extension(
                &[2, 5, 29, 17],
                self.san_critical,
                tlv(0x30, &names),
            ));
        }
        if let Some(bits) = self.key_usage {
            let unused = u8::try_from(bits.trailing_zeros().min(7)).expect("at most 7");
            let content = tlv(0x03, &[unused, bits]);
            list.push(extension(&[2, 5, 29, 15], self.key_usage_critical, content));
        }
        if let Some(purposes) = &self.eku {
            let purposes: Vec<u8> = purposes
                .iter()
                .flat_map(|oid| tlv(0x06, &oid_bytes(oid)))
                .collect();
            list.push(extension(
                &[2, 5, 29, 37],
                self.eku_critical,
                tlv(0x30, &purposes),
            ));
        }
        if let Some(ca) = self.ca {
            let mut content = if ca {
                vec![0x01, 0x01, 0xff]
            } else {
                Vec::new()
            };
            if let Some(len) = self.path_len {
                content.extend([0x02, 0x01, len]);
            }
            let content = tlv(0x30, &content);
            list.push(extension(
                &[2, 5, 29, 19],
                self.basic_constraints_critical,
                content,
            ));
        }
        if !self.permitted.is_empty() || !self.excluded.is_empty() {
            let mut content = Vec::new();
            for (tag, subtrees) in [(0xa0, &self.permitted), (0xa1, &self.excluded)] {
                let subtrees: Vec<u8> = subtrees
                    .iter()
                    .flat_map(|(kind, base)| tlv(0x30, &tlv(0x80 | kind, base)))
                    .collect();
                if !subtrees.is_empty() {
                    content.extend(tlv(tag, &subtrees));
                }
            }
            list.push(extension(&[2, 5, 29, 30], true, tlv(0x30, &content)));
        }
        list.extend(
            self.extra
                .iter()
                .map(|(oid, critical, content)| extension(oid, *critical, content.clone())),
        );
        list
    }
}

fn extension(oid: &[u64], critical: bool, content: Vec<u8>) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content);
    extension.set_criticality(critical);
    extension
}

/// One DER element.
pub fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    let len = content.len();
    match u8::try_from(len) {
        Ok(short) if short < 0x80 => bytes.push(short),
        _ => {
            let len = u32::try_from(len)
                .expect("test data is small")
                .to_be_bytes();
            let skip = len.iter().take_while(|b| **b == 0).count();
            bytes.push(0x80 | u8::try_from(4 - skip).expect("at most 4"));
            bytes.extend(&len[skip..]);
        }
    }
    bytes.extend(content);
    bytes
}

/// The bytes of an OID.
pub fn oid_bytes(oid: &[u64]) -> Vec<u8> {
    let [first, second, rest @ ..] = oid else {
        panic!("an OID has two numbers at least")
    };
    let mut bytes = Vec::new();
    for number in std::iter::once(first * 40 + second).chain(rest.iter().copied()) {
        let digits = (64 - number.leading_zeros()).div_ceil(7).max(1);
        for i in (0..digits).rev() {
            let low = u8::try_from(number >> (7 * i) & 0x7f).expect("seven bits");
            bytes.push(if i > 0 { low | 0x80 } else { low });
        }
    }
    bytes
}

/// The first 20 bytes of the SHA-256 of the public key (RFC 7093 method 1).
fn key_id(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().key_identifier(key)
}

/// A certificate with its key and what leads to its root.
pub struct Made {
    spec: Spec,
    key: KeyPair,
    /// This certificate first, then what lies between it and the root; the root is left out.
    pub chain: Vec<CertificateDer<'static>>,
    /// This certificate.
    pub der: CertificateDer<'static>,
}

impl Made {
    /// A root with this specification, self-signed.
    pub fn root_with(spec: Spec) -> Self {
        let key = spec.key.generate();
        let der = CertificateDer::from(
            spec.params(&key, Some(&key_id(&key)))
                .self_signed(&key)
                .expect("rcgen signs"),
        );
        Self {
            spec,
            key,
            chain: Vec::new(),
            der,
        }
    }

    /// A right root of this trust domain.
    pub fn root(domain: &str) -> Self {
        Self::root_with(Spec::authority(domain, &format!("root of {domain}")))
    }

    /// Anything, signed by this certificate's key, whether it may sign or not.
    pub fn sign(&self, spec: Spec) -> Self {
        let key = spec.key.generate();
        let issuer = Issuer::new(self.spec.params(&self.key, None), &self.key);
        let der = CertificateDer::from(
            spec.params(&key, Some(&key_id(&self.key)))
                .signed_by(&key, &issuer)
                .expect("rcgen signs"),
        );
        let mut chain = vec![der.clone()];
        chain.extend(self.chain.iter().cloned());
        Self {
            spec,
            key,
            chain,
            der,
        }
    }

    /// Another certificate for the key of `subject`, signed by this one.
    pub fn certify(&self, subject: &Self, spec: Spec) -> CertificateDer<'static> {
        let issuer = Issuer::new(self.spec.params(&self.key, None), &self.key);
        spec.params(&subject.key, Some(&key_id(&self.key)))
            .signed_by(&subject.key, &issuer)
            .expect("rcgen signs")
            .into()
    }

    /// A right intermediate of the same trust domain.
    pub fn intermediate(&self, domain: &str, name: &str) -> Self {
        self.sign(Spec::authority(domain, name))
    }

    /// A right leaf with this ID.
    pub fn leaf(&self, id: &str) -> Self {
        self.sign(Spec::leaf(id))
    }

    /// The same certificate, signed again by its own key (for a leaf that is its own root, or a root with another content).
    pub fn again(&self, spec: Spec) -> Self {
        let key = KeyPair::try_from(self.key.serialized_der()).expect("it was serialised by rcgen");
        let der = CertificateDer::from(
            spec.params(&key, Some(&key_id(&key)))
                .self_signed(&key)
                .expect("rcgen signs"),
        );
        Self {
            spec,
            key,
            chain: Vec::new(),
            der,
        }
    }

    /// The private key, PKCS#8 DER.
    pub fn key_pkcs8(&self) -> Vec<u8> {
        self.key.serialize_der()
    }

    /// The public key, SubjectPublicKeyInfo DER.
    pub fn spki(&self) -> Vec<u8> {
        self.key.subject_public_key_info()
    }

    /// The chain as an SVID.
    pub fn svid(&self) -> X509Svid {
        X509Svid::parse(self.chain.clone()).expect("the chain has the shape of an SVID")
    }

    /// The certificate as a root.
    pub fn authority(&self) -> X509Authority {
        X509Authority::parse(self.der.clone()).expect("the certificate is fit to be a root")
    }

    /// A bundle with this root alone.
    pub fn bundle(&self, domain: &str) -> Bundle {
        let domain: TrustDomain = domain.parse().expect("a trust domain");
        Bundle::new(domain, [self.authority()]).expect("the root fits the trust domain")
    }

    /// A set with this root's bundle alone.
    pub fn bundles(&self, domain: &str) -> BundleSet {
        [self.bundle(domain)].into_iter().collect()
    }
}

/// SPIFFE IDs that every entry point accepts.
pub const GOOD_IDS: &[&str] = &[
    "spiffe://td",
    "spiffe://td/a",
    "spiffe://td/a/b/c",
    "spiffe://td/A",
    "spiffe://td/a.b",
    "spiffe://td/.a",
    "spiffe://td/a.",
    "spiffe://td/...",
    "spiffe://td/....",
    "spiffe://td/.../a",
    "spiffe://td/..a",
    "spiffe://td/a..",
    "spiffe://td/.-_",
    "spiffe://td/-",
    "spiffe://td/_",
    "spiffe://td/0",
    "spiffe://td/spire/server",
    "spiffe://td/ns/default/sa/web",
    "spiffe://td/abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._",
    "spiffe://abcdefghijklmnopqrstuvwxyz0123456789-._",
    "spiffe://10.0.0.1/p",
    "spiffe://256.0.0.1/p",
    "spiffe://0/p",
    "spiffe://example.org/p",
    "spiffe://example.org./p",
    "spiffe://.example.org/p",
    "spiffe://..",
    "spiffe://../p",
    "spiffe://.",
    "spiffe://-",
    "spiffe://_",
    "spiffe://-td-/p",
    "spiffe://xn--/p",
    "spiffe://a_b.c-d/p",
    "spiffe://spiffe/spiffe",
];

/// Texts that no entry point accepts as a SPIFFE ID.
pub const BAD_IDS: &[&str] = &[
    // scheme
    "",
    " ",
    "/",
    "//",
    ":",
    "td",
    "td/a",
    "/a",
    "//td/a",
    "://td/a",
    "s",
    "spiffe",
    "spiffe:",
    "spiffe:/",
    "spiffe:td",
    "spiffe:/td",
    "spiffe:/td/x",
    "spiffe:td/a",
    "spiffe//td/a",
    "http://td/x",
    "https://td/a",
    "spiffes://td/a",
    "xspiffe://td/a",
    " spiffe://td/a",
    "\tspiffe://td/a",
    "\nspiffe://td/a",
    "SPIFFE://td/a",
    "Spiffe://td/a",
    "spiffE://td/a",
    "spi\u{fb00}e://td/a",
    "spiffe:\\\\td\\a",
    "spiffe:///",
    "urn:spiffe://td/a",
    // trust domain
    "spiffe://",
    "spiffe:///p",
    "spiffe:////p",
    "spiffe://TD/a",
    "spiffe://Td/a",
    "spiffe://tD",
    "spiffe://td.Evil/a",
    "spiffe://t%64/p",
    "spiffe://t%2e/p",
    "spiffe://%74d/p",
    "spiffe://td%00/p",
    "spiffe://td%/p",
    "spiffe://%/p",
    "spiffe://u@td/p",
    "spiffe://@td/p",
    "spiffe://u:p@td/p",
    "spiffe://:@td/p",
    "spiffe://td@/p",
    "spiffe://u%40td/p",
    "spiffe://td@evil/p",
    "spiffe://td:1/p",
    "spiffe://td:/p",
    "spiffe://td:80",
    "spiffe://td:",
    "spiffe://:1/p",
    "spiffe://td:443/p",
    "spiffe://td:x/p",
    "spiffe://[::1]/p",
    "spiffe://::1/p",
    "spiffe://[td]/p",
    "spiffe://[td/p",
    "spiffe://[v1.x]/p",
    "spiffe://t d/p",
    "spiffe://td /p",
    "spiffe:// td/p",
    "spiffe://td\t/p",
    "spiffe://td\n/p",
    "spiffe://td\0/p",
    "spiffe://td\r\n/p",
    "spiffe://t*d/p",
    "spiffe://*/p",
    "spiffe://*.td/p",
    "spiffe://t!d/p",
    "spiffe://t$d/p",
    "spiffe://t&d/p",
    "spiffe://t'd/p",
    "spiffe://t(d/p",
    "spiffe://t)d/p",
    "spiffe://t+d/p",
    "spiffe://t,d/p",
    "spiffe://t;d/p",
    "spiffe://t=d/p",
    "spiffe://t~d/p",
    "spiffe://t\\d/p",
    "spiffe://td\\p",
    "spiffe://t\"d/p",
    "spiffe://t<d>/p",
    "spiffe://t{d}/p",
    "spiffe://t|d/p",
    "spiffe://t^d/p",
    "spiffe://t`d/p",
    "spiffe://\u{442}\u{434}/p",
    "spiffe://t\u{e9}/p",
    "spiffe://\u{ff54}\u{ff44}/p",
    "spiffe://td\u{200b}/p",
    "spiffe://td\u{3002}x/p",
    "spiffe://\u{1f980}/p",
    "spiffe://td\u{212a}/p",
    // query and fragment
    "spiffe://td?",
    "spiffe://td?x",
    "spiffe://td?/p",
    "spiffe://td#",
    "spiffe://td#f",
    "spiffe://td#/p",
    "spiffe://td/p?",
    "spiffe://td/p?x",
    "spiffe://td/p?x=y",
    "spiffe://td/p#",
    "spiffe://td/p#x",
    "spiffe://td/?",
    "spiffe://td/#",
    "spiffe://td/?x",
    "spiffe://td/p/?x",
    // path
    "spiffe://td/",
    "spiffe://td//",
    "spiffe://td///",
    "spiffe://td//a",
    "spiffe://td/a//b",
    "spiffe://td/a//",
    "spiffe://td/a/",
    "spiffe://td/a/b/",
    "spiffe://td/.",
    "spiffe://td/..",
    "spiffe://td/./",
    "spiffe://td/../",
    "spiffe://td/./a",
    "spiffe://td/../a",
    "spiffe://td/a/.",
    "spiffe://td/a/..",
    "spiffe://td/a/./b",
    "spiffe://td/a/../b",
    "spiffe://td/a/./",
    "spiffe://td/a/../",
    "spiffe://td/./..",
    "spiffe://td/.../..",
    "spiffe://td/a%2fb",
    "spiffe://td/a%2Fb",
    "spiffe://td/%61",
    "spiffe://td/a%",
    "spiffe://td/%2e",
    "spiffe://td/%2e%2e",
    "spiffe://td/%2e%2e/a",
    "spiffe://td/a%00",
    "spiffe://td/%",
    "spiffe://td/a%5cb",
    "spiffe://td/a b",
    "spiffe://td/ a",
    "spiffe://td/a ",
    "spiffe://td/a\t",
    "spiffe://td/a\n",
    "spiffe://td/a\r",
    "spiffe://td/a\0",
    "spiffe://td/\0",
    "spiffe://td/a\u{7f}",
    "spiffe://td/a:b",
    "spiffe://td/a@b",
    "spiffe://td/a!b",
    "spiffe://td/a$b",
    "spiffe://td/a&b",
    "spiffe://td/a'b",
    "spiffe://td/(a)",
    "spiffe://td/a*",
    "spiffe://td/*",
    "spiffe://td/a+b",
    "spiffe://td/a,b",
    "spiffe://td/a;b",
    "spiffe://td/a=b",
    "spiffe://td/~a",
    "spiffe://td/a\\b",
    "spiffe://td/a\"b",
    "spiffe://td/<a>",
    "spiffe://td/{a}",
    "spiffe://td/a|b",
    "spiffe://td/a^b",
    "spiffe://td/a`b",
    "spiffe://td/[a]",
    "spiffe://td/\u{e9}",
    "spiffe://td/\u{430}",
    "spiffe://td/a\u{2024}",
    "spiffe://td/a\u{2215}b",
    "spiffe://td/a\u{200b}",
    "spiffe://td/\u{ff0e}\u{ff0e}",
    "spiffe://td/\u{1f980}",
    "spiffe://td/a,spiffe://td/b",
    "spiffe://td/a spiffe://td/b",
    "\"spiffe://td/a\"",
];
