//! From flows that were seen and allowed to the narrowest policy that allows them, and from a policy to what nobody used of it.
//! Trusts that a recorded caller was proven when it was recorded.
//! Never writes a pattern that a recorded text chose: what the language would read as one is left out and counted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::compile::CompiledPolicy;
use crate::decide::decide;
use crate::model::Action;
use crate::simulate::Flow;
use crate::validate::API_VERSION;

/// A policy that was made from flows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Suggestion {
    /// The document; empty when no flow can be written as a rule.
    pub document: String,
    /// Flows that are allowed by it.
    pub covered: u64,
    /// Flows of callers without identity: no rule should name nobody.
    pub anonymous: u64,
    /// Flows whose path or method would be read as a pattern, or is none that a proxy passes on.
    pub unwritable: u64,
}

/// What one caller did.
#[derive(Debug, Default)]
struct Seen {
    /// By method, how often each path was asked for.
    requests: BTreeMap<String, BTreeMap<String, u64>>,
    /// How often each port was connected to.
    ports: BTreeMap<u16, u64>,
}

/// The narrowest ALLOW policy for these flows: a rule for each caller and method with the paths that were asked for, and one for his
/// TCP ports.
#[must_use]
pub fn suggest<'f>(
    name: &str,
    namespace: Option<&str>,
    flows: impl IntoIterator<Item = &'f Flow>,
) -> Suggestion {
    let mut suggestion = Suggestion::default();
    let mut callers: BTreeMap<String, Seen> = BTreeMap::new();
    for flow in flows {
        let Some(peer) = &flow.peer else {
            suggestion.anonymous += 1;
            continue;
        };
        let writable = flow
            .request
            .as_ref()
            .is_none_or(|request| is_plain(&request.method) && is_plain(&request.path));
        if !writable || flow.ask(|_| ()).is_err() {
            suggestion.unwritable += 1;
            continue;
        }
        let seen = callers.entry(peer.to_string()).or_default();
        match &flow.request {
            Some(request) => {
                let paths = seen.requests.entry(request.method.clone()).or_default();
                *paths.entry(request.path.clone()).or_default() += 1;
            }
            None => *seen.ports.entry(flow.port).or_default() += 1,
        }
        suggestion.covered += 1;
    }
    if !callers.is_empty() {
        suggestion.document = document(name, namespace, &callers);
    }
    suggestion
}

/// Rules of ALLOW policies that decide and that no flow needed: policy and rule, in the order of the file.
#[must_use]
pub fn unused<'f>(
    policy: &CompiledPolicy,
    flows: impl IntoIterator<Item = &'f Flow>,
) -> Vec<(String, String)> {
    let mut used = BTreeSet::new();
    for flow in flows {
        // What no policy is asked about uses none.
        let hit = flow.ask(|facts| {
            let verdict = decide(policy, facts);
            let rule = verdict.policy.zip(verdict.rule);
            rule.map(|(policy, rule)| (policy.to_string(), rule.to_string()))
        });
        used.extend(hit.ok().flatten());
    }
    policy
        .inventory()
        .filter(|rule| rule.action == Action::Allow && rule.mode == crate::Mode::Enforce)
        .map(|rule| (rule.policy.to_owned(), rule.rule.to_owned()))
        .filter(|rule| !used.contains(rule))
        .collect()
}

/// Whether the language of policies reads this text as itself.
fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && !text.contains(['*', '{', '}'])
        && text.bytes().all(|b| b.is_ascii_graphic())
}

fn document(name: &str, namespace: Option<&str>, callers: &BTreeMap<String, Seen>) -> String {
    let mut out = format!(
        "apiVersion: {API_VERSION}\nkind: AuthorizationPolicy\nmetadata:\n  name: {}\n",
        quoted(name)
    );
    if let Some(namespace) = namespace {
        let _infallible = writeln!(out, "  namespace: {}", quoted(namespace));
    }
    out.push_str("spec:\n  action: ALLOW\n  rules:\n");
    for (caller, seen) in callers {
        for (method, paths) in &seen.requests {
            let count: u64 = paths.values().sum();
            rule(&mut out, caller, count);
            let _infallible = writeln!(out, "        methods: [{}]", quoted(method));
            out.push_str("        paths:\n");
            for (path, count) in paths {
                let _infallible = writeln!(out, "        - {} # {count} times", quoted(path));
            }
        }
        if !seen.ports.is_empty() {
            rule(&mut out, caller, seen.ports.values().sum());
            out.push_str("        ports:\n");
            for (port, count) in &seen.ports {
                let _infallible = writeln!(out, "        - \"{port}\" # {count} times");
            }
        }
    }
    out
}

fn rule(out: &mut String, caller: &str, count: u64) {
    let _infallible = writeln!(
        out,
        "  - from: # {count} times\n    - source:\n        principals: [{}]\n    to:\n    - operation:",
        quoted(caller)
    );
}

/// A text of graphic ASCII as YAML's double-quoted scalar.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::FlowRequest;
    use crate::{Door, PolicySet, Protocol};

    fn request(peer: Option<&str>, method: &str, path: &str) -> Flow {
        Flow {
            peer: peer.map(|peer| peer.parse().unwrap()),
            port: 80,
            address: None,
            request: Some(FlowRequest {
                method: method.to_owned(),
                path: path.to_owned(),
                host: "pay".to_owned(),
                headers: None,
            }),
        }
    }

    fn tcp(peer: &str, port: u16) -> Flow {
        Flow {
            peer: Some(peer.parse().unwrap()),
            port,
            ..Flow::default()
        }
    }

    fn allowed(document: &str, flow: &Flow) -> bool {
        let set = PolicySet::from_yaml(document).unwrap_or_else(|e| panic!("{e}\n{document}"));
        let protocol = match flow.request {
            Some(_) => Protocol::Http,
            None => Protocol::Tcp,
        };
        let policy = CompiledPolicy::new(&set, Door::of_unknown(protocol));
        flow.ask(|facts| decide(&policy, facts).is_allowed())
            .unwrap()
    }

    const SHOP: &str = "spiffe://td/shop";

    #[test]
    fn what_was_seen_is_allowed_and_nothing_beside_it() {
        let seen = [
            request(Some(SHOP), "POST", "/charge"),
            request(Some(SHOP), "POST", "/charge"),
            request(Some(SHOP), "GET", "/a\"b\\"),
            request(Some("spiffe://td/cron"), "GET", "/status"),
            tcp(SHOP, 5432),
        ]
        .into_iter()
        .filter(|flow| flow.ask(|_| ()).is_ok())
        .collect::<Vec<_>>();
        let made = suggest("seen", Some("shops"), &seen);
        assert_eq!(made.covered, seen.len() as u64);
        assert!(
            made.document.contains("- \"/charge\" # 2 times"),
            "{}",
            made.document
        );
        for flow in &seen {
            assert!(allowed(&made.document, flow), "{flow}\n{}", made.document);
        }
        for flow in [
            request(Some(SHOP), "GET", "/charge"),
            request(Some(SHOP), "POST", "/status"),
            request(Some("spiffe://td/cron"), "POST", "/charge"),
            request(Some("spiffe://td/shop/x"), "POST", "/charge"),
            request(None, "POST", "/charge"),
            tcp(SHOP, 5433),
            tcp("spiffe://td/cron", 5432),
        ] {
            assert!(!allowed(&made.document, &flow), "{flow}\n{}", made.document);
        }
    }

    #[test]
    fn a_text_that_would_be_a_pattern_and_a_caller_without_identity_are_counted_and_not_written() {
        let seen = [
            request(Some(SHOP), "GET", "/files/*"),
            request(Some(SHOP), "GET", "/{**}"),
            request(Some(SHOP), "*", "/a"),
            request(Some(SHOP), "GET", "/x/../y"),
            request(None, "GET", "/a"),
        ];
        let made = suggest("seen", None, &seen);
        assert_eq!((made.covered, made.anonymous, made.unwritable), (0, 1, 4));
        assert_eq!(made.document, "");
    }

    #[test]
    fn a_grant_that_no_flow_needed_is_named() {
        let text = format!(
            "apiVersion: {API_VERSION}\nkind: AuthorizationPolicy\nmetadata: {{ name: pay }}\nspec:\n  rules:\n  - name: charge\n    to: [ {{ operation: {{ paths: [/charge] }} }} ]\n  - name: refund\n    to: [ {{ operation: {{ paths: [/refund] }} }} ]\n"
        );
        let set = PolicySet::from_yaml(&text).unwrap();
        let policy = CompiledPolicy::new(&set, Door::of_unknown(Protocol::Http));
        let seen = [
            request(Some(SHOP), "GET", "/charge"),
            request(Some(SHOP), "GET", "/none"),
        ];
        assert_eq!(
            unused(&policy, &seen),
            [("pay".to_owned(), "refund".to_owned())]
        );
    }
}
