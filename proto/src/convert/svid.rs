//! X509-SVIDs as the server hands them out: a chain, and what is said about it beside.
//! It trusts the domain's parser for the chain's shape; whether the chain verifies is for whoever holds the bundle.
//! It never takes the word beside the chain for the chain's own: both must say the same.

use mesh_identity::{SpiffeId, X509Svid};

use super::{
    error::{Reason, WireError},
    identity::{required_id, seconds_of},
};
use crate::spire::api::types;

/// A chain as it was issued, with the hint of its entry.
#[derive(Debug, Clone, PartialEq)]
pub struct IssuedX509Svid {
    /// The chain.
    pub svid: X509Svid,
    /// For the workload, to tell several identities apart.
    pub hint: String,
}

impl TryFrom<types::X509svid> for IssuedX509Svid {
    type Error = WireError;

    fn try_from(wire: types::X509svid) -> Result<Self, WireError> {
        let stated = required_id("id", wire.id.as_ref())?;
        if wire.cert_chain.is_empty() {
            return Err(WireError::new("cert_chain", Reason::Missing));
        }
        let chain = wire.cert_chain.into_iter().map(Into::into).collect();
        let svid = X509Svid::parse(chain).map_err(|e| WireError::new("cert_chain", e))?;
        same_id("id", &stated, &svid)?;
        let certified = seconds_of(svid.not_after());
        if wire.expires_at != certified {
            return Err(WireError::new(
                "expires_at",
                Reason::OtherExpiry {
                    stated: wire.expires_at,
                    certified,
                },
            ));
        }
        Ok(Self {
            svid,
            hint: wire.hint,
        })
    }
}

impl From<&IssuedX509Svid> for types::X509svid {
    fn from(issued: &IssuedX509Svid) -> Self {
        Self {
            hint: issued.hint.clone(),
            ..Self::from(&issued.svid)
        }
    }
}

/// Without a hint.
impl From<&X509Svid> for types::X509svid {
    fn from(svid: &X509Svid) -> Self {
        Self {
            cert_chain: svid.chain().iter().map(|c| c.to_vec()).collect(),
            id: Some(svid.id().into()),
            expires_at: seconds_of(svid.not_after()),
            hint: String::new(),
        }
    }
}

pub(super) fn same_id(field: &str, stated: &SpiffeId, svid: &X509Svid) -> Result<(), WireError> {
    match stated == svid.id() {
        true => Ok(()),
        false => {
            let (stated, certified) = (stated.clone(), svid.id().clone());
            Err(WireError::new(field, Reason::OtherId { stated, certified }))
        }
    }
}
