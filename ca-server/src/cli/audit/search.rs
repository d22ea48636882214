//! `ca-server audit search`: the records that fit, from the files alone. What is no record is passed over, and counted.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use mesh_runtime::audit::VerifyError;
use mesh_runtime::cli::{self, CommonArgs, Exit, Output};
use mesh_runtime::errors::untrusted;
use serde_json::Value;

/// What is searched for.
pub(super) struct Wanted {
    pub(super) action: Option<String>,
    pub(super) outcome: Option<String>,
    pub(super) actor: Option<String>,
    pub(super) object: Option<String>,
}

impl Wanted {
    fn fits(&self, record: &Value) -> bool {
        let is = |wanted: &Option<String>, fits: &dyn Fn(&str) -> bool| {
            wanted.as_deref().is_none_or(fits)
        };
        let holds = |field: &str, text: &str| {
            let values = record[field].as_object().into_iter().flatten();
            values.into_iter().any(|(_, value)| match value {
                Value::String(value) => value.contains(text),
                other => other
                    .as_u64()
                    .is_some_and(|number| text.parse() == Ok(number)),
            })
        };
        let action = record["action"].as_str().unwrap_or_default();
        is(&self.action, &|wanted| {
            action
                .strip_prefix(wanted)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        }) && is(&self.outcome, &|wanted| record["outcome"] == wanted)
            && is(&self.actor, &|text| holds("actor", text))
            && is(&self.object, &|text| holds("object", text))
    }
}

pub(super) fn search(
    files: &[PathBuf],
    wanted: &Wanted,
    last: Option<usize>,
    common: &CommonArgs,
) -> Exit {
    let (mut found, mut skipped) = (VecDeque::new(), 0_u64);
    for path in files {
        let read = |cause| VerifyError::Read(path.clone(), cause);
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(cause) => return cli::fail(&read(cause), common),
        };
        for text in BufReader::new(file).lines() {
            let text = match text {
                Ok(text) => text,
                Err(cause) => return cli::fail(&read(cause), common),
            };
            match serde_json::from_str::<Value>(&text) {
                Ok(record) if record.is_object() => {
                    if wanted.fits(&record) {
                        found.push_back(match common.output {
                            Output::Json => text + "\n",
                            Output::Table => shown(&record),
                        });
                        if last.is_some_and(|most| found.len() > most) {
                            found.pop_front();
                        }
                    }
                }
                _ => skipped += 1,
            }
        }
    }
    if skipped > 0 {
        tracing::warn!(
            lines = skipped,
            "lines that are no records were skipped; `audit verify` names the first"
        );
    }
    cli::print(&found.into_iter().collect::<String>())
}

/// One line for people.
fn shown(record: &Value) -> String {
    let text = |value: &Value| untrusted(value.as_str().unwrap_or("-"));
    let object = ["name", "id", "serial"]
        .into_iter()
        .filter_map(|field| record["object"][field].as_str())
        .map(untrusted)
        .collect::<Vec<_>>();
    let mut shown = format!(
        "{}  {:>6}  {:<20} {:<8} {}  {}",
        text(&record["time"]),
        record["seq"],
        text(&record["action"]),
        text(&record["outcome"]),
        text(&record["actor"]["id"]),
        object.join(" "),
    );
    if let Some(code) = record["code"].as_str() {
        shown += &format!("  {}", untrusted(code));
    }
    shown + "\n"
}
