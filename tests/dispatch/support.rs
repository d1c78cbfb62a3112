//! A store in memory, destinations with short delays, and a way to wait for what must happen.

use std::num::NonZeroUsize;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use countersign::clock::{Clock, Timestamp};
use countersign::config::{BackendTls, Destination};
use countersign::delivery::{Delivery, Verification};
use countersign::dispatch::Lanes;
use countersign::forward::{
    Concurrency, Input, Order, Outcome, Progress, RetryPolicy, Schedule, StatusPattern, step,
};
use countersign::id::Id;
use countersign::metrics::Metrics;
use countersign::shape::Shape;
use countersign::store::{
    Accepted, Arrival, AttemptRecord, Depth, HandedOver, Lease, Outlet, Settlement, Store, StoreError, Swept,
    UseOfSecret,
};
use http::{HeaderMap, Method};

/// One forward.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) delivery: Arc<Delivery>,
    pub(crate) destination: Arc<str>,
    pub(crate) progress: Progress,
    pub(crate) pending_since: Timestamp,
    pub(crate) replay: bool,
    pub(crate) records: Vec<AttemptRecord>,
}

impl Row {
    fn lease(&self) -> Lease {
        let Progress::InFlight { attempt } = self.progress else { panic!("not in flight: {self:?}") };
        Lease {
            delivery: Arc::clone(&self.delivery),
            destination: Arc::clone(&self.destination),
            attempt,
            pending_since: self.pending_since,
            replay: self.replay,
            waited: Duration::ZERO,
        }
    }

    fn advance(&mut self, input: Input, now: Timestamp) {
        self.progress = step(&retry(), self.pending_since, self.progress, input, now, 0.0).0;
    }
}

/// Forwards in memory; moves them as `forward::step` says.
#[derive(Default)]
pub(crate) struct MemoryStore {
    rows: Mutex<Vec<Row>>,
    /// So many more settlements fail.
    pub(crate) failing_settlements: AtomicU32,
    /// So many more leases fail.
    pub(crate) failing_leases: AtomicU32,
    /// So many more attempts to rein forwards in fail.
    pub(crate) failing_rein_ins: AtomicU32,
    /// A write has failed: nothing works any more.
    pub(crate) latched: AtomicBool,
}

impl MemoryStore {
    pub(crate) fn rows(&self) -> MutexGuard<'_, Vec<Row>> {
        self.rows.lock().unwrap()
    }

    /// A forward that is already there when the lanes start.
    pub(crate) fn put(&self, delivery: Delivery, destination: &str) {
        let now = delivery.received_at;
        self.rows().push(Row {
            delivery: Arc::new(delivery),
            destination: destination.into(),
            progress: Progress::Waiting { due_at: now, attempts: 0 },
            pending_since: now,
            replay: false,
            records: Vec::new(),
        });
    }

    fn check_latch(&self) -> Result<(), StoreError> {
        let latched = self.latched.load(Ordering::SeqCst);
        if latched { Err(StoreError::Latched("on purpose".to_owned())) } else { Ok(()) }
    }
}

fn fails(countdown: &AtomicU32) -> bool {
    countdown.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

#[async_trait]
impl Store for MemoryStore {
    async fn accept(&self, _arrival: Arrival) -> Result<Accepted, StoreError> {
        unreachable!("deliveries are put in directly: only verify can make an arrival")
    }

    async fn revive(&self, id: Id, now: Timestamp) -> Result<u64, StoreError> {
        let mut rows = self.rows();
        let dead = rows.iter_mut().filter(|row| row.delivery.id == id && row.progress == Progress::Dead);
        Ok(dead
            .map(|row| {
                row.advance(Input::Requeue, now);
                row.pending_since = now;
                row.replay = true;
            })
            .count() as u64)
    }

    async fn set_paused(&self, _: &str, _: bool) -> Result<(), StoreError> {
        unreachable!("only operators pause")
    }

    async fn hand_over(&self, _: Arc<str>, _: HandedOver) -> Result<bool, StoreError> {
        unreachable!("only handshakes hand over")
    }

    async fn show_handed_over(&self, _: Arc<str>) -> Result<Vec<HandedOver>, StoreError> {
        unreachable!("only handshakes hand over")
    }

    async fn note_uses(&self, _: Vec<UseOfSecret>) -> Result<(), StoreError> {
        unreachable!("dispatch knows no secrets of senders")
    }

    async fn uses(&self) -> Result<Vec<UseOfSecret>, StoreError> {
        unreachable!("dispatch knows no secrets of senders")
    }

    async fn lease(&self, destination: &str, limit: usize, now: Timestamp) -> Result<Vec<Lease>, StoreError> {
        if fails(&self.failing_leases) {
            return Err(StoreError::Busy);
        }
        self.check_latch()?;
        let mut rows = self.rows();
        let due = rows.iter_mut().filter(|row| {
            &*row.destination == destination
                && matches!(row.progress, Progress::Waiting { due_at, .. } if due_at <= now)
        });
        Ok(due
            .take(limit)
            .map(|row| {
                row.advance(Input::Begin, now);
                row.lease()
            })
            .collect())
    }

    async fn next_due(&self, destination: &str) -> Result<Option<Timestamp>, StoreError> {
        self.check_latch()?;
        let rows = self.rows();
        let waiting = rows.iter().filter(|row| &*row.destination == destination);
        Ok(waiting
            .filter_map(|row| match row.progress {
                Progress::Waiting { due_at, .. } => Some(due_at),
                Progress::InFlight { .. } | Progress::Delivered | Progress::Dead | Progress::Cancelled => {
                    None
                }
            })
            .min())
    }

    async fn rein_in(&self, destination: &str, _: Timestamp, latest: Timestamp) -> Result<u64, StoreError> {
        if fails(&self.failing_rein_ins) {
            return Err(StoreError::DiskFull);
        }
        let mut count = 0;
        for row in self.rows().iter_mut().filter(|row| &*row.destination == destination) {
            if let Progress::Waiting { due_at, .. } = &mut row.progress
                && *due_at > latest
            {
                *due_at = latest;
                count += 1;
            }
        }
        Ok(count)
    }

    async fn arrange(&self, _: &str, _: Option<Arc<Order>>) -> Result<(), StoreError> {
        Ok(())
    }

    async fn settle(&self, settlement: Settlement) -> Result<(), StoreError> {
        if fails(&self.failing_settlements) {
            return Err(StoreError::Busy);
        }
        self.check_latch()?;
        let mut rows = self.rows();
        let row = rows.iter_mut().find(|row| {
            row.delivery.id == settlement.id
                && row.destination == settlement.destination
                && row.progress == Progress::InFlight { attempt: settlement.attempt }
        });
        let row = row.expect("an attempt is settled once");
        row.progress = settlement.next;
        row.records.extend(settlement.record);
        Ok(())
    }

    async fn delivery(&self, _id: Id) -> Result<Option<Delivery>, StoreError> {
        Ok(None)
    }

    fn depths(&self) -> Vec<(Arc<str>, Depth)> {
        Vec::new()
    }

    async fn sweep(&self, _now: Timestamp, _keep_delivered: Duration) -> Result<Swept, StoreError> {
        Ok(Swept::default())
    }

    fn bytes(&self) -> u64 {
        0
    }

    fn fault(&self) -> Option<StoreError> {
        None
    }

    async fn close(&self) {}
}

/// Lanes on a store in memory.
pub(crate) struct Gateway {
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) metrics: Metrics,
}

impl Gateway {
    pub(crate) fn start(destinations: impl IntoIterator<Item = Destination>) -> Self {
        Self::start_with(Arc::default(), destinations)
    }

    pub(crate) fn start_with(
        store: Arc<MemoryStore>,
        destinations: impl IntoIterator<Item = Destination>,
    ) -> Self {
        Self::start_by(Clock::system(), store, destinations)
    }

    /// The same, by a clock of the test's own.
    pub(crate) fn start_by(
        clock: Clock,
        store: Arc<MemoryStore>,
        destinations: impl IntoIterator<Item = Destination>,
    ) -> Self {
        let metrics = Metrics::new();
        let lanes = Lanes::new(clock, metrics.clone());
        lanes.apply(&destinations.into_iter().map(Arc::new).collect::<Vec<_>>());
        let shared: Arc<dyn Store> = store.clone();
        lanes.start(&shared);
        Self { store, lanes, metrics }
    }

    /// Commits a forward as an engine does: into a free place of the lane, or as waiting.
    pub(crate) fn forward(&self, delivery: Delivery, destination: &str) {
        let slot = self.lanes.reserve(destination);
        let now = delivery.received_at;
        self.store.put(delivery, destination);
        match slot {
            Some(slot) => {
                let lease = {
                    let mut rows = self.store.rows();
                    let row = rows.last_mut().unwrap();
                    row.advance(Input::Begin, now);
                    row.lease()
                };
                self.lanes.dispatch(lease, slot);
            }
            None => self.lanes.wake(destination),
        }
    }

    /// Brings the only forward back.
    pub(crate) async fn revive(&self) {
        let row = self.row();
        assert_eq!(self.store.revive(row.delivery.id, Clock::system().now()).await, Ok(1));
        self.lanes.wake(&row.destination);
    }

    pub(crate) fn count(&self, wanted: impl Fn(Progress) -> bool) -> usize {
        self.store.rows().iter().filter(|row| wanted(row.progress)).count()
    }

    pub(crate) fn delivered(&self) -> usize {
        self.count(|progress| progress == Progress::Delivered)
    }

    /// The only forward.
    pub(crate) fn row(&self) -> Row {
        let rows = self.store.rows();
        assert_eq!(rows.len(), 1);
        rows[0].clone()
    }

    /// Waits until the only forward has had an attempt settled, and returns the first one's record.
    pub(crate) async fn first_record(&self) -> AttemptRecord {
        eventually("an attempt is settled", || !self.row().records.is_empty()).await;
        self.row().records[0].clone()
    }

    pub(crate) fn attempts(&self, destination: &str, outcome: Outcome) -> u64 {
        self.metrics.forward_attempts.with_label_values(&[destination, outcome.label()]).get()
    }
}

/// Retries soon, and for a minute.
pub(crate) fn retry() -> RetryPolicy {
    RetryPolicy {
        schedule: Schedule::Exponential {
            initial: Duration::from_millis(10),
            factor: 1.0,
            max: Duration::from_millis(10),
        },
        max_age: Duration::from_secs(60),
        full_jitter: false,
        statuses: vec![
            StatusPattern::Exact(408),
            StatusPattern::Exact(425),
            StatusPattern::Exact(429),
            StatusPattern::Class(5),
        ],
    }
}

/// Does not retry within the time of a test.
pub(crate) fn retry_late() -> RetryPolicy {
    RetryPolicy {
        schedule: Schedule::List(vec![Duration::from_secs(3_600)]),
        max_age: Duration::from_secs(7_200),
        ..retry()
    }
}

pub(crate) fn destination(name: &str, url: &str) -> Destination {
    Destination {
        name: name.into(),
        url: url.parse().unwrap(),
        allow_private: true,
        timeout: Duration::from_secs(10),
        connect_timeout: Duration::from_secs(10),
        tls: BackendTls::default(),
        concurrency: Concurrency::Fixed(NonZeroUsize::new(4).unwrap()),
        order: None,
        rate: None,
        retry: retry(),
        breaker: None,
        sign: None,
        headers: Vec::new(),
        shape: Shape::default(),
    }
}

pub(crate) fn delivery(body: &[u8]) -> Delivery {
    let now = Clock::system().now();
    Delivery {
        id: Id::new(now, std::array::from_fn(|_| fastrand::u8(..))),
        source: "shop".into(),
        delivery_id: Some("evt_1".to_owned()),
        event: Some("order.paid".to_owned()),
        received_at: now,
        sender: "192.0.2.7".parse().unwrap(),
        method: Method::POST,
        target: "/webhooks/shop".to_owned(),
        headers: HeaderMap::new(),
        body: Bytes::copy_from_slice(body),
        verification: Verification {
            verified: true,
            scheme: "custom".into(),
            secret: None,
            skew_seconds: None,
        },
    }
}

/// Runs the test of this name (with its module) again in a process of its own, which a shell has prepared: limits and
/// environment belong to a whole process, and other tests run in this one. True in the new process.
pub(crate) fn is_alone(test: &str, prepare: &str) -> bool {
    const MARK: &str = "COUNTERSIGN_TEST_ALONE";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let output = Command::new("sh")
        .args(["-c", &format!("{prepare} && exec \"$0\" --exact \"$1\" --nocapture")])
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .env(MARK, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let passed = output.status.success() && text.contains("1 passed");
    assert!(passed, "{text}{}", String::from_utf8_lossy(&output.stderr));
    false
}

/// Waits until `holds` does; ten seconds are far more than anything here needs.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(
        tokio::time::timeout(Duration::from_secs(10), waiting).await.is_ok(),
        "it never happened: {what}"
    );
}
