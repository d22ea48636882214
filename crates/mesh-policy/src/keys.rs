//! Where the keys of an issuer come from: from the document, a file of this machine, or a place in the Web.
//! Trusts nobody to have meant what he did not write: an address is whole, or it is refused.
//! Never fetches anything; whoever does finds host, port and path already taken apart.

use std::fmt;

use mesh_identity::{JwtAuthority, TrustDomain};

use crate::pattern::PatternError;

/// Where the keys of an issuer come from.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// They stand in the document.
    Inline(Vec<JwtAuthority>),
    /// A file with a JSON Web Key Set, by its absolute path.
    File(String),
    /// A place in the Web that serves one.
    Web(KeyUrl),
    /// The Workload API: its tokens are JWT-SVIDs of this trust domain.
    Domain(TrustDomain),
}

/// An `https` URL, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyUrl {
    /// The host: a name, or an IPv4 address.
    pub host: String,
    /// The port; 443 if none was written.
    pub port: u16,
    /// Path and query.
    pub path: String,
}

impl fmt::Display for KeyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}:{}{}", self.host, self.port, self.path)
    }
}

impl KeySource {
    /// The keys of an issuer that is named and for whom no keys are: those of a trust domain.
    pub(crate) fn of_issuer(issuer: &str) -> Option<Self> {
        let domain = issuer.strip_prefix("spiffe://")?;
        domain.parse().ok().map(Self::Domain)
    }

    pub(crate) fn of_uri(text: &str) -> Result<Self, PatternError> {
        if let Some(path) = text
            .strip_prefix("file://")
            .filter(|path| path.starts_with('/'))
        {
            return Ok(Self::File(path.to_owned()));
        }
        let rest = text.strip_prefix("https://").ok_or(PatternError::KeyUri)?;
        url(rest).map(Self::Web).ok_or(PatternError::KeyUri)
    }
}

fn url(rest: &str) -> Option<KeyUrl> {
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, port.parse().ok().filter(|port| *port != 0)?),
        None => (authority, 443),
    };
    let in_host = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    let host_is_plain = !host.is_empty() && host.len() <= 253 && host.bytes().all(in_host);
    let in_path = |b: u8| b.is_ascii_graphic() && b != b'#' && b != b'\\';
    (host_is_plain && path.bytes().all(in_path)).then(|| KeyUrl {
        host: host.to_owned(),
        port,
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_without_keys_is_a_trust_domain_or_a_mistake() {
        assert!(matches!(
            KeySource::of_issuer("spiffe://dev.test"),
            Some(KeySource::Domain(domain)) if domain.as_str() == "dev.test"
        ));
        for other in [
            "https://dev.test",
            "dev.test",
            "spiffe://dev.test/shop",
            "spiffe://",
        ] {
            assert!(KeySource::of_issuer(other).is_none(), "{other}");
        }
    }

    #[test]
    fn a_place_of_keys_is_a_file_or_a_whole_https_address() {
        let web = |text: &str| match KeySource::of_uri(text) {
            Ok(KeySource::Web(url)) => url.to_string(),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(web("https://login.test"), "https://login.test:443/");
        assert_eq!(
            web("https://login.test:8443/keys?v=1"),
            "https://login.test:8443/keys?v=1"
        );
        assert!(
            matches!(KeySource::of_uri("file:///a"), Ok(KeySource::File(path)) if path == "/a")
        );
        for bad in [
            "http://login.test/keys",
            "https://",
            "https:///keys",
            "https://u@login.test/",
            "https://login.test:0/",
            "https://login.test:99999/",
            "https://[::1]/",
            "https://LOGIN.test/",
            "https://login.test/a#b",
            "https://login.test/a b",
            "https://login.test\\@evil.test/",
            "file://keys",
            "ftp://login.test/",
        ] {
            assert!(KeySource::of_uri(bad).is_err(), "{bad}");
        }
    }
}
