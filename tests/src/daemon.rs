//! A daemon of ours in a test: as dev mode starts it, with its log printed when the test fails.

use std::{
    ops::{Deref, DerefMut},
    path::Path,
    process::ExitStatus,
    time::Duration,
};

use finial::dev::process::Process;

/// A process of ours, killed when dropped.
pub struct Daemon(Option<Process>);

impl Daemon {
    /// Starts `program run --config <config>` in `dir` and waits until it has bound its doors.
    pub async fn start(name: &str, program: &Path, config: &Path, dir: &Path) -> Self {
        let started = Process::start(name, program, config, dir, &[]).await;
        Self(Some(started.unwrap_or_else(|e| panic!("{e}"))))
    }

    /// As [`Daemon::start`], and waits until it is ready.
    pub async fn start_ready(name: &str, program: &Path, config: &Path, dir: &Path) -> Self {
        let mut daemon = Self::start(name, program, config, dir).await;
        daemon.ready().await.unwrap_or_else(|e| panic!("{e}"));
        daemon
    }

    /// Asks it to stop and returns how it ended.
    pub async fn stop(mut self) -> ExitStatus {
        let process = self.0.take().expect("it is taken once");
        process
            .stop(Duration::from_secs(20))
            .await
            .expect("it stops when it is asked to")
    }

    /// Takes its power away: SIGKILL.
    pub fn kill(mut self) {
        self.0.take().expect("it is taken once").kill();
    }
}

impl Deref for Daemon {
    type Target = Process;

    fn deref(&self) -> &Process {
        self.0.as_ref().expect("it is there until it is stopped")
    }
}

impl DerefMut for Daemon {
    fn deref_mut(&mut self) -> &mut Process {
        self.0.as_mut().expect("it is there until it is stopped")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(process) = self.0.take()
            && std::thread::panicking()
        {
            eprintln!("---- log of {}\n{}", process.name(), process.log());
        }
    }
}
