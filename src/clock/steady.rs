//! How steady time goes on. It is the wall time of the start plus what the monotonic clock has counted since, less what
//! the process missed while it stood still (SIGSTOP, a paused virtual machine). What was missed is made up at double
//! speed: what fell due meanwhile comes at no more than twice the usual rate, not all at once. Pure: what the clocks
//! show is an argument.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{earlier, elapsed, later};

/// A process that has not looked for longer stood still. Far above what a loaded machine takes to get round to it.
const STALL_MIN: Duration = Duration::from_secs(2);
/// A smaller difference between two looks is a clock that is slewed.
const STEP_MIN: SignedDuration = SignedDuration::from_secs(1);

/// A reading of steady time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steady {
    /// The time.
    pub time: Timestamp,
    /// How much is still to be made up.
    pub behind: Duration,
}

impl Steady {
    /// What steady time will be when `pause` has really passed: a pause that is chosen while time runs twice as fast is
    /// not to be cut in half by it.
    pub fn after(self, pause: Duration) -> Timestamp {
        later(self.time, pause.saturating_add(pause.min(self.behind)))
    }

    /// How long it really takes until steady time is `at`; zero when it is.
    pub fn until(self, at: Timestamp) -> Duration {
        let left = elapsed(self.time, at);
        left.saturating_sub(self.behind.min(left / 2))
    }
}

/// The state of steady time.
#[derive(Debug)]
pub(super) struct Pace {
    /// The wall time of the start.
    anchor: Timestamp,
    /// What the monotonic clock showed at the latest reading.
    seen: Duration,
    /// What was missed and has not been made up yet.
    behind: Duration,
    /// Whether somebody looks often, so that a long time without a reading means something.
    watched: bool,
    /// What was missed since it was last asked for.
    stalled: Duration,
    /// By how much the wall clock was ahead of the monotonic one at the last look.
    ahead: SignedDuration,
}

impl Pace {
    pub(super) fn new(anchor: Timestamp) -> Self {
        Self {
            anchor,
            seen: Duration::ZERO,
            behind: Duration::ZERO,
            watched: false,
            stalled: Duration::ZERO,
            ahead: SignedDuration::ZERO,
        }
    }

    /// Begins at another time. The wall clock has not been set by that.
    pub(super) fn shift(&mut self, by: SignedDuration) {
        if let Ok(anchor) = self.anchor.checked_add(by) {
            self.anchor = anchor;
            self.ahead -= by;
        }
    }

    pub(super) fn set_watched(&mut self, watched: bool, monotonic: Duration) {
        self.pass(monotonic);
        self.watched = watched;
    }

    /// Steady time when the monotonic clock shows `monotonic`.
    pub(super) fn read(&mut self, monotonic: Duration) -> Steady {
        let passed = monotonic.saturating_sub(self.seen);
        if self.watched && passed > STALL_MIN {
            self.behind = self.behind.saturating_add(passed);
            self.stalled = self.stalled.saturating_add(passed);
            self.seen = monotonic;
        }
        self.pass(monotonic);
        Steady { time: earlier(later(self.anchor, self.seen), self.behind), behind: self.behind }
    }

    /// Goes on to `monotonic` as if somebody had looked all the time.
    pub(super) fn pass(&mut self, monotonic: Duration) {
        self.behind = self.behind.saturating_sub(monotonic.saturating_sub(self.seen));
        self.seen = self.seen.max(monotonic);
    }

    /// By how much the wall clock was set since the last call, when it now shows `wall`.
    pub(super) fn compare(&mut self, wall: Timestamp, monotonic: Duration) -> Option<SignedDuration> {
        let before = std::mem::replace(&mut self.ahead, wall.duration_since(later(self.anchor, monotonic)));
        let step = self.ahead - before;
        (step.abs() >= STEP_MIN).then_some(step)
    }

    /// For how long the process stood still since the last call.
    pub(super) fn take_stall(&mut self) -> Option<Duration> {
        let stalled = std::mem::take(&mut self.stalled);
        (!stalled.is_zero()).then_some(stalled)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::from_milliseconds;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn at(seconds: i64) -> Timestamp {
        from_milliseconds(seconds * 1_000)
    }

    fn watched() -> Pace {
        let mut pace = Pace::new(at(1_000));
        pace.set_watched(true, Duration::ZERO);
        pace
    }

    #[test]
    fn what_a_stall_missed_is_made_up_at_double_speed() {
        let mut pace = watched();
        let mut check = |monotonic, time, behind| {
            let steady = pace.read(s(monotonic));
            assert_eq!(steady, Steady { time: at(1_000 + time), behind: s(behind) }, "at {monotonic}");
        };
        check(2, 2, 0);
        check(32, 2, 30);
        check(33, 4, 29);
        check(35, 8, 27);
        // Another one on top.
        check(45, 8, 37);
        for second in 46..=81 {
            check(second, 8 + 2 * (i64::try_from(second).unwrap() - 45), 82 - second);
        }
        check(82, 82, 0);
        check(84, 84, 0);
    }

    #[test]
    fn pauses_are_real_while_time_is_made_up() {
        let steady = Steady { time: at(0), behind: s(10) };
        for (pause, due) in [(0, 0), (4, 8), (10, 20), (60, 70)] {
            assert_eq!(steady.after(s(pause)), at(due));
            assert_eq!(steady.until(at(due)), s(pause));
        }
        assert_eq!(steady.until(at(-1)), Duration::ZERO);
        assert_eq!(steady.after(Duration::MAX), Timestamp::MAX);
    }

    proptest! {
        /// Whatever is missed and whenever it is read.
        #[test]
        fn time_is_monotone_never_ahead_and_never_faster_than_double(
            passed_ms in proptest::collection::vec(prop_oneof![0u64..2_000, 0u64..100_000], 1..200),
        ) {
            let mut pace = watched();
            let (mut monotonic, mut before) = (0, pace.read(Duration::ZERO));
            for passed in passed_ms {
                monotonic += passed;
                let steady = pace.read(Duration::from_millis(monotonic));
                let moved = elapsed(before.time, steady.time);
                prop_assert!(steady.time >= before.time);
                prop_assert!(moved <= Duration::from_millis(2 * passed));
                prop_assert!(moved <= 2 * STALL_MIN, "nothing leaps");
                prop_assert_eq!(later(steady.time, steady.behind), later(at(1_000), Duration::from_millis(monotonic)));
                before = steady;
            }
        }

        /// What is promised about a pause is what comes of it, while nothing else is missed.
        #[test]
        fn a_pause_ends_when_it_was_said_to(missed in 0u64..100_000, waited in 0u64..50_000, pause in 0u64..200_000) {
            let mut pace = watched();
            pace.read(Duration::from_millis(missed));
            pace.pass(Duration::from_millis(missed + waited));
            let due = pace.read(Duration::from_millis(missed + waited)).after(Duration::from_millis(pause));
            pace.pass(Duration::from_millis(missed + waited + pause));
            prop_assert_eq!(pace.read(Duration::from_millis(missed + waited + pause)).time, due);
        }
    }
}
