//! Decides in which form the agent's own identity is kept: its chain, its key, and the bundle that it was checked against.
//! Trusts the seal for wholeness; never takes what is for another trust domain.

use base64::{Engine, engine::general_purpose::STANDARD};
use mesh_identity::{Bundle, TrustDomain, X509Svid};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::{StateDir, StateError};
use crate::identity::{AgentIdentity, Proven};

const FILE: &str = "agent-identity.sealed";
const VERSION: u32 = 1;

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
    /// The identity of the last run, valid or not. One that cannot be read is no reason not to start: the node attests again.
    pub(crate) fn identity(&self, own: &TrustDomain) -> Result<Option<Proven>, StateError> {
        let Some(bytes) = self.read(FILE)? else {
            return Ok(None);
        };
        match parse(&bytes, own) {
            Ok(proven) => Ok(Some(proven)),
            Err(reason) => {
                self.set_aside(FILE, &reason);
                Ok(None)
            }
        }
    }

    /// Replaces the kept identity. It is on disk when this returns.
    pub(crate) fn keep_identity(
        &self,
        identity: &AgentIdentity,
        bundle: &Bundle,
    ) -> Result<(), StateError> {
        let bytes = form(identity, bundle).map_err(|cause| StateError::System {
            path: self.dir.join(FILE),
            cause: cause.into(),
        })?;
        self.replace(FILE, bytes)
    }
}

fn form(
    identity: &AgentIdentity,
    bundle: &Bundle,
) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
    let kept = Kept {
        version: VERSION,
        trust_domain: bundle.trust_domain().to_string(),
        reattestable: identity.reattestable,
        chain: identity.svid.to_pem(),
        key: STANDARD.encode(&*identity.key),
        bundle: serde_json::from_slice(&bundle.to_spiffe_json())?,
    };
    serde_json::to_vec(&kept).map(Zeroizing::new)
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
