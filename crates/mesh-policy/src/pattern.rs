//! Patterns of policy values: principals, hosts, methods and paths, parsed once and matched without allocation.
//! Trusts that what it is matched against is canonical already (`facts.rs`).
//! Never is a regular expression, never accepts a wildcard in a place where its meaning could be mistaken.

use std::fmt;

use mesh_identity::{SpiffeId, TrustDomain};

use crate::facts::{CanonicalPath, PathRefusal};

/// Why a pattern was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PatternError {
    #[error("not a SPIFFE ID: {0}")]
    SpiffeId(String),
    #[error("not a trust domain: {0}")]
    TrustDomain(String),
    #[error(
        "a leading wildcard would match this name in every trust domain; write the trust domain"
    )]
    LeadingWildcard,
    #[error(
        "a wildcard stands alone or right after a `/`: `{0}*` would also match names that merely begin so"
    )]
    NotAtBoundary(String),
    #[error("only one wildcard is possible, and only at the end")]
    WildcardInside,
    #[error("a method is a token in capital letters, such as GET")]
    Method,
    #[error(
        "not a host name: letters, digits, `-`, `.` and `_`, or `*.` in front of them; without scheme and port"
    )]
    Host,
    #[error("a path begins with `/` (or is `*`, or `*/` and the end of a path)")]
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

/// A name of a caller: exact, everything below a path, or anyone who has proven an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Principal {
    Exact(SpiffeId),
    /// The text up to and including the `/` before the wildcard, with `spiffe://`.
    Below(Box<str>),
    Anyone,
}

impl Principal {
    pub(crate) fn parse(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        if text == "*" {
            return Ok(Self::Anyone);
        }
        let full = if text.starts_with("spiffe://") {
            text.to_owned()
        } else {
            format!("spiffe://{text}")
        };
        let Some(stem) = full.strip_suffix('*') else {
            if full.contains('*') {
                return Err(if text.starts_with('*') {
                    PatternError::LeadingWildcard
                } else {
                    PatternError::WildcardInside
                });
            }
            let id: SpiffeId = full
                .parse()
                .map_err(|e| PatternError::SpiffeId(format!("{e}")))?;
            if id.path().is_empty() {
                return Err(PatternError::SpiffeId("a trust domain alone names no workload; write `/*` behind it or use trustDomains".to_owned()));
            }
            return Ok(Self::Exact(id));
        };
        if stem.contains('*') {
            return Err(PatternError::WildcardInside);
        }
        let Some(parent) = stem.strip_suffix('/') else {
            return Err(PatternError::NotAtBoundary(
                text.trim_end_matches('*').to_owned(),
            ));
        };
        if parent == "spiffe:/" || parent == "spiffe://" {
            return Err(PatternError::LeadingWildcard);
        }
        let _: SpiffeId = parent
            .parse()
            .map_err(|e| PatternError::SpiffeId(format!("{e}")))?;
        Ok(Self::Below(stem.into()))
    }

    pub(crate) fn matches(&self, peer: &SpiffeId) -> bool {
        match self {
            Self::Exact(id) => id == peer,
            Self::Below(stem) => peer.as_str().starts_with(&**stem),
            Self::Anyone => true,
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(id) => write!(f, "{id}"),
            Self::Below(stem) => write!(f, "{stem}*"),
            Self::Anyone => f.write_str("*"),
        }
    }
}

pub(crate) fn parse_trust_domain(text: &str) -> Result<TrustDomain, PatternError> {
    text.parse()
        .map_err(|e| PatternError::TrustDomain(format!("{e}")))
}

/// A request method, compared byte by byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Method {
    Exact(Box<str>),
    Any,
}

impl Method {
    pub(crate) fn parse(text: &str) -> Result<Self, PatternError> {
        match text {
            "" => Err(PatternError::Empty),
            "*" => Ok(Self::Any),
            _ if text.len() <= 32
                && text
                    .bytes()
                    .all(|b| b.is_ascii_uppercase() || b == b'-' || b == b'_') =>
            {
                Ok(Self::Exact(text.into()))
            }
            _ => Err(PatternError::Method),
        }
    }

    pub(crate) fn matches(&self, method: &str) -> bool {
        match self {
            Self::Exact(m) => &**m == method,
            Self::Any => true,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(m) => f.write_str(m),
            Self::Any => f.write_str("*"),
        }
    }
}

/// A host name, compared without port and without regard to case (both sides are canonical: lower case).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    Exact(Box<str>),
    /// `*.example.org` as `.example.org`: any name below it, not the name itself.
    Below(Box<str>),
    Any,
}

impl Host {
    pub(crate) fn parse(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        if text == "*" {
            return Ok(Self::Any);
        }
        let (name, below) = match text.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (text, false),
        };
        let host = crate::facts::CanonicalHost::parse(name).map_err(|_| PatternError::Host)?;
        if host.port().is_some() || (below && host.name().starts_with('[')) {
            return Err(PatternError::Host);
        }
        Ok(if below {
            Self::Below(format!(".{}", host.name()).into())
        } else {
            Self::Exact(host.name().into())
        })
    }

    pub(crate) fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => &**name == host,
            Self::Below(suffix) => host.len() > suffix.len() && host.ends_with(&**suffix),
            Self::Any => true,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Below(suffix) => write!(f, "*{suffix}"),
            Self::Any => f.write_str("*"),
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
            if !suffix.starts_with('/') {
                return Err(PatternError::PathStart);
            }
            CanonicalPath::parse(suffix).map_err(PatternError::Path)?;
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
