//! How the requests of a destination differ from what the provider sent: `method`, `template`, `content_type`,
//! `template_values`, `remove_headers`, `rename_headers`, and placeholders in `url`.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue, Method, Uri};

use super::destination::{read_header_name, read_header_value};
use super::values::{Context, list, read_file, read_url, unreadable};
use crate::reader::{Table, Value, nearest};
use crate::secret::Secret;
use crate::shape::{BodyTemplate, PathTemplate, Shape, Templated, builtin, builtins};

/// A template is a page of text.
const TEMPLATE_BYTES_MAX: u64 = 256 << 10;

pub(super) fn read(table: &Table<'_>, context: &Context<'_>) -> Shape {
    const METHOD: &str = "a method such as \"POST\"";
    let method = table.get("method").and_then(|value| {
        let parse = |text: &str| match Method::from_bytes(text.as_bytes()) {
            Ok(Method::CONNECT | Method::TRACE) => Err("it has no meaning for a webhook"),
            Ok(method) if text.bytes().all(|byte| byte.is_ascii_uppercase()) => Ok(method),
            _ => Err("methods are upper-case words"),
        };
        value.parse(parse, METHOD)
    });
    let remove_headers = list(table, "remove_headers", "a list of the provider's headers", |value| {
        value.parse(str::parse::<HeaderName>, "the name of a header")
    });
    Shape {
        method,
        body: read_body(table, context),
        path: None,
        rename_headers: read_renamed(table),
        remove_headers: remove_headers.unwrap_or_default(),
    }
}

fn read_renamed(table: &Table<'_>) -> Vec<(HeaderName, HeaderName)> {
    const HELP: &str = "a table such as { X-Old = \"X-New\" }";
    let Some(table) = table.get("rename_headers").and_then(|value| value.table(HELP)) else {
        return Vec::new();
    };
    let renamed = table.entries().into_iter().filter_map(|(old, value)| {
        let Ok(old) = old.parse::<HeaderName>() else {
            value.wrong(format!("`{old}` cannot be the name of a header"), "letters, digits and `-`");
            return None;
        };
        Some((old, read_header_name(value.text()?, &value)?))
    });
    renamed.collect()
}

fn read_body(table: &Table<'_>, context: &Context<'_>) -> Option<Templated> {
    let given = table.get("template");
    let content_type = table.get("content_type");
    let values = table.get("template_values");
    if given.is_none() {
        for (key, value) in [("content_type", &content_type), ("template_values", &values)] {
            if let Some(value) = value {
                value.wrong(
                    format!("`{key}` has no effect without `template`"),
                    "leave it out; `headers` sets headers",
                );
            }
        }
    }
    let media = match &content_type {
        Some(value) => value.parse(HeaderValue::from_str, "a media type such as \"application/json\"")?,
        None => HeaderValue::from_static("application/json"),
    };
    let mut secrets = Vec::new();
    let values = values.map(|value| read_values(&value, &mut secrets, context)).unwrap_or_default();
    let value = given?;
    let name = value.text()?;
    let source = read_source(&value, name, context)?;
    match BodyTemplate::compile(name, &source, media.to_str().unwrap_or_default(), values) {
        Ok(template) => Some(Templated { template, content_type: media, secrets }),
        Err(error) => {
            value.wrong(
                error.to_string(),
                "a template of MiniJinja, https://docs.rs/minijinja/latest/minijinja/syntax",
            );
            None
        }
    }
}

fn read_source(value: &Value<'_>, name: &str, context: &Context<'_>) -> Option<String> {
    if let Some(known) = name.strip_prefix("builtin:") {
        let found = builtin(known);
        if found.is_none() {
            let near = nearest(known, builtins()).map(|near| format!("did you mean `builtin:{near}`?"));
            let all = || format!("builtin: and one of {}", builtins().collect::<Vec<_>>().join(", "));
            value.wrong(format!("there is no template `{name}`"), near.unwrap_or_else(all));
        }
        return found.map(str::to_owned);
    }
    const HELP: &str =
        "a file with a template in UTF-8, or \"builtin:slack\", \"builtin:discord\", \"builtin:pagerduty\"";
    let path = context.directory.join(name);
    match read_file(&path, TEMPLATE_BYTES_MAX) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => return Some(text),
            Err(_) => value.wrong(format!("{} is not UTF-8", path.display()), HELP),
        },
        Err(error) => value.wrong(unreadable(&path, &error), HELP),
    }
    None
}

fn read_values(
    value: &Value<'_>,
    secrets: &mut Vec<Secret>,
    context: &Context<'_>,
) -> BTreeMap<String, String> {
    value.conceal(&["env", "file"]);
    let Some(table) = value.table("a table such as { routing_key = { env = \"PAGERDUTY_KEY\" } }") else {
        return BTreeMap::new();
    };
    let read = |(name, value): (String, Value<'_>)| {
        let text = read_header_value(&value, context)?;
        secrets.extend(text.is_sensitive().then(|| Secret::new(text.as_bytes())).and_then(Result::ok));
        Some((name, String::from_utf8_lossy(text.as_bytes()).into_owned()))
    };
    table.entries().into_iter().filter_map(read).collect()
}

/// A URL, and what stands in its path and query in place of placeholders.
pub(super) fn url(value: &Value<'_>, help: &str) -> Option<(Uri, Option<PathTemplate>)> {
    let text = value.text()?;
    let authority = text.find("://").map_or(0, |at| at + 3);
    let path = text[authority..].find(['/', '?']).map_or(text.len(), |at| authority + at);
    if text[..path].contains(['{', '}']) {
        value.wrong("values of a delivery may stand in the path and the query of a URL only", help);
        return None;
    }
    match PathTemplate::parse(&text[path..]) {
        Ok(None) => Some((read_url(value, text, help)?, None)),
        Ok(Some(template)) => {
            // What it will be is known with each delivery; here, where it is dialled.
            let mut plain = text.to_owned();
            while let (Some(open), Some(close)) = (plain.find('{'), plain.find('}')) {
                plain.replace_range(open..=close, "x");
            }
            Some((read_url(value, &plain, help)?, Some(template)))
        }
        Err((at, why)) => {
            // Behind the quote; a URL has no escapes.
            value.wrong_at(value.span().start + 1 + path + at, why, help);
            None
        }
    }
}
