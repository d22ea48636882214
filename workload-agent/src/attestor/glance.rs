//! Decides whether a process is still what it was: what its facts rest on, as the kernel tells it at one moment, to be compared.
//! Trusts fields that only the kernel writes. Never answers for a process that has ended.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
};

use super::{AttestError, process::Process};

/// The most of a cgroup file that is read: 14 lines of a path each.
const LONGEST_CGROUP: u64 = 64 * 1024;

/// What the facts of a process rest on. Two that are equal, and the facts read between them are those of one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glance {
    started: u64,
    /// The file that it runs. Its change time tells too when another file was put in its place.
    program: Option<FileKey>,
    pub(super) status: Status,
    pub(super) cgroup: Vec<u8>,
}

impl Glance {
    /// Reads files of the kernel, and blocks as long as that takes.
    ///
    /// # Errors
    /// When the process is gone, or its files cannot be read.
    pub(super) fn at(process: &Process) -> Result<Self, AttestError> {
        let glance = Self::read(process.pid());
        // Asked last: what was read belongs to this process only if it still lives now.
        if !process.is_alive() {
            return Err(AttestError::Gone);
        }
        glance.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => AttestError::Gone,
            _ => AttestError::Unreadable(error),
        })
    }

    fn read(pid: i32) -> io::Result<Self> {
        let another_form = |file| io::Error::other(format!("its {file} file has another form"));
        let stat = fs::read(format!("/proc/{pid}/stat"))?;
        let status = fs::read(format!("/proc/{pid}/status"))?;
        let mut cgroup = Vec::new();
        File::open(format!("/proc/{pid}/cgroup"))?
            .take(LONGEST_CGROUP)
            .read_to_end(&mut cgroup)?;
        Ok(Self {
            started: start_time(&stat).ok_or_else(|| another_form("stat"))?,
            program: fs::metadata(format!("/proc/{pid}/exe"))
                .ok()
                .map(|meta| FileKey::of(&meta)),
            status: Status::parse(&status).ok_or_else(|| another_form("status"))?,
            cgroup,
        })
    }
}

/// Field 22 of /proc/PID/stat. The name in field 2 is the process's own choice and may hold `)`, blanks and line feeds:
/// the kernel's fields begin after the last parenthesis.
fn start_time(stat: &[u8]) -> Option<u64> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&stat[end + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The lines of /proc/PID/status that only the kernel writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) euid: u32,
    pub(super) egid: u32,
    pub(super) groups: Vec<u32>,
}

impl Status {
    fn parse(text: &[u8]) -> Option<Self> {
        // The first line is the process's name. The kernel escapes line feeds in it, so it stays one line; it is skipped.
        let text = String::from_utf8_lossy(text);
        let mut lines = text.lines();
        lines.next()?.strip_prefix("Name:")?;
        let (mut uid, mut gid, mut groups) = (None, None, None);
        for line in lines {
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            let numbers = || {
                value
                    .split_ascii_whitespace()
                    .map(str::parse)
                    .collect::<Result<Vec<u32>, _>>()
                    .ok()
            };
            match key {
                "Uid" if uid.is_none() => uid = Some(*numbers()?.get(1)?),
                "Gid" if gid.is_none() => gid = Some(*numbers()?.get(1)?),
                "Groups" if groups.is_none() => groups = Some(numbers()?),
                _ => {}
            }
        }
        Some(Self {
            euid: uid?,
            egid: gid?,
            groups: groups?,
        })
    }
}

/// What tells one content of a file, under one name, from another. The change time is among them because an owner can set the modification time
/// but not that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileKey {
    pub(super) dev: u64,
    pub(super) inode: u64,
    pub(super) size: u64,
    pub(super) modified: (i64, i64),
    pub(super) changed: (i64, i64),
}

impl FileKey {
    pub(super) fn of(meta: &fs::Metadata) -> Self {
        Self {
            dev: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ag_09_a_process_name_cannot_forge_the_fields_of_stat() {
        // comm is `x) S 1 (y`, with a line feed and a parenthesis of its own.
        let mut stat = b"4711 (x) S 1\n (y) R 1 2 3".to_vec();
        stat.extend_from_slice(b" 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 987654 20 21\n");
        assert_eq!(start_time(&stat), Some(987_654));
        assert_eq!(start_time(b"no parenthesis"), None);
        assert_eq!(start_time(b"1 (short) R 1 2"), None);
        assert_eq!(start_time(b"1 (x) \xff\xfe"), None);
    }

    #[test]
    fn ag_09_a_process_name_cannot_forge_the_lines_of_status() {
        let status = b"Name:\tUid:\\n0 0 0 0\nState:\tR\nUid:\t1000\t1001\t1002\t1003\nGid:\t5\t6\t7\t8\nGroups:\t6 100 \n";
        assert_eq!(
            Status::parse(status),
            Some(Status {
                euid: 1001,
                egid: 6,
                groups: vec![6, 100]
            })
        );
        assert_eq!(
            Status::parse(b"Uid:\t0\t0\t0\t0\nName:\tx\n"),
            None,
            "the first line must be the name's"
        );
        assert_eq!(
            Status::parse(b"Name:\tx\nUid:\t-1\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\n"),
            None
        );
        assert_eq!(
            Status::parse(b"Name:\tx\nUid:\t1\t1\t1\t1\n"),
            None,
            "a part is missing"
        );
    }
}
