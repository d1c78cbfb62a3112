//! How single values are read, each with the bounds that it must keep. A value that cannot be used has been reported
//! when its reader returns, and is replaced by its default: the file is refused anyway, and the reading goes on.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read as _};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;

use super::render::line_number;
use crate::clock::Timestamp;
use crate::reader::{Table, Value};
use crate::units::{Rate, format_duration, format_size, parse_duration, parse_rate, parse_size};

/// What a value may depend on besides the file.
pub(super) struct Context<'a> {
    /// The whole file, to name lines of it.
    pub(super) text: &'a str,
    /// Where relative paths begin.
    pub(super) directory: &'a Path,
    pub(super) environment: &'a dyn Fn(&str) -> Option<String>,
    pub(super) now: Timestamp,
}

pub(super) const DAY: Duration = Duration::from_hours(24);
/// Beyond this nobody means what they wrote, and sums stay far from overflow.
pub(super) const DURATION_MAX: Duration = Duration::from_hours(24 * 3650);
/// A row of the store, with its headers, has to stay below SQLite's own limit of 1 GB.
pub(super) const BODY_MAX: u64 = 512 << 20;
pub(super) const MILLISECOND: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);

pub(super) fn duration(
    table: &Table<'_>,
    key: &'static str,
    default: Duration,
    allowed: RangeInclusive<Duration>,
    help: &str,
) -> Duration {
    let read = |value: Value<'_>| read_duration(&value, allowed, help);
    table.get(key).and_then(read).unwrap_or(default)
}

pub(super) fn read_duration(
    value: &Value<'_>,
    allowed: RangeInclusive<Duration>,
    help: &str,
) -> Option<Duration> {
    let parse = |text: &str| {
        let duration = parse_duration(text).map_err(|error| error.to_string())?;
        within(duration, &allowed, |duration| format_duration(*duration))
    };
    value.parse(parse, &format!("a duration such as \"30s\" or \"7d\": {help}"))
}

pub(super) fn size(
    table: &Table<'_>,
    key: &'static str,
    default: u64,
    allowed: RangeInclusive<u64>,
    help: &str,
) -> u64 {
    size_if_given(table, key, allowed, help).unwrap_or(default)
}

pub(super) fn size_if_given(
    table: &Table<'_>,
    key: &'static str,
    allowed: RangeInclusive<u64>,
    help: &str,
) -> Option<u64> {
    let parse = |text: &str| {
        let size = parse_size(text).map_err(|error| error.to_string())?;
        within(size, &allowed, |size| format_size(*size))
    };
    let read = |value: Value<'_>| value.parse(parse, &format!("a size such as \"1MiB\": {help}"));
    table.get(key).and_then(read)
}

fn within<T: PartialOrd>(
    value: T,
    allowed: &RangeInclusive<T>,
    print: impl Fn(&T) -> String,
) -> Result<T, String> {
    if allowed.contains(&value) {
        return Ok(value);
    }
    Err(format!("it must be from {} to {}", print(allowed.start()), print(allowed.end())))
}

pub(super) fn integer<T>(table: &Table<'_>, key: &'static str, default: T, allowed: RangeInclusive<i64>) -> T
where
    T: TryFrom<i64>,
{
    let value = table.get(key).and_then(|value| value.integer(*allowed.start()..*allowed.end() + 1));
    value.and_then(|value| value.try_into().ok()).unwrap_or(default)
}

pub(super) fn choice<T: Clone>(table: &Table<'_>, key: &'static str, default: T, choices: &[(&str, T)]) -> T {
    table.get(key).and_then(|value| value.one_of(choices)).unwrap_or(default)
}

pub(super) fn rate(table: &Table<'_>) -> Option<Rate> {
    const HELP: &str = "a rate such as \"100/s\", \"600/m\" or \"1000/h\"; \"0/s\" is unlimited";
    table.get("rate").and_then(|value| value.parse(parse_rate, HELP)).flatten()
}

/// What is read by `read`, each element on its own, so that one bad element does not hide the next.
pub(super) fn list<'d, T>(
    table: &Table<'d>,
    key: &'static str,
    help: &str,
    read: impl FnMut(Value<'d>) -> Option<T>,
) -> Option<Vec<T>> {
    Some(table.get(key)?.array(help)?.into_iter().filter_map(read).collect())
}

/// A name: the word for a source or a destination in metrics, logs, paths and commands.
pub(super) fn name<'d>(value: &Value<'d>) -> Option<&'d str> {
    let name = value.text()?;
    let fits = (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !fits {
        value.wrong(
            format!("`{name}` cannot be a name"),
            "1 to 63 of the characters a-z, 0-9 and -: it becomes a metrics label and part of the default path",
        );
    }
    fits.then_some(name)
}

/// An `http` or `https` URL. What it cannot have is reported without showing it, since user information is secret.
pub(super) fn url(value: &Value<'_>, help: &str) -> Option<Uri> {
    read_url(value, value.text()?, help)
}

/// The same for `text`, which is what `value` says, or made of it.
pub(super) fn read_url(value: &Value<'_>, text: &str, help: &str) -> Option<Uri> {
    let uri = text.parse::<Uri>();
    let authority = uri.as_ref().ok().and_then(Uri::authority);
    let wrong = |message: &str| {
        value.wrong(message, help);
        None
    };
    if text.contains('@') {
        value.conceal(&[]);
    }
    if authority.is_some_and(|authority| authority.as_str().contains('@')) {
        return wrong("a URL here must not contain a user name or password");
    }
    let Ok(uri) = &uri else { return wrong("this is not a URL") };
    let Some(authority) = authority else { return wrong("the URL has no scheme and host") };
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return wrong("the URL begins with neither `http://` nor `https://`");
    }
    if authority.host().is_empty() {
        return wrong("the URL has no host");
    }
    if authority.port_u16().is_none() && authority.as_str() != authority.host() {
        return wrong("the URL's port is not a number from 0 to 65535");
    }
    if text.contains('#') {
        return wrong("a fragment (`#…`) is never sent");
    }
    Some(uri.clone())
}

/// What providers were told, up to the path, without a slash at its end.
pub(super) fn public_url(table: &Table<'_>) -> Option<String> {
    const HELP: &str = "what providers were told, up to the path: \"https://hooks.example.com\"";
    let value = table.get("public_url")?;
    let url = url(&value, HELP)?;
    if url.query().is_some() || value.text()?.ends_with('/') {
        value.wrong("it must have neither a query nor a slash at its end", HELP);
        return None;
    }
    value.text().map(str::to_owned)
}

/// A file that is there and can be opened.
pub(super) fn file(value: &Value<'_>, help: &str, context: &Context<'_>) -> Option<PathBuf> {
    let path = context.directory.join(value.text()?);
    match File::open(&path).and_then(|file| file.metadata()) {
        Ok(metadata) if metadata.is_dir() => {
            value.wrong(format!("{} is a directory", path.display()), help);
            None
        }
        Ok(_) => Some(path),
        Err(error) => {
            value.wrong(unreadable(&path, &error), help);
            None
        }
    }
}

/// All of a file that is meant to be small: some, such as `/dev/zero`, have no end.
pub(super) fn read_file(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::other(format!("it is larger than {}", format_size(bytes_max))));
    }
    Ok(bytes)
}

pub(super) fn unreadable(path: &Path, error: &dyn Display) -> String {
    format!("{} cannot be read: {error}", path.display())
}

/// Finds what ought to be unique and is not.
#[derive(Default)]
pub(super) struct Unique(RefCell<HashMap<String, usize>>);

impl Unique {
    /// Whether `text` is used for the first time; reports the second, naming the line of the first.
    pub(super) fn take(&self, text: &str, value: &Value<'_>, help: &str, context: &Context<'_>) -> bool {
        let at = value.span().start;
        let first = *self.0.borrow_mut().entry(text.to_owned()).or_insert(at);
        if first != at {
            let line = line_number(context.text, first);
            value.wrong(format!("`{text}` is taken: line {line} has it already"), help);
        }
        first == at
    }
}
