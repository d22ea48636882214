//! The grammar as a whole.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory};

use super::Cli;

#[test]
fn the_grammar_is_sound() {
    Cli::command().debug_assert();
}

/// Reads the sources of the tests that run the program: a flag that no command line of theirs names is not tested.
#[test]
fn each_flag_of_an_administrators_verb_is_in_a_command_line_of_a_test() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = fs::read_to_string(here.join("../tests/e2e/admin.rs")).unwrap();
    for file in fs::read_dir(here.join("tests/cli")).unwrap() {
        sources += &fs::read_to_string(file.unwrap().path()).unwrap();
    }
    let mut flags = BTreeSet::new();
    for verb in Cli::command().get_subcommands() {
        // Those of the daemon are mesh-runtime's and tested there.
        if !["run", "validate", "config"].contains(&verb.get_name()) {
            collect(verb, &mut flags);
        }
    }
    assert!(flags.len() > 40, "{flags:?}");
    let missing: Vec<_> = flags
        .iter()
        .filter(|flag| {
            let spellings = [
                format!("\"--{flag}\""),
                format!("\"-{flag}\""),
                format!("\"-{flag}="),
            ];
            !spellings.iter().any(|spelling| sources.contains(spelling))
        })
        .collect();
    assert!(missing.is_empty(), "no test uses {missing:?}");
}

fn collect(command: &Command, flags: &mut BTreeSet<String>) {
    for argument in command
        .get_arguments()
        .filter(|argument| !argument.is_global_set())
    {
        flags.extend(argument.get_long().map(str::to_owned));
        let aliases = argument.get_all_aliases().unwrap_or_default();
        flags.extend(aliases.into_iter().map(str::to_owned));
    }
    for below in command.get_subcommands() {
        collect(below, flags);
    }
}
