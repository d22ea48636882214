//! Decides who is at the other end of a Unix socket: pid, uid and gid as the kernel wrote them down at connect, and a pidfd.
//! Trusts the kernel only. Never reads the uid from /proc: a setuid exec changes it there.

use std::{fmt, io, os::fd::AsFd};

use nix::{
    errno::Errno,
    sys::socket::{getsockopt, sockopt},
};
use tokio::net::UnixStream;

use crate::attestor::process::{NoProcess, Process, Processes};

/// The process that connected. Clones share the pidfd.
#[derive(Clone)]
pub struct Peer {
    process: Process,
    uid: u32,
    gid: u32,
}

/// Why a connection has no usable peer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The kernel did not answer.
    #[error("the kernel does not say who connected")]
    Credentials(#[source] io::Error),
    /// A process of a pid namespace that is not inside ours: its pid reads as 0.
    #[error("the caller lives in a pid namespace that this agent cannot see into")]
    ForeignPidNamespace,
    /// The process cannot be held.
    #[error("the caller cannot be held")]
    Process(#[from] NoProcess),
}

impl Peer {
    /// Reads the credentials of a connected socket. Its process is the one among `processes`, if it has other connections.
    ///
    /// # Errors
    /// When the kernel does not say, or when the process cannot be held.
    pub fn of(stream: &UnixStream, processes: &Processes) -> Result<Self, PeerError> {
        let credentials = getsockopt(&stream.as_fd(), sockopt::PeerCredentials)
            .map_err(|errno| PeerError::Credentials(errno.into()))?;
        let pid = credentials.pid();
        if pid <= 0 {
            return Err(PeerError::ForeignPidNamespace);
        }
        let pidfd = match getsockopt(&stream.as_fd(), sockopt::PeerPidfd) {
            Ok(pidfd) => pidfd,
            // Linux before 6.5: hold whoever has the pid now. Between connect and here the pid could have been reused;
            // only newer kernels close that gap (docs/decisions/0801).
            Err(Errno::ENOPROTOOPT | Errno::EINVAL) => {
                return Self::held_by_pid(pid, credentials.uid(), credentials.gid());
            }
            Err(Errno::ESRCH | Errno::ENODATA) => return Err(NoProcess::Gone.into()),
            Err(errno) => return Err(PeerError::Credentials(errno.into())),
        };
        Ok(Self {
            process: processes.hold(pid, pidfd)?,
            uid: credentials.uid(),
            gid: credentials.gid(),
        })
    }

    fn held_by_pid(pid: i32, uid: u32, gid: u32) -> Result<Self, PeerError> {
        Ok(Self {
            process: Process::open(pid)?,
            uid,
            gid,
        })
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The effective uid at connect.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The effective gid at connect.
    pub fn gid(&self) -> u32 {
        self.gid
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("pid", &self.process.pid())
            .field("uid", &self.uid)
            .field("gid", &self.gid)
            .finish()
    }
}
