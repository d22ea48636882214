//! The rules of the house: who may know whom, which word belongs where, one owner and one page for each error code.
//! Trusts cargo's metadata and the files of this repository.
//! Never starts a program; a broken rule names the file and the rule.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Which package may not depend on what. The picture is docs' and README's; a new package needs a line here.
const MUST_NOT_KNOW: &[(&str, &[&str])] = &[
    (
        "mesh-identity",
        &[
            "tokio",
            "tonic",
            "prost",
            "hyper",
            "rustls",
            "kube",
            "k8s-openapi",
            "sled",
            "sqlx",
            "mesh-policy",
            "mesh-tls",
            "mesh-runtime",
            "proto",
        ],
    ),
    (
        "mesh-policy",
        &[
            "tokio",
            "tonic",
            "prost",
            "hyper",
            "rustls",
            "kube",
            "k8s-openapi",
            "gateway-api",
            "sled",
            "sqlx",
            "mesh-tls",
            "mesh-runtime",
            "proto",
        ],
    ),
    (
        "mesh-tls",
        &[
            "tonic",
            "prost",
            "hyper",
            "kube",
            "k8s-openapi",
            "sled",
            "sqlx",
            "mesh-policy",
            "mesh-runtime",
            "proto",
        ],
    ),
    (
        "mesh-runtime",
        &[
            "kube",
            "k8s-openapi",
            "sled",
            "sqlx",
            "mesh-identity",
            "mesh-policy",
            "mesh-tls",
            "proto",
        ],
    ),
    (
        "proto",
        &[
            "rustls",
            "tokio-rustls",
            "mesh-tls",
            "mesh-runtime",
            "kube",
            "k8s-openapi",
            "sled",
            "sqlx",
        ],
    ),
    ("ca-server", &["workload-agent", "mesh-proxy", "finial"]),
    (
        "workload-agent",
        &["ca-server", "mesh-proxy", "finial", "sled", "sqlx"],
    ),
    (
        "mesh-proxy",
        &[
            "ca-server",
            "workload-agent",
            "finial",
            "sled",
            "sqlx",
            "kube",
            "k8s-openapi",
        ],
    ),
    ("finial", &["sled", "sqlx"]),
    ("mesh-tests", &[]),
];

/// Which words may stand only in which places below a package's `src`. Comments count too.
/// A place is a folder or a file; `store/sled.rs` covers the folder `store/sled` as well.
const ONLY_IN: &[(&str, &str, &[&str])] = &[
    ("ca-server", "sled::", &["store/sled.rs"]),
    ("ca-server", "sqlx::", &["store/postgres.rs"]),
    (
        "ca-server",
        "kube::",
        &["kubernetes.rs", "attestation/k8s.rs"],
    ),
    (
        "ca-server",
        "k8s_openapi::",
        &["kubernetes.rs", "attestation/k8s.rs"],
    ),
    // The commands are clients of the admin socket.
    ("ca-server", "proto::", &["api.rs", "cli.rs"]),
    ("ca-server", "anyhow", &["app.rs", "main.rs"]),
    (
        "workload-agent",
        "proto::",
        &[
            "bootstrap.rs",
            "upstream.rs",
            "api.rs",
            "relay.rs",
            "reports.rs",
            "cli.rs",
            // A workload like others, at the other end of the socket.
            "helper/source.rs",
        ],
    ),
    ("workload-agent", "kube::", &["attestor/k8s.rs"]),
    ("workload-agent", "anyhow", &["app.rs", "main.rs"]),
    (
        "mesh-proxy",
        "proto::",
        &["identity.rs", "feed.rs", "record.rs"],
    ),
    ("mesh-proxy", "anyhow", &["app.rs", "main.rs"]),
    (
        "crates/finial",
        "proto::",
        &["connect.rs", "commands.rs", "dev.rs"],
    ),
    (
        "crates/finial",
        "kube::",
        &["connect.rs", "commands/k8s.rs"],
    ),
    ("crates/mesh-tls", "aws_lc_rs", &["provider.rs"]),
    ("crates/mesh-identity", "rcgen::", &["test_util.rs"]),
    ("crates/mesh-identity", "aws_lc_rs", &[]),
    ("crates/mesh-runtime", "aws_lc_rs", &[]),
    ("ca-server", "aws_lc_rs", &[]),
    ("workload-agent", "aws_lc_rs", &[]),
    ("mesh-proxy", "aws_lc_rs", &[]),
    ("proto", "aws_lc_rs", &[]),
];

/// Which words may not stand in which places below a package's `src`: what decides does not know who asks.
const NEVER_IN: &[(&str, &[&str], &[&str])] = &[
    (
        "ca-server",
        &[
            "issuance.rs",
            "registry.rs",
            "authority.rs",
            "federation.rs",
            "bundle.rs",
        ],
        &[
            "crate::api",
            "crate::console",
            "crate::public",
            "crate::kubernetes",
            "crate::cli",
            "tonic::",
        ],
    ),
    (
        "ca-server",
        &["store.rs"],
        &[
            "crate::issuance",
            "crate::registry",
            "crate::authority",
            "crate::attestation",
            "crate::api",
            "tonic::",
        ],
    ),
    (
        "ca-server",
        &["attestation.rs"],
        &["crate::api", "crate::cli", "tonic::"],
    ),
    (
        "workload-agent",
        &["vault.rs", "rotation.rs", "attestor.rs"],
        &["crate::api", "crate::cli", "tonic::"],
    ),
    ("mesh-proxy", &["decide.rs"], &["crate::http", "hyper::"]),
    (
        "crates/mesh-identity",
        &["."],
        &[
            "SystemTime::now",
            "Instant::now",
            "std::net::Tcp",
            "std::fs::",
        ],
    ),
    (
        "crates/mesh-policy",
        &["."],
        &[
            "SystemTime::now",
            "Instant::now",
            "std::net::Tcp",
            "std::fs::",
        ],
    ),
];

/// What may lie at the top of the repository, and whether it must.
const TOP_LEVEL: &[(&str, bool)] = &[
    ("Cargo.toml", true),
    ("ca-server", true),
    ("workload-agent", true),
    ("mesh-proxy", true),
    ("proto", true),
    ("crates", true),
    ("tests", true),
    ("deploy", true),
    ("docs", true),
    ("README.md", true),
    // What tools and readers of every repository look for.
    ("Cargo.lock", true),
    (".cargo", true),
    (".ci", true),
    (".gitignore", true),
    ("clippy.toml", true),
    ("deny.toml", true),
    ("LICENSE", true),
    ("CONTRIBUTING.md", true),
    ("SECURITY.md", true),
    ("CHANGELOG.md", true),
    (".dockerignore", false),
    (".gitattributes", false),
    (".github", false),
    ("NOTICE", false),
    ("rust-toolchain.toml", false),
    ("rustfmt.toml", false),
];

#[test]
fn packages_know_only_what_the_picture_allows() {
    let packages = packages();
    let known: BTreeSet<_> = packages.keys().map(String::as_str).collect();
    let listed: BTreeSet<_> = MUST_NOT_KNOW.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        known, listed,
        "the packages of the workspace, and those that the table in tests/e2e/rules.rs knows"
    );
    for (name, banned) in MUST_NOT_KNOW {
        for dependency in banned.iter().chain(&["mesh-tests"]) {
            let knows = packages[*name].iter().any(|d| d == dependency);
            assert!(!knows, "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn words_stay_in_their_places() {
    let mut broken = Vec::new();
    for (package, word, places) in ONLY_IN {
        for (place, text) in sources(package) {
            if !places.iter().any(|p| covers(p, &place)) && names(&text, word) {
                broken.push(format!("{package}/src/{} names {word}", place.display()));
            }
        }
    }
    for (package, places, words) in NEVER_IN {
        for (place, text) in sources(package) {
            if places.iter().any(|p| covers(p, &place)) && !is_test(&place) {
                let found = words
                    .iter()
                    .filter(|word| names(without_tests(&text), word));
                broken.extend(
                    found.map(|word| format!("{package}/src/{} names {word}", place.display())),
                );
            }
        }
    }
    assert!(
        broken.is_empty(),
        "words outside their places:\n  {}",
        broken.join("\n  ")
    );
}

#[test]
fn each_error_code_has_one_owner_and_one_page() {
    let mut owners: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in rust_files(&root()).into_iter().filter(|f| is_product(f)) {
        let text = read(&file);
        for (number, line) in without_tests(&text).lines().enumerate() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            for code in codes(line) {
                owners
                    .entry(code)
                    .or_default()
                    .push(format!("{}:{}", shown(&file), number + 1));
            }
        }
    }
    let pages = pages();
    let mut broken = Vec::new();
    for (code, places) in &owners {
        if places.len() > 1 {
            broken.push(format!(
                "{code} has more than one owner: {}",
                places.join(", ")
            ));
        }
        if !pages.contains_key(code) {
            broken.push(format!(
                "{code} ({}) has no page docs/errors/{code}.md",
                places[0]
            ));
        }
    }
    for (code, text) in &pages {
        if !owners.contains_key(code) {
            broken.push(format!(
                "docs/errors/{code}.md explains a code that no source file owns"
            ));
        }
        let first = text.lines().next().unwrap_or_default();
        if !(first.starts_with("# ") && first.contains(code.as_str())) {
            broken.push(format!(
                "docs/errors/{code}.md does not begin with a heading that names {code}"
            ));
        }
        if text.lines().filter(|l| !l.trim().is_empty()).count() < 3 {
            broken.push(format!(
                "docs/errors/{code}.md says too little: what, why, what to do"
            ));
        }
    }
    assert!(
        !owners.is_empty(),
        "the programs have error codes; the search must be wrong"
    );
    assert!(broken.is_empty(), "error codes:\n  {}", broken.join("\n  "));
}

#[test]
fn each_error_code_lies_in_the_range_of_its_owner() {
    let ranges: &[(&str, std::ops::RangeInclusive<u16>)] = &[
        ("crates/mesh-runtime/", 100..=299),
        ("crates/mesh-identity/", 300..=399),
        ("crates/mesh-tls/", 400..=499),
        ("crates/mesh-policy/", 500..=599),
        ("ca-server/", 1000..=1999),
        ("workload-agent/", 2000..=2999),
        ("mesh-proxy/", 3000..=3999),
        ("crates/finial/", 9000..=9999),
    ];
    // The configuration's range is shared: what a section of a program's configuration says about itself is a configuration error.
    let configuration = 100..=199u16;
    let mut broken = Vec::new();
    for file in rust_files(&root()).into_iter().filter(|f| is_product(f)) {
        let text = read(&file);
        let place = shown(&file);
        for line in without_tests(&text)
            .lines()
            .filter(|l| !l.trim_start().starts_with("//"))
        {
            for code in codes(line) {
                let number: u16 = code[3..].parse().expect("four digits");
                let owned = ranges
                    .iter()
                    .any(|(p, range)| place.starts_with(p) && range.contains(&number));
                if !owned && !configuration.contains(&number) {
                    broken.push(format!(
                        "{place} owns {code}, which lies in another's range"
                    ));
                }
            }
        }
    }
    assert!(broken.is_empty(), "error codes:\n  {}", broken.join("\n  "));
}

#[test]
fn the_top_level_is_exactly_the_allowed_list() {
    let root = root();
    let present = top_level(&root);
    let strangers: Vec<_> = present
        .iter()
        .filter(|name| !TOP_LEVEL.iter().any(|(allowed, _)| allowed == name))
        .collect();
    assert!(
        strangers.is_empty(),
        "not allowed at the top level: {strangers:?}"
    );
    let missing: Vec<_> = TOP_LEVEL
        .iter()
        .filter(|(name, must)| *must && !present.contains(*name))
        .map(|(name, _)| name)
        .collect();
    assert!(missing.is_empty(), "missing at the top level: {missing:?}");
}

#[test]
fn cargo_dev_is_an_alias_for_the_whole_system() {
    let text = read(&root().join(".cargo/config.toml"));
    let alias = text
        .lines()
        .find(|l| l.trim_start().starts_with("dev = "))
        .expect("an alias `dev`");
    assert!(
        alias.contains("--bin finial -- dev up"),
        "cargo dev runs {alias}"
    );
}

#[test]
fn every_source_file_opens_with_what_it_decides() {
    let silent: Vec<_> = rust_files(&root())
        .into_iter()
        .filter(|f| !f.components().any(|c| c.as_os_str() == "gen"))
        .filter(|f| !read(f).starts_with("//!"))
        .map(|f| shown(&f))
        .collect();
    assert!(
        silent.is_empty(),
        "these files do not open with `//!`:\n  {}",
        silent.join("\n  ")
    );
}

#[test]
fn nothing_is_left_for_later() {
    // Put together here, so that this file does not break its own rule.
    let words = [
        concat!("to", "do!("),
        concat!("unimpl", "emented!("),
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("not ", "implemented"),
    ];
    let mut broken = Vec::new();
    for file in rust_files(&root())
        .into_iter()
        .filter(|f| !f.components().any(|c| c.as_os_str() == "gen"))
    {
        let text = read(&file);
        for (number, line) in text.lines().enumerate() {
            let found = words.iter().filter(|word| line.contains(**word));
            broken.extend(found.map(|word| format!("{}:{}: {word}", shown(&file), number + 1)));
        }
    }
    assert!(
        broken.is_empty(),
        "left for later:\n  {}",
        broken.join("\n  ")
    );
}

#[test]
fn every_package_takes_versions_and_lints_from_the_root() {
    let mut broken = Vec::new();
    for manifest in manifests() {
        let text = read(&manifest);
        let place = shown(&manifest);
        let mut section = "";
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                section = line;
            } else if section.contains("dependencies") && !line.is_empty() && !line.starts_with('#')
            {
                let inherits = line.contains("workspace = true") || line.contains("path = ");
                if !inherits && line.contains('=') {
                    broken.push(format!(
                        "{place}: `{line}` does not take its version from the root"
                    ));
                }
            }
        }
        if !text.contains("[lints") {
            broken.push(format!("{place} has no lints"));
        }
        if !text.contains("publish.workspace = true") {
            broken.push(format!("{place} could be published by accident"));
        }
    }
    assert!(broken.is_empty(), "manifests:\n  {}", broken.join("\n  "));
}

#[test]
fn each_decision_has_one_number() {
    let mut numbers: BTreeMap<String, String> = BTreeMap::new();
    for name in file_names(&root().join("docs/decisions")) {
        let (number, rest) = name
            .split_once('-')
            .unwrap_or_else(|| panic!("{name} is not NNNN-title.md"));
        assert!(
            number.len() == 4 && number.bytes().all(|b| b.is_ascii_digit()),
            "{name} is not NNNN-title.md"
        );
        assert!(rest.ends_with(".md"), "{name} is not NNNN-title.md");
        if let Some(other) = numbers.insert(number.to_owned(), name.clone()) {
            panic!("{name} and {other} have the same number");
        }
    }
    assert!(!numbers.is_empty(), "decisions are written down");
}

/// Name of each package of the workspace → names of what it depends on outside tests and build scripts.
fn packages() -> BTreeMap<String, Vec<String>> {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        out.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    let meta: serde_json::Value = serde_json::from_slice(&out.stdout).expect("metadata is JSON");
    let text = |value: &serde_json::Value| value.as_str().expect("a name").to_owned();
    let packages = meta["packages"].as_array().expect("a list of packages");
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"]
                .as_array()
                .expect("a list of dependencies");
            let kept = dependencies.iter().filter(|d| d["kind"].is_null());
            (
                text(&package["name"]),
                kept.map(|d| text(&d["name"])).collect(),
            )
        })
        .collect()
}

/// Where the repository lies.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ has a parent")
        .to_owned()
}

fn manifests() -> Vec<PathBuf> {
    let root = root();
    let mut found: Vec<_> = file_names(&root.join("crates"))
        .into_iter()
        .map(|n| root.join("crates").join(n))
        .collect();
    found.extend(
        [
            "ca-server",
            "workload-agent",
            "mesh-proxy",
            "proto",
            "tests",
        ]
        .map(|n| root.join(n)),
    );
    found
        .into_iter()
        .map(|dir| dir.join("Cargo.toml"))
        .collect()
}

/// What git tracks at the top level; without git, what lies there, less the build folder.
fn top_level(root: &Path) -> BTreeSet<String> {
    let git = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(root)
        .output();
    match git {
        Ok(out) if out.status.success() && !out.stdout.is_empty() => {
            let names = String::from_utf8(out.stdout).expect("our file names are UTF-8");
            let top = names
                .split('\0')
                .filter(|n| !n.is_empty())
                .filter_map(|n| n.split('/').next());
            top.map(str::to_owned).collect()
        }
        _ => file_names(root)
            .into_iter()
            .filter(|name| name != "target" && name != ".git")
            .collect(),
    }
}

fn file_names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let name = |entry: fs::DirEntry| {
        entry
            .file_name()
            .into_string()
            .expect("our file names are UTF-8")
    };
    let mut names: Vec<_> = entries
        .map(|entry| name(entry.expect("a readable entry")))
        .collect();
    names.sort();
    names
}

/// Every Rust file of the repository that is not a build product.
fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for name in file_names(dir) {
        let path = dir.join(&name);
        if path.is_dir() {
            if name != "target" && name != ".git" {
                found.extend(rust_files(&path));
            }
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
    found
}

/// Path below `src` and text of each file of a package; a package that has no such folder yet has none.
fn sources(package: &str) -> Vec<(PathBuf, String)> {
    let src = root().join(package).join("src");
    let below = |f: PathBuf| {
        (
            f.strip_prefix(&src).expect("below src").to_owned(),
            read(&f),
        )
    };
    rust_files(&src).into_iter().map(below).collect()
}

fn covers(place: &str, file: &Path) -> bool {
    place == "."
        || file == Path::new(place)
        || file.starts_with(Path::new(place).with_extension(""))
}

/// Whether the text names the word, and not as the tail of a longer one (`mesh_proto::` is not `proto::`).
fn names(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

/// Whether a file is tests only.
fn is_test(file: &Path) -> bool {
    file.components().any(|c| {
        let name = c.as_os_str();
        name == "tests.rs"
            || name == "tests"
            || name == "benches"
            || name == "fuzz"
            || name == "test_util.rs"
    })
}

/// Whether a file is part of a program or library, and not a test of it. The scene of `cargo dev --once` is one: it
/// asserts the codes of others.
fn is_product(file: &Path) -> bool {
    let place = file.strip_prefix(root()).expect("below the root");
    if place == Path::new("crates/finial/src/dev/scene.rs") {
        return false;
    }
    !is_test(place)
        && place.components().any(|c| c.as_os_str() == "src")
        && !place.starts_with("tests")
}

/// The text before the module of tests that ends a file.
fn without_tests(text: &str) -> &str {
    match text.find("\n#[cfg(test)]\nmod tests {") {
        Some(at) => &text[..at],
        None => text,
    }
}

/// Error codes that are string literals of their own in this line.
fn codes(line: &str) -> Vec<String> {
    let code = |at: usize| {
        let literal = line.get(at + 1..at + 9)?;
        let digits = literal.strip_prefix("FNL")?.strip_suffix('"')?;
        digits
            .bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| format!("FNL{digits}"))
    };
    line.match_indices("\"FNL")
        .filter_map(|(at, _)| code(at))
        .collect()
}

/// Code and text of each page in docs/errors.
fn pages() -> BTreeMap<String, String> {
    let dir = root().join("docs/errors");
    let page = |name: String| match name.strip_suffix(".md") {
        Some(code) if code != "README" => Some((code.to_owned(), read(&dir.join(&name)))),
        Some(_) => None,
        None => panic!("docs/errors/{name} is not a page"),
    };
    file_names(&dir).into_iter().filter_map(page).collect()
}

fn shown(file: &Path) -> String {
    file.strip_prefix(root())
        .unwrap_or(file)
        .display()
        .to_string()
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}
