//! Why the store refused, one code per reason.

use std::path::PathBuf;
use std::sync::Arc;

use mesh_runtime::errors::{Blame, Coded};

/// Why the store could not be opened, read or changed. Cheap to clone: one failure may answer a whole group of calls.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the store.
    #[error("the store {} is held by another process", path.display())]
    Locked {
        /// Where.
        path: PathBuf,
    },
    /// The files are there but cannot be used.
    #[error("the store {} cannot be opened: {reason}", path.display())]
    Unusable {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It was made by a program that writes another format.
    #[error("the store is in format {found}; this program reads format {known}")]
    OtherFormat {
        /// What the store says.
        found: u16,
        /// What we can read.
        known: u16,
    },
    /// It belongs to another trust domain.
    #[error("the store belongs to trust domain `{found}`, not to `{configured}`")]
    OtherTrustDomain {
        /// What the store says.
        found: String,
        /// What the configuration says.
        configured: String,
    },
    /// The guard against a full disk.
    #[error("the disk is nearly full: {free} bytes are free, {reserve} are kept in reserve")]
    NearlyFull {
        /// Free bytes.
        free: u64,
        /// The reserve.
        reserve: u64,
    },
    /// A write failed earlier; nothing is acknowledged any more.
    #[error("the store has stopped taking changes: {reason}")]
    Stopped {
        /// The failure that stopped it.
        reason: Arc<str>,
    },
    /// A row would be larger than the store holds safely.
    #[error("a {what} of {size} bytes is larger than the {limit} bytes that a stored row may have")]
    TooLarge {
        /// What kind of row.
        what: &'static str,
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// A row cannot be understood: damaged, or written by a newer program.
    #[error("a stored {what} cannot be read: {reason}")]
    Unreadable {
        /// What kind of row.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// A backup could not be put aside.
    #[error("the backup could not be put aside: {reason}")]
    Spool {
        /// Why.
        reason: String,
    },
    /// Reading failed.
    #[error("the store could not be read: {reason}")]
    Read {
        /// Why.
        reason: String,
    },
}

impl StoreError {
    /// Who has to act.
    pub fn blame(&self) -> Blame {
        match self {
            Self::TooLarge { .. } => Blame::Caller,
            _ => Blame::Dependency,
        }
    }
}

impl Coded for StoreError {
    fn code(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "FNL1001",
            Self::Unusable { .. } => "FNL1002",
            Self::OtherFormat { .. } => "FNL1003",
            Self::OtherTrustDomain { .. } => "FNL1004",
            Self::NearlyFull { .. } => "FNL1005",
            Self::Stopped { .. } => "FNL1006",
            Self::TooLarge { .. } => "FNL1007",
            Self::Unreadable { .. } => "FNL1008",
            Self::Spool { .. } => "FNL1009",
            Self::Read { .. } => "FNL1010",
        }
    }
}
