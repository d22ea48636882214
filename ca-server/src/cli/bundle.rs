//! `ca-server bundle`: whom to trust, in our trust domain and in others.

use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use mesh_identity::{Bundle, TrustDomain};
use mesh_runtime::cli::{self, Exit, Output};

use super::args::{Socket, read, trust_domain};
use super::{CommandError, show};
use crate::store::Users;

#[derive(Debug, Subcommand)]
pub(super) enum BundleVerb {
    /// Show the bundle of this trust domain
    Show {
        #[command(flatten)]
        socket: Socket,
        /// In which form
        #[arg(long, value_enum, default_value_t)]
        format: BundleFormat,
    },
    /// Count the bundles, our own among them
    Count {
        #[command(flatten)]
        socket: Socket,
    },
    /// Show the bundles of other trust domains
    List {
        #[command(flatten)]
        socket: Socket,
        /// Only that of this trust domain
        #[arg(long, value_name = "DOMAIN", value_parser = trust_domain)]
        id: Option<TrustDomain>,
        /// In which form
        #[arg(long, value_enum, default_value_t)]
        format: BundleFormat,
    },
    /// Make the bundle of another trust domain, or replace it
    Set {
        #[command(flatten)]
        socket: Socket,
        /// Which trust domain
        #[arg(long, value_name = "DOMAIN", value_parser = trust_domain)]
        id: TrustDomain,
        /// The file; `-` is standard input
        #[arg(long, value_name = "FILE", default_value = "-")]
        path: PathBuf,
        /// In which form it is
        #[arg(long, value_enum, default_value_t)]
        format: BundleFormat,
    },
    /// Delete the bundle of another trust domain
    Delete {
        #[command(flatten)]
        socket: Socket,
        /// Which trust domain
        #[arg(long, value_name = "DOMAIN", value_parser = trust_domain)]
        id: TrustDomain,
        /// What happens to the entries that federate with it
        #[arg(long, value_enum, default_value_t)]
        mode: Mode,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum BundleFormat {
    /// PEM certificates
    #[default]
    Pem,
    /// The JSON of the SPIFFE standard
    Spiffe,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Mode {
    /// There must be none
    #[default]
    Restrict,
    /// They are deleted
    Delete,
    /// They no longer federate with it
    Dissociate,
}

impl From<Mode> for Users {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Restrict => Self::Restrict,
            Mode::Delete => Self::Delete,
            Mode::Dissociate => Self::Dissociate,
        }
    }
}

/// A bundle in a file.
pub(super) fn from_file(
    domain: TrustDomain,
    path: &Path,
    format: BundleFormat,
) -> Result<Bundle, CommandError> {
    parsed(domain, &read(path)?, format).map_err(|error| CommandError::in_file(path, error))
}

/// A bundle from its bytes.
pub(super) fn parsed(
    domain: TrustDomain,
    bytes: &[u8],
    format: BundleFormat,
) -> Result<Bundle, mesh_identity::BundleError> {
    match format {
        BundleFormat::Pem => Bundle::from_pem(domain, bytes),
        BundleFormat::Spiffe => Bundle::from_spiffe_json(domain, bytes),
    }
}

pub(super) async fn run(verb: BundleVerb, output: Output) -> Result<Exit, CommandError> {
    let text = match verb {
        BundleVerb::Show { socket, format } => {
            let bundle = socket.connect().await?.bundle().await?;
            match output {
                // One bundle is a document already, and a standard one.
                Output::Json => in_format(&bundle, BundleFormat::Spiffe),
                Output::Table => in_format(&bundle, format),
            }
        }
        BundleVerb::Count { socket } => {
            let count = socket.connect().await?.count_bundles().await?;
            show::count(count, "bundle", "bundles", output)
        }
        BundleVerb::List { socket, id, format } => {
            let client = socket.connect().await?;
            let bundles = match id {
                Some(domain) => vec![client.foreign_bundle(&domain).await?],
                None => client.foreign_bundles().await?,
            };
            match output {
                Output::Json => show::bundles(&bundles),
                Output::Table => bundles
                    .iter()
                    .map(|bundle| headed(bundle, format))
                    .collect(),
            }
        }
        BundleVerb::Set {
            socket,
            id,
            path,
            format,
        } => {
            let bundle = from_file(id, &path, format)?;
            socket.connect().await?.set_bundle(&bundle).await?;
            show::done("bundle", "set", &[bundle.trust_domain().as_str()], output)
        }
        BundleVerb::Delete { socket, id, mode } => {
            socket
                .connect()
                .await?
                .delete_bundle(&id, mode.into())
                .await?;
            show::done("bundle", "deleted", &[id.as_str()], output)
        }
    };
    Ok(cli::print(&text))
}

fn headed(bundle: &Bundle, format: BundleFormat) -> String {
    format!("# {}\n{}", bundle.trust_domain(), in_format(bundle, format))
}

fn in_format(bundle: &Bundle, format: BundleFormat) -> String {
    match format {
        BundleFormat::Pem => bundle.to_pem(),
        BundleFormat::Spiffe => {
            String::from_utf8_lossy(&bundle.to_spiffe_json()).into_owned() + "\n"
        }
    }
}
