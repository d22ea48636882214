//! Tokens of requests: found, verified and taken away, so that only what was proven is decided on and forwarded.
//! Trusts the keys that the policy names for an issuer.
//! Never lets a bad token pass as none: who shows one that is not good is refused, whatever the policy would say without it.

use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, HeaderName};
use mesh_identity::jwt::{
    Expected, JwtError, LEEWAY, issuer_of, subject_of, verify_issued, verify_jwt_svid,
};
use mesh_identity::{Bundle, BundleSet, JwtAuthority, SpiffeId, TrustDomain};
use mesh_policy::{CompiledPolicy, KeySource, Token};

/// The issuers that are believed at a door, with their keys.
#[derive(Debug, Default)]
pub(crate) struct Issuers {
    issuers: Vec<Issuer>,
}

#[derive(Debug)]
struct Issuer {
    name: String,
    audiences: Vec<String>,
    believed: Believed,
    headers: Vec<(HeaderName, String)>,
    forward: bool,
}

/// What the tokens of an issuer are, and by which keys they are verified. Without keys every one of them is refused.
#[derive(Debug)]
enum Believed {
    Tokens(Vec<JwtAuthority>),
    /// JWT-SVIDs of a trust domain; the bundle has its keys.
    Svids(TrustDomain, BundleSet),
}

/// What a verified token says, and until when it says so.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) token: Arc<Token>,
    pub(crate) until: SystemTime,
}

/// A token was shown that is not good. The sentence is for the log; nothing of the token is in it.
#[derive(Clone, Debug)]
pub(crate) struct BadToken(pub(crate) String);

impl Issuers {
    /// Of the policy in force. `keys` reads those that do not stand in it.
    pub(crate) fn new(
        policy: &CompiledPolicy,
        mut keys: impl FnMut(&KeySource) -> Vec<JwtAuthority>,
    ) -> Self {
        let issuers = policy
            .jwt_rules()
            .iter()
            .map(|rule| Issuer {
                name: rule.issuer.clone(),
                audiences: rule.audiences.clone(),
                believed: match &rule.keys {
                    KeySource::Inline(keys) => Believed::Tokens(keys.clone()),
                    KeySource::Domain(domain) => {
                        Believed::Svids(domain.clone(), bundle_of(domain, keys(&rule.keys)))
                    }
                    elsewhere => Believed::Tokens(keys(elsewhere)),
                },
                headers: rule
                    .headers
                    .iter()
                    .filter_map(|(name, prefix)| {
                        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
                        Some((name, prefix.clone()))
                    })
                    .collect(),
                forward: rule.forward,
            })
            .collect();
        Self { issuers }
    }

    /// The token of a request, verified; none if none was shown. A token that the application is not to see is taken away.
    pub(crate) fn read(
        &self,
        headers: &mut HeaderMap,
        now: SystemTime,
    ) -> Result<Option<Shown>, BadToken> {
        if self.issuers.is_empty() {
            return Ok(None);
        }
        let places = self.shown(headers)?;
        let Some((place, prefix)) = places.first() else {
            return Ok(None);
        };
        if places.len() > 1 {
            return Err(BadToken("the request shows more than one token".to_owned()));
        }
        let text = headers
            .get(place)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.get(prefix.len()..))
            .map(str::trim)
            .unwrap_or_default();
        let unknown = || BadToken("the token is of an issuer that no policy names here".to_owned());
        let (said, about) = (issuer_of(text), subject_of(text));
        let here = |issuer: &&Issuer| issuer.headers.iter().any(|(name, _)| name == place);
        let issuer = self
            .issuers
            .iter()
            .filter(here)
            .find(|issuer| issuer.may_have_made(said.as_deref(), about.as_deref()))
            .ok_or_else(unknown)?;
        let shown = issuer
            .verify(text, now)
            .map_err(|error| BadToken(error.to_string()))?;
        if !issuer.forward {
            headers.remove(place);
        }
        Ok(Some(shown))
    }

    /// The places in which a token stands. A header that an issuer names and that comes twice is refused: nobody knows
    /// which one the application reads.
    fn shown(&self, headers: &HeaderMap) -> Result<Vec<(HeaderName, String)>, BadToken> {
        let mut places: Vec<(HeaderName, String)> = Vec::new();
        for (name, prefix) in self.issuers.iter().flat_map(|issuer| &issuer.headers) {
            if places.iter().any(|(known, _)| known == name) {
                continue;
            }
            let mut values = headers.get_all(name).iter();
            let Some(value) = values.next() else { continue };
            if values.next().is_some() {
                return Err(BadToken(format!("the header {name} comes more than once")));
            }
            // A scheme is compared without regard to case (RFC 9110 11.1).
            let begins = value
                .as_bytes()
                .get(..prefix.len())
                .is_some_and(|begin| begin.eq_ignore_ascii_case(prefix.as_bytes()));
            if begins {
                places.push((name.clone(), prefix.clone()));
            }
        }
        Ok(places)
    }
}

impl Issuer {
    /// Whether a token is to be verified by these keys, by what it says of itself. A JWT-SVID may name any issuer or none: its
    /// subject says whose it is.
    fn may_have_made(&self, said: Option<&str>, about: Option<&str>) -> bool {
        match &self.believed {
            Believed::Tokens(_) => said == Some(self.name.as_str()),
            Believed::Svids(domain, _) => about
                .and_then(|about| about.parse::<SpiffeId>().ok())
                .is_some_and(|id| id.is_member_of(domain)),
        }
    }

    fn verify(&self, text: &str, now: SystemTime) -> Result<Shown, JwtError> {
        let (token, expires_at) = match &self.believed {
            Believed::Tokens(keys) => {
                let expected = Expected {
                    issuer: &self.name,
                    audiences: &self.audiences,
                };
                let token = verify_issued(text, keys, expected, now)?;
                let principal = format!("{}/{}", token.issuer, token.subject);
                (
                    facts(principal, token.audience, &token.claims),
                    token.expires_at,
                )
            }
            Believed::Svids(_, bundles) => {
                let svid = verify_jwt_svid(text, bundles, &self.audiences, now)?;
                let principal = svid.id.to_string();
                (
                    facts(principal, svid.audience, &svid.claims),
                    svid.expires_at,
                )
            }
        };
        Ok(Shown {
            token: Arc::new(token),
            until: expires_at + LEEWAY,
        })
    }
}

/// The keys of a trust domain as a bundle. Keys that contradict each other are none.
fn bundle_of(domain: &TrustDomain, keys: Vec<JwtAuthority>) -> BundleSet {
    let mut bundles = BundleSet::new();
    let bundle = Bundle::new(domain.clone(), []).and_then(|empty| empty.with_jwt_authorities(keys));
    if let Ok(bundle) = bundle {
        bundles.insert(bundle);
    }
    bundles
}

/// The claims as a policy asks for them: every leaf that is text, a number or a boolean, with its path.
fn facts(
    principal: String,
    audiences: Vec<String>,
    said: &serde_json::Map<String, serde_json::Value>,
) -> Token {
    let mut claims = Vec::new();
    for (name, value) in said {
        leaves(&mut vec![name.clone()], value, &mut claims);
    }
    let presenter = said.get("azp").and_then(|azp| azp.as_str());
    Token {
        principal,
        presenter: presenter.map(str::to_owned),
        audiences,
        claims,
    }
}

fn leaves(
    path: &mut Vec<String>,
    value: &serde_json::Value,
    found: &mut Vec<(Vec<String>, Vec<String>)>,
) {
    use serde_json::Value;
    let leaf = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    };
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                path.push(name.clone());
                leaves(path, value, found);
                path.pop();
            }
        }
        Value::Array(items) => found.push((path.clone(), items.iter().filter_map(leaf).collect())),
        // A scope is a list in one text (RFC 8693 4.2); its words count one by one, as in Istio.
        Value::String(text) if path.len() == 1 && path[0] == "scope" => {
            found.push((path.clone(), text.split(' ').map(str::to_owned).collect()));
        }
        value => found.extend(leaf(value).map(|text| (path.clone(), vec![text]))),
    }
}
