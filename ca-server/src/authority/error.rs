//! Why the authority could not be opened, moved on, or made to sign; one code per reason.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use mesh_identity::SpiffeId;
use mesh_runtime::errors::{Blame, Coded};

use super::UpstreamError;
use crate::store::StoreError;

/// Why the authority could not be opened or moved on.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The key file is open to others.
    #[error("the sealing key {} may be read or written by others (mode {mode:04o}); it must be 0600 or 0400", path.display())]
    OpenToOthers {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The store holds sealed keys and the key file is gone.
    #[error("the store holds sealed CA keys, but the sealing key {} is not there", path.display())]
    SealingKeyMissing {
        /// The file.
        path: PathBuf,
    },
    /// The key file is not a key.
    #[error("the sealing key {} is not 64 hexadecimal digits", path.display())]
    SealingKeyMalformed {
        /// The file.
        path: PathBuf,
    },
    /// The key file could not be read or made.
    #[error("the sealing key {} cannot be used", path.display())]
    SealingKeyFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another sealing key was used, or the sealed key was changed.
    #[error(
        "the CA key {authority_id} cannot be unsealed: this is another sealing key, or the stored key was changed"
    )]
    CannotUnseal {
        /// Which authority.
        authority_id: String,
    },
    /// The journal makes no sense.
    #[error("the authority journal cannot be read: {reason}")]
    Journal {
        /// Why.
        reason: String,
    },
    /// The configured life is too short.
    #[error("an authority that lives {lifetime:?} is too short-lived; the least is {shortest:?}")]
    ShortLife {
        /// Configured.
        lifetime: Duration,
        /// The least.
        shortest: Duration,
    },
    /// No key or no certificate could be made.
    #[error("a new authority could not be made: {reason}")]
    Make {
        /// Why.
        reason: String,
    },
    /// The authority above did not sign.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The store refused.
    #[error("the authority's state could not be stored")]
    Store(#[from] StoreError),
}

impl AuthorityError {
    /// Who has to act.
    pub fn blame(&self) -> Blame {
        match self {
            Self::ShortLife { .. }
            | Self::OpenToOthers { .. }
            | Self::SealingKeyMalformed { .. } => Blame::Caller,
            Self::Make { .. } => Blame::Us,
            _ => Blame::Dependency,
        }
    }
}

impl Coded for AuthorityError {
    fn code(&self) -> &'static str {
        match self {
            Self::OpenToOthers { .. } => "FNL1020",
            Self::SealingKeyMissing { .. } => "FNL1021",
            Self::SealingKeyMalformed { .. } => "FNL1022",
            Self::SealingKeyFile { .. } => "FNL1023",
            Self::CannotUnseal { .. } => "FNL1024",
            Self::Journal { .. } => "FNL1025",
            Self::ShortLife { .. } => "FNL1026",
            Self::Make { .. } => "FNL1027",
            Self::Upstream(error) => error.code(),
            Self::Store(error) => error.code(),
        }
    }
}

/// Why a leaf was not signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// No authority is valid now.
    #[error("no authority is valid at this time")]
    NoAuthority,
    /// The identity is not one that this authority may give.
    #[error("`{id}` is not an identity below our trust domain")]
    NotOurs {
        /// The identity.
        id: SpiffeId,
    },
    /// No time would be left.
    #[error("the certificate or token would live less than a second")]
    NoTime,
    /// The key is one of a kind we do not certify, or is malformed.
    #[error("the public key cannot be certified: {reason}")]
    PublicKey {
        /// Why.
        reason: String,
    },
    /// The key is that of an authority.
    #[error("the public key is that of an authority")]
    OwnKey,
    /// The token would be for too many.
    #[error("a token has at most {most} audiences, and {asked} were asked for")]
    Audiences {
        /// How many.
        asked: usize,
        /// The most.
        most: usize,
    },
    /// The token cannot say what it should.
    #[error("the token cannot be made")]
    Claims(#[from] mesh_identity::jwt::IssueError),
    /// The signature could not be made.
    #[error("the certificate or token could not be signed: {reason}")]
    Failed {
        /// Why.
        reason: String,
    },
}

impl SignError {
    /// Who has to act.
    pub fn blame(&self) -> Blame {
        match self {
            Self::PublicKey { .. }
            | Self::OwnKey
            | Self::NoTime
            | Self::NotOurs { .. }
            | Self::Audiences { .. }
            | Self::Claims(_) => Blame::Caller,
            Self::NoAuthority | Self::Failed { .. } => Blame::Us,
        }
    }
}

impl Coded for SignError {
    fn code(&self) -> &'static str {
        match self {
            Self::NoAuthority => "FNL1030",
            Self::NotOurs { .. } => "FNL1031",
            Self::NoTime => "FNL1032",
            Self::PublicKey { .. } => "FNL1033",
            Self::OwnKey => "FNL1034",
            Self::Failed { .. } => "FNL1035",
            Self::Claims(_) => "FNL1036",
            Self::Audiences { .. } => "FNL1062",
        }
    }
}
