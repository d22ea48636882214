//! The slots as they survive a restart: certificates, states, and sealed keys tied to their certificate.
//! Trusts nothing it reads: a key that does not unseal, or is not that of its certificate, stops the start.

use std::sync::Arc;

use mesh_identity::TrustDomain;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::AuthorityError;
use super::certificate::{Signer, facts};
use super::keys::{CaKey, Pkcs8, Sealed, SealingKey};
use super::slots::{Slot, SlotKey, SlotState, Slots};

/// The format of the journal, in its first byte.
const FORMAT: u8 = 1;

#[derive(Serialize, Deserialize)]
struct SlotRow {
    state: SlotState,
    certificate: Vec<u8>,
    sealed: Option<Sealed>,
}

/// What a sealed key is tied to: moved to another trust domain or another certificate it does not open.
fn context(trust_domain: &TrustDomain, certificate: &[u8]) -> Vec<u8> {
    let mut context = b"finial x509 authority\0".to_vec();
    context.extend_from_slice(trust_domain.as_str().as_bytes());
    context.push(0);
    context.extend_from_slice(certificate);
    context
}

/// Seals a new authority's key.
pub(super) fn seal(
    sealing: &SealingKey,
    trust_domain: &TrustDomain,
    certificate: &CertificateDer<'_>,
    pkcs8: &Pkcs8,
) -> Result<Sealed, AuthorityError> {
    sealing.seal(&context(trust_domain, certificate), pkcs8)
}

pub(super) fn encode(slots: &Slots) -> Result<Vec<u8>, AuthorityError> {
    let row = |slot: &Slot| SlotRow {
        state: slot.state,
        certificate: slot.certificate.to_vec(),
        sealed: slot.key.as_ref().map(|key| key.sealed.clone()),
    };
    let rows: Vec<SlotRow> = slots.0.iter().map(row).collect();
    postcard::to_extend(&rows, vec![FORMAT]).map_err(|error| broken(error.to_string()))
}

pub(super) fn decode(
    bytes: &[u8],
    trust_domain: &TrustDomain,
    sealing: &SealingKey,
) -> Result<Slots, AuthorityError> {
    let rows = match bytes.split_first() {
        Some((&FORMAT, rows)) => rows,
        Some((other, _)) => {
            return Err(broken(format!(
                "it has format {other}, this program reads {FORMAT}"
            )));
        }
        None => return Err(broken("it is empty".into())),
    };
    let (rows, rest): (Vec<SlotRow>, _) =
        postcard::take_from_bytes(rows).map_err(|error| broken(error.to_string()))?;
    if !rest.is_empty() {
        return Err(broken(format!("{} bytes are left over", rest.len())));
    }
    let slots: Vec<Slot> = rows
        .into_iter()
        .map(|row| slot(row, trust_domain, sealing))
        .collect::<Result<_, _>>()?;
    for state in [SlotState::Active, SlotState::Prepared] {
        if slots.iter().filter(|slot| slot.state == state).count() > 1 {
            return Err(broken(format!("two authorities are {state:?}")));
        }
    }
    Ok(Slots(slots))
}

fn slot(
    row: SlotRow,
    trust_domain: &TrustDomain,
    sealing: &SealingKey,
) -> Result<Slot, AuthorityError> {
    let certificate = CertificateDer::from(row.certificate);
    let facts = facts(&certificate).map_err(broken)?;
    let key = match (row.state, row.sealed) {
        (SlotState::Old, None) => None,
        (SlotState::Active | SlotState::Prepared, Some(sealed)) => {
            let pkcs8 = sealing.unseal(&context(trust_domain, &certificate), &sealed);
            let cannot = || AuthorityError::CannotUnseal {
                authority_id: facts.authority_id.clone(),
            };
            let key = CaKey::from_pkcs8(&pkcs8.ok_or_else(cannot)?).map_err(broken)?;
            Some(SlotKey {
                signer: Arc::new(Signer::restore(&certificate, key).map_err(broken)?),
                sealed,
            })
        }
        (state, _) => {
            return Err(broken(format!(
                "an authority that is {state:?} has a key too many or too few"
            )));
        }
    };
    Ok(Slot {
        state: row.state,
        authority_id: facts.authority_id,
        times: facts.times,
        public_key: facts.public_key,
        certificate,
        key,
    })
}

fn broken(reason: String) -> AuthorityError {
    AuthorityError::Journal { reason }
}

/// The key inside, for the test that looks for it where it must not be.
#[cfg(test)]
pub(super) fn unseal_for_test(
    sealing: &SealingKey,
    trust_domain: &TrustDomain,
    certificate: &CertificateDer<'_>,
    sealed: &Sealed,
) -> Pkcs8 {
    sealing
        .unseal(&context(trust_domain, certificate), sealed)
        .expect("sealed by us")
}
