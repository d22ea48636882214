//! Decides what a checkpoint says: a log, its size and the root of its tree, signed (c2sp.org/tlog-checkpoint), and how a list of them is read.
//! Trusts a checkpoint only under the key it is asked for. Never takes the unfinished last one of a list for tampering.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::merkle::{Hash, Tree};
use super::note::{LONGEST_NOTE, PublicKey, SigningKey};
use crate::errors::Coded;

/// What was signed of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    size: u64,
    root: Hash,
    note: String,
}

impl Checkpoint {
    /// Signs a tree.
    pub(super) fn sign(key: &SigningKey, tree: &Tree) -> Self {
        let (size, root) = (tree.size(), tree.root());
        let text = format!(
            "{}\n{size}\n{}\n",
            key.public().name(),
            STANDARD.encode(root)
        );
        let note = key.note(&text);
        Self { size, root, note }
    }

    /// Reads a signed checkpoint of the log whose key this is.
    ///
    /// # Errors
    /// When the key did not sign it, or it is no checkpoint.
    pub fn parse(note: &str, key: &PublicKey) -> Result<Self, BadCheckpoint> {
        let text = key.open(note).ok_or(BadCheckpoint::Unsigned)?;
        let mut lines = text.lines();
        if lines.next() != Some(key.name()) {
            return Err(BadCheckpoint::Malformed);
        }
        let size = lines.next().and_then(decimal);
        let root = lines.next().and_then(hash);
        match (size, root) {
            (Some(size), Some(root)) => Ok(Self {
                size,
                root,
                note: note.to_owned(),
            }),
            _ => Err(BadCheckpoint::Malformed),
        }
    }

    /// How many records it covers.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The root of their tree.
    pub fn root(&self) -> &Hash {
        &self.root
    }

    /// The root in the form in which it stands in the note.
    pub fn root_text(&self) -> String {
        STANDARD.encode(self.root)
    }
}

impl fmt::Display for Checkpoint {
    /// The signed note.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.note)
    }
}

/// A whole number without sign or leading zeros.
pub(super) fn decimal(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

/// A hash in base64.
pub(super) fn hash(text: &str) -> Option<Hash> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

/// Lines of hashes.
pub(super) fn hash_lines(hashes: &[Hash]) -> String {
    hashes.iter().map(|h| STANDARD.encode(h) + "\n").collect()
}

/// Why the signed checkpoints do not vouch for a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCheckpoint {
    /// The key did not sign it.
    #[error("it is not signed by the key")]
    Unsigned,
    /// It is signed, and no checkpoint of this log.
    #[error("it is no checkpoint of this log")]
    Malformed,
    /// Something in the list is not signed by the key.
    #[error("in the list of checkpoints, what follows the {0}th is not signed by the key")]
    List(u64),
    /// A checkpoint covers fewer records than the one before it.
    #[error("the checkpoint over {0} records follows one over more")]
    Order(u64),
    /// The records do not have the root that was signed.
    #[error("records {} to {size} are not those that the checkpoint over {size} records covers", .after + 1)]
    Root {
        /// How many records the checkpoint covers.
        size: u64,
        /// Up to here an earlier checkpoint agrees.
        after: u64,
    },
    /// The log is shorter than what was signed.
    #[error(
        "the log ends with record {records}, and a checkpoint covers {size}: records are missing at the end"
    )]
    Missing {
        /// How many records the checkpoint covers.
        size: u64,
        /// How many there are.
        records: u64,
    },
    /// There is none.
    #[error("there is no checkpoint that covers any of the records")]
    None,
    /// The newest checkpoint is older than a program that runs ever leaves it.
    #[error("records {} to {records} are under no checkpoint, and so many are never left without: checkpoints are missing", .signed + 1)]
    Uncovered {
        /// Up to here there are checkpoints.
        signed: u64,
        /// How many records there are.
        records: u64,
    },
    /// It covers records only that are not here.
    #[error("the checkpoint over {0} records cannot be compared: those records were moved away")]
    Gone(u64),
    /// Older files were moved away, and with them what the tree was.
    #[error("the tree before record {0} is not known: `audit-{before:020}.tree` is missing or wrong", before = .0 - 1)]
    Start(u64),
    /// The program had stopped, and something else was written behind that.
    #[error(
        "record {0} was not written by the program: it had stopped, and signs each start of its own"
    )]
    AfterStop(u64),
    /// The log does not end as a stopped program leaves it.
    #[error(
        "the log was not closed: record {0}, its last one, is not a `log.stop` under a checkpoint"
    )]
    Open(u64),
}

impl Coded for BadCheckpoint {
    fn code(&self) -> &'static str {
        "FNL0208"
    }
}

/// A list of checkpoints as it lies in a file: one note after the other.
pub(super) struct List {
    pub(super) checkpoints: Vec<Checkpoint>,
    /// Up to here it is whole. What follows was not written to its end.
    pub(super) length: usize,
}

/// The most that a power cut can leave unfinished at the end of a list.
const LONGEST_TORN: usize = LONGEST_NOTE;

impl List {
    /// Reads a list. An end that was not written is left out; anything else that is not signed refuses it.
    pub(super) fn read(bytes: &[u8], key: &PublicKey) -> Result<Self, BadCheckpoint> {
        let (mut checkpoints, mut at) = (Vec::<Checkpoint>::new(), 0);
        while at < bytes.len() {
            let rest = &bytes[at..];
            let whole = note(rest).map(|text| (text.len(), Checkpoint::parse(text, key)));
            match whole {
                Some((length, Ok(checkpoint))) => {
                    if checkpoints.last().is_some_and(|l| l.size > checkpoint.size) {
                        return Err(BadCheckpoint::Order(checkpoint.size));
                    }
                    checkpoints.push(checkpoint);
                    at += length;
                }
                // Not yet on the disk when the power went: cut short, or a hole of zeros.
                None if rest.len() < LONGEST_TORN && (rest.contains(&0) || is_cut(rest)) => break,
                _ => return Err(BadCheckpoint::List(checkpoints.len() as u64)),
            }
        }
        Ok(Self {
            checkpoints,
            length: at,
        })
    }
}

/// The first note of a list, when it is there to its end: text, a blank line, signature lines.
fn note(bytes: &[u8]) -> Option<&str> {
    let blank = bytes.windows(2).position(|two| two == b"\n\n")? + 2;
    let mut end = blank;
    while bytes[end..].starts_with("\u{2014} ".as_bytes()) {
        end += bytes[end..].iter().position(|byte| *byte == b'\n')? + 1;
    }
    (end > blank).then(|| std::str::from_utf8(&bytes[..end]).ok())?
}

/// Whether bytes that hold no whole note are the beginning of one.
fn is_cut(bytes: &[u8]) -> bool {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        // The dash of the signature has three bytes.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    match text.split_once("\n\n") {
        None => text.matches('\n').count() <= 3,
        Some((_, signature)) => {
            !signature.contains('\n')
                && "\u{2014} ".starts_with(signature.get(..4).unwrap_or(signature))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::merkle::leaf;

    fn signed(key: &SigningKey, sizes: &[u64]) -> Vec<Checkpoint> {
        let sign = |size: &u64| {
            let mut tree = Tree::default();
            (0..*size).for_each(|n| tree.push(leaf(&n.to_be_bytes())));
            Checkpoint::sign(key, &tree)
        };
        sizes.iter().map(sign).collect()
    }

    fn key() -> SigningKey {
        SigningKey::generate("dev.test/ca-server/audit").unwrap().0
    }

    fn text(checkpoints: &[Checkpoint]) -> String {
        checkpoints.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_checkpoint_is_three_lines_and_a_signature() {
        let key = key();
        let checkpoint = &signed(&key, &[2])[0];
        let note = checkpoint.to_string();
        let lines: Vec<&str> = note.lines().collect();
        assert_eq!(lines.len(), 5);
        assert_eq!(
            (lines[0], lines[1], lines[3]),
            ("dev.test/ca-server/audit", "2", "")
        );
        assert_eq!(hash(lines[2]).unwrap(), *checkpoint.root());
        assert!(lines[4].starts_with("\u{2014} dev.test/ca-server/audit "));
        assert_eq!(Checkpoint::parse(&note, key.public()).unwrap(), *checkpoint);
    }

    #[test]
    fn what_is_signed_and_no_checkpoint_of_this_log_is_refused() {
        let key = key();
        let root = STANDARD.encode([7; 32]);
        for text in [
            format!("other/log\n1\n{root}\n"),
            format!("dev.test/ca-server/audit\n01\n{root}\n"),
            format!("dev.test/ca-server/audit\n+1\n{root}\n"),
            "dev.test/ca-server/audit\n1\nAAAA\n".to_owned(),
            "dev.test/ca-server/audit\n1\n".to_owned(),
        ] {
            let parsed = Checkpoint::parse(&key.note(&text), key.public());
            assert_eq!(parsed, Err(BadCheckpoint::Malformed), "{text}");
        }
    }

    #[test]
    fn a_list_cut_anywhere_in_its_last_checkpoint_loses_only_that_one() {
        let key = key();
        let all = signed(&key, &[0, 3, 3, 9]);
        let whole = text(&all);
        assert_eq!(
            List::read(whole.as_bytes(), key.public())
                .unwrap()
                .checkpoints,
            all
        );
        let kept = text(&all[..3]).len();
        for end in kept..whole.len() {
            let list = List::read(&whole.as_bytes()[..end], key.public())
                .unwrap_or_else(|e| panic!("{end}: {e}"));
            assert_eq!((list.checkpoints.len(), list.length), (3, kept), "{end}");
            let mut hole = whole.as_bytes()[..end].to_vec();
            hole.resize(whole.len() + 300, 0);
            assert_eq!(
                List::read(&hole, key.public()).unwrap().length,
                kept,
                "{end}"
            );
        }
    }

    #[test]
    fn a_list_with_any_byte_changed_before_its_end_is_refused() {
        let key = key();
        let whole = text(&signed(&key, &[1, 2, 5]));
        let last = text(&signed(&key, &[5])).len();
        for at in 0..whole.len() - last {
            let mut bytes = whole.as_bytes().to_vec();
            bytes[at] ^= 1;
            assert!(List::read(&bytes, key.public()).is_err(), "byte {at}");
        }
        let reordered = text(&signed(&key, &[2, 1]));
        let list = List::read(reordered.as_bytes(), key.public());
        assert_eq!(list.err(), Some(BadCheckpoint::Order(1)));
    }
}
