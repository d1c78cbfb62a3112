//! Finds the source of a path: exact and raw, so that `//`, `%2e`, `;x`, case and a trailing slash are other paths.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::Instant;

use super::answer::Rejection;
use crate::config::{Config, Route, Source};
use crate::rate::Limiter;
use crate::units::Rate;

/// The part of the configuration that a reload replaces.
pub(super) struct Routes {
    by_path: HashMap<String, Arc<Entry>>,
    pub(super) trusted_proxies: Vec<IpNet>,
}

/// A source and how much of its rate is left.
pub(super) struct Entry {
    pub(super) source: Arc<Source>,
    allowance: Option<Arc<Allowance>>,
}

/// What is left of a source's rate; outlives reloads that do not change it.
struct Allowance {
    limiter: Mutex<Limiter>,
    /// The origin of the limiter's time.
    since: Instant,
}

impl Routes {
    pub(super) fn new(config: &Config, before: Option<&Self>) -> Self {
        let entry = |source: &Arc<Source>| {
            let same =
                |entry: &&Arc<Entry>| entry.source.name == source.name && entry.source.rate == source.rate;
            let kept = before.and_then(|before| before.by_path.values().find(same)?.allowance.clone());
            let allowance = kept.or_else(|| source.rate.map(|rate| Arc::new(Allowance::new(rate))));
            (source.path.clone(), Arc::new(Entry { source: Arc::clone(source), allowance }))
        };
        Self {
            by_path: config.sources.iter().map(entry).collect(),
            trusted_proxies: config.listen.trusted_proxies.clone(),
        }
    }

    pub(super) fn sources(&self) -> impl Iterator<Item = &Arc<Source>> {
        self.by_path.values().map(|entry| &entry.source)
    }

    pub(super) fn find(&self, path: &str) -> Result<&Arc<Entry>, Rejection> {
        self.by_path.get(path).ok_or(Rejection::NoRoute)
    }
}

impl Entry {
    /// Counts one verified request against the source's rate; forged ones must not use it up.
    pub(super) fn admit(&self) -> Result<(), Rejection> {
        let Some(allowance) = &self.allowance else { return Ok(()) };
        let mut limiter = allowance.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        limiter.claim(allowance.since.elapsed(), Duration::ZERO).map(drop).map_err(Rejection::RateLimited)
    }
}

impl Allowance {
    fn new(rate: Rate) -> Self {
        // Providers send in bursts: all of a period's allowance may come at once.
        Self { limiter: Mutex::new(Limiter::new(rate, rate.events)), since: Instant::now() }
    }
}

/// The destinations that take an event of this type, each once.
pub(super) fn matching(routes: &[Route], event: Option<&str>) -> Vec<Arc<str>> {
    let mut destinations: Vec<Arc<str>> = Vec::new();
    for route in routes {
        let takes =
            route.events.is_empty() || route.events.iter().any(|glob| matches(glob, event.unwrap_or("")));
        if takes && !destinations.contains(&route.destination) {
            destinations.push(Arc::clone(&route.destination));
        }
    }
    destinations
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
mod tests {
    use super::*;

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

    #[test]
    fn a_destination_gets_one_forward_however_many_rules_match() {
        let route = |destination: &str, events: &[&str]| Route {
            destination: destination.into(),
            events: events.iter().map(|&event| event.to_owned()).collect(),
        };
        let routes = [route("a", &["push"]), route("a", &[]), route("b", &["deploy.*"])];
        assert_eq!(matching(&routes, Some("push")), ["a".into()]);
        assert_eq!(matching(&routes[2..], Some("push")), []);
        assert_eq!(matching(&routes, Some("deploy.x")), ["a".into(), "b".into()]);
    }
}
