//! From a valid set to the rules of one door of one workload, in the order in which they are asked.
//! Trusts `validate.rs`; knows whether the door speaks HTTP.
//! Never drops a rule silently: what the door cannot enforce is reported, and it errs to the strict side.

use std::fmt;
use std::sync::Arc;

use crate::validate::{Action, Operation, PolicySet, Rule, Source};

/// The door that a policy is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Door {
    /// What is spoken behind it.
    pub protocol: Protocol,
}

/// What is spoken at a door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1, HTTP/2, gRPC: each request is decided.
    Http,
    /// Bytes: each connection is decided, by peer and port.
    Tcp,
}

/// The policies of one door, ready to be asked. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CompiledPolicy {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    ready: bool,
    deny: Vec<CompiledRule>,
    allow: Vec<CompiledRule>,
    unenforceable: Vec<Unenforceable>,
}

#[derive(Debug)]
pub(crate) struct CompiledRule {
    pub(crate) policy: Arc<str>,
    pub(crate) action: Action,
    pub(crate) name: Arc<str>,
    pub(crate) from: Vec<Source>,
    pub(crate) to: Vec<Operation>,
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
        } = self;
        let effect = match action {
            Action::Allow => "it allows nothing here",
            Action::Deny => "its HTTP fields are ignored here, so it denies more than it says",
        };
        write!(
            f,
            "policy {policy} rule {rule} has HTTP fields, but this door carries TCP: {effect} [{}]",
            Self::CODE
        )
    }
}

impl CompiledPolicy {
    /// Compiles the set for a door.
    #[must_use]
    pub fn new(set: &PolicySet, door: Door) -> Self {
        let (mut deny, mut allow, mut unenforceable) = (Vec::new(), Vec::new(), Vec::new());
        for policy in set.policies() {
            let name: Arc<str> = policy.name.as_str().into();
            for rule in &policy.rules {
                if door.protocol == Protocol::Tcp && rule.to.iter().any(Operation::has_http_fields)
                {
                    unenforceable.push(Unenforceable {
                        policy: policy.name.clone(),
                        rule: rule.name.clone(),
                        action: policy.action,
                    });
                }
                let rules = match policy.action {
                    Action::Deny => &mut deny,
                    Action::Allow => &mut allow,
                };
                rules.push(compile_rule(&name, policy.action, rule));
            }
        }
        Self {
            inner: Arc::new(Inner {
                ready: true,
                deny,
                allow,
                unenforceable,
            }),
        }
    }

    /// Before there is a policy: denies everything, and says that it is not ready.
    #[must_use]
    pub fn not_ready() -> Self {
        Self {
            inner: Arc::new(Inner {
                ready: false,
                deny: Vec::new(),
                allow: Vec::new(),
                unenforceable: Vec::new(),
            }),
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

    /// How many rules are asked.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.deny.len() + self.inner.allow.len()
    }

    /// Whether there is no rule at all, so that everything is denied.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn deny(&self) -> &[CompiledRule] {
        &self.inner.deny
    }

    pub(crate) fn allow(&self) -> &[CompiledRule] {
        &self.inner.allow
    }
}

fn compile_rule(policy: &Arc<str>, action: Action, rule: &Rule) -> CompiledRule {
    CompiledRule {
        policy: Arc::clone(policy),
        action,
        name: rule.name.as_str().into(),
        from: rule.from.clone(),
        to: rule.to.clone(),
    }
}
