//! The configurations that a walk moves between.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use countersign::clock::Timestamp;
use countersign::secret::Secret;
use countersign::verify::{Message, Signer, preset};
use http::{HeaderMap, HeaderValue, Method};

const SECRET: &str = "whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTEyMzQ=";

/// For how long an accepted request claims its keys.
pub(crate) const TTL: Duration = Duration::from_mins(30);
/// What retention keeps of the delivered.
pub(crate) const KEEP: Duration = Duration::from_mins(5);
/// The pause that a busy backend asks for.
pub(crate) const ASKED: Duration = Duration::from_secs(90);
pub(crate) const DESTINATIONS: [&str; 3] = ["a", "b", "c"];

/// A source, and what follows from its configuration.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) name: &'static str,
    provider: &'static str,
    settings: &'static str,
    /// Whether the signed bytes are a second claim.
    pub(crate) guarded: bool,
    /// Whether a duplicate brings dead forwards back.
    pub(crate) revives: bool,
    /// Whether a request may come without an id.
    pub(crate) id_may_be_missing: bool,
    to: &'static [&'static str],
}

pub(crate) static SOURCES: [Source; 3] = [
    Source {
        name: "git",
        provider: "github",
        settings: "",
        guarded: true,
        revives: true,
        id_may_be_missing: true,
        to: &["a", "b"],
    },
    Source {
        name: "mail",
        provider: "standard-webhooks",
        settings: "on_duplicate_of_dead = \"absorb\"",
        guarded: false,
        revives: false,
        id_may_be_missing: false,
        to: &["b"],
    },
    Source {
        name: "loose",
        provider: "github",
        settings: "replay_guard = \"off\"",
        guarded: false,
        revives: true,
        id_may_be_missing: true,
        to: &["c"],
    },
];

/// Attempts at once; a destination that goes and comes back may have those of both its lives.
pub(crate) fn concurrency(destination: &str) -> usize {
    match destination {
        "a" => 2,
        "b" => 3 * 2,
        _ => 1,
    }
}

/// One of the configurations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Whether destination `b` is there; what goes to it goes to `a` otherwise.
    pub(crate) with_b: bool,
    /// Whether the destinations have little patience.
    pub(crate) hasty: bool,
}

/// When a forward may be given up.
pub(crate) struct Patience {
    /// The pauses after the first attempts; the last one stands for all that follow when `endless`.
    pauses: &'static [u64],
    endless: bool,
    pub(crate) max_age: Duration,
}

impl Patience {
    /// The full pause after this attempt, when there is one.
    pub(crate) fn pause(&self, attempt: u32) -> Option<Duration> {
        let index = attempt as usize - 1;
        let last = self.pauses.last().filter(|_| self.endless);
        self.pauses.get(index).or(last).copied().map(Duration::from_secs)
    }
}

const EXPONENTIAL: Patience =
    Patience { pauses: &[5, 10, 20, 40, 60], endless: true, max_age: Duration::from_mins(10) };
const LIST: Patience = Patience { pauses: &[10, 20, 40], endless: false, max_age: Duration::from_hours(1) };
const HASTY: Patience = Patience { pauses: &[20], endless: false, max_age: Duration::from_mins(2) };

/// The retry policies that a destination may have had.
pub(crate) fn patience(destination: &str) -> [Patience; 2] {
    [if destination == "b" { LIST } else { EXPONENTIAL }, HASTY]
}

impl Setting {
    pub(crate) fn has(self, destination: &str) -> bool {
        self.with_b || destination != "b"
    }

    /// Where a delivery of this source goes.
    pub(crate) fn to(self, source: &Source) -> Vec<&'static str> {
        let mut to: Vec<_> = source.to.iter().map(|name| if self.has(name) { *name } else { "a" }).collect();
        to.dedup();
        to
    }

    /// The configuration file, with every destination at a path of `backend`.
    pub(crate) fn text(self, backend: SocketAddr) -> String {
        let mut text = String::from(
            "listen = { address = \"127.0.0.1:0\", ack_deadline = \"4900ms\" }\nadmin.address = \"127.0.0.1:0\"\n\
             store = { path = \"data\", disk_reserve = \"1MiB\", retention = { delivered = \"5m\" } }\n\
             dedup.ttl = \"30m\"\n",
        );
        for source in &SOURCES {
            text += &format!(
                "[[source]]\nname = \"{}\"\nprovider = \"{}\"\nsecrets = [{{ value = \"{SECRET}\" }}]\nto = {:?}\n{}\n",
                source.name,
                source.provider,
                self.to(source),
                source.settings
            );
        }
        for (name, concurrency, breaker, retry) in [
            (
                "a",
                2,
                "\"off\"",
                "{ initial = \"5s\", factor = 2.0, max = \"60s\", max_age = \"10m\", jitter = \"none\" }",
            ),
            (
                "b",
                3,
                "{ failures = 3, probe_after = \"20ms\", probe_max = \"40ms\" }",
                "{ schedule = [\"10s\", \"20s\", \"40s\"], max_age = \"1h\", jitter = \"none\" }",
            ),
            ("c", 1, "\"off\"", "{ initial = \"5s\", factor = 2.0, max = \"60s\", max_age = \"10m\" }"),
        ] {
            if self.has(name) {
                let hasty = "{ schedule = [\"20s\"], max_age = \"2m\", jitter = \"none\" }";
                let retry = if self.hasty { hasty } else { retry };
                text += &format!(
                    "[[destination]]\nname = \"{name}\"\nurl = \"http://{backend}/{name}\"\ntimeout = \"250ms\"\n\
                     connect_timeout = \"250ms\"\nconcurrency = {concurrency}\nbreaker = {breaker}\nretry = {retry}\n"
                );
            }
        }
        text
    }
}

/// What a provider sends: its headers, signed at `now`.
pub(crate) fn signed(source: &Source, id: Option<&str>, body: &Bytes, now: Timestamp) -> HeaderMap {
    let signer = Signer::new(preset(source.provider).unwrap().scheme.clone(), &Secret::new(SECRET).unwrap());
    let method = Method::POST;
    // A scheme without an id in its signature signs the same without one.
    let message =
        Message { method: &method, url: "", id: Some(id.unwrap_or("none")), event: Some("push"), body };
    let mut headers = signer.unwrap().sign(&message, now).unwrap();
    if id.is_none() {
        headers.remove("x-github-delivery");
    }
    headers.insert("x-odd", HeaderValue::from_bytes(b"\xff: \x80").unwrap());
    headers
}
