//! `config.example.toml` is loaded, and forgets no key.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use countersign::config;
use toml::Value;

use crate::support::{now, parse};

const EXAMPLE: &str = include_str!("../../config.example.toml");
const BOGUS: &str = "zzzzzzzzzzzzzzzz";

/// The example with all its alternatives, which are marked by a `#` without a space.
fn with_alternatives() -> Value {
    let line = |line: &str| match line.trim_start().strip_prefix('#') {
        Some(setting) if !setting.starts_with(' ') => setting.to_owned(),
        _ => line.to_owned(),
    };
    let text = EXAMPLE.lines().map(line).collect::<Vec<_>>().join("\n");
    Value::Table(toml::from_str(&text).unwrap())
}

/// Writes `value`, with a key that nobody knows in each of its tables.
fn with_bogus_keys(value: &Value) -> String {
    match value {
        Value::Table(table) => {
            let entries = table.iter().map(|(key, value)| format!(", {key:?} = {}", with_bogus_keys(value)));
            format!("{{ {BOGUS} = 0{} }}", entries.collect::<String>())
        }
        Value::Array(array) => {
            let elements: Vec<_> = array.iter().map(with_bogus_keys).collect();
            format!("[{}]", elements.join(", "))
        }
        Value::String(text) => format!("{text:?}"),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => format!("{number:?}"),
        Value::Boolean(truth) => truth.to_string(),
        Value::Datetime(datetime) => datetime.to_string(),
    }
}

/// The keys of each table in `value`, by the table's path without indices.
fn keys(value: &Value, path: &str, found: &mut BTreeMap<String, BTreeSet<String>>) {
    match value {
        Value::Table(table) => {
            found.entry(path.to_owned()).or_default().extend(table.keys().cloned());
            for (key, value) in table {
                keys(value, &format!("{path}.{key}"), found);
            }
        }
        Value::Array(array) => array.iter().for_each(|value| keys(value, path, found)),
        _ => {}
    }
}

#[test]
fn the_example_is_accepted_without_a_warning_and_needs_no_environment() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.example.toml");
    let config = config::load(&path, &|_| None, now()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.warnings, [""; 0]);
    assert_eq!(config.store.path, Path::new(env!("CARGO_MANIFEST_DIR")).join("data"));
}

#[test]
fn what_the_example_says_is_the_default() {
    let shortest = "source = [{ name = \"hostwares\", provider = \"hostwares\", to = [\"legacy\"], \
        secrets = [{ name = \"example\", value = \"an-example-to-be-replaced\" }] }]\n\
        destination = [{ name = \"legacy\", url = \"http://127.0.0.1:3000/hooks\" }]";
    assert_eq!(format!("{:#?}", parse(EXAMPLE).unwrap()), format!("{:#?}", parse(shortest).unwrap()));
}

#[test]
fn the_example_has_every_key_that_is_known_and_no_other() {
    let everything = with_alternatives();
    let mut shown = BTreeMap::new();
    keys(&everything, "", &mut shown);
    let Value::Table(sections) = &everything else { panic!() };
    let sections = sections.iter().map(|(key, value)| format!("{key} = {}\n", with_bogus_keys(value)));
    let report =
        parse(&sections.chain([format!("{BOGUS} = 0")]).collect::<String>()).unwrap_err().to_string();

    let mut tables = 0;
    for problem in report.split("\n\n") {
        let (head, help) = (problem.lines().next().unwrap(), problem.lines().last().unwrap());
        let Some((place, key)) = head.split_once(": unknown key ") else { continue };
        assert_eq!(key, format!("`{BOGUS}`"), "{head}");
        let path = place.rsplit(": ").next().unwrap().replace(|c: char| "[]0123456789".contains(c), "");
        let path = path.strip_suffix(BOGUS).unwrap().trim_end_matches('.');
        let path = if path.is_empty() { String::new() } else { format!(".{path}") };
        let known = help.split_once("known keys here: ").unwrap().1.split(", ");
        let shown = &shown[&path];
        // A secret has one origin, whichever.
        let origins = ["env", "file", "value"];
        let has_origin = origins.iter().any(|origin| shown.contains(*origin));
        for known in known.filter(|known| !(has_origin && origins.contains(known))) {
            // Told in a comment: its value has no form yet, or it excludes what is shown.
            let told = path == ".source.scheme" && EXAMPLE.contains(&format!(" {known}"));
            assert!(shown.contains(known) || told, "config.example.toml lacks {path}.{known}");
        }
        tables += 1;
    }
    assert!(tables > 20, "{tables} tables were found in {report}");
}
