//! Tokens of requests: found, verified and taken away, so that only what was proven is decided on and forwarded.
//! Trusts the keys that the policy names for an issuer.
//! Never lets a bad token pass as none: who shows one that is not good is refused, whatever the policy would say without it.

use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, HeaderName};
use mesh_identity::JwtAuthority;
use mesh_identity::jwt::{Expected, IssuedToken, LEEWAY, issuer_of, verify_issued};
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
    /// None of them when they could not be read: then every token of this issuer is refused.
    keys: Vec<JwtAuthority>,
    headers: Vec<(HeaderName, String)>,
    forward: bool,
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
                keys: match &rule.keys {
                    KeySource::Inline(keys) => keys.clone(),
                    elsewhere => keys(elsewhere),
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
        let said = issuer_of(text).ok_or_else(unknown)?;
        let here = |issuer: &&Issuer| issuer.headers.iter().any(|(name, _)| name == place);
        let issuer = self
            .issuers
            .iter()
            .filter(here)
            .find(|issuer| issuer.name == said)
            .ok_or_else(unknown)?;
        let expected = Expected {
            issuer: &issuer.name,
            audiences: &issuer.audiences,
        };
        let token = verify_issued(text, &issuer.keys, expected, now)
            .map_err(|error| BadToken(error.to_string()))?;
        if !issuer.forward {
            headers.remove(place);
        }
        Ok(Some(Shown {
            until: token.expires_at + LEEWAY,
            token: Arc::new(facts(token)),
        }))
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

/// The claims as a policy asks for them: every leaf that is text, a number or a boolean, with its path.
fn facts(token: IssuedToken) -> Token {
    let mut claims = Vec::new();
    for (name, value) in &token.claims {
        leaves(&mut vec![name.clone()], value, &mut claims);
    }
    let presenter = token.claims.get("azp").and_then(|azp| azp.as_str());
    Token {
        principal: format!("{}/{}", token.issuer, token.subject),
        presenter: presenter.map(str::to_owned),
        audiences: token.audience,
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
