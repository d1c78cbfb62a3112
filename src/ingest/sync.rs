//! `mode = "sync"`: a sender waits, for a while, for what the backend says to its delivery. The delivery is stored and
//! forwarded like any other; here is only who is told what. The first request decides that for its duplicates: those that
//! come meanwhile wait for it, and later ones are told the same for as long as the answer is kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::future::Cache;
use moka::policy::EvictionPolicy;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::config::Source;
use crate::id::Id;
use crate::metrics::Metrics;
use crate::replies::{Answer, Backends, Expected, Reply};

/// Memory for answers that are kept for duplicates, of all sources together; the oldest go first.
const KEPT_BYTES_MAX: u64 = 16 << 20;
/// What the cache and its maps take for an answer, whatever is in it, and for each of its headers.
const ENTRY_BYTES: usize = 512;
const HEADER_BYTES: usize = 128;
/// For how long: providers that wait for an answer repeat a request within minutes.
const KEPT_FOR: Duration = Duration::from_mins(10);

/// Series of the metric, by what the sender got: the backend's answer, that of the first request, or the ack and why.
const OUTCOMES: [&str; 7] = ["passed", "repeated", "late", "failed", "unfit", "not_tried", "forgotten"];

pub(super) struct Sync {
    backends: Arc<dyn Backends>,
    underway: Arc<Underway>,
    kept: Cache<Id, Arc<Kept>>,
}

/// First requests whose answer is still to be decided, by delivery.
#[derive(Default)]
struct Underway(Mutex<HashMap<Id, watch::Receiver<Option<Told>>>>);

/// What a sender is told: the backend's answer, or (`None`) the source's ack.
type Told = Option<Arc<Answer>>;

struct Kept {
    answer: Arc<Answer>,
    destination: Arc<str>,
}

/// A request that decides what its duplicates are told.
pub(super) struct First {
    id: Id,
    destination: Arc<str>,
    expected: Option<Expected>,
    told: watch::Sender<Option<Told>>,
    underway: Arc<Underway>,
}

impl Sync {
    pub(super) fn new(backends: Arc<dyn Backends>) -> Self {
        let kept = Cache::builder()
            .max_capacity(KEPT_BYTES_MAX)
            .weigher(|_, kept: &Arc<Kept>| kept.weight())
            .time_to_live(KEPT_FOR)
            // Whoever asks once is as likely to ask as anybody.
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self { backends, underway: Arc::default(), kept }
    }

    pub(super) fn announce(source: &Source, metrics: &Metrics) {
        for outcome in OUTCOMES {
            metrics.ingest_sync_answers.with_label_values(&[&*source.name, outcome]);
        }
    }

    /// Before it is stored: from then on it may be attempted, and have duplicates. `None` where nobody waits for an answer.
    pub(super) fn begin(&self, source: &Source, id: Id, destinations: &[Arc<str>]) -> Option<First> {
        // A source in sync mode has one destination; dropped and unrouted events go nowhere.
        source.sync_deadline?;
        Some(self.first(id, destinations.first()?))
    }

    fn first(&self, id: Id, destination: &Arc<str>) -> First {
        let (told, telling) = watch::channel(None);
        self.underway.lock().insert(id, telling);
        First {
            id,
            destination: Arc::clone(destination),
            expected: self.backends.expect(id, destination),
            told,
            underway: Arc::clone(&self.underway),
        }
    }

    /// Waits for the backend's answer until `until`, or until the gateway cannot wait any more.
    pub(super) async fn conclude(
        &self,
        first: Option<First>,
        until: Instant,
        cut: &CancellationToken,
    ) -> (Told, &'static str) {
        let Some(mut first) = first else { return (None, "not_tried") };
        let (told, outcome) = match first.expected.take() {
            None => (None, "not_tried"),
            Some(expected) => tokio::select! {
                biased;
                reply = timeout_at(until, expected) => match reply {
                    Ok(Reply::Answered(answer)) => (Some(Arc::new(answer)), "passed"),
                    Ok(Reply::Unfit) => (None, "unfit"),
                    Ok(Reply::Failed) => (None, "failed"),
                    Err(_) => (None, "late"),
                },
                () = cut.cancelled() => (None, "late"),
            },
        };
        if let Some(answer) = &told {
            let kept = Kept { answer: Arc::clone(answer), destination: Arc::clone(&first.destination) };
            self.kept.insert(first.id, Arc::new(kept)).await;
        }
        first.told.send_replace(Some(told.clone()));
        (told, outcome)
    }

    /// What a duplicate of `id` is told, which has `revived` the forward if that was dead.
    pub(super) async fn repeat(
        &self,
        id: Id,
        revived: bool,
        until: Instant,
        cut: &CancellationToken,
    ) -> (Told, &'static str) {
        let underway = self.underway.lock().get(&id).cloned();
        if let Some(mut told) = underway {
            let told = tokio::select! {
                told = timeout_at(until, told.wait_for(Option::is_some)) => match told {
                    Ok(Ok(told)) => told.clone().flatten(),
                    // It was not stored after all, or takes longer than this one can wait.
                    Ok(Err(_)) | Err(_) => None,
                },
                () = cut.cancelled() => None,
            };
            let outcome = if told.is_some() { "repeated" } else { "late" };
            return (told, outcome);
        }
        match self.kept.get(&id).await {
            // The backend had refused it, and is asked once more: what it says now counts.
            Some(kept) if revived && !kept.answer.status.is_success() => {
                let first = self.first(id, &kept.destination);
                self.kept.invalidate(&id).await;
                self.conclude(Some(first), until, cut).await
            }
            Some(kept) => (Some(Arc::clone(&kept.answer)), "repeated"),
            None => (None, "forgotten"),
        }
    }
}

impl Kept {
    /// The memory that it takes, in bytes.
    fn weight(&self) -> u32 {
        let bytes = ENTRY_BYTES + self.answer.headers.len() * HEADER_BYTES + self.answer.bytes();
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }
}

impl Underway {
    /// A map is whole whatever happened to whom.
    fn lock(&self) -> MutexGuard<'_, HashMap<Id, watch::Receiver<Option<Told>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for First {
    fn drop(&mut self) {
        let mut underway = self.underway.lock();
        if underway.get(&self.id).is_some_and(|told| told.same_channel(&self.told.subscribe())) {
            underway.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue, StatusCode};

    use super::*;

    struct Nobody;

    impl Backends for Nobody {
        fn expect(&self, _: Id, _: &str) -> Option<Expected> {
            None
        }
    }

    /// Empty answers weighed nothing once, so that any number of them was kept.
    #[tokio::test]
    async fn an_answer_that_says_little_takes_room_too() {
        let sync = Sync::new(Arc::new(Nobody));
        let mut headers = HeaderMap::new();
        headers.insert("x", HeaderValue::from_static("y"));
        let answer = Arc::new(Answer { status: StatusCode::OK, headers, body: Bytes::new() });
        let kept = Arc::new(Kept { answer, destination: "legacy".into() });
        assert_eq!(kept.weight() as usize, ENTRY_BYTES + HEADER_BYTES + 2);
        for number in 0..40_000_u128 {
            sync.kept.insert(Id::from_bytes(number.to_be_bytes()), Arc::clone(&kept)).await;
        }
        sync.kept.run_pending_tasks().await;
        let most = KEPT_BYTES_MAX / u64::from(kept.weight());
        assert!((1..=most).contains(&sync.kept.entry_count()), "{} of {most}", sync.kept.entry_count());
    }
}
