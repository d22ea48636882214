//! `ca-server audit`: is the log whole, and what does it say? Both need the files only: no running server, no network.
//! Trusts nothing in a file: what cannot be read as a record is for `verify` to name, and `search` says how many lines it skipped.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use mesh_runtime::audit::{self, Expect, Head, Start, VerifyError};
use mesh_runtime::cli::{self, CommonArgs, ConfigArgs, Exit, Output};
use mesh_runtime::errors::{Coded, Report, untrusted};
use serde_json::{Value, json};

use super::show::line;
use crate::config::CaServerConfig;

#[derive(Debug, Subcommand)]
pub(super) enum AuditVerb {
    /// Read the whole log and name the first record that is not as it was written
    Verify {
        #[command(flatten)]
        log: Log,
        /// A record that must be there, as `verify` printed it earlier: shows a cut-off or rewritten end
        #[arg(long, value_name = "NUMBER:HASH")]
        contains: Option<Known>,
        /// Older files were moved away: begin with whatever record comes first
        #[arg(long)]
        anywhere: bool,
    },
    /// Print the records that fit
    Search {
        #[command(flatten)]
        log: Log,
        /// Only this action, or those below it: `svid` finds `svid.issue`
        #[arg(long, value_name = "ACTION")]
        action: Option<String>,
        /// Only with this outcome: success, failure or denied
        #[arg(long, value_name = "OUTCOME")]
        outcome: Option<String>,
        /// Only those whose actor contains this
        #[arg(long, value_name = "TEXT")]
        actor: Option<String>,
        /// Only those whose object contains this: a SPIFFE ID, an entry, a serial number
        #[arg(long, value_name = "TEXT")]
        object: Option<String>,
        /// Only the last so many of them
        #[arg(long, value_name = "COUNT")]
        last: Option<usize>,
    },
}

/// Which log.
#[derive(Debug, Args)]
pub(super) struct Log {
    /// Its files, in their order; without them, those of the configuration's `audit.dir`
    #[arg(value_name = "FILE")]
    log_files: Vec<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
}

/// The number and the hash of a record.
#[derive(Clone, Debug)]
pub(super) struct Known(Head);

impl FromStr for Known {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = text.split_once(':').and_then(|(seq, hash)| {
            let hex = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
            Some(Head {
                seq: seq.parse().ok()?,
                hash: hex.then(|| hash.to_ascii_lowercase())?,
            })
        });
        known
            .map(Self)
            .ok_or("a record is its number, a colon and its hash of 64 hex digits")
    }
}

/// Why a log cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[error("the audit log in {} cannot be listed", .dir.display())]
struct NoFiles {
    dir: PathBuf,
    #[source]
    cause: std::io::Error,
}

impl Coded for NoFiles {
    fn code(&self) -> &'static str {
        "FNL1311"
    }
}

pub(super) fn run(verb: AuditVerb, common: &CommonArgs) -> Exit {
    let log = match &verb {
        AuditVerb::Verify { log, .. } | AuditVerb::Search { log, .. } => log,
    };
    let files = match files(log, common) {
        Ok(files) => files,
        Err(exit) => return exit,
    };
    match verb {
        AuditVerb::Verify {
            contains, anywhere, ..
        } => {
            let expect = Expect {
                start: if anywhere {
                    Start::Anywhere
                } else {
                    Start::Genesis
                },
                contains: contains.map(|known| known.0),
            };
            verify(&files, &expect, common)
        }
        AuditVerb::Search {
            action,
            outcome,
            actor,
            object,
            last,
            ..
        } => {
            let wanted = Wanted {
                action,
                outcome,
                actor,
                object,
            };
            search(&files, &wanted, last, common)
        }
    }
}

fn files(log: &Log, common: &CommonArgs) -> Result<Vec<PathBuf>, Exit> {
    if !log.log_files.is_empty() {
        return Ok(log.log_files.clone());
    }
    let config = log.config.load::<CaServerConfig>();
    let dir = config
        .map_err(|errors| cli::fail_config(&errors, common))?
        .value
        .audit
        .dir;
    audit::files(&dir).map_err(|cause| cli::fail(&NoFiles { dir, cause }, common))
}

fn verify(files: &[PathBuf], expect: &Expect, common: &CommonArgs) -> Exit {
    let verified = match audit::verify_against(files, expect) {
        Ok(verified) => verified,
        Err(error) => {
            cli::report(&Report::of(&error), common);
            return match error {
                VerifyError::Bad(_) => Exit::No,
                VerifyError::Read(..) => Exit::Failed,
            };
        }
    };
    let head = format!("{}:{}", verified.head.seq, verified.head.hash);
    let text = match common.output {
        Output::Json => line(&json!({
            "records": verified.records,
            "head": head,
            "uncleanStops": verified.unclean_stops,
            "tornBytes": verified.torn.as_ref().map_or(0, |torn| torn.bytes),
        })),
        Output::Table => format!(
            "{} records, each as it was written\nhead {head}\nKeep the head elsewhere; `--contains` shows later whether the end was cut off.\n",
            verified.records
        ),
    };
    cli::print(&text)
}

/// What is searched for.
struct Wanted {
    action: Option<String>,
    outcome: Option<String>,
    actor: Option<String>,
    object: Option<String>,
}

impl Wanted {
    fn fits(&self, record: &Value) -> bool {
        let is = |wanted: &Option<String>, fits: &dyn Fn(&str) -> bool| {
            wanted.as_deref().is_none_or(fits)
        };
        let holds = |field: &str, text: &str| {
            let values = record[field].as_object().into_iter().flatten();
            values.into_iter().any(|(_, value)| match value {
                Value::String(value) => value.contains(text),
                other => other
                    .as_u64()
                    .is_some_and(|number| text.parse() == Ok(number)),
            })
        };
        let action = record["action"].as_str().unwrap_or_default();
        is(&self.action, &|wanted| {
            action
                .strip_prefix(wanted)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        }) && is(&self.outcome, &|wanted| record["outcome"] == wanted)
            && is(&self.actor, &|text| holds("actor", text))
            && is(&self.object, &|text| holds("object", text))
    }
}

fn search(files: &[PathBuf], wanted: &Wanted, last: Option<usize>, common: &CommonArgs) -> Exit {
    let (mut found, mut skipped) = (std::collections::VecDeque::new(), 0_u64);
    for path in files {
        let read = |cause| VerifyError::Read(path.clone(), cause);
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(cause) => return cli::fail(&read(cause), common),
        };
        for text in BufReader::new(file).lines() {
            let text = match text {
                Ok(text) => text,
                Err(cause) => return cli::fail(&read(cause), common),
            };
            match serde_json::from_str::<Value>(&text) {
                Ok(record) if record.is_object() => {
                    if wanted.fits(&record) {
                        found.push_back(match common.output {
                            Output::Json => text + "\n",
                            Output::Table => shown(&record),
                        });
                        if last.is_some_and(|most| found.len() > most) {
                            found.pop_front();
                        }
                    }
                }
                _ => skipped += 1,
            }
        }
    }
    if skipped > 0 {
        tracing::warn!(
            lines = skipped,
            "lines that are no records were skipped; `audit verify` names the first"
        );
    }
    cli::print(&found.into_iter().collect::<String>())
}

/// One line for people.
fn shown(record: &Value) -> String {
    let text = |value: &Value| untrusted(value.as_str().unwrap_or("-"));
    let object = ["name", "id", "serial"]
        .into_iter()
        .filter_map(|field| record["object"][field].as_str())
        .map(untrusted)
        .collect::<Vec<_>>();
    let mut shown = format!(
        "{}  {:>6}  {:<20} {:<8} {}  {}",
        text(&record["time"]),
        record["seq"],
        text(&record["action"]),
        text(&record["outcome"]),
        text(&record["actor"]["id"]),
        object.join(" "),
    );
    if let Some(code) = record["code"].as_str() {
        shown += &format!("  {}", untrusted(code));
    }
    shown + "\n"
}
