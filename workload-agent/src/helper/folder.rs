//! Decides how a set of files changes at once: a new generation is written whole beside the old one, then one link is swapped.
//! Trusts its folder. Never shows a file of one generation beside one of another, never leaves a name without a file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use mesh_runtime::errors::Coded;

use super::content::Content;

/// The link to the generation that counts, as Kubernetes names it in its volumes.
const DATA: &str = "..data";

/// Why the files cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("the files in {} cannot be written", path.display())]
pub struct FolderError {
    path: PathBuf,
    #[source]
    cause: io::Error,
}

impl Coded for FolderError {
    fn code(&self) -> &'static str {
        "FNL2035"
    }
}

/// The folder with its files.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    /// All names that there will be; each was or will be given.
    names: BTreeSet<String>,
    held: BTreeMap<String, Content>,
    generation: u64,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Content({:o}, {} bytes)", self.mode, self.bytes.len())
    }
}

impl Folder {
    /// An existing folder.
    pub(super) fn open(root: &Path, names: BTreeSet<String>) -> Result<Self, FolderError> {
        let generation = generations(root).map_err(|cause| FolderError {
            path: root.to_owned(),
            cause,
        })?;
        Ok(Self {
            root: root.to_owned(),
            names,
            held: BTreeMap::new(),
            generation: generation.last().copied().unwrap_or(0),
        })
    }

    /// Puts files in place, all at once. Whether anything changed.
    pub(super) fn put(&mut self, changed: BTreeMap<String, Content>) -> Result<bool, FolderError> {
        let same = changed
            .iter()
            .all(|(name, content)| self.held.get(name) == Some(content));
        if same {
            return Ok(false);
        }
        let mut next = self.held.clone();
        next.extend(changed);
        self.write(&next).map_err(|cause| FolderError {
            path: self.root.clone(),
            cause,
        })?;
        self.held = next;
        Ok(true)
    }

    fn write(&mut self, files: &BTreeMap<String, Content>) -> io::Result<()> {
        let former = self.generation;
        // Counted on before anything is written: what a failure leaves behind is never written into again.
        self.generation += 1;
        let name = directory(self.generation);
        let folder = self.root.join(&name);
        DirBuilder::new().mode(0o755).create(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        for (name, content) in files {
            write(&folder.join(name), content)?;
        }
        // What an earlier run wrote and this one has not had yet stays.
        for name in self.names.iter().filter(|name| !files.contains_key(*name)) {
            match fs::hard_link(self.root.join(DATA).join(name), folder.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        File::open(&folder)?.sync_all()?;
        link(Path::new(&name), &self.root.join(DATA))?;
        for name in files.keys() {
            let (at, to) = (self.root.join(name), Path::new(DATA).join(name));
            if !fs::read_link(&at).is_ok_and(|there| there == to) {
                link(&to, &at)?;
            }
        }
        File::open(&self.root)?.sync_all()?;
        // The one before stays for readers that are in it.
        for old in generations(&self.root)? {
            if old != self.generation && old != former {
                fs::remove_dir_all(self.root.join(directory(old))).ok();
            }
        }
        Ok(())
    }
}

fn directory(generation: u64) -> String {
    format!("..{generation}")
}

/// The numbers that are there, in order.
fn generations(root: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(".."));
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn write(path: &Path, content: &Content) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(content.mode & 0o700)
        .open(path)?;
    file.write_all(&content.bytes)?;
    // Whatever the umask takes away.
    file.set_permissions(fs::Permissions::from_mode(content.mode))?;
    file.sync_all()
}

/// Makes or swaps a link in one step.
fn link(to: &Path, at: &Path) -> io::Result<()> {
    let mut beside = at.as_os_str().to_owned();
    beside.push(".new");
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(to, &beside)?;
    fs::rename(&beside, at)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn set(files: &[(&str, u32, &str)]) -> BTreeMap<String, Content> {
        let content = |(name, mode, text): &(&str, u32, &str)| {
            ((*name).to_owned(), Content::new(*mode, *text))
        };
        files.iter().map(content).collect()
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn files_change_together_and_keep_their_modes_and_the_one_before_stays_for_its_readers() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = Folder::open(dir.path(), names(&["cert", "key"])).unwrap();
        let text = |at: &Path, name: &str| fs::read_to_string(at.join(name)).unwrap();
        assert!(
            folder
                .put(set(&[("cert", 0o644, "c1"), ("key", 0o600, "k1")]))
                .unwrap()
        );
        let inside = dir
            .path()
            .join(fs::read_link(dir.path().join(DATA)).unwrap());
        assert!(
            !folder.put(set(&[("cert", 0o644, "c1")])).unwrap(),
            "nothing is new"
        );
        assert!(
            folder
                .put(set(&[("cert", 0o644, "c2"), ("key", 0o600, "k2")]))
                .unwrap()
        );
        assert_eq!(text(dir.path(), "cert") + &text(dir.path(), "key"), "c2k2");
        assert_eq!(text(&inside, "cert") + &text(&inside, "key"), "c1k1");
        folder.put(set(&[("key", 0o640, "k3")])).unwrap();
        assert_eq!(text(dir.path(), "cert") + &text(dir.path(), "key"), "c2k3");
        assert!(!inside.exists(), "two generations are enough");
        for (name, mode) in [("cert", 0o644), ("key", 0o640)] {
            assert_eq!(
                fs::metadata(dir.path().join(name)).unwrap().mode() & 0o777,
                mode
            );
        }
    }

    #[test]
    fn a_new_run_takes_over_plain_files_of_another_helper_and_keeps_what_it_has_not_had_yet() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cert"), "old").unwrap();
        let all = names(&["cert", "token"]);
        let mut first = Folder::open(dir.path(), all.clone()).unwrap();
        first.put(set(&[("token", 0o600, "t1")])).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("cert")).unwrap(), "old");
        first.put(set(&[("cert", 0o644, "c1")])).unwrap();
        let mut second = Folder::open(dir.path(), all).unwrap();
        second.put(set(&[("cert", 0o644, "c2")])).unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!((read("cert"), read("token")), ("c2".into(), "t1".into()));
    }

    #[test]
    fn a_failure_leaves_the_former_files_and_the_next_attempt_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = Folder::open(dir.path(), names(&["cert"])).unwrap();
        folder.put(set(&[("cert", 0o644, "c1")])).unwrap();
        // A name that lies in a folder that does not exist.
        let error = folder.put(set(&[("cert", 0o644, "c2"), ("no/such", 0o644, "x")]));
        assert!(error.unwrap_err().to_string().contains("cannot be written"));
        assert_eq!(fs::read_to_string(dir.path().join("cert")).unwrap(), "c1");
        assert!(folder.put(set(&[("cert", 0o644, "c3")])).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join("cert")).unwrap(), "c3");
        assert!(Folder::open(&dir.path().join("missing"), BTreeSet::new()).is_err());
    }
}
