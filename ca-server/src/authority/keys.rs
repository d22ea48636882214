//! Where a CA private key rests: in memory as a key that only signs (`pair`), on disk sealed with AES-256-GCM.
//! The only place that names a signing library and the only holder of CA keys.
//! Nothing here can be cloned, printed or serialised, except what is sealed.

mod pair;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use mesh_runtime::files;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::AuthorityError;

pub use self::pair::KeyType;
pub(super) use self::pair::{CaKey, Pkcs8, TokenKey, generate};

/// A name of 32 random letters and digits, as SPIRE names its JWT keys.
pub(super) fn new_key_id() -> Option<String> {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let random = SystemRandom::new();
    let mut name = String::with_capacity(32);
    while name.len() < 32 {
        let mut bytes = [0; 32];
        random.fill(&mut bytes).ok()?;
        // What lies beyond the last whole multiple would make the first letters likelier.
        let fair = bytes.iter().map(|byte| usize::from(byte & 63));
        let letters = fair
            .filter_map(|at| ALPHABET.get(at))
            .map(|&letter| char::from(letter));
        name.extend(letters.take(32 - name.len()));
    }
    Some(name)
}

/// A `jti`: 16 random bytes in base64url.
pub(super) fn new_token_id() -> Option<String> {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(URL_SAFE_NO_PAD.encode(bytes))
}

/// A key id as SPIRE makes it: SHA-1 of the key bits (RFC 5280, 4.2.1.2, method 1). A name, not a proof.
pub(super) fn key_id(public_key_bits: &[u8]) -> Vec<u8> {
    digest(&SHA1_FOR_LEGACY_USE_ONLY, public_key_bits)
        .as_ref()
        .to_vec()
}

/// A positive serial number with 128 random bits.
pub(super) fn new_serial() -> Option<[u8; 17]> {
    let mut serial = [0; 17];
    SystemRandom::new().fill(&mut serial[1..]).ok()?;
    // The leading one keeps it positive and of one length.
    serial[0] = 1;
    Some(serial)
}

/// What lies in the store in place of a key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Sealed {
    nonce: [u8; NONCE_LEN],
    ciphertext: Vec<u8>,
}

/// The key that seals the others. It never lies in the store.
pub(super) struct SealingKey(LessSafeKey);

impl SealingKey {
    /// Reads the key file; makes it only if `may_make`, that is, if nothing was ever sealed.
    pub(super) fn load(path: &Path, may_make: bool) -> Result<Self, AuthorityError> {
        let failed = |source| AuthorityError::SealingKeyFile {
            path: path.to_owned(),
            source,
        };
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && may_make => {
                make(path).map_err(failed)?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(AuthorityError::SealingKeyMissing {
                    path: path.to_owned(),
                });
            }
            opened => opened.map_err(failed)?,
        };
        // Asked of the open file, so that nobody can put another in its place in between.
        let facts = file.metadata().map_err(failed)?;
        if !facts.is_file() {
            return Err(failed(io::Error::other("it is not a regular file")));
        }
        if facts.mode() & 0o077 != 0 {
            return Err(AuthorityError::OpenToOthers {
                path: path.to_owned(),
                mode: facts.mode() & 0o7777,
            });
        }
        let malformed = || AuthorityError::SealingKeyMalformed {
            path: path.to_owned(),
        };
        let mut text = Zeroizing::new(Vec::with_capacity(128));
        file.take(128).read_to_end(&mut text).map_err(failed)?;
        let key = unhex(text.trim_ascii_end()).ok_or_else(malformed)?;
        Ok(Self(LessSafeKey::new(
            UnboundKey::new(&AES_256_GCM, key.as_slice()).map_err(|_| malformed())?,
        )))
    }

    /// Seals a key for one place: `context` must be the same when it is opened.
    pub(super) fn seal(&self, context: &[u8], key: &Pkcs8) -> Result<Sealed, AuthorityError> {
        let failed = |_| AuthorityError::Make {
            reason: "the key could not be sealed".into(),
        };
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(failed)?;
        // Room for the tag from the start: growing would leave the key behind in freed memory.
        let mut ciphertext = Vec::with_capacity(key.len() + AES_256_GCM.tag_len());
        ciphertext.extend_from_slice(key);
        let unique = Nonce::assume_unique_for_key(nonce);
        self.0
            .seal_in_place_append_tag(unique, Aad::from(context), &mut ciphertext)
            .map_err(failed)?;
        Ok(Sealed { nonce, ciphertext })
    }

    /// Opens what was sealed for this `context` with this key; `None` if it was not.
    pub(super) fn unseal(&self, context: &[u8], sealed: &Sealed) -> Option<Pkcs8> {
        let mut text = Zeroizing::new(sealed.ciphertext.clone());
        let nonce = Nonce::assume_unique_for_key(sealed.nonce);
        let length = self
            .0
            .open_in_place(nonce, Aad::from(context), &mut text)
            .ok()?
            .len();
        text.truncate(length);
        Some(text)
    }
}

/// Makes the key file, durable and readable by us alone from its first moment.
fn make(path: &Path) -> io::Result<File> {
    let mut key = Zeroizing::new([0_u8; 32]);
    SystemRandom::new()
        .fill(key.as_mut_slice())
        .map_err(|_| io::Error::other("no random numbers"))?;
    let mut text = Zeroizing::new(String::with_capacity(65));
    for byte in key.iter() {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(digit.into(), 16).unwrap_or_default());
        }
    }
    text.push('\n');
    files::create(path, files::PRIVATE, text.as_bytes())?;
    File::open(path)
}

fn unhex(text: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    if text.len() != 64 {
        return None;
    }
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    let mut key = Zeroizing::new([0; 32]);
    for (byte, pair) in key.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(key)
}
