//! Decides when the log's tree is signed and where the checkpoints lie: beside the log, one list for each of its files.
//! Trusts what it opens only after the old checkpoints agree with the records. Signs no record that is not durable yet.
//! Never makes a new key where an old one has signed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::AuditError;
use super::checkpoint::{BadCheckpoint, Checkpoint, List, decimal, hash, hash_lines};
use super::merkle::{Hash, Tree};
use super::note::{KeyError, SigningKey};
use crate::files::{self, PRIVATE};

/// The name of the current list of checkpoints in the log's directory.
pub const CHECKPOINTS_FILE: &str = "audit.checkpoints";
/// The name of the private key in the log's directory.
pub const KEY_FILE: &str = "checkpoint.key";
/// The name of the public key in the log's directory.
pub const PUBLIC_KEY_FILE: &str = "checkpoint.pub";

/// Records after which the tree is signed.
pub(super) const RECORDS: u64 = 1000;

/// The longest list that is read at a start, and the longest file of a tree or key.
const LONGEST_LIST: u64 = 64 * 1024 * 1024;
const LONGEST_SMALL: u64 = 16 * 1024;

/// The tree at the end of the file whose last record has this number.
pub(super) fn tree_file(last: u64) -> String {
    format!("audit-{last:020}.tree")
}

/// The text of such a file: the size, then the peaks.
pub(super) fn tree_text(tree: &Tree) -> String {
    format!("{}\n{}", tree.size(), hash_lines(tree.peaks()))
}

/// Reads such a file. Nobody signed it: what is read after it must lead to what somebody signed.
pub(super) fn read_tree(dir: &Path, last: u64) -> Option<Tree> {
    if last == 0 {
        return Some(Tree::default());
    }
    let text = read_small(&dir.join(tree_file(last))).ok()?;
    let mut lines = text.lines();
    let size = lines.next().and_then(decimal)?;
    let peaks: Option<Vec<Hash>> = lines.map(hash).collect();
    Tree::of_peaks(size, peaks?).filter(|tree| tree.size() == last)
}

fn read_small(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(LONGEST_SMALL)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// What a start finds.
pub(super) struct Found {
    key: SigningKey,
    /// The text of a new key, which is to be kept.
    new: Option<Zeroizing<String>>,
    pub(super) checkpoints: Vec<Checkpoint>,
    length: u64,
}

impl Found {
    /// Looks for the key and its newest checkpoints; makes a key, in memory only, where none ever signed.
    pub(super) fn look(dir: &Path, origin: &str) -> Result<Self, AuditError> {
        let path = dir.join(KEY_FILE);
        let unusable = |cause| AuditError::Key(path.clone(), Arc::new(cause));
        let io = |cause| unusable(KeyError::File(Arc::new(cause)));
        let mut bytes = Vec::new();
        match File::open(dir.join(CHECKPOINTS_FILE)) {
            Ok(list) => {
                list.take(LONGEST_LIST)
                    .read_to_end(&mut bytes)
                    .map_err(io)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io(error)),
        }
        match File::open(&path) {
            Ok(file) => {
                let mode = file.metadata().map_err(io)?.mode() & 0o7777;
                if mode & 0o077 != 0 {
                    return Err(unusable(KeyError::OpenToOthers(mode)));
                }
                let mut text = Zeroizing::new(String::with_capacity(2048));
                file.take(2048).read_to_string(&mut text).map_err(io)?;
                let key = SigningKey::parse(&text).map_err(unusable)?;
                let bad = |bad| AuditError::Checkpoint(dir.to_owned(), Arc::new(bad));
                let list = List::read(&bytes, key.public()).map_err(bad)?;
                if list.length < bytes.len() {
                    let bytes = bytes.len() - list.length;
                    tracing::warn!(
                        bytes,
                        "the last checkpoint was not written to its end; it is signed anew"
                    );
                }
                Ok(Self {
                    key,
                    new: None,
                    checkpoints: list.checkpoints,
                    length: list.length as u64,
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // One checkpoint without its key is a first start that did not get as far as keeping the key.
                let first_start = bytes
                    .windows(3)
                    .filter(|dash| *dash == b"\xe2\x80\x94")
                    .count()
                    < 2;
                if !first_start || has_closed(dir).map_err(io)? {
                    return Err(unusable(KeyError::Gone));
                }
                let (key, text) = SigningKey::generate(origin).map_err(unusable)?;
                Ok(Self {
                    key,
                    new: Some(text),
                    checkpoints: Vec::new(),
                    length: 0,
                })
            }
            Err(error) => Err(io(error)),
        }
    }

    /// Goes on signing a log whose records agree with the checkpoints and have this tree.
    pub(super) fn open(self, dir: &Path, tree: Tree) -> Result<Sealer, AuditError> {
        let path = dir.join(KEY_FILE);
        let io = |cause| AuditError::Key(path.clone(), Arc::new(KeyError::File(Arc::new(cause))));
        let newest = match (self.checkpoints.last(), &self.new) {
            (Some(newest), _) => newest.clone(),
            (None, Some(text)) => {
                let first = Checkpoint::sign(&self.key, &tree);
                let list = dir.join(CHECKPOINTS_FILE);
                files::replace(&list, PRIVATE, first.to_string().as_bytes()).map_err(io)?;
                // Never over an old one.
                files::create(&path, PRIVATE, text.as_bytes()).map_err(io)?;
                first
            }
            (None, None) => {
                let none = Arc::new(BadCheckpoint::None);
                return Err(AuditError::Checkpoint(dir.to_owned(), none));
            }
        };
        let public = format!("{}\n", self.key.public());
        let public_file = dir.join(PUBLIC_KEY_FILE);
        if read_small(&public_file).ok().as_ref() != Some(&public) {
            files::replace(&public_file, PRIVATE, public.as_bytes()).map_err(io)?;
        }
        let file = OpenOptions::new()
            .write(true)
            .open(dir.join(CHECKPOINTS_FILE))
            .map_err(io)?;
        let length = match self.new {
            Some(_) => newest.to_string().len() as u64,
            None => self.length,
        };
        Ok(Sealer {
            dir: dir.to_owned(),
            key: self.key,
            file,
            length,
            dirty: true,
            newest,
            tree,
        })
    }
}

/// Whether checkpoints of closed files are there.
fn has_closed(dir: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let named = path.file_name() != Some(CHECKPOINTS_FILE.as_ref());
        if named && path.extension() == Some("checkpoints".as_ref()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Signs the tree of a log that is being written.
pub(super) struct Sealer {
    dir: PathBuf,
    key: SigningKey,
    file: File,
    /// The length up to which the list is whole.
    length: u64,
    /// Something unfinished may lie beyond it.
    dirty: bool,
    newest: Checkpoint,
    tree: Tree,
}

impl Sealer {
    /// Takes the next record, which is durable.
    pub(super) fn push(&mut self, leaf: Hash) {
        self.tree.push(leaf);
    }

    /// How many records there are.
    pub(super) fn size(&self) -> u64 {
        self.tree.size()
    }

    /// The newest checkpoint.
    pub(super) fn newest(&self) -> &Checkpoint {
        &self.newest
    }

    /// Whether enough records have come since.
    pub(super) fn is_due(&self) -> bool {
        self.tree.size() - self.newest.size() >= RECORDS
    }

    /// Signs the tree, unless the newest checkpoint covers it already. True when there is a new one.
    pub(super) fn seal(&mut self) -> io::Result<bool> {
        if self.newest.size() == self.tree.size() {
            return Ok(false);
        }
        let checkpoint = Checkpoint::sign(&self.key, &self.tree);
        let text = checkpoint.to_string();
        if self.dirty {
            self.file.set_len(self.length)?;
        }
        self.dirty = true;
        self.file.write_all_at(text.as_bytes(), self.length)?;
        self.dirty = false;
        self.length += text.len() as u64;
        self.newest = checkpoint;
        Ok(true)
    }

    /// Waits until the checkpoints are durable.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Closes the list together with the file of records that ends here, and begins the next one with the same checkpoint.
    pub(super) fn turn(&mut self) -> io::Result<()> {
        self.seal()?;
        self.file.sync_all()?;
        let last = self.tree.size();
        let tree = self.dir.join(tree_file(last));
        files::replace(&tree, PRIVATE, tree_text(&self.tree).as_bytes())?;
        let closed = self.dir.join(format!("audit-{last:020}.checkpoints"));
        match std::fs::hard_link(self.dir.join(CHECKPOINTS_FILE), &closed) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let first = self.newest.to_string();
        let path = self.dir.join(CHECKPOINTS_FILE);
        files::replace(&path, PRIVATE, first.as_bytes())?;
        self.file = OpenOptions::new().write(true).open(path)?;
        (self.length, self.dirty) = (first.len() as u64, false);
        Ok(())
    }
}
