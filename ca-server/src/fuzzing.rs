//! The doors of the fuzz targets in `fuzz/`: a stranger's bytes go into each reader that a caller's bytes reach.
//! Decides nothing and trusts nothing; a panic here is a defect there. No program calls it.

use mesh_identity::TrustDomain;

use crate::issuance::{MintRequest, VerifiedCsr};

fn own() -> TrustDomain {
    "dev.test".parse().expect("a trust domain")
}

/// A certificate request of an agent, and of an administrator that mints.
pub fn csr(bytes: &[u8]) {
    let proven = VerifiedCsr::parse(bytes);
    if let Ok(mint) = MintRequest::parse(bytes, &own()) {
        assert!(
            proven.is_ok(),
            "nothing is minted for a key that was not proven"
        );
        assert!(mint.id().is_member_of(&own()));
    }
}

/// The payload with which a node attests.
pub fn evidence(bytes: &[u8]) {
    crate::attestation::read_for_fuzzing(bytes, &own());
}

/// A request of SPIRE's API: the first byte says which.
pub fn request(bytes: &[u8]) {
    crate::api::read_for_fuzzing(bytes, &own());
}
