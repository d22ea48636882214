//! The command line: `run`, `validate`, `healthcheck`, `config …`.
//! Trusts clap for the grammar and mesh-runtime for what the daemons share.
//! Never says that a configuration is valid before the policy file was read too.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use mesh_runtime::addresses::Addresses;
use mesh_runtime::cli::{self, CommonArgs, ConfigArgs, ConfigCommand, Exit, RunArgs};
use mesh_runtime::config::Loaded;
use mesh_runtime::errors::{Coded, Report};

use crate::app;
use crate::config::ProxyConfig;
use crate::feed::{self, FeedError};

/// The doorman of a workload: mutual TLS in and out, policy on every request.
#[derive(Debug, Parser)]
#[command(name = "mesh-proxy", version)]
struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the proxy until a signal
    Run(RunArgs),
    /// Check the configuration and the policy file that it names; exit code 3 when something is wrong
    Validate(ConfigArgs),
    /// Ask a running proxy whether it is ready; exit code 3 when it is not, 4 when it does not answer
    Healthcheck(HealthArgs),
    /// The configuration file
    Config {
        #[command(subcommand)]
        verb: ConfigCommand,
    },
}

#[derive(Debug, clap::Args)]
struct HealthArgs {
    /// The admin port
    #[arg(
        long,
        value_name = "ADDRESS",
        required_unless_present = "addresses_file"
    )]
    address: Option<SocketAddr>,
    /// The file that `run --addresses-file` wrote
    #[arg(long, value_name = "PATH", conflicts_with = "address")]
    addresses_file: Option<PathBuf>,
}

/// The whole program.
#[must_use]
pub fn main() -> Exit {
    let Cli { common, verb } = Cli::parse();
    match verb {
        Verb::Run(args) => run(&args, &common),
        Verb::Validate(args) => validate(&args, &common),
        Verb::Healthcheck(args) => healthcheck(&args, &common),
        Verb::Config { verb } => cli::config::<ProxyConfig>(&verb, &common),
    }
}

fn run(args: &RunArgs, common: &CommonArgs) -> Exit {
    let loaded: Loaded<ProxyConfig> = match args.config.load() {
        Ok(loaded) => loaded,
        Err(errors) => return cli::fail_config(&errors, common),
    };
    let config = loaded.value;
    let (log, otlp) = (common.log(&config.log), &config.telemetry.otlp);
    let _traces = match mesh_runtime::telemetry::init_traced("mesh-proxy", &log, otlp) {
        Ok(traces) => traces,
        Err(error) => return cli::fail(&error, common),
    };
    match app::run(config, args.addresses_file.as_deref()) {
        Ok(()) => Exit::Done,
        Err(error) => {
            let mut report = Report::new("FNL3080", error.to_string());
            for cause in error.chain().skip(1) {
                report = report.note(cause.to_string());
            }
            cli::report(&report, common);
            Exit::Failed
        }
    }
}

fn validate(args: &ConfigArgs, common: &CommonArgs) -> Exit {
    let loaded: Loaded<ProxyConfig> = match args.load() {
        Ok(loaded) => loaded,
        Err(errors) => {
            cli::fail_config(&errors, common);
            return Exit::No;
        }
    };
    match loaded.value.policy.file.as_deref().map(feed::read) {
        None | Some(Ok(_)) => cli::validate::<ProxyConfig>(args, common),
        Some(Err(error)) => {
            cli::report(&policy_report(&error), common);
            Exit::No
        }
    }
}

fn policy_report(error: &FeedError) -> Report {
    match error {
        FeedError::Refused { path, text, cause } => cause
            .render(&path.display().to_string(), text)
            .lines()
            .fold(Report::new(error.code(), error.to_string()), Report::line),
        FeedError::Unreadable { .. } => Report::of(error),
    }
}

fn healthcheck(args: &HealthArgs, common: &CommonArgs) -> Exit {
    let address = match (&args.address, &args.addresses_file) {
        (Some(address), _) => Some(*address),
        (None, Some(path)) => Addresses::read(path)
            .ok()
            .and_then(|all| all.get("metrics")?.parse().ok()),
        (None, None) => None,
    };
    let Some(address) = address else {
        cli::report(
            &Report::new("FNL3081", "no admin port: the addresses file names none"),
            common,
        );
        return Exit::Unreachable;
    };
    match ask_ready(address) {
        Ok((200, _)) if common.quiet => Exit::Done,
        Ok((200, _)) => cli::print("ready\n"),
        Ok((_, told)) => {
            cli::print(&told);
            Exit::No
        }
        Err(error) => {
            cli::report(
                &Report::new(
                    "FNL3082",
                    format!("the admin port {address} does not answer"),
                )
                .note(error.to_string()),
                common,
            );
            Exit::Unreachable
        }
    }
}

/// One request by hand: a health check needs no HTTP library.
fn ask_ready(address: SocketAddr) -> std::io::Result<(u16, String)> {
    use std::io::{Read as _, Write as _};
    const LIMIT: Duration = Duration::from_secs(3);
    let mut stream = std::net::TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.write_all(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(64 * 1024).read_to_string(&mut answer)?;
    let invalid = || std::io::Error::new(std::io::ErrorKind::InvalidData, "the answer is not HTTP");
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .ok_or_else(invalid)?;
    let body = answer
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())
        .unwrap_or_default();
    Ok((status, body))
}
