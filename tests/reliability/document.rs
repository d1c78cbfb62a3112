//! `docs/reliability.md` and `docs/security.md` cannot rot: the tests that they name exist.

use std::path::Path;

/// The source of all tests.
fn sources() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = String::new();
    let mut folders = vec![root.join("tests"), root.join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    sources
}

/// The tests that the column headed `held by` names, row by row.
fn held_by(document: &str) -> Vec<(String, Vec<String>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
    let (mut column, mut rows) = (None, Vec::new());
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        if !line.starts_with('|') {
            column = None;
        } else if let Some(found) = cells.iter().position(|cell| *cell == "held by") {
            column = Some(found);
        } else if let Some(cell) =
            column.and_then(|column| cells.get(column)).filter(|_| line.starts_with("| "))
        {
            let names = cell.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            rows.push((line.to_owned(), names));
        }
    }
    assert!(rows.len() > 20, "{document}");
    rows
}

#[test]
fn every_row_names_a_test_that_exists() {
    let sources = sources();
    for document in ["docs/reliability.md", "docs/security.md"] {
        for (row, names) in held_by(document) {
            // What is not offered is held by nothing.
            assert!(!names.is_empty() || document.ends_with("security.md"), "no test in {row}");
            for name in names {
                assert!(sources.contains(&format!("fn {name}(")), "{name} does not exist");
            }
        }
    }
}
