//! What providers send: events of their own catalogues, with bodies as they look, for `send` and for whoever develops
//! without the provider at hand. `events.json` has them by provider, the most usual first; in it `{id}`, `{event}`,
//! `{time}` and `{unix}` stand for what differs from one to the next.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use countersign::clock::Timestamp;
use serde_json::Value;

type Catalogue = BTreeMap<String, Vec<(String, Value)>>;

static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(|| {
    // The file is part of the program, and any test that uses an event comes by here.
    serde_json::from_str(include_str!("events.json")).expect("events.json is what its tests have read")
});

/// The event types of which this provider's catalogue has a body.
pub(super) fn names(provider: &str) -> Vec<&'static str> {
    CATALOGUE.get(provider).into_iter().flatten().map(|(name, _)| name.as_str()).collect()
}

/// The body of an event as the provider would send it, when its catalogue has one.
pub(super) fn body(provider: &str, event: &str, id: &str, now: Timestamp) -> Option<Value> {
    let (_, body) = CATALOGUE.get(provider)?.iter().find(|(name, _)| name == event)?;
    let mut body = body.clone();
    fill(&mut body, event, id, now);
    Some(body)
}

fn fill(value: &mut Value, event: &str, id: &str, now: Timestamp) {
    match value {
        Value::String(text) => match text.as_str() {
            "{id}" => id.clone_into(text),
            "{event}" => event.clone_into(text),
            "{time}" => *text = format!("{now:.3}"),
            "{unix}" => *value = now.as_second().into(),
            _ => {}
        },
        Value::Array(items) => items.iter_mut().for_each(|item| fill(item, event, id, now)),
        Value::Object(members) => members.values_mut().for_each(|member| fill(member, event, id, now)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use countersign::verify::preset;

    use super::*;

    #[test]
    fn every_event_has_its_type_and_id_where_the_provider_has_them() {
        let now = Timestamp::from_second(1_776_871_800).unwrap();
        let mut checked = 0;
        for (provider, events) in CATALOGUE.iter() {
            let preset = preset(provider).unwrap_or_else(|| panic!("{provider} is no provider"));
            for (name, _) in events {
                let body = body(provider, name, "id-1", now).unwrap();
                for (pointer, expected) in
                    [(preset.scheme.id_pointer(), "id-1"), (preset.scheme.event_pointer(), name)]
                {
                    let Some(pointer) = pointer else { continue };
                    assert_eq!(body.pointer(pointer), Some(&expected.into()), "{provider} {name} {pointer}");
                }
                assert!(!body.to_string().contains("\"{"), "{provider} {name}: {body}");
                checked += 1;
            }
        }
        assert!(checked > 50, "only {checked} events");
        for seed in ["hostwares", "owlette", "ownstak"] {
            assert!(names(seed).len() >= 3, "{seed}");
        }
    }

    #[test]
    fn times_are_written_as_the_provider_writes_them() {
        let now = Timestamp::from_second(1_776_871_800).unwrap();
        let body = |provider, event| body(provider, event, "id-1", now).unwrap();
        assert_eq!(body("hostwares", "credits.low")["timestamp"], "2026-04-22T15:30:00.000Z");
        assert_eq!(body("stripe", "invoice.paid")["created"], 1_776_871_800);
        assert!(super::body("stripe", "no.such", "id-1", now).is_none() && names("nobody").is_empty());
    }
}
