//! `workload-agent log-level`: how verbose the log of a running agent is, in our spelling and in SPIRE's.

use clap::{Args, Subcommand};
use mesh_runtime::{
    cli::{Exit, Output, print},
    config::HumanDuration,
    telemetry::level_of,
};
use proto::{
    convert::{log_level_from_wire, log_level_to_wire},
    spire::api::{
        agent::logger::v1::{
            GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest, logger_client::LoggerClient,
        },
        types::Logger,
    },
};
use serde_json::json;
use tonic::Status;
use tracing::level_filters::LevelFilter;

use super::client::{code, connect, failed, within};

#[derive(Debug, Subcommand)]
pub(super) enum LogLevelVerb {
    /// Show the level now, and the one that was configured.
    #[command(alias = "get")]
    Show(AdminSocketArgs),
    /// Change it until the agent starts again.
    Set {
        #[command(flatten)]
        socket: AdminSocketArgs,
        /// off, error, warn, info, debug or trace.
        #[arg(long, value_name = "LEVEL", value_parser = level_of)]
        level: LevelFilter,
    },
    /// Set it back to what was configured.
    Reset(AdminSocketArgs),
}

#[derive(Debug, Args)]
pub(super) struct AdminSocketArgs {
    /// The agent's admin socket.
    #[arg(
        long,
        visible_alias = "socketPath",
        value_name = "PATH",
        default_value = "/run/finial/agent/admin.sock"
    )]
    admin_socket: String,
    /// How long to wait for an answer.
    #[arg(long, value_name = "TIME", default_value = "5s")]
    timeout: HumanDuration,
}

pub(super) async fn run(verb: LogLevelVerb, output: Output) -> Exit {
    let (LogLevelVerb::Show(socket)
    | LogLevelVerb::Set { socket, .. }
    | LogLevelVerb::Reset(socket)) = &verb;
    let limit = socket.timeout.get();
    let answer = within(limit, async {
        let mut client = LoggerClient::new(connect(&socket.admin_socket, limit).await?);
        let answer = match &verb {
            LogLevelVerb::Show(_) => client.get_logger(GetLoggerRequest {}).await,
            LogLevelVerb::Set { level, .. } => {
                let new_level = log_level_to_wire(*level).into();
                client.set_log_level(SetLogLevelRequest { new_level }).await
            }
            LogLevelVerb::Reset(_) => client.reset_log_level(ResetLogLevelRequest {}).await,
        };
        let answer = answer.map_err(|status| failed(&status))?;
        shown(&answer.into_inner(), output)
    });
    code(answer.await.map(|text| print(&text)))
}

fn shown(logger: &Logger, output: Output) -> Result<String, Exit> {
    let read = |level| {
        let unknown = || failed(&Status::internal("it has an unknown log level"));
        log_level_from_wire(level).ok_or_else(unknown)
    };
    let current = read(logger.current_level())?.to_string();
    let launch = read(logger.launch_level())?.to_string();
    Ok(match output {
        Output::Json => {
            let levels = json!({ "currentLevel": current, "launchLevel": launch });
            format!("{levels}\n")
        }
        Output::Table => format!("Log level   {current}\nConfigured  {launch}\n"),
    })
}
