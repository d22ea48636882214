//! Patterns of policy values: principals, hosts, methods and paths, parsed once and matched without allocation.
//! Trusts that what it is matched against is canonical already (`facts.rs`).
//! Never is a regular expression, never accepts a wildcard in a place where its meaning could be mistaken.

use std::fmt;
use std::net::IpAddr;

use mesh_identity::{SpiffeId, TrustDomain};

use crate::facts::{CanonicalHost, CanonicalPath, PathRefusal};
use crate::model::plain;

/// Why a pattern was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PatternError {
    #[error("not a SPIFFE ID: {0}")]
    SpiffeId(String),
    #[error("not a trust domain: {0}")]
    TrustDomain(String),
    #[error("not `namespace/name`; a name alone needs a policy that says its namespace")]
    ServiceAccount,
    #[error("not an address or a block of addresses such as 10.0.0.0/8 or fd00::/8")]
    Cidr,
    #[error("not a condition that is known: {0}")]
    Key(&'static str),
    #[error("not a moment: write 2026-12-31 or 2026-12-31T00:00:00Z")]
    Moment,
    #[error(
        "keys come from a file of this machine, file:///absolute/path, or from https://host/path"
    )]
    KeyUri,
    #[error("not the name of a header")]
    Header,
    #[error("a control character")]
    Control,
    #[error("only one wildcard is possible, at the beginning or at the end")]
    WildcardInside,
    #[error("a method is a token in capital letters, such as GET")]
    Method,
    #[error(
        "not a host name: letters, digits, `-`, `.` and `_`, with a `*` in front or behind if need be; without scheme"
    )]
    Host,
    #[error("a path begins with `/` (or is `*`, or `*` and the end of a path)")]
    PathStart,
    #[error("no request can have this path, so the pattern would never match: {0}")]
    Path(#[source] PathRefusal),
    #[error(
        "`{{*}}` is one whole segment, `{{**}}` the last whole segment, and neither mixes with `*`"
    )]
    Template,
    #[error("empty")]
    Empty,
    #[error("a port is a number from 1 to 65535")]
    Port,
}

/// Istio's string match: exact, `begin*`, `*end`, or `*` for "there is one".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Text {
    Exact(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
    Any,
}

impl Text {
    pub(crate) fn parse(text: &str) -> Result<Self, PatternError> {
        let (leading, trailing) = (text.strip_prefix('*'), text.strip_suffix('*'));
        let (rest, make): (&str, fn(Box<str>) -> Self) = match (leading, trailing) {
            (Some(""), _) => return Ok(Self::Any),
            (Some(rest), _) => (rest, Self::Suffix),
            (None, Some(rest)) => (rest, Self::Prefix),
            (None, None) => (text, Self::Exact),
        };
        if rest.is_empty() {
            return Err(PatternError::Empty);
        }
        if rest.contains('*') {
            return Err(PatternError::WildcardInside);
        }
        if rest.chars().any(char::is_control) {
            return Err(PatternError::Control);
        }
        Ok(make(rest.into()))
    }

    pub(crate) fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(own) => &**own == text,
            Self::Prefix(begin) => text.starts_with(&**begin),
            Self::Suffix(end) => text.ends_with(&**end),
            Self::Any => !text.is_empty(),
        }
    }

    /// The text without its wildcard.
    pub(crate) fn stem(&self) -> &str {
        match self {
            Self::Exact(text) | Self::Prefix(text) | Self::Suffix(text) => text,
            Self::Any => "",
        }
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(begin) => write!(f, "{begin}*"),
            Self::Suffix(end) => write!(f, "*{end}"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// A name of a caller: one, those that begin or end so, or anyone who has proven an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Principal {
    Exact(SpiffeId),
    /// Compared with the ID without `spiffe://`.
    Alike(Text),
}

impl Principal {
    pub(crate) fn parse(text: &str) -> Result<Self, PatternError> {
        let name = text.strip_prefix("spiffe://").unwrap_or(text);
        let alike = Text::parse(name)?;
        if let Text::Exact(name) = &alike {
            let id: SpiffeId = format!("spiffe://{name}")
                .parse()
                .map_err(|e| PatternError::SpiffeId(format!("{e}")))?;
            if id.path().is_empty() {
                return Err(PatternError::SpiffeId("a trust domain alone names no workload; write `/*` behind it or use trustDomains".to_owned()));
            }
            return Ok(Self::Exact(id));
        }
        // What no ID can begin or end with would be a rule that looks as if it meant something.
        let possible = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/');
        if !alike.stem().bytes().all(possible) || alike.stem().contains("//") {
            return Err(PatternError::SpiffeId(
                "no ID begins or ends like this".to_owned(),
            ));
        }
        Ok(Self::Alike(alike))
    }

    pub(crate) fn matches(&self, peer: &SpiffeId) -> bool {
        match self {
            Self::Exact(id) => id == peer,
            Self::Alike(text) => {
                let whole = peer.as_str();
                text.matches(whole.strip_prefix("spiffe://").unwrap_or(whole))
            }
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(id) => write!(f, "{id}"),
            Self::Alike(text) => write!(f, "{text}"),
        }
    }
}

/// A Kubernetes service account of any trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceAccount {
    namespace: Box<str>,
    name: Box<str>,
}

impl ServiceAccount {
    /// `namespace/name`, or a name in the namespace of the policy.
    pub(crate) fn parse(text: &str, own: Option<&str>) -> Result<Self, PatternError> {
        let (namespace, name) = match (text.split_once('/'), own) {
            (Some(both), _) => both,
            (None, Some(own)) => (own, text),
            (None, None) => return Err(PatternError::ServiceAccount),
        };
        let plain = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        };
        if !plain(namespace) || !plain(name) {
            return Err(PatternError::ServiceAccount);
        }
        Ok(Self {
            namespace: namespace.into(),
            name: name.into(),
        })
    }

    pub(crate) fn matches(&self, namespace: &str, name: &str) -> bool {
        *self.namespace == *namespace && *self.name == *name
    }
}

impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Namespace and service account of an ID of the form `spiffe://<trust domain>/ns/<namespace>/sa/<account>`.
pub(crate) fn kubernetes_names(id: &SpiffeId) -> Option<(&str, &str)> {
    let (namespace, rest) = id.path().strip_prefix("/ns/")?.split_once('/')?;
    let account = rest.strip_prefix("sa/")?;
    (!account.contains('/')).then_some((namespace, account))
}

/// An address or a block of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cidr {
    base: IpAddr,
    bits: u8,
}

impl Cidr {
    pub(crate) fn parse(text: &str) -> Result<Self, PatternError> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let base: IpAddr = address.parse().map_err(|_| PatternError::Cidr)?;
        let most: u8 = if base.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(bits) if !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit()) => bits
                .parse()
                .ok()
                .filter(|bits| *bits <= most)
                .ok_or(PatternError::Cidr)?,
            Some(_) => return Err(PatternError::Cidr),
        };
        // A block of mapped addresses is the block of the IPv4 addresses.
        if plain(base) != base {
            let bits = bits.checked_sub(96).ok_or(PatternError::Cidr)?;
            return Ok(Self {
                base: plain(base),
                bits,
            });
        }
        Ok(Self { base, bits })
    }

    pub(crate) fn contains(self, address: IpAddr) -> bool {
        let (base, address, width) = match (self.base, plain(address)) {
            (IpAddr::V4(base), IpAddr::V4(address)) => (
                u128::from(base.to_bits()),
                u128::from(address.to_bits()),
                32,
            ),
            (IpAddr::V6(base), IpAddr::V6(address)) => (base.to_bits(), address.to_bits(), 128),
            _ => return false,
        };
        let shift = width - u32::from(self.bits);
        base.checked_shr(shift).unwrap_or(0) == address.checked_shr(shift).unwrap_or(0)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

pub(crate) fn parse_port(text: &str) -> Result<u16, PatternError> {
    if text.is_empty() || text.len() > 5 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(PatternError::Port);
    }
    match text.parse() {
        Ok(port @ 1..) if !text.starts_with('0') => Ok(port),
        _ => Err(PatternError::Port),
    }
}

pub(crate) fn parse_trust_domain(text: &str) -> Result<TrustDomain, PatternError> {
    text.parse()
        .map_err(|e| PatternError::TrustDomain(format!("{e}")))
}

/// A request method, compared byte by byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Method(Text);

impl Method {
    pub(crate) fn parse(text: &str) -> Result<Self, PatternError> {
        let method = Text::parse(text)?;
        let token = |b: u8| b.is_ascii_uppercase() || b == b'-' || b == b'_';
        if method.stem().len() <= 32 && method.stem().bytes().all(token) {
            Ok(Self(method))
        } else {
            Err(PatternError::Method)
        }
    }

    pub(crate) fn matches(&self, method: &str) -> bool {
        self.0.matches(method)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A host, compared without regard to case (both sides are canonical: lower case), and its port where one is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    name: Text,
    port: Option<u16>,
}

impl Host {
    pub(crate) fn parse(text: &str) -> Result<Self, PatternError> {
        // `name:*` is Istio's way to say that the port does not matter, which is what a name alone says here.
        let (name, port) = match text.rsplit_once(':') {
            Some((name, "*")) => (name, None),
            Some((name, port)) if !name.contains(':') || name.ends_with(']') => (
                name,
                Some(parse_port(port).map_err(|_| PatternError::Host)?),
            ),
            _ => (text, None),
        };
        let name = match Text::parse(name)? {
            Text::Exact(name) => {
                let host = CanonicalHost::parse(&name).map_err(|_| PatternError::Host)?;
                if host.port().is_some() {
                    return Err(PatternError::Host);
                }
                Text::Exact(host.name().into())
            }
            Text::Prefix(begin) => Text::Prefix(host_part(&begin)?),
            Text::Suffix(end) => Text::Suffix(host_part(&end)?),
            Text::Any => Text::Any,
        };
        Ok(Self { name, port })
    }

    /// `port` is what the request wrote; where it wrote none, a port in the pattern matches only if that is stricter.
    pub(crate) fn matches(&self, host: &str, port: Option<u16>, wide: bool) -> bool {
        let whole = self.name.matches(host)
            && match &self.name {
                Text::Suffix(end) => host.len() > end.len(),
                _ => true,
            };
        whole
            && match (self.port, port) {
                (None, _) => true,
                (Some(own), Some(port)) => own == port,
                (Some(_), None) => wide,
            }
    }
}

fn host_part(text: &str) -> Result<Box<str>, PatternError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if text.bytes().all(plain) {
        Ok(text.to_ascii_lowercase().into())
    } else {
        Err(PatternError::Host)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

/// A path of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Path {
    Exact(Box<str>),
    /// `/public*`: every path that begins so.
    Prefix(Box<str>),
    /// `*/info`: every path that ends so.
    Suffix(Box<str>),
    Template(Box<[Segment]>),
    Any,
}

/// A segment of a template: `/users/{*}/keys`, `/files/{**}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Segment {
    Literal(Box<str>),
    One,
    Rest,
}

impl Path {
    pub(crate) fn parse(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        if text == "*" {
            return Ok(Self::Any);
        }
        if text.contains('{') || text.contains('}') {
            return Self::parse_template(text);
        }
        if let Some(suffix) = text.strip_prefix('*') {
            if suffix.contains('*') {
                return Err(PatternError::WildcardInside);
            }
            // A suffix may begin inside a segment, so it is completed before it is checked.
            let whole = if suffix.starts_with('/') {
                suffix
            } else {
                &format!("/x{suffix}")
            };
            CanonicalPath::parse(whole).map_err(PatternError::Path)?;
            return Ok(Self::Suffix(suffix.into()));
        }
        if !text.starts_with('/') {
            return Err(PatternError::PathStart);
        }
        let Some(stem) = text.strip_suffix('*') else {
            if text.contains('*') {
                return Err(PatternError::WildcardInside);
            }
            CanonicalPath::parse(text).map_err(PatternError::Path)?;
            return Ok(Self::Exact(text.into()));
        };
        if stem.contains('*') {
            return Err(PatternError::WildcardInside);
        }
        // A prefix may end inside a segment, so it is completed before it is checked.
        CanonicalPath::parse(&format!("{stem}x")).map_err(PatternError::Path)?;
        Ok(Self::Prefix(stem.into()))
    }

    fn parse_template(text: &str) -> Result<Self, PatternError> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err(PatternError::PathStart);
        };
        let mut segments = Vec::new();
        for part in rest.split('/') {
            if segments.last() == Some(&Segment::Rest) {
                return Err(PatternError::Template);
            }
            segments.push(match part {
                "{*}" => Segment::One,
                "{**}" => Segment::Rest,
                literal if literal.contains(['{', '}', '*']) => return Err(PatternError::Template),
                literal => {
                    CanonicalPath::parse(&format!("/{literal}")).map_err(PatternError::Path)?;
                    Segment::Literal(literal.into())
                }
            });
        }
        Ok(Self::Template(segments.into()))
    }

    /// Whether the path matches. With `wide`, the form with and without one slash at the end are the same: that
    /// is asked wherever a match makes the policy stricter, because many applications serve both alike.
    pub(crate) fn matches(&self, path: &str, wide: bool) -> bool {
        if self.matches_bytes(path) {
            return true;
        }
        wide && match path.strip_suffix('/') {
            Some(shorter) => !shorter.is_empty() && self.matches_bytes(shorter),
            None => match self {
                Self::Exact(own) => own.strip_suffix('/') == Some(path),
                Self::Suffix(own) => own
                    .strip_suffix('/')
                    .is_some_and(|own| !own.is_empty() && path.ends_with(own)),
                Self::Prefix(own) => own.strip_suffix('/') == Some(path),
                Self::Template(_) | Self::Any => false,
            },
        }
    }

    fn matches_bytes(&self, path: &str) -> bool {
        match self {
            Self::Exact(own) => &**own == path,
            Self::Prefix(stem) => path.starts_with(&**stem),
            Self::Suffix(end) => path.ends_with(&**end),
            Self::Template(segments) => matches_template(segments, path),
            Self::Any => true,
        }
    }
}

fn matches_template(segments: &[Segment], path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else {
        return false;
    };
    let mut parts = rest.split('/');
    for segment in segments {
        match (segment, parts.next()) {
            (_, None) => return false,
            (Segment::Rest, Some(_)) => return true,
            (Segment::One, Some("")) => return false,
            (Segment::One, Some(_)) => {}
            (Segment::Literal(own), Some(part)) if &**own == part => {}
            (Segment::Literal(_), Some(_)) => return false,
        }
    }
    parts.next().is_none()
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(own) => f.write_str(own),
            Self::Prefix(stem) => write!(f, "{stem}*"),
            Self::Suffix(end) => write!(f, "*{end}"),
            Self::Template(segments) => segments.iter().try_for_each(|segment| match segment {
                Segment::Literal(own) => write!(f, "/{own}"),
                Segment::One => f.write_str("/{*}"),
                Segment::Rest => f.write_str("/{**}"),
            }),
            Self::Any => f.write_str("*"),
        }
    }
}
