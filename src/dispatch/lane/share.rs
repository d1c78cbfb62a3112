//! The part that a lane has in its destination, where gateways share a store: so many places, as large a part of the rate, and
//! one breaker for all. It never has more than it was given, and begins nothing once its share may be another's.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Lane, State, allowed, most};
use crate::config::Destination;
use crate::forward::{Breaker, Pass, Told};
use crate::rate::Limiter;
use crate::store::{Share, Standing};

/// What a lane has before it has been given anything.
pub(super) fn none() -> Share {
    Share { places: 0, until: Instant::now(), breaker: Told::Closed, probes: false }
}

/// Leaves a limiter the part of the rate that goes with a share.
pub(super) fn divide(limiter: &mut Limiter, share: Share, destination: &Destination) {
    let count = |places: usize| u32::try_from(places).unwrap_or(u32::MAX);
    let limit = destination.concurrency.most();
    // Without a place there is nothing to pace.
    limiter.divide(count(share.places.clamp(1, limit)), count(limit));
}

impl State {
    /// What an attempt may do; a probe is one gateway's only.
    pub(super) fn pass(&mut self, now: Duration) -> Pass {
        if let Some(share) = &mut self.share
            && self.breaker.awaits_probe(now)
            && !std::mem::take(&mut share.probes)
        {
            return Pass::Blocked(None);
        }
        self.breaker.pass(now)
    }

    /// Places that no other gateway may have yet.
    fn held(&self) -> usize {
        let given = self.share.map_or(0, |share| share.places);
        given.max(self.concurrency + self.excess)
    }
}

/// The breaker without what each gateway counts by itself.
fn common(breaker: Breaker) -> Breaker {
    if breaker.is_closed() { Breaker::new() } else { breaker }
}

impl Lane {
    /// What the others have to know; nothing once the destination is gone and nothing of it is held.
    pub(in crate::dispatch) fn standing(&self) -> Option<Standing> {
        let now = self.shared.monotonic();
        let mut state = self.lock();
        let stopped = self.stop.is_cancelled();
        if stopped && state.held() == 0 {
            return None;
        }
        let news = state.breaker.tell(now).filter(|_| common(state.breaker) != state.told);
        if news.is_some() {
            state.told = common(state.breaker);
        }
        let limit = if stopped { 0 } else { state.destination.concurrency.most() };
        Some(Standing { destination: Arc::clone(&self.name), limit, news })
    }

    /// Takes a share over in place of the one before; how many places it still holds.
    pub(in crate::dispatch) fn share(&self, share: Share) -> usize {
        let now = self.shared.monotonic();
        let mut state = self.lock();
        let shown = |state: &State| {
            let probes = state.share.is_some_and(|share| share.probes);
            (state.breaker.is_closed(), state.concurrency, state.may_begin(), probes)
        };
        let before = shown(&state);
        // What has changed here since the standing goes first.
        let is_known = common(state.breaker) == state.told;
        if is_known {
            let mut breaker = state.breaker;
            breaker.heed(share.breaker, now);
            state.told = common(breaker);
            // Without one it is closed for this lane, which it will tell the others.
            if state.destination.breaker.is_some() {
                state.breaker = breaker;
            }
        }
        state.share = Some(Share { probes: share.probes && is_known, ..share });
        let destination = Arc::clone(&state.destination);
        if let Some(limiter) = &mut state.limiter {
            divide(limiter, share, &destination);
        }
        if let Some(adaptive) = &mut state.adaptive {
            adaptive.set_max(most(&destination, Some(share)));
        }
        let concurrency = allowed(&destination, Some(share), state.adaptive.as_ref());
        self.resize(&mut state, concurrency);
        let held = state.held();
        let after = shown(&state);
        if before.0 != after.0 {
            let now = if after.0 { "closed" } else { "opened" };
            tracing::info!(destination = %self.name, "breaker {now}, as another gateway has found");
        }
        if before != after {
            self.publish(&state);
            self.wake();
        }
        held
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::super::LaneState;
    use super::super::tests::lane;
    use super::*;
    use crate::dispatch::Lane;
    use crate::forward::{BreakerPolicy, Concurrency, Fault};
    use crate::units::Rate;

    fn share(places: usize) -> Share {
        let until = Instant::now() + Duration::from_mins(1);
        Share { places, until, breaker: Told::Closed, probes: false }
    }

    fn broken(probes: bool) -> Share {
        let breaker = Told::Broken { wait: Duration::ZERO, pause: Duration::ZERO };
        Share { breaker, probes, ..share(4) }
    }

    fn with_breaker() -> Arc<Lane> {
        lane(|destination| {
            destination.breaker =
                Some(BreakerPolicy { failures: 1, probe_after: Duration::ZERO, probe_max: Duration::ZERO });
        })
    }

    #[tokio::test]
    async fn places_are_held_until_their_attempts_have_ended() {
        let lane = lane(|_| ());
        assert_eq!(lane.share(share(3)), 3);
        let mut running: Vec<_> = (0..3).map(|_| lane.reserve().unwrap()).collect();
        running.iter().for_each(|_| drop(lane.begin()));
        assert!(lane.reserve().is_none());
        assert_eq!(lane.share(share(1)), 3);
        lane.end(running.pop().unwrap());
        assert_eq!(lane.share(share(1)), 2);
        // More than it has is not given before what it has has been given back.
        assert_eq!((lane.share(share(3)), lane.slots.available_permits()), (3, 1));
        assert_eq!((lane.share(share(0)), lane.slots.available_permits()), (2, 0));
        running.into_iter().for_each(|slot| lane.end(slot));
        assert_eq!((lane.share(share(0)), lane.slots.available_permits()), (0, 0));
    }

    #[tokio::test]
    async fn what_a_backend_bears_is_found_within_the_share() {
        let most = NonZeroUsize::new(8).unwrap();
        let lane = lane(|destination| destination.concurrency = Concurrency::Adaptive(most));
        lane.share(share(2));
        for _ in 0..2 {
            drop(lane.begin());
        }
        let attempts = || (0..100).for_each(|_| lane.record(Fault::Nobody, Duration::from_millis(10)));
        attempts();
        assert_eq!(lane.status().concurrency, 2);
        lane.share(share(0));
        attempts();
        assert_eq!(lane.status().concurrency, 0);
    }

    #[tokio::test]
    async fn the_rate_is_divided_as_the_places_are() {
        let lane = lane(|destination| {
            destination.rate = Some(Rate { events: 1, per: Duration::from_millis(700) });
        });
        lane.share(share(4));
        assert_eq!(lane.turn(4).map(|waits| waits.len()), Ok(2), "within the second that is planned ahead");
        lane.end_turn(2, 0);
        lane.share(share(2));
        assert_eq!(lane.turn(2).map(|waits| waits.len()), Ok(1));
    }

    #[tokio::test]
    async fn nothing_begins_once_the_share_may_be_anothers() {
        let lane = lane(|_| ());
        assert!(lane.may_begin(), "alone it needs no share");
        lane.share(Share { until: Instant::now(), ..share(4) });
        assert!(!lane.may_begin() && lane.reserve().is_none() && lane.turn(4).is_err());
        lane.share(share(4));
        lane.end_turn(1, 0);
        assert!(lane.may_begin() && lane.reserve().is_some());
    }

    #[tokio::test]
    async fn a_lane_that_is_gone_is_told_of_until_nothing_is_held() {
        let lane = lane(|_| ());
        lane.share(share(2));
        assert_eq!(lane.standing().map(|standing| standing.limit), Some(4));
        let slot = lane.reserve().unwrap();
        drop(lane.begin());
        lane.retire();
        assert_eq!(lane.standing().map(|standing| standing.limit), Some(0));
        assert_eq!(lane.share(share(0)), 1);
        assert!(lane.standing().is_some());
        lane.end(slot);
        assert!(lane.standing().is_none());
    }

    #[tokio::test]
    async fn a_breaker_is_told_once_and_heeded() {
        let lane = with_breaker();
        lane.share(share(4));
        assert_eq!(lane.standing().unwrap().news, None);
        lane.record(Fault::Backend, Duration::ZERO);
        let zero = Duration::ZERO;
        lane.share(share(4));
        assert_eq!(lane.status().state, LaneState::Broken, "its own news go first");
        assert_eq!(lane.standing().unwrap().news, Some(Told::Broken { wait: zero, pause: zero }));
        assert_eq!(lane.standing().unwrap().news, None);
        lane.share(share(4));
        assert_eq!(lane.status().state, LaneState::Open, "another has found it up");
        lane.share(broken(false));
        assert_eq!((lane.status().state, lane.standing().unwrap().news), (LaneState::Broken, None));
    }

    #[tokio::test]
    async fn a_probe_is_made_by_the_one_that_has_it() {
        let lane = with_breaker();
        lane.share(broken(false));
        assert!(lane.turn(4).is_err(), "another's");
        lane.share(broken(true));
        assert_eq!(lane.turn(4).map(|waits| waits.len()), Ok(1));
        lane.share(broken(true));
        assert!(lane.turn(4).is_err(), "under way");
        // Nothing was waiting: another may have it.
        lane.end_turn(1, 0);
        lane.share(broken(true));
        assert!(lane.turn(4).is_err());
        assert!(lane.standing().unwrap().news.is_some());
    }
}
