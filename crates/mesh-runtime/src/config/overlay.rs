//! Decides which fields the environment and the command line set, by one mechanical rule.
//! Trusts the schema for the names; never ignores a variable that carries our prefix.

use serde_json::Value as Json;

use super::de::nearest;
use super::problem::{Kind, Place, Problem};
use super::tree::{self, Ids, Key, Node, Value};
use super::{Config, Flag, schema};

/// `adminSocket` → `ADMIN_SOCKET`, `x509Svid` → `X509_SVID`, `k8sPsat` → `K8S_PSAT`.
pub(super) fn shouted(field: &str) -> String {
    let mut out = String::with_capacity(field.len() + 4);
    let mut previous: Option<char> = None;
    for c in field.chars() {
        if c.is_ascii_uppercase() && previous.is_some_and(|p| !p.is_ascii_uppercase()) {
            out.push('_');
        }
        out.push(if c == '-' {
            '_'
        } else {
            c.to_ascii_uppercase()
        });
        previous = Some(c);
    }
    out
}

/// The trees that the environment makes: standard names first, then those with the prefix.
pub(super) fn environment<T: Config>(
    root: &Json,
    variables: &[(String, String)],
    ids: &mut Ids,
    problems: &mut Vec<Problem>,
) -> Vec<Node> {
    let mut trees = Vec::new();
    for (name, path) in T::STANDARD_ENV {
        // By habit, a standard variable that is empty is not set.
        let Some((_, value)) = variables
            .iter()
            .rev()
            .find(|(variable, value)| variable == name && !value.is_empty())
        else {
            continue;
        };
        if let Ok((path, field)) = follow(root, path.split('.'), |segment, name| segment == name) {
            trees.extend(branch(
                root,
                field,
                &path,
                value,
                &Place::Env((*name).to_owned()),
                ids,
                problems,
            ));
        }
    }
    let prefix = format!("{}__", T::ENV_PREFIX);
    let mut ours: Vec<_> = variables
        .iter()
        .filter_map(|(name, value)| Some((name, name.strip_prefix(&prefix)?, value)))
        .collect();
    ours.sort();
    for (name, rest, value) in ours {
        let place = Place::Env(name.clone());
        match follow(root, rest.split("__"), |segment, name| {
            shouted(name) == segment
        }) {
            Ok((path, field)) => {
                trees.extend(branch(root, field, &path, value, &place, ids, problems))
            }
            Err(Lost { segment, known }) => {
                let problem = Problem::new(
                    Kind::UnknownVariable,
                    format!("`{segment}` in {name} names no field"),
                    place,
                );
                let known: Vec<_> = known.iter().map(|field| shouted(field)).collect();
                problems.push(match nearest(&segment, known.iter().map(String::as_str)) {
                    Some(near) => problem.hint(format!("did you mean `{near}`?")),
                    None => problem.hint(format!("known here: {}", known.join(", "))),
                });
            }
        }
    }
    trees
}

/// The trees that flags make.
pub(super) fn flags(
    root: &Json,
    flags: &[Flag],
    ids: &mut Ids,
    problems: &mut Vec<Problem>,
) -> Vec<Node> {
    let mut trees = Vec::new();
    for Flag { flag, path, value } in flags {
        let place = Place::Flag(flag.clone());
        match follow(root, path.split('.'), |segment, name| segment == name) {
            Ok((path, field)) => {
                trees.extend(branch(root, field, &path, value, &place, ids, problems))
            }
            Err(Lost { segment, known }) => {
                let problem = Problem::new(
                    Kind::UnknownPath,
                    format!("`{segment}` in `{path}` names no field"),
                    place,
                );
                problems.push(match nearest(&segment, known.iter().copied()) {
                    Some(near) => problem.hint(format!("did you mean `{near}`?")),
                    None => problem.hint(format!("known here: {}", known.join(", "))),
                });
            }
        }
    }
    trees
}

struct Lost<'s> {
    segment: String,
    known: Vec<&'s str>,
}

fn follow<'s, 'p>(
    root: &'s Json,
    segments: impl Iterator<Item = &'p str>,
    same: impl Fn(&str, &str) -> bool,
) -> Result<(Vec<String>, &'s Json), Lost<'s>> {
    let (mut path, mut at) = (Vec::new(), root);
    for segment in segments {
        let found = schema::step(
            root,
            at,
            |name| same(segment, name),
            &segment.to_lowercase(),
        );
        let Some((name, field)) = found else {
            let known = schema::fields(root, at)
                .into_iter()
                .map(|(name, _)| name)
                .collect();
            return Err(Lost {
                segment: segment.to_owned(),
                known,
            });
        };
        path.push(name);
        at = field;
    }
    Ok((path, at))
}

/// A tree with one value at the end of a path.
fn branch(
    root: &Json,
    field: &Json,
    path: &[String],
    value: &str,
    place: &Place,
    ids: &mut Ids,
    problems: &mut Vec<Problem>,
) -> Option<Node> {
    let mut node = if schema::wants_text(root, field) {
        Node {
            id: ids.next(),
            value: Value::Scalar(value.to_owned(), false),
            at: place.clone(),
            label: None,
        }
    } else {
        tree::parse_value(value, place, ids, problems)?
    };
    for name in path.iter().rev() {
        node.label = Some(place.clone());
        let key = Key {
            text: name.clone(),
            at: place.clone(),
        };
        node = Node {
            id: ids.next(),
            value: Value::Map(vec![(key, node)]),
            at: place.clone(),
            label: None,
        };
    }
    Some(node)
}
