//! SPIRE's server API, one page per service. Wire → values, one call into a part, values → wire; no rule lives here.

mod agent;
mod bundle;
mod debug;
mod entry;
mod health;
mod item;
mod local_authority;
mod logger;
mod reading;
mod svid;
mod trustdomain;

pub(super) use self::reading::request as read_for_fuzzing;

use std::collections::BTreeSet;

use mesh_identity::Selector;
use proto::convert::{WireError, selectors_from_wire};
use proto::grpc::health::v1::health_server::HealthServer;
use proto::spire::api::server::agent::v1::agent_server::AgentServer;
use proto::spire::api::server::bundle::v1::bundle_server::BundleServer;
use proto::spire::api::server::debug::v1::debug_server::DebugServer;
use proto::spire::api::server::entry::v1::entry_server::EntryServer;
use proto::spire::api::server::localauthority::v1::local_authority_server::LocalAuthorityServer;
use proto::spire::api::server::logger::v1::logger_server::LoggerServer;
use proto::spire::api::server::svid::v1::svid_server::SvidServer;
use proto::spire::api::server::trustdomain::v1::trust_domain_server::TrustDomainServer;
use proto::spire::api::types::selector_match::MatchBehavior;
use tonic::{Code, Status};

use super::{Parts, Refusal};
use crate::registry::Match;

/// The largest message that is read. SPIRE's clients send no larger ones.
const LARGEST_MESSAGE: usize = 4 * 1024 * 1024;

pub(super) fn agent(parts: &Parts) -> AgentServer<agent::Service> {
    AgentServer::new(agent::Service::new(parts.clone())).max_decoding_message_size(LARGEST_MESSAGE)
}

pub(super) fn entry(parts: &Parts) -> EntryServer<entry::Service> {
    EntryServer::new(entry::Service::new(parts.clone())).max_decoding_message_size(LARGEST_MESSAGE)
}

pub(super) fn svid(parts: &Parts) -> SvidServer<svid::Service> {
    SvidServer::new(svid::Service::new(parts.clone())).max_decoding_message_size(LARGEST_MESSAGE)
}

pub(super) fn bundle(parts: &Parts) -> BundleServer<bundle::Service> {
    BundleServer::new(bundle::Service::new(parts.clone()))
        .max_decoding_message_size(LARGEST_MESSAGE)
}

pub(super) fn trustdomain(parts: &Parts) -> TrustDomainServer<trustdomain::Service> {
    TrustDomainServer::new(trustdomain::Service::new(parts.clone()))
        .max_decoding_message_size(LARGEST_MESSAGE)
}

pub(super) fn local_authority(parts: &Parts) -> LocalAuthorityServer<local_authority::Service> {
    LocalAuthorityServer::new(local_authority::Service::new(parts.clone()))
}

pub(super) fn logger(parts: &Parts) -> LoggerServer<logger::Service> {
    LoggerServer::new(logger::Service::new(parts))
}

pub(super) fn debug(parts: &Parts) -> DebugServer<debug::Service> {
    DebugServer::new(debug::Service::new(parts.clone()))
}

pub(super) fn health(parts: &Parts) -> HealthServer<health::Service> {
    HealthServer::new(health::Service::new(parts))
}

/// An RPC that the permit table says is not served; the guard answers before it is reached.
fn not_served() -> Status {
    unserved("this RPC is not served by this version of ca-server").into_status()
}

/// What SPIRE has and this version of ca-server has not.
fn unserved(says: &str) -> Refusal {
    Refusal::new("FNL1249", Code::Unimplemented, says)
}

/// Selectors of a filter; SPIRE refuses an empty set.
fn selector_match(
    wire: Option<&proto::spire::api::types::SelectorMatch>,
) -> Result<Option<(BTreeSet<Selector>, Match)>, Refusal> {
    let Some(wire) = wire else { return Ok(None) };
    let selectors = selectors_from_wire("selectors", &wire.selectors)?;
    if selectors.is_empty() {
        return Err(bad_filter("empty selector set"));
    }
    let how = match wire.r#match() {
        MatchBehavior::MatchExact => Match::Exact,
        MatchBehavior::MatchSubset => Match::Subset,
        MatchBehavior::MatchSuperset => Match::Superset,
        MatchBehavior::MatchAny => Match::Any,
    };
    if MatchBehavior::try_from(wire.r#match).is_err() {
        return Err(bad_filter("match is not one of the four"));
    }
    Ok(Some((selectors, how)))
}

fn bad_filter(why: &str) -> Refusal {
    Refusal::new("FNL1250", Code::InvalidArgument, why)
}

/// An ID of a request that must be there.
fn required_id(
    field: &str,
    wire: Option<&proto::spire::api::types::Spiffeid>,
) -> Result<mesh_identity::SpiffeId, Refusal> {
    match wire {
        None => Err(Refusal::new(
            "FNL1251",
            Code::InvalidArgument,
            format!("{field} is required and was not set"),
        )),
        Some(wire) => Ok(wire.try_into().map_err(|error: WireError| error)?),
    }
}

/// Seconds since 1970, as the wire has them.
fn seconds(moment: std::time::SystemTime) -> i64 {
    moment
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        })
}

/// An item of a batch that was done.
fn ok() -> proto::spire::api::types::Status {
    proto::spire::api::types::Status {
        code: 0,
        message: "OK".into(),
    }
}
