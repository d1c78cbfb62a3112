//! Storing a delivery with its claims and forwards, and bringing dead forwards back.

use std::sync::Arc;

use rusqlite::{OptionalExtension, Transaction, params};

use super::row::Prepared;
use super::work::{Effects, Work};
use crate::clock::Timestamp;
use crate::dedup::Key;
use crate::id::Id;
use crate::store::{Accepted, Arrival, Lease};

/// Claims and stores one arrival.
pub(super) struct Accept {
    pub(super) arrival: Arrival,
    pub(super) prepared: Prepared,
}

impl Work for Accept {
    type Output = Accepted;

    const ADDS: bool = true;

    fn bytes(&self) -> usize {
        self.prepared.bytes(self.arrival.verified.delivery())
    }

    fn apply(&self, transaction: &Transaction<'_>, effects: &mut Effects<'_>) -> rusqlite::Result<Accepted> {
        let keys = self.arrival.keys;
        let delivery = self.arrival.verified.delivery();
        let now = self.arrival.at.earliest();
        // The id first: a repetition of the same bytes under the same id is a duplicate, not a replay.
        if let Some(claim) = claim_of(transaction, keys.id, now)? {
            if self.arrival.revive_dead {
                revive(transaction, claim.delivery, self.arrival.at.steady.time, effects)?;
            }
            let conflict = claim.body_digest != self.prepared.body_digest;
            return Ok(Accepted::Duplicate { first: claim.delivery, conflict });
        }
        if let Some(claim) = claim_of(transaction, keys.guard, now)? {
            return Ok(Accepted::Replay { first: claim.delivery });
        }

        // Named twice is meant once.
        let mut destinations: Vec<_> = self.arrival.destinations.iter().collect();
        destinations.sort_unstable();
        destinations.dedup();
        self.prepared.insert(transaction, delivery, destinations.len())?;
        for key in keys.id.iter().chain(&keys.guard) {
            self.claim(transaction, *key)?;
        }
        for destination in destinations {
            self.forward(transaction, destination, effects)?;
        }
        effects.deliveries += 1;
        Ok(Accepted::Stored)
    }
}

impl Accept {
    /// Takes the key; a claim on it that has expired gives way.
    fn claim(&self, transaction: &Transaction<'_>, key: Key) -> rusqlite::Result<()> {
        let mut insert = transaction.prepare_cached(
            "INSERT OR REPLACE INTO claim (key, delivery, body_digest, expires_at) VALUES (?1, ?2, ?3, ?4)",
        )?;
        let id = self.arrival.verified.delivery().id;
        let expires_at = self.arrival.claimed_until.as_millisecond();
        insert.execute(params![key.as_bytes(), id.as_bytes(), self.prepared.body_digest, expires_at])?;
        Ok(())
    }

    /// Stores the forward as in flight when its lane has a place for it, so that the lane need not read it again.
    fn forward(
        &self,
        transaction: &Transaction<'_>,
        destination: &Arc<str>,
        effects: &mut Effects<'_>,
    ) -> rusqlite::Result<()> {
        let delivery = self.arrival.verified.delivery();
        let now = self.arrival.at.steady.time;
        let slot = effects.outlet.reserve(destination);
        // Counted before sending: a crash mid-send must not grant a free extra attempt.
        let (state, attempts) = if slot.is_some() { ("in_flight", 1) } else { ("waiting", 0) };
        let mut insert = transaction.prepare_cached(
            "INSERT INTO forward (delivery, destination, state, due_at, attempts, pending_since, replay)
             VALUES (?1, ?2, ?3, ?4, ?5, ?4, 0)",
        )?;
        insert.execute(params![
            delivery.id.as_bytes(),
            &**destination,
            state,
            now.as_millisecond(),
            attempts
        ])?;
        effects.pending(destination, now);
        match slot {
            Some(slot) => {
                let lease = Lease {
                    delivery: Arc::clone(delivery),
                    destination: Arc::clone(destination),
                    attempt: attempts,
                    pending_since: now,
                    replay: false,
                };
                effects.dispatches.push((lease, slot));
            }
            None => {
                effects.wakes.insert(Arc::clone(destination));
            }
        }
        Ok(())
    }
}

/// Brings the dead forwards of a delivery back.
pub(super) struct Revive {
    pub(super) id: Id,
    pub(super) now: Timestamp,
}

impl Work for Revive {
    type Output = u64;

    fn apply(&self, transaction: &Transaction<'_>, effects: &mut Effects<'_>) -> rusqlite::Result<u64> {
        revive(transaction, self.id, self.now, effects)
    }
}

fn revive(
    transaction: &Transaction<'_>,
    id: Id,
    now: Timestamp,
    effects: &mut Effects<'_>,
) -> rusqlite::Result<u64> {
    let mut update = transaction.prepare_cached(
        "UPDATE forward
         SET state = 'waiting', due_at = ?2, attempts = 0, pending_since = ?2, replay = 1, settled_at = NULL
         WHERE delivery = ?1 AND state = 'dead'
         RETURNING destination",
    )?;
    let mut revived = 0;
    for destination in update.query_map(params![id.as_bytes(), now.as_millisecond()], |row| row.get(0))? {
        let destination: Arc<str> = destination?;
        effects.revived(&destination, now);
        effects.wakes.insert(destination);
        revived += 1;
    }
    Ok(revived)
}

struct Claim {
    delivery: Id,
    body_digest: [u8; 32],
}

/// The claim on `key` that holds at `now`.
fn claim_of(
    transaction: &Transaction<'_>,
    key: Option<Key>,
    now: Timestamp,
) -> rusqlite::Result<Option<Claim>> {
    let Some(key) = key else { return Ok(None) };
    let mut select = transaction
        .prepare_cached("SELECT delivery, body_digest FROM claim WHERE key = ?1 AND expires_at > ?2")?;
    select
        .query_row(params![key.as_bytes(), now.as_millisecond()], |row| {
            Ok(Claim { delivery: Id::from_bytes(row.get(0)?), body_digest: row.get(1)? })
        })
        .optional()
}
