//! Timestamps as providers write them, and the window of time in which they are fresh. A timestamp is read strictly,
//! since its received text is what was signed: no sign, no fraction, no digits but ASCII ones.

use std::time::Duration;

use crate::clock::{self, Timestamp};

use super::Refusal;

/// How far a request's timestamp may lie from our clock at receipt; both edges are inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// How old it may be.
    pub past: Duration,
    /// How far ahead of our clock it may be.
    pub future: Duration,
}

impl Default for Window {
    /// Five minutes on either side, as most providers advise.
    fn default() -> Self {
        Self { past: Duration::from_mins(5), future: Duration::from_mins(5) }
    }
}

impl Window {
    /// Whether `at` is fresh at `now`, both in the steps of `unit`: senders compare whole seconds, too.
    pub(super) fn check(self, at: Timestamp, now: Timestamp, unit: Unit) -> Result<(), Refusal> {
        let now = match unit {
            Unit::Seconds | Unit::HttpDate => Timestamp::from_second(now.as_second()).unwrap_or(now),
            Unit::Milliseconds | Unit::Rfc3339 => now,
        };
        if at < clock::earlier(now, self.past) {
            Err(Refusal::TimestampTooOld)
        } else if at > clock::later(now, self.future) {
            Err(Refusal::TimestampTooNew)
        } else {
            Ok(())
        }
    }
}

/// How a timestamp is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Seconds,
    Milliseconds,
    /// Without an offset it is UTC.
    Rfc3339,
    HttpDate,
}

impl Unit {
    pub(super) const ALL: [Self; 4] = [Self::Seconds, Self::Milliseconds, Self::Rfc3339, Self::HttpDate];

    /// What operators call it.
    pub(super) fn noun(self) -> &'static str {
        match self {
            Self::Seconds => "seconds",
            Self::Milliseconds => "milliseconds",
            Self::Rfc3339 => "an RFC 3339 text",
            Self::HttpDate => "an HTTP date",
        }
    }

    pub(super) fn parse(self, text: &str) -> Option<Timestamp> {
        match self {
            Self::Seconds => Timestamp::from_second(digits(text, 12)?).ok(),
            Self::Milliseconds => Timestamp::from_millisecond(digits(text, 15)?).ok(),
            Self::Rfc3339 => rfc3339(text),
            Self::HttpDate => httpdate::parse_http_date(text).ok()?.try_into().ok(),
        }
    }

    pub(super) fn format(self, at: Timestamp) -> String {
        match self {
            Self::Seconds => at.as_second().to_string(),
            Self::Milliseconds => at.as_millisecond().to_string(),
            Self::Rfc3339 => at.to_string(),
            Self::HttpDate => httpdate::fmt_http_date(at.max(Timestamp::UNIX_EPOCH).into()),
        }
    }
}

fn digits(text: &str, digits_max: usize) -> Option<i64> {
    let fits = (1..=digits_max).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if fits { text.parse().ok() } else { None }
}

fn rfc3339(text: &str) -> Option<Timestamp> {
    // The library also reads spaces, lower case, bracketed zone names, and dates without hyphens.
    let allowed = |byte: u8| byte.is_ascii_digit() || b"-:.+TZ".contains(&byte);
    if text.as_bytes().get(10) != Some(&b'T') || !text.bytes().all(allowed) {
        return None;
    }
    let with_offset = || text.parse::<Timestamp>().ok();
    let utc = || format!("{text}Z").parse::<Timestamp>().ok();
    with_offset().or_else(utc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_read_strictly() {
        let check = |unit: Unit, text: &str, milliseconds: Option<i64>| {
            assert_eq!(unit.parse(text).map(Timestamp::as_millisecond), milliseconds, "{unit:?} {text:?}");
        };
        check(Unit::Seconds, "1776871800", Some(1_776_871_800_000));
        check(Unit::Seconds, "0", Some(0));
        check(Unit::Seconds, "0001", Some(1_000));
        check(Unit::Milliseconds, "1776871800123", Some(1_776_871_800_123));
        for malformed in [
            "",
            " 1",
            "1 ",
            "-1",
            "+1",
            "1.0",
            "1e3",
            "0x10",
            "１７７６",
            "1_000",
            "1,1",
            "1776871800123",
            "999999999999",
            "99999999999999999999999",
        ] {
            check(Unit::Seconds, malformed, None);
        }
        check(Unit::Milliseconds, "1776871800123456", None);
        check(Unit::Milliseconds, "999999999999999", None);

        check(Unit::Rfc3339, "2026-04-22T15:30:00Z", Some(1_776_871_800_000));
        check(Unit::Rfc3339, "2026-04-22T17:30:00.123456789+02:00", Some(1_776_871_800_123));
        check(Unit::Rfc3339, "2026-04-22T15:30:00", Some(1_776_871_800_000));
        for malformed in [
            "2026-04-22",
            "2026-04-22 15:30:00Z",
            "20260422T153000Z",
            "+002026-04-22T15:30:00Z",
            "2026-04-22t15:30:00z",
            "2026-04-22T15:30:00[Europe/Paris]",
            "2026-13-22T15:30:00Z",
            "1776871800",
        ] {
            check(Unit::Rfc3339, malformed, None);
        }
        check(Unit::HttpDate, "Wed, 22 Apr 2026 15:30:00 GMT", Some(1_776_871_800_000));
        check(Unit::HttpDate, "1776871800", None);
    }

    #[test]
    fn what_is_written_can_be_read() {
        let at = Timestamp::from_second(1_776_871_800).unwrap();
        for unit in [Unit::Seconds, Unit::Milliseconds, Unit::Rfc3339, Unit::HttpDate] {
            assert_eq!(unit.parse(&unit.format(at)), Some(at), "{unit:?}");
        }
    }

    #[test]
    fn the_window_has_two_sides_and_inclusive_edges() {
        let window = Window { past: Duration::from_secs(300), future: Duration::from_secs(60) };
        let now = clock::from_milliseconds(1_000_000_900);
        let check = |unit, milliseconds, expected| {
            assert_eq!(
                window.check(clock::from_milliseconds(milliseconds), now, unit),
                expected,
                "{milliseconds}"
            );
        };
        check(Unit::Seconds, 1_000_000_000, Ok(()));
        check(Unit::Seconds, 999_700_000, Ok(()));
        check(Unit::Seconds, 999_699_000, Err(Refusal::TimestampTooOld));
        check(Unit::Seconds, 1_000_060_000, Ok(()));
        check(Unit::Seconds, 1_000_061_000, Err(Refusal::TimestampTooNew));
        check(Unit::Milliseconds, 999_700_900, Ok(()));
        check(Unit::Milliseconds, 999_700_899, Err(Refusal::TimestampTooOld));
        check(Unit::Milliseconds, 1_000_060_900, Ok(()));
        check(Unit::Milliseconds, 1_000_060_901, Err(Refusal::TimestampTooNew));
        let ages = Window { past: Duration::MAX, future: Duration::MAX };
        assert_eq!(ages.check(Timestamp::MIN, Timestamp::MAX, Unit::Rfc3339), Ok(()));
    }
}
