//! Where time comes from. There are two readings of it. *Wall* time dates what the outside world dates: receipt,
//! signatures, secrets, what operators see; whoever administers the machine may set it. *Steady* time decides when
//! forwards are due and how old they are: it begins at the wall time of the start, does not follow when the wall clock
//! is set, and does not leap over a time in which the process stood still. Timeouts and durations come from tokio.
//! What steady time makes of the clocks that it is given is pure, in `steady`.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::SignedDuration;
pub use jiff::Timestamp;

mod steady;

use steady::Pace;
pub use steady::Steady;

/// How far wall and steady time are believed when they differ. A day, to hold what was true before somebody set the
/// clock by one, and an hour for whoever did so a little late; not more, since a machine that believed in 1970 until
/// its network came up must not keep everything for ever.
pub const DIFFERENCE_MAX: Duration = Duration::from_hours(25);

/// A look at the wall clock that took longer was interrupted, and says nothing about steps.
const LOOK_MAX: Duration = Duration::from_millis(100);

/// A source of wall and steady time; cheap to clone, and clones are the same clock.
#[derive(Clone)]
pub struct Clock(Arc<Inner>);

struct Inner {
    wall: Box<dyn Fn() -> Timestamp + Send + Sync>,
    /// Since the clock was made.
    monotonic: Box<dyn Fn() -> Duration + Send + Sync>,
    pace: Mutex<Pace>,
}

impl Clock {
    /// The machine's own clocks. Steady time begins here.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clocks")]
    pub fn system() -> Self {
        let origin = std::time::Instant::now();
        Self::new(Timestamp::now, move || origin.elapsed())
    }

    /// A clock that stands still until its [`Hand`] moves it.
    pub fn manual(start: Timestamp) -> (Self, Hand) {
        let set_ms = Arc::new(AtomicI64::new(start.as_millisecond()));
        let passed_ms = Arc::new(AtomicI64::new(0));
        let (set, passed, monotonic) = (Arc::clone(&set_ms), Arc::clone(&passed_ms), Arc::clone(&passed_ms));
        let clock = Self::new(
            move || {
                from_milliseconds(set.load(Ordering::SeqCst).saturating_add(passed.load(Ordering::SeqCst)))
            },
            move || Duration::from_millis(monotonic.load(Ordering::SeqCst).unsigned_abs()),
        );
        let hand = Hand { clock: clock.clone(), set_ms, passed_ms };
        (clock, hand)
    }

    fn new(
        wall: impl Fn() -> Timestamp + Send + Sync + 'static,
        monotonic: impl Fn() -> Duration + Send + Sync + 'static,
    ) -> Self {
        let pace = Mutex::new(Pace::new(wall()));
        Self(Arc::new(Inner { wall: Box::new(wall), monotonic: Box::new(monotonic), pace }))
    }

    /// The wall time now.
    pub fn now(&self) -> Timestamp {
        (self.0.wall)()
    }

    /// The steady time now.
    pub fn steady(&self) -> Steady {
        let mut pace = self.pace();
        // Under the lock, so that what two threads read is in order.
        pace.read((self.0.monotonic)())
    }

    /// Sets steady time forward or (negative) back, once, before anything goes by it: gateways that share a store go by
    /// the store's time.
    pub fn shift_steady(&self, by: SignedDuration) {
        self.pace().shift(by);
    }

    /// Both readings now.
    pub fn moment(&self) -> Moment {
        Moment { wall: self.now(), steady: self.steady() }
    }

    /// Begins to look for steps and stalls. Only while there is a watch does steady time hold back what was missed:
    /// somebody has to look more often than [`Watch::EVERY`] to know that nobody could.
    pub fn watch(&self) -> Watch {
        let mut pace = self.pace();
        pace.set_watched(true, (self.0.monotonic)());
        Watch(self.clone())
    }

    /// Nothing that holds it leaves a half-made change when it panics.
    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.0.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}

/// One moment, by both readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// What the wall clock showed.
    pub wall: Timestamp,
    /// What steady time was.
    pub steady: Steady,
}

impl Moment {
    /// The earlier reading, at most [`DIFFERENCE_MAX`] before the wall clock's: what has ended by this has ended by
    /// either.
    pub fn earliest(self) -> Timestamp {
        self.wall.min(self.steady.time.max(earlier(self.wall, DIFFERENCE_MAX)))
    }

    /// The later reading, at most [`DIFFERENCE_MAX`] after the wall clock's: what lasts for a time from this lasts for
    /// it by either.
    pub fn latest(self) -> Timestamp {
        // As if nothing had been missed: what is made up later must not shorten what begins now.
        let steady = later(self.steady.time, self.steady.behind);
        self.wall.max(steady.min(later(self.wall, DIFFERENCE_MAX)))
    }
}

/// Looks for steps of the wall clock, and for times in which the process stood still.
#[derive(Debug)]
pub struct Watch(Clock);

/// What a [`Watch`] saw since its last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sighting {
    /// By how much the wall clock was set, forward or (negative) backward.
    pub step: Option<SignedDuration>,
    /// For how long the process stood still.
    pub stall: Option<Duration>,
}

impl Watch {
    /// How often to look.
    pub const EVERY: Duration = Duration::from_millis(250);

    /// What has happened since the last look.
    pub fn look(&self) -> Sighting {
        let Inner { wall, monotonic, .. } = &*self.0.0;
        let before = monotonic();
        let now = wall();
        let after = monotonic();
        let mut pace = self.0.pace();
        pace.read(after);
        // Stopped between the two readings it would have seen a step that there was not.
        let sure = after.saturating_sub(before) <= LOOK_MAX;
        Sighting { step: if sure { pace.compare(now, after) } else { None }, stall: pace.take_stall() }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut pace = self.0.pace();
        pace.set_watched(false, (self.0.0.monotonic)());
    }
}

/// Moves a manual [`Clock`].
#[derive(Debug)]
pub struct Hand {
    clock: Clock,
    /// What the wall clock would show had no time passed.
    set_ms: Arc<AtomicI64>,
    /// One number for both readings: no thread may see one of them move before the other.
    passed_ms: Arc<AtomicI64>,
}

impl Hand {
    /// Lets whole milliseconds of `time` pass, by all readings.
    pub fn advance(&self, time: Duration) {
        self.stall(time);
        self.clock.pace().pass((self.clock.0.monotonic)());
    }

    /// Lets whole milliseconds of `time` pass without anybody looking.
    pub fn stall(&self, time: Duration) {
        let milliseconds = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        self.passed_ms.fetch_add(milliseconds, Ordering::SeqCst);
    }

    /// Sets the wall clock forward or (negative) back by whole milliseconds of `step`.
    pub fn step(&self, step: SignedDuration) {
        let milliseconds = i64::try_from(step.as_millis()).unwrap_or(i64::MAX);
        self.set_ms.fetch_add(milliseconds, Ordering::SeqCst);
    }
}

/// The time that lies `milliseconds` after the Unix epoch, at the nearest end of what a timestamp can hold when it
/// lies outside (year -9999 to 9999).
pub fn from_milliseconds(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(milliseconds).unwrap_or(if milliseconds < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    })
}

/// `time + step`, at the latest timestamp there is when the sum lies beyond.
pub fn later(time: Timestamp, step: Duration) -> Timestamp {
    time.checked_add(step).unwrap_or(Timestamp::MAX)
}

/// `time - step`, at the earliest timestamp there is when the difference lies before.
pub fn earlier(time: Timestamp, step: Duration) -> Timestamp {
    time.checked_sub(step).unwrap_or(Timestamp::MIN)
}

/// How long after `from` the time `to` lies; zero when it lies before.
pub fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn at(seconds: i64) -> Timestamp {
        from_milliseconds(seconds * 1_000)
    }

    #[test]
    fn a_manual_clock_moves_only_by_hand() {
        let (clock, hand) = Clock::manual(at(1));
        assert_eq!((clock.now(), clock.steady().time), (at(1), at(1)));
        hand.advance(s(3_600));
        assert_eq!((clock.now(), clock.steady().time), (at(3_601), at(3_601)));
        hand.step(SignedDuration::from_secs(-600));
        assert_eq!((clock.now(), clock.steady().time), (at(3_001), at(3_601)));
    }

    /// The gateways of one store go by its time; that is no step of the wall clock.
    #[test]
    fn steady_time_can_begin_at_another_clocks() {
        let (clock, hand) = Clock::manual(at(1_000));
        let watch = clock.watch();
        clock.shift_steady(SignedDuration::from_secs(-300));
        hand.advance(s(1));
        assert_eq!((clock.now(), clock.steady().time), (at(1_001), at(701)));
        assert_eq!(watch.look().step, None);
    }

    #[test]
    fn no_thread_sees_one_reading_move_before_the_other() {
        let (clock, hand) = Clock::manual(at(0));
        let reading = std::thread::spawn(move || {
            while clock.now() < at(20_000) {
                let (before, steady, after) = (clock.now(), clock.steady().time, clock.now());
                assert!(before <= steady && steady <= after, "{before} {steady} {after}");
            }
        });
        for _ in 0..20_000 {
            hand.advance(s(1));
        }
        reading.join().unwrap();
    }

    #[test]
    fn a_watch_sees_steps_and_stalls_once_and_nothing_else() {
        let (clock, hand) = Clock::manual(at(0));
        hand.stall(s(100));
        assert_eq!(clock.steady().time, at(100), "nobody was watching");
        let watch = clock.watch();
        let check = |step, stall| {
            let step = (step != 0).then(|| SignedDuration::from_secs(step));
            let stall = (stall != 0).then(|| s(stall));
            assert_eq!(watch.look(), Sighting { step, stall });
        };
        check(0, 0);
        for step in [600, -600, 3_600, -3_600, 86_400, -86_400] {
            hand.step(SignedDuration::from_secs(step));
            hand.advance(s(1));
            check(step, 0);
            check(0, 0);
        }
        assert_eq!(clock.steady().time, at(106));
        // Slewing: never more than a little between two looks, but no end of it.
        for _ in 0..10_000 {
            hand.step(SignedDuration::from_millis(1));
            hand.advance(Watch::EVERY);
            check(0, 0);
        }
        assert_eq!(clock.steady().time, at(2_606));
        hand.stall(s(30));
        assert_eq!(clock.steady().time, at(2_606), "the first to read it finds the stall");
        check(0, 30);
        hand.step(SignedDuration::from_secs(86_400));
        hand.stall(s(5));
        check(86_400, 5);
        drop(watch);
        hand.stall(s(5));
        assert!(clock.steady().time > at(2_606), "time goes on without a watch");
    }

    #[test]
    fn both_readings_are_believed_within_bounds() {
        let check = |wall, steady, earliest, latest| {
            let steady = Steady { time: at(steady), behind: Duration::ZERO };
            let moment = Moment { wall: at(wall), steady };
            assert_eq!((moment.earliest(), moment.latest()), (at(earliest), at(latest)), "{moment:?}");
        };
        check(100, 100, 100, 100);
        check(100, 40, 40, 100);
        check(100, 160, 100, 160);
        // From 1970 to today, and back.
        check(1_800_000_000, 100, 1_800_000_000 - 25 * 3_600, 1_800_000_000);
        check(100, 1_800_000_000, 100, 100 + 25 * 3_600);
    }

    /// What happens between two looks at one claim: so much time passes, and the clock is then so far off.
    fn happenings() -> impl Strategy<Value = Vec<(u64, i64, bool)>> {
        let ahead = prop_oneof![Just(0), Just(600), Just(3_600), Just(86_400), 0i64..=86_400];
        let passed = prop_oneof![0u64..700, 0u64..200_000];
        proptest::collection::vec((passed, ahead, any::<bool>()), 1..40)
    }

    proptest! {
        /// A request that was accepted, whose claim lasts for no longer than the window is wide, with or without a time
        /// that is signed. The clock is off by up to a day, to one side; retention looks all the time.
        #[test]
        fn whatever_the_clock_does_a_claim_lasts_while_it_is_needed(
            happenings in happenings(), sent_after in -300i64..=300, side in prop_oneof![Just(1), Just(-1)],
            restarts in any::<bool>(), accepted in 0usize..10,
        ) {
            const TTL: u64 = 600;
            let (mut clock, mut hand) = Clock::manual(at(1_000_000));
            let mut watch = clock.watch();
            let (mut ahead, mut real) = (0, 0);
            let mut claim = None;
            let mut swept = false;
            for (number, (passed, off, stalls)) in happenings.into_iter().enumerate() {
                if stalls { hand.stall(s(passed)) } else { hand.advance(s(passed)) }
                real += passed;
                hand.step(SignedDuration::from_secs(side * off - ahead));
                ahead = side * off;
                if restarts && stalls {
                    let wall = clock.now();
                    (clock, hand) = Clock::manual(wall);
                    watch = clock.watch();
                }
                watch.look();
                let moment = clock.moment();
                if number == accepted {
                    let signed_at = moment.wall + SignedDuration::from_secs(sent_after);
                    claim = Some((signed_at, later(moment.latest(), s(TTL)), real));
                }
                let Some((signed_at, until, since)) = claim else { continue };
                swept |= later(until, DIFFERENCE_MAX) <= moment.earliest();
                let held = !swept && until > moment.earliest();
                let fresh = signed_at.duration_since(moment.wall).abs() <= SignedDuration::from_secs(300);
                prop_assert!(held || !fresh, "a captured request with a signed time is new again");
                prop_assert!(held || restarts || real - since >= TTL, "one without a time is");
            }
        }
    }

    #[test]
    fn arithmetic_stops_at_the_ends_of_time() {
        assert_eq!(later(Timestamp::MAX, s(1)), Timestamp::MAX);
        assert_eq!(earlier(Timestamp::MIN, s(1)), Timestamp::MIN);
        assert_eq!(elapsed(from_milliseconds(5), from_milliseconds(3)), Duration::ZERO);
        assert_eq!(from_milliseconds(i64::MAX), Timestamp::MAX);
    }
}
