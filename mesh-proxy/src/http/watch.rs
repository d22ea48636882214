//! A request that is under way is judged again whenever the policy changes, and ends with the token by which it was let in.
//! Trusts the snapshot in force.
//! Never misses a change between two looks: what changed before is seen by its number, what changes later wakes.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use mesh_runtime::clock::Clock;

use crate::decide::{self, Caller, Permit, RequestFacts};
use crate::policy::Policies;

/// Asks again about a request that is under way, whenever the policy changes.
pub(crate) struct PolicyWatch {
    pub(crate) policies: Policies,
    pub(crate) facts: RequestFacts,
    pub(crate) caller: Arc<Caller>,
    /// The snapshot that last allowed it.
    pub(crate) generation: u64,
    change: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// When the token by which it was allowed ends.
    until: Option<(SystemTime, Clock)>,
    /// Ends then.
    ended: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl fmt::Debug for PolicyWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyWatch")
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

impl PolicyWatch {
    pub(crate) fn new(
        policies: Policies,
        facts: RequestFacts,
        caller: Arc<Caller>,
        permit: &Permit,
        until: Option<(SystemTime, Clock)>,
    ) -> Self {
        Self {
            policies,
            facts,
            caller,
            generation: permit.decided().generation,
            change: None,
            ended: until.clone().map(
                |(until, clock)| -> Pin<Box<dyn Future<Output = ()> + Send>> {
                    Box::pin(async move { clock.sleep_until(until).await })
                },
            ),
            until,
        }
    }

    /// Whether the policy in force denies it, or its token has ended. One atomic read while nothing has changed and no token was shown.
    pub(crate) fn denies_now(&mut self) -> bool {
        if let Some((until, clock)) = &self.until
            && clock.now() >= *until
        {
            return true;
        }
        if self.policies.generation() == self.generation {
            return false;
        }
        match decide::request(
            &self.policies,
            &self.caller,
            &self.facts,
            self.facts.headers.as_deref(),
        ) {
            Ok(permit) => {
                self.generation = permit.decided().generation;
                false
            }
            Err(_) => true,
        }
    }

    /// Ready when it is denied.
    pub(crate) fn poll_denied(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(ended) = &mut self.ended
            && ended.as_mut().poll(cx).is_ready()
        {
            self.ended = None;
            return Poll::Ready(());
        }
        loop {
            let change = self.change.get_or_insert_with(|| {
                let mut changes = self.policies.subscribe();
                Box::pin(async move {
                    // The sender lives as long as the program.
                    let _changed = changes.changed().await.is_ok();
                })
            });
            // After subscribing: what changed before is seen by the number, what changes later by the wake-up.
            let pending = change.as_mut().poll(cx).is_pending();
            if self.denies_now() {
                return Poll::Ready(());
            }
            if pending {
                return Poll::Pending;
            }
            self.change = None;
        }
    }
}
