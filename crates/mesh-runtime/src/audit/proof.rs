//! Decides how a proof is written and when it is believed: a record is in the log (c2sp.org/tlog-proof), or the log was
//! only continued since a checkpoint (the body that c2sp.org/tlog-witness asks for).
//! Trusts the public key and the checkpoint that somebody kept; needs neither the log nor its program.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::checkpoint::{BadCheckpoint, Checkpoint, decimal, hash, hash_lines};
use super::merkle::{Hash, is_continued, is_included, leaf};
use super::note::PublicKey;
use super::verify::parse;
use crate::errors::Coded;

/// The first line of a proof that a record is in a log.
const INCLUSION: &str = "c2sp.org/tlog-proof@v1";

/// The longest proof that is read: a record, 64 hashes, a checkpoint.
pub(super) const LONGEST_PROOF: usize = 2 * 1024 * 1024;

/// No tree is higher.
const MOST_HASHES: usize = 64;

/// A proof that was not believed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// That a record is in the log.
    Inclusion {
        /// The record's line.
        record: String,
        /// Its number less one.
        index: u64,
        /// The hashes from the record to the root.
        path: Vec<Hash>,
        /// What was signed.
        checkpoint: Checkpoint,
    },
    /// That the log was only continued.
    Consistency {
        /// How many records the older checkpoint covers.
        old: u64,
        /// The hashes that lead from the older root to the newer one.
        path: Vec<Hash>,
        /// The newer checkpoint.
        checkpoint: Checkpoint,
    },
}

/// Why a proof is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// It does not have the form of a proof.
    #[error("this is no proof: {0}")]
    Malformed(&'static str),
    /// Its checkpoint is not signed by the key.
    #[error("the checkpoint of the proof is not believed")]
    Checkpoint(#[source] BadCheckpoint),
    /// The record is not in the log, or not in this place.
    #[error("the record is not the {0}th of those that the checkpoint covers")]
    NotIncluded(u64),
    /// The log was rewritten.
    #[error("the checkpoint does not continue the one over {0} records: the log was rewritten")]
    NotContinued(u64),
    /// A proof of continuation says nothing without the checkpoint that is continued.
    #[error("the older checkpoint, over {0} records, is needed to believe this proof")]
    NeedsOlder(u64),
}

impl Coded for ProofError {
    fn code(&self) -> &'static str {
        "FNL0214"
    }
}

impl Proof {
    /// Reads a proof. What it says is not believed before [`Proof::verify`].
    ///
    /// # Errors
    /// When it is no proof, or its checkpoint is not signed by the key.
    pub fn parse(text: &str, key: &PublicKey) -> Result<Self, ProofError> {
        if text.len() > LONGEST_PROOF {
            return Err(ProofError::Malformed("it is too long"));
        }
        let (head, note) = text
            .split_once("\n\n")
            .ok_or(ProofError::Malformed("it has no checkpoint"))?;
        let checkpoint = Checkpoint::parse(note, key).map_err(ProofError::Checkpoint)?;
        let mut lines = head.lines();
        let first = lines.next().unwrap_or_default();
        if let Some(old) = first.strip_prefix("old ") {
            return Ok(Self::Consistency {
                old: decimal(old).ok_or(ProofError::Malformed("`old` is no number"))?,
                path: path(lines)?,
                checkpoint,
            });
        }
        if first != INCLUSION {
            return Err(ProofError::Malformed(
                "its first line is of no kind that is known",
            ));
        }
        let record = lines.next().and_then(|line| line.strip_prefix("extra "));
        let record = record.ok_or(ProofError::Malformed("`extra` does not hold the record"))?;
        let record = STANDARD
            .decode(record)
            .ok()
            .and_then(|r| String::from_utf8(r).ok());
        let index = lines.next().and_then(|line| line.strip_prefix("index "));
        Ok(Self::Inclusion {
            record: record.ok_or(ProofError::Malformed("the record is no text in base64"))?,
            index: index
                .and_then(decimal)
                .ok_or(ProofError::Malformed("`index` is no number"))?,
            path: path(lines)?,
            checkpoint,
        })
    }

    /// Follows the proof to what was signed. `older` are checkpoints that were kept, of which the proof may continue one.
    ///
    /// # Errors
    /// When it does not lead there.
    pub fn verify(&self, older: &[Checkpoint]) -> Result<(), ProofError> {
        match self {
            Self::Inclusion {
                record,
                index,
                path,
                checkpoint,
            } => {
                let bytes = record.as_bytes();
                let number = parse(bytes)
                    .map_err(|_| ProofError::Malformed("what it proves is no record"))?
                    .seq;
                let included = is_included(
                    *index,
                    leaf(bytes),
                    checkpoint.size(),
                    checkpoint.root(),
                    path,
                );
                match included && number == index + 1 {
                    true => Ok(()),
                    false => Err(ProofError::NotIncluded(index.saturating_add(1))),
                }
            }
            Self::Consistency {
                old,
                path,
                checkpoint,
            } => {
                let known = older.iter().filter(|known| known.size() == *old);
                let mut roots = known.map(Checkpoint::root).peekable();
                if roots.peek().is_none() {
                    return Err(ProofError::NeedsOlder(*old));
                }
                let (new, root) = (checkpoint.size(), checkpoint.root());
                match roots.all(|old_root| is_continued(*old, old_root, new, root, path)) {
                    true => Ok(()),
                    false => Err(ProofError::NotContinued(*old)),
                }
            }
        }
    }

    /// What it leads to.
    pub fn checkpoint(&self) -> &Checkpoint {
        match self {
            Self::Inclusion { checkpoint, .. } | Self::Consistency { checkpoint, .. } => checkpoint,
        }
    }
}

fn path<'t>(lines: impl Iterator<Item = &'t str>) -> Result<Vec<Hash>, ProofError> {
    let hashes: Option<Vec<Hash>> = lines.take(MOST_HASHES + 1).map(hash).collect();
    hashes
        .filter(|hashes| hashes.len() <= MOST_HASHES)
        .ok_or(ProofError::Malformed(
            "a line of its path is no hash, or there are too many",
        ))
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inclusion {
                record,
                index,
                path,
                checkpoint,
            } => {
                let record = STANDARD.encode(record);
                let path = hash_lines(path);
                write!(
                    f,
                    "{INCLUSION}\nextra {record}\nindex {index}\n{path}\n{checkpoint}"
                )
            }
            Self::Consistency {
                old,
                path,
                checkpoint,
            } => write!(f, "old {old}\n{}\n{checkpoint}", hash_lines(path)),
        }
    }
}
