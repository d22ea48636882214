//! Decides what is known about a process: it runs the attestors and gathers their selectors, with the process held still.
//! Trusts the kernel's view of a process that is alive before and after. Never uses a fact that was read around an exit or an exec.

pub mod glance;
pub mod k8s;
pub mod known;
pub mod process;
pub mod unix;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_identity::Selector;
use tokio::{
    sync::Semaphore,
    task,
    time::{self, Instant},
};

use self::{
    glance::Glance,
    k8s::K8sAttestor,
    known::Sight,
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

/// As whom a process is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// As the socket says whose connection it is; /proc may say something else since.
    Socket {
        /// The effective uid at connect.
        uid: u32,
        /// The effective gid at connect.
        gid: u32,
    },
    /// As /proc says at this moment, for a process that an administrator names.
    Current,
}

impl Credentials {
    fn turn(self) -> u32 {
        match self {
            Self::Socket { uid, .. } => uid,
            Self::Current => ADMINISTRATORS,
        }
    }
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

    /// What is known of a process already, as it was at `since` or later.
    pub fn known(
        &self,
        process: &Process,
        credentials: Credentials,
        wanted: Wanted,
        since: Instant,
    ) -> Option<Sight> {
        process.memory().since(credentials, wanted, since)
    }

    /// What is known of a process, as it was at `since` or later. Whoever asks for the same process meanwhile gets the same answer;
    /// where facts are known, a glance that finds the process unchanged is enough.
    ///
    /// # Errors
    /// When the process is gone, or cannot be looked at.
    pub async fn attest(
        &self,
        process: &Process,
        credentials: Credentials,
        wanted: Wanted,
        since: Instant,
    ) -> Result<Sight, AttestError> {
        let memory = process.memory();
        let in_turn = async {
            let _turn = memory.turn.lock().await;
            if let Some(sight) = memory.since(credentials, wanted, since) {
                return Ok(sight);
            }
            let sight = self.look(process, credentials, wanted).await?;
            memory.keep(&sight);
            Ok(sight)
        };
        time::timeout(TIME_LIMIT, in_turn)
            .await
            .unwrap_or(Err(AttestError::TooSlow))
    }

    async fn look(
        &self,
        process: &Process,
        credentials: Credentials,
        wanted: Wanted,
    ) -> Result<Sight, AttestError> {
        let (turn, at) = (credentials.turn(), Instant::now());
        if let Some(known) = process.memory().of(credentials, wanted)
            && let Some(before) = known.glance()
        {
            let process = process.clone();
            let now = self.in_turn(turn, move || Glance::at(&process)).await;
            // What cannot be seen does not count: the look that follows says why.
            if now.is_ok_and(|now| now == *before) {
                return Ok(known.again(at));
            }
        }
        let (unix, k8s) = (Arc::clone(&self.unix), Arc::clone(&self.k8s));
        let subject = Subject {
            process: process.clone(),
            credentials,
        };
        let look = self.in_turn(turn, move || find(&unix, &k8s, &subject, wanted));
        let (found, glance) = look.await?;
        Ok(Sight::new(found, credentials, wanted, glance, at))
    }

    /// Does what may block, beside what others do.
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
