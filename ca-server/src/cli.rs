//! The command line: the daemon's own verbs, and those of a local administrator over the socket.
//! Trusts clap for the grammar. Data goes to stdout, everything else to stderr; the exit codes are those of every program of ours.

mod agent;
mod args;
mod audit;
mod authority;
mod backup;
mod bundle;
mod entry;
mod error;
mod federation;
mod log_level;
mod show;
mod spire;
mod svid;

use std::io::Write;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use mesh_identity::SpiffeId;
use mesh_runtime::cli::{self, CommonArgs, ConfigArgs, ConfigCommand, Exit, Output, RunArgs};
use mesh_runtime::telemetry;

use self::args::Socket;
use self::error::CommandError;
use crate::api::client::ClientError;
use crate::app;
use crate::config::CaServerConfig;

/// The certificate authority of a trust domain.
#[derive(Debug, Parser)]
#[command(name = "ca-server", version, about)]
pub struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the server
    Run(RunArgs),
    /// Report every mistake in the configuration
    Validate(ConfigArgs),
    /// Ask a running server whether it is ready
    Healthcheck {
        #[command(flatten)]
        socket: Socket,
        /// SPIRE's flag; every check is as shallow
        #[arg(long, hide = true)]
        shallow: bool,
    },
    /// Print, explain and check configurations
    Config {
        #[command(subcommand)]
        verb: ConfigCommand,
    },
    /// Join tokens
    Token {
        #[command(subcommand)]
        verb: TokenVerb,
    },
    /// Registration entries
    Entry {
        #[command(subcommand)]
        verb: entry::EntryVerb,
    },
    /// The bundles of this and of other trust domains
    Bundle {
        #[command(subcommand)]
        verb: bundle::BundleVerb,
    },
    /// Relationships with other trust domains
    Federation {
        #[command(subcommand)]
        verb: federation::FederationVerb,
    },
    /// Agents
    Agent {
        #[command(subcommand)]
        verb: agent::AgentVerb,
    },
    /// The keys that sign, and turns by hand
    #[command(alias = "localauthority")]
    Authority {
        #[command(subcommand)]
        verb: authority::AuthorityVerb,
    },
    /// SPIRE's verb
    #[command(hide = true, name = "upstreamauthority")]
    UpstreamAuthority {
        #[command(subcommand)]
        verb: authority::UpstreamVerb,
    },
    /// Identities that an administrator asks for
    Svid {
        #[command(subcommand)]
        verb: svid::SvidVerb,
    },
    /// SPIRE's verb
    #[command(hide = true)]
    X509 {
        #[command(subcommand)]
        verb: svid::SpiresX509Verb,
    },
    /// SPIRE's verb
    #[command(hide = true)]
    Jwt {
        #[command(subcommand)]
        verb: svid::SpiresJwtVerb,
    },
    /// How verbose the log is
    #[command(alias = "logger")]
    LogLevel {
        #[command(subcommand)]
        verb: log_level::LogLevelVerb,
    },
    /// The audit log
    Audit {
        #[command(subcommand)]
        verb: audit::AuditVerb,
    },
    /// Backups of what the server remembers
    Backup {
        #[command(subcommand)]
        verb: backup::BackupVerb,
    },
}

#[derive(Debug, Subcommand)]
enum TokenVerb {
    /// Make a token that lets one node in, once
    Generate {
        #[command(flatten)]
        socket: Socket,
        /// A further SPIFFE ID for the node
        #[arg(long, alias = "spiffeID", value_name = "ID")]
        spiffe_id: Option<SpiffeId>,
        /// Seconds until the token is void
        #[arg(long, value_name = "SECONDS", default_value_t = 600)]
        ttl: i32,
    },
}

impl Cli {
    /// Reads the arguments of this process, in our spelling or in SPIRE's. Ends the process if they are wrong.
    pub fn of_process() -> Self {
        let mut grammar = Self::command();
        let (arguments, spires) = spire::translated(&grammar, std::env::args_os().collect());
        let read = grammar
            .try_get_matches_from_mut(arguments)
            .and_then(|matches| Self::from_arg_matches(&matches))
            .map_err(|error| error.format(&mut grammar));
        let cli = read.unwrap_or_else(|error| error.exit());
        if spires && !cli.common.quiet {
            // A hint only: when standard error is gone there is nobody to tell.
            writeln!(
                std::io::stderr(),
                "hint: SPIRE's flags are understood; ours have two dashes, as in --spiffe-id"
            )
            .ok();
        }
        cli
    }
}

/// Runs the program.
pub fn main(cli: Cli) -> Exit {
    let Cli { common, verb } = cli;
    match verb {
        Verb::Validate(args) => cli::validate::<CaServerConfig>(&args, &common),
        Verb::Config { verb } => cli::config::<CaServerConfig>(&verb, &common),
        Verb::Run(args) => run(&args, &common),
        Verb::Audit { verb } => audit::run(verb, &common),
        Verb::Backup { verb } => backup::run(verb, &common),
        verb => match on_one_thread(ask(verb, &common)) {
            Ok(exit) => exit,
            Err(error) => error::refused(&error, &common),
        },
    }
}

fn run(args: &RunArgs, common: &CommonArgs) -> Exit {
    let config = match args.config.load::<CaServerConfig>() {
        Ok(loaded) => loaded.value,
        Err(errors) => return cli::fail_config(&errors, common),
    };
    let log = common.log(&config.log);
    let _traces = match telemetry::init_traced("ca-server", &log, &config.telemetry.otlp) {
        Ok(traces) => traces,
        Err(error) => return cli::fail(&error, common),
    };
    if let Err(errno) = mesh_runtime::memory::keep_private() {
        tracing::warn!(%errno, "others of the same user may read this program's memory");
    }
    match app::serve(&config, args.addresses_file.as_deref()) {
        Ok(()) => Exit::Done,
        Err(failure) => cli::fail(&failure, common),
    }
}

fn on_one_thread<T>(
    work: impl Future<Output = Result<T, CommandError>>,
) -> Result<T, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| ClientError::Unreadable(error.to_string()))?;
    runtime.block_on(work)
}

async fn ask(verb: Verb, common: &CommonArgs) -> Result<Exit, CommandError> {
    let output = common.output;
    match verb {
        Verb::Run(_)
        | Verb::Validate(_)
        | Verb::Config { .. }
        | Verb::Audit { .. }
        | Verb::Backup { .. } => Ok(Exit::Usage),
        Verb::Entry { verb } => entry::run(verb, output).await,
        Verb::Agent { verb } => agent::run(verb, output).await,
        Verb::Healthcheck { socket, .. } => {
            let ready = socket.connect().await?.is_ready().await?;
            let text = match output {
                Output::Json => format!("{{\"ready\":{ready}}}\n"),
                Output::Table if common.quiet => String::new(),
                Output::Table if ready => "ready\n".to_owned(),
                Output::Table => "not ready\n".to_owned(),
            };
            let printed = cli::print(&text);
            Ok(if ready { printed } else { Exit::No })
        }
        Verb::Token {
            verb:
                TokenVerb::Generate {
                    socket,
                    spiffe_id,
                    ttl,
                },
        } => {
            let client = socket.connect().await?;
            let (token, expires_at) = client.create_token(spiffe_id.as_ref(), ttl).await?;
            Ok(cli::print(&show::token(&token, expires_at, output)))
        }
        Verb::Bundle { verb } => bundle::run(verb, output).await,
        Verb::Federation { verb } => federation::run(verb, output).await,
        Verb::Authority { verb } => authority::run(verb, output).await,
        Verb::UpstreamAuthority { verb } => authority::upstream(verb, output).await,
        Verb::Svid { verb } => svid::run(verb, common).await,
        Verb::X509 { verb } => svid::run(verb.into(), common).await,
        Verb::Jwt { verb } => svid::run(verb.into(), common).await,
        Verb::LogLevel { verb } => log_level::run(verb, output).await,
    }
}

#[cfg(test)]
mod tests;
