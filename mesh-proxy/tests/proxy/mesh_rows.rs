//! The 68 numbered tests of traffic and policy: each is a test by its number, or docs/mesh-rows.md says where it is or why not yet.
//! Trusts the names of tests.
//! Never lets a row be both.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The numbers in the names of tests below a folder.
fn tested(folder: &Path, found: &mut BTreeSet<u32>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                tested(&path, found);
            }
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).unwrap();
            for line in text.lines().map(str::trim_start) {
                let line = line.strip_prefix("async ").unwrap_or(line);
                if let Some(name) = line.strip_prefix("fn ") {
                    found.extend(numbers(name));
                }
            }
        }
    }
}

/// `mesh_c1_7_and_8_…` has the numbers 7 and 8.
fn numbers(name: &str) -> Vec<u32> {
    let Some((_, rest)) = name.split_once("mesh_c1_") else {
        return Vec::new();
    };
    rest.split('_')
        .filter(|word| *word != "and")
        .map_while(|word| word.parse().ok())
        .collect()
}

#[test]
fn each_of_the_68_is_a_test_or_a_row_that_says_why_not() {
    assert_eq!(numbers("po_09_and_mesh_c1_13_and_14_a_host(): x"), [13, 14]);
    assert_eq!(numbers("mesh_c1_49_px_24_plaintext()"), [49]);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut by_test = BTreeSet::new();
    for folder in ["mesh-proxy", "crates", "tests"] {
        tested(&root.join(folder), &mut by_test);
    }
    let table = fs::read_to_string(root.join("docs/mesh-rows.md")).unwrap();
    let mut by_row = BTreeSet::new();
    for line in table.lines() {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        if let [_, row, why, _] = cells[..]
            && let Ok(number) = row.parse::<u32>()
        {
            assert!(why.len() > 4, "{number} says nothing");
            assert!(by_row.insert(number), "{number} stands there twice");
        }
    }
    let silent: Vec<_> = (1..=68)
        .filter(|n| !by_test.contains(n) && !by_row.contains(n))
        .collect();
    assert!(silent.is_empty(), "neither a test nor a row: {silent:?}");
    let both: Vec<_> = by_test.intersection(&by_row).collect();
    assert!(both.is_empty(), "a test and a row: {both:?}");
    assert!(by_row.iter().all(|n| (1..=68).contains(n)), "{by_row:?}");
}
