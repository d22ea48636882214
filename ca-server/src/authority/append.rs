//! Decides which authorities of others an administrator may add to our bundle (SPIRE's AppendBundle).
//! Trusts the caller to be one who may; the API's permit table says so.
//! Never gives one a key or a turn: it is an old authority from the start, in the bundle for what it has signed, until it ends or is
//! tainted and revoked like any other.

use std::sync::Arc;
use std::time::SystemTime;

use mesh_identity::{Bundle, JwtAuthority, MAX_AUTHORITIES, X509Authority};
use mesh_runtime::errors::{Blame, Coded};

use super::certificate::Signer;
use super::facts::facts;
use super::slots::{Slot, SlotState, Slots};
use super::times::Times;
use super::token::TokenSigner;
use super::{Authority, AuthorityError};
use crate::store::StoredBundle;

/// How many of a kind the bundle may hold with those that are added: the rotation needs the rest.
const MOST: usize = MAX_AUTHORITIES / 2;

impl Authority {
    /// Adds the authorities of a bundle to ours, all or none. Those that are there already stay as they are.
    pub async fn append(
        &self,
        new: &Bundle,
        now: SystemTime,
    ) -> Result<Arc<StoredBundle>, AppendError> {
        if new.x509_authorities().is_empty() && new.jwt_authorities().is_empty() {
            return Err(AppendError::Nothing);
        }
        let mut book = self.slots.lock().await;
        let shown = self.bundle.borrow().clone();
        let mut next = book.clone();
        let mut added = Vec::new();
        for root in new.x509_authorities() {
            let is_root = |der: &[u8]| der == root.der().as_ref();
            if !shown.x509_authorities.iter().any(|one| is_root(&one.der)) {
                added.push(add(&mut next.x509, x509(root)?, now)?);
            }
        }
        for key in new.jwt_authorities() {
            let spki = key.to_spki();
            let same = |slot: &Slot<TokenSigner>| {
                slot.authority_id == key.key_id() && slot.public_key == spki
            };
            if !next.jwt.0.iter().any(same) {
                added.push(add(&mut next.jwt, jwt(key, spki)?, now)?);
            }
        }
        if added.is_empty() {
            return Ok(shown);
        }
        let content = next.content(&self.settings);
        if content
            .x509_authorities
            .len()
            .max(content.jwt_authorities.len())
            > MOST
        {
            return Err(AppendError::TooMany);
        }
        self.commit(&mut book, next).await?;
        tracing::warn!(authorities = ?added, "authorities of others were added to the bundle by hand");
        Ok(self.bundle.borrow().clone())
    }
}

/// Puts it before our own: of several old ones the last is the one that was ours.
fn add<S>(slots: &mut Slots<S>, slot: Slot<S>, now: SystemTime) -> Result<String, AppendError> {
    let id = slot.authority_id.clone();
    if slot.times.has_ended(now) {
        return Err(AppendError::Ended { id });
    }
    if slots.0.iter().any(|known| known.authority_id == id) {
        return Err(AppendError::IdTaken { id });
    }
    slots.0.insert(0, slot);
    Ok(id)
}

fn x509(root: &X509Authority) -> Result<Slot<Signer>, AppendError> {
    // The reader of bundles lets a root without a key id pass; ours names authorities by it.
    let facts = facts(root.der()).map_err(|_| AppendError::NoKeyId)?;
    Ok(Slot {
        state: SlotState::Old,
        authority_id: facts.authority_id,
        times: facts.times,
        tainted: root.is_tainted(),
        shown: root.der().to_vec(),
        above: None,
        public_key: facts.public_key,
        key: None,
    })
}

fn jwt(key: &JwtAuthority, spki: Vec<u8>) -> Result<Slot<TokenSigner>, AppendError> {
    let id = key.key_id().to_owned();
    let not_after = key
        .expires_at()
        .ok_or(AppendError::NoEnd { id: id.clone() })?;
    Ok(Slot {
        state: SlotState::Old,
        authority_id: id,
        // Nothing says when it began.
        times: Times {
            not_before: SystemTime::UNIX_EPOCH,
            not_after,
        },
        tainted: key.is_tainted(),
        shown: spki.clone(),
        above: None,
        public_key: spki,
        key: None,
    })
}

/// Why authorities were not added to our bundle. None of them was.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// There is none in the request.
    #[error("no authorities to append")]
    Nothing,
    /// It could be neither tainted nor revoked.
    #[error(
        "an X.509 authority without a subject key id cannot be appended: nothing could name it"
    )]
    NoKeyId,
    /// It would stay forever.
    #[error("the JWT authority `{id}` cannot be appended without `expires_at`")]
    NoEnd {
        /// Its key id.
        id: String,
    },
    /// It is over.
    #[error("the authority `{id}` has ended")]
    Ended {
        /// Its id.
        id: String,
    },
    /// Another is known by this name.
    #[error("another authority with the id `{id}` is in the bundle")]
    IdTaken {
        /// The id.
        id: String,
    },
    /// The rotation would have no room.
    #[error("the bundle would have more than {MOST} authorities of a kind")]
    TooMany,
    /// It could not be stored.
    #[error("the authorities could not be appended")]
    Failed(#[from] AuthorityError),
}

impl AppendError {
    /// Who has to act.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Failed(error) => error.blame(),
            _ => Blame::Caller,
        }
    }
}

impl Coded for AppendError {
    fn code(&self) -> &'static str {
        match self {
            Self::Nothing => "FNL1069",
            Self::NoKeyId | Self::NoEnd { .. } | Self::Ended { .. } | Self::IdTaken { .. } => {
                "FNL1078"
            }
            Self::TooMany => "FNL1079",
            Self::Failed(error) => error.code(),
        }
    }
}
