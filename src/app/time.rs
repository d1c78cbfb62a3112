//! Watches the clock: steps and stalls are counted and told, and steady time learns when the process stood still.

use tokio::time::{MissedTickBehavior, interval};

use crate::clock::{Clock, Sighting, Watch};
use crate::metrics::Metrics;

/// Goes on until it is aborted.
pub(super) fn watch(clock: &Clock, metrics: &Metrics) -> impl Future<Output = ()> + Send + use<> {
    let [forward, backward] =
        ["forward", "backward"].map(|direction| metrics.clock_steps.with_label_values(&[direction]));
    let stalls = metrics.clock_stalls.clone();
    let watch = clock.watch();
    async move {
        let mut ticks = interval(Watch::EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Sighting { step, stall } = watch.look();
            if let Some(step) = step {
                if step.is_negative() { &backward } else { &forward }.inc();
                let seconds = step.as_secs_f64();
                tracing::warn!(seconds, "wall clock was set; due times and ages do not follow it");
            }
            if let Some(stall) = stall {
                stalls.inc();
                let seconds = stall.as_secs_f64();
                tracing::warn!(seconds, "process stood still; what fell due meanwhile is made up for");
            }
        }
    }
}
