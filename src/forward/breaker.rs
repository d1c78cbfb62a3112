//! Decides whether a lane's backend is worth trying at all. Only failures that are the backend's count; a backend that
//! refuses a delivery with a 4xx is up. While the breaker is broken nothing is attempted, so waiting costs no attempt.
//! Times are spans since any monotonic origin that the caller keeps.

use std::time::Duration;

use super::{BreakerPolicy, Fault};

/// The state of one lane's breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breaker {
    /// Everything may pass.
    Closed {
        /// Failures since the last attempt that was none.
        failures: u32,
    },
    /// Nothing may pass, until one probe may.
    Broken {
        /// When a probe may pass.
        until: Duration,
        /// How long this pause is; doubles when the probe fails.
        pause: Duration,
    },
    /// One probe is under way, and nothing else.
    Probing {
        /// The pause that it followed.
        pause: Duration,
    },
}

/// What an attempt may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Any number of attempts may begin.
    Free,
    /// This one attempt may begin, as a probe.
    Probe,
    /// None may before this time; `None` when it depends on the probe that is under way.
    Blocked(Option<Duration>),
}

/// What gateways that share a store tell each other of a breaker: by spans, since each has a monotonic time of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It is closed; each gateway counts failures by itself.
    Closed,
    /// It is open.
    Broken {
        /// How long it takes until a probe may pass.
        wait: Duration,
        /// How long the whole pause is.
        pause: Duration,
    },
}

impl Breaker {
    /// A closed breaker without failures.
    pub const fn new() -> Self {
        Self::Closed { failures: 0 }
    }

    /// Whether an attempt may begin at `now`; after [`Pass::Probe`] nothing else passes before the probe has ended.
    pub fn pass(&mut self, now: Duration) -> Pass {
        match *self {
            Self::Closed { .. } => Pass::Free,
            Self::Broken { until, .. } if now < until => Pass::Blocked(Some(until)),
            Self::Broken { pause, .. } => {
                *self = Self::Probing { pause };
                Pass::Probe
            }
            Self::Probing { .. } => Pass::Blocked(None),
        }
    }

    /// The probe was not needed, or ended without saying anything about the backend: another may pass at once.
    pub fn abandon_probe(&mut self, now: Duration) {
        match *self {
            Self::Probing { pause } => *self = Self::Broken { until: now, pause },
            Self::Closed { .. } | Self::Broken { .. } => {}
        }
    }

    /// Lets the next probe pass at once, for whoever knows that the backend is back. False when nothing is waiting for one.
    pub fn probe_now(&mut self, now: Duration) -> bool {
        match *self {
            Self::Broken { pause, .. } => {
                *self = Self::Broken { until: now, pause };
                true
            }
            Self::Closed { .. } | Self::Probing { .. } => false,
        }
    }

    /// An attempt has ended. Returns whether the breaker opened or closed because of it.
    pub fn record(&mut self, policy: &BreakerPolicy, fault: Fault, now: Duration) -> bool {
        let before = *self;
        match (fault, before) {
            // An answer of any kind, even a late one from before the breaker opened, proves that the backend is up.
            (Fault::Nobody | Fault::Delivery, _) => *self = Self::new(),
            (Fault::Backend, Self::Closed { failures }) => {
                let failures = failures.saturating_add(1);
                *self = if failures >= policy.failures {
                    let pause = policy.probe_after.min(policy.probe_max);
                    Self::Broken { until: now.saturating_add(pause), pause }
                } else {
                    Self::Closed { failures }
                };
            }
            (Fault::Backend, Self::Probing { pause }) => {
                let pause = pause.saturating_mul(2).min(policy.probe_max);
                *self = Self::Broken { until: now.saturating_add(pause), pause };
            }
            // Attempts that had begun before the breaker opened tell nothing new.
            (Fault::Backend, Self::Broken { .. }) => {}
            (Fault::Gateway, _) => self.abandon_probe(now),
        }
        before.is_closed() != self.is_closed()
    }

    /// What others should know of it; nothing while a probe is under way, which is about to change it.
    pub fn tell(&self, now: Duration) -> Option<Told> {
        match *self {
            Self::Closed { .. } => Some(Told::Closed),
            Self::Broken { until, pause } => Some(Told::Broken { wait: until.saturating_sub(now), pause }),
            Self::Probing { .. } => None,
        }
    }

    /// Takes over what others know, which a probe of its own is about to change.
    pub fn heed(&mut self, told: Told, now: Duration) {
        match (*self, told) {
            (Self::Probing { .. }, _) | (Self::Closed { .. }, Told::Closed) => {}
            (Self::Broken { .. }, Told::Closed) => *self = Self::new(),
            (_, Told::Broken { wait, pause }) => {
                *self = Self::Broken { until: now.saturating_add(wait), pause }
            }
        }
    }

    /// Whether the next attempt would be a probe.
    pub fn awaits_probe(&self, now: Duration) -> bool {
        matches!(*self, Self::Broken { until, .. } if until <= now)
    }

    /// Whether attempts pass freely.
    pub fn is_closed(&self) -> bool {
        match self {
            Self::Closed { .. } => true,
            Self::Broken { .. } | Self::Probing { .. } => false,
        }
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const POLICY: BreakerPolicy = BreakerPolicy { failures: 3, probe_after: s(30), probe_max: s(100) };

    fn broken_at_zero() -> Breaker {
        let mut breaker = Breaker::new();
        assert!(!breaker.record(&POLICY, Fault::Backend, s(0)));
        assert!(!breaker.record(&POLICY, Fault::Backend, s(0)));
        assert!(breaker.record(&POLICY, Fault::Backend, s(0)), "the third failure opens it");
        breaker
    }

    #[test]
    fn only_consecutive_failures_of_the_backend_open_it() {
        let mut breaker = Breaker::new();
        for fault in [Fault::Backend, Fault::Backend, Fault::Delivery, Fault::Backend, Fault::Gateway] {
            assert!(!breaker.record(&POLICY, fault, s(0)));
        }
        assert_eq!(breaker, Breaker::Closed { failures: 1 });
        assert_eq!(breaker.pass(s(0)), Pass::Free);
    }

    #[test]
    fn one_probe_passes_after_the_pause_and_closes_it() {
        let mut breaker = broken_at_zero();
        assert_eq!(breaker.pass(s(29)), Pass::Blocked(Some(s(30))));
        assert_eq!(breaker.pass(s(30)), Pass::Probe);
        assert_eq!(breaker.pass(s(31)), Pass::Blocked(None));
        assert!(breaker.record(&POLICY, Fault::Nobody, s(32)));
        assert_eq!(breaker, Breaker::new());
    }

    #[test]
    fn pauses_double_up_to_their_limit_while_probes_fail() {
        let mut breaker = broken_at_zero();
        let mut now = s(30);
        for pause in [60, 100, 100] {
            assert_eq!(breaker.pass(now), Pass::Probe);
            assert!(!breaker.record(&POLICY, Fault::Backend, now), "it stays open");
            now += s(pause);
            assert_eq!(breaker.pass(now - s(1)), Pass::Blocked(Some(now)));
        }
    }

    #[test]
    fn a_probe_that_says_nothing_is_repeated_at_once() {
        let mut breaker = broken_at_zero();
        assert_eq!(breaker.pass(s(30)), Pass::Probe);
        breaker.record(&POLICY, Fault::Gateway, s(31));
        assert_eq!(breaker.pass(s(31)), Pass::Probe);
        breaker.abandon_probe(s(32));
        assert_eq!(breaker.pass(s(32)), Pass::Probe);
    }

    #[test]
    fn an_operator_has_the_probe_pass_at_once_and_no_second_one() {
        let mut breaker = broken_at_zero();
        assert!(breaker.probe_now(s(5)));
        assert_eq!(breaker.pass(s(5)), Pass::Probe);
        assert!(!breaker.probe_now(s(6)), "one is under way");
        assert!(!breaker.record(&POLICY, Fault::Backend, s(6)));
        assert_eq!(breaker.pass(s(7)), Pass::Blocked(Some(s(66))), "the pause doubles as after any probe");
        assert!(!Breaker::new().probe_now(s(0)));
    }

    #[test]
    fn what_one_gateway_tells_holds_at_another() {
        let here = broken_at_zero();
        assert_eq!(here.tell(s(10)), Some(Told::Broken { wait: s(20), pause: s(30) }));
        let mut there = Breaker::Closed { failures: 2 };
        there.heed(Told::Closed, s(500));
        assert_eq!(there, Breaker::Closed { failures: 2 }, "its own failures stay counted");
        there.heed(here.tell(s(10)).unwrap(), s(500));
        assert_eq!(there.pass(s(519)), Pass::Blocked(Some(s(520))));
        assert!(!there.awaits_probe(s(519)) && there.awaits_probe(s(520)));
        assert_eq!(there.pass(s(520)), Pass::Probe);
        assert_eq!(there.tell(s(520)), None);
        there.heed(Told::Closed, s(521));
        assert_eq!(there.pass(s(521)), Pass::Blocked(None), "its probe decides");
        there.abandon_probe(s(522));
        there.heed(Told::Closed, s(522));
        assert_eq!(there, Breaker::new());
    }

    #[test]
    fn late_attempts_do_not_prolong_the_pause_but_may_end_it() {
        let mut breaker = broken_at_zero();
        assert!(!breaker.record(&POLICY, Fault::Backend, s(20)));
        assert_eq!(breaker.pass(s(29)), Pass::Blocked(Some(s(30))));
        assert!(breaker.record(&POLICY, Fault::Delivery, s(29)));
        assert_eq!(breaker.pass(s(29)), Pass::Free);
    }
}
