//! What has to happen from time to time: retention, and the watch over the store and over certificates that end.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Parts;
use super::expiry::Told;
use crate::store::StoreError;

/// How soon a store that has shut itself is reported.
const WATCH: Duration = Duration::from_millis(250);
/// How often retention looks for what it may remove.
const SWEEP: Duration = Duration::from_secs(30);
/// How often the use of secrets is noted.
const NOTE: Duration = Duration::from_secs(60);

impl Parts {
    /// Ends when the gateway stops or the store has shut itself, which it reports through `failure`.
    pub(super) async fn upkeep(self: Arc<Self>, failure: watch::Sender<Option<String>>) {
        let mut ticks = interval(WATCH);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut swept_at, mut noted_at) = (Instant::now(), Instant::now());
        let mut fault = None;
        let mut told = Told::default();
        told.tell(&self);
        loop {
            tokio::select! {
                () = self.stages.stopping.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let before = std::mem::replace(&mut fault, self.store.fault());
            match &fault {
                Some(latched @ StoreError::Latched(_)) => {
                    let _ = failure.send(Some(latched.to_string()));
                    return;
                }
                // Told when it changes, not per refused request.
                Some(error) if fault != before => tracing::warn!(%error, "refusing deliveries"),
                None if before.is_some() => tracing::info!("accepting deliveries again"),
                _ => {}
            }
            if swept_at.elapsed() >= SWEEP {
                self.sweep().await;
                told.tell(&self);
                swept_at = Instant::now();
            }
            if noted_at.elapsed() >= NOTE {
                self.note_uses().await;
                noted_at = Instant::now();
            }
        }
    }

    /// Writes down how secrets have been used.
    pub(super) async fn note_uses(&self) {
        self.uses.write(&self.config.load_full(), self.clock.now()).await;
    }

    async fn sweep(&self) {
        let (keep, keep_quarantined) = {
            let store = &self.config.load().store;
            (store.keep_delivered, store.keep_quarantined)
        };
        self.quarantine.sweep(self.clock.now(), keep_quarantined);
        match self.store.sweep(self.clock.moment().earliest(), keep).await {
            Ok(swept) => {
                tracing::debug!(deliveries = swept.deliveries, claims = swept.claims, "retention swept");
            }
            Err(error) => tracing::warn!(%error, "retention could not sweep"),
        }
    }
}
