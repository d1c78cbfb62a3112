//! The claims of late, in a table of fixed size: a key has a few places, and takes that of the claim that ends first.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::clock::{Timestamp, from_milliseconds};
use crate::dedup::Key;
use crate::id::Id;

/// Places that a key can stand in.
const WAYS: usize = 8;
/// Places under one lock.
const SHARD_SLOTS: usize = 1 << 12;

/// 12 bytes of the key, the 16 of the first delivery's id, 4 of the body's digest, and the second in which the claim
/// ends. All zeros is nobody's: memory that is never written to is never taken from the system.
type Slot = [u32; 9];

pub(super) struct Recent {
    shards: Box<[Mutex<Box<[Slot]>>]>,
    entries: AtomicI64,
}

/// A durable claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) first: Id,
    /// The beginning of the SHA-256 of its body.
    pub(super) body: u32,
    pub(super) claimed_until: Timestamp,
}

impl Recent {
    /// For so many claims, roughly.
    pub(super) fn new(entries: u64) -> Self {
        let slots = usize::try_from(entries).unwrap_or(usize::MAX).max(WAYS);
        let shards = slots.div_ceil(SHARD_SLOTS);
        let each = slots.div_ceil(shards).next_multiple_of(WAYS);
        let shard = || Mutex::new(vec![Slot::default(); each].into_boxed_slice());
        Self { shards: std::iter::repeat_with(shard).take(shards).collect(), entries: AtomicI64::new(0) }
    }

    /// How many there are. Those that have ended count until another takes their place.
    pub(super) fn entries(&self) -> i64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// The claim on `key` that holds at `now`.
    pub(super) fn get(&self, key: Key, now: Timestamp) -> Option<Seen> {
        self.places(key, |places, name| {
            let slot = places.iter().find(|slot| slot[..3] == name)?;
            let seen = read(slot);
            (seen.claimed_until > now).then_some(seen)
        })
    }

    pub(super) fn put(&self, key: Key, seen: &Seen) {
        self.places(key, |places, name| {
            let own = places.iter().position(|slot| slot[..3] == name);
            let first_to_end = || (0..WAYS).min_by_key(|place| places[*place][8]);
            let Some(place) = own.or_else(first_to_end) else { return };
            if places[place] == Slot::default() {
                self.entries.fetch_add(1, Ordering::Relaxed);
            }
            places[place] = written(name, seen);
        });
    }

    fn places<T>(&self, key: Key, work: impl FnOnce(&mut [Slot], [u32; 3]) -> T) -> T {
        let word = |at: usize| u32::from_be_bytes(std::array::from_fn(|byte| key.as_bytes()[at + byte]));
        let shard = &self.shards[word(12) as usize % self.shards.len()];
        // A table is whole whatever happened to whom.
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        let place = word(16) as usize % (shard.len() / WAYS) * WAYS;
        work(&mut shard[place..place + WAYS], [word(0), word(4), word(8)])
    }
}

fn written(name: [u32; 3], seen: &Seen) -> Slot {
    let id = u128::from_be_bytes(*seen.first.as_bytes());
    let id = [96, 64, 32, 0].map(|shift| (id >> shift) as u32);
    // The second is rounded down: in the last part of it the store is asked. After the year 2106 it always is.
    let until = u32::try_from(seen.claimed_until.as_second()).unwrap_or(0);
    [name[0], name[1], name[2], id[0], id[1], id[2], id[3], seen.body, until]
}

fn read(slot: &Slot) -> Seen {
    let id = slot[3..7].iter().fold(0u128, |id, word| id << 32 | u128::from(*word));
    Seen {
        first: Id::from_bytes(id.to_be_bytes()),
        body: slot[7],
        claimed_until: from_milliseconds(i64::from(slot[8]) * 1_000),
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    fn key(number: u32) -> Key {
        Key::from_bytes(Sha256::digest(number.to_be_bytes()).into())
    }

    fn seen(number: u32, until: i64) -> Seen {
        let first = Id::from_bytes((u128::MAX - u128::from(number)).to_be_bytes());
        Seen { first, body: number, claimed_until: from_milliseconds(until) }
    }

    #[test]
    fn a_claim_is_remembered_until_its_last_second() {
        let recent = Recent::new(1_000);
        assert_eq!(recent.get(key(1), from_milliseconds(0)), None);
        recent.put(key(1), &seen(1, 60_999));
        let known = Some(seen(1, 60_000));
        for (now, expected) in [(0, known), (59_999, known), (60_000, None), (61_000, None)] {
            assert_eq!(recent.get(key(1), from_milliseconds(now)), expected, "{now}");
        }
        // Taken again, it does not stand there twice.
        recent.put(key(1), &seen(2, 90_000));
        assert_eq!(recent.get(key(1), from_milliseconds(61_000)), Some(seen(2, 90_000)));
        assert_eq!(recent.entries(), 1);
    }

    #[test]
    fn many_take_no_more_places_than_there_are_and_the_latest_stay() {
        let recent = Recent::new(20_000);
        for number in 0..100_000 {
            recent.put(key(number), &seen(number, i64::from(number) * 1_000 + 1_000));
        }
        let kept = |numbers: std::ops::Range<u32>| {
            numbers.filter(|number| recent.get(key(*number), from_milliseconds(0)).is_some()).count()
        };
        assert!((19_900..=20_480).contains(&recent.entries()), "{}", recent.entries());
        assert!(kept(95_000..100_000) > 4_900, "{} of the latest 5,000", kept(95_000..100_000));
        assert_eq!(kept(0..20_000), 0);
    }
}
