//! The seam between what the store means (`model.rs`) and where its rows lie (`sled.rs`, `memory.rs`).
//! A group of jobs is worked into one overlay of rows; the engine makes the overlay durable, shows it, and only then
//! acknowledges. Nothing here knows what a row means, except the revision counter.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::{oneshot, watch};

use super::codec::{Row, decode, encode};
use super::records::CounterRow;
use super::view::{Event, SharedView};
use super::{StoreError, StoreHealth};

/// The tables. A row's key is its table's byte and then the key inside the table.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Table {
    Meta = 0,
    Entry = 1,
    EntryTriple = 2,
    Tombstone = 3,
    Node = 4,
    Token = 5,
    Jti = 6,
    OwnBundle = 7,
    ForeignBundle = 8,
    Journal = 9,
    Issued = 10,
    Relationship = 12,
}

impl Table {
    /// What every row's key begins with, whatever tables there will be; an engine may use the byte above for itself.
    pub(super) const EVERY: std::ops::Range<u8> = 0..u8::MAX;

    pub(super) fn key(self, inside: &[u8]) -> Vec<u8> {
        let mut key = Vec::with_capacity(1 + inside.len());
        key.push(self as u8);
        key.extend_from_slice(inside);
        key
    }
}

/// Rows of `Table::Meta`.
pub(super) const HEADER: &[u8] = b"header";
pub(super) const REVISION: &[u8] = b"revision";
pub(super) const FORGOTTEN: &[u8] = b"forgotten";
pub(super) const ISSUED: &[u8] = b"issued";
pub(super) const GROUPS: &[u8] = b"groups";

/// Rows that can be read.
pub(super) trait Pages {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;
    /// Visits rows whose key starts with `prefix`, in order.
    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError>;
}

pub(super) type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Rows that are to be written (`Some`) or removed (`None`).
pub(super) type Overlay = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Where the rows lie.
pub(super) trait Engine: Send + Sync + 'static {
    /// Does a job and acknowledges it when it is durable.
    fn submit(&self, job: Box<dyn Job>) -> BoxFuture<'_, Result<(), StoreError>>;
    fn pages(&self) -> &dyn Pages;
    fn view(&self) -> &SharedView;
    fn health(&self) -> watch::Receiver<StoreHealth>;
}

/// One call that changes something.
pub(super) trait Job: Send {
    /// Whether it only removes: such jobs are let through when the disk is nearly full.
    fn only_removes(&self) -> bool;
    /// Works it into the transaction; `false` throws its rows away.
    fn run(&mut self, tx: &mut Tx<'_>) -> bool;
    /// Answers the caller.
    fn acknowledge(self: Box<Self>, durable: Result<(), StoreError>);
}

/// A job made of a closure.
pub(super) struct Work<T, F> {
    work: Option<F>,
    outcome: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
    only_removes: bool,
}

impl<T, F> Work<T, F>
where
    T: Send + 'static,
    F: FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
{
    /// The job, and where its answer will come.
    pub(super) fn job(
        only_removes: bool,
        work: F,
    ) -> (Box<dyn Job>, oneshot::Receiver<Result<T, StoreError>>) {
        let (reply, answer) = oneshot::channel();
        (
            Box::new(Self {
                work: Some(work),
                outcome: None,
                reply,
                only_removes,
            }),
            answer,
        )
    }
}

impl<T, F> Job for Work<T, F>
where
    T: Send,
    F: FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send,
{
    fn only_removes(&self) -> bool {
        self.only_removes
    }

    fn run(&mut self, tx: &mut Tx<'_>) -> bool {
        let Some(work) = self.work.take() else {
            return false;
        };
        let outcome = work(tx);
        let good = outcome.is_ok();
        self.outcome = Some(outcome);
        good
    }

    fn acknowledge(self: Box<Self>, durable: Result<(), StoreError>) {
        let answer = match (durable, self.outcome) {
            (Err(error), _) => Err(error),
            (Ok(()), Some(outcome)) => outcome,
            (Ok(()), None) => Err(StoreError::Stopped {
                reason: Arc::from("the job was not run"),
            }),
        };
        // The caller may have gone away; the change stands all the same.
        drop(self.reply.send(answer));
    }
}

/// The changes of a group of jobs, not yet written.
pub(super) struct Group<'a> {
    pages: &'a dyn Pages,
    overlay: Overlay,
    events: Vec<Event>,
    revision: u64,
    /// The first read that failed: what jobs concluded from then on means nothing.
    fault: RefCell<Option<StoreError>>,
}

impl<'a> Group<'a> {
    pub(super) fn new(pages: &'a dyn Pages, revision: u64) -> Self {
        Self {
            pages,
            overlay: Overlay::new(),
            events: Vec::new(),
            revision,
            fault: RefCell::new(None),
        }
    }

    /// Works one job in; a job that fails leaves nothing behind.
    pub(super) fn add(&mut self, job: &mut dyn Job) {
        let mut tx = Tx {
            pages: self.pages,
            group: &self.overlay,
            own: Overlay::new(),
            events: Vec::new(),
            revision: self.revision,
            fault: &self.fault,
        };
        if job.run(&mut tx) {
            let Tx {
                own,
                events,
                revision,
                ..
            } = tx;
            self.overlay.extend(own);
            self.events.extend(events);
            self.revision = revision;
        }
    }

    pub(super) fn finish(self) -> Result<(Overlay, Vec<Event>, u64), StoreError> {
        match self.fault.into_inner() {
            Some(fault) => Err(fault),
            None => Ok((self.overlay, self.events, self.revision)),
        }
    }
}

/// What one job sees and changes.
pub(super) struct Tx<'a> {
    pages: &'a dyn Pages,
    group: &'a Overlay,
    own: Overlay,
    events: Vec<Event>,
    revision: u64,
    fault: &'a RefCell<Option<StoreError>>,
}

impl Tx<'_> {
    fn noticed<T>(&self, read: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(error) = &read {
            self.fault.borrow_mut().get_or_insert_with(|| error.clone());
        }
        read
    }

    fn bytes(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.own.get(key).or_else(|| self.group.get(key)) {
            Some(row) => Ok(row.clone()),
            None => self.noticed(self.pages.get(key)),
        }
    }

    pub(super) fn get<R: Row>(&self, table: Table, key: &[u8]) -> Result<Option<R>, StoreError> {
        self.bytes(&table.key(key))?
            .map(|bytes| decode(&bytes))
            .transpose()
    }

    pub(super) fn contains(&self, table: Table, key: &[u8]) -> Result<bool, StoreError> {
        Ok(self.bytes(&table.key(key))?.is_some())
    }

    pub(super) fn put<R: Row>(
        &mut self,
        table: Table,
        key: &[u8],
        row: &R,
    ) -> Result<(), StoreError> {
        self.own.insert(table.key(key), Some(encode(row)?));
        Ok(())
    }

    /// For rows that are their key alone, or plain bytes.
    pub(super) fn put_plain(&mut self, table: Table, key: &[u8], bytes: &[u8]) {
        self.own.insert(table.key(key), Some(bytes.to_vec()));
    }

    pub(super) fn get_plain(
        &self,
        table: Table,
        key: &[u8],
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.bytes(&table.key(key))
    }

    pub(super) fn remove(&mut self, table: Table, key: &[u8]) {
        self.own.insert(table.key(key), None);
    }

    /// Keys (inside the table) of rows that were durable before this group, for as long as `keep` says so.
    /// Rows of the group itself are not seen: housekeeping meets them next time.
    pub(super) fn durable_keys(
        &self,
        table: Table,
        mut keep: impl FnMut(&[u8], &[u8]) -> ControlFlow<(), bool>,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut keys = Vec::new();
        let read = self
            .pages
            .scan(&[table as u8], &mut |key, row| match keep(&key[1..], row) {
                ControlFlow::Continue(wanted) => {
                    if wanted {
                        keys.push(key[1..].to_vec());
                    }
                    ControlFlow::Continue(())
                }
                ControlFlow::Break(()) => ControlFlow::Break(()),
            });
        self.noticed(read)?;
        Ok(keys)
    }

    /// What was durable before this group. Nothing changes it while the job runs.
    pub(super) fn durable(&self) -> &dyn Pages {
        self.pages
    }

    /// The next number of the global counter; it is stored in the same step as what it numbers.
    pub(super) fn next_revision(&mut self) -> Result<u64, StoreError> {
        self.revision += 1;
        self.put(Table::Meta, REVISION, &CounterRow(self.revision))?;
        Ok(self.revision)
    }

    /// What readers shall see once this is durable.
    pub(super) fn show(&mut self, event: Event) {
        self.events.push(event);
    }
}

/// Throws the oldest tombstones away when there are too many, and notes how far the memory now reaches.
pub(super) fn forget_tombstones(
    group: &mut Group<'_>,
    view: &SharedView,
) -> Result<(), StoreError> {
    let old = view.read().tombstones_to_forget();
    let Some(upto) = old.last().copied() else {
        return Ok(());
    };
    for revision in &old {
        group
            .overlay
            .insert(Table::Tombstone.key(&revision.to_be_bytes()), None);
    }
    group
        .overlay
        .insert(Table::Meta.key(FORGOTTEN), Some(encode(&CounterRow(upto))?));
    group.events.push(Event::Forgotten(upto));
    Ok(())
}
