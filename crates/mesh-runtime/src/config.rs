//! Decides what a program's configuration is: strict YAML, read once, every mistake reported at once with its place.
//! Trusts no key, unit or word that it does not know; never guesses, never quotes a secret, never applies half a file.
//!
//! ```
//! use mesh_runtime::config::{self, Config, Findings, HumanDuration, Sources};
//! use schemars::JsonSchema; use serde::{Deserialize, Serialize};
//! #[derive(Serialize, Deserialize, JsonSchema)]
//! #[serde(rename_all = "camelCase", default)]
//! struct Demo { /** How long an SVID lives. */ svid_ttl: HumanDuration, listen: std::net::SocketAddr }
//! impl Default for Demo { fn default() -> Self { Self { svid_ttl: HumanDuration::from_secs(3600), listen: ([127, 0, 0, 1], 0).into() } } }
//! impl Config for Demo {
//!     const KIND: &'static str = "DemoConfig";
//!     const ENV_PREFIX: &'static str = "DEMO";               // DEMO__SVID_TTL=90s
//!     fn check(&self, found: &mut Findings) {                 // cross-field rules, shown at their lines
//!         if self.svid_ttl.is_zero() { found.disagree(&["svidTtl"], "svidTtl is zero"); }
//!     }
//! }
//! let loaded = config::load::<Demo>(&Sources::new().over("--svid-ttl", "svidTtl", "90s")).unwrap();
//! assert_eq!(loaded.value.svid_ttl.as_secs(), 90);
//! assert_eq!(loaded.origin("svidTtl").to_string(), "flag --svid-ttl");
//! assert!(config::print_defaults::<Demo>().contains("# How long an SVID lives.\nsvidTtl: 1h\n"));
//! ```
//!
//! Rules for configuration types: `#[serde(rename_all = "camelCase", default)]` on every section; no `flatten`, `untagged`
//! or internally tagged enums (serde buffers those, so places inside them are lost); doc comments become the comments of
//! `print-defaults`. A file starts with `apiVersion: config.finial.dev/v1` and `kind: <KIND>`; the type does not hold them.

use std::fmt;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

mod de;
mod emit;
mod overlay;
mod problem;
mod schema;
mod tree;
mod values;

pub use problem::{ConfigErrors, Problem};
pub use values::{ByteSize, HumanDuration, ParseValueError};

use problem::{Kind, Place, Text};
use tree::{Node, Value};

/// The version that every configuration file names.
pub const API_VERSION: &str = "config.finial.dev/v1";

/// The code of a rule over several fields that has no code of its own.
pub const FIELDS_DISAGREE: &str = "FNL0116";

/// The largest file that is read.
const LARGEST_FILE: u64 = 1024 * 1024;

/// A program's configuration.
pub trait Config: DeserializeOwned + Serialize + Default + JsonSchema {
    /// The `kind` that its files name, such as `CaServerConfig`.
    const KIND: &'static str;
    /// The first part of its environment variables, such as `CA_SERVER` in `CA_SERVER__LISTEN__ADDRESS`.
    const ENV_PREFIX: &'static str;
    /// Variables with a name of their own, each with the path of the field it sets. One whose field this
    /// configuration does not have is ignored. A variable with the prefix wins over them.
    const STANDARD_ENV: &'static [(&'static str, &'static str)] = &[("RUST_LOG", "log.level")];

    /// Rules that one field alone cannot tell, each reported at the lines of its fields.
    fn check(&self, found: &mut Findings) {
        let _: &mut Findings = found;
    }
}

/// Where the configuration comes from, in rising order of precedence: defaults, files, environment, flags.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    files: Vec<PathBuf>,
    texts: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    flags: Vec<Flag>,
}

#[derive(Clone, Debug)]
struct Flag {
    flag: String,
    path: String,
    value: String,
}

impl Sources {
    /// Only the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file, or a directory whose `*.yaml` files are read in the order of their names. Later ones win.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.push(path.into());
        self
    }

    /// Adds a text as if it were the file `name`: for tests and the dev mode.
    #[must_use]
    pub fn text(mut self, name: &str, yaml: &str) -> Self {
        self.texts.push((name.to_owned(), yaml.to_owned()));
        self
    }

    /// Adds the process environment. Only `main` should call this; tests bring their own by [`Sources::variable`].
    #[must_use]
    pub fn environment(mut self) -> Self {
        // A variable that is not UTF-8 cannot be one of ours.
        let text = |os: std::ffi::OsString| os.into_string().ok();
        self.environment.extend(
            std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?))),
        );
        self
    }

    /// Adds one environment variable.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the field at `path` (`listen.address`) from the command line; `flag` is how the user wrote it.
    #[must_use]
    pub fn over(mut self, flag: &str, path: &str, value: &str) -> Self {
        self.flags.push(Flag {
            flag: flag.to_owned(),
            path: path.to_owned(),
            value: value.to_owned(),
        });
        self
    }

    /// As [`Sources::over`], when the flag was given.
    #[must_use]
    pub fn over_if(self, flag: &str, path: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.over(flag, path, value),
            None => self,
        }
    }
}

/// A configuration and where each of its values came from.
#[derive(Clone, Debug)]
pub struct Loaded<T> {
    /// The effective configuration.
    pub value: T,
    tree: Node,
    texts: Vec<Text>,
}

/// Where one value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A file and a line.
    File(String, usize),
    /// An environment variable.
    Env(String),
    /// A flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{path}:{line}"),
            Self::Env(name) => write!(f, "env {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

impl<T: Config> Loaded<T> {
    /// The origin of the value at `path` (`listen.address`, `attestation.node.0`).
    pub fn origin(&self, path: &str) -> Origin {
        origin(self.tree.find(path), &self.texts)
    }

    /// The effective configuration as YAML, with the origin of each value when wanted. Secrets are redacted.
    pub fn show(&self, with_origin: bool) -> String {
        emit::effective::<T>(&self.value, &|path| {
            with_origin.then(|| self.origin(path).to_string())
        })
    }

    /// The effective configuration as `{"value":…}`, with `"origins"` by path when wanted. Secrets are redacted.
    pub fn to_json(&self, with_origin: bool) -> serde_json::Value {
        let value = serde_json::to_value(&self.value).unwrap_or_default();
        if !with_origin {
            return serde_json::json!({ "value": value });
        }
        let mut origins = serde_json::Map::new();
        leaves(&value, "", &mut |path| {
            origins.insert(path.to_owned(), self.origin(path).to_string().into());
        });
        serde_json::json!({ "value": value, "origins": origins })
    }
}

fn leaves(value: &serde_json::Value, path: &str, seen: &mut impl FnMut(&str)) {
    let below = |name: &str| {
        if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        }
    };
    match value {
        serde_json::Value::Object(fields) if !fields.is_empty() => fields
            .iter()
            .for_each(|(name, field)| leaves(field, &below(name), seen)),
        serde_json::Value::Array(items) if !items.is_empty() => {
            items
                .iter()
                .enumerate()
                .for_each(|(index, item)| leaves(item, &below(&index.to_string()), seen));
        }
        _ => seen(path),
    }
}

fn origin(node: Option<&Node>, texts: &[Text]) -> Origin {
    match node.map(|node| node.label.as_ref().unwrap_or(&node.at)) {
        None => Origin::Default,
        Some(Place::File { text, line, .. }) => Origin::File(
            texts
                .get(*text)
                .map_or_else(String::new, |t| t.name.clone()),
            *line,
        ),
        Some(Place::Env(name)) => Origin::Env(name.clone()),
        Some(Place::Flag(flag)) => Origin::Flag(flag.clone()),
    }
}

/// What [`Config::check`] found.
#[derive(Debug, Default)]
pub struct Findings {
    found: Vec<Finding>,
}

#[derive(Debug)]
struct Finding {
    code: &'static str,
    paths: Vec<String>,
    message: String,
    hint: Option<String>,
}

impl Findings {
    /// Reports that the fields at `paths` do not go together; the first one gets the caret, the others are named by line.
    /// `code` is the program's own; see [`Findings::disagree`] when it has none.
    pub fn problem(&mut self, code: &'static str, paths: &[&str], message: impl Into<String>) {
        let paths = paths.iter().map(|p| (*p).to_owned()).collect();
        self.found.push(Finding {
            code,
            paths,
            message: message.into(),
            hint: None,
        });
    }

    /// As [`Findings::problem`], with the general code `FNL0116`.
    pub fn disagree(&mut self, paths: &[&str], message: impl Into<String>) {
        self.problem(FIELDS_DISAGREE, paths, message);
    }

    /// As [`Findings::problem`], with what to do about it beside the caret.
    pub fn problem_with_hint(
        &mut self,
        code: &'static str,
        paths: &[&str],
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.problem(code, paths, message);
        if let Some(last) = self.found.last_mut() {
            last.hint = Some(hint.into());
        }
    }
}

/// Reads everything, or reports everything that is wrong.
///
/// # Errors
/// All mistakes of all sources, each with its place.
pub fn load<T: Config>(sources: &Sources) -> Result<Loaded<T>, ConfigErrors> {
    let mut problems = Vec::new();
    let mut texts = Vec::new();
    let mut trees = Vec::new();
    let mut ids = tree::Ids::default();
    for (name, content) in read_all(sources, &mut problems) {
        let index = texts.len();
        texts.push(Text { name, content });
        if let Some(mut tree) = tree::parse(
            &texts[index].content,
            &|span| tree::file_place(index, span),
            &mut ids,
            &mut problems,
        ) {
            take_header::<T>(&mut tree, &mut problems);
            trees.push(tree);
        }
    }
    let schema = schema::raw::<T>();
    trees.extend(overlay::environment::<T>(
        &schema,
        &sources.environment,
        &mut ids,
        &mut problems,
    ));
    trees.extend(overlay::flags(
        &schema,
        &sources.flags,
        &mut ids,
        &mut problems,
    ));
    let readable = problems.is_empty();
    let mut merged = Node::empty_map(ids.next(), Place::Flag(String::new()));
    for tree in trees {
        merged.merge(tree);
    }
    let (value, poisoned) = de::deserialize::<T>(&merged, &mut problems);
    if let Some(value) = &value {
        let mut findings = Findings::default();
        value.check(&mut findings);
        let clean = problems.is_empty();
        for finding in findings.found {
            let places: Vec<_> = finding
                .paths
                .iter()
                .map(|path| merged.nearest(path))
                .collect();
            // Beside other mistakes only what the user really wrote is judged: a default that stands in for a
            // value which could not be read says nothing about the file.
            let certain = places.iter().all(|found| {
                found.is_some_and(|(node, whole)| whole && !poisoned.contains(&node.id))
            });
            if clean || certain {
                problems.push(Problem::finding(
                    finding.code,
                    finding.message,
                    finding.hint,
                    places
                        .into_iter()
                        .map(|p| p.map(|(n, _)| n.at.clone()))
                        .collect(),
                ));
            }
        }
    }
    match value {
        Some(value) if problems.is_empty() => Ok(Loaded {
            value,
            tree: merged,
            texts,
        }),
        _ => {
            // A file that cannot be parsed leaves fields out; saying so once is enough.
            if !readable {
                problems.retain(|p| p.kind != Kind::Missing);
            }
            Err(ConfigErrors::new(problems, texts))
        }
    }
}

/// The defaults as commented YAML that loads back to exactly the defaults.
pub fn print_defaults<T: Config>() -> String {
    emit::defaults::<T>()
}

/// The JSON Schema of the files.
pub fn schema<T: Config>() -> serde_json::Value {
    schema::published::<T>()
}

fn read_all(sources: &Sources, problems: &mut Vec<Problem>) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for path in &sources.files {
        let files = if path.is_dir() {
            yaml_files(path)
        } else {
            Ok(vec![path.clone()])
        };
        match files {
            Ok(files) => {
                for file in files {
                    match read(&file) {
                        Ok(content) => all.push((file.display().to_string(), content)),
                        Err(error) => problems.push(Problem::unreadable(&file, &error)),
                    }
                }
            }
            Err(error) => problems.push(Problem::unreadable(path, &error)),
        }
    }
    all.extend(sources.texts.iter().cloned());
    all
}

fn yaml_files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "yaml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut content = String::new();
    // One byte more than allowed tells a file that is too large from one that just fits.
    std::fs::File::open(path)?
        .take(LARGEST_FILE + 1)
        .read_to_string(&mut content)?;
    if content.len() as u64 > LARGEST_FILE {
        return Err(std::io::Error::other("it is larger than 1 MiB"));
    }
    Ok(content)
}

/// Takes `apiVersion` and `kind` out of a file's tree and checks them.
fn take_header<T: Config>(tree: &mut Node, problems: &mut Vec<Problem>) {
    let at = tree.at.clone();
    let Value::Map(entries) = &mut tree.value else {
        return;
    };
    for (name, wanted) in [("apiVersion", API_VERSION), ("kind", T::KIND)] {
        match entries.iter().position(|(key, _)| key.text == name) {
            None => problems.push(
                Problem::new(Kind::Header, format!("`{name}` is missing"), at.clone())
                    .hint(format!("add `{name}: {wanted}`")),
            ),
            Some(index) => {
                let (_, node) = entries.remove(index);
                if node.as_text() != Some(wanted) {
                    problems.push(
                        Problem::new(
                            Kind::Header,
                            format!("wrong `{name}` for this program"),
                            node.at,
                        )
                        .hint(format!("expected `{wanted}`")),
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
