//! Decides how a configuration mistake is shown: code, message, place, the line with a caret, and what to do.
//! Trusts only the places that the parser gave; never prints a line that holds a secret.

use std::fmt;
use std::path::Path;

use crate::errors::{Coded, is_deceptive, untrusted_within};

/// The widest part of a line that is shown.
const WIDEST: usize = 120;

/// A text that was read, for its lines.
#[derive(Clone, Debug)]
pub(super) struct Text {
    pub(super) name: String,
    pub(super) content: String,
}

/// Where something stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// Lines and columns count from one, in characters; `width` is that of the part on this line.
    File {
        text: usize,
        line: usize,
        column: usize,
        width: usize,
    },
    Env(String),
    Flag(String),
}

/// The kinds of mistakes; each has one code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Unreadable,
    UnknownField,
    Syntax,
    Tab,
    Duplicate,
    Alias,
    Limit,
    Missing,
    Invalid,
    UnknownChoice,
    Ambiguous,
    NoUnit,
    Header,
    UnknownVariable,
    UnknownPath,
    Documents,
}

impl Kind {
    fn code(self) -> &'static str {
        match self {
            Self::Unreadable => "FNL0101",
            Self::UnknownField => "FNL0102",
            Self::Syntax => "FNL0103",
            Self::Tab => "FNL0104",
            Self::Duplicate => "FNL0105",
            Self::Alias => "FNL0106",
            Self::Limit => "FNL0107",
            Self::Missing => "FNL0108",
            Self::Invalid => "FNL0109",
            Self::UnknownChoice => "FNL0110",
            Self::Ambiguous => "FNL0111",
            Self::NoUnit => "FNL0112",
            Self::Header => "FNL0113",
            Self::UnknownVariable => "FNL0114",
            Self::UnknownPath => "FNL0115",
            Self::Documents => "FNL0118",
        }
    }
}

/// One mistake.
#[derive(Clone, Debug)]
pub struct Problem {
    pub(super) kind: Kind,
    code: &'static str,
    message: String,
    hint: Option<String>,
    places: Vec<Place>,
    file: Option<String>,
    pub(super) secret: bool,
}

impl Problem {
    pub(super) fn new(kind: Kind, message: impl Into<String>, at: Place) -> Self {
        Self {
            kind,
            code: kind.code(),
            message: message.into(),
            hint: None,
            places: vec![at],
            file: None,
            secret: false,
        }
    }

    pub(super) fn unreadable(path: &Path, error: &std::io::Error) -> Self {
        Self {
            places: Vec::new(),
            file: Some(path.display().to_string()),
            ..Self::new(
                Kind::Unreadable,
                format!("cannot read the configuration: {error}"),
                Place::Flag(String::new()),
            )
        }
    }

    pub(super) fn finding(
        code: &'static str,
        message: String,
        hint: Option<String>,
        places: Vec<Option<Place>>,
    ) -> Self {
        let places = places
            .into_iter()
            .flatten()
            .filter(|place| *place != Place::Flag(String::new()))
            .collect();
        Self {
            kind: Kind::Invalid,
            code,
            message,
            hint,
            places,
            file: None,
            secret: false,
        }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(super) fn also(&mut self, place: Place) {
        self.places.push(place);
    }

    pub(super) fn same_as(&self, other: &Self) -> bool {
        (self.code, &self.message, &self.places) == (other.code, &other.message, &other.places)
    }

    /// The code of this mistake, such as `FNL0102`.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// What is wrong, in one line.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do, when that is known.
    pub fn suggestion(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    fn sort_key(&self) -> (usize, usize, usize) {
        match self.places.first() {
            Some(Place::File {
                text, line, column, ..
            }) => (*text, *line, *column),
            Some(_) => (usize::MAX, 0, 0),
            None => (0, 0, 0),
        }
    }

    fn render(&self, texts: &[Text]) -> String {
        let message = untrusted_within(&self.message, 400);
        let hint = self
            .hint
            .as_deref()
            .map(|hint| untrusted_within(hint, 400))
            .unwrap_or_default();
        let mut out = format!("error[{}]: {message}\n", self.code);
        let also: Vec<_> = self
            .places
            .iter()
            .skip(1)
            .map(|place| place_name(place, texts, self.places.first()))
            .collect();
        let also = if also.is_empty() {
            String::new()
        } else {
            format!("      also: {}", also.join(", "))
        };
        match self.places.first() {
            Some(
                place @ Place::File {
                    text,
                    line,
                    column,
                    width,
                },
            ) => {
                out.push_str(&format!("  --> {}{also}\n", place_name(place, texts, None)));
                let content = texts.get(*text).map_or("", |t| t.content.as_str());
                let source = content
                    .lines()
                    .nth(line.saturating_sub(1))
                    .unwrap_or_default();
                let number = line.to_string();
                let margin = " ".repeat(number.len());
                if self.secret {
                    out.push_str(&format!(
                        " {margin} = the line is not shown because it holds a secret\n"
                    ));
                } else {
                    let (shown, caret_at) = window(source, column.saturating_sub(1));
                    let width =
                        (*width).clamp(1, shown.chars().count().saturating_sub(caret_at).max(1));
                    let pointer = format!("{}{} {hint}", " ".repeat(caret_at), "^".repeat(width));
                    out.push_str(&format!(
                        " {margin} |\n {number} | {shown}\n {margin} | {}\n",
                        pointer.trim_end()
                    ));
                    return out;
                }
            }
            Some(place) => {
                out.push_str(&format!("  --> {}{also}\n", place_name(place, texts, None)))
            }
            None => {
                if let Some(file) = &self.file {
                    out.push_str(&format!("  --> {}\n", untrusted_within(file, 400)));
                } else {
                    out.push_str("  --> default values\n");
                }
            }
        }
        if !hint.is_empty() {
            out.push_str(&format!("   = {hint}\n"));
        }
        out
    }
}

fn place_name(place: &Place, texts: &[Text], beside: Option<&Place>) -> String {
    match place {
        Place::File {
            text, line, column, ..
        } => {
            let same_file =
                matches!(beside, Some(Place::File { text: other, .. }) if other == text);
            if same_file {
                return format!("line {line}:{column}");
            }
            let name = texts.get(*text).map_or("", |t| t.name.as_str());
            format!("{}:{line}:{column}", untrusted_within(name, 400))
        }
        Place::Env(name) => format!("environment variable {}", untrusted_within(name, 200)),
        Place::Flag(flag) => format!("flag {}", untrusted_within(flag, 200)),
    }
}

/// The part of a line around a character, with every control character replaced by one that keeps the columns.
fn window(line: &str, at: usize) -> (String, usize) {
    let from = if at >= WIDEST - 20 {
        at - WIDEST / 2
    } else {
        0
    };
    let visible = |c: char| match c {
        '\t' => '→',
        c if is_deceptive(c) => '\u{fffd}',
        c => c,
    };
    let shown = line.chars().skip(from).take(WIDEST).map(visible).collect();
    (shown, at - from)
}

/// Every mistake of one load, in the order of the files.
#[derive(Clone)]
pub struct ConfigErrors {
    problems: Vec<Problem>,
    texts: Vec<Text>,
}

impl ConfigErrors {
    pub(super) fn new(mut problems: Vec<Problem>, texts: Vec<Text>) -> Self {
        problems.sort_by_key(Problem::sort_key);
        problems.dedup_by(|a, b| a.same_as(b));
        Self { problems, texts }
    }

    /// The mistakes.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The mistakes as JSON, for `-o json`.
    pub fn to_json(&self) -> serde_json::Value {
        let one = |p: &Problem| {
            let (line, column) = match p.places.first() {
                Some(Place::File { line, column, .. }) => (Some(line), Some(column)),
                _ => (None, None),
            };
            let place = p
                .places
                .first()
                .map(|place| place_name(place, &self.texts, None))
                .or_else(|| p.file.clone());
            serde_json::json!({ "code": p.code, "message": p.message, "where": place, "line": line, "column": column, "hint": p.hint })
        };
        self.problems.iter().map(one).collect()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            f.write_str(&problem.render(&self.texts))?;
        }
        Ok(())
    }
}

impl fmt::Debug for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `Text` must not reach a log by `{:?}`: the file may hold what is none of the log's business.
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for ConfigErrors {}

impl Coded for ConfigErrors {
    fn code(&self) -> &'static str {
        self.problems
            .first()
            .map_or(Kind::Unreadable.code(), |p| p.code)
    }
}
