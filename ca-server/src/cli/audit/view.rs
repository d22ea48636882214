//! Decides how an audit record looks to the programs of others: OCSF, CloudEvents, CSV, CEF (ux.md F.4). The record itself stays the
//! truth: each view carries its id and its hash, by which `audit prove` and the chain know it.
//! Trusts nothing in a record: what a stranger said is escaped as the form demands. Never leaves a record out.

mod ocsf;

use clap::ValueEnum;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

/// A form of the records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Form {
    /// The records as they are
    #[default]
    Jsonl,
    /// OCSF events, one JSON object a line
    Ocsf,
    /// CloudEvents 1.0 with the record as their data, one JSON object a line
    Cloudevents,
    /// A table with a heading
    Csv,
    /// ArcSight's Common Event Format, one event a line
    Cef,
}

/// What of a record is in every view.
struct Seen<'a> {
    record: &'a Value,
    hash: String,
}

impl Form {
    /// What comes before the first record.
    pub(super) fn heading(self) -> String {
        match self {
            Self::Csv => COLUMNS.map(|(name, _)| name).join(",") + "\r\n",
            _ => String::new(),
        }
    }

    /// One record.
    pub(super) fn of(self, line: &[u8]) -> Vec<u8> {
        if self == Self::Jsonl {
            return [line, b"\n"].concat();
        }
        // A log that was verified holds records only; what is none would be shown with its hash and nothing else.
        let record: Value = serde_json::from_slice(line).unwrap_or_default();
        let seen = Seen {
            record: &record,
            hash: hex(digest(&SHA256, line).as_ref()),
        };
        let text = match self {
            Self::Csv => seen.csv() + "\r\n",
            Self::Cef => seen.cef() + "\n",
            Self::Cloudevents => seen.cloud_event().to_string() + "\n",
            Self::Ocsf | Self::Jsonl => ocsf::event(&seen).to_string() + "\n",
        };
        text.into_bytes()
    }
}

/// The columns of a table, and where in a record each stands.
const COLUMNS: [(&str, &str); 15] = [
    ("time", "/time"),
    ("seq", "/seq"),
    ("id", "/id"),
    ("action", "/action"),
    ("outcome", "/outcome"),
    ("code", "/code"),
    ("actor_type", "/actor/type"),
    ("actor_id", "/actor/id"),
    ("origin_ip", "/origin/ip"),
    ("object_kind", "/object/kind"),
    ("object_name", "/object/name"),
    ("object_id", "/object/id"),
    ("reason", "/decision/reason"),
    ("trace_id", "/trace/trace_id"),
    ("hash", ""),
];

impl Seen<'_> {
    /// The text at a place; nothing, if there is none.
    fn text(&self, place: &str) -> String {
        match self.record.pointer(place) {
            Some(Value::String(text)) => text.clone(),
            None | Some(Value::Null) => String::new(),
            Some(other) => other.to_string(),
        }
    }

    fn csv(&self) -> String {
        let cells = COLUMNS.map(|(_, place)| match place {
            "" => self.hash.clone(),
            place => cell(&self.text(place)),
        });
        cells.join(",")
    }

    fn cef(&self) -> String {
        let action = self.text("/action");
        let severity = match self.text("/outcome").as_str() {
            "success" => 3,
            "denied" => 7,
            _ => 6,
        };
        let head = [env!("CARGO_PKG_VERSION"), &action, &action].map(|text| escaped(text, &['|']));
        let mut event = format!(
            "CEF:0|Finial|ca-server|{}|{severity}|externalId={}",
            head.join("|"),
            escaped(&self.text("/id"), &['=']),
        );
        for (key, place) in [
            ("act", "/action"),
            ("outcome", "/outcome"),
            ("suser", "/actor/id"),
            ("src", "/origin/ip"),
            ("spt", "/origin/port"),
            ("reason", "/code"),
            ("msg", "/decision/reason"),
        ] {
            let text = self.text(place);
            if !text.is_empty() {
                event += &format!(" {key}={}", escaped(&text, &['=']));
            }
        }
        if let Some(time) = self.milliseconds() {
            event += &format!(" rt={time}");
        }
        let object = ["/object/kind", "/object/name", "/object/id"].map(|place| self.text(place));
        let [kind, name, id] = object.map(|text| escaped(&text, &['=']));
        event
            + &format!(
                " cs1Label=hash cs1={} cs2Label=objectKind cs2={kind} cs3Label=objectName cs3={name} cs4Label=objectId cs4={id} cn1Label=seq cn1={}",
                self.hash,
                self.text("/seq"),
            )
    }

    fn cloud_event(&self) -> Value {
        let mut event = json!({
            "specversion": "1.0",
            "id": self.text("/id"),
            "source": "/finial/ca-server/audit",
            "type": format!("dev.finial.audit.{}", self.text("/action")),
            "time": self.text("/time"),
            "datacontenttype": "application/json",
            "finialhash": self.hash,
            "data": self.record,
        });
        let object = self.text("/object/name");
        // An attribute of a CloudEvent is never empty.
        if !object.is_empty() {
            event["subject"] = object.into();
        }
        event
    }

    /// When it was written, in milliseconds since 1970.
    fn milliseconds(&self) -> Option<i64> {
        let form = &time::format_description::well_known::Rfc3339;
        let time = time::OffsetDateTime::parse(&self.text("/time"), form).ok()?;
        i64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
    }
}

/// A cell that no reader takes for two, and no spreadsheet for a formula (RFC 4180; OWASP on CSV injection).
fn cell(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let text = format!("{}{text}", if formula { "'" } else { "" });
    match text.contains([',', '"', '\r', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text,
    }
}

/// Text inside a CEF event: backslashes, line ends and what ends a field are escaped.
fn escaped(text: &str, ends: &[char]) -> String {
    let mut safe = String::with_capacity(text.len());
    for one in text.chars() {
        match one {
            '\n' => safe += "\\n",
            '\r' => safe += "\\r",
            '\\' => safe += "\\\\",
            end if ends.contains(&end) => safe.extend(['\\', end]),
            other => safe.push(other),
        }
    }
    safe
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
