//! Decides whether records are those that were signed: their tree is grown while they are read and compared at each checkpoint.
//! Trusts the checkpoints, whose signatures were verified; never a record, and not the tree before the first of them either.

use std::collections::VecDeque;

use super::checkpoint::{BadCheckpoint, Checkpoint};
use super::merkle::{Hash, Tree, leaf};

/// What the records of a log are compared with.
#[derive(Clone, Debug, Default)]
pub struct Seals {
    /// The tree of the records before the first one that is read. A checkpoint proves it together with what is read.
    pub before: Tree,
    /// The checkpoints, from small to large.
    pub checkpoints: Vec<Checkpoint>,
    /// Hashes of the records after the last one that is read: they lead to the next checkpoint.
    pub following: Vec<Hash>,
}

/// What was proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The tree of all records.
    pub tree: Tree,
    /// How many checkpoints agree.
    pub checkpoints: u64,
    /// Records up to this one are those that were signed; 0 when there is no checkpoint.
    pub signed: u64,
}

/// The comparison under way.
pub(super) struct Comparison {
    tree: Tree,
    due: VecDeque<Checkpoint>,
    following: Vec<Hash>,
    agreed: u64,
    signed: u64,
    /// The newest checkpoint covers a `log.stop`. What comes next is the `log.start` of the next run, which is signed at once.
    stopped: bool,
    /// The first record after such a stop that no program writes without a checkpoint.
    intruder: Option<u64>,
    bad: Option<BadCheckpoint>,
}

impl Comparison {
    pub(super) fn new(seals: Seals) -> Self {
        let before = seals.before.size();
        let due = seals.checkpoints.into_iter().filter(|c| c.size() >= before);
        let mut comparison = Self {
            tree: seals.before,
            due: due.collect(),
            following: seals.following,
            agreed: 0,
            signed: 0,
            stopped: false,
            intruder: None,
            bad: None,
        };
        comparison.compare();
        comparison
    }

    /// Takes the next record. What is wrong with it is told at the end: the chain may name it more exactly.
    pub(super) fn record(&mut self, seq: u64, action: &str, line: &[u8]) {
        if seq != self.tree.size() + 1 {
            self.bad.get_or_insert(BadCheckpoint::Start(seq));
            return;
        }
        self.tree.push(leaf(line));
        self.compare();
        if self.signed == seq {
            (self.stopped, self.intruder) = (action == "log.stop", None);
        } else if self.stopped && (seq > self.signed + 1 || action != "log.start") {
            self.intruder.get_or_insert(seq);
        }
    }

    fn compare(&mut self) {
        let size = self.tree.size();
        while self.due.front().is_some_and(|next| next.size() == size) {
            let agrees = self
                .due
                .pop_front()
                .is_some_and(|c| *c.root() == self.tree.root());
            match agrees {
                true => (self.agreed, self.signed) = (self.agreed + 1, size),
                false => {
                    let after = self.signed;
                    self.bad.get_or_insert(BadCheckpoint::Root { size, after });
                }
            }
        }
    }

    pub(super) fn end(mut self) -> Result<Sealed, BadCheckpoint> {
        let tree = self.tree.clone();
        let intruder = self.intruder.map(BadCheckpoint::AfterStop);
        self.bad = self.bad.or(intruder);
        for hash in std::mem::take(&mut self.following) {
            self.tree.push(hash);
            self.compare();
        }
        if let Some(bad) = self.bad {
            return Err(bad);
        }
        if let Some(beyond) = self.due.front() {
            return Err(BadCheckpoint::Missing {
                size: beyond.size(),
                records: tree.size(),
            });
        }
        Ok(Sealed {
            signed: self.signed.min(tree.size()),
            checkpoints: self.agreed,
            tree,
        })
    }
}
