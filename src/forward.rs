//! The state machine of a forward (one delivery to one destination): decides what happens next, does nothing itself.
//! Time and chance are arguments. What a lane does with its decisions is in `dispatch`.

use std::time::Duration;

use crate::clock::{Timestamp, later};

pub mod adaptive;
pub mod breaker;
pub mod order;
pub mod outcome;
pub mod state;

pub use adaptive::{Adaptive, Concurrency};
pub use breaker::{Breaker, Pass, Told};
pub use order::{By, OnDead, Order};
pub use outcome::{Fault, Outcome};
pub use state::State;

/// The longest that a backend's `Retry-After` is believed.
pub const RETRY_AFTER_MAX: Duration = Duration::from_hours(1);

/// Where full jitter would draw less, this is waited: a backend that is down must not be met by a hot loop.
pub const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The pause after an attempt that the gateway itself had no resources for: other attempts end and free some.
pub const RESOURCES_PAUSE: Duration = Duration::from_secs(1);

/// Where a forward stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// To be attempted, not before `due_at`.
    Waiting {
        /// The earliest time of the next attempt.
        due_at: Timestamp,
        /// Attempts that have been counted so far.
        attempts: u32,
    },
    /// An attempt is under way, or was when the process ended.
    InFlight {
        /// Its number, from 1. Counted before sending: a crash mid-send must not grant a free extra attempt.
        attempt: u32,
    },
    /// The backend has accepted it.
    Delivered,
    /// It gave up: a dead letter, kept until replayed or purged.
    Dead,
    /// An operator cancelled it.
    Cancelled,
}

/// When a failed attempt is followed by another, and when by giving up.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// The pauses between attempts.
    pub schedule: Schedule,
    /// How long after it became pending a forward is given up; checked when the next attempt would lie beyond.
    pub max_age: Duration,
    /// Whether a pause is drawn evenly from zero (but at least [`PAUSE_MIN`]) to its full length.
    pub full_jitter: bool,
    /// Statuses that are worth another attempt.
    pub statuses: Vec<StatusPattern>,
}

/// The pauses between attempts.
#[derive(Debug, Clone, PartialEq)]
pub enum Schedule {
    /// `initial × factorⁿ`, at most `max`, for as long as the age budget lasts.
    Exponential {
        /// The first pause.
        initial: Duration,
        /// What each pause is multiplied with; at least 1.
        factor: f64,
        /// The longest pause.
        max: Duration,
    },
    /// Exactly these, then the forward is dead.
    List(Vec<Duration>),
}

/// Which statuses an entry of `retry_statuses` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusPattern {
    /// One, such as `429`.
    Exact(u16),
    /// A hundred, such as `5xx` (5).
    Class(u16),
}

/// What happens to a forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// A lane takes it up: its next attempt begins, and is counted.
    Begin,
    /// Its attempt has ended.
    Answered {
        /// How.
        outcome: Outcome,
        /// The pause that the backend asked for.
        retry_after: Option<Duration>,
    },
    /// Its attempt was given back before anything had been sent, and does not count.
    Returned,
    /// Its attempt was cut off by a shutdown or crash. It counts, and the next one is due at once.
    Interrupted,
    /// An operator, or a provider's redelivery, wants it again from the start.
    Requeue,
    /// An operator wants it no more.
    Cancel,
    /// An operator has no use for a dead letter.
    Purge,
}

/// What is to be done about a decision besides writing it down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Have the lane look again at this time, or sooner.
    Wake(Timestamp),
    /// Tell the operators of a new dead letter.
    Mourn,
}

/// When a lane stops trying for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// Consecutive failures that open it.
    pub failures: u32,
    /// The first pause before a single probe; doubles while probes fail.
    pub probe_after: Duration,
    /// The longest pause.
    pub probe_max: Duration,
}

impl RetryPolicy {
    /// The longest that anything makes a forward wait.
    pub fn pause_max(&self) -> Duration {
        let longest = match &self.schedule {
            Schedule::Exponential { max, .. } => *max,
            Schedule::List(pauses) => pauses.iter().copied().max().unwrap_or_default(),
        };
        longest.max(RETRY_AFTER_MAX)
    }

    /// The pause after failed attempt number `attempt` (from 1), with `jitter` drawn evenly from 0 to 1. `None` when
    /// the schedule ends here.
    pub fn pause(&self, attempt: u32, jitter: f64) -> Option<Duration> {
        let full = match &self.schedule {
            Schedule::Exponential { initial, factor, max } => {
                let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
                // Not a duration (infinite, or beyond 2^64 s) is beyond any maximum.
                Duration::try_from_secs_f64(initial.as_secs_f64() * factor.powi(exponent))
                    .map_or(*max, |pause| pause.min(*max))
            }
            Schedule::List(pauses) => *pauses.get(usize::try_from(attempt.saturating_sub(1)).ok()?)?,
        };
        Some(if self.full_jitter {
            full.mul_f64(jitter.clamp(0.0, 1.0)).max(PAUSE_MIN.min(full))
        } else {
            full
        })
    }
}

impl StatusPattern {
    /// Whether it means `status`.
    pub fn matches(self, status: u16) -> bool {
        match self {
            Self::Exact(exact) => status == exact,
            Self::Class(class) => status / 100 == class,
        }
    }
}

/// Decides what becomes of a forward that stood at `progress`, pending since `pending_since`, when `input` happens at
/// `now`. `jitter` is drawn evenly from 0 to 1. What does not fit (the answer to an attempt that is not under way, a
/// second cancellation) changes nothing.
pub fn step(
    policy: &RetryPolicy,
    pending_since: Timestamp,
    progress: Progress,
    input: Input,
    now: Timestamp,
    jitter: f64,
) -> (Progress, Vec<Action>) {
    let again = |attempts, due_at| (Progress::Waiting { due_at, attempts }, vec![Action::Wake(due_at)]);
    match (input, progress) {
        (Input::Begin, Progress::Waiting { attempts, .. }) => {
            (Progress::InFlight { attempt: attempts.saturating_add(1) }, Vec::new())
        }
        (Input::Answered { outcome, retry_after }, Progress::InFlight { attempt }) => {
            if outcome == Outcome::Delivered {
                return (Progress::Delivered, Vec::new());
            }
            // What we lacked must not use up the attempts; the age budget still ends what is never to pass.
            let (counted, next) = if outcome == Outcome::GatewayResources {
                (attempt.saturating_sub(1), Some(RESOURCES_PAUSE))
            } else {
                (attempt, if outcome.is_retried() { policy.pause(attempt, jitter) } else { None })
            };
            let last = later(pending_since, policy.max_age);
            match next.map(|pause| later(now, pause)).filter(|due_at| *due_at <= last) {
                Some(due_at) => {
                    // A wish of the backend's: it delays the next attempt, and never takes it away.
                    let asked = later(now, retry_after.unwrap_or_default().min(RETRY_AFTER_MAX));
                    again(counted, due_at.max(asked.min(last)))
                }
                None => (Progress::Dead, vec![Action::Mourn]),
            }
        }
        (Input::Returned, Progress::InFlight { attempt }) => again(attempt.saturating_sub(1), now),
        (Input::Interrupted, Progress::InFlight { attempt }) => again(attempt, now),
        (Input::Requeue, Progress::Delivered | Progress::Dead | Progress::Cancelled) => again(0, now),
        (Input::Cancel, Progress::Waiting { .. } | Progress::InFlight { .. }) => {
            (Progress::Cancelled, Vec::new())
        }
        (Input::Purge, Progress::Dead) => (Progress::Cancelled, Vec::new()),
        (
            Input::Begin,
            Progress::InFlight { .. } | Progress::Delivered | Progress::Dead | Progress::Cancelled,
        )
        | (
            Input::Answered { .. } | Input::Returned | Input::Interrupted,
            Progress::Waiting { .. } | Progress::Delivered | Progress::Dead | Progress::Cancelled,
        )
        | (Input::Requeue, Progress::Waiting { .. } | Progress::InFlight { .. })
        | (Input::Cancel, Progress::Delivered | Progress::Dead | Progress::Cancelled)
        | (
            Input::Purge,
            Progress::Waiting { .. } | Progress::InFlight { .. } | Progress::Delivered | Progress::Cancelled,
        ) => (progress, Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use proptest::prelude::*;

    use super::*;
    use crate::clock::{Clock, Hand, from_milliseconds};

    pub(super) fn policy() -> RetryPolicy {
        RetryPolicy {
            schedule: Schedule::Exponential { initial: s(5), factor: 2.0, max: s(3_600) },
            max_age: s(3 * 24 * 3_600),
            full_jitter: false,
            statuses: vec![
                StatusPattern::Exact(408),
                StatusPattern::Exact(425),
                StatusPattern::Exact(429),
                StatusPattern::Class(5),
            ],
        }
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn at(seconds: i64) -> Timestamp {
        from_milliseconds(seconds * 1_000)
    }

    const fn answered(outcome: Outcome) -> Input {
        Input::Answered { outcome, retry_after: None }
    }

    /// At 1,000 s, pending since 0 s, without jitter.
    fn check(policy: &RetryPolicy, progress: Progress, input: Input, next: Progress, actions: &[Action]) {
        let (found, found_actions) = step(policy, at(0), progress, input, at(1_000), 1.0);
        assert_eq!((found, found_actions.as_slice()), (next, actions), "{progress:?} {input:?}");
    }

    fn waits(policy: &RetryPolicy, progress: Progress, input: Input, attempts: u32, seconds: i64) {
        let due_at = at(1_000 + seconds);
        check(policy, progress, input, Progress::Waiting { due_at, attempts }, &[Action::Wake(due_at)]);
    }

    const THIRD: Progress = Progress::InFlight { attempt: 3 };

    #[test]
    fn answers_decide() {
        for outcome in Outcome::ALL {
            match outcome {
                Outcome::Delivered => check(&policy(), THIRD, answered(outcome), Progress::Delivered, &[]),
                Outcome::Rejected | Outcome::Redirected | Outcome::Unsendable | Outcome::TemplateFailed => {
                    check(&policy(), THIRD, answered(outcome), Progress::Dead, &[Action::Mourn]);
                }
                Outcome::RetryableStatus
                | Outcome::DnsFailed
                | Outcome::AddressRefused
                | Outcome::ConnectFailed
                | Outcome::ConnectTimeout
                | Outcome::TlsFailed
                | Outcome::Timeout
                | Outcome::ConnectionLost
                | Outcome::InvalidResponse
                | Outcome::Interrupted => waits(&policy(), THIRD, answered(outcome), 3, 20),
                Outcome::GatewayResources => waits(&policy(), THIRD, answered(outcome), 2, 1),
            }
        }
    }

    #[test]
    fn attempts_are_counted_when_they_begin() {
        let waiting = Progress::Waiting { due_at: at(7), attempts: 2 };
        check(&policy(), waiting, Input::Begin, THIRD, &[]);
        waits(&policy(), THIRD, Input::Interrupted, 3, 0);
        waits(&policy(), THIRD, Input::Returned, 2, 0);
    }

    #[test]
    fn operators_bring_back_and_cancel() {
        for ended in [Progress::Delivered, Progress::Dead, Progress::Cancelled] {
            waits(&policy(), ended, Input::Requeue, 0, 0);
            check(&policy(), ended, Input::Cancel, ended, &[]);
        }
        check(&policy(), THIRD, Input::Cancel, Progress::Cancelled, &[]);
        check(&policy(), THIRD, Input::Requeue, THIRD, &[]);
    }

    #[test]
    fn only_dead_letters_are_purged() {
        check(&policy(), Progress::Dead, Input::Purge, Progress::Cancelled, &[]);
        let waiting = Progress::Waiting { due_at: at(7), attempts: 2 };
        for other in [THIRD, waiting, Progress::Delivered, Progress::Cancelled] {
            check(&policy(), other, Input::Purge, other, &[]);
        }
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        for progress in
            [Progress::Waiting { due_at: at(0), attempts: 1 }, Progress::Dead, Progress::Cancelled]
        {
            for input in [answered(Outcome::Delivered), Input::Returned, Input::Interrupted] {
                check(&policy(), progress, input, progress, &[]);
            }
        }
        check(&policy(), THIRD, Input::Begin, THIRD, &[]);
    }

    #[test]
    fn retry_after_is_a_minimum_and_capped() {
        let asks = |retry_after| Input::Answered {
            outcome: Outcome::RetryableStatus,
            retry_after: Some(retry_after),
        };
        waits(&policy(), THIRD, asks(s(7)), 3, 20);
        waits(&policy(), THIRD, asks(s(120)), 3, 120);
        waits(&policy(), THIRD, asks(s(1_000_000_000)), 3, 3_600);
        waits(&policy(), THIRD, asks(Duration::MAX), 3, 3_600);
    }

    /// A backend that answered `Retry-After: 3600` to a delivery with ten minutes left made a dead letter of it at once.
    #[test]
    fn retry_after_takes_no_attempt_away() {
        let asks = Input::Answered { outcome: Outcome::RetryableStatus, retry_after: Some(s(3_600)) };
        waits(&RetryPolicy { max_age: s(1_600), ..policy() }, THIRD, asks, 3, 600);
        waits(&RetryPolicy { max_age: s(1_020), ..policy() }, THIRD, asks, 3, 20);
        let short = RetryPolicy { max_age: s(1_019), ..policy() };
        check(&short, THIRD, asks, Progress::Dead, &[Action::Mourn]);
    }

    #[test]
    fn a_forward_dies_when_its_next_attempt_would_be_too_late() {
        let failed = answered(Outcome::Timeout);
        waits(&RetryPolicy { max_age: s(1_020), ..policy() }, THIRD, failed, 3, 20);
        let short = RetryPolicy { max_age: s(1_019), ..policy() };
        check(&short, THIRD, failed, Progress::Dead, &[Action::Mourn]);
    }

    #[test]
    fn a_list_is_used_up() {
        let list = RetryPolicy { schedule: Schedule::List(vec![s(10), s(60)]), ..policy() };
        waits(&list, Progress::InFlight { attempt: 1 }, answered(Outcome::Timeout), 1, 10);
        waits(&list, Progress::InFlight { attempt: 2 }, answered(Outcome::Timeout), 2, 60);
        check(&list, THIRD, answered(Outcome::Timeout), Progress::Dead, &[Action::Mourn]);
    }

    /// At the limit of open files every attempt of every lane failed at once and was counted: a list of two pauses
    /// ended in dead letters within seconds, at backends that had nothing to do with it.
    #[test]
    fn what_the_gateway_lacks_uses_up_no_attempt_but_the_age_budget() {
        let lacking = answered(Outcome::GatewayResources);
        let list = RetryPolicy { schedule: Schedule::List(Vec::new()), ..policy() };
        waits(&list, THIRD, lacking, 2, 1);
        waits(&list, Progress::InFlight { attempt: 1 }, lacking, 0, 1);
        let old = RetryPolicy { max_age: s(1_000), ..list };
        check(&old, THIRD, lacking, Progress::Dead, &[Action::Mourn]);
    }

    /// Attempts, and real seconds, until a forward that always fails is dead, while `disturb` plays with the clock.
    fn life(policy: &RetryPolicy, mut disturb: impl FnMut(u32, &Hand)) -> (u32, u64) {
        let (clock, hand) = Clock::manual(at(0));
        let _watch = clock.watch();
        let (mut attempt, mut lived) = (1, s(0));
        loop {
            let steady = clock.steady();
            let under_way = Progress::InFlight { attempt };
            let failed = answered(Outcome::Timeout);
            let Progress::Waiting { due_at, .. } = step(policy, at(0), under_way, failed, steady.time, 1.0).0
            else {
                return (attempt, lived.as_secs());
            };
            disturb(attempt, &hand);
            let pause = clock.steady().until(due_at);
            hand.advance(pause);
            assert_eq!(clock.steady().time, due_at);
            lived += pause;
            attempt += 1;
        }
    }

    /// A day's step once made everything that waited a day old, or kept it alive for one more.
    #[test]
    fn a_dead_letter_is_neither_early_nor_late_whatever_the_clock_does() {
        let minutely = Schedule::Exponential { initial: s(60), factor: 1.0, max: s(60) };
        let policy = RetryPolicy { schedule: minutely, max_age: s(3_600), ..policy() };
        assert_eq!(life(&policy, |_, _| ()), (61, 3_600));
        for seconds in [600, -600, 3_600, -3_600, 86_400, -86_400] {
            let set = SignedDuration::from_secs(seconds);
            let once =
                |attempt, hand: &Hand| hand.step(if attempt == 30 { set } else { SignedDuration::ZERO });
            assert_eq!(life(&policy, once), (61, 3_600));
            let to_and_fro = |attempt, hand: &Hand| hand.step(if attempt % 2 == 0 { set } else { -set });
            assert_eq!(life(&policy, to_and_fro), (61, 3_600));
        }
        // What was missed is made up: the 30 s that it stood still are not in this figure.
        let stands_still = |attempt, hand: &Hand| hand.stall(s(if attempt == 30 { 30 } else { 0 }));
        assert_eq!(life(&policy, stands_still), (61, 3_570));
    }

    proptest! {
        #[test]
        fn pauses_stay_within_their_bounds(
            initial in 0u64..100_000, factor in 1.0f64..10.0, max in 1u64..10_000_000,
            attempt in 1u32..=u32::MAX, jitter in 0.0f64..=1.0,
        ) {
            let (initial, max) = (Duration::from_millis(initial), Duration::from_millis(max));
            let schedule = Schedule::Exponential { initial, factor, max };
            let plain = RetryPolicy { schedule, full_jitter: false, ..policy() };
            let full = plain.pause(attempt, jitter).unwrap();
            prop_assert!(full <= max && full >= initial.min(max));
            prop_assert!(full <= plain.pause(attempt.saturating_add(1), jitter).unwrap(), "pauses never shrink");

            let drawn = RetryPolicy { full_jitter: true, ..plain }.pause(attempt, jitter).unwrap();
            prop_assert!(drawn <= full && drawn >= PAUSE_MIN.min(full));
        }

        #[test]
        fn a_failing_forward_ends_dead_within_its_age(
            initial in 1u64..100, max_age in 1u64..20_000, jitters in proptest::collection::vec(0.0f64..=1.0, 8),
        ) {
            let policy = RetryPolicy {
                schedule: Schedule::Exponential { initial: s(initial), factor: 2.0, max: s(600) },
                max_age: s(max_age),
                full_jitter: true,
                ..policy()
            };
            let (mut now, mut progress) = (at(0), Progress::Waiting { due_at: at(0), attempts: 0 });
            let mut draws = jitters.into_iter().cycle();
            while let Progress::Waiting { due_at, attempts } = progress {
                prop_assert!(due_at >= now && due_at <= later(at(0), policy.max_age));
                prop_assert!(attempts < 300_000, "every pause has a floor");
                now = due_at;
                progress = step(&policy, at(0), progress, Input::Begin, now, 0.0).0;
                let jitter = draws.next().unwrap();
                progress = step(&policy, at(0), progress, answered(Outcome::Timeout), now, jitter).0;
            }
            prop_assert_eq!(progress, Progress::Dead);
        }
    }
}
