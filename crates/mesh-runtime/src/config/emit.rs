//! Decides how a configuration is written back as YAML: commented defaults, and the effective values with their origin.
//! Trusts serde-saphyr to serialise; never writes a text in a way that the strict reader would refuse.

use serde_json::Value as Json;

use super::problem::Place;
use super::tree::{self, Ids, Node, Value};
use super::{API_VERSION, Config, schema};
use crate::errors::{is_deceptive, untrusted};

/// The widest comment line.
const WIDTH: usize = 110;

/// The defaults, commented; fields without a value are shown as comments.
pub(super) fn defaults<T: Config>() -> String {
    let root = schema::raw::<T>();
    let mut out = header::<T>();
    if let Some(tree) = tree_of(&T::default()) {
        let writer = Writer {
            root: &root,
            comments: true,
            origin: &|_| None,
        };
        writer.map_body(&tree, Some(&root), 0, "", &mut out);
    }
    out
}

/// The effective configuration; `origin` tells where the value at a path came from.
pub(super) fn effective<T: Config>(value: &T, origin: &dyn Fn(&str) -> Option<String>) -> String {
    let root = schema::raw::<T>();
    let mut out = header::<T>();
    if let Some(tree) = tree_of(value) {
        let writer = Writer {
            root: &root,
            comments: false,
            origin,
        };
        writer.map_body(&tree, Some(&root), 0, "", &mut out);
    }
    out
}

fn header<T: Config>() -> String {
    format!("apiVersion: {API_VERSION}\nkind: {}\n", T::KIND)
}

fn tree_of<T: serde::Serialize>(value: &T) -> Option<Node> {
    let text = match serde_saphyr::to_string(value) {
        Ok(text) => text,
        Err(error) => {
            tracing::error!(%error, "the configuration cannot be written as YAML");
            return None;
        }
    };
    let mut problems = Vec::new();
    let tree = tree::parse_value(
        &text,
        &Place::Flag(String::new()),
        &mut Ids::default(),
        &mut problems,
    );
    tree.filter(|_| problems.is_empty())
}

struct Writer<'a> {
    root: &'a Json,
    comments: bool,
    origin: &'a dyn Fn(&str) -> Option<String>,
}

impl Writer<'_> {
    fn map_body(
        &self,
        node: &Node,
        schema: Option<&Json>,
        indent: usize,
        path: &str,
        out: &mut String,
    ) {
        let Value::Map(entries) = &node.value else {
            return;
        };
        let fields = schema
            .map(|s| schema::fields(self.root, s))
            .unwrap_or_default();
        let field = |name: &str| {
            fields
                .iter()
                .find(|(field, _)| *field == name)
                .map(|(_, schema)| *schema)
        };
        for (key, child) in entries {
            let schema = field(&key.text);
            self.describe(schema, indent, out);
            let path = if path.is_empty() {
                key.text.clone()
            } else {
                format!("{path}.{}", key.text)
            };
            let pad = " ".repeat(indent);
            match &child.value {
                Value::Null if self.comments => {
                    out.push_str(&format!("{pad}# {}: (not set)\n", key.text))
                }
                Value::Map(inner) if !inner.is_empty() => {
                    // A section of which nothing is set holds only comments, and would read back as nothing at all.
                    let unset = inner.iter().all(|(_, v)| matches!(v.value, Value::Null));
                    let empty = if self.comments && unset { " {}" } else { "" };
                    out.push_str(&format!("{pad}{}:{empty}\n", scalar(&key.text)));
                    self.map_body(child, schema, indent + 2, &path, out);
                }
                Value::Seq(items) if !items.is_empty() => {
                    out.push_str(&format!("{pad}{}:\n", scalar(&key.text)));
                    let items_schema = schema.and_then(|s| schema::items(self.root, s));
                    for (index, item) in items.iter().enumerate() {
                        self.item(
                            item,
                            items_schema,
                            indent + 2,
                            &format!("{path}.{index}"),
                            out,
                        );
                    }
                }
                value => out.push_str(&format!(
                    "{pad}{}: {}{}\n",
                    scalar(&key.text),
                    leaf(value),
                    self.origin_of(&path)
                )),
            }
        }
        if self.comments {
            // The choices of an enum are not fields to be set beside the chosen one.
            let plain_object =
                schema.is_some_and(|s| s.get("oneOf").is_none() && s.get("anyOf").is_none());
            for (name, schema) in fields.iter().filter(|(name, _)| {
                plain_object && !entries.iter().any(|(key, _)| key.text == *name)
            }) {
                self.describe(Some(schema), indent, out);
                out.push_str(&format!("{}# {name}: (not set)\n", " ".repeat(indent)));
            }
        }
    }

    fn item(
        &self,
        node: &Node,
        schema: Option<&Json>,
        indent: usize,
        path: &str,
        out: &mut String,
    ) {
        let pad = " ".repeat(indent);
        match &node.value {
            Value::Map(entries) if !entries.is_empty() => {
                let mut body = String::new();
                let quiet = Writer {
                    comments: false,
                    ..*self
                };
                quiet.map_body(node, schema, indent + 2, path, &mut body);
                out.push_str(&format!("{pad}- {}", body.trim_start()));
            }
            Value::Seq(items) if !items.is_empty() => {
                let mut body = String::new();
                for (index, item) in items.iter().enumerate() {
                    self.item(
                        item,
                        None,
                        indent + 2,
                        &format!("{path}.{index}"),
                        &mut body,
                    );
                }
                out.push_str(&format!("{pad}- {}", body.trim_start()));
            }
            value => out.push_str(&format!("{pad}- {}{}\n", leaf(value), self.origin_of(path))),
        }
    }

    fn origin_of(&self, path: &str) -> String {
        (self.origin)(path)
            .map(|origin| format!("  # {}", untrusted(&origin)))
            .unwrap_or_default()
    }

    fn describe(&self, schema: Option<&Json>, indent: usize, out: &mut String) {
        let text = schema
            .filter(|_| self.comments)
            .and_then(|s| schema::description(self.root, s))
            .unwrap_or_default();
        let pad = " ".repeat(indent);
        for paragraph in text.split("\n\n").filter(|p| !p.trim().is_empty()) {
            let mut line = String::new();
            for word in paragraph.split_whitespace() {
                if !line.is_empty() && indent + line.len() + word.len() + 3 > WIDTH {
                    out.push_str(&format!("{pad}# {line}\n"));
                    line.clear();
                }
                if !line.is_empty() {
                    line.push(' ');
                }
                line.push_str(word);
            }
            out.push_str(&format!("{pad}# {line}\n"));
        }
    }
}

fn leaf(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Scalar(text, true) => text.clone(),
        Value::Scalar(text, false) => scalar(text),
        Value::Seq(_) => "[]".to_owned(),
        Value::Map(_) => "{}".to_owned(),
    }
}

/// A text as a YAML scalar: without quotes only where no reader can take it for something else.
fn scalar(text: &str) -> String {
    let word = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c))
        && !["y", "n", "yes", "no", "on", "off", "true", "false", "null"]
            .iter()
            .any(|w| text.eq_ignore_ascii_case(w));
    if word {
        return text.to_owned();
    }
    // A JSON string is a YAML double-quoted scalar, but for characters that YAML does not take as they are; those that
    // change how the line is read go the same way.
    let json = Json::from(text).to_string();
    let mut quoted = String::with_capacity(json.len());
    for c in json.chars() {
        if !is_deceptive(c) && !matches!(u32::from(c), 0xfffe | 0xffff) {
            quoted.push(c);
        } else {
            quoted.push_str(&format!("\\U{:08x}", u32::from(c)));
        }
    }
    quoted
}
