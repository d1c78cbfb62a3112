//! `[[destination]]`: a configured backend, and how patiently it is treated.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderName, HeaderValue, Uri};

use super::countersign::{self, AsProvider, Wanted};
use super::values::{
    Context, DAY, DURATION_MAX, MILLISECOND, Unique, choice, duration, integer, list, name, rate,
    read_duration,
};
use super::{Countersign, Destination};
use super::{backend, secrets, shape};
use crate::address::Reach;
use crate::forward::{BreakerPolicy, By, Concurrency, OnDead, Order, RetryPolicy, Schedule, StatusPattern};
use crate::reader::{Table, Value};
use crate::shape::Shape;
use crate::units::format_duration;
use crate::verify::Place;

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

/// Also what is to be made of its `sign` once the sources are known.
pub(super) fn read<'d>(
    table: &Table<'d>,
    names: &Unique,
    context: &Context<'_>,
) -> Option<(Destination, Option<AsProvider<'d>>)> {
    let name = table.require("name", "1 to 63 of the characters a-z, 0-9 and -").and_then(|value| {
        let name = name(&value)?;
        names.take(name, &value, "each destination needs a name of its own", context).then_some(name)
    });
    const URL: &str = "where requests go, such as \"http://127.0.0.1:3000/hooks\"";
    let allow_private = table.get("allow_private").and_then(|value| value.boolean()).unwrap_or(true);
    let url = table.require("url", URL).and_then(|value| {
        let (url, path) = shape::url(&value, URL)?;
        check_address(&url, &value, allow_private);
        Some((url, path))
    });
    let timeout = duration(
        table,
        "timeout",
        Duration::from_secs(30),
        MILLISECOND..=15 * MINUTE,
        "for a whole attempt, above 0 and at most 15m",
    );
    let connect_timeout = duration(
        table,
        "connect_timeout",
        timeout.min(Duration::from_secs(5)),
        MILLISECOND..=timeout,
        "above 0 and at most `timeout`",
    );
    let concurrency = read_concurrency(table);
    let rate = rate(table);
    let retry = read_retry(&table.section("retry"), read_statuses(table));
    let breaker = read_breaker(table);
    let sign = table.get("sign").map(|value| countersign::read(&value, context));
    let mut headers = read_headers(table, context);
    backend::read_auth(table, &mut headers, context);
    let tls = backend::read_tls(table, url.as_ref().map(|(url, _)| url), context);
    let order = read_order(table).map(Arc::new);
    let shape = shape::read(table, context);
    let (sign, as_provider) = match sign {
        Some(Wanted::Uniform(signer)) => (Some(Countersign::Uniform(signer?)), None),
        Some(Wanted::AsProvider(wanted)) => (None, Some(wanted?)),
        None => (None, None),
    };
    let (url, path) = url?;
    let destination = Destination {
        name: Arc::from(name?),
        url,
        tls,
        allow_private,
        timeout,
        connect_timeout,
        concurrency,
        rate,
        retry,
        breaker,
        order,
        sign,
        headers,
        shape: Shape { path, ..shape },
    };
    Some((destination, as_provider))
}

/// An address in the URL is judged when the file is read; those of a name, whenever it is dialled.
fn check_address(url: &Uri, value: &Value<'_>, allow_private: bool) {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let Some(reach) = host.parse::<IpAddr>().ok().map(Reach::of) else { return };
    if reach.is_refused(true) {
        value.wrong(format!("{host} is {}", reach.describe()), "such services are never sent deliveries");
    } else if reach.is_refused(allow_private) {
        value.wrong(
            format!("{host} is {}, and `allow_private` is false", reach.describe()),
            "a public address, or `allow_private = true`",
        );
    }
}

fn read_concurrency(table: &Table<'_>) -> Concurrency {
    const DEFAULT: NonZeroUsize = NonZeroUsize::new(16).unwrap();
    const ADAPTIVE_MAX: NonZeroUsize = NonZeroUsize::new(256).unwrap();
    const HELP: &str =
        "a whole number from 1 to 1024, \"adaptive\", or { adaptive = 64 }, which is never more than 64";
    let bounded = |table: &Table<'_>, key, default: NonZeroUsize| {
        NonZeroUsize::new(integer(table, key, default.get(), 1..=1024)).unwrap_or(default)
    };
    match table.get("concurrency") {
        Some(value) if value.is_text() => {
            if value.text() != Some("adaptive") {
                value.wrong("this is not a number of attempts", HELP);
            }
            Concurrency::Adaptive(ADAPTIVE_MAX)
        }
        Some(value) if value.is_table() => {
            let bound = value.table(HELP).filter(|table| table.require("adaptive", HELP).is_some());
            Concurrency::Adaptive(
                bound.map_or(ADAPTIVE_MAX, |table| bounded(&table, "adaptive", ADAPTIVE_MAX)),
            )
        }
        Some(_) | None => Concurrency::Fixed(bounded(table, "concurrency", DEFAULT)),
    }
}

fn read_order(table: &Table<'_>) -> Option<Order> {
    const HELP: &str = "\"none\", \"strict\", or { key = \"/data/site_id\" }: a JSON pointer into the body, or a place such as \
                        \"header:X-Site\"";
    let on_dead =
        choice(table, "on_dead", OnDead::Park, &[("park", OnDead::Park), ("continue", OnDead::Continue)]);
    let order = table.get("order");
    if let Some(value) = table.get("on_dead").filter(|_| order.is_none()) {
        value.wrong("`on_dead` has no effect without `order`", "an `order`, or leave it out");
    }
    let value = order?;
    if value.is_text() {
        return match value.text()? {
            "none" => None,
            "strict" => Some(Order::new(By::Strict, on_dead)),
            other => {
                value.wrong(format!("`{other}` is not a choice here"), HELP);
                None
            }
        };
    }
    let parse = |text: &str| {
        let place = if text.starts_with('/') { format!("json:{text}") } else { text.to_owned() };
        place.parse::<Place>()
    };
    let place = value.table(HELP)?.require("key", HELP)?.parse(parse, HELP)?;
    Some(Order::new(By::Value(place), on_dead))
}

fn read_retry(table: &Table<'_>, statuses: Vec<StatusPattern>) -> RetryPolicy {
    let max_age = duration(
        table,
        "max_age",
        3 * DAY,
        MILLISECOND..=DURATION_MAX,
        "how long after its receipt a delivery is given up",
    );
    let full_jitter = choice(table, "jitter", true, &[("full", true), ("none", false)]);
    let exponential = read_exponential(table);
    let schedule = match table.get("schedule") {
        Some(value) => read_schedule(table, &value, max_age),
        None => exponential,
    };
    RetryPolicy { schedule, max_age, full_jitter, statuses }
}

fn read_exponential(table: &Table<'_>) -> Schedule {
    let pause = MILLISECOND..=30 * DAY;
    let initial =
        duration(table, "initial", Duration::from_secs(5), pause.clone(), "the pause before the first retry");
    let max = duration(table, "max", HOUR.max(initial), pause, "the longest pause");
    if max < initial
        && let Some(value) = table.get("max")
    {
        value.wrong("the longest pause is shorter than the first one", "at least `initial`");
    }
    const FACTOR: &str = "a number from 1.0 to 10.0: what each pause is multiplied with";
    let factor = table.get("factor").and_then(|value| {
        let factor = value.number(FACTOR)?;
        let fits = (1.0..=10.0).contains(&factor);
        if !fits {
            value.wrong(format!("{factor} is out of range"), FACTOR);
        }
        fits.then_some(factor)
    });
    Schedule::Exponential { initial, factor: factor.unwrap_or(2.0), max }
}

fn read_schedule(table: &Table<'_>, value: &Value<'_>, max_age: Duration) -> Schedule {
    const HELP: &str = "a list of pauses such as [\"10s\", \"60s\", \"5m\"]";
    for key in ["initial", "factor", "max"] {
        if let Some(other) = table.get(key) {
            other.wrong(format!("`{key}` has no effect beside `schedule`"), "leave one of them out");
        }
    }
    if value.is_empty_array() {
        value.wrong("the schedule has no pause", HELP);
    }
    let pause = |value: Value<'_>| read_duration(&value, MILLISECOND..=30 * DAY, "a pause between attempts");
    let pauses = list(table, "schedule", HELP, pause).unwrap_or_default();
    if pauses.len() > 100 {
        value.wrong(format!("the schedule has {} pauses", pauses.len()), "at most 100");
    }
    let sum: Duration = pauses.iter().sum();
    if sum > max_age {
        value.doubtful(
            format!(
                "the schedule lasts {}, but deliveries are given up after {}",
                format_duration(sum),
                format_duration(max_age)
            ),
            "raise `max_age`, or shorten the schedule",
        );
    }
    Schedule::List(pauses)
}

fn read_statuses(table: &Table<'_>) -> Vec<StatusPattern> {
    const HELP: &str = "statuses from 300 to 599, or hundreds: \"429\", \"5xx\"";
    let parse = |text: &str| {
        let class = |text: &str| text.strip_suffix("xx")?.parse().ok().map(StatusPattern::Class);
        match class(text).or_else(|| text.parse().ok().map(StatusPattern::Exact)) {
            Some(pattern @ (StatusPattern::Class(3..=5) | StatusPattern::Exact(300..=599))) => Ok(pattern),
            Some(StatusPattern::Class(2) | StatusPattern::Exact(200..=299)) => {
                Err("a 2xx means that the backend has accepted it")
            }
            Some(StatusPattern::Class(_) | StatusPattern::Exact(_)) | None => {
                Err("it is no status of a failure")
            }
        }
    };
    let read = |value: Value<'_>| {
        if value.is_text() {
            return value.parse(parse, HELP);
        }
        value.integer(300..600).and_then(|status| u16::try_from(status).ok()).map(StatusPattern::Exact)
    };
    list(table, "retry_statuses", &format!("a list of {HELP}"), read).unwrap_or_else(|| {
        vec![
            StatusPattern::Exact(408),
            StatusPattern::Exact(425),
            StatusPattern::Exact(429),
            StatusPattern::Class(5),
        ]
    })
}

fn read_breaker(table: &Table<'_>) -> Option<BreakerPolicy> {
    if let Some(value) = table.get("breaker").filter(Value::is_text) {
        value.one_of(&[("off", ())]);
        return None;
    }
    let breaker = table.section("breaker");
    let pause = MILLISECOND..=DAY;
    let probe_after = duration(
        &breaker,
        "probe_after",
        Duration::from_secs(30),
        pause.clone(),
        "the first pause before a single attempt probes the backend",
    );
    let probe_max = duration(&breaker, "probe_max", probe_after.max(5 * MINUTE), pause, "the longest pause");
    if probe_max < probe_after
        && let Some(value) = breaker.get("probe_max")
    {
        value.wrong("the longest pause is shorter than the first one", "at least `probe_after`");
    }
    Some(BreakerPolicy { failures: integer(&breaker, "failures", 10, 1..=1_000_000), probe_after, probe_max })
}

fn read_headers(table: &Table<'_>, context: &Context<'_>) -> Vec<(HeaderName, HeaderValue)> {
    const HELP: &str = "a table such as { X-Api-Key = { env = \"LEGACY_API_KEY\" }, X-Tenant = \"a\" }";
    let Some(value) = table.get("headers") else { return Vec::new() };
    value.conceal(&["env", "file"]);
    let Some(table) = value.table(HELP) else { return Vec::new() };
    let mut headers: Vec<(HeaderName, HeaderValue)> = Vec::new();
    for (name, value) in table.entries() {
        let header = read_header_name(&name, &value);
        let text = read_header_value(&value, context);
        let (Some(header), Some(text)) = (header, text) else { continue };
        if headers.iter().any(|(other, _)| *other == header) {
            value.wrong(format!("`{header}` is there twice; case does not matter"), "name each header once");
        }
        headers.push((header, text));
    }
    headers
}

pub(super) fn read_header_name(name: &str, value: &Value<'_>) -> Option<HeaderName> {
    let Ok(header) = name.parse::<HeaderName>() else {
        value.wrong(format!("`{name}` cannot be the name of a header"), "letters, digits and `-`");
        return None;
    };
    // They frame the request or are the gateway's own statements about it.
    const FRAMING: [HeaderName; 7] =
        [CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];
    let prefixes = ["countersign-", "webhook-", "keep-alive", "proxy-connection"];
    if FRAMING.contains(&header) || prefixes.iter().any(|prefix| header.as_str().starts_with(prefix)) {
        value.wrong(format!("`{header}` is set by the gateway"), "leave it out");
        return None;
    }
    Some(header)
}

pub(super) fn read_header_value(value: &Value<'_>, context: &Context<'_>) -> Option<HeaderValue> {
    const HELP: &str = "a string, or for what is secret { env = \"NAME\" } or { file = \"/path\" }";
    let (bytes, at, secret) = if value.is_text() {
        (value.text()?.as_bytes().to_vec(), value.clone(), false)
    } else {
        let found = secrets::find(&value.table(HELP)?, context)?;
        (found.secret.expose().to_vec(), found.at, true)
    };
    match HeaderValue::from_bytes(&bytes) {
        Ok(mut header) => {
            header.set_sensitive(secret);
            Some(header)
        }
        Err(_) => {
            at.wrong("a header cannot have this value", "text without line breaks and control characters");
            None
        }
    }
}
