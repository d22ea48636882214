//! The signing authority: the only part that can reach a CA private key, and the only one that decides what a
//! certificate or token of ours looks like. Trusts the template and the public key it is given; its callers proved them.
//! Never signs outside its own validity, and never signs with a key that is not yet in the durable bundle.

mod above;
mod append;
mod by_hand;
mod certificate;
mod error;
mod facts;
mod journal;
mod keys;
mod rotation;
mod slots;
#[cfg(test)]
mod tests;
mod times;
mod token;
mod upstream;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use mesh_identity::{DnsName, SpiffeId, TrustDomain};
use rustls_pki_types::CertificateDer;
use tokio::sync::{Mutex, watch};

use self::certificate::Signer;
use self::keys::SealingKey;
use self::slots::Slots;
use self::token::TokenSigner;
use crate::store::{BundleContent, Journal, StoredBundle, StoredJwtKey};

pub use self::append::AppendError;
pub use self::by_hand::TurnError;
pub use self::error::{AuthorityError, SignError};
pub use self::keys::KeyType;
pub use self::rotation::{Followers, NoFollowers, Overdue, run};
pub use self::slots::{SlotState, Step, next_step};
pub use self::times::Times;
pub use self::token::{MOST_AUDIENCES, SignedToken, TokenSettings, TokenTemplate};
pub use self::upstream::{DiskUpstream, UpstreamAuthority, UpstreamError};

/// How far back a certificate's start lies, unless the template says otherwise: verifiers' clocks differ.
pub const BACKDATE: Duration = Duration::from_secs(10);

/// The shortest life of an authority. Below this its SVIDs would be renewed without pause.
pub const SHORTEST_LIFE: Duration = Duration::from_secs(10);

/// What the authority is made from.
#[derive(Clone, Debug)]
pub struct AuthoritySettings {
    /// Whose certificates.
    pub trust_domain: TrustDomain,
    /// How long a new authority lives, whatever it signs.
    pub lifetime: Duration,
    /// How often others should ask for our bundle.
    pub refresh_hint: Duration,
    /// The file with the key that seals the CA keys in the store; made on the very first start.
    pub sealing_key: PathBuf,
    /// What every token says and how many audiences it may have.
    pub tokens: TokenSettings,
    /// What new authorities are made of. One that exists stays what it is.
    pub key_types: KeyTypes,
    /// Who signs new X.509 authorities; nobody: they sign themselves.
    pub upstream: Option<UpstreamAuthority>,
}

/// Of which kinds the keys of new authorities are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyTypes {
    /// Those that sign certificates.
    pub x509: KeyType,
    /// Those that sign tokens.
    pub jwt: KeyType,
}

impl AuthoritySettings {
    /// The usual settings: authorities of a day, whose bundle is asked for every five minutes.
    pub fn new(trust_domain: TrustDomain, sealing_key: PathBuf) -> Self {
        Self {
            trust_domain,
            lifetime: Duration::from_secs(24 * 3600),
            refresh_hint: Duration::from_secs(300),
            sealing_key,
            tokens: TokenSettings::default(),
            key_types: KeyTypes::default(),
            upstream: None,
        }
    }

    /// The longest SVID life that an authority of this lifetime can always grant in full:
    /// the next one takes over when this much is left.
    pub fn longest_svid(&self) -> Duration {
        times::activation_margin(self.lifetime)
    }
}

/// What a leaf certificate shall say. Nothing of it comes from the requester.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafTemplate {
    /// Whom it names: a member of our trust domain, with a path.
    pub spiffe_id: SpiffeId,
    /// Further names.
    pub dns_names: Vec<DnsName>,
    /// The subject's attributes: object identifier and text. Empty, but for certificates that an administrator asks for.
    pub subject: Vec<(Vec<u64>, String)>,
    /// How long it should live; it never outlives the authority.
    pub ttl: Duration,
    /// How far its start lies back; usually [`BACKDATE`].
    pub not_before_backdate: Duration,
}

/// A signed leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedLeaf {
    /// The leaf and the intermediates above it, never the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Serial number, lower-case hex.
    pub serial: String,
    /// Which authority signed: hex of its subject key id.
    pub authority_id: String,
    /// The same of the root that it verifies by.
    pub root_id: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

/// What an authority signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthorityKind {
    /// Certificates.
    X509,
    /// Tokens.
    Jwt,
}

/// What others may know of an authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotStatus {
    /// What it signs.
    pub kind: AuthorityKind,
    /// X.509: hex of the subject key id. JWT: the key id.
    pub authority_id: String,
    /// Hex of the subject key id of the root above it, if it does not sign itself.
    pub upstream_id: Option<String>,
    /// Whether it signs.
    pub state: SlotState,
    /// Whether all that it signed is to be replaced.
    pub tainted: bool,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

/// The ids of the tainted X.509 authorities.
pub fn tainted(slots: &[SlotStatus]) -> BTreeSet<String> {
    let x509 = slots.iter().filter(|slot| slot.kind == AuthorityKind::X509);
    x509.filter(|slot| slot.tainted)
        .map(|slot| slot.authority_id.clone())
        .collect()
}

/// The authorities of both kinds. They rest in one journal, so that journal and bundle cannot disagree about either.
#[derive(Clone, Default)]
struct Book {
    x509: Slots<Signer>,
    jwt: Slots<TokenSigner>,
}

impl Book {
    fn statuses(&self) -> Vec<SlotStatus> {
        let x509 = self.x509.statuses(AuthorityKind::X509);
        x509.chain(self.jwt.statuses(AuthorityKind::Jwt)).collect()
    }

    /// What our bundle shows, in the order in which they were prepared.
    fn content(&self, settings: &AuthoritySettings) -> BundleContent {
        let keys = self.jwt.0.iter().map(|slot| StoredJwtKey {
            key_id: slot.authority_id.clone(),
            public_key: slot.shown.clone(),
            expires_at: Some(slot.times.not_after),
            tainted: slot.tainted,
        });
        BundleContent {
            x509_authorities: self.x509.roots(),
            jwt_authorities: keys.collect(),
            refresh_hint: settings.refresh_hint,
        }
    }
}

/// The authorities with their slots. Share it by `Arc`.
pub struct Authority {
    settings: AuthoritySettings,
    sealing: SealingKey,
    journal: Arc<dyn Journal>,
    /// One step at a time. Held across the store's answer.
    slots: Mutex<Book>,
    /// What `sign_leaf` uses, swapped whole.
    active: ArcSwapOption<Signer>,
    /// What `sign_token` uses, swapped whole.
    active_jwt: ArcSwapOption<TokenSigner>,
    /// Public keys of all slots, which no leaf may have.
    own_keys: watch::Sender<Arc<Vec<Vec<u8>>>>,
    bundle: watch::Sender<Arc<StoredBundle>>,
    status: watch::Sender<Arc<Vec<SlotStatus>>>,
    /// For whom a turn that is due waits.
    lacking: watch::Sender<Arc<Vec<SpiffeId>>>,
}

impl Authority {
    /// Loads the authorities from the store, or makes the first ones. Afterwards one of each kind is active.
    pub async fn open(
        settings: AuthoritySettings,
        journal: Arc<dyn Journal>,
        now: SystemTime,
    ) -> Result<Arc<Self>, AuthorityError> {
        if settings.lifetime < SHORTEST_LIFE {
            return Err(AuthorityError::ShortLife {
                lifetime: settings.lifetime,
                shortest: SHORTEST_LIFE,
            });
        }
        let remembered = journal.read().await?;
        let sealing = SealingKey::load(&settings.sealing_key, remembered.is_none())?;
        let mut slots = match &remembered {
            Some(bytes) => journal::decode(bytes, &settings.trust_domain, &sealing)?,
            None => Book::default(),
        };
        rotation::catch_up(&mut slots, &settings, &sealing, now).await?;
        let bundle = write(&settings, &*journal, &slots).await?;
        let authority = Self {
            active: ArcSwapOption::empty(),
            active_jwt: ArcSwapOption::empty(),
            own_keys: watch::Sender::default(),
            bundle: watch::Sender::new(bundle.clone()),
            status: watch::Sender::default(),
            lacking: watch::Sender::default(),
            slots: Mutex::new(Book::default()),
            settings,
            sealing,
            journal,
        };
        authority.publish(&slots, bundle);
        *authority.slots.lock().await = slots;
        Ok(Arc::new(authority))
    }

    /// Signs a leaf with the active authority. `subject_public_key` is a DER SubjectPublicKeyInfo whose owner
    /// has proved possession.
    pub fn sign_leaf(
        &self,
        template: &LeafTemplate,
        subject_public_key: &[u8],
        now: SystemTime,
    ) -> Result<SignedLeaf, SignError> {
        let id = &template.spiffe_id;
        if !id.is_member_of(&self.settings.trust_domain) || id.path().is_empty() {
            return Err(SignError::NotOurs { id: id.clone() });
        }
        if self
            .own_keys
            .borrow()
            .iter()
            .any(|own| own == subject_public_key)
        {
            return Err(SignError::OwnKey);
        }
        let signer = self.active.load();
        signer
            .as_ref()
            .ok_or(SignError::NoAuthority)?
            .sign(template, subject_public_key, now)
    }

    /// Signs a token with the active JWT authority.
    pub fn sign_token(
        &self,
        template: &TokenTemplate,
        now: SystemTime,
    ) -> Result<SignedToken, SignError> {
        let id = &template.spiffe_id;
        if !id.is_member_of(&self.settings.trust_domain) {
            return Err(SignError::NotOurs { id: id.clone() });
        }
        let signer = self.active_jwt.load();
        signer
            .as_ref()
            .ok_or(SignError::NoAuthority)?
            .sign(template, &self.settings.tokens, now)
    }

    /// Our bundle as it is stored, newest first seen; its sequence number rises with each change.
    pub fn bundle(&self) -> watch::Receiver<Arc<StoredBundle>> {
        self.bundle.subscribe()
    }

    /// The agents for which a turn that is due waits.
    pub fn lacking(&self) -> watch::Receiver<Arc<Vec<SpiffeId>>> {
        self.lacking.subscribe()
    }

    /// All authorities that are in the bundle.
    pub fn status(&self) -> watch::Receiver<Arc<Vec<SlotStatus>>> {
        self.status.subscribe()
    }

    /// Takes the steps that are due by their time alone; see [`Authority::advance_with`].
    pub async fn advance(&self, now: SystemTime) -> Result<SystemTime, AuthorityError> {
        self.advance_with(&NoFollowers, now).await
    }

    /// Takes the steps that are due and says when the next one will be. A new authority signs when every follower has acknowledged a
    /// bundle with it, or when the active one has not much longer to live. A step that the store did not accept changes nothing:
    /// what was active goes on signing.
    pub async fn advance_with(
        &self,
        followers: &dyn Followers,
        now: SystemTime,
    ) -> Result<SystemTime, AuthorityError> {
        let mut book = self.slots.lock().await;
        loop {
            let mut steps = rotation::due(&book, now);
            let lacking = if steps.may_wait(&book, now) {
                let revision = self.bundle.borrow().revision;
                followers.lacking(revision, now).await?
            } else {
                Vec::new()
            };
            if !lacking.is_empty() {
                steps = steps.held_back(&book, now);
            }
            self.lacking.send_if_modified(|before| {
                let differs = **before != lacking;
                if differs {
                    *before = Arc::new(lacking);
                }
                differs
            });
            if let Some(pause) = steps.pause() {
                return Ok(now + pause);
            }
            let mut next = book.clone();
            let taken = rotation::take(&mut next, steps, &self.settings, &self.sealing, now).await;
            // What one kind could do is done, whatever the other could not.
            if taken.any {
                self.commit(&mut book, next).await?;
                tracing::info!(?steps, authorities = ?book.statuses(), "authority rotation");
            }
            taken.all?;
        }
    }

    /// The authorities that should have a successor by now and have none.
    pub async fn overdue(&self, now: SystemTime) -> Vec<Overdue> {
        let book = self.slots.lock().await;
        let x509 = book.x509.overdue(AuthorityKind::X509, now);
        let jwt = book.jwt.overdue(AuthorityKind::Jwt, now);
        x509.into_iter().chain(jwt).collect()
    }

    /// Makes a change durable, in journal and bundle, and only then visible.
    async fn commit(&self, book: &mut Book, next: Book) -> Result<(), AuthorityError> {
        let bundle = write(&self.settings, &*self.journal, &next).await?;
        self.publish(&next, bundle);
        *book = next;
        Ok(())
    }

    /// Readers see the new bundle before the new signers, never the other way round.
    fn publish(&self, book: &Book, bundle: Arc<StoredBundle>) {
        let own_keys = book.x509.public_keys().chain(book.jwt.public_keys());
        self.own_keys.send_replace(Arc::new(own_keys.collect()));
        self.bundle.send_replace(bundle);
        self.active.store(book.x509.active_signer());
        self.active_jwt.store(book.jwt.active_signer());
        self.status.send_replace(Arc::new(book.statuses()));
    }
}

/// Writes journal and bundle in one step.
async fn write(
    settings: &AuthoritySettings,
    journal: &dyn Journal,
    book: &Book,
) -> Result<Arc<StoredBundle>, AuthorityError> {
    let content = book.content(settings);
    Ok(journal.write(journal::encode(book)?, content).await?)
}
