//! Decides the shape of a YAML text: a tree whose every node knows its place. The parsing itself is serde-saphyr's.
//! Trusts nothing that can surprise: anchors, aliases, tags, merge keys, tabs and second documents are refused.

use serde_saphyr::granit_parser::{Event, Options, Parser, ScalarStyle, Span};

use super::problem::{Kind, Place, Problem};

/// Depth and number of nodes that a configuration can need; more is an attack or an accident.
const DEEPEST: usize = 64;
const MOST_NODES: usize = 50_000;

#[derive(Debug, Default)]
pub(super) struct Ids(usize);

impl Ids {
    pub(super) fn next(&mut self) -> usize {
        self.0 += 1;
        self.0
    }
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) id: usize,
    pub(super) value: Value,
    pub(super) at: Place,
    /// The place of the key that leads here.
    pub(super) label: Option<Place>,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Text and whether it was written without quotes.
    Scalar(String, bool),
    /// A key with nothing behind it, or an explicit null.
    Null,
    Seq(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) text: String,
    pub(super) at: Place,
}

impl Node {
    pub(super) fn empty_map(id: usize, at: Place) -> Self {
        Self {
            id,
            value: Value::Map(Vec::new()),
            at,
            label: None,
        }
    }

    pub(super) fn as_text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(text, _) => Some(text),
            _ => None,
        }
    }

    fn child(&self, name: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(entries) => entries
                .iter()
                .find(|(key, _)| key.text == name)
                .map(|(_, node)| node),
            Value::Seq(items) => items.get(name.parse::<usize>().ok()?),
            _ => None,
        }
    }

    /// The node at a dotted path.
    pub(super) fn find(&self, path: &str) -> Option<&Self> {
        path.split('.')
            .filter(|s| !s.is_empty())
            .try_fold(self, |node, name| node.child(name))
    }

    /// The node at a dotted path or, when somebody wrote only a part of it, the deepest one on the way.
    pub(super) fn nearest(&self, path: &str) -> Option<(&Self, bool)> {
        let mut node = self;
        for name in path.split('.').filter(|s| !s.is_empty()) {
            match node.child(name) {
                Some(child) => node = child,
                None => return (node.id != self.id).then_some((node, false)),
            }
        }
        Some((node, true))
    }

    /// Lays `over` on this tree: maps are joined, everything else is replaced.
    pub(super) fn merge(&mut self, over: Self) {
        match (&mut self.value, over.value) {
            (Value::Map(mine), Value::Map(theirs)) => {
                if mine.is_empty() {
                    self.at = over.at;
                }
                for (key, node) in theirs {
                    match mine.iter_mut().find(|(k, _)| k.text == key.text) {
                        Some((_, old)) => old.merge(node),
                        None => mine.push((key, node)),
                    }
                }
            }
            (_, value) => {
                *self = Self {
                    value,
                    id: over.id,
                    at: over.at,
                    label: over.label,
                }
            }
        }
    }
}

/// The place of a span in a file; a span over several lines is marked to the end of its first line by the renderer.
pub(super) fn file_place(text: usize, span: &Span) -> Place {
    let width = if span.end.line() == span.start.line() {
        span.end.col().saturating_sub(span.start.col())
    } else {
        1
    };
    Place::File {
        text,
        line: span.start.line(),
        column: span.start.col() + 1,
        width,
    }
}

/// Parses one text. `None` when it cannot be used at all; the problems say why.
pub(super) fn parse(
    text: &str,
    place: &dyn Fn(&Span) -> Place,
    ids: &mut Ids,
    problems: &mut Vec<Problem>,
) -> Option<Node> {
    let tabs = tabs(text, place, problems);
    let mut options = Options::default();
    options.emit_comments = false;
    options.disallow_directives = true;
    options.emit_unresolved_aliases = true;
    options.flow_nesting_limit = DEEPEST;
    options.block_nesting_limit = DEEPEST;
    let mut builder = Builder {
        place,
        ids,
        problems,
        open: Vec::new(),
        root: None,
        nodes: 0,
        documents: 0,
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for event in Parser::new_from_str_with_options(text, options) {
        match event {
            Ok((event, span)) => {
                if !builder.event(event, &span) {
                    return None;
                }
            }
            Err(error) => {
                // A tab in the indentation has been reported with its place already.
                if !tabs {
                    let span = Span::empty(*error.marker());
                    builder.problems.push(Problem::new(
                        Kind::Syntax,
                        format!("not YAML: {}", error.info()),
                        place(&span),
                    ));
                }
                return None;
            }
        }
    }
    let root = builder.root.take();
    if tabs {
        return None;
    }
    match root {
        Some(Node {
            value: Value::Null, ..
        })
        | None => None,
        Some(
            node @ Node {
                value: Value::Map(_),
                ..
            },
        ) => Some(node),
        Some(node) => {
            builder.problems.push(Problem::new(
                Kind::Invalid,
                "a configuration is a map of fields",
                node.at,
            ));
            None
        }
    }
}

/// Parses the value of a variable or flag; without a root check, as it may be any value.
pub(super) fn parse_value(
    text: &str,
    place: &Place,
    ids: &mut Ids,
    problems: &mut Vec<Problem>,
) -> Option<Node> {
    let mut options = Options::default();
    options.disallow_directives = true;
    options.emit_unresolved_aliases = true;
    options.flow_nesting_limit = DEEPEST;
    options.block_nesting_limit = DEEPEST;
    let here = |_: &Span| place.clone();
    let mut builder = Builder {
        place: &here,
        ids,
        problems,
        open: Vec::new(),
        root: None,
        nodes: 0,
        documents: 0,
    };
    for event in Parser::new_from_str_with_options(text, options) {
        match event {
            Ok((event, span)) => {
                if !builder.event(event, &span) {
                    return None;
                }
            }
            Err(error) => {
                builder.problems.push(Problem::new(
                    Kind::Syntax,
                    format!("not YAML: {}", error.info()),
                    place.clone(),
                ));
                return None;
            }
        }
    }
    builder.root.take()
}

/// Reports every line that is indented with a tab.
fn tabs(text: &str, place: &dyn Fn(&Span) -> Place, problems: &mut Vec<Problem>) -> bool {
    use serde_saphyr::granit_parser::Marker;
    let mut found = false;
    for (index, line) in text.lines().enumerate() {
        let indent = line.chars().take_while(|c| *c == ' ' || *c == '\t');
        let Some(column) = indent.clone().position(|c| c == '\t') else {
            continue;
        };
        let rest = line.trim_start_matches([' ', '\t']);
        if rest.is_empty() || rest.starts_with('#') {
            continue;
        }
        found = true;
        let (start, end) = (
            Marker::new(0, index + 1, column),
            Marker::new(0, index + 1, column + 1),
        );
        problems.push(
            Problem::new(
                Kind::Tab,
                "a tab in the indentation",
                place(&Span::new(start, end)),
            )
            .hint("use spaces"),
        );
    }
    found
}

struct Builder<'a> {
    place: &'a dyn Fn(&Span) -> Place,
    ids: &'a mut Ids,
    problems: &'a mut Vec<Problem>,
    open: Vec<Open>,
    root: Option<Node>,
    nodes: usize,
    documents: usize,
}

enum Open {
    Seq(Place, Vec<Node>),
    /// With the key that waits for its value, and whether it is a merge key.
    Map(Place, Vec<(Key, Node)>, Option<(Key, bool)>),
    /// A collection where a key should be: taken in so that the rest can still be read.
    Dropped,
}

impl Builder<'_> {
    /// False ends the reading.
    fn event(&mut self, event: Event<'_>, span: &Span) -> bool {
        let at = (self.place)(span);
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    let problem =
                        Problem::new(Kind::Documents, "a second document in one file", at);
                    self.problems
                        .push(problem.hint("give each document its own file"));
                    return false;
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_marks(anchor, tag.is_some(), &at);
                let plain = style == ScalarStyle::Plain;
                let null = plain && matches!(text.as_ref(), "~" | "null" | "Null" | "NULL" | "");
                let value = if null {
                    Value::Null
                } else {
                    Value::Scalar(text.into_owned(), plain)
                };
                return self.add(value, at);
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.refuse_marks(anchor, tag.is_some(), &at);
                return self.start(Open::Seq(at, Vec::new()));
            }
            Event::MappingStart(_, anchor, tag) => {
                self.refuse_marks(anchor, tag.is_some(), &at);
                return self.start(Open::Map(at, Vec::new(), None));
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::Seq(at, items)) => return self.add(Value::Seq(items), at),
                Some(Open::Map(at, entries, _)) => return self.add(Value::Map(entries), at),
                Some(Open::Dropped) | None => {}
            },
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                let problem = Problem::new(Kind::Alias, "an alias", at.clone());
                self.problems.push(problem.hint("write the value out"));
                return self.add(Value::Null, at);
            }
            _ => {}
        }
        true
    }

    fn refuse_marks(&mut self, anchor: usize, tagged: bool, at: &Place) {
        if anchor != 0 {
            let problem = Problem::new(Kind::Alias, "an anchor", at.clone());
            self.problems
                .push(problem.hint("write the value out where it is needed"));
        }
        if tagged {
            let problem = Problem::new(Kind::Alias, "a tag", at.clone());
            self.problems
                .push(problem.hint("remove the `!`, quote the value if it is text"));
        }
    }

    fn start(&mut self, open: Open) -> bool {
        let key_wanted = matches!(self.open.last(), Some(Open::Map(_, _, None)));
        if key_wanted {
            let (Open::Seq(at, _) | Open::Map(at, ..)) = &open else {
                return false;
            };
            self.problems.push(Problem::new(
                Kind::Syntax,
                "a list or map as a key",
                at.clone(),
            ));
            self.open.push(Open::Dropped);
            return false;
        }
        self.open.push(open);
        true
    }

    fn add(&mut self, value: Value, at: Place) -> bool {
        self.nodes += 1;
        if self.nodes > MOST_NODES {
            self.problems.push(Problem::new(
                Kind::Limit,
                format!("more than {MOST_NODES} values"),
                at,
            ));
            return false;
        }
        let mut node = Node {
            id: self.ids.next(),
            value,
            at: at.clone(),
            label: None,
        };
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::Seq(_, items)) => items.push(node),
            Some(Open::Map(_, entries, waiting @ None)) => {
                let Value::Scalar(text, plain) = node.value else {
                    self.problems
                        .push(Problem::new(Kind::Syntax, "an empty key", at));
                    return false;
                };
                if let Some((first, _)) = entries.iter().find(|(key, _)| key.text == text) {
                    let message = format!("duplicate key `{text}`");
                    let mut problem = Problem::new(Kind::Duplicate, message, at.clone());
                    problem.also(first.at.clone());
                    self.problems.push(problem);
                }
                let merge = plain && text == "<<";
                if merge {
                    let problem = Problem::new(Kind::Alias, "a merge key", at.clone());
                    self.problems.push(problem.hint("write the fields out"));
                }
                *waiting = Some((Key { text, at }, merge));
            }
            Some(Open::Map(_, entries, waiting)) => {
                if let Some((key, merge)) = waiting.take() {
                    node.label = Some(key.at.clone());
                    // The first one stays; the second has been reported.
                    if !merge && !entries.iter().any(|(k, _)| k.text == key.text) {
                        entries.push((key, node));
                    }
                }
            }
            Some(Open::Dropped) => {}
        }
        true
    }
}
