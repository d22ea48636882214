//! The filters of SPIRE's list and count of agents: wire → values. SPIRE passes over a moment that it cannot read and then lists
//! everything; we refuse it.

use std::time::SystemTime;

use proto::spire::api::server::agent::v1 as wire;
use time::OffsetDateTime;

use super::super::super::Refusal;
use super::super::{bad_filter, selector_match};
use crate::registry::{AgentFilter, Page};

/// `2006-01-02 15:04:05 -0700 -07`, as Go's clients write it.
pub(super) fn moment(text: &str) -> Result<Option<SystemTime>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    let bad = || bad_filter("by_expires_before is not in the form `2006-01-02 15:04:05 -0700 -07`");
    let format = time::format_description::parse_borrowed::<2>(
        "[year]-[month]-[day] [hour]:[minute]:[second] [offset_hour sign:mandatory][offset_minute]",
    )
    .map_err(|_| bad())?;
    let (moment, zone) = text.rsplit_once(' ').ok_or_else(bad)?;
    // The hours of the offset once more: `+0530 +05`.
    let offset = moment.rsplit(' ').next().and_then(|offset| offset.get(..3));
    if offset != Some(zone) {
        return Err(bad());
    }
    OffsetDateTime::parse(moment, &format)
        .map(|moment| Some(moment.into()))
        .map_err(|_| bad())
}

/// The two filters of SPIRE have the same fields and different types.
macro_rules! filter {
    ($wire:expr) => {{
        match $wire {
            None => AgentFilter::default(),
            Some(wire) => AgentFilter {
                attestation_type: Some(wire.by_attestation_type.clone())
                    .filter(|kind| !kind.is_empty()),
                selectors: selector_match(wire.by_selector_match.as_ref())
                    .map_err(|refusal| refusal.within("failed to parse selectors"))?,
                banned: wire.by_banned,
                can_reattest: wire.by_can_reattest,
                expires_before: moment(&wire.by_expires_before)?,
            },
        }
    }};
}

/// Which agents, and which page of them.
pub(in super::super) fn list(
    request: &wire::ListAgentsRequest,
) -> Result<(AgentFilter, Page), Refusal> {
    let filter = filter!(request.filter.as_ref());
    Ok((filter, Page::new(request.page_size, &request.page_token)?))
}

/// Which agents.
pub(super) fn count(request: &wire::CountAgentsRequest) -> Result<AgentFilter, Refusal> {
    Ok(filter!(request.filter.as_ref()))
}
