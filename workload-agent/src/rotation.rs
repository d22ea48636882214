//! Decides which SVIDs to renew, and when; then makes keys, has them signed and looks at what came back as a peer would.
//! Trusts the entries of the vault. Never lets one identity that fails hold up the others, never gives up a valid SVID for a bad one.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_identity::{
    BundleSet, Entry, EntryId, SpiffeId, X509Svid,
    verify::{VerifyError, verify_x509_svid},
};
use mesh_runtime::{clock::Clock, errors::ErrorChain, tasks::Stop, telemetry::Repetition};
use rcgen::{CertificateParams, KeyPair, SanType, string::Ia5String};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::watch;

use crate::{
    metrics::Metrics,
    vault::{HeldSvid, SvidKey, Vault, View},
};

/// SVIDs asked for in one call.
const BATCH: usize = 64;
/// How many SVIDs are made ahead; beyond them they are made when a stream asks.
const MOST_AHEAD: usize = 1000;
/// The shortest time between getting an SVID and renewing it: an SVID that lives hardly at all must not become a busy loop.
const SHORTEST_REST: Duration = Duration::from_millis(500);
/// Pauses after failures grow from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// More than any pause after a failure is: whoever would wait so long has seen the clock go back.
const NO_PAUSE_IS_LONGER: Duration = Duration::from_secs(2 * 60);
/// A clock that was set is noticed within this time.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// How far the clock of the CA may be ahead of ours before its SVIDs look as if they were of the future.
const AHEAD: Duration = Duration::from_secs(60);
/// The same when the CA itself does not answer.
const RETRY_CALL: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// A key that waits for its certificate.
#[derive(Debug)]
pub struct Ask {
    /// For which entry.
    pub entry: EntryId,
    /// The certificate request in DER.
    pub csr: Vec<u8>,
}

/// What the CA said about one [`Ask`].
pub type Answer = Result<X509Svid, SvidFault>;

/// The CA refused one identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the CA refused it: {message} ({code})")]
pub struct Refusal {
    /// The gRPC code.
    pub code: i32,
    /// Its words.
    pub message: String,
}

/// A whole call failed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// Nobody answered, or not now: the same call may work later.
    #[error("the CA cannot be reached")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The call as a whole was refused: one of its parts may be the reason.
    #[error("the CA refused the whole call")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Whoever signs.
pub trait Sign: Send + Sync {
    /// One answer per ask, in their order.
    fn sign(&self, asks: Vec<Ask>) -> impl Future<Output = Result<Vec<Answer>, SignError>> + Send;
}

/// Why an SVID that came back is not used.
#[derive(Debug, thiserror::Error)]
pub enum SvidFault {
    /// No key could be made.
    #[error("no key could be made")]
    Key(#[source] rcgen::Error),
    /// The identity does not fit a certificate request.
    #[error("no certificate request could be made")]
    Request(#[source] rcgen::Error),
    /// The CA said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The answer is no X509-SVID.
    #[error("the CA's answer is no X509-SVID")]
    Shape(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It names somebody else.
    #[error("the CA's answer is for {got}, not for {wanted}")]
    OtherId {
        /// What was asked for.
        wanted: SpiffeId,
        /// What came.
        got: SpiffeId,
    },
    /// It is for another key.
    #[error("the CA's answer is for another key")]
    OtherKey,
    /// A peer would refuse it.
    #[error("a peer would refuse the CA's answer")]
    Unverified(#[source] VerifyError),
}

/// What to do next.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Entries that want a new SVID now, the most urgent first.
    pub renew: Vec<EntryId>,
    /// Entries whose SVID has expired.
    pub discard: Vec<EntryId>,
    /// When to look again, if nothing happens before.
    pub wake_at: Option<SystemTime>,
    /// An entry ran out since the last look: what processes may see has changed.
    pub lapsed: bool,
}

impl Plan {
    /// What has run out goes, whether or not there is anything in its place.
    fn withdraw(&self, vault: &Vault) {
        if !self.discard.is_empty() {
            tracing::warn!(
                count = self.discard.len(),
                "SVIDs have expired and are no longer served"
            );
            vault.discard(&self.discard);
        }
        if self.lapsed {
            vault.touch();
        }
    }
}

/// Failures of single identities, and when to try each again.
#[derive(Debug, Default)]
pub struct Failures {
    by_entry: HashMap<EntryId, Failure>,
}

#[derive(Debug)]
struct Failure {
    entry: Arc<Entry>,
    count: u32,
    retry_at: SystemTime,
}

impl Failures {
    fn retry_at(&self, entry: &Arc<Entry>, now: SystemTime) -> Option<SystemTime> {
        let failure = self.by_entry.get(&entry.id)?;
        // A changed entry is a new question, and after a clock that went back the pause has no meaning any more.
        let counts =
            failure.entry.revision == entry.revision && failure.retry_at < now + NO_PAUSE_IS_LONGER;
        counts.then_some(failure.retry_at)
    }

    fn failed(&mut self, entry: &Arc<Entry>, now: SystemTime, random: &Random) {
        let count = match self.by_entry.get(&entry.id) {
            Some(failure) if failure.entry.revision == entry.revision => failure.count,
            _ => 0,
        };
        let pause = random.around(grown(RETRY, count), 0.25);
        self.by_entry.insert(
            entry.id.clone(),
            Failure {
                entry: Arc::clone(entry),
                count: count + 1,
                retry_at: now + pause,
            },
        );
    }
}

/// What to renew, drop and wait for. No clock, no I/O: tests pass `now`. `last_look` is the `now` of the call before.
pub fn plan(
    view: &View,
    pinned: &HashMap<EntryId, usize>,
    failures: &Failures,
    last_look: SystemTime,
    now: SystemTime,
) -> Plan {
    let mut plan = Plan::default();
    let mut wake = |at: SystemTime| {
        if plan.wake_at.is_none_or(|earlier| at < earlier) {
            plan.wake_at = Some(at);
        }
    };
    for (id, held) in view.svids() {
        if held.svid.not_after() <= now {
            plan.discard.push(id.clone());
        } else {
            wake(held.svid.not_after());
        }
    }
    let mut due: Vec<(Urgency, EntryId)> = Vec::new();
    let mut ahead = 0;
    for entry in view.roster().iter().flat_map(|roster| roster.iter()) {
        if let Some(end) = entry.expires_at {
            if end <= now {
                plan.lapsed |= end > last_look;
                continue;
            }
            wake(end);
        }
        let in_demand = pinned.contains_key(&entry.id);
        if !in_demand {
            if entry.disable_x509_svid_prefetch || ahead == MOST_AHEAD {
                continue;
            }
            ahead += 1;
        }
        let held = view
            .held(&entry.id)
            .filter(|held| held.svid.not_after() > now);
        let renew_at = match held {
            None => now,
            Some(held)
                if !made_the_same(&held.entry, entry)
                    || view.is_distrusted(&entry.id)
                    // The clock went back: that of the CA decides whether there is a better one.
                    || held.svid.not_before() > now + AHEAD =>
            {
                now
            }
            Some(held) => held.renew_at,
        };
        let at = failures
            .retry_at(entry, now)
            .map_or(renew_at, |retry| retry.max(renew_at));
        if at > now {
            wake(at);
        } else {
            let expires = held.map(|held| held.svid.not_after());
            due.push((
                Urgency {
                    waited_for: Reverse(in_demand && held.is_none()),
                    expires,
                },
                entry.id.clone(),
            ));
        }
    }
    due.sort();
    plan.renew = due.into_iter().map(|(_, id)| id).collect();
    plan
}

/// Streams that wait come first, then identities without SVID, then those that expire first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Urgency {
    waited_for: Reverse<bool>,
    expires: Option<SystemTime>,
}

/// Whether a certificate made for one would also be made for the other.
fn made_the_same(old: &Entry, new: &Entry) -> bool {
    old.spiffe_id == new.spiffe_id
        && old.x509_svid_ttl == new.x509_svid_ttl
        && old.dns_names == new.dns_names
}

/// Runs until stopped. `reconnected` changes when the CA can be asked again.
pub async fn run<S: Sign>(
    vault: Arc<Vault>,
    signer: Arc<S>,
    mut reconnected: watch::Receiver<u64>,
    clock: Clock,
    metrics: Metrics,
    stop: Stop,
) -> Result<(), std::convert::Infallible> {
    let (mut views, mut pins) = (vault.watch(), vault.watch_pins());
    let mut renewal = Renewal {
        signer,
        clock: clock.clone(),
        metrics,
        failures: Failures::default(),
        random: Random::new(),
    };
    let quiet = Repetition::new("svid rotation");
    // A rest is counted by the monotonic clock: it does not grow when the wall clock goes back.
    let (mut failed_calls, mut rest_until, mut last_look) = (0, None, clock.now());
    loop {
        let now = clock.now();
        let view = Arc::clone(&views.borrow_and_update());
        let plan = plan(
            &view,
            &pins.borrow_and_update(),
            &renewal.failures,
            last_look,
            now,
        );
        last_look = now;
        plan.withdraw(&vault);
        let resting = rest_until.filter(|until| clock.monotonic() < *until);
        if !plan.renew.is_empty() && resting.is_none() {
            let entries: Vec<_> = plan
                .renew
                .iter()
                .take(BATCH)
                .filter_map(|id| view.roster()?.get(id).map(Arc::clone))
                .collect();
            let Some(outcome) = stop.unless_stopped(renewal.renew(&vault, entries)).await else {
                return Ok(());
            };
            match outcome {
                Ok(()) => {
                    quiet.succeeded();
                    (failed_calls, rest_until) = (0, None);
                }
                Err(error) => {
                    quiet.failed(&error);
                    let pause = renewal.random.around(grown(RETRY_CALL, failed_calls), 0.25);
                    failed_calls += 1;
                    rest_until = Some(clock.monotonic() + pause);
                }
            }
            continue;
        }
        let rest = resting.filter(|_| !plan.renew.is_empty());
        let nap = rest.map_or(LOOK_AGAIN, |until| {
            until.duration_since(clock.monotonic()).min(LOOK_AGAIN)
        });
        let timer = async {
            match plan.wake_at {
                Some(at) => clock.sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = timer => {}
            () = clock.sleep(nap) => {}
            // The senders live in the vault and in upstream, which outlive this loop; should one end, time still wakes us.
            Ok(()) = views.changed() => {}
            Ok(()) = pins.changed() => {}
            Ok(()) = reconnected.changed() => (failed_calls, rest_until) = (0, None),
        }
    }
}

/// Withdraws what runs out, for as long as there is nobody who could renew it.
pub async fn withdraw_expired(vault: &Vault, clock: &Clock) -> std::convert::Infallible {
    let (mut views, mut last_look) = (vault.watch(), clock.now());
    loop {
        let (view, now) = (Arc::clone(&views.borrow_and_update()), clock.now());
        let plan = plan(&view, &HashMap::new(), &Failures::default(), last_look, now);
        last_look = now;
        plan.withdraw(vault);
        let timer = async {
            match plan.wake_at {
                Some(at) => clock.sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = timer => {}
            Ok(()) = views.changed() => {}
        }
    }
}

struct Renewal<S> {
    signer: Arc<S>,
    clock: Clock,
    metrics: Metrics,
    failures: Failures,
    random: Random,
}

impl<S: Sign> Renewal<S> {
    /// One batch. An error means that the CA did not answer; what single identities lack is in `failures`.
    async fn renew(
        &mut self,
        vault: &Arc<Vault>,
        entries: Vec<Arc<Entry>>,
    ) -> Result<(), SignError> {
        // Batches that the CA refuses as a whole are halved, so that the one bad part ends up alone.
        let mut batches = vec![entries];
        while let Some(batch) = batches.pop() {
            let (mut keys, mut asks) = (BTreeMap::new(), Vec::new());
            for entry in &batch {
                match make_key(Some(&entry.spiffe_id)) {
                    Ok((key, csr)) => {
                        keys.insert(entry.id.clone(), (Arc::clone(entry), key));
                        asks.push(Ask {
                            entry: entry.id.clone(),
                            csr,
                        });
                    }
                    Err(fault) => self.failed(entry, &fault),
                }
            }
            if asks.is_empty() {
                continue;
            }
            let order: Vec<_> = asks.iter().map(|ask| ask.entry.clone()).collect();
            let answers = match self.signer.sign(asks).await {
                Ok(answers) => answers,
                Err(SignError::Refused(_)) if batch.len() > 1 => {
                    let mut first = batch;
                    let second = first.split_off(first.len() / 2);
                    batches.extend([second, first]);
                    continue;
                }
                Err(SignError::Refused(cause)) => {
                    for (entry, _) in keys.values() {
                        let message = ErrorChain(&*cause).to_string();
                        self.failed(entry, &SvidFault::Refused(Refusal { code: 0, message }));
                    }
                    continue;
                }
                Err(unavailable) => return Err(unavailable),
            };
            let (bundles, now) = (Arc::clone(vault.view().bundles()), self.clock.now());
            let mut fresh = Vec::new();
            for (id, answer) in order.iter().zip(answers) {
                let Some((entry, key)) = keys.remove(id) else {
                    continue;
                };
                match self.accept(&entry, key, answer, &bundles, now) {
                    Ok(held) => {
                        self.failures.by_entry.remove(id);
                        self.metrics.rotated(true);
                        tracing::debug!(entry = %id, id = %entry.spiffe_id, serial = held.svid.serial(), "SVID renewed");
                        fresh.push(held);
                    }
                    Err(fault) => self.failed(&entry, &fault),
                }
            }
            // The CA answered for fewer than were asked.
            for (entry, _) in keys.into_values() {
                self.failed(
                    &entry,
                    &SvidFault::Refused(Refusal {
                        code: 0,
                        message: "no answer for it".into(),
                    }),
                );
            }
            vault.keep(fresh);
        }
        Ok(())
    }

    fn accept(
        &self,
        entry: &Arc<Entry>,
        key: KeyPair,
        answer: Answer,
        bundles: &BundleSet,
        now: SystemTime,
    ) -> Result<HeldSvid, SvidFault> {
        let svid = answer?;
        check_svid(&svid, &entry.spiffe_id, &key, bundles, now)?;
        Ok(HeldSvid {
            entry: Arc::clone(entry),
            renew_at: renew_at(now, svid.not_after(), &self.random),
            svid,
            key: SvidKey::from_pkcs8(key.serialize_der()),
        })
    }

    fn failed(&mut self, entry: &Arc<Entry>, fault: &SvidFault) {
        self.metrics.rotated(false);
        self.failures.failed(entry, self.clock.now(), &self.random);
        tracing::warn!(entry = %entry.id, id = %entry.spiffe_id, error = %ErrorChain(fault), "SVID not renewed; the one it has stays in use until it expires");
    }
}

/// A new P-256 key and a certificate request that proves we hold it. The CA takes names from its own registration; one in
/// the request is for its readers only.
pub fn make_key(id: Option<&SpiffeId>) -> Result<(KeyPair, Vec<u8>), SvidFault> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(SvidFault::Key)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(id) = id {
        let uri = Ia5String::try_from(id.as_str()).map_err(SvidFault::Request)?;
        params.subject_alt_names.push(SanType::URI(uri));
    }
    let csr = params.serialize_request(&key).map_err(SvidFault::Request)?;
    Ok((key, csr.der().to_vec()))
}

/// Looks at an SVID as a peer would, and as its owner: it is for this identity and for this key.
pub fn check_svid(
    svid: &X509Svid,
    id: &SpiffeId,
    key: &KeyPair,
    bundles: &BundleSet,
    now: SystemTime,
) -> Result<(), SvidFault> {
    if svid.id() != id {
        return Err(SvidFault::OtherId {
            wanted: id.clone(),
            got: svid.id().clone(),
        });
    }
    if svid.spki() != rcgen::PublicKeyData::subject_public_key_info(key) {
        return Err(SvidFault::OtherKey);
    }
    verify_x509_svid(svid.chain(), bundles, now).map_err(SvidFault::Unverified)?;
    Ok(())
}

/// Half of what is left, a tenth more or less so that a fleet that started together does not come back together.
pub fn renew_at(now: SystemTime, not_after: SystemTime, random: &Random) -> SystemTime {
    let half = not_after.duration_since(now).unwrap_or_default() / 2;
    now + random.around(half, 0.1).max(SHORTEST_REST)
}

/// The pause after so many failures.
pub fn grown((first, longest): (Duration, Duration), failures: u32) -> Duration {
    first.saturating_mul(1 << failures.min(16)).min(longest)
}

/// Randomness for spreading load; nothing secret comes from it.
#[derive(Debug)]
pub struct Random(SystemRandom);

impl Default for Random {
    fn default() -> Self {
        Self::new()
    }
}

impl Random {
    /// From the system.
    pub fn new() -> Self {
        Self(SystemRandom::new())
    }

    /// `centre`, up to `part` of it more or less.
    pub fn around(&self, centre: Duration, part: f64) -> Duration {
        let mut bytes = [0; 4];
        // Without randomness the centre is as good.
        let unit = self.0.fill(&mut bytes).map_or(0.5, |()| {
            f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
        });
        centre.mul_f64(1.0 - part + 2.0 * part * unit)
    }
}

#[cfg(test)]
mod tests;
