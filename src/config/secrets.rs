//! Where secrets come from: an environment variable, a file, or the configuration itself. An empty, blank or missing
//! one refuses to start, since a gateway with it would let anyone sign. No message shows a secret.

use std::sync::Arc;

use super::values::{Context, Unique, list, read_file, unreadable};
use crate::reader::{Table, Value};
use crate::secret::Secret;
use crate::verify::{NamedSecret, SECRET_BYTES_MIN};

pub(super) const MAKE_ONE: &str = "make one with `openssl rand -hex 32`";
const SOURCES: &str = "one of { env = \"NAME\" }, { file = \"/path\" }, { value = \"…\" }";
/// A 128-bit key in text is about as long; what people make up is shorter.
const SECRET_BYTES_GOOD: usize = 16;
/// Keys in PEM have a few KiB.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// A secret and where it was found.
pub(super) struct Found<'d> {
    pub(super) secret: Secret,
    /// Of the variable or the file.
    pub(super) name: Option<String>,
    /// The value of `env`, `file` or `value`.
    pub(super) at: Value<'d>,
}

/// The secret that `table` names by exactly one of `env`, `file` and `value`.
pub(super) fn find<'d>(table: &Table<'d>, context: &Context<'_>) -> Option<Found<'d>> {
    let given = [table.get("env"), table.get("file"), table.get("value")];
    if given.iter().flatten().count() != 1 {
        let message = match given.iter().flatten().count() {
            0 => "the secret is missing",
            _ => "the secret has more than one origin",
        };
        table.wrong(message, SOURCES);
        return None;
    }
    let [env, file, value] = given;
    if let Some(at) = env {
        let name = at.text()?;
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            // Perhaps the secret itself.
            at.conceal(&[]);
            at.wrong("this is not the name of an environment variable", "letters, digits and _");
            return None;
        }
        let Some(text) = (context.environment)(name) else {
            at.wrong(format!("the environment variable `{name}` is not set"), "set it, or name another one");
            return None;
        };
        let what = format!("the environment variable `{name}`");
        return found(text, Some(name.to_owned()), at, &what);
    }
    if let Some(at) = file {
        let path = context.directory.join(at.text()?);
        let what = path.display().to_string();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        return match read_file(&path, FILE_BYTES_MAX) {
            Ok(bytes) => found(without_newline(bytes), name, at, &what),
            Err(error) => {
                at.wrong(unreadable(&path, &error), "a file that holds nothing but the secret");
                None
            }
        };
    }
    let at = value?;
    found(at.text()?, None, at, "the secret")
}

fn found<'d>(
    bytes: impl Into<Vec<u8>>,
    name: Option<String>,
    at: Value<'d>,
    what: &str,
) -> Option<Found<'d>> {
    match Secret::new(bytes) {
        Ok(secret) => Some(Found { secret, name, at }),
        Err(_) => {
            at.wrong(format!("{what} is empty or blank"), MAKE_ONE);
            None
        }
    }
}

/// Without the newline that editors and `echo` put at a file's end.
fn without_newline(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.ends_with(b"\n") {
        bytes.pop();
        if bytes.ends_with(b"\r") {
            bytes.pop();
        }
    }
    bytes
}

/// As [`find`], for a secret that others must not guess.
pub(super) fn find_unguessable<'d>(table: &Table<'d>, context: &Context<'_>) -> Option<Found<'d>> {
    let found = find(table, context)?;
    let bytes = found.secret.expose();
    if bytes.len() < SECRET_BYTES_MIN {
        let message =
            format!("the secret has {} bytes; fewer than {SECRET_BYTES_MIN} can be guessed", bytes.len());
        found.at.wrong(message, MAKE_ONE);
        return None;
    }
    if bytes.len() < SECRET_BYTES_GOOD {
        let message = format!("the secret has only {} bytes and may be guessed", bytes.len());
        found.at.doubtful(message, MAKE_ONE);
    }
    if bytes.starts_with(b"\xEF\xBB\xBF") {
        let message = "the secret begins with a byte order mark, which counts and which nobody sees";
        found.at.doubtful(message, "save the file as UTF-8 without a byte order mark");
    }
    // Around PEM it means nothing.
    let is_pem = bytes.trim_ascii_start().starts_with(b"-----BEGIN ");
    if bytes.trim_ascii().len() < bytes.len() && !is_pem {
        let message = "the secret begins or ends with white space, which counts";
        found.at.doubtful(message, "remove it, unless the provider shows it too");
    }
    Some(found)
}

/// The secrets of a source, with their places. Empty when `secrets` is not there or none could be used.
pub(super) fn read<'d>(table: &Table<'d>, context: &Context<'_>) -> Vec<(NamedSecret, Value<'d>)> {
    const HELP: &str = "a list of tables such as [{ env = \"HOSTWARES_SECRET\" }]";
    let Some(value) = table.get("secrets") else { return Vec::new() };
    value.conceal(&["name", "env", "file", "not_before", "not_after"]);
    let unique = Unique::default();
    let mut index = 0;
    let secrets = list(table, "secrets", HELP, |value| {
        index += 1;
        read_one(&value.table(HELP)?, &value, index, &unique, context)
    });
    let Some(secrets) = secrets else { return Vec::new() };
    let now = context.now;
    let expired = |secret: &NamedSecret| secret.not_after.is_some_and(|end| end < now);
    let early = |secret: &NamedSecret| secret.not_before.is_some_and(|begin| now < begin);
    if index == 0 {
        value.wrong("there is no secret, so no request could be verified", HELP);
    } else if !secrets.is_empty()
        && secrets.len() == index
        && secrets.iter().all(|(secret, _)| expired(secret))
    {
        value.wrong(
            "every secret has expired, so no request could be verified",
            "add the provider's current one",
        );
    } else if secrets.len() == index && secrets.iter().all(|(secret, _)| expired(secret) || early(secret)) {
        value.doubtful(
            "no secret is valid now, so every request will be refused for a while",
            "add the one that the provider signs with today",
        );
    }
    secrets
}

fn read_one<'d>(
    table: &Table<'d>,
    value: &Value<'d>,
    number: usize,
    unique: &Unique,
    context: &Context<'_>,
) -> Option<(NamedSecret, Value<'d>)> {
    let found = find_unguessable(table, context);
    let given = table.get("name");
    let name = match &given {
        Some(name) => read_name(name),
        None => {
            let found = found.as_ref().and_then(|found| found.name.clone());
            Some(found.unwrap_or_else(|| format!("secret-{number}")))
        }
    };
    let name = name.filter(|name| {
        let help = "give it a `name` of its own: it tells in metrics which secret is still in use";
        unique.take(name, given.as_ref().unwrap_or(value), help, context)
    });
    let not_before = table.get("not_before").and_then(|value| value.timestamp());
    let end = table.get("not_after");
    let not_after = end.as_ref().and_then(Value::timestamp);
    if let (Some(begin), Some(until), Some(end)) = (not_before, not_after, &end)
        && until < begin
    {
        end.wrong(
            "`not_after` lies before `not_before`",
            "a secret is valid from `not_before` to `not_after`",
        );
    }
    if let (Some(until), Some(end)) = (not_after, &end)
        && until < context.now
    {
        end.doubtful(format!("the secret expired at {until}"), "remove it");
    }
    let Found { secret, at, .. } = found?;
    Some((NamedSecret { name: Arc::from(name?), secret, not_before, not_after }, at))
}

fn read_name(value: &Value<'_>) -> Option<String> {
    let name = value.text()?;
    let fits = (1..=63).contains(&name.chars().count()) && !name.chars().any(char::is_control);
    if !fits {
        value.wrong("this cannot be a name", "1 to 63 characters: it becomes a metrics label");
    }
    fits.then(|| name.to_owned())
}
