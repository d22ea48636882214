//! Decides how verbose the log is after the start: an operator may change it, and take that back.
//! Trusts its caller to have asked who the operator is.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

use super::{LogOptions, TelemetryError};

/// Changes the verbosity of a log that is in use. Cheap to clone.
#[derive(Clone)]
pub struct LogControl {
    launch: Arc<str>,
    current: Arc<Mutex<String>>,
    apply: Arc<Apply>,
}

/// Puts a filter in force.
pub(super) type Apply = dyn Fn(EnvFilter) -> Result<(), TelemetryError> + Send + Sync;

impl LogControl {
    pub(super) fn new(options: &LogOptions, apply: Arc<Apply>) -> Self {
        Self {
            launch: options.level.as_str().into(),
            current: Arc::new(Mutex::new(options.level.clone())),
            apply,
        }
    }

    /// The control of a log that nobody installed: it remembers what it is told, and changes nothing else.
    pub fn of_no_log(options: &LogOptions) -> Self {
        Self::new(options, Arc::new(|_| Ok(())))
    }

    /// Puts a level, or a filter, in force until the program ends.
    ///
    /// # Errors
    /// When it is no filter, or the log is gone. What was in force stays.
    pub fn set(&self, filter: &str) -> Result<(), TelemetryError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        (self.apply)(parse(filter)?)?;
        *current = filter.to_owned();
        Ok(())
    }

    /// Puts a level in force for these parts of the program, named as crates are. What they are built from stays at `info` at
    /// most: its finer records are of use to nobody here.
    ///
    /// # Errors
    /// When the log is gone. What was in force stays.
    pub fn set_level(&self, level: LevelFilter, parts: &[&str]) -> Result<(), TelemetryError> {
        self.set(&of_parts(level, parts))
    }

    /// Puts what the configuration says in force again.
    ///
    /// # Errors
    /// When the log is gone.
    pub fn reset(&self) -> Result<(), TelemetryError> {
        self.set(&self.launch)
    }

    /// The most verbose level that is in force.
    pub fn level(&self) -> LevelFilter {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        most_verbose(&current)
    }

    /// The most verbose level of the configuration.
    pub fn launch_level(&self) -> LevelFilter {
        most_verbose(&self.launch)
    }
}

impl fmt::Debug for LogControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogControl")
            .field("launch", &self.launch)
            .field("current", &self.current)
            .finish_non_exhaustive()
    }
}

/// Reads a level as people write it, in our words or in SPIRE's; for the command line.
///
/// # Errors
/// What can be written, when it is none of these.
pub fn level_of(text: &str) -> Result<LevelFilter, &'static str> {
    match text.to_ascii_lowercase().as_str() {
        "off" | "panic" | "fatal" => Ok(LevelFilter::OFF),
        "error" => Ok(LevelFilter::ERROR),
        "warn" | "warning" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        _ => Err("write off, error, warn, info, debug or trace"),
    }
}

fn of_parts(level: LevelFilter, parts: &[&str]) -> String {
    let others = level.min(LevelFilter::INFO);
    let mut filter = others.to_string();
    for part in parts {
        filter.push_str(&format!(",{part}={level}"));
    }
    filter
}

/// Reads a filter.
pub(super) fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder()
        .parse(filter)
        .map_err(|cause| TelemetryError {
            cause: cause.into(),
        })
}

fn most_verbose(filter: &str) -> LevelFilter {
    parse(filter)
        .ok()
        .and_then(|filter| filter.max_level_hint())
        .unwrap_or(LevelFilter::TRACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_parts_become_verbose_and_what_they_are_built_from_does_not() {
        let parts = ["ca_server", "proto"];
        assert_eq!(
            of_parts(LevelFilter::TRACE, &parts),
            "info,ca_server=trace,proto=trace"
        );
        assert_eq!(
            of_parts(LevelFilter::ERROR, &parts),
            "error,ca_server=error,proto=error"
        );
    }

    #[test]
    fn a_level_is_changed_and_taken_back_and_a_bad_one_changes_nothing() {
        let options = LogOptions {
            level: "warn,mesh_proxy=info".to_owned(),
            ..LogOptions::default()
        };
        let control = LogControl::of_no_log(&options);
        let levels = || (control.level(), control.launch_level());
        assert_eq!(levels(), (LevelFilter::INFO, LevelFilter::INFO));
        control.set("debug").unwrap();
        assert_eq!(levels(), (LevelFilter::DEBUG, LevelFilter::INFO));
        assert!(control.set("info,=,=").is_err());
        assert_eq!(levels(), (LevelFilter::DEBUG, LevelFilter::INFO));
        control.reset().unwrap();
        assert_eq!(levels(), (LevelFilter::INFO, LevelFilter::INFO));
    }
}
