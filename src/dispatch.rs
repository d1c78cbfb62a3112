//! Brings stored deliveries to their backends: one lane per destination, so that a backend that is slow or down delays
//! neither another nor any answer to a sender. What happens after an attempt is decided in `forward`; here it is done.
//!
//! The usual way of a forward is from the store's writer directly into a free place of its lane ([`Outlet`]). When there
//! is none it waits in the store, and the lane's refill task leases it when a place is free. Only attempts that are
//! under way are held in memory.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::config::Destination;
use crate::forward::Order;
use crate::id::Id;
use crate::metrics::Metrics;
use crate::replies::{Backends, Expected, Replies};
use crate::store::{Lease, Outlet, Share, Slot, Standing, Store};

mod attempt;
mod client;
mod failure;
mod lane;
mod meter;
mod passing;
mod request;
mod resolve;
mod trace;

use client::Tls;
use lane::Lane;
pub use lane::{LaneState, LaneStatus};

/// The lanes of all destinations.
pub struct Lanes {
    shared: Arc<Shared>,
    /// Lanes whose destination is gone stay here, stopped: a forward may be on its way into one.
    lanes: RwLock<HashMap<Arc<str>, Arc<Lane>>>,
    /// Also of destinations that have no lane, should they come back.
    paused: RwLock<HashSet<String>>,
    /// None before the start and after the drain.
    store: RwLock<Option<Arc<dyn Store>>>,
}

/// What all lanes use.
struct Shared {
    clock: Clock,
    metrics: Metrics,
    /// What monotonic time is counted from.
    origin: Instant,
    /// The store's writer is a thread of its own, outside of the runtime.
    runtime: Handle,
    tasks: TaskTracker,
    tls: Arc<Tls>,
    replies: Arc<Replies>,
    /// Whether other gateways use the same store, so that a lane has only what it is given.
    is_shared: AtomicBool,
    /// No attempt begins any more.
    stop: CancellationToken,
    /// Attempts under way end now.
    cut: CancellationToken,
}

impl Shared {
    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }
}

impl Lanes {
    /// No lanes yet. They take forwards after [`apply`](Self::apply) and [`start`](Self::start).
    ///
    /// # Panics
    /// Outside of a tokio runtime; attempts run on the one that it is called in.
    pub fn new(clock: Clock, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::new(Shared {
                clock,
                metrics,
                origin: Instant::now(),
                runtime: Handle::current(),
                tasks: TaskTracker::new(),
                tls: Arc::default(),
                replies: Arc::default(),
                is_shared: AtomicBool::new(false),
                stop: CancellationToken::new(),
                cut: CancellationToken::new(),
            }),
            lanes: RwLock::default(),
            paused: RwLock::default(),
            store: RwLock::default(),
        })
    }

    /// Begins to forward what waits in `store`, for the lanes there are and those to come.
    pub fn start(&self, store: &Arc<dyn Store>) {
        let lanes = read(&self.lanes);
        *write(&self.store) = Some(Arc::clone(store));
        for lane in lanes.values() {
            self.run(lane, store);
        }
    }

    /// Has exactly these destinations: new ones get a lane, known ones take over their new settings (what is under
    /// way keeps its own), and the lanes of others stop. What waits for those stays in the store.
    pub fn apply(&self, destinations: &[Arc<Destination>]) {
        let mut lanes = write(&self.lanes);
        for lane in lanes.values() {
            if !destinations.iter().any(|destination| destination.name == lane.name) {
                lane.retire();
            }
        }
        let store = read(&self.store).clone();
        for destination in destinations {
            match lanes.get(&destination.name).filter(|lane| !lane.stop.is_cancelled()) {
                Some(lane) => lane.update(Arc::clone(destination)),
                None => {
                    let lane = Lane::new(Arc::clone(&self.shared), Arc::clone(destination));
                    lane.pause(read(&self.paused).contains(&*destination.name));
                    if let Some(store) = &store {
                        self.run(&lane, store);
                    }
                    lanes.insert(Arc::clone(&destination.name), lane);
                }
            }
        }
    }

    /// All lanes that take forwards, sorted by destination.
    pub fn states(&self) -> Vec<LaneStatus> {
        let lanes = read(&self.lanes);
        let alive = lanes.values().filter(|lane| !lane.stop.is_cancelled());
        let mut states: Vec<_> = alive.map(|lane| lane.status()).collect();
        states.sort_by(|a, b| a.destination.cmp(&b.destination));
        states
    }

    /// Begins no more attempts at `destination`; those under way end by themselves. False when there is no such lane.
    pub fn pause(&self, destination: &str) -> bool {
        write(&self.paused).insert(destination.to_owned());
        self.lane(destination).map(|lane| lane.pause(true)).is_some()
    }

    /// Undoes [`pause`](Self::pause). False when there is no such lane.
    pub fn resume(&self, destination: &str) -> bool {
        write(&self.paused).remove(destination);
        self.lane(destination).map(|lane| lane.pause(false)).is_some()
    }

    /// Has a destination whose breaker is open be probed now. False when there is no such lane, or it waits for no probe.
    pub fn probe(&self, destination: &str) -> bool {
        self.lane(destination).is_some_and(|lane| lane.probe())
    }

    /// Begins no more attempts, leaves those under way until `patience` has ended, then cuts them off. What had not been
    /// sent is given back, what was cut off counts as an attempt; both are due at once after the next start. The store
    /// must stay open until it returns, which is when all is written down, or at `until`.
    pub async fn drain(&self, patience: impl Future<Output = ()>, until: Instant) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        tokio::select! {
            () = self.shared.tasks.wait() => {}
            () = patience => {
                tracing::info!(running = self.shared.tasks.len(), "cutting attempts off; they are stored");
                self.shared.cut.cancel();
                if timeout_at(until, self.shared.tasks.wait()).await.is_err() {
                    tracing::warn!(running = self.shared.tasks.len(), "attempts could not be settled");
                }
            }
        }
        *write(&self.store) = None;
    }

    fn lane(&self, destination: &str) -> Option<Arc<Lane>> {
        read(&self.lanes).get(destination).cloned()
    }

    fn run(&self, lane: &Arc<Lane>, store: &Arc<dyn Store>) {
        let refill = Arc::clone(lane).refill(Arc::clone(store));
        self.shared.tasks.spawn_on(refill, &self.shared.runtime);
    }
}

impl Outlet for Lanes {
    fn reserve(&self, destination: &str) -> Option<Slot> {
        self.lane(destination)?.reserve()
    }

    fn give_back(&self, destination: &str, slot: Slot) {
        if let Some(lane) = self.lane(destination) {
            lane.give_back(slot);
        }
    }

    fn dispatch(&self, lease: Lease, slot: Slot) {
        // Without a lane there was no slot; without a store it is drained, and the next start finds it interrupted.
        if let (Some(lane), Some(store)) = (self.lane(&lease.destination), read(&self.store).clone()) {
            let attempt = attempt::run(lane, store, lease, slot, Duration::ZERO);
            self.shared.tasks.spawn_on(attempt, &self.shared.runtime);
        }
    }

    fn wake(&self, destination: &str) {
        if let Some(lane) = self.lane(destination) {
            lane.wake();
        }
    }

    fn order(&self, destination: &str) -> Option<Arc<Order>> {
        self.lane(destination)?.order()
    }

    fn set_paused(&self, destination: &str, paused: bool) {
        if paused {
            self.pause(destination)
        } else {
            self.resume(destination)
        };
    }

    fn standings(&self) -> Vec<Standing> {
        // A lane that is made meanwhile is either among these, or has nothing to begin with.
        self.shared.is_shared.store(true, Ordering::SeqCst);
        read(&self.lanes).values().filter_map(|lane| lane.standing()).collect()
    }

    fn share(&self, destination: &str, share: Share) -> usize {
        self.lane(destination).map_or(0, |lane| lane.share(share))
    }
}

impl Backends for Lanes {
    /// A lane that is only full attempts it when a place is free, which may be soon.
    fn expect(&self, id: Id, destination: &str) -> Option<Expected> {
        let lane = self.lane(destination)?;
        let status = lane.status();
        let attempts = !lane.stop.is_cancelled() && status.state == LaneState::Open && status.concurrency > 0;
        attempts.then(|| self.shared.replies.expect(id))
    }
}

/// Nothing that holds these locks leaves a half-made change when it panics.
fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
