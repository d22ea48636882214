//! Decides in which form the node's identities are kept, and when: entries, bundles and SVIDs with their keys, as one.
//! Trusts the seal for wholeness and nothing else: each SVID is looked at again as a peer would, and who may have it is asked of the
//! kernel anew. Never on the path of a request.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use mesh_identity::{Bundle, BundleSet, Entry, SpiffeId, TrustDomain, X509Svid};
use mesh_runtime::{clock::Clock, errors::ErrorChain, tasks::Stop, telemetry::Repetition};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::{StateDir, StateError};
use crate::{
    metrics::Metrics,
    rotation::{self, Random},
    vault::{HeldSvid, Restored, SvidKey, Vault, View},
};

const FILE: &str = "node-state.sealed";
const VERSION: u32 = 1;
/// The shortest pause between two writes, and how much longer than a write the pause after it is: writing never takes more than
/// a twentieth of the time, however much there is to write.
const PAUSE: (Duration, u32) = (Duration::from_millis(500), 20);
/// Pauses after failures grow from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kept {
    version: u32,
    /// Whose entries they are.
    agent: SpiffeId,
    entries: Vec<Entry>,
    bundles: Vec<KeptBundle>,
    svids: Vec<KeptSvid>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KeptBundle {
    trust_domain: TrustDomain,
    /// SPIFFE's JSON, which has no word for what is tainted.
    document: serde_json::Value,
    tainted_keys: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KeptSvid {
    /// As it was when the SVID was made.
    entry: Entry,
    /// DER in base64, leaf first.
    chain: String,
    /// PKCS#8 in base64.
    key: String,
}

impl Drop for KeptSvid {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl StateDir {
    /// What the last run of this agent held. What cannot be used is set aside: the CA will say it all again.
    pub fn node(&self, own: &TrustDomain, agent: &SpiffeId, now: SystemTime) -> Option<Restored> {
        let bytes = match self.read(FILE) {
            Ok(bytes) => bytes?,
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "the kept state of this node is not used");
                return None;
            }
        };
        match parse(&bytes, own, agent, now) {
            Ok(state) => Some(state),
            Err(reason) => {
                self.set_aside(FILE, &reason);
                None
            }
        }
    }

    /// Replaces it. It is on disk when this returns.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_node(&self, agent: &SpiffeId, view: &View) -> Result<(), StateError> {
        let bytes = form(agent, view).map_err(|cause| StateError::System {
            path: self.dir.join(FILE),
            cause: cause.into(),
        })?;
        self.replace(FILE, bytes)
    }
}

fn form(agent: &SpiffeId, view: &View) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
    let entries = view.roster().into_iter().flat_map(|roster| roster.iter());
    let bundles = view.bundles().iter().map(|bundle| {
        let roots = bundle.x509_authorities().iter();
        let roots = roots.filter(|root| root.is_tainted());
        let keys = bundle.jwt_authorities().iter();
        let keys = keys.filter(|key| key.is_tainted());
        Ok(KeptBundle {
            trust_domain: bundle.trust_domain().clone(),
            document: serde_json::from_slice(&bundle.to_spiffe_json())?,
            tainted_keys: roots
                .map(|root| root.subject_key_id().to_owned())
                .chain(keys.map(|key| key.key_id().to_owned()))
                .collect(),
        })
    });
    let svids = view.svids().map(|(_, held)| KeptSvid {
        entry: (*held.entry).clone(),
        chain: STANDARD.encode(held.svid.to_der_concat()),
        key: STANDARD.encode(held.key.expose()),
    });
    let kept = Kept {
        version: VERSION,
        agent: agent.clone(),
        entries: entries.map(|entry| (**entry).clone()).collect(),
        bundles: bundles.collect::<Result<_, serde_json::Error>>()?,
        svids: svids.collect(),
    };
    // Counted first: a buffer that grows would leave keys behind in freed memory.
    let mut length = Length(0);
    serde_json::to_writer(&mut length, &kept)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.0));
    serde_json::to_writer(&mut *bytes, &kept)?;
    Ok(bytes)
}

struct Length(usize);

impl std::io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn parse(
    bytes: &[u8],
    own: &TrustDomain,
    agent: &SpiffeId,
    now: SystemTime,
) -> Result<Restored, String> {
    let kept: Kept = serde_json::from_slice(bytes)
        .map_err(|error| format!("line {}: not our form", error.line()))?;
    if kept.version != VERSION {
        return Err(format!("its version is {}, not {VERSION}", kept.version));
    }
    if kept.agent != *agent {
        return Err(format!("it is for agent {}", kept.agent));
    }
    let bundles: BundleSet = kept
        .bundles
        .iter()
        .map(bundle)
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .collect();
    if bundles.get(own).is_none() {
        return Err(format!("it has no bundle of {own}"));
    }
    let (all, random) = (kept.svids.len(), Random::new());
    let svids: Vec<_> = kept
        .svids
        .iter()
        .filter_map(|svid| live(svid, &bundles, now, &random))
        .collect();
    tracing::info!(
        entries = kept.entries.len(),
        svids = svids.len(),
        dropped = all - svids.len(),
        "going on with what the last run held"
    );
    Ok(Restored {
        entries: kept.entries.into_iter().map(Arc::new).collect(),
        bundles,
        svids,
    })
}

fn bundle(kept: &KeptBundle) -> Result<Bundle, String> {
    let domain = kept.trust_domain.clone();
    let failed = |error: &dyn std::error::Error| format!("the bundle of {domain}: {error}");
    let json = serde_json::to_vec(&kept.document).map_err(|error| failed(&error))?;
    let plain = Bundle::from_spiffe_json(domain.clone(), &json).map_err(|error| failed(&error))?;
    let tainted = |key: &str| kept.tainted_keys.iter().any(|tainted| tainted == key);
    let roots = plain.x509_authorities().iter().cloned().map(|root| {
        let mark = tainted(root.subject_key_id());
        root.with_tainted(mark)
    });
    let keys = plain.jwt_authorities().iter().cloned().map(|key| {
        let mark = tainted(key.key_id());
        key.with_tainted(mark)
    });
    let marked = Bundle::new(domain.clone(), roots)
        .and_then(|marked| marked.with_jwt_authorities(keys))
        .map_err(|error| failed(&error))?
        .with_refresh_hint(plain.refresh_hint());
    Ok(match plain.declared_sequence() {
        Some(sequence) => marked.with_sequence(sequence),
        None => marked,
    })
}

/// The SVID, if a peer would accept it now and its key is the right one.
fn live(
    kept: &KeptSvid,
    bundles: &BundleSet,
    now: SystemTime,
    random: &Random,
) -> Option<HeldSvid> {
    let svid = X509Svid::from_der_concat(&STANDARD.decode(&kept.chain).ok()?).ok()?;
    let der = Zeroizing::new(STANDARD.decode(&kept.key).ok()?);
    let key = rcgen::KeyPair::try_from(der.as_slice()).ok()?;
    rotation::check_svid(&svid, &kept.entry.spiffe_id, &key, bundles, now).ok()?;
    Some(HeldSvid {
        entry: Arc::new(kept.entry.clone()),
        renew_at: rotation::renew_at(now, svid.not_after(), random),
        svid,
        key: SvidKey::from_pkcs8(der.to_vec()),
    })
}

/// Writes each new state until stopped, and the last one then. `agent` says whose entries they are.
pub async fn keep(
    state: StateDir,
    vault: Arc<Vault>,
    agent: impl Fn() -> SpiffeId + Send + 'static,
    clock: Clock,
    metrics: Metrics,
    stop: Stop,
) -> Result<(), std::convert::Infallible> {
    let quiet = Repetition::new("the kept state of this node");
    let (mut views, mut written, mut failures) = (vault.watch(), None::<Arc<View>>, 0);
    loop {
        let stopping = stop.is_cancelled();
        let view = Arc::clone(&views.borrow_and_update());
        let news = written
            .as_ref()
            .is_none_or(|written| !Arc::ptr_eq(written, &view));
        // What the CA has not said yet is no news, and would take the place of what the last run knew.
        if news && view.roster().is_some() {
            let started = clock.monotonic();
            let (dir, id, shown) = (state.clone(), agent(), Arc::clone(&view));
            let work = tokio::task::spawn_blocking(move || dir.keep_node(&id, &shown)).await;
            let mut pause = (started.elapsed() * PAUSE.1).max(PAUSE.0);
            let error: Option<Box<dyn std::error::Error + Send + Sync>> = match work {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(Box::new(error)),
                Err(error) => Some(Box::new(error)),
            };
            metrics.state_kept(error.is_none());
            match error {
                None => {
                    quiet.succeeded();
                    (written, failures) = (Some(view), 0);
                }
                Some(error) => {
                    quiet.failed(&*error);
                    pause = rotation::grown(RETRY, failures).max(pause);
                    failures += 1;
                }
            }
            if !stopping {
                stop.unless_stopped(clock.sleep(pause)).await;
                continue;
            }
        }
        // Whoever stops the agent may have withdrawn identities just before, so the end is looked at once more.
        if stopping {
            return Ok(());
        }
        tokio::select! {
            () = stop.cancelled() => {}
            // The sender lives in the vault, which this loop holds.
            Ok(()) = views.changed() => {}
        }
    }
}
