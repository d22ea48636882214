//! Decides where a socket may be made: in a directory that only root and this agent can write, under a lock, swapped in whole.
//! Trusts root. Never follows a link that somebody else made, never takes the place of a living agent.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Component, Path, PathBuf},
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
    _lock: Flock<File>,
}

impl Drop for Guard {
    fn drop(&mut self) {
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
            Ok(_) | Err(_) => {}
        }
        // Bound beside and renamed over: a stale socket is replaced without a moment in which there is none.
        let beside = directory.join(format!(".{}.new", name.to_string_lossy()));
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(system(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&beside).map_err(system)?;
        fs::set_permissions(&beside, fs::Permissions::from_mode(mode)).map_err(system)?;
        fs::rename(&beside, path).map_err(system)?;
        let meta = fs::symlink_metadata(path).map_err(system)?;
        let guard = Guard {
            path: path.to_owned(),
            inode: (meta.dev(), meta.ino()),
            _lock: lock,
        };
        Ok(Self { listener, guard })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.guard.path
    }

    pub(crate) fn into_parts(self) -> (UnixListener, Guard) {
        (self.listener, self.guard)
    }
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
