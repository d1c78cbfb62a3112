//! Finds how many attempts at once a backend bears, by how long it takes and whether it fails. More are allowed, one after
//! the other, for as long as all that are allowed are made and take no longer than few did. When they take half as long
//! again, or have become slower by more than they have become more, or more than a tenth of them fail, a quarter fewer are
//! allowed, and what was too many is tried again ever less often. So a backend is left at the beginning of its queue, where
//! more would only wait, before it falls over.
//!
//! Attempts are judged in rounds, and those that had begun before a change say nothing about it. No clock is needed.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::Fault;

/// Attempts in a round: of fewer, the slowest of few kinds of deliveries would decide.
const ROUND_MIN: usize = 10;
/// By how much more is allowed after a good round: one, and of many an eighth.
const GROWTH: f64 = 0.125;
/// Good rounds until that is tried again which was too many, at first and at most.
const STEADY: (u32, u32) = (10, 80);
/// What is left after a bad round.
const LEFT: f64 = 0.75;
/// How many times as long as few an attempt may take.
const TOLERANCE: f64 = 1.5;
/// Seconds of difference that are the machine's noise.
const NOISE: f64 = 0.002;
/// By how much the least time is forgotten in each round, so that one lucky round does not set it for ever.
const FORGOTTEN: f64 = 1.01;

/// How many attempts at once a destination is to get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concurrency {
    /// So many.
    Fixed(NonZeroUsize),
    /// As many as it bears, and never more than so many.
    Adaptive(NonZeroUsize),
}

impl Concurrency {
    /// How many it can be at most.
    pub fn most(self) -> usize {
        match self {
            Self::Fixed(most) | Self::Adaptive(most) => most.get(),
        }
    }
}

/// How many attempts at once are allowed.
#[derive(Debug, Clone)]
pub struct Adaptive {
    limit: f64,
    max: f64,
    /// Twice as many are allowed after each round, until the first bad one.
    doubling: bool,
    ceiling: Option<Ceiling>,
    /// The latest good round: how many, and seconds that they took.
    last: Option<(f64, f64)>,
    /// Seconds that an attempt takes when there are few.
    least: Option<f64>,
    round: Round,
    /// Attempts that had begun before the latest change and have not ended.
    stale: usize,
}

/// What was too many when it was last tried.
#[derive(Debug, Clone, Copy)]
struct Ceiling {
    limit: usize,
    /// Good rounds until it is tried again, and of how many.
    left: u32,
    of: u32,
}

#[derive(Debug, Clone, Default)]
struct Round {
    /// Seconds of attempts that were answered.
    answered: Vec<f64>,
    failed: usize,
    /// Whether as many were under way as are allowed.
    full: bool,
}

impl Adaptive {
    /// Of a backend that nothing is known about: one at first, which shows how long it takes. Never more than `max`.
    pub fn new(max: usize) -> Self {
        let max = max.max(1) as f64;
        let round = Round::default();
        Self { limit: 1.0, max, doubling: true, ceiling: None, last: None, least: None, round, stale: 0 }
    }

    /// How many are allowed.
    pub fn limit(&self) -> usize {
        self.limit as usize
    }

    /// Another `max`; what is known stays.
    pub fn set_max(&mut self, max: usize) {
        self.max = max.max(1) as f64;
        self.limit = self.limit.min(self.max);
    }

    /// An attempt has ended after `time`, one of `running` that were under way, itself included.
    pub fn record(&mut self, time: Duration, fault: Fault, running: usize) {
        if self.stale > 0 {
            self.stale -= 1;
            return;
        }
        match fault {
            Fault::Nobody | Fault::Delivery => self.round.answered.push(time.as_secs_f64()),
            Fault::Backend => self.round.failed += 1,
            Fault::Gateway => return,
        }
        self.round.full |= running >= self.limit();
        let ended = self.round.answered.len() + self.round.failed;
        let wanted = self.limit().max(ROUND_MIN);
        // The rest could not change what is typical.
        let slow = self.round.answered.iter().filter(|time| self.is_slow(**time)).count();
        if ended >= wanted || slow * 2 > wanted {
            let round = std::mem::take(&mut self.round);
            self.judge(round, ended);
            self.stale = running.saturating_sub(1);
        }
    }

    fn is_slow(&self, time: f64) -> bool {
        self.least.is_some_and(|least| time > least * TOLERANCE + NOISE)
    }

    fn grow(&mut self) {
        let more = if self.doubling { self.limit } else { (self.limit * GROWTH).max(1.0) };
        let next = self.limit + more;
        self.limit = match &mut self.ceiling {
            Some(ceiling) if next >= ceiling.limit as f64 && self.limit < ceiling.limit as f64 => {
                let (below, again) = (ceiling.limit - 1, ceiling.limit);
                ceiling.left = ceiling.left.saturating_sub(1);
                if ceiling.left > 0 { below as f64 } else { again as f64 }
            }
            Some(_) | None => next,
        }
        .min(self.max);
    }

    fn judge(&mut self, mut round: Round, ended: usize) {
        let before = self.limit();
        let failing = round.failed * 10 > ended;
        let typical = median(&mut round.answered).filter(|_| !failing);
        let slower = |time| {
            let (fewer, took) = self.last?;
            Some(before as f64 > fewer && time > took * (before as f64 / fewer) * 1.05 + NOISE)
        };
        let slow = typical.is_some_and(|time| self.is_slow(time) || slower(time) == Some(true));
        self.last = typical.filter(|_| !slow).map(|time| (before as f64, time));
        if failing || slow {
            self.doubling = false;
            let known = self.ceiling.filter(|ceiling| ceiling.limit == before);
            let of = known.map_or(STEADY.0, |known| (known.of * 2).min(STEADY.1));
            self.ceiling = Some(Ceiling { limit: before.max(2), left: of, of });
            self.limit = (self.limit * LEFT).max(1.0);
        } else if round.full {
            self.grow();
        }
        if let Some(time) = typical {
            self.least = Some(match self.least {
                // Alone it cannot be in its own way: the backend has become slower.
                Some(least) if before > 1 => (least * FORGOTTEN).min(time),
                Some(_) | None => time,
            });
        }
    }
}

fn median(times: &mut [f64]) -> Option<f64> {
    let middle = times.len() / 2;
    (!times.is_empty()).then(|| *times.select_nth_unstable_by(middle, f64::total_cmp).1)
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use super::*;

    const MAX: usize = 256;

    /// A backend that serves so many at once in `TIME`, and takes ever longer the more there are beyond; at three times as
    /// many it fails, and takes its time for that.
    struct Backend {
        capacity: usize,
        microseconds: u64,
    }

    #[derive(Debug, PartialEq)]
    struct Result {
        served: usize,
        failed: usize,
        /// The most that were allowed in the last half of the time.
        most: usize,
    }

    impl Backend {
        /// How long an attempt takes that begins as one of `running`, and whether it is answered.
        fn serve(&self, running: usize) -> (u64, bool) {
            let load = running as f64 / self.capacity as f64;
            let slowdown = if load <= 1.0 { 1.0 } else { load.powi(4) };
            let microseconds = (self.microseconds as f64 * slowdown.min(100.0)) as u64;
            (microseconds, load < 3.0)
        }
    }

    /// So many seconds of a backlog that does not end; `backend` may change with time.
    fn simulate(limit: &mut impl Limit, seconds: u64, backend: impl Fn(u64) -> Backend) -> Result {
        let end = seconds * 1_000_000;
        let (mut now, mut running) = (0, BinaryHeap::new());
        let mut result = Result { served: 0, failed: 0, most: 0 };
        while now < end {
            while running.len() < limit.limit() {
                let (time, answered) = backend(now).serve(running.len() + 1);
                running.push(Reverse((now + time, time, answered)));
            }
            let Some(Reverse((at, time, answered))) = running.pop() else { break };
            now = at;
            *(if answered { &mut result.served } else { &mut result.failed }) += 1;
            let fault = if answered { Fault::Nobody } else { Fault::Backend };
            limit.record(Duration::from_micros(time), fault, running.len() + 1);
            if now > end / 2 {
                result.most = result.most.max(limit.limit());
            }
        }
        result
    }

    trait Limit {
        fn limit(&self) -> usize;
        fn record(&mut self, time: Duration, fault: Fault, running: usize);
    }

    impl Limit for Adaptive {
        fn limit(&self) -> usize {
            self.limit()
        }
        fn record(&mut self, time: Duration, fault: Fault, running: usize) {
            self.record(time, fault, running);
        }
    }

    struct Fixed(usize);

    impl Limit for Fixed {
        fn limit(&self) -> usize {
            self.0
        }
        fn record(&mut self, _: Duration, _: Fault, _: usize) {}
    }

    #[test]
    fn it_serves_nearly_as_many_as_the_best_fixed_setting_and_fails_far_fewer_than_one_too_large() {
        for (capacity, microseconds) in [(1, 50_000), (3, 400_000), (20, 100_000), (90, 30_000)] {
            let backend = |_| Backend { capacity, microseconds };
            let fixed = [1, 2, 4, 8, 16, 32, 64, 128, MAX, capacity]
                .map(|limit| simulate(&mut Fixed(limit), 300, backend));
            let best = fixed.iter().map(|result| result.served).max().unwrap();
            let too_large = &fixed[8];
            let found = simulate(&mut Adaptive::new(MAX), 300, backend);
            let told = format!("{capacity}: {found:?}, best {best}, too large {too_large:?}");
            assert!(found.served * 100 >= best * 80, "{told}");
            assert!(too_large.served * 10 < best && found.failed * 20 <= too_large.failed, "{told}");
            assert!(found.most <= capacity * 3 / 2 + 1, "{told}");
        }
    }

    #[test]
    fn it_follows_a_backend_that_grows_shrinks_or_becomes_slower() {
        for (what, after) in [
            ("grows", Backend { capacity: 40, microseconds: 50_000 }),
            ("shrinks", Backend { capacity: 4, microseconds: 50_000 }),
            ("slower", Backend { capacity: 20, microseconds: 500_000 }),
            ("quicker", Backend { capacity: 20, microseconds: 10_000 }),
        ] {
            let mut adaptive = Adaptive::new(MAX);
            simulate(&mut adaptive, 60, |_| Backend { capacity: 20, microseconds: 50_000 });
            // What has been learned so far has to be unlearned first.
            simulate(&mut adaptive, 120, |_| Backend { ..after });
            let found = simulate(&mut adaptive, 120, |_| Backend { ..after });
            let best = simulate(&mut Fixed(after.capacity), 120, |_| Backend { ..after });
            assert!(found.served * 100 >= best.served * 75, "{what}: {found:?}, best {best:?}");
            assert!(found.failed * 100 <= found.served, "{what}: {found:?}");
        }
    }

    #[test]
    fn a_backend_that_is_down_gets_one_at_a_time_and_more_when_it_is_back() {
        let mut adaptive = Adaptive::new(MAX);
        simulate(&mut adaptive, 30, |_| Backend { capacity: 20, microseconds: 50_000 });
        assert!(adaptive.limit() > 10, "{adaptive:?}");
        for _ in 0..1_000 {
            let running = adaptive.limit();
            adaptive.record(Duration::from_millis(1), Fault::Backend, running);
        }
        assert_eq!(adaptive.limit(), 1);
        simulate(&mut adaptive, 30, |_| Backend { capacity: 20, microseconds: 50_000 });
        assert!(adaptive.limit() > 10, "{adaptive:?}");
    }

    #[test]
    fn no_more_is_allowed_than_is_made_use_of() {
        let mut adaptive = Adaptive::new(MAX);
        for _ in 0..1_000 {
            adaptive.record(Duration::from_millis(10), Fault::Nobody, 2);
        }
        assert_eq!(adaptive.limit(), 4, "twice as many as that is one doubling too many");
    }

    #[test]
    fn single_failures_and_faults_of_our_own_change_nothing() {
        let mut adaptive = Adaptive::new(8);
        for n in 0..1_000 {
            let fault = if n % 20 == 0 { Fault::Backend } else { Fault::Nobody };
            adaptive.record(Duration::from_millis(10), fault, 8);
            adaptive.record(Duration::from_secs(9), Fault::Gateway, 8);
        }
        assert_eq!(adaptive.limit(), 8);
    }

    #[test]
    fn the_largest_is_kept_to() {
        let mut adaptive = Adaptive::new(2);
        let endless = |_| Backend { capacity: 1_000, microseconds: 10_000 };
        assert_eq!(simulate(&mut adaptive, 10, endless).most, 2);
        adaptive.set_max(MAX);
        assert_eq!(simulate(&mut adaptive, 60, endless).most, MAX);
        adaptive.set_max(5);
        assert_eq!(adaptive.limit(), 5);
        adaptive.set_max(0);
        assert_eq!(adaptive.limit(), 1);
    }
}
