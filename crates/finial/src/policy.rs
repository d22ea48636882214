//! `finial policy …`: policy files and access logs on this machine, asked with the proxy's own engine.
//! Trusts nothing in the files; a line of a log that is no record of a decision is counted, not guessed at.
//! Never changes a file and never talks to a cluster.

mod check;
mod recorded;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use mesh_policy::lint::lint;
use mesh_policy::simulate::{self, Flow, FlowRequest};
use mesh_policy::{CompiledPolicy, Door, PolicyErrors, PolicySet, Protocol, explain};
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
    /// Tell what the proxy of one workload would enforce of a policy file, and what it could not; exit code 3 when there is such a rule
    Check(check::Workload),
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
    /// Write the narrowest policy for the requests that an access log says were allowed, or name what of a policy none of them needed
    Suggest(recorded::Wanted),
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
        Policy::Check(workload) => check::check(workload),
        Policy::Simulate { policy, log, port } => recorded::simulate(policy, log, *port),
        Policy::Suggest(wanted) => recorded::suggest(wanted),
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
