//! Whether a connection is in use: what is idle for too long is closed, what is busy is left alone.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Requests on one connection. Then a new one is due, so that load spreads anew over what is behind one address.
const REQUESTS_MAX: usize = 1_000;
/// A connection that has answered requests may wait so long for the next.
pub(super) const IDLE: Duration = Duration::from_secs(60);

/// When something last happened on a connection.
pub(super) struct Activity {
    opened: Instant,
    /// Requests in progress.
    busy: AtomicUsize,
    /// Requests so far.
    requests: AtomicUsize,
    /// Told at the last request that the connection may carry.
    pub(super) spent: Notify,
    /// Milliseconds from `opened` until which the connection may be idle.
    idle_until_ms: AtomicU64,
}

impl Activity {
    pub(super) fn new(first_request_within: Duration) -> Self {
        let until = u64::try_from(first_request_within.as_millis()).unwrap_or(u64::MAX);
        Self {
            opened: Instant::now(),
            busy: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            spent: Notify::new(),
            idle_until_ms: AtomicU64::new(until),
        }
    }

    pub(super) fn begin(&self) -> Busy<'_> {
        self.busy.fetch_add(1, Ordering::SeqCst);
        if self.requests.fetch_add(1, Ordering::SeqCst) + 1 == REQUESTS_MAX {
            self.spent.notify_one();
        }
        self.extend();
        Busy(self)
    }

    /// The connection may carry no more requests.
    pub(super) fn spend(&self) {
        if self.requests.swap(REQUESTS_MAX, Ordering::SeqCst) < REQUESTS_MAX {
            self.spent.notify_one();
        }
    }

    /// Whether the connection has carried as many requests as it may.
    pub(super) fn is_spent(&self) -> bool {
        self.requests.load(Ordering::SeqCst) >= REQUESTS_MAX
    }

    /// Something has come: from now on it may be idle anew.
    pub(super) fn extend(&self) {
        let until = self.opened.elapsed() + IDLE;
        self.idle_until_ms.store(u64::try_from(until.as_millis()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    pub(super) fn idle_until(&self) -> Instant {
        let until = self.opened + Duration::from_millis(self.idle_until_ms.load(Ordering::SeqCst));
        // While a request is in progress, look again later.
        if self.is_busy() { Instant::now() + IDLE } else { until }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::SeqCst) > 0
    }

    pub(super) fn is_idle(&self) -> bool {
        !self.is_busy() && Instant::now() >= self.idle_until()
    }
}

/// A request in progress.
pub(super) struct Busy<'a>(&'a Activity);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.extend();
        self.0.busy.fetch_sub(1, Ordering::SeqCst);
    }
}
