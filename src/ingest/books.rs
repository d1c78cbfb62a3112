//! The books of requests: each is received once, and has one outcome once; and what else is counted or logged of them.

use std::net::IpAddr;
use std::sync::Arc;

use super::answer::{Rejection, TurnedAway};
use super::routes::Entry;
use super::sync::Sync;
use super::{HANDSHAKE, Ingest};
use crate::clock::Timestamp;
use crate::config::{Config, Source};
use crate::id::Id;
use crate::metrics::UNMATCHED;
use crate::route::Matched;
use crate::verify::{Refusal, Verified};

/// A request of a source, from its arrival until its outcome has been counted.
pub(super) struct Receipt {
    ingest: Arc<Ingest>,
    entry: Arc<Entry>,
    open: bool,
}

impl Receipt {
    pub(super) fn new(ingest: &Arc<Ingest>, entry: &Arc<Entry>) -> Self {
        ingest.metrics.ingest_received.with_label_values(&[&*entry.source.name]).inc();
        ingest.metrics.ingest_in_progress.inc();
        Self { ingest: Arc::clone(ingest), entry: Arc::clone(entry), open: true }
    }

    /// Its outcome has been counted.
    pub(super) fn close(&mut self) {
        if std::mem::take(&mut self.open) {
            self.ingest.metrics.ingest_in_progress.dec();
        }
    }

    /// For whoever goes on with the request; nothing is left here to be counted.
    pub(super) fn hand_on(&mut self) -> Self {
        let open = std::mem::take(&mut self.open);
        Self { ingest: Arc::clone(&self.ingest), entry: Arc::clone(&self.entry), open }
    }
}

impl Drop for Receipt {
    /// The sender hung up before its request was whole; or there was a panic.
    fn drop(&mut self) {
        if self.open {
            let reason = if std::thread::panicking() { Rejection::Internal } else { Rejection::BodyBroken };
            let (metrics, source) = (&self.ingest.metrics, &*self.entry.source.name);
            metrics.ingest_requests.with_label_values(&[source, "rejected"]).inc();
            metrics.ingest_rejections.with_label_values(&[source, reason.label()]).inc();
            self.close();
        }
    }
}

impl Ingest {
    pub(super) fn note_handshake(&self, source: &Source, at: Timestamp) {
        tracing::info!(source = %source.name, "handshake answered");
        let at = at.as_millisecond() as f64 / 1e3;
        self.metrics.ingest_handshake_last.with_label_values(&[&*source.name]).set(at);
    }

    /// Counts where a stored delivery went; one that goes nowhere is never lost quietly.
    pub(super) fn note_matched(&self, source: &Source, id: Id, matched: Option<&Matched>) {
        let name = &*source.name;
        let Some(matched) = matched else {
            return self.metrics.ingest_dropped.with_label_values(&[name]).inc();
        };
        for (destination, why) in &matched.unjudged {
            self.metrics.ingest_unjudged.with_label_values(&[name, destination]).inc();
            tracing::warn!(source = name, %destination, %id, %why, "forwarded, since its condition could not be judged");
        }
        if matched.destinations.is_empty() {
            self.metrics.ingest_unrouted.with_label_values(&[name]).inc();
            tracing::info!(source = name, %id, "stored as unrouted: no destination takes it");
        }
    }

    pub(super) fn note_observed(&self, source: &Source, refusal: Refusal) {
        self.metrics.ingest_observed.with_label_values(&[&*source.name, refusal.label()]).inc();
    }

    pub(super) fn note_verified(&self, source: &Source, verified: &Verified) {
        let delivery = verified.delivery();
        if let Some(secret) = &delivery.verification.secret {
            let used_at = delivery.received_at.as_millisecond() as f64 / 1e3;
            self.metrics.verify_secret_uses.with_label_values(&[&*source.name, secret]).inc();
            self.metrics.verify_secret_last_used.with_label_values(&[&*source.name, secret]).set(used_at);
        }
        if let Some(skew) = delivery.verification.skew_seconds {
            self.metrics.verify_clock_skew.with_label_values(&[&*source.name]).observe(skew as f64);
        }
    }

    /// `sender` as far as it is known: the peer, where nothing better has been found.
    pub(super) fn count(&self, source: &str, sender: IpAddr, rejection: &Rejection) {
        let reason = rejection.label();
        match self.rejections.note(source, reason, self.origin.elapsed()) {
            Some(unlogged) => tracing::info!(source, %sender, reason, unlogged, "request refused"),
            None => self.metrics.ingest_rejections_unlogged.with_label_values(&[source]).inc(),
        }
        if source == UNMATCHED {
            // Nothing is known of it before it is refused.
            self.metrics.ingest_received.with_label_values(&[source]).inc();
        }
        self.metrics.ingest_requests.with_label_values(&[source, "rejected"]).inc();
        self.metrics.ingest_rejections.with_label_values(&[source, reason]).inc();
    }

    /// Counts a connection that is closed before its first request.
    pub(super) fn turn_away(&self, peer: IpAddr, why: TurnedAway) {
        let reason = why.label();
        match self.rejections.note(UNMATCHED, reason, self.origin.elapsed()) {
            Some(unlogged) => tracing::info!(%peer, reason, unlogged, "connection refused"),
            None => self.metrics.ingest_rejections_unlogged.with_label_values(&[UNMATCHED]).inc(),
        }
        self.metrics.ingest_connections_refused.with_label_values(&[reason]).inc();
    }

    /// Creates every series of the configured sources at 0.
    pub(super) fn announce(&self, config: &Config) {
        let m = &self.metrics;
        for reason in Rejection::LABELS_WITHOUT_SOURCE {
            m.ingest_rejections.with_label_values(&[UNMATCHED, reason]);
        }
        m.ingest_requests.with_label_values(&[UNMATCHED, "rejected"]);
        m.ingest_received.with_label_values(&[UNMATCHED]);
        m.ingest_rejections_unlogged.with_label_values(&[UNMATCHED]);
        for turned_away in TurnedAway::ALL {
            m.ingest_connections_refused.with_label_values(&[turned_away.label()]);
        }
        for source in &config.sources {
            let name = &*source.name;
            for outcome in ["stored", "duplicate", "rejected", HANDSHAKE] {
                m.ingest_requests.with_label_values(&[name, outcome]);
            }
            for reason in Rejection::labels() {
                m.ingest_rejections.with_label_values(&[name, reason]);
            }
            for refusal in Refusal::ALL {
                m.ingest_observed.with_label_values(&[name, refusal.label()]);
            }
            for why in ["rate", "busy", "disk_full", "failed"] {
                m.quarantine_dropped.with_label_values(&[name, why]);
            }
            for outcome in ["stored", "duplicate", "refused"] {
                m.quarantine_reverified.with_label_values(&[name, outcome]);
            }
            for counter in [
                &m.ingest_received,
                &m.quarantine_kept,
                &m.ingest_unrouted,
                &m.ingest_dropped,
                &m.ingest_late,
                &m.ingest_conflicts,
                &m.ingest_rejections_unlogged,
            ] {
                counter.with_label_values(&[name]);
            }
            for route in source.to.iter().filter(|route| route.when.is_some()) {
                m.ingest_unjudged.with_label_values(&[name, &route.destination]);
            }
            m.ingest_ack_duration.with_label_values(&[name]);
            if source.sync_deadline.is_some() {
                Sync::announce(source, m);
            }
            m.ingest_body_bytes.with_label_values(&[name]);
            m.verify_clock_skew.with_label_values(&[name]);
            if !source.verifier.handshakes().is_empty() {
                m.ingest_handshake_last.with_label_values(&[name]);
            }
            for secret in source.verifier.secret_names() {
                m.verify_secret_last_used.with_label_values(&[name, secret]);
                m.verify_secret_uses.with_label_values(&[name, secret]);
            }
        }
    }
}
