//! From the tree of a document to a `PolicySet`, or to all of its problems with path, line and column.
//! Trusts nothing that is written there.
//! Never widens: an unknown key, an empty list or a bad value refuses the whole set.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use mesh_identity::TrustDomain;

use crate::document::{self, Key, Node, Value};
use crate::pattern::{self, Host, Method, Path, PatternError, Principal};

/// The group and version that this page reads.
pub const API_VERSION: &str = "mesh.finial.dev/v1alpha1";

/// All policies of one file, each of them valid. An empty set is valid and denies everything.
#[derive(Debug, Clone, Default)]
pub struct PolicySet {
    policies: Vec<ValidPolicy>,
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
        let mut policies = Vec::new();
        let mut seen: BTreeMap<String, Place> = BTreeMap::new();
        for node in &documents {
            let Some(policy) = reader.policy(node) else {
                continue;
            };
            if let Some(first) = seen.insert(policy.name.clone(), node.place) {
                reader.problem(
                    ProblemKind::DuplicateName,
                    node.place,
                    format!(
                        "the policy `{}` is already on line {}",
                        policy.name, first.line
                    ),
                );
            }
            policies.push(policy);
        }
        if reader.problems.is_empty() {
            Ok(Self { policies })
        } else {
            reader
                .problems
                .sort_by_key(|p| (p.place.line, p.place.column));
            Err(PolicyErrors {
                problems: reader.problems,
            })
        }
    }

    /// The policies in the order of the file.
    #[must_use]
    pub fn policies(&self) -> &[ValidPolicy] {
        &self.policies
    }
}

/// One policy that passed every check.
#[derive(Debug, Clone)]
pub struct ValidPolicy {
    pub(crate) name: String,
    pub(crate) action: Action,
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

    /// The names of its rules.
    pub fn rule_names(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().map(|rule| rule.name.as_str())
    }
}

/// What a match does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A match allows, unless a DENY policy matches too.
    Allow,
    /// A match denies, whatever else matches.
    Deny,
}

#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) name: String,
    /// Empty: any source.
    pub(crate) from: Vec<Source>,
    /// Empty: any operation.
    pub(crate) to: Vec<Operation>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Source {
    pub(crate) principals: Vec<Principal>,
    pub(crate) not_principals: Vec<Principal>,
    pub(crate) trust_domains: Vec<TrustDomain>,
    pub(crate) not_trust_domains: Vec<TrustDomain>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Operation {
    pub(crate) ports: Vec<u16>,
    pub(crate) not_ports: Vec<u16>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) not_hosts: Vec<Host>,
    pub(crate) methods: Vec<Method>,
    pub(crate) not_methods: Vec<Method>,
    pub(crate) paths: Vec<Path>,
    pub(crate) not_paths: Vec<Path>,
}

impl Operation {
    pub(crate) fn has_http_fields(&self) -> bool {
        !(self.hosts.is_empty()
            && self.not_hosts.is_empty()
            && self.methods.is_empty()
            && self.not_methods.is_empty()
            && self.paths.is_empty()
            && self.not_paths.is_empty())
    }
}

/// Line and column in the file, both from 1; 0 when they are not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
    /// How many characters to underline.
    pub width: usize,
}

impl Place {
    pub(crate) const UNKNOWN: Self = Self {
        line: 0,
        column: 0,
        width: 0,
    };
}

impl From<serde_saphyr::Location> for Place {
    fn from(location: serde_saphyr::Location) -> Self {
        let number = |n: u64| usize::try_from(n).unwrap_or(0);
        Self {
            line: number(location.line()),
            column: number(location.column()),
            width: 1,
        }
    }
}

/// One thing that is wrong in a policy file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    kind: ProblemKind,
    place: Place,
    path: String,
    message: String,
    hint: Option<String>,
}

impl Problem {
    pub(crate) fn new(kind: ProblemKind, place: Place, path: &str, message: String) -> Self {
        Self {
            kind,
            place,
            path: path.to_owned(),
            message,
            hint: None,
        }
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.kind.code()
    }

    /// Where in the file.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place
    }

    /// Where in the document, such as `spec.rules[2].from[0]`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What is wrong.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place.line > 0 {
            write!(
                f,
                "line {}, column {}: ",
                self.place.line, self.place.column
            )?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        write!(f, " [{}]", self.code())
    }
}

/// The kinds of problem and their codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProblemKind {
    NotYaml,
    UnknownField,
    WrongType,
    MissingField,
    WrongKind,
    BadValue,
    Empty,
    DuplicateName,
    TooLarge,
}

impl ProblemKind {
    fn code(self) -> &'static str {
        match self {
            Self::NotYaml => "FNL0501",
            Self::UnknownField => "FNL0502",
            Self::WrongType => "FNL0503",
            Self::MissingField => "FNL0504",
            Self::WrongKind => "FNL0505",
            Self::BadValue => "FNL0506",
            Self::Empty => "FNL0507",
            Self::DuplicateName => "FNL0508",
            Self::TooLarge => "FNL0509",
        }
    }
}

/// All problems of a file; never empty.
#[derive(Debug, Clone, thiserror::Error)]
pub struct PolicyErrors {
    problems: Vec<Problem>,
}

impl PolicyErrors {
    /// The problems, in the order of their lines.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The report for a person: each problem with its file, line, column and a caret under the place.
    #[must_use]
    pub fn render(&self, file: &str, text: &str) -> String {
        let mut out = String::new();
        for problem in &self.problems {
            render_problem(&mut out, problem, file, text);
        }
        out
    }
}

impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

fn render_problem(out: &mut String, problem: &Problem, file: &str, text: &str) {
    let place = problem.place;
    let message = problem.message.lines().next().unwrap_or_default();
    let mut line = format!("error[{}]: {message}\n", problem.code());
    if place.line == 0 {
        let _infallible = writeln!(line, "  --> {file}");
    } else {
        let source: String = text
            .lines()
            .nth(place.line - 1)
            .unwrap_or_default()
            .replace('\t', " ");
        let number = place.line.to_string();
        let pad = " ".repeat(number.len());
        let indent = " ".repeat(place.column.saturating_sub(1));
        let carets = "^".repeat(place.width.max(1));
        let hint = problem
            .hint
            .as_deref()
            .map(|h| format!(" {h}"))
            .unwrap_or_default();
        let _infallible = writeln!(line, "  --> {file}:{}:{}", place.line, place.column);
        let _infallible = writeln!(
            line,
            " {pad} |\n {number} | {source}\n {pad} | {indent}{carets}{hint}"
        );
    }
    if !problem.path.is_empty() {
        let _infallible = writeln!(line, "   = at {}", problem.path);
    }
    out.extend(line.chars().map(visible));
}

/// What the file says is shown, but never acts on the terminal and never reorders what is read.
fn visible(c: char) -> char {
    match c {
        '\n' => c,
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

/// Walks a document and gathers problems; `path` is where it stands.
#[derive(Default)]
struct Reader {
    problems: Vec<Problem>,
    path: String,
}

type Fields<'n> = BTreeMap<&'static str, (&'n Key, &'n Node)>;

impl Reader {
    fn problem(&mut self, kind: ProblemKind, place: Place, message: String) {
        self.problems
            .push(Problem::new(kind, place, &self.path, message));
    }

    /// Reads below `step` and comes back.
    fn below<T>(&mut self, step: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        if !self.path.is_empty() && !step.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(step);
        let read = read(self);
        self.path.truncate(length);
        read
    }

    /// The known fields of a map. Unknown ones are problems, and so is anything that is no map.
    fn fields<'n>(&mut self, node: &'n Node, known: &[&'static str]) -> Option<Fields<'n>> {
        let Value::Map(pairs) = &node.value else {
            self.problem(
                ProblemKind::WrongType,
                node.place,
                format!("a map is wanted here, not {}", node.value.kind()),
            );
            return None;
        };
        let mut fields = Fields::new();
        for (key, value) in pairs {
            if let Some(name) = known.iter().find(|name| **name == key.name) {
                fields.insert(name, (key, value));
                continue;
            }
            let shown: String = key
                .name
                .chars()
                .take(64)
                .flat_map(char::escape_default)
                .collect();
            let mut place = key.place;
            place.width = key.name.chars().count();
            let mut problem = Problem::new(
                ProblemKind::UnknownField,
                place,
                &self.path,
                format!("unknown field `{shown}`"),
            );
            problem.hint = Some(match closest(&key.name, known) {
                Some(name) => format!("did you mean `{name}`?"),
                None => format!("known here: {}", known.join(", ")),
            });
            self.problems.push(problem);
        }
        Some(fields)
    }

    fn text<'n>(&mut self, node: &'n Node) -> Option<&'n str> {
        let Value::Text(text) = &node.value else {
            self.problem(
                ProblemKind::WrongType,
                node.place,
                format!(
                    "text is wanted here, not {}; put it in quotes if it is meant as text",
                    node.value.kind()
                ),
            );
            return None;
        };
        Some(text)
    }

    /// A list with at least one item, each read by `read`.
    fn list<T>(
        &mut self,
        node: &Node,
        mut read: impl FnMut(&mut Self, &Node) -> Option<T>,
    ) -> Vec<T> {
        let Value::List(items) = &node.value else {
            self.problem(
                ProblemKind::WrongType,
                node.place,
                format!("a list is wanted here, not {}", node.value.kind()),
            );
            return Vec::new();
        };
        if items.is_empty() {
            self.problem(
                ProblemKind::Empty,
                node.place,
                "an empty list could be read as `any` or as `none`; leave the field out, or say what is meant".to_owned(),
            );
        }
        let mut read_items = Vec::with_capacity(items.len());
        for (i, item) in items.iter().enumerate() {
            if let Some(value) = self.below(&format!("[{i}]"), |r| read(r, item)) {
                read_items.push(value);
            }
        }
        read_items
    }

    /// The list in field `name`, or an empty one when the field is absent.
    fn values<T>(
        &mut self,
        fields: &Fields<'_>,
        name: &'static str,
        parse: fn(&str) -> Result<T, PatternError>,
    ) -> Vec<T> {
        let Some((_, node)) = fields.get(name) else {
            return Vec::new();
        };
        self.below(name, |r| {
            r.list(node, |r, item| {
                let text = r.text(item)?;
                match parse(text) {
                    Ok(value) => Some(value),
                    Err(error) => {
                        let shown: String = text
                            .chars()
                            .take(128)
                            .flat_map(char::escape_debug)
                            .collect();
                        let mut place = item.place;
                        place.width = text.chars().count();
                        r.problem(ProblemKind::BadValue, place, format!("`{shown}`: {error}"));
                        None
                    }
                }
            })
        })
    }

    fn ports(&mut self, fields: &Fields<'_>, name: &'static str) -> Vec<u16> {
        let Some((_, node)) = fields.get(name) else {
            return Vec::new();
        };
        self.below(name, |r| {
            r.list(node, |r, item| {
                let number = match &item.value {
                    Value::Integer(n) => u16::try_from(*n).ok(),
                    Value::Text(text) if text.len() <= 5 && !text.starts_with(['0', '+']) => {
                        text.parse().ok()
                    }
                    _ => None,
                };
                if let Some(port @ 1..) = number {
                    return Some(port);
                }
                r.problem(
                    ProblemKind::BadValue,
                    item.place,
                    PatternError::Port.to_string(),
                );
                None
            })
        })
    }

    fn policy(&mut self, node: &Node) -> Option<ValidPolicy> {
        let fields = self.fields(node, &["apiVersion", "kind", "metadata", "spec"])?;
        self.constant(&fields, node.place, "apiVersion", API_VERSION);
        self.constant(&fields, node.place, "kind", "AuthorizationPolicy");
        let name = match fields.get("metadata") {
            Some((_, metadata)) => self.below("metadata", |r| r.metadata(metadata)),
            None => self.missing(node.place, "metadata"),
        };
        let spec = match fields.get("spec") {
            Some((_, spec)) => self.below("spec", |r| r.spec(spec)),
            None => self.missing(node.place, "spec"),
        };
        let (name, (action, rules)) = (name?, spec?);
        Some(ValidPolicy {
            name,
            action,
            rules,
        })
    }

    fn missing<T>(&mut self, place: Place, field: &str) -> Option<T> {
        self.problem(
            ProblemKind::MissingField,
            place,
            format!("the field `{field}` is missing"),
        );
        None
    }

    fn constant(&mut self, fields: &Fields<'_>, place: Place, name: &'static str, wanted: &str) {
        let Some((_, node)) = fields.get(name) else {
            self.missing::<()>(place, name);
            return;
        };
        self.below(name, |r| {
            if r.text(node).is_some_and(|text| text != wanted) {
                r.problem(
                    ProblemKind::WrongKind,
                    node.place,
                    format!("`{wanted}` is the only value that is read here"),
                );
            }
        });
    }

    fn metadata(&mut self, node: &Node) -> Option<String> {
        let fields = self.fields(node, &["name", "namespace", "labels", "annotations"])?;
        let name = match fields.get("name") {
            Some((_, name)) => self.below("name", |r| r.dns_name(name)),
            None => self.missing(node.place, "name"),
        };
        let namespace = match fields.get("namespace") {
            Some((_, namespace)) => Some(self.below("namespace", |r| r.dns_name(namespace))?),
            None => None,
        };
        let name = name?;
        Some(match namespace {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name,
        })
    }

    /// A name as Kubernetes has it, so that it can stand in a log line and in a metric as it is.
    fn dns_name(&mut self, node: &Node) -> Option<String> {
        let text = self.text(node)?;
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let inner = |b: u8| plain(b) || b == b'-' || b == b'.';
        let ends =
            text.bytes().next().is_some_and(plain) && text.bytes().next_back().is_some_and(plain);
        if text.len() <= 253 && ends && text.bytes().all(inner) {
            return Some(text.to_owned());
        }
        self.problem(
            ProblemKind::BadValue,
            node.place,
            "a name has 1 to 253 small letters, digits, `-` and `.`, and begins and ends with a letter or digit".to_owned(),
        );
        None
    }

    fn spec(&mut self, node: &Node) -> Option<(Action, Vec<Rule>)> {
        let fields = self.fields(node, &["action", "rules"])?;
        let action = match fields.get("action") {
            None => Some(Action::Allow),
            Some((_, action)) => self.below("action", |r| match r.text(action)? {
                "ALLOW" => Some(Action::Allow),
                "DENY" => Some(Action::Deny),
                _ => {
                    r.problem(
                        ProblemKind::BadValue,
                        action.place,
                        "an action is ALLOW or DENY".to_owned(),
                    );
                    None
                }
            }),
        };
        let rules = match fields.get("rules") {
            Some((_, rules)) => self.below("rules", |r| {
                let mut number = 0;
                r.list(rules, |r, rule| {
                    number += 1;
                    r.rule(rule, number)
                })
            }),
            None => Vec::new(),
        };
        if action == Some(Action::Deny) && !fields.contains_key("rules") {
            self.problem(
                ProblemKind::MissingField,
                node.place,
                "a DENY policy without `rules` denies nothing; write them".to_owned(),
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
        Some((action?, rules))
    }

    fn rule(&mut self, node: &Node, number: usize) -> Option<Rule> {
        let fields = self.fields(node, &["name", "from", "to"])?;
        let name = match fields.get("name") {
            Some((_, name)) => self.below("name", |r| r.dns_name(name))?,
            None => number.to_string(),
        };
        if !fields.contains_key("from") && !fields.contains_key("to") {
            self.problem(
                ProblemKind::Empty,
                node.place,
                "a rule without `from` and `to` matches everything; say so: from: [{source: {principals: [\"*\"]}}]".to_owned(),
            );
            return None;
        }
        let from = match fields.get("from") {
            Some((_, from)) => self.below("from", |r| {
                r.list(from, |r, item| r.wrapped(item, "source", Self::source))
            }),
            None => Vec::new(),
        };
        let to = match fields.get("to") {
            Some((_, to)) => self.below("to", |r| {
                r.list(to, |r, item| r.wrapped(item, "operation", Self::operation))
            }),
            None => Vec::new(),
        };
        Some(Rule { name, from, to })
    }

    /// `source:` inside an item of `from`, `operation:` inside an item of `to`.
    fn wrapped<T>(
        &mut self,
        node: &Node,
        name: &'static str,
        read: fn(&mut Self, &Node) -> Option<T>,
    ) -> Option<T> {
        let fields = self.fields(node, &[name])?;
        match fields.get(name) {
            Some((_, inner)) => self.below(name, |r| read(r, inner)),
            None => self.missing(node.place, name),
        }
    }

    fn source(&mut self, node: &Node) -> Option<Source> {
        let fields = self.fields(
            node,
            &[
                "principals",
                "notPrincipals",
                "trustDomains",
                "notTrustDomains",
            ],
        )?;
        self.not_empty(node)?;
        Some(Source {
            principals: self.values(&fields, "principals", Principal::parse),
            not_principals: self.values(&fields, "notPrincipals", Principal::parse),
            trust_domains: self.values(&fields, "trustDomains", pattern::parse_trust_domain),
            not_trust_domains: self.values(&fields, "notTrustDomains", pattern::parse_trust_domain),
        })
    }

    fn operation(&mut self, node: &Node) -> Option<Operation> {
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
        Some(Operation {
            ports: self.ports(&fields, "ports"),
            not_ports: self.ports(&fields, "notPorts"),
            hosts: self.values(&fields, "hosts", Host::parse),
            not_hosts: self.values(&fields, "notHosts", Host::parse),
            methods: self.values(&fields, "methods", Method::parse),
            not_methods: self.values(&fields, "notMethods", Method::parse),
            paths: self.values(&fields, "paths", Path::parse),
            not_paths: self.values(&fields, "notPaths", Path::parse),
        })
    }

    fn not_empty(&mut self, node: &Node) -> Option<()> {
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

/// The known name nearest to a mistyped one, if it is near enough to be meant.
fn closest(typed: &str, known: &[&'static str]) -> Option<&'static str> {
    if typed.len() > 64 {
        return None;
    }
    known
        .iter()
        .map(|name| (distance(typed, name), *name))
        .filter(|(d, name)| *d <= 1 + name.len() / 4)
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein distance, without regard to case, `_` and `-`.
fn distance(a: &str, b: &str) -> usize {
    let plain = |s: &str| {
        s.chars()
            .filter(|c| !matches!(c, '_' | '-'))
            .map(|c| c.to_ascii_lowercase())
            .collect::<Vec<_>>()
    };
    let (a, b) = (plain(a), plain(b));
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != y))
                .min(row[j] + 1)
                .min(row[j + 1] + 1);
            diagonal = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
