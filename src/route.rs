//! Where a delivery goes: which of its source's routes take it, by event type and by condition. Pure; what happens with a
//! delivery that none takes is for ingest.

use std::sync::Arc;

use crate::delivery::Delivery;

mod condition;
mod facts;

pub use condition::{Condition, ConditionError, Unjudged};
use facts::Facts;

/// An element of `source.to`.
#[derive(Debug, Clone)]
pub struct Route {
    /// The destination's name.
    pub destination: Arc<str>,
    /// Event types to forward, with `*` for any run of characters; empty forwards all.
    pub events: Vec<String>,
    /// What else has to hold.
    pub when: Option<Condition>,
}

/// Where a delivery goes.
#[derive(Debug, Default)]
pub struct Matched {
    /// The destinations, each once.
    pub destinations: Vec<Arc<str>>,
    /// Those among them whose condition could not be judged, and why. They get the delivery: one too many can be told from
    /// the rest by its backend, and one too few would be lost.
    pub unjudged: Vec<(Arc<str>, Unjudged)>,
}

impl Matched {
    /// All destinations of `routes`.
    pub fn everything(routes: &[Route]) -> Self {
        let destinations = routes.iter().map(|route| Arc::clone(&route.destination)).collect();
        Self { destinations, unjudged: Vec::new() }
    }
}

/// The destinations of `routes` that take `delivery`. Its body is read as JSON at most once, and only for a condition that
/// looks into it.
pub fn matching(routes: &[Route], delivery: &Delivery) -> Matched {
    let facts = Facts::new(delivery);
    let event = delivery.event.as_deref().unwrap_or("");
    let mut matched = Matched::default();
    for route in routes {
        let takes = route.events.is_empty() || route.events.iter().any(|glob| matches(glob, event));
        if !takes || matched.destinations.contains(&route.destination) {
            continue;
        }
        match route.when.as_ref().map_or(Ok(true), |condition| condition.holds(&facts)) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(why) => matched.unjudged.push((Arc::clone(&route.destination), why)),
        }
        matched.destinations.push(Arc::clone(&route.destination));
    }
    matched
}

/// Whether `glob`, in which `*` stands for any run of characters, matches all of `text`.
fn matches(glob: &str, text: &str) -> bool {
    let Some((prefix, rest)) = glob.split_once('*') else { return glob == text };
    let Some(mut text) = text.strip_prefix(prefix) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let suffix = parts.pop().unwrap_or("");
    for part in parts {
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.ends_with(suffix)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    pub(crate) use facts::tests::delivery;

    #[test]
    fn globs() {
        let check = |glob, text, expected| assert_eq!(matches(glob, text), expected, "{glob} {text}");
        check("deployment.*", "deployment.failed", true);
        check("deployment.*", "deployment.", true);
        check("deployment.*", "deployment", false);
        check("deployment.*", "redeployment.failed", false);
        check("*", "", true);
        check("push", "push", true);
        check("push", "pushed", false);
        check("*.failed", "deployment.failed", true);
        check("a*b*c", "a-b-c", true);
        check("a*b*c", "a-c-b", false);
        check("a*a", "a", false);
    }

    fn route(destination: &str, events: &[&str], when: Option<&str>) -> Route {
        Route {
            destination: destination.into(),
            events: events.iter().map(|&event| event.to_owned()).collect(),
            when: when.map(|when| Condition::parse(when).unwrap()),
        }
    }

    fn names(routes: &[Route], delivery: &Delivery) -> Vec<String> {
        matching(routes, delivery).destinations.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_destination_gets_one_forward_however_many_rules_match() {
        let routes = [route("a", &["push"], None), route("a", &[], None), route("b", &["deploy.*"], None)];
        let of = |event: &str| delivery(b"", Some(event));
        assert_eq!(names(&routes, &of("push")), ["a"]);
        assert_eq!(names(&routes[2..], &of("push")), [""; 0]);
        assert_eq!(names(&routes, &of("deploy.x")), ["a", "b"]);
        assert_eq!(names(&routes, &delivery(b"", None)), ["a"]);
    }

    #[test]
    fn a_route_takes_what_its_events_and_its_condition_take() {
        let routes = [
            route("failed", &["deployment.*"], Some("body.status == 'failed'")),
            route("all", &[], None),
            route("other", &["push"], Some("true")),
        ];
        let of =
            |event, status: &str| delivery(format!("{{\"status\":\"{status}\"}}").as_bytes(), Some(event));
        assert_eq!(names(&routes, &of("deployment.ended", "failed")), ["failed", "all"]);
        assert_eq!(names(&routes, &of("deployment.ended", "done")), ["all"]);
        assert_eq!(names(&routes, &of("build.ended", "failed")), ["all"]);
    }

    #[test]
    fn what_a_condition_cannot_judge_is_forwarded_and_said() {
        let routes = [
            route("a", &[], Some("body.status == 'failed'")),
            route("b", &[], Some("event == 'push'")),
            route("a", &[], None),
        ];
        let matched = matching(&routes, &delivery(b"no JSON", Some("x")));
        assert_eq!(matched.destinations, ["a".into()]);
        assert_eq!(matched.unjudged, [("a".into(), Unjudged::NotJson)]);
    }
}
