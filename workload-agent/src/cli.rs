//! Decides the verbs of the `workload-agent` program, what they print and with which code they end (ux.md B.3).
//! Trusts nothing from the sockets it calls. Never prints a private key.

mod client;
mod log_level;
mod show;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use mesh_runtime::{
    cli::{self, CommonArgs, ConfigArgs, ConfigCommand, Exit},
    clock::Clock,
    config::{self, HumanDuration},
    telemetry::{self, LogOptions},
};

use crate::{
    app,
    config::AgentConfig,
    helper::{self, options::Settings},
};

#[derive(Debug, Parser)]
#[command(
    name = "workload-agent",
    version,
    about = "Gives the processes of this node their identities",
    arg_required_else_help = true
)]
struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the agent.
    #[command(after_help = "Example:\n  workload-agent run --config agent.yaml")]
    Run(AgentRunArgs),
    /// Check a configuration file and say everything that is wrong with it.
    Validate(ConfigArgs),
    /// Ask a running agent whether it can serve identities.
    Healthcheck(SocketArgs),
    /// Look at the configuration.
    Config {
        #[command(subcommand)]
        verb: ConfigCommand,
    },
    /// Call the Workload API as this process.
    #[command(subcommand)]
    Api(ApiVerb),
    /// Keep identities as files, for programs that read files, and tell them of new ones. Its configuration is spiffe-helper's.
    #[command(after_help = "Example:\n  workload-agent helper --config helper.conf")]
    Helper(HelperArgs),
    /// Say why a process gets an identity, or none.
    #[command(after_help = "Example:\n  workload-agent explain --pid 4711")]
    Explain(ExplainArgs),
    /// How verbose the log of a running agent is.
    #[command(
        alias = "logger",
        after_help = "Example:\n  workload-agent log-level set --level debug"
    )]
    LogLevel {
        #[command(subcommand)]
        verb: log_level::LogLevelVerb,
    },
}

#[derive(Debug, Args)]
struct AgentRunArgs {
    #[command(flatten)]
    run: cli::RunArgs,
    /// A join token, in place of the one in the configuration. Others on this node can read a process's arguments: a file is better.
    #[arg(long, visible_alias = "joinToken", value_name = "TOKEN")]
    join_token: Option<String>,
    /// A file with a join token, in place of the one in the configuration.
    #[arg(long, value_name = "FILE", conflicts_with = "join_token")]
    join_token_file: Option<String>,
    /// Take the place of the agent that runs here, if one does: it hands over its sockets and ends, and no caller is refused.
    #[arg(long)]
    take_over: bool,
}

#[derive(Debug, Args)]
struct SocketArgs {
    /// The Workload API socket; else SPIFFE_ENDPOINT_SOCKET, else the default one.
    #[arg(
        long,
        visible_alias = "socketPath",
        env = "SPIFFE_ENDPOINT_SOCKET",
        value_name = "PATH",
        default_value = "unix:///run/finial/workload/api.sock"
    )]
    socket: String,
    /// How long to wait for an answer.
    #[arg(long, value_name = "TIME", default_value = "5s")]
    timeout: HumanDuration,
}

#[derive(Debug, Subcommand)]
enum ApiVerb {
    /// Get what this process may hold.
    #[command(subcommand)]
    Fetch(FetchVerb),
    /// Show each change as it comes, until interrupted.
    Watch(SocketArgs),
    /// Check what another process has shown.
    #[command(subcommand)]
    Validate(ValidateVerb),
}

#[derive(Debug, Subcommand)]
enum ValidateVerb {
    /// A JWT-SVID.
    #[command(
        after_help = "Example:\n  workload-agent api validate jwt --audience bank --svid - < token"
    )]
    Jwt {
        #[command(flatten)]
        socket: SocketArgs,
        /// The audience that it must have been made for.
        #[arg(long, value_name = "AUDIENCE")]
        audience: String,
        /// The token; `-` reads it from standard input, where no other process sees it.
        #[arg(long, value_name = "TOKEN")]
        svid: String,
    },
}

#[derive(Debug, Subcommand)]
enum FetchVerb {
    /// X.509-SVIDs and bundles.
    #[command(
        after_help = "Example:\n  workload-agent api fetch x509 --write /run/my-app/identity"
    )]
    X509 {
        #[command(flatten)]
        socket: SocketArgs,
        /// Write svid.N.pem, svid.N.key (0600) and bundle.N.pem into this directory.
        #[arg(long, value_name = "DIR")]
        write: Option<PathBuf>,
    },
    /// JWT-SVIDs, printed for whoever reads this output.
    #[command(after_help = "Example:\n  workload-agent api fetch jwt --audience bank")]
    Jwt {
        #[command(flatten)]
        socket: SocketArgs,
        /// For whom; may be given several times, or with commas.
        #[arg(long, required = true, value_delimiter = ',', value_name = "AUDIENCE")]
        audience: Vec<String>,
        /// One identity only.
        #[arg(
            long,
            visible_alias = "spiffeID",
            value_name = "ID",
            default_value = ""
        )]
        spiffe_id: String,
    },
}

#[derive(Debug, Args)]
struct HelperArgs {
    /// The configuration, in HCL.
    #[arg(long, value_name = "FILE", default_value = "helper.conf")]
    config: PathBuf,
    /// Whether to go on after the first files; counts more than the configuration.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    daemon_mode: Option<bool>,
    /// The Workload API socket, where the configuration names none.
    #[arg(
        long,
        visible_alias = "socketPath",
        env = "SPIFFE_ENDPOINT_SOCKET",
        value_name = "PATH",
        default_value = "unix:///run/finial/workload/api.sock"
    )]
    socket: String,
}

#[derive(Debug, Args)]
struct ExplainArgs {
    /// The process, by its id as the agent sees it.
    #[arg(long, value_name = "PID")]
    pid: i32,
    /// The agent's admin socket.
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/run/finial/agent/admin.sock"
    )]
    admin_socket: String,
    /// How long to wait for an answer.
    #[arg(long, value_name = "TIME", default_value = "10s")]
    timeout: HumanDuration,
}

/// Runs the verb that the arguments name.
pub fn main() -> Exit {
    let Cli { common, verb } = Cli::parse();
    match verb {
        Verb::Run(args) => run(&args, &common),
        Verb::Validate(args) => cli::validate::<AgentConfig>(&args, &common),
        Verb::Config { verb } => cli::config::<AgentConfig>(&verb, &common),
        Verb::Healthcheck(args) => calling(client::healthcheck(args)),
        Verb::Api(ApiVerb::Fetch(FetchVerb::X509 { socket, write })) => {
            calling(client::fetch(socket, write, common.output))
        }
        Verb::Api(ApiVerb::Fetch(FetchVerb::Jwt {
            socket,
            audience,
            spiffe_id,
        })) => calling(client::fetch_jwt(
            socket,
            audience,
            spiffe_id,
            common.output,
        )),
        Verb::Api(ApiVerb::Validate(ValidateVerb::Jwt {
            socket,
            audience,
            svid,
        })) => calling(client::validate_jwt(socket, audience, svid, common.output)),
        Verb::Api(ApiVerb::Watch(socket)) => calling(client::watch(socket, common.output)),
        Verb::Helper(args) => help(&args, &common),
        Verb::Explain(args) => calling(client::explain(args, common.output)),
        Verb::LogLevel { verb } => calling(log_level::run(verb, common.output)),
    }
}

fn run(args: &AgentRunArgs, common: &CommonArgs) -> Exit {
    let mut sources = args.run.config.sources();
    sources = sources.over_if(
        "--join-token",
        "nodeAttestation.joinToken.token",
        args.join_token.as_deref(),
    );
    sources = sources.over_if(
        "--join-token-file",
        "nodeAttestation.joinToken.tokenFile",
        args.join_token_file.as_deref(),
    );
    let loaded = match config::load::<AgentConfig>(&sources) {
        Ok(loaded) => loaded,
        Err(errors) => return cli::fail_config(&errors, common),
    };
    let log = common.log(&loaded.value.log);
    let otlp = &loaded.value.telemetry.otlp;
    let _traces = match telemetry::init_traced("workload-agent", &log, otlp) {
        Ok(traces) => traces,
        Err(error) => return cli::fail(&error, common),
    };
    if let Err(errno) = mesh_runtime::memory::keep_private() {
        tracing::warn!(%errno, "others of the same user may read this program's memory");
    }
    raise_descriptor_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(2)
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return no_runtime(&error),
    };
    match runtime.block_on(app::run(
        loaded.value,
        args.run.addresses_file.clone(),
        args.take_over,
    )) {
        Ok(()) => Exit::Done,
        Err(error) => {
            cli::report(&error.report(), common);
            Exit::Failed
        }
    }
}

fn help(args: &HelperArgs, common: &CommonArgs) -> Exit {
    let settings = match Settings::read(&args.config, args.daemon_mode, &args.socket) {
        Ok(settings) => settings,
        Err(error) => return cli::fail(&error, common),
    };
    if let Err(error) = telemetry::init(&common.log(&LogOptions::default())) {
        return cli::fail(&error, common);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(1)
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return no_runtime(&error),
    };
    match runtime.block_on(helper::run(settings, Clock::system())) {
        Ok(()) => Exit::Done,
        Err(error) => cli::fail(&error, common),
    }
}

/// Each caller takes two descriptors, and the soft limit that most systems start with is for programs that use `select`.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = raised {
        tracing::debug!(%errno, "the limit of open files stays as it is");
    }
}

fn calling(call: impl Future<Output = Exit>) -> Exit {
    match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime.block_on(call),
        Err(error) => no_runtime(&error),
    }
}

fn no_runtime(error: &std::io::Error) -> Exit {
    eprintln!("error: the operating system gives no threads or descriptors: {error}");
    Exit::Failed
}
