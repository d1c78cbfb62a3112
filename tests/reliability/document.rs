//! `docs/reliability.md` cannot rot: each row names a test that exists.

use std::path::Path;

#[test]
fn every_row_names_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(root.join("docs/reliability.md")).unwrap();
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
    let rows: Vec<_> = document.lines().filter(|line| line.starts_with("| ") && line.contains('`')).collect();
    assert!(!rows.is_empty());
    for row in rows {
        let held_by = row.split(" | ").nth(1).unwrap();
        let names = held_by.split('`').skip(1).step_by(2);
        assert!(names.clone().count() > 0, "no test in {row}");
        for name in names {
            assert!(sources.contains(&format!("fn {name}(")), "{name} does not exist");
        }
    }
}
