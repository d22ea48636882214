//! Decides whether a process still lives, and holds it so that its pid cannot come to mean another one.
//! Trusts the kernel's pidfd. Never answers "alive" when it cannot tell.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tokio::io::{Interest, unix::AsyncFd};

/// Why a process cannot be held.
#[derive(Debug, thiserror::Error)]
pub enum NoProcess {
    /// It has ended.
    #[error("the process has already exited")]
    Gone,
    /// The kernel does not let us watch it.
    #[error("the process cannot be watched")]
    Unwatched(#[source] io::Error),
}

/// A process that is held by a pidfd: as long as [`Process::is_alive`] says yes, its pid means this process and no other.
#[derive(Clone, Debug)]
pub struct Process {
    pid: i32,
    pidfd: Arc<AsyncFd<OwnedFd>>,
}

impl Process {
    /// Takes a pidfd of the process with this pid.
    ///
    /// # Errors
    /// When it has ended already, or cannot be watched.
    pub fn held(pid: i32, pidfd: OwnedFd) -> Result<Self, NoProcess> {
        // Registered once per connection: all its streams wait on the same descriptor.
        #[expect(
            deprecated,
            reason = "its successor is unsafe, which this workspace forbids; an OwnedFd keeps its promise: one descriptor, closed last"
        )]
        let pidfd =
            AsyncFd::with_interest(pidfd, Interest::READABLE).map_err(NoProcess::Unwatched)?;
        let process = Self {
            pid,
            pidfd: Arc::new(pidfd),
        };
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
        self.pid
    }

    /// Whether it has not exited. A pidfd becomes readable when its process ends, also while it is a zombie; what cannot
    /// be asked counts as gone.
    pub fn is_alive(&self) -> bool {
        let mut fds = [PollFd::new(self.pidfd.get_ref().as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut fds, PollTimeout::ZERO) {
                Ok(0) => return true,
                Ok(_) => return false,
                Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Ends when the process has ended.
    pub async fn exited(&self) {
        // The readiness is never cleared: a process ends once. An error means that the runtime shuts down.
        drop(self.pidfd.readable().await);
    }
}
