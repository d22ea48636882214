//! Decides what is known about a process: it runs the attestors and gathers their selectors, with the process held still.
//! Trusts the kernel's view of a process that is alive before and after. Never uses a fact that was read around an exit or an exec.

pub mod glance;
pub mod k8s;
pub mod process;
pub mod unix;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_identity::Selector;
use tokio::{sync::Semaphore, task, time};

use self::{
    glance::Glance,
    k8s::K8sAttestor,
    process::Process,
    unix::{Subject, UnixAttestor},
};

/// How long an attestation may take: a program file on a file system that does not answer must not hold its caller.
const TIME_LIMIT: Duration = Duration::from_secs(5);
/// Attestations at a time for one uid, so that one user's unreadable files do not stop the others.
const AT_A_TIME_PER_UID: usize = 16;

/// Whose turn it is when an administrator asks; the kernel gives this uid to nobody.
const ADMINISTRATORS: u32 = u32::MAX;

/// What was found about a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attestation {
    /// The proven facts.
    pub facts: BTreeSet<Selector>,
    /// Attestors, or parts of one, that could not say anything, each with its reason.
    pub failed: Vec<Failed>,
}

/// An attestor that could not say anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Which one, such as `unix:path`.
    pub name: &'static str,
    /// Why.
    pub reason: String,
}

/// Why nothing can be said about a process.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// It ended meanwhile: whatever was read may belong to somebody else.
    #[error("the process has exited")]
    Gone,
    /// It ran another program before we were done, again and again.
    #[error("the process runs another program each time it is looked at")]
    Restless,
    /// The kernel's files about it cannot be read.
    #[error("the process cannot be looked at")]
    Unreadable(#[source] std::io::Error),
    /// It took too long.
    #[error("looking at the process took longer than {TIME_LIMIT:?}")]
    TooSlow,
}

/// Which expensive facts anybody asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The digest of the program file.
    pub sha256: bool,
    /// The names of supplementary groups.
    pub group_names: bool,
}

impl Wanted {
    /// Every fact: for people who want to see them.
    pub const ALL: Self = Self {
        sha256: true,
        group_names: true,
    };

    /// Adds what this selector of an entry asks for.
    pub fn add(&mut self, selector: &Selector) {
        if selector.kind() == "unix" {
            self.sha256 |= selector.value().starts_with("sha256:");
            self.group_names |= selector.value().starts_with("supplementary_group:");
        }
    }

    /// Whether whoever looked for these facts has all of the others.
    pub fn covers(self, other: Self) -> bool {
        self.sha256 >= other.sha256 && self.group_names >= other.group_names
    }
}

/// Runs the attestors. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Attestor {
    unix: Arc<UnixAttestor>,
    k8s: Arc<K8sAttestor>,
    turns: Arc<Mutex<BTreeMap<u32, Arc<Semaphore>>>>,
}

impl Attestor {
    /// With the limits of the configuration.
    pub fn new(unix: UnixAttestor, k8s: K8sAttestor) -> Self {
        Self {
            unix: Arc::new(unix),
            k8s: Arc::new(k8s),
            turns: Arc::default(),
        }
    }

    /// Looks at the process that holds a connection. Its uid and gid are the socket's, not those of /proc. With the facts comes
    /// what they rest on: they hold as long as [`Attestor::glance`] finds the same.
    ///
    /// # Errors
    /// When the process is gone, or cannot be looked at.
    pub async fn attest(
        &self,
        process: &Process,
        uid: u32,
        gid: u32,
        wanted: Wanted,
    ) -> Result<(Attestation, Glance), AttestError> {
        let subject = Subject {
            process: process.clone(),
            uid: Some(uid),
            gid: Some(gid),
        };
        self.look(subject, uid, wanted).await
    }

    /// Looks at a process that an administrator names; uid and gid are its effective ones of this moment.
    ///
    /// # Errors
    /// When there is no such process, or it cannot be looked at.
    pub async fn inspect(&self, process: Process) -> Result<(Attestation, Glance), AttestError> {
        self.look(
            Subject {
                process,
                uid: None,
                gid: None,
            },
            ADMINISTRATORS,
            Wanted::ALL,
        )
        .await
    }

    /// What the facts of a process rest on now: a few files of the kernel, and no question to the user database. `uid` is
    /// whose turn this is; none for an administrator's.
    ///
    /// # Errors
    /// When the process is gone, or cannot be looked at.
    pub async fn glance(&self, process: &Process, uid: Option<u32>) -> Result<Glance, AttestError> {
        let process = process.clone();
        self.in_turn(uid.unwrap_or(ADMINISTRATORS), move || Glance::at(&process))
            .await
    }

    async fn look(
        &self,
        subject: Subject,
        turn: u32,
        wanted: Wanted,
    ) -> Result<(Attestation, Glance), AttestError> {
        let (unix, k8s) = (Arc::clone(&self.unix), Arc::clone(&self.k8s));
        self.in_turn(turn, move || find(&unix, &k8s, &subject, wanted))
            .await
    }

    /// Does what may block, beside what others do, within the time limit.
    async fn in_turn<T: Send + 'static>(
        &self,
        turn: u32,
        work: impl FnOnce() -> Result<T, AttestError> + Send + 'static,
    ) -> Result<T, AttestError> {
        let turns = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            // Forget who has nothing running, so that the table holds only the uids of this moment.
            if turns.len() > 1024 {
                turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            }
            Arc::clone(
                turns
                    .entry(turn)
                    .or_insert_with(|| Arc::new(Semaphore::new(AT_A_TIME_PER_UID))),
            )
        };
        let work = async {
            let Ok(permit) = turns.acquire_owned().await else {
                return Err(AttestError::TooSlow);
            };
            task::spawn_blocking(move || {
                // Held by the thread: one that hangs keeps its place and the next ones wait, for this uid alone.
                let _permit = permit;
                work()
            })
            .await
            .unwrap_or_else(|join| Err(AttestError::Unreadable(std::io::Error::other(join))))
        };
        time::timeout(TIME_LIMIT, work)
            .await
            .unwrap_or(Err(AttestError::TooSlow))
    }
}

/// The facts of a process and what they rest on. It may run another program while we look (M10 b); its facts must be of one
/// program, so look again. One that never rests gets nothing.
fn find(
    unix: &UnixAttestor,
    k8s: &K8sAttestor,
    subject: &Subject,
    wanted: Wanted,
) -> Result<(Attestation, Glance), AttestError> {
    for _ in 0..3 {
        let before = Glance::at(&subject.process)?;
        let mut found = unix.facts(subject, &before, wanted);
        match k8s.facts(&before.cgroup) {
            Ok(facts) => found.facts.extend(facts),
            Err(reason) => found.failed.push(Failed {
                name: "k8s",
                reason: reason.to_string(),
            }),
        }
        if Glance::at(&subject.process)? == before {
            return Ok((found, before));
        }
    }
    Err(AttestError::Restless)
}
