//! `ca-server audit`: is the log whole, what does it say, and what of it can be shown to others? All of it needs the files
//! only: no running server, no network. Trusts nothing in a file: what cannot be read as a record is for `verify` to name.

mod evidence;
mod search;
mod verify;
mod view;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use mesh_runtime::audit::{self, Head, Ledger, LedgerError, PublicKey};
use mesh_runtime::cli::{self, CommonArgs, ConfigArgs, Exit};
use mesh_runtime::errors::{Coded, Report};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::config::CaServerConfig;

#[derive(Debug, Subcommand)]
pub(super) enum AuditVerb {
    /// Read the whole log and name the first record that is not as it was written, or a proof and say whether it holds
    Verify(verify::Verify),
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
    /// Print what proves one record, or that the log was only continued, to whoever has the public key
    Prove {
        /// The record: its id, or its number
        #[arg(value_name = "ID", required_unless_present = "since")]
        record: Option<String>,
        /// A checkpoint that was kept, in a file: prove that the log was only continued since
        #[arg(long, value_name = "FILE", conflicts_with = "record")]
        since: Option<PathBuf>,
        #[command(flatten)]
        place: Place,
    },
    /// Print a signed checkpoint, to be kept elsewhere: the newest one
    Checkpoint {
        /// That over so many records instead
        #[arg(long, value_name = "COUNT")]
        size: Option<u64>,
        #[command(flatten)]
        place: Place,
    },
    /// Print the records of a period, or write them into a directory together with what proves them
    Export {
        /// The new directory; without it, the records are printed
        #[arg(long, value_name = "DIRECTORY", conflicts_with = "format")]
        to: Option<PathBuf>,
        /// In which form they are printed
        #[arg(long, value_enum, default_value_t)]
        format: view::Form,
        /// From this moment on, as 2026-11-25T00:00:00Z
        #[arg(long, value_name = "TIME")]
        from: Option<Moment>,
        /// Before this moment
        #[arg(long, value_name = "TIME")]
        until: Option<Moment>,
        #[command(flatten)]
        place: Place,
    },
}

/// Which log, as files whose chain alone is looked at or as the directory of a signed log.
#[derive(Debug, Args)]
pub(super) struct Log {
    /// Files in their order, of which only the chain is looked at; without them, the whole log in its directory
    #[arg(value_name = "FILE", conflicts_with = "dir")]
    log_files: Vec<PathBuf>,
    #[command(flatten)]
    place: Place,
}

/// Where a signed log lies.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// The directory of the log, or of an export; without it, the configuration's `audit.dir`
    #[arg(long, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
}

/// A moment in RFC 3339.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment(SystemTime);

impl FromStr for Moment {
    type Err = time::error::Parse;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        OffsetDateTime::parse(text, &Rfc3339).map(|moment| Self(moment.into()))
    }
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
    let done = match verb {
        AuditVerb::Verify(verify) => verify.run(common),
        AuditVerb::Search {
            log,
            action,
            outcome,
            actor,
            object,
            last,
        } => log.files(common).map(|files| {
            let wanted = search::Wanted {
                action,
                outcome,
                actor,
                object,
            };
            search::search(&files, &wanted, last, common)
        }),
        AuditVerb::Prove {
            record,
            since,
            place,
        } => place
            .ledger(None, common)
            .map(|ledger| evidence::prove(&ledger, record, since.as_deref(), common)),
        AuditVerb::Checkpoint { size, place } => place
            .ledger(None, common)
            .map(|ledger| evidence::checkpoint(&ledger, size, common)),
        AuditVerb::Export {
            to,
            format,
            from,
            until,
            place,
        } => place.ledger(None, common).map(|ledger| {
            let period = audit::Period {
                from: from.map(|moment| moment.0),
                until: until.map(|moment| moment.0),
            };
            evidence::export(&ledger, &period, to.as_deref(), format, common)
        }),
    };
    done.unwrap_or_else(|exit| exit)
}

impl Log {
    fn files(&self, common: &CommonArgs) -> Result<Vec<PathBuf>, Exit> {
        if !self.log_files.is_empty() {
            return Ok(self.log_files.clone());
        }
        let dir = self.place.dir(common)?;
        audit::files(&dir).map_err(|cause| cli::fail(&NoFiles { dir, cause }, common))
    }
}

impl Place {
    fn dir(&self, common: &CommonArgs) -> Result<PathBuf, Exit> {
        if let Some(dir) = &self.dir {
            return Ok(dir.clone());
        }
        let config = self.config.load::<CaServerConfig>();
        let config = config.map_err(|errors| cli::fail_config(&errors, common))?;
        Ok(config.value.audit.dir)
    }

    fn ledger(&self, key: Option<PublicKey>, common: &CommonArgs) -> Result<Ledger, Exit> {
        let dir = self.dir(common)?;
        Ledger::open(&dir, key).map_err(|error| refused(&error, common))
    }
}

/// Prints why, and tells a log that is not what it should be from one that cannot be read.
fn refused(error: &LedgerError, common: &CommonArgs) -> Exit {
    let mut report = Report::of(error);
    let (exit, note) = match error {
        LedgerError::Read(path, _) if path.ends_with(audit::PUBLIC_KEY_FILE) => (
            Exit::Failed,
            Some(
                "a log that was never signed has no key: name its files to look at their chain alone",
            ),
        ),
        LedgerError::Read(..) | LedgerError::Key(..) => (Exit::Failed, None),
        LedgerError::NotSigned(_) => (
            Exit::No,
            Some("a running server signs at least every `audit.checkpointEvery`: ask again then"),
        ),
        _ => (Exit::No, None),
    };
    if let Some(note) = note {
        report = report.note(note);
    }
    cli::report(&report, common);
    exit
}
