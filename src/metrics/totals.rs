//! What the console's charts are made of: a few sums over the catalogue, at one moment.

use std::collections::BTreeMap;

use prometheus::IntCounterVec;
use prometheus::core::Collector as _;

use super::Metrics;

/// Sums since the start of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Deliveries stored.
    pub stored: u64,
    /// Duplicates answered.
    pub duplicate: u64,
    /// Requests refused.
    pub refused: u64,
    /// Forwards delivered.
    pub delivered: u64,
    /// Forwards that became dead letters.
    pub dead: u64,
    /// Requests by how long they took to be answered: the upper bound in microseconds (`u64::MAX`: none), and how many took no longer.
    pub acks: Vec<(u64, u64)>,
    /// Attempts by destination: those that delivered, and the others.
    pub attempts: BTreeMap<String, (u64, u64)>,
}

impl Metrics {
    /// Sums over all sources and destinations.
    pub fn totals(&self) -> Totals {
        let requests = sums(&self.ingest_requests, "outcome");
        let settled = sums(&self.forward_settled, "state");
        let of = |sums: &BTreeMap<String, u64>, label: &str| sums.get(label).copied().unwrap_or(0);
        let mut attempts: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for family in self.forward_attempts.collect() {
            for metric in family.get_metric() {
                let label = |name: &str| metric.get_label().iter().find(|pair| pair.name() == name);
                let (Some(destination), Some(outcome)) = (label("destination"), label("outcome")) else {
                    continue;
                };
                let counts = attempts.entry(destination.value().to_owned()).or_default();
                let count = metric.get_counter().get_value() as u64;
                match outcome.value() {
                    "delivered" => counts.0 += count,
                    _ => counts.1 += count,
                }
            }
        }
        let mut acks: BTreeMap<u64, u64> = BTreeMap::new();
        for family in self.ingest_ack_duration.collect() {
            for metric in family.get_metric() {
                for bucket in metric.get_histogram().get_bucket() {
                    let bound = (bucket.upper_bound() * 1e6) as u64;
                    *acks.entry(bound).or_default() += bucket.cumulative_count();
                }
                *acks.entry(u64::MAX).or_default() += metric.get_histogram().get_sample_count();
            }
        }
        Totals {
            stored: of(&requests, "stored"),
            duplicate: of(&requests, "duplicate"),
            refused: of(&requests, "rejected"),
            delivered: of(&settled, "delivered"),
            dead: of(&settled, "dead"),
            acks: acks.into_iter().collect(),
            attempts,
        }
    }

    /// What has been refused: source, reason and how often, without what never was.
    pub fn rejections(&self) -> Vec<(String, String, u64)> {
        let mut counts = Vec::new();
        for family in self.ingest_rejections.collect() {
            for metric in family.get_metric() {
                let label = |name: &str| metric.get_label().iter().find(|pair| pair.name() == name);
                let count = metric.get_counter().get_value() as u64;
                if let (Some(source), Some(reason), 1..) = (label("source"), label("reason"), count) {
                    counts.push((source.value().to_owned(), reason.value().to_owned(), count));
                }
            }
        }
        counts
    }
}

/// By the value of one label.
fn sums(counters: &IntCounterVec, label: &str) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for family in counters.collect() {
        for metric in family.get_metric() {
            if let Some(pair) = metric.get_label().iter().find(|pair| pair.name() == label) {
                *sums.entry(pair.value().to_owned()).or_default() += metric.get_counter().get_value() as u64;
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_over_all_sources_and_destinations() {
        let metrics = Metrics::new();
        assert_eq!(metrics.totals(), Totals::default());
        for source in ["a", "b"] {
            metrics.ingest_requests.with_label_values(&[source, "stored"]).inc_by(2);
            metrics.ingest_requests.with_label_values(&[source, "rejected"]).inc();
            metrics.ingest_ack_duration.with_label_values(&[source]).observe(0.02);
        }
        metrics.ingest_rejections.with_label_values(&["a", "too_large"]);
        metrics.ingest_rejections.with_label_values(&["b", "too_large"]).inc();
        assert_eq!(metrics.rejections(), [("b".to_owned(), "too_large".to_owned(), 1)]);
        metrics.forward_settled.with_label_values(&["x", "dead"]).inc();
        metrics.forward_attempts.with_label_values(&["x", "delivered"]).inc_by(3);
        metrics.forward_attempts.with_label_values(&["x", "timeout"]).inc();
        let totals = metrics.totals();
        assert_eq!((totals.stored, totals.refused, totals.delivered, totals.dead), (4, 2, 0, 1));
        assert_eq!(totals.attempts["x"], (3, 1));
        assert_eq!(totals.acks.last(), Some(&(u64::MAX, 2)));
        assert!(
            totals.acks.contains(&(10_000, 0)) && totals.acks.contains(&(25_000, 2)),
            "{:?}",
            totals.acks
        );
    }
}
