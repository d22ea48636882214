//! Where dev mode works: one folder, held by a lock, with sockets whose paths the kernel accepts.
//! Nothing is written outside of it, and nothing is left unless asked for.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// The kernel's limit for the path of a Unix socket is 108 bytes with the final zero (unix(7)).
const SOCKET_PATH_LIMIT: usize = 107;
/// The longest name that we put below the folder.
const LONGEST_NAME: usize = "/ca-admin.sock".len();

/// Why dev mode has no place to work.
#[derive(Debug, Error)]
pub(crate) enum PlaceError {
    /// Another dev mode runs there.
    #[error("another dev mode works in {0}; stop it, or choose another folder with --dir")]
    Taken(PathBuf),
    /// The folder's path leaves no room for a socket's name.
    #[error(
        "{path} is {length} bytes long and a Unix socket's path ends at 107; choose a shorter folder with --dir"
    )]
    TooLong {
        /// The folder.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// The system refused.
    #[error("{path} cannot be used")]
    Unusable {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
}

/// A folder of our own, removed on drop unless kept.
pub(crate) struct Place {
    path: PathBuf,
    parent: PathBuf,
    keep: bool,
    _lock: nix::fcntl::Flock<File>,
}

impl Place {
    /// Takes `below/name`, empty. What a killed run left there is removed first.
    pub(crate) fn take(below: &Path, name: &str, keep: bool) -> Result<Self, PlaceError> {
        let unusable = |cause| PlaceError::Unusable {
            path: below.to_owned(),
            cause,
        };
        fs::create_dir_all(below).map_err(unusable)?;
        let parent = below.canonicalize().map_err(unusable)?;
        let path = parent.join(name);
        let length = path.as_os_str().len();
        if length + LONGEST_NAME > SOCKET_PATH_LIMIT {
            return Err(PlaceError::TooLong { path, length });
        }
        let lock = File::create(parent.join(format!("{name}.lock"))).map_err(unusable)?;
        let lock = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusiveNonblock)
            .map_err(|_| PlaceError::Taken(path.clone()))?;
        if path.exists() {
            fs::remove_dir_all(&path).map_err(unusable)?;
        }
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(unusable)?;
        Ok(Self {
            path,
            parent,
            keep,
            _lock: lock,
        })
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A path in it, as text for configuration files.
    pub(crate) fn file(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }

    /// Writes a file whole: readers see the old content or the new, never half.
    pub(crate) fn write(&self, name: &str, content: &str) -> Result<PathBuf, PlaceError> {
        let path = self.path.join(name);
        let new = self.path.join(format!("{name}.new"));
        fs::write(&new, content)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|cause| PlaceError::Unusable {
                path: path.clone(),
                cause,
            })?;
        Ok(path)
    }

    /// Gives a program a path of its own, so that `unix:path` tells its processes apart without root.
    pub(crate) fn link(&self, program: &Path, name: &str) -> Result<PathBuf, PlaceError> {
        let path = self.path.join(name);
        fs::hard_link(program, &path)
            // Another file system, or a kernel that forbids links to files of others.
            .or_else(|_| fs::copy(program, &path).map(drop))
            .map_err(|cause| PlaceError::Unusable {
                path: path.clone(),
                cause,
            })?;
        Ok(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        fs::remove_dir_all(&self.path).ok();
        if let Some(name) = self.path.file_name() {
            let mut lock = name.to_owned();
            lock.push(".lock");
            fs::remove_file(self.parent.join(lock)).ok();
        }
        fs::remove_dir(&self.parent).ok(); // fails, rightly, when it holds anything else
    }
}
