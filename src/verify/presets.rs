//! The providers that come with the program: one embedded file, read once.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::Method;

use super::scheme::Scheme;
use crate::reader::{Problems, Table, Value, read_document};
use crate::units::{parse_duration, parse_size};

/// A provider: how it signs, and what else is known of it.
#[derive(Debug, Clone)]
pub struct Preset {
    /// Its name, as `provider` in the configuration.
    pub name: Arc<str>,
    /// How it signs.
    pub scheme: Scheme,
    /// What it sends.
    pub methods: Vec<Method>,
    /// Largest body in bytes, when it exceeds the gateway's own default.
    pub body_max: Option<u64>,
    /// For how long after the first try it tries again by itself; zero is never, `None` is unknown.
    pub retry_horizon: Option<Duration>,
    /// How long it waits for the answer; `None` is unknown.
    pub timeout: Option<Duration>,
    /// Event types that are not forwarded by default.
    pub drop_events: Vec<String>,
    /// Whether genuine requests are never the same to the byte, so that a copy is a replay.
    pub guards_replays: bool,
    /// Where it documents its webhooks.
    pub docs: Option<String>,
    /// Whether its documentation or code was read; otherwise the preset is hearsay.
    pub confirmed: bool,
}

impl Preset {
    /// The preset as it is written in the file, with what the file remarks about it: a table that `[source.scheme]` could
    /// begin with.
    pub fn definition(&self) -> &'static str {
        let header = format!("[{}]", self.name);
        let is_own = |block: &&str| block.lines().any(|line| line == header);
        FILE.split("\n\n").find(is_own).unwrap_or_default().trim_end()
    }
}

const FILE: &str = include_str!("presets.toml");

/// All presets, sorted by name.
pub fn presets() -> &'static [Preset] {
    static PRESETS: LazyLock<Vec<Preset>> = LazyLock::new(|| {
        let problems = Problems::default();
        let mut presets = read_document(FILE, &problems, |table| read_all(&table));
        presets.sort_by(|a, b| a.name.cmp(&b.name));
        // The file is part of the program, and any test that uses a preset comes by here.
        assert!(!problems.has_errors(), "presets.toml: {:?}", problems.into_sorted());
        presets
    });
    &PRESETS
}

/// The preset of this name.
pub fn preset(name: &str) -> Option<&'static Preset> {
    presets().iter().find(|preset| *preset.name == *name)
}

fn read_all(table: &Table<'_>) -> Vec<Preset> {
    table.entries().into_iter().filter_map(|(name, value)| read(&name, &value.table("a table")?)).collect()
}

fn read(name: &str, table: &Table<'_>) -> Option<Preset> {
    let duration = |key| table.get(key).and_then(|value| value.parse(parse_duration, "a duration"));
    let method = |value: &Value<'_>| value.parse(|text| Method::from_bytes(text.as_bytes()), "a method");
    let methods = table.get("methods").and_then(|value| value.array("methods"));
    let texts = |key| {
        let list = table.get(key).and_then(|value| value.array("a list of texts"));
        list.into_iter().flatten().filter_map(|text| text.text().map(str::to_owned)).collect()
    };
    let guards_replays = table
        .get("replay_guard")
        .map_or(Some(true), |value| value.one_of(&[("absorb", true), ("off", false)]));
    Some(Preset {
        name: name.into(),
        methods: methods.map_or_else(|| vec![Method::POST], |list| list.iter().filter_map(method).collect()),
        body_max: table.get("body_max").and_then(|value| value.parse(parse_size, "a size")),
        retry_horizon: duration("retry_horizon"),
        timeout: duration("timeout"),
        drop_events: texts("drop_events"),
        guards_replays: guards_replays?,
        docs: table.get("docs").and_then(|value| value.text().map(str::to_owned)),
        confirmed: table.require("confirmed", "true or false")?.boolean()?,
        scheme: Scheme::read_fields(table, true)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::Coverage;

    #[test]
    fn presets_are_known_by_name() {
        assert!(presets().len() > 110, "{}", presets().len());
        assert!(presets().iter().all(|known| preset(&known.name).is_some()));
        assert!(preset("Stripe").is_none());
        let names: Vec<_> =
            FILE.lines().filter_map(|line| line.strip_prefix('[')?.strip_suffix(']')).collect();
        assert!(names.is_sorted(), "the file is in the order of the names");
        for preset in presets() {
            assert!(preset.docs.is_some() || &*preset.name == "hostwares", "{}", preset.name);
            assert!(preset.definition().contains("\nauth = "), "{}", preset.name);
        }
    }

    #[test]
    fn coverage_is_what_the_providers_sign() {
        let check = |name: &str, timestamp, id, body| {
            assert_eq!(preset(name).unwrap().scheme.coverage(), Coverage { timestamp, id, body }, "{name}");
        };
        check("github", false, false, true);
        check("hostwares", false, true, true);
        check("owlette", true, false, true);
        check("owlette-legacy", false, false, true);
        check("ownstak", false, false, false);
        check("standard-webhooks", true, true, true);
        check("stripe", true, true, true);
        // Nothing parts its id from its time.
        check("twitch", true, false, true);
        check("mailgun", true, false, false);
        check("twilio-form", false, false, false);
        check("twilio-json", false, false, true);
        check("linear", true, false, true);
        check("hubspot-v1", false, false, true);
        check("discord", true, true, true);
        check("paypal-pinned-cert", false, false, false);
        check("plaid", true, false, true);
        check("netlify", false, false, true);
        check("qstash", true, false, true);
        check("monday", true, false, false);
        check("aws-sns", false, true, false);
        check("contentful", true, false, true);
        let signing_url = presets().iter().filter(|preset| preset.scheme.signs_url());
        let signing_url: Vec<_> = signing_url.map(|preset| &*preset.name).collect();
        assert_eq!(
            signing_url,
            [
                "hubspot-v2",
                "hubspot-v3",
                "monday",
                "plivo-v2",
                "plivo-v3-noparams",
                "qstash",
                "square",
                "trello",
                "twilio-form",
                "twilio-json"
            ]
        );
    }

    #[test]
    fn facts_are_read() {
        let github = preset("github").unwrap();
        assert_eq!(github.body_max, Some(25 << 20));
        assert_eq!(github.drop_events, ["ping"]);
        assert_eq!(github.retry_horizon, Some(Duration::ZERO));
        let ownstak = preset("ownstak").unwrap();
        assert_eq!(ownstak.methods, [Method::POST, Method::PUT, Method::PATCH, Method::DELETE]);
        assert_eq!((ownstak.timeout, ownstak.retry_horizon), (Some(Duration::from_secs(5)), None));
        assert_eq!(preset("hostwares").unwrap().scheme.id_pointer(), Some("/id"));
        assert_eq!(github.scheme.event_pointer(), None);
    }
}
