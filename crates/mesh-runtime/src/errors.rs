//! Decides how errors are shown: one level per `Display`, the whole chain only here, and the form of ux B.4 for people.
//! Trusts that each error type keeps its cause as `source()`; never prints a value that a `Secret` holds.
//!
//! ```
//! use mesh_runtime::errors::{ErrorChain, Report};
//! let cause = std::io::Error::other("disk full");
//! assert_eq!(ErrorChain(&cause).to_string(), "disk full");
//! let shown = Report::new("FNL0201", "audit log cannot be opened").note("the disk is full").render();
//! assert!(shown.starts_with("error[FNL0201]: audit log cannot be opened\n"));
//! ```

use std::error::Error;
use std::fmt;

/// An error that has one stable code, listed in `docs/errors/`.
pub trait Coded {
    /// The code, such as `FNL0102`.
    fn code(&self) -> &'static str;
}

/// Who has to act when something failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blame {
    /// The one who asked: repeating the same request will fail again.
    Caller,
    /// This program: a defect or an exhausted resource of ours.
    Us,
    /// Something we depend on: a store, an API server, the network.
    Dependency,
}

impl Blame {
    /// The word for logs and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Us => "us",
            Self::Dependency => "dependency",
        }
    }
}

/// Shows an error with all its causes, `outer: middle: root`.
/// A cause whose text the level above already ends with is not said twice.
pub struct ErrorChain<'a>(pub &'a (dyn Error + 'a));

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            if !said.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            said = text;
            next = cause.source();
        }
        Ok(())
    }
}

impl fmt::Debug for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One error as people see it on stderr (ux B.4): code, what, where, notes, fix, and where to read more.
#[derive(Clone, Debug)]
pub struct Report {
    code: &'static str,
    what: String,
    lines: Vec<String>,
    notes: Vec<String>,
    fix: Option<String>,
}

impl Report {
    /// `error[code]: what`.
    pub fn new(code: &'static str, what: impl Into<String>) -> Self {
        Self {
            code,
            what: what.into(),
            lines: Vec::new(),
            notes: Vec::new(),
            fix: None,
        }
    }

    /// From an error with a code: its first line is the message, its causes become notes.
    pub fn of<E: Error + Coded>(error: &E) -> Self {
        let mut report = Self::new(error.code(), error.to_string());
        let mut next = error.source();
        while let Some(cause) = next {
            report.notes.push(cause.to_string());
            next = cause.source();
        }
        report
    }

    /// A line of detail, shown as it is.
    #[must_use]
    pub fn line(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    /// `= note`.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// `= fix: command`.
    #[must_use]
    pub fn fix(mut self, command: impl Into<String>) -> Self {
        self.fix = Some(command.into());
        self
    }

    /// The whole text, with a line feed at its end.
    pub fn render(&self) -> String {
        let mut text = format!("error[{}]: {}\n", self.code, self.what);
        for line in &self.lines {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        for note in &self.notes {
            text.push_str(&format!("  = {note}\n"));
        }
        if let Some(fix) = &self.fix {
            text.push_str(&format!("  = fix:  {fix}\n"));
        }
        text.push_str(&format!("  = more: docs/errors/{}.md\n", self.code));
        text
    }

    /// The same as JSON, for `-o json` (ux B.3).
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "code": self.code,
            "message": self.what,
            "cause": self.notes.join(": "),
            "hint": self.lines.join("\n"),
            "next": self.fix,
        })
    }
}

/// The longest piece of a stranger's text that is shown or recorded, in characters.
pub const UNTRUSTED_LIMIT: usize = 256;

/// Makes a stranger's text safe to show and to record: at most [`UNTRUSTED_LIMIT`] characters, and every control,
/// line-separating, invisible or direction-changing character written as `\u{…}`, so that one record stays one line
/// and what is read is what was sent.
pub fn untrusted(text: &str) -> String {
    untrusted_within(text, UNTRUSTED_LIMIT)
}

/// As [`untrusted`], with another limit.
pub fn untrusted_within(text: &str, limit: usize) -> String {
    let mut safe = String::with_capacity(text.len().min(limit * 4));
    for (count, c) in text.chars().enumerate() {
        if count == limit {
            safe.push('…');
            break;
        }
        match c {
            '\\' => safe.push_str("\\\\"),
            c if is_deceptive(c) => safe.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
            c => safe.push(c),
        }
    }
    safe
}

/// As [`untrusted`], for bytes that may not be UTF-8; each bad sequence is shown as U+FFFD.
pub fn untrusted_bytes(bytes: &[u8]) -> String {
    // Four bytes per character is UTF-8's most; what is beyond the limit is not even decoded.
    let end = bytes.len().min(UNTRUSTED_LIMIT * 4 + 4);
    untrusted(&String::from_utf8_lossy(&bytes[..end]))
}

/// Whether a character does not show, breaks the line, or changes how the text around it is read.
pub(crate) fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the store did not answer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn the_chain_says_each_level_once() {
        let error = Outer(std::io::Error::other("connection reset"));
        assert_eq!(
            ErrorChain(&error).to_string(),
            "the store did not answer: connection reset"
        );
    }

    #[test]
    fn x_06_a_strangers_text_stays_on_one_line_and_is_capped() {
        assert_eq!(
            untrusted("a\r\nb\u{1b}[31m\u{202e}c"),
            "a\\u{d}\\u{a}b\\u{1b}[31m\\u{202e}c"
        );
        assert_eq!(
            untrusted(&"x".repeat(10_000)).chars().count(),
            UNTRUSTED_LIMIT + 1
        );
        assert_eq!(untrusted("\\u{a}"), "\\\\u{a}");
        assert_eq!(untrusted_bytes(b"\xffok"), "\u{fffd}ok");
    }

    #[test]
    fn a_report_has_code_message_notes_fix_and_page() {
        let text = Report::new("FNL9999", "it broke")
            .line("  where")
            .note("why")
            .fix("do this")
            .render();
        assert_eq!(
            text,
            "error[FNL9999]: it broke\n  where\n  = why\n  = fix:  do this\n  = more: docs/errors/FNL9999.md\n"
        );
    }
}
