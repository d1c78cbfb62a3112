//! Takes forwards that wait in the store into the free places of their lane, when its rate and its breaker let them begin.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Lane, State};
use crate::clock::later;
use crate::dispatch::attempt;
use crate::forward::{Order, Pass};
use crate::store::{Slot, Store, StoreError};

/// A lane looks into the store at least this often: a forward that another gateway gave back makes no noise.
const REST_MAX: Duration = Duration::from_secs(30);
/// And at most this often when it finds nothing.
const REST_MIN: Duration = Duration::from_millis(20);
/// The first and the longest pause after the store has failed.
const TROUBLE_REST: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How far ahead of its turn a forward may be leased. Pacing happens in memory, within this: a lease per turn would make
/// every transaction a delay, and turns would be missed.
const RATE_AHEAD: Duration = Duration::from_secs(1);

impl Lane {
    /// Takes waiting forwards from the store for as long as the lane lives.
    pub(in crate::dispatch) async fn refill(self: Arc<Self>, store: Arc<dyn Store>) {
        let mut rein_in_at = Some(Instant::now());
        let mut trouble = TROUBLE_REST.0;
        while !self.stop.is_cancelled() {
            // Nothing waits for it: what is due goes out meanwhile, also from a full disk.
            if rein_in_at.is_some_and(|at| at <= Instant::now()) {
                let done = self.rein_in(&*store).await;
                rein_in_at = (!done).then(|| Instant::now() + TROUBLE_REST.1);
            }
            if let Err(error) = self.arrange(&*store).await {
                if !self.bear(&error, "bringing forwards into order", &mut trouble).await {
                    return;
                }
                continue;
            }
            let Some(mut slots) = self.acquire().await else { return };
            let waits = match self.turn(slots.num_permits()) {
                Ok(waits) => waits,
                Err(rest) => {
                    drop(slots);
                    self.rest(rest).await;
                    continue;
                }
            };
            // Not raced against `stop`: a lease that has been taken must reach an attempt, which gives it back.
            let now = self.shared.clock.steady().time;
            let leased = store.lease(&self.name, waits.len(), now).await;
            let found = leased.as_ref().map_or(0, Vec::len);
            self.end_turn(waits.len(), found);
            // Nothing is known of what is due later while there is more that is due now.
            let due = match leased {
                Ok(leases) => {
                    let short = leases.len() < waits.len();
                    for (lease, wait) in leases.into_iter().zip(waits) {
                        let slot = slots.split(1).expect("a turn is never longer than its slots");
                        let attempt = attempt::run(Arc::clone(&self), Arc::clone(&store), lease, slot, wait);
                        self.shared.tasks.spawn(attempt);
                    }
                    if short { store.next_due(&self.name).await.map(Some) } else { Ok(None) }
                }
                Err(error) => Err(error),
            };
            drop(slots);
            match due {
                Ok(due) => {
                    trouble = TROUBLE_REST.0;
                    if let Some(due) = due {
                        let rest = due.map_or(REST_MAX, |due| self.shared.clock.steady().until(due));
                        let longest = if rein_in_at.is_some() { TROUBLE_REST.1 } else { REST_MAX };
                        self.rest(rest.clamp(REST_MIN, longest)).await;
                    }
                }
                Err(error) => {
                    if !self.bear(&error, "taking forwards from the store", &mut trouble).await {
                        return;
                    }
                }
            }
        }
    }

    /// Rests after the store has failed `what`, longer each time; false when it will do nothing any more.
    async fn bear(&self, error: &StoreError, what: &str, trouble: &mut Duration) -> bool {
        match error {
            StoreError::Latched(_) | StoreError::Closed => return false,
            StoreError::Busy | StoreError::DiskFull | StoreError::Unreachable(_) | StoreError::Read(_) => {}
        }
        tracing::warn!(destination = %self.name, %error, "{what} failed");
        self.rest(*trouble).await;
        *trouble = (*trouble * 2).min(TROUBLE_REST.1);
        true
    }

    /// At the start, and after a reload that changes it: brings what waits into the destination's order.
    async fn arrange(&self, store: &dyn Store) -> Result<(), StoreError> {
        while let Some(order) = self.unarranged() {
            store.arrange(&self.name, order.clone()).await?;
            self.arranged(order.as_ref());
        }
        Ok(())
    }

    /// The order to bring it into. It is in force from here on, and changes at no other time: while nothing is leased.
    fn unarranged(&self) -> Option<Option<Arc<Order>>> {
        let mut state = self.lock();
        state.order = state.destination.order.clone();
        state.unarranged.then(|| state.order.clone())
    }

    /// What waits is in this order.
    pub(super) fn arranged(&self, order: Option<&Arc<Order>>) {
        let mut state = self.lock();
        // Unless a reload has changed it again.
        state.unarranged = state.destination.order.as_ref() != order;
    }

    /// An earlier run whose clock stood ahead of ours wrote down due times that may lie days ahead. False when the store
    /// would not.
    async fn rein_in(&self, store: &dyn Store) -> bool {
        let now = self.shared.clock.steady().time;
        let latest = later(now, self.destination().retry.pause_max());
        let reined = store.rein_in(&self.name, now, latest).await;
        match &reined {
            Ok(0) => {}
            Ok(count) => {
                tracing::warn!(destination = %self.name, count, "forwards were due too far ahead, brought back");
            }
            Err(error) => {
                tracing::warn!(destination = %self.name, %error, "looking for forwards that are due too far ahead failed");
            }
        }
        reined.is_ok()
    }

    /// Waits for a free place and takes more along: all when the lane is behind, otherwise half of them, so that looking
    /// for retries does not keep new forwards from coming in directly.
    async fn acquire(&self) -> Option<Slot> {
        let mut slots = tokio::select! {
            biased;
            () = self.stop.cancelled() => return None,
            slot = Arc::clone(&self.slots).acquire_owned() => slot.ok()?,
        };
        let free = self.slots.available_permits();
        let more = if self.lock().behind { free } else { free / 2 };
        if let Some(more) =
            u32::try_from(more).ok().and_then(|n| Arc::clone(&self.slots).try_acquire_many_owned(n).ok())
        {
            slots.merge(more);
        }
        Some(slots)
    }

    /// How many of at most `slots` attempts may begin, each with its wait for the rate; or how long to rest.
    pub(super) fn turn(&self, slots: usize) -> Result<Vec<Duration>, Duration> {
        let now = self.shared.monotonic();
        let mut state = self.lock();
        if !state.may_begin() {
            return Err(REST_MAX);
        }
        let mut waits = Vec::new();
        let mut rest = REST_MAX;
        for _ in 0..slots {
            let claimed =
                state.limiter.as_mut().map_or(Ok(Duration::ZERO), |limiter| limiter.claim(now, RATE_AHEAD));
            match claimed {
                Ok(wait) => waits.push(wait),
                Err(later) => {
                    rest = later;
                    break;
                }
            }
        }
        if waits.is_empty() {
            return Err(rest);
        }
        let allowed = match state.pass(now) {
            Pass::Free => waits.len(),
            Pass::Probe => 1,
            Pass::Blocked(until) => {
                rest = until.map_or(REST_MAX, |until| until.saturating_sub(now));
                0
            }
        };
        let unused = waits.split_off(allowed).len();
        give_back(&mut state, unused);
        if waits.is_empty() {
            return Err(rest);
        }
        self.publish(&state);
        Ok(waits)
    }

    /// `found` of the `asked` forwards were there.
    pub(super) fn end_turn(&self, asked: usize, found: usize) {
        let now = self.shared.monotonic();
        let mut state = self.lock();
        give_back(&mut state, asked.saturating_sub(found));
        // Whoever was refused a place and is committed only now calls `wake`, so that there is another turn.
        state.behind = found >= asked;
        if found == 0 {
            state.breaker.abandon_probe(now);
            self.publish(&state);
        }
    }

    async fn rest(&self, time: Duration) {
        let endpoint = Arc::clone(&self.lock().endpoint);
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = self.poke.notified() => {}
            () = sleep(time.min(REST_MAX)) => {}
            () = endpoint.prune() => {}
        }
    }
}

pub(super) fn give_back(state: &mut State, places: usize) {
    if let Some(limiter) = &mut state.limiter {
        limiter.give_back(u32::try_from(places).unwrap_or(u32::MAX));
    }
}
