//! SPIRE's habits: its single-dash flags (`-spiffeID`, `-admin=true`) become ours, so that what people's hands and scripts know works.
//! Pure: arguments in, arguments out. Knows no flag by heart; a word is a flag if the grammar has one of that name.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::{ArgAction, Command};

/// The arguments in our spelling, and whether any was in SPIRE's.
pub(super) fn translated(grammar: &Command, arguments: Vec<OsString>) -> (Vec<OsString>, bool) {
    let mut flags = BTreeMap::new();
    collect(grammar, &mut flags);
    let mut changed = false;
    let mut ours = Vec::with_capacity(arguments.len());
    let mut arguments = arguments.into_iter();
    // The program's own name is no flag.
    ours.extend(arguments.next());
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            ours.push(argument);
            ours.extend(arguments);
            break;
        }
        match argument.to_str().and_then(|text| flag(&flags, text)) {
            None => ours.push(argument),
            Some(flag) => {
                changed = true;
                ours.extend(flag.map(OsString::from));
            }
        }
    }
    (ours, changed)
}

/// Long names and whether each is a switch, which takes no value.
type Flags = BTreeMap<String, bool>;

fn collect(command: &Command, flags: &mut Flags) {
    for argument in command.get_arguments() {
        let switch = matches!(argument.get_action(), ArgAction::SetTrue | ArgAction::Count);
        let names = argument.get_long_and_visible_aliases().unwrap_or_default();
        let aliases = argument.get_all_aliases().unwrap_or_default();
        for name in names.into_iter().chain(aliases) {
            flags.insert(name.to_owned(), switch);
        }
    }
    for below in command.get_subcommands() {
        collect(below, flags);
    }
}

/// `None`: not in SPIRE's spelling. `Some(None)`: a switch that is switched off, which is the same as not there.
fn flag(flags: &Flags, text: &str) -> Option<Option<String>> {
    let bare = text.strip_prefix('-').filter(|bare| bare.len() > 1)?;
    let (name, value) = match bare.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (bare, None),
    };
    match (flags.get(name)?, value) {
        (true, Some("false")) => Some(None),
        (true, Some("true")) => Some(Some(format!("--{name}"))),
        _ => Some(Some(format!("--{bare}"))),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn ours(arguments: &[&str]) -> (Vec<String>, bool) {
        let arguments = ["ca-server"].iter().chain(arguments);
        let (words, changed) = translated(
            &super::super::Cli::command(),
            arguments.map(OsString::from).collect(),
        );
        let words = words.into_iter().skip(1);
        (
            words.map(|word| word.into_string().unwrap()).collect(),
            changed,
        )
    }

    #[test]
    fn a_single_dash_flag_of_spire_becomes_ours() {
        let (words, changed) = ours(&[
            "entry",
            "create",
            "-spiffeID",
            "spiffe://a/b",
            "-x509SVIDTTL=60",
            "-output",
            "json",
        ]);
        assert!(changed);
        assert_eq!(
            words,
            [
                "entry",
                "create",
                "--spiffeID",
                "spiffe://a/b",
                "--x509SVIDTTL=60",
                "--output",
                "json"
            ]
        );
    }

    #[test]
    fn a_switch_may_have_a_value_as_in_go() {
        assert_eq!(
            ours(&["-admin=true", "-node=false", "-downstream"]).0,
            ["--admin", "--downstream"]
        );
    }

    #[test]
    fn what_is_ours_or_unknown_stays_as_it_is() {
        let same = [
            "-o",
            "json",
            "-vv",
            "-q",
            "--spiffe-id",
            "x",
            "-data",
            "-",
            "-nonsense",
            "-",
        ];
        let (words, _) = ours(&same);
        assert_eq!(words[6], "--data");
        assert_eq!(words[7..], ["-", "-nonsense", "-"]);
        assert!(!ours(&["-o", "json", "-vv", "--spiffe-id"]).1);
        assert_eq!(
            ours(&["--", "-admin"]),
            (vec!["--".to_owned(), "-admin".to_owned()], false)
        );
    }
}
