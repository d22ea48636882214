//! The embedded store: sled 0.34, owned by one writer thread. It decides when a change counts as durable.
//! Trusts the disk only after its own `fdatasync`: sled's `flush` alone does not survive a power cut.
//! Never acknowledges after a failed write, and never makes a new store where an old one has been damaged.

#[cfg(test)]
mod crash;
#[cfg(test)]
mod linear;
mod pieces;
mod place;
#[cfg(test)]
mod tests;
mod watermark;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use mesh_identity::TrustDomain;
use tokio::sync::{mpsc, oneshot, watch};

use self::pieces::Rows;
use self::writer::Writer;
use super::engine::{Engine, Job, Overlay, Pages};
use super::model::Store;
use super::view::SharedView;
use super::{StoreError, StoreHealth};

/// How many calls may wait for the writer; more of them wait for a place in the queue.
const QUEUE: usize = 1024;

/// How the embedded store behaves.
#[derive(Clone, Debug)]
pub struct SledSettings {
    /// Changes are refused while fewer bytes than this are free on the disk. A full sled cannot even be opened.
    pub free_space_reserve: u64,
    /// How long to wait for the lock of a process that is still going away.
    pub lock_wait: Duration,
    /// sled's page cache, in bytes.
    pub cache: u64,
}

impl Default for SledSettings {
    fn default() -> Self {
        Self {
            free_space_reserve: 64 << 20,
            lock_wait: Duration::from_secs(10),
            cache: 16 << 20,
        }
    }
}

/// The engine: the queue to the writer, and what readers use without it.
pub(super) struct Embedded {
    queue: Option<mpsc::Sender<Box<dyn Job>>>,
    writer: Option<JoinHandle<()>>,
    rows: Rows,
    view: Arc<SharedView>,
    health: watch::Receiver<StoreHealth>,
}

/// What the writer thread hands back once the store is open.
struct Opened {
    rows: Rows,
    view: Arc<SharedView>,
    health: watch::Receiver<StoreHealth>,
}

/// Opens the store, on the thread that will own it.
pub(super) async fn open(
    directory: &Path,
    trust_domain: &TrustDomain,
    settings: SledSettings,
) -> Result<Arc<Store<Embedded>>, StoreError> {
    let (queue, jobs) = mpsc::channel(QUEUE);
    let (tell, told) = oneshot::channel();
    let (directory, trust_domain) = (directory.to_owned(), trust_domain.clone());
    let writer = std::thread::Builder::new()
        .name("store-writer".into())
        .spawn({
            let directory = directory.clone();
            move || match Writer::open(&directory, &trust_domain, &settings) {
                Ok((writer, opened)) => {
                    if tell.send(Ok(opened)).is_ok() {
                        writer.run(jobs);
                    }
                }
                Err(error) => drop(tell.send(Err(error))),
            }
        });
    let unusable = |reason: String| StoreError::Unusable {
        path: directory.clone(),
        reason,
    };
    let writer = writer.map_err(|error| unusable(format!("no thread for it: {error}")))?;
    let opened = told
        .await
        .map_err(|_| unusable("the writer thread ended while opening it".into()))??;
    Ok(Store::over(Embedded {
        queue: Some(queue),
        writer: Some(writer),
        rows: opened.rows,
        view: opened.view,
        health: opened.health,
    }))
}

/// Makes a store with these rows where there is none.
pub(super) fn make(
    directory: &Path,
    trust_domain: &TrustDomain,
    settings: &SledSettings,
    content: Overlay,
) -> Result<(), StoreError> {
    place::make(directory, trust_domain, settings, content)
}

impl Engine for Embedded {
    fn submit(&self, job: Box<dyn Job>) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let gone = || StoreError::Stopped {
                reason: Arc::from("the writer thread has ended"),
            };
            let queue = self.queue.as_ref().ok_or_else(gone)?;
            queue.send(job).await.map_err(|_| gone())
        }
        .boxed()
    }

    fn pages(&self) -> &dyn Pages {
        &self.rows
    }

    fn view(&self) -> &SharedView {
        &self.view
    }

    fn health(&self) -> watch::Receiver<StoreHealth> {
        self.health.clone()
    }
}

impl Drop for Embedded {
    /// Lets the writer finish what is queued and gives the lock back before this returns.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            // A panic there has stopped the store already and was reported by its health.
            drop(writer.join());
        }
    }
}
