//! Decides which turns of an authority an operator may take by hand: prepare, activate, taint, revoke (spiffe.md B.4).
//! Trusts the caller to be one who may; the API's permit table says so.
//! Never touches what signs: the active authority cannot be tainted or revoked, and no untainted one is revoked.

use std::time::SystemTime;

use mesh_runtime::errors::{Blame, Coded};

use super::slots::{SlotState, Slots};
use super::{Authority, AuthorityError, AuthorityKind, Book, SlotStatus, rotation};

/// A turn of one authority, named by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Activate,
    Taint,
    Revoke,
}

impl Authority {
    /// Makes the next authority and adds it to the bundle, in place of one that was prepared before and signed nothing.
    pub async fn prepare(
        &self,
        kind: AuthorityKind,
        now: SystemTime,
    ) -> Result<SlotStatus, TurnError> {
        let mut book = self.slots.lock().await;
        let mut next = book.clone();
        match kind {
            AuthorityKind::X509 => {
                let slot = rotation::new_x509(&self.settings, &self.sealing, now).await?;
                next.x509.prepare(slot);
            }
            AuthorityKind::Jwt => {
                let slot = rotation::new_jwt(&self.settings, &self.sealing, now).await?;
                next.jwt.prepare(slot);
            }
        }
        let statuses = next.statuses().into_iter();
        let made = statuses
            .filter(|slot| slot.kind == kind)
            .find(|slot| slot.state == SlotState::Prepared);
        self.commit(&mut book, next).await?;
        Ok(made.expect("it was just added"))
    }

    /// Lets the prepared authority sign from now on. Whether everybody has heard of it is the operator's to know.
    pub async fn activate(&self, kind: AuthorityKind, id: &str) -> Result<SlotStatus, TurnError> {
        self.turn(kind, id, Turn::Activate).await
    }

    /// Marks an old authority: verifiers trust it still, and all that it signed is to be replaced.
    pub async fn taint(&self, kind: AuthorityKind, id: &str) -> Result<SlotStatus, TurnError> {
        self.turn(kind, id, Turn::Taint).await
    }

    /// Takes a tainted authority out of the bundle: nothing that it signed counts any more.
    pub async fn revoke(&self, kind: AuthorityKind, id: &str) -> Result<SlotStatus, TurnError> {
        self.turn(kind, id, Turn::Revoke).await
    }

    /// Marks a root above old authorities of ours: all that they signed is to be replaced.
    pub async fn taint_upstream(&self, root_id: &str) -> Result<(), TurnError> {
        self.turn_upstream(root_id, Turn::Taint).await
    }

    /// Takes a tainted root out of the bundle, and with it the old authorities below it.
    pub async fn revoke_upstream(&self, root_id: &str) -> Result<(), TurnError> {
        self.turn_upstream(root_id, Turn::Revoke).await
    }

    /// Whether new X.509 authorities are signed by one above.
    pub fn has_upstream(&self) -> bool {
        self.settings.upstream.is_some()
    }

    async fn turn_upstream(&self, root_id: &str, turn: Turn) -> Result<(), TurnError> {
        let mut book = self.slots.lock().await;
        if root_id.is_empty() {
            return Err(TurnError::NoId);
        }
        let statuses = book.x509.statuses(AuthorityKind::X509);
        let below: Vec<_> = statuses
            // One that signed itself, before there was anything above, is its own root.
            .filter(|slot| slot.upstream_id.as_ref().unwrap_or(&slot.authority_id) == root_id)
            .collect();
        if below.iter().any(|slot| slot.state != SlotState::Old) {
            return Err(TurnError::SignsCurrent);
        }
        if below.is_empty() {
            return Err(TurnError::SignedNoneOld);
        }
        let tainted = below.iter().all(|slot| slot.tainted);
        let mut next = book.clone();
        match (turn, tainted) {
            (Turn::Revoke, true) => next.x509.revoke_root(root_id),
            (Turn::Revoke, false) => return Err(TurnError::NotTainted),
            (_, true) => return Err(TurnError::TaintedBefore),
            (_, false) => below
                .iter()
                .for_each(|slot| next.x509.taint(&slot.authority_id)),
        }
        self.commit(&mut book, next).await?;
        tracing::warn!(
            ?turn,
            root = root_id,
            "an upstream authority was turned by hand"
        );
        Ok(())
    }

    async fn turn(
        &self,
        kind: AuthorityKind,
        id: &str,
        turn: Turn,
    ) -> Result<SlotStatus, TurnError> {
        let mut book = self.slots.lock().await;
        let of_kind = |book: &Book| {
            let statuses = book.statuses().into_iter();
            statuses
                .filter(|slot| slot.kind == kind)
                .find(|slot| slot.authority_id == id)
        };
        let marks = matches!(turn, Turn::Taint | Turn::Revoke);
        if kind == AuthorityKind::X509 && marks && self.has_upstream() {
            // A mark on an intermediate would be seen by nobody: bundles hold roots.
            return Err(TurnError::UpstreamSigns);
        }
        if id.is_empty() {
            return Err(TurnError::NoId);
        }
        let before = of_kind(&book).ok_or(TurnError::Unknown)?;
        allowed(&before, turn)?;
        let mut next = book.clone();
        match kind {
            AuthorityKind::X509 => take(&mut next.x509, id, turn),
            AuthorityKind::Jwt => take(&mut next.jwt, id, turn),
        }
        let after = of_kind(&next).unwrap_or(before);
        self.commit(&mut book, next).await?;
        tracing::warn!(?turn, authority = ?after, "an authority was turned by hand");
        Ok(after)
    }
}

fn allowed(slot: &SlotStatus, turn: Turn) -> Result<(), TurnError> {
    match (turn, slot.state) {
        (Turn::Activate, SlotState::Prepared) => Ok(()),
        (Turn::Activate, state) => Err(TurnError::NotPrepared(state)),
        (Turn::Taint | Turn::Revoke, SlotState::Active) => Err(TurnError::Active),
        (Turn::Taint | Turn::Revoke, SlotState::Prepared) => Err(TurnError::NotOld),
        (Turn::Taint, SlotState::Old) if slot.tainted => Err(TurnError::TaintedBefore),
        (Turn::Taint, SlotState::Old) => Ok(()),
        (Turn::Revoke, SlotState::Old) if slot.tainted => Ok(()),
        (Turn::Revoke, SlotState::Old) => Err(TurnError::NotTainted),
    }
}

fn take<S>(slots: &mut Slots<S>, id: &str, turn: Turn) {
    match turn {
        Turn::Activate => slots.activate(),
        Turn::Taint => slots.taint(id),
        Turn::Revoke => slots.revoke(id),
    }
}

/// Why an authority was not turned.
#[derive(Debug, thiserror::Error)]
pub enum TurnError {
    /// None is named.
    #[error("no authority ID provided")]
    NoId,
    /// There is no such authority.
    #[error("unexpected authority ID")]
    Unknown,
    /// Only a prepared one can be activated.
    #[error("only Prepared authorities can be activated: {0:?}")]
    NotPrepared(SlotState),
    /// It signs.
    #[error("unable to use current authority")]
    Active,
    /// It has signed nothing yet.
    #[error("only Old local authorities can be tainted or revoked")]
    NotOld,
    /// It is tainted.
    #[error("the authority is already tainted")]
    TaintedBefore,
    /// It has to be tainted first.
    #[error("it is not possible to revoke an untainted key")]
    NotTainted,
    /// What would have to be marked is the root above it.
    #[error(
        "a local X.509 authority cannot be tainted or revoked while an upstream authority is configured: name the root's subject key ID instead"
    )]
    UpstreamSigns,
    /// What we sign now is below it.
    #[error("unable to use upstream authority signing current authority")]
    SignsCurrent,
    /// It never signed for us, or what it signed is gone.
    #[error("upstream authority didn't sign the old local authority")]
    SignedNoneOld,
    /// It could not be made or stored.
    #[error("the authority could not be turned")]
    Failed(#[from] AuthorityError),
}

impl TurnError {
    /// Who has to act.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Failed(error) => error.blame(),
            _ => Blame::Caller,
        }
    }
}

impl Coded for TurnError {
    fn code(&self) -> &'static str {
        match self {
            Self::NoId | Self::Unknown | Self::SignedNoneOld => "FNL1037",
            Self::NotPrepared(_)
            | Self::Active
            | Self::NotOld
            | Self::TaintedBefore
            | Self::SignsCurrent => "FNL1038",
            Self::UpstreamSigns => "FNL1068",
            Self::NotTainted => "FNL1039",
            Self::Failed(error) => error.code(),
        }
    }
}
