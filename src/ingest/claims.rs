//! In front of the store's exact claims: a bounded table that answers most duplicates without asking it, and single
//! flight, so that concurrent copies wait for the first instead of queueing behind it in the store. The table only
//! knows what this process has seen the store make durable; when the first copy fails, the next takes over.

use std::sync::Arc;

use self::flights::Flights;
use self::recent::{Recent, Seen};
use crate::store::{Accepted, Arrival, Store, StoreError};

mod flights;
mod recent;

pub(super) struct Gate {
    store: Arc<dyn Store>,
    recent: Recent,
    flights: Flights,
}

impl Gate {
    /// Remembers about so many claims.
    pub(super) fn new(store: Arc<dyn Store>, entries: u64) -> Self {
        Self { store, recent: Recent::new(entries), flights: Flights::default() }
    }

    /// What stands behind the gate.
    pub(super) fn store(&self) -> &dyn Store {
        &*self.store
    }

    pub(super) fn entries(&self) -> i64 {
        self.recent.entries()
    }

    /// Claims and stores; durable when it returns `Ok`.
    pub(super) async fn claim(&self, arrival: Arrival) -> Result<Accepted, StoreError> {
        // No id and nothing signed: nothing that could make it a duplicate.
        let Some(key) = arrival.keys.first() else { return self.store.accept(arrival).await };
        let mut flight = loop {
            if let Some(seen) = self.recent.get(key, arrival.at.earliest()) {
                return self.repeated(&arrival, &seen).await;
            }
            match self.flights.begin(key).await {
                Ok(flight) => break flight,
                // Each gets an answer of its own. Another copy's is not ours: that it was a replay of something else under
                // our id says nothing of us, since an id that is not signed can be put on any captured request.
                Err(known) if known => return self.store.accept(arrival).await,
                Err(_) => {}
            }
        };
        let seen = Seen {
            first: arrival.verified.delivery().id,
            body: beginning(&arrival),
            claimed_until: arrival.claimed_until,
        };
        let accepted = self.store.accept(arrival).await?;
        match accepted {
            Accepted::Stored => self.recent.put(key, &seen),
            // Neither tells what the first one's body was, nor until when it is claimed.
            Accepted::Duplicate { .. } | Accepted::Replay { .. } => flight.note_known(),
        }
        Ok(accepted)
    }

    async fn repeated(&self, arrival: &Arrival, seen: &Seen) -> Result<Accepted, StoreError> {
        if arrival.keys.id.is_none() {
            return Ok(Accepted::Replay { first: seen.first });
        }
        if arrival.revive_dead {
            self.store.revive(seen.first, arrival.at.steady.time).await?;
        }
        Ok(Accepted::Duplicate { first: seen.first, conflict: seen.body != beginning(arrival) })
    }
}

/// The beginning of the digest of its body, by which a repetition is told from a conflict.
fn beginning(arrival: &Arrival) -> u32 {
    let digest = arrival.verified.body_digest();
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use async_trait::async_trait;
    use bytes::Bytes;
    use http::{HeaderMap, Method};
    use tokio::sync::Notify;

    use super::*;
    use crate::clock::{Moment, Steady, Timestamp, from_milliseconds, later};
    use crate::dedup::Keys;
    use crate::delivery::{Delivery, Received};
    use crate::forward::Order;
    use crate::id::Id;
    use crate::secret::Secret;
    use crate::store::{Depth, HandedOver, Lease, Settlement, Swept, UseOfSecret};
    use crate::verify::{Enforcement, Message, NamedSecret, Signer, Verified, Verifier, Window, preset};

    /// Answers accepts from a script, each when it is let go.
    #[derive(Default)]
    struct Scripted {
        answers: Mutex<Vec<Result<Accepted, StoreError>>>,
        go: Notify,
        accepts: Mutex<usize>,
        revived: Mutex<usize>,
    }

    #[async_trait]
    impl Store for Scripted {
        async fn accept(&self, _: Arrival) -> Result<Accepted, StoreError> {
            *self.accepts.lock().unwrap() += 1;
            self.go.notified().await;
            self.answers.lock().unwrap().remove(0)
        }
        async fn revive(&self, _: Id, _: Timestamp) -> Result<u64, StoreError> {
            *self.revived.lock().unwrap() += 1;
            Ok(1)
        }
        async fn set_paused(&self, _: &str, _: bool) -> Result<(), StoreError> {
            Err(StoreError::Closed)
        }
        async fn hand_over(&self, _: Arc<str>, _: HandedOver) -> Result<bool, StoreError> {
            Err(StoreError::Closed)
        }
        async fn show_handed_over(&self, _: Arc<str>) -> Result<Vec<HandedOver>, StoreError> {
            Err(StoreError::Closed)
        }
        async fn note_uses(&self, _: Vec<UseOfSecret>) -> Result<(), StoreError> {
            Err(StoreError::Closed)
        }
        async fn uses(&self) -> Result<Vec<UseOfSecret>, StoreError> {
            Err(StoreError::Closed)
        }
        async fn lease(&self, _: &str, _: usize, _: Timestamp) -> Result<Vec<Lease>, StoreError> {
            Err(StoreError::Closed)
        }
        async fn next_due(&self, _: &str) -> Result<Option<Timestamp>, StoreError> {
            Err(StoreError::Closed)
        }
        async fn rein_in(&self, _: &str, _: Timestamp, _: Timestamp) -> Result<u64, StoreError> {
            Err(StoreError::Closed)
        }
        async fn arrange(&self, _: &str, _: Option<Arc<Order>>) -> Result<(), StoreError> {
            Err(StoreError::Closed)
        }
        async fn settle(&self, _: Settlement) -> Result<(), StoreError> {
            Err(StoreError::Closed)
        }
        async fn delivery(&self, _: Id) -> Result<Option<Delivery>, StoreError> {
            Err(StoreError::Closed)
        }
        async fn sweep(&self, _: Timestamp, _: Duration) -> Result<Swept, StoreError> {
            Err(StoreError::Closed)
        }
        fn depths(&self) -> Vec<(Arc<str>, Depth)> {
            Vec::new()
        }
        fn bytes(&self) -> u64 {
            0
        }
        fn fault(&self) -> Option<StoreError> {
            None
        }
        async fn close(&self) {}
    }

    const NOW: i64 = 1_800_000_000_000;

    /// A verified GitHub delivery, `after_ms` later than [`NOW`].
    fn verified(id: &str, body: &'static str, after_ms: i64) -> Arc<Verified> {
        let now = from_milliseconds(NOW + after_ms);
        let (scheme, secret) =
            (preset("github").unwrap().scheme.clone(), Secret::new("a secret of some length").unwrap());
        let body = Bytes::from(body);
        let message = Message { method: &Method::POST, url: "/", id: Some(id), event: None, body: &body };
        let headers: HeaderMap = Signer::new(scheme.clone(), &secret).unwrap().sign(&message, now).unwrap();
        let secret = NamedSecret { name: "s".into(), secret, not_before: None, not_after: None };
        let window = Window { past: Duration::from_secs(300), future: Duration::from_secs(300) };
        let verifier =
            Verifier::new("github".into(), scheme, vec![secret], window, Enforcement::Enforce, None).unwrap();
        let received = Received {
            id: Id::new(now, [7; 10]),
            source: "gh".into(),
            received_at: now,
            sender: [127, 0, 0, 1].into(),
            method: Method::POST,
            target: "/".to_owned(),
            headers,
            body,
        };
        Arc::new(verifier.verify(received).unwrap())
    }

    fn arrival(id: &str, body: &'static str, after_ms: i64) -> Arrival {
        let verified = verified(id, body, after_ms);
        let now = from_milliseconds(NOW + after_ms);
        Arrival {
            at: Moment { wall: now, steady: steady(now) },
            keys: Keys::of(&verified, true),
            claimed_until: later(now, Duration::from_secs(60)),
            destinations: vec!["legacy".into()],
            revive_dead: true,
            verified,
        }
    }

    fn gate(answers: Vec<Result<Accepted, StoreError>>) -> (Arc<Scripted>, Arc<Gate>) {
        let store = Arc::new(Scripted { answers: Mutex::new(answers), ..Scripted::default() });
        let gate = Gate::new(Arc::clone(&store) as Arc<dyn Store>, 1_000);
        (store, Arc::new(gate))
    }

    fn steady(time: Timestamp) -> Steady {
        Steady { time, behind: Duration::ZERO }
    }

    async fn in_flight(store: &Scripted, accepts: usize) {
        while *store.accepts.lock().unwrap() < accepts {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn concurrent_copies_wait_for_the_first() {
        let (store, gate) = gate(vec![Ok(Accepted::Stored)]);
        let claim = |gate: &Arc<Gate>| {
            let gate = Arc::clone(gate);
            tokio::spawn(async move { gate.claim(arrival("d-1", "{}", 0)).await.unwrap() })
        };
        let copies: Vec<_> = (0..100).map(|_| claim(&gate)).collect();
        in_flight(&store, 1).await;
        store.go.notify_one();
        let mut stored = 0;
        for copy in copies {
            match copy.await.unwrap() {
                Accepted::Stored => stored += 1,
                Accepted::Duplicate { conflict, .. } => assert!(!conflict),
                Accepted::Replay { .. } => panic!("not a replay"),
            }
        }
        assert_eq!((stored, *store.accepts.lock().unwrap()), (1, 1));
    }

    #[tokio::test]
    async fn the_next_copy_is_accepted_when_the_commit_of_the_first_fails() {
        let (store, gate) = gate(vec![Err(StoreError::Busy), Ok(Accepted::Stored)]);
        let claim = || {
            let gate = Arc::clone(&gate);
            tokio::spawn(async move { gate.claim(arrival("d-1", "{}", 0)).await })
        };
        let first = claim();
        in_flight(&store, 1).await;
        // Waits for the first, and takes over when it fails.
        let second = claim();
        store.go.notify_one();
        assert_eq!(first.await.unwrap(), Err(StoreError::Busy));
        in_flight(&store, 2).await;
        store.go.notify_one();
        assert_eq!(second.await.unwrap(), Ok(Accepted::Stored));
    }

    #[tokio::test]
    async fn a_cached_duplicate_still_revives_and_reports_conflicts_until_the_claim_ends() {
        let (store, gate) = gate(vec![Ok(Accepted::Stored), Ok(Accepted::Stored)]);
        store.go.notify_one();
        assert_eq!(gate.entries(), 0);
        assert_eq!(gate.claim(arrival("d-1", "{}", 0)).await, Ok(Accepted::Stored));
        assert_eq!(gate.entries(), 1);
        let duplicate = gate.claim(arrival("d-1", "other", 59_000)).await;
        assert!(matches!(duplicate, Ok(Accepted::Duplicate { conflict: true, .. })), "{duplicate:?}");
        assert_eq!(*store.revived.lock().unwrap(), 1);
        store.go.notify_one();
        assert_eq!(gate.claim(arrival("d-1", "{}", 60_000)).await, Ok(Accepted::Stored));
    }

    /// A wall clock set a day ahead used to end it.
    #[tokio::test]
    async fn a_cached_claim_is_not_ended_by_one_reading_alone() {
        let (store, gate) = gate(vec![Ok(Accepted::Stored)]);
        store.go.notify_one();
        assert_eq!(gate.claim(arrival("d-1", "{}", 0)).await, Ok(Accepted::Stored));
        for (wall_ms, steady_ms) in [(86_400_000, 59_000), (59_000, 86_400_000)] {
            let at = Moment {
                wall: from_milliseconds(NOW + wall_ms),
                steady: steady(from_milliseconds(NOW + steady_ms)),
            };
            let copy = Arrival { at, ..arrival("d-1", "{}", wall_ms) };
            let duplicate = gate.claim(copy).await;
            assert!(matches!(duplicate, Ok(Accepted::Duplicate { conflict: false, .. })), "{duplicate:?}");
        }
        assert_eq!(*store.accepts.lock().unwrap(), 1);
    }

    /// Captured bytes, sent again under an id that the provider is about to use, must not swallow the genuine delivery
    /// that arrives meanwhile: it used to be answered like the replay, 2xx and never stored.
    #[tokio::test]
    async fn a_replay_in_flight_does_not_swallow_the_genuine_delivery_of_its_id() {
        let first = Id::new(from_milliseconds(NOW), [1; 10]);
        let (store, gate) = gate(vec![Ok(Accepted::Replay { first }), Ok(Accepted::Stored)]);
        let claim = |body| {
            let gate = Arc::clone(&gate);
            tokio::spawn(async move { gate.claim(arrival("d-1", body, 0)).await })
        };
        let replay = claim("captured");
        in_flight(&store, 1).await;
        let genuine = claim("genuine");
        store.go.notify_one();
        assert_eq!(replay.await.unwrap(), Ok(Accepted::Replay { first }));
        in_flight(&store, 2).await;
        store.go.notify_one();
        assert_eq!(genuine.await.unwrap(), Ok(Accepted::Stored));
    }

    #[tokio::test]
    async fn copies_without_an_id_are_replays_and_wait_for_the_first() {
        let nameless = || {
            let arrival = arrival("d-1", "{}", 0);
            Arrival { keys: Keys { id: None, ..arrival.keys }, ..arrival }
        };
        let first = Id::new(from_milliseconds(NOW), [1; 10]);
        let own = nameless().verified.delivery().id;
        // The copies of what the store had known ask it themselves, all at once.
        for (answer, replay_of, asked) in
            [(Accepted::Stored, own, 1), (Accepted::Replay { first }, first, 10)]
        {
            let (store, gate) = gate(vec![Ok(answer); asked]);
            let copies: Vec<_> = (0..10)
                .map(|_| {
                    let gate = Arc::clone(&gate);
                    tokio::spawn(async move { gate.claim(nameless()).await.unwrap() })
                })
                .collect();
            in_flight(&store, 1).await;
            store.go.notify_one();
            in_flight(&store, asked).await;
            store.go.notify_waiters();
            let mut answers = Vec::new();
            for copy in copies {
                answers.push(copy.await.unwrap());
            }
            assert_eq!(answers.remove(0), answer);
            assert!(answers.iter().all(|copy| *copy == Accepted::Replay { first: replay_of }), "{answers:?}");
            assert_eq!(*store.accepts.lock().unwrap(), asked);
        }
    }

    /// After a restart a duplicate used to be remembered as if it were the first: with its own body, so that the next
    /// genuine copy counted as a conflict, and for a whole `ttl` from its own receipt, so that the id stayed claimed
    /// here for up to twice as long as in the store.
    #[tokio::test]
    async fn a_duplicate_of_an_earlier_run_is_not_remembered_as_the_first() {
        let first = Id::new(from_milliseconds(NOW - 50_000), [1; 10]);
        let duplicate = |conflict| Ok(Accepted::Duplicate { first, conflict });
        let (store, gate) = gate(vec![duplicate(true), duplicate(false), Ok(Accepted::Stored)]);
        for (body, after_ms, expected) in
            [("other", 0, duplicate(true)), ("{}", 1, duplicate(false)), ("{}", 10_000, Ok(Accepted::Stored))]
        {
            store.go.notify_one();
            assert_eq!(gate.claim(arrival("d-1", body, after_ms)).await, expected);
        }
    }

    #[tokio::test]
    async fn a_replay_is_not_remembered_under_its_made_up_id() {
        let first = Id::new(from_milliseconds(NOW), [1; 10]);
        let (store, gate) = gate(vec![Ok(Accepted::Replay { first }); 2]);
        for _ in 0..2 {
            store.go.notify_one();
            assert_eq!(gate.claim(arrival("d-2", "{}", 0)).await, Ok(Accepted::Replay { first }));
        }
    }
}
