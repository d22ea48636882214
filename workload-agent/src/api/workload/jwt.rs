//! Decides the answers about tokens: one for each identity of the caller that was asked for, and what a shown token proves.
//! Trusts the vault for entitlements and bundles, and `tokens` for the tokens.
//! Never answers in part: a caller could not tell a partial answer from a loss of entitlement (H-8).

use std::{collections::BTreeMap, sync::Arc};

use mesh_identity::{
    Bundle, BundleSet, SpiffeId,
    jwt::{JwtSvid, verify_jwt_svid},
};
use mesh_runtime::errors::ErrorChain;
use proto::spiffe::workload as wire;
use serde_json::Value;
use tonic::Status;

use super::super::caller::{Caller, gone};
use crate::vault::{Standing, View};

/// Claims of foreign trust domains that are passed on; what else they say, nobody here vouches for.
const FOREIGN_CLAIMS: [&str; 6] = ["sub", "aud", "exp", "iat", "nbf", "jti"];

/// FetchJWTSVID.
pub(super) async fn fetch(
    caller: Caller,
    view: Arc<View>,
    ask: wire::JwtsvidRequest,
) -> Result<wire::JwtsvidResponse, Status> {
    if ask.audience.iter().all(String::is_empty) {
        return Err(Status::invalid_argument("audience must be specified"));
    }
    let wanted = match ask.spiffe_id.as_str() {
        "" => None,
        text => Some(text.parse::<SpiffeId>().map_err(|error| {
            Status::invalid_argument(format!("spiffe_id is not a SPIFFE ID: {error}"))
        })?),
    };
    let now = caller.parts.clock.now();
    let mut entitled = match view.entitled(caller.facts(), now) {
        Standing::Ready(entitled) => entitled,
        Standing::NoIdentity => return Err(caller.no_identity("FetchJWTSVID")),
        Standing::NotSynced | Standing::NothingReady { .. } => return Err(not_synced(&caller)),
    };
    if let Some(wanted) = wanted {
        entitled.retain(|(entry, _)| entry.spiffe_id == wanted);
    }
    if entitled.is_empty() {
        return Err(caller.no_identity("FetchJWTSVID"));
    }
    let bundles = view.bundles();
    let tokens = entitled.iter().map(|(entry, _)| {
        let tokens = &caller.parts.tokens;
        tokens.get(entry, &ask.audience, bundles, &caller.parts.clock)
    });
    let tokens = futures::future::try_join_all(tokens).await;
    let tokens = tokens.map_err(|error| {
        tracing::warn!(pid = caller.peer.process().pid(), error = %ErrorChain(&error), "a token could not be had");
        Status::unavailable("a JWT-SVID could not be had; the ca-server may be out of reach")
    })?;
    let given = entitled.iter().zip(&tokens);
    caller
        .record_given(given.map(|((entry, _), token)| (entry.spiffe_id.as_str(), token.name())))
        .await?;
    if !caller.peer.process().is_alive() {
        return Err(gone());
    }
    let svids = entitled.into_iter().zip(tokens);
    Ok(wire::JwtsvidResponse {
        svids: svids
            .map(|((entry, hint), token)| wire::Jwtsvid {
                spiffe_id: entry.spiffe_id.as_str().to_owned(),
                svid: token.expose().to_owned(),
                hint,
            })
            .collect(),
    })
}

/// ValidateJWTSVID. Whoever may connect may ask; without an entry of its own it is answered by our own bundle alone.
pub(super) async fn validate(
    caller: Caller,
    view: Arc<View>,
    ask: wire::ValidateJwtsvidRequest,
) -> Result<wire::ValidateJwtsvidResponse, Status> {
    if ask.audience.is_empty() {
        return Err(Status::invalid_argument("audience must be specified"));
    }
    if ask.svid.is_empty() {
        return Err(Status::invalid_argument("svid must be specified"));
    }
    let now = caller.parts.clock.now();
    let own = view.trust_domain();
    let bundles: BundleSet = match view.bundles_for(caller.facts(), now) {
        Standing::Ready(state) => state.bundles.into_values().collect(),
        Standing::NoIdentity => view
            .bundles()
            .get(own)
            .map(Arc::<Bundle>::clone)
            .into_iter()
            .collect(),
        Standing::NotSynced | Standing::NothingReady { .. } => return Err(not_synced(&caller)),
    };
    let proven = verify_jwt_svid(&ask.svid, &bundles, &[&ask.audience], now)
        .map_err(|error| Status::invalid_argument(ErrorChain(&error).to_string()))?;
    let foreign = proven.id.trust_domain() != own;
    Ok(wire::ValidateJwtsvidResponse {
        spiffe_id: proven.id.as_str().to_owned(),
        claims: Some(claims(proven, foreign)),
    })
}

fn claims(proven: JwtSvid, foreign: bool) -> prost_types::Struct {
    let mut claims = proven.claims;
    if foreign {
        claims.retain(|name, _| FOREIGN_CLAIMS.contains(&name.as_str()));
    }
    // A list also when the token has one text, as SPIRE answers.
    claims.insert("aud".into(), proven.audience.into());
    structure(claims)
}

fn structure(members: serde_json::Map<String, Value>) -> prost_types::Struct {
    prost_types::Struct {
        fields: members
            .into_iter()
            .map(|(name, value)| (name, wire_value(value)))
            .collect::<BTreeMap<_, _>>(),
    }
}

fn wire_value(value: Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(value),
        Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        Value::String(value) => Kind::StringValue(value),
        Value::Array(values) => Kind::ListValue(prost_types::ListValue {
            values: values.into_iter().map(wire_value).collect(),
        }),
        Value::Object(members) => Kind::StructValue(structure(members)),
    };
    prost_types::Value { kind: Some(kind) }
}

fn not_synced(caller: &Caller) -> Status {
    caller.parts.metrics.no_identity("not_synced");
    Status::unavailable("the agent has not heard from its ca-server yet")
}
