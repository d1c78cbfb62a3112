//! The properties of `fuzz/`, without cargo-fuzz: over the corpora that are kept, and over mutants of them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

#[path = "fuzz/mutate.rs"]
mod mutate;
#[path = "fuzz/properties.rs"]
mod properties;
#[expect(dead_code, reason = "the numbers are for other tests")]
#[path = "shared/soak.rs"]
mod soak;

use mutate::mutant;
use properties::{Property, TARGETS};

/// Mutants of each corpus in `./test`; the long mode goes by the clock.
const MUTANTS: usize = 3_000;
const LONG: Duration = Duration::from_secs(60);
/// A corpus is read by people, too.
const FILES_MAX: usize = 60;
const BYTES_MAX: usize = 64 << 10;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// Names and contents, in the order of the names.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(root().join("corpus").join(target)).unwrap();
    let read =
        |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    let mut files: Vec<_> = entries.map(|entry| read(entry.unwrap())).collect();
    files.sort();
    files
}

#[test]
fn every_property_holds_for_its_corpus() {
    for (target, check) in TARGETS {
        let files = corpus(target);
        let bytes: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!((1..=FILES_MAX).contains(&files.len()), "{} files of {target}", files.len());
        assert!(bytes <= BYTES_MAX, "{bytes} bytes of {target}");
        for (name, input) in files {
            let held = catch_unwind(|| check(&input));
            assert!(held.is_ok(), "fuzz/corpus/{target}/{name}: see above");
        }
    }
}

#[test]
fn no_input_breaks_a_parser_or_its_rules() {
    let seed = match std::env::var_os("COUNTERSIGN_SEED") {
        Some(seed) => seed.to_str().and_then(|seed| seed.parse().ok()).expect("COUNTERSIGN_SEED is a number"),
        None => fastrand::u64(..),
    };
    thread::scope(|scope| {
        for (target, check) in TARGETS {
            scope.spawn(move || {
                let mutants = mutate_and_check(target, check, seed);
                println!("{target}: {mutants} mutants");
            });
        }
    });
}

/// Returns how many were tried.
fn mutate_and_check(target: &str, check: Property, seed: u64) -> usize {
    let corpus: Vec<_> = corpus(target).into_iter().map(|(_, input)| input).collect();
    let mut random = fastrand::Rng::with_seed(seed);
    let (begin, mut mutants) = (Instant::now(), 0);
    while mutants < MUTANTS || (soak::is_long() && begin.elapsed() < LONG) {
        let input = mutant(&corpus, &mut random);
        let held = catch_unwind(|| check(&input));
        assert!(
            held.is_ok(),
            "{target} (see above) for mutant {mutants}: b\"{}\"\nrun it again: COUNTERSIGN_SEED={seed} cargo test --test fuzz",
            input.escape_ascii()
        );
        mutants += 1;
    }
    mutants
}

/// cargo-fuzz finds its targets in `fuzz/Cargo.toml`.
#[test]
fn every_property_is_a_target_of_cargo_fuzz() {
    let manifest: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let bins = manifest["bin"].as_array().unwrap().iter();
    let bins: BTreeSet<_> = bins.map(|bin| bin["name"].as_str().unwrap()).collect();
    assert_eq!(bins, TARGETS.iter().map(|(name, _)| *name).collect());
    for name in bins {
        let source = fs::read_to_string(root().join("fuzz_targets").join(format!("{name}.rs"))).unwrap();
        assert!(source.contains(&format!("check(\"{name}\", input)")), "{name} checks something else");
    }
}
