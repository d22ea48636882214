//! `finial policy …`: policy files and access logs on this machine, asked with the proxy's own engine.
//! Trusts nothing in the files; a line of a log that is no record of a decision is counted, not guessed at.
//! Never changes a file and never talks to a cluster.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use mesh_policy::lint::lint;
use mesh_policy::simulate::{self, Flow, FlowRequest};
use mesh_policy::{
    CompiledPolicy, Door, Effect, PolicyErrors, PolicySet, Protocol, decide, explain,
};
use mesh_runtime::cli::Exit;

/// A file that was named cannot be read.
const UNREADABLE: &str = "FNL9010";

/// What can be done with policies.
#[derive(Debug, Subcommand)]
pub enum Policy {
    /// Check policy files and tell what they let through that may not be meant; exit code 3 when something is found
    Lint {
        /// The policy files, each by itself
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Run PolicyTest documents against a policy file; exit code 3 when one comes out otherwise
    Test {
        /// The policy file
        #[arg(long, value_name = "FILE")]
        policy: PathBuf,
        /// The files of tests
        #[arg(required = true, value_name = "TESTS")]
        tests: Vec<PathBuf>,
    },
    /// Ask a policy file about one request or connection, and tell every rule that was tried; exit code 3 for a denial
    Explain(Question),
    /// Ask a new policy file about recorded requests, and list what it would change; exit code 3 when it would change something
    Simulate {
        /// The new policy file
        #[arg(long, value_name = "FILE")]
        policy: PathBuf,
        /// The access log of the proxy
        #[arg(long, value_name = "FILE")]
        log: PathBuf,
        /// The port of the workload, which a line of an HTTP request does not have
        #[arg(long)]
        port: u16,
    },
}

/// A request that nobody sent.
#[derive(Debug, Args)]
pub struct Question {
    /// The policy file
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// Who asks, as a SPIFFE ID; without it a caller without identity
    #[arg(long, value_name = "ID")]
    from: Option<mesh_identity::SpiffeId>,
    /// The port of the workload
    #[arg(long)]
    port: u16,
    /// The method; with it and --path it is a request, without them a TCP connection
    #[arg(long, requires = "path")]
    method: Option<String>,
    /// The path
    #[arg(long, requires = "method")]
    path: Option<String>,
    /// The host
    #[arg(long, default_value = "localhost")]
    host: String,
}

/// Why there is no answer: the report for a person.
struct Unanswered(String);

/// Runs what was asked for; the answer goes to standard output.
pub fn main(verb: &Policy) -> Exit {
    let answered = match verb {
        Policy::Lint { files } => lint_files(files),
        Policy::Test { policy, tests } => test(policy, tests),
        Policy::Explain(question) => ask(question),
        Policy::Simulate { policy, log, port } => replay(policy, log, *port),
    };
    match answered {
        Ok((text, exit)) => {
            mesh_runtime::cli::print(&text);
            exit
        }
        Err(Unanswered(report)) => {
            eprint!("{report}");
            Exit::Failed
        }
    }
}

type Answer = Result<(String, Exit), Unanswered>;

fn read(path: &Path) -> Result<String, Unanswered> {
    std::fs::read_to_string(path).map_err(|error| {
        Unanswered(format!(
            "error[{UNREADABLE}]: {} cannot be read: {error}\n",
            path.display()
        ))
    })
}

fn refused(path: &Path, text: &str) -> impl FnOnce(PolicyErrors) -> Unanswered {
    move |errors| Unanswered(errors.render(&path.display().to_string(), text))
}

fn policy_set(path: &Path) -> Result<PolicySet, Unanswered> {
    let text = read(path)?;
    PolicySet::from_yaml(&text).map_err(refused(path, &text))
}

fn compiled(set: &PolicySet, flow: &Flow) -> CompiledPolicy {
    let protocol = match flow.request {
        Some(_) => Protocol::Http,
        None => Protocol::Tcp,
    };
    CompiledPolicy::new(set, Door::of_unknown(protocol))
}

fn lint_files(files: &[PathBuf]) -> Answer {
    let (mut out, mut found) = (String::new(), 0);
    let mut bad = String::new();
    for path in files {
        let text = read(path)?;
        match PolicySet::from_yaml(&text) {
            Ok(set) => {
                for finding in lint(&set) {
                    found += 1;
                    let _infallible = writeln!(out, "{}: {finding}", path.display());
                }
            }
            // All files are looked at, so that nobody mends them one by one.
            Err(errors) => bad.push_str(&errors.render(&path.display().to_string(), &text)),
        }
    }
    if !bad.is_empty() {
        return Err(Unanswered(out + &bad));
    }
    let _infallible = writeln!(out, "{} files, {found} findings", files.len());
    Ok((out, if found == 0 { Exit::Done } else { Exit::No }))
}

fn test(policy: &Path, tests: &[PathBuf]) -> Answer {
    let set = policy_set(policy)?;
    let mut cases = Vec::new();
    for path in tests {
        let text = read(path)?;
        cases.extend(simulate::read_tests(&text).map_err(refused(path, &text))?);
    }
    let (tcp, http): (Vec<_>, Vec<_>) = cases
        .into_iter()
        .partition(|case| case.given.request.is_none());
    let run = |protocol, cases: &[simulate::Case]| {
        let policy = CompiledPolicy::new(&set, Door::of_unknown(protocol));
        simulate::run(&set, &policy, cases)
    };
    let (http, tcp) = (run(Protocol::Http, &http), run(Protocol::Tcp, &tcp));
    let mut out = String::new();
    let failed = http.failed.iter().chain(&tcp.failed);
    for failure in failed.clone() {
        let _infallible = writeln!(
            out,
            "FAILED {}\n  {}",
            failure.case,
            indented(&failure.told)
        );
    }
    for (policy, rule) in http
        .untouched
        .iter()
        .filter(|rule| tcp.untouched.contains(rule))
    {
        let _infallible = writeln!(out, "no case reached policy {policy} rule {rule}");
    }
    let count = failed.count();
    let _infallible = writeln!(out, "{} passed, {count} failed", http.passed + tcp.passed);
    Ok((out, if count == 0 { Exit::Done } else { Exit::No }))
}

fn indented(text: &str) -> String {
    text.trim_end().replace('\n', "\n  ")
}

fn ask(question: &Question) -> Answer {
    let set = policy_set(&question.policy)?;
    let request = question.method.clone().zip(question.path.clone());
    let flow = Flow {
        peer: question.from.clone(),
        port: question.port,
        address: None,
        request: request.map(|(method, path)| FlowRequest {
            method,
            path,
            host: question.host.clone(),
            headers: Some(Vec::new()),
        }),
    };
    let policy = compiled(&set, &flow);
    let told = flow.ask(|facts| {
        let explanation = explain(&policy, facts);
        let allowed = explanation.verdict.is_allowed();
        (explanation.to_string(), allowed)
    });
    Ok(match told {
        Ok((text, true)) => (text, Exit::Done),
        Ok((text, false)) => (text, Exit::No),
        Err(refused) => (format!("{refused}\n"), Exit::No),
    })
}

/// What a new policy would change of one kind of request.
#[derive(Default)]
struct Change {
    count: u64,
    why: String,
}

fn replay(policy: &Path, log: &Path, port: u16) -> Answer {
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
