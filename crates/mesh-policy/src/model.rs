//! A policy after validation: conditions of one shape, so that deciding, explaining and simulating ask the same questions.
//! Trusts `validate.rs`, the only place that makes these.
//! Never holds a condition that was not understood.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use mesh_identity::TrustDomain;

use crate::pattern::{Cidr, Host, Method, Path, Principal, ServiceAccount, Text};

/// What a match does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A match allows, unless a DENY policy matches too.
    Allow,
    /// A match denies, whatever else matches.
    Deny,
    /// A match is recorded and changes nothing.
    Audit,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Audit => "AUDIT",
        })
    }
}

/// Whether a policy counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// It decides.
    #[default]
    Enforce,
    /// It is asked, what it would have changed is reported, and it decides nothing.
    Shadow,
}

/// One AuthorizationPolicy that passed every check.
#[derive(Debug, Clone)]
pub struct ValidPolicy {
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
    pub(crate) attachment: Attachment,
    pub(crate) action: Action,
    pub(crate) mode: Mode,
    pub(crate) rules: Vec<Rule>,
}

impl ValidPolicy {
    /// `namespace/name`, or the name alone when no namespace was written.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a match does.
    #[must_use]
    pub fn action(&self) -> Action {
        self.action
    }

    /// Whether it counts.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The names of its rules.
    pub fn rule_names(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().map(|rule| rule.name.as_str())
    }
}

/// Which workloads of its namespace a policy speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Attachment {
    /// All of them.
    Everyone,
    /// Those that carry all of these labels.
    Labels(Vec<(String, String)>),
    /// Those that stand behind one of these services; a gateway is never one of ours.
    Targets(Vec<Target>),
}

/// One entry of `targetRefs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Service(String),
    Elsewhere,
}

#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) name: String,
    /// Alternatives, each of conditions that hold together. Empty: any source.
    pub(crate) from: Vec<Vec<Check>>,
    /// Alternatives. Empty: any operation.
    pub(crate) to: Vec<Vec<Check>>,
    /// Conditions that hold together.
    pub(crate) when: Vec<Check>,
}

impl Rule {
    pub(crate) fn checks(&self) -> impl Iterator<Item = &Check> {
        self.from.iter().chain(&self.to).flatten().chain(&self.when)
    }
}

/// One field of a policy: it holds when one of the values matches, or, `negated`, when none does.
#[derive(Debug, Clone)]
pub(crate) struct Check {
    /// As it is written: `notPaths`, `request.headers[x-role]`.
    pub(crate) field: Cow<'static, str>,
    pub(crate) negated: bool,
    pub(crate) test: Test,
}

/// What is compared with what.
#[derive(Debug, Clone)]
pub(crate) enum Test {
    Principal(Vec<Principal>),
    TrustDomain(Vec<TrustDomain>),
    Namespace(Vec<Text>),
    ServiceAccount(Vec<ServiceAccount>),
    PeerAddress(Vec<Cidr>),
    RemoteAddress(Vec<Cidr>),
    DestinationAddress(Vec<Cidr>),
    Port(Vec<u16>),
    Sni(Vec<Text>),
    Host(Vec<Host>),
    Method(Vec<Method>),
    Path(Vec<Path>),
    Header(Box<str>, Vec<Text>),
    RequestPrincipal(Vec<Text>),
    Audience(Vec<Text>),
    Presenter(Vec<Text>),
    Claim(Box<[Box<str>]>, Vec<Text>),
}

impl Test {
    /// Whether it asks for something that only a request has.
    pub(crate) fn is_http(&self) -> bool {
        matches!(
            self,
            Self::Host(_)
                | Self::Method(_)
                | Self::Path(_)
                | Self::Header(..)
                | Self::RequestPrincipal(_)
                | Self::Audience(_)
                | Self::Presenter(_)
                | Self::Claim(..)
        )
    }

    /// The values as they are written, for a message: at most a few of them.
    pub(crate) fn wanted(&self) -> String {
        match self {
            Self::Principal(values) => shown(values),
            Self::TrustDomain(values) => shown(values),
            Self::ServiceAccount(values) => shown(values),
            Self::PeerAddress(values)
            | Self::RemoteAddress(values)
            | Self::DestinationAddress(values) => shown(values),
            Self::Port(values) => shown(values),
            Self::Host(values) => shown(values),
            Self::Method(values) => shown(values),
            Self::Path(values) => shown(values),
            Self::Namespace(values)
            | Self::Sni(values)
            | Self::Header(_, values)
            | Self::RequestPrincipal(values)
            | Self::Audience(values)
            | Self::Presenter(values)
            | Self::Claim(_, values) => shown(values),
        }
    }
}

fn shown<T: fmt::Display>(values: &[T]) -> String {
    const SHOWN: usize = 5;
    let mut list: Vec<String> = values.iter().take(SHOWN).map(ToString::to_string).collect();
    if values.len() > SHOWN {
        list.push(format!("and {} more", values.len() - SHOWN));
    }
    list.join(", ")
}

/// An IPv4 address that comes mapped into IPv6 is the IPv4 address.
pub(crate) fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}
