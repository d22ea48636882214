//! One daemon of ours as a child process: started with its configuration file, addressed by what it reports
//! itself, and never left behind: it ends when this value is dropped, and when its parent dies.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use thiserror::Error;
use tokio::time::{Instant, sleep};

use super::http;

/// How often a condition on another process is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Why a daemon is not there.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// The program could not be started.
    #[error("{program} cannot be started")]
    Start {
        /// The path that was tried.
        program: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// Its report of addresses cannot be read.
    #[error("{name}: the report of its addresses cannot be read")]
    Report {
        /// The daemon.
        name: String,
        /// What was wrong.
        #[source]
        cause: io::Error,
    },
    /// It ended, or was too slow, before it was where we waited for it.
    #[error("{name} did not become {what}; the end of {log}:\n{tail}")]
    NotThere {
        /// The daemon.
        name: String,
        /// What we waited for.
        what: &'static str,
        /// Its log file.
        log: String,
        /// The last lines of that file.
        tail: String,
    },
}

/// A running daemon.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    addresses: BTreeMap<String, String>,
}

impl Process {
    /// Runs `program run --config config` in `dir`, its output in `dir/name.log`, and waits until it has bound
    /// its doors.
    pub async fn start(
        name: &str,
        program: &Path,
        config: &Path,
        dir: &Path,
        variables: &[(&str, &str)],
    ) -> Result<Self, ProcessError> {
        let failed = |cause| ProcessError::Start {
            program: program.to_owned(),
            cause,
        };
        let report = dir.join(format!("{name}.addresses"));
        if report.exists() {
            fs::remove_file(&report).map_err(failed)?;
        }
        let log = dir.join(format!("{name}.log"));
        let out = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(failed)?;
        let child = Command::new(program)
            .arg("run")
            .arg("--config")
            .arg(config)
            .arg("--addresses-file")
            .arg(&report)
            .envs(variables.iter().copied())
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(out.try_clone().map_err(failed)?)
            .stderr(out)
            .spawn()
            .map_err(failed)?;
        let mut process = Self {
            name: name.into(),
            child,
            log,
            addresses: BTreeMap::new(),
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !report.exists() {
            if process.ended() || Instant::now() > deadline {
                return Err(process.not_there("reachable"));
            }
            sleep(POLL).await;
        }
        let text = fs::read(&report).and_then(|text| Ok(serde_json::from_slice(&text)?));
        process.addresses = text.map_err(|cause| ProcessError::Report {
            name: name.into(),
            cause,
        })?;
        Ok(process)
    }

    /// Its name in our output.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address of one door, `host:port` or a path; empty if it has no such door.
    pub fn address(&self, door: &str) -> &str {
        self.addresses.get(door).map_or("", String::as_str)
    }

    /// The kernel's number of this process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has written so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until its `/ready` says yes.
    pub async fn ready(&mut self) -> Result<(), ProcessError> {
        let deadline = Instant::now() + Duration::from_secs(30);
        let door = self.address("metrics").to_owned();
        loop {
            if http::get(&door, "/ready")
                .await
                .is_ok_and(|answer| answer.status == 200)
            {
                return Ok(());
            }
            if self.ended() || Instant::now() > deadline {
                return Err(self.not_there("ready"));
            }
            sleep(POLL).await;
        }
    }

    /// One value of its `/metrics`: the sum over the series of that name.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let text = http::get(self.address("metrics"), "/metrics")
            .await
            .ok()?
            .text();
        let mut values = text
            .lines()
            .filter(|line| line.split(['{', ' ']).next() == Some(name))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .peekable();
        values.peek()?;
        Some(values.sum())
    }

    /// Asks it to stop, and forces it after `patience`.
    pub async fn stop(mut self, patience: Duration) -> Option<ExitStatus> {
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + patience;
        while !self.ended() && Instant::now() < deadline {
            sleep(POLL).await;
        }
        self.child.try_wait().ok().flatten()
    }

    /// Takes its power away: SIGKILL, and waits for its end.
    pub fn kill(self) {
        drop(self);
    }

    fn signal(&self, signal: Signal) {
        // A process that is gone already needs no signal.
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).ok();
    }

    fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    fn not_there(&self, what: &'static str) -> ProcessError {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        ProcessError::NotThere {
            name: self.name.clone(),
            what,
            log: self.log.display().to_string(),
            tail: lines[lines.len().saturating_sub(15)..].join("\n"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.ended() && self.child.kill().is_ok() {
            self.child.wait().ok();
        }
    }
}
