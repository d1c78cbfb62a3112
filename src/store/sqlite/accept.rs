//! Storing a delivery with its claims and forwards, and bringing dead forwards back.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Transaction, params};

use super::claims::{Claim, Claims};
use super::order::{self, HELD};
use super::row::Prepared;
use super::work::{Effects, Work};
use crate::clock::Timestamp;
use crate::forward::Order;
use crate::id::Id;
use crate::store::{Accepted, Arrival, Lease, Outlet};

/// Claims and stores one arrival.
pub(super) struct Accept {
    pub(super) arrival: Arrival,
    pub(super) prepared: Prepared,
    /// Of destinations with an order.
    pub(super) keys: Vec<OrderKey>,
}

/// What its delivery's key is in a destination's order.
pub(in crate::store) struct OrderKey {
    destination: Arc<str>,
    order: Arc<Order>,
    key: String,
}

/// The keys of an arrival: bodies are not read by whoever commits many.
pub(in crate::store) fn order_keys(arrival: &Arrival, outlet: &dyn Outlet) -> Vec<OrderKey> {
    let key = |destination: &Arc<str>| {
        let order = outlet.order(destination)?;
        let key = order.key(arrival.verified.delivery());
        Some(OrderKey { destination: Arc::clone(destination), order, key })
    };
    arrival.destinations.iter().filter_map(key).collect()
}

/// The key of an arrival in an order. It is one of those that were read before, unless a reload has changed the order
/// meanwhile.
pub(in crate::store) fn order_key<'a>(
    keys: &'a [OrderKey],
    arrival: &Arrival,
    destination: &str,
    order: &Arc<Order>,
) -> Cow<'a, str> {
    let known = keys.iter().find(|known| *known.destination == *destination && known.order == *order);
    match known {
        Some(known) => Cow::Borrowed(&known.key),
        None => Cow::Owned(order.key(arrival.verified.delivery())),
    }
}

impl Work for Accept {
    type Output = Accepted;

    const ADDS: bool = true;

    fn bytes(&self) -> usize {
        self.prepared.bytes(self.arrival.verified.delivery())
    }

    fn apply(
        &self,
        transaction: &Transaction<'_>,
        claims: &mut Claims,
        effects: &mut Effects<'_>,
    ) -> rusqlite::Result<Accepted> {
        let keys = self.arrival.keys;
        let delivery = self.arrival.verified.delivery();
        let now = self.arrival.at.earliest();
        // The id first: a repetition of the same bytes under the same id is a duplicate, not a replay.
        let held = |key| claims.find(transaction, key, now);
        if let Some(claim) = keys.id.map(held).transpose()?.flatten() {
            if self.arrival.revive_dead {
                revive(transaction, claim.delivery, self.arrival.at.steady.time, effects)?;
            }
            let conflict = claim.body_digest != *self.arrival.verified.body_digest();
            return Ok(Accepted::Duplicate { first: claim.delivery, conflict });
        }
        if let Some(claim) = keys.guard.map(held).transpose()?.flatten() {
            return Ok(Accepted::Replay { first: claim.delivery });
        }

        // Named twice is meant once.
        let mut destinations: Vec<_> = self.arrival.destinations.iter().collect();
        destinations.sort_unstable();
        destinations.dedup();
        self.prepared.insert(transaction, delivery, destinations.len())?;
        let claim = Claim { delivery: delivery.id, body_digest: *self.arrival.verified.body_digest() };
        claims.add(transaction, keys, &claim, self.arrival.claimed_until)?;
        for destination in destinations {
            self.forward(transaction, destination, effects)?;
        }
        effects.deliveries += 1;
        Ok(Accepted::Stored)
    }
}

impl Accept {
    /// Puts the forward behind those that it has to wait for; whether there are none.
    fn is_first(
        &self,
        transaction: &Transaction<'_>,
        destination: &Arc<str>,
        effects: &Effects<'_>,
    ) -> rusqlite::Result<bool> {
        let Some(order) = effects.outlet.order(destination) else { return Ok(true) };
        let key = order_key(&self.keys, &self.arrival, destination, &order);
        let id = self.arrival.verified.delivery().id;
        order::enqueue(transaction, destination, &key, id, self.arrival.at.wall)
    }

    /// Stores the forward as in flight when it is its turn and its lane has a place for it, so that the lane need not read
    /// it again.
    fn forward(
        &self,
        transaction: &Transaction<'_>,
        destination: &Arc<str>,
        effects: &mut Effects<'_>,
    ) -> rusqlite::Result<()> {
        let delivery = self.arrival.verified.delivery();
        let now = self.arrival.at.steady.time;
        let first = self.is_first(transaction, destination, effects)?;
        let slot = if first { effects.outlet.reserve(destination) } else { None };
        let due_at = now.as_millisecond() + if first { 0 } else { HELD };
        // Counted before sending: a crash mid-send must not grant a free extra attempt.
        let (state, attempts) = if slot.is_some() { ("in_flight", 1) } else { ("waiting", 0) };
        let mut insert = transaction.prepare_cached(
            "INSERT INTO forward (delivery, destination, state, due_at, attempts, pending_since, replay)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0)",
        )?;
        insert.execute(params![
            delivery.id.as_bytes(),
            &**destination,
            state,
            due_at,
            attempts,
            now.as_millisecond(),
        ])?;
        effects.pending(destination, now);
        match slot {
            Some(slot) => {
                let lease = Lease {
                    delivery: Arc::clone(delivery),
                    destination: Arc::clone(destination),
                    attempt: attempts,
                    pending_since: now,
                    waited: Duration::ZERO,
                    replay: false,
                };
                effects.dispatches.push((lease, slot));
            }
            None if first => {
                effects.wakes.insert(Arc::clone(destination));
            }
            None => {}
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

    fn apply(
        &self,
        transaction: &Transaction<'_>,
        _: &mut Claims,
        effects: &mut Effects<'_>,
    ) -> rusqlite::Result<u64> {
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
         SET state = 'waiting', due_at = ?2, attempts = 0, pending_since = ?2, waited = 0, replay = 1, settled_at = NULL
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
