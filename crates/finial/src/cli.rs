//! The grammar of `finial`, nothing else.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::dev;
use crate::policy::{self, Policy};

/// Finial's tool for people.
#[derive(Debug, Parser)]
#[command(name = "finial", version, about, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The whole system on this machine: a certificate authority, an agent and proxied services.
    Dev {
        #[command(subcommand)]
        command: Dev,
    },
    /// Policy files and recorded traffic: check, test, explain, simulate
    Policy {
        #[command(subcommand)]
        verb: Policy,
    },
}

#[derive(Debug, Subcommand)]
enum Dev {
    /// Starts everything, plays the scene, and stays until Ctrl-C.
    Up(Up),
}

/// What `finial dev up` is asked for.
#[derive(Debug, Clone, Args)]
pub struct Up {
    /// Plays the scene without a person, asserts every line, and exits 0 or 1.
    #[arg(long)]
    pub once: bool,
    /// Keeps the folder with configuration, logs and state when it ends.
    #[arg(long)]
    pub keep: bool,
    /// How events are printed.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// The folder for everything that dev mode writes.
    #[arg(long, default_value = ".finial")]
    pub dir: PathBuf,
}

/// The form of the events on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// One JSON object a line, with a stable `event` name.
    Jsonl,
}

/// Runs what was asked for.
pub fn run(cli: Cli) -> ExitCode {
    match cli.command {
        Command::Dev {
            command: Dev::Up(options),
        } => dev::main(options),
        Command::Policy { verb } => policy::main(&verb).into(),
    }
}
