//! What was signed, remembered until it has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::FutureExt;

use super::Store;
use crate::store::codec::decode;
use crate::store::engine::{Engine, ISSUED, Table, Tx};
use crate::store::records::{CounterRow, IssuedRow, IssuedRows};
use crate::store::{Issued, IssuedRecord, StoreError, StoreFuture};

/// Sorts by end, so that pruning reads only what it removes.
fn end_key(end: SystemTime, serial: &str) -> Vec<u8> {
    let mut key = seconds(end).to_be_bytes().to_vec();
    key.extend_from_slice(serial.as_bytes());
    key
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// How many calls' certificates one transaction forgets: bounds how long others wait behind it.
const FORGET_AT_ONCE: usize = 2_000;

fn count_issued(tx: &mut Tx<'_>, change: impl FnOnce(u64) -> u64) -> Result<(), StoreError> {
    let count = tx
        .get::<CounterRow>(Table::Meta, ISSUED)?
        .map_or(0, |count| count.0);
    tx.put(Table::Meta, ISSUED, &CounterRow(change(count)))
}

/// Forgets some of the certificates that have ended, the oldest first; answers how many, and whether there may be more.
fn forget_issued(tx: &mut Tx<'_>, now: SystemTime) -> Result<(u64, bool), StoreError> {
    let (mut left, mut forgotten, mut unreadable) = (FORGET_AT_ONCE, 0, None);
    let ended = tx.durable_keys(Table::Issued, |key, row| {
        let end = key.first_chunk::<8>().map(|end| u64::from_be_bytes(*end));
        if left == 0 || end.is_some_and(|end| end >= seconds(now)) {
            return ControlFlow::Break(());
        }
        match decode::<IssuedRows>(row) {
            Ok(rows) => forgotten += rows.0.len() as u64,
            Err(error) => {
                unreadable = Some(error);
                return ControlFlow::Break(());
            }
        }
        left -= 1;
        ControlFlow::Continue(true)
    })?;
    if let Some(error) = unreadable {
        return Err(error);
    }
    for key in &ended {
        tx.remove(Table::Issued, key);
    }
    if forgotten > 0 {
        count_issued(tx, |count| count.saturating_sub(forgotten))?;
    }
    Ok((forgotten, left == 0))
}

impl<E: Engine> Store<E> {
    /// Shows every certificate that is remembered, by the time when they end.
    fn each_issued(
        &self,
        mut show: impl FnMut(IssuedRow) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut failed = None;
        let mut take = |row: &[u8]| {
            decode::<IssuedRows>(row)?
                .0
                .into_iter()
                .try_for_each(&mut show)
        };
        self.engine
            .pages()
            .scan(&Table::Issued.key(&[]), &mut |_, row| match take(row) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            })?;
        failed.map_or(Ok(()), Err)
    }
}

/// One call's certificates are one row, by the time when the last of them ends: what is written most often is written at one end
/// of the tree, and what has ended lies together. A serial is asked for by people only, so nothing is kept to find it fast.
impl<E: Engine> Issued for Store<E> {
    fn record(&self, certificates: Vec<IssuedRecord>) -> StoreFuture<'_, ()> {
        self.change(move |tx| {
            let end = certificates.iter().map(|one| one.not_after).max();
            let (Some(end), Some(first)) = (end, certificates.first()) else {
                return Ok(());
            };
            let rows = IssuedRows(certificates.iter().map(IssuedRow::from).collect());
            tx.put(Table::Issued, &end_key(end, &first.serial), &rows)?;
            count_issued(tx, |count| count + certificates.len() as u64)
        })
    }

    fn find(&self, serials: BTreeSet<String>) -> StoreFuture<'_, Vec<IssuedRecord>> {
        async move {
            let mut found = Vec::new();
            self.each_issued(|row| {
                if serials.contains(&row.serial) {
                    found.push(row.try_into()?);
                }
                Ok(())
            })?;
            Ok(found)
        }
        .boxed()
    }

    fn held(
        &self,
        authorities: BTreeSet<String>,
        now: SystemTime,
    ) -> StoreFuture<'_, Vec<IssuedRecord>> {
        async move {
            let mut newest: BTreeMap<_, IssuedRow> = BTreeMap::new();
            self.each_issued(|row| {
                let held = newest.entry(row.holder());
                let held = held.or_insert_with(|| row.clone());
                if held.issued_at <= row.issued_at {
                    *held = row;
                }
                Ok(())
            })?;
            let by_them = newest.into_values();
            by_them
                .filter(|row| authorities.contains(&row.authority_id) && now < row.not_after)
                .map(IssuedRecord::try_from)
                .collect()
        }
        .boxed()
    }

    fn count(&self) -> StoreFuture<'_, u64> {
        async move {
            let row = self.engine.pages().get(&Table::Meta.key(ISSUED))?;
            row.map_or(Ok(0), |row| decode::<CounterRow>(&row).map(|count| count.0))
        }
        .boxed()
    }

    fn prune(&self, now: SystemTime) -> StoreFuture<'_, u64> {
        async move {
            let mut forgotten = 0;
            loop {
                let (some, more) = self.removal(move |tx| forget_issued(tx, now)).await?;
                forgotten += some;
                if !more {
                    return Ok(forgotten);
                }
            }
        }
        .boxed()
    }
}
