//! Decides whether a signed log, as it lies in its directory, is what was signed, and proves to others what is in it.
//! Trusts the public key that it is given (or the one beside the log, which whoever changed the log may have changed as well).
//! Never writes; a log that is being written can be read.

use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::checkpoint::{BadCheckpoint, Checkpoint, List};
use super::export::{FOLLOWING_FILE, check_manifest, read_following};
use super::files;
use super::merkle::{Collector, Tree, leaf};
use super::note::{KeyError, LONGEST_NOTE, PublicKey};
use super::proof::{LONGEST_PROOF, Proof};
use super::sealer::{CHECKPOINTS_FILE, PUBLIC_KEY_FILE, RECORDS, read_tree};
use super::seals::Seals;
use super::verify::{
    Expect, Head, LONGEST_LINE, Start, Verified, VerifyError, parse, verify_against,
};
use super::writer::LARGEST_GROUP;
use crate::errors::Coded;

/// A signed log, or an export of one.
#[derive(Debug)]
pub struct Ledger {
    dir: PathBuf,
    key: PublicKey,
    checkpoints: Vec<Checkpoint>,
    files: Vec<PathBuf>,
    /// The tree before the first record of the files, and that record's number less one.
    before: Option<Tree>,
    first: u64,
    export: bool,
}

/// A program that runs leaves no more records than these under no checkpoint: those before it signs, and one group of writes.
const MOST_UNSIGNED: u64 = RECORDS + LARGEST_GROUP as u64 + 1;

/// Which record is to be proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// By its number in the log.
    Number(u64),
    /// By its id.
    Id(String),
}

/// Why a log cannot be read as a signed one, or something in it not be proved.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A file cannot be read.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// The public key cannot be used.
    #[error("the public key in {} cannot be used", .0.display())]
    Key(PathBuf, #[source] KeyError),
    /// The checkpoints are not those of the key.
    #[error("the checkpoints in {} are not believed", .0.display())]
    Checkpoints(PathBuf, #[source] BadCheckpoint),
    /// The files of an export are not those of its manifest.
    #[error("{} is not the file that was exported", .0.display())]
    Manifest(PathBuf),
    /// There is no such record.
    #[error("the log has no record {0}")]
    NoRecord(String),
    /// No checkpoint covers it yet.
    #[error("no checkpoint covers record {0} yet")]
    NotSigned(u64),
    /// The records are not those that were signed.
    #[error("the records are not those that were signed")]
    Changed,
}

impl Coded for LedgerError {
    fn code(&self) -> &'static str {
        match self {
            Self::Read(..) => "FNL0215",
            Self::Key(_, error) => error.code(),
            Self::Checkpoints(_, bad) => bad.code(),
            Self::Manifest(_) => "FNL0216",
            Self::NoRecord(_) => "FNL0217",
            Self::NotSigned(_) => "FNL0218",
            Self::Changed => "FNL0219",
        }
    }
}

/// Takes the number and the line of a record, and says whether it wants the next one.
pub(super) type Each<'e> = dyn FnMut(u64, &[u8]) -> Result<bool, LedgerError> + 'e;

impl Ledger {
    /// Opens the log in `dir`. Without a key the one that lies there is taken, which shows no more than that the log agrees
    /// with itself.
    ///
    /// # Errors
    /// When a file cannot be read, or a checkpoint is not signed by the key.
    pub fn open(dir: &Path, key: Option<PublicKey>) -> Result<Self, LedgerError> {
        let key = match key {
            Some(key) => key,
            None => read_key(&dir.join(PUBLIC_KEY_FILE))?,
        };
        let export = check_manifest(dir)?;
        // The checkpoints first: a log that grows meanwhile is longer than they say, and never shorter.
        let checkpoints = checkpoints(dir, &key)?;
        let files = files(dir).map_err(|error| LedgerError::Read(dir.to_owned(), error))?;
        let first = first_number(&files)?.saturating_sub(1);
        Ok(Self {
            before: read_tree(dir, first),
            dir: dir.to_owned(),
            key,
            checkpoints,
            files,
            first,
            export,
        })
    }

    /// Its public key.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// Its files of records.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The number of its first record: not 1 when older files were moved away, or in an export.
    pub fn first(&self) -> u64 {
        self.first + 1
    }

    /// Whether it is an export, which may begin anywhere.
    pub fn is_export(&self) -> bool {
        self.export
    }

    /// Its checkpoints, from small to large.
    pub fn checkpoints(&self) -> &[Checkpoint] {
        &self.checkpoints
    }

    /// The newest checkpoint.
    ///
    /// # Errors
    /// When there is none.
    pub fn newest(&self) -> Result<&Checkpoint, LedgerError> {
        let none = || LedgerError::Checkpoints(self.dir.clone(), BadCheckpoint::None);
        self.checkpoints.last().ok_or_else(none)
    }

    /// The number of its first record less one, and the tree before it.
    pub(super) fn before(&self) -> Result<&Tree, LedgerError> {
        let unknown =
            || LedgerError::Checkpoints(self.dir.clone(), BadCheckpoint::Start(self.first + 1));
        self.before.as_ref().ok_or_else(unknown)
    }

    /// Verifies chain, tree and checkpoints; those in `kept` too, which were kept elsewhere. At least one must cover a record.
    ///
    /// # Errors
    /// The first record that is not as it was written, or the first checkpoint that the records do not agree with.
    pub fn verify(
        &self,
        contains: Option<Head>,
        kept: &[Checkpoint],
    ) -> Result<Verified, VerifyError> {
        let unknown = || VerifyError::Checkpoint(BadCheckpoint::Start(self.first + 1));
        if let Some(gone) = kept.iter().find(|kept| kept.size() < self.first) {
            return Err(VerifyError::Checkpoint(BadCheckpoint::Gone(gone.size())));
        }
        let mut checkpoints = [&self.checkpoints, kept].concat();
        checkpoints.sort_by_key(Checkpoint::size);
        let following = self.dir.join(FOLLOWING_FILE);
        let seals = Seals {
            before: self.before.clone().ok_or_else(unknown)?,
            checkpoints,
            following: read_following(&following)
                .map_err(|error| VerifyError::Read(following, error))?,
        };
        let expect = Expect {
            start: match self.first {
                0 => Start::Genesis,
                _ => Start::Anywhere,
            },
            contains,
            seals: Some(seals),
        };
        let verified = verify_against(&self.files, &expect)?;
        let bad = match &verified.sealed {
            Some(sealed) if sealed.checkpoints > 0 => {
                let (signed, records) = (sealed.signed, sealed.tree.size());
                if records - signed > MOST_UNSIGNED {
                    BadCheckpoint::Uncovered { signed, records }
                } else if verified.closed && signed < records {
                    BadCheckpoint::Open(records)
                } else {
                    return Ok(verified);
                }
            }
            _ => BadCheckpoint::None,
        };
        Err(VerifyError::Checkpoint(bad))
    }

    /// Proves that a record is in the log, to whoever has the public key.
    ///
    /// # Errors
    /// When there is no such record, no checkpoint covers it, or the log is not what was signed.
    pub fn prove(&self, wanted: &Wanted) -> Result<Proof, LedgerError> {
        let (number, record) = self.find(wanted)?;
        let checkpoint = self.newest()?;
        if checkpoint.size() < number {
            return Err(LedgerError::NotSigned(number));
        }
        let collector = Collector::inclusion(number - 1, checkpoint.size());
        let proof = Proof::Inclusion {
            record,
            index: number - 1,
            path: self.collect(collector, checkpoint.size())?,
            checkpoint: checkpoint.clone(),
        };
        match proof.verify(&[]) {
            Ok(()) => Ok(proof),
            Err(_) => Err(LedgerError::Changed),
        }
    }

    /// Proves that the log was only continued since a checkpoint, to whoever kept that.
    ///
    /// # Errors
    /// When the log is not what was signed, then or since.
    pub fn prove_since(&self, old: &Checkpoint) -> Result<Proof, LedgerError> {
        let newest = self.newest()?;
        if old.size() > newest.size() {
            return Err(LedgerError::NotSigned(old.size()));
        }
        let path = match old.size() {
            0 => Vec::new(),
            size => self.collect(Collector::consistency(size, newest.size()), newest.size())?,
        };
        let proof = Proof::Consistency {
            old: old.size(),
            path,
            checkpoint: newest.clone(),
        };
        match proof.verify(std::slice::from_ref(old)) {
            Ok(()) => Ok(proof),
            Err(_) => Err(LedgerError::Changed),
        }
    }

    fn find(&self, wanted: &Wanted) -> Result<(u64, String), LedgerError> {
        let mut found = None;
        self.records(&mut |number, line| {
            let is_it = match wanted {
                Wanted::Number(wanted) => *wanted == number,
                Wanted::Id(id) => has_id(line, id),
            };
            if is_it {
                found = Some((number, String::from_utf8_lossy(line).into_owned()));
            }
            Ok(!is_it)
        })?;
        found.ok_or_else(|| {
            LedgerError::NoRecord(match wanted {
                Wanted::Number(number) => number.to_string(),
                Wanted::Id(id) => crate::errors::untrusted(id),
            })
        })
    }

    fn collect(
        &self,
        collector: Collector,
        size: u64,
    ) -> Result<Vec<super::merkle::Hash>, LedgerError> {
        let mut collector = collector.after(self.before()?);
        self.records(&mut |number, line| {
            collector.leaf(number - 1, leaf(line));
            Ok(number < size)
        })?;
        collector.finish().ok_or(LedgerError::Changed)
    }

    /// Goes through the records, with their numbers as they stand in the files, until told to stop. What was not written to
    /// its end is left out.
    pub(super) fn records(&self, each: &mut Each<'_>) -> Result<(), LedgerError> {
        let (mut number, mut line) = (self.first, Vec::new());
        for path in &self.files {
            let read = |error| LedgerError::Read(path.clone(), error);
            let mut reader =
                BufReader::with_capacity(256 * 1024, std::fs::File::open(path).map_err(read)?);
            loop {
                line.clear();
                let mut limited = (&mut reader).take(LONGEST_LINE);
                limited.read_until(b'\n', &mut line).map_err(read)?;
                if line.pop() != Some(b'\n') {
                    break;
                }
                number += 1;
                if !each(number, &line)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

fn has_id(line: &[u8], id: &str) -> bool {
    // Few lines hold the text at all; only those are worth reading as JSON.
    if id.is_empty() || !line.windows(id.len()).any(|part| part == id.as_bytes()) {
        return false;
    }
    let record: Result<serde_json::Value, _> = serde_json::from_slice(line);
    record.is_ok_and(|record| record["id"] == id)
}

/// Reads a public key from its file.
///
/// # Errors
/// When it cannot be read, or is none.
pub(super) fn read_key(path: &Path) -> Result<PublicKey, LedgerError> {
    let text = read_limited(path, LONGEST_NOTE as u64)?;
    let key = text.parse();
    key.map_err(|error| LedgerError::Key(path.to_owned(), error))
}

fn read_limited(path: &Path, most: u64) -> Result<String, LedgerError> {
    let read = |error| LedgerError::Read(path.to_owned(), error);
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(read)?;
    file.take(most).read_to_string(&mut text).map_err(read)?;
    Ok(text)
}

impl PublicKey {
    /// Reads a key from its file.
    ///
    /// # Errors
    /// When it cannot be read, or is none.
    pub fn read(path: &Path) -> Result<Self, LedgerError> {
        read_key(path)
    }
}

impl Checkpoint {
    /// Reads a checkpoint from the file in which somebody kept it.
    ///
    /// # Errors
    /// When it cannot be read, or the key did not sign it.
    pub fn read(path: &Path, key: &PublicKey) -> Result<Self, LedgerError> {
        let note = read_limited(path, LONGEST_NOTE as u64)?;
        Self::parse(&note, key).map_err(|bad| LedgerError::Checkpoints(path.to_owned(), bad))
    }
}

impl Proof {
    /// The text of a proof, from its file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(path: &Path) -> Result<String, LedgerError> {
        read_limited(path, LONGEST_PROOF as u64 + 1)
    }
}

/// All lists of checkpoints of a log as one.
fn checkpoints(dir: &Path, key: &PublicKey) -> Result<Vec<Checkpoint>, LedgerError> {
    let unreadable = |error| LedgerError::Read(dir.to_owned(), error);
    let mut lists = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension() == Some("checkpoints".as_ref())
            && path.file_name() != Some(CHECKPOINTS_FILE.as_ref())
        {
            lists.push(path);
        }
    }
    lists.sort();
    lists.push(dir.join(CHECKPOINTS_FILE));
    let mut all = Vec::new();
    for path in lists {
        let bytes = std::fs::read(&path).map_err(|error| LedgerError::Read(path.clone(), error))?;
        let list = List::read(&bytes, key);
        all.extend(
            list.map_err(|bad| LedgerError::Checkpoints(path, bad))?
                .checkpoints,
        );
    }
    // A list may have been closed twice when the power went in between.
    all.sort_by_key(Checkpoint::size);
    all.dedup();
    Ok(all)
}

/// The number of the first record; 1 when there is none or it cannot be read, which the verifier will say better.
fn first_number(files: &[PathBuf]) -> Result<u64, LedgerError> {
    let Some(path) = files.first() else {
        return Ok(1);
    };
    let read = |error| LedgerError::Read(path.clone(), error);
    let mut line = Vec::new();
    let file = std::fs::File::open(path).map_err(read)?;
    BufReader::new(file.take(LONGEST_LINE))
        .read_until(b'\n', &mut line)
        .map_err(read)?;
    Ok(parse(line.trim_ascii_end()).map_or(1, |record| record.seq.max(1)))
}
