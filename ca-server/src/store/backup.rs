//! A backup: every row of the store as of one moment, in one file that tells by itself whether it is whole.
//! Trusts nothing in a file: a hash of everything, and every row read as the store would read it, before one of them is used.
//! Never brings back what must not come back: a join token, a revision, a sequence number of the bundle.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mesh_identity::TrustDomain;
use mesh_runtime::errors::Coded;
use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use serde::{Deserialize, Serialize};

use super::codec::{MAX_ROW, decode, encode};
use super::engine::{GROUPS, HEADER, Overlay, Pages, REVISION, Table, Visit};
use super::records::{BundleRow, CounterRow, IssuedRows, JournalRow, RelationshipRow};
use super::view::{View, each};
use super::{SledSettings, StoreError, embedded};

/// The first bytes of every backup. Another format has another number.
const MAGIC: &[u8; 16] = b"finial-backup-1\n";

/// Added to every revision and, with the age of the backup, to the sequence of our bundle when a store is restored: far more than
/// could have been given out since the backup, so that none is given out twice (TDB-3).
const LEAP: u64 = 1 << 32;
const SEQUENCE_LEAP: u64 = 1_000;

/// What a backup says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    trust_domain: String,
    taken_at: SystemTime,
    revision: u64,
}

/// What is known of a backup that was read whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupFacts {
    /// Whose it is.
    pub trust_domain: TrustDomain,
    /// When it was taken.
    pub taken_at: SystemTime,
    /// The newest change in it.
    pub revision: u64,
    /// How many entries it has.
    pub entries: u64,
    /// How many agents.
    pub agents: u64,
    /// How many issued certificates it remembers.
    pub certificates: u64,
    /// SHA-256 of its content, in hex.
    pub sha256: String,
}

/// Why a backup is refused.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Reading or writing failed.
    #[error("{path}: {cause}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Something else.
    #[error("{0} is no backup of a ca-server, or one of a later format")]
    NotABackup(PathBuf),
    /// Cut off or changed.
    #[error("the backup {path} is damaged: {reason}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// How.
        reason: String,
    },
    /// Of another trust domain than the configuration's.
    #[error("the backup is of trust domain {found}, the configuration of {configured}")]
    OtherTrustDomain {
        /// The backup's.
        found: TrustDomain,
        /// The configuration's.
        configured: TrustDomain,
    },
    /// There is a store already.
    #[error("there is a store at {0} already; a restore never replaces one")]
    StoreExists(PathBuf),
    /// The new store could not be written.
    #[error("the store could not be written")]
    Store(#[from] StoreError),
}

impl Coded for BackupError {
    fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "FNL1040",
            Self::NotABackup(_) => "FNL1041",
            Self::Damaged { .. } => "FNL1042",
            Self::OtherTrustDomain { .. } => "FNL1043",
            Self::StoreExists(_) => "FNL1044",
            Self::Store(error) => error.code(),
        }
    }
}

/// Writes all rows. Nothing may change them meanwhile.
pub(super) fn write(
    pages: &dyn Pages,
    trust_domain: &TrustDomain,
    now: SystemTime,
    into: &mut dyn Write,
) -> Result<(), StoreError> {
    let revision = pages.get(&Table::Meta.key(REVISION))?;
    let revision = revision.map_or(Ok(0), |row| decode::<CounterRow>(&row).map(|row| row.0))?;
    let failed = |cause: io::Error| StoreError::Spool {
        reason: cause.to_string(),
    };
    let header = Header {
        trust_domain: trust_domain.to_string(),
        taken_at: now,
        revision,
    };
    let header = postcard::to_allocvec(&header).map_err(|error| StoreError::Spool {
        reason: error.to_string(),
    })?;
    let mut out = Hashed::over(into);
    let (mut count, mut broken) = (0_u64, None);
    out.write_all(MAGIC)
        .and_then(|()| frame(&mut out, &header))
        .map_err(failed)?;
    for table in Table::EVERY {
        pages.scan(&[table], &mut |key, row| {
            count += 1;
            match frame(&mut out, key).and_then(|()| frame(&mut out, row)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(cause) => {
                    broken = Some(cause);
                    ControlFlow::Break(())
                }
            }
        })?;
        if let Some(cause) = broken {
            return Err(failed(cause));
        }
    }
    frame(&mut out, &[])
        .and_then(|()| out.write_all(&count.to_be_bytes()))
        .and_then(|()| out.finish())
        .map_err(failed)
}

fn frame(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    out.write_all(&length.to_be_bytes())?;
    out.write_all(bytes)
}

/// Hashes what passes through.
struct Hashed<S> {
    inner: S,
    hash: Context,
}

impl<S> Hashed<S> {
    fn over(inner: S) -> Self {
        Self {
            inner,
            hash: Context::new(&SHA256),
        }
    }
}

impl<W: Write> Hashed<W> {
    fn finish(mut self) -> io::Result<()> {
        self.inner.write_all(self.hash.finish().as_ref())?;
        self.inner.flush()
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.hash.update(&bytes[..read]);
        Ok(read)
    }
}

/// A backup that was read whole and makes sense.
#[derive(Debug)]
pub struct Backup {
    facts: BackupFacts,
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Backup {
    /// Reads a file and everything in it.
    pub fn open(path: &Path) -> Result<Self, BackupError> {
        let file = std::fs::File::open(path).map_err(|cause| BackupError::Io {
            path: path.to_owned(),
            cause,
        })?;
        Self::read(io::BufReader::new(file), path)
    }

    fn read(from: impl Read, path: &Path) -> Result<Self, BackupError> {
        let damaged = |reason: String| BackupError::Damaged {
            path: path.to_owned(),
            reason,
        };
        let short = |cause: io::Error| match cause.kind() {
            io::ErrorKind::UnexpectedEof => damaged("it ends too early".into()),
            _ => BackupError::Io {
                path: path.to_owned(),
                cause,
            },
        };
        let mut file = Hashed::over(from);
        let mut magic = [0; MAGIC.len()];
        match file.read_exact(&mut magic) {
            Ok(()) if magic == *MAGIC => {}
            Err(cause) if cause.kind() != io::ErrorKind::UnexpectedEof => return Err(short(cause)),
            _ => return Err(BackupError::NotABackup(path.to_owned())),
        }
        let next = |file: &mut Hashed<_>| -> Result<Vec<u8>, BackupError> {
            let mut length = [0; 4];
            file.read_exact(&mut length).map_err(short)?;
            let length = u32::from_be_bytes(length) as usize;
            if length > MAX_ROW {
                return Err(damaged(format!("it claims a row of {length} bytes")));
            }
            let mut bytes = vec![0; length];
            file.read_exact(&mut bytes).map_err(short)?;
            Ok(bytes)
        };
        let header = next(&mut file)?;
        let mut rows = BTreeMap::new();
        loop {
            let key = next(&mut file)?;
            if key.is_empty() {
                break;
            }
            let row = next(&mut file)?;
            rows.insert(key, row);
        }
        let mut count = [0; 8];
        file.read_exact(&mut count).map_err(short)?;
        let Hashed { mut inner, hash } = file;
        let mut noted = [0; SHA256_OUTPUT_LEN];
        inner.read_exact(&mut noted).map_err(short)?;
        if hash.finish().as_ref() != noted {
            return Err(damaged("its hash does not fit its content".into()));
        }
        if u64::from_be_bytes(count) != rows.len() as u64 {
            return Err(damaged("it does not have as many rows as it says".into()));
        }
        if inner.read(&mut [0]).map_err(short)? > 0 {
            return Err(damaged("something follows its end".into()));
        }
        let header: Header =
            postcard::from_bytes(&header).map_err(|error| damaged(error.to_string()))?;
        let facts =
            facts(&Plain(&rows), &header, &noted).map_err(|error| damaged(error.to_string()))?;
        Ok(Self { facts, rows })
    }

    /// What is in it.
    pub fn facts(&self) -> &BackupFacts {
        &self.facts
    }

    /// Makes a store of it where there is none. Agents take everything anew, since the store has an identity of its own; join tokens
    /// do not come back, since nobody can tell which of them were spent after the backup.
    pub fn restore(
        self,
        directory: &Path,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<BackupFacts, BackupError> {
        let Self { facts, rows } = self;
        if facts.trust_domain != *trust_domain {
            return Err(BackupError::OtherTrustDomain {
                found: facts.trust_domain,
                configured: trust_domain.clone(),
            });
        }
        if directory.symlink_metadata().is_ok() {
            return Err(BackupError::StoreExists(directory.to_owned()));
        }
        let age = now.duration_since(facts.taken_at).unwrap_or_default();
        let mut kept = Overlay::new();
        for (key, row) in rows {
            if let Some(row) = again(&key, row, age)? {
                kept.insert(key, Some(row));
            }
        }
        embedded::make(directory, trust_domain, &SledSettings::default(), kept)?;
        Ok(facts)
    }
}

/// A row as it comes back, or nothing of it.
fn again(key: &[u8], row: Vec<u8>, age: Duration) -> Result<Option<Vec<u8>>, StoreError> {
    let is = |table: Table, inside: &[u8]| key == table.key(inside);
    if is(Table::Meta, HEADER) || is(Table::Meta, GROUPS) || key.starts_with(&[Table::Token as u8])
    {
        return Ok(None);
    }
    if is(Table::Meta, REVISION) {
        let revision = decode::<CounterRow>(&row)?.0;
        return encode(&CounterRow(revision.saturating_add(LEAP))).map(Some);
    }
    if key.starts_with(&[Table::OwnBundle as u8]) {
        let mut bundle = decode::<BundleRow>(&row)?;
        let leap = age.as_secs().saturating_add(SEQUENCE_LEAP);
        bundle.sequence = bundle.sequence.saturating_add(leap);
        return encode(&bundle).map(Some);
    }
    Ok(Some(row))
}

/// Reads every kind of row as the store would.
fn facts(pages: &Plain<'_>, header: &Header, hash: &[u8]) -> Result<BackupFacts, StoreError> {
    let all = View::load(pages)?.everything();
    let mut certificates = 0;
    each(pages, Table::Issued, |_, row| {
        certificates += decode::<IssuedRows>(row)?.0.len() as u64;
        Ok(())
    })?;
    each(pages, Table::Relationship, |_, row| {
        decode::<RelationshipRow>(row).map(drop)
    })?;
    each(pages, Table::Journal, |_, row| {
        decode::<JournalRow>(row).map(drop)
    })?;
    Ok(BackupFacts {
        trust_domain: header
            .trust_domain
            .parse()
            .map_err(|_| StoreError::Unreadable {
                what: "backup header",
                reason: "it names no trust domain".into(),
            })?,
        taken_at: header.taken_at,
        revision: header.revision,
        entries: all.entries.len() as u64,
        agents: all.nodes.len() as u64,
        certificates,
        sha256: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
    })
}

/// Rows in a map.
struct Plain<'a>(&'a BTreeMap<Vec<u8>, Vec<u8>>);

impl Pages for Plain<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let rows = self.0.range(prefix.to_vec()..);
        for (key, row) in rows.take_while(|(key, _)| key.starts_with(prefix)) {
            if visit(key, row).is_break() {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
