//! Why a command of an administrator failed, how that is shown, and with which exit code.

use std::io;
use std::path::Path;

use mesh_runtime::cli::{self, CommonArgs, Exit};
use mesh_runtime::errors::{Coded, Report};
use tonic::Code;

use crate::api::client::ClientError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    /// The server did not do it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A file that a flag names.
    #[error("{file} cannot be read")]
    File {
        /// Which.
        file: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// What stands in it.
    #[error("{file}: {problem}")]
    Content {
        /// Which.
        file: String,
        /// Where and what.
        problem: String,
    },
    /// A file that the command was to write.
    #[error("{file} cannot be written")]
    Write {
        /// Which.
        file: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// No key or request could be made.
    #[error("no key and request for the certificate could be made: {0}")]
    Key(String),
    /// Some items of a batch; the others were done.
    #[error("{count} of the items were refused", count = .0.len())]
    Items(Vec<(String, ClientError)>),
}

impl CommandError {
    pub(super) fn in_file(file: &Path, problem: impl ToString) -> Self {
        Self::Content {
            file: file.display().to_string(),
            problem: problem.to_string(),
        }
    }

    /// The items that were refused, if there are any.
    pub(super) fn of_items(items: Vec<(String, ClientError)>) -> Option<Self> {
        (!items.is_empty()).then_some(Self::Items(items))
    }
}

impl Coded for CommandError {
    fn code(&self) -> &'static str {
        match self {
            Self::Client(error) => error.code(),
            Self::File { .. } => "FNL1304",
            Self::Content { .. } => "FNL1305",
            Self::Items(_) => "FNL1306",
            Self::Write { .. } => "FNL1060",
            Self::Key(_) => "FNL1061",
        }
    }
}

/// Prints the error on standard error, and says how the command ends.
pub(super) fn refused(error: &CommandError, common: &CommonArgs) -> Exit {
    let mut report = Report::of(error);
    let exit = match error {
        CommandError::Client(ClientError::Unreachable { .. }) => {
            report = report.note("is ca-server running, and may you open its admin socket?");
            Exit::Unreachable
        }
        CommandError::Client(ClientError::Refused { grpc, fnl, .. }) => {
            if let Some(code) = fnl {
                report = report.note(format!("the server says {code}"));
            }
            match grpc {
                Code::PermissionDenied | Code::Unauthenticated => Exit::NotAllowed,
                Code::DeadlineExceeded => Exit::TimedOut,
                Code::Unavailable => Exit::Unreachable,
                _ => Exit::Failed,
            }
        }
        CommandError::Items(items) => {
            for (name, why) in items {
                report = report.line(format!("  {name}: {why}"));
            }
            Exit::Failed
        }
        _ => Exit::Failed,
    };
    cli::report(&report, common);
    exit
}
