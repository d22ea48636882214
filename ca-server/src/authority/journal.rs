//! The slots as they survive a restart: certificates, key ids, states, and sealed keys tied to what they belong to.
//! Trusts nothing it reads: a key that does not unseal, or is not the one of its row, stops the start.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_identity::{JwtAuthority, TrustDomain, X509Authority};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::above::Above;
use super::certificate::Signer;
use super::facts::facts;
use super::keys::{CaKey, Pkcs8, Sealed, SealingKey};
use super::slots::{Slot, SlotKey, SlotState, Slots};
use super::times::Times;
use super::token::TokenSigner;
use super::{AuthorityError, Book};

/// The format of the journal, in its first byte: a book, then what is above each of its X.509 authorities.
const FORMAT: u8 = 3;

/// The format before there was anything above: a book alone.
const FORMAT_WITHOUT_ABOVE: u8 = 2;

#[derive(Serialize, Deserialize)]
struct BookRow {
    x509: Vec<X509Row>,
    jwt: Vec<JwtRow>,
}

#[derive(Serialize, Deserialize)]
struct X509Row {
    state: SlotState,
    tainted: bool,
    certificate: Vec<u8>,
    sealed: Option<Sealed>,
}

#[derive(Serialize, Deserialize)]
struct AboveRow {
    chain: Vec<Vec<u8>>,
    roots: Vec<Vec<u8>>,
    root_id: String,
}

impl AboveRow {
    fn of(above: &Above) -> Self {
        let roots = above.roots.iter().map(|root| root.der().to_vec());
        Self {
            chain: above.chain.iter().map(|der| der.to_vec()).collect(),
            roots: roots.collect(),
            root_id: above.root_id.clone(),
        }
    }

    fn read(self) -> Result<Arc<Above>, AuthorityError> {
        let roots = self.roots.into_iter().map(X509Authority::parse);
        let roots = roots.collect::<Result<_, _>>();
        Ok(Arc::new(Above {
            chain: self.chain.into_iter().map(CertificateDer::from).collect(),
            roots: roots.map_err(|error| broken(error.to_string()))?,
            root_id: self.root_id,
        }))
    }
}

#[derive(Serialize, Deserialize)]
struct JwtRow {
    state: SlotState,
    tainted: bool,
    key_id: String,
    public_key: Vec<u8>,
    /// Seconds since 1970.
    not_before: u64,
    /// Seconds since 1970.
    not_after: u64,
    sealed: Option<Sealed>,
}

/// What a sealed key is tied to: moved to another trust domain or another certificate it does not open.
/// So it is with the way to the root; which other roots our bundle shows may change.
fn context(trust_domain: &TrustDomain, certificate: &[u8], above: Option<&Above>) -> Vec<u8> {
    let mut context = b"finial x509 authority\0".to_vec();
    context.extend_from_slice(trust_domain.as_str().as_bytes());
    context.push(0);
    context.extend_from_slice(certificate);
    if let Some(above) = above {
        for der in &above.chain {
            context.extend_from_slice(der);
        }
        context.extend_from_slice(above.root_id.as_bytes());
    }
    context
}

/// The same for the key of a JWT authority, which is moved to no other key id, public key or time.
fn jwt_context(
    trust_domain: &TrustDomain,
    key_id: &str,
    times: Times,
    public_key: &[u8],
) -> Vec<u8> {
    let mut context = b"finial jwt authority\0".to_vec();
    for part in [trust_domain.as_str(), key_id] {
        context.extend_from_slice(part.as_bytes());
        context.push(0);
    }
    for moment in [times.not_before, times.not_after] {
        context.extend_from_slice(&seconds(moment).to_be_bytes());
    }
    context.extend_from_slice(public_key);
    context
}

/// Seals a new X.509 authority's key.
pub(super) fn seal_x509(
    sealing: &SealingKey,
    trust_domain: &TrustDomain,
    certificate: &CertificateDer<'_>,
    above: Option<&Above>,
    pkcs8: &Pkcs8,
) -> Result<Sealed, AuthorityError> {
    sealing.seal(&context(trust_domain, certificate, above), pkcs8)
}

/// Seals a new JWT authority's key.
pub(super) fn seal_jwt(
    sealing: &SealingKey,
    trust_domain: &TrustDomain,
    key_id: &str,
    times: Times,
    public_key: &[u8],
    pkcs8: &Pkcs8,
) -> Result<Sealed, AuthorityError> {
    let context = jwt_context(trust_domain, key_id, times, public_key);
    sealing.seal(&context, pkcs8)
}

pub(super) fn encode(book: &Book) -> Result<Vec<u8>, AuthorityError> {
    let x509 = book.x509.0.iter().map(|slot| X509Row {
        state: slot.state,
        tainted: slot.tainted,
        certificate: slot.shown.clone(),
        sealed: slot.key.as_ref().map(|key| key.sealed.clone()),
    });
    let jwt = book.jwt.0.iter().map(|slot| JwtRow {
        state: slot.state,
        tainted: slot.tainted,
        key_id: slot.authority_id.clone(),
        public_key: slot.public_key.clone(),
        not_before: seconds(slot.times.not_before),
        not_after: seconds(slot.times.not_after),
        sealed: slot.key.as_ref().map(|key| key.sealed.clone()),
    });
    let row = BookRow {
        x509: x509.collect(),
        jwt: jwt.collect(),
    };
    let above = book.x509.0.iter().map(|slot| slot.above.as_deref());
    let above: Vec<Option<AboveRow>> = above.map(|above| above.map(AboveRow::of)).collect();
    postcard::to_extend(&(row, above), vec![FORMAT]).map_err(|error| broken(error.to_string()))
}

pub(super) fn decode(
    bytes: &[u8],
    trust_domain: &TrustDomain,
    sealing: &SealingKey,
) -> Result<Book, AuthorityError> {
    let (format, row) = match bytes.split_first() {
        Some((&format @ (FORMAT | FORMAT_WITHOUT_ABOVE), row)) => (format, row),
        Some((other, _)) => {
            return Err(broken(format!(
                "it has format {other}, this program reads {FORMAT}"
            )));
        }
        None => return Err(broken("it is empty".into())),
    };
    let (row, rest): (BookRow, _) =
        postcard::take_from_bytes(row).map_err(|error| broken(error.to_string()))?;
    let (above, rest): (Vec<Option<AboveRow>>, _) = match format {
        FORMAT => postcard::take_from_bytes(rest).map_err(|error| broken(error.to_string()))?,
        _ => (row.x509.iter().map(|_| None).collect(), rest),
    };
    if !rest.is_empty() {
        return Err(broken(format!("{} bytes are left over", rest.len())));
    }
    if above.len() != row.x509.len() {
        return Err(broken(
            "authorities and what is above them differ in number".into(),
        ));
    }
    let x509 = row.x509.into_iter().zip(above);
    let jwt = row.jwt.into_iter();
    Ok(Book {
        x509: checked(x509.map(|(row, above)| x509_slot(row, above, trust_domain, sealing)))?,
        jwt: checked(jwt.map(|row| jwt_slot(row, trust_domain, sealing)))?,
    })
}

fn checked<S>(
    slots: impl Iterator<Item = Result<Slot<S>, AuthorityError>>,
) -> Result<Slots<S>, AuthorityError> {
    let slots: Vec<Slot<S>> = slots.collect::<Result<_, _>>()?;
    for state in [SlotState::Active, SlotState::Prepared] {
        if slots.iter().filter(|slot| slot.state == state).count() > 1 {
            return Err(broken(format!("two authorities are {state:?}")));
        }
    }
    match slots
        .iter()
        .any(|slot| slot.tainted && slot.state != SlotState::Old)
    {
        true => Err(broken("an authority is tainted and not old".into())),
        false => Ok(Slots(slots)),
    }
}

/// The key of a slot: an old one has none, every other has one that opens and makes a signer.
fn key<S>(
    state: SlotState,
    sealed: Option<Sealed>,
    authority_id: &str,
    open: impl FnOnce(&Sealed) -> Option<Pkcs8>,
    signer: impl FnOnce(&Pkcs8) -> Result<S, String>,
) -> Result<Option<SlotKey<S>>, AuthorityError> {
    match (state, sealed) {
        (SlotState::Old, None) => Ok(None),
        (SlotState::Active | SlotState::Prepared, Some(sealed)) => {
            let cannot = || AuthorityError::CannotUnseal {
                authority_id: authority_id.to_owned(),
            };
            let pkcs8 = open(&sealed).ok_or_else(cannot)?;
            Ok(Some(SlotKey {
                signer: Arc::new(signer(&pkcs8).map_err(broken)?),
                sealed,
            }))
        }
        (state, _) => Err(broken(format!(
            "an authority that is {state:?} has a key too many or too few"
        ))),
    }
}

fn x509_slot(
    row: X509Row,
    above: Option<AboveRow>,
    trust_domain: &TrustDomain,
    sealing: &SealingKey,
) -> Result<Slot<Signer>, AuthorityError> {
    let certificate = CertificateDer::from(row.certificate);
    let above = above.map(AboveRow::read).transpose()?;
    let facts = facts(&certificate).map_err(broken)?;
    let key = key(
        row.state,
        row.sealed,
        &facts.authority_id,
        |sealed| {
            let context = context(trust_domain, &certificate, above.as_deref());
            sealing.unseal(&context, sealed)
        },
        |pkcs8| Signer::restore(&certificate, CaKey::from_pkcs8(pkcs8)?, above.as_deref()),
    )?;
    Ok(Slot {
        state: row.state,
        authority_id: facts.authority_id,
        times: facts.times,
        tainted: row.tainted,
        shown: certificate.to_vec(),
        above,
        public_key: facts.public_key,
        key,
    })
}

fn jwt_slot(
    row: JwtRow,
    trust_domain: &TrustDomain,
    sealing: &SealingKey,
) -> Result<Slot<TokenSigner>, AuthorityError> {
    let moment = |seconds: u64| UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    let (Some(not_before), Some(not_after)) = (moment(row.not_before), moment(row.not_after))
    else {
        return Err(broken("a time lies beyond all times".into()));
    };
    let times = Times {
        not_before,
        not_after,
    };
    let key = key(
        row.state,
        row.sealed,
        &row.key_id,
        |sealed| {
            sealing.unseal(
                &jwt_context(trust_domain, &row.key_id, times, &row.public_key),
                sealed,
            )
        },
        |pkcs8| {
            let signer = TokenSigner::new(row.key_id.clone(), times, pkcs8)?;
            match signer.public_key() == row.public_key {
                true => Ok(signer),
                false => Err("the key is not that of the row".into()),
            }
        },
    )?;
    // What nobody could verify with must not be in the bundle.
    JwtAuthority::from_spki(&row.key_id, &row.public_key)
        .map_err(|error| broken(error.to_string()))?;
    Ok(Slot {
        state: row.state,
        authority_id: row.key_id,
        times,
        tainted: row.tainted,
        shown: row.public_key.clone(),
        above: None,
        public_key: row.public_key,
        key,
    })
}

fn seconds(moment: SystemTime) -> u64 {
    let since = moment.duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn broken(reason: String) -> AuthorityError {
    AuthorityError::Journal { reason }
}

/// The keys inside, for the test that looks for them where they must not be.
#[cfg(test)]
pub(super) fn unsealed_for_test(
    book: &Book,
    sealing: &SealingKey,
    trust_domain: &TrustDomain,
) -> Vec<Pkcs8> {
    let x509 = book.x509.0.iter().map(|slot| {
        let sealed = &slot.key.as_ref().expect("a key").sealed;
        sealing.unseal(
            &context(trust_domain, &slot.shown, slot.above.as_deref()),
            sealed,
        )
    });
    let jwt = book.jwt.0.iter().map(|slot| {
        let context = jwt_context(
            trust_domain,
            &slot.authority_id,
            slot.times,
            &slot.public_key,
        );
        sealing.unseal(&context, &slot.key.as_ref().expect("a key").sealed)
    });
    x509.chain(jwt)
        .map(|key| key.expect("sealed by us"))
        .collect()
}
