//! Decides what a bundle endpoint's URL may be (SPIFFE Federation 5.2.1 and 5.2.2). Never lets a name and a password into a URL.

use std::fmt;
use std::str::FromStr;

use http::Uri;
use mesh_runtime::errors::Coded;

/// The longest URL that is read.
const LONGEST: usize = 2048;

/// Where a bundle is served: `https`, a host, no user info.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointUrl {
    text: Box<str>,
    host: Box<str>,
    port: u16,
    path_and_query: Box<str>,
}

impl EndpointUrl {
    /// The host, as it is compared with the endpoint's certificate.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The host as a URL has it: IPv6 in brackets.
    pub fn authority_host(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.to_string(),
        }
    }

    /// The port; 443 where the URL names none.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What is asked for.
    pub fn path_and_query(&self) -> &str {
        &self.path_and_query
    }

    /// The whole.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for EndpointUrl {
    type Err = EndpointUrlError;

    fn from_str(text: &str) -> Result<Self, EndpointUrlError> {
        if text.len() > LONGEST {
            return Err(EndpointUrlError::TooLong(text.len()));
        }
        // A URL without an authority is one that the parser cannot read, so the scheme is looked at first.
        let is_https = text
            .get(..8)
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"));
        if !is_https {
            return Err(EndpointUrlError::Scheme);
        }
        if matches!(text.as_bytes().get(8), None | Some(b'/' | b'?' | b':')) {
            return Err(EndpointUrlError::Host);
        }
        let uri: Uri = text.parse().map_err(|_| EndpointUrlError::Unreadable)?;
        let authority = uri.authority().ok_or(EndpointUrlError::Host)?;
        if authority.as_str().contains('@') {
            return Err(EndpointUrlError::UserInfo);
        }
        let host = authority.host();
        if host.is_empty() {
            return Err(EndpointUrlError::Host);
        }
        if text.contains('#') {
            return Err(EndpointUrlError::Fragment);
        }
        let port = match authority.as_str().strip_prefix(host) {
            Some("") => 443,
            _ => authority.port_u16().ok_or(EndpointUrlError::Unreadable)?,
        };
        Ok(Self {
            text: text.into(),
            host: host.trim_matches(['[', ']']).into(),
            port,
            path_and_query: uri
                .path_and_query()
                .map_or("/", |path| path.as_str())
                .into(),
        })
    }
}

/// Why a URL cannot be that of a bundle endpoint. SPIRE's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointUrlError {
    /// It is no URL.
    #[error("failed to parse bundle endpoint URL")]
    Unreadable,
    /// Too long.
    #[error("bundle endpoint URL has {0} bytes, more than {LONGEST}")]
    TooLong(usize),
    /// Another scheme.
    #[error("bundle endpoint URL must use the https scheme")]
    Scheme,
    /// No host.
    #[error("bundle endpoint URL must specify the host")]
    Host,
    /// A name, maybe a password.
    #[error("bundle endpoint URL must not contain user info")]
    UserInfo,
    /// A fragment.
    #[error("bundle endpoint URL must not contain a fragment")]
    Fragment,
}

impl Coded for EndpointUrlError {
    fn code(&self) -> &'static str {
        "FNL1270"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fed_13_25_a_url_is_https_with_a_host_and_without_user_info() {
        for (url, error) in [
            ("http://other.test/", EndpointUrlError::Scheme),
            ("other.test", EndpointUrlError::Scheme),
            ("", EndpointUrlError::Scheme),
            ("https:///bundle", EndpointUrlError::Host),
            ("https://", EndpointUrlError::Host),
            ("https://:8443/", EndpointUrlError::Host),
            ("https://me:secret@other.test/", EndpointUrlError::UserInfo),
            ("https://me@other.test/", EndpointUrlError::UserInfo),
            ("https://other.test/a b", EndpointUrlError::Unreadable),
            ("https://other.test:99999/", EndpointUrlError::Unreadable),
            ("https://other.test:/", EndpointUrlError::Unreadable),
            ("https://other.test/#x", EndpointUrlError::Fragment),
        ] {
            assert_eq!(url.parse::<EndpointUrl>(), Err(error), "{url}");
        }
        let long = format!("https://other.test/{}", "x".repeat(LONGEST));
        assert!(matches!(
            long.parse::<EndpointUrl>(),
            Err(EndpointUrlError::TooLong(_))
        ));
    }

    #[test]
    fn what_is_asked_of_whom_is_read_from_the_url() {
        let parts = |url: &str| {
            let url: EndpointUrl = url.parse().unwrap();
            (
                url.host().to_owned(),
                url.port(),
                url.path_and_query().to_owned(),
            )
        };
        let of = |host: &str, port, path: &str| (host.to_owned(), port, path.to_owned());
        assert_eq!(parts("https://other.test"), of("other.test", 443, "/"));
        assert_eq!(
            parts("HTTPS://other.test:8443/b?x=1"),
            of("other.test", 8443, "/b?x=1")
        );
        assert_eq!(parts("https://[::1]:8443"), of("::1", 8443, "/"));
        assert_eq!(parts("https://[::1]"), of("::1", 443, "/"));
    }
}
