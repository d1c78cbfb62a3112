//! Putting a new configuration in force while requests come in. Each request keeps what it began with; what has not
//! changed (lanes, breakers, connections, used-up rates) is not touched.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::{App, Parts};
use crate::admin::Reloaded;
use crate::causes;
use crate::config::{Config, StoreConfig};

/// How long a reload may take until it counts as refused. One that has begun to read goes on, and is put in force when it
/// has read all; those behind it wait without a thread, since each thread that hangs is one that the store cannot read on.
const LOAD_MAX: Duration = Duration::from_secs(10);

/// Reads the configuration; the error is the text with every problem, as `check` prints it. May block.
pub type Load = dyn Fn() -> Result<Config, String> + Send + Sync;

impl App {
    /// Begins to load the configuration anew; log and metrics tell the outcome.
    pub fn reload(&self) {
        tokio::spawn(Arc::clone(&self.parts).load_again());
    }
}

impl Parts {
    /// Loads the configuration anew and puts it in force: sources, destinations, secrets, tokens and certificates. What
    /// needs a restart stays as it was and is named.
    ///
    /// # Errors
    /// With every problem: everything stays as it was.
    pub(super) async fn load_again(self: Arc<Self>) -> Result<Reloaded, String> {
        let parts = Arc::clone(&self);
        // A task of its own: it goes on when whoever asked hangs up.
        let done = tokio::spawn(timeout(LOAD_MAX, async move {
            let turn = Arc::clone(&parts.reloading).lock_owned().await;
            // Reads files, which a dying disk or a network may hold up for long.
            tokio::task::spawn_blocking(move || {
                let outcome = parts.load_now();
                drop(turn);
                outcome
            })
            .await
        }));
        match done.await {
            Ok(Ok(Ok(outcome))) => outcome,
            Ok(Err(_)) => {
                let within = LOAD_MAX.as_secs();
                let problem = format!("error: the configuration could not be read within {within} s");
                self.note(&Err(problem.clone()));
                Err(problem)
            }
            Ok(Ok(Err(error))) | Err(error) => Err(format!("the reload has not ended: {error}")),
        }
    }

    fn load_now(&self) -> Result<Reloaded, String> {
        let outcome = (self.load)().and_then(|config| self.put_in_force(config));
        self.note(&outcome);
        outcome
    }

    fn note(&self, outcome: &Result<Reloaded, String>) {
        self.note_loaded(outcome.is_ok());
        let label = if outcome.is_ok() { "succeeded" } else { "refused" };
        self.metrics.config_reloads.with_label_values(&[label]).inc();
        match outcome {
            Ok(Reloaded { warnings, needs_restart, .. }) => {
                for warning in warnings {
                    tracing::warn!("{warning}");
                }
                for section in needs_restart {
                    tracing::warn!(
                        section,
                        "differs from what is running; takes effect at the next start only"
                    );
                }
                tracing::info!("configuration reloaded");
            }
            Err(problems) => {
                tracing::error!(problems, "reload refused; the old configuration stays in force");
            }
        }
    }

    /// Tells how the latest load of the configuration went; the first is that of the start.
    pub(super) fn note_loaded(&self, succeeded: bool) {
        let metrics = &self.metrics;
        metrics.config_last_reload_success.set(i64::from(succeeded));
        if succeeded {
            metrics.config_last_reload_success_at.set(self.clock.now().as_millisecond() as f64 / 1e3);
        }
    }

    fn put_in_force(&self, config: Config) -> Result<Reloaded, String> {
        if let (Some(_), Some(tls)) = (&self.started_with.listen.tls, &config.listen.tls) {
            // The one thing that can fail goes first.
            self.certificate
                .reload(tls)
                .map_err(|error| format!("error: listen.tls: {}", causes::chain(&error)))?;
        }
        let mut warnings: Vec<_> = config.warnings.iter().map(|text| text.trim_end().to_owned()).collect();
        for (name, depth) in self.store.depths() {
            if depth.pending > 0 && !config.destinations.iter().any(|destination| destination.name == name) {
                warnings.push(format!(
                    "the destination `{name}` is not in the file any more; {} forwards wait for it and stay stored",
                    depth.pending
                ));
            }
        }
        let needs_restart = needs_restart(&self.started_with, &config);
        // Lanes first: a request that finds a new source finds its lane, too.
        self.lanes.apply(&config.destinations);
        self.ingest.apply(&config);
        self.config.store(Arc::new(config));
        // Of secrets that are gone; the next page has all that are there.
        self.metrics.verify_secret_advice.reset();
        let needs_restart = needs_restart.into_iter().map(str::to_owned).collect();
        Ok(Reloaded { reloaded: true, warnings, needs_restart })
    }
}

/// Sections that a reload cannot put in force, and that differ from those the gateway was started with.
fn needs_restart(started: &Config, new: &Config) -> Vec<&'static str> {
    let mut listen = new.listen.clone();
    listen.trusted_proxies.clone_from(&started.listen.trusted_proxies);
    if listen.tls.is_some() == started.listen.tls.is_some() {
        listen.tls.clone_from(&started.listen.tls);
    }
    let mut limits = new.limits.clone();
    (limits.drain, limits.drain_delay) = (started.limits.drain, started.limits.drain_delay);
    let store = StoreConfig {
        keep_delivered: started.store.keep_delivered,
        keep_quarantined: started.store.keep_quarantined,
        ..new.store.clone()
    };
    let sections = [
        ("listen", listen != started.listen),
        ("limits", limits != started.limits),
        ("admin.address", new.admin.address != started.admin.address),
        ("store", store != started.store),
        ("dedup.cache_entries", new.dedup_cache_entries != started.dedup_cache_entries),
    ];
    sections.into_iter().filter(|(_, changed)| *changed).map(|(section, _)| section).collect()
}
