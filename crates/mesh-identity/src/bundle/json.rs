//! Decides how a SPIFFE bundle document and a Bundle Map read and write (SPIFFE Trust Domain and Bundle 4 and 5, X509-SVID 6.2, JWT-SVID 5.2).
//! Trusts nothing: a member twice, a number that is no integer, a damaged certificate refuse the document whole.
//! Never ignores anything but what the standard says to ignore: unknown members, unknown `kty` or `use`, a missing `x5c`.

use std::{collections::BTreeMap, fmt, marker::PhantomData, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

use super::{
    Bundle, BundleError, BundleSet, X509Authority,
    jwk::{Key, Parameters},
};
use crate::{JwtAuthority, JwtAuthorityError, TrustDomain};

/// The `use` of a key that verifies X509-SVIDs.
const X509_USE: &str = "x509-svid";

/// The `use` of a key that verifies JWT-SVIDs.
const JWT_USE: &str = "jwt-svid";

/// Something written as a JSON object. Serde's derived structs would also take an array of their members in order.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Visitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: de::MapAccess<'de>>(self, map: M) -> Result<Object<T>, M::Error> {
                T::deserialize(de::value::MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(Visitor(PhantomData))
    }
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Object<Jwk>>,
    #[serde(default, deserialize_with = "present")]
    spiffe_sequence: Option<u64>,
    #[serde(default, deserialize_with = "present")]
    spiffe_refresh_hint: Option<u64>,
}

/// A member that is there holds a number; null is not one.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    u64::deserialize(deserializer).map(Some)
}

/// The members that we look at. Their types are judged only once `kty` and `use` say that the key is for us.
#[derive(Deserialize)]
struct Jwk {
    #[serde(default)]
    kty: Value,
    #[serde(default, rename = "use")]
    usage: Value,
    #[serde(default)]
    kid: Value,
    #[serde(default)]
    x5c: Value,
    #[serde(default)]
    crv: Value,
    #[serde(default)]
    x: Value,
    #[serde(default)]
    y: Value,
    #[serde(default)]
    n: Value,
    #[serde(default)]
    e: Value,
}

pub(super) fn read(domain: TrustDomain, json: &[u8]) -> Result<Bundle, BundleError> {
    let Object(document) = serde_json::from_slice(json).map_err(json_error)?;
    build(domain, document)
}

fn build(domain: TrustDomain, document: Document) -> Result<Bundle, BundleError> {
    let (mut roots, mut jwt) = (Vec::new(), Vec::new());
    for (position, Object(jwk)) in document.keys.iter().enumerate() {
        match jwk.usage.as_str() {
            Some(X509_USE) => roots.extend(authority(position, jwk)?),
            Some(JWT_USE) => jwt.extend(
                jwt_authority(jwk).map_err(|source| BundleError::JwtKey { position, source })?,
            ),
            _ => {}
        }
    }
    let mut bundle = Bundle::new(domain, roots)?
        .with_jwt_authorities(jwt)?
        .with_refresh_hint(document.spiffe_refresh_hint.map(Duration::from_secs));
    bundle.sequence = document.spiffe_sequence;
    Ok(bundle)
}

/// The root in a key, or `None` if the key is one to ignore.
fn authority(position: usize, jwk: &Jwk) -> Result<Option<X509Authority>, BundleError> {
    if !matches!(jwk.kty.as_str(), Some("EC" | "RSA" | "OKP")) {
        return Ok(None);
    }
    let first = match &jwk.x5c {
        Value::Null => return Ok(None),
        Value::Array(values) if values.is_empty() => return Ok(None),
        Value::Array(values) => &values[0], // X509-SVID 6.2.2: what follows the first is ignored
        _ => return Err(BundleError::X5c { position }),
    };
    let der = first
        .as_str()
        .and_then(|text| STANDARD.decode(text).ok())
        .ok_or(BundleError::X5c { position })?;
    let root = X509Authority::parse_at(der.into(), position)?;
    if agrees(jwk, &root.root.key) {
        Ok(Some(root))
    } else {
        Err(BundleError::OtherKey { position })
    }
}

/// The JWT authority in a key, or `None` if it is of a `kty` that signs no JWT-SVID.
fn jwt_authority(jwk: &Jwk) -> Result<Option<JwtAuthority>, JwtAuthorityError> {
    let text = |value: &'_ Value| value.as_str().map(str::to_owned).unwrap_or_default();
    let key = match jwk.kty.as_str() {
        Some("EC") => Key::ec_of_jwk(&text(&jwk.crv), &text(&jwk.x), &text(&jwk.y)),
        Some("RSA") => Key::rsa_of_jwk(&text(&jwk.n), &text(&jwk.e)),
        _ => return Ok(None),
    };
    let kid = jwk.kid.as_str().unwrap_or_default();
    JwtAuthority::of_key(kid, key.ok_or(JwtAuthorityError::Key)?).map(Some)
}

/// The keys of an ordinary JSON Web Key Set (RFC 7517 5) that can verify tokens. Keys for encryption, keys without a
/// key ID and keys of a kind that signs no token are not for us; a damaged key refuses the set.
pub(super) fn read_jwks(json: &[u8]) -> Result<Vec<JwtAuthority>, BundleError> {
    let Object(document): Object<Document> = serde_json::from_slice(json).map_err(json_error)?;
    let mut keys: Vec<JwtAuthority> = Vec::new();
    for (position, Object(jwk)) in document.keys.iter().enumerate() {
        let signs = matches!(jwk.usage.as_str(), Some("sig" | JWT_USE)) || jwk.usage.is_null();
        if !signs || jwk.kid.is_null() {
            continue;
        }
        let failed = |source| BundleError::JwtKey { position, source };
        let Some(key) = jwt_authority(jwk).map_err(failed)? else {
            continue;
        };
        if keys.iter().any(|known| known.key_id() == key.key_id()) {
            return Err(failed(JwtAuthorityError::KeyId));
        }
        keys.push(key);
    }
    Ok(keys)
}

/// Whether what the JWK says about the key, as far as it says anything, is what the certificate says (RFC 7517 4.7).
fn agrees(jwk: &Jwk, key: &Key) -> bool {
    let is = key.parameters();
    // A parameter of another kind of key is an unknown member here.
    let same =
        |said: &Value, is: Option<&str>| is.is_none() || said.is_null() || said.as_str() == is;
    jwk.kty.as_str() == Some(is.kty)
        && same(&jwk.crv, is.crv)
        && same(&jwk.x, is.x.as_deref())
        && same(&jwk.y, is.y.as_deref())
        && same(&jwk.n, is.n.as_deref())
        && same(&jwk.e, is.e.as_deref())
}

fn json_error(error: serde_json::Error) -> BundleError {
    let text = error.to_string();
    let what = text
        .rsplit_once(" at line ")
        .map_or(text.as_str(), |(what, _)| what);
    // What was found there is quoted, and it is a stranger's.
    let what = what.chars().filter(|c| !c.is_control()).take(200).collect();
    BundleError::Json {
        line: error.line(),
        column: error.column(),
        what,
    }
}

#[derive(Serialize)]
struct DocumentOut<'a> {
    keys: Vec<JwkOut<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spiffe_sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spiffe_refresh_hint: Option<u64>,
}

#[derive(Serialize)]
struct JwkOut<'a> {
    #[serde(rename = "use", skip_serializing_if = "Option::is_none")]
    usage: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<&'a str>,
    kty: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    crv: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    y: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    e: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x5c: Option<[String; 1]>,
}

impl JwkOut<'_> {
    fn of(key: &Key, usage: Option<&'static str>) -> Self {
        let Parameters {
            kty,
            crv,
            x,
            y,
            n,
            e,
        } = key.parameters();
        Self {
            usage,
            kid: None,
            kty,
            crv,
            x,
            y,
            n,
            e,
            x5c: None,
        }
    }
}

fn document(bundle: &Bundle, refresh_hint: Option<Duration>) -> DocumentOut<'_> {
    let roots = bundle.authorities.iter().map(|root| JwkOut {
        x5c: Some([STANDARD.encode(root.der())]),
        ..JwkOut::of(&root.root.key, Some(X509_USE))
    });
    DocumentOut {
        keys: roots.chain(jwt_keys(bundle, Some(JWT_USE))).collect(),
        spiffe_sequence: bundle.sequence,
        spiffe_refresh_hint: refresh_hint.map(|hint| hint.as_secs()),
    }
}

fn jwt_keys<'a>(
    bundle: &'a Bundle,
    usage: Option<&'static str>,
) -> impl Iterator<Item = JwkOut<'a>> {
    bundle.jwt_authorities.iter().map(move |authority| JwkOut {
        kid: Some(authority.key_id()),
        ..JwkOut::of(authority.key(), usage)
    })
}

/// The JWT authorities alone, in the form of the Workload API's JWT profile: a plain JWKS.
pub(super) fn write_jwks(bundle: &Bundle) -> Vec<u8> {
    let document = DocumentOut {
        keys: jwt_keys(bundle, None).collect(),
        spiffe_sequence: None,
        spiffe_refresh_hint: None,
    };
    serde_json::to_vec(&document).expect("strings and numbers always make JSON")
}

pub(super) fn write(bundle: &Bundle) -> Vec<u8> {
    serde_json::to_vec(&document(bundle, bundle.refresh_hint))
        .expect("strings and numbers always make JSON")
}

#[derive(Deserialize)]
struct MapDocument {
    trust_domains: Members,
}

/// Members by name; a name twice is an error, which a plain map would hide.
struct Members(Vec<(String, Document)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of bundles by trust domain name")
            }

            fn visit_map<M: de::MapAccess<'de>>(self, mut map: M) -> Result<Members, M::Error> {
                let mut members: BTreeMap<String, Document> = BTreeMap::new();
                while let Some((name, Object(document))) = map.next_entry()? {
                    if members.insert(name, document).is_some() {
                        return Err(de::Error::custom("a trust domain is named twice"));
                    }
                }
                Ok(Members(members.into_iter().collect()))
            }
        }

        deserializer.deserialize_map(Visitor)
    }
}

pub(super) fn read_map(json: &[u8]) -> Result<BundleSet, BundleError> {
    let Object(map): Object<MapDocument> = serde_json::from_slice(json).map_err(json_error)?;
    let mut set = BundleSet::new();
    for (name, document) in map.trust_domains.0 {
        let domain: TrustDomain = name.parse().map_err(|source| BundleError::Name {
            name: name.chars().take(80).collect(),
            source,
        })?;
        let bundle = build(domain.clone(), document).map_err(|source| BundleError::Member {
            domain,
            source: Box::new(source),
        })?;
        // A map is polled as one; what a member says about its own refreshing must not steer that.
        set.insert(bundle.with_refresh_hint(None));
    }
    Ok(set)
}

#[derive(Serialize)]
struct MapOut<'a> {
    trust_domains: BTreeMap<&'a str, DocumentOut<'a>>,
}

pub(super) fn write_map(set: &BundleSet) -> Vec<u8> {
    let trust_domains = set
        .iter()
        .map(|bundle| (bundle.trust_domain().as_str(), document(bundle, None)))
        .collect();
    serde_json::to_vec(&MapOut { trust_domains }).expect("strings and numbers always make JSON")
}
