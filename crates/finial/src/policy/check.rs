//! What the proxy of one workload would make of a policy file: which rules are meant for it, and which of them it cannot enforce.
//! Trusts the proxy's own compiler.
//! Never says that all is well when nothing would be let in.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use mesh_policy::{Action, CompiledPolicy, Door, Mode, Protocol};
use mesh_runtime::cli::Exit;

use super::{Answer, policy_set};

/// The file, and the workload that it is checked for.
#[derive(Debug, Args)]
pub struct Workload {
    /// The policy file
    #[arg(value_name = "FILE")]
    policy: PathBuf,
    /// What its door speaks
    #[arg(long, value_enum, default_value_t = Spoken::Http)]
    protocol: Spoken,
    /// Its namespace; without it nothing is known of the workload, as in a proxy without `workload`
    #[arg(long, short = 'n')]
    namespace: Option<String>,
    /// The namespace whose policies speak of every workload
    #[arg(long, requires = "namespace")]
    root_namespace: Option<String>,
    /// Its labels
    #[arg(long, short = 'l', value_name = "NAME=VALUE", requires = "namespace", value_parser = a_label)]
    label: Vec<(String, String)>,
    /// The services that it stands behind
    #[arg(long, value_name = "NAME", requires = "namespace")]
    service: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Spoken {
    Http,
    Tcp,
}

fn a_label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a label is NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Answers `check`.
pub(super) fn check(asked: &Workload) -> Answer {
    let set = policy_set(&asked.policy)?;
    let workload = asked
        .namespace
        .clone()
        .map(|namespace| mesh_policy::Workload {
            namespace,
            root_namespace: asked.root_namespace.clone(),
            labels: asked.label.clone(),
            services: asked.service.clone(),
        });
    let protocol = match asked.protocol {
        Spoken::Http => Protocol::Http,
        Spoken::Tcp => Protocol::Tcp,
    };
    let door = Door {
        protocol,
        workload: workload.as_ref(),
    };
    let policy = CompiledPolicy::new(&set, door);
    let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for rule in policy.inventory() {
        let action = match rule.action {
            Action::Allow => "ALLOW",
            Action::Deny => "DENY",
            Action::Audit => "AUDIT",
        };
        let mode = match rule.mode {
            Mode::Enforce => "in force",
            Mode::Shadow => "in shadow",
        };
        *counts.entry((action, mode)).or_default() += 1;
    }
    let mut out = String::new();
    for ((action, mode), count) in &counts {
        let _infallible = writeln!(out, "{count} {action} rules {mode}");
    }
    for rule in policy.unenforceable() {
        let _infallible = writeln!(out, "{rule}");
    }
    let open = counts.contains_key(&("ALLOW", "in force"));
    if !open {
        out.push_str("no rule allows anything here: everything is denied\n");
    }
    let well = open && policy.unenforceable().is_empty();
    Ok((out, if well { Exit::Done } else { Exit::No }))
}
