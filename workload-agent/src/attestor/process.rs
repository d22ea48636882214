//! Decides whether a process still lives, and holds it so that its pid cannot come to mean another one.
//! Trusts the kernel's pidfd. Never answers "alive" when it cannot tell.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::known::Memory;

/// Why a process cannot be held.
#[derive(Debug, thiserror::Error)]
pub enum NoProcess {
    /// It has ended.
    #[error("the process has already exited")]
    Gone,
    /// The kernel does not let us watch it.
    #[error("the process cannot be watched")]
    Unwatched(#[source] io::Error),
    /// There is no descriptor for another one.
    #[error("too many processes are held")]
    TooMany,
}

/// The processes at the other ends of many connections: each is held once, however many it has.
#[derive(Clone, Debug)]
pub struct Processes {
    by_pid: Arc<Mutex<HashMap<i32, Weak<Held>>>>,
    room: Arc<Semaphore>,
}

/// So many pids are remembered before those of ended connections are forgotten.
const FORGET_BEYOND: usize = 64;

impl Processes {
    /// At most so many at a time: each takes a descriptor.
    pub fn with_room(most: usize) -> Self {
        Self {
            by_pid: Arc::default(),
            room: Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))),
        }
    }

    /// The process of this pidfd.
    ///
    /// # Errors
    /// When it has ended, cannot be watched, or there are too many.
    pub fn hold(&self, pid: i32, pidfd: OwnedFd) -> Result<Process, NoProcess> {
        let mut by_pid = self.by_pid.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = by_pid.get(&pid).and_then(Weak::upgrade).map(Process)
            // Both have this pid and live, the one held before for longer: they are the same process.
            && is_alive(&pidfd)
            && held.is_alive()
        {
            return Ok(held);
        }
        let room = Arc::clone(&self.room).try_acquire_owned();
        let process = Process::held_in(Some(room.map_err(|_| NoProcess::TooMany)?), pid, pidfd)?;
        if by_pid.len() >= FORGET_BEYOND && by_pid.len() == by_pid.capacity() {
            by_pid.retain(|_, held| held.strong_count() > 0);
        }
        by_pid.insert(pid, Arc::downgrade(&process.0));
        Ok(process)
    }
}

/// A process that is held by a pidfd: as long as [`Process::is_alive`] says yes, its pid means this process and no other.
#[derive(Clone, Debug)]
pub struct Process(Arc<Held>);

#[derive(Debug)]
struct Held {
    pid: i32,
    pidfd: AsyncFd<OwnedFd>,
    memory: Memory,
    _room: Option<OwnedSemaphorePermit>,
}

impl Process {
    /// Takes a pidfd of the process with this pid.
    ///
    /// # Errors
    /// When it has ended already, or cannot be watched.
    pub fn held(pid: i32, pidfd: OwnedFd) -> Result<Self, NoProcess> {
        Self::held_in(None, pid, pidfd)
    }

    fn held_in(
        room: Option<OwnedSemaphorePermit>,
        pid: i32,
        pidfd: OwnedFd,
    ) -> Result<Self, NoProcess> {
        // Registered once: all streams wait on the same descriptor.
        #[expect(
            deprecated,
            reason = "its successor is unsafe, which this workspace forbids; an OwnedFd keeps its promise: one descriptor, closed last"
        )]
        let pidfd =
            AsyncFd::with_interest(pidfd, Interest::READABLE).map_err(NoProcess::Unwatched)?;
        let process = Self(Arc::new(Held {
            pid,
            pidfd,
            memory: Memory::default(),
            _room: room,
        }));
        if process.is_alive() {
            Ok(process)
        } else {
            Err(NoProcess::Gone)
        }
    }

    /// Holds the process that has this pid now.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(pid: i32) -> Result<Self, NoProcess> {
        let raw = rustix::process::Pid::from_raw(pid).ok_or(NoProcess::Gone)?;
        match rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()) {
            Ok(pidfd) => Self::held(pid, pidfd),
            Err(rustix::io::Errno::SRCH) => Err(NoProcess::Gone),
            Err(errno) => Err(NoProcess::Unwatched(errno.into())),
        }
    }

    /// The process id.
    pub fn pid(&self) -> i32 {
        self.0.pid
    }

    /// What is remembered of it.
    pub(super) fn memory(&self) -> &Memory {
        &self.0.memory
    }

    /// Whether it has not exited. A pidfd becomes readable when its process ends, also while it is a zombie; what cannot
    /// be asked counts as gone.
    pub fn is_alive(&self) -> bool {
        is_alive(self.0.pidfd.get_ref())
    }

    /// Ends when the process has ended.
    pub async fn exited(&self) {
        // The readiness is never cleared: a process ends once. An error means that the runtime shuts down.
        drop(self.0.pidfd.readable().await);
    }
}

fn is_alive(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, PollTimeout::ZERO) {
            Ok(0) => return true,
            Ok(_) => return false,
            Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child() -> std::process::Child {
        let mut command = std::process::Command::new("sleep");
        command.arg("60").spawn().unwrap()
    }

    fn pidfd(pid: i32) -> OwnedFd {
        let raw = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()).unwrap()
    }

    #[tokio::test]
    async fn connections_of_one_process_share_it_and_those_of_another_do_not() {
        let (mut one, mut other) = (child(), child());
        let (a, b) = (one.id().try_into().unwrap(), other.id().try_into().unwrap());
        let processes = Processes::with_room(2);
        let first = processes.hold(a, pidfd(a)).unwrap();
        let again = processes.hold(a, pidfd(a)).unwrap();
        assert!(Arc::ptr_eq(&first.0, &again.0));
        let second = processes.hold(b, pidfd(b)).unwrap();
        assert!(!Arc::ptr_eq(&first.0, &second.0));
        // Held under a pid that means another one by now: never shared with it.
        let dead = pidfd(b);
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(matches!(processes.hold(a, dead), Err(NoProcess::TooMany)));
        assert!(matches!(
            processes.hold(b, pidfd(a)),
            Err(NoProcess::TooMany)
        ));
        drop(second);
        assert!(processes.hold(b, pidfd(a)).is_ok(), "there is room again");
        drop((first, again));
        one.kill().unwrap();
        one.wait().unwrap();
    }
}
