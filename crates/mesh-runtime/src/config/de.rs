//! Decides how the tree becomes a typed configuration, going on after each mistake so that all are found in one run.
//! Trusts serde's description of the type; never turns one kind of value into another to make it fit.
//!
//! A mistake in a value ends one attempt. Its node is then left out ("poisoned") and the attempt repeated, so that the
//! next mistake shows; a field that is missing only because its value was left out is no mistake of its own.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, Expected, MapAccess, SeqAccess, Unexpected,
    VariantAccess, Visitor,
};

use super::problem::{Kind, Place, Problem};
use super::tree::{Key, Node, Value};
use super::values::{A_DURATION, A_SIZE};
use crate::telemetry::SECRET_NEWTYPE;

/// More mistakes than anybody reads.
const MOST_PROBLEMS: usize = 100;

/// The value, if one could be built, and the nodes that were left out of it.
pub(super) fn deserialize<T: de::DeserializeOwned>(
    root: &Node,
    problems: &mut Vec<Problem>,
) -> (Option<T>, HashSet<usize>) {
    let state = State::default();
    let value = loop {
        match T::deserialize(At {
            node: root,
            state: &state,
            secret: false,
        }) {
            Ok(value) => break Some(value),
            Err(error) => {
                let (node, place) = error.at.unwrap_or_else(|| (root.id, root.at.clone()));
                if let Some(kind) = error.kind {
                    let mut problem = Problem::new(kind, error.message, place);
                    problem.secret = error.secret;
                    state.add(match error.hint {
                        Some(hint) => problem.hint(hint),
                        None => problem,
                    });
                }
                let grew = state.poisoned.borrow_mut().insert(node);
                if !grew || node == root.id || state.problems.borrow().len() >= MOST_PROBLEMS {
                    break None;
                }
            }
        }
    };
    problems.append(&mut state.problems.into_inner());
    (value, state.poisoned.into_inner())
}

#[derive(Debug, Default)]
struct State {
    problems: RefCell<Vec<Problem>>,
    poisoned: RefCell<HashSet<usize>>,
}

impl State {
    fn add(&self, problem: Problem) {
        let mut problems = self.problems.borrow_mut();
        if !problems.iter().any(|p| p.same_as(&problem)) {
            problems.push(problem);
        }
    }

    fn is_poisoned(&self, node: &Node) -> bool {
        self.poisoned.borrow().contains(&node.id)
    }
}

/// A mistake on its way up; `kind` is absent when it only follows from one that has been reported.
#[derive(Debug)]
struct Fault {
    kind: Option<Kind>,
    message: String,
    hint: Option<String>,
    missing: Option<&'static str>,
    at: Option<(usize, Place)>,
    secret: bool,
}

impl Fault {
    fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind: Some(kind),
            message: message.into(),
            hint: None,
            missing: None,
            at: None,
            secret: false,
        }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn follows() -> Self {
        Self {
            kind: None,
            ..Self::new(Kind::Invalid, "")
        }
    }

    fn at(mut self, node: &Node, place: &Place) -> Self {
        self.at.get_or_insert_with(|| (node.id, place.clone()));
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Kind::Invalid, message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = expected.to_string();
        let number = matches!(
            found,
            Unexpected::Unsigned(_)
                | Unexpected::Signed(_)
                | Unexpected::Float(_)
                | Unexpected::Other("a number")
        );
        let fault = |kind| {
            Self::new(
                kind,
                format!("expected {expected}, found {}", name_of(&found)),
            )
        };
        if number && (expected == A_DURATION || expected == A_SIZE) {
            return fault(Kind::NoUnit).hint(if expected == A_SIZE {
                "add a unit: B, KiB, MiB, GiB"
            } else {
                "add a unit: ms, s, m, h, d"
            });
        }
        if expected.contains("a string") && (number || matches!(found, Unexpected::Bool(_))) {
            return fault(Kind::Invalid).hint("quote it if it is text");
        }
        fault(Kind::Invalid)
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        // A number may be shown; a text might be a secret in the wrong place.
        let found = match found {
            Unexpected::Unsigned(n) => n.to_string(),
            Unexpected::Signed(n) => n.to_string(),
            other => name_of(&other),
        };
        Self::new(Kind::Invalid, format!("{found} is not {expected}"))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let fault = Self::new(Kind::UnknownChoice, format!("unknown choice `{variant}`"));
        match nearest(variant, expected.iter().copied()) {
            Some(near) => fault.hint(format!("did you mean `{near}`?")),
            None => fault.hint(format!("one of: {}", expected.join(", "))),
        }
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let fault = Self::new(Kind::UnknownField, format!("unknown field `{field}`"));
        match did_you_mean(field, expected) {
            Some(hint) => fault.hint(hint),
            None => fault,
        }
    }

    fn missing_field(field: &'static str) -> Self {
        Self {
            missing: Some(field),
            ..Self::new(Kind::Missing, format!("missing field `{field}`"))
        }
    }
}

fn name_of(found: &Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(_) => "true or false",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) | Unexpected::Float(_) => "a number",
        Unexpected::Str(_) | Unexpected::Char(_) => "a text",
        Unexpected::Unit | Unexpected::Option => "nothing",
        Unexpected::Seq => "a list",
        Unexpected::Map | Unexpected::StructVariant => "a map",
        Unexpected::Other(what) => what,
        _ => "something else",
    }
    .to_owned()
}

/// The known name that is closest to `name`, if one is close.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |s: &str| {
        s.chars()
            .filter(char::is_ascii_alphanumeric)
            .collect::<String>()
            .to_ascii_lowercase()
    };
    let wanted = plain(name);
    known
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&wanted, &plain(candidate)),
                candidate,
            )
        })
        .filter(|(distance, candidate)| *distance <= candidate.len().max(3) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn did_you_mean(field: &str, known: &[&str]) -> Option<String> {
    match nearest(field, known.iter().copied()) {
        Some(near) => Some(format!("did you mean `{near}`?")),
        None if known.is_empty() => None,
        None => Some(format!("known fields: {}", known.join(", "))),
    }
}

/// What an unquoted scalar is.
enum Plain<'a> {
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    /// A word that YAML 1.1 readers take for a boolean.
    Ambiguous(&'a str),
    Text(&'a str),
}

fn plain(text: &str) -> Plain<'_> {
    match text {
        "true" => return Plain::Bool(true),
        "false" => return Plain::Bool(false),
        _ => {}
    }
    if ["y", "n", "yes", "no", "on", "off", "true", "false"]
        .iter()
        .any(|word| text.eq_ignore_ascii_case(word))
    {
        return Plain::Ambiguous(text);
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        // A leading zero is octal to some readers and decimal to others; it is text here and so refused as a number.
        if digits.len() > 1 && digits.starts_with('0') {
            return Plain::Text(text);
        }
        if let Ok(n) = text.parse() {
            return Plain::Unsigned(n);
        }
        return text.parse().map_or(Plain::Text(text), Plain::Signed);
    }
    let numeric = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c))
        && text.bytes().any(|b| b.is_ascii_digit());
    if numeric
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b))
    {
        return text.parse().map_or(Plain::Text(text), Plain::Float);
    }
    Plain::Text(text)
}

#[derive(Clone, Copy)]
struct At<'a> {
    node: &'a Node,
    state: &'a State,
    secret: bool,
}

impl<'a> At<'a> {
    /// Gives a fault its place, and takes it back when it only follows from a value that was left out.
    fn placed<T>(self, result: Result<T, Fault>) -> Result<T, Fault> {
        result.map_err(|mut fault| {
            if fault.at.is_none() {
                if let (Some(field), Value::Map(entries)) = (fault.missing, &self.node.value)
                    && entries.iter().any(|(key, _)| key.text == field)
                {
                    fault.kind = None;
                }
                let place = if fault.missing.is_some() {
                    self.node.label.as_ref().unwrap_or(&self.node.at)
                } else {
                    &self.node.at
                };
                fault = fault.at(self.node, place);
            }
            fault.secret |= self.secret;
            fault
        })
    }

    fn ambiguous(word: &str, text_wanted: bool) -> Fault {
        let fault = Fault::new(
            Kind::Ambiguous,
            format!("unquoted `{word}` is a boolean to some YAML readers and a text to others"),
        );
        fault.hint(if text_wanted {
            format!("write \"{word}\" in quotes")
        } else {
            "write true or false".to_owned()
        })
    }

    fn scalar<V: Visitor<'a>>(
        self,
        text: &'a str,
        is_plain: bool,
        text_wanted: bool,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        if !is_plain {
            return visitor.visit_borrowed_str(text);
        }
        match plain(text) {
            Plain::Bool(b) => visitor.visit_bool(b),
            Plain::Unsigned(n) => visitor.visit_u64(n),
            Plain::Signed(n) => visitor.visit_i64(n),
            Plain::Float(x) => visitor.visit_f64(x),
            Plain::Ambiguous(word) => Err(Self::ambiguous(word, text_wanted)),
            Plain::Text(text) => visitor.visit_borrowed_str(text),
        }
    }

    fn any<V: Visitor<'a>>(self, text_wanted: bool, visitor: V) -> Result<V::Value, Fault> {
        let result = match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Scalar(text, is_plain) => self.scalar(text, *is_plain, text_wanted, visitor),
            Value::Seq(items) => visitor.visit_seq(Items {
                items: items.iter(),
                parent: self,
            }),
            Value::Map(entries) => visitor.visit_map(Entries {
                entries: entries.iter(),
                value: None,
                parent: self,
                known: None,
            }),
        };
        self.placed(result)
    }
}

macro_rules! any {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
            self.any(false, visitor)
        })*
    };
}

impl<'a> Deserializer<'a> for At<'a> {
    type Error = Fault;

    any! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8 deserialize_u16
        deserialize_u32 deserialize_u64 deserialize_f32 deserialize_f64 deserialize_bytes deserialize_byte_buf
        deserialize_unit deserialize_seq deserialize_map deserialize_i128 deserialize_u128
    }

    fn deserialize_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.any(true, visitor)
    }

    fn deserialize_str<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.any(true, visitor)
    }

    fn deserialize_string<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.any(true, visitor)
    }

    fn deserialize_char<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.any(true, visitor)
    }

    fn deserialize_identifier<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.any(true, visitor)
    }

    fn deserialize_option<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        let result = match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        };
        self.placed(result)
    }

    fn deserialize_unit_struct<V: Visitor<'a>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        // `joinToken: {}` is how an empty choice is written.
        match &self.node.value {
            Value::Map(entries) if entries.is_empty() => visitor.visit_unit(),
            _ => self.any(false, visitor),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'a>>(
        mut self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.secret |= name == SECRET_NEWTYPE;
        let result = visitor.visit_newtype_struct(self);
        self.placed(result)
    }

    fn deserialize_tuple<V: Visitor<'a>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.any(false, visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'a>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.any(false, visitor)
    }

    fn deserialize_struct<V: Visitor<'a>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let result = match &self.node.value {
            Value::Map(entries) => {
                for (key, node) in entries
                    .iter()
                    .filter(|(key, _)| !fields.contains(&key.text.as_str()))
                {
                    let problem = Problem::new(
                        Kind::UnknownField,
                        format!("unknown field `{}`", key.text),
                        key.at.clone(),
                    );
                    self.state.add(match did_you_mean(&key.text, fields) {
                        Some(hint) => problem.hint(hint),
                        None => problem,
                    });
                    self.state.poisoned.borrow_mut().insert(node.id);
                }
                visitor.visit_map(Entries {
                    entries: entries.iter(),
                    value: None,
                    parent: self,
                    known: Some(fields),
                })
            }
            Value::Null => Err(Fault::new(
                Kind::Invalid,
                "expected a map of fields, found nothing",
            )
            .hint("write `{}` for an empty section")),
            Value::Seq(_) => Err(Fault::new(
                Kind::Invalid,
                "expected a map of fields, found a list",
            )),
            Value::Scalar(..) => Err(Fault::new(
                Kind::Invalid,
                "expected a map of fields, found a single value",
            )),
        };
        self.placed(result)
    }

    fn deserialize_enum<V: Visitor<'a>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let one_of = || format!("one of: {}", variants.join(", "));
        let result = match &self.node.value {
            Value::Scalar(text, _) => visitor.visit_enum(Choice {
                name: text,
                name_at: &self.node.at,
                content: None,
                parent: self,
            }),
            Value::Map(entries) => match entries.as_slice() {
                [(key, content)] if self.state.is_poisoned(content) => {
                    let _: &Key = key;
                    Err(Fault::follows())
                }
                [(key, content)] => visitor.visit_enum(Choice {
                    name: &key.text,
                    name_at: &key.at,
                    content: Some(content),
                    parent: self,
                }),
                [] => Err(Fault::new(Kind::Invalid, "nothing is chosen").hint(one_of())),
                _ => Err(Fault::new(Kind::Invalid, "more than one is chosen").hint(one_of())),
            },
            Value::Null => Err(Fault::new(Kind::Invalid, "nothing is chosen").hint(one_of())),
            Value::Seq(_) => {
                Err(Fault::new(Kind::Invalid, "expected one choice, found a list").hint(one_of()))
            }
        };
        self.placed(result)
    }

    fn deserialize_ignored_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }
}

struct Items<'a> {
    items: std::slice::Iter<'a, Node>,
    parent: At<'a>,
}

impl<'a> SeqAccess<'a> for Items<'a> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'a>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Fault> {
        let state = self.parent.state;
        match self.items.by_ref().find(|item| !state.is_poisoned(item)) {
            Some(node) => {
                let at = At {
                    node,
                    ..self.parent
                };
                at.placed(seed.deserialize(at)).map(Some)
            }
            None => Ok(None),
        }
    }
}

struct Entries<'a> {
    entries: std::slice::Iter<'a, (Key, Node)>,
    value: Option<&'a Node>,
    parent: At<'a>,
    known: Option<&'static [&'static str]>,
}

impl<'a> MapAccess<'a> for Entries<'a> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'a>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Fault> {
        let (state, known) = (self.parent.state, self.known);
        let usable = |(key, node): &&(Key, Node)| {
            !state.is_poisoned(node) && known.is_none_or(|k| k.contains(&key.text.as_str()))
        };
        let Some((key, node)) = self.entries.by_ref().find(usable) else {
            return Ok(None);
        };
        self.value = Some(node);
        let name = de::value::BorrowedStrDeserializer::new(key.text.as_str());
        // A bad key takes its value with it.
        seed.deserialize(name)
            .map(Some)
            .map_err(|fault: Fault| fault.at(node, &key.at))
    }

    fn next_value_seed<V: DeserializeSeed<'a>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let node = self
            .value
            .take()
            .ok_or_else(|| Fault::new(Kind::Invalid, "a value without a key"))?;
        let at = At {
            node,
            ..self.parent
        };
        at.placed(seed.deserialize(at))
    }
}

struct Choice<'a> {
    name: &'a str,
    name_at: &'a Place,
    content: Option<&'a Node>,
    parent: At<'a>,
}

impl<'a> EnumAccess<'a> for Choice<'a> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'a>>(self, seed: V) -> Result<(V::Value, Self), Fault> {
        let name = de::value::BorrowedStrDeserializer::new(self.name);
        let node = self.parent.node;
        let value = seed
            .deserialize(name)
            .map_err(|fault: Fault| fault.at(node, self.name_at))?;
        Ok((value, self))
    }
}

impl<'a> Choice<'a> {
    fn content(&self) -> Result<At<'a>, Fault> {
        let node = self.content.ok_or_else(|| {
            Fault::new(Kind::Invalid, format!("`{}` needs its fields", self.name))
                .hint(format!("write `{}: {{…}}`", self.name))
        })?;
        Ok(At {
            node,
            ..self.parent
        })
    }
}

impl<'a> VariantAccess<'a> for Choice<'a> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        match self.content.map(|node| &node.value) {
            None | Some(Value::Null) => Ok(()),
            Some(Value::Map(entries)) if entries.is_empty() => Ok(()),
            Some(_) => Err(Fault::new(
                Kind::Invalid,
                format!("`{}` has no fields", self.name),
            )),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'a>>(self, seed: T) -> Result<T::Value, Fault> {
        let at = self.content()?;
        at.placed(seed.deserialize(at))
    }

    fn tuple_variant<V: Visitor<'a>>(self, len: usize, visitor: V) -> Result<V::Value, Fault> {
        self.content()?.deserialize_tuple(len, visitor)
    }

    fn struct_variant<V: Visitor<'a>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.content()?.deserialize_struct("", fields, visitor)
    }
}
