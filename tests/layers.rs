//! Holds the layers of ARCHITECTURE.md: a file may use modules above it in this list, never those below, and edges
//! never use each other. The imports are read from the source itself.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs;
use std::path::{Path, PathBuf};

/// From the bottom of the program to its top; modules on one line are of one layer.
const LAYERS: &[(&str, &[&str])] = &[
    (
        "leaves",
        &[
            "address", "causes", "clock", "id", "identity", "json", "pages", "rate", "reader", "secret",
            "units",
        ],
    ),
    ("domain", &["delivery", "dedup", "forward", "route", "shape", "verify"]),
    ("services", &["config", "metrics", "patience", "replies"]),
    ("store", &["store"]),
    ("edges", &["ingest", "dispatch", "admin"]),
    ("app", &["app"]),
    ("binary", &["main", "cli"]),
];

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|(_, modules)| modules.contains(&module))
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The first segment below `src`, without its extension: `src/ingest/head.rs` is of the module `ingest`.
fn module_of(file: &Path, src: &Path) -> String {
    let first = file.strip_prefix(src).unwrap().components().next().unwrap();
    Path::new(first.as_os_str()).file_stem().unwrap().to_str().unwrap().to_owned()
}

/// The code of a file without comments and without its tests, which may use whatever they need.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

/// Modules of ours that the code names: after `crate::`, and in the binary after `countersign::`, groups included.
fn used_modules(code: &str, root: &str) -> Vec<String> {
    let mut used = Vec::new();
    for (at, _) in code.match_indices(root) {
        // `other_crate::` and `my_countersign::` end in the same letters.
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &code[at + root.len()..];
        let names = match rest.strip_prefix('{') {
            Some(group) => top_level_names(group),
            None => vec![identifier(rest)],
        };
        used.extend(names);
    }
    used
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn top_level_names(group: &str) -> Vec<String> {
    let (mut depth, mut names, mut expects_name) = (0, Vec::new(), true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => expects_name = true,
            c if depth == 0 && expects_name && (c.is_alphanumeric() || c == '_') => {
                names.push(identifier(&group[at..]));
                expects_name = false;
            }
            _ => {}
        }
    }
    names
}

#[test]
fn no_file_uses_a_module_of_a_later_layer_and_edges_do_not_use_each_other() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    assert!(files.len() > 30, "only {} files found", files.len());

    let mut broken = Vec::new();
    let mut imports = 0;
    for file in &files {
        let module = module_of(file, &src);
        if module == "lib" {
            continue;
        }
        let own = layer(&module)
            .unwrap_or_else(|| panic!("{module} is in no layer: add it here and to ARCHITECTURE.md"));
        let root = if LAYERS[own].0 == "binary" { "countersign::" } else { "crate::" };
        for used in used_modules(&code(file), root) {
            let Some(of) = layer(&used) else { continue };
            imports += 1;
            let sideways = of == own && LAYERS[own].0 == "edges" && used != module;
            if of > own || sideways {
                broken.push(format!("{} ({}) uses {used} ({})", file.display(), LAYERS[own].0, LAYERS[of].0));
            }
        }
    }
    assert!(imports > 80, "only {imports} imports found");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_domain_is_pure() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    let pure = |file: &&PathBuf| layer(&module_of(file, &src)).is_some_and(|of| of <= 1);
    let files: Vec<_> = files.iter().filter(pure).collect();
    assert!(files.len() > 10, "only {} files found", files.len());
    for file in files {
        let code = code(file);
        for banned in
            ["tokio::", "hyper", "std::fs", "std::net::Tcp", "fastrand", "Clock::system", "tracing::"]
        {
            assert!(!code.contains(banned), "{} uses {banned}", file.display());
        }
    }
}

#[test]
fn the_reader_of_imports_sees_groups_and_plain_paths() {
    let code = "use crate::{clock::{Clock, Timestamp}, store};\nlet x = crate::verify::sign();\nother_crate::ingest::x";
    assert_eq!(used_modules(code, "crate::"), ["clock", "store", "verify"]);
}
