//! What lies between an authority of ours and the root by which others verify it.

use mesh_identity::X509Authority;
use rustls_pki_types::CertificateDer;

use super::facts::facts;

/// What lies above an authority of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Above {
    /// The certificates between it and the root.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// What our bundle shows.
    pub(super) roots: Vec<X509Authority>,
    /// Hex of the subject key id of the root that it verifies by.
    pub(super) root_id: String,
}

impl Above {
    /// The same without a root.
    pub(super) fn without(&self, root_id: &str) -> Self {
        let mut above = self.clone();
        above.roots.retain(|root| root.subject_key_id() != root_id);
        above
    }

    /// The public keys of all of them, which no leaf of ours may have.
    pub(super) fn public_keys(&self) -> impl Iterator<Item = Vec<u8>> {
        let roots = self.roots.iter().map(X509Authority::der);
        let all = self.chain.iter().chain(roots);
        all.filter_map(|der| facts(der).ok())
            .map(|facts| facts.public_key)
    }
}
