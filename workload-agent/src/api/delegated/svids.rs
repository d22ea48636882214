//! Decides which SVIDs and tokens a delegate is given for a workload.
//! Trusts the vault for what may be held and `tokens` for the tokens. Never hands on an SVID that has run out.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_identity::EntryId;
use mesh_runtime::errors::ErrorChain;
use proto::spire::api::{agent::delegatedidentity::v1 as wire, types};
use tonic::Status;

use super::{Delegate, Parts, Source, Subject, View, ended, gone};
use crate::vault::{HeldSvid, Pins};

/// How long a first message waits for the first SVID to be made.
const FIRST_SVID_WITHIN: Duration = Duration::from_secs(5);
/// How long it waits for the rest of them.
const SETTLE: Duration = Duration::from_millis(250);

/// The SVIDs of one workload.
pub(super) struct Svids {
    subject: Subject,
    pins: Option<Pins>,
}

impl Svids {
    pub(super) fn of(subject: Subject) -> Self {
        Self {
            subject,
            pins: None,
        }
    }
}

/// The full state.
#[derive(Default)]
pub(super) struct State {
    /// Each with the hint that tells it from the others.
    svids: Vec<(Arc<HeldSvid>, String)>,
    federates_with: BTreeSet<String>,
}

impl PartialEq for State {
    /// Whether both would be the same message on the wire.
    fn eq(&self, other: &Self) -> bool {
        self.federates_with == other.federates_with
            && self.svids.len() == other.svids.len()
            && self
                .svids
                .iter()
                .zip(&other.svids)
                .all(|((a, hint), (b, other))| hint == other && a.svid == b.svid)
    }
}

impl Source for Svids {
    type State = State;
    type Message = wire::SubscribeToX509sviDsResponse;

    fn state(&mut self, parts: &Arc<Parts>, view: &View) -> (State, Option<Duration>) {
        let now = parts.clock.now();
        let entries = self.subject.entries(parts, view);
        let ids: Vec<EntryId> = entries.iter().map(|(entry, _)| entry.id.clone()).collect();
        let mut state = State::default();
        for (entry, hint) in entries {
            let domains = entry.federates_with.iter();
            let domains = domains.map(|domain| domain.id().as_str().to_owned());
            state.federates_with.extend(domains);
            let held = view.held(&entry.id);
            let live = held.filter(|held| now < held.svid.not_after());
            state
                .svids
                .extend(live.map(|held| (Arc::clone(held), hint)));
        }
        let patience = match state.svids.len() {
            held if held == ids.len() => None,
            0 => Some(FIRST_SVID_WITHIN),
            _ => Some(SETTLE),
        };
        if self.pins.as_ref().is_none_or(|pins| pins.entries() != ids) {
            self.pins = Some(parts.vault.pin(ids));
        }
        (state, patience)
    }

    fn message(state: &State) -> wire::SubscribeToX509sviDsResponse {
        let svids = state.svids.iter().map(|(held, hint)| {
            let chain = held.svid.chain().iter();
            wire::X509svidWithKey {
                x509_svid: Some(types::X509svid {
                    cert_chain: chain.map(|der| der.to_vec()).collect(),
                    id: Some(held.svid.id().into()),
                    expires_at: since_1970(held.svid.not_after()),
                    hint: hint.clone(),
                }),
                x509_svid_key: held.key.expose().to_vec(),
            }
        });
        wire::SubscribeToX509sviDsResponse {
            x509_svids: svids.collect(),
            federates_with: state.federates_with.iter().cloned().collect(),
        }
    }

    fn identities(state: &State) -> Vec<(&str, &str)> {
        let svids = state.svids.iter().map(|(held, _)| &held.svid);
        svids
            .map(|svid| (svid.id().as_str(), svid.serial()))
            .collect()
    }

    fn subject(&mut self) -> Option<&mut Subject> {
        Some(&mut self.subject)
    }
}

/// A token for each identity of the workload; whole or refused.
pub(super) async fn tokens(
    delegate: &mut Delegate,
    subject: &Subject,
    audience: &[String],
) -> Result<wire::FetchJwtsviDsResponse, Status> {
    let parts = Arc::clone(&delegate.caller.parts);
    let view = parts.vault.view();
    let entries = subject.entries(&parts, &view);
    if entries.is_empty() {
        return Err(Status::permission_denied("no identity issued"));
    }
    let made = entries.iter().map(|(entry, _)| {
        parts
            .tokens
            .get(entry, audience, view.bundles(), &parts.clock)
    });
    let made = futures::future::try_join_all(made).await.map_err(|error| {
        tracing::warn!(error = %ErrorChain(&error), "a token for a delegate could not be had");
        Status::unavailable("a JWT-SVID could not be had; the ca-server may be out of reach")
    })?;
    let given = entries.iter().zip(&made);
    delegate
        .caller
        .record_given(given.map(|((entry, _), token)| (entry.spiffe_id.as_str(), token.name())))
        .await?;
    if !delegate.caller.peer.process().is_alive() {
        return Err(gone());
    }
    if subject.process().is_some_and(|process| !process.is_alive()) {
        return Err(ended());
    }
    let svids = entries.into_iter().zip(made).map(|((entry, hint), token)| {
        let svid = token.svid();
        types::Jwtsvid {
            token: token.expose().to_owned(),
            id: Some((&entry.spiffe_id).into()),
            expires_at: since_1970(svid.expires_at),
            issued_at: svid.issued_at.map(since_1970).unwrap_or_default(),
            hint,
        }
    });
    Ok(wire::FetchJwtsviDsResponse {
        svids: svids.collect(),
    })
}

fn since_1970(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|d| i64::try_from(d.as_secs()).ok())
        .unwrap_or_default()
}
