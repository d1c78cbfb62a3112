//! `GET /api/v1/events`: what happens, as it happens, as server-sent events. The queue in front of all readers is of
//! a fixed length; whoever falls behind by so much, or takes nothing for a while, is dropped and has to ask anew.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use http::StatusCode;
use http::header::CACHE_CONTROL;
use serde::Serialize;
use tokio::sync::{broadcast, mpsc};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::audit::Operator;
use super::refused::{SOON, later};
use super::shares::Shares;
use super::{Known, Shown};

/// Events that the slowest reader may be behind.
const BEHIND_MAX: usize = 1_024;
/// Events that wait in one reader's connection.
const QUEUE: usize = 16;
/// For how long a reader may take nothing.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a reader without news hears that it is connected.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Readers at a time.
const READERS_MAX: usize = 32;
/// Those of one operator: a browser that opens one page after the other leaves some to others.
const OF_ONE_MAX: usize = 16;

/// Something that has happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Event {
    /// A delivery has been stored.
    Delivery {
        /// Its id.
        id: String,
        /// Its source.
        source: String,
        /// Its event type.
        event: Option<String>,
        /// The provider's identifier.
        delivery_id: Option<String>,
        /// RFC 3339.
        received_at: String,
        /// Where it is forwarded to.
        destinations: Vec<String>,
    },
    /// An attempt has ended.
    Attempt {
        /// The delivery.
        id: String,
        /// Where to.
        destination: String,
        /// Its number.
        number: u32,
        /// How it ended.
        outcome: String,
        /// The backend's status.
        status: Option<u16>,
        /// How long it took.
        duration_ms: u64,
        /// Where the forward stands now.
        state: String,
    },
    /// A lane is in another state.
    Lane {
        /// Its destination.
        destination: String,
        /// The state.
        state: String,
    },
    /// Requests have been refused.
    Rejection {
        /// By which source.
        source: String,
        /// Why.
        reason: String,
        /// How many since the last event of this kind.
        count: u64,
    },
}

impl Event {
    fn name(&self) -> &'static str {
        match self {
            Self::Delivery { .. } => "delivery",
            Self::Attempt { .. } => "attempt",
            Self::Lane { .. } => "lane",
            Self::Rejection { .. } => "rejection",
        }
    }
}

/// Tells events to whoever listens.
#[derive(Debug)]
pub struct Events {
    sender: broadcast::Sender<Arc<Event>>,
    readers: Shares<String>,
    ended: CancellationToken,
}

impl Events {
    /// Without readers. They are sent away when `ended` is cancelled.
    pub fn new(ended: CancellationToken) -> Self {
        Self { sender: broadcast::channel(BEHIND_MAX).0, readers: Shares::default(), ended }
    }

    /// Whether anybody listens: else there is no use in making an event.
    pub fn are_watched(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// Tells it.
    pub fn tell(&self, event: Event) {
        // Nobody may be there.
        let _ = self.sender.send(Arc::new(event));
    }

    /// What is told from now on to a reader of this name; ends when it is too slow, or the gateway ends.
    fn read(&self, by: &str) -> Option<mpsc::Receiver<Arc<Event>>> {
        if self.sender.receiver_count() >= READERS_MAX {
            return None;
        }
        let share = self.readers.take(by.to_owned(), OF_ONE_MAX)?;
        let (mut source, ended) = (self.sender.subscribe(), self.ended.clone());
        let (queue, reader) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            let _share = share;
            loop {
                let next = tokio::select! {
                    next = source.recv() => next,
                    () = ended.cancelled() => return,
                    () = queue.closed() => return,
                };
                // Lagged, or closed.
                let Ok(event) = next else { return };
                if !matches!(timeout(PATIENCE, queue.send(event)).await, Ok(Ok(()))) {
                    return;
                }
            }
        });
        Some(reader)
    }
}

pub(super) fn routes() -> OpenApiRouter<Known> {
    OpenApiRouter::new().routes(routes!(events))
}

/// What happens, as it happens: `delivery`, `attempt`, `lane` and `rejection` events
///
/// Server-sent events with a JSON document each, and a comment every 15 s without news. A reader that is too slow is
/// dropped; nothing is told again.
#[utoipa::path(get, path = "/events", tag = "gateway",
    responses((status = 200, content_type = "text/event-stream", body = String)))]
async fn events(State(gateway): Shown, Extension(operator): Extension<Operator>) -> Response {
    told(&gateway, &operator, None)
}

/// What happens from now on, until it ends by itself.
pub(super) fn told(gateway: &Known, to: &Operator, until: Option<Instant>) -> Response {
    let Some(reader) = gateway.events().read(&to.name) else {
        return later(StatusCode::TOO_MANY_REQUESTS, "as many read events as may at a time", SOON);
    };
    let told = stream::unfold(reader, move |mut reader| async move {
        let event = match until {
            Some(until) => timeout_at(until, reader.recv()).await.ok().flatten()?,
            None => reader.recv().await?,
        };
        let document = serde_json::to_string(&*event).unwrap_or_default();
        Some((Ok::<_, Infallible>(sse::Event::default().event(event.name()).data(document)), reader))
    });
    let kept_alive = Sse::new(told).keep_alive(KeepAlive::new().interval(HEARTBEAT));
    ([(CACHE_CONTROL, "no-store")], kept_alive).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: u64) -> Event {
        Event::Rejection { source: "a".to_owned(), reason: "b".to_owned(), count: n }
    }

    #[tokio::test]
    async fn a_reader_hears_what_is_told_and_a_slow_one_is_dropped() {
        let ended = CancellationToken::new();
        let events = Events::new(ended.clone());
        assert!(!events.are_watched());
        events.tell(event(0));
        let mut reader = events.read("a").unwrap();
        assert!(events.are_watched());
        events.tell(event(1));
        assert_eq!(*reader.recv().await.unwrap(), event(1), "what was told before is not told again");

        let mut slow = events.read("a").unwrap();
        for n in 0..BEHIND_MAX as u64 + QUEUE as u64 + 2 {
            events.tell(event(n));
        }
        let mut heard = 0;
        while slow.recv().await.is_some() {
            heard += 1;
        }
        assert!(heard <= QUEUE, "{heard}");

        let mut last = events.read("a").unwrap();
        ended.cancel();
        assert_eq!(last.recv().await, None);
    }

    #[tokio::test]
    async fn there_are_so_many_readers_at_most() {
        let events = Events::new(CancellationToken::new());
        let readers: Vec<_> = (0..OF_ONE_MAX).map(|_| events.read("a").unwrap()).collect();
        assert!(events.read("a").is_none());
        let others: Vec<_> = (OF_ONE_MAX..READERS_MAX).map(|_| events.read("b").unwrap()).collect();
        assert!(events.read("c").is_none());
        drop((readers, others));
        while events.are_watched() {
            tokio::task::yield_now().await;
        }
        assert!(events.read("a").is_some());
    }
}
