//! Decides how a program tells which addresses it really bound: ports may be 0, so others must be able to read them;
//! and what an operator may write as the place of a Unix socket.
//! Trusts the caller's list; never shows a half-written file (written beside, then renamed).
//!
//! ```
//! # let dir = std::env::temp_dir().join(format!("addresses-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&dir).unwrap(); let path = dir.join("addresses.json");
//! use mesh_runtime::addresses::Addresses;
//! let mut bound = Addresses::new();
//! bound.add("grpc", "127.0.0.1:8443".parse::<std::net::SocketAddr>().unwrap());
//! bound.add("adminSocket", "/run/ca-server/admin.sock");
//! bound.write(&path).unwrap();
//! ```

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::errors::Coded;

/// The doors of a program, by name: `host:port` or the path of a Unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    doors: BTreeMap<String, String>,
}

/// The addresses file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the addresses file {}", path.display())]
pub struct AddressesError {
    path: PathBuf,
    #[source]
    cause: io::Error,
}

impl Coded for AddressesError {
    fn code(&self) -> &'static str {
        "FNL0220"
    }
}

impl Addresses {
    /// No door yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a door: a `SocketAddr` or a path's text.
    pub fn add(&mut self, name: &str, address: impl ToString) {
        self.doors.insert(name.to_owned(), address.to_string());
    }

    /// The address of a door.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.doors.get(name).map(String::as_str)
    }

    /// All doors in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.doors
            .iter()
            .map(|(name, address)| (name.as_str(), address.as_str()))
    }

    /// Writes `{"name":"address",…}`: either the whole file is there or none.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), AddressesError> {
        self.try_write(path).map_err(|cause| AddressesError {
            path: path.to_owned(),
            cause,
        })
    }

    fn try_write(&self, path: &Path) -> io::Result<()> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}.tmp", std::process::id()));
        let mut file = std::fs::File::create(&beside)?;
        file.write_all(serde_json::to_string(&self.doors)?.as_bytes())?;
        file.write_all(b"\n")?;
        drop(file);
        std::fs::rename(&beside, path)
    }

    /// Reads a file that [`Addresses::write`] wrote: for tests and the dev mode.
    ///
    /// # Errors
    /// When there is no such file or it is not such a map.
    pub fn read(path: &Path) -> io::Result<Self> {
        Ok(Self {
            doors: serde_json::from_slice(&std::fs::read(path)?)?,
        })
    }
}

/// An absolute path, written plainly or as a `unix:` URI (SPIFFE Workload Endpoint, section 4: no authority, nothing else). Another
/// form is none, `tcp:` too.
pub fn socket_path(text: &str) -> Option<PathBuf> {
    let path = match text.strip_prefix("unix:") {
        Some(rest) => match rest.strip_prefix("//") {
            Some(path) if path.starts_with('/') => path,
            Some(_) => return None,
            None => rest,
        },
        None => text,
    };
    let fits = path.starts_with('/')
        && path.len() > 1
        && !path.ends_with('/')
        && !path.contains(['?', '#', '\0']);
    fits.then(|| Path::new(path).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("addresses.json");
        let mut bound = Addresses::new();
        bound.add("grpc", "[::1]:1".parse::<std::net::SocketAddr>().unwrap());
        bound.add("adminSocket", "/run/a.sock");
        bound.write(&path).unwrap();
        assert_eq!(Addresses::read(&path).unwrap(), bound);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn wep_05_wep_12_wep_13_wep_14_a_socket_is_an_absolute_path_or_a_unix_uri_without_authority_and_never_tcp()
     {
        for good in ["/run/a.sock", "unix:/run/a.sock", "unix:///run/a.sock"] {
            assert_eq!(
                socket_path(good).as_deref(),
                Some(Path::new("/run/a.sock")),
                "{good}"
            );
        }
        for bad in [
            "",
            "/",
            "a.sock",
            "unix:a.sock",
            "unix://host/a.sock",
            "unix:///a?x",
            "unix:///a#x",
            // No door of ours is on the network, so none is looked for there in any form.
            "tcp://127.0.0.1:1",
            "tcp:127.0.0.1:1",
            "tcp://[::1]:1",
            "tcp://localhost:1",
            "tcp://127.0.0.1:1/path",
            "tcp://127.0.0.1",
            "http://127.0.0.1:1",
            "/run/",
        ] {
            assert_eq!(socket_path(bad), None, "{bad}");
        }
    }
}
