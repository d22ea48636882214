//! What several verbs take: the socket, sets in filters, trust domains, files of JSON.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use mesh_identity::{TrustDomain, TrustDomainError};
use mesh_runtime::config::HumanDuration;
use serde::de::DeserializeOwned;

use super::CommandError;
use crate::api::client::{AdminClient, ClientError};
use crate::config::DEFAULT_ADMIN_SOCKET;
use crate::registry::Match;

/// Which server.
#[derive(Clone, Debug, Args)]
pub(super) struct Socket {
    /// The server's admin socket
    #[arg(long, alias = "socketPath", value_name = "PATH", default_value = DEFAULT_ADMIN_SOCKET)]
    admin_socket: PathBuf,
}

impl Socket {
    pub(super) async fn connect(&self) -> Result<AdminClient, ClientError> {
        AdminClient::connect(&self.admin_socket).await
    }
}

/// How a set is compared with the one that the flags name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum MatchOn {
    /// Both are equal
    Exact,
    /// At least one is in both
    Any,
    /// All that the flags name are there
    #[default]
    Superset,
    /// Nothing is there but what the flags name
    Subset,
}

/// The set of a filter; no flag, no filter.
pub(super) fn set<T: Ord>(items: Vec<T>, how: MatchOn) -> Option<(BTreeSet<T>, Match)> {
    let how = match how {
        MatchOn::Exact => Match::Exact,
        MatchOn::Any => Match::Any,
        MatchOn::Superset => Match::Superset,
        MatchOn::Subset => Match::Subset,
    };
    (!items.is_empty()).then(|| (items.into_iter().collect(), how))
}

/// A trust domain by its name, or as SPIRE's commands want it, by its SPIFFE ID.
pub(super) fn trust_domain(text: &str) -> Result<TrustDomain, TrustDomainError> {
    text.strip_prefix("spiffe://").unwrap_or(text).parse()
}

/// A length of time as it is written in configuration files: `90s`, `1h30m`.
pub(super) fn duration(text: &str) -> Result<std::time::Duration, String> {
    text.parse::<HumanDuration>()
        .map(Into::into)
        .map_err(|error| error.to_string())
}

/// A file's bytes; `-` is standard input.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, CommandError> {
    let mut bytes = Vec::new();
    let outcome = match path.as_os_str() == "-" {
        true => std::io::stdin().lock().read_to_end(&mut bytes).map(drop),
        false => std::fs::read(path).map(|read| bytes = read),
    };
    outcome.map_err(|cause| CommandError::File {
        file: path.display().to_string(),
        cause,
    })?;
    Ok(bytes)
}

/// A file of JSON, whole or refused.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, CommandError> {
    serde_json::from_slice(&read(path)?).map_err(|error| CommandError::in_file(path, error))
}
