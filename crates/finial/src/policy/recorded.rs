//! Recorded traffic: what a new policy would change of it, the narrowest policy that allows it, and what nobody used of a policy.
//! Trusts an access log of `mesh-proxy` for what was asked and who was proven; a line that is no record of a decision is counted.
//! Never takes a denied request for a wish.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use mesh_policy::simulate::{Flow, FlowRequest};
use mesh_policy::{CompiledPolicy, Door, Effect, Protocol, decide, explain, suggest};
use mesh_runtime::cli::Exit;

use super::{Answer, policy_set, read};

/// What is to be made of a log.
#[derive(Debug, Args)]
pub struct Wanted {
    /// The access log of the proxy
    #[arg(long, value_name = "FILE")]
    log: PathBuf,
    /// The port of the workload, which a line of an HTTP request does not have
    #[arg(long)]
    port: u16,
    /// The name of the new policy
    #[arg(long, default_value = "observed", value_parser = a_name)]
    name: String,
    /// The namespace of the new policy
    #[arg(long, short = 'n', value_parser = a_name)]
    namespace: Option<String>,
    /// Name the rules of `--policy` that no recorded request needed; exit code 3 when there is one
    #[arg(long, requires = "policy")]
    tighten: bool,
    /// The policy file to be tightened
    #[arg(long, value_name = "FILE", requires = "tighten")]
    policy: Option<PathBuf>,
}

/// A name as Kubernetes takes it, so that it needs no quotes anywhere.
fn a_name(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    if text.is_empty() || text.len() > 253 || !text.bytes().all(plain) {
        return Err("a name has small letters, digits, `-` and `.`".to_owned());
    }
    Ok(text.to_owned())
}

/// Answers `suggest`.
pub(super) fn suggest(wanted: &Wanted) -> Answer {
    let text = read(&wanted.log)?;
    let (mut flows, mut denied, mut skipped) = (Vec::new(), 0_u64, 0_u64);
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        match recorded(line, wanted.port) {
            Some((flow, Effect::Allow)) => flows.push(flow),
            Some((_, Effect::Deny)) => denied += 1,
            None => skipped += 1,
        }
    }
    if let Some(policy) = &wanted.policy {
        return tighten(policy, &flows);
    }
    let made = suggest::suggest(&wanted.name, wanted.namespace.as_deref(), &flows);
    let mut out = made.document;
    let _infallible = writeln!(
        out,
        "# {} allowed requests are covered; left out: {} denied, {} without identity, {} that would be read as a pattern, {skipped} lines that are no recorded decision",
        made.covered, denied, made.anonymous, made.unwritable
    );
    Ok((out, Exit::Done))
}

fn tighten(policy: &Path, flows: &[Flow]) -> Answer {
    let set = policy_set(policy)?;
    let unused = [Protocol::Http, Protocol::Tcp].map(|protocol| {
        let compiled = CompiledPolicy::new(&set, Door::of_unknown(protocol));
        let of_door = flows
            .iter()
            .filter(|flow| flow.request.is_some() == (protocol == Protocol::Http));
        suggest::unused(&compiled, of_door)
    });
    let [http, tcp] = &unused;
    let mut out = String::new();
    let both: Vec<_> = http.iter().filter(|rule| tcp.contains(rule)).collect();
    for (policy, rule) in &both {
        let _infallible = writeln!(out, "unused: policy {policy} rule {rule}");
    }
    let _infallible = writeln!(
        out,
        "{} allowed requests were asked about, {} rules were not needed",
        flows.len(),
        both.len()
    );
    Ok((
        out,
        if both.is_empty() {
            Exit::Done
        } else {
            Exit::No
        },
    ))
}

/// What a new policy would change of one kind of request.
#[derive(Default)]
struct Change {
    count: u64,
    why: String,
}

pub(super) fn simulate(policy: &Path, log: &Path, port: u16) -> Answer {
    let set = policy_set(policy)?;
    let text = read(log)?;
    let doors = [Protocol::Http, Protocol::Tcp]
        .map(|protocol| CompiledPolicy::new(&set, Door::of_unknown(protocol)));
    let (mut asked, mut skipped) = (0_u64, 0_u64);
    let mut changes: BTreeMap<(&str, String), Change> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let Some((flow, before)) = recorded(line, port) else {
            skipped += 1;
            continue;
        };
        asked += 1;
        let policy = &doors[usize::from(flow.request.is_none())];
        let now = flow.ask(|facts| {
            let effect = decide(policy, facts).effect;
            // The sentence costs more than the decision, and most lines change nothing.
            (
                effect,
                (effect != before).then(|| explain(policy, facts).sentence()),
            )
        });
        let (effect, why) = now.unwrap_or_else(|refused| (Effect::Deny, Some(refused.to_string())));
        if effect != before {
            let word = match effect {
                Effect::Deny => "newly denied",
                Effect::Allow => "newly allowed",
            };
            let change = changes.entry((word, flow.to_string())).or_default();
            change.count += 1;
            change.why = why.unwrap_or_default();
        }
    }
    let mut out = String::new();
    for ((word, flow), Change { count, why }) in &changes {
        let _infallible = writeln!(out, "{word} {count} times: {flow}: {why}");
    }
    let changed: u64 = changes.values().map(|change| change.count).sum();
    let _infallible = writeln!(
        out,
        "{asked} recorded decisions asked again, {changed} would change, {skipped} lines are no recorded decision"
    );
    Ok((out, if changed == 0 { Exit::Done } else { Exit::No }))
}

/// A decision in an access log: what was asked, and what the answer was. Headers and tokens are not in a log, so a rule that asks for
/// one holds for no recorded request.
fn recorded(line: &str, port: u16) -> Option<(Flow, Effect)> {
    let record: serde_json::Value = serde_json::from_str(line).ok()?;
    let text = |name: &str| record.get(name).and_then(serde_json::Value::as_str);
    if text("direction") != Some("inbound") {
        return None;
    }
    let effect = match text("effect")? {
        "allow" => Effect::Allow,
        "deny" => Effect::Deny,
        _ => return None,
    };
    let peer = match text("source")? {
        "unknown" => None,
        id => Some(id.parse().ok()?),
    };
    let address: std::net::SocketAddr = text("peer")?.parse().ok()?;
    let request = match (text("method"), text("path"), text("host")) {
        (Some(method), Some(path), Some(host)) => Some(FlowRequest {
            method: method.to_owned(),
            path: path.to_owned(),
            host: host.to_owned(),
            headers: None,
        }),
        (None, None, None) => None,
        _ => return None,
    };
    let own = record.get("port").and_then(serde_json::Value::as_u64);
    let flow = Flow {
        peer,
        port: own.and_then(|own| u16::try_from(own).ok()).unwrap_or(port),
        address: Some(address.ip()),
        request,
    };
    Some((flow, effect))
}
