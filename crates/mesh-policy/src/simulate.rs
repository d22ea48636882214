//! Policies asked without a proxy: cases with the answer that is expected (`kind: PolicyTest`), and requests that were recorded.
//! Trusts that a recorded caller was proven when it was recorded.
//! Never has an engine of its own: [`decide()`] answers here as it does in the proxy.

use std::collections::BTreeSet;
use std::fmt;

use mesh_identity::SpiffeId;

use crate::compile::CompiledPolicy;
use crate::decide::{Effect, Verdict, decide};
use crate::document::{self, Node};
use crate::explain::explain;
use crate::facts::{CanonicalHost, CanonicalPath, Facts, Headers, HttpFacts};
use crate::pattern::PatternError;
use crate::problem::{PolicyErrors, ProblemKind};
use crate::reader::Reader;
use crate::validate::{API_VERSION, PolicySet};

/// A connection or a request as it is written down: what a case gives, and what an access log has.
#[derive(Debug, Clone, Default)]
pub struct Flow {
    /// Who asks; `None`: no identity.
    pub peer: Option<SpiffeId>,
    /// The port of the workload.
    pub port: u16,
    /// From where.
    pub address: Option<std::net::IpAddr>,
    /// The request; `None`: a TCP connection.
    pub request: Option<FlowRequest>,
}

/// The request of a flow.
#[derive(Debug, Clone, Default)]
pub struct FlowRequest {
    /// The method.
    pub method: String,
    /// The host, with or without port.
    pub host: String,
    /// The path, without query.
    pub path: String,
    /// Header lines, names in small letters; `None`: they were not written down.
    pub headers: Option<Vec<(String, String)>>,
}

#[derive(Debug)]
struct Written<'a>(&'a [(String, String)]);

impl Headers for Written<'_> {
    fn each(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        let lines = self.0.iter().filter(|(own, _)| own == name);
        lines.for_each(|(_, value)| each(value.as_bytes()));
    }
}

impl Flow {
    /// Asks with the facts of this flow.
    ///
    /// # Errors
    /// When its path or host is one that a proxy refuses before any policy is asked.
    pub fn ask<T>(&self, ask: impl FnOnce(&Facts<'_>) -> T) -> Result<T, NotCanonical> {
        let mut facts = Facts::new(self.peer.as_ref(), self.port);
        facts.peer_address = self.address;
        facts.remote_address = self.address;
        let Some(request) = &self.request else {
            return Ok(ask(&facts));
        };
        let path = CanonicalPath::parse(&request.path)
            .map_err(|refusal| NotCanonical(refusal.to_string()))?;
        let host = CanonicalHost::parse(&request.host)
            .map_err(|refusal| NotCanonical(refusal.to_string()))?;
        let written = request.headers.as_deref().map(Written);
        let mut http = HttpFacts::new(&request.method, host.name(), path);
        http.host_port = host.port();
        http.headers = written.as_ref().map(|written| written as &dyn Headers);
        Ok(ask(&facts.with(http)))
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.peer {
            Some(peer) => write!(f, "{peer}")?,
            None => f.write_str("a caller without identity")?,
        }
        match &self.request {
            Some(request) => write!(f, " {} {}{}", request.method, request.host, request.path),
            None => write!(f, " tcp {}", self.port),
        }
    }
}

/// A proxy refuses this before any policy is asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("refused before any policy is asked: {0}")]
pub struct NotCanonical(String);

/// One case of a PolicyTest.
#[derive(Debug, Clone)]
pub struct Case {
    /// `<test>/<case>`.
    pub name: String,
    /// What is given.
    pub given: Flow,
    /// What is expected.
    pub expect: Effect,
    /// The policy that is expected to decide, if that matters.
    pub by: Option<String>,
}

/// A case that came out otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The case.
    pub case: String,
    /// What happened, with the nearest rules.
    pub told: String,
}

/// How a set of cases came out.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// How many came out as expected.
    pub passed: usize,
    /// The others.
    pub failed: Vec<Failure>,
    /// Rules that no case reached: policy and rule.
    pub untouched: Vec<(String, String)>,
}

/// Runs cases against a policy.
#[must_use]
pub fn run(set: &PolicySet, policy: &CompiledPolicy, cases: &[Case]) -> Outcome {
    let mut outcome = Outcome::default();
    let mut touched = BTreeSet::new();
    for case in cases {
        let told = case.given.ask(|facts| {
            let verdict = decide(policy, facts);
            touch(&mut touched, &verdict);
            let by = verdict.policy.map(|name| name.to_string());
            let as_expected = verdict.effect == case.expect && (case.by.is_none() || case.by == by);
            (!as_expected).then(|| explain(policy, facts).to_string())
        });
        let told = match told {
            Ok(told) => told,
            // What no policy is asked about is denied.
            Err(refused) => {
                (case.expect == Effect::Allow || case.by.is_some()).then(|| refused.to_string())
            }
        };
        match told {
            None => outcome.passed += 1,
            Some(told) => outcome.failed.push(Failure {
                case: case.name.clone(),
                told,
            }),
        }
    }
    for policy in set.policies() {
        for rule in policy.rule_names() {
            let name = (policy.name().to_owned(), rule.to_owned());
            if !touched.contains(&name) {
                outcome.untouched.push(name);
            }
        }
    }
    outcome
}

fn touch(touched: &mut BTreeSet<(String, String)>, verdict: &Verdict<'_>) {
    let decided = verdict.policy.zip(verdict.rule);
    let aside = [verdict.audit, verdict.shadow.map(|shadow| shadow.by)];
    let aside = aside
        .into_iter()
        .flatten()
        .map(|hit| (hit.policy, hit.rule));
    for (policy, rule) in decided.into_iter().chain(aside) {
        touched.insert((policy.to_string(), rule.to_string()));
    }
}

/// Reads the documents of a test file.
///
/// # Errors
/// Every problem of the file, in the order of its lines.
pub fn read_tests(text: &str) -> Result<Vec<Case>, PolicyErrors> {
    let mut reader = Reader::default();
    let documents = document::read(text).unwrap_or_else(|problem| {
        reader.problems.push(problem);
        Vec::new()
    });
    let mut cases = Vec::new();
    for node in &documents {
        cases.extend(reader.policy_test(node).unwrap_or_default());
    }
    if reader.problems.is_empty() {
        return Ok(cases);
    }
    let mut problems = reader.problems;
    problems.sort_by_key(|p| (p.place().line, p.place().column));
    Err(PolicyErrors { problems })
}

impl Reader {
    fn policy_test(&mut self, node: &Node) -> Option<Vec<Case>> {
        let fields = self.fields(node, &["apiVersion", "kind", "metadata", "spec"])?;
        for (name, wanted) in [("apiVersion", API_VERSION), ("kind", "PolicyTest")] {
            match fields.get(name) {
                Some((_, value)) => self.below(name, |r| r.one_of(value, &[(wanted, ())]))?,
                None => self.missing(node.place, name)?,
            }
        }
        let name = match fields.get("metadata") {
            Some((_, metadata)) => self.below("metadata", |r| {
                let fields = r.fields(metadata, &["name", "namespace"])?;
                match fields.get("name") {
                    Some((_, name)) => r.below("name", |r| r.dns_name(name)),
                    None => r.missing(metadata.place, "name"),
                }
            })?,
            None => return self.missing(node.place, "metadata"),
        };
        let Some((_, spec)) = fields.get("spec") else {
            return self.missing(node.place, "spec");
        };
        self.below("spec", |r| {
            let fields = r.fields(spec, &["cases"])?;
            let Some((_, cases)) = fields.get("cases") else {
                return r.missing(spec.place, "cases");
            };
            Some(r.below("cases", |r| r.list(cases, |r, case| r.case(case, &name))))
        })
    }

    fn case(&mut self, node: &Node, test: &str) -> Option<Case> {
        let fields = self.fields(node, &["name", "given", "expect", "by"])?;
        let mut text = |name: &'static str| match fields.get(name) {
            Some((_, value)) => self.below(name, |r| r.text(value).map(str::to_owned)),
            None => self.missing(node.place, name),
        };
        let name = text("name")?;
        let expect = match fields.get("expect") {
            Some((_, expect)) => self.below("expect", |r| {
                r.one_of(expect, &[("ALLOW", Effect::Allow), ("DENY", Effect::Deny)])
            })?,
            None => return self.missing(node.place, "expect"),
        };
        let by = match fields.get("by") {
            Some((_, by)) => Some(self.below("by", |r| r.text(by).map(str::to_owned))?),
            None => None,
        };
        let given = match fields.get("given") {
            Some((_, given)) => self.below("given", |r| r.flow(given))?,
            None => return self.missing(node.place, "given"),
        };
        Some(Case {
            name: format!("{test}/{name}"),
            given,
            expect,
            by,
        })
    }

    fn flow(&mut self, node: &Node) -> Option<Flow> {
        let known = [
            "from", "address", "port", "method", "host", "path", "headers",
        ];
        let fields = self.fields(node, &known)?;
        let peer = match fields.get("from") {
            Some((_, from)) => Some(self.below("from", |r| r.value(from, identity))?),
            None => None,
        };
        let address = match fields.get("address") {
            Some((_, address)) => Some(self.below("address", |r| {
                r.value(address, |text| text.parse().map_err(|_| PatternError::Cidr))
            })?),
            None => None,
        };
        let port = match fields.get("port") {
            Some((_, port)) => self.below("port", |r| r.port(port))?,
            None => return self.missing(node.place, "port"),
        };
        let mut text = |name: &'static str| match fields.get(name) {
            Some((_, value)) => Some(Some(
                self.below(name, |r| r.text(value).map(str::to_owned))?,
            )),
            None => Some(None),
        };
        let (method, host, path) = (text("method")?, text("host")?, text("path")?);
        let headers = match fields.get("headers") {
            Some((_, headers)) => self.below("headers", |r| r.texts(headers))?,
            None => Vec::new(),
        };
        let request = match (method, path) {
            (Some(method), Some(path)) => Some(FlowRequest {
                method,
                path,
                host: host.unwrap_or_else(|| "localhost".to_owned()),
                headers: Some(
                    headers
                        .into_iter()
                        .map(|(name, value)| (name.to_ascii_lowercase(), value))
                        .collect(),
                ),
            }),
            (None, None) if host.is_none() && headers.is_empty() => None,
            _ => {
                self.problem(
                    ProblemKind::MissingField,
                    node.place,
                    "a request has `method` and `path`; a TCP connection neither, nor `host` and `headers`".to_owned(),
                );
                return None;
            }
        };
        Some(Flow {
            peer,
            port,
            address,
            request,
        })
    }
}

fn identity(text: &str) -> Result<SpiffeId, PatternError> {
    let full = if text.starts_with("spiffe://") {
        text.to_owned()
    } else {
        format!("spiffe://{text}")
    };
    full.parse()
        .map_err(|error| PatternError::SpiffeId(format!("{error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{Door, Protocol};

    const POLICY: &str = "apiVersion: mesh.finial.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: { name: pay }\nspec:\n  rules:\n  - name: charge\n    from: [ { source: { principals: [td/shop] } } ]\n    to: [ { operation: { methods: [POST], paths: [/charge] } } ]\n  - name: status\n    to: [ { operation: { paths: [/status] } } ]\n";

    fn outcome(cases: &str) -> Outcome {
        let text = format!(
            "apiVersion: mesh.finial.dev/v1alpha1\nkind: PolicyTest\nmetadata: {{ name: t }}\nspec:\n  cases:\n{cases}"
        );
        let set = PolicySet::from_yaml(POLICY).unwrap();
        let policy = CompiledPolicy::new(&set, Door::of_unknown(Protocol::Http));
        run(&set, &policy, &read_tests(&text).unwrap())
    }

    #[test]
    fn a_case_says_what_is_given_and_what_is_expected_and_rules_that_none_reached_are_named() {
        let all = outcome(
            "  - { name: shop, given: { from: spiffe://td/shop, port: 80, method: POST, path: /charge }, expect: ALLOW, by: pay }\n  - { name: other, given: { from: td/other, port: 80, method: POST, path: /charge }, expect: DENY }\n  - { name: dots, given: { port: 80, method: GET, path: /x/../status }, expect: DENY }\n",
        );
        assert_eq!((all.passed, all.failed.len()), (3, 0));
        assert_eq!(all.untouched, [("pay".to_owned(), "status".to_owned())]);
    }

    #[test]
    fn a_case_that_comes_out_otherwise_tells_the_nearest_rule() {
        let all = outcome(
            "  - { name: get, given: { from: td/shop, port: 80, method: GET, path: /charge }, expect: ALLOW }\n",
        );
        assert_eq!(all.failed[0].case, "t/get");
        assert!(
            all.failed[0].told.contains("methods: GET is not in [POST]"),
            "{:?}",
            all.failed
        );
    }

    #[test]
    fn a_test_file_is_read_as_strictly_as_a_policy_file() {
        let problem = |text: &str| read_tests(text).unwrap_err().to_string();
        assert!(problem("kind: PolicyTest\n").contains("`apiVersion` is missing"));
        let case = |case: &str| {
            problem(&format!(
                "apiVersion: mesh.finial.dev/v1alpha1\nkind: PolicyTest\nmetadata: {{ name: t }}\nspec: {{ cases: [ {case} ] }}\n"
            ))
        };
        assert!(case("{ name: a, given: { port: 80 } }").contains("`expect` is missing"));
        assert!(
            case("{ name: a, expect: ALLOW, given: { porte: 80 } }")
                .contains("did you mean `port`?")
        );
        assert!(
            case("{ name: a, expect: ALLOW, given: { port: 80, method: GET } }")
                .contains("a request has `method` and `path`")
        );
        assert!(case("{ name: a, expect: yes, given: { port: 80 } }").contains("FNL050"));
        assert!(
            case("{ name: a, expect: DENY, given: { port: 80, from: TD/x } }")
                .contains("not a SPIFFE ID")
        );
    }
}
