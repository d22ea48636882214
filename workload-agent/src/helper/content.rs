//! Decides what stands in each file: certificates, key, roots, JWT keys, as spiffe-helper writes them. Pure.
//! Trusts that the answer of the agent was read whole. Never writes a bundle without a root.

use std::{collections::BTreeMap, time::SystemTime};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mesh_identity::{BundleSet, X509Svid};
use zeroize::Zeroizing;

use super::{options::X509Files, source::Fault};
use crate::vault::pem;

/// A file's mode and what is in it; wiped when dropped, since it may be a key.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) mode: u32,
    pub(super) bytes: Zeroizing<Vec<u8>>,
}

impl Content {
    pub(super) fn new(mode: u32, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            mode,
            bytes: Zeroizing::new(bytes.into()),
        }
    }
}

/// An identity to be written.
pub(super) struct Identity<'a> {
    pub(super) svid: &'a X509Svid,
    pub(super) key: &'a [u8],
}

/// The three X.509 files.
pub(super) fn x509(
    files: &X509Files,
    identity: Identity<'_>,
    bundles: &BundleSet,
    now: SystemTime,
) -> Result<BTreeMap<String, Content>, Fault> {
    let (own, chain) = (identity.svid.id().trust_domain(), identity.svid.chain());
    let (shown, intermediates) = match files.intermediates_to_bundle {
        true => chain.split_at(1),
        false => (chain, &[][..]),
    };
    let bundle = bundles.get(own).ok_or(Fault::NoBundle)?;
    let foreign = bundles
        .iter()
        .filter(|other| files.federated && other.trust_domain() != own);
    let lives =
        |root: &&mesh_identity::X509Authority| !files.omit_expired || now <= root.not_after();
    let roots = |bundle: &mesh_identity::Bundle| -> Vec<Vec<u8>> {
        let roots = bundle.x509_authorities().iter().filter(lives);
        roots.map(|root| root.der().to_vec()).collect()
    };
    let mut trusted = roots(bundle);
    if trusted.is_empty() {
        return Err(Fault::NoBundle);
    }
    trusted.extend(intermediates.iter().map(|der| der.to_vec()));
    for bundle in foreign {
        trusted.extend(roots(bundle));
    }
    let certificates = |ders: &mut dyn Iterator<Item = &[u8]>| {
        let text: Vec<u8> = ders
            .flat_map(|der| pem("CERTIFICATE", der).to_vec())
            .collect();
        Content::new(files.cert_mode, text)
    };
    let key = Content {
        mode: files.key_mode,
        bytes: crate::vault::key_pem(identity.key),
    };
    Ok([
        (
            files.svid.clone(),
            certificates(&mut shown.iter().map(AsRef::as_ref)),
        ),
        (files.key.clone(), key),
        (
            files.bundle.clone(),
            certificates(&mut trusted.iter().map(Vec::as_slice)),
        ),
    ]
    .into())
}

/// JSON from the name of a trust domain to its JWK set in base64.
pub(super) fn jwt_bundles(bundles: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let coded: BTreeMap<_, _> = bundles
        .iter()
        .map(|(id, jwks)| {
            let name = id.strip_prefix("spiffe://").unwrap_or(id);
            (name, STANDARD.encode(jwks))
        })
        .collect();
    serde_json::to_vec(&coded).expect("text is JSON")
}
