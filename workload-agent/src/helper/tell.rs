//! Decides how the program that reads the files hears of new ones: it is started, sent a signal, or found by its pid file.
//! Trusts the configuration for what may be run. Never uses a shell, never signals a process by a pid that cannot be one.

use std::{convert::Infallible, fs, io, path::PathBuf, process::Stdio, time::Duration};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::{Child, Command};

/// Who is told, and how.
#[derive(Clone, Debug, Default)]
pub(super) struct Tell {
    pub(super) command: Option<(String, Vec<String>)>,
    pub(super) pid_file: Option<PathBuf>,
    pub(super) signal: Option<Signal>,
}

/// A program that is starting has not written its pid file yet.
const PID_FILE_TRIES: u32 = 4;
const PID_FILE_PAUSE: Duration = Duration::from_millis(500);
/// How long a command may take to end when the helper does.
const END_WITHIN: Duration = Duration::from_secs(5);

/// Why somebody was not told.
#[derive(Debug, thiserror::Error)]
pub(super) enum TellError {
    #[error("the command {program} cannot be run")]
    Start {
        program: String,
        #[source]
        cause: io::Error,
    },
    #[error("the pid file {} cannot be read", path.display())]
    PidFile {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("the pid file {} holds no process id", path.display())]
    NoPid { path: PathBuf },
    #[error("{signal} cannot be sent to process {pid}")]
    Signal {
        signal: Signal,
        pid: i32,
        #[source]
        cause: Errno,
    },
}

/// Tells, and holds the command that it has started.
pub(super) struct Teller {
    how: Tell,
    child: Option<Child>,
}

impl Teller {
    pub(super) fn new(how: Tell) -> Self {
        Self { how, child: None }
    }

    /// New files are in place. The command is started if it does not run.
    pub(super) async fn changed(&mut self) -> Result<(), TellError> {
        let command = self.command();
        let pid_file = self.pid_file().await;
        command.and(pid_file)
    }

    fn command(&mut self) -> Result<(), TellError> {
        let Some((program, arguments)) = &self.how.command else {
            return Ok(());
        };
        let running = self.child.as_mut().is_some_and(|child| {
            // What cannot be asked is taken to run: two at a time would be worse than one that misses a signal.
            !matches!(child.try_wait(), Ok(Some(_)))
        });
        let pid = self.child.as_ref().and_then(Child::id);
        match (running, pid, self.how.signal) {
            (true, Some(pid), Some(signal)) => send(i32::try_from(pid).unwrap_or(0), signal),
            (true, ..) => Ok(()),
            (false, ..) => {
                let child = Command::new(program)
                    .args(arguments)
                    .stdin(Stdio::inherit())
                    .spawn()
                    .map_err(|cause| TellError::Start {
                        program: program.clone(),
                        cause,
                    })?;
                tracing::info!(program, pid = child.id(), "the command is started");
                self.child = Some(child);
                Ok(())
            }
        }
    }

    async fn pid_file(&self) -> Result<(), TellError> {
        let (Some(path), Some(signal)) = (&self.how.pid_file, self.how.signal) else {
            return Ok(());
        };
        let attempt = || {
            let text = fs::read_to_string(path).map_err(|cause| TellError::PidFile {
                path: path.clone(),
                cause,
            })?;
            // 0 and negative numbers mean groups, and 1 is nobody's daemon.
            let pid = text.trim().parse().ok().filter(|pid: &i32| *pid > 1);
            let pid = pid.ok_or_else(|| TellError::NoPid { path: path.clone() })?;
            send(pid, signal)
        };
        let mut told = attempt();
        for _ in 1..PID_FILE_TRIES {
            if told.is_ok() {
                break;
            }
            tokio::time::sleep(PID_FILE_PAUSE).await;
            told = attempt();
        }
        told
    }

    /// Waits for the command's end, as long as this is polled, and says how it ended.
    pub(super) async fn reap(&mut self) -> Infallible {
        if let Some(child) = &mut self.child {
            match child.wait().await {
                Ok(status) => tracing::info!(%status, "the command has ended"),
                Err(error) => tracing::warn!(%error, "the command's end cannot be seen"),
            }
            self.child = None;
        }
        std::future::pending().await
    }

    /// The helper ends: what it has started ends with it.
    pub(super) async fn end(&mut self) {
        let Some(child) = &mut self.child else {
            return;
        };
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok())
            && send(pid, Signal::SIGTERM).is_ok()
            && tokio::time::timeout(END_WITHIN, child.wait())
                .await
                .is_err()
        {
            child.kill().await.ok();
        }
    }
}

fn send(pid: i32, signal: Signal) -> Result<(), TellError> {
    kill(Pid::from_raw(pid), signal).map_err(|cause| TellError::Signal { signal, pid, cause })
}
