//! What each call of the store's traits does to its rows, whatever engine holds them.
//! Every change is one transaction: all of its rows become durable together, or none.

mod bundles;
mod entries;
mod issued;
mod nodes;
mod relationships;
mod tokens;

use std::io::Write;
use std::sync::Arc;
use std::time::SystemTime;

use futures::FutureExt;
use mesh_runtime::span;
use tokio::sync::watch;
use tracing::Instrument;

use super::engine::{Engine, Table, Tx, Work};
use super::records::TombstoneRow;
use super::view::{Event, Gone};
use super::{ChangeSet, Changes, Snapshots, StoreError, StoreFuture, StoreHealth, backup};

/// The store over an engine.
pub(super) struct Store<E> {
    engine: E,
}

impl<E: Engine> Store<E> {
    pub(super) fn over(engine: E) -> Arc<Self> {
        Arc::new(Self { engine })
    }

    fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<'_, T> {
        self.submit(false, work)
    }

    fn removal<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<'_, T> {
        self.submit(true, work)
    }

    fn submit<T: Send + 'static>(
        &self,
        only_removes: bool,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<'_, T> {
        let written = span!("datastore write");
        async move {
            let (job, answer) = Work::job(only_removes, work);
            self.engine.submit(job).await?;
            answer.await.unwrap_or_else(|_| {
                Err(StoreError::Stopped {
                    reason: Arc::from("the writer is gone"),
                })
            })
        }
        .instrument(written)
        .boxed()
    }

    fn seen<T: Send + 'static>(&self, value: T) -> StoreFuture<'_, T> {
        async move { Ok(value) }.boxed()
    }
}

/// Says to those who follow the changes that something is gone.
fn bury(tx: &mut Tx<'_>, gone: Gone) -> Result<(), StoreError> {
    let revision = tx.next_revision()?;
    tx.put(
        Table::Tombstone,
        &revision.to_be_bytes(),
        &TombstoneRow::from(&gone),
    )?;
    tx.show(Event::Gone(revision, gone));
    Ok(())
}

impl<E: Engine> Changes for Store<E> {
    fn epoch(&self) -> &str {
        self.engine.view().epoch()
    }

    fn newest(&self) -> watch::Receiver<u64> {
        self.engine.view().newest()
    }

    fn since(&self, revision: u64) -> StoreFuture<'_, Option<ChangeSet>> {
        self.seen(self.engine.view().read().since(revision))
    }

    fn everything(&self) -> StoreFuture<'_, ChangeSet> {
        self.seen(self.engine.view().read().everything())
    }

    fn health(&self) -> watch::Receiver<StoreHealth> {
        self.engine.health()
    }
}

impl<E: Engine> Snapshots for Store<E> {
    fn snapshot(&self, mut into: Box<dyn Write + Send>, now: SystemTime) -> StoreFuture<'_, ()> {
        let trust_domain = self.engine.view().trust_domain().clone();
        self.change(move |tx| backup::write(tx.durable(), &trust_domain, now, &mut into))
    }
}
