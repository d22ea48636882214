//! Decides what each process may hold now: entries, SVIDs with their keys, and bundles, published as one whole view.
//! Trusts what `upstream` has checked and `rotation` has verified. Never lets a key leave the node, never serves an expired SVID.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use mesh_identity::{
    Bundle, BundleSet, Entry, EntryId, Selector, TrustDomain, X509Svid, verify::verify_x509_svid,
};
use tokio::{sync::watch, time::Instant};
use zeroize::Zeroizing;

use crate::attestor::Wanted;

/// A workload's private key: PKCS#8 in DER, wiped when dropped, never printed.
pub struct SvidKey(Zeroizing<Vec<u8>>);

impl SvidKey {
    /// Takes PKCS#8 in DER.
    pub fn from_pkcs8(der: Vec<u8>) -> Self {
        Self(Zeroizing::new(der))
    }

    /// The bytes, for the one answer that carries them to their owner.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// A key as PEM, for programs and proxies that read nothing else.
pub(crate) fn key_pem(pkcs8: &[u8]) -> Zeroizing<Vec<u8>> {
    pem("PRIVATE KEY", pkcs8)
}

/// Anything as PEM, wiped as if it were a key.
pub(crate) fn pem(label: &str, der: &[u8]) -> Zeroizing<Vec<u8>> {
    let body = Zeroizing::new(STANDARD.encode(der));
    let mut pem = Zeroizing::new(Vec::with_capacity(
        body.len() + body.len() / 64 + 2 * label.len() + 64,
    ));
    pem.extend_from_slice(format!("-----BEGIN {label}-----\n").as_bytes());
    for line in body.as_bytes().chunks(64) {
        pem.extend_from_slice(line);
        pem.push(b'\n');
    }
    pem.extend_from_slice(format!("-----END {label}-----\n").as_bytes());
    pem
}

impl fmt::Debug for SvidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SvidKey")
    }
}

/// One SVID with its key, as it was checked when it came.
#[derive(Debug)]
pub struct HeldSvid {
    /// The entry it was made for, as it was then.
    pub entry: Arc<Entry>,
    /// The chain.
    pub svid: X509Svid,
    /// Its key, made on this node.
    pub key: SvidKey,
    /// When to replace it.
    pub renew_at: SystemTime,
}

impl HeldSvid {
    fn is_live(&self, now: SystemTime) -> bool {
        now < self.svid.not_after()
    }
}

/// The entries of this node, found by what a process must show.
#[derive(Debug, Default)]
pub struct Roster {
    by_id: BTreeMap<EntryId, Arc<Entry>>,
    /// Each entry stands under one of its selectors, the longest: nothing else has to be looked at for a process without it.
    index: HashMap<Selector, Vec<Arc<Entry>>>,
    wanted: Wanted,
}

impl Roster {
    /// Sorts the entries that are for processes; those that name nodes, or whose SVIDs go to a store, are left out.
    pub fn new(entries: impl IntoIterator<Item = Arc<Entry>>) -> Self {
        let mut roster = Self::default();
        for entry in entries {
            if entry.is_node_alias() || entry.store_svid {
                continue;
            }
            let Some(key) = entry
                .selectors
                .iter()
                .max_by_key(|selector| selector.as_str().len())
            else {
                continue;
            };
            entry.selectors.iter().for_each(|s| roster.wanted.add(s));
            roster
                .index
                .entry(key.clone())
                .or_default()
                .push(Arc::clone(&entry));
            roster.by_id.insert(entry.id.clone(), entry);
        }
        roster
    }

    /// All entries in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.by_id.values()
    }

    /// One entry.
    pub fn get(&self, id: &EntryId) -> Option<&Arc<Entry>> {
        self.by_id.get(id)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The entries whose selectors are all among the facts and that have not run out, in the order of their ids.
    pub fn matching(&self, facts: &BTreeSet<Selector>, now: SystemTime) -> Vec<&Arc<Entry>> {
        let mut found: Vec<_> = facts
            .iter()
            .filter_map(|fact| self.index.get(fact))
            .flatten()
            .filter(|entry| entry.matches(facts) && is_current(entry, now))
            .collect();
        found.sort_by(|a, b| a.id.cmp(&b.id));
        found
    }
}

/// Whether an entry has not run out.
pub fn is_current(entry: &Entry, now: SystemTime) -> bool {
    entry.expires_at.is_none_or(|end| now < end)
}

/// Everything at one moment. Published whole; readers keep the `Arc` as long as they like.
#[derive(Clone, Debug)]
pub struct View {
    own: TrustDomain,
    roster: Option<Arc<Roster>>,
    bundles: Arc<BundleSet>,
    svids: Arc<BTreeMap<EntryId, Arc<HeldSvid>>>,
    /// SVIDs that the bundle of today does not verify any more, or by a tainted authority: replaced as soon as possible, served until then.
    distrusted: Arc<BTreeSet<EntryId>>,
    since: Instant,
}

/// What a process gets at one moment.
#[derive(Clone, Debug, PartialEq)]
pub enum Standing<T> {
    /// The agent has not heard from the CA yet.
    NotSynced,
    /// No entry matches.
    NoIdentity,
    /// Entries match but none has a valid SVID at this moment.
    NothingReady {
        /// The entries that are waited for.
        entries: Vec<EntryId>,
    },
    /// The full state.
    Ready(T),
}

impl<T> Standing<T> {
    /// The same with another state.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Standing<U> {
        match self {
            Self::NotSynced => Standing::NotSynced,
            Self::NoIdentity => Standing::NoIdentity,
            Self::NothingReady { entries } => Standing::NothingReady { entries },
            Self::Ready(state) => Standing::Ready(change(state)),
        }
    }
}

/// The full state for one process.
#[derive(Clone, Debug)]
pub struct IdentitySet {
    /// In the order of the entries' ids.
    pub identities: Vec<Identity>,
    /// The own trust domain's bundle.
    pub bundle: Arc<Bundle>,
    /// The bundles of the foreign trust domains that the entries federate with.
    pub federated: BTreeMap<TrustDomain, Arc<Bundle>>,
    /// Matching entries that have no valid SVID yet.
    pub waiting: Vec<EntryId>,
}

/// One identity of a process.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The SVID and its key.
    pub held: Arc<HeldSvid>,
    /// Unique in the set, or empty.
    pub hint: String,
}

/// The bundles that a process may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleView {
    /// Own and foreign ones by trust domain.
    pub bundles: BTreeMap<TrustDomain, Arc<Bundle>>,
}

impl PartialEq for IdentitySet {
    /// Whether both would be the same message on the wire.
    fn eq(&self, other: &Self) -> bool {
        self.identities.len() == other.identities.len()
            && self.identities.iter().zip(&other.identities).all(|(a, b)| {
                a.hint == b.hint && (Arc::ptr_eq(&a.held, &b.held) || a.held.svid == b.held.svid)
            })
            && self.bundle == other.bundle
            && self.federated == other.federated
    }
}

impl View {
    /// The own trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.own
    }

    /// The entries, once the CA has said which they are.
    pub fn roster(&self) -> Option<&Arc<Roster>> {
        self.roster.as_ref()
    }

    /// Since when it is so.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// The bundles.
    pub fn bundles(&self) -> &Arc<BundleSet> {
        &self.bundles
    }

    /// The SVID of an entry, valid or not.
    pub fn held(&self, id: &EntryId) -> Option<&Arc<HeldSvid>> {
        self.svids.get(id)
    }

    /// Whether the bundle of today no longer verifies the SVID of an entry.
    pub fn is_distrusted(&self, id: &EntryId) -> bool {
        self.distrusted.contains(id)
    }

    /// All SVIDs.
    pub fn svids(&self) -> impl Iterator<Item = (&EntryId, &Arc<HeldSvid>)> {
        self.svids.iter()
    }

    /// Which expensive facts any entry asks for.
    pub fn wanted(&self) -> Wanted {
        self.roster
            .as_ref()
            .map(|roster| roster.wanted)
            .unwrap_or_default()
    }

    /// What a process with these facts gets.
    pub fn standing(&self, facts: &BTreeSet<Selector>, now: SystemTime) -> Standing<IdentitySet> {
        let (Some(roster), Some(bundle)) = (&self.roster, self.bundles.get(&self.own)) else {
            return Standing::NotSynced;
        };
        let matching = roster.matching(facts, now);
        if matching.is_empty() {
            return Standing::NoIdentity;
        }
        let hints = unique_hints(&matching);
        let (mut identities, mut waiting) = (Vec::new(), Vec::new());
        for entry in &matching {
            match self.svids.get(&entry.id).filter(|held| held.is_live(now)) {
                Some(held) => identities.push(Identity {
                    held: Arc::clone(held),
                    hint: if hints.contains(&entry.id) {
                        entry.hint.clone()
                    } else {
                        String::new()
                    },
                }),
                None => waiting.push(entry.id.clone()),
            }
        }
        if identities.is_empty() {
            return Standing::NothingReady { entries: waiting };
        }
        Standing::Ready(IdentitySet {
            identities,
            bundle: Arc::clone(bundle),
            federated: self.federated(&matching),
            waiting,
        })
    }

    /// The entries of a process with these facts, each with the hint that tells it from the others.
    pub fn entitled(
        &self,
        facts: &BTreeSet<Selector>,
        now: SystemTime,
    ) -> Standing<Vec<(Arc<Entry>, String)>> {
        let (Some(roster), Some(_)) = (&self.roster, self.bundles.get(&self.own)) else {
            return Standing::NotSynced;
        };
        let matching = roster.matching(facts, now);
        if matching.is_empty() {
            return Standing::NoIdentity;
        }
        let hints = unique_hints(&matching);
        let hinted = matching.into_iter().map(|entry| {
            let hint = match hints.contains(&entry.id) {
                true => entry.hint.clone(),
                false => String::new(),
            };
            (Arc::clone(entry), hint)
        });
        Standing::Ready(hinted.collect())
    }

    /// The bundles for a process with these facts.
    pub fn bundles_for(&self, facts: &BTreeSet<Selector>, now: SystemTime) -> Standing<BundleView> {
        let (Some(roster), Some(bundle)) = (&self.roster, self.bundles.get(&self.own)) else {
            return Standing::NotSynced;
        };
        let matching = roster.matching(facts, now);
        if matching.is_empty() {
            return Standing::NoIdentity;
        }
        let mut bundles = self.federated(&matching);
        bundles.insert(self.own.clone(), Arc::clone(bundle));
        Standing::Ready(BundleView { bundles })
    }

    fn federated(&self, matching: &[&Arc<Entry>]) -> BTreeMap<TrustDomain, Arc<Bundle>> {
        let domains = matching
            .iter()
            .flat_map(|entry| &entry.federates_with)
            .filter(|domain| **domain != self.own);
        domains
            .filter_map(|domain| Some((domain.clone(), Arc::clone(self.bundles.get(domain)?))))
            .collect()
    }
}

/// The entries that keep their hint: the oldest of those that carry the same one.
fn unique_hints(matching: &[&Arc<Entry>]) -> HashSet<EntryId> {
    let mut keepers: HashMap<&str, &Arc<Entry>> = HashMap::new();
    for entry in matching.iter().filter(|entry| !entry.hint.is_empty()) {
        keepers
            .entry(&entry.hint)
            .and_modify(|keeper| {
                if (entry.created_at, &entry.id) < (keeper.created_at, &keeper.id) {
                    *keeper = entry;
                }
            })
            .or_insert(entry);
    }
    keepers
        .into_values()
        .map(|entry| entry.id.clone())
        .collect()
}

/// The node's identities, shared by the feed, the rotation loop and the sockets.
#[derive(Debug)]
pub struct Vault {
    view: watch::Sender<Arc<View>>,
    pins: watch::Sender<HashMap<EntryId, usize>>,
    serial: Mutex<()>,
}

/// What the last run held, to begin with.
#[derive(Debug)]
pub struct Restored {
    /// The entries.
    pub entries: Vec<Arc<Entry>>,
    /// The bundles, the own one among them.
    pub bundles: BundleSet,
    /// Those SVIDs that a peer accepts at this moment.
    pub svids: Vec<HeldSvid>,
}

impl Vault {
    /// Empty, with the trust domain that the configuration names.
    pub fn new(own: TrustDomain) -> Self {
        let view = View {
            own,
            roster: None,
            bundles: Arc::default(),
            svids: Arc::default(),
            distrusted: Arc::default(),
            since: Instant::now(),
        };
        Self {
            view: watch::Sender::new(Arc::new(view)),
            pins: watch::Sender::default(),
            serial: Mutex::new(()),
        }
    }

    /// The state of this moment.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// The state of each moment; who is slow sees only the newest.
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }

    /// Which entries an open stream waits for or uses.
    pub fn watch_pins(&self) -> watch::Receiver<HashMap<EntryId, usize>> {
        self.pins.subscribe()
    }

    /// Keeps entries in demand as long as the value lives.
    pub fn pin(self: &Arc<Self>, entries: Vec<EntryId>) -> Pins {
        self.pins.send_modify(|pins| {
            for id in &entries {
                *pins.entry(id.clone()).or_default() += 1;
            }
        });
        Pins {
            vault: Arc::clone(self),
            entries,
        }
    }

    /// Replaces what the CA says. SVIDs whose entry is gone, or names another identity now, go with it.
    pub fn replace(&self, roster: Roster, bundles: BundleSet, now: SystemTime) {
        self.change(|view| {
            let (before, after) = (view.bundles.get(&view.own), bundles.get(&view.own));
            let same_authorities =
                before.map(|b| b.x509_authorities()) == after.map(|b| b.x509_authorities());
            let svids = view.svids.iter().filter(|(id, held)| {
                roster
                    .get(id)
                    .is_some_and(|entry| entry.spiffe_id == held.entry.spiffe_id)
            });
            view.svids = Arc::new(
                svids
                    .map(|(id, held)| (id.clone(), Arc::clone(held)))
                    .collect(),
            );
            if !same_authorities {
                view.distrusted = Arc::new(distrusted(&view.svids, &bundles, now));
            }
            view.bundles = Arc::new(bundles);
            view.roster = Some(Arc::new(roster));
        });
    }

    /// Begins with what the last run held, as long as the CA has said nothing.
    pub fn restore(&self, kept: Restored, now: SystemTime) {
        self.change(|view| {
            if view.roster.is_some() {
                return;
            }
            let roster = Roster::new(kept.entries);
            let svids = kept.svids.into_iter().filter(|held| {
                roster
                    .get(&held.entry.id)
                    .is_some_and(|entry| entry.spiffe_id == held.entry.spiffe_id)
            });
            let svids = svids.map(|held| (held.entry.id.clone(), Arc::new(held)));
            view.svids = Arc::new(svids.collect());
            view.distrusted = Arc::new(distrusted(&view.svids, &kept.bundles, now));
            view.bundles = Arc::new(kept.bundles);
            view.roster = Some(Arc::new(roster));
        });
    }

    /// Keeps new SVIDs. One whose entry went away meanwhile is dropped.
    pub fn keep(&self, fresh: Vec<HeldSvid>) {
        self.change(|view| {
            let (mut svids, mut distrusted) = ((*view.svids).clone(), (*view.distrusted).clone());
            for held in fresh {
                let entry = view
                    .roster
                    .as_ref()
                    .and_then(|roster| roster.get(&held.entry.id));
                if entry.is_some_and(|entry| entry.spiffe_id == held.entry.spiffe_id) {
                    distrusted.remove(&held.entry.id);
                    svids.insert(held.entry.id.clone(), Arc::new(held));
                }
            }
            view.distrusted = Arc::new(distrusted);
            view.svids = Arc::new(svids);
        });
    }

    /// Drops SVIDs.
    pub fn discard(&self, entries: &[EntryId]) {
        self.change(|view| {
            let mut svids = (*view.svids).clone();
            for id in entries {
                svids.remove(id);
            }
            view.svids = Arc::new(svids);
        });
    }

    /// Forgets everything: nobody gets an identity from this node any more.
    pub fn withdraw_all(&self) {
        self.change(|view| {
            view.roster = Some(Arc::default());
            view.svids = Arc::default();
            view.distrusted = Arc::default();
        });
    }

    /// Wakes whoever watches, because time itself changed what they may see.
    pub fn touch(&self) {
        self.view.send_modify(|_| {});
    }

    fn change(&self, change: impl FnOnce(&mut View)) {
        // One writer at a time, and the readers' lock is held only for the swap.
        let _writer = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        let mut view = (*self.view()).clone();
        change(&mut view);
        view.since = Instant::now();
        self.view.send_replace(Arc::new(view));
    }
}

/// Those that the bundles no longer verify, or by a tainted authority: these are served until their successors are there.
fn distrusted(
    svids: &BTreeMap<EntryId, Arc<HeldSvid>>,
    bundles: &BundleSet,
    now: SystemTime,
) -> BTreeSet<EntryId> {
    let broken = svids.iter().filter(|(_, held)| {
        verify_x509_svid(held.svid.chain(), bundles, now)
            .map_or(true, |proven| proven.authority_tainted)
    });
    broken.map(|(id, _)| id.clone()).collect()
}

/// Entries in demand; dropping it ends the demand.
#[derive(Debug)]
pub struct Pins {
    vault: Arc<Vault>,
    entries: Vec<EntryId>,
}

impl Pins {
    /// The entries.
    pub fn entries(&self) -> &[EntryId] {
        &self.entries
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        self.vault.pins.send_modify(|pins| {
            for id in &self.entries {
                if let Some(count) = pins.get_mut(id) {
                    *count -= 1;
                    if *count == 0 {
                        pins.remove(id);
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests;
