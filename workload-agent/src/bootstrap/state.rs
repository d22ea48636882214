//! Decides how the agent's own identity survives a restart: one file, 0600, replaced whole and flushed before it counts.
//! Trusts its directory (0700, ours). Never leaves half a file, never takes a key that others could have read or written.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use mesh_identity::{Bundle, TrustDomain, X509Svid};
use mesh_runtime::errors::Coded;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::{AgentIdentity, Proven};

const FILE: &str = "agent-identity.json";
const VERSION: u32 = 1;
const LARGEST: u64 = 16 * 1024 * 1024;

/// Why the identity cannot be kept or read.
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

/// The data directory.
#[derive(Clone, Debug)]
pub struct StateDir {
    dir: PathBuf,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kept {
    version: u32,
    trust_domain: String,
    reattestable: bool,
    /// PEM, leaf first.
    chain: String,
    /// PKCS#8 in base64.
    key: String,
    /// The own trust domain's bundle, in SPIFFE's JSON.
    bundle: serde_json::Value,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl StateDir {
    /// Makes the directory when it is missing.
    ///
    /// # Errors
    /// When it cannot be made, or others can use it.
    pub fn open(dir: &Path) -> Result<Self, StateError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|cause| StateError::System {
                path: dir.to_owned(),
                cause,
            })?;
        private(
            dir,
            &fs::metadata(dir).map_err(|cause| StateError::System {
                path: dir.to_owned(),
                cause,
            })?,
            0o022,
        )?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    /// The identity of the last run. One that cannot be read is no reason not to start: the node attests again.
    pub(super) fn load(&self, own: &TrustDomain) -> Result<Option<Proven>, StateError> {
        let path = self.path();
        let system = |cause| StateError::System {
            path: path.clone(),
            cause,
        };
        let file = match OpenOptions::new()
            .read(true)
            .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
            .open(&path)
        {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(system(error)),
        };
        private(&path, &file.metadata().map_err(system)?, 0o077)?;
        let mut bytes = Zeroizing::new(Vec::new());
        file.take(LARGEST).read_to_end(&mut bytes).map_err(system)?;
        match parse(&bytes, own) {
            Ok(proven) => Ok(Some(proven)),
            Err(reason) => {
                tracing::warn!(file = %path.display(), reason, "the kept identity is not used");
                Ok(None)
            }
        }
    }

    /// Replaces the kept identity. It is on disk when this returns.
    pub(crate) fn save(&self, identity: &AgentIdentity, bundle: &Bundle) -> Result<(), StateError> {
        let path = self.path();
        self.write(identity, bundle)
            .map_err(|cause| StateError::System { path, cause })
    }

    fn write(&self, identity: &AgentIdentity, bundle: &Bundle) -> io::Result<()> {
        let kept = Kept {
            version: VERSION,
            trust_domain: bundle.trust_domain().to_string(),
            reattestable: identity.reattestable,
            chain: identity.svid.to_pem(),
            key: STANDARD.encode(&*identity.key),
            bundle: serde_json::from_slice(&bundle.to_spiffe_json())?,
        };
        let bytes = Zeroizing::new(serde_json::to_vec_pretty(&kept)?);
        let beside = self.dir.join(format!(".{FILE}.new"));
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&beside, self.path())?;
        // The rename itself lasts only once the directory is on disk.
        File::open(&self.dir)?.sync_all()
    }
}

fn parse(bytes: &[u8], own: &TrustDomain) -> Result<Proven, String> {
    let kept: Kept = serde_json::from_slice(bytes)
        .map_err(|error| format!("line {}: not our form", error.line()))?;
    if kept.version != VERSION {
        return Err(format!("its version is {}, not {VERSION}", kept.version));
    }
    if kept.trust_domain != own.as_str() {
        return Err(format!("it is for trust domain {}", kept.trust_domain));
    }
    let svid = X509Svid::from_pem(kept.chain.as_bytes()).map_err(|error| error.to_string())?;
    let key = Zeroizing::new(
        STANDARD
            .decode(&kept.key)
            .map_err(|_| "the key is not base64".to_owned())?,
    );
    let json = serde_json::to_vec(&kept.bundle).map_err(|error| error.to_string())?;
    let bundle = Bundle::from_spiffe_json(own.clone(), &json).map_err(|error| error.to_string())?;
    Ok(Proven {
        identity: AgentIdentity {
            svid,
            key,
            reattestable: kept.reattestable,
        },
        bundle,
    })
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
