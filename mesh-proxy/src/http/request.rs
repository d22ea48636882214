//! The life of one request, in the order of architecture.md story 3: canonical, decided, headers, upstream, answer.
//! Trusts the connection for who asks; the request itself is trusted for nothing.
//! Never forwards what was not decided: the path that was judged goes on byte by byte, and the host that was judged.

use std::sync::Arc;

use http::header::{CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use mesh_policy::{CanonicalPath, PathRefusal};
use mesh_runtime::errors::ErrorChain;
use mesh_tls::HandshakeError;

use super::body::{ProxyBody, RequestBody};
use super::exchange::{Exchange, Host, Side, doubled_content_type};
use super::headers::{self, XFCC};
use super::pool::{Pool, SendError};
use super::refusal::{Refusal, Why};
use super::watch::PolicyWatch;
use crate::connections::Cut;
use crate::decide::{self, Caller, RequestFacts};
use crate::policy::Policies;

/// What an inbound connection adds to a request: who asks, who decides, and what is said about him.
pub(crate) struct Judge {
    pub(crate) policies: Policies,
    pub(crate) caller: Arc<Caller>,
    /// What is said about the caller; nothing of one without identity.
    pub(crate) client_cert: Option<HeaderValue>,
}

/// A request that comes in from another workload.
pub(crate) async fn inbound(
    side: &Arc<Side>,
    judge: &Judge,
    application: &Arc<Pool>,
    request: Request<Incoming>,
) -> Response<ProxyBody> {
    let (mut parts, body) = request.into_parts();
    let mut exchange = Exchange::begin(side, side.clock.now(), &parts);
    let facts = match canonical(side, &parts) {
        Ok(canonical) => canonical,
        Err(refusal) => return refuse(exchange, refusal, &parts),
    };
    exchange.host(&facts.host.name);
    // Before it is decided: what the application will not see must not speak for or against the caller.
    headers::strip_hop_by_hop(&mut parts.headers);
    headers::strip_claims(&mut parts.headers);
    let shown = judge
        .policies
        .current()
        .issuers
        .read(&mut parts.headers, side.clock.now());
    let shown = match shown {
        Ok(shown) => shown,
        Err(bad) => {
            let refusal = Refusal::new(Why::Token, "the token is not good").logged(bad.0);
            return refuse(exchange, refusal, &parts);
        }
    };
    let mut asked = RequestFacts {
        method: parts.method.clone(),
        path: facts.path,
        host: Arc::clone(&facts.host.name),
        host_port: facts.host.port,
        headers: None,
        token: shown.as_ref().map(|shown| Arc::clone(&shown.token)),
    };
    let decided = decide::request(&judge.policies, &judge.caller, &asked, Some(&parts.headers));
    let permit = match decided {
        Ok(permit) => permit,
        Err(denied) => {
            let why = if denied.decided.generation == 0 {
                Why::NoPolicy
            } else {
                Why::Denied
            };
            exchange.denied(&denied, why.code());
            let told = if why == Why::NoPolicy {
                "denied: this service has no policy yet"
            } else {
                "denied by the policy of this service"
            };
            return refuse(exchange, Refusal::new(why, told).logged(denied.why), &parts);
        }
    };
    exchange.allowed(&permit);
    // Streams outlive policies; a request that ends in a moment is asked again only with what was kept.
    if permit.decided().by_headers || exchange.is_grpc() {
        asked.headers = Some(Arc::new(parts.headers.clone()));
    }
    if let Some(client_cert) = &judge.client_cert {
        parts.headers.insert(XFCC, client_cert.clone());
    }
    let mut watch = PolicyWatch::new(
        judge.policies.clone(),
        asked,
        Arc::clone(&judge.caller),
        &permit,
        shown.map(|shown| (shown.until, side.clock.clone())),
    );
    let head = Head::of(&parts);
    let sending = forward(application, &mut exchange, parts, body, &facts.host);
    // While the application thinks, the policy may change: then the caller learns it now.
    let answer = tokio::select! {
        biased;
        answer = sending => answer,
        () = std::future::poll_fn(|cx| watch.poll_denied(cx)) => {
            let refusal = Refusal::new(Why::Denied, "denied by the policy of this service").logged(Cut::Policy.to_string());
            return refuse_head(exchange, refusal, &head);
        }
    };
    match answer {
        Ok(mut answer) => {
            // Only we say that we refused something.
            headers::strip_claims(&mut answer.response.headers);
            finish(answer, exchange, Some(watch), &head)
        }
        Err(refusal) => refuse_head(exchange, refusal, &head),
    }
}

/// A request of the local application to another workload.
pub(crate) async fn outbound(
    side: &Arc<Side>,
    peer: &Arc<Pool>,
    request: Request<Incoming>,
) -> Response<ProxyBody> {
    let (mut parts, body) = request.into_parts();
    let mut exchange = Exchange::begin(side, side.clock.now(), &parts);
    // HTTP/1.1 clients offer h2c on their first request as a matter of course; the offer may be ignored (RFC 9110 7.8).
    ignore_h2c(&mut parts.headers);
    let facts = match canonical(side, &parts) {
        Ok(canonical) => canonical,
        Err(refusal) => return refuse(exchange, refusal, &parts),
    };
    exchange.host(&facts.host.name);
    headers::strip_hop_by_hop(&mut parts.headers);
    headers::strip_claims(&mut parts.headers);
    let head = Head::of(&parts);
    match forward(peer, &mut exchange, parts, body, &facts.host).await {
        Ok(answer) => finish(answer, exchange, None, &head),
        Err(refusal) => refuse_head(exchange, refusal, &head),
    }
}

/// What of a request is still needed after it was sent.
struct Head {
    version: Version,
    is_head: bool,
    grpc: bool,
}

impl Head {
    fn of(parts: &Parts) -> Self {
        Self {
            version: parts.version,
            is_head: parts.method == Method::HEAD,
            grpc: super::refusal::is_grpc(&parts.headers),
        }
    }
}

struct Answer {
    response: http::response::Parts,
    body: Incoming,
    lease: super::pool::Lease,
}

/// Path and host, each in the only form that is decided and sent.
struct Canonical {
    path: PathAndQuery,
    host: Host,
}

/// Refuses whatever two programs could read differently (security.md M6 and M7), also what hyper accepts.
fn canonical(side: &Side, parts: &Parts) -> Result<Canonical, Refusal> {
    let Parts {
        method,
        uri,
        version,
        headers,
        ..
    } = parts;
    if method == Method::CONNECT {
        return Err(Refusal::new(Why::Upgrade, "CONNECT is not passed on"));
    }
    let token = method
        .as_str()
        .bytes()
        .all(|b| b.is_ascii_uppercase() || b == b'-' || b == b'_');
    if !token || method == Method::TRACE || method.as_str() == "PRI" || method.as_str().len() > 32 {
        return Err(Refusal::new(Why::Method, "this method is not passed on"));
    }
    if headers.contains_key(UPGRADE) {
        return Err(Refusal::new(
            Why::Upgrade,
            "a change of protocol is not passed on",
        ));
    }
    framing(headers, *version)?;
    let host = side
        .host(one_host(uri, headers, *version)?)
        .map_err(|refusal| {
            let told: &'static str = "the host is not a plain host name";
            Refusal::new(Why::Host, told).logged(refusal.to_string())
        })?;
    CanonicalPath::parse(uri.path()).map_err(|refusal| {
        let why = if refusal == PathRefusal::TooLong {
            Why::PathTooLong
        } else {
            Why::Path
        };
        Refusal::new(why, refusal.to_string())
    })?;
    let path = uri
        .path_and_query()
        .cloned()
        .ok_or_else(|| Refusal::new(Why::Path, "the request has no path"))?;
    Ok(Canonical { path, host })
}

fn framing(headers: &HeaderMap, version: Version) -> Result<(), Refusal> {
    let ambiguous = |told| Err(Refusal::new(Why::Ambiguous, told));
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    match (encodings.next(), encodings.next()) {
        (None, _) => {}
        (Some(one), None)
            if one.as_bytes().eq_ignore_ascii_case(b"chunked") && version == Version::HTTP_11 => {}
        _ => return ambiguous("the request has more than one transfer encoding"),
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let digits = !length.is_empty()
            && length.len() <= 19
            && length.as_bytes().iter().all(u8::is_ascii_digit);
        if !digits || lengths.next().is_some() {
            return ambiguous("the request has more than one length");
        }
        if headers.contains_key(TRANSFER_ENCODING) {
            return ambiguous("the request has a length and a transfer encoding");
        }
    }
    if headers
        .get(EXPECT)
        .is_some_and(|expect| !expect.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    {
        return ambiguous("the request expects something unknown");
    }
    if doubled_content_type(headers) {
        return ambiguous("the request has more than one content type");
    }
    Ok(())
}

/// The one host that the request names; two that differ are refused, and so is none.
fn one_host<'a>(
    uri: &'a Uri,
    headers: &'a HeaderMap,
    version: Version,
) -> Result<&'a [u8], Refusal> {
    let refused = |told| Err(Refusal::new(Why::Host, told));
    let mut hosts = headers.get_all(HOST).iter();
    let (header, second) = (hosts.next().map(HeaderValue::as_bytes), hosts.next());
    if second.is_some() {
        return refused("the request has more than one Host");
    }
    if uri
        .scheme()
        .is_some_and(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS)
    {
        return refused("the request has a scheme that is not http");
    }
    let authority = uri
        .authority()
        .map(|authority| authority.as_str().as_bytes());
    match (authority, header) {
        (Some(authority), Some(header)) if !authority.eq_ignore_ascii_case(header) => {
            refused("the request names two hosts")
        }
        (Some(authority), Some(_)) => Ok(authority),
        // In HTTP/1.1 a target with a host does not replace the header (RFC 9112 3.2).
        (Some(authority), None) if version == Version::HTTP_2 => Ok(authority),
        (None, Some(header)) => Ok(header),
        _ => refused("the request has no Host"),
    }
}

fn ignore_h2c(headers: &mut HeaderMap) {
    if headers
        .get(UPGRADE)
        .is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"h2c"))
    {
        headers.remove(UPGRADE);
    }
}

async fn forward(
    pool: &Arc<Pool>,
    exchange: &mut Exchange,
    mut parts: Parts,
    body: Incoming,
    host: &Host,
) -> Result<Answer, Refusal> {
    // Asking us is enough: hyper answers 100 when the upstream begins to read.
    parts.headers.remove(EXPECT);
    let grpc = exchange.is_grpc();
    let (body, received) = RequestBody::new(body, grpc, pool.body_idle());
    exchange.receives(received.clone());
    exchange.pass_on_trace(&mut parts.headers);
    // What belongs to the connection on which it came stays there.
    parts.extensions = http::Extensions::new();
    let request = Request::from_parts(parts, body);
    match pool.send(request, host, grpc).await {
        Ok((response, lease)) => {
            let (response, body) = response.into_parts();
            Ok(Answer {
                response,
                body,
                lease,
            })
        }
        Err(_) if received.is_some_and(|received| received.fell_silent()) => Err(Refusal::new(
            Why::SilentBody,
            "the body of the request did not come",
        )),
        Err(error) => Err(upstream_refusal(&error)),
    }
}

fn upstream_refusal(error: &SendError) -> Refusal {
    let (why, told) = match error {
        SendError::Connect(..) | SendError::Slow(..) => (Why::Connect, "no connection upstream"),
        SendError::Handshake(_, handshake) if is_wrong_server(handshake) => (
            Why::WrongServer,
            "the server upstream is not the one that must be there",
        ),
        SendError::Handshake(..) => (Why::Connect, "no secure connection upstream"),
        SendError::Refused(..) => (
            Why::RefusedByPeer,
            "the proxy upstream refused the identity of this workload",
        ),
        SendError::Http(..) => (
            Why::Broken,
            "the connection upstream broke before an answer came",
        ),
    };
    Refusal::new(why, told).logged(ErrorChain(error).to_string())
}

fn is_wrong_server(error: &HandshakeError) -> bool {
    matches!(
        error,
        HandshakeError::PeerRefused(mesh_tls::PeerRefused::NotPermitted(_))
    )
}

fn finish(
    answer: Answer,
    mut exchange: Exchange,
    watch: Option<PolicyWatch>,
    head: &Head,
) -> Response<ProxyBody> {
    let Answer {
        mut response,
        body,
        lease,
    } = answer;
    headers::strip_hop_by_hop(&mut response.headers);
    if response.status == StatusCode::SWITCHING_PROTOCOLS {
        // Nobody asked for it, so whatever follows cannot be an answer (CVE-2026-2833).
        return refuse_head(
            exchange,
            Refusal::new(Why::Broken, "the answer upstream changes the protocol"),
            head,
        );
    }
    exchange.answered(response.status, &response.headers);
    let bodiless = head.is_head
        || matches!(
            response.status,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        );
    response.version = head.version;
    response.extensions = http::Extensions::new();
    Response::from_parts(
        response,
        ProxyBody::upstream(body, lease, exchange, watch, bodiless),
    )
}

fn refuse(exchange: Exchange, refusal: Refusal, parts: &Parts) -> Response<ProxyBody> {
    refuse_head(exchange, refusal, &Head::of(parts))
}

fn refuse_head(mut exchange: Exchange, refusal: Refusal, head: &Head) -> Response<ProxyBody> {
    let response = refusal.response(exchange.id, head.version, head.grpc);
    exchange.refused(&refusal);
    exchange.finish();
    response
}
