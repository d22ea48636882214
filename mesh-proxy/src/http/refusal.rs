//! What the proxy answers instead of the application: one code per reason, the same for people, programs and gRPC.
//! Trusts nothing of the request; tells a caller what he did wrong, and of a denial only its number.
//! Never lets a refusal look like an answer of the application: it carries `x-finial-error`.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version};

use super::body::ProxyBody;
use crate::decide::DecisionId;

pub(crate) const ERROR_HEADER: HeaderName = HeaderName::from_static("x-finial-error");
pub(crate) const DECISION_HEADER: HeaderName = HeaderName::from_static("x-finial-decision");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Why a request is not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// The policy in force does not allow it.
    Denied,
    /// There is no policy yet.
    NoPolicy,
    /// It shows a token that is not good.
    Token,
    /// The path is not canonical.
    Path,
    /// The path is too long.
    PathTooLong,
    /// The host is missing, doubled, in contradiction to the target, or no host.
    Host,
    /// Framing or headers that two programs could read differently.
    Ambiguous,
    /// A method that is not passed on.
    Method,
    /// CONNECT, or a change of protocol.
    Upgrade,
    /// Its body stopped coming.
    SilentBody,
    /// No connection to the application, or to the other proxy.
    Connect,
    /// Another identity answered than the one that must be there.
    WrongServer,
    /// The other proxy does not accept our identity.
    RefusedByPeer,
    /// The connection broke before an answer came.
    Broken,
}

impl Why {
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Denied => "FNL3001",
            Self::NoPolicy => "FNL3002",
            Self::Token => "FNL3005",
            Self::Path => "FNL3010",
            Self::PathTooLong => "FNL3011",
            Self::Host => "FNL3012",
            Self::Ambiguous => "FNL3013",
            Self::Method => "FNL3014",
            Self::Upgrade => "FNL3015",
            Self::SilentBody => "FNL3016",
            Self::Connect => "FNL3020",
            Self::WrongServer => "FNL3021",
            Self::RefusedByPeer => "FNL3022",
            Self::Broken => "FNL3023",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::Denied | Self::NoPolicy => StatusCode::FORBIDDEN,
            Self::Token => StatusCode::UNAUTHORIZED,
            Self::Path | Self::Host | Self::Ambiguous => StatusCode::BAD_REQUEST,
            Self::PathTooLong => StatusCode::URI_TOO_LONG,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Upgrade => StatusCode::NOT_IMPLEMENTED,
            Self::SilentBody => StatusCode::REQUEST_TIMEOUT,
            Self::Connect => StatusCode::SERVICE_UNAVAILABLE,
            Self::WrongServer | Self::RefusedByPeer | Self::Broken => StatusCode::BAD_GATEWAY,
        }
    }

    /// The gRPC status that a client library would expect.
    fn grpc(self) -> &'static str {
        match self {
            Self::Denied | Self::NoPolicy => "7",
            Self::Token => "16",
            Self::Path | Self::PathTooLong | Self::Host | Self::Ambiguous | Self::Method => "3",
            Self::Upgrade => "12",
            Self::SilentBody => "4",
            Self::Connect | Self::WrongServer | Self::RefusedByPeer | Self::Broken => "14",
        }
    }

    /// Istio's response flag.
    pub(crate) fn flag(self) -> &'static str {
        match self {
            Self::Denied | Self::NoPolicy | Self::Token => "DENY",
            Self::Path
            | Self::PathTooLong
            | Self::Host
            | Self::Ambiguous
            | Self::Method
            | Self::Upgrade => "DPE",
            Self::SilentBody => "DC",
            Self::Connect => "UF",
            Self::WrongServer | Self::RefusedByPeer => "UF_TLS",
            Self::Broken => "UC",
        }
    }

    /// After these nothing that follows on an HTTP/1.1 connection can be trusted to be a request.
    fn closes(self) -> bool {
        matches!(
            self,
            Self::Ambiguous | Self::Upgrade | Self::Host | Self::SilentBody
        )
    }
}

/// A refusal: the reason, a sentence for the caller and one for the log.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) why: Why,
    pub(crate) told: Cow<'static, str>,
    pub(crate) logged: Option<String>,
}

impl Refusal {
    pub(crate) fn new(why: Why, told: impl Into<Cow<'static, str>>) -> Self {
        Self {
            why,
            told: told.into(),
            logged: None,
        }
    }

    pub(crate) fn logged(mut self, sentence: String) -> Self {
        self.logged = Some(sentence);
        self
    }

    /// The answer.
    pub(crate) fn response(
        &self,
        id: DecisionId,
        version: Version,
        grpc: bool,
    ) -> Response<ProxyBody> {
        let code = self.why.code();
        let id = id.text();
        let id_value = HeaderValue::from_bytes(&id).unwrap_or(HeaderValue::from_static("-"));
        let shown = std::str::from_utf8(&id).unwrap_or_default();
        let mut response = if grpc {
            // A trailers-only answer: the status stands in the first and only header block.
            let mut response = Response::new(ProxyBody::empty());
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(GRPC_STATUS, HeaderValue::from_static(self.why.grpc()));
            let message = format!("{} [{code}] decision {shown}", self.told).replace('%', "%25");
            if let Ok(message) = HeaderValue::from_str(&message) {
                headers.insert(GRPC_MESSAGE, message);
            }
            response
        } else {
            let text = format!("{}\nerror: {code}\ndecision: {shown}\n", self.told);
            let length = text.len();
            let mut response = Response::new(ProxyBody::full(Bytes::from(text)));
            *response.status_mut() = self.why.status();
            response.headers_mut().insert(
                CONTENT_TYPE,
                HeaderValue::from_static("text/plain; charset=utf-8"),
            );
            response
                .headers_mut()
                .insert(CONTENT_LENGTH, HeaderValue::from(length));
            response
        };
        response
            .headers_mut()
            .insert(ERROR_HEADER, HeaderValue::from_static(code));
        response.headers_mut().insert(DECISION_HEADER, id_value);
        if self.why == Why::Token {
            // RFC 6750 3: what was wrong with it is for the log.
            let value = HeaderValue::from_static("Bearer error=\"invalid_token\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, value);
        }
        if self.why.closes() && version <= Version::HTTP_11 {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.why.status()
    }
}

/// Whether a request is gRPC, by its content type.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        let bytes = value.as_bytes();
        let base = b"application/grpc";
        bytes.len() >= base.len()
            && bytes[..base.len()].eq_ignore_ascii_case(base)
            && matches!(bytes.get(base.len()), None | Some(b'+' | b';' | b' '))
    })
}
