//! What dev mode says: one event a line, with a stable name, for people or as JSON.

use std::io::{self, Write};

use serde_json::{Map, Value};

use crate::cli::Output;

/// Writes events to standard output.
#[derive(Debug, Clone, Copy)]
pub struct Events {
    output: Output,
}

/// One thing that happened.
pub struct Event<'a> {
    /// Its stable name: `ca.ready`, `request.denied`.
    pub event: &'static str,
    /// Who it is about, first column.
    pub who: &'a str,
    /// What happened, second column.
    pub what: &'a str,
    /// The rest of the line; further lines are indented.
    pub text: String,
}

impl Events {
    /// A writer in the form that was asked for.
    pub fn new(output: Output) -> Self {
        Self { output }
    }

    /// Says it. A closed standard output is no reason to stop the demonstration.
    pub fn say(self, event: &Event<'_>) {
        let line = match self.output {
            Output::Text => {
                let text = event.text.replace('\n', &format!("\n{:33}", ""));
                format!("{:<15} {:<16} {text}", event.who, event.what)
            }
            Output::Jsonl => {
                let fields = [
                    ("event", event.event),
                    ("who", event.who),
                    ("what", event.what),
                    ("text", event.text.as_str()),
                ];
                let object: Map<_, _> = fields
                    .map(|(k, v)| (k.to_owned(), Value::from(v)))
                    .into_iter()
                    .collect();
                Value::Object(object).to_string()
            }
        };
        writeln!(io::stdout().lock(), "{line}").ok();
    }
}
