//! `finial.authority.v1`: for whom a turn waits, and who still holds what tainted authorities signed.

use std::collections::{BTreeMap, BTreeSet};

use mesh_identity::SpiffeId;
use proto::finial::authority::v1 as wire;
use tonic::{Request, Response, Status};

use super::super::{Call, Parts};
use crate::authority::tainted;

/// How many agents are named. The answer stays small; who has more has one cause for all of them.
const NAMED: usize = 100;

/// The service.
pub(crate) struct Service {
    parts: Parts,
}

impl Service {
    pub(super) fn new(parts: Parts) -> Self {
        Self { parts }
    }
}

fn agents<'a>(all: impl ExactSizeIterator<Item = &'a SpiffeId>) -> wire::Agents {
    wire::Agents {
        count: all.len() as u64,
        ids: all.take(NAMED).map(ToString::to_string).collect(),
    }
}

#[tonic::async_trait]
impl wire::authority_server::Authority for Service {
    async fn get_progress(
        &self,
        request: Request<wire::GetProgressRequest>,
    ) -> Result<Response<wire::GetProgressResponse>, Status> {
        let call = Call::of(&request)?;
        let waits_for = self.parts.authority.lacking().borrow().clone();
        let tainted = tainted(&self.parts.authority.status().borrow());
        let held = match tainted.is_empty() {
            true => Vec::new(),
            false => {
                let held = self
                    .parts
                    .issued
                    .held(tainted.clone(), self.parts.clock.now());
                held.await.map_err(|error| call.refuse(error))?
            }
        };
        let mut holders: BTreeMap<String, (u64, BTreeSet<SpiffeId>)> = tainted
            .into_iter()
            .map(|id| (id, Default::default()))
            .collect();
        for certificate in held {
            let (svids, agents) = holders.entry(certificate.authority_id).or_default();
            *svids += 1;
            agents.extend(certificate.agent_id);
        }
        let tainted = holders.into_iter();
        Ok(Response::new(wire::GetProgressResponse {
            waits_for: Some(agents(waits_for.iter())),
            tainted: tainted
                .map(|(authority_id, (svids, holding))| wire::TaintedAuthority {
                    authority_id,
                    svids,
                    agents: Some(agents(holding.iter())),
                })
                .collect(),
        }))
    }
}
