//! The command line: the daemon's own verbs, and those of a local administrator over the socket.
//! Trusts clap for the grammar. Data goes to stdout, everything else to stderr; the exit codes are those of every program of ours.

mod show;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use mesh_identity::{DnsName, Selector, SpiffeId};
use mesh_runtime::cli::{self, CommonArgs, ConfigArgs, ConfigCommand, Exit, Output, RunArgs};
use mesh_runtime::errors::Report;
use mesh_runtime::telemetry;
use tonic::Code;

use crate::api::client::{AdminClient, ClientError, NewEntry};
use crate::app;
use crate::config::{CaServerConfig, DEFAULT_ADMIN_SOCKET};

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
    Healthcheck(Socket),
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
        verb: EntryVerb,
    },
    /// The trust bundle
    Bundle {
        #[command(subcommand)]
        verb: BundleVerb,
    },
    /// Agents
    Agent {
        #[command(subcommand)]
        verb: AgentVerb,
    },
}

/// Which server.
#[derive(Clone, Debug, Args)]
struct Socket {
    /// The server's admin socket
    #[arg(long, alias = "socketPath", value_name = "PATH", default_value = DEFAULT_ADMIN_SOCKET)]
    admin_socket: PathBuf,
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

#[derive(Debug, Subcommand)]
enum EntryVerb {
    /// Create an entry
    Create(CreateEntry),
    /// Show entries
    Show {
        #[command(flatten)]
        socket: Socket,
        /// Only the one with this id
        #[arg(long, alias = "entryID", value_name = "ENTRY")]
        entry_id: Option<String>,
        /// Only those with this SPIFFE ID
        #[arg(long, alias = "spiffeID", value_name = "ID")]
        spiffe_id: Option<SpiffeId>,
        /// Only those below this parent
        #[arg(long, alias = "parentID", value_name = "ID")]
        parent_id: Option<SpiffeId>,
    },
    /// Delete an entry
    Delete {
        #[command(flatten)]
        socket: Socket,
        /// Which
        #[arg(long, alias = "entryID", value_name = "ENTRY")]
        entry_id: String,
    },
}

#[derive(Debug, Args)]
struct CreateEntry {
    #[command(flatten)]
    socket: Socket,
    /// The identity
    #[arg(long, alias = "spiffeID", value_name = "ID")]
    spiffe_id: SpiffeId,
    /// The agent, node alias or workload below which it applies
    #[arg(long, alias = "parentID", value_name = "ID")]
    parent_id: SpiffeId,
    /// What a process must have; repeatable, all are needed
    #[arg(long, value_name = "TYPE:VALUE", required = true)]
    selector: Vec<Selector>,
    /// Its id; the server chooses one if absent
    #[arg(long, alias = "entryID", value_name = "ENTRY", default_value = "")]
    entry_id: String,
    /// Life of X509-SVIDs in seconds; 0: the server's default
    #[arg(
        long,
        alias = "x509SVIDTTL",
        alias = "x509-svid-ttl",
        value_name = "SECONDS",
        default_value_t = 0
    )]
    ttl: i32,
    /// A DNS name for the certificate; repeatable
    #[arg(long, value_name = "NAME")]
    dns: Vec<DnsName>,
    /// Told to the workload, so that it can tell its identities apart
    #[arg(long, value_name = "TEXT", default_value = "")]
    hint: String,
    /// The holder is an administrator of this server
    #[arg(long)]
    admin: bool,
}

#[derive(Debug, Subcommand)]
enum BundleVerb {
    /// Show the bundle of this trust domain
    Show {
        #[command(flatten)]
        socket: Socket,
        /// In which form
        #[arg(long, value_enum, default_value_t)]
        format: BundleFormat,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum BundleFormat {
    /// PEM certificates
    #[default]
    Pem,
    /// The JSON of the SPIFFE standard
    Spiffe,
}

#[derive(Debug, Subcommand)]
enum AgentVerb {
    /// List agents
    List {
        #[command(flatten)]
        socket: Socket,
    },
}

/// Runs the program.
pub fn main(cli: Cli) -> Exit {
    let Cli { common, verb } = cli;
    match verb {
        Verb::Validate(args) => cli::validate::<CaServerConfig>(&args, &common),
        Verb::Config { verb } => cli::config::<CaServerConfig>(&verb, &common),
        Verb::Run(args) => run(&args, &common),
        verb => match on_one_thread(ask(verb, &common)) {
            Ok(exit) => exit,
            Err(error) => refused(&error, &common),
        },
    }
}

fn run(args: &RunArgs, common: &CommonArgs) -> Exit {
    let config = match args.config.load::<CaServerConfig>() {
        Ok(loaded) => loaded.value,
        Err(errors) => return cli::fail_config(&errors, common),
    };
    if let Err(error) = telemetry::init(&common.log(&config.log)) {
        return cli::fail(&error, common);
    }
    match app::serve(&config, args.addresses_file.as_deref()) {
        Ok(()) => Exit::Done,
        Err(failure) => cli::fail(&failure, common),
    }
}

fn refused(error: &ClientError, common: &CommonArgs) -> Exit {
    let mut report = Report::of(error);
    let exit = match error {
        ClientError::Unreachable { .. } => {
            report = report.note("is ca-server running, and may you open its admin socket?");
            Exit::Unreachable
        }
        ClientError::Refused { grpc, fnl, .. } => {
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
        ClientError::Unreadable(_) => Exit::Failed,
    };
    cli::report(&report, common);
    exit
}

fn on_one_thread<T>(work: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| ClientError::Unreadable(error.to_string()))?;
    runtime.block_on(work)
}

async fn ask(verb: Verb, common: &CommonArgs) -> Result<Exit, ClientError> {
    let output = common.output;
    match verb {
        Verb::Run(_) | Verb::Validate(_) | Verb::Config { .. } => Ok(Exit::Usage),
        Verb::Healthcheck(socket) => {
            let ready = connect(&socket).await?.is_ready().await?;
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
            let (token, expires_at) = connect(&socket)
                .await?
                .create_token(spiffe_id.as_ref(), ttl)
                .await?;
            Ok(cli::print(&show::token(&token, expires_at, output)))
        }
        Verb::Entry {
            verb: EntryVerb::Create(new),
        } => {
            let client = connect(&new.socket).await?;
            let entry = client
                .create_entry(&NewEntry {
                    id: new.entry_id,
                    spiffe_id: new.spiffe_id,
                    parent_id: new.parent_id,
                    selectors: new.selector,
                    x509_svid_ttl: new.ttl,
                    dns_names: new.dns,
                    hint: new.hint,
                    admin: new.admin,
                })
                .await?;
            Ok(cli::print(&show::entry(&entry, output)))
        }
        Verb::Entry {
            verb:
                EntryVerb::Show {
                    socket,
                    entry_id,
                    spiffe_id,
                    parent_id,
                },
        } => {
            let client = connect(&socket).await?;
            let entries = match entry_id {
                Some(id) => vec![client.entry(&id).await?],
                None => {
                    client
                        .entries(spiffe_id.as_ref(), parent_id.as_ref())
                        .await?
                }
            };
            Ok(cli::print(&show::entries(&entries, output)))
        }
        Verb::Entry {
            verb: EntryVerb::Delete { socket, entry_id },
        } => {
            connect(&socket).await?.delete_entry(&entry_id).await?;
            Ok(cli::print(&show::deleted(&entry_id, output)))
        }
        Verb::Bundle {
            verb: BundleVerb::Show { socket, format },
        } => {
            let bundle = connect(&socket).await?.bundle().await?;
            let text = match format {
                BundleFormat::Pem => bundle.to_pem(),
                BundleFormat::Spiffe => {
                    String::from_utf8_lossy(&bundle.to_spiffe_json()).into_owned() + "\n"
                }
            };
            Ok(cli::print(&text))
        }
        Verb::Agent {
            verb: AgentVerb::List { socket },
        } => {
            let agents = connect(&socket).await?.agents().await?;
            Ok(cli::print(&show::agents(&agents, output)))
        }
    }
}

async fn connect(socket: &Socket) -> Result<AdminClient, ClientError> {
    AdminClient::connect(&socket.admin_socket).await
}
