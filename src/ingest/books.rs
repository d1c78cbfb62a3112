//! The books of requests: each is received once, and has one outcome once.

use std::sync::Arc;

use super::Ingest;
use super::answer::Rejection;
use super::routes::Entry;

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
