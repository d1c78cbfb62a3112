//! From a file to a [`Config`], or to every reason why it is none. Sections are read by their own modules; here is
//! what concerns the file as a whole.

use std::cell::Cell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::countersign;
use super::listen::{self, Limited, Listening};
use super::render::{Page, is_syntax, line_number};
use super::source::{self, Surroundings};
use super::values::{Context, Unique, list};
use super::{Config, destination};
use crate::clock::Timestamp;
use crate::reader::{Problem, Problems, Severity, Table, read_document};

/// Why a file is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{}: error: the file cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// Its content is wrong.
    #[error("{}", .0.text)]
    Refused(Refused),
}

/// All that is wrong with a file.
#[derive(Debug)]
pub struct Refused {
    text: String,
    errors: usize,
}

impl ConfigError {
    /// How many errors there are, warnings not counted.
    pub fn count(&self) -> usize {
        match self {
            Self::Unreadable { .. } => 1,
            Self::Refused(refused) => refused.errors,
        }
    }
}

/// Reads a configuration file. `environment` answers for environment variables; `now` judges which secrets have
/// expired. Paths in the file are relative to its directory.
///
/// # Errors
/// When the file cannot be read, or with every problem in it.
pub fn load(
    path: &Path,
    environment: &dyn Fn(&str) -> Option<String>,
    now: Timestamp,
) -> Result<Config, ConfigError> {
    let unreadable = |error| ConfigError::Unreadable { path: path.to_owned(), error };
    let text = fs::read_to_string(path).map_err(unreadable)?;
    let directory = path.parent().unwrap_or(Path::new(""));
    parse(&text, &path.display().to_string(), directory, environment, now)
}

/// Reads the text of a configuration file; as [`load`], for text from elsewhere. `directory` is what its paths are
/// relative to, `file_name` what messages call it.
///
/// # Errors
/// With every problem in the text.
pub fn parse(
    text: &str,
    file_name: &str,
    directory: &Path,
    environment: &dyn Fn(&str) -> Option<String>,
    now: Timestamp,
) -> Result<Config, ConfigError> {
    let problems = Problems::default();
    let context = Context { text, directory, environment, now };
    let config = read_document(text, &problems, |root| read(&root, &context, &problems));
    let concealed = problems.concealed();
    let problems = without_consequences(text, problems.into_sorted());
    let page = Page::new(file_name, text, &problems, &concealed);
    let mut rendered: Vec<String> = problems.iter().map(|problem| page.render(problem)).collect();
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error).count();
    if errors == 0 {
        return Ok(Config { warnings: rendered, ..config });
    }
    let noun = if errors == 1 { "error" } else { "errors" };
    rendered.push(format!("{file_name}: {errors} {noun}"));
    Err(ConfigError::Refused(Refused { text: rendered.join("\n\n"), errors }))
}

/// An environment variable; `None` when it is not set, or not UTF-8.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// What a line that is not valid TOML was taken for is no problem of its own.
fn without_consequences(text: &str, mut problems: Vec<Problem>) -> Vec<Problem> {
    let line = |problem: &Problem| line_number(text, problem.span.start);
    let torn: Vec<_> = problems.iter().filter(|problem| is_syntax(problem)).map(line).collect();
    problems.retain(|problem| is_syntax(problem) || !torn.contains(&line(problem)));
    problems
}

fn read<'d>(root: &Table<'d>, context: &Context<'_>, problems: &Problems) -> Config {
    let Listening { listen, public_url, asks_clients, admin } = listen::read(root, context);
    let Limited { limits, body } = listen::read_limits(&root.section("limits"));
    let store = listen::read_store(&root.section("store"), context);

    let destination_tables = tables(root, "destination");
    let names = Unique::default();
    let read_destination = |table| destination::read(table, &names, context);
    let destinations: Vec<_> = destination_tables.iter().filter_map(read_destination).collect();

    let source_tables = tables(root, "source");
    if root.get("source").is_none_or(|value| value.is_empty_array()) {
        let help = "add `[[source]]` with `name`, `provider`, `secrets` and `to`";
        root.missing("source", "there is no source, so nothing could be received", help);
    }
    let name_of = |table: &Table<'d>| Some((table.get("name")?.as_text()?, Cell::new(false)));
    let around = Surroundings {
        public_url,
        asks_clients,
        ack_deadline: listen.ack_deadline,
        body_max: body,
        in_flight: limits.in_flight,
        dedup: listen::read_dedup(&root.section("dedup")),
        destinations: destination_tables.iter().filter_map(name_of).collect(),
        names: Unique::default(),
        paths: Unique::default(),
        torn: problems.torn(),
    };
    let read_source = |table: &Table<'_>| source::read(table, &around, context).map(Arc::new);
    let sources: Vec<_> = source_tables.iter().filter_map(read_source).collect();
    let settle = |destination| Arc::new(countersign::settle(destination, &sources));
    let destinations = destinations.into_iter().map(settle).collect();
    if !problems.has_errors() {
        // Otherwise one of the errors may be why.
        warn_of_unused(&destination_tables, &around);
    }

    Config {
        listen,
        limits,
        admin,
        store,
        dedup_cache_entries: around.dedup.cache_entries,
        sources,
        destinations,
        warnings: Vec::new(),
    }
}

/// The tables of `[[key]]`.
fn tables<'d>(root: &Table<'d>, key: &'static str) -> Vec<Table<'d>> {
    let help = format!("a table with double brackets: [[{key}]]");
    list(root, key, &help, |value| value.table(&help)).unwrap_or_default()
}

fn warn_of_unused(tables: &[Table<'_>], around: &Surroundings<'_>) {
    let is_used = |name| around.destinations.iter().any(|(known, used)| *known == name && used.get());
    for value in tables.iter().filter_map(|table| table.get("name")) {
        if value.as_text().is_some_and(|name| !is_used(name)) {
            value.doubtful("no source forwards to this destination", "name it in the `to` of a source");
        }
    }
}
