//! The programs of others that agent and proxy are proved against. `tests/rig/peers.sh` gets them; nothing of them lies in this
//! repository.

use std::path::PathBuf;

use crate::env;

/// The folder of the programs.
pub struct Peers(PathBuf);

impl Peers {
    /// The programs in the folder named by `FINIAL_PEERS`.
    /// `None`, with the reason printed, where they are missing; a panic where that happens in CI.
    pub fn find() -> Option<Self> {
        let found = env::read("FINIAL_PEERS").map(PathBuf::from);
        let found = found.filter(|folder| folder.join("complete").exists());
        if found.is_none() {
            let reason = "skipped: no programs of others. Get them: \
                          FINIAL_PEERS=$(tests/rig/peers.sh) cargo test -p mesh-tests";
            assert!(
                env::read("CI").is_none(),
                "in CI they must be there; {reason}"
            );
            eprintln!("{reason}");
        }
        found.map(Self)
    }

    /// Envoy.
    pub fn envoy(&self) -> PathBuf {
        self.0
            .join("envoy")
            .canonicalize()
            .expect("a link to the program")
    }

    /// Python with the client `spiffe` from PyPI.
    pub fn python(&self) -> PathBuf {
        self.0.join("venv/bin/python")
    }

    /// A workload on go-spiffe.
    pub fn go_client(&self) -> PathBuf {
        self.0.join("go-client")
    }
}
