//! Tells whoever listens of lanes that are in another state, and of refused requests: these counted, so that a flood of
//! them is one event a look.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus::core::Collector as _;
use tokio::time::{MissedTickBehavior, interval};

use super::Parts;
use crate::admin::Event;

const EVERY: Duration = Duration::from_millis(500);

impl Parts {
    /// Ends when the gateway stops.
    pub(super) async fn look_out(self: Arc<Self>) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lanes: BTreeMap<Arc<str>, &'static str> = BTreeMap::new();
        let mut refused = None;
        loop {
            tokio::select! {
                () = self.stages.stopping.cancelled() => return,
                _ = ticks.tick() => {}
            }
            if !self.events.are_watched() {
                refused = None;
                lanes.clear();
                continue;
            }
            for status in self.lanes.states() {
                let state = status.state.label();
                let before = lanes.insert(Arc::clone(&status.destination), state);
                if before.is_some_and(|before| before != state) {
                    let (destination, state) = (status.destination.to_string(), state.to_owned());
                    self.events.tell(Event::Lane { destination, state });
                }
            }
            let counts = self.refusals();
            if let Some(before) = refused.replace(counts.clone()) {
                for ((source, reason), count) in counts {
                    let before: u64 = before.get(&(source.clone(), reason.clone())).copied().unwrap_or(0);
                    if count > before {
                        self.events.tell(Event::Rejection { source, reason, count: count - before });
                    }
                }
            }
        }
    }

    /// Requests refused so far, by source and reason.
    fn refusals(&self) -> BTreeMap<(String, String), u64> {
        let mut counts = BTreeMap::new();
        for family in self.metrics.ingest_rejections.collect() {
            for metric in family.get_metric() {
                let label = |name: &str| {
                    let label = metric.get_label().iter().find(|label| label.name() == name);
                    label.map(|label| label.value().to_owned()).unwrap_or_default()
                };
                counts.insert((label("source"), label("reason")), metric.get_counter().get_value() as u64);
            }
        }
        counts
    }
}
