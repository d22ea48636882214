//! Asks each endpoint when it is due. One that hangs holds up no other, and never more than a few are asked at a time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mesh_identity::TrustDomain;
use mesh_runtime::errors::{Coded, ErrorChain};
use mesh_runtime::tasks::Stop;
use mesh_runtime::telemetry::Repetition;

use super::Federation;
use crate::store::StoreError;

/// Endpoints that are asked at a time.
const AT_A_TIME: usize = 32;

/// When the relationships are looked at again if nothing else happens.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// Runs until it is stopped.
pub async fn run(federation: Arc<Federation>, stop: Stop) -> Result<(), StoreError> {
    let quiet = Repetition::new("federation");
    let mut asked = FuturesUnordered::new();
    let mut busy: BTreeSet<TrustDomain> = BTreeSet::new();
    loop {
        let all = match federation.list().await {
            Ok(all) => all,
            Err(error) => {
                // What is stored stays in use; there is nothing to ask for until the store answers.
                quiet.failed(&error);
                Vec::new()
            }
        };
        federation.keep_health_of(&all);
        let now = federation.clock.now();
        let mut next = now + LOOK_AGAIN;
        for relationship in &all {
            let domain = &relationship.trust_domain;
            if busy.contains(domain) {
                continue;
            }
            let due_at = federation.due_at(relationship);
            if due_at > now || asked.len() >= AT_A_TIME {
                next = next.min(due_at);
                continue;
            }
            busy.insert(domain.clone());
            asked.push(ask(federation.clone(), domain.clone()));
        }
        // With every place taken there is nothing to do before one is free.
        let nap = (asked.len() < AT_A_TIME).then_some(next);
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Some(domain) = asked.next() => {
                busy.remove(&domain);
            }
            () = federation.changed.notified() => {}
            () = until(&federation, nap) => {}
        }
    }
}

async fn ask(federation: Arc<Federation>, domain: TrustDomain) -> TrustDomain {
    let before = federation.health(&domain).and_then(|health| health.failing);
    match federation.refresh(&domain).await {
        Ok(outcome) => tracing::debug!(trust_domain = %domain, ?outcome, "a bundle was asked for"),
        Err(error) => {
            let why = ErrorChain(&error).to_string();
            // The same reason again is told by the health and the metrics.
            if before.as_ref() != Some(&why) {
                tracing::warn!(code = error.code(), trust_domain = %domain, error = %why, "a bundle was not refreshed; the last good one stays");
            }
        }
    }
    domain
}

async fn until(federation: &Federation, moment: Option<SystemTime>) {
    match moment {
        Some(moment) => federation.clock.sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
