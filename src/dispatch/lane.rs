//! The lane of one destination: its places, settings and breaker. It holds in memory only what is being attempted;
//! everything else waits in the store, from where `refill` takes it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::client::{Endpoint, Tls};
use crate::config::{BackendTls, Destination};
use crate::forward::{Adaptive, Breaker, Concurrency, Fault, Order, Outcome};
use crate::rate::Limiter;
use crate::store::{Share, Slot};

mod refill;
mod share;

/// Ends of attempts that may wait to be written down while other attempts begin. A crash repeats so many forwards at most,
/// beside those that are running.
const ENDS_MAX: usize = 128;

/// What a lane does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneState {
    /// Attempts are made as forwards come.
    Open,
    /// An operator has paused it.
    Paused,
    /// The breaker is open: nothing is attempted until a probe is due.
    Broken,
    /// One attempt is under way to see whether the backend is back.
    Probing,
}

impl LaneState {
    /// All states, for series that exist from the start.
    pub const ALL: [Self; 4] = [Self::Open, Self::Paused, Self::Broken, Self::Probing];

    /// The metrics' label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Paused => "paused",
            Self::Broken => "broken",
            Self::Probing => "probing",
        }
    }
}

/// A lane as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneStatus {
    /// The destination.
    pub destination: Arc<str>,
    /// What it does.
    pub state: LaneState,
    /// Attempts that it may run at once.
    pub concurrency: usize,
    /// Attempts that it runs now.
    pub running: usize,
}

pub(super) struct Lane {
    pub(super) shared: Arc<Shared>,
    pub(super) name: Arc<str>,
    /// One permit per attempt that may run.
    pub(super) slots: Arc<Semaphore>,
    /// One permit per end of an attempt that may wait for the store.
    pub(super) ends: Semaphore,
    /// Set when the destination is gone or the gateway drains: no attempt begins any more.
    pub(super) stop: CancellationToken,
    /// Wakes the refill task; keeps one call for when it is busy, so none is lost.
    poke: Notify,
    state: Mutex<State>,
}

struct State {
    destination: Arc<Destination>,
    endpoint: Arc<Endpoint>,
    limiter: Option<Limiter>,
    breaker: Breaker,
    /// The breaker as the lanes of other gateways know it.
    told: Breaker,
    /// What this gateway has of what the destination allows; all, unless it shares a store.
    share: Option<Share>,
    paused: bool,
    /// Older forwards may be waiting in the store: they go first, so nothing is let in directly.
    behind: bool,
    /// Attempts that may run at once.
    concurrency: usize,
    /// Says how many those are, unless they are fixed.
    adaptive: Option<Adaptive>,
    /// Which forwards wait for each other: the destination's order, once the refill task has taken it over.
    order: Option<Arc<Order>>,
    /// What waits has yet to be brought into that order: nothing begins before.
    unarranged: bool,
    /// Permits that a lowered concurrency has yet to take back from running attempts.
    excess: usize,
    running: usize,
}

impl State {
    /// Whether attempts may begin at all.
    fn may_begin(&self) -> bool {
        !self.paused && self.share.is_none_or(|share| Instant::now() < share.until)
    }

    fn lane_state(&self) -> LaneState {
        match self.breaker {
            _ if self.paused => LaneState::Paused,
            Breaker::Closed { .. } => LaneState::Open,
            Breaker::Broken { .. } => LaneState::Broken,
            Breaker::Probing { .. } => LaneState::Probing,
        }
    }
}

impl Lane {
    pub(super) fn new(shared: Arc<Shared>, destination: Arc<Destination>) -> Arc<Self> {
        let share = shared.is_shared.load(Ordering::SeqCst).then(share::none);
        let adaptive = adaptive(&destination, share, None);
        let concurrency = allowed(&destination, share, adaptive.as_ref());
        let lane = Self {
            name: Arc::clone(&destination.name),
            slots: Arc::new(Semaphore::new(concurrency)),
            ends: Semaphore::new(ENDS_MAX),
            stop: shared.stop.child_token(),
            poke: Notify::new(),
            state: Mutex::new(State {
                endpoint: endpoint(&destination, &shared),
                limiter: limiter(&destination, share),
                breaker: Breaker::new(),
                told: Breaker::new(),
                share,
                paused: false,
                // What an earlier run of the gateway left is older than anything that comes now.
                behind: true,
                concurrency,
                adaptive,
                order: destination.order.clone(),
                unarranged: true,
                excess: 0,
                running: 0,
                destination,
            }),
            shared,
        };
        for outcome in Outcome::ALL {
            lane.shared.metrics.forward_attempts.with_label_values(&[&*lane.name, outcome.label()]);
        }
        lane.shared.metrics.forward_attempt_duration.with_label_values(&[&*lane.name]);
        lane.shared.metrics.announce_forwards(&lane.name);
        lane.publish(&lane.lock());
        Arc::new(lane)
    }

    /// Takes over new settings; what is running keeps its own.
    pub(super) fn update(&self, destination: Arc<Destination>) {
        let mut state = self.lock();
        let old = std::mem::replace(&mut state.destination, destination);
        let new = Arc::clone(&state.destination);
        if (&old.url, old.allow_private, &old.tls) != (&new.url, new.allow_private, &new.tls) {
            state.endpoint = endpoint(&new, &self.shared);
        }
        if old.rate != new.rate {
            state.limiter = limiter(&new, state.share);
        }
        if new.breaker.is_none() {
            state.breaker = Breaker::new();
        }
        state.unarranged |= old.order != new.order;
        // What another backend bears is not known.
        let known = state.adaptive.take().filter(|_| old.url == new.url);
        state.adaptive = adaptive(&new, state.share, known);
        let concurrency = allowed(&new, state.share, state.adaptive.as_ref());
        self.resize(&mut state, concurrency);
        self.publish(&state);
        drop(state);
        self.wake();
    }

    fn resize(&self, state: &mut State, after: usize) {
        let before = std::mem::replace(&mut state.concurrency, after);
        if after >= before {
            let kept = state.excess.min(after - before);
            state.excess -= kept;
            self.slots.add_permits(after - before - kept);
        } else {
            state.excess += before - after;
        }
        // Also what has been given back meanwhile without an attempt.
        state.excess -= self.slots.forget_permits(state.excess);
    }

    /// The destination is gone. What waits for it stays in the store.
    pub(super) fn retire(&self) {
        self.stop.cancel();
        let metrics = &self.shared.metrics;
        for state in LaneState::ALL {
            // Not there only when the lane was retired before.
            metrics.lane_state.remove_label_values(&[&*self.name, state.label()]).ok();
        }
        metrics.lane_concurrency.remove_label_values(&[&*self.name]).ok();
    }

    pub(super) fn pause(&self, paused: bool) {
        let mut state = self.lock();
        if state.paused == paused {
            return;
        }
        state.paused = paused;
        if paused {
            tracing::warn!(destination = %self.name, "paused by an operator, until resumed");
        }
        self.publish(&state);
        drop(state);
        self.wake();
    }

    /// Has the next forward be attempted as a probe, without waiting any longer. False when the breaker is not open.
    pub(super) fn probe(&self) -> bool {
        let now = self.shared.monotonic();
        let mut state = self.lock();
        let probes = !state.paused && state.breaker.probe_now(now);
        drop(state);
        if probes {
            self.wake();
        }
        probes
    }

    /// Whether what has been leased may be attempted.
    pub(super) fn may_begin(&self) -> bool {
        !self.stop.is_cancelled() && self.lock().may_begin()
    }

    pub(super) fn status(&self) -> LaneStatus {
        let state = self.lock();
        LaneStatus {
            destination: Arc::clone(&self.name),
            state: state.lane_state(),
            concurrency: state.concurrency,
            running: state.running,
        }
    }

    /// A place for a forward that has not been committed yet. A broken lane gives none: a place that is given up
    /// because its commit failed must not have used up the one probe.
    pub(super) fn reserve(&self) -> Option<Slot> {
        let mut state = self.lock();
        let free = state.may_begin()
            && !state.behind
            && !state.unarranged
            && state.breaker.is_closed()
            && !self.stop.is_cancelled();
        let slot = if free { Arc::clone(&self.slots).try_acquire_owned().ok() } else { None };
        let now = self.shared.monotonic();
        let slot = slot.filter(|_| {
            state.limiter.as_mut().is_none_or(|limiter| limiter.claim(now, Duration::ZERO).is_ok())
        });
        // It will wait in the store; who comes later must not overtake it for as long as there are no free places.
        state.behind |= slot.is_none();
        slot
    }

    /// Nothing begins in a reserved place.
    pub(super) fn give_back(&self, slot: Slot) {
        refill::give_back(&mut self.lock(), 1);
        drop(slot);
    }

    /// Has the refill task look into the store.
    pub(super) fn wake(&self) {
        self.poke.notify_one();
    }

    /// An attempt begins, with the settings as they are now.
    pub(super) fn begin(&self) -> (Arc<Destination>, Arc<Endpoint>) {
        let mut state = self.lock();
        state.running += 1;
        (Arc::clone(&state.destination), Arc::clone(&state.endpoint))
    }

    /// The retry policy for a forward that is given back.
    pub(super) fn destination(&self) -> Arc<Destination> {
        Arc::clone(&self.lock().destination)
    }

    /// Which of its forwards wait for each other.
    pub(super) fn order(&self) -> Option<Arc<Order>> {
        self.lock().order.clone()
    }

    /// An attempt that took so long says something about the backend, or (our own fault) nothing at all.
    pub(super) fn record(&self, fault: Fault, took: Duration) {
        let now = self.shared.monotonic();
        let mut state = self.lock();
        let running = state.running;
        if let Some(adaptive) = &mut state.adaptive {
            adaptive.record(took, fault, running);
            let limit = allowed(&state.destination, state.share, state.adaptive.as_ref());
            if limit != state.concurrency {
                self.resize(&mut state, limit);
                self.publish(&state);
            }
        }
        let Some(policy) = state.destination.breaker else { return };
        let before = state.breaker;
        if state.breaker.record(&policy, fault, now) {
            match state.breaker {
                Breaker::Closed { .. } => tracing::info!(destination = %self.name, "breaker closed"),
                Breaker::Broken { pause, .. } => {
                    tracing::warn!(destination = %self.name, probe_after = ?pause, "breaker opened");
                }
                Breaker::Probing { .. } => {}
            }
        }
        if before != state.breaker {
            self.publish(&state);
            drop(state);
            self.wake();
        }
    }

    /// An attempt that had begun is over, and its place is free, unless the concurrency has been lowered meanwhile.
    pub(super) fn end(&self, slot: Slot) {
        let mut state = self.lock();
        state.running -= 1;
        if state.excess > 0 {
            state.excess -= 1;
            slot.forget();
        }
    }

    fn publish(&self, state: &State) {
        if self.stop.is_cancelled() {
            return;
        }
        let metrics = &self.shared.metrics;
        let now = state.lane_state();
        for each in LaneState::ALL {
            metrics.lane_state.with_label_values(&[&*self.name, each.label()]).set(i64::from(each == now));
        }
        let concurrency = i64::try_from(state.concurrency).unwrap_or(i64::MAX);
        metrics.lane_concurrency.with_label_values(&[&*self.name]).set(concurrency);
    }

    /// No code that holds it can panic between two changes that belong together.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn endpoint(destination: &Destination, shared: &Shared) -> Arc<Endpoint> {
    let tls = match &destination.tls {
        own if *own == BackendTls::default() => Arc::clone(&shared.tls),
        own => Arc::new(Tls::new(own.clone())),
    };
    Arc::new(Endpoint::new(&destination.url, destination.allow_private, tls))
}

/// What finds out how many attempts a backend bears, with what is known already.
fn adaptive(destination: &Destination, share: Option<Share>, known: Option<Adaptive>) -> Option<Adaptive> {
    match destination.concurrency {
        Concurrency::Fixed(_) => None,
        Concurrency::Adaptive(_) => {
            let max = most(destination, share);
            let mut adaptive = known.unwrap_or_else(|| Adaptive::new(max));
            adaptive.set_max(max);
            Some(adaptive)
        }
    }
}

/// Attempts that may run at once.
fn allowed(destination: &Destination, share: Option<Share>, adaptive: Option<&Adaptive>) -> usize {
    let most = most(destination, share);
    adaptive.map_or(most, |adaptive| adaptive.limit().min(most))
}

/// Attempts that may ever run at once.
fn most(destination: &Destination, share: Option<Share>) -> usize {
    let limit = destination.concurrency.most();
    share.map_or(limit, |share| share.places.min(limit))
}

/// A burst of one: a backend that asked for 10/s is never sent 20 in a second.
fn limiter(destination: &Destination, share: Option<Share>) -> Option<Limiter> {
    let mut limiter = Limiter::new(destination.rate?, 1);
    if let Some(share) = share {
        share::divide(&mut limiter, share, destination);
    }
    Some(limiter)
}

#[cfg(test)]
pub(super) mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::clock::Clock;
    use crate::dispatch::Lanes;
    use crate::forward::{BreakerPolicy, RetryPolicy, Schedule};
    use crate::metrics::Metrics;
    use crate::shape::Shape;
    use crate::units::Rate;

    pub(in crate::dispatch) fn destination(url: &str) -> Destination {
        Destination {
            name: "legacy".into(),
            url: url.parse().unwrap(),
            allow_private: true,
            timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(1),
            tls: BackendTls::default(),
            concurrency: Concurrency::Fixed(NonZeroUsize::new(4).unwrap()),
            order: None,
            rate: None,
            retry: RetryPolicy {
                schedule: Schedule::List(Vec::new()),
                max_age: Duration::from_secs(60),
                full_jitter: false,
                statuses: Vec::new(),
            },
            breaker: None,
            sign: None,
            headers: Vec::new(),
            shape: Shape::default(),
        }
    }

    /// A lane that has caught up with its store.
    pub(super) fn lane(change: impl FnOnce(&mut Destination)) -> Arc<Lane> {
        let mut destination = destination("http://127.0.0.1:9/");
        change(&mut destination);
        let lanes = Lanes::new(Clock::system(), Metrics::new());
        let lane = Lane::new(Arc::clone(&lanes.shared), Arc::new(destination));
        lane.arranged(None);
        lane.end_turn(1, 0);
        lane
    }

    fn with_concurrency(lane: &Lane, concurrency: usize) {
        let mut destination = (*lane.destination()).clone();
        destination.concurrency = Concurrency::Fixed(NonZeroUsize::new(concurrency).unwrap());
        lane.update(Arc::new(destination));
    }

    #[tokio::test]
    async fn places_are_given_while_the_lane_is_open_and_not_behind() {
        let lane = lane(|_| ());
        let slots: Vec<_> = (0..4).map(|_| lane.reserve().unwrap()).collect();
        assert!(lane.reserve().is_none(), "full");
        drop(slots);
        assert!(lane.reserve().is_none(), "somebody waits in the store and goes first");
        lane.end_turn(4, 4);
        assert!(lane.reserve().is_none(), "more may be waiting");
        lane.end_turn(4, 3);
        assert!(lane.reserve().is_some(), "the store had no more");
        lane.pause(true);
        assert!(lane.reserve().is_none(), "paused");
        assert_eq!(lane.status().state, LaneState::Paused);
        lane.pause(false);
        lane.end_turn(1, 0);
        assert!(lane.reserve().is_some());
        lane.retire();
        assert!(lane.reserve().is_none(), "retired");
    }

    #[tokio::test]
    async fn a_broken_lane_gives_no_places_and_one_probe() {
        let lane = lane(|destination| {
            destination.breaker =
                Some(BreakerPolicy { failures: 2, probe_after: Duration::ZERO, probe_max: Duration::ZERO });
        });
        lane.record(Fault::Backend, Duration::ZERO);
        assert!(lane.reserve().is_some());
        lane.record(Fault::Backend, Duration::ZERO);
        assert_eq!(lane.status().state, LaneState::Broken);
        assert!(lane.reserve().is_none());
        assert!(lane.reserve().is_none(), "a probe is never given away before its commit");
        assert_eq!(lane.turn(4).map(|waits| waits.len()), Ok(1));
        assert_eq!(lane.status().state, LaneState::Probing);
        assert!(lane.turn(4).is_err(), "one at a time");
        lane.end_turn(1, 0);
        assert_eq!(
            lane.turn(4).map(|waits| waits.len()),
            Ok(1),
            "nothing was waiting: the probe is still due"
        );
        lane.record(Fault::Nobody, Duration::ZERO);
        assert_eq!(lane.turn(4).map(|waits| waits.len()), Ok(4));
    }

    /// A slow machine behind a new URL was met with as many attempts at once as the fast one before had borne.
    #[tokio::test]
    async fn what_another_backend_bears_is_found_anew() {
        let lane = lane(|destination| {
            destination.concurrency = Concurrency::Adaptive(NonZeroUsize::new(64).unwrap());
        });
        lane.begin();
        for _ in 0..10 {
            lane.record(Fault::Nobody, Duration::from_millis(5));
        }
        let found = lane.lock().concurrency;
        assert!(found > 1);
        let mut changed = (*lane.destination()).clone();
        changed.timeout *= 2;
        lane.update(Arc::new(changed.clone()));
        assert_eq!(lane.lock().concurrency, found);
        changed.url = "http://127.0.0.1:10/".parse().unwrap();
        lane.update(Arc::new(changed));
        assert_eq!(lane.lock().concurrency, 1);
    }

    #[tokio::test]
    async fn turns_are_paced_and_unused_ones_given_back() {
        let lane = lane(|destination| {
            destination.rate = Some(Rate { events: 1, per: Duration::from_millis(700) });
        });
        let waits = lane.turn(4).unwrap();
        assert_eq!(waits.len(), 2, "one now, one within the second that is planned ahead: {waits:?}");
        assert!(lane.turn(4).is_err());
        lane.end_turn(2, 0);
        assert_eq!(lane.turn(4).unwrap().len(), 2);
    }

    /// Each duplicate had used up a turn of a forward.
    #[tokio::test]
    async fn a_place_that_is_given_back_costs_no_turn() {
        let lane = lane(|destination| {
            destination.rate = Some(Rate { events: 1, per: Duration::from_hours(1) });
        });
        for _ in 0..3 {
            lane.give_back(lane.reserve().unwrap());
        }
        let _used = lane.reserve().unwrap();
        assert!(lane.reserve().is_none());
    }

    #[tokio::test]
    async fn concurrency_changes_without_more_running_than_allowed() {
        let lane = lane(|_| ());
        let mut running: Vec<_> = (0..3).map(|_| lane.reserve().unwrap()).collect();
        running.iter().for_each(|_| drop(lane.begin()));
        with_concurrency(&lane, 2);
        assert_eq!(lane.slots.available_permits(), 0);
        lane.end(running.pop().unwrap());
        assert_eq!(lane.slots.available_permits(), 0, "the place is taken back");
        lane.end(running.pop().unwrap());
        assert_eq!(lane.slots.available_permits(), 1);
        with_concurrency(&lane, 1);
        with_concurrency(&lane, 8);
        assert_eq!((lane.slots.available_permits(), lane.status().running), (7, 1));
    }
}
