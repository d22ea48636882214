//! PeerAuthentication and RequestAuthentication: what a door demands of a connection, and whose tokens it believes.
//! Trusts `validate.rs` for the shape of a document; keys come checked from mesh-identity.
//! Never opens a door wider by accident: plaintext has an end date, and of two that disagree the stricter one counts.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::document::{Node, Value};
use crate::keys::KeySource;
use crate::model::Attachment;
use crate::pattern::{self, PatternError};
use crate::problem::ProblemKind;
use crate::reader::{Fields, Reader};

/// What a door demands of the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Strict,
    /// Plaintext too, until then.
    Permissive(SystemTime),
}

impl Transport {
    /// The stricter of two.
    pub(crate) fn stricter(self, other: Self) -> Self {
        match (self, other) {
            (Self::Permissive(a), Self::Permissive(b)) => Self::Permissive(a.min(b)),
            _ => Self::Strict,
        }
    }
}

/// One PeerAuthentication that passed every check.
#[derive(Debug, Clone)]
pub struct PeerAuthentication {
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
    pub(crate) attachment: Attachment,
    pub(crate) mode: Option<Transport>,
    pub(crate) ports: BTreeMap<u16, Transport>,
    pub(crate) post_quantum: Option<bool>,
}

/// One RequestAuthentication that passed every check.
#[derive(Debug, Clone)]
pub struct RequestAuthentication {
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
    pub(crate) attachment: Attachment,
    pub(crate) rules: Vec<JwtRule>,
}

/// An issuer whose tokens are believed.
#[derive(Debug, Clone)]
pub struct JwtRule {
    /// Its `iss`, byte by byte.
    pub issuer: String,
    /// One of these has to be in `aud`; empty: any.
    pub audiences: Vec<String>,
    /// Where its keys come from.
    pub keys: KeySource,
    /// The headers that may carry its token, each with what stands before it.
    pub headers: Vec<(String, String)>,
    /// Whether the application sees the token.
    pub forward: bool,
}

/// What a door demands of a connection now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Posture {
    /// Until when a connection without TLS is let in; `None`: never.
    pub plaintext_until: Option<SystemTime>,
    /// Whether the key exchange has to withstand a quantum computer.
    pub post_quantum: bool,
}

impl Posture {
    /// Whether a connection without TLS is let in at that moment.
    #[must_use]
    pub fn admits_plaintext(&self, now: SystemTime) -> bool {
        self.plaintext_until.is_some_and(|until| now < until)
    }
}

/// The PeerAuthentications of one workload, by how near they speak of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Postures {
    mode: Option<(Level, Transport)>,
    ports: BTreeMap<u16, Transport>,
    post_quantum: Option<(Level, bool)>,
}

/// How near a document speaks of a workload; the nearest counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Mesh,
    Namespace,
    Workload,
}

impl Postures {
    pub(crate) fn add(&mut self, level: Level, document: &PeerAuthentication) {
        if let Some(mode) = document.mode {
            self.mode = Some(match self.mode {
                Some((known, _)) if known < level => (level, mode),
                Some((known, own)) if known == level => (level, own.stricter(mode)),
                Some(nearer) => nearer,
                None => (level, mode),
            });
        }
        if let Some(wanted) = document.post_quantum {
            self.post_quantum = Some(match self.post_quantum {
                Some((known, _)) if known < level => (level, wanted),
                Some((known, own)) if known == level => (level, own || wanted),
                Some(nearer) => nearer,
                None => (level, wanted),
            });
        }
        for (port, mode) in &document.ports {
            self.ports
                .entry(*port)
                .and_modify(|own| *own = own.stricter(*mode))
                .or_insert(*mode);
        }
    }

    pub(crate) fn at(&self, port: u16) -> Posture {
        let mode = self
            .ports
            .get(&port)
            .copied()
            .or(self.mode.map(|(_, mode)| mode));
        Posture {
            plaintext_until: match mode {
                Some(Transport::Permissive(until)) => Some(until),
                Some(Transport::Strict) | None => None,
            },
            post_quantum: self.post_quantum.is_some_and(|(_, wanted)| wanted),
        }
    }
}

#[derive(Clone, Copy)]
enum Mode {
    Unset,
    Strict,
    Permissive,
}

impl Reader {
    pub(crate) fn peer_authentication(
        &mut self,
        node: &Node,
        namespace: Option<&str>,
    ) -> Option<PeerAuthentication> {
        let known = [
            "selector",
            "mtls",
            "portLevelMtls",
            "permissiveUntil",
            "requirePostQuantum",
        ];
        let fields = self.fields(node, &known)?;
        let attachment = self.attachment(node, &fields, namespace);
        let until = match fields.get("permissiveUntil") {
            Some((_, until)) => {
                let parse = |text: &str| moment(text).ok_or(PatternError::Moment);
                Some(self.below("permissiveUntil", |r| r.value(until, parse))?)
            }
            None => None,
        };
        let mode = match fields.get("mtls") {
            Some((_, mtls)) => self.below("mtls", |r| r.transport(mtls, until)),
            None => Some(None),
        };
        let ports = match fields.get("portLevelMtls") {
            Some((_, ports)) => self.below("portLevelMtls", |r| r.port_transports(ports, until)),
            None => Some(BTreeMap::new()),
        };
        let post_quantum = match fields.get("requirePostQuantum") {
            Some((_, wanted)) => Some(self.below("requirePostQuantum", |r| r.boolean(wanted))?),
            None => None,
        };
        Some(PeerAuthentication {
            name: String::new(),
            namespace: None,
            attachment: attachment?,
            mode: mode?,
            ports: ports?,
            post_quantum,
        })
    }

    fn transport(&mut self, node: &Node, until: Option<SystemTime>) -> Option<Option<Transport>> {
        let fields = self.fields(node, &["mode"])?;
        let mode = match fields.get("mode") {
            Some((_, mode)) => self.below("mode", |r| {
                let words = [
                    ("STRICT", Mode::Strict),
                    ("PERMISSIVE", Mode::Permissive),
                    ("UNSET", Mode::Unset),
                ];
                r.one_of(mode, &words)
            })?,
            None => Mode::Unset,
        };
        match (mode, until) {
            (Mode::Unset, _) => Some(None),
            (Mode::Strict, _) => Some(Some(Transport::Strict)),
            (Mode::Permissive, Some(until)) => Some(Some(Transport::Permissive(until))),
            (Mode::Permissive, None) => {
                self.problem(
                    ProblemKind::MissingField,
                    node.place,
                    "PERMISSIVE lets anyone in without an identity; say until when: spec.permissiveUntil".to_owned(),
                );
                None
            }
        }
    }

    fn port_transports(
        &mut self,
        node: &Node,
        until: Option<SystemTime>,
    ) -> Option<BTreeMap<u16, Transport>> {
        let Value::Map(pairs) = &node.value else {
            self.problem(
                ProblemKind::WrongType,
                node.place,
                format!("a map is wanted here, not {}", node.value.kind()),
            );
            return None;
        };
        let mut ports = BTreeMap::new();
        for (key, value) in pairs {
            let Ok(port) = pattern::parse_port(&key.name) else {
                self.problem(
                    ProblemKind::BadValue,
                    key.place,
                    PatternError::Port.to_string(),
                );
                return None;
            };
            let mode = self.below(&format!("[{port}]"), |r| r.transport(value, until))?;
            ports.extend(mode.map(|mode| (port, mode)));
        }
        Some(ports)
    }

    pub(crate) fn request_authentication(
        &mut self,
        node: &Node,
        namespace: Option<&str>,
    ) -> Option<RequestAuthentication> {
        let known = ["selector", "targetRef", "targetRefs", "jwtRules"];
        let fields = self.fields(node, &known)?;
        let attachment = self.attachment(node, &fields, namespace);
        let rules = match fields.get("jwtRules") {
            Some((_, rules)) => self.below("jwtRules", |r| r.list(rules, Self::jwt_rule)),
            None => Vec::new(),
        };
        for (i, rule) in rules.iter().enumerate() {
            if rules
                .iter()
                .take(i)
                .any(|other| other.issuer == rule.issuer)
            {
                self.problem(
                    ProblemKind::DuplicateName,
                    node.place,
                    format!("jwtRules[{i}] names an issuer that another rule names too"),
                );
            }
        }
        Some(RequestAuthentication {
            name: String::new(),
            namespace: None,
            attachment: attachment?,
            rules,
        })
    }

    fn jwt_rule(&mut self, node: &Node) -> Option<JwtRule> {
        let known = [
            "issuer",
            "audiences",
            "jwks",
            "jwksUri",
            "fromHeaders",
            "forwardOriginalToken",
        ];
        let fields = self.fields(node, &known)?;
        let plain = |text: &str| {
            if text.is_empty() || text.chars().any(char::is_control) {
                Err(PatternError::Empty)
            } else {
                Ok(text.to_owned())
            }
        };
        let issuer = match fields.get("issuer") {
            Some((_, issuer)) => self.below("issuer", |r| r.value(issuer, plain)),
            None => self.missing(node.place, "issuer"),
        };
        let audiences = self.values(&fields, "audiences", plain);
        let keys = self.keys(node, &fields, issuer.as_deref());
        let headers = match fields.get("fromHeaders") {
            Some((_, headers)) => {
                self.below("fromHeaders", |r| r.list(headers, Self::token_header))
            }
            None => vec![("authorization".to_owned(), "Bearer ".to_owned())],
        };
        let forward = match fields.get("forwardOriginalToken") {
            Some((_, forward)) => self.below("forwardOriginalToken", |r| r.boolean(forward))?,
            None => false,
        };
        Some(JwtRule {
            issuer: issuer?,
            audiences,
            keys: keys?,
            headers,
            forward,
        })
    }

    fn keys(
        &mut self,
        node: &Node,
        fields: &Fields<'_>,
        issuer: Option<&str>,
    ) -> Option<KeySource> {
        match (fields.get("jwks"), fields.get("jwksUri")) {
            (None, None) if issuer.is_some_and(|issuer| KeySource::of_issuer(issuer).is_some()) => {
                if fields.get("audiences").is_none() {
                    // A JWT-SVID is for somebody, and nobody may use it towards others (JWT-SVID 3.2).
                    return self.missing(node.place, "audiences");
                }
                issuer.and_then(KeySource::of_issuer)
            }
            (Some((_, jwks)), None) => self.below("jwks", |r| {
                let text = r.text(jwks)?;
                match mesh_identity::read_jwks(text.as_bytes()) {
                    Ok(keys) if !keys.is_empty() => Some(KeySource::Inline(keys)),
                    Ok(_) => {
                        let told = "no key in it has a key ID and signs tokens".to_owned();
                        r.problem(ProblemKind::BadValue, jwks.place, told);
                        None
                    }
                    Err(error) => {
                        r.problem(ProblemKind::BadValue, jwks.place, error.to_string());
                        None
                    }
                }
            }),
            (None, Some((_, uri))) => self.below("jwksUri", |r| r.value(uri, KeySource::of_uri)),
            _ => {
                self.problem(
                    ProblemKind::MissingField,
                    node.place,
                    "one of `jwks` and `jwksUri` says by which keys the tokens are verified"
                        .to_owned(),
                );
                None
            }
        }
    }

    fn token_header(&mut self, node: &Node) -> Option<(String, String)> {
        let fields = self.fields(node, &["name", "prefix"])?;
        let name = match fields.get("name") {
            Some((_, name)) => self.below("name", |r| {
                r.value(name, |text| {
                    if crate::validate::is_token(text) {
                        Ok(text.to_ascii_lowercase())
                    } else {
                        Err(PatternError::Header)
                    }
                })
            }),
            None => self.missing(node.place, "name"),
        };
        let prefix = match fields.get("prefix") {
            Some((_, prefix)) => self.below("prefix", |r| r.text(prefix).map(str::to_owned))?,
            None => String::new(),
        };
        Some((name?, prefix))
    }
}

/// `2026-12-31T00:00:00Z` or `2026-12-31`: RFC 3339 in UTC, whole seconds.
fn moment(text: &str) -> Option<SystemTime> {
    let (date, time) = text.split_once('T').unwrap_or((text, "00:00:00Z"));
    let numbers = |text: &str, separator: char, widths: [usize; 3]| -> Option<[u64; 3]> {
        let parts: Vec<&str> = text.split(separator).collect();
        let parts: [&str; 3] = parts.try_into().ok()?;
        let mut read = [0; 3];
        for ((part, width), slot) in parts.into_iter().zip(widths).zip(&mut read) {
            if part.len() != width || !part.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            *slot = part.parse().ok()?;
        }
        Some(read)
    };
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(time.strip_suffix('Z')?, ':', [2, 2, 2])?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let longest = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if year < 1970 || day == 0 || day > longest || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Days since 0000-03-01, so that the leap day comes last.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    let seconds = (days - 719_468) * 86_400 + hour * 3600 + minute * 60 + second;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests;
