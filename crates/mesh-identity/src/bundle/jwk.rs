//! Decides how a public key is written as JWK parameters (RFC 7518 6, RFC 8037) and as SubjectPublicKeyInfo (RFC 5480, RFC 8017), and which keys we know at all.
//! Trusts nothing about a key but that somebody claims it: sizes and forms are checked, that a point lies on its curve is ring's to check when it verifies.
//! Never handles a private key.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::der::{Reader, tag};

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Key {
    /// The point without compression: 4, x, y.
    Ec { curve: Curve, point: Vec<u8> },
    /// Modulus and exponent, big endian, without leading zeros.
    Rsa { n: Vec<u8>, e: Vec<u8> },
    /// The point as RFC 8032 writes it.
    Ed25519 { x: Vec<u8> },
}

/// A curve of [`Key::Ec`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    const ALL: [Self; 3] = [Self::P256, Self::P384, Self::P521];

    fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }

    /// Bytes of one coordinate.
    fn size(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    fn oid(self) -> &'static [u8] {
        match self {
            Self::P256 => &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7],
            Self::P384 => &[0x2b, 0x81, 4, 0, 34],
            Self::P521 => &[0x2b, 0x81, 4, 0, 35],
        }
    }
}

/// The members of a JWK that make up its key.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Parameters {
    pub(super) kty: &'static str,
    pub(super) crv: Option<&'static str>,
    pub(super) x: Option<String>,
    pub(super) y: Option<String>,
    pub(super) n: Option<String>,
    pub(super) e: Option<String>,
}

const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
/// Bits of an RSA modulus that we accept.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// Largest RSA exponent, in bytes; what ring verifies with.
const RSA_EXPONENT_BYTES: usize = 4;

impl Key {
    /// The key of a SubjectPublicKeyInfo, or `None` if it is of a kind that X.509 signatures cannot be verified with here.
    pub(super) fn of_certificate(spki: &[u8]) -> Option<Self> {
        Self::of(spki).filter(|key| {
            !matches!(
                key,
                Self::Ec {
                    curve: Curve::P521,
                    ..
                }
            )
        })
    }

    /// The key of a SubjectPublicKeyInfo, or `None` if it is of a kind that we do not know.
    pub(crate) fn of(spki: &[u8]) -> Option<Self> {
        let mut outer = Reader::new(spki);
        let mut parts = outer.expect(tag::SEQUENCE, "").ok()?.inside();
        outer.end("").ok()?;
        let mut algorithm = parts.expect(tag::SEQUENCE, "").ok()?.inside();
        let bits = parts.expect(tag::BIT_STRING, "").ok()?.value;
        parts.end("").ok()?;
        let key = bits.strip_prefix(&[0])?;
        match algorithm.expect(tag::OID, "").ok()?.value {
            EC_PUBLIC_KEY => {
                let oid = algorithm.expect(tag::OID, "").ok()?.value;
                let curve = Curve::ALL.into_iter().find(|curve| curve.oid() == oid)?;
                Self::ec(curve, key.to_vec())
            }
            RSA => {
                let mut numbers = Reader::new(key).expect(tag::SEQUENCE, "").ok()?.inside();
                let n = positive(numbers.expect(tag::INTEGER, "").ok()?.value)?;
                let e = positive(numbers.expect(tag::INTEGER, "").ok()?.value)?;
                numbers.end("").ok()?;
                Self::rsa(n.to_vec(), e.to_vec())
            }
            ED25519 if key.len() == 32 => Some(Self::Ed25519 { x: key.to_vec() }),
            _ => None,
        }
    }

    /// An EC key of JWK parameters: base64url without padding, and coordinates of the curve's full size (RFC 7518 6.2.1).
    pub(super) fn ec_of_jwk(crv: &str, x: &str, y: &str) -> Option<Self> {
        let curve = Curve::ALL.into_iter().find(|curve| curve.name() == crv)?;
        let (x, y) = (decode(x)?, decode(y)?);
        if x.len() != curve.size() {
            return None;
        }
        Self::ec(curve, [&[4], x.as_slice(), &y].concat())
    }

    /// An RSA key of JWK parameters.
    pub(super) fn rsa_of_jwk(n: &str, e: &str) -> Option<Self> {
        Self::rsa(decode(n)?, decode(e)?)
    }

    fn ec(curve: Curve, point: Vec<u8>) -> Option<Self> {
        (point.first() == Some(&4) && point.len() == 1 + 2 * curve.size())
            .then_some(Self::Ec { curve, point })
    }

    fn rsa(n: Vec<u8>, e: Vec<u8>) -> Option<Self> {
        let bits = n.len() * 8 - usize::try_from(n.first()?.leading_zeros()).ok()?;
        let exponent = *e.first()? != 0 && e.len() <= RSA_EXPONENT_BYTES;
        (n[0] != 0 && RSA_BITS.contains(&bits) && exponent).then_some(Self::Rsa { n, e })
    }

    /// The parameters that a JWK names.
    pub(super) fn parameters(&self) -> Parameters {
        let encode = |bytes: &[u8]| Some(URL_SAFE_NO_PAD.encode(bytes));
        match self {
            Self::Ec { curve, point } => {
                let (x, y) = point[1..].split_at(curve.size());
                Parameters {
                    kty: "EC",
                    crv: Some(curve.name()),
                    x: encode(x),
                    y: encode(y),
                    ..Parameters::default()
                }
            }
            Self::Rsa { n, e } => Parameters {
                kty: "RSA",
                n: encode(n),
                e: encode(e),
                ..Parameters::default()
            },
            Self::Ed25519 { x } => Parameters {
                kty: "OKP",
                crv: Some("Ed25519"),
                x: encode(x),
                ..Parameters::default()
            },
        }
    }

    /// The SubjectPublicKeyInfo in DER.
    pub(crate) fn to_spki(&self) -> Vec<u8> {
        let oid = |value: &[u8]| element(tag::OID, &[value]);
        let (algorithm, key) = match self {
            Self::Ec { curve, point } => (
                [oid(EC_PUBLIC_KEY), oid(curve.oid())].concat(),
                point.clone(),
            ),
            Self::Rsa { n, e } => {
                let numbers = [integer(n), integer(e)].concat();
                let null = [5, 0];
                (
                    [oid(RSA).as_slice(), &null].concat(),
                    element(tag::SEQUENCE, &[&numbers]),
                )
            }
            Self::Ed25519 { x } => (oid(ED25519), x.clone()),
        };
        element(
            tag::SEQUENCE,
            &[
                &element(tag::SEQUENCE, &[&algorithm]),
                &element(tag::BIT_STRING, &[&[0], &key]),
            ],
        )
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// One DER element of these parts.
fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let bytes = length.to_be_bytes();
    let used = &bytes[length.leading_zeros() as usize / 8..];
    let mut der = vec![tag];
    if length < 0x80 {
        der.push(bytes[bytes.len() - 1]);
    } else {
        der.push(0x80 + u8::try_from(used.len()).expect("a usize has few bytes"));
        der.extend(used);
    }
    der.extend(parts.concat());
    der
}

/// A positive DER integer of a number without leading zeros.
fn integer(number: &[u8]) -> Vec<u8> {
    let sign: &[u8] = if number[0] & 0x80 != 0 { &[0] } else { &[] };
    element(tag::INTEGER, &[sign, number])
}

/// The bytes of a positive DER integer without its sign byte.
fn positive(value: &[u8]) -> Option<&[u8]> {
    match value {
        [0, rest @ ..] => rest.first().is_some_and(|b| b & 0x80 != 0).then_some(rest),
        [first, ..] if first & 0x80 == 0 => Some(value),
        _ => None,
    }
}
