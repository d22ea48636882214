//! The policy in force: one immutable snapshot, swapped whole, read without a lock.
//! Trusts `mesh_policy` for validity.
//! Never is absent: before the first snapshot there is one that denies everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, Guard};
use mesh_policy::CompiledPolicy;
use tokio::sync::watch;

use crate::token::Issuers;

/// One policy set for the inbound door, and its number.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// Counts from 1; 0 is the snapshot before there was a policy.
    pub(crate) generation: u64,
    /// Names the content of the file: the same text, the same revision.
    pub(crate) revision: Arc<str>,
    pub(crate) policy: CompiledPolicy,
    /// Whose tokens it believes, with their keys.
    pub(crate) issuers: Issuers,
}

/// The policy in force. Clones are handles.
#[derive(Clone, Debug)]
pub(crate) struct Policies {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    current: ArcSwap<Snapshot>,
    generation: AtomicU64,
    changes: watch::Sender<u64>,
}

impl Policies {
    /// Nothing was read yet: everything is denied.
    pub(crate) fn not_ready() -> Self {
        let none = Snapshot {
            generation: 0,
            revision: "none".into(),
            policy: CompiledPolicy::not_ready(),
            issuers: Issuers::default(),
        };
        let inner = Inner {
            current: ArcSwap::from_pointee(none),
            generation: AtomicU64::new(0),
            changes: watch::Sender::new(0),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The snapshot in force now.
    pub(crate) fn current(&self) -> Guard<Arc<Snapshot>> {
        self.inner.current.load()
    }

    /// The number of the snapshot in force: one atomic read.
    pub(crate) fn generation(&self) -> u64 {
        self.inner.generation.load(Ordering::Acquire)
    }

    /// Puts a set in force. Only the feed does this.
    pub(crate) fn publish(
        &self,
        policy: CompiledPolicy,
        issuers: Issuers,
        revision: Arc<str>,
    ) -> u64 {
        let mut generation = 0;
        self.inner.changes.send_modify(|seen| {
            *seen += 1;
            generation = *seen;
            self.inner.current.store(Arc::new(Snapshot {
                generation,
                revision,
                policy,
                issuers,
            }));
            // After the snapshot: whoever sees the new number finds the new snapshot.
            self.inner.generation.store(generation, Ordering::Release);
        });
        generation
    }

    /// Learns of each change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }
}
