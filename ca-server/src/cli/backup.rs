//! `ca-server backup`: a file of a running server, its proof, and a store made of it.
//! Trusts the configuration for where the store lies. A file gets its name when it was read back whole.

use std::fs::File;
use std::io;
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
    let folder = match to.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    // Its name is nobody's to guess, only its owner may read it, and it goes away with this call unless it gets its own name.
    let mut partial = match tempfile::NamedTempFile::new_in(folder) {
        Ok(partial) => partial,
        Err(cause) => return failed(&io(cause), common),
    };
    let fetched = on_one_thread(async {
        let client = socket.connect().await?;
        Ok(fetch(&client, partial.as_file_mut()).await)
    });
    let facts = match fetched {
        Err(error) => return refused(&error, common),
        Ok(Err(FetchError::Server(error))) => {
            return refused(&CommandError::Client(error), common);
        }
        Ok(Err(FetchError::Write(cause))) => Err(io(cause)),
        Ok(Ok(())) => Backup::open(partial.path()).map(|backup| backup.facts().clone()),
    };
    let named = facts.and_then(|facts| {
        partial
            .persist_noclobber(to)
            .map_err(|error| error.error)
            .and_then(|_| File::open(folder)?.sync_all())
            .map_err(io)?;
        Ok(facts)
    });
    match named {
        Ok(facts) => cli::print(&shown(&facts, common.output)),
        Err(error) => failed(&error, common),
    }
}

async fn fetch(client: &AdminClient, file: &mut File) -> Result<(), FetchError> {
    let mut out = io::BufWriter::new(&mut *file);
    client.backup(&mut out).await?;
    drop(out);
    Ok(file.sync_all()?)
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
