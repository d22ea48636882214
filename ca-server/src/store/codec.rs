//! Decides how a row looks: one schema byte, then postcard. Refuses what it does not know and what would be too large.

use ring::digest;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;

/// The largest row: far above any bundle that is accepted, and a bound on what one call can make us hold.
pub(super) const MAX_ROW: usize = 4 << 20;

/// A kind of row. Changing its shape means a new schema number, and a branch that still reads the old one.
pub(super) trait Row: Serialize + DeserializeOwned {
    /// Its name in errors.
    const WHAT: &'static str;
    /// The number in its first byte.
    const SCHEMA: u8;
}

pub(super) fn encode<R: Row>(row: &R) -> Result<Vec<u8>, StoreError> {
    let bytes = postcard::to_extend(row, vec![R::SCHEMA])
        .map_err(|error| unreadable::<R>(error.to_string()))?;
    if bytes.len() > MAX_ROW {
        return Err(StoreError::TooLarge {
            what: R::WHAT,
            size: bytes.len(),
            limit: MAX_ROW,
        });
    }
    Ok(bytes)
}

pub(super) fn decode<R: Row>(bytes: &[u8]) -> Result<R, StoreError> {
    let (schema, row) = bytes
        .split_first()
        .ok_or_else(|| unreadable::<R>("it is empty".into()))?;
    if *schema != R::SCHEMA {
        return Err(unreadable::<R>(format!(
            "it has schema {schema}, this program reads schema {}",
            R::SCHEMA
        )));
    }
    match postcard::take_from_bytes(row) {
        Ok((row, [])) => Ok(row),
        Ok((_, rest)) => Err(unreadable::<R>(format!(
            "{} bytes are left over",
            rest.len()
        ))),
        Err(error) => Err(unreadable::<R>(error.to_string())),
    }
}

pub(super) fn unreadable<R: Row>(reason: String) -> StoreError {
    StoreError::Unreadable {
        what: R::WHAT,
        reason,
    }
}

/// SHA-256 over parts, each with its length, so that no two lists of parts look alike.
/// A single part is hashed bare.
pub(super) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        if parts.len() > 1 {
            context.update(&(part.len() as u64).to_be_bytes());
        }
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}
