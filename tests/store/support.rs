//! What the suite stands on: an engine that can be opened again, lanes that remember, and genuine deliveries.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use countersign::clock::{Moment, Steady, Timestamp, later};
use countersign::dedup::Keys;
use countersign::delivery::Received;
use countersign::forward::{Order, Progress};
use countersign::id::Id;
use countersign::secret::Secret;
use countersign::store::operators::Operators;
use countersign::store::{Accepted, Arrival, AttemptRecord, Depth, Lease, Outlet, Settlement, Slot, Store};
use countersign::verify::{Enforcement, Message, NamedSecret, Signer, Verified, Verifier, Window, preset};
use http::{HeaderMap, Method};
use tokio::sync::Semaphore;

/// For how long drafts claim their keys.
pub(crate) const CLAIM: Duration = Duration::from_secs(1_000);

/// Both sides of an engine.
pub(crate) trait Whole: Store + Operators {}

impl<S: Store + Operators> Whole for S {}

/// What makes a store; opened again, it finds what was stored.
#[async_trait]
pub(crate) trait Engine: Send + Sync {
    async fn open(&self, outlet: Arc<dyn Outlet>) -> Arc<dyn Whole>;
}

/// An engine with an open store and its lanes.
pub(crate) struct Bench {
    pub(crate) store: Arc<dyn Whole>,
    pub(crate) lanes: Arc<Lanes>,
    engine: Box<dyn Engine>,
}

impl Bench {
    pub(crate) async fn new(engine: Box<dyn Engine>) -> Self {
        let lanes = Arc::new(Lanes::default());
        let store = engine.open(Arc::clone(&lanes) as _).await;
        Self { store, lanes, engine }
    }

    /// Ends the process, as far as the store can tell, and starts the next.
    pub(crate) async fn restart(&mut self) {
        self.store.close().await;
        self.lanes = Arc::new(Lanes::default());
        self.store = self.engine.open(Arc::clone(&self.lanes) as _).await;
    }

    /// Stores a draft that must be new, and returns its id.
    pub(crate) async fn stored(&self, draft: Draft) -> Id {
        let arrival = draft.arrival();
        let id = arrival.verified.delivery().id;
        assert_eq!(self.store.accept(arrival).await.unwrap(), Accepted::Stored);
        id
    }

    /// Leases everything of the lane that is due.
    pub(crate) async fn leased(&self, destination: &str, now: Timestamp) -> Vec<Lease> {
        self.store.lease(destination, 100, now).await.unwrap()
    }

    /// Leases the one forward that must be due.
    pub(crate) async fn leased_one(&self, destination: &str, now: Timestamp) -> Lease {
        let mut leases = self.leased(destination, now).await;
        assert_eq!(leases.len(), 1, "{leases:?}");
        leases.remove(0)
    }

    /// Ends an attempt at `now`.
    pub(crate) async fn settle(&self, lease: &Lease, next: Progress, now: Timestamp) {
        let record = AttemptRecord {
            started_at: now,
            duration: Duration::ZERO,
            outcome: "test",
            status: Some(200),
            detail: String::new(),
        };
        self.store.settle(settlement(lease, next, Some(record))).await.unwrap();
    }

    pub(crate) fn depth(&self, destination: &str) -> Depth {
        let depths = self.store.depths();
        let found = depths.iter().find(|(name, _)| &**name == destination);
        found.map(|(_, depth)| *depth).unwrap_or_default()
    }
}

pub(crate) fn settlement(lease: &Lease, next: Progress, record: Option<AttemptRecord>) -> Settlement {
    Settlement {
        id: lease.delivery.id,
        destination: Arc::clone(&lease.destination),
        attempt: lease.attempt,
        pending_since: lease.pending_since,
        next,
        record,
    }
}

/// Lanes without places unless opened, which remember what they were told.
#[derive(Default)]
pub(crate) struct Lanes {
    places: Mutex<BTreeMap<String, Arc<Semaphore>>>,
    dispatched: Mutex<Vec<(Lease, Slot)>>,
    woken: Mutex<Vec<String>>,
    orders: Mutex<BTreeMap<String, Arc<Order>>>,
    /// How often an order was asked for, and a place given back.
    pub(crate) asked: AtomicU64,
    pub(crate) given_back: AtomicU64,
}

impl Lanes {
    pub(crate) fn open(&self, destination: &str, places: usize) {
        self.places.lock().unwrap().insert(destination.to_owned(), Arc::new(Semaphore::new(places)));
    }

    /// Has the forwards of a destination wait for each other, or not.
    pub(crate) fn set_order(&self, destination: &str, order: Option<Arc<Order>>) {
        let mut orders = self.orders.lock().unwrap();
        match order {
            Some(order) => orders.insert(destination.to_owned(), order),
            None => orders.remove(destination),
        };
    }

    /// What has been dispatched, once it is `count`: the store answers before it dispatches.
    pub(crate) async fn dispatched(&self, count: usize) -> Vec<Lease> {
        eventually(|| self.dispatched.lock().unwrap().len() >= count).await;
        self.dispatched.lock().unwrap().drain(..).map(|(lease, _)| lease).collect()
    }

    /// Waits until the lane has been woken, and forgets it.
    pub(crate) async fn woken(&self, destination: &str) {
        eventually(|| self.woken.lock().unwrap().iter().any(|name| name == destination)).await;
        self.woken.lock().unwrap().clear();
    }
}

impl Outlet for Lanes {
    fn reserve(&self, destination: &str) -> Option<Slot> {
        let places = self.places.lock().unwrap().get(destination).cloned()?;
        places.try_acquire_owned().ok()
    }

    fn give_back(&self, _: &str, _: Slot) {
        self.given_back.fetch_add(1, Ordering::SeqCst);
    }

    fn dispatch(&self, lease: Lease, slot: Slot) {
        self.dispatched.lock().unwrap().push((lease, slot));
    }

    fn wake(&self, destination: &str) {
        self.woken.lock().unwrap().push(destination.to_owned());
    }

    fn order(&self, destination: &str) -> Option<Arc<Order>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.orders.lock().unwrap().get(destination).cloned()
    }
}

/// Waits for another thread to get to what is certain to come.
pub(crate) async fn eventually(happened: impl Fn() -> bool) {
    let waiting = async {
        while !happened() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("it happens within 10 s");
}

/// A delivery to be.
#[derive(Clone)]
pub(crate) struct Draft {
    pub(crate) source: &'static str,
    pub(crate) id: Option<&'static str>,
    pub(crate) body: Bytes,
    pub(crate) headers: HeaderMap,
    pub(crate) received_at: Timestamp,
    pub(crate) guarded: bool,
    pub(crate) to: Vec<&'static str>,
    pub(crate) revive_dead: bool,
}

/// A delivery with this id, to destination `a`, at second 0.
pub(crate) fn draft(id: &'static str) -> Draft {
    Draft {
        source: "source",
        id: Some(id),
        body: Bytes::from_static(b"body"),
        headers: HeaderMap::new(),
        received_at: at(0),
        guarded: false,
        to: vec!["a"],
        revive_dead: false,
    }
}

/// Seconds after the time when the suite begins.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

/// A moment by both readings.
pub(crate) fn moment(wall: Timestamp, steady: Timestamp) -> Moment {
    Moment { wall, steady: Steady { time: steady, behind: Duration::ZERO } }
}

impl Draft {
    pub(crate) fn arrival(self) -> Arrival {
        let verified = self.verified();
        Arrival {
            keys: Keys::of(&verified, self.guarded),
            verified: Arc::new(verified),
            at: moment(self.received_at, self.received_at),
            claimed_until: later(self.received_at, CLAIM),
            destinations: self.to.iter().map(|name| Arc::from(*name)).collect(),
            revive_dead: self.revive_dead,
        }
    }

    /// Signed and verified as GitHub's, whose signature covers the body only.
    fn verified(&self) -> Verified {
        static CHANCE: AtomicU64 = AtomicU64::new(0);
        let github = preset("github").unwrap();
        let secret = Secret::new("a secret of the test").unwrap();
        let method = Method::POST;
        let url = "https://hooks.example.com/webhooks/source";
        let message = Message { method: &method, url, id: self.id, event: Some("push"), body: &self.body };
        let signer = Signer::new(github.scheme.clone(), &secret).unwrap();
        let mut headers = signer.sign(&message, self.received_at).unwrap();
        headers.extend(self.headers.clone());

        let secrets = vec![NamedSecret { name: "test".into(), secret, not_before: None, not_after: None }];
        let minute = Duration::from_mins(1);
        let window = Window { past: minute, future: minute };
        let scheme = github.scheme.clone();
        let verifier =
            Verifier::new(github.name.clone(), scheme, secrets, window, Enforcement::Enforce, None).unwrap();
        let mut chance = [0; 10];
        chance[2..].copy_from_slice(&CHANCE.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        let received = Received {
            id: Id::new(self.received_at, chance),
            source: self.source.into(),
            received_at: self.received_at,
            sender: "2001:db8::1".parse().unwrap(),
            method,
            target: "/webhooks/source?a=1&b=%20".to_owned(),
            headers,
            body: self.body.clone(),
        };
        verifier.verify(received).unwrap()
    }
}
