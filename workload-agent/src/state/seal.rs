//! Decides how kept state is sealed: AES-256-GCM under a key of this node, tied to the name of its file.
//! Trusts the system's randomness. Never opens a part of a file: all of it is as it was written, or nothing is.

use std::fmt;

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};
use zeroize::Zeroizing;

/// The length of a key and of its file.
pub(super) const KEY_BYTES: usize = 32;
/// What a sealed file begins with: what it is, and in which form.
const HEAD: &[u8] = b"finial workload-agent state 1\n";

/// The key that seals. It has no `Clone` and cannot be printed.
pub(super) struct SealingKey(LessSafeKey);

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey")
    }
}

impl SealingKey {
    /// New random bytes for a key.
    pub(super) fn generate() -> Option<Zeroizing<[u8; KEY_BYTES]>> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        SystemRandom::new().fill(bytes.as_mut_slice()).ok()?;
        Some(bytes)
    }

    /// A key of exactly [`KEY_BYTES`].
    pub(super) fn new(bytes: &[u8]) -> Option<Self> {
        let key = UnboundKey::new(&AES_256_GCM, bytes).ok()?;
        Some(Self(LessSafeKey::new(key)))
    }

    /// The whole file: head, nonce, ciphertext.
    pub(super) fn seal(&self, name: &str, mut plain: Zeroizing<Vec<u8>>) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).ok()?;
        let unique = Nonce::assume_unique_for_key(nonce);
        let tag = self
            .0
            .seal_in_place_separate_tag(unique, context(name), &mut plain)
            .ok()?;
        Some([HEAD, &nonce, &plain, tag.as_ref()].concat())
    }

    /// What was sealed with this key under this name; `None` if it was not.
    pub(super) fn open(
        &self,
        name: &str,
        mut file: Zeroizing<Vec<u8>>,
    ) -> Option<Zeroizing<Vec<u8>>> {
        let start = HEAD.len() + NONCE_LEN;
        let nonce = file.strip_prefix(HEAD)?.get(..NONCE_LEN)?.try_into().ok()?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let length = self
            .0
            .open_within(nonce, context(name), &mut file, start..)
            .ok()?
            .len();
        file.truncate(length);
        Some(file)
    }
}

fn context(name: &str) -> Aad<&[u8]> {
    Aad::from(name.as_bytes())
}
