//! Decides the facts `unix:{uid,gid,user,group,supplementary_gid,supplementary_group,path,sha256}` of a process.
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

use super::{
    Attestation, Credentials, Failed, Wanted,
    glance::{FileKey, Glance},
    process::Process,
};

/// Files whose digest is remembered.
const REMEMBERED: usize = 1024;
/// The most supplementary groups that become facts; Linux allows 65536.
const MOST_GROUPS: usize = 1024;

/// The process to look at.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) process: Process,
    pub(super) credentials: Credentials,
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

    /// The facts of a process that was glanced at; they count only if it is still the same afterwards. Blocks while it reads files.
    pub(super) fn facts(&self, subject: &Subject, seen: &Glance, wanted: Wanted) -> Attestation {
        let mut found = Attestation {
            facts: BTreeSet::new(),
            failed: Vec::new(),
        };
        let status = &seen.status;
        let (uid, gid) = match subject.credentials {
            Credentials::Socket { uid, gid } => (uid, gid),
            Credentials::Current => (status.euid, status.egid),
        };
        found.add("uid", &uid.to_string());
        found.add("gid", &gid.to_string());
        // Names come from the node's user database; a uid without a name is no failure.
        match User::from_uid(Uid::from_raw(uid)) {
            Ok(Some(user)) => found.add("user", &user.name),
            Ok(None) => {}
            Err(errno) => found.fail("unix:user", errno.to_string()),
        }
        found.add_group("group", "unix:group", gid);
        for group in status.groups.iter().take(MOST_GROUPS) {
            found.add("supplementary_gid", &group.to_string());
            // One question to the user database for each, so only if an entry asks.
            if wanted.group_names {
                found.add_group("supplementary_group", "unix:supplementary_group", *group);
            }
        }
        self.program(&subject.process, wanted, &mut found);
        found
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

    /// The name of a group, if it has one.
    fn add_group(&mut self, name: &str, attestor: &'static str, gid: u32) {
        match Group::from_gid(Gid::from_raw(gid)) {
            Ok(Some(group)) => self.add(name, &group.name),
            Ok(None) => {}
            Err(errno) => self.fail(attestor, errno.to_string()),
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
