//! `ca-server log-level`: how verbose the log of a running server is.

use clap::Subcommand;
use mesh_runtime::cli::{self, Exit, Output};
use mesh_runtime::telemetry::level_of;
use serde_json::json;
use tracing::level_filters::LevelFilter;

use super::CommandError;
use super::args::Socket;
use super::show::{line, rows};
use crate::api::client::LogLevels;

#[derive(Debug, Subcommand)]
pub(super) enum LogLevelVerb {
    /// Show the level now, and the one that was configured
    #[command(alias = "get")]
    Show {
        #[command(flatten)]
        socket: Socket,
    },
    /// Change it until the server starts again
    Set {
        #[command(flatten)]
        socket: Socket,
        /// off, error, warn, info, debug or trace
        #[arg(long, value_name = "LEVEL", value_parser = level_of)]
        level: LevelFilter,
    },
    /// Set it back to what was configured
    Reset {
        #[command(flatten)]
        socket: Socket,
    },
}

pub(super) async fn run(verb: LogLevelVerb, output: Output) -> Result<Exit, CommandError> {
    let levels = match verb {
        LogLevelVerb::Show { socket } => socket.connect().await?.log_level().await?,
        LogLevelVerb::Set { socket, level } => socket.connect().await?.set_log_level(level).await?,
        LogLevelVerb::Reset { socket } => socket.connect().await?.reset_log_level().await?,
    };
    Ok(cli::print(&shown(levels, output)))
}

fn shown(LogLevels { current, launch }: LogLevels, output: Output) -> String {
    let (current, launch) = (current.to_string(), launch.to_string());
    match output {
        Output::Json => line(&json!({ "currentLevel": current, "launchLevel": launch })),
        Output::Table => rows(&[("Log level", current), ("Configured", launch)]),
    }
}
