//! The one catalogue of what is measured. Names follow `countersign_<area>_<noun>[_<unit>][_total]` in base units;
//! labels are configured names or closed enumerations, never anything that a sender chose. Series of configured
//! sources and destinations exist at 0 from the start.

use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

mod conservation;
mod process;
mod totals;

pub use totals::Totals;

/// The label of requests that matched no source.
pub const UNMATCHED: &str = "unmatched";

/// All metrics of one gateway; cheap to clone, passed down from the composition root.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    /// Requests, counted before anything is decided about them; what is let in again later counts again.
    pub ingest_received: IntCounterVec,
    /// Requests that have been received and not been counted by their outcome yet.
    pub ingest_in_progress: IntGauge,
    /// Requests by how they were answered: `stored`, `duplicate`, `rejected`, `handshake`.
    pub ingest_requests: IntCounterVec,
    /// What senders to a source with `mode = "sync"` were told.
    pub ingest_sync_answers: IntCounterVec,
    /// When a handshake was last answered.
    pub ingest_handshake_last: GaugeVec,
    /// Rejected requests by reason.
    pub ingest_rejections: IntCounterVec,
    /// What `enforcement = "observe"` let through although it would have been refused, by reason.
    pub ingest_observed: IntCounterVec,
    /// Stored deliveries that matched no destination.
    pub ingest_unrouted: IntCounterVec,
    /// Conditions of routes that could not be judged, so that the delivery was forwarded.
    pub ingest_unjudged: IntCounterVec,
    /// Stored deliveries of an event type that the source drops.
    pub ingest_dropped: IntCounterVec,
    /// Requests that were answered 503 at the deadline; `ingest_requests` counts what became of them afterwards.
    pub ingest_late: IntCounterVec,
    /// Duplicates whose body differs from the accepted delivery's.
    pub ingest_conflicts: IntCounterVec,
    /// From the last byte of the request to the answer.
    pub ingest_ack_duration: HistogramVec,
    /// Sizes of accepted bodies.
    pub ingest_body_bytes: HistogramVec,
    /// Body bytes reserved by requests that are being read or stored.
    pub ingest_in_flight_bytes: IntGauge,
    /// Open connections on the public listener.
    pub ingest_connections: IntGauge,
    /// Connections closed before their first request, by reason.
    pub ingest_connections_refused: IntCounterVec,
    /// Rejections that were not logged, since another of their source and reason had been within the second.
    pub ingest_rejections_unlogged: IntCounterVec,
    /// When the certificates of the listener end, by file.
    pub tls_certificate_not_after: GaugeVec,
    /// Requests that a secret has verified.
    pub verify_secret_uses: IntCounterVec,
    /// When a secret last verified a request.
    pub verify_secret_last_used: GaugeVec,
    /// 1 for what is to be done about a secret, 0 for what is not.
    pub verify_secret_advice: IntGaugeVec,
    /// Our clock minus the timestamps of verified requests.
    pub verify_clock_skew: HistogramVec,
    /// Refused requests that were put in quarantine.
    pub quarantine_kept: IntCounterVec,
    /// Refused requests that were not, by why.
    pub quarantine_dropped: IntCounterVec,
    /// What became of requests in quarantine that an operator had verified again.
    pub quarantine_reverified: IntCounterVec,
    /// Bytes that the quarantine holds.
    pub quarantine_bytes: IntGauge,
    /// Requests that the quarantine holds.
    pub quarantine_entries: IntGauge,
    /// Entries of the cache in front of the claims.
    pub dedup_cache_entries: IntGauge,
    /// Duration of group commits, fsync included.
    pub store_commit_duration: Histogram,
    /// Deliveries per group commit.
    pub store_commit_deliveries: Histogram,
    /// Whether several gateways may share the store.
    pub store_shared: IntGauge,
    /// Size of the store's files.
    pub store_bytes: IntGauge,
    /// Room on the file system of the store, when it was last seen.
    pub store_disk_free: IntGauge,
    /// Below so much of it nothing is accepted.
    pub store_disk_reserve: IntGauge,
    /// Rows that are damaged or could not be read, and were set aside.
    pub store_corrupt_rows: IntCounter,
    /// Attempts by outcome.
    pub forward_attempts: IntCounterVec,
    /// Duration of attempts.
    pub forward_attempt_duration: HistogramVec,
    /// Forwards that began with a delivery.
    pub forward_created: IntCounterVec,
    /// Forwards that had been settled, and were brought back.
    pub forward_requeued: IntCounterVec,
    /// Forwards that came to an end, by which: `delivered`, `dead`, `cancelled`.
    pub forward_settled: IntCounterVec,
    /// Forwards that were pending when the store was opened.
    pub forward_pending_at_start: IntGaugeVec,
    /// Forwards that are waiting or in flight.
    pub forward_pending: IntGaugeVec,
    /// Age of the oldest pending forward; 0 when none is.
    pub forward_oldest_age: GaugeVec,
    /// Dead letters.
    pub forward_dead: IntGaugeVec,
    /// 1 for the state that a lane is in, 0 for the others.
    pub lane_state: IntGaugeVec,
    /// Attempts that a lane may run at once.
    pub lane_concurrency: IntGaugeVec,
    /// 1 while deliveries can be accepted.
    pub ready: IntGauge,
    /// Times that the wall clock was set, `forward` or `backward`.
    pub clock_steps: IntCounterVec,
    /// Times that the process stood still.
    pub clock_stalls: IntCounter,
    /// 1 when the latest reload succeeded, 0 when it was refused.
    pub config_last_reload_success: IntGauge,
    /// Reloads by outcome: `succeeded`, `refused`.
    pub config_reloads: IntCounterVec,
    /// When the configuration in force was loaded.
    pub config_last_reload_success_at: Gauge,
}

/// Around the bars that matter: a durable answer within 25 ms, the deadline at 2.5 s, never 5 s.
const ACK_BUCKETS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Slow backends are the point: up to the longest timeout, 15 minutes.
const ATTEMPT_BUCKETS: [f64; 13] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 900.0];
/// Up to GitHub's 25 MiB.
const SIZE_BUCKETS: [f64; 8] =
    [256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 26_214_400.0];
/// Either side of right, around the window's default of five minutes.
const SKEW_BUCKETS: [f64; 15] =
    [-300.0, -60.0, -30.0, -10.0, -5.0, -1.0, 0.0, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
const BATCH_BUCKETS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

impl Metrics {
    /// Registers the whole catalogue.
    ///
    /// # Panics
    /// Never: every name is registered once and all are valid, as any test that builds a gateway shows.
    pub fn new() -> Self {
        let c = Catalogue(Registry::new());
        let build =
            c.int_gauges("build_info", "Version and revision of the binary.", &["version", "revision"]);
        let revision = option_env!("COUNTERSIGN_REVISION").unwrap_or("unknown");
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), revision]).set(1);
        c.register(Ok(process::ProcessCollector::new()));

        let metrics = Self {
            ingest_received: c.counters(
                "ingest_received_total",
                "Requests, counted before anything is decided about them; what is let in again later counts again.",
                &["source"],
            ),
            ingest_in_progress: c.int_gauge(
                "ingest_in_progress",
                "Requests that have been received and not been counted by their outcome yet.",
            ),
            ingest_sync_answers: c.counters(
                "ingest_sync_answers_total",
                "Answers to requests of sources in sync mode: the backend's, or the source's ack and why.",
                &["source", "outcome"],
            ),
            ingest_requests: c.counters(
                "ingest_requests_total",
                "Requests by how they were answered.",
                &["source", "outcome"],
            ),
            ingest_handshake_last: c.gauges(
                "ingest_handshake_last_timestamp_seconds",
                "When a handshake of the provider was last answered, Unix time; 0 when none has been.",
                &["source"],
            ),
            ingest_rejections: c.counters(
                "ingest_rejections_total",
                "Rejected requests by reason.",
                &["source", "reason"],
            ),
            ingest_observed: c.counters(
                "ingest_observed_total",
                "Requests that enforcement would have refused.",
                &["source", "reason"],
            ),
            ingest_unrouted: c.counters(
                "ingest_unrouted_total",
                "Stored deliveries that matched no destination.",
                &["source"],
            ),
            ingest_unjudged: c.counters(
                "ingest_conditions_unjudged_total",
                "Conditions of routes that could not be judged, so that the delivery was forwarded; the log says why.",
                &["source", "destination"],
            ),
            ingest_dropped: c.counters(
                "ingest_dropped_events_total",
                "Stored deliveries of an event type that the source drops.",
                &["source"],
            ),
            ingest_late: c.counters(
                "ingest_late_total",
                "Requests answered 503 at the deadline; counted again by their outcome once it is known.",
                &["source"],
            ),
            ingest_conflicts: c.counters(
                "ingest_conflicts_total",
                "Duplicates with another body than the accepted delivery.",
                &["source"],
            ),
            ingest_ack_duration: c.histograms(
                "ingest_ack_duration_seconds",
                "Seconds from the last byte of the request to the answer.",
                &ACK_BUCKETS,
                "source",
            ),
            ingest_body_bytes: c.histograms(
                "ingest_body_bytes",
                "Sizes of accepted bodies in bytes.",
                &SIZE_BUCKETS,
                "source",
            ),
            ingest_in_flight_bytes: c
                .int_gauge("ingest_in_flight_bytes", "Body bytes reserved by requests in progress."),
            ingest_connections: c.int_gauge("ingest_connections", "Open connections on the public listener."),
            ingest_connections_refused: c.counters(
                "ingest_connections_refused_total",
                "Connections closed before their first request, by reason.",
                &["reason"],
            ),
            ingest_rejections_unlogged: c.counters(
                "ingest_rejections_unlogged_total",
                "Rejections and refused connections that were not logged: one line a second tells of those with the same source and reason.",
                &["source"],
            ),
            tls_certificate_not_after: c.gauges(
                "tls_certificate_not_after_seconds",
                "When the certificate that is served, and the first of client_ca to do so, expires, Unix time.",
                &["file"],
            ),
            verify_secret_uses: c.counters(
                "verify_secret_uses_total",
                "Requests that a secret has verified.",
                &["source", "secret"],
            ),
            verify_secret_last_used: c.gauges(
                "verify_secret_last_used_timestamp_seconds",
                "When a secret last verified a request, Unix time; 0 when it has not yet.",
                &["source", "secret"],
            ),
            verify_secret_advice: c.int_gauges(
                "verify_secret_advice",
                "1 for what is to be done about a secret, 0 for what is not: `status` tells it in words.",
                &["source", "secret", "advice"],
            ),
            verify_clock_skew: c.histograms(
                "verify_clock_skew_seconds",
                "Our clock minus the timestamps of verified requests; negative where the sender's clock is ahead.",
                &SKEW_BUCKETS,
                "source",
            ),
            quarantine_kept: c.counters(
                "quarantine_kept_total",
                "Refused requests that were put in quarantine.",
                &["source"],
            ),
            quarantine_dropped: c.counters(
                "quarantine_dropped_total",
                "Refused requests that were not put in quarantine: above the source's rate, too much waiting, the disk below its reserve, or the file failed.",
                &["source", "why"],
            ),
            quarantine_reverified: c.counters(
                "quarantine_reverified_total",
                "Requests in quarantine that were verified again, by outcome; stored and duplicate ones have been counted as rejected before.",
                &["source", "outcome"],
            ),
            quarantine_bytes: c.int_gauge("quarantine_bytes", "Bytes of the requests in quarantine."),
            quarantine_entries: c.int_gauge("quarantine_entries", "Requests in quarantine."),
            dedup_cache_entries: c
                .int_gauge("dedup_cache_entries", "Entries of the cache in front of the claims."),
            store_commit_duration: c.histogram(
                "store_commit_duration_seconds",
                "Seconds per group commit, fsync included.",
                &ACK_BUCKETS,
            ),
            store_commit_deliveries: c.histogram(
                "store_commit_deliveries",
                "Deliveries per group commit that held any.",
                &BATCH_BUCKETS,
            ),
            store_shared: c.int_gauge(
                "store_shared",
                "1 where several gateways may share the store, so that none has the books of forwards to itself.",
            ),
            store_bytes: c.int_gauge("store_bytes", "Size of the store's files."),
            store_disk_free: c.int_gauge(
                "store_disk_free_bytes",
                "Free bytes of the file system of the store, when they were last seen.",
            ),
            store_disk_reserve: c.int_gauge(
                "store_disk_reserve_bytes",
                "Free bytes below which no delivery is accepted.",
            ),
            store_corrupt_rows: c.counter(
                "store_corrupt_rows_total",
                "Rows that are damaged or could not be read, and were set aside.",
            ),
            forward_attempts: c.counters(
                "forward_attempts_total",
                "Attempts by outcome.",
                &["destination", "outcome"],
            ),
            forward_attempt_duration: c.histograms(
                "forward_attempt_duration_seconds",
                "Seconds per attempt.",
                &ATTEMPT_BUCKETS,
                "destination",
            ),
            forward_created: c.counters(
                "forward_created_total",
                "Forwards that began with a delivery.",
                &["destination"],
            ),
            forward_requeued: c.counters(
                "forward_requeued_total",
                "Forwards that had been settled, and were brought back.",
                &["destination"],
            ),
            forward_settled: c.counters(
                "forward_settled_total",
                "Forwards that came to an end: delivered, dead or cancelled.",
                &["destination", "state"],
            ),
            forward_pending_at_start: c.int_gauges(
                "forward_pending_at_start",
                "Forwards that were pending when the store was opened.",
                &["destination"],
            ),
            forward_pending: c.int_gauges(
                "forward_pending",
                "Forwards that are waiting or in flight.",
                &["destination"],
            ),
            forward_oldest_age: c.gauges(
                "forward_oldest_age_seconds",
                "Age of the oldest pending forward; 0 when none is.",
                &["destination"],
            ),
            forward_dead: c.int_gauges("forward_dead", "Dead letters.", &["destination"]),
            lane_state: c.int_gauges(
                "lane_state",
                "1 for the state that a lane is in, 0 for the others.",
                &["destination", "state"],
            ),
            lane_concurrency: c.int_gauges(
                "lane_concurrency",
                "Attempts that a lane may run at once; of several gateways, this one's part.",
                &["destination"],
            ),
            ready: c.int_gauge("ready", "1 while deliveries can be accepted, as `/readyz` tells it, else 0."),
            clock_steps: c.counters(
                "clock_steps_total",
                "Times that the wall clock was set by a second or more, or went on while the machine was suspended.",
                &["direction"],
            ),
            clock_stalls: c.counter(
                "clock_stalls_total",
                "Times that the process stood still for more than two seconds.",
            ),
            config_last_reload_success: c.int_gauge(
                "config_last_reload_success",
                "1 when the latest load of the configuration succeeded, 0 when it was refused.",
            ),
            config_reloads: c.counters("config_reloads_total", "Reloads by outcome.", &["outcome"]),
            config_last_reload_success_at: c.gauge(
                "config_last_reload_success_timestamp_seconds",
                "When the configuration in force was loaded, Unix time.",
            ),
            registry: c.0,
        };
        metrics.weigh();
        for outcome in ["succeeded", "refused"] {
            metrics.config_reloads.with_label_values(&[outcome]);
        }
        metrics
    }

    /// Has the books of a destination begin at 0.
    pub fn announce_forwards(&self, destination: &str) {
        self.forward_created.with_label_values(&[destination]);
        self.forward_requeued.with_label_values(&[destination]);
        self.forward_pending_at_start.with_label_values(&[destination]);
        for state in ["delivered", "dead", "cancelled"] {
            self.forward_settled.with_label_values(&[destination, state]);
        }
    }

    /// The page that Prometheus scrapes, and its content type.
    pub fn page(&self) -> (Vec<u8>, String) {
        let encoder = TextEncoder::new();
        let mut page = Vec::new();
        encoder
            .encode(&self.registry.gather(), &mut page)
            .expect("families come from the registry that checked them, and a vector takes every byte");
        (page, encoder.format_type().to_owned())
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

struct Catalogue(Registry);

impl Catalogue {
    fn register<C: Collector + Clone + 'static>(&self, collector: prometheus::Result<C>) -> C {
        let collector = collector.expect("names and labels in this file are valid");
        self.0.register(Box::new(collector.clone())).expect("every name stands once in this file");
        collector
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::with_opts(opts(name, help)))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(opts(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(Gauge::with_opts(opts(name, help)))
    }

    fn int_gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::with_opts(opts(name, help)))
    }

    fn int_gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(opts(name, help), labels))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.register(GaugeVec::new(opts(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.register(Histogram::with_opts(histogram_opts(name, help, buckets)))
    }

    fn histograms(&self, name: &str, help: &str, buckets: &[f64], label: &str) -> HistogramVec {
        self.register(HistogramVec::new(histogram_opts(name, help, buckets), &[label]))
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("countersign")
}

fn histogram_opts(name: &str, help: &str, buckets: &[f64]) -> HistogramOpts {
    HistogramOpts::new(name, help).namespace("countersign").buckets(buckets.to_vec())
}
