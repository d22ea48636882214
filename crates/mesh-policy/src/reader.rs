//! Walks the tree of a document and gathers every problem on the way; what the kinds have in common.
//! Trusts nothing that is written there.
//! Never stops at the first problem, and never widens: an unknown key or an empty list is a problem.

use std::collections::BTreeMap;

use crate::document::{Key, Node, Value};
use crate::pattern::PatternError;
use crate::problem::{Place, Problem, ProblemKind};

/// Walks a document and gathers problems; `path` is where it stands.
#[derive(Default)]
pub(crate) struct Reader {
    pub(crate) problems: Vec<Problem>,
    path: String,
}

pub(crate) type Fields<'n> = BTreeMap<&'static str, (&'n Key, &'n Node)>;

impl Reader {
    pub(crate) fn problem(&mut self, kind: ProblemKind, place: Place, message: String) {
        self.problems
            .push(Problem::new(kind, place, &self.path, message));
    }

    /// Reads below `step` and comes back.
    pub(crate) fn below<T>(&mut self, step: &str, read: impl FnOnce(&mut Self) -> T) -> T {
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
    pub(crate) fn fields<'n>(
        &mut self,
        node: &'n Node,
        known: &[&'static str],
    ) -> Option<Fields<'n>> {
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

    pub(crate) fn text<'n>(&mut self, node: &'n Node) -> Option<&'n str> {
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
    pub(crate) fn list<T>(
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
    pub(crate) fn values<T>(
        &mut self,
        fields: &Fields<'_>,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, PatternError> + Copy,
    ) -> Vec<T> {
        let Some((_, node)) = fields.get(name) else {
            return Vec::new();
        };
        self.below(name, |r| r.list(node, |r, item| r.value(item, parse)))
    }

    /// One value that is text, read by `parse`.
    pub(crate) fn value<T>(
        &mut self,
        node: &Node,
        parse: impl FnOnce(&str) -> Result<T, PatternError>,
    ) -> Option<T> {
        let text = self.text(node)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(error) => {
                let shown: String = text
                    .chars()
                    .take(128)
                    .flat_map(char::escape_debug)
                    .collect();
                let mut place = node.place;
                place.width = text.chars().count();
                self.problem(ProblemKind::BadValue, place, format!("`{shown}`: {error}"));
                None
            }
        }
    }

    pub(crate) fn ports(&mut self, fields: &Fields<'_>, name: &'static str) -> Vec<u16> {
        let Some((_, node)) = fields.get(name) else {
            return Vec::new();
        };
        self.below(name, |r| r.list(node, Self::port))
    }

    /// A port, as a number or as text.
    pub(crate) fn port(&mut self, node: &Node) -> Option<u16> {
        let number = match &node.value {
            Value::Integer(n) => u16::try_from(*n).ok(),
            Value::Text(text) => crate::pattern::parse_port(text).ok(),
            _ => None,
        };
        if let Some(port @ 1..) = number {
            return Some(port);
        }
        self.problem(
            ProblemKind::BadValue,
            node.place,
            PatternError::Port.to_string(),
        );
        None
    }

    /// A whole map whose keys are not ours but whose values are text: labels and annotations.
    pub(crate) fn texts(&mut self, node: &Node) -> Option<Vec<(String, String)>> {
        let Value::Map(pairs) = &node.value else {
            self.problem(
                ProblemKind::WrongType,
                node.place,
                format!("a map is wanted here, not {}", node.value.kind()),
            );
            return None;
        };
        let mut texts = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            if let Some(text) = self.text(value) {
                texts.push((key.name.clone(), text.to_owned()));
            }
        }
        (texts.len() == pairs.len()).then_some(texts)
    }

    /// One of a few words.
    pub(crate) fn one_of<T: Copy>(&mut self, node: &Node, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(node)?;
        if let Some((_, meant)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*meant);
        }
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        self.problem(
            ProblemKind::BadValue,
            node.place,
            format!("one of {} is wanted here", known.join(", ")),
        );
        None
    }

    pub(crate) fn boolean(&mut self, node: &Node) -> Option<bool> {
        if let Value::Bool(truth) = node.value {
            return Some(truth);
        }
        self.problem(
            ProblemKind::WrongType,
            node.place,
            format!("true or false is wanted here, not {}", node.value.kind()),
        );
        None
    }

    pub(crate) fn missing<T>(&mut self, place: Place, field: &str) -> Option<T> {
        self.problem(
            ProblemKind::MissingField,
            place,
            format!("the field `{field}` is missing"),
        );
        None
    }

    /// A name as Kubernetes has it, so that it can stand in a log line and in a metric as it is.
    pub(crate) fn dns_name(&mut self, node: &Node) -> Option<String> {
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

    /// `source:` inside an item of `from`, `operation:` inside an item of `to`.
    pub(crate) fn wrapped<T>(
        &mut self,
        node: &Node,
        name: &'static str,
        read: impl FnOnce(&mut Self, &Node) -> Option<T>,
    ) -> Option<T> {
        let fields = self.fields(node, &[name])?;
        match fields.get(name) {
            Some((_, inner)) => self.below(name, |r| read(r, inner)),
            None => self.missing(node.place, name),
        }
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
