//! Decides what survives a restart, and in which form it rests: each file sealed, replaced whole, and flushed before it counts.
//! Trusts its directory, which nobody else can write, and the key beside it. Never leaves half a file, never takes what others could
//! have read or written, never lets a damaged file keep the agent from starting.

mod identity;
mod node;
mod seal;

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use mesh_runtime::{errors::Coded, files};
use zeroize::Zeroizing;

pub use self::node::keep;
use self::seal::{KEY_BYTES, SealingKey};

/// No file of ours is larger; a bound for what is read, not for what is expected.
const LARGEST: u64 = 512 * 1024 * 1024;
/// The key's file, unless the configuration puts it elsewhere.
const KEY_FILE: &str = "sealing.key";

/// Why the state cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The operating system said no.
    #[error("{} cannot be used", path.display())]
    System {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Others can read or write it.
    #[error("{} is not private to this agent (uid {uid}, mode {mode:04o})", path.display())]
    NotPrivate {
        /// Which file.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
        /// Who may use it.
        mode: u32,
    },
}

impl Coded for StateError {
    fn code(&self) -> &'static str {
        "FNL2026"
    }
}

/// The data directory, with the key that opens what lies in it.
#[derive(Clone, Debug)]
pub struct StateDir {
    dir: PathBuf,
    key: Arc<SealingKey>,
}

impl StateDir {
    /// Makes the directory and the key when they are missing. A key that is none is set aside, and with it goes what it sealed.
    ///
    /// # Errors
    /// When one of them cannot be made or read, or others can use it.
    pub fn open(dir: &Path, key_file: Option<&Path>) -> Result<Self, StateError> {
        let system = |cause| StateError::System {
            path: dir.to_owned(),
            cause,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(system)?;
        private(dir, &fs::metadata(dir).map_err(system)?, 0o022)?;
        let key_file = key_file.map_or_else(|| dir.join(KEY_FILE), Path::to_owned);
        Ok(Self {
            dir: dir.to_owned(),
            key: Arc::new(key(&key_file)?),
        })
    }

    /// What was last written under this name, opened. What cannot be opened is set aside and counts as absent.
    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
        let path = self.dir.join(name);
        let Some(bytes) = read_private(&path, LARGEST)? else {
            return Ok(None);
        };
        match self.key.open(name, bytes) {
            Some(plain) => Ok(Some(plain)),
            None => {
                self.set_aside(name, "it was not sealed here, or has been changed since");
                Ok(None)
            }
        }
    }

    /// Replaces what lies under this name. It is on disk when this returns.
    fn replace(&self, name: &str, plain: Zeroizing<Vec<u8>>) -> Result<(), StateError> {
        let path = self.dir.join(name);
        let sealed = self
            .key
            .seal(name, plain)
            .ok_or_else(|| io::Error::other("it could not be sealed"));
        sealed
            .and_then(|sealed| files::replace(&path, files::PRIVATE, &sealed))
            .map_err(|cause| StateError::System { path, cause })
    }

    /// Out of the way, but there for whoever looks into it; one of each name is kept.
    fn set_aside(&self, name: &str, reason: &str) {
        set_aside(&self.dir.join(name), reason);
    }
}

fn set_aside(path: &Path, reason: &str) {
    let mut refused = path.as_os_str().to_owned();
    refused.push(".refused");
    let moved = fs::rename(path, &refused);
    tracing::warn!(file = %path.display(), reason, set_aside = moved.is_ok(), "kept state is refused; going on without it");
}

fn key(path: &Path) -> Result<SealingKey, StateError> {
    let system = |cause| StateError::System {
        path: path.to_owned(),
        cause,
    };
    // One byte more than it should have tells a longer file from a right one.
    if let Some(bytes) = read_private(path, KEY_BYTES as u64 + 1)? {
        match SealingKey::new(&bytes) {
            Some(key) => return Ok(key),
            None => set_aside(path, "it is not a sealing key"),
        }
    }
    let bytes = SealingKey::generate().ok_or_else(|| system(io::Error::other("no randomness")))?;
    files::replace(path, files::PRIVATE, bytes.as_slice()).map_err(system)?;
    SealingKey::new(bytes.as_slice()).ok_or_else(|| system(io::Error::other("the new key is none")))
}

/// The whole file, if it is there and nobody else could have read or written it.
fn read_private(path: &Path, most: u64) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
    let system = |cause| StateError::System {
        path: path.to_owned(),
        cause,
    };
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags((nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK).bits())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(system(error)),
    };
    // Asked of the open file, so that nobody can put another in its place in between.
    let facts = file.metadata().map_err(system)?;
    private(path, &facts, 0o077)?;
    // Room for all of it from the start: growing would leave copies behind in freed memory.
    let room = usize::try_from(facts.len().min(most)).unwrap_or_default();
    let mut bytes = Zeroizing::new(Vec::with_capacity(room + 1));
    file.take(most).read_to_end(&mut bytes).map_err(system)?;
    Ok(Some(bytes))
}

fn private(path: &Path, meta: &fs::Metadata, forbidden: u32) -> Result<(), StateError> {
    let (uid, mode) = (meta.uid(), meta.mode() & 0o7777);
    if (uid != 0 && uid != nix::unistd::geteuid().as_raw()) || mode & forbidden != 0 {
        return Err(StateError::NotPrivate {
            path: path.to_owned(),
            uid,
            mode,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
