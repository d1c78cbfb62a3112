//! The gateway's own name for a delivery: a UUIDv7 (RFC 9562), so that ids sort by the time of receipt. Not to be
//! confused with the *delivery id*, which is the provider's text.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use crate::clock::{Timestamp, from_milliseconds};

/// A delivery's own id; `webhook-id` on the way to a backend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(Uuid);

impl Id {
    /// An id of the time `now` with 74 bits of `chance`.
    pub fn new(now: Timestamp, chance: [u8; 10]) -> Self {
        let milliseconds = u64::try_from(now.as_millisecond()).unwrap_or(0);
        Self(uuid::Builder::from_unix_timestamp_millis(milliseconds, &chance).into_uuid())
    }

    /// The time that it was made of, to the millisecond.
    pub fn time(&self) -> Timestamp {
        let milliseconds = self.as_bytes()[..6].iter().fold(0, |ms, byte| ms << 8 | i64::from(*byte));
        from_milliseconds(milliseconds)
    }

    /// The 16 bytes that the store keeps.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id whose bytes these are.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Id {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_survive_their_text() {
        let early = Id::new(from_milliseconds(1_000), [255; 10]);
        let late = Id::new(from_milliseconds(1_001), [0; 10]);
        assert!(early < late);
        assert_eq!(late.time(), from_milliseconds(1_001));
        assert_eq!(early.to_string().parse::<Id>().unwrap(), early);
        assert_eq!(Id::from_bytes(*late.as_bytes()), late);
    }
}
