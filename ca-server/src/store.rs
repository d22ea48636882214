//! What this server remembers: one small trait per aggregate, so that a part asks only for those it uses.
//! Trusts its callers' values, which are parsed types; knows no rule about who may do what.
//! Never acknowledges a change that a crash or a power cut could take back.

mod backup;
mod codec;
#[cfg(test)]
mod conformance;
mod engine;
mod error;
mod memory;
mod model;
mod records;
mod sled;
mod view;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use mesh_identity::{
    Bundle, BundleError, Entry, EntryId, JwtAuthority, Selector, SpiffeId, TrustDomain,
    X509Authority,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use self::backup::{Backup, BackupError, BackupFacts};
pub use self::error::StoreError;
use self::sled as embedded;
pub use embedded::SledSettings;

/// What every call answers. A call that changes something answers only when the change is durable.
pub type StoreFuture<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// All aggregates of one store. Cheap to clone; hand each part only the fields it needs.
#[derive(Clone)]
pub struct Stores {
    /// Registration entries.
    pub entries: Arc<dyn Entries>,
    /// Attested agents.
    pub nodes: Arc<dyn Nodes>,
    /// Join tokens and used `jti`s.
    pub tokens: Arc<dyn Tokens>,
    /// Our own bundle and those of other trust domains.
    pub bundles: Arc<dyn Bundles>,
    /// From where those are fetched.
    pub relationships: Arc<dyn Relationships>,
    /// The authority's journal.
    pub journal: Arc<dyn Journal>,
    /// Every certificate, before it is handed out.
    pub issued: Arc<dyn Issued>,
    /// What changed since a revision.
    pub changes: Arc<dyn Changes>,
    /// Everything at once, for backups.
    pub snapshots: Arc<dyn Snapshots>,
}

impl Stores {
    /// A store that forgets when the process ends. For tests.
    pub fn memory(trust_domain: &TrustDomain) -> Self {
        Self::of(memory::open(trust_domain))
    }

    /// Opens (or makes) the embedded store in `directory`, waiting for a killed predecessor's lock.
    pub async fn open_sled(
        directory: &Path,
        trust_domain: &TrustDomain,
        settings: SledSettings,
    ) -> Result<Self, StoreError> {
        Ok(Self::of(
            embedded::open(directory, trust_domain, settings).await?,
        ))
    }

    fn of<E: engine::Engine>(store: Arc<model::Store<E>>) -> Self {
        Self {
            entries: store.clone(),
            nodes: store.clone(),
            tokens: store.clone(),
            bundles: store.clone(),
            relationships: store.clone(),
            journal: store.clone(),
            issued: store.clone(),
            changes: store.clone(),
            snapshots: store,
        }
    }
}

/// The registration entries. Each change takes one number from the global revision counter.
pub trait Entries: Send + Sync {
    /// Adds an entry; `entry.revision` is replaced by the new number.
    fn create(&self, entry: Entry) -> StoreFuture<'_, CreatedEntry>;
    /// One entry.
    fn get(&self, id: &EntryId) -> StoreFuture<'_, Option<Arc<Entry>>>;
    /// All entries, in the order of their ids.
    fn list(&self) -> StoreFuture<'_, Vec<Arc<Entry>>>;
    /// The entries whose ids come after a text, or the first, in the order of their ids: no more than `most`.
    fn after(&self, id: Option<&str>, most: usize) -> StoreFuture<'_, Vec<Arc<Entry>>>;
    /// Replaces an entry if it still has `entry.revision`: read, change, and try again on [`UpdatedEntry::Changed`].
    fn update(&self, entry: Entry) -> StoreFuture<'_, UpdatedEntry>;
    /// Removes an entry and leaves a tombstone; the removed entry is returned.
    fn delete(&self, id: &EntryId) -> StoreFuture<'_, Option<Arc<Entry>>>;
    /// Removes entries whose `expires_at` has come.
    fn delete_expired(&self, now: SystemTime) -> StoreFuture<'_, Vec<Arc<Entry>>>;
}

/// The outcome of [`Entries::create`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreatedEntry {
    /// Stored.
    New(Arc<Entry>),
    /// An entry with the same (parent, SPIFFE ID, selectors) is there already: this one.
    AlreadyExists(Arc<Entry>),
    /// Another entry has this id.
    IdTaken(Arc<Entry>),
}

/// The outcome of [`Entries::update`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpdatedEntry {
    /// Stored; this is the new state.
    Done(Arc<Entry>),
    /// There is no such entry.
    NotFound,
    /// Someone else changed it since it was read: this is its present state.
    Changed(Arc<Entry>),
    /// The change would make it equal to this other entry in (parent, SPIFFE ID, selectors).
    AlreadyExists(Arc<Entry>),
}

/// An attested agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The agent's SPIFFE ID.
    pub id: SpiffeId,
    /// `join_token`, `k8s_psat`.
    pub attestation_type: String,
    /// What attestation found out.
    pub selectors: BTreeSet<Selector>,
    /// Serial (hex) of the certificate in use; empty once banned.
    pub serial: String,
    /// When that certificate ends.
    pub expires_at: SystemTime,
    /// Serial and end of a renewed certificate that was not used yet.
    pub renewed: Option<RenewedSerial>,
    /// Whether the agent may attest again with the same evidence.
    pub can_reattest: bool,
    /// Banned agents cannot return.
    pub banned: bool,
    /// What the cluster said, for agents attested by Kubernetes.
    pub kubernetes: Option<KubernetesFacts>,
    /// What the agent calls its version; untrusted.
    pub agent_version: String,
    /// When it attested last.
    pub attested_at: SystemTime,
    /// The number of its last change of selectors or ban; set by the store.
    pub revision: u64,
}

/// A certificate that was issued by renewal and becomes current when it is first used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewedSerial {
    /// Serial, hex.
    pub serial: String,
    /// When that certificate ends.
    pub expires_at: SystemTime,
}

/// What the cluster said about an agent's pod and node when it attested.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KubernetesFacts {
    /// Our name for the cluster.
    pub cluster: String,
    /// Namespace of the agent's pod.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// Name of the pod.
    pub pod_name: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Name of the node.
    pub node_name: String,
    /// UID of the node.
    pub node_uid: String,
}

/// The attested agents.
pub trait Nodes: Send + Sync {
    /// Stores an agent that has just proved itself, replacing its former record; a ban wins.
    fn attest(&self, node: Node) -> StoreFuture<'_, Attested>;
    /// One agent.
    fn get(&self, id: &SpiffeId) -> StoreFuture<'_, Option<Arc<Node>>>;
    /// All agents, in the order of their ids.
    fn list(&self) -> StoreFuture<'_, Vec<Arc<Node>>>;
    /// Notes a renewed certificate, if the agent is not banned and `presented` is its current or renewed serial.
    fn renew(
        &self,
        id: &SpiffeId,
        presented: &str,
        renewed: RenewedSerial,
    ) -> StoreFuture<'_, Option<Arc<Node>>>;
    /// Makes the renewed serial the current one, if it is `serial`; `None` if it is neither of the two.
    fn promote(&self, id: &SpiffeId, serial: &str) -> StoreFuture<'_, Option<Arc<Node>>>;
    /// Bans (its serials are emptied) or lifts the ban.
    fn set_banned(&self, id: &SpiffeId, banned: bool) -> StoreFuture<'_, Option<Arc<Node>>>;
    /// Notes the version that the agent tells.
    fn set_agent_version(&self, id: &SpiffeId, version: &str)
    -> StoreFuture<'_, Option<Arc<Node>>>;
    /// Evicts: the record goes, the agent may attest again. The removed record is returned.
    fn delete(&self, id: &SpiffeId) -> StoreFuture<'_, Option<Arc<Node>>>;
}

/// The outcome of [`Nodes::attest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attested {
    /// Stored. `previous` is the record that it replaced.
    Stored {
        /// The new record.
        node: Arc<Node>,
        /// The one before.
        previous: Option<Arc<Node>>,
    },
    /// The agent is banned: nothing was stored.
    Banned(Arc<Node>),
}

/// A join token as it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewToken {
    /// SHA-256 of the token's text ([`token_hash`]); the text itself is never stored.
    pub hash: [u8; 32],
    /// When it is void.
    pub expires_at: SystemTime,
    /// A name that the agent shall have besides its own.
    pub agent_id: Option<SpiffeId>,
}

/// The hash under which a token is stored.
pub fn token_hash(token: &str) -> [u8; 32] {
    codec::sha256(&[token.as_bytes()])
}

/// Things that may be used once.
pub trait Tokens: Send + Sync {
    /// Stores a join token; `false` if this token exists already.
    fn create(&self, token: NewToken) -> StoreFuture<'_, bool>;
    /// Uses a join token up. Of any number of concurrent calls exactly one is answered with [`Spent::Good`].
    fn spend(&self, hash: [u8; 32], now: SystemTime) -> StoreFuture<'_, Spent>;
    /// Notes that a service-account token (`jti`) was used with a key.
    fn spend_jti(&self, use_: JtiUse) -> StoreFuture<'_, SpentJti>;
    /// Ties a used `jti` to another key, if it is still tied to `from`; `false` otherwise.
    fn rebind_jti(&self, jti: &str, from: [u8; 32], to: JtiUse) -> StoreFuture<'_, bool>;
    /// Forgets tokens and `jti`s that ended before `now`; answers how many.
    fn prune(&self, now: SystemTime) -> StoreFuture<'_, u64>;
}

/// The outcome of [`Tokens::spend`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spent {
    /// It was good and is now used.
    Good {
        /// The alias it was made with.
        agent_id: Option<SpiffeId>,
    },
    /// No such token.
    Unknown,
    /// Used before.
    Used,
    /// Void by time.
    Expired,
}

/// One use of a service-account token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JtiUse {
    /// The token's id.
    pub jti: String,
    /// SHA-256 of the public key (SPKI DER) in the CSR that came with it.
    pub spki_hash: [u8; 32],
    /// Keep the record until then (the token's `exp` and some skew).
    pub expires_at: SystemTime,
    /// Who used it: the agent id and where it came from, as the caller likes to compare it.
    pub holder: String,
}

/// The outcome of [`Tokens::spend_jti`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpentJti {
    /// Never seen before; now noted.
    First,
    /// Seen with the same key: an idempotent retry.
    SameKeyAgain(JtiUse),
    /// Seen with another key: this one.
    OtherKey(JtiUse),
}

/// A stored bundle: data only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBundle {
    /// Whose.
    pub trust_domain: TrustDomain,
    /// Its X.509 authorities.
    pub x509_authorities: Vec<StoredRoot>,
    /// Its JWT authorities.
    pub jwt_authorities: Vec<StoredJwtKey>,
    /// Its sequence number.
    pub sequence: u64,
    /// How often it should be asked for.
    pub refresh_hint: Option<Duration>,
    /// The number of its last change in this store; set by the store.
    pub revision: u64,
}

/// An X.509 authority of a stored bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredRoot {
    /// Its certificate in DER.
    pub der: Vec<u8>,
    /// Whether all that it signed is to be replaced.
    pub tainted: bool,
}

impl From<Vec<u8>> for StoredRoot {
    fn from(der: Vec<u8>) -> Self {
        Self {
            der,
            tainted: false,
        }
    }
}

/// A JWT authority of a stored bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredJwtKey {
    /// What `kid` says.
    pub key_id: String,
    /// Its public key as a SubjectPublicKeyInfo in DER.
    pub public_key: Vec<u8>,
    /// When it ends; a bundle document of another trust domain does not say so.
    pub expires_at: Option<SystemTime>,
    /// Whether all that it signed is to be replaced.
    pub tainted: bool,
}

impl StoredBundle {
    /// The bundle as a verifier takes it.
    pub fn to_bundle(&self) -> Result<Bundle, BundleError> {
        let roots = self.x509_authorities.iter().map(|root| {
            X509Authority::parse(root.der.clone()).map(|read| read.with_tainted(root.tainted))
        });
        let keys = self.jwt_authorities.iter().enumerate();
        let keys = keys.map(|(position, key)| {
            JwtAuthority::from_spki(&key.key_id, &key.public_key)
                .map(|read| read.with_expiry(key.expires_at).with_tainted(key.tainted))
                .map_err(|source| BundleError::JwtKey { position, source })
        });
        let bundle = Bundle::new(
            self.trust_domain.clone(),
            roots.collect::<Result<Vec<_>, _>>()?,
        )?
        .with_jwt_authorities(keys.collect::<Result<Vec<_>, _>>()?)?;
        Ok(bundle
            .with_sequence(self.sequence)
            .with_refresh_hint(self.refresh_hint))
    }
}

impl From<&Bundle> for StoredBundle {
    fn from(bundle: &Bundle) -> Self {
        let roots = bundle.x509_authorities().iter().map(|root| StoredRoot {
            der: root.der().to_vec(),
            tainted: root.is_tainted(),
        });
        let keys = bundle.jwt_authorities().iter().map(|key| StoredJwtKey {
            key_id: key.key_id().to_owned(),
            public_key: key.to_spki(),
            expires_at: key.expires_at(),
            tainted: key.is_tainted(),
        });
        Self {
            trust_domain: bundle.trust_domain().clone(),
            x509_authorities: roots.collect(),
            jwt_authorities: keys.collect(),
            sequence: bundle.sequence(),
            refresh_hint: bundle.refresh_hint(),
            revision: 0,
        }
    }
}

/// Our own bundle, written by the authority through [`Journal::write`], and those of other trust domains.
pub trait Bundles: Send + Sync {
    /// Our own; `None` before the first authority is made.
    fn own(&self) -> StoreFuture<'_, Option<Arc<StoredBundle>>>;
    /// One of another trust domain.
    fn get(&self, trust_domain: &TrustDomain) -> StoreFuture<'_, Option<Arc<StoredBundle>>>;
    /// All of other trust domains, in order.
    fn list(&self) -> StoreFuture<'_, Vec<Arc<StoredBundle>>>;
    /// Stores one of another trust domain; takes a new revision only if something differs.
    fn put(&self, bundle: StoredBundle) -> StoreFuture<'_, Arc<StoredBundle>>;
    /// Stores one of another trust domain if what is there has this revision; `None`: if nothing is there.
    fn replace(&self, bundle: StoredBundle, expected: Option<u64>) -> StoreFuture<'_, Replaced>;
    /// Removes one, and does with the entries that federate with its trust domain what `users` says, in one step.
    fn delete(&self, trust_domain: &TrustDomain, users: Users) -> StoreFuture<'_, DeletedBundle>;
}

/// The outcome of [`Bundles::replace`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// Stored; this is the new state.
    Done(Arc<StoredBundle>),
    /// Something else is there: this.
    Other(Option<Arc<StoredBundle>>),
}

/// What becomes of the entries that federate with a trust domain whose bundle is removed. SPIRE's three modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Users {
    /// While there are any, the bundle stays.
    Restrict,
    /// They are removed too.
    Delete,
    /// They federate with it no more.
    Dissociate,
}

/// The outcome of [`Bundles::delete`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeletedBundle {
    /// It is gone.
    Done {
        /// What it was.
        bundle: Arc<StoredBundle>,
        /// The entries that were removed or changed, as they were before.
        users: Vec<Arc<Entry>>,
    },
    /// There is none.
    NotFound,
    /// So many entries federate with the trust domain; nothing was removed.
    InUse(usize),
}

/// From where the bundle of another trust domain is fetched: data only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relationship {
    /// Whose bundle.
    pub trust_domain: TrustDomain,
    /// Where.
    pub bundle_endpoint_url: String,
    /// By what the endpoint is known.
    pub profile: EndpointProfile,
    /// The number of its last change; set by the store.
    pub revision: u64,
}

/// By what a bundle endpoint is known (SPIFFE Federation 5.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointProfile {
    /// By its name and the public Web PKI.
    HttpsWeb,
    /// By its SPIFFE ID.
    HttpsSpiffe {
        /// Who must answer.
        endpoint_id: SpiffeId,
    },
}

/// The relationships with other trust domains.
pub trait Relationships: Send + Sync {
    /// One.
    fn get(&self, trust_domain: &TrustDomain) -> StoreFuture<'_, Option<Arc<Relationship>>>;
    /// All, in the order of their trust domains.
    fn list(&self) -> StoreFuture<'_, Vec<Arc<Relationship>>>;
    /// Stores one if what is there has the revision `expected` (`None`: if nothing is there), together with a bundle of
    /// its trust domain where one is given.
    fn replace(
        &self,
        relationship: Relationship,
        expected: Option<u64>,
        bundle: Option<StoredBundle>,
    ) -> StoreFuture<'_, ReplacedRelationship>;
    /// Removes one; it is returned. The bundle stays.
    fn delete(&self, trust_domain: &TrustDomain) -> StoreFuture<'_, Option<Arc<Relationship>>>;
}

/// The outcome of [`Relationships::replace`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplacedRelationship {
    /// Stored; this is the new state.
    Done(Arc<Relationship>),
    /// Something else is there: this.
    Other(Option<Arc<Relationship>>),
}

/// What the own bundle shall hold; the store gives it its sequence number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleContent {
    /// The X.509 authorities.
    pub x509_authorities: Vec<StoredRoot>,
    /// The JWT authorities.
    pub jwt_authorities: Vec<StoredJwtKey>,
    /// How often it should be asked for.
    pub refresh_hint: Duration,
}

/// The authority's memory. Only `authority` reads and writes it.
pub trait Journal: Send + Sync {
    /// The journal as it was written last.
    fn read(&self) -> StoreFuture<'_, Option<Vec<u8>>>;
    /// Writes journal and own bundle in one step. The bundle's sequence number rises by one if its content differs.
    fn write(&self, journal: Vec<u8>, bundle: BundleContent) -> StoreFuture<'_, Arc<StoredBundle>>;
}

/// What is remembered of a certificate before it is handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedRecord {
    /// Serial, hex.
    pub serial: String,
    /// Whom it names.
    pub spiffe_id: SpiffeId,
    /// For which entry; none for agents and for the server itself.
    pub entry_id: Option<EntryId>,
    /// Which agent asked; none for the server itself.
    pub agent_id: Option<SpiffeId>,
    /// Which authority signed.
    pub authority_id: String,
    /// When it ends.
    pub not_after: SystemTime,
    /// When it was signed.
    pub issued_at: SystemTime,
}

/// The record of what was signed.
pub trait Issued: Send + Sync {
    /// Remembers certificates, all or none. Hand them out only after this has answered.
    fn record(&self, certificates: Vec<IssuedRecord>) -> StoreFuture<'_, ()>;
    /// Those of some certificates that are remembered. Reads all that is remembered: a question of people, not of programs.
    fn find(&self, serials: BTreeSet<String>) -> StoreFuture<'_, Vec<IssuedRecord>>;
    /// One certificate; see [`Issued::find`].
    fn get(&self, serial: &str) -> StoreFuture<'_, Option<IssuedRecord>> {
        let found = self.find(BTreeSet::from([serial.to_owned()]));
        async move { Ok(found.await?.pop()) }.boxed()
    }
    /// The certificates of some authorities that have not ended and whose holder was given no later one. Reads all that is remembered.
    fn held(
        &self,
        authorities: BTreeSet<String>,
        now: SystemTime,
    ) -> StoreFuture<'_, Vec<IssuedRecord>>;
    /// How many are remembered.
    fn count(&self) -> StoreFuture<'_, u64>;
    /// Forgets certificates that ended before `now`; answers how many.
    fn prune(&self, now: SystemTime) -> StoreFuture<'_, u64>;
}

/// What differs from an older state. Objects are in the order of their revisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeSet {
    /// The state that this leads to.
    pub revision: u64,
    /// Entries that are new or changed.
    pub entries: Vec<Arc<Entry>>,
    /// Entries that are gone.
    pub removed_entries: Vec<EntryId>,
    /// Agents that are new, or whose selectors or ban changed.
    pub nodes: Vec<Arc<Node>>,
    /// Agents that are gone.
    pub removed_nodes: Vec<SpiffeId>,
    /// Our own bundle, if it changed.
    pub own_bundle: Option<Arc<StoredBundle>>,
    /// Bundles of other trust domains that are new or changed.
    pub foreign_bundles: Vec<Arc<StoredBundle>>,
    /// Trust domains whose bundle is gone.
    pub removed_trust_domains: Vec<TrustDomain>,
}

/// The numbered history of entries, agents and bundles.
pub trait Changes: Send + Sync {
    /// A random id made when the store was made: revisions of different epochs cannot be compared.
    fn epoch(&self) -> &str;
    /// The newest revision, never one that could still be lost.
    fn newest(&self) -> watch::Receiver<u64>;
    /// What changed after `revision`. `None`: too long ago, or never given out; take [`Changes::everything`].
    fn since(&self, revision: u64) -> StoreFuture<'_, Option<ChangeSet>>;
    /// The whole state at one revision, without tombstones.
    fn everything(&self) -> StoreFuture<'_, ChangeSet>;
    /// Whether the store works. Once stopped it stays so until the process is started again.
    fn health(&self) -> watch::Receiver<StoreHealth>;
}

/// The whole content at once.
pub trait Snapshots: Send + Sync {
    /// Writes a backup of everything that was durable at one moment; [`Backup::open`] reads it. Changes wait meanwhile, so write to
    /// something that does not wait for anybody.
    fn snapshot(&self, into: Box<dyn Write + Send>, now: SystemTime) -> StoreFuture<'_, ()>;
}

/// Whether the store takes changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreHealth {
    /// It does.
    Working,
    /// Free space is below the reserve: reads go on, changes are refused until there is room again.
    NearlyFull,
    /// A write failed: reads go on, changes are refused until the process is started again.
    Stopped(Arc<str>),
}

#[cfg(test)]
mod tests {
    //! The suite over the store that forgets; the embedded one runs it in `sled/tests.rs`.
    use super::*;

    conformance::suite!(async || (Stores::memory(&conformance::domain()), ()));
}
