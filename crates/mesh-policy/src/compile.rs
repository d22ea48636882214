//! From a valid set to the rules of one door of one workload, in the order in which they are asked.
//! Trusts `validate.rs`; knows whether the door speaks HTTP and which workload stands behind it.
//! Never drops a rule silently: what the door cannot enforce is reported, and it errs to the strict side.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use mesh_identity::{SpiffeId, TrustDomain};

use crate::authentication::{JwtRule, Level, Posture, Postures, Transport};
use crate::keys::{KeySource, KeyUrl};
use crate::model::{Action, Attachment, Check, Mode, Rule, Target, Test, ValidPolicy};
use crate::pattern::Principal;
use crate::validate::PolicySet;

/// The door that a policy is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Door<'w> {
    /// What is spoken behind it.
    pub protocol: Protocol,
    /// The workload behind it. `None`: unknown, and the set is meant for it whatever its namespaces are.
    pub workload: Option<&'w Workload>,
}

impl Door<'_> {
    /// A door in front of a workload of which nothing is known.
    #[must_use]
    pub fn of_unknown(protocol: Protocol) -> Self {
        Self {
            protocol,
            workload: None,
        }
    }
}

/// What is spoken at a door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1, HTTP/2, gRPC: each request is decided.
    Http,
    /// Bytes: each connection is decided, by peer and port.
    Tcp,
}

/// What selectors ask about a workload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Workload {
    /// Where it lives. Policies of other namespaces do not speak of it.
    pub namespace: String,
    /// The namespace whose policies speak of every workload of the mesh, if there is one.
    pub root_namespace: Option<String>,
    /// Its labels.
    pub labels: Vec<(String, String)>,
    /// The services that it stands behind.
    pub services: Vec<String>,
}

/// The policies of one door, ready to be asked. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CompiledPolicy {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    ready: bool,
    enforced: Rules,
    shadow: Rules,
    audit: RuleList,
    needs_headers: bool,
    postures: Postures,
    jwt_rules: Vec<JwtRule>,
    unenforceable: Vec<Unenforceable>,
}

/// The rules that decide, or those that only tell what they would.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    pub(crate) deny: RuleList,
    pub(crate) allow: RuleList,
}

/// Rules in the order of the file, with those that name their callers found by the caller.
#[derive(Debug, Default)]
pub(crate) struct RuleList {
    all: Vec<CompiledRule>,
    /// Of each caller, the rules that can match no one but the callers they name.
    by_caller: HashMap<SpiffeId, Vec<usize>>,
    /// The rules that may match anyone.
    rest: Vec<usize>,
}

#[derive(Debug)]
pub(crate) struct CompiledRule {
    pub(crate) policy: Arc<str>,
    pub(crate) action: Action,
    pub(crate) mode: Mode,
    pub(crate) name: Arc<str>,
    pub(crate) from: Vec<Vec<Check>>,
    pub(crate) to: Vec<Vec<Check>>,
    pub(crate) when: Vec<Check>,
}

impl RuleList {
    fn push(&mut self, rule: CompiledRule) {
        let number = self.all.len();
        match rule.callers() {
            Some(callers) => {
                for caller in callers {
                    let numbers = self.by_caller.entry(caller.clone()).or_default();
                    if numbers.last() != Some(&number) {
                        numbers.push(number);
                    }
                }
            }
            None => self.rest.push(number),
        }
        self.all.push(rule);
    }

    /// The rules that may match this caller, in the order of the file.
    pub(crate) fn candidates(
        &self,
        peer: Option<&SpiffeId>,
    ) -> impl Iterator<Item = &CompiledRule> {
        let mut named = peer
            .and_then(|peer| self.by_caller.get(peer))
            .map_or(&[][..], Vec::as_slice)
            .iter()
            .copied()
            .peekable();
        let mut rest = self.rest.iter().copied().peekable();
        std::iter::from_fn(move || {
            let next = match (named.peek(), rest.peek()) {
                (Some(a), Some(b)) if a < b => named.next(),
                (Some(_), None) => named.next(),
                _ => rest.next(),
            };
            next.and_then(|number| self.all.get(number))
        })
    }

    /// All of them, in the order of the file.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &CompiledRule> {
        self.all.iter()
    }

    fn len(&self) -> usize {
        self.all.len()
    }
}

impl CompiledRule {
    /// The only callers whom this rule can match, if it names them all.
    fn callers(&self) -> Option<Vec<&SpiffeId>> {
        if self.from.is_empty() {
            return None;
        }
        let mut callers = Vec::new();
        for source in &self.from {
            let named = source.iter().find_map(|check| match &check.test {
                Test::Principal(principals) if !check.negated => Some(principals),
                _ => None,
            })?;
            for principal in named {
                let Principal::Exact(id) = principal else {
                    return None;
                };
                callers.push(id);
            }
        }
        Some(callers)
    }
}

/// A rule that this door cannot enforce as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unenforceable {
    /// The policy.
    pub policy: String,
    /// The rule.
    pub rule: String,
    /// What a match would have done.
    pub action: Action,
    /// Why.
    pub cause: Cause,
}

/// Why a rule cannot be enforced as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It has HTTP fields and the door carries TCP.
    HttpFields,
    /// It selects workloads and nobody said which one this is.
    UnknownWorkload,
}

impl Unenforceable {
    /// The stable code.
    pub const CODE: &'static str = "FNL0510";
}

impl fmt::Display for Unenforceable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            policy,
            rule,
            action,
            cause,
        } = self;
        let why = match cause {
            Cause::HttpFields => "has HTTP fields, but this door carries TCP",
            Cause::UnknownWorkload => {
                "selects workloads, but this proxy was not told which workload it serves"
            }
        };
        let effect = match (action, cause) {
            (Action::Allow, _) => "it allows nothing here",
            (Action::Deny, Cause::HttpFields) => {
                "its HTTP fields are ignored here, so it denies more than it says"
            }
            (Action::Deny, Cause::UnknownWorkload) => "it denies here",
            (Action::Audit, _) => "it records here",
        };
        write!(
            f,
            "policy {policy} rule {rule} {why}: {effect} [{}]",
            Self::CODE
        )
    }
}

/// Whether a policy speaks of the workload behind a door.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attached {
    Yes,
    No,
    /// Nobody can say.
    Unknown,
}

fn attached(
    namespace: Option<&String>,
    attachment: &Attachment,
    workload: Option<&Workload>,
) -> Attached {
    let Some(workload) = workload else {
        return match attachment {
            Attachment::Everyone => Attached::Yes,
            Attachment::Labels(_) | Attachment::Targets(_) => Attached::Unknown,
        };
    };
    let here = namespace.is_none_or(|own| {
        *own == workload.namespace || Some(own) == workload.root_namespace.as_ref()
    });
    let selected = match attachment {
        Attachment::Everyone => true,
        Attachment::Labels(labels) => labels.iter().all(|label| workload.labels.contains(label)),
        Attachment::Targets(targets) => targets.iter().any(|target| match target {
            Target::Service(name) => {
                namespace.is_none_or(|own| *own == workload.namespace)
                    && workload.services.contains(name)
            }
            Target::Elsewhere => false,
        }),
    };
    if here && selected {
        Attached::Yes
    } else {
        Attached::No
    }
}

impl CompiledPolicy {
    /// Compiles the set for a door.
    #[must_use]
    pub fn new(set: &PolicySet, door: Door<'_>) -> Self {
        let mut inner = Inner {
            ready: true,
            ..Inner::default()
        };
        for policy in set.policies() {
            let attached = attached(policy.namespace.as_ref(), &policy.attachment, door.workload);
            if attached == Attached::No {
                continue;
            }
            let name: Arc<str> = policy.name.as_str().into();
            for rule in &policy.rules {
                let cause = if attached == Attached::Unknown {
                    Some(Cause::UnknownWorkload)
                } else if door.protocol == Protocol::Tcp && rule.checks().any(|c| c.test.is_http())
                {
                    Some(Cause::HttpFields)
                } else {
                    None
                };
                if let Some(cause) = cause {
                    inner.unenforceable.push(Unenforceable {
                        policy: policy.name.clone(),
                        rule: rule.name.clone(),
                        action: policy.action,
                        cause,
                    });
                }
                // A policy that may be another workload's never lets anyone in here.
                if attached == Attached::Yes || policy.action != Action::Allow {
                    inner.add(compile_rule(&name, policy, rule));
                }
            }
        }
        inner.transports(set, door.workload);
        inner.tokens(set, door.workload);
        Self {
            inner: Arc::new(inner),
        }
    }

    /// What the door demands of connections to this port of the workload.
    #[must_use]
    pub fn posture(&self, port: u16) -> Posture {
        self.inner.postures.at(port)
    }

    /// The issuers whose tokens are believed.
    #[must_use]
    pub fn jwt_rules(&self) -> &[JwtRule] {
        &self.inner.jwt_rules
    }

    /// The files from which keys are to be read.
    pub fn key_files(&self) -> impl Iterator<Item = &str> {
        self.inner
            .jwt_rules
            .iter()
            .filter_map(|rule| match &rule.keys {
                KeySource::File(path) => Some(path.as_str()),
                _ => None,
            })
    }

    /// The trust domains whose JWT-SVIDs are believed.
    pub fn believed_domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.inner
            .jwt_rules
            .iter()
            .filter_map(|rule| match &rule.keys {
                KeySource::Domain(domain) => Some(domain),
                _ => None,
            })
    }

    /// The places of the Web from which keys are to be fetched.
    pub fn key_urls(&self) -> impl Iterator<Item = &KeyUrl> {
        self.inner
            .jwt_rules
            .iter()
            .filter_map(|rule| match &rule.keys {
                KeySource::Web(url) => Some(url),
                _ => None,
            })
    }

    /// Before there is a policy: denies everything, and says that it is not ready.
    #[must_use]
    pub fn not_ready() -> Self {
        Self {
            inner: Arc::new(Inner::default()),
        }
    }

    /// Whether a policy set was ever read.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.inner.ready
    }

    /// The rules that this door cannot enforce as they are written.
    #[must_use]
    pub fn unenforceable(&self) -> &[Unenforceable] {
        &self.inner.unenforceable
    }

    /// Whether a rule asks for a header, so that somebody has to keep them.
    #[must_use]
    pub fn needs_headers(&self) -> bool {
        self.inner.needs_headers
    }

    /// How many rules decide.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.enforced.deny.len() + self.inner.enforced.allow.len()
    }

    /// Whether there is no rule that decides, so that everything is denied.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn enforced(&self) -> &Rules {
        &self.inner.enforced
    }

    pub(crate) fn shadow(&self) -> &Rules {
        &self.inner.shadow
    }

    pub(crate) fn audit(&self) -> &RuleList {
        &self.inner.audit
    }
}

impl Inner {
    fn transports(&mut self, set: &PolicySet, workload: Option<&Workload>) {
        for peer in set.peers() {
            let level = match (&peer.attachment, workload) {
                (Attachment::Labels(_) | Attachment::Targets(_), _) => Level::Workload,
                (Attachment::Everyone, Some(workload))
                    if peer.namespace.is_some()
                        && peer.namespace == workload.root_namespace
                        && peer.namespace.as_ref() != Some(&workload.namespace) =>
                {
                    Level::Mesh
                }
                (Attachment::Everyone, _) => Level::Namespace,
            };
            match attached(peer.namespace.as_ref(), &peer.attachment, workload) {
                Attached::Yes => self.postures.add(level, peer),
                Attached::No => {}
                Attached::Unknown => {
                    // What may be meant for another workload closes this door and never opens it.
                    let mut strict = peer.clone();
                    strict.mode = strict.mode.filter(|mode| *mode == Transport::Strict);
                    strict.ports.retain(|_, mode| *mode == Transport::Strict);
                    strict.post_quantum = strict.post_quantum.filter(|wanted| *wanted);
                    self.postures.add(level, &strict);
                    self.not_known(&peer.name, "mtls");
                }
            }
        }
    }

    fn tokens(&mut self, set: &PolicySet, workload: Option<&Workload>) {
        for request in set.requests() {
            match attached(request.namespace.as_ref(), &request.attachment, workload) {
                Attached::Yes => self.jwt_rules.extend(request.rules.iter().cloned()),
                Attached::No => {}
                Attached::Unknown => self.not_known(&request.name, "jwtRules"),
            }
        }
    }

    fn not_known(&mut self, policy: &str, rule: &str) {
        self.unenforceable.push(Unenforceable {
            policy: policy.to_owned(),
            rule: rule.to_owned(),
            action: Action::Allow,
            cause: Cause::UnknownWorkload,
        });
    }

    fn add(&mut self, rule: CompiledRule) {
        let checks = rule.from.iter().chain(&rule.to).flatten().chain(&rule.when);
        self.needs_headers |= checks
            .into_iter()
            .any(|check| matches!(check.test, Test::Header(..)));
        let rules = match rule.mode {
            Mode::Enforce => &mut self.enforced,
            Mode::Shadow => &mut self.shadow,
        };
        match rule.action {
            Action::Deny => rules.deny.push(rule),
            Action::Allow => rules.allow.push(rule),
            // It never changes the outcome, so a shadow of it would be nothing.
            Action::Audit => self.audit.push(rule),
        }
    }
}

fn compile_rule(name: &Arc<str>, policy: &ValidPolicy, rule: &Rule) -> CompiledRule {
    CompiledRule {
        policy: Arc::clone(name),
        action: policy.action,
        mode: policy.mode,
        name: rule.name.as_str().into(),
        from: rule.from.clone(),
        to: rule.to.clone(),
        when: rule.when.clone(),
    }
}
