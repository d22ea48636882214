//! The rows of the threat model's test plan: each is tested by its number, or docs/security-rows.md says why not yet.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Every row of the plan for the authority, the embedded store and federation.
fn rows() -> BTreeSet<String> {
    let authority = (1..=36).chain(40..=42).chain(44..=55).chain(60..=64);
    let authority = authority.map(|n| format!("CA-{n:02}"));
    let store = (1..=25).map(|n| format!("ST-{n:02}"));
    let federation = (1..=15).map(|n| format!("FE-{n:02}"));
    authority.chain(store).chain(federation).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The names of all functions that are tests.
fn tests(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                tests(&path, found);
            }
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).expect("source is text");
            let functions = text.lines().filter_map(|line| {
                let line = line.trim_start();
                let line = line.strip_prefix("pub(super) ").unwrap_or(line);
                line.strip_prefix("async ")
                    .unwrap_or(line)
                    .strip_prefix("fn ")
            });
            found.extend(functions.filter_map(|rest| {
                let end = rest.find(['(', '<'])?;
                Some(format!("_{}_", &rest[..end]))
            }));
        }
    }
}

/// Each of these rows is the number in a test's name, with or without a leading zero, or a line of this table; never both.
pub(crate) fn hold(rows: &BTreeSet<String>, table: &str) {
    let mut names = BTreeSet::new();
    tests(&root(), &mut names);
    let tested = |row: &str| {
        let (kind, number) = row.split_once('-').expect("a kind and a number");
        let forms = [number.to_owned(), format!("{number:0>2}")];
        let forms = forms.map(|number| format!("_{}_{number}_", kind.to_lowercase()));
        names
            .iter()
            .any(|name| forms.iter().any(|form| name.contains(form)))
    };
    let text = fs::read_to_string(root().join(table)).expect("the table");
    let mut excused = BTreeSet::new();
    for line in text.lines() {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        if let [_, row, why, _] = cells[..]
            && row.contains('-')
            && row.ends_with(|c: char| c.is_ascii_digit())
        {
            assert!(rows.contains(row), "{table}: there is no row {row}");
            assert!(why.len() > 10, "{table}: {row} says nothing");
            let new = excused.insert(row.to_owned());
            assert!(new, "{table}: {row} stands there twice");
        }
    }
    let silent: Vec<_> = rows
        .iter()
        .filter(|row| !tested(row) && !excused.contains(*row))
        .collect();
    assert!(
        silent.is_empty(),
        "neither tested nor excused in {table}: {silent:?}"
    );
    let both: Vec<_> = excused.iter().filter(|row| tested(row)).collect();
    assert!(both.is_empty(), "tested and excused in {table}: {both:?}");
}

#[test]
fn each_row_of_the_test_plan_is_a_test_or_says_why_not_yet() {
    hold(&rows(), "docs/security-rows.md");
}
