//! Decides the facts `unix:{uid,gid,user,group,supplementary_gid,path,sha256}` of a process.
//! Trusts fields that only the kernel writes. Never reads what a process writes about itself (its name, arguments, environment)
//! and never names a path that the agent does not itself see to be that file.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use mesh_identity::Selector;
use nix::unistd::{Gid, Group, Uid, User};

use super::{AttestError, Attestation, Failed, Wanted, process::Process};

/// Files whose digest is remembered.
const REMEMBERED: usize = 1024;
/// The most supplementary groups that become facts; Linux allows 65536.
const MOST_GROUPS: usize = 1024;

/// The process to look at.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) process: Process,
    /// From the socket; without one, what /proc says now.
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

/// Finds the `unix:` selectors.
#[derive(Debug)]
pub struct UnixAttestor {
    largest_file: u64,
    digests: Mutex<Digests>,
}

impl UnixAttestor {
    /// `largest_file`: bytes of the largest program that gets a digest.
    pub fn new(largest_file: u64) -> Self {
        Self {
            largest_file,
            digests: Mutex::default(),
        }
    }

    /// Blocks while it reads files.
    pub(super) fn attest(
        &self,
        subject: &Subject,
        wanted: Wanted,
    ) -> Result<Attestation, AttestError> {
        // A process may run another program while we look (M10 b). Its facts must be of one program, so look again;
        // one that never rests gets nothing.
        for _ in 0..3 {
            if let Some(found) = self.look_once(subject, wanted)? {
                return Ok(found);
            }
        }
        Err(AttestError::Restless)
    }

    fn look_once(
        &self,
        subject: &Subject,
        wanted: Wanted,
    ) -> Result<Option<Attestation>, AttestError> {
        let process = &subject.process;
        let before = Glance::at(process)?;
        let mut found = Attestation {
            facts: BTreeSet::new(),
            failed: Vec::new(),
        };
        let status = Status::of(process)?;
        let (uid, gid) = (
            subject.uid.unwrap_or(status.euid),
            subject.gid.unwrap_or(status.egid),
        );
        found.add("uid", &uid.to_string());
        found.add("gid", &gid.to_string());
        for group in status.groups.iter().take(MOST_GROUPS) {
            found.add("supplementary_gid", &group.to_string());
        }
        // Names come from the node's user database; a uid without a name is no failure.
        match User::from_uid(Uid::from_raw(uid)) {
            Ok(Some(user)) => found.add("user", &user.name),
            Ok(None) => {}
            Err(errno) => found.fail("unix:user", errno.to_string()),
        }
        match Group::from_gid(Gid::from_raw(gid)) {
            Ok(Some(group)) => found.add("group", &group.name),
            Ok(None) => {}
            Err(errno) => found.fail("unix:group", errno.to_string()),
        }
        self.program(process, wanted, &mut found);
        let after = Glance::at(process)?;
        Ok((before == after).then_some(found))
    }

    /// Path and digest, both of the one file that is opened here.
    fn program(&self, process: &Process, wanted: Wanted, found: &mut Attestation) {
        let opened = File::open(format!("/proc/{}/exe", process.pid()))
            .and_then(|file| Ok((file.metadata()?, file)));
        let (meta, mut file) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                return found.fail(
                    "unix:path",
                    format!("the program file cannot be opened: {error}"),
                );
            }
        };
        match seen_path(&file, &meta) {
            Ok(path) => found.add("path", &path),
            Err(reason) => found.fail("unix:path", reason),
        }
        if wanted.sha256 {
            match self.digest(&mut file, &meta) {
                Ok(digest) => found.add("sha256", &digest),
                Err(reason) => found.fail("unix:sha256", reason),
            }
        }
    }

    fn digest(&self, file: &mut File, meta: &fs::Metadata) -> Result<String, String> {
        if meta.len() > self.largest_file {
            return Err(format!(
                "the program file has {} bytes, more than the {} that are read",
                meta.len(),
                self.largest_file
            ));
        }
        let key = FileKey::of(meta);
        if let Some(known) = self.lock().get(&key) {
            return Ok(known);
        }
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        let mut buffer = vec![0; 64 * 1024];
        let mut left = self.largest_file;
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                // It grows while it is read: its length promised less.
                Ok(n) if n as u64 > left => {
                    return Err("the program file grew while it was read".into());
                }
                Ok(n) => {
                    left -= n as u64;
                    context.update(&buffer[..n]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("the program file cannot be read: {error}")),
            }
        }
        let digest: String = context
            .finish()
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        match file.metadata() {
            Ok(after) if FileKey::of(&after) == key => self.lock().put(key, digest.clone()),
            _ => return Err("the program file changed while it was read".into()),
        }
        Ok(digest)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Digests> {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attestation {
    fn add(&mut self, name: &str, value: &str) {
        match Selector::new("unix", &format!("{name}:{value}")) {
            Ok(selector) => {
                self.facts.insert(selector);
            }
            Err(error) => self.fail("unix", format!("{name} is no selector: {error}")),
        }
    }

    fn fail(&mut self, name: &'static str, reason: String) {
        self.failed.push(Failed { name, reason });
    }
}

/// The path of an open program, if the agent itself sees that very file there. A process can have its own mounts and
/// put any file at any path of its own; the kernel then reports the path as that process sees it.
fn seen_path(file: &File, meta: &fs::Metadata) -> Result<String, String> {
    let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .map_err(|error| format!("the program's path cannot be read: {error}"))?;
    let shown = path.display();
    match fs::metadata(&path) {
        Ok(here) if (here.dev(), here.ino()) == (meta.dev(), meta.ino()) => {}
        Ok(_) => {
            return Err(format!(
                "another file is at {shown}: the program was replaced, or has mounts of its own"
            ));
        }
        Err(_) => {
            return Err(format!(
                "the agent sees no file at {shown}: the program was deleted, or has mounts of its own"
            ));
        }
    }
    utf8(path)
}

fn utf8(path: PathBuf) -> Result<String, String> {
    match path.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(format!(
            "the program's path is not UTF-8 ({} bytes)",
            path.as_os_str().as_bytes().len()
        )),
    }
}

/// What must not change while we look: the process is alive, started when it did, and runs the same file.
#[derive(Debug, PartialEq, Eq)]
struct Glance {
    started: u64,
    program: Option<(u64, u64)>,
}

impl Glance {
    fn at(process: &Process) -> Result<Self, AttestError> {
        let glance = fs::read(format!("/proc/{}/stat", process.pid())).map(|stat| {
            let program = fs::metadata(format!("/proc/{}/exe", process.pid()))
                .ok()
                .map(|meta| (meta.dev(), meta.ino()));
            (start_time(&stat), program)
        });
        // Asked last: what was read belongs to this process only if it still lives now.
        if !process.is_alive() {
            return Err(AttestError::Gone);
        }
        match glance {
            Ok((Some(started), program)) => Ok(Self { started, program }),
            Ok((None, _)) => Err(AttestError::Unreadable(io::Error::other(
                "its stat file has another form",
            ))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(AttestError::Gone),
            Err(error) => Err(AttestError::Unreadable(error)),
        }
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
#[derive(Debug, PartialEq, Eq)]
struct Status {
    euid: u32,
    egid: u32,
    groups: Vec<u32>,
}

impl Status {
    fn of(process: &Process) -> Result<Self, AttestError> {
        match fs::read(format!("/proc/{}/status", process.pid())) {
            Ok(text) => Self::parse(&text).ok_or_else(|| {
                AttestError::Unreadable(io::Error::other("its status file has another form"))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(AttestError::Gone),
            Err(error) => Err(AttestError::Unreadable(error)),
        }
    }

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

/// What a file's content is remembered by. The change time is among them because an owner can set the modification time
/// but not that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct FileKey {
    dev: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileKey {
    fn of(meta: &fs::Metadata) -> Self {
        Self {
            dev: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// Digests by file; the oldest goes first.
#[derive(Debug, Default)]
struct Digests {
    known: HashMap<FileKey, String>,
    order: VecDeque<FileKey>,
}

impl Digests {
    fn get(&self, key: &FileKey) -> Option<String> {
        self.known.get(key).cloned()
    }

    fn put(&mut self, key: FileKey, digest: String) {
        if self.known.insert(key, digest).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests;
