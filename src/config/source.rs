//! `[[source]]`: a configured sender, put together from what the file says, what the provider is known for, and what
//! the gateway does by default.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};

use super::listen::{Dedup, TTL};
use super::networks::networks_or_file;
use super::values::{
    BODY_MAX, Context, DURATION_MAX, MILLISECOND, SECOND, Unique, choice, integer, list, name, rate,
    read_duration, size,
};
use super::verification::{self, Verification};
use super::when;
use super::{Ack, ReplayGuard, Route, SYNC_ROOM, Source};
use crate::identity::SubjectRule;
use crate::reader::{Table, Value, nearest};
use crate::units::{format_duration, format_size};
use crate::verify::{Preset, Window};

/// Half a second less than the answer's deadline is by default.
const SYNC_DEADLINE: Duration = Duration::from_secs(2);

/// What the rest of the file says about sources.
pub(super) struct Surroundings<'d> {
    pub(super) public_url: Option<String>,
    /// Whether the listener asks for client certificates.
    pub(super) asks_clients: bool,
    pub(super) ack_deadline: Duration,
    pub(super) body_max: u64,
    pub(super) in_flight: u64,
    pub(super) dedup: Dedup<'d>,
    /// The names of all destinations, and whether a source has asked for them.
    pub(super) destinations: Vec<(&'d str, Cell<bool>)>,
    pub(super) names: Unique,
    pub(super) paths: Unique,
    /// Whether there may be destinations that could not be read.
    pub(super) torn: bool,
}

pub(super) fn read(table: &Table<'_>, around: &Surroundings<'_>, context: &Context<'_>) -> Option<Source> {
    let name = table.require("name", "1 to 63 of the characters a-z, 0-9 and -").and_then(|value| {
        let name = name(&value)?;
        around.names.take(name, &value, "each source needs a name of its own", context).then_some(name)
    });
    let path = read_path(table, name, around, context);
    let window = verification::read_window(table);
    let verification = verification::read(table, window, around.public_url.as_deref(), context);
    let preset = verification.as_ref().and_then(|verification| verification.preset);
    let dedup_ttl = read_dedup_ttl(table, name, window, preset, around);
    let body_max = read_body_max(table, preset, around);
    let methods = read_methods(table);
    let to = read_to(table, around, context);
    let replay_guard = read_replay_guard(table, verification.as_ref());
    let accept_missing_id = choice(table, "on_missing_id", true, &[("accept", true), ("reject", false)]);
    let revive_dead = choice(table, "on_duplicate_of_dead", true, &[("requeue", true), ("absorb", false)]);
    let rate = rate(table);
    let allow_addresses = networks_or_file(table, "allow_addresses", context);
    let allow_subjects = read_allow_subjects(table, around);
    let ack = read_ack(&table.section("ack"));
    let drop_events = list(table, "drop_events", "a list of event types, such as [\"ping\"]", |value| {
        value.text().map(str::to_owned)
    });
    let sync_deadline = read_mode(table, around, to.len());
    let forward_handshake = read_forward_handshake(table, verification.as_ref());
    let Verification { provider, verifier, public_url, .. } = verification?;
    Some(Source {
        name: Arc::from(name?),
        path: path?,
        public_url,
        provider,
        verifier,
        methods: methods.or_else(|| Some(preset?.methods.clone())).unwrap_or_else(|| vec![Method::POST]),
        to,
        replay_guard,
        accept_missing_id,
        revive_dead,
        dedup_ttl,
        body_max,
        rate,
        allow_addresses,
        allow_subjects,
        ack,
        sync_deadline,
        drop_events: drop_events.or_else(|| Some(preset?.drop_events.clone())).unwrap_or_default(),
        forward_handshake,
    })
}

fn read_path(
    table: &Table<'_>,
    name: Option<&str>,
    around: &Surroundings<'_>,
    context: &Context<'_>,
) -> Option<String> {
    const UNIQUE: &str = "each source needs a path of its own";
    let Some(value) = table.get("path") else {
        let path = format!("/webhooks/{}", name?);
        return around.paths.take(&path, &table.get("name")?, UNIQUE, context).then_some(path);
    };
    let path = value.text()?;
    let wrong = |message: &str| {
        value.wrong(message, "a path such as \"/webhooks/hostwares\", without query and fragment");
        None
    };
    if !path.starts_with('/') {
        return wrong("the path does not begin with `/`");
    }
    if path.contains(['?', '#']) {
        return wrong("the path has a query or a fragment");
    }
    if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return wrong("the path has characters that must be percent-encoded, such as a space");
    }
    around.paths.take(path, &value, UNIQUE, context).then(|| path.to_owned())
}

/// Reads how long delivery ids are remembered, and measures it against window and provider.
fn read_dedup_ttl(
    table: &Table<'_>,
    name: Option<&str>,
    window: Window,
    preset: Option<&Preset>,
    around: &Surroundings<'_>,
) -> Duration {
    let own = table.get("dedup_ttl");
    let ttl = own.as_ref().and_then(|value| read_duration(value, SECOND..=DURATION_MAX, TTL));
    let ttl = ttl.unwrap_or(around.dedup.ttl);
    // The default is longer than any window, so a ttl that is too short stands somewhere.
    let Some(at) = own.as_ref().or(around.dedup.at.as_ref()) else { return ttl };
    let source = name.unwrap_or("without a name");
    let window = window.past + window.future;
    let horizon = preset.and_then(|preset| Some((&preset.name, preset.retry_horizon?)));
    if ttl < window {
        at.wrong(
            format!(
                "{} is shorter than the window of source `{source}`: a captured request could be accepted twice",
                format_duration(ttl)
            ),
            format!("at least {}, past and future of the window together", format_duration(window)),
        );
    } else if let Some((provider, horizon)) = horizon
        && ttl < horizon
    {
        at.doubtful(
            format!(
                "`{provider}` repeats deliveries for longer than the {} that source `{source}` remembers them",
                format_duration(ttl)
            ),
            format!("at least {}, or late retries are forwarded again", format_duration(horizon)),
        );
    }
    ttl
}

fn read_body_max(table: &Table<'_>, preset: Option<&Preset>, around: &Surroundings<'_>) -> u64 {
    let raised = preset.and_then(|preset| preset.body_max).unwrap_or(0);
    let default = around.body_max.max(raised);
    let body_max = size(table, "body_max", default, 1..=BODY_MAX, "bodies are held in memory");
    if body_max > around.in_flight.max(around.body_max) {
        let message = format!(
            "bodies of up to {} are allowed, but `limits.in_flight` is {}: larger ones are never accepted",
            format_size(body_max),
            format_size(around.in_flight)
        );
        let help = "raise `limits.in_flight`, or lower `body_max`";
        match table.get("body_max") {
            Some(value) => value.doubtful(message, help),
            None => table.doubtful(message, help),
        }
    }
    body_max
}

fn read_methods(table: &Table<'_>) -> Option<Vec<Method>> {
    const HELP: &str = "a list of methods such as [\"POST\", \"PUT\"]";
    let parse = |text: &str| match Method::from_bytes(text.as_bytes()) {
        Ok(Method::CONNECT | Method::TRACE) => Err("it has no meaning for a webhook"),
        Ok(method) if text.bytes().all(|byte| byte.is_ascii_uppercase()) => Ok(method),
        _ => Err("methods are upper-case words"),
    };
    let methods = list(table, "methods", HELP, |value| value.parse(parse, HELP))?;
    if let Some(value) = table.get("methods").filter(Value::is_empty_array) {
        value.wrong("no method is allowed, so nothing could be received", HELP);
    }
    Some(methods)
}

fn read_to(table: &Table<'_>, around: &Surroundings<'_>, context: &Context<'_>) -> Vec<Route> {
    const HELP: &str = "a list of destinations' names, such as [\"legacy\"]";
    let Some(value) = table.require("to", HELP) else { return Vec::new() };
    if value.is_empty_array() {
        value.wrong("deliveries would be stored and go nowhere", HELP);
    }
    let mut routes: Vec<Route> = Vec::new();
    list(table, "to", HELP, |value| {
        let (route, at) = read_route(&value, around, context)?;
        if routes.iter().any(|other| other.destination == route.destination) {
            at.wrong(
                format!("`{}` is named twice", route.destination),
                "name each destination once: `events` takes several types, and `when` several conditions with `||`",
            );
        }
        routes.push(route);
        Some(())
    });
    routes
}

fn read_route<'d>(
    value: &Value<'d>,
    around: &Surroundings<'_>,
    context: &Context<'_>,
) -> Option<(Route, Value<'d>)> {
    const HELP: &str = "a name, or a table such as { destination = \"legacy\", events = [\"deployment.*\"] }";
    const EVENTS: &str = "a list of event types, with `*` for any run of characters";
    let (destination, events, when) = if value.is_text() {
        (value.clone(), Vec::new(), None)
    } else {
        let table = value.table(HELP)?;
        let when = table.get("when").map(|value| when::read(&value, context));
        let read = |value: Value<'_>| {
            value.parse(|text| if text.is_empty() { Err("it is empty") } else { Ok(text.to_owned()) }, EVENTS)
        };
        let events = list(&table, "events", EVENTS, read);
        if let Some(events) = table.get("events").filter(Value::is_empty_array) {
            events.wrong("no event is chosen", "leave `events` out to forward all, or name some");
        }
        (table.require("destination", HELP)?, events.unwrap_or_default(), when)
    };
    let name = destination.text()?;
    match around.destinations.iter().find(|(known, _)| *known == name) {
        Some((_, used)) => used.set(true),
        None if around.torn => return None,
        None => {
            let names = || around.destinations.iter().map(|(name, _)| *name);
            let help = match nearest(name, names()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if around.destinations.is_empty() => {
                    format!("add `[[destination]]` with `name = \"{name}\"` and a `url`")
                }
                None => format!("one of {}", names().collect::<Vec<_>>().join(", ")),
            };
            destination.wrong(format!("there is no destination `{name}`"), help);
            return None;
        }
    }
    let when = match when {
        Some(when) => Some(when?),
        None => None,
    };
    Some((Route { destination: Arc::from(name), events, when }, destination))
}

fn read_forward_handshake(table: &Table<'_>, verification: Option<&Verification>) -> bool {
    let Some(value) = table.get("forward_handshake") else { return false };
    let forward = value.boolean().unwrap_or(false);
    let handshakes = verification.map(|verification| verification.verifier.handshakes());
    if forward && handshakes.is_some_and(|handshakes| !handshakes.iter().any(|kind| kind.is_signed())) {
        value.wrong(
            "this provider has no handshake that it signs, and nothing else is forwarded",
            "leave it out",
        );
    }
    forward
}

fn read_replay_guard(table: &Table<'_>, verification: Option<&Verification>) -> ReplayGuard {
    let guard = choice(
        table,
        "replay_guard",
        match verification.and_then(|verification| verification.preset) {
            Some(preset) if !preset.guards_replays => ReplayGuard::Off,
            Some(_) | None => ReplayGuard::Absorb,
        },
        &[("absorb", ReplayGuard::Absorb), ("reject", ReplayGuard::Reject), ("off", ReplayGuard::Off)],
    );
    if guard == ReplayGuard::Off
        && let Some(coverage) = verification.map(|verification| verification.verifier.coverage())
        && coverage.body
        && !(coverage.timestamp && coverage.id)
        && let Some(value) = table.get("replay_guard")
    {
        value.doubtful(
            "delivery id or time are not signed here, so a captured request can be sent again as a new one",
            "\"absorb\", unless this provider sends the same bytes twice and means it",
        );
    }
    guard
}

fn read_allow_subjects(table: &Table<'_>, around: &Surroundings<'_>) -> Vec<SubjectRule> {
    const HELP: &str = "subjects such as \"CN=client.example,O=Example\", as `openssl x509 -noout -subject -nameopt RFC2253` \
        prints them, or \"DNS:client.example\"";
    let parse = |text: &str| text.parse::<SubjectRule>();
    let rules = list(table, "allow_subjects", &format!("a list of {HELP}"), |value| value.parse(parse, HELP));
    if let Some(value) = table.get("allow_subjects")
        && !value.is_empty_array()
        && !around.asks_clients
        && !around.torn
    {
        value.wrong(
            "no client is asked for a certificate, so every request would be refused",
            "`client_ca` in `listen.tls`: a file with the certificates of the authorities in PEM",
        );
    }
    rules.unwrap_or_default()
}

fn read_ack(table: &Table<'_>) -> Ack {
    let status = integer(table, "status", 200_u16, 200..=299);
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    let body = table.get("body");
    let text = body.as_ref().and_then(Value::text).unwrap_or_default();
    if let Some(body) = body
        && !text.is_empty()
        && matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT)
    {
        body.wrong(format!("an answer with {} has no body", status.as_u16()), "leave it out, or use 200");
    }
    let parse = |text: &str| HeaderValue::from_str(text);
    let content_type = table.get("content_type");
    let content_type = content_type
        .and_then(|value| value.parse(parse, &format!("a value of the header {CONTENT_TYPE}")))
        .unwrap_or(HeaderValue::from_static("text/plain"));
    Ack { status, body: text.to_owned(), content_type }
}

fn read_mode(table: &Table<'_>, around: &Surroundings<'_>, destinations: usize) -> Option<Duration> {
    let (mode, own) = (table.get("mode"), table.get("sync_deadline"));
    let is_sync = match &mode {
        Some(mode) => mode.one_of(&[("async", false), ("sync", true)])?,
        None => false,
    };
    if !is_sync {
        if let Some(deadline) = own {
            deadline.wrong("`sync_deadline` has no effect without `mode = \"sync\"`", "leave it out");
        }
        return None;
    }
    let at = own.as_ref().or(mode.as_ref())?;
    if destinations > 1
        && let Some(mode) = &mode
    {
        mode.wrong(
            "the source has several destinations, and their answers cannot all be passed on",
            "name one destination in `to`; another source can forward to the others",
        );
    }
    let help = "how long a request waits for its backend before it gets the ack";
    let deadline = match &own {
        Some(value) => read_duration(value, MILLISECOND..=Duration::from_millis(4_999), help)?,
        None => SYNC_DEADLINE,
    };
    let latest = around.ack_deadline.saturating_sub(SYNC_ROOM);
    if deadline > latest {
        at.wrong(
            format!(
                "`sync_deadline` of {} leaves too little of `listen.ack_deadline`, {}, for the answer",
                format_duration(deadline),
                format_duration(around.ack_deadline)
            ),
            format!(
                "`sync_deadline` at least {} shorter than `listen.ack_deadline`",
                format_duration(SYNC_ROOM)
            ),
        );
    }
    Some(deadline)
}
