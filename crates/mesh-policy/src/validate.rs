//! From the tree of a document to a `PolicySet`, or to all of its problems with path, line and column.
//! Trusts nothing that is written there.
//! Never widens: an unknown key, an empty list or a bad value refuses the whole set.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::authentication::{PeerAuthentication, RequestAuthentication};
use crate::document::{self, Node, Value};
use crate::model::{Action, Attachment, Check, Mode, Rule, Target, Test, ValidPolicy};
use crate::pattern::{
    self, Cidr, Host, Method, Path, PatternError, Principal, ServiceAccount, Text,
};
use crate::problem::{Place, PolicyErrors, Problem, ProblemKind};
use crate::reader::{Fields, Reader};

/// The group and version that this page writes.
pub const API_VERSION: &str = "mesh.finial.dev/v1alpha1";

/// Istio's group and versions, whose documents of the same kinds are read as they are.
const ISTIO: [&str; 2] = ["security.istio.io/v1", "security.istio.io/v1beta1"];

/// All policies of one file, each of them valid. An empty set is valid and denies everything.
#[derive(Debug, Clone, Default)]
pub struct PolicySet {
    policies: Vec<ValidPolicy>,
    peers: Vec<PeerAuthentication>,
    requests: Vec<RequestAuthentication>,
}

/// One document of a file.
enum Document {
    Policy(ValidPolicy),
    Peer(PeerAuthentication),
    Request(RequestAuthentication),
}

impl Document {
    fn name(&self) -> (&'static str, &str) {
        match self {
            Self::Policy(policy) => ("AuthorizationPolicy", &policy.name),
            Self::Peer(peer) => ("PeerAuthentication", &peer.name),
            Self::Request(request) => ("RequestAuthentication", &request.name),
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Policy,
    Peer,
    Request,
}

impl PolicySet {
    /// Reads every document of a file.
    ///
    /// # Errors
    /// Every problem of the file, in the order of its lines. One problem refuses the whole file.
    pub fn from_yaml(text: &str) -> Result<Self, PolicyErrors> {
        let mut reader = Reader::default();
        let documents = document::read(text).unwrap_or_else(|problem| {
            reader.problems.push(problem);
            Vec::new()
        });
        let mut set = Self::default();
        let mut seen: BTreeMap<(&'static str, String), Place> = BTreeMap::new();
        for node in &documents {
            let Some(document) = reader.document(node) else {
                continue;
            };
            let (kind, name) = document.name();
            if let Some(first) = seen.insert((kind, name.to_owned()), node.place) {
                let told = format!("the {kind} `{name}` is already on line {}", first.line);
                reader.problem(ProblemKind::DuplicateName, node.place, told);
            }
            match document {
                Document::Policy(policy) => set.policies.push(policy),
                Document::Peer(peer) => set.peers.push(peer),
                Document::Request(request) => set.requests.push(request),
            }
        }
        if reader.problems.is_empty() {
            return Ok(set);
        }
        let mut problems: Vec<Problem> = reader.problems;
        problems.sort_by_key(|p| (p.place().line, p.place().column));
        Err(PolicyErrors { problems })
    }

    /// The policies in the order of the file.
    #[must_use]
    pub fn policies(&self) -> &[ValidPolicy] {
        &self.policies
    }

    pub(crate) fn peers(&self) -> &[PeerAuthentication] {
        &self.peers
    }

    pub(crate) fn requests(&self) -> &[RequestAuthentication] {
        &self.requests
    }
}

/// What `metadata` says that matters.
pub(crate) struct Metadata {
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
    dry_run: bool,
}

impl Reader {
    fn document(&mut self, node: &Node) -> Option<Document> {
        let fields = self.fields(node, &["apiVersion", "kind", "metadata", "spec", "status"])?;
        let versions = [API_VERSION, ISTIO[0], ISTIO[1]];
        self.version(&fields, node.place, &versions);
        let kind = match fields.get("kind") {
            Some((_, kind)) => self.below("kind", |r| r.kind(kind)),
            None => self.missing(node.place, "kind"),
        };
        let metadata = match fields.get("metadata") {
            Some((_, metadata)) => self.below("metadata", |r| r.metadata(metadata)),
            None => self.missing(node.place, "metadata"),
        };
        let namespace = metadata.as_ref().and_then(|m| m.namespace.as_deref());
        // Of a document whose kind nobody knows the rest cannot be judged; it is refused for its kind alone.
        let spec = match (fields.get("spec"), kind) {
            (Some((_, spec)), Some(kind)) => self.below("spec", |r| match kind {
                Kind::Policy => r.spec(spec, namespace).map(Document::Policy),
                Kind::Peer => r.peer_authentication(spec, namespace).map(Document::Peer),
                Kind::Request => r
                    .request_authentication(spec, namespace)
                    .map(Document::Request),
            }),
            (Some(_), None) => None,
            (None, _) => self.missing(node.place, "spec"),
        };
        let (metadata, mut document) = (metadata?, spec?);
        let name = match &metadata.namespace {
            Some(namespace) => format!("{namespace}/{}", metadata.name),
            None => metadata.name,
        };
        match &mut document {
            Document::Policy(policy) => {
                (policy.name, policy.namespace) = (name, metadata.namespace);
                if metadata.dry_run {
                    policy.mode = Mode::Shadow;
                }
            }
            Document::Peer(peer) => (peer.name, peer.namespace) = (name, metadata.namespace),
            Document::Request(request) => {
                (request.name, request.namespace) = (name, metadata.namespace);
            }
        }
        Some(document)
    }

    fn kind(&mut self, node: &Node) -> Option<Kind> {
        let kind = match self.text(node)? {
            "AuthorizationPolicy" => Kind::Policy,
            "PeerAuthentication" => Kind::Peer,
            "RequestAuthentication" => Kind::Request,
            _ => {
                self.problem(
                    ProblemKind::WrongKind,
                    node.place,
                    "AuthorizationPolicy, PeerAuthentication and RequestAuthentication are read here".to_owned(),
                );
                return None;
            }
        };
        Some(kind)
    }

    fn version(&mut self, fields: &Fields<'_>, place: Place, known: &[&str]) {
        let Some((_, node)) = fields.get("apiVersion") else {
            self.missing::<()>(place, "apiVersion");
            return;
        };
        self.below("apiVersion", |r| {
            if r.text(node).is_some_and(|text| !known.contains(&text)) {
                let told = format!("one of {} is read here", known.join(", "));
                r.problem(ProblemKind::WrongKind, node.place, told);
            }
        });
    }

    fn metadata(&mut self, node: &Node) -> Option<Metadata> {
        let known = [
            "name",
            "namespace",
            "labels",
            "annotations",
            // What an API server adds to a document that was fetched from it.
            "creationTimestamp",
            "finalizers",
            "generation",
            "managedFields",
            "ownerReferences",
            "resourceVersion",
            "uid",
        ];
        let fields = self.fields(node, &known)?;
        let name = match fields.get("name") {
            Some((_, name)) => self.below("name", |r| r.dns_name(name)),
            None => self.missing(node.place, "name"),
        };
        let namespace = match fields.get("namespace") {
            Some((_, namespace)) => Some(self.below("namespace", |r| r.dns_name(namespace))?),
            None => None,
        };
        let dry_run = match fields.get("annotations") {
            Some((_, annotations)) => self.below("annotations", |r| r.dry_run(annotations))?,
            None => false,
        };
        Some(Metadata {
            name: name?,
            namespace,
            dry_run,
        })
    }

    /// Istio's annotation for a policy that is tried and not enforced.
    fn dry_run(&mut self, node: &Node) -> Option<bool> {
        let annotations = self.texts(node)?;
        match annotations
            .iter()
            .find(|(key, _)| key == "istio.io/dry-run")
        {
            None => Some(false),
            Some((_, value)) if value == "true" => Some(true),
            Some((_, value)) if value == "false" => Some(false),
            Some(_) => {
                self.problem(
                    ProblemKind::BadValue,
                    node.place,
                    "`istio.io/dry-run` is \"true\" or \"false\"".to_owned(),
                );
                None
            }
        }
    }

    fn spec(&mut self, node: &Node, namespace: Option<&str>) -> Option<ValidPolicy> {
        let known = [
            "selector",
            "targetRef",
            "targetRefs",
            "action",
            "mode",
            "rules",
        ];
        let fields = self.fields(node, &known)?;
        let attachment = self.attachment(node, &fields, namespace);
        let action = match fields.get("action") {
            None => Some(Action::Allow),
            Some((_, action)) => self.below("action", |r| {
                let words = [
                    ("ALLOW", Action::Allow),
                    ("DENY", Action::Deny),
                    ("AUDIT", Action::Audit),
                ];
                r.one_of(action, &words)
            }),
        };
        let mode = match fields.get("mode") {
            None => Some(Mode::Enforce),
            Some((_, mode)) => self.below("mode", |r| {
                // `Audit` is the older word; it is too near to the action AUDIT to be the only one.
                let words = [
                    ("Enforce", Mode::Enforce),
                    ("Shadow", Mode::Shadow),
                    ("Audit", Mode::Shadow),
                ];
                r.one_of(mode, &words)
            }),
        };
        let rules = match fields.get("rules") {
            Some((_, rules)) => self.below("rules", |r| {
                let mut number = 0;
                r.list(rules, |r, rule| {
                    number += 1;
                    r.rule(rule, number, namespace)
                })
            }),
            None => Vec::new(),
        };
        if matches!(action, Some(Action::Deny | Action::Audit)) && !fields.contains_key("rules") {
            self.problem(
                ProblemKind::MissingField,
                node.place,
                "this action without `rules` does nothing; write them".to_owned(),
            );
        }
        let mut names: BTreeMap<&str, usize> = BTreeMap::new();
        for (i, rule) in rules.iter().enumerate() {
            if let Some(first) = names.insert(&rule.name, i) {
                self.problem(
                    ProblemKind::DuplicateName,
                    node.place,
                    format!(
                        "rules[{first}] and rules[{i}] are both named `{}`",
                        rule.name
                    ),
                );
            }
        }
        Some(ValidPolicy {
            name: String::new(),
            namespace: None,
            attachment: attachment?,
            action: action?,
            mode: mode?,
            rules,
        })
    }

    pub(crate) fn attachment(
        &mut self,
        node: &Node,
        fields: &Fields<'_>,
        namespace: Option<&str>,
    ) -> Option<Attachment> {
        let written: Vec<_> = ["selector", "targetRef", "targetRefs"]
            .into_iter()
            .filter_map(|name| fields.get(name).map(|(_, node)| (name, *node)))
            .collect();
        match written[..] {
            [] => Some(Attachment::Everyone),
            [("selector", selector)] => self.below("selector", |r| r.selector(selector)),
            [("targetRef", target)] => {
                let target = self.below("targetRef", |r| r.target(target, namespace))?;
                Some(Attachment::Targets(vec![target]))
            }
            [(name, targets)] => {
                let targets = self.below(name, |r| r.list(targets, |r, t| r.target(t, namespace)));
                Some(Attachment::Targets(targets))
            }
            _ => {
                self.problem(
                    ProblemKind::BadValue,
                    node.place,
                    "`selector`, `targetRef` and `targetRefs` exclude each other".to_owned(),
                );
                None
            }
        }
    }

    fn selector(&mut self, node: &Node) -> Option<Attachment> {
        let fields = self.fields(node, &["matchLabels"])?;
        let labels = match fields.get("matchLabels") {
            Some((_, labels)) => self.below("matchLabels", |r| r.texts(labels))?,
            None => return self.missing(node.place, "matchLabels"),
        };
        if labels.is_empty() {
            self.problem(
                ProblemKind::Empty,
                node.place,
                "a selector without labels selects everything; leave it out if that is meant"
                    .to_owned(),
            );
            return None;
        }
        Some(Attachment::Labels(labels))
    }

    fn target(&mut self, node: &Node, namespace: Option<&str>) -> Option<Target> {
        let fields = self.fields(node, &["group", "kind", "name", "namespace"])?;
        let mut part = |name: &'static str| match fields.get(name) {
            Some((_, node)) => self.below(name, |r| r.text(node).map(str::to_owned)),
            None if name == "group" => Some(String::new()),
            None => self.missing(node.place, name),
        };
        let (group, kind, name) = (part("group")?, part("kind")?, part("name")?);
        if let Some((_, other)) = fields.get("namespace") {
            let other = self.below("namespace", |r| r.dns_name(other))?;
            if Some(other.as_str()) != namespace {
                self.problem(
                    ProblemKind::BadValue,
                    node.place,
                    "a policy speaks of its own namespace only".to_owned(),
                );
                return None;
            }
        }
        match (group.as_str(), kind.as_str()) {
            ("" | "core", "Service") => Some(Target::Service(name)),
            ("gateway.networking.k8s.io", "Gateway" | "GatewayClass")
            | ("networking.istio.io", "ServiceEntry") => Some(Target::Elsewhere),
            _ => {
                self.problem(
                    ProblemKind::BadValue,
                    node.place,
                    "a target is a Service, a Gateway, a GatewayClass or a ServiceEntry".to_owned(),
                );
                None
            }
        }
    }

    fn rule(&mut self, node: &Node, number: usize, namespace: Option<&str>) -> Option<Rule> {
        let fields = self.fields(node, &["name", "from", "to", "when", "ports"])?;
        let name = match fields.get("name") {
            Some((_, name)) => self.below("name", |r| r.dns_name(name))?,
            None => number.to_string(),
        };
        let from = match fields.get("from") {
            Some((_, from)) => self.below("from", |r| {
                r.list(from, |r, item| {
                    r.wrapped(item, "source", |r, source| r.source(source, namespace))
                })
            }),
            None => Vec::new(),
        };
        let to = match fields.get("to") {
            Some((_, to)) => self.below("to", |r| {
                r.list(to, |r, item| r.wrapped(item, "operation", Self::operation))
            }),
            None => Vec::new(),
        };
        let mut when = match fields.get("when") {
            Some((_, when)) => self.below("when", |r| {
                r.list(when, |r, item| r.condition(item, namespace))
                    .into_iter()
                    .flatten()
                    .collect()
            }),
            None => Vec::new(),
        };
        if let Some((_, ports)) = fields.get("ports") {
            let ports = self.below("ports", |r| {
                r.list(ports, |r, item| r.wrapped(item, "number", Self::port))
            });
            when.push(check("ports", false, Test::Port(ports)));
        }
        Some(Rule {
            name,
            from,
            to,
            when,
        })
    }

    fn source(&mut self, node: &Node, namespace: Option<&str>) -> Option<Vec<Check>> {
        let known = [
            "principals",
            "notPrincipals",
            "requestPrincipals",
            "notRequestPrincipals",
            "namespaces",
            "notNamespaces",
            "serviceAccounts",
            "notServiceAccounts",
            "trustDomains",
            "notTrustDomains",
            "ipBlocks",
            "notIpBlocks",
            "remoteIpBlocks",
            "notRemoteIpBlocks",
        ];
        let fields = self.fields(node, &known)?;
        self.not_empty(node)?;
        let account = |text: &str| ServiceAccount::parse(text, namespace);
        let mut checks = Checks {
            reader: self,
            fields: &fields,
            made: Vec::new(),
        };
        checks.both(
            ["principals", "notPrincipals"],
            Principal::parse,
            Test::Principal,
        );
        checks.both(
            ["requestPrincipals", "notRequestPrincipals"],
            Text::parse,
            Test::RequestPrincipal,
        );
        checks.both(
            ["namespaces", "notNamespaces"],
            Text::parse,
            Test::Namespace,
        );
        checks.both(
            ["serviceAccounts", "notServiceAccounts"],
            account,
            Test::ServiceAccount,
        );
        checks.both(
            ["trustDomains", "notTrustDomains"],
            pattern::parse_trust_domain,
            Test::TrustDomain,
        );
        checks.both(["ipBlocks", "notIpBlocks"], Cidr::parse, Test::PeerAddress);
        checks.both(
            ["remoteIpBlocks", "notRemoteIpBlocks"],
            Cidr::parse,
            Test::RemoteAddress,
        );
        Some(checks.made)
    }

    fn operation(&mut self, node: &Node) -> Option<Vec<Check>> {
        let known = [
            "hosts",
            "notHosts",
            "ports",
            "notPorts",
            "methods",
            "notMethods",
            "paths",
            "notPaths",
        ];
        let fields = self.fields(node, &known)?;
        self.not_empty(node)?;
        let mut made = Vec::new();
        for (name, negated) in [("ports", false), ("notPorts", true)] {
            let ports = self.ports(&fields, name);
            if !ports.is_empty() {
                made.push(check(name, negated, Test::Port(ports)));
            }
        }
        let mut checks = Checks {
            reader: self,
            fields: &fields,
            made,
        };
        checks.both(["methods", "notMethods"], Method::parse, Test::Method);
        checks.both(["hosts", "notHosts"], Host::parse, Test::Host);
        checks.both(["paths", "notPaths"], Path::parse, Test::Path);
        Some(checks.made)
    }

    /// One condition of `when`; with `values` and `notValues` it is two that hold together.
    fn condition(&mut self, node: &Node, namespace: Option<&str>) -> Option<Vec<Check>> {
        let fields = self.fields(node, &["key", "values", "notValues"])?;
        let key = match fields.get("key") {
            Some((_, key)) => self.below("key", |r| {
                r.value(key, |text| {
                    Key::parse(text).map(|key| (text.to_owned(), key))
                })
            }),
            None => self.missing(node.place, "key"),
        };
        if !fields.contains_key("values") && !fields.contains_key("notValues") {
            self.missing::<()>(node.place, "values");
        }
        let (field, key) = key?;
        let mut made = Vec::new();
        for (name, negated) in [("values", false), ("notValues", true)] {
            if fields.contains_key(name) {
                made.push(Check {
                    field: Cow::Owned(field.clone()),
                    negated,
                    test: self.key_values(&fields, name, &key, namespace),
                });
            }
        }
        Some(made)
    }

    fn key_values(
        &mut self,
        fields: &Fields<'_>,
        name: &'static str,
        key: &Key,
        namespace: Option<&str>,
    ) -> Test {
        let account = |text: &str| ServiceAccount::parse(text, namespace);
        match key {
            Key::Principal => Test::Principal(self.values(fields, name, Principal::parse)),
            Key::Namespace => Test::Namespace(self.values(fields, name, Text::parse)),
            Key::ServiceAccount => Test::ServiceAccount(self.values(fields, name, account)),
            Key::TrustDomain => {
                Test::TrustDomain(self.values(fields, name, pattern::parse_trust_domain))
            }
            Key::PeerAddress => Test::PeerAddress(self.values(fields, name, Cidr::parse)),
            Key::RemoteAddress => Test::RemoteAddress(self.values(fields, name, Cidr::parse)),
            Key::Address => Test::DestinationAddress(self.values(fields, name, Cidr::parse)),
            Key::Port => Test::Port(self.values(fields, name, pattern::parse_port)),
            Key::Sni => Test::Sni(self.values(fields, name, Text::parse)),
            Key::Header(header) => {
                Test::Header(header.clone(), self.values(fields, name, Text::parse))
            }
            Key::RequestPrincipal => Test::RequestPrincipal(self.values(fields, name, Text::parse)),
            Key::Audience => Test::Audience(self.values(fields, name, Text::parse)),
            Key::Presenter => Test::Presenter(self.values(fields, name, Text::parse)),
            Key::Claim(path) => Test::Claim(path.clone(), self.values(fields, name, Text::parse)),
        }
    }

    pub(crate) fn not_empty(&mut self, node: &Node) -> Option<()> {
        if matches!(&node.value, Value::Map(pairs) if pairs.is_empty()) {
            self.problem(
                ProblemKind::Empty,
                node.place,
                "an empty condition would match everything; say what is meant".to_owned(),
            );
            return None;
        }
        Some(())
    }
}

fn check(field: &'static str, negated: bool, test: Test) -> Check {
    Check {
        field: Cow::Borrowed(field),
        negated,
        test,
    }
}

/// Reads pairs of a field and its `not…` twin.
struct Checks<'r, 'n> {
    reader: &'r mut Reader,
    fields: &'r Fields<'n>,
    made: Vec<Check>,
}

impl Checks<'_, '_> {
    fn both<T>(
        &mut self,
        names: [&'static str; 2],
        parse: impl Fn(&str) -> Result<T, PatternError> + Copy,
        make: fn(Vec<T>) -> Test,
    ) {
        for (name, negated) in names.into_iter().zip([false, true]) {
            let values = self.reader.values(self.fields, name, parse);
            if !values.is_empty() {
                self.made.push(check(name, negated, make(values)));
            }
        }
    }
}

/// The key of a condition.
enum Key {
    Principal,
    Namespace,
    ServiceAccount,
    TrustDomain,
    PeerAddress,
    RemoteAddress,
    Address,
    Port,
    Sni,
    Header(Box<str>),
    RequestPrincipal,
    Audience,
    Presenter,
    Claim(Box<[Box<str>]>),
}

impl Key {
    fn parse(text: &str) -> Result<Self, PatternError> {
        let known = "source.ip, source.principal, source.namespace, source.serviceAccount, source.trustDomain, remote.ip, \
            destination.ip, destination.port, connection.sni, request.headers[…], request.auth.principal, \
            request.auth.audiences, request.auth.presenter, request.auth.claims[…]";
        Ok(match text {
            "source.principal" => Self::Principal,
            "source.namespace" => Self::Namespace,
            "source.serviceAccount" => Self::ServiceAccount,
            "source.trustDomain" => Self::TrustDomain,
            "source.ip" => Self::PeerAddress,
            "remote.ip" => Self::RemoteAddress,
            "destination.ip" => Self::Address,
            "destination.port" => Self::Port,
            "connection.sni" => Self::Sni,
            "request.auth.principal" => Self::RequestPrincipal,
            "request.auth.audiences" => Self::Audience,
            "request.auth.presenter" => Self::Presenter,
            _ => {
                if let Some(name) = text.strip_prefix("request.headers") {
                    return match &in_brackets(name).ok_or(PatternError::Key(known))?[..] {
                        [name] if is_token(name) => {
                            Ok(Self::Header(name.to_ascii_lowercase().into()))
                        }
                        _ => Err(PatternError::Key(
                            "a header is named as in request.headers[x-role]; method, path and host have fields of their own in `to`",
                        )),
                    };
                }
                let path = text
                    .strip_prefix("request.auth.claims")
                    .and_then(in_brackets)
                    .ok_or(PatternError::Key(known))?;
                Self::Claim(path.into_iter().map(Into::into).collect())
            }
        })
    }
}

/// The parts of `[a][b]`, at least one.
fn in_brackets(text: &str) -> Option<Vec<&str>> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    let parts: Vec<&str> = inner.split("][").collect();
    parts
        .iter()
        .all(|part| !part.is_empty() && !part.contains(['[', ']']))
        .then_some(parts)
}

/// The name of a header (RFC 9110 5.1).
pub(crate) fn is_token(name: &str) -> bool {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty() && name.bytes().all(token)
}

#[cfg(test)]
mod tests;
