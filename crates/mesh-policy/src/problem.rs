//! What is wrong in a policy file: each problem with its code, its place and, for a person, the line with a caret.
//! Trusts the reader for the places.
//! Never prints what could act on a terminal.

use std::fmt::{self, Write as _};

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
    pub(crate) hint: Option<String>,
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
    pub(crate) problems: Vec<Problem>,
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
