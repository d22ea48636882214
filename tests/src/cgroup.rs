//! A pod's place in the machine's real cgroup tree, with processes in it: what a container runtime does on a node.
//! Trusts that root may make cgroups here; says so where that is not so.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// The cgroup of one container, removed when dropped; end its processes first.
pub struct Container {
    pod: PathBuf,
    leaf: PathBuf,
}

impl Container {
    /// Makes the cgroup of a container of the pod with this UID, as kubelet's cgroupfs driver does. `None`, with the reason printed,
    /// where that is not allowed: it is a right that a machine gives, and no tool that could be installed.
    pub fn of_pod(uid: &str) -> Option<Self> {
        let made = Self::make(uid);
        if made.is_none() {
            eprintln!("skipped: no cgroup2 tree that this user may write");
        }
        made
    }

    fn make(uid: &str) -> Option<Self> {
        let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .map(Path::new)
            .into_iter()
            .find(|root| root.join("cgroup.controllers").exists())?;
        let pod = root.join(format!("kubepods/burstable/pod{uid}"));
        let leaf = pod.join("0123456789abcdef".repeat(4));
        fs::create_dir_all(&leaf).ok()?;
        Some(Self { pod, leaf })
    }

    /// Starts a program in the container. Its standard output is piped.
    pub fn spawn(&self, program: &Path, arguments: &[&str]) -> Child {
        // The shell enters the cgroup and becomes the program: it never runs outside.
        Command::new("/bin/sh")
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.leaf.join("cgroup.procs"))
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a shell")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // A cgroup can be removed some moments after its last process was.
        for _ in 0..100 {
            if fs::remove_dir(&self.leaf).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        fs::remove_dir(&self.pod).ok();
        // The levels above are others' too; they go with the last pod.
        for above in self.pod.ancestors().skip(1).take(2) {
            fs::remove_dir(above).ok();
        }
    }
}
