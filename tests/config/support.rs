//! Configurations that are right but for the line under test.

use std::path::Path;

use countersign::clock::{Timestamp, from_milliseconds};
use countersign::config::{self, Config, ConfigError};

/// 2026-04-22T15:30:00Z
pub(crate) fn now() -> Timestamp {
    from_milliseconds(1_776_871_800_000)
}

/// The environment of the tests: a good secret, a Standard Webhooks secret, and what operators get wrong.
pub(crate) fn environment(name: &str) -> Option<String> {
    let value = match name {
        "SET" => "0123456789abcdef0123456789abcdef",
        "WHSEC" => "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "EMPTY" => "",
        "BLANK" => " \t\n",
        _ => return None,
    };
    Some(value.to_owned())
}

pub(crate) fn parse_in(directory: &Path, text: &str) -> Result<Config, ConfigError> {
    config::parse(text, "c.toml", directory, &environment, now())
}

pub(crate) fn parse(text: &str) -> Result<Config, ConfigError> {
    parse_in(Path::new("/nonexistent"), text)
}

/// `section` in front of a source and a destination that are right.
pub(crate) fn section(section: &str) -> String {
    format!("{section}\n{}{}", table("source", "", SOURCE), table("destination", "", DESTINATION))
}

/// A source with `lines`, from the second line of the file, and what they leave out.
pub(crate) fn source(lines: &str) -> String {
    format!("{}{}", table("source", lines, SOURCE), table("destination", "", DESTINATION))
}

/// A destination with `lines`, from the second line of the file, and what they leave out.
pub(crate) fn destination(lines: &str) -> String {
    format!("{}{}", table("destination", lines, DESTINATION), table("source", "", SOURCE))
}

const SOURCE: &[(&str, &str)] = &[
    ("name", "\"a\""),
    ("provider", "\"hostwares\""),
    ("secrets", "[{ env = \"SET\" }]"),
    ("to", "[\"b\"]"),
];
const DESTINATION: &[(&str, &str)] = &[("name", "\"b\""), ("url", "\"http://127.0.0.1:3000/hooks\"")];

/// A line of `key = -` leaves a key out.
fn table(header: &str, lines: &str, rest: &[(&str, &str)]) -> String {
    let given = |key: &str| lines.lines().any(|line| line.split(" = ").next() == Some(key));
    let rest = rest.iter().filter(|(key, _)| !given(key)).map(|(key, value)| format!("{key} = {value}\n"));
    let lines = lines.lines().map(|line| if line.ends_with(" = -") { "" } else { line });
    let lines = lines.map(|line| format!("{line}\n")).collect::<String>();
    format!("[[{header}]]\n{lines}{}", rest.collect::<String>())
}

/// The heads of all problems, warnings of an accepted file included: `line:column: severity: path: message`.
pub(crate) fn problems(result: &Result<Config, ConfigError>) -> Vec<String> {
    let text = match result {
        Ok(config) => config.warnings.join("\n\n"),
        Err(error) => error.to_string(),
    };
    let heads = text.lines().filter_map(|line| line.strip_prefix("c.toml:"));
    heads.filter(|head| !head.starts_with(' ')).map(str::to_owned).collect()
}

/// Asserts that `text` has exactly this problem, and that it is refused for an error and accepted with a warning.
#[track_caller]
pub(crate) fn check(text: &str, problem: &str) {
    let result = parse(text);
    assert_eq!(problems(&result), [problem], "{text}\n{result:?}");
    assert_eq!(result.is_err(), problem.contains(": error: "), "{text}");
}

/// The resolved configuration of a text without problems.
#[track_caller]
pub(crate) fn accepted(text: &str) -> Config {
    let result = parse(text);
    assert_eq!(problems(&result), [""; 0], "{text}");
    result.unwrap()
}
