//! Decides what a delegate is told of bundles: all that the agent has, the whole of it each time; a domain that is gone is left out.
//! Trusts the vault. Never keeps a bundle beyond the view that has it.

use std::{collections::BTreeMap, marker::PhantomData, sync::Arc, time::Duration};

use mesh_identity::Bundle;
use proto::{convert::workload::keyed_jwks, spire::api::agent::delegatedidentity::v1 as wire};

use super::{Parts, Source, View};

/// The bundles in one of their two forms.
pub(super) struct Bundles<M>(PhantomData<fn() -> M>);

impl<M> Bundles<M> {
    pub(super) fn new() -> Self {
        Self(PhantomData)
    }
}

/// A form of bundles.
pub(super) trait Form: Send + 'static {
    fn written<'a>(bundles: impl Iterator<Item = &'a Bundle>) -> BTreeMap<String, Vec<u8>>;
    fn message(written: BTreeMap<String, Vec<u8>>) -> Self;
}

impl Form for wire::SubscribeToX509BundlesResponse {
    fn written<'a>(bundles: impl Iterator<Item = &'a Bundle>) -> BTreeMap<String, Vec<u8>> {
        let roots = bundles.map(|bundle| {
            let id = bundle.trust_domain().id().as_str().to_owned();
            (id, bundle.to_der_concat())
        });
        roots.collect()
    }

    fn message(ca_certificates: BTreeMap<String, Vec<u8>>) -> Self {
        Self { ca_certificates }
    }
}

impl Form for wire::SubscribeToJwtBundlesResponse {
    fn written<'a>(bundles: impl Iterator<Item = &'a Bundle>) -> BTreeMap<String, Vec<u8>> {
        keyed_jwks(bundles)
    }

    fn message(bundles: BTreeMap<String, Vec<u8>>) -> Self {
        Self { bundles }
    }
}

impl<M: Form> Source for Bundles<M> {
    type State = BTreeMap<String, Vec<u8>>;
    type Message = M;

    fn state(&mut self, _: &Arc<Parts>, view: &View) -> (Self::State, Option<Duration>) {
        (
            M::written(view.bundles().iter().map(|bundle| &**bundle)),
            None,
        )
    }

    fn message(state: &Self::State) -> M {
        M::message(state.clone())
    }
}
