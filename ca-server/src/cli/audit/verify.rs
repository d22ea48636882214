//! `ca-server audit verify`: chain, tree and checkpoints of a log or an export; the chain alone of loose files; or a proof.

use std::path::{Path, PathBuf};

use clap::Args;
use mesh_runtime::audit::{
    BadCheckpoint, BadRecord, Checkpoint, Expect, Flaw, Ledger, LedgerError, Proof, ProofError,
    PublicKey, Start, Verified, VerifyError, verify_against,
};
use mesh_runtime::cli::{self, CommonArgs, Exit, Output};
use mesh_runtime::errors::{Report, untrusted};
use serde_json::{Value, json};

use super::super::show::line;
use super::{Known, Log, refused};

#[derive(Debug, Args)]
pub(in crate::cli) struct Verify {
    #[command(flatten)]
    log: Log,
    /// A record that must be there, as `verify` printed it earlier: shows a cut-off or rewritten end
    #[arg(long, value_name = "NUMBER:HASH")]
    contains: Option<Known>,
    /// Older files were moved away: begin with whatever record comes first
    #[arg(long)]
    anywhere: bool,
    /// The public key, kept elsewhere; without it, the one beside the log, which could have been changed with it
    #[arg(long, value_name = "FILE", conflicts_with = "log_files")]
    key: Option<PathBuf>,
    /// A checkpoint that was kept elsewhere and must be of this log; repeatable
    #[arg(long = "checkpoint", value_name = "FILE", conflicts_with = "log_files")]
    checkpoints: Vec<PathBuf>,
    /// The server has stopped: its last record must be a stop, and signed
    #[arg(long, conflicts_with = "log_files")]
    closed: bool,
    /// Verify this proof, as `prove` printed it, instead of a log: needs the key, and nothing else
    #[arg(
        long,
        value_name = "FILE",
        requires = "key",
        conflicts_with_all = ["log_files", "dir", "contains", "anywhere", "closed"]
    )]
    proof: Option<PathBuf>,
}

impl Verify {
    pub(super) fn run(self, common: &CommonArgs) -> Result<Exit, Exit> {
        let no = |error: LedgerError| refused(&error, common);
        if !self.log.log_files.is_empty() {
            return Ok(self.chain(common));
        }
        let key = self.key.as_deref().map(PublicKey::read);
        let key = key.transpose().map_err(no)?;
        if let (Some(path), Some(key)) = (&self.proof, &key) {
            let kept = self.kept(key).map_err(no)?;
            return proof(path, key, &kept, common).map_err(no);
        }
        let own_key = key.is_none();
        let ledger = self.log.place.ledger(key, common)?;
        let kept = self.kept(ledger.key()).map_err(no)?;
        let verified = self.signed(&ledger, &kept);
        Ok(match verified {
            Ok(verified) => told(&verified, Some((&ledger, own_key)), common),
            Err(error) => changed(&error, common),
        })
    }

    fn kept(&self, key: &PublicKey) -> Result<Vec<Checkpoint>, LedgerError> {
        let read = |path: &PathBuf| Checkpoint::read(path, key);
        self.checkpoints.iter().map(read).collect()
    }

    fn chain(self, common: &CommonArgs) -> Exit {
        let expect = Expect {
            start: if self.anywhere {
                Start::Anywhere
            } else {
                Start::Genesis
            },
            contains: self.contains.map(|known| known.0),
            seals: None,
        };
        match verify_against(&self.log.log_files, &expect) {
            Ok(verified) => told(&verified, None, common),
            Err(error) => changed(&error, common),
        }
    }

    fn signed(&self, ledger: &Ledger, kept: &[Checkpoint]) -> Result<Verified, VerifyError> {
        if ledger.first() > 1 && !self.anywhere && !ledger.is_export() {
            return Err(VerifyError::Bad(BadRecord {
                file: ledger.files().first().cloned().unwrap_or_default(),
                line: 1,
                seq: 1,
                flaw: Flaw::Number {
                    found: ledger.first(),
                },
            }));
        }
        let contains = self.contains.clone().map(|known| known.0);
        let verified = ledger.verify(contains, kept)?;
        match self.closed && !verified.closed {
            true => Err(VerifyError::Checkpoint(BadCheckpoint::Open(
                verified.head.seq,
            ))),
            false => Ok(verified),
        }
    }
}

fn changed(error: &VerifyError, common: &CommonArgs) -> Exit {
    cli::report(&Report::of(error), common);
    match error {
        VerifyError::Bad(_) | VerifyError::Checkpoint(_) => Exit::No,
        VerifyError::Read(..) => Exit::Failed,
    }
}

fn told(verified: &Verified, ledger: Option<(&Ledger, bool)>, common: &CommonArgs) -> Exit {
    let head = format!("{}:{}", verified.head.seq, verified.head.hash);
    let mut text = format!("{} records, each as it was written\n", verified.records);
    let mut json = json!({
        "records": verified.records,
        "head": head,
        "uncleanStops": verified.unclean_stops,
        "tornBytes": verified.torn.as_ref().map_or(0, |torn| torn.bytes),
        "closed": verified.closed,
        "checkpoints": Value::Null,
    });
    if let (Some((ledger, own_key)), Some(sealed)) = (ledger, &verified.sealed) {
        let unsigned = sealed.tree.size() - sealed.signed;
        json["checkpoints"] = sealed.checkpoints.into();
        json["signed"] = sealed.signed.into();
        json["unsigned"] = unsigned.into();
        json["key"] = ledger.key().to_string().into();
        text += &format!(
            "{} checkpoints agree, signed up to record {}, {unsigned} after it are not signed yet\nkey {}\n",
            sealed.checkpoints,
            sealed.signed,
            ledger.key()
        );
        if own_key {
            text += "This key lies beside the log. Keep it elsewhere, and give it with `--key`.\n";
        }
    } else {
        text += "Only the chain was looked at, no checkpoint.\n";
    }
    text += &format!(
        "head {head}\nKeep the head, or `audit checkpoint`, elsewhere: `--contains` and `--checkpoint` show later whether the end was cut off.\n"
    );
    match common.output {
        Output::Json => cli::print(&line(&json)),
        Output::Table => cli::print(&text),
    }
}

fn proof(
    path: &Path,
    key: &PublicKey,
    kept: &[Checkpoint],
    common: &CommonArgs,
) -> Result<Exit, LedgerError> {
    let text = Proof::read(path)?;
    let proved = Proof::parse(&text, key).and_then(|proof| proof.verify(kept).map(|()| proof));
    Ok(match proved {
        Ok(proof) => cli::print(&shown(&proof, common.output)),
        Err(error) => no_proof(&error, common),
    })
}

fn no_proof(error: &ProofError, common: &CommonArgs) -> Exit {
    let mut report = Report::of(error);
    if matches!(error, ProofError::NeedsOlder(_)) {
        report = report.note("give it with `--checkpoint FILE`");
    }
    cli::report(&report, common);
    Exit::No
}

/// What a proof proves, which holds.
fn shown(proof: &Proof, output: Output) -> String {
    let size = proof.checkpoint().size();
    match (proof, output) {
        (Proof::Inclusion { record, index, .. }, Output::Json) => line(&json!({
            "proves": "record",
            "number": index + 1,
            "size": size,
            "record": serde_json::from_str::<Value>(record).unwrap_or_default(),
        })),
        (Proof::Inclusion { record, index, .. }, Output::Table) => format!(
            "proved: record {} of the {size} that the checkpoint covers\n{}\n",
            index + 1,
            untrusted(record)
        ),
        (Proof::Consistency { old, .. }, Output::Json) => {
            line(&json!({ "proves": "continuation", "old": old, "size": size }))
        }
        (Proof::Consistency { old, .. }, Output::Table) => {
            format!("proved: the log of {size} records continues that of {old}\n")
        }
    }
}
