//! Leasing forwards in two steps: what is due is read beside the writer, bodies included, and then marked in a
//! transaction, where whatever has changed meanwhile is left out.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::row::{self, LoadError};
use super::writer::{Effects, Work};
use crate::clock::{Timestamp, from_milliseconds};
use crate::delivery::Delivery;
use crate::id::Id;
use crate::store;

/// Bytes of bodies in one lease, beyond which it is cut short: a lane's window must not fill the memory.
const BYTES_MAX: usize = 16 << 20;

/// A forward that is due, and its delivery or what is wrong with it.
pub(super) struct Candidate {
    id: Id,
    delivery: Result<Arc<Delivery>, String>,
}

/// Reads up to `limit` due forwards, oldest due first.
pub(super) fn due(
    connection: &Connection,
    destination: &str,
    limit: usize,
    now: Timestamp,
) -> rusqlite::Result<Vec<Candidate>> {
    let mut select = connection.prepare_cached(
        "SELECT delivery FROM forward
         WHERE settled_at IS NULL AND destination = ?1 AND state = 'waiting' AND due_at <= ?2
         ORDER BY due_at, delivery LIMIT ?3",
    )?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut rows = select.query(params![destination, now.as_millisecond(), limit])?;
    let mut candidates = Vec::new();
    let mut bytes = 0;
    while let Some(row) = rows.next()?
        && bytes < BYTES_MAX
    {
        let id = Id::from_bytes(row.get(0)?);
        let delivery = match row::load(connection, id) {
            Ok(Some(delivery)) => {
                bytes += delivery.body.len();
                Ok(Arc::new(delivery))
            }
            Ok(None) => Err("the delivery is not there".to_owned()),
            Err(LoadError::Damaged(what)) => Err(what),
            Err(LoadError::Sqlite(error)) => return Err(error),
        };
        candidates.push(Candidate { id, delivery });
    }
    Ok(candidates)
}

/// When the next waiting forward falls due.
pub(super) fn next_due(connection: &Connection, destination: &str) -> rusqlite::Result<Option<Timestamp>> {
    let mut select = connection.prepare_cached(
        "SELECT min(due_at) FROM forward
         WHERE settled_at IS NULL AND destination = ?1 AND state = 'waiting'",
    )?;
    let due_at: Option<i64> = select.query_row([destination], |row| row.get(0))?;
    Ok(due_at.map(from_milliseconds))
}

/// Marks candidates as in flight, and sets aside those that must not be sent.
pub(super) struct Lease {
    pub(super) destination: Arc<str>,
    pub(super) candidates: Vec<Candidate>,
    pub(super) now: Timestamp,
}

impl Work for Lease {
    type Output = Vec<store::Lease>;

    fn apply(
        &self,
        transaction: &Transaction<'_>,
        effects: &mut Effects<'_>,
    ) -> rusqlite::Result<Vec<store::Lease>> {
        let mut leases = Vec::with_capacity(self.candidates.len());
        for candidate in &self.candidates {
            match &candidate.delivery {
                Ok(delivery) => leases.extend(self.take(transaction, delivery)?),
                Err(what) => self.set_aside(transaction, candidate.id, what, effects)?,
            }
        }
        Ok(leases)
    }
}

impl Lease {
    fn take(
        &self,
        transaction: &Transaction<'_>,
        delivery: &Arc<Delivery>,
    ) -> rusqlite::Result<Option<store::Lease>> {
        // Counted before sending: a crash mid-send must not grant a free extra attempt.
        let mut update = transaction.prepare_cached(
            "UPDATE forward SET state = 'in_flight', attempts = attempts + 1
             WHERE delivery = ?1 AND destination = ?2 AND state = 'waiting' AND due_at <= ?3
             RETURNING attempts, pending_since, replay",
        )?;
        update
            .query_row(
                params![delivery.id.as_bytes(), &*self.destination, self.now.as_millisecond()],
                |row| {
                    Ok(store::Lease {
                        delivery: Arc::clone(delivery),
                        destination: Arc::clone(&self.destination),
                        attempt: row.get(0)?,
                        pending_since: from_milliseconds(row.get(1)?),
                        replay: row.get(2)?,
                    })
                },
            )
            .optional()
    }

    /// A dead letter: visible, kept, never sent, and no longer in the way of others.
    fn set_aside(
        &self,
        transaction: &Transaction<'_>,
        id: Id,
        what: &str,
        effects: &mut Effects<'_>,
    ) -> rusqlite::Result<()> {
        let mut update = transaction.prepare_cached(
            "UPDATE forward SET state = 'dead', settled_at = ?3, last_outcome = 'corrupt'
             WHERE delivery = ?1 AND destination = ?2 AND state = 'waiting'
             RETURNING pending_since",
        )?;
        let since = update
            .query_row(params![id.as_bytes(), &*self.destination, self.now.as_millisecond()], |row| {
                row.get(0)
            })
            .optional()?;
        if let Some(since) = since {
            effects.died(&self.destination, from_milliseconds(since));
            effects.corrupt.push((id, Arc::clone(&self.destination), what.to_owned()));
        }
        Ok(())
    }
}
