//! Decides what a signed note is: a text and the Ed25519 signatures below it, as c2sp.org/signed-note writes them.
//! Trusts a text only when a known key signed it; passes over signatures of keys that it does not know.
//! Never prints a private key, and never makes one without saying so.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::digest::{self, SHA256};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use zeroize::Zeroizing;

use crate::errors::Coded;

/// The signature type of Ed25519.
const ED25519_TYPE: u8 = 1;

/// The longest note that is read.
pub(super) const LONGEST_NOTE: usize = 64 * 1024;

/// Why a key is not used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KeyError {
    /// The text is not a key of this kind.
    #[error("this is no Ed25519 key of a signed note")]
    Malformed,
    /// A name with a blank or a plus sign, or none.
    #[error("`{0}` cannot be the name of a key")]
    Name(String),
    /// The kernel gave no random bytes, or the key was not accepted.
    #[error("no key could be made")]
    Make,
    /// Its file cannot be read or written.
    #[error("its file cannot be used")]
    File(#[source] Arc<std::io::Error>),
    /// Others than its owner may read its file.
    #[error(
        "others may read its file (mode {0:o}): take that away from them, and think of the key as known"
    )]
    OpenToOthers(u32),
    /// Its file is gone.
    #[error("its file is missing, and what it signed is there")]
    Gone,
}

impl Coded for KeyError {
    fn code(&self) -> &'static str {
        "FNL0209"
    }
}

/// A public key under its name, in the form `NAME+ID+BASE64` that tools for transparency logs read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    id: [u8; 4],
    key: [u8; 32],
}

impl PublicKey {
    fn new(name: &str, key: [u8; 32]) -> Result<Self, KeyError> {
        let bad = |c: char| c.is_whitespace() || c.is_control() || c == '+';
        if name.is_empty() || name.contains(bad) {
            return Err(KeyError::Name(crate::errors::untrusted(name)));
        }
        let mut context = digest::Context::new(&SHA256);
        for part in [name.as_bytes(), b"\n", &[ED25519_TYPE], &key] {
            context.update(part);
        }
        let mut id = [0; 4];
        id.copy_from_slice(&context.finish().as_ref()[..4]);
        let name = name.to_owned();
        Ok(Self { name, id, key })
    }

    /// Its name: the origin of the log whose checkpoints it signs.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text of a note, if this key signed it (c2sp.org/signed-note: an unknown key's signatures are passed over, a bad
    /// one of a known key refuses the note).
    pub(super) fn open<'n>(&self, note: &'n str) -> Option<&'n str> {
        if note.len() > LONGEST_NOTE {
            return None;
        }
        let (text, signatures) = note.split_at(note.rfind("\n\n")? + 1);
        let mut signed = false;
        for line in signatures
            .strip_prefix('\n')?
            .strip_suffix('\n')?
            .split('\n')
        {
            let (name, signature) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
            let signature = STANDARD.decode(signature).ok()?;
            let (id, signature) = signature.split_at_checked(4)?;
            if name != self.name || id != self.id {
                continue;
            }
            let key = UnparsedPublicKey::new(&ED25519, self.key);
            key.verify(text.as_bytes(), signature).ok()?;
            signed = true;
        }
        signed.then_some(text)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = u32::from_be_bytes(self.id);
        write!(f, "{}+{id:08x}+{}", self.name, typed(&self.key).as_str())
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (name, id, key) = fields(text.trim_end())?;
        let key = Self::new(name, *key)?;
        match key.id == id {
            true => Ok(key),
            false => Err(KeyError::Malformed),
        }
    }
}

/// A private key. It signs, and can be neither cloned nor printed.
pub(super) struct SigningKey {
    public: PublicKey,
    pair: Ed25519KeyPair,
}

/// What stands before a private key in its file, as Go's sumdb/note writes it.
const PRIVATE: &str = "PRIVATE+KEY+";

impl SigningKey {
    /// A new key, and the text that keeps it.
    pub(super) fn generate(name: &str) -> Result<(Self, Zeroizing<String>), KeyError> {
        let mut seed = Zeroizing::new([0; 32]);
        let random = SystemRandom::new();
        random
            .fill(seed.as_mut_slice())
            .map_err(|_| KeyError::Make)?;
        let key = Self::of_seed(name, &seed)?;
        let id = u32::from_be_bytes(key.public.id);
        let kept = typed(&seed);
        // Room for all of it from the start: growing would leave a copy behind.
        let mut text = Zeroizing::new(String::with_capacity(name.len() + 128));
        for part in [
            PRIVATE,
            name,
            "+",
            &format!("{id:08x}+"),
            kept.as_str(),
            "\n",
        ] {
            text.push_str(part);
        }
        Ok((key, text))
    }

    /// The key that a text keeps.
    pub(super) fn parse(text: &str) -> Result<Self, KeyError> {
        let text = text.strip_prefix(PRIVATE).ok_or(KeyError::Malformed)?;
        let (name, id, seed) = fields(text.trim_end())?;
        let key = Self::of_seed(name, &seed)?;
        match key.public.id == id {
            true => Ok(key),
            false => Err(KeyError::Malformed),
        }
    }

    fn of_seed(name: &str, seed: &[u8; 32]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| KeyError::Make)?;
        let mut key = [0; 32];
        key.copy_from_slice(pair.public_key().as_ref());
        let public = PublicKey::new(name, key)?;
        Ok(Self { public, pair })
    }

    pub(super) fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The note of a text that ends with a line feed.
    pub(super) fn note(&self, text: &str) -> String {
        let signature = self.pair.sign(text.as_bytes());
        let signature = STANDARD.encode([&self.public.id, signature.as_ref()].concat());
        format!("{text}\n\u{2014} {} {signature}\n", self.public.name)
    }
}

/// A key's bytes behind the number of its kind, in base64.
fn typed(key: &[u8; 32]) -> Zeroizing<String> {
    let mut bytes = Zeroizing::new([ED25519_TYPE; 33]);
    bytes[1..].copy_from_slice(key);
    Zeroizing::new(STANDARD.encode(bytes.as_slice()))
}

/// A key's name, id and bytes.
type Fields<'t> = (&'t str, [u8; 4], Zeroizing<[u8; 32]>);

/// `NAME+ID+BASE64` in its parts. Base64 has plus signs of its own; names have none.
fn fields(text: &str) -> Result<Fields<'_>, KeyError> {
    let mut parts = text.splitn(3, '+');
    let (Some(name), Some(id), Some(key), true) =
        (parts.next(), parts.next(), parts.next(), text.len() < 1024)
    else {
        return Err(KeyError::Malformed);
    };
    let id = match id.len() {
        8 => u32::from_str_radix(id, 16).map_err(|_| KeyError::Malformed)?,
        _ => return Err(KeyError::Malformed),
    };
    let bytes = Zeroizing::new(STANDARD.decode(key).map_err(|_| KeyError::Malformed)?);
    match bytes.split_first() {
        Some((&ED25519_TYPE, rest)) if rest.len() == 32 => {
            let mut key = Zeroizing::new([0; 32]);
            key.copy_from_slice(rest);
            Ok((name, id.to_be_bytes(), key))
        }
        _ => Err(KeyError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example in the documentation of Go's golang.org/x/mod/sumdb/note, whose keys everybody may know.
    const PUBLIC: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    const PRIVATE_KEY: &str =
        "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
    const NOTE: &str = "If you think cryptography is the answer to your problem,\n\
         then you don't know what your problem is.\n\n\
         \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

    #[test]
    fn a_note_of_another_program_is_read_and_made_byte_for_byte() {
        let public: PublicKey = PUBLIC.parse().unwrap();
        assert_eq!(public.to_string(), PUBLIC);
        let text = public.open(NOTE).unwrap();
        assert!(text.ends_with("problem is.\n"));
        let key = SigningKey::parse(PRIVATE_KEY).unwrap();
        assert_eq!(*key.public(), public);
        assert_eq!(key.note(text), NOTE);
    }

    #[test]
    fn a_made_key_is_kept_and_read_again() {
        let (key, text) = SigningKey::generate("dev.test/ca-server/audit").unwrap();
        let again = SigningKey::parse(&text).unwrap();
        assert_eq!(again.public(), key.public());
        assert_eq!(again.note("a\n"), key.note("a\n"));
        assert_eq!(
            key.public().to_string().parse::<PublicKey>().unwrap(),
            *key.public()
        );
        let (other, _) = SigningKey::generate("dev.test/ca-server/audit").unwrap();
        assert!(other.public().open(&key.note("a\n")).is_none());
    }

    #[test]
    fn a_note_with_any_byte_changed_is_refused() {
        let public: PublicKey = PUBLIC.parse().unwrap();
        for at in 0..NOTE.len() {
            let mut bytes = NOTE.as_bytes().to_vec();
            bytes[at] ^= 1;
            if let Ok(changed) = std::str::from_utf8(&bytes) {
                assert!(public.open(changed).is_none(), "byte {at}");
            }
        }
        for end in 0..NOTE.len() {
            assert!(
                NOTE.get(..end).is_none_or(|cut| public.open(cut).is_none()),
                "{end}"
            );
        }
    }

    #[test]
    fn signatures_of_unknown_keys_are_passed_over_and_not_enough() {
        let public: PublicKey = PUBLIC.parse().unwrap();
        let (witness, _) = SigningKey::generate("witness.test").unwrap();
        let text = public.open(NOTE).unwrap();
        let cosigned = witness.note(text).replacen(text, "", 1);
        let both = format!("{NOTE}{}", cosigned.trim_start());
        assert_eq!(public.open(&both), Some(text));
        assert_eq!(witness.public().open(&both), Some(text));
        assert!(public.open(&witness.note(text)).is_none());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in [
            "",
            "a",
            "a+b+c",
            "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
            "Peter Neumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
            "PeterNeumann+c74f20a3+Ahpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
            "PeterNeumann+c74f20a3+ARpc",
            "PeterNeumann+\u{e4}74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        ] {
            assert_eq!(
                text.parse::<PublicKey>().unwrap_err().code(),
                "FNL0209",
                "{text}"
            );
        }
        assert!(SigningKey::parse(PUBLIC).is_err());
        assert!(SigningKey::generate("two words").is_err());
        assert!(SigningKey::generate("a+b").is_err());
    }
}
