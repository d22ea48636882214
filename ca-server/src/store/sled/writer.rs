//! The one thread that writes: takes what is queued as a group, writes it, flushes, syncs, shows it, acknowledges it.
//! The first failure is final: a second sync after a failed one proves nothing, so nothing is acknowledged any more.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_identity::TrustDomain;
use mesh_runtime::errors::Coded as _;
use tokio::sync::{mpsc, watch};

use super::place::{self, Place};
use super::{Opened, SledSettings};
use crate::store::codec::encode;
use crate::store::engine::{GROUPS, Group, Job, Table, forget_tombstones};
use crate::store::records::CounterRow;
use crate::store::view::{SharedView, View};
use crate::store::{StoreError, StoreHealth};

/// The largest group: bounds how long its first job waits for the others to be worked in.
const GROUP: usize = 256;

pub(super) struct Writer {
    directory: PathBuf,
    place: Place,
    view: Arc<SharedView>,
    reserve: u64,
    health: watch::Sender<StoreHealth>,
}

impl Writer {
    pub(super) fn open(
        directory: &Path,
        trust_domain: &TrustDomain,
        settings: &SledSettings,
    ) -> Result<(Self, Opened), StoreError> {
        let unusable = |reason: &str| StoreError::Unusable {
            path: directory.to_owned(),
            reason: reason.to_owned(),
        };
        let (place, view) = catch_unwind(AssertUnwindSafe(|| {
            let place = place::open(directory, trust_domain, settings)?;
            let view = View::load(&place.rows)?;
            Ok((place, view))
        }))
        .map_err(|_| unusable("reading its content failed; restore the store from a backup"))??;
        let view = Arc::new(SharedView::new(
            place.epoch.clone(),
            trust_domain.clone(),
            view,
        ));
        let health = watch::Sender::new(StoreHealth::Working);
        let opened = Opened {
            rows: place.rows.clone(),
            view: view.clone(),
            health: health.subscribe(),
        };
        let reserve = settings.free_space_reserve;
        Ok((
            Self {
                directory: directory.to_owned(),
                place,
                view,
                reserve,
                health,
            },
            opened,
        ))
    }

    /// Works until the last handle on the queue is gone.
    pub(super) fn run(mut self, mut jobs: mpsc::Receiver<Box<dyn Job>>) {
        while let Some(first) = jobs.blocking_recv() {
            let mut group = vec![first];
            while group.len() < GROUP
                && let Ok(job) = jobs.try_recv()
            {
                group.push(job);
            }
            self.commit(group);
        }
    }

    fn commit(&mut self, jobs: Vec<Box<dyn Job>>) {
        if let StoreHealth::Stopped(reason) = &*self.health.borrow() {
            let stopped = StoreError::Stopped {
                reason: reason.clone(),
            };
            return jobs
                .into_iter()
                .for_each(|job| job.acknowledge(Err(stopped.clone())));
        }
        let mut jobs = self.refuse_if_nearly_full(jobs);
        // A defect in a job, or a panic inside sled, stops the store; it does not end the program without a word.
        let written = catch_unwind(AssertUnwindSafe(|| self.write(&mut jobs)))
            .unwrap_or_else(|_| Err("the writer panicked".into()));
        let durable = written.map_err(|reason| self.stop(&reason));
        for job in jobs {
            job.acknowledge(durable.clone());
        }
    }

    /// Everything that must have happened before an acknowledgement, in this order.
    fn write(&mut self, jobs: &mut [Box<dyn Job>]) -> Result<(), String> {
        let revision = self.view.read().revision;
        let mut group = Group::new(&self.place.rows, revision);
        forget_tombstones(&mut group, &self.view).map_err(|error| error.to_string())?;
        for job in jobs {
            group.add(job.as_mut());
        }
        let (mut overlay, events, revision) = group.finish().map_err(|error| error.to_string())?;
        if overlay.is_empty() {
            return Ok(());
        }
        let number = self.place.groups + 1;
        let row = encode(&CounterRow(number)).map_err(|error| error.to_string())?;
        overlay.insert(Table::Meta.key(GROUPS), Some(row));
        self.place
            .rows
            .write(overlay)
            .map_err(|error| error.to_string())?;
        self.place
            .db
            .flush()
            .map_err(|error| format!("flush: {error}"))?;
        // sled's flush ends in sync_file_range, which is no barrier: this is.
        self.place
            .log
            .sync_data()
            .map_err(|error| format!("fdatasync: {error}"))?;
        self.place.groups = number;
        self.place
            .watermark
            .set(number)
            .map_err(|error| format!("watermark: {error}"))?;
        self.view.publish(events, revision);
        Ok(())
    }

    fn stop(&self, reason: &str) -> StoreError {
        let reason: Arc<str> = Arc::from(reason);
        let error = StoreError::Stopped {
            reason: reason.clone(),
        };
        tracing::error!(
            code = error.code(),
            %reason,
            "the store has stopped taking changes"
        );
        self.health.send_replace(StoreHealth::Stopped(reason));
        error
    }

    /// Lets only removals through while free space is below the reserve.
    fn refuse_if_nearly_full(&self, jobs: Vec<Box<dyn Job>>) -> Vec<Box<dyn Job>> {
        let Some(free) = self.free_space().filter(|free| *free < self.reserve) else {
            self.set_health(StoreHealth::Working);
            return jobs;
        };
        self.set_health(StoreHealth::NearlyFull);
        let (pass, refuse): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.only_removes());
        for job in refuse {
            job.acknowledge(Err(StoreError::NearlyFull {
                free,
                reserve: self.reserve,
            }));
        }
        pass
    }

    fn set_health(&self, now: StoreHealth) {
        self.health
            .send_if_modified(|health| std::mem::replace(health, now.clone()) != now);
    }

    /// `None` where the file system does not tell.
    fn free_space(&self) -> Option<u64> {
        let figures = nix::sys::statvfs::statvfs(&self.directory).ok()?;
        Some(figures.blocks_available() as u64 * figures.fragment_size() as u64)
    }
}
