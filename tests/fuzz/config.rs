//! The text of a configuration file: it is loaded or refused with places, in the same way each time, no key in it is
//! ignored, and no secret in it is shown.

use std::path::Path;

use countersign::config::{self, Config, ConfigError};
use toml::{Table, Value};

use super::support::now;

/// What a secret has in it that must not be shown.
const MARK: &str = "hidden";

pub(super) fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let result = load(text);
    let shown = told(&result);
    assert_eq!(told(&load(text)), shown, "the same text twice");

    let report = match &result {
        Ok(config) => config.warnings.join("\n\n"),
        Err(error) => error.to_string(),
    };
    let errors =
        report.lines().filter_map(|line| line.strip_prefix("c.toml:")).filter(|head| is_error(head, text));
    let errors = errors.count();
    match &result {
        Ok(_) => {
            assert_eq!(errors, 0, "{report}");
            assert_eq!(told(&load(&format!("{text}\n# a comment"))), shown, "with a comment");
            if !text.starts_with('\u{feff}') {
                let error = load(&format!("zzzzzzzz = 0\n{text}")).expect_err("a key that nobody knows");
                assert_eq!(error.count(), 1, "{error}");
                assert!(error.to_string().starts_with("c.toml:1:1: error: zzzzzzzz: unknown key"), "{error}");
            }
        }
        Err(error) => {
            assert!(errors == error.count() && errors > 0, "{errors} of {} in {error}", error.count());
        }
    }

    if let Ok(document) = text.parse::<Table>() {
        for secret in secrets(&document) {
            // Elsewhere it may be shown.
            assert!(text.matches(secret).count() > 1 || !shown.contains(secret), "{secret} is in {shown}");
        }
    }
}

fn load(text: &str) -> Result<Config, ConfigError> {
    let environment = |name: &str| match name {
        "SET" => Some("0123456789abcdef0123456789abcdef".to_owned()),
        "WHSEC" => Some("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned()),
        "BLANK" => Some(" ".to_owned()),
        _ => None,
    };
    config::parse(text, "c.toml", Path::new("/nonexistent"), &environment, now())
}

fn told(result: &Result<Config, ConfigError>) -> String {
    match result {
        Ok(config) => format!("{config:#?}"),
        Err(error) => error.to_string(),
    }
}

/// Whether the head of a problem, behind the file's name, is an error's: `line:column: severity: …`, and the place
/// is in the text.
fn is_error(head: &str, text: &str) -> bool {
    let mut parts = head.splitn(4, ':');
    let mut part = || parts.next().unwrap_or_default();
    let (line, column, severity) = (part(), part(), part());
    if let Some(count) =
        head.trim_start().strip_suffix(" errors").or(head.trim_start().strip_suffix(" error"))
        && count.bytes().all(|byte| byte.is_ascii_digit())
    {
        return false;
    }
    let number = |text: &str| text.parse::<usize>().unwrap_or_else(|_| panic!("no place in {head:?}"));
    let at = text.split('\n').nth(number(line) - 1).unwrap_or_else(|| panic!("no line of {head:?}"));
    assert!((1..=at.chars().count() + 1).contains(&number(column)), "no column of {head:?}");
    match severity {
        " error" => true,
        " warning" => false,
        _ => panic!("no severity in {head:?}"),
    }
}

/// The secrets that are written down where secrets belong.
fn secrets(document: &Table) -> Vec<&str> {
    let lists =
        [("source", "secrets"), ("admin", "tokens"), ("destination", "sign"), ("destination", "headers")];
    let mut found = Vec::new();
    for (section, key) in lists {
        for table in tables(document.get(section)) {
            values(table.get(key), &mut found);
        }
    }
    found.retain(|secret| secret.contains(MARK));
    found
}

fn tables(value: Option<&Value>) -> Vec<&Table> {
    match value {
        Some(Value::Table(table)) => vec![table],
        Some(Value::Array(array)) => array.iter().filter_map(Value::as_table).collect(),
        _ => Vec::new(),
    }
}

/// The texts below any `value`.
fn values<'d>(value: Option<&'d Value>, found: &mut Vec<&'d str>) {
    for table in tables(value) {
        for (key, value) in table {
            match value {
                Value::String(text) if key == "value" => found.push(text),
                inner => values(Some(inner), found),
            }
        }
    }
}
