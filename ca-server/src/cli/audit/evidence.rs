//! `ca-server audit prove`, `checkpoint` and `export`: what leaves a signed log, for people who have neither the log nor the server.

use std::io::{self, Write};
use std::path::Path;

use mesh_runtime::audit::{
    Checkpoint, ExportError, Exported, Ledger, LedgerError, Period, Proof, Wanted,
};
use mesh_runtime::cli::{self, CommonArgs, Exit, Output};
use mesh_runtime::clock::Clock;
use mesh_runtime::errors::Report;
use serde_json::json;

use super::super::show::line;
use super::refused;
use super::view::Form;

pub(super) fn prove(
    ledger: &Ledger,
    record: Option<String>,
    since: Option<&Path>,
    common: &CommonArgs,
) -> Exit {
    match proof(ledger, record, since) {
        Ok(proof) => cli::print(&proof.to_string()),
        Err(error) => refused(&error, common),
    }
}

fn proof(
    ledger: &Ledger,
    record: Option<String>,
    since: Option<&Path>,
) -> Result<Proof, LedgerError> {
    match since {
        Some(path) => ledger.prove_since(&Checkpoint::read(path, ledger.key())?),
        None => {
            let record = record.unwrap_or_default();
            ledger.prove(&match record.parse() {
                Ok(number) => Wanted::Number(number),
                Err(_) => Wanted::Id(record),
            })
        }
    }
}

pub(super) fn checkpoint(ledger: &Ledger, size: Option<u64>, common: &CommonArgs) -> Exit {
    let mut all = ledger.checkpoints().iter();
    let found = match size {
        None => ledger.newest(),
        Some(size) => all
            .find(|checkpoint| checkpoint.size() == size)
            .ok_or(LedgerError::NotSigned(size)),
    };
    match found {
        Err(error) => refused(&error, common),
        Ok(found) => cli::print(&match common.output {
            Output::Table => found.to_string(),
            Output::Json => line(&json!({
                "size": found.size(),
                "root": found.root_text(),
                "note": found.to_string(),
            })),
        }),
    }
}

pub(super) fn export(
    ledger: &Ledger,
    period: &Period,
    to: Option<&Path>,
    form: Form,
    common: &CommonArgs,
) -> Exit {
    let exported = match to {
        Some(to) => ledger.export(period, to, &Clock::system()),
        None => return print(ledger, period, form, common),
    };
    match exported {
        Ok(exported) => cli::print(&shown(&exported, common.output)),
        Err(error) => failed(&error, common),
    }
}

/// The records themselves, or a view of them.
fn print(ledger: &Ledger, period: &Period, form: Form, common: &CommonArgs) -> Exit {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut heading = form.heading();
    let mut each = |record: &[u8]| {
        out.write_all(std::mem::take(&mut heading).as_bytes())?;
        out.write_all(&form.of(record))
    };
    let done = ledger.within(period, &mut each);
    match (done, out.flush()) {
        (Ok(_), Ok(())) => Exit::Done,
        // A reader that has seen enough is no failure.
        (Err(ExportError::Write(_, cause)), _) | (Ok(_), Err(cause))
            if cause.kind() == io::ErrorKind::BrokenPipe =>
        {
            Exit::Done
        }
        (Ok(_), Err(_)) => Exit::Failed,
        (Err(error), _) => failed(&error, common),
    }
}

fn failed(error: &ExportError, common: &CommonArgs) -> Exit {
    match error {
        ExportError::Ledger(error) => refused(error, common),
        ExportError::Write(..) => cli::fail(error, common),
        ExportError::Empty => {
            cli::report(&Report::of(error), common);
            Exit::No
        }
    }
}

fn shown(exported: &Exported, output: Output) -> String {
    let Exported {
        first,
        last,
        signed,
    } = exported;
    match output {
        Output::Json => line(&json!({ "first": first, "last": last, "signed": signed })),
        Output::Table => format!(
            "records {first} to {last}, signed up to {signed}\n`ca-server audit verify --dir DIRECTORY --key FILE` verifies them anywhere\n"
        ),
    }
}
