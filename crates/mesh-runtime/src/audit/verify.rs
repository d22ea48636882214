//! Decides whether a log is whole: every record in canonical form, numbered without gaps, chained to the one before.
//! Trusts only the files; never needs the program, the network or a key, and never calls a torn last line tampering.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use ring::digest;
use serde_json::Value;

use super::canonical::canonical;
use super::checkpoint::BadCheckpoint;
use super::seals::{Comparison, Sealed, Seals};
use crate::errors::Coded;

/// The longest line that is read; ours are far below.
pub(super) const LONGEST_LINE: u64 = 1024 * 1024;

/// The end of a chain: what the next record must continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The number of the last record; 0 before the first.
    pub seq: u64,
    /// The hash of its line, in lower-case hex.
    pub hash: String,
}

impl Head {
    /// Before the first record.
    pub fn genesis() -> Self {
        Self {
            seq: 0,
            hash: "0".repeat(64),
        }
    }

    pub(super) fn after(seq: u64, line: &[u8]) -> Self {
        Self {
            seq,
            hash: hash(line),
        }
    }
}

pub(super) fn hash(line: &[u8]) -> String {
    digest::digest(&digest::SHA256, line)
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Where the first of the files begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// At the very first record of the log.
    #[default]
    Genesis,
    /// After a record that is known from elsewhere.
    After(Head),
    /// Wherever it does: older files were moved away. Nothing can be said about what was before.
    Anywhere,
}

/// What somebody else remembers of the log, so that more can be told than the chain alone shows.
#[derive(Clone, Debug, Default)]
pub struct Expect {
    /// Where the first file begins.
    pub start: Start,
    /// A record that must be in the files: shows a cut-off or rewritten end.
    pub contains: Option<Head>,
    /// Signed checkpoints that the records must agree with. Their tree ends where the records begin.
    pub seals: Option<Seals>,
}

/// A log without flaw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// How many records were read.
    pub records: u64,
    /// The end of the chain. Keep it elsewhere and give it as [`Expect::contains`] next time.
    pub head: Head,
    /// A last line that was not written to its end, by power loss or because it is being written now.
    pub torn: Option<Torn>,
    /// Starts that follow no stop: the process was killed.
    pub unclean_stops: u64,
    /// Whether its last record is a `log.stop`.
    pub closed: bool,
    /// What the checkpoints say, where there were any to compare with.
    pub sealed: Option<Sealed>,
}

/// A line that was not written to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The file.
    pub file: PathBuf,
    /// Its line, from one.
    pub line: u64,
    /// How much of it is there.
    pub bytes: u64,
    pub(super) at: u64,
}

/// The first record that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRecord {
    /// The file.
    pub file: PathBuf,
    /// Its line, from one.
    pub line: u64,
    /// The number that the record has, or should have.
    pub seq: u64,
    /// What is wrong.
    pub flaw: Flaw,
}

/// What is wrong with a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It is not a JSON object.
    NotJson,
    /// It is not in canonical form.
    NotCanonical,
    /// A field that every record has is missing or of the wrong form.
    Field(&'static str),
    /// Its number is not the next one: records were removed, added or reordered.
    Number {
        /// The number that it has.
        found: u64,
    },
    /// The next record does not continue it: it was changed.
    Changed,
    /// It and the next record do not fit, and no later record tells which of them was changed.
    ChangedOrNext,
    /// The log ends before a record that is known to have been written.
    Missing,
    /// The line is longer than any of ours.
    TooLong,
    /// A file that is not the last one ends in the middle of a line.
    CutOff,
}

impl fmt::Display for BadRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "record {} ({}:{}) ",
            self.seq,
            self.file.display(),
            self.line
        )?;
        match &self.flaw {
            Flaw::NotJson => f.write_str("is not a JSON object"),
            Flaw::NotCanonical => f.write_str("is not in canonical form"),
            Flaw::Field(name) => write!(f, "has no valid field `{name}`"),
            Flaw::Number { found } => write!(f, "is missing: record {found} stands in its place"),
            Flaw::Changed => f.write_str("was changed"),
            Flaw::ChangedOrNext => f.write_str("or the record after it was changed"),
            Flaw::Missing => {
                f.write_str("is missing at the end, or all from some point on was rewritten")
            }
            Flaw::TooLong => f.write_str("is longer than any record can be"),
            Flaw::CutOff => f.write_str("is cut off, and another file follows"),
        }
    }
}

impl std::error::Error for BadRecord {}

/// Why a log is not verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A file cannot be read.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// A record is not as it was written.
    #[error("the audit log has been changed")]
    Bad(#[source] BadRecord),
    /// The records are not those that were signed.
    #[error("the audit log is not what was signed")]
    Checkpoint(#[source] BadCheckpoint),
}

impl Coded for VerifyError {
    fn code(&self) -> &'static str {
        match self {
            Self::Read(..) => "FNL0206",
            Self::Bad(_) => "FNL0207",
            Self::Checkpoint(bad) => bad.code(),
        }
    }
}

/// Verifies files that continue each other, from the very first record on.
///
/// # Errors
/// The first bad record.
pub fn verify(files: &[impl AsRef<Path>]) -> Result<Verified, VerifyError> {
    verify_against(files, &Expect::default())
}

/// As [`verify`], with what is known from elsewhere.
///
/// # Errors
/// The first bad record.
pub fn verify_against(
    files: &[impl AsRef<Path>],
    expect: &Expect,
) -> Result<Verified, VerifyError> {
    let mut chain = Chain::new(expect);
    for (index, file) in files.iter().enumerate() {
        let path = file.as_ref();
        let reader =
            std::fs::File::open(path).map_err(|error| VerifyError::Read(path.to_owned(), error))?;
        let last = index + 1 == files.len();
        chain
            .file(path, BufReader::new(reader), last)
            .map_err(|failure| failure.at(path))?;
    }
    let last = files.last().map_or(Path::new(""), AsRef::as_ref);
    chain.end(last).map_err(|failure| failure.at(last))
}

#[derive(Debug)]
pub(super) enum Failure {
    Io(io::Error),
    Bad(BadRecord),
    Checkpoint(BadCheckpoint),
}

impl Failure {
    fn at(self, path: &Path) -> VerifyError {
        match self {
            Self::Io(error) => VerifyError::Read(path.to_owned(), error),
            Self::Bad(bad) => VerifyError::Bad(bad),
            Self::Checkpoint(bad) => VerifyError::Checkpoint(bad),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A record whose successor has not been seen.
struct Last {
    file: PathBuf,
    line: u64,
    head: Head,
    /// The mismatch with the record before it, waiting for a witness.
    doubt: Option<BadRecord>,
}

pub(super) struct Chain {
    start: Head,
    anywhere: bool,
    wanted: Option<Head>,
    found_wanted: bool,
    last: Option<Last>,
    records: u64,
    running: bool,
    unclean: u64,
    seals: Option<Comparison>,
    pub(super) torn: Option<Torn>,
}

impl Chain {
    pub(super) fn new(expect: &Expect) -> Self {
        let start = match &expect.start {
            Start::After(head) => head.clone(),
            Start::Genesis | Start::Anywhere => Head::genesis(),
        };
        let found_wanted = expect.contains.is_none() || expect.contains.as_ref() == Some(&start);
        Self {
            start,
            anywhere: expect.start == Start::Anywhere,
            wanted: expect.contains.clone(),
            found_wanted,
            last: None,
            records: 0,
            running: false,
            unclean: 0,
            seals: expect.seals.clone().map(Comparison::new),
            torn: None,
        }
    }

    pub(super) fn file(
        &mut self,
        path: &Path,
        mut reader: impl BufRead,
        last_file: bool,
    ) -> Result<(), Failure> {
        let (mut line, mut number, mut at) = (Vec::new(), 0, 0_u64);
        loop {
            line.clear();
            let read = (&mut reader)
                .take(LONGEST_LINE)
                .read_until(b'\n', &mut line)? as u64;
            if read == 0 {
                return Ok(());
            }
            number += 1;
            let bad = |chain: &Self, flaw| {
                Failure::Bad(BadRecord {
                    file: path.to_owned(),
                    line: number,
                    seq: chain.next_seq(),
                    flaw,
                })
            };
            match line.pop() {
                Some(b'\n') => {}
                _ if read == LONGEST_LINE => return Err(bad(self, Flaw::TooLong)),
                _ if !last_file => return Err(bad(self, Flaw::CutOff)),
                _ => {
                    self.torn = Some(Torn {
                        file: path.to_owned(),
                        line: number,
                        bytes: read,
                        at,
                    });
                    return Ok(());
                }
            }
            // A crash may leave a hole where the file had grown but its content was not yet on the disk; no record holds a zero byte.
            if last_file
                && line.contains(&0)
                && let Some(rest) = short_rest(&mut reader)?
            {
                self.torn = Some(Torn {
                    file: path.to_owned(),
                    line: number,
                    bytes: read + rest,
                    at,
                });
                return Ok(());
            }
            self.record(path, number, &line).map_err(Failure::Bad)?;
            at += read;
        }
    }

    fn next_seq(&self) -> u64 {
        self.last
            .as_ref()
            .map_or(self.start.seq, |last| last.head.seq)
            + 1
    }

    fn record(&mut self, path: &Path, line: u64, text: &[u8]) -> Result<(), BadRecord> {
        if std::mem::take(&mut self.anywhere)
            && let Ok(first) = parse(text)
        {
            let seq = first.seq.saturating_sub(1);
            self.start = Head {
                seq,
                hash: first.prev,
            };
        }
        let seq = self.next_seq();
        let bad = |flaw| BadRecord {
            file: path.to_owned(),
            line,
            seq,
            flaw,
        };
        // A record that cannot be read is itself the first bad one, unless the pair before it was in doubt already.
        let doubted = |last: &mut Option<Last>, error: BadRecord| {
            last.as_mut().and_then(|l| l.doubt.take()).unwrap_or(error)
        };
        let parsed = match parse(text) {
            Ok(parsed) => parsed,
            Err(flaw) => return Err(doubted(&mut self.last, bad(flaw))),
        };
        if parsed.seq != seq {
            return Err(doubted(
                &mut self.last,
                bad(Flaw::Number { found: parsed.seq }),
            ));
        }
        let continues = self
            .last
            .as_ref()
            .map_or(&self.start, |last| &last.head)
            .hash
            == parsed.prev;
        if let Some(last) = &mut self.last
            && let Some(doubt) = last.doubt.take()
        {
            // This record vouches for the last one, so the one before that was changed; or it does not, and the last one was.
            return Err(if continues {
                BadRecord {
                    flaw: Flaw::Changed,
                    ..doubt
                }
            } else {
                BadRecord {
                    file: last.file.clone(),
                    line: last.line,
                    seq: last.head.seq,
                    flaw: Flaw::Changed,
                }
            });
        }
        let doubt = (!continues).then(|| match &self.last {
            Some(last) => BadRecord {
                file: last.file.clone(),
                line: last.line,
                seq: last.head.seq,
                flaw: Flaw::ChangedOrNext,
            },
            None => bad(Flaw::Field("prev")),
        });
        if let Some(seals) = &mut self.seals {
            seals.record(seq, &parsed.action, text);
        }
        let head = Head::after(seq, text);
        if let Some(wanted) = &self.wanted
            && wanted.seq == seq
        {
            self.found_wanted = *wanted == head;
        }
        match parsed.action.as_str() {
            "log.start" => {
                self.unclean += u64::from(self.running);
                self.running = true;
            }
            "log.stop" => self.running = false,
            _ => self.running = true,
        }
        self.records += 1;
        if self.last.is_none()
            && let Some(doubt) = doubt
        {
            return Err(doubt);
        }
        self.last = Some(Last {
            file: path.to_owned(),
            line,
            head,
            doubt,
        });
        Ok(())
    }

    pub(super) fn head(&self) -> Head {
        self.last
            .as_ref()
            .map_or_else(|| self.start.clone(), |last| last.head.clone())
    }

    pub(super) fn end(mut self, file: &Path) -> Result<Verified, Failure> {
        if let Some(doubt) = self.last.as_mut().and_then(|last| last.doubt.take()) {
            return Err(Failure::Bad(doubt));
        }
        if !self.found_wanted {
            let line = self.last.as_ref().map_or(0, |last| last.line);
            let seq = self.wanted.as_ref().map_or(0, |wanted| wanted.seq);
            return Err(Failure::Bad(BadRecord {
                file: file.to_owned(),
                line,
                seq,
                flaw: Flaw::Missing,
            }));
        }
        let head = self.head();
        let sealed = self.seals.map(Comparison::end).transpose();
        Ok(Verified {
            records: self.records,
            head,
            torn: self.torn,
            unclean_stops: self.unclean,
            closed: self.records > 0 && !self.running,
            sealed: sealed.map_err(Failure::Checkpoint)?,
        })
    }
}

pub(super) struct Parsed {
    pub(super) seq: u64,
    prev: String,
    action: String,
}

pub(super) fn parse(text: &[u8]) -> Result<Parsed, Flaw> {
    let value: Value = serde_json::from_slice(text).map_err(|_| Flaw::NotJson)?;
    let Value::Object(fields) = &value else {
        return Err(Flaw::NotJson);
    };
    if canonical(&value).is_none_or(|canonical| canonical.as_bytes() != text) {
        return Err(Flaw::NotCanonical);
    }
    let text = |name: &'static str| {
        fields
            .get(name)
            .and_then(Value::as_str)
            .ok_or(Flaw::Field(name))
    };
    if fields.get("v").and_then(Value::as_u64) != Some(1) {
        return Err(Flaw::Field("v"));
    }
    if !crate::ids::is_ulid(text("id")?) {
        return Err(Flaw::Field("id"));
    }
    if text("time")?.len() != "2026-11-24T00:00:00.000000Z".len() {
        return Err(Flaw::Field("time"));
    }
    if !matches!(text("outcome")?, "success" | "failure" | "denied") {
        return Err(Flaw::Field("outcome"));
    }
    if !fields.get("actor").is_some_and(Value::is_object) {
        return Err(Flaw::Field("actor"));
    }
    let prev = text("prev")?;
    if prev.len() != 64
        || !prev
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    {
        return Err(Flaw::Field("prev"));
    }
    let seq = fields
        .get("seq")
        .and_then(Value::as_u64)
        .ok_or(Flaw::Field("seq"))?;
    Ok(Parsed {
        seq,
        prev: prev.to_owned(),
        action: text("action")?.to_owned(),
    })
}

/// How much follows a line with a hole, if that can be one group commit that nobody was told about.
fn short_rest(reader: &mut impl BufRead) -> io::Result<Option<u64>> {
    let mut rest = Vec::new();
    reader.take(LONGEST_LINE).read_to_end(&mut rest)?;
    let rest = rest.len() as u64;
    Ok((rest < LONGEST_LINE).then_some(rest))
}
