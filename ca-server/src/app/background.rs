//! What runs besides the doors: the authority's rotation, our own SVID, the audit log's signatures, housekeeping, and the
//! watch over the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use mesh_identity::SpiffeId;
use mesh_runtime::audit::{Action, Actor, AuditError, AuditLog, Object, Outcome};
use mesh_runtime::clock::Clock;
use mesh_runtime::errors::{Coded, ErrorChain};
use mesh_runtime::readiness::ReadyPart;
use mesh_runtime::tasks::{Stop, Tasks};
use mesh_runtime::telemetry::Repetition;
use mesh_tls::IdentityCell;

use super::identity;
use crate::authority::{self, Authority, Followers, SlotState, SlotStatus};
use crate::federation::{self, Federation};
use crate::fleet::Fleet;
use crate::kubernetes::Clusters;
use crate::metrics::{Metrics, kind, state};
use crate::registry::Registry;
use crate::store::{Issued, Nodes, StoreError, StoreHealth, Stores};

/// How often what is over is thrown away.
const HOUSEKEEPING: Duration = Duration::from_secs(60);

/// How long a certificate's record is kept beyond its end.
const KEEP_ISSUED: Duration = Duration::from_secs(24 * 3600);

/// How often sizes are counted for the metrics.
const COUNTING: Duration = Duration::from_secs(5);

pub(super) struct Background {
    pub(super) clusters: Arc<Clusters>,
    pub(super) federation: Arc<Federation>,
    pub(super) authority: Arc<Authority>,
    pub(super) registry: Arc<Registry>,
    pub(super) trust: identity::Trust,
    pub(super) stores: Stores,
    pub(super) audit: AuditLog,
    pub(super) checkpoint_every: Duration,
    pub(super) fleet: Fleet,
    pub(super) metrics: Metrics,
    pub(super) clock: Clock,
    pub(super) own_id: SpiffeId,
    pub(super) identity: IdentityCell,
    pub(super) identity_ready: ReadyPart,
    pub(super) store_ready: ReadyPart,
}

impl Background {
    pub(super) fn start(self, tasks: &Tasks) {
        self.clusters
            .start(tasks, &self.stores.nodes, &self.audit, &self.clock);
        self.clusters
            .publish(tasks, &self.authority.bundle(), &self.clock);
        let federation = self.federation;
        tasks.spawn("federation", |stop| federation::run(federation, stop));
        let (authority, clock) = (self.authority.clone(), self.clock.clone());
        let followers = Arc::new(Agents {
            fleet: self.fleet.clone(),
            nodes: self.stores.nodes.clone(),
        });
        tasks.spawn("ca-rotation", |stop| {
            authority::run(authority, followers, clock, stop)
        });
        let (audit, clock) = (self.audit.clone(), self.clock.clone());
        let every = self.checkpoint_every;
        tasks.spawn("audit-checkpoints", move |stop| {
            keep_signed(audit, every, clock, stop)
        });
        let (authority, audit, metrics) =
            (self.authority.clone(), self.audit, self.metrics.clone());
        tasks.spawn("authority-watch", |stop| {
            watch_authority(authority, audit, metrics, stop)
        });
        let (authority, metrics) = (self.authority.clone(), self.metrics.clone());
        let (issued, clock) = (self.stores.issued.clone(), self.clock.clone());
        tasks.spawn("taint-watch", |stop| {
            watch_taint(authority, issued, metrics, clock, stop)
        });
        let (cell, trust, authority) = (self.identity, self.trust, self.authority);
        let (id, clock, ready) = (self.own_id, self.clock.clone(), self.identity_ready);
        tasks.spawn("own-svid", |stop| async move {
            identity::keep(cell, trust, authority, id, clock, ready, stop)
                .await
                .map_err(|error| -> Box<dyn std::error::Error + Send + Sync> { error.into() })
        });
        let (stores, clock) = (self.stores.clone(), self.clock.clone());
        tasks.spawn("housekeeping", |stop| keep_house(stores, clock, stop));
        let (health, ready) = (self.stores.changes.health(), self.store_ready);
        tasks.spawn("store-watch", |stop| watch_store(health, ready, stop));
        let (registry, fleet, metrics, clock) =
            (self.registry, self.fleet, self.metrics, self.clock);
        tasks.spawn("counting", |stop| async move {
            loop {
                let (entries, agents) = registry.counts();
                metrics.sizes(entries, agents, fleet.connected());
                if stop.unless_stopped(clock.sleep(COUNTING)).await.is_none() {
                    return Ok::<(), StoreError>(());
                }
            }
        });
    }
}

/// The agents, as those who must know a new authority before it signs.
struct Agents {
    fleet: Fleet,
    nodes: Arc<dyn Nodes>,
}

impl Followers for Agents {
    fn lacking(
        &self,
        revision: u64,
        now: SystemTime,
    ) -> BoxFuture<'_, Result<Vec<SpiffeId>, StoreError>> {
        async move {
            let agents = self.nodes.list().await?;
            let agents = agents.iter().map(|agent| &**agent);
            Ok(self.fleet.lacking(agents, revision, now))
        }
        .boxed()
    }
}

async fn keep_house(stores: Stores, clock: Clock, stop: Stop) -> Result<(), StoreError> {
    loop {
        if let Err(error) = throw_away(&stores, &clock).await {
            // What is over is judged by its time everywhere; not being thrown away harms nobody.
            tracing::warn!(code = error.code(), error = %ErrorChain(&error), "housekeeping failed");
        }
        if stop
            .unless_stopped(clock.sleep(HOUSEKEEPING))
            .await
            .is_none()
        {
            return Ok(());
        }
    }
}

async fn throw_away(stores: &Stores, clock: &Clock) -> Result<(), StoreError> {
    let now = clock.now();
    let expired = stores.entries.delete_expired(now).await?;
    for entry in expired {
        tracing::info!(entry = %entry.id, id = %entry.spiffe_id, "an expired entry was removed");
    }
    stores.tokens.prune(now).await?;
    if let Some(before) = now.checked_sub(KEEP_ISSUED) {
        stores.issued.prune(before).await?;
    }
    Ok(())
}

/// Counts what is left of tainted authorities, until nothing is.
async fn watch_taint(
    authority: Arc<Authority>,
    issued: Arc<dyn Issued>,
    metrics: Metrics,
    clock: Clock,
    stop: Stop,
) -> Result<(), StoreError> {
    let mut status = authority.status();
    let mut done = BTreeSet::new();
    loop {
        let tainted = authority::tainted(&status.borrow_and_update());
        done.retain(|id| tainted.contains(id));
        let open: BTreeSet<_> = tainted.difference(&done).cloned().collect();
        let mut left: BTreeMap<_, _> = tainted.iter().map(|id| (id.as_str(), 0)).collect();
        if !open.is_empty() {
            match issued.held(open.clone(), clock.now()).await {
                Ok(held) => {
                    for certificate in &held {
                        if let Some(svids) = left.get_mut(certificate.authority_id.as_str()) {
                            *svids += 1;
                        }
                    }
                    // It signs nothing any more: what is gone does not come back.
                    let gone = open.iter().filter(|id| left.get(id.as_str()) == Some(&0));
                    for id in gone {
                        tracing::info!(authority = %id, "all that a tainted authority signed is replaced or has ended");
                        done.insert(id.clone());
                    }
                    metrics.tainted(left);
                }
                Err(error) => {
                    tracing::warn!(code = error.code(), error = %ErrorChain(&error), "what is left of a tainted authority could not be counted");
                }
            }
        } else {
            metrics.tainted(left);
        }
        let wait = async {
            tokio::select! {
                () = clock.sleep(COUNTING), if !open.is_empty() => {}
                changed = status.changed() => drop(changed),
            }
        };
        if stop.unless_stopped(wait).await.is_none() {
            return Ok(());
        }
    }
}

/// Each transition of an authority is on record and in the metrics. The states at start are transitions of an earlier life.
async fn watch_authority(
    authority: Arc<Authority>,
    audit: AuditLog,
    metrics: Metrics,
    stop: Stop,
) -> Result<(), StoreError> {
    let (mut status, mut lacking) = (authority.status(), authority.lacking());
    let mut before = status.borrow_and_update().clone();
    let mut waited_for = lacking.borrow_and_update().clone();
    metrics.authorities(&before);
    loop {
        let look = async {
            tokio::select! {
                // In this order: who was waited for is forgotten with the turn.
                biased;
                changed = status.changed() => changed,
                changed = lacking.changed() => changed,
            }
        };
        let Some(Ok(())) = stop.unless_stopped(look).await else {
            return Ok(());
        };
        let now = status.borrow_and_update().clone();
        metrics.authorities(&now);
        for (action, slot) in transitions(&before, &now) {
            if slot.state == SlotState::Active && !waited_for.is_empty() {
                tracing::error!(code = NOT_ALL_KNOW, authority = %slot.authority_id, agents = %names(&waited_for), "a new authority signs although these agents have not acknowledged it");
            }
            let mut record = audit.begin(action, Actor::system("ca-server"));
            record.object(
                Object::new("authority")
                    .name(&slot.authority_id)
                    .id(kind(slot.kind))
                    .after(state(slot.state)),
            );
            if let Err(error) = record.finish(Outcome::Success, None).await {
                tracing::error!(code = error.code(), error = %ErrorChain(&error), "an authority's transition could not be recorded");
            }
        }
        before = now;
        let now = lacking.borrow_and_update().clone();
        if now != waited_for && !now.is_empty() {
            tracing::warn!(code = NOT_ALL_KNOW, agents = %names(&now), "a new authority waits for these agents to acknowledge it");
        }
        metrics.lacking(now.len());
        waited_for = now;
    }
}

/// Some agents have not acknowledged a new authority.
const NOT_ALL_KNOW: &str = "FNL1050";

/// Some of them, and how many there are besides.
fn names(agents: &[SpiffeId]) -> String {
    const MANY: usize = 10;
    let some: Vec<_> = agents.iter().take(MANY).map(SpiffeId::as_str).collect();
    match agents.len().saturating_sub(MANY) {
        0 => some.join(", "),
        more => format!("{} and {more} more", some.join(", ")),
    }
}

fn transitions<'a>(
    before: &'a [SlotStatus],
    now: &'a [SlotStatus],
) -> Vec<(Action, &'a SlotStatus)> {
    let find =
        |slots: &'a [SlotStatus], id: &str| slots.iter().find(move |slot| slot.authority_id == id);
    let changed = now.iter().filter(|slot| {
        find(before, &slot.authority_id)
            .is_none_or(|earlier| (earlier.state, earlier.tainted) != (slot.state, slot.tainted))
    });
    let gone = before
        .iter()
        .filter(|slot| find(now, &slot.authority_id).is_none());
    changed
        .map(|slot| {
            let action = match slot.state {
                // One of others: ours are prepared first.
                SlotState::Old if find(before, &slot.authority_id).is_none() => "authority.append",
                SlotState::Prepared => "authority.prepare",
                SlotState::Active => "authority.activate",
                SlotState::Old if slot.tainted => "authority.taint",
                SlotState::Old => "authority.supersede",
            };
            (Action(action), slot)
        })
        .chain(gone.map(|slot| (Action("authority.retire"), slot)))
        .collect()
}

/// Signs the audit log again and again. The log of the program gets each checkpoint too: once it has left the machine,
/// nobody can rewrite what it covers unseen.
async fn keep_signed(
    audit: AuditLog,
    every: Duration,
    clock: Clock,
    stop: Stop,
) -> Result<(), AuditError> {
    let (mut said, quiet) = (0, Repetition::new("audit-checkpoints"));
    loop {
        match audit.checkpoint().await {
            // A log in memory, as tests have it.
            Err(AuditError::NotSigned | AuditError::Closed) => return Ok(()),
            Err(error) => drop(quiet.failed(&error)),
            Ok(checkpoint) => {
                quiet.succeeded();
                if checkpoint.size() > said {
                    said = checkpoint.size();
                    tracing::info!(size = said, checkpoint = %checkpoint, "the audit log was signed");
                }
            }
        }
        if stop.unless_stopped(clock.sleep(every)).await.is_none() {
            return Ok(());
        }
    }
}

async fn watch_store(
    mut health: tokio::sync::watch::Receiver<StoreHealth>,
    ready: ReadyPart,
    stop: Stop,
) -> Result<(), StoreError> {
    loop {
        match &*health.borrow_and_update() {
            StoreHealth::Working => ready.ready_again(),
            StoreHealth::NearlyFull => ready.not_ready("the disk is nearly full"),
            StoreHealth::Stopped(reason) => ready.not_ready(reason),
        }
        match stop.unless_stopped(health.changed()).await {
            Some(Ok(())) => {}
            _ => return Ok(()),
        }
    }
}
