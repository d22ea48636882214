//! Decides how a small file comes to be: whole, durable and with its mode from the first byte on, or not at all.
//! Trusts its folder. Never leaves half a file under the name, never writes through a link that lies there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The mode of what is for this program alone.
pub const PRIVATE: u32 = 0o600;

/// Puts content under a name, in the place of what may be there: a reader finds the old file or the new one, whole.
/// It is on disk when this returns.
///
/// # Errors
/// Those of the file system; the old file stays.
pub fn replace(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let (beside, folder) = beside(path)?;
    write(&beside, mode, content)?;
    fs::rename(&beside, path)?;
    File::open(folder)?.sync_all()
}

/// As [`replace`], but never over what is there.
///
/// # Errors
/// Those of the file system, [`io::ErrorKind::AlreadyExists`] among them; then what is there stays.
pub fn create(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let (beside, folder) = beside(path)?;
    write(&beside, mode, content)?;
    let linked = fs::hard_link(&beside, path);
    fs::remove_file(&beside)?;
    linked?;
    File::open(folder)?.sync_all()
}

/// The name that the file has until it is whole, and the folder of both.
fn beside(path: &Path) -> io::Result<(PathBuf, &Path)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    let folder = folder.unwrap_or(Path::new("."));
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".new");
    Ok((folder.join(hidden), folder))
}

fn write(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    // What a crash left behind, or a link that somebody put there.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole_with_its_mode_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        for content in [&b"old and longer"[..], b"new"] {
            replace(&path, PRIVATE, content).unwrap();
            assert_eq!(fs::read(&path).unwrap(), content);
        }
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, PRIVATE);
        assert_eq!(names(folder.path()), ["key"]);
    }

    #[test]
    fn what_is_there_is_not_created_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        create(&path, PRIVATE, b"first").unwrap();
        let again = create(&path, PRIVATE, b"second").unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(names(folder.path()), ["key"]);
    }

    #[test]
    fn a_crash_or_a_planted_link_beside_the_file_is_not_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let victim = folder.path().join("victim");
        fs::write(&victim, b"untouched").unwrap();
        symlink(&victim, folder.path().join(".key.new")).unwrap();
        replace(&folder.path().join("key"), PRIVATE, b"key").unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"untouched");
        assert_eq!(names(folder.path()), ["key", "victim"]);
    }
}
