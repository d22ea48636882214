//! Decides where a socket may be made: in a directory that only root and this agent can write, under a lock, swapped in whole.
//! Trusts root. Never follows a link that somebody else made, never takes the place of a living agent.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Component, Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use mesh_runtime::errors::Coded;
use nix::{
    fcntl::{Flock, FlockArg},
    unistd::geteuid,
};
use tokio::net::UnixListener;

/// Why a socket was not made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody else could swap the socket for another.
    #[error("the socket {} is not safe: {why}", path.display())]
    Unsafe {
        /// The socket.
        path: PathBuf,
        /// What is wrong, with the place.
        why: String,
    },
    /// Another agent has it.
    #[error("another agent is serving {}", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// The operating system said no.
    #[error("the socket {} cannot be made", path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

impl Coded for SocketError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unsafe { .. } => "FNL2010",
            Self::Taken { .. } => "FNL2011",
            Self::System { .. } => "FNL2012",
        }
    }
}

/// A listening socket.
#[derive(Debug)]
pub struct BoundSocket {
    listener: UnixListener,
    guard: Guard,
}

/// Holds the place of a socket. Dropping it removes the socket, if it is still ours, and lets go of the lock.
#[derive(Debug)]
pub(crate) struct Guard {
    path: PathBuf,
    inode: (u64, u64),
    given_away: Arc<AtomicBool>,
    _lock: Flock<File>,
}

/// A socket that a successor may be given, while it is served here.
#[derive(Debug)]
pub(crate) struct Lent {
    path: PathBuf,
    inode: (u64, u64),
    listener: OwnedFd,
    given_away: Arc<AtomicBool>,
}

impl Lent {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode of the socket's file.
    pub(crate) fn inode(&self) -> (u64, u64) {
        self.inode
    }

    pub(crate) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// A successor listens on it: the file is not removed when this agent ends.
    pub(crate) fn leave_in_place(&self) {
        self.given_away.store(true, Ordering::Relaxed);
    }
}

/// A socket that the agent before this one listened on.
#[derive(Debug)]
pub(crate) struct Inherited {
    inode: (u64, u64),
    listener: OwnedFd,
}

impl Inherited {
    /// `inode`: device and inode of its file.
    pub(crate) fn new(inode: (u64, u64), listener: OwnedFd) -> Self {
        Self { inode, listener }
    }

    fn into_listener(self) -> io::Result<UnixListener> {
        let listener = std::os::unix::net::UnixListener::from(self.listener);
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.given_away.load(Ordering::Relaxed) {
            return;
        }
        // Best effort: a socket that stays is taken over by the next start.
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.inode)
        {
            fs::remove_file(&self.path).ok();
        }
    }
}

impl BoundSocket {
    /// Binds `path`. The directory is made when it is missing; `mode` is the socket's.
    ///
    /// # Errors
    /// When the place is not safe, taken, or cannot be written.
    pub fn bind(path: &Path, mode: u32) -> Result<Self, SocketError> {
        Self::adopt_or_bind(path, mode, None)
    }

    /// As [`BoundSocket::bind`], but goes on with a socket that was handed over, if it is still the one at `path`.
    ///
    /// # Errors
    /// As [`BoundSocket::bind`].
    pub(crate) fn adopt_or_bind(
        path: &Path,
        mode: u32,
        inherited: Option<Inherited>,
    ) -> Result<Self, SocketError> {
        let system = |cause| SocketError::System {
            path: path.to_owned(),
            cause,
        };
        let unsafe_at = |why| SocketError::Unsafe {
            path: path.to_owned(),
            why,
        };
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(unsafe_at("it names no file in a directory".into()));
        };
        if !path.is_absolute()
            || path
                .components()
                .any(|part| matches!(part, Component::ParentDir | Component::CurDir))
        {
            return Err(unsafe_at(
                "its path must be absolute, without . and ..".into(),
            ));
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(system)?;
        check_directory(directory).map_err(unsafe_at)?;

        // The lock is what makes one agent the owner; the socket file alone cannot say whether its maker still lives.
        let lock_path = directory.join(format!(".{}.lock", name.to_string_lossy()));
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
            .open(lock_path)
            .map_err(system)?;
        let lock =
            Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(
                |(_, errno)| match errno {
                    nix::errno::Errno::EWOULDBLOCK => SocketError::Taken {
                        path: path.to_owned(),
                    },
                    errno => system(errno.into()),
                },
            )?;
        let mut adopted = None;
        match fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                return Err(unsafe_at(
                    "something that is no socket is in its place".into(),
                ));
            }
            Ok(there) if !is_trusted(there.uid()) => {
                return Err(unsafe_at(format!(
                    "a socket of uid {} is in its place",
                    there.uid()
                )));
            }
            Ok(there) => {
                adopted = inherited.filter(|was| was.inode == (there.dev(), there.ino()));
            }
            Err(_) => {}
        }
        let listener = match adopted {
            Some(inherited) => inherited.into_listener().map_err(system)?,
            None => bind_over(directory, name, path, mode).map_err(system)?,
        };
        let meta = fs::symlink_metadata(path).map_err(system)?;
        let guard = Guard {
            path: path.to_owned(),
            inode: (meta.dev(), meta.ino()),
            given_away: Arc::default(),
            _lock: lock,
        };
        Ok(Self { listener, guard })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.guard.path
    }

    /// The same socket for a successor.
    pub(crate) fn lend(&self) -> Result<Lent, SocketError> {
        let listener = self.listener.as_fd().try_clone_to_owned();
        Ok(Lent {
            path: self.guard.path.clone(),
            inode: self.guard.inode,
            listener: listener.map_err(|cause| SocketError::System {
                path: self.guard.path.clone(),
                cause,
            })?,
            given_away: Arc::clone(&self.guard.given_away),
        })
    }

    pub(crate) fn into_parts(self) -> (UnixListener, Guard) {
        (self.listener, self.guard)
    }
}

/// Bound beside and renamed over: a stale socket is replaced without a moment in which there is none.
fn bind_over(directory: &Path, name: &OsStr, path: &Path, mode: u32) -> io::Result<UnixListener> {
    let beside = directory.join(format!(".{}.new", name.to_string_lossy()));
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&beside)?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(mode))?;
    fs::rename(&beside, path)?;
    Ok(listener)
}

fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

/// Whether nobody but root and us can put another file into `directory`, or another directory into its place.
fn check_directory(directory: &Path) -> Result<(), String> {
    let meta = look(directory)?;
    if meta.file_type().is_symlink() {
        return Err(format!(
            "its directory {} is a symbolic link",
            directory.display()
        ));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(format!(
            "its directory {} can be written by others (mode {:04o}); chmod go-w it",
            directory.display(),
            meta.mode() & 0o7777
        ));
    }
    check_chain(directory)?;
    // Links on the way were made by root or us; where they lead has to be safe as well.
    let real = directory
        .canonicalize()
        .map_err(|error| format!("{} cannot be resolved: {error}", directory.display()))?;
    check_chain(&real)
}

fn check_chain(path: &Path) -> Result<(), String> {
    for part in path.ancestors() {
        let meta = look(part)?;
        if !is_trusted(meta.uid()) {
            return Err(format!("{} belongs to uid {}", part.display(), meta.uid()));
        }
        // In a sticky directory others can add files but not replace ours.
        let sticky = meta.mode() & 0o1000 != 0;
        if meta.is_dir() && meta.mode() & 0o022 != 0 && !sticky {
            return Err(format!(
                "{} can be written by others (mode {:04o})",
                part.display(),
                meta.mode() & 0o7777
            ));
        }
    }
    Ok(())
}

fn look(path: &Path) -> Result<fs::Metadata, String> {
    fs::symlink_metadata(path)
        .map_err(|error| format!("{} cannot be looked at: {error}", path.display()))
}

#[cfg(test)]
mod tests;
