//! Decides the JSON Schema of a configuration and answers which field a path or a variable name means.
//! Trusts schemars' description of the type; never lets an object take keys that it does not name.

use serde_json::{Map, Value, json};

use super::{API_VERSION, Config};

/// As schemars makes it.
pub(super) fn raw<T: Config>() -> Value {
    schemars::schema_for!(T).to_value()
}

/// As it is published: with the header, and closed.
pub(super) fn published<T: Config>() -> Value {
    let mut schema = raw::<T>();
    close(&mut schema);
    if let Some(root) = schema.as_object_mut() {
        root.insert("title".into(), T::KIND.into());
        let mut properties = Map::new();
        properties.insert("apiVersion".into(), json!({ "const": API_VERSION }));
        properties.insert("kind".into(), json!({ "const": T::KIND }));
        if let Some(Value::Object(own)) = root.remove("properties") {
            properties.extend(own);
        }
        root.insert("properties".into(), properties.into());
        let mut required = vec![json!("apiVersion"), json!("kind")];
        if let Some(Value::Array(own)) = root.remove("required") {
            required.extend(own);
        }
        root.insert("required".into(), required.into());
    }
    schema
}

fn close(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if object.get("properties").is_some_and(Value::is_object)
                && !object.contains_key("additionalProperties")
            {
                object.insert("additionalProperties".into(), false.into());
            }
            object.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

/// The subschemas that a schema may stand for: itself, what it refers to, its alternatives.
fn alternatives<'s>(root: &'s Value, schema: &'s Value, depth: usize, into: &mut Vec<&'s Value>) {
    // A type that contains itself through references alone does not exist, but a bound costs nothing.
    if depth > 16 {
        return;
    }
    into.push(schema);
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str)
        && let Some(target) = reference
            .strip_prefix('#')
            .and_then(|pointer| root.pointer(pointer))
    {
        alternatives(root, target, depth + 1, into);
    }
    for word in ["anyOf", "oneOf", "allOf"] {
        for alternative in schema
            .get(word)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            alternatives(root, alternative, depth + 1, into);
        }
    }
}

fn all<'s>(root: &'s Value, schema: &'s Value) -> Vec<&'s Value> {
    let mut found = Vec::new();
    alternatives(root, schema, 0, &mut found);
    found
}

/// The fields of a schema, with theirs.
pub(super) fn fields<'s>(root: &'s Value, schema: &'s Value) -> Vec<(&'s str, &'s Value)> {
    let objects = all(root, schema)
        .into_iter()
        .filter_map(|s| s.get("properties").and_then(Value::as_object));
    objects
        .flatten()
        .map(|(name, field)| (name.as_str(), field))
        .collect()
}

/// The schema of a list's items.
pub(super) fn items<'s>(root: &'s Value, schema: &'s Value) -> Option<&'s Value> {
    all(root, schema).into_iter().find_map(|s| s.get("items"))
}

/// The schema of a free map's values.
fn free_map<'s>(root: &'s Value, schema: &'s Value) -> Option<&'s Value> {
    all(root, schema).into_iter().find_map(|s| {
        s.get("additionalProperties")
            .filter(|v| v.is_object() || **v == Value::Bool(true))
    })
}

/// What a field is for, in the words of its doc comment.
pub(super) fn description<'s>(root: &'s Value, schema: &'s Value) -> Option<&'s str> {
    all(root, schema)
        .into_iter()
        .find_map(|s| s.get("description").and_then(Value::as_str))
}

/// Whether only texts are taken, so that a variable's value needs no quotes.
pub(super) fn wants_text(root: &Value, schema: &Value) -> bool {
    let mut kinds = Vec::new();
    for s in all(root, schema) {
        match s.get("type") {
            Some(Value::String(kind)) => kinds.push(kind.as_str()),
            Some(Value::Array(several)) => kinds.extend(several.iter().filter_map(Value::as_str)),
            _ if s.get("const").is_some_and(Value::is_string) => kinds.push("string"),
            _ => {}
        }
    }
    kinds.contains(&"string") && kinds.iter().all(|kind| matches!(*kind, "string" | "null"))
}

/// The field that one step of a path means; `same` decides whether a name is meant.
/// A free map takes any name, as `otherwise` spells it.
pub(super) fn step<'s>(
    root: &'s Value,
    schema: &'s Value,
    same: impl Fn(&str) -> bool,
    otherwise: &str,
) -> Option<(String, &'s Value)> {
    if let Some((name, field)) = fields(root, schema)
        .into_iter()
        .find(|(name, _)| same(name))
    {
        return Some((name.to_owned(), field));
    }
    free_map(root, schema).map(|values| (otherwise.to_owned(), values))
}
