//! The grammar and the exit codes.

use super::*;
use clap::Parser;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct Demo {
    /// How many.
    max_streams: u16,
}

impl Config for Demo {
    const KIND: &'static str = "DemoConfig";
    const ENV_PREFIX: &'static str = "MESH_RUNTIME_CLI_TEST";
}

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(RunArgs),
    Config {
        #[command(subcommand)]
        verb: ConfigCommand,
    },
}

fn run(args: &[&str]) -> Exit {
    let cli = Cli::try_parse_from([&["demo"], args].concat()).unwrap();
    match cli.verb {
        Verb::Run(args) => args
            .config
            .load::<Demo>()
            .map_or_else(|e| fail_config(&e, &cli.common), |_| Exit::Done),
        Verb::Config { verb } => config::<Demo>(&verb, &cli.common),
    }
}

#[test]
fn the_grammar_is_sound() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

#[test]
fn each_verb_ends_with_the_exit_code_of_the_table() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = file(
        "good.yaml",
        "apiVersion: config.finial.dev/v1\nkind: DemoConfig\nmaxStreams: 5\n",
    );
    let bad = file(
        "bad.yaml",
        "apiVersion: config.finial.dev/v1\nkind: DemoConfig\nmaxStream: 5\n",
    );
    assert_eq!(run(&["config", "print-defaults"]), Exit::Done);
    assert_eq!(run(&["config", "schema"]), Exit::Done);
    assert_eq!(run(&["config", "validate", "--config", &good]), Exit::Done);
    assert_eq!(run(&["config", "validate", "--config", &bad]), Exit::No);
    assert_eq!(
        run(&["-o", "json", "config", "validate", "--config", &bad]),
        Exit::No
    );
    assert_eq!(
        run(&[
            "config",
            "show",
            "--origin",
            "--config",
            &good,
            "--set",
            "maxStreams=7"
        ]),
        Exit::Done
    );
    assert_eq!(
        run(&["config", "show", "--config", &good, "-o", "json"]),
        Exit::Done
    );
    assert_eq!(
        run(&["run", "--config", &bad, "--addresses-file", "/tmp/x"]),
        Exit::Failed
    );
    assert_eq!(run(&["run", "--config", &good, "-q"]), Exit::Done);
    let codes = [
        Exit::Done,
        Exit::Failed,
        Exit::Usage,
        Exit::No,
        Exit::Unreachable,
        Exit::NotAllowed,
        Exit::TimedOut,
        Exit::Interrupted,
    ];
    assert_eq!(codes.map(Exit::code), [0, 1, 2, 3, 4, 5, 6, 130]);
}

#[test]
fn a_set_flag_wins_and_is_the_origin() {
    let args = ConfigArgs {
        files: Vec::new(),
        set: vec![("maxStreams".into(), "9".into())],
    };
    let loaded = args.load::<Demo>().unwrap();
    assert_eq!(loaded.value.max_streams, 9);
    assert_eq!(
        loaded.origin("maxStreams").to_string(),
        "flag --set maxStreams"
    );
    assert_eq!(
        loaded.to_json(true)["origins"]["maxStreams"],
        "flag --set maxStreams"
    );
    assert!(Cli::try_parse_from(["demo", "run", "--set", "maxStreams"]).is_err());
}

#[test]
fn q_and_v_change_the_level() {
    let level = |args: &[&str]| {
        let cli = Cli::try_parse_from([&["demo"], args, &["run"]].concat()).unwrap();
        cli.common.log(&LogOptions::default()).level
    };
    assert_eq!(
        (
            level(&[]).as_str(),
            level(&["-q"]).as_str(),
            level(&["-v"]).as_str(),
            level(&["-vv"]).as_str()
        ),
        ("info", "error", "debug", "trace")
    );
}
