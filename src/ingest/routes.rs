//! Finds the source of a path: exact and raw, so that `//`, `%2e`, `;x`, case and a trailing slash are other paths.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::Instant;

use super::answer::Rejection;
use crate::config::{Config, Source};
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
