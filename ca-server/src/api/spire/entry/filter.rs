//! The filters of SPIRE's list and count of entries: wire → values, refused in SPIRE's words.

use std::collections::BTreeSet;

use mesh_identity::{SpiffeId, TrustDomain};
use proto::convert::trust_domain_from_wire;
use proto::spire::api::server::entry::v1 as wire;
use proto::spire::api::types;
use proto::spire::api::types::federates_with_match::MatchBehavior;

use super::super::super::Refusal;
use super::super::{bad_filter, required_id, selector_match};
use crate::registry::{EntryFilter, Match, Page};

/// The two filters of SPIRE have the same fields and different types.
macro_rules! filter {
    ($wire:expr, $own:expr) => {{
        match $wire {
            None => EntryFilter::default(),
            Some(wire) => EntryFilter {
                spiffe_id: spiffe_id(wire.by_spiffe_id.as_ref(), $own)
                    .map_err(|refusal| refusal.within("malformed SPIFFE ID filter"))?,
                parent_id: member(wire.by_parent_id.as_ref(), $own)
                    .map_err(|refusal| refusal.within("malformed parent ID filter"))?,
                selectors: selector_match(wire.by_selectors.as_ref())
                    .map_err(|refusal| refusal.within("malformed selectors filter"))?,
                federates_with: federates_with(wire.by_federates_with.as_ref())
                    .map_err(|refusal| refusal.within("malformed federates with filter"))?,
                // An empty hint is no filter, as in SPIRE.
                hint: wire.by_hint.clone().filter(|hint| !hint.is_empty()),
                downstream: wire.by_downstream,
            },
        }
    }};
}

/// Which entries, and which page of them.
pub(in super::super) fn list(
    request: &wire::ListEntriesRequest,
    own: &TrustDomain,
) -> Result<(EntryFilter, Page), Refusal> {
    let filter = filter!(request.filter.as_ref(), own);
    Ok((filter, Page::new(request.page_size, &request.page_token)?))
}

/// Which entries.
pub(in super::super) fn count(
    request: &wire::CountEntriesRequest,
    own: &TrustDomain,
) -> Result<EntryFilter, Refusal> {
    Ok(filter!(request.filter.as_ref(), own))
}

/// An ID of our trust domain.
fn member(wire: Option<&types::Spiffeid>, own: &TrustDomain) -> Result<Option<SpiffeId>, Refusal> {
    let Some(wire) = wire else { return Ok(None) };
    let id = required_id("id", Some(wire))?;
    match id.is_member_of(own) {
        true => Ok(Some(id)),
        false => Err(bad_filter(&format!(
            "\"{id}\" is not a member of trust domain \"{own}\""
        ))),
    }
}

/// An ID that an entry may give.
fn spiffe_id(
    wire: Option<&types::Spiffeid>,
    own: &TrustDomain,
) -> Result<Option<SpiffeId>, Refusal> {
    let Some(id) = member(wire, own)? else {
        return Ok(None);
    };
    let why = match id.path() {
        "" => "path is empty",
        path if path == "/spire" || path.starts_with("/spire/") => {
            "path is in the reserved namespace"
        }
        _ => return Ok(Some(id)),
    };
    Err(bad_filter(&format!(
        "\"{id}\" is not a workload in trust domain \"{own}\"; {why}"
    )))
}

type Domains = (BTreeSet<TrustDomain>, Match);

fn federates_with(wire: Option<&types::FederatesWithMatch>) -> Result<Option<Domains>, Refusal> {
    let Some(wire) = wire else { return Ok(None) };
    let domains = wire
        .trust_domains
        .iter()
        .map(|name| trust_domain_from_wire("trust_domains", name))
        .collect::<Result<BTreeSet<_>, _>>()?;
    if domains.is_empty() {
        return Err(bad_filter("empty trust domain set"));
    }
    let how = match MatchBehavior::try_from(wire.r#match) {
        Ok(MatchBehavior::MatchExact) => Match::Exact,
        Ok(MatchBehavior::MatchSubset) => Match::Subset,
        Ok(MatchBehavior::MatchSuperset) => Match::Superset,
        Ok(MatchBehavior::MatchAny) => Match::Any,
        Err(_) => return Err(bad_filter("match is not one of the four")),
    };
    Ok(Some((domains, how)))
}
