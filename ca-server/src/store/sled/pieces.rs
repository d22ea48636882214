//! How rows lie in sled: small ones as they are, large ones cut into pieces of 4 KiB.
//! sled keeps up to some twenty rows in a page and moves a page above 128 KiB into a file of its own, which it does not
//! sync; with pieces no page gets near that size.

use std::ops::ControlFlow;

use crate::store::StoreError;
use crate::store::engine::{Overlay, Pages, Visit};

const PIECE: usize = 4096;

/// The first byte of a key that holds a piece: no table has it.
const PIECES: u8 = 0xff;

/// The first byte of a value: whole, or cut (then the number of pieces follows).
const WHOLE: u8 = 0;
const CUT: u8 = 1;

/// The rows, for reading by anyone and for writing by the writer alone.
#[derive(Clone)]
pub(super) struct Rows(pub(super) sled::Tree);

fn piece_key(key: &[u8], index: u16) -> Vec<u8> {
    let mut piece = Vec::with_capacity(key.len() + 3);
    piece.push(PIECES);
    piece.extend_from_slice(key);
    piece.extend_from_slice(&index.to_be_bytes());
    piece
}

fn failed(error: &sled::Error) -> StoreError {
    StoreError::Read {
        reason: error.to_string(),
    }
}

fn torn() -> StoreError {
    StoreError::Read {
        reason: "a row is incomplete".into(),
    }
}

/// How many pieces a stored value has.
fn pieces_of(value: &[u8]) -> Result<Option<u16>, StoreError> {
    match value {
        [WHOLE, ..] => Ok(None),
        [CUT, high, low] => Ok(Some(u16::from_be_bytes([*high, *low]))),
        _ => Err(torn()),
    }
}

impl Rows {
    fn join(&self, key: &[u8], value: &[u8]) -> Result<Vec<u8>, StoreError> {
        let Some(count) = pieces_of(value)? else {
            return Ok(value[1..].to_vec());
        };
        let mut row = Vec::with_capacity(usize::from(count) * PIECE);
        for index in 0..count {
            let piece = self
                .0
                .get(piece_key(key, index))
                .map_err(|error| failed(&error))?;
            row.extend_from_slice(&piece.ok_or_else(torn)?);
        }
        Ok(row)
    }

    /// Writes an overlay in one atomic step. It is not durable yet.
    pub(super) fn write(&self, overlay: Overlay) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for (key, row) in overlay {
            let before = self.0.get(&key).map_err(|error| failed(&error))?;
            let before = before
                .map(|value| pieces_of(&value))
                .transpose()?
                .flatten()
                .unwrap_or(0);
            let after = match row {
                None => {
                    batch.remove(key.as_slice());
                    0
                }
                Some(row) if row.len() < PIECE => {
                    let mut value = Vec::with_capacity(row.len() + 1);
                    value.push(WHOLE);
                    value.extend_from_slice(&row);
                    batch.insert(key.as_slice(), value);
                    0
                }
                Some(row) => {
                    let mut count = 0_u16;
                    for piece in row.chunks(PIECE) {
                        batch.insert(piece_key(&key, count), piece);
                        count += 1;
                    }
                    let [high, low] = count.to_be_bytes();
                    batch.insert(key.as_slice(), &[CUT, high, low]);
                    count
                }
            };
            for index in after..before {
                batch.remove(piece_key(&key, index));
            }
        }
        self.0.apply_batch(batch).map_err(|error| failed(&error))
    }
}

impl Pages for Rows {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self.0.get(key).map_err(|error| failed(&error))?;
        value.map(|value| self.join(key, &value)).transpose()
    }

    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        for pair in self.0.scan_prefix(prefix) {
            let (key, value) = pair.map_err(|error| failed(&error))?;
            if let ControlFlow::Break(()) = visit(&key, &self.join(&key, &value)?) {
                break;
            }
        }
        Ok(())
    }
}
