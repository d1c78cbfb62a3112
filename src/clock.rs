//! Where wall time comes from. Everything that judges freshness, age or expiry is given a [`Clock`] or a
//! [`Timestamp`], so that tests can set the time. Monotonic time (timeouts, durations) comes from tokio instead.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

pub use jiff::Timestamp;

/// A source of wall time; cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The machine's own clock.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
    pub fn system() -> Self {
        Self(Arc::new(Timestamp::now))
    }

    /// A clock that stands still until its [`Hand`] moves it.
    pub fn manual(start: Timestamp) -> (Self, Hand) {
        let milliseconds = Arc::new(AtomicI64::new(start.as_millisecond()));
        let hand = Hand(Arc::clone(&milliseconds));
        (Self(Arc::new(move || from_milliseconds(milliseconds.load(Ordering::SeqCst)))), hand)
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}

/// Moves a manual [`Clock`].
#[derive(Debug)]
pub struct Hand(Arc<AtomicI64>);

impl Hand {
    /// Moves the clock forward by whole milliseconds of `step`.
    pub fn advance(&self, step: Duration) {
        let step = i64::try_from(step.as_millis()).unwrap_or(i64::MAX);
        self.0.fetch_add(step, Ordering::SeqCst);
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
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_by_hand() {
        let (clock, hand) = Clock::manual(from_milliseconds(1_000));
        assert_eq!(clock.now().as_millisecond(), 1_000);
        hand.advance(Duration::from_secs(2));
        assert_eq!(clock.now().as_millisecond(), 3_000);
    }

    #[test]
    fn arithmetic_stops_at_the_ends_of_time() {
        assert_eq!(later(Timestamp::MAX, Duration::from_secs(1)), Timestamp::MAX);
        assert_eq!(earlier(Timestamp::MIN, Duration::from_secs(1)), Timestamp::MIN);
        assert_eq!(elapsed(from_milliseconds(5), from_milliseconds(3)), Duration::ZERO);
        assert_eq!(from_milliseconds(i64::MAX), Timestamp::MAX);
    }
}
