//! The last hour, for charts: a sample of the sums every few seconds, in a ring of fixed size.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::admin::Gateway;
use crate::metrics::Totals;

/// Between two samples.
const EVERY: Duration = Duration::from_secs(5);
pub(super) const HOUR: Duration = Duration::from_hours(1);
const SAMPLES: usize = 721;
/// Samples whose attempts are kept by destination: a minute's.
const MINUTE: usize = 13;
/// Samples between two points of a chart, once there are enough of them.
const STRIDE: usize = 6;
const FEW: usize = 10 * STRIDE;

struct Sample {
    at: Instant,
    totals: Totals,
}

/// What is charted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Series {
    Stored,
    Duplicate,
    Refused,
    Delivered,
    Dead,
}

impl Series {
    fn of(self, totals: &Totals) -> u64 {
        match self {
            Self::Stored => totals.stored,
            Self::Duplicate => totals.duplicate,
            Self::Refused => totals.refused,
            Self::Delivered => totals.delivered,
            Self::Dead => totals.dead,
        }
    }
}

#[derive(Default)]
pub(super) struct History(Mutex<VecDeque<Sample>>);

impl History {
    /// Samples for as long as the gateway is there.
    pub(super) fn follow(gateway: &Arc<dyn Gateway>) -> Arc<Self> {
        let history = Arc::new(Self::default());
        let (gateway, followed): (Weak<dyn Gateway>, _) = (Arc::downgrade(gateway), Arc::clone(&history));
        tokio::spawn(async move {
            let mut ticks = interval(EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(gateway) = gateway.upgrade() else { return };
                followed.add(Instant::now(), gateway.metrics().totals());
            }
        });
        history
    }

    fn add(&self, at: Instant, totals: Totals) {
        let mut samples = self.lock();
        if samples.len() == SAMPLES {
            samples.pop_front();
        }
        samples.push_back(Sample { at, totals });
        // By destination only the latest are of use.
        if let Some(at) = samples.len().checked_sub(MINUTE + 1) {
            samples[at].totals.attempts = BTreeMap::new();
        }
    }

    /// How often it happened per second: seconds ago, and the rate up to then. The oldest first.
    pub(super) fn rates(&self, series: Series, now: Instant) -> Vec<(f64, f64)> {
        let samples = self.lock();
        let stride = if samples.len() < FEW { 1 } else { STRIDE };
        let points: Vec<_> = samples.iter().rev().step_by(stride).collect();
        let rate = |pair: &[&Sample]| {
            let (later, earlier) = (pair[0], pair[1]);
            let count = series.of(&later.totals).saturating_sub(series.of(&earlier.totals));
            let seconds = later.at.duration_since(earlier.at).as_secs_f64();
            (now.duration_since(later.at).as_secs_f64(), count as f64 / seconds.max(1e-3))
        };
        points.windows(2).map(rate).rev().collect()
    }

    /// How long it took to answer, in seconds, at each of these quantiles, over the last `span`. `None` when nothing was
    /// answered.
    pub(super) fn acks<const N: usize>(
        &self,
        quantiles: [f64; N],
        span: Duration,
        latest: &Totals,
    ) -> Option<[f64; N]> {
        let samples = self.lock();
        let newest = samples.back()?.at;
        let first = samples.iter().find(|sample| newest.duration_since(sample.at) <= span)?;
        // What the process has counted since before the first sample counts, too, where the first is the process's own.
        let empty = Totals::default();
        let is_all = samples.len() < SAMPLES && newest.duration_since(samples.front()?.at) <= span;
        let before = if is_all { &empty } else { &first.totals };
        let grown: Vec<_> = latest
            .acks
            .iter()
            .map(|(bound, count)| {
                let known = before.acks.iter().find(|(other, _)| other == bound);
                (*bound, count.saturating_sub(known.map_or(0, |(_, count)| *count)))
            })
            .collect();
        quantiles
            .map(|quantile| self::quantile(&grown, quantile))
            .into_iter()
            .collect::<Option<Vec<_>>>()?
            .try_into()
            .ok()
    }

    /// Attempts per second over the last minute, by destination: those that delivered, and the others.
    pub(super) fn attempts(&self, destination: &str) -> Option<(f64, f64)> {
        let samples = self.lock();
        let last = samples.back()?;
        let first = samples.get(samples.len().saturating_sub(MINUTE)).filter(|first| first.at < last.at)?;
        let of = |sample: &Sample| sample.totals.attempts.get(destination).copied().unwrap_or_default();
        let ((delivered, failed), (delivered_before, failed_before)) = (of(last), of(first));
        let seconds = last.at.duration_since(first.at).as_secs_f64();
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        Some((rate(delivered, delivered_before), rate(failed, failed_before)))
    }

    /// Nothing that holds it leaves a half-made change when it panics.
    fn lock(&self) -> MutexGuard<'_, VecDeque<Sample>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds below which so large a part lies, by cumulative counts and straight lines between their bounds.
fn quantile(counts: &[(u64, u64)], quantile: f64) -> Option<f64> {
    let all = counts.last().map(|(_, count)| *count).filter(|count| *count > 0)?;
    let wanted = quantile * all as f64;
    let (mut low, mut below) = (0, 0);
    for (bound, count) in counts {
        if *count as f64 >= wanted && *count > below {
            if *bound == u64::MAX {
                break;
            }
            let part = (wanted - below as f64) / (count - below) as f64;
            return Some((low as f64 + (bound - low) as f64 * part) / 1e6);
        }
        (low, below) = if *bound == u64::MAX { (low, below) } else { (*bound, *count) };
    }
    Some(low as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(stored: u64) -> Totals {
        let acks = vec![(1_000, stored / 2), (10_000, stored), (u64::MAX, stored)];
        let attempts = BTreeMap::from([("x".to_owned(), (stored, 0))]);
        Totals { stored, acks, attempts, ..Totals::default() }
    }

    #[test]
    fn the_ring_holds_an_hour_and_tells_rates() {
        let (history, start) = (History::default(), Instant::now());
        assert_eq!(history.attempts("x"), None);
        assert_eq!(history.acks([0.5], HOUR, &totals(0)), None);
        for n in 0..1_000 {
            history.add(start + EVERY * n, totals(u64::from(n) * 10));
        }
        assert_eq!(history.lock().len(), SAMPLES);
        assert_eq!(history.lock().iter().filter(|sample| !sample.totals.attempts.is_empty()).count(), MINUTE);
        let rates = history.rates(Series::Stored, start + EVERY * 999);
        assert_eq!(rates.len(), SAMPLES / STRIDE);
        assert!(rates.iter().all(|(_, rate)| (*rate - 2.0).abs() < 1e-9), "{rates:?}");
        assert_eq!(rates.last().map(|(ago, _)| *ago), Some(0.0));
        assert!((3_500.0..=3_600.0).contains(&rates[0].0), "{}", rates[0].0);
        assert_eq!(history.attempts("x"), Some((2.0, 0.0)));
        assert_eq!(history.attempts("y"), Some((0.0, 0.0)));
        let [p50, p99] = history.acks([0.5, 0.99], HOUR, &totals(999 * 10)).unwrap();
        assert!((p50 - 0.001).abs() < 1e-4 && (0.009..=0.01).contains(&p99), "{p50} {p99}");
    }

    #[test]
    fn quantiles_lie_between_the_bounds() {
        let counts = [(1_000, 0), (2_000, 10), (u64::MAX, 10)];
        assert_eq!(quantile(&counts, 0.5), Some(0.0015));
        assert_eq!(quantile(&[(1_000, 0), (u64::MAX, 5)], 0.5), Some(0.001), "beyond the last bound");
        assert_eq!(quantile(&[(1_000, 0), (u64::MAX, 0)], 0.5), None);
        assert_eq!(quantile(&[], 0.5), None);
    }
}
