//! `ca-server backup`: a file of a running server, its proof, and a store made of it.
//! Trusts the configuration for where the store lies. A file gets its name when it was read back whole.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use mesh_runtime::cli::{self, CommonArgs, ConfigArgs, Exit, Output};
use mesh_runtime::clock::Clock;
use mesh_runtime::errors::Report;
use serde_json::json;

use super::args::Socket;
use super::error::{CommandError, refused};
use super::on_one_thread;
use super::show::{line, rfc3339};
use crate::api::client::{AdminClient, FetchError};
use crate::config::CaServerConfig;
use crate::store::{Backup, BackupError, BackupFacts};

#[derive(Debug, Subcommand)]
pub(super) enum BackupVerb {
    /// Write everything that a running server remembers to a file
    Create {
        #[command(flatten)]
        socket: Socket,
        /// The new file
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
    /// Read a backup as a restore would, and tell what is in it
    Verify {
        /// The backup
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Make the store of a server that does not run out of a backup
    Restore {
        /// The backup
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        config: ConfigArgs,
    },
}

pub(super) fn run(verb: BackupVerb, common: &CommonArgs) -> Exit {
    let done = match verb {
        BackupVerb::Create { socket, to } => return create(&socket, &to, common),
        BackupVerb::Verify { file } => Backup::open(&file).map(|backup| backup.facts().clone()),
        BackupVerb::Restore { file, config } => {
            let config = match config.load::<CaServerConfig>() {
                Ok(loaded) => loaded.value,
                Err(errors) => return cli::fail_config(&errors, common),
            };
            restore(&file, &config)
        }
    };
    match done {
        Ok(facts) => cli::print(&shown(&facts, common.output)),
        Err(error) => failed(&error, common),
    }
}

fn restore(file: &Path, config: &CaServerConfig) -> Result<BackupFacts, BackupError> {
    Backup::open(file)?.restore(
        &config.store.sled.path,
        &config.trust_domain,
        Clock::system().now(),
    )
}

fn create(socket: &Socket, to: &Path, common: &CommonArgs) -> Exit {
    let io = |cause| BackupError::Io {
        path: to.to_owned(),
        cause,
    };
    if to.symlink_metadata().is_ok() {
        return failed(&io(io::ErrorKind::AlreadyExists.into()), common);
    }
    let mut partial = to.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let fetched = on_one_thread(async {
        let client = socket.connect().await?;
        Ok(fetch(&client, &partial).await)
    });
    let outcome = match fetched {
        Err(error) => return refused(&error, common),
        Ok(Err(FetchError::Server(error))) => {
            fs::remove_file(&partial).ok();
            return refused(&CommandError::Client(error), common);
        }
        Ok(Err(FetchError::Write(cause))) => Err(io(cause)),
        Ok(Ok(())) => named(&partial, to),
    };
    match outcome {
        Ok(facts) => cli::print(&shown(&facts, common.output)),
        Err(error) => {
            fs::remove_file(&partial).ok();
            failed(&error, common)
        }
    }
}

async fn fetch(client: &AdminClient, partial: &Path) -> Result<(), FetchError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let file = options.open(partial)?;
    let mut out = io::BufWriter::new(&file);
    client.backup(&mut out).await?;
    drop(out);
    file.sync_all()?;
    Ok(())
}

/// Reads the file back and gives it its name, which nothing else has taken meanwhile.
fn named(partial: &Path, to: &Path) -> Result<BackupFacts, BackupError> {
    let facts = Backup::open(partial)?.facts().clone();
    let folder = match to.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let link = || {
        fs::hard_link(partial, to)?;
        fs::remove_file(partial)?;
        File::open(folder)?.sync_all()
    };
    link().map_err(|cause| BackupError::Io {
        path: to.to_owned(),
        cause,
    })?;
    Ok(facts)
}

fn failed(error: &BackupError, common: &CommonArgs) -> Exit {
    let report = match error {
        BackupError::StoreExists(_) => Report::of(error)
            .note("move the old store away first, if the server that used it is gone for good"),
        _ => Report::of(error),
    };
    cli::report(&report, common);
    Exit::Failed
}

fn shown(facts: &BackupFacts, output: Output) -> String {
    match output {
        Output::Json => line(&json!({
            "trustDomain": facts.trust_domain.as_str(),
            "takenAt": rfc3339(facts.taken_at),
            "revision": facts.revision,
            "entries": facts.entries,
            "agents": facts.agents,
            "certificates": facts.certificates,
            "sha256": facts.sha256,
        })),
        Output::Table => format!(
            "Trust domain : {}\nTaken at     : {}\nRevision     : {}\nEntries      : {}\nAgents       : {}\nCertificates : {}\nSHA-256      : {}\n",
            facts.trust_domain,
            rfc3339(facts.taken_at),
            facts.revision,
            facts.entries,
            facts.agents,
            facts.certificates,
            facts.sha256
        ),
    }
}
