//! The X.509 half of the Workload API: what the agent says to a workload, and what a workload takes from it.
//! It trusts nothing in an answer: each identity must fit its certificate, each bundle its trust domain.
//! It never uses part of an answer, and no key stays in memory that is not wiped when it is dropped.

use std::{collections::BTreeMap, mem};

use mesh_identity::{Bundle, BundleSet, X509Svid};
use zeroize::Zeroizing;

use super::{
    error::{Reason, WireError},
    identity::domain_of_id,
    svid::same_id,
};
use crate::spiffe::workload;

/// One identity to be sent; everything is lent.
#[derive(Clone, Copy)]
pub struct X509IdentityView<'a> {
    /// The chain.
    pub svid: &'a X509Svid,
    /// The key of its leaf: PKCS#8 in DER.
    pub key: &'a [u8],
    /// For the workload, to tell several identities apart; `""` for none.
    pub hint: &'a str,
    /// The bundle of the identity's own trust domain.
    pub bundle: &'a Bundle,
}

/// Writes an answer. The first identity is the default one; `federated` are the bundles of foreign trust domains.
pub fn x509_svid_response<'a>(
    identities: impl IntoIterator<Item = X509IdentityView<'a>>,
    federated: impl IntoIterator<Item = &'a Bundle>,
) -> workload::X509svidResponse {
    let one = |identity: X509IdentityView<'_>| workload::X509svid {
        spiffe_id: identity.svid.id().as_str().to_owned(),
        x509_svid: identity.svid.to_der_concat(),
        x509_svid_key: identity.key.to_vec(),
        bundle: identity.bundle.to_der_concat(),
        hint: identity.hint.to_owned(),
    };
    workload::X509svidResponse {
        svids: identities.into_iter().map(one).collect(),
        crl: Vec::new(),
        federated_bundles: keyed(federated),
    }
}

/// Writes an answer with bundles only.
pub fn x509_bundles_response<'a>(
    bundles: impl IntoIterator<Item = &'a Bundle>,
) -> workload::X509BundlesResponse {
    workload::X509BundlesResponse {
        crl: Vec::new(),
        bundles: keyed(bundles),
    }
}

/// Writes the JWT authorities of bundles as JWK sets, each under the SPIFFE ID of its trust domain.
pub fn keyed_jwks<'a>(bundles: impl IntoIterator<Item = &'a Bundle>) -> BTreeMap<String, Vec<u8>> {
    bundles
        .into_iter()
        .map(|b| (b.trust_domain().id().as_str().to_owned(), b.to_jwks_json()))
        .collect()
}

/// One identity as a workload received it. `Debug` does not show the key.
pub struct X509Identity {
    /// The chain, fit in shape; whether it verifies is for the caller to see.
    pub svid: X509Svid,
    /// What should be the key of its leaf, in PKCS#8 DER; wiped when dropped.
    pub key: Zeroizing<Vec<u8>>,
    /// Tells several identities apart; `""` for none.
    pub hint: String,
}

impl std::fmt::Debug for X509Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("X509Identity")
            .field("id", self.svid.id())
            .field("hint", &self.hint)
            .finish_non_exhaustive()
    }
}

/// A whole answer of FetchX509SVID.
#[derive(Debug)]
pub struct X509Context {
    identities: Vec<X509Identity>,
    bundles: BundleSet,
    crls: Vec<Vec<u8>>,
}

impl X509Context {
    /// All identities, at least one. The first is the default.
    pub fn identities(&self) -> &[X509Identity] {
        &self.identities
    }

    /// All identities, by value.
    pub fn into_identities(self) -> Vec<X509Identity> {
        self.identities
    }

    /// The first identity with this hint (WAPI-26).
    pub fn by_hint(&self, hint: &str) -> Option<&X509Identity> {
        self.identities
            .iter()
            .find(|identity| identity.hint == hint)
    }

    /// All bundles: those of the identities' own trust domains, and the foreign ones.
    pub fn bundles(&self) -> &BundleSet {
        &self.bundles
    }

    /// Revocation lists in DER, unread. No known agent sends any.
    pub fn crls(&self) -> &[Vec<u8>] {
        &self.crls
    }
}

impl TryFrom<workload::X509svidResponse> for X509Context {
    type Error = WireError;

    fn try_from(mut wire: workload::X509svidResponse) -> Result<Self, WireError> {
        // All keys first, so that they are wiped whichever way this ends.
        let keys: Vec<_> = wire
            .svids
            .iter_mut()
            .map(|s| Zeroizing::new(mem::take(&mut s.x509_svid_key)))
            .collect();
        if wire.svids.is_empty() {
            return Err(WireError::new("svids", Reason::Missing));
        }
        let mut bundles = BundleSet::new();
        let mut identities = Vec::with_capacity(wire.svids.len());
        for (i, (svid, key)) in wire.svids.into_iter().zip(keys).enumerate() {
            let (identity, bundle) = identity(svid, key).map_err(|e| e.within_item("svids", i))?;
            match bundles.get(bundle.trust_domain()) {
                Some(known) if **known != bundle => {
                    let second = Reason::SecondBundle(bundle.trust_domain().clone());
                    return Err(WireError::new("bundle", second).within_item("svids", i));
                }
                Some(_) => {}
                None => drop(bundles.insert(bundle)),
            }
            identities.push(identity);
        }
        add_keyed("federated_bundles", wire.federated_bundles, &mut bundles)?;
        Ok(Self {
            identities,
            bundles,
            crls: wire.crl,
        })
    }
}

/// Reads an answer of FetchX509Bundles: at least one bundle, each of its own trust domain.
pub fn bundles_from_wire(wire: workload::X509BundlesResponse) -> Result<BundleSet, WireError> {
    if wire.bundles.is_empty() {
        return Err(WireError::new("bundles", Reason::Missing));
    }
    let mut bundles = BundleSet::new();
    add_keyed("bundles", wire.bundles, &mut bundles)?;
    Ok(bundles)
}

fn identity(
    wire: workload::X509svid,
    key: Zeroizing<Vec<u8>>,
) -> Result<(X509Identity, Bundle), WireError> {
    let required = [
        ("spiffe_id", wire.spiffe_id.is_empty()),
        ("x509_svid", wire.x509_svid.is_empty()),
        ("x509_svid_key", key.is_empty()),
        ("bundle", wire.bundle.is_empty()),
    ];
    if let Some((field, _)) = required.iter().find(|(_, empty)| *empty) {
        return Err(WireError::new(*field, Reason::Missing));
    }
    let stated = wire
        .spiffe_id
        .parse()
        .map_err(|e: mesh_identity::SpiffeIdError| WireError::new("spiffe_id", e))?;
    let svid =
        X509Svid::from_der_concat(&wire.x509_svid).map_err(|e| WireError::new("x509_svid", e))?;
    same_id("spiffe_id", &stated, &svid)?;
    let bundle = Bundle::from_der_concat(stated.trust_domain().clone(), &wire.bundle)
        .map_err(|e| WireError::new("bundle", e))?;
    Ok((
        X509Identity {
            svid,
            key,
            hint: wire.hint,
        },
        bundle,
    ))
}

fn keyed<'a>(bundles: impl IntoIterator<Item = &'a Bundle>) -> BTreeMap<String, Vec<u8>> {
    bundles
        .into_iter()
        .map(|b| (b.trust_domain().id().as_str().to_owned(), b.to_der_concat()))
        .collect()
}

fn add_keyed(
    field: &str,
    wire: BTreeMap<String, Vec<u8>>,
    bundles: &mut BundleSet,
) -> Result<(), WireError> {
    for (name, der) in wire {
        // The key itself may be long and hostile; the error's source shows what is wrong with it.
        let domain = domain_of_id(field, &name)?;
        let at = || format!("{field}[{domain}]");
        let bundle =
            Bundle::from_der_concat(domain.clone(), &der).map_err(|e| WireError::new(at(), e))?;
        if bundles.insert(bundle).is_some() {
            return Err(WireError::new(at(), Reason::SecondBundle(domain)));
        }
    }
    Ok(())
}
