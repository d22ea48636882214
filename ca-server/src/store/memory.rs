//! The store that forgets: for tests. The same rows and the same rules as the embedded one, in a map.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use mesh_identity::TrustDomain;
use tokio::sync::watch;

use super::engine::{Engine, Group, Job, Pages, Visit, forget_tombstones};
use super::model::Store;
use super::view::{SharedView, View};
use super::{StoreError, StoreHealth};

pub(super) struct Memory {
    rows: Rows,
    view: SharedView,
    writing: Mutex<()>,
    health: watch::Sender<StoreHealth>,
}

#[derive(Default)]
struct Rows(Mutex<BTreeMap<Vec<u8>, Vec<u8>>>);

pub(super) fn open(trust_domain: &TrustDomain) -> Arc<Store<Memory>> {
    let view = SharedView::new(
        uuid::Uuid::new_v4().to_string(),
        trust_domain.clone(),
        View::default(),
    );
    Store::over(Memory {
        rows: Rows::default(),
        view,
        writing: Mutex::new(()),
        health: watch::Sender::new(StoreHealth::Working),
    })
}

impl Memory {
    fn write(&self, mut job: Box<dyn Job>) {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let revision = self.view.read().revision;
        let mut group = Group::new(&self.rows, revision);
        let written = forget_tombstones(&mut group, &self.view).and_then(|()| {
            group.add(job.as_mut());
            group.finish()
        });
        let done = written.map(|(overlay, events, revision)| {
            let mut rows = self.rows.0.lock().unwrap_or_else(PoisonError::into_inner);
            for (key, row) in overlay {
                match row {
                    Some(row) => rows.insert(key, row),
                    None => rows.remove(&key),
                };
            }
            drop(rows);
            self.view.publish(events, revision);
        });
        job.acknowledge(done);
    }
}

impl Engine for Memory {
    fn submit(&self, job: Box<dyn Job>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.write(job);
        async { Ok(()) }.boxed()
    }

    fn pages(&self) -> &dyn Pages {
        &self.rows
    }

    fn view(&self) -> &SharedView {
        &self.view
    }

    fn health(&self) -> watch::Receiver<StoreHealth> {
        self.health.subscribe()
    }
}

impl Pages for Rows {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .cloned())
    }

    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, row) in rows
            .range(prefix.to_vec()..)
            .take_while(|(key, _)| key.starts_with(prefix))
        {
            if let ControlFlow::Break(()) = visit(key, row) {
                break;
            }
        }
        Ok(())
    }
}
