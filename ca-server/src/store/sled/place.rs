//! Where the embedded store lies, and whether what lies there is one of ours.
//! A store appears under its name only when it is complete, so an empty or truncated one is damage and is refused,
//! not silently made anew.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_identity::TrustDomain;

use super::SledSettings;
use super::pieces::Rows;
use super::watermark::Watermark;
use crate::store::StoreError;
use crate::store::codec::{decode, encode};
use crate::store::engine::{GROUPS, HEADER, Overlay, Pages, Table};
use crate::store::records::{CounterRow, MetaRow};

/// The format of the whole store: tables, keys and pieces.
const FORMAT: u16 = 2;

/// How often the lock of a dying process is tried again.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// How many rows of a new store are written in one step: sled keeps a whole step in memory.
const AT_ONCE: usize = 1_000;

/// The file that sled keeps its log in.
const LOG: &str = "db";

/// An open store, with our own handle on its file for syncing.
pub(super) struct Place {
    pub(super) db: sled::Db,
    pub(super) rows: Rows,
    pub(super) log: File,
    pub(super) epoch: String,
    pub(super) watermark: Watermark,
    /// The number of the last group that was written.
    pub(super) groups: u64,
}

/// Opens the store, making it if there is none.
pub(super) fn open(
    directory: &Path,
    trust_domain: &TrustDomain,
    settings: &SledSettings,
) -> Result<Place, StoreError> {
    match fs::symlink_metadata(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(directory, trust_domain, settings, Overlay::new())?;
        }
        Err(error) => return Err(unusable(directory, error)),
        Ok(found) if !found.is_dir() => return Err(unusable(directory, "it is not a directory")),
        Ok(_) => {}
    }
    let log = fs::symlink_metadata(directory.join(LOG))
        .map_err(|error| unusable(&directory.join(LOG), error))?;
    if !log.is_file() || log.len() == 0 {
        return Err(unusable(
            &directory.join(LOG),
            "it is not a file with content; restore the store from a backup",
        ));
    }
    let (db, log) = open_files(directory, settings)?;
    let rows = Rows((*db).clone());
    let header = rows.get(&Table::Meta.key(HEADER))?;
    let header = header.ok_or_else(|| {
        unusable(
            directory,
            "it has no header; restore the store from a backup",
        )
    })?;
    let header: MetaRow = decode(&header)?;
    if header.format != FORMAT {
        return Err(StoreError::OtherFormat {
            found: header.format,
            known: FORMAT,
        });
    }
    if header.trust_domain != trust_domain.as_str() {
        let configured = trust_domain.to_string();
        return Err(StoreError::OtherTrustDomain {
            found: header.trust_domain,
            configured,
        });
    }
    let groups = rows.get(&Table::Meta.key(GROUPS))?;
    let groups = groups.map_or(Ok(0), |row| {
        decode::<CounterRow>(&row).map(|counter| counter.0)
    })?;
    let (watermark, acknowledged) =
        Watermark::open(directory).map_err(|error| unusable(directory, error))?;
    if let Some(missing) = acknowledged
        .and_then(|acknowledged| acknowledged.checked_sub(groups))
        .filter(|n| *n > 0)
    {
        return Err(unusable(
            directory,
            format!(
                "the last {missing} acknowledged writes are missing; its file was damaged, restore it from a backup"
            ),
        ));
    }
    Ok(Place {
        db,
        rows,
        log,
        epoch: header.epoch,
        watermark,
        groups,
    })
}

/// Makes a store with these rows beside its place and moves it there when it is complete and durable. Its identity is new.
pub(super) fn make(
    directory: &Path,
    trust_domain: &TrustDomain,
    settings: &SledSettings,
    mut content: Overlay,
) -> Result<(), StoreError> {
    let failed = |error: io::Error| unusable(directory, error);
    let parent = match directory.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let mut unfinished = directory.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    match fs::remove_dir_all(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&unfinished)
        .map_err(failed)?;
    let (db, log) = open_files(&unfinished, settings)?;
    let header = MetaRow {
        format: FORMAT,
        epoch: uuid::Uuid::new_v4().to_string(),
        trust_domain: trust_domain.to_string(),
    };
    let rows = Rows((*db).clone());
    content.insert(Table::Meta.key(HEADER), Some(encode(&header)?));
    while !content.is_empty() {
        let later = content.keys().nth(AT_ONCE).cloned();
        let later = later.map_or_else(Overlay::new, |key| content.split_off(&key));
        rows.write(std::mem::replace(&mut content, later))?;
    }
    db.flush().map_err(|error| unusable(directory, error))?;
    log.sync_all().map_err(failed)?;
    drop((rows, db));
    sync_directory(&unfinished).map_err(failed)?;
    fs::rename(&unfinished, directory).map_err(failed)?;
    sync_directory(parent).map_err(failed)
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Opens sled and our handle, waiting for the lock of a process that was killed a moment ago.
fn open_files(directory: &Path, settings: &SledSettings) -> Result<(sled::Db, File), StoreError> {
    let config = sled::Config::new()
        .path(directory)
        .cache_capacity(settings.cache)
        // The writer flushes; no second thread does.
        .flush_every_ms(None);
    let mut waited = Duration::ZERO;
    loop {
        // sled panics on some kinds of damage.
        let opened = catch_unwind(AssertUnwindSafe(|| config.open())).map_err(|_| {
            unusable(
                directory,
                "sled gave up on its content; restore the store from a backup",
            )
        })?;
        match opened {
            Ok(db) => {
                let log = File::options()
                    .read(true)
                    .write(true)
                    .open(directory.join(LOG));
                return Ok((db, log.map_err(|error| unusable(directory, error))?));
            }
            Err(error) if is_locked(&error) && waited < settings.lock_wait => {
                std::thread::sleep(LOCK_PAUSE);
                waited += LOCK_PAUSE;
            }
            Err(error) if is_locked(&error) => {
                return Err(StoreError::Locked {
                    path: directory.to_owned(),
                });
            }
            Err(error) => return Err(unusable(directory, error)),
        }
    }
}

fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

fn unusable(path: &Path, reason: impl ToString) -> StoreError {
    StoreError::Unusable {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}
