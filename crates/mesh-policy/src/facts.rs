//! What is known of a connection or of a request when it is decided.
//! Trusts that the peer was proven by a handshake; decides itself whether a path and a host are canonical.
//! Never repairs a path: one that two programs could read differently is refused, with the reason.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use mesh_identity::SpiffeId;

/// The facts about one connection, and about one request when there is one.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Who asks, as proven by the handshake; `None` for a caller without a certificate.
    pub peer: Option<&'a SpiffeId>,
    /// The address from which the connection comes.
    pub peer_address: Option<IpAddr>,
    /// The address from which the request comes, as far as trusted proxies tell it.
    pub remote_address: Option<IpAddr>,
    /// The address of the workload.
    pub address: Option<IpAddr>,
    /// The port of the workload (not of the proxy in front of it).
    pub port: u16,
    /// The server name that the caller asked for in the handshake. It is the caller's word.
    pub sni: Option<&'a str>,
    /// The request, when the door speaks HTTP.
    pub http: Option<HttpFacts<'a>>,
}

impl<'a> Facts<'a> {
    /// A connection of which only the caller and the port are known. What else is known is set field by field;
    /// what is not known satisfies no condition that allows.
    #[must_use]
    pub fn new(peer: Option<&'a SpiffeId>, port: u16) -> Self {
        Self {
            peer,
            peer_address: None,
            remote_address: None,
            address: None,
            port,
            sni: None,
            http: None,
        }
    }

    /// With a request on that connection.
    #[must_use]
    pub fn with(self, http: HttpFacts<'a>) -> Self {
        Self {
            http: Some(http),
            ..self
        }
    }
}

/// The facts about one HTTP request.
#[derive(Debug, Clone, Copy)]
pub struct HttpFacts<'a> {
    /// The method, byte by byte as it was sent.
    pub method: &'a str,
    /// The host, canonical: lower case, without port, without a dot at the end.
    pub host: &'a str,
    /// The port that stood behind the host, if one did.
    pub host_port: Option<u16>,
    /// The path, canonical, without the query.
    pub path: CanonicalPath<'a>,
    /// The headers; `None` when nobody kept them.
    pub headers: Option<&'a dyn Headers>,
    /// What a verified token says; `None` when there was none.
    pub token: Option<&'a Token>,
}

impl<'a> HttpFacts<'a> {
    /// A request of which only these three are known.
    #[must_use]
    pub fn new(method: &'a str, host: &'a str, path: CanonicalPath<'a>) -> Self {
        Self {
            method,
            host,
            host_port: None,
            path,
            headers: None,
            token: None,
        }
    }
}

/// The headers of a request, whatever keeps them.
pub trait Headers: fmt::Debug + Sync {
    /// Calls `each` with every value of the header of this lower-case name, line by line.
    fn each(&self, name: &str, each: &mut dyn FnMut(&[u8]));
}

/// What a verified token of a request says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Token {
    /// `<issuer>/<subject>`.
    pub principal: String,
    /// Whom it is for.
    pub audiences: Vec<String>,
    /// The claim `azp`.
    pub presenter: Option<String>,
    /// Every claim that is text, a number, a boolean or a list of them: its path and its values.
    pub claims: Vec<(Vec<String>, Vec<String>)>,
}

/// The longest path that is decided. Longer ones are refused before anything looks at them.
pub const LONGEST_PATH: usize = 8 * 1024;

/// A path that every program reads alike: the only spelling of what it says.
///
/// Accepted bytes are the unreserved and most of the delimiters of RFC 3986, and percent-encodings, in capital
/// hexadecimal, only of bytes that may not stand there unencoded. So no two accepted paths decode to the same text,
/// and what was decided can be forwarded byte by byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CanonicalPath<'a>(&'a str);

impl<'a> CanonicalPath<'a> {
    /// Accepts a path as it is, or refuses it.
    ///
    /// # Errors
    /// The first reason found, reading from the left.
    pub fn parse(path: &'a str) -> Result<Self, PathRefusal> {
        let bytes = path.as_bytes();
        if bytes.len() > LONGEST_PATH {
            return Err(PathRefusal::TooLong);
        }
        if bytes.first() != Some(&b'/') {
            return Err(PathRefusal::NoSlash);
        }
        let mut at = 0;
        // Start of the segment that is being read, one behind its slash.
        let mut segment = 1;
        while let Some(&byte) = bytes.get(at) {
            match CLASS[byte as usize] {
                Class::Plain => at += 1,
                Class::Slash => {
                    if at > 0 {
                        check_segment(bytes, segment, at)?;
                        if at == segment {
                            return Err(PathRefusal::DoubleSlash);
                        }
                    }
                    at += 1;
                    segment = at;
                }
                Class::Percent => at = check_encoding(bytes, at)?,
                Class::Refused => return Err(refusal_of(byte)),
            }
        }
        check_segment(bytes, segment, bytes.len())?;
        Ok(Self(path))
    }

    /// The path, byte by byte as it was sent.
    #[must_use]
    pub fn as_str(self) -> &'a str {
        self.0
    }
}

impl fmt::Display for CanonicalPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Why a path is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PathRefusal {
    /// Longer than [`LONGEST_PATH`].
    #[error("the path is longer than {LONGEST_PATH} bytes")]
    TooLong,
    /// Does not begin with a slash.
    #[error("the path does not begin with `/`")]
    NoSlash,
    /// `//`.
    #[error("the path has an empty segment (`//`)")]
    DoubleSlash,
    /// `/./` or `/../`, also at the end.
    #[error("the path has a `.` or `..` segment")]
    DotSegment,
    /// `\`.
    #[error("the path has a backslash")]
    Backslash,
    /// `;`, which some programs cut off and others do not.
    #[error("the path has a `;` parameter")]
    Semicolon,
    /// `#`.
    #[error("the path has a fragment")]
    Fragment,
    /// `?`.
    #[error("the path has a `?`")]
    Query,
    /// A control byte, NUL included.
    #[error("the path has a control character")]
    Control,
    /// A byte of 0x80 or above.
    #[error("the path has a byte outside ASCII; percent-encode UTF-8")]
    NotAscii,
    /// A byte that RFC 3986 does not allow unencoded, such as a space or `<`.
    #[error("the path has a character that has to be percent-encoded")]
    MustBeEncoded,
    /// `%` without two hexadecimal digits.
    #[error("the path has an incomplete percent-encoding")]
    BadEncoding,
    /// `%2f` for `%2F`: two spellings of one byte.
    #[error("the path has a percent-encoding in small letters; write it in capitals")]
    SmallHex,
    /// `%2F`, `%5C` or `%2E`.
    #[error("the path has a percent-encoded slash, backslash or dot")]
    EncodedSeparator,
    /// `%00` to `%1F` and `%7F`.
    #[error("the path has a percent-encoded control character")]
    EncodedControl,
    /// `%61` for `a`, `%3B` for `;`: what stands for itself is not encoded, and what is refused stays refused.
    #[error("the path percent-encodes a character that stands for itself or is refused")]
    NeedlessEncoding,
    /// Overlong forms, halves of a character, surrogates.
    #[error("the path percent-encodes bytes that are not UTF-8")]
    NotUtf8,
}

impl PathRefusal {
    /// A short stable word, for a metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::NoSlash => "no_slash",
            Self::DoubleSlash => "double_slash",
            Self::DotSegment => "dot_segment",
            Self::Backslash => "backslash",
            Self::Semicolon => "semicolon",
            Self::Fragment => "fragment",
            Self::Query => "query",
            Self::Control => "control",
            Self::NotAscii => "not_ascii",
            Self::MustBeEncoded => "must_be_encoded",
            Self::BadEncoding => "bad_encoding",
            Self::SmallHex => "small_hex",
            Self::EncodedSeparator => "encoded_separator",
            Self::EncodedControl => "encoded_control",
            Self::NeedlessEncoding => "needless_encoding",
            Self::NotUtf8 => "not_utf8",
        }
    }
}

#[derive(Clone, Copy)]
enum Class {
    Plain,
    Slash,
    Percent,
    Refused,
}

const CLASS: [Class; 256] = {
    let mut table = [Class::Refused; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        if is_plain(b) {
            table[byte] = Class::Plain;
        }
        byte += 1;
    }
    table[b'/' as usize] = Class::Slash;
    table[b'%' as usize] = Class::Percent;
    table
};

/// Unreserved, `:`, `@` and the sub-delims of RFC 3986 without `;`.
const fn is_plain(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b'@'
        | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=')
}

fn refusal_of(byte: u8) -> PathRefusal {
    match byte {
        b'\\' => PathRefusal::Backslash,
        b';' => PathRefusal::Semicolon,
        b'#' => PathRefusal::Fragment,
        b'?' => PathRefusal::Query,
        0..=0x1f | 0x7f => PathRefusal::Control,
        0x80.. => PathRefusal::NotAscii,
        _ => PathRefusal::MustBeEncoded,
    }
}

fn check_segment(bytes: &[u8], start: usize, end: usize) -> Result<(), PathRefusal> {
    match bytes.get(start..end) {
        Some(b"." | b"..") => Err(PathRefusal::DotSegment),
        _ => Ok(()),
    }
}

/// Checks the encoded character that begins at `at`; the position behind it.
fn check_encoding(bytes: &[u8], at: usize) -> Result<usize, PathRefusal> {
    let first = encoded_byte(bytes, at)?;
    match first {
        b'/' | b'\\' | b'.' => Err(PathRefusal::EncodedSeparator),
        0..=0x1f | 0x7f => Err(PathRefusal::EncodedControl),
        b' ' | b'"' | b'%' | b'<' | b'>' | b'[' | b']' | b'^' | b'`' | b'{' | b'|' | b'}' => {
            Ok(at + 3)
        }
        0..=0x7f => Err(PathRefusal::NeedlessEncoding),
        0x80.. => {
            let width = match first {
                0xc2..=0xdf => 2,
                0xe0..=0xef => 3,
                0xf0..=0xf4 => 4,
                _ => return Err(PathRefusal::NotUtf8),
            };
            let mut character = [0_u8; 4];
            for (i, slot) in character.iter_mut().take(width).enumerate() {
                if bytes.get(at + 3 * i) != Some(&b'%') {
                    return Err(PathRefusal::NotUtf8);
                }
                *slot = encoded_byte(bytes, at + 3 * i)?;
            }
            let text =
                std::str::from_utf8(&character[..width]).map_err(|_| PathRefusal::NotUtf8)?;
            // U+0080 to U+009F are control characters too.
            if text.chars().any(char::is_control) {
                Err(PathRefusal::EncodedControl)
            } else {
                Ok(at + 3 * width)
            }
        }
    }
}

fn encoded_byte(bytes: &[u8], at: usize) -> Result<u8, PathRefusal> {
    let (Some(&high), Some(&low)) = (bytes.get(at + 1), bytes.get(at + 2)) else {
        return Err(PathRefusal::BadEncoding);
    };
    let digit = |b: u8| match b {
        b'0'..=b'9' => Ok(b - b'0'),
        b'A'..=b'F' => Ok(b - b'A' + 10),
        b'a'..=b'f' => Err(PathRefusal::SmallHex),
        _ => Err(PathRefusal::BadEncoding),
    };
    Ok(digit(high)? << 4 | digit(low)?)
}

/// A host in the only spelling that is decided and forwarded: lower case, no dot at the end, the port apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanonicalHost<'a> {
    name: Cow<'a, str>,
    port: Option<u16>,
    rewritten: bool,
}

impl<'a> CanonicalHost<'a> {
    /// Reads `Host` or `:authority`.
    ///
    /// # Errors
    /// Userinfo, lists, percent-encodings, anything that is not a name, an IPv4 or a bracketed IPv6 address.
    pub fn parse(text: &'a str) -> Result<Self, HostRefusal> {
        if text.is_empty() {
            return Err(HostRefusal::Empty);
        }
        if text.len() > 255 + 6 {
            return Err(HostRefusal::TooLong);
        }
        if text.starts_with('[') {
            return Self::parse_v6(text);
        }
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => (name, Some(parse_port(port)?)),
            None => (text, None),
        };
        let trimmed = name.strip_suffix('.').unwrap_or(name);
        if trimmed.is_empty() {
            return Err(HostRefusal::Empty);
        }
        if name.contains('@') {
            return Err(HostRefusal::Userinfo);
        }
        let mut label = 0_usize;
        let mut capitals = false;
        for byte in trimmed.bytes() {
            match byte {
                b'.' if label == 0 => return Err(HostRefusal::EmptyLabel),
                b'.' => label = 0,
                b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => label += 1,
                b'A'..=b'Z' => {
                    capitals = true;
                    label += 1;
                }
                _ => return Err(HostRefusal::Character),
            }
        }
        if label == 0 {
            return Err(HostRefusal::EmptyLabel);
        }
        let name_text = if capitals {
            Cow::Owned(trimmed.to_ascii_lowercase())
        } else {
            Cow::Borrowed(trimmed)
        };
        Ok(Self {
            name: name_text,
            port,
            rewritten: capitals || trimmed.len() != name.len(),
        })
    }

    fn parse_v6(text: &'a str) -> Result<Self, HostRefusal> {
        let close = text.find(']').ok_or(HostRefusal::Character)?;
        let inside = text.get(1..close).ok_or(HostRefusal::Character)?;
        let address: std::net::Ipv6Addr = inside.parse().map_err(|_| HostRefusal::Character)?;
        let port = match text.get(close + 1..) {
            None | Some("") => None,
            Some(rest) => Some(parse_port(
                rest.strip_prefix(':').ok_or(HostRefusal::Character)?,
            )?),
        };
        // One spelling per address (RFC 5952).
        let canonical = format!("[{address}]");
        let rewritten = text.get(..=close) != Some(canonical.as_str());
        Ok(Self {
            name: Cow::Owned(canonical),
            port,
            rewritten,
        })
    }

    /// The name, without port.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The port, if one was written.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Whether the canonical form differs from what was sent, so that the canonical one has to be forwarded.
    #[must_use]
    pub fn is_rewritten(&self) -> bool {
        self.rewritten
    }
}

impl fmt::Display for CanonicalHost<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// Why a host is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum HostRefusal {
    /// No host at all.
    #[error("the host is empty")]
    Empty,
    /// Longer than a name can be.
    #[error("the host is longer than 255 bytes")]
    TooLong,
    /// `user@host`.
    #[error("the host carries userinfo")]
    Userinfo,
    /// `a..b` or a dot in front.
    #[error("the host has an empty label")]
    EmptyLabel,
    /// Anything else.
    #[error("the host has a character that host names do not have")]
    Character,
    /// A port that is no number from 1 to 65535 in its shortest spelling.
    #[error("the port of the host is not a number from 1 to 65535")]
    Port,
}

fn parse_port(text: &str) -> Result<u16, HostRefusal> {
    if text.is_empty()
        || text.len() > 5
        || text.starts_with('0')
        || !text.bytes().all(|b| b.is_ascii_digit())
    {
        return Err(HostRefusal::Port);
    }
    text.parse().map_err(|_| HostRefusal::Port)
}

#[cfg(test)]
mod tests;
