//! Bodies made by MiniJinja templates: compiled when the configuration is read, rendered within a budget of fuel that bounds
//! time and memory, and checked to be JSON where they say so. Values are escaped as the content type wants it, so that
//! what a sender writes stays a value.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use minijinja::machinery::{Instruction, get_compiled_template};
use minijinja::value::{Serde, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value};
use serde::de::IgnoredAny;
use serde_json::{Map, json};

use crate::clock::Timestamp;
use crate::delivery::Delivery;
use crate::json;

/// Instructions, and blocks of 64 bytes of what is made: about 12 MB.
const FUEL: u64 = 200_000;
const NAME: &str = "template";

/// A compiled template of bodies.
#[derive(Clone)]
pub struct BodyTemplate {
    name: Arc<str>,
    environment: Arc<Environment<'static>>,
    is_json: bool,
    /// What the configuration tells it.
    values: Arc<BTreeMap<String, String>>,
}

/// Why a template cannot be compiled or rendered. Never shows what is in a delivery.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}:{line}:{column}: {message}")]
pub struct TemplateError {
    /// The template's file, or its name.
    pub name: String,
    /// From 1; of the template, or of what was made of it when that is no JSON.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// What is wrong there.
    pub message: String,
}

const BUILTINS: [(&str, &str); 3] = [
    ("discord", include_str!("discord.json.j2")),
    ("pagerduty", include_str!("pagerduty.json.j2")),
    ("slack", include_str!("slack.json.j2")),
];

/// The template of this name that comes with the program.
pub fn builtin(name: &str) -> Option<&'static str> {
    BUILTINS.iter().find(|(known, _)| *known == name).map(|(_, source)| *source)
}

/// The names of the templates that come with the program.
pub fn builtins() -> impl Iterator<Item = &'static str> {
    BUILTINS.iter().map(|(name, _)| *name)
}

impl BodyTemplate {
    /// Compiles `source`, which messages call `name`; `content_type` says how values are escaped.
    ///
    /// # Errors
    /// Where it is no template.
    pub fn compile(
        name: &str,
        source: &str,
        content_type: &str,
        values: BTreeMap<String, String>,
    ) -> Result<Self, TemplateError> {
        let media = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let is_json = media == "application/json" || media.ends_with("+json");
        let is_markup = media.ends_with("/html") || media.ends_with("/xml") || media.ends_with("+xml");
        let mut environment = Environment::new();
        environment.set_debug(true);
        environment.set_fuel(Some(FUEL));
        environment.set_undefined_behavior(UndefinedBehavior::SemiStrict);
        environment.set_auto_escape_callback(move |_| match (is_json, is_markup) {
            (true, _) => AutoEscape::Json,
            (false, true) => AutoEscape::Html,
            (false, false) => AutoEscape::None,
        });
        environment.add_filter("pointer", pointer);
        environment.add_filter("truncate", truncate);
        environment.add_filter("date", date);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| TemplateError::of(name, source, &error))?;
        if let Some((at, message)) = unknown(&environment) {
            return Err(TemplateError::at(name, source, at, message));
        }
        Ok(Self { name: name.into(), environment: Arc::new(environment), is_json, values: Arc::new(values) })
    }

    /// The body that `delivery` becomes, at the attempt of this number.
    ///
    /// # Errors
    /// Where the template fails, or what it makes is not the JSON that it should be.
    pub fn render(
        &self,
        delivery: &Delivery,
        attempt: u32,
        replay: bool,
        now: Timestamp,
    ) -> Result<Bytes, TemplateError> {
        let template = self.environment.get_template(NAME);
        let template = template.map_err(|error| TemplateError::of(&self.name, "", &error))?;
        let made = template
            .render(self.context(delivery, attempt, replay, now))
            .map_err(|error| TemplateError::of(&self.name, template.source(), &error))?;
        if self.is_json
            && let Err(error) = serde_json::from_str::<IgnoredAny>(&made)
        {
            let what = "what the template makes is not JSON there; values come with their quotes";
            return Err(TemplateError {
                name: self.name.to_string(),
                line: error.line(),
                column: error.column(),
                message: what.to_owned(),
            });
        }
        Ok(made.into())
    }

    fn context(&self, delivery: &Delivery, attempt: u32, replay: bool, now: Timestamp) -> Value {
        let headers = delivery.headers.keys().map(|name| {
            let values = delivery.headers.get_all(name).iter();
            let values: Vec<_> = values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
            (name.to_string(), serde_json::Value::String(values.join(", ")))
        });
        let mut context = json!({
            "id": delivery.id.to_string(),
            "source": &*delivery.source,
            "event": delivery.event.as_deref().unwrap_or_default(),
            "delivery_id": delivery.delivery_id.as_deref().unwrap_or_default(),
            "method": delivery.method.as_str(),
            "received_at": delivery.received_at.to_string(),
            "verified": delivery.verification.verified,
            "attempt": attempt,
            "replay": replay,
            "now": now.to_string(),
            "headers": headers.collect::<Map<_, _>>(),
            "values": &*self.values,
        });
        // Undefined where it is no JSON: a template that wants the bytes says `text`.
        match json::parse(&delivery.body) {
            Ok(body) => context["body"] = body,
            Err(_) => context["text"] = String::from_utf8_lossy(&delivery.body).into(),
        }
        Value::from(Serde(context))
    }
}

impl fmt::Debug for BodyTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BodyTemplate").field(&self.name).finish()
    }
}

impl TemplateError {
    fn of(name: &str, source: &str, error: &Error) -> Self {
        let kind = error.kind();
        // The detail of a failed operation may quote values, and this goes into logs.
        let message = match (kind, error.detail()) {
            (
                ErrorKind::SyntaxError
                | ErrorKind::UnknownFilter
                | ErrorKind::UnknownFunction
                | ErrorKind::UnknownTest,
                Some(detail),
            ) => {
                format!("{kind}: {detail}")
            }
            _ => kind.to_string(),
        };
        match error.range() {
            Some(range) => Self::at(name, source, range.start, message),
            None => Self { name: name.to_owned(), line: error.line().unwrap_or(1), column: 1, message },
        }
    }

    fn at(name: &str, source: &str, at: usize, message: String) -> Self {
        let before = &source[..source.floor_char_boundary(at)];
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let (line, column) = (before.matches('\n').count() + 1, before[start..].chars().count() + 1);
        Self { name: name.to_owned(), line, column, message }
    }
}

/// A filter or a test that there is not, and where. The engine looks for them when it comes to them, which may be never until
/// the one delivery that matters.
fn unknown(environment: &Environment<'_>) -> Option<(usize, String)> {
    let template = environment.get_template(NAME).ok()?;
    let instructions = &get_compiled_template(&template).instructions;
    let mut state = environment.empty_state();
    let mut unknown = |instruction: &Instruction<'_>| match instruction {
        Instruction::ApplyFilter(name, ..) => {
            let kind = state.apply_filter(name, &[]).err()?.kind();
            (kind == ErrorKind::UnknownFilter).then(|| format!("there is no filter `{name}`"))
        }
        Instruction::PerformTest(name, ..) => {
            let kind = state.perform_test(name, &[]).err()?.kind();
            (kind == ErrorKind::UnknownTest).then(|| format!("there is no test `{name}`"))
        }
        _ => None,
    };
    (0..).map_while(|at| Some((at, instructions.get(at)?))).find_map(|(at, instruction)| {
        let message = unknown(instruction)?;
        Some((instructions.get_span(at).map_or(0, |span| span.start_offset as usize), message))
    })
}

/// `body | pointer("/a/0/b")`: the value there (RFC 6901), undefined when there is none.
fn pointer(value: &Value, path: &str) -> Result<Value, Error> {
    if path.is_empty() {
        return Ok(value.clone());
    }
    let Some(steps) = path.strip_prefix('/') else {
        return Err(Error::new(ErrorKind::InvalidOperation, "a JSON pointer begins with a slash"));
    };
    let mut value = value.clone();
    for step in steps.split('/') {
        let step = step.replace("~1", "/").replace("~0", "~");
        let key = match value.kind() {
            ValueKind::Seq => step.parse::<usize>().map(Value::from).unwrap_or(Value::UNDEFINED),
            ValueKind::Map => Value::from(step),
            _ => return Ok(Value::UNDEFINED),
        };
        value = value.get_item(&key).unwrap_or(Value::UNDEFINED);
    }
    // What is null is as good as absent for a text.
    Ok(if value.is_none() { Value::UNDEFINED } else { value })
}

/// `text | truncate(100)`: at most so many characters, the last of which is an ellipsis where something is left out.
fn truncate(text: &str, length: usize) -> String {
    match text.char_indices().nth(length) {
        None => text.to_owned(),
        Some(_) => text.chars().take(length.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// `time | date("%Y-%m-%d %H:%M")`: RFC 3339, or seconds or milliseconds since 1970, in UTC, by the letters of strftime.
fn date(time: &Value, format: &str) -> Result<String, Error> {
    let of_number = |number: i64| match number.abs() < 100_000_000_000 {
        true => Timestamp::from_second(number).ok(),
        false => Timestamp::from_millisecond(number).ok(),
    };
    let parsed = match time.as_str() {
        Some(text) => text.parse().ok().or_else(|| text.parse().ok().and_then(of_number)),
        None => i64::try_from(time.clone()).ok().and_then(of_number),
    };
    let Some(parsed): Option<Timestamp> = parsed else {
        return Err(Error::new(ErrorKind::InvalidOperation, "it is no time"));
    };
    jiff::fmt::strtime::format(format, parsed)
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, "it is no format of a time"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::tests::delivery;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn compiled(source: &str, content_type: &str) -> Result<BodyTemplate, TemplateError> {
        let values = BTreeMap::from([("routing_key".to_owned(), "the-key".to_owned())]);
        BodyTemplate::compile("t.j2", source, content_type, values)
    }

    fn rendered(source: &str, content_type: &str, body: &[u8]) -> Result<String, String> {
        rendered_of("deployment.failed", source, content_type, body)
    }

    fn rendered_of(event: &str, source: &str, content_type: &str, body: &[u8]) -> Result<String, String> {
        let made = compiled(source, content_type).map_err(|error| format!("at load: {error}"))?;
        let made = made.render(&delivery(body, Some(event)), 2, false, NOW);
        made.map(|made| String::from_utf8(made.to_vec()).unwrap()).map_err(|error| error.to_string())
    }

    const BODY: &[u8] =
        br#"{"a":{"b":["x",{"c":"deep \"quoted\"\n"}]},"n":3,"null":null,"at":1776871800,"html":"<b>&"}"#;

    #[test]
    fn a_template_makes_a_body_of_what_a_delivery_has() {
        let check = |source, expected: &str| {
            assert_eq!(rendered(source, "text/plain", BODY), Ok(expected.to_owned()), "{source}");
        };
        check(
            "{{ event }} {{ source }} {{ delivery_id }} {{ attempt }} {{ replay }}",
            "deployment.failed shop evt_1 2 False",
        );
        check("{{ body.a.b[1].c }}", "deep \"quoted\"\n");
        check("{{ body | pointer('/a/b/0') }}{{ body | pointer('/a/nothing/b') | default('-') }}", "x-");
        check("{{ body.nothing | default('none') }} {{ body.null }}", "none None");
        check("{{ body.a | tojson }}", r#"{"b": ["x", {"c": "deep \"quoted\"\n"}]}"#);
        check("{{ 'äbcdef' | truncate(4) }} {{ 'abc' | truncate(3) }}", "äbc… abc");
        check(
            "{{ body.at | date('%Y-%m-%d %H:%M') }} {{ received_at | date('%Y') }}",
            "2026-04-22 15:30 1970",
        );
        check("{% for x in body.a.b %}{{ loop.index }}{% endfor %}{% if body.nothing %}no{% endif %}", "12");
        check("{{ values.routing_key }} {{ headers['x-none'] | default('') }}", "the-key ");
    }

    /// A sender's quotes and line breaks stay within the value that they are in.
    #[test]
    fn values_are_escaped_as_the_content_type_wants_it() {
        let json = rendered(
            "{\"t\": {{ body.a.b[1].c }}, \"all\": {{ body.a }}}",
            "application/json; charset=utf-8",
            BODY,
        );
        let json: serde_json::Value = serde_json::from_str(&json.unwrap()).unwrap();
        assert_eq!(json["t"], "deep \"quoted\"\n");
        assert_eq!(rendered("{{ body.html }}", "text/html", BODY).unwrap(), "&lt;b&gt;&amp;");
        assert_eq!(rendered("{{ body.html }}", "text/plain", BODY).unwrap(), "<b>&");
    }

    #[test]
    fn failures_have_line_and_column_and_tell_nothing_of_the_delivery() {
        let check = |source: &str, content_type, expected: &str| {
            let error = rendered(source, content_type, BODY).unwrap_err();
            assert!(error.starts_with(expected), "{source}: {error}");
            assert!(!error.contains("deep"), "{error}");
        };
        check("ab\n {{ body.nothing }}", "text/plain", "t.j2:2:5: undefined value");
        check("{{ body.nothing.more }}", "text/plain", "t.j2:1:8: undefined value");
        check("a\nb {{ body.n.k.j }}", "text/plain", "t.j2:2:");
        check("{{ body.a.b[1].c | date('%Y') }}", "text/plain", "t.j2:1:");
        check("\n{{ body.n + body.a }}", "text/plain", "t.j2:2:");
        check(
            "{\"t\": \"{{ body.a.b[0] }}\"}",
            "application/json",
            "t.j2:1:9: what the template makes is not JSON",
        );
        check("{% for x in range(100000) %}{{ x }}{{ body.n }}{% endfor %}", "text/plain", "t.j2:1:");
        check("{% for x in [1] %}", "text/plain", "at load: t.j2:1:");
        check("\n{{ x | nothing }}", "text/plain", "at load: t.j2:2:8: there is no filter `nothing`");
        check(
            "{% macro m(x) %}ä{% if x is strange %}{% endif %}{% endmacro %}",
            "text/plain",
            "at load: t.j2:1:29: there is no test `strange`",
        );
        check("{% filter nothing %}{% endfilter %}", "text/plain", "at load: t.j2:1:");
        check("{% include 'other' %}", "text/plain", "at load: t.j2:1:");
        assert_eq!(
            rendered("{{ body.x }}", "text/plain", b"no JSON").unwrap_err(),
            "t.j2:1:4: undefined value"
        );
        assert_eq!(rendered("{{ text }}", "text/plain", b"no JSON").unwrap(), "no JSON");
    }

    #[test]
    fn a_template_has_a_budget() {
        for source in [
            "{% for x in range(100000) %}{% for y in range(100000) %}{{ x }}{% endfor %}{% endfor %}",
            "{{ 'x' * 1000000000 }}",
            "{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        ] {
            assert!(rendered(source, "text/plain", BODY).is_err(), "{source}");
        }
    }

    const GITHUB: &[u8] = br#"{"deployment_status":{"state":"failure","target_url":"https://ci.example/1","description":"exit 1"},
        "deployment":{"environment":"production","ref":"main"},"repository":{"full_name":"acme/shop <!channel> \"x\""}}"#;
    const OWNSTAK: &[u8] = br#"{"webhook_event_type":"deployment_completed","deployment":{"project":"shop","status":"completed","environment":"prod"}}"#;
    const HOSTWARES: &[u8] =
        br#"{"id":"1","event":"deployment.failed","data":{"site_name":"shop","error":"build failed"}}"#;
    const HOSTWARES_DONE: &[u8] =
        br#"{"id":"2","event":"deployment.completed","data":{"site_name":"shop","status":"RUNNING"}}"#;
    const OWLETTE_ROOST: &[u8] =
        br#"{"id":"2","event":"deployment.completed","data":{"siteId":"site-1","roostId":"roost-1"}}"#;
    const OWLETTE: &[u8] =
        br#"{"id":"1","event":"deployment.failed","siteId":"site-1","data":{"error":"exit 1"}}"#;

    #[test]
    fn the_templates_that_come_along_make_messages_of_deployment_events() {
        let message = |name: &str, body: &[u8]| -> serde_json::Value {
            let made = rendered(builtin(name).unwrap(), "application/json", body);
            serde_json::from_str(&made.unwrap_or_else(|error| panic!("{name}: {error}"))).unwrap()
        };
        for name in builtins() {
            for body in [GITHUB, OWNSTAK, HOSTWARES, OWLETTE, b"{}", b"[]", b"not JSON", b"null"] {
                message(name, body);
            }
        }
        let text = message("slack", GITHUB)["text"].as_str().unwrap().to_owned();
        assert_eq!(
            text,
            ":x: acme/shop &lt;!channel&gt; \"x\": failure (production) – exit 1 https://ci.example/1"
        );
        let discord = message("discord", OWLETTE);
        assert_eq!(discord["content"], "❌ site-1: deployment.failed – exit 1");
        assert_eq!(discord["allowed_mentions"]["parse"], json!([]));
        let alert = message("pagerduty", HOSTWARES);
        assert_eq!((&alert["routing_key"], &alert["event_action"]), (&json!("the-key"), &json!("trigger")));
        assert_eq!(alert["payload"]["summary"], "shop: deployment.failed – build failed");
        assert_eq!(
            (&alert["payload"]["severity"], &alert["dedup_key"]),
            (&json!("error"), &json!("shop/shop/"))
        );
        // How a deployment went is in the event where the status is that of the service, and one project's success ends no
        // other's incident.
        let completed = |body: &[u8]| -> serde_json::Value {
            let template = builtin("pagerduty").unwrap();
            let made = rendered_of("deployment.completed", template, "application/json", body).unwrap();
            serde_json::from_str(&made).unwrap()
        };
        for (body, key) in
            [(HOSTWARES_DONE, "shop/shop/"), (OWNSTAK, "shop/shop/prod"), (OWLETTE_ROOST, "shop/roost-1/")]
        {
            let alert = completed(body);
            assert_eq!((&alert["event_action"], &alert["dedup_key"]), (&json!("resolve"), &json!(key)));
        }
    }
}
