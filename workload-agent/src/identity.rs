//! Decides what the agent's own identity is: an SVID with its key, and the bundle that it was checked against.
//! Trusts whoever made it to have checked it. Never shows the key.

use std::time::SystemTime;

use mesh_identity::{Bundle, BundleSet, SpiffeId, X509Svid};
use mesh_tls::{PrivateKey, TlsIdentity};
use zeroize::Zeroizing;

/// The agent's own identity, with what is needed to use it again after a restart.
pub struct AgentIdentity {
    pub(crate) svid: X509Svid,
    pub(crate) key: Zeroizing<Vec<u8>>,
    pub(crate) reattestable: bool,
}

impl AgentIdentity {
    /// The agent's ID.
    pub fn id(&self) -> &SpiffeId {
        self.svid.id()
    }

    /// Ready for mutual TLS with these bundles.
    pub(crate) fn for_tls(
        &self,
        bundles: BundleSet,
        now: SystemTime,
    ) -> Result<TlsIdentity, Box<dyn std::error::Error + Send + Sync>> {
        let key = PrivateKey::from_pkcs8(self.key.to_vec())?;
        Ok(TlsIdentity::new(self.svid.clone(), key, bundles, now)?)
    }
}

impl std::fmt::Debug for AgentIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentIdentity")
            .field("svid", &self.svid)
            .finish_non_exhaustive()
    }
}

/// The agent's identity and the bundle that it was checked against.
#[derive(Debug)]
pub struct Proven {
    pub(crate) identity: AgentIdentity,
    pub(crate) bundle: Bundle,
}
