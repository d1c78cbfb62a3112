//! Whether the books balance: nothing that was received, and no forward that began, is without its end or its place among
//! what is pending. Computed at each scrape from counters of this process and gauges of its store, which begin together,
//! so that a restart changes nothing. What is counted between two readings of one scrape shows for that scrape only.

use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};
use prometheus::{IntGauge, IntGaugeVec};

use super::{Metrics, opts};

/// The equation `received = rejected + duplicate + stored + handshake + in progress`.
const REQUESTS: &str = "requests";
/// The equation `pending at start + created + requeued = delivered + dead + cancelled + pending`.
const FORWARDS: &str = "forwards";

#[derive(Clone, Debug)]
struct Conservation {
    imbalance: IntGaugeVec,
    requests: (Vec<Part>, Vec<Part>),
    forwards: (Vec<Part>, Vec<Part>),
    /// Then what is pending is everybody's, and what was counted is this gateway's.
    shared: IntGauge,
}

/// A family whose series are added up.
#[derive(Clone, Debug)]
enum Part {
    Counters(prometheus::IntCounterVec),
    Gauges(IntGaugeVec),
    Gauge(IntGauge),
}

impl Metrics {
    /// What is missing (positive) or too much (negative) among requests and among forwards, in this order: 0 when nothing is
    /// under way.
    pub fn imbalances(&self) -> [i64; 2] {
        let conservation = self.conservation();
        [difference(&conservation.requests), difference(&conservation.forwards)]
    }

    /// Has the imbalances on the page.
    pub(super) fn weigh(&self) {
        let conservation = self.conservation();
        self.registry.register(Box::new(conservation)).expect("its name stands here only");
    }

    fn conservation(&self) -> Conservation {
        let help =
            "What is missing among requests or forwards, by the equations of conservation; 0 when quiet.";
        let imbalance = IntGaugeVec::new(opts("conservation_imbalance", help), &["equation"]);
        Conservation {
            imbalance: imbalance.expect("name and label are valid"),
            requests: (
                vec![Part::Counters(self.ingest_received.clone())],
                vec![
                    Part::Counters(self.ingest_requests.clone()),
                    Part::Gauge(self.ingest_in_progress.clone()),
                ],
            ),
            shared: self.store_shared.clone(),
            forwards: (
                vec![
                    Part::Gauges(self.forward_pending_at_start.clone()),
                    Part::Counters(self.forward_created.clone()),
                    Part::Counters(self.forward_requeued.clone()),
                ],
                vec![
                    Part::Counters(self.forward_settled.clone()),
                    Part::Gauges(self.forward_pending.clone()),
                ],
            ),
        }
    }
}

impl Part {
    fn sum(&self) -> i64 {
        let families = match self {
            Self::Counters(counters) => counters.collect(),
            Self::Gauges(gauges) => gauges.collect(),
            Self::Gauge(gauge) => return gauge.get(),
        };
        let series = families.iter().flat_map(|family| {
            let is_counter = family.get_field_type() == MetricType::COUNTER;
            family.get_metric().iter().map(move |metric| match is_counter {
                true => metric.get_counter().get_value(),
                false => metric.get_gauge().get_value(),
            })
        });
        // Exact up to 2^53, as everything that Prometheus holds.
        series.sum::<f64>() as i64
    }
}

fn difference((came, went): &(Vec<Part>, Vec<Part>)) -> i64 {
    let sum = |parts: &[Part]| parts.iter().map(Part::sum).sum::<i64>();
    sum(came) - sum(went)
}

impl Collector for Conservation {
    fn desc(&self) -> Vec<&Desc> {
        self.imbalance.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.imbalance.with_label_values(&[REQUESTS]).set(difference(&self.requests));
        if self.shared.get() == 0 {
            self.imbalance.with_label_values(&[FORWARDS]).set(difference(&self.forwards));
        }
        self.imbalance.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_on_either_side_shows() {
        let metrics = Metrics::new();
        let check = |expected: [i64; 2]| {
            assert_eq!(metrics.imbalances(), expected);
            let page = String::from_utf8(metrics.page().0).unwrap();
            for (equation, imbalance) in [REQUESTS, FORWARDS].into_iter().zip(expected) {
                let line =
                    format!("countersign_conservation_imbalance{{equation=\"{equation}\"}} {imbalance}\n");
                assert!(page.contains(&line), "{page}");
            }
        };
        check([0, 0]);
        for source in ["a", "b"] {
            metrics.ingest_received.with_label_values(&[source]).inc_by(2);
            metrics.ingest_requests.with_label_values(&[source, "stored"]).inc();
        }
        check([2, 0]);
        metrics.ingest_in_progress.inc();
        metrics.ingest_requests.with_label_values(&["b", "rejected"]).inc();
        check([0, 0]);
        metrics.forward_pending_at_start.with_label_values(&["x"]).set(3);
        metrics.forward_created.with_label_values(&["x"]).inc_by(4);
        metrics.forward_requeued.with_label_values(&["y"]).inc();
        metrics.forward_pending.with_label_values(&["y"]).set(2);
        for state in ["delivered", "dead", "cancelled"] {
            metrics.forward_settled.with_label_values(&["x", state]).inc_by(2);
        }
        check([0, 0]);
        metrics.forward_settled.with_label_values(&["x", "dead"]).inc();
        check([0, -1]);
    }
}
