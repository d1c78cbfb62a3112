//! Reads a TOML document key by key and collects *every* problem with its place, instead of stopping at the first as
//! a derived deserializer does. A [`Table`] remembers which keys were asked for; the others are reported as unknown
//! when it goes out of scope, so no key can be accepted and ignored. It knows nothing of what the keys mean.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Range;
use std::sync::LazyLock;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Something wrong (or doubtful) in a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where in the text, in bytes.
    pub span: Range<usize>,
    /// The key path, such as `source[2].secrets[0].env`; empty for syntax errors.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub help: String,
    /// Warnings are told; errors refuse the document.
    pub severity: Severity,
}

/// Whether a [`Problem`] refuses the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The document is refused.
    Error,
    /// The document is used; the operator should know.
    Warning,
}

/// The problems found so far; shared by all readers of one document.
#[derive(Debug, Default)]
pub struct Problems {
    found: RefCell<Vec<Problem>>,
    concealed: RefCell<Vec<Range<usize>>>,
    torn: Cell<bool>,
}

impl Problems {
    /// Adds a problem.
    pub fn push(&self, problem: Problem) {
        self.found.borrow_mut().push(problem);
    }

    /// All problems, in the order of their places.
    pub fn into_sorted(self) -> Vec<Problem> {
        let mut problems = self.found.into_inner();
        problems.sort_by_key(|problem| (problem.span.start, problem.severity));
        problems
    }

    /// Whether one of those found so far refuses the document.
    pub fn has_errors(&self) -> bool {
        self.found.borrow().iter().any(|problem| problem.severity == Severity::Error)
    }

    /// The parts of the text that may be secret and must not be shown, in bytes.
    pub fn concealed(&self) -> Vec<Range<usize>> {
        self.concealed.borrow().clone()
    }

    /// Whether the text is not valid TOML: then the parser may have lost something, and absence proves nothing.
    pub fn torn(&self) -> bool {
        self.torn.get()
    }
}

/// Parses `text` and hands its root table to `read`; syntax errors join the other problems.
pub fn read_document<T>(text: &str, problems: &Problems, read: impl FnOnce(Table<'_>) -> T) -> T {
    let (root, errors) = DeTable::parse_recoverable(text);
    problems.torn.set(!errors.is_empty());
    for error in errors {
        problems.push(Problem {
            span: error.span().unwrap_or(0..0),
            path: String::new(),
            message: format!("not valid TOML: {}", error.message().trim()),
            help: "see https://toml.io/en/v1.1.0".to_owned(),
            severity: Severity::Error,
        });
    }
    read(Table::new(root.get_ref(), root.span(), String::new(), problems))
}

/// A table that is being read.
pub struct Table<'d> {
    entries: &'d DeTable<'d>,
    span: Range<usize>,
    path: String,
    asked: RefCell<Vec<&'static str>>,
    problems: &'d Problems,
}

impl<'d> Table<'d> {
    fn new(entries: &'d DeTable<'d>, span: Range<usize>, path: String, problems: &'d Problems) -> Self {
        Self { entries, span, path, asked: RefCell::default(), problems }
    }

    /// The value of `key`, when it is there. The key is known from now on.
    pub fn get(&self, key: &'static str) -> Option<Value<'d>> {
        self.asked.borrow_mut().push(key);
        let (key, value) = self.entries.iter().find(|(name, _)| name.get_ref() == key)?;
        Some(Value {
            value: value.get_ref(),
            span: value.span(),
            path: self.path_of(key.get_ref()),
            problems: self.problems,
        })
    }

    /// The value of `key`; its absence is a problem, with `help` saying what would be right.
    pub fn require(&self, key: &'static str, help: &str) -> Option<Value<'d>> {
        let value = self.get(key);
        if value.is_none() {
            self.missing(key, format!("`{key}` is missing"), help);
        }
        value
    }

    /// Reports that `key` ought to be there, unless it may have been there before the document was torn.
    pub fn missing(&self, key: &str, message: impl Into<String>, help: impl Into<String>) {
        if !self.problems.torn() {
            let (span, path) = (self.span.clone(), self.path_of(key));
            let severity = Severity::Error;
            self.problems.push(Problem { span, path, message: message.into(), help: help.into(), severity });
        }
    }

    /// The table of `key`. An empty one when it is absent, or reported as no table: its keys then have their defaults.
    pub fn section(&self, key: &'static str) -> Table<'d> {
        static EMPTY: LazyLock<DeTable<'static>> = LazyLock::new(DeTable::default);
        let given = self.get(key).and_then(|value| value.table("a table"));
        given.unwrap_or_else(|| Table::new(&EMPTY, self.span.clone(), self.path_of(key), self.problems))
    }

    /// All entries, for tables whose keys are the user's own (header names). All keys are known from now on.
    pub fn entries(&self) -> Vec<(String, Value<'d>)> {
        self.asked.borrow_mut().push("*");
        self.entries
            .iter()
            .map(|(key, value)| {
                let entry = Value {
                    value: value.get_ref(),
                    span: value.span(),
                    path: self.path_of(key.get_ref()),
                    problems: self.problems,
                };
                (key.get_ref().clone().into_owned(), entry)
            })
            .collect()
    }

    /// Reports a problem of the table as a whole.
    pub fn wrong(&self, message: impl Into<String>, help: impl Into<String>) {
        self.report(message.into(), help.into(), Severity::Error);
    }

    /// Reports a doubt about the table as a whole.
    pub fn doubtful(&self, message: impl Into<String>, help: impl Into<String>) {
        self.report(message.into(), help.into(), Severity::Warning);
    }

    fn report(&self, message: String, help: String, severity: Severity) {
        let (span, path) = (self.span.clone(), self.path.clone());
        self.problems.push(Problem { span, path, message, help, severity });
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

impl Drop for Table<'_> {
    fn drop(&mut self) {
        let asked = self.asked.borrow();
        if asked.contains(&"*") {
            return;
        }
        for (key, value) in self.entries {
            let name: &str = key.get_ref();
            if asked.contains(&name) {
                continue;
            }
            // Nobody knows what it is: a misspelt `value` holds a secret.
            conceal(value.get_ref(), value.span(), &[], &mut self.problems.concealed.borrow_mut());
            let help = match nearest(name, asked.iter().copied()) {
                Some(nearest) => format!("did you mean `{nearest}`?"),
                None => {
                    let mut known = asked.clone();
                    known.sort_unstable();
                    known.dedup();
                    format!("known keys here: {}", known.join(", "))
                }
            };
            self.problems.push(Problem {
                span: key.span(),
                path: self.path_of(name),
                message: format!("unknown key `{name}`"),
                help,
                severity: Severity::Error,
            });
        }
    }
}

/// A value that is being read. Each reading method reports a value of the wrong kind and then answers `None`.
#[derive(Clone)]
pub struct Value<'d> {
    value: &'d DeValue<'d>,
    span: Range<usize>,
    path: String,
    problems: &'d Problems,
}

impl<'d> Value<'d> {
    /// A text.
    pub fn text(&self) -> Option<&'d str> {
        self.expect(self.value.as_str(), "a string")
    }

    /// A text that `parse` accepts; `help` says what would be right when it does not.
    pub fn parse<T, E: fmt::Display>(
        &self,
        parse: impl FnOnce(&str) -> Result<T, E>,
        help: &str,
    ) -> Option<T> {
        let text = self.expect(self.value.as_str(), help)?;
        match parse(text) {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.wrong(format!("`{text}` cannot be used: {error}"), help);
                None
            }
        }
    }

    /// One of the named choices.
    pub fn one_of<T: Clone>(&self, choices: &[(&str, T)]) -> Option<T> {
        let names: Vec<_> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let help = format!("one of {}", names.join(", "));
        let text = self.expect(self.value.as_str(), &help)?;
        let choice = choices.iter().find(|(name, _)| *name == text).map(|(_, choice)| choice.clone());
        if choice.is_none() {
            self.wrong(format!("`{text}` is not a choice here"), help);
        }
        choice
    }

    /// A whole number within `range`.
    pub fn integer(&self, range: Range<i64>) -> Option<i64> {
        let help = format!("a whole number from {} to {}", range.start, range.end - 1);
        let integer = self.expect(self.value.as_integer(), &help)?;
        let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            self.wrong(format!("{} is out of range", integer.as_str()), help);
        }
        number
    }

    /// A number with or without a fraction.
    pub fn number(&self, help: &str) -> Option<f64> {
        let text = match self.value {
            DeValue::Integer(integer) => Some(integer.as_str()),
            DeValue::Float(float) => Some(float.as_str()),
            _ => None,
        };
        self.expect(text.and_then(|text| text.parse().ok()), help)
    }

    /// `true` or `false`.
    pub fn boolean(&self) -> Option<bool> {
        self.expect(self.value.as_bool(), "true or false")
    }

    /// A date and time with its offset.
    pub fn timestamp(&self) -> Option<jiff::Timestamp> {
        const HELP: &str = "a date and time with its offset, such as 2026-12-01T00:00:00Z";
        let text = match self.value {
            DeValue::Datetime(datetime) => Some(datetime.to_string()),
            DeValue::String(text) => Some(text.clone().into_owned()),
            _ => None,
        };
        self.expect(text.and_then(|text| text.parse().ok()), HELP)
    }

    /// The elements of an array.
    pub fn array(&self, help: &str) -> Option<Vec<Value<'d>>> {
        let array = self.expect(self.value.as_array(), help)?;
        let element = |(index, value): (usize, &'d Spanned<DeValue<'d>>)| Value {
            value: value.get_ref(),
            span: value.span(),
            path: format!("{}[{index}]", self.path),
            problems: self.problems,
        };
        Some(array.iter().enumerate().map(element).collect())
    }

    /// A table.
    pub fn table(&self, help: &str) -> Option<Table<'d>> {
        let entries = self.expect(self.value.as_table(), help)?;
        // A `[[source]]` table's own span is its header; for inline tables it is the braces.
        Some(Table::new(entries, self.span.clone(), self.path.clone(), self.problems))
    }

    /// The text, when it is one; otherwise nothing is reported.
    pub fn as_text(&self) -> Option<&'d str> {
        self.value.as_str()
    }

    /// Whether the value is a text, so that a key may also take a table.
    pub fn is_text(&self) -> bool {
        self.value.is_str()
    }

    /// Whether the value is a table, so that a key may also take something else.
    pub fn is_table(&self) -> bool {
        self.value.is_table()
    }

    /// Whether the value is an array without elements.
    pub fn is_empty_array(&self) -> bool {
        self.value.as_array().is_some_and(|array| array.is_empty())
    }

    /// Reports that the value cannot be used.
    pub fn wrong(&self, message: impl Into<String>, help: impl Into<String>) {
        self.report(message.into(), help.into(), Severity::Error);
    }

    /// Reports that the value cannot be used because of what stands at byte `at` of the text.
    pub fn wrong_at(&self, at: usize, message: impl Into<String>, help: impl Into<String>) {
        let (message, help) = (message.into(), help.into());
        let (span, path) = (at..self.span.end.max(at), self.path.clone());
        self.problems.push(Problem { span, path, message, help, severity: Severity::Error });
    }

    /// Reports a doubt about the value.
    pub fn doubtful(&self, message: impl Into<String>, help: impl Into<String>) {
        self.report(message.into(), help.into(), Severity::Warning);
    }

    /// Keeps whatever is in the value from being shown, but for what stands below the keys in `shown`.
    pub fn conceal(&self, shown: &[&str]) {
        conceal(self.value, self.span.clone(), shown, &mut self.problems.concealed.borrow_mut());
    }

    /// Where the value stands in the text, in bytes.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    fn expect<T>(&self, found: Option<T>, help: &str) -> Option<T> {
        if found.is_none() {
            self.wrong(format!("{} does not fit here", self.value.type_str()), help);
        }
        found
    }

    fn report(&self, message: String, help: String, severity: Severity) {
        let (span, path) = (self.span.clone(), self.path.clone());
        self.problems.push(Problem { span, path, message, help, severity });
    }
}

/// The candidate that `name` was probably meant to be.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near =
        candidates.into_iter().map(|candidate| (strsim::levenshtein(candidate, name), candidate)).min()?;
    (near.0 <= 1 + name.len() / 4).then_some(near.1)
}

fn conceal(value: &DeValue<'_>, span: Range<usize>, shown: &[&str], concealed: &mut Vec<Range<usize>>) {
    match value {
        DeValue::Array(array) => {
            for value in array {
                conceal(value.get_ref(), value.span(), shown, concealed);
            }
        }
        DeValue::Table(table) => {
            for (_, value) in table.iter().filter(|(key, _)| !shown.contains(&key.get_ref().as_ref())) {
                conceal(value.get_ref(), value.span(), shown, concealed);
            }
        }
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => concealed.push(span),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, read: impl FnOnce(Table<'_>), expected: &[(&str, &str)]) {
        let problems = Problems::default();
        read_document(text, &problems, read);
        let problems = problems.into_sorted();
        let found: Vec<_> = problems.iter().map(|p| (p.path.as_str(), p.message.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn every_problem_is_found_in_one_run() {
        check(
            "port = \"x\"\nnmae = 1\n[inner]\nstray = 1\nlimit = 500",
            |table| {
                assert_eq!(table.get("port").and_then(|value| value.integer(0..10)), None);
                assert!(table.get("name").is_none());
                let inner = table.get("inner").and_then(|value| value.table("a table")).unwrap();
                assert_eq!(inner.get("limit").and_then(|value| value.integer(0..10)), None);
            },
            &[
                ("port", "string does not fit here"),
                ("nmae", "unknown key `nmae`"),
                ("inner.stray", "unknown key `stray`"),
                ("inner.limit", "500 is out of range"),
            ],
        );
    }

    #[test]
    fn syntax_errors_do_not_hide_the_others() {
        let problems = Problems::default();
        read_document("a = \nb = 1", &problems, |table| drop(table.get("a")));
        let problems = problems.into_sorted();
        assert!(problems[0].message.starts_with("not valid TOML"), "{problems:?}");
        assert!(problems.iter().any(|problem| problem.message == "unknown key `b`"));
    }

    #[test]
    fn absence_proves_nothing_in_a_torn_document() {
        let read = |table: Table<'_>| drop(table.require("b", "a number"));
        let problems = Problems::default();
        read_document("a = \nb", &problems, read);
        assert!(problems.torn() && problems.has_errors());
        assert!(problems.into_sorted().iter().all(|problem| problem.path != "b"));
        check("", read, &[("b", "`b` is missing")]);
    }

    #[test]
    fn an_absent_section_is_an_empty_one() {
        check(
            "wrong = 1",
            |table| {
                assert!(table.section("absent").get("key").is_none());
                table.section("absent").missing("key", "it is missing", "");
                assert!(table.section("wrong").get("key").is_none());
            },
            &[("absent.key", "it is missing"), ("wrong", "integer does not fit here")],
        );
    }

    #[test]
    fn values_are_concealed_when_told_to_and_when_unknown() {
        let text = "a = [{ shown = 1, hidden = 2 }, 3]\nb = 4\nc = 5";
        let problems = Problems::default();
        read_document(text, &problems, |table| {
            table.get("a").unwrap().conceal(&["shown"]);
            drop(table.get("b"));
        });
        let concealed: Vec<_> = problems.concealed().into_iter().map(|range| &text[range]).collect();
        assert_eq!(concealed, ["2", "3", "5"]);
    }

    #[test]
    fn a_near_miss_is_named() {
        let problems = Problems::default();
        read_document("adress = 1", &problems, |table| drop(table.get("address")));
        assert_eq!(problems.into_sorted()[0].help, "did you mean `address`?");
        assert_eq!(nearest("githbu", ["gitea", "github"]), Some("github"));
        assert_eq!(nearest("elsewhere", ["gitea", "github"]), None);
    }
}
