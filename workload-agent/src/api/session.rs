//! Decides when a stream has something to tell: who asks is looked at, the whole state is there, and it is not what was told before.
//! Trusts the vault for what is held. Never hands out a new state to a process that was not looked at since the last one,
//! never goes on once the process has ended or its entitlement has.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_identity::{EntryId, Selector};
use proto::convert::workload::keyed_jwks;
use tokio::{sync::watch, time::Instant};
use tonic::{Request, Status};

use super::{
    Place,
    caller::{Caller, Parts, gone, stopping},
    sleep_until,
};
use crate::{
    attestor::Wanted,
    metrics::OpenStream,
    vault::{BundleView, IdentitySet, Pins, Standing, View},
};

/// How long a caller waits for its first SVID to be made.
const FIRST_SVID_WITHIN: Duration = Duration::from_secs(5);
/// How long the first message waits for the rest of the identities, so that the default one does not change a moment later.
const SETTLE: Duration = Duration::from_millis(250);

/// What one kind of stream follows.
pub(super) trait Follow: Send + Sync + 'static {
    /// The full state.
    type State: PartialEq + Clone + Send + Sync;

    fn standing(view: &View, facts: &BTreeSet<Selector>, now: SystemTime) -> Standing<Self::State>;
    /// Entries in the state, and those that match but are not ready.
    fn entries(_: &Self::State) -> (Vec<EntryId>, &[EntryId]) {
        (Vec::new(), &[])
    }
}

/// Identities with the bundles that belong to them.
pub(super) struct X509Svids;

impl Follow for X509Svids {
    type State = IdentitySet;

    fn standing(view: &View, facts: &BTreeSet<Selector>, now: SystemTime) -> Standing<IdentitySet> {
        view.standing(facts, now)
    }

    fn entries(state: &IdentitySet) -> (Vec<EntryId>, &[EntryId]) {
        let ready = state
            .identities
            .iter()
            .map(|identity| identity.held.entry.id.clone());
        (
            ready.chain(state.waiting.iter().cloned()).collect(),
            &state.waiting,
        )
    }
}

/// Bundles.
pub(super) struct X509Bundles;

impl Follow for X509Bundles {
    type State = BundleView;

    fn standing(view: &View, facts: &BTreeSet<Selector>, now: SystemTime) -> Standing<BundleView> {
        view.bundles_for(facts, now)
    }
}

/// JWT keys as they are on the wire: changes of X.509 roots are no news here.
pub(super) struct JwtBundles;

impl Follow for JwtBundles {
    type State = BTreeMap<String, Vec<u8>>;

    fn standing(view: &View, facts: &BTreeSet<Selector>, now: SystemTime) -> Standing<Self::State> {
        view.bundles_for(facts, now)
            .map(|state| keyed_jwks(state.bundles.values().map(|bundle| &**bundle)))
    }
}

/// One stream.
pub(super) struct Session<T: Follow> {
    pub(super) caller: Caller,
    method: &'static str,
    views: watch::Receiver<Arc<View>>,
    told: Option<T::State>,
    pins: Option<Pins>,
    _place: Place,
    _open: OpenStream,
}

impl<T: Follow> Session<T> {
    /// For a caller that has not been looked at yet; `method` and `api` name the stream in log and metrics.
    pub(super) fn open<Q>(
        parts: &Arc<Parts>,
        request: &Request<Q>,
        method: &'static str,
        api: &'static str,
    ) -> Result<Self, Status> {
        let (caller, place) = parts.caller(request)?;
        Ok(Self {
            caller,
            method,
            views: parts.vault.watch(),
            told: None,
            pins: None,
            _place: place,
            _open: parts.metrics.stream(api),
        })
    }

    /// Looks at the process, again if it was looked at before.
    pub(super) async fn look(&mut self) -> Result<(), Status> {
        let wanted = self.views.borrow().wanted();
        self.caller.look(wanted).await
    }

    /// What was told last.
    pub(super) fn told(&self) -> Option<&T::State> {
        self.told.as_ref()
    }

    /// The state was told, or, without one, has to be told once more.
    pub(super) fn tell(&mut self, state: Option<T::State>) {
        self.told = state;
    }

    /// Waits until there is a state that has not been told. Waiting may be broken off and begun again.
    pub(super) async fn changed(&mut self) -> Result<T::State, Status> {
        let started = Instant::now();
        loop {
            let view = Arc::clone(&self.views.borrow_and_update());
            if view.roster().is_none() {
                self.caller.parts.metrics.no_identity("not_synced");
                return Err(Status::unavailable(
                    "the agent has not heard from its ca-server yet",
                ));
            }
            // It may be another program by now, in other groups or another cgroup, and nothing else has changed.
            self.caller.keep_up(view.wanted()).await?;
            let mut standing =
                T::standing(&view, self.caller.facts(), self.caller.parts.clock.now());
            if let (Some(told), Standing::Ready(state)) = (&self.told, &standing)
                && told != state
            {
                // The process may have become another program since the last message (M10 b): no new key before a new look.
                if self.caller.look_since(view.wanted(), view.since()).await? {
                    standing =
                        T::standing(&view, self.caller.facts(), self.caller.parts.clock.now());
                }
            }
            if !self.caller.peer.process().is_alive() {
                return Err(gone());
            }
            let deadline = match standing {
                Standing::NotSynced => {
                    return Err(Status::unavailable("the agent has no trust bundle yet"));
                }
                Standing::NoIdentity => return Err(self.caller.no_identity(self.method)),
                Standing::NothingReady { entries } => {
                    if self.told.is_some() || started.elapsed() >= FIRST_SVID_WITHIN {
                        return Err(Status::unavailable(
                            "no valid SVID at this moment; the ca-server may be out of reach",
                        ));
                    }
                    self.pin(entries);
                    Some(started + FIRST_SVID_WITHIN)
                }
                Standing::Ready(state) => {
                    let (all, waiting) = T::entries(&state);
                    let settling =
                        self.told.is_none() && !waiting.is_empty() && started.elapsed() < SETTLE;
                    self.pin(all);
                    if !settling && self.told.as_ref() != Some(&state) {
                        return Ok(state);
                    }
                    settling.then_some(started + SETTLE)
                }
            };
            self.wait(deadline, view.wanted()).await?;
        }
    }

    /// Until something may be otherwise than it was.
    async fn wait(&mut self, deadline: Option<Instant>, wanted: Wanted) -> Result<(), Status> {
        loop {
            tokio::select! {
                changed = self.views.changed() => return changed.map_err(|_| stopping()),
                () = self.caller.peer.process().exited() => return Err(gone()),
                () = self.caller.parts.stop.cancelled() => return Err(stopping()),
                () = sleep_until(deadline) => return Ok(()),
                () = sleep_until(self.caller.due()) => {}
            }
            if self.caller.keep_up(wanted).await? {
                return Ok(());
            }
        }
    }

    fn pin(&mut self, entries: Vec<EntryId>) {
        if !entries.is_empty()
            && self
                .pins
                .as_ref()
                .is_none_or(|pins| pins.entries() != entries)
        {
            self.pins = Some(self.caller.parts.vault.pin(entries));
        }
    }
}
