//! Headers on their way through: hop-by-hop ones end here, and identity is said by us or by nobody.
//! Trusts the handshake for the peer's identity, and no header for anything.
//! Never lets `Connection` remove a header that we set: it is obeyed first, and ours come after.

use http::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};
use mesh_identity::SpiffeId;
use mesh_tls::Peer;

pub(crate) const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Removes what concerns one hop only (RFC 9110 7.6.1). `TE: trailers` survives when the next hop is HTTP/2.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
            .collect();
        for name in named {
            // `close` and `keep-alive` are words of the connection; a header that frames or addresses the message stays.
            if !matches!(name.as_str(), "content-length" | "host" | "content-type") {
                headers.remove(name);
            }
        }
        headers.remove(CONNECTION);
    }
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        TRANSFER_ENCODING,
        UPGRADE,
        HTTP2_SETTINGS,
    ] {
        headers.remove(name);
    }
    if let Some(te) = headers.get(TE)
        && te != "trailers"
    {
        let trailers = te.to_str().is_ok_and(|te| {
            te.split(',')
                .any(|part| part.trim().eq_ignore_ascii_case("trailers"))
        });
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(TE);
        }
    }
}

/// Removes every header by which somebody could claim an identity or a decision, in any spelling.
pub(crate) fn strip_claims(headers: &mut HeaderMap) {
    // Most requests have none, and then nothing is allocated.
    if !headers.keys().any(is_claim) {
        return;
    }
    let claims: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_claim(name))
        .cloned()
        .collect();
    for name in claims {
        headers.remove(name);
    }
}

fn is_claim(name: &HeaderName) -> bool {
    let name = name.as_str();
    match name.as_bytes().first() {
        Some(b'x') => {
            let rest = &name[1..];
            // `_` and `-` are one character to many back ends.
            let spelled = |word: &str| {
                rest.len() >= word.len()
                    && rest
                        .bytes()
                        .zip(word.bytes())
                        .all(|(a, b)| a == b || (a == b'_' && b == b'-'))
            };
            (spelled("-forwarded-client-cert") && rest.len() == "-forwarded-client-cert".len())
                || (spelled("-real-ip") && rest.len() == "-real-ip".len())
                || spelled("-envoy-")
                || spelled("-finial-")
        }
        Some(b'l') => name.starts_with("l5d-") || name.starts_with("l5d_"),
        Some(b'f') => name == "forwarded",
        _ => false,
    }
}

/// What we say about the peer, once per connection: Envoy's form, one element.
///
/// SPIFFE IDs have no character that this form would have to quote; the serial number is hexadecimal.
pub(crate) fn client_cert(own: &SpiffeId, peer: &Peer) -> HeaderValue {
    let hash = peer
        .chain
        .first()
        .map(|leaf| ring::digest::digest(&ring::digest::SHA256, leaf));
    let hash: String = hash
        .iter()
        .flat_map(|digest| digest.as_ref())
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let value = format!("By={own};Hash={hash};URI={}", peer.id);
    HeaderValue::from_str(&value).unwrap_or(HeaderValue::from_static("-"))
}
