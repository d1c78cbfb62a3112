//! Carries what is known of the use of secrets from one process to the next: an operator who retires a secret since it has
//! not been used for a week has to be told of the whole week. Read at the start; written from time to time and at the
//! end, only what has changed, so that a request costs nothing and a crash a minute at most.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::clock::{Timestamp, from_milliseconds};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::store::{Store, StoreError, UseOfSecret};
use crate::verify::SecretUse;

/// What is known by source and name of a secret.
type Known = BTreeMap<(Arc<str>, Arc<str>), Counted>;

pub(super) struct Uses {
    store: Arc<dyn Store>,
    metrics: Metrics,
    /// `None` while it could not be read: then nothing is written over it.
    known: Mutex<Option<Known>>,
}

#[derive(Clone)]
struct Counted {
    since: Timestamp,
    /// By the processes before this one.
    before: u64,
    last_used: Option<Timestamp>,
    /// What the store has of it; `None` before it has been written.
    written: Option<(u64, Option<Timestamp>)>,
}

impl Uses {
    pub(super) fn new(store: Arc<dyn Store>, metrics: Metrics) -> Self {
        Self { store, metrics, known: Mutex::new(None) }
    }

    /// Reads what processes before this one have noted.
    async fn read(&self) -> Result<(), StoreError> {
        let read = self.store.uses().await?;
        let counted = |used: UseOfSecret| {
            let UseOfSecret { source, secret, since, uses, last_used } = used;
            ((source, secret), Counted { since, before: uses, last_used, written: Some((uses, last_used)) })
        };
        *self.known() = Some(read.into_iter().map(counted).collect());
        Ok(())
    }

    /// Knows the secrets of `config` from `now` on, and has their metrics tell of what was before.
    pub(super) async fn begin(&self, config: &Config, now: Timestamp) {
        let is_unread = self.known().is_none();
        if is_unread && let Err(error) = self.read().await {
            tracing::warn!(%error, "how secrets have been used before cannot be read; it is tried again");
            return;
        }
        let mut known = self.known();
        let Some(known) = known.as_mut() else { return };
        for (source, secret) in secrets(config) {
            let new = Counted { since: now, before: 0, last_used: None, written: None };
            known.entry((source, secret)).or_insert(new);
        }
        for ((source, secret), counted) in known.iter() {
            let gauge = self.metrics.verify_secret_last_used.with_label_values(&[&**source, &**secret]);
            if let Some(at) = counted.last_used.filter(|_| gauge.get() <= 0.0) {
                gauge.set(at.as_millisecond() as f64 / 1e3);
            }
        }
    }

    /// Fills in how a secret of `source` has been used, by this process and those before.
    pub(super) fn tell(&self, source: &Arc<str>, secret: SecretUse) -> SecretUse {
        let known = self.known();
        let counted =
            known.as_ref().and_then(|known| known.get(&(Arc::clone(source), Arc::clone(&secret.name))));
        let (here, last_used) = self.here(source, &secret.name);
        SecretUse {
            since: counted.map(|counted| counted.since),
            uses: here + counted.map_or(0, |counted| counted.before),
            last_used: last_used.max(counted.and_then(|counted| counted.last_used)),
            ..secret
        }
    }

    /// Writes what has changed since it was last written.
    pub(super) async fn write(&self, config: &Config, now: Timestamp) {
        self.begin(config, now).await;
        let changed = self.changed(config);
        if changed.is_empty() {
            return;
        }
        match self.store.note_uses(changed.clone()).await {
            Ok(()) => self.wrote(&changed),
            Err(error) => tracing::debug!(%error, "how secrets have been used is not written yet"),
        }
    }

    fn changed(&self, config: &Config) -> Vec<UseOfSecret> {
        let known = self.known();
        let Some(known) = known.as_ref() else { return Vec::new() };
        let changed = secrets(config).filter_map(|(source, secret)| {
            let counted = known.get(&(Arc::clone(&source), Arc::clone(&secret)))?;
            let (here, last_used) = self.here(&source, &secret);
            let (uses, last_used) = (counted.before + here, last_used.max(counted.last_used));
            let since = counted.since;
            (counted.written != Some((uses, last_used))).then_some(UseOfSecret {
                source,
                secret,
                since,
                uses,
                last_used,
            })
        });
        changed.collect()
    }

    fn wrote(&self, written: &[UseOfSecret]) {
        let mut known = self.known();
        for used in written {
            let key = (Arc::clone(&used.source), Arc::clone(&used.secret));
            if let Some(counted) = known.as_mut().and_then(|known| known.get_mut(&key)) {
                counted.written = Some((used.uses, used.last_used));
            }
        }
    }

    /// How this process has used a secret.
    fn here(&self, source: &str, secret: &str) -> (u64, Option<Timestamp>) {
        let labels = [source, secret];
        let uses = self.metrics.verify_secret_uses.with_label_values(&labels).get();
        let last_used = self.metrics.verify_secret_last_used.with_label_values(&labels).get();
        (uses, (last_used > 0.0).then(|| from_milliseconds((last_used * 1e3).round() as i64)))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Option<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The secrets of all sources, by source and name.
fn secrets(config: &Config) -> impl Iterator<Item = (Arc<str>, Arc<str>)> {
    config
        .sources
        .iter()
        .flat_map(|source| source.verifier.secrets().map(|secret| (Arc::clone(&source.name), secret.name)))
}
