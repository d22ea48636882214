//! Decides that whatever runs has a name, an owner and a way to stop, and that the first failure stops all the rest.
//! Trusts tasks to end when asked; never leaves a failed or panicked task unnoticed, never hides which one it was.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! use mesh_runtime::tasks::{Stop, Tasks};
//! let tasks = Tasks::new("demo");
//! tasks.spawn("ticker", |stop: Stop| async move { stop.cancelled().await; Ok::<(), std::io::Error>(()) });
//! tasks.stop();                         // or let a signal do it: tasks.stop_on_signals()
//! assert!(tasks.join().await.is_ok());  // the first failure comes back with its task's name
//! # }
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::errors::{Coded, ErrorChain};

/// How long [`Tasks::join`] lets tasks finish after they were asked to stop.
pub const STOP_GRACE: Duration = Duration::from_secs(10);

/// The request to stop, as a task sees it.
#[derive(Clone, Debug)]
pub struct Stop(CancellationToken);

impl Stop {
    /// Ends when the task should end.
    pub async fn cancelled(&self) {
        self.0.cancelled().await;
    }

    /// As [`Stop::cancelled`], as an owned future without a borrow.
    pub fn cancelled_owned(&self) -> impl Future<Output = ()> + Send + 'static {
        self.0.clone().cancelled_owned()
    }

    /// Whether the task should end.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Runs `work` until it ends or until the task should stop, whichever is first; `None` when stopped.
    pub async fn unless_stopped<F: Future>(&self, work: F) -> Option<F::Output> {
        self.0.run_until_cancelled(work).await
    }

    /// A stop that this one triggers and that can also be triggered alone.
    pub fn child(&self) -> StopSource {
        StopSource {
            token: self.0.child_token(),
        }
    }
}

/// The side that asks to stop, for a part that runs something of its own.
#[derive(Clone, Debug, Default)]
pub struct StopSource {
    token: CancellationToken,
}

impl StopSource {
    /// A source that nothing else triggers.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the tasks hold.
    pub fn stop(&self) -> Stop {
        Stop(self.token.clone())
    }

    /// Asks to stop.
    pub fn trigger(&self) {
        self.token.cancel();
    }
}

/// Why a task ended the process.
#[derive(Debug, thiserror::Error)]
#[error("task {name} failed")]
pub struct TaskFailure {
    /// `owner/task`.
    pub name: String,
    /// What happened.
    #[source]
    pub cause: TaskEnd,
}

/// How a task failed.
#[derive(Debug, thiserror::Error)]
pub enum TaskEnd {
    /// It returned an error.
    #[error("it returned an error")]
    Error(#[source] Box<dyn Error + Send + Sync>),
    /// It panicked.
    #[error("it panicked: {0}")]
    Panic(String),
    /// It was asked to stop and did not within the grace.
    #[error("it did not stop within {0:?} and was aborted")]
    Aborted(Duration),
}

impl Coded for TaskFailure {
    fn code(&self) -> &'static str {
        match self.cause {
            TaskEnd::Error(_) => "FNL0210",
            TaskEnd::Panic(_) => "FNL0211",
            TaskEnd::Aborted(_) => "FNL0212",
        }
    }
}

/// A named group of tasks. Clones are handles to the same group; when the last handle is dropped
/// (tasks hold none of their own) the tasks are asked to stop.
#[derive(Clone, Debug)]
pub struct Tasks {
    owner: String,
    stop: CancellationToken,
    shared: Arc<Shared>,
    _stop_on_drop: Arc<DropGuard>,
}

#[derive(Debug)]
struct Shared {
    root: CancellationToken,
    running: watch::Sender<BTreeMap<u64, Running>>,
    failure: Mutex<Option<TaskFailure>>,
}

#[derive(Debug)]
struct Running {
    name: String,
    abort: tokio::task::AbortHandle,
}

impl Tasks {
    /// A group whose tasks are named `owner/task`.
    pub fn new(owner: impl Into<String>) -> Self {
        let root = CancellationToken::new();
        let shared = Shared {
            root: root.clone(),
            running: watch::Sender::new(BTreeMap::new()),
            failure: Mutex::new(None),
        };
        let guard = Arc::new(root.clone().drop_guard());
        Self {
            owner: owner.into(),
            stop: root,
            shared: Arc::new(shared),
            _stop_on_drop: guard,
        }
    }

    /// A group inside this one, named `owner/name`: stopped with it or alone by its own [`Tasks::stop`];
    /// a failure inside stops the whole. Dropping its last handle stops only its own tasks.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        let stop = self.stop.child_token();
        let guard = Arc::new(stop.clone().drop_guard());
        Self {
            owner: format!("{}/{name}", self.owner),
            stop,
            shared: Arc::clone(&self.shared),
            _stop_on_drop: guard,
        }
    }

    /// Starts a task. It gets the request to stop; an error or a panic stops every task of the whole tree.
    pub fn spawn<F, Fut, E>(&self, name: &str, task: F)
    where
        F: FnOnce(Stop) -> Fut,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>> + Send + 'static,
    {
        let name = format!("{}/{name}", self.owner);
        let work = task(Stop(self.stop.clone()));
        let handle = tokio::spawn(work);
        let id = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let running = Running {
            name: name.clone(),
            abort: handle.abort_handle(),
        };
        self.shared.running.send_modify(|all| {
            all.insert(id, running);
        });
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            let end = match handle.await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(TaskEnd::Error(error.into())),
                Err(join) if join.is_panic() => {
                    Some(TaskEnd::Panic(panic_text(join.into_panic().as_ref())))
                }
                // Only `join` aborts, and it has recorded why.
                Err(_) => None,
            };
            if let Some(cause) = end {
                shared.fail(TaskFailure { name, cause });
            }
            shared.running.send_modify(|all| {
                all.remove(&id);
            });
        });
    }

    /// Asks the tasks of this group to stop.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// The request to stop that this group's tasks see.
    pub fn stopping(&self) -> Stop {
        Stop(self.stop.clone())
    }

    /// The names of the tasks that run now, in the order in which they started.
    pub fn running(&self) -> Vec<String> {
        self.shared
            .running
            .borrow()
            .values()
            .map(|task| task.name.clone())
            .collect()
    }

    /// Asks all to stop on SIGINT or SIGTERM; a second signal aborts what is left.
    ///
    /// # Errors
    /// When the signal handlers cannot be installed.
    pub fn stop_on_signals(&self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut interrupt, mut terminate) = (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        );
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            for round in 0..2 {
                let name = tokio::select! {
                    _ = interrupt.recv() => "SIGINT",
                    _ = terminate.recv() => "SIGTERM",
                };
                if round == 0 {
                    tracing::info!(signal = name, "stopping");
                    shared.root.cancel();
                } else {
                    tracing::warn!(signal = name, "second signal: ending without waiting");
                    for task in shared.running.borrow().values() {
                        task.abort.abort();
                    }
                }
            }
        });
        Ok(())
    }

    /// Waits until every task has ended. After the first failure, or after [`Tasks::stop`], the rest get
    /// [`STOP_GRACE`] to end and are then aborted.
    ///
    /// # Errors
    /// The first failure of the whole tree, with the task's name.
    pub async fn join(&self) -> Result<(), TaskFailure> {
        self.join_within(STOP_GRACE).await
    }

    /// As [`Tasks::join`], with another grace.
    ///
    /// # Errors
    /// The first failure of the whole tree, with the task's name.
    pub async fn join_within(&self, grace: Duration) -> Result<(), TaskFailure> {
        let mut running = self.shared.running.subscribe();
        let ended = async {
            // The sender lives in `shared`, which we hold.
            let _ended = running.wait_for(BTreeMap::is_empty).await.is_ok();
        };
        tokio::pin!(ended);
        tokio::select! {
            () = &mut ended => return self.outcome(),
            () = self.shared.root.cancelled() => {}
        }
        if tokio::time::timeout(grace, &mut ended).await.is_err() {
            let late: Vec<_> = self
                .shared
                .running
                .borrow()
                .values()
                .map(|t| (t.name.clone(), t.abort.clone()))
                .collect();
            for (name, abort) in late {
                tracing::error!(task = %name, "did not stop in time, aborted");
                abort.abort();
                self.shared.fail(TaskFailure {
                    name,
                    cause: TaskEnd::Aborted(grace),
                });
            }
            ended.await;
        }
        self.outcome()
    }

    fn outcome(&self) -> Result<(), TaskFailure> {
        match self
            .shared
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }
}

impl Shared {
    fn fail(&self, failure: TaskFailure) {
        tracing::error!(task = %failure.name, error = %ErrorChain(&failure.cause), "task failed");
        let mut first = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            *first = Some(failure);
        }
        drop(first);
        self.root.cancel();
    }
}

static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    crate::errors::untrusted(text.unwrap_or("without a message"))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Plain = Result<(), std::io::Error>;

    #[tokio::test]
    async fn the_first_failure_stops_the_others_and_comes_back_with_its_name() {
        let tasks = Tasks::new("demo");
        tasks.spawn("waits", |stop| async move {
            stop.cancelled().await;
            Plain::Ok(())
        });
        tasks.child("part").spawn("breaks", |_| async {
            Plain::Err(std::io::Error::other("no disk"))
        });
        let failure = tasks.join().await.unwrap_err();
        assert_eq!(failure.name, "demo/part/breaks");
        assert_eq!(
            ErrorChain(&failure).to_string(),
            "task demo/part/breaks failed: it returned an error: no disk"
        );
        assert!(tasks.running().is_empty());
    }

    #[tokio::test]
    async fn a_panic_is_a_failure() {
        let tasks = Tasks::new("demo");
        tasks.spawn("panics", |_| async {
            if true {
                panic!("slot empty")
            } else {
                Plain::Ok(())
            }
        });
        tasks.spawn("waits", |stop| async move {
            stop.cancelled().await;
            Plain::Ok(())
        });
        let failure = tasks.join().await.unwrap_err();
        assert_eq!(
            (failure.name.as_str(), failure.code()),
            ("demo/panics", "FNL0211")
        );
        assert_eq!(failure.cause.to_string(), "it panicked: slot empty");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ignores_the_stop_is_aborted_and_named() {
        let tasks = Tasks::new("demo");
        tasks.spawn("deaf", |_| async {
            std::future::pending::<()>().await;
            Plain::Ok(())
        });
        tasks.stop();
        let failure = tasks.join().await.unwrap_err();
        assert_eq!(
            (failure.name.as_str(), failure.code()),
            ("demo/deaf", "FNL0212")
        );
    }

    #[tokio::test]
    async fn a_child_group_stops_alone() {
        let tasks = Tasks::new("demo");
        let child = tasks.child("part");
        let (tx, rx) = tokio::sync::oneshot::channel();
        child.spawn("inner", |stop| async move {
            stop.cancelled().await;
            tx.send(()).ok();
            Plain::Ok(())
        });
        child.stop();
        rx.await.unwrap();
        assert!(!tasks.stopping().is_cancelled());
    }

    #[tokio::test]
    async fn dropping_the_last_handle_asks_the_tasks_to_stop() {
        let (tx, rx) = tokio::sync::oneshot::channel();
        let tasks = Tasks::new("demo");
        tasks.spawn("owned", |stop| async move {
            stop.cancelled().await;
            tx.send(()).ok();
            Plain::Ok(())
        });
        drop(tasks);
        rx.await.unwrap();
    }
}
