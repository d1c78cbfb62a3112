//! Decides when something that may happen so often may happen next: the generic cell rate algorithm, which spreads
//! events evenly and needs one number of memory. Pure: monotonic time is an argument, as the span since any origin
//! that the caller keeps. It does not sleep.

use std::time::Duration;

use crate::units::Rate;

/// A limit on how often something may happen.
#[derive(Debug, Clone)]
pub struct Limiter {
    /// The time that one event of the whole rate uses up.
    whole: Duration,
    /// The same of the part of the rate that there is to use.
    interval: Duration,
    /// How far `used_until` may run ahead of the clock before an event has to wait.
    tolerance: Duration,
    /// The time up to which the allowance has been used ("theoretical arrival time").
    used_until: Duration,
}

impl Limiter {
    /// Lets `rate` pass in the long run, and at most `burst` (at least 1) at once. With a burst of 1 events keep their
    /// distance, so that no window of time ever holds more than the rate.
    pub fn new(rate: Rate, burst: u32) -> Self {
        let interval = rate.per / rate.events.max(1);
        Self {
            whole: interval,
            interval,
            tolerance: interval.saturating_mul(burst.saturating_sub(1)),
            used_until: Duration::ZERO,
        }
    }

    /// Lets only `part` of `parts` (both at least 1) of the rate pass from now on.
    pub fn divide(&mut self, part: u32, parts: u32) {
        self.interval = self.whole.saturating_mul(parts) / part.max(1);
    }

    /// Takes the next place if it comes up within `patience`, and says how long to wait for it (zero: now).
    ///
    /// # Errors
    /// How long it takes until the same call would succeed; nothing was taken.
    pub fn claim(&mut self, now: Duration, patience: Duration) -> Result<Duration, Duration> {
        let wait = self.used_until.saturating_sub(now.saturating_add(self.tolerance));
        if wait > patience {
            return Err(wait - patience);
        }
        self.used_until = self.used_until.max(now).saturating_add(self.interval);
        Ok(wait)
    }

    /// Gives the `count` latest places back, none of which was used.
    pub fn give_back(&mut self, count: u32) {
        self.used_until = self.used_until.saturating_sub(self.interval.saturating_mul(count));
    }
}

/// Lets through one event a second of many that are alike, and counts the others.
#[derive(Debug)]
pub struct Sampler {
    limiter: Limiter,
    skipped: u64,
}

impl Default for Sampler {
    /// Lets the first event through.
    fn default() -> Self {
        Self { limiter: Limiter::new(Rate { events: 1, per: Duration::from_secs(1) }, 1), skipped: 0 }
    }
}

impl Sampler {
    /// An event at `now`. When it is let through: how many were not since the last that was.
    pub fn note(&mut self, now: Duration) -> Option<u64> {
        if self.limiter.claim(now, Duration::ZERO).is_err() {
            self.skipped += 1;
            return None;
        }
        Some(std::mem::take(&mut self.skipped))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn ten_a_second(burst: u32) -> Limiter {
        Limiter::new(Rate { events: 10, per: Duration::from_secs(1) }, burst)
    }

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate() {
        let mut limiter = ten_a_second(3);
        for _ in 0..3 {
            assert_eq!(limiter.claim(ms(0), ms(0)), Ok(ms(0)));
        }
        assert_eq!(limiter.claim(ms(0), ms(0)), Err(ms(100)));
        assert_eq!(limiter.claim(ms(100), ms(0)), Ok(ms(0)));
        assert_eq!(limiter.claim(ms(100), ms(0)), Err(ms(100)));
    }

    #[test]
    fn places_ahead_keep_their_distance() {
        let mut limiter = ten_a_second(1);
        for wait in [Ok(ms(0)), Ok(ms(100)), Ok(ms(200)), Err(ms(50)), Err(ms(50))] {
            assert_eq!(limiter.claim(ms(5_000), ms(250)), wait);
        }
        limiter.give_back(2);
        assert_eq!(limiter.claim(ms(5_000), ms(250)), Ok(ms(100)));
    }

    #[test]
    fn a_part_of_the_rate_goes_on_from_what_has_been_used() {
        let mut limiter = ten_a_second(1);
        assert_eq!(limiter.claim(ms(0), ms(0)), Ok(ms(0)));
        limiter.divide(1, 4);
        for wait in [100, 500, 900] {
            assert_eq!(limiter.claim(ms(0), ms(1_000)), Ok(ms(wait)));
        }
        limiter.divide(4, 4);
        assert_eq!(limiter.claim(ms(2_000), ms(0)), Ok(ms(0)));
        assert_eq!(limiter.claim(ms(2_000), ms(0)), Err(ms(100)));
    }

    #[test]
    fn a_rest_is_not_saved_up() {
        let mut limiter = ten_a_second(2);
        assert!(limiter.claim(ms(0), ms(0)).is_ok());
        for _ in 0..2 {
            assert!(limiter.claim(ms(60_000), ms(0)).is_ok());
        }
        assert!(limiter.claim(ms(60_000), ms(0)).is_err());
    }

    proptest! {
        #[test]
        fn no_window_holds_more_than_the_burst_and_the_rate(
            steps in proptest::collection::vec(0u64..400, 1..200),
            burst in 1u32..5,
        ) {
            let mut limiter = ten_a_second(burst);
            let (mut now, mut events) = (ms(0), Vec::new());
            for step in steps {
                now += ms(step);
                if let Ok(wait) = limiter.claim(now, ms(300)) {
                    events.push(now + wait);
                }
            }
            for (n, start) in events.iter().enumerate() {
                let within = events[n..].iter().filter(|time| **time < *start + ms(1_000)).count();
                prop_assert!(within < 10 + burst as usize, "{within} within a second");
            }
        }
    }
}
