//! Decides what the command lines of the three daemons share: configuration flags, the `config` verbs, output and exit codes.
//! Trusts clap for the grammar; never takes a secret as a flag's value, never mixes data and messages on one stream.
//!
//! ```
//! # use mesh_runtime::config::{Config, Sources}; use schemars::JsonSchema; use serde::{Deserialize, Serialize};
//! # #[derive(Default, Serialize, Deserialize, JsonSchema)] #[serde(default)] struct Demo {}
//! # impl Config for Demo { const KIND: &'static str = "DemoConfig"; const ENV_PREFIX: &'static str = "DEMO"; }
//! use mesh_runtime::cli::{self, CommonArgs, ConfigArgs, ConfigCommand, Exit, RunArgs};
//! #[derive(clap::Parser)] struct Cli { #[command(flatten)] common: CommonArgs, #[command(subcommand)] verb: Verb }
//! #[derive(clap::Subcommand)] enum Verb { Run(RunArgs), Validate(ConfigArgs), Config { #[command(subcommand)] verb: ConfigCommand } }
//! fn main_like(cli: Cli) -> Exit {                       // `fn main() -> Exit { main_like(Cli::parse()) }`
//!     match cli.verb {
//!         Verb::Run(args) => match args.config.load::<Demo>() { Ok(_loaded) => Exit::Done, Err(e) => cli::fail_config(&e, &cli.common) },
//!         Verb::Validate(args) => cli::validate::<Demo>(&args, &cli.common),
//!         Verb::Config { verb } => cli::config::<Demo>(&verb, &cli.common),
//!     }
//! }
//! # use clap::Parser; assert_eq!(main_like(Cli::parse_from(["demo", "config", "print-defaults"])), Exit::Done);
//! ```

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::process::{ExitCode, Termination};

use clap::{Args, Subcommand, ValueEnum};

use crate::config::{Config, ConfigErrors, Loaded, Sources, print_defaults, schema};
use crate::errors::{Coded, Report};
use crate::telemetry::LogOptions;

/// How a command ended (ux B.3): the same numbers for every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Done,
    /// 1: failed.
    Failed,
    /// 2: the command line is wrong.
    Usage,
    /// 3: ran correctly, and the answer is "no".
    No,
    /// 4: the server cannot be reached.
    Unreachable,
    /// 5: not authenticated, or not allowed.
    NotAllowed,
    /// 6: timed out waiting.
    TimedOut,
    /// 130: interrupted.
    Interrupted,
}

impl Exit {
    /// The number that the shell sees.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::No => 3,
            Self::Unreachable => 4,
            Self::NotAllowed => 5,
            Self::TimedOut => 6,
            Self::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        self.into()
    }
}

/// The form of what a command prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    // SPIRE's word for it.
    #[value(alias = "pretty")]
    Table,
    /// For programs.
    Json,
}

/// Flags that every command takes.
#[derive(Clone, Debug, Default, Args)]
pub struct CommonArgs {
    /// Form of the output
    #[arg(short = 'o', long, value_enum, default_value_t, global = true)]
    pub output: Output,
    /// Only errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// More messages; twice for even more
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
}

impl CommonArgs {
    /// The log options with `-q` and `-v` applied.
    pub fn log(&self, configured: &LogOptions) -> LogOptions {
        let level = match (self.quiet, self.verbose) {
            (true, _) => "error",
            (_, 0) => return configured.clone(),
            (_, 1) => "debug",
            _ => "trace",
        };
        LogOptions {
            level: level.to_owned(),
            ..configured.clone()
        }
    }
}

/// Where the configuration comes from.
#[derive(Clone, Debug, Default, Args)]
pub struct ConfigArgs {
    /// Configuration file, or a directory of *.yaml files; repeatable, later ones win
    #[arg(long = "config", value_name = "PATH")]
    pub files: Vec<PathBuf>,
    /// Set one field, such as listen.address=127.0.0.1:0; repeatable, wins over files and environment
    #[arg(long = "set", value_name = "FIELD=VALUE", value_parser = field_and_value)]
    pub set: Vec<(String, String)>,
}

impl ConfigArgs {
    /// The files, this process's environment and the flags.
    pub fn sources(&self) -> Sources {
        let sources = self
            .files
            .iter()
            .fold(Sources::new(), |sources, path| sources.file(path))
            .environment();
        self.set.iter().fold(sources, |sources, (path, value)| {
            sources.over(&format!("--set {path}"), path, value)
        })
    }

    /// Loads the configuration from [`ConfigArgs::sources`].
    ///
    /// # Errors
    /// All mistakes.
    pub fn load<T: Config>(&self) -> Result<Loaded<T>, ConfigErrors> {
        crate::config::load(&self.sources())
    }
}

fn field_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((field, value)) if !field.is_empty() => Ok((field.to_owned(), value.to_owned())),
        _ => Err("write FIELD=VALUE".to_owned()),
    }
}

/// What `run` takes.
#[derive(Clone, Debug, Default, Args)]
pub struct RunArgs {
    /// Where the configuration comes from.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// When every door is bound, write {"name":"address"} as JSON to this file
    #[arg(long, value_name = "PATH")]
    pub addresses_file: Option<PathBuf>,
}

/// The verbs of `config`.
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the default configuration as commented YAML
    PrintDefaults,
    /// Print the JSON Schema of the configuration file
    Schema,
    /// Report every mistake in the configuration
    Validate(ConfigArgs),
    /// Print the effective configuration
    Show {
        /// Where the configuration comes from.
        #[command(flatten)]
        config: ConfigArgs,
        /// Add where each value came from
        #[arg(long)]
        origin: bool,
    },
}

/// Runs a verb of `config`.
pub fn config<T: Config>(verb: &ConfigCommand, common: &CommonArgs) -> Exit {
    match verb {
        ConfigCommand::PrintDefaults => print(&print_defaults::<T>()),
        ConfigCommand::Schema => print(&json(&schema::<T>())),
        ConfigCommand::Validate(args) => validate::<T>(args, common),
        ConfigCommand::Show { config, origin } => match config.load::<T>() {
            Ok(loaded) if common.output == Output::Json => print(&json(&loaded.to_json(*origin))),
            Ok(loaded) => print(&loaded.show(*origin)),
            Err(errors) => fail_config(&errors, common),
        },
    }
}

/// Runs `validate`: nothing but the verdict; the mistakes, if any, on stderr and exit code 3.
pub fn validate<T: Config>(args: &ConfigArgs, common: &CommonArgs) -> Exit {
    match args.load::<T>() {
        Ok(_) if common.quiet => Exit::Done,
        Ok(_) if common.output == Output::Json => print("{\"valid\":true}\n"),
        Ok(_) => print("the configuration is valid\n"),
        Err(errors) => {
            fail_config(&errors, common);
            Exit::No
        }
    }
}

/// Prints configuration mistakes on stderr.
pub fn fail_config(errors: &ConfigErrors, common: &CommonArgs) -> Exit {
    match common.output {
        Output::Json => complain(&json(&errors.to_json())),
        Output::Table => {
            let count = errors.problems().len();
            complain(&format!(
                "{errors}{count} mistake{}; more: docs/errors/{}.md\n",
                if count == 1 { "" } else { "s" },
                errors.code()
            ));
        }
    }
    Exit::Failed
}

/// Prints an error with its causes on stderr, in the form of ux B.4.
pub fn fail<E: Error + Coded>(error: &E, common: &CommonArgs) -> Exit {
    report(&Report::of(error), common);
    Exit::Failed
}

/// Prints a report on stderr.
pub fn report(report: &Report, common: &CommonArgs) {
    match common.output {
        Output::Json => complain(&json(&report.to_json())),
        Output::Table => complain(&report.render()),
    }
}

/// Prints data on stdout. A reader that went away (`| head`) is no failure.
pub fn print(text: &str) -> Exit {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Exit::Done,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Exit::Done,
        Err(_) => Exit::Failed,
    }
}

fn complain(text: &str) {
    // When stderr is gone too there is nobody left to tell.
    std::io::stderr().lock().write_all(text.as_bytes()).ok();
}

fn json(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests;
