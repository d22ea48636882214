//! Decides the order of a shutdown: say unready and let that be seen, stop accepting, wait with a deadline, force.
//! Trusts each connection to hold its `Held`; never waits beyond the deadline, never forces before it.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! use mesh_runtime::drain::{Drain, Outcome};
//! let drain = Drain::new();
//! let held = drain.watch().hold();            // one per connection, dropped when it ends
//! tokio::spawn(async move { held.draining().await; drop(held) });
//! assert_eq!(drain.run(std::time::Duration::ZERO, std::time::Duration::from_secs(5)).await, Outcome::Finished);
//! # }
//! ```

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::readiness::Readiness;
use crate::tasks::StopSource;

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything ended by itself.
    Finished,
    /// This many connections were still open at the deadline and were forced.
    Forced(usize),
}

/// The owner of a drain. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Drain {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    stop_accepting: StopSource,
    force: StopSource,
    held: watch::Sender<usize>,
    readiness: Option<Readiness>,
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Drain {
    /// A drain that tells only the connections.
    pub fn new() -> Self {
        Self::with(None)
    }

    /// A drain whose first act is to make the program unready.
    pub fn after(readiness: &Readiness) -> Self {
        Self::with(Some(readiness.clone()))
    }

    fn with(readiness: Option<Readiness>) -> Self {
        let shared = Shared {
            stop_accepting: StopSource::new(),
            force: StopSource::new(),
            held: watch::Sender::new(0),
            readiness,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// What listeners and connections hold.
    pub fn watch(&self) -> DrainWatch {
        DrainWatch {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Runs the whole order: unready, `notice` (for load balancers to look away), stop accepting, wait up to
    /// `deadline` for the connections, force what is left and give it a moment to go.
    pub async fn run(&self, notice: Duration, deadline: Duration) -> Outcome {
        if let Some(readiness) = &self.shared.readiness {
            readiness.draining();
        }
        if !notice.is_zero() {
            tokio::time::sleep(notice).await;
        }
        self.shared.stop_accepting.trigger();
        if tokio::time::timeout(deadline, self.empty()).await.is_ok() {
            return Outcome::Finished;
        }
        let left = *self.shared.held.borrow();
        self.shared.force.trigger();
        // Forced connections only have to drop their sockets; do not wait for one that cannot even do that.
        let _gone = tokio::time::timeout(Duration::from_secs(1), self.empty())
            .await
            .is_ok();
        Outcome::Forced(left)
    }

    /// How many connections are held open.
    pub fn open(&self) -> usize {
        *self.shared.held.borrow()
    }

    async fn empty(&self) {
        // The sender is held by `self`.
        let _empty = self
            .shared
            .held
            .subscribe()
            .wait_for(|held| *held == 0)
            .await
            .is_ok();
    }
}

/// The view of a listener or a connection. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DrainWatch {
    shared: Arc<Shared>,
}

impl DrainWatch {
    /// First moment: ends when no new connection may be accepted.
    pub async fn draining(&self) {
        self.shared.stop_accepting.stop().cancelled().await;
    }

    /// The first moment as a [`crate::tasks::Stop`], for accept loops.
    pub fn stop_accepting(&self) -> crate::tasks::Stop {
        self.shared.stop_accepting.stop()
    }

    /// Marks one connection as open until the value is dropped.
    pub fn hold(&self) -> Held {
        self.shared.held.send_modify(|n| *n += 1);
        Held {
            shared: Arc::clone(&self.shared),
        }
    }
}

/// One open connection.
#[derive(Debug)]
#[must_use = "dropping it says that the connection has ended"]
pub struct Held {
    shared: Arc<Shared>,
}

impl Held {
    /// Second moment: ends when the connection should finish what it does and close.
    pub async fn draining(&self) {
        self.shared.stop_accepting.stop().cancelled().await;
    }

    /// Third moment: ends when the connection must close now.
    pub async fn forced(&self) {
        self.shared.force.stop().cancelled().await;
    }

    /// Runs `work` until it ends or until it must close now; `None` when forced.
    pub async fn unless_forced<F: Future>(&self, work: F) -> Option<F::Output> {
        self.shared.force.stop().unless_stopped(work).await
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.held.send_modify(|n| *n -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    const NOTICE: Duration = Duration::from_secs(5);
    const DEADLINE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn first_unready_then_after_the_notice_no_more_accepting() {
        let readiness = Readiness::new();
        let drain = Drain::after(&readiness);
        let watch = drain.watch();
        let start = Instant::now();
        let run = tokio::spawn(async move { drain.run(NOTICE, DEADLINE).await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!readiness.is_ready());
        assert!(!watch.stop_accepting().is_cancelled());
        watch.draining().await;
        assert_eq!(start.elapsed(), NOTICE);
        assert_eq!(run.await.unwrap(), Outcome::Finished);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_finishes_is_waited_for_and_not_forced() {
        let drain = Drain::new();
        let held = drain.watch().hold();
        let connection = tokio::spawn(async move {
            held.draining().await;
            held.unless_forced(tokio::time::sleep(Duration::from_secs(10)))
                .await
                .is_some()
        });
        let start = Instant::now();
        assert_eq!(drain.run(Duration::ZERO, DEADLINE).await, Outcome::Finished);
        assert_eq!(start.elapsed(), Duration::from_secs(10));
        assert!(connection.await.unwrap(), "it was forced");
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_deadline_what_is_left_is_forced() {
        let drain = Drain::new();
        let held = drain.watch().hold();
        let connection = tokio::spawn(async move {
            held.unless_forced(std::future::pending::<()>())
                .await
                .is_none()
        });
        let start = Instant::now();
        assert_eq!(
            drain.run(Duration::ZERO, DEADLINE).await,
            Outcome::Forced(1)
        );
        assert_eq!(start.elapsed(), DEADLINE);
        assert!(connection.await.unwrap());
        assert_eq!(drain.open(), 0);
    }
}
