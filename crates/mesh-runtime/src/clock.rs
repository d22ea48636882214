//! Decides what time it is, for every program; nothing else in the workspace reads the system clock.
//! Trusts the kernel's clock (or the test that made it); never compares times and never decides what expiry means.
//!
//! ```
//! use mesh_runtime::clock::Clock;
//! use std::time::{Duration, UNIX_EPOCH};
//! let clock = Clock::frozen(UNIX_EPOCH + Duration::from_secs(1_000_000));
//! clock.advance(Duration::from_secs(60));
//! assert_eq!(clock.now(), UNIX_EPOCH + Duration::from_secs(1_000_060));
//! ```

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

/// How long a wait for a wall-clock moment may sleep before it looks at the wall clock again:
/// a suspended machine or a stepped clock is noticed within this time.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// A source of time that is handed down as an argument. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    System,
    Manual(Arc<Manual>),
}

#[derive(Debug)]
struct Manual {
    /// The wall-clock reading at `since`, and, when the clock flows, the moment it was read.
    base: Mutex<(SystemTime, Option<Instant>)>,
    moved: watch::Sender<u64>,
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self {
            source: Source::System,
        }
    }

    /// For tests: starts at `start` and flows with tokio's time, so that in a paused test
    /// (`start_paused = true`) sleeping moves it exactly. [`Clock::advance`] and [`Clock::set`] move it by hand.
    pub fn manual(start: SystemTime) -> Self {
        Self::made_by_hand(start, Some(Instant::now()))
    }

    /// For tests: stands at `start` until moved by [`Clock::advance`] or [`Clock::set`].
    pub fn frozen(start: SystemTime) -> Self {
        Self::made_by_hand(start, None)
    }

    fn made_by_hand(start: SystemTime, since: Option<Instant>) -> Self {
        let manual = Manual {
            base: Mutex::new((start, since)),
            moved: watch::Sender::new(0),
        };
        Self {
            source: Source::Manual(Arc::new(manual)),
        }
    }

    /// The wall-clock time: for what other machines will compare (certificates, records).
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the system clock"
    )]
    pub fn now(&self) -> SystemTime {
        match &self.source {
            Source::System => SystemTime::now(),
            Source::Manual(manual) => {
                let (base, since) = *manual.base.lock().unwrap_or_else(PoisonError::into_inner);
                base + since.map_or(Duration::ZERO, |since| since.elapsed())
            }
        }
    }

    /// The monotonic time: for measuring and for timeouts. It is tokio's, so paused tests control it.
    pub fn monotonic(&self) -> Instant {
        Instant::now()
    }

    /// Sleeps by the monotonic time.
    pub async fn sleep(&self, pause: Duration) {
        tokio::time::sleep(pause).await;
    }

    /// Waits until the wall clock shows `moment`, also across a suspended machine or a stepped clock
    /// (noticed within 30 s), and at once when a test moves the clock past it.
    pub async fn sleep_until(&self, moment: SystemTime) {
        let mut moved = match &self.source {
            Source::System => None,
            Source::Manual(manual) => Some(manual.moved.subscribe()),
        };
        while let Ok(left) = moment.duration_since(self.now()) {
            if left.is_zero() {
                return;
            }
            let nap = tokio::time::sleep(left.min(LOOK_AGAIN));
            match &mut moved {
                None => nap.await,
                Some(moved) => tokio::select! {
                    () = nap => {}
                    // The sender lives in `self`; an error cannot happen while we borrow it.
                    _ = moved.changed() => {}
                },
            }
        }
    }

    /// Moves a test's clock forward and wakes who waits for a wall-clock moment. No effect on the system clock.
    pub fn advance(&self, step: Duration) {
        if let Source::Manual(manual) = &self.source {
            manual.base.lock().unwrap_or_else(PoisonError::into_inner).0 += step;
            manual.moved.send_modify(|n| *n += 1);
        }
    }

    /// Sets a test's clock, also backwards, and wakes who waits for a wall-clock moment. No effect on the system clock.
    pub fn set(&self, time: SystemTime) {
        if let Source::Manual(manual) = &self.source {
            let mut base = manual.base.lock().unwrap_or_else(PoisonError::into_inner);
            *base = (time, base.1.map(|_| Instant::now()));
            drop(base);
            manual.moved.send_modify(|n| *n += 1);
        }
    }

    /// The wall clock as a plain function, for libraries that do not know this crate.
    pub fn as_fn(&self) -> Arc<dyn Fn() -> SystemTime + Send + Sync> {
        let clock = self.clone();
        Arc::new(move || clock.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    #[tokio::test(start_paused = true)]
    async fn a_manual_clock_flows_with_paused_time() {
        let clock = Clock::manual(UNIX_EPOCH);
        clock.sleep(Duration::from_secs(3600)).await;
        assert_eq!(clock.now(), UNIX_EPOCH + Duration::from_secs(3600));
    }

    #[tokio::test]
    async fn waiting_for_a_moment_ends_when_the_clock_is_moved_past_it() {
        let clock = Clock::frozen(UNIX_EPOCH);
        let waiting = clock.clone();
        let task = tokio::spawn(async move {
            waiting
                .sleep_until(UNIX_EPOCH + Duration::from_secs(86_400))
                .await
        });
        tokio::task::yield_now().await;
        clock.advance(Duration::from_secs(86_401));
        tokio::time::timeout(Duration::from_secs(5), task)
            .await
            .unwrap()
            .unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_was_set_back_makes_the_waiter_wait_longer() {
        let clock = Clock::manual(UNIX_EPOCH + Duration::from_secs(100));
        let started = clock.monotonic();
        clock.set(UNIX_EPOCH);
        clock
            .sleep_until(UNIX_EPOCH + Duration::from_secs(100))
            .await;
        assert!(started.elapsed() >= Duration::from_secs(100));
    }
}
