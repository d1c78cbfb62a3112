//! The end of a gateway. Nothing that was acknowledged depends on it: what is not finished in time is on disk, or was
//! promised to nobody.

use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::App;
use crate::config::Limits;

/// Attempts under way get as long as requests are being finished, and at least so long: a backend that is just answering
/// should not see the same delivery again, and one that hangs must not hold the exit up.
const ATTEMPTS_MIN: Duration = Duration::from_secs(1);
/// What is kept of the time, for writing down what was cut off and closing the store.
const SETTLING_MAX: Duration = Duration::from_secs(3);
/// The same where the store has shut itself: there is nothing to write down, only answers to give.
const FAILED: Duration = Duration::from_secs(1);

impl App {
    /// Ends the gateway within `limits.drain`, in this order: readiness is false for `limits.drain_delay`; nothing new is
    /// accepted, and no attempt begins; requests in progress are finished, each answer the last of its connection; what
    /// is late is refused, attempts under way are given back, and the store is closed. Operators are served throughout.
    ///
    /// Dropping the future loses nothing that was acknowledged.
    pub async fn drain(self) {
        let Limits { drain, drain_delay, .. } = self.parts.config.load().limits;
        // Nobody has to notice that another gateway serves the same sockets, and that one is waiting.
        let delay = if self.successor.borrow().is_some() { Duration::ZERO } else { drain_delay };
        self.end(delay, drain).await;
    }

    /// Ends a gateway whose store has shut itself.
    pub async fn give_up(self) {
        self.end(Duration::ZERO, FAILED).await;
    }

    async fn end(self, delay: Duration, within: Duration) {
        let Self { parts, requests, operators, .. } = self;
        let until = Instant::now() + within;
        parts.stages.draining.cancel();
        sleep(delay).await;

        let settling = (within.saturating_sub(delay) / 2).min(SETTLING_MAX);
        let (cut_at, settled_by) = (until - settling, until - settling / 2);
        parts.stages.stopping.cancel();
        let finish = async {
            if timeout_at(cut_at, requests.wait()).await.is_err() {
                tracing::warn!("requests that are not complete are refused: limits.drain is over");
                parts.ingest.cut_off();
                if timeout_at(settled_by, requests.wait()).await.is_err() {
                    tracing::warn!("connections were still open at the end");
                }
            }
        };
        let patience = async {
            let least = sleep(ATTEMPTS_MIN);
            tokio::select! {
                _ = async { tokio::join!(requests.wait(), least) } => {}
                () = sleep_until(cut_at) => {}
            }
        };
        tokio::join!(finish, parts.lanes.drain(patience, settled_by));

        let _ = timeout_at(settled_by, parts.note_uses()).await;
        // No thread holds a file of the directory when the store lets the next gateway in.
        let quarantine = std::sync::Arc::clone(&parts.quarantine);
        let closed = tokio::task::spawn_blocking(move || quarantine.close());
        let _ = timeout_at(settled_by + settling / 8, closed).await;
        if timeout_at(until - settling / 8, parts.store.close()).await.is_err() {
            tracing::warn!(
                "the store could not be closed in time; the next start finds what was acknowledged"
            );
        }
        drop(parts.directory.lock().unwrap_or_else(PoisonError::into_inner).take());
        parts.stages.ended.cancel();
        // An operator's half-sent request is no reason to stay.
        let _ = timeout_at(until - settling / 16, operators).await;
    }
}
