//! Decides when a program may say "ready", and, apart from that, whether it is alive.
//! Trusts each part to report itself; a part that is dropped without `done` stays unready under its name, never ready.
//!
//! ```
//! use mesh_runtime::readiness::Readiness;
//! let readiness = Readiness::new();
//! let store = readiness.part("store");
//! assert_eq!(readiness.waiting_on(), ["store"]);
//! let store = store.done();              // keep the handle to become unready again
//! assert!(readiness.is_ready());
//! store.not_ready("store closed"); assert!(!readiness.is_ready());
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// The readiness of a whole program: ready when every part is. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Readiness {
    parts: Arc<watch::Sender<BTreeMap<String, Option<String>>>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// Without parts: register every part before the program says anything to the outside.
    pub fn new() -> Self {
        Self {
            parts: Arc::new(watch::Sender::new(BTreeMap::new())),
        }
    }

    /// Registers a part that is not ready yet.
    pub fn part(&self, name: &str) -> Part {
        self.set(name, Some("starting"));
        Part {
            readiness: self.clone(),
            name: name.to_owned(),
            done: false,
        }
    }

    /// Whether every part is ready.
    pub fn is_ready(&self) -> bool {
        self.parts.borrow().values().all(Option::is_none)
    }

    /// The names of the parts that are not ready.
    pub fn waiting_on(&self) -> Vec<String> {
        self.reasons().into_iter().map(|(name, _)| name).collect()
    }

    /// The parts that are not ready, each with its reason.
    pub fn reasons(&self) -> Vec<(String, String)> {
        self.parts
            .borrow()
            .iter()
            .filter_map(|(name, why)| why.as_ref().map(|why| (name.clone(), why.clone())))
            .collect()
    }

    /// Waits until every part is ready.
    pub async fn ready(&self) {
        // The sender is held by `self`.
        let _ready = self
            .parts
            .subscribe()
            .wait_for(|parts| parts.values().all(Option::is_none))
            .await
            .is_ok();
    }

    /// Waits until the answer of [`Readiness::is_ready`] is another one than `ready`, and answers it.
    pub async fn changed_from(&self, ready: bool) -> bool {
        // The sender is held by `self`.
        let _changed = self
            .parts
            .subscribe()
            .wait_for(|parts| parts.values().all(Option::is_none) != ready)
            .await
            .is_ok();
        !ready
    }

    /// Makes the whole program unready for good: the first step of a drain.
    pub fn draining(&self) {
        self.set("draining", Some("shutting down"));
    }

    fn set(&self, name: &str, why_not: Option<&str>) {
        self.parts.send_if_modified(|parts| {
            let value = why_not.map(str::to_owned);
            parts.insert(name.to_owned(), value.clone()) != Some(value)
        });
    }
}

/// A part that has not reported ready yet.
#[derive(Debug)]
#[must_use = "a part that is dropped keeps the program unready"]
pub struct Part {
    readiness: Readiness,
    name: String,
    done: bool,
}

impl Part {
    /// The part is ready. The handle that comes back can take that back later; dropping it changes nothing.
    pub fn done(mut self) -> ReadyPart {
        self.done = true;
        self.readiness.set(&self.name, None);
        ReadyPart {
            readiness: self.readiness.clone(),
            name: self.name.clone(),
        }
    }

    /// Says what the part waits for, to be shown at `/ready`.
    pub fn waiting_for(&self, reason: &str) {
        self.readiness.set(&self.name, Some(reason));
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.done {
            self.readiness
                .set(&self.name, Some("ended before it was ready"));
        }
    }
}

/// A part that was ready once.
#[derive(Clone, Debug)]
pub struct ReadyPart {
    readiness: Readiness,
    name: String,
}

impl ReadyPart {
    /// The part cannot serve at the moment.
    pub fn not_ready(&self, reason: &str) {
        self.readiness.set(&self.name, Some(reason));
    }

    /// The part can serve again.
    pub fn ready_again(&self) {
        self.readiness.set(&self.name, None);
    }
}

/// Whether the program still moves, apart from whether it can serve: loops beat their pulse, and a pulse
/// that is late makes the program not live, so that a supervisor restarts it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Liveness {
    pulses: Arc<Mutex<BTreeMap<String, (Instant, Duration)>>>,
}

impl Liveness {
    /// Without pulses a program that answers is alive.
    pub fn new() -> Self {
        Self::default()
    }

    /// A pulse that must beat at least every `limit`. Dropping it takes it off the list: its loop ended on purpose.
    pub fn pulse(&self, name: &str, limit: Duration) -> Pulse {
        self.lock().insert(name.to_owned(), (Instant::now(), limit));
        Pulse {
            liveness: self.clone(),
            name: name.to_owned(),
        }
    }

    /// The pulses that are late.
    pub fn stuck(&self) -> Vec<String> {
        self.lock()
            .iter()
            .filter(|(_, (last, limit))| last.elapsed() > *limit)
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, (Instant, Duration)>> {
        self.pulses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pulse of one loop.
#[derive(Debug)]
pub struct Pulse {
    liveness: Liveness,
    name: String,
}

impl Pulse {
    /// The loop has come round.
    pub fn beat(&self) {
        if let Some((last, _)) = self.liveness.lock().get_mut(&self.name) {
            *last = Instant::now();
        }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.liveness.lock().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_is_dropped_stays_unready_under_its_name() {
        let readiness = Readiness::new();
        let _door = readiness.part("door").done();
        drop(readiness.part("feed"));
        assert!(!readiness.is_ready());
        assert_eq!(
            readiness.reasons(),
            [("feed".to_owned(), "ended before it was ready".to_owned())]
        );
    }

    #[tokio::test]
    async fn waiting_ends_when_the_last_part_is_done() {
        let readiness = Readiness::new();
        let part = readiness.part("store");
        let waiting = readiness.clone();
        let task = tokio::spawn(async move { waiting.ready().await });
        let _store = part.done();
        task.await.unwrap();
    }

    #[test]
    fn a_draining_program_is_not_ready() {
        let readiness = Readiness::new();
        let _store = readiness.part("store").done();
        readiness.draining();
        assert_eq!(readiness.waiting_on(), ["draining"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_pulse_is_named_and_readiness_does_not_matter() {
        let liveness = Liveness::new();
        let pulse = liveness.pulse("rotation", Duration::from_secs(10));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(liveness.stuck(), ["rotation"]);
        pulse.beat();
        assert!(liveness.stuck().is_empty());
        drop(pulse);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(liveness.stuck().is_empty());
    }
}
