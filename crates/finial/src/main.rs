//! The people's tool: arguments in, exit code out. Everything else is in the library.

use std::process::ExitCode;

use clap::Parser;
use finial::cli::Cli;

fn main() -> ExitCode {
    finial::cli::run(Cli::parse())
}
