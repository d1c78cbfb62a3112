//! Leasing forwards in two steps: what is due is read beside the writer, bodies included, and then marked in a
//! transaction, where whatever has changed meanwhile is left out.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::claims::Claims;
use super::order::{self, HELD};
use super::row::{self, LoadError};
use super::verdict;
use super::work::{Effects, Work};
use crate::clock::{Timestamp, from_milliseconds, later};
use crate::delivery::Delivery;
use crate::id::Id;
use crate::store;

/// Bytes of bodies in one lease, beyond which it is cut short: a lane's window must not fill the memory.
const BYTES_MAX: usize = 16 << 20;

/// When a forward whose delivery the disk did not give away is tried again: not so soon as to be in the way of others.
const READ_AGAIN: Duration = Duration::from_mins(1);

/// A forward that is due, and its delivery or what is wrong with it.
pub(super) struct Candidate {
    id: Id,
    /// Milliseconds, as the index has it.
    due_at: i64,
    found: Found,
}

enum Found {
    Delivery(Arc<Delivery>),
    /// It will never be readable.
    Damaged(String),
    /// It was not readable this time.
    Unreadable(String),
}

/// Reads up to `limit` due forwards, oldest due first.
pub(super) fn due(
    connection: &Connection,
    destination: &str,
    limit: usize,
    now: Timestamp,
) -> rusqlite::Result<Vec<Candidate>> {
    let mut select = connection.prepare_cached(
        "SELECT delivery, due_at FROM forward
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
        let found = match row::load(connection, id) {
            Ok(Some(delivery)) => {
                bytes += delivery.body.len();
                Found::Delivery(Arc::new(delivery))
            }
            Ok(None) if row::is_in_table(connection, id)? => {
                return Err(verdict::corrupt(verdict::MISPLACED));
            }
            Ok(None) => Found::Damaged("the delivery is not there".to_owned()),
            Err(LoadError::Damaged(what)) => Found::Damaged(what),
            Err(LoadError::Unreadable(what)) => Found::Unreadable(what),
            Err(LoadError::Sqlite(error)) => return Err(error),
        };
        candidates.push(Candidate { id, due_at: row.get(1)?, found });
    }
    Ok(candidates)
}

/// When the next waiting forward falls due whose turn has come.
pub(super) fn next_due(connection: &Connection, destination: &str) -> rusqlite::Result<Option<Timestamp>> {
    let mut select = connection.prepare_cached(
        "SELECT min(due_at) FROM forward
         WHERE settled_at IS NULL AND destination = ?1 AND state = 'waiting' AND due_at < ?2",
    )?;
    let due_at: Option<i64> = select.query_row(params![destination, HELD], |row| row.get(0))?;
    Ok(due_at.map(from_milliseconds))
}

/// Brings due times that lie too far ahead back into reach.
pub(super) struct ReinIn {
    pub(super) destination: Arc<str>,
    pub(super) now: Timestamp,
    pub(super) latest: Timestamp,
}

impl Work for ReinIn {
    type Output = u64;

    fn apply(
        &self,
        transaction: &Transaction<'_>,
        _: &mut Claims,
        _: &mut Effects<'_>,
    ) -> rusqlite::Result<u64> {
        let (now, latest) = (self.now.as_millisecond(), self.latest.as_millisecond());
        // Modulo the span they keep their distances: whole backlogs must not fall due in one moment.
        let mut update = transaction.prepare_cached(
            "UPDATE forward SET due_at = ?2 + (due_at - ?2) % max(?3 - ?2, 1)
             WHERE settled_at IS NULL AND destination = ?1 AND state = 'waiting' AND due_at > ?3
                 AND due_at < ?4",
        )?;
        Ok(update.execute(params![&*self.destination, now, latest, HELD])? as u64)
    }
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
        _: &mut Claims,
        effects: &mut Effects<'_>,
    ) -> rusqlite::Result<Vec<store::Lease>> {
        let mut leases = Vec::with_capacity(self.candidates.len());
        for candidate in &self.candidates {
            let matched = match &candidate.found {
                Found::Delivery(delivery) => {
                    if self.is_its_turn(transaction, delivery, effects)? {
                        let lease = self.take(transaction, delivery)?;
                        let taken = lease.is_some();
                        leases.extend(lease);
                        taken
                    } else {
                        order::hold(transaction, &self.destination, candidate.id)?;
                        true
                    }
                }
                Found::Damaged(what) => self.set_aside(transaction, candidate.id, what, effects)?,
                Found::Unreadable(what) => self.postpone(transaction, candidate.id, what, effects)?,
            };
            // Nothing unusual when it has been taken or settled meanwhile; but then it is not listed any more.
            if !matched && self.is_listed(transaction, candidate)? {
                let what = verdict::NOT_IN_TABLE.to_owned();
                effects.corrupt.push((candidate.id, Arc::clone(&self.destination), what));
                effects.index_damaged = true;
            }
        }
        Ok(leases)
    }
}

impl Lease {
    fn is_its_turn(
        &self,
        transaction: &Transaction<'_>,
        delivery: &Delivery,
        effects: &Effects<'_>,
    ) -> rusqlite::Result<bool> {
        match effects.outlet.order(&self.destination) {
            None => Ok(true),
            Some(order) => order::is_first(transaction, &order, &self.destination, delivery, self.now),
        }
    }

    fn take(
        &self,
        transaction: &Transaction<'_>,
        delivery: &Arc<Delivery>,
    ) -> rusqlite::Result<Option<store::Lease>> {
        // Counted before sending: a crash mid-send must not grant a free extra attempt. What it waited since it was due, it
        // waited for its lane or its turn, or for a gateway to run.
        let mut update = transaction.prepare_cached(
            "UPDATE forward SET state = 'in_flight', attempts = attempts + 1, waited = waited + ?3 - due_at, due_at = ?3
             WHERE delivery = ?1 AND destination = ?2 AND state = 'waiting' AND due_at <= ?3
             RETURNING attempts, pending_since, replay, waited",
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
                        waited: Duration::from_millis(row.get::<_, i64>(3)?.unsigned_abs()),
                    })
                },
            )
            .optional()
    }

    /// Whether the index still has the very entry by which the candidate was found.
    fn is_listed(&self, transaction: &Transaction<'_>, candidate: &Candidate) -> rusqlite::Result<bool> {
        let mut select = transaction.prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM forward INDEXED BY forward_pending
                 WHERE settled_at IS NULL AND destination = ?1 AND state = 'waiting' AND due_at = ?2 AND delivery = ?3)",
        )?;
        select.query_row(params![&*self.destination, candidate.due_at, candidate.id.as_bytes()], |row| {
            row.get(0)
        })
    }

    /// Waiting still, and no longer in the way of others; no attempt has been made.
    fn postpone(
        &self,
        transaction: &Transaction<'_>,
        id: Id,
        what: &str,
        effects: &mut Effects<'_>,
    ) -> rusqlite::Result<bool> {
        let mut update = transaction.prepare_cached(
            "UPDATE forward SET due_at = ?3 WHERE delivery = ?1 AND destination = ?2 AND state = 'waiting'",
        )?;
        let again = later(self.now, READ_AGAIN).as_millisecond();
        let matched = update.execute(params![id.as_bytes(), &*self.destination, again])? > 0;
        if matched {
            effects.corrupt.push((id, Arc::clone(&self.destination), what.to_owned()));
        }
        Ok(matched)
    }

    /// A dead letter: visible, kept, never sent, and no longer in the way of others.
    fn set_aside(
        &self,
        transaction: &Transaction<'_>,
        id: Id,
        what: &str,
        effects: &mut Effects<'_>,
    ) -> rusqlite::Result<bool> {
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
            order::ended(transaction, effects, &self.destination, id, true)?;
        }
        Ok(since.is_some())
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;
    use crate::store::sqlite::schema;
    use crate::store::sqlite::scrub::tests::beside_the_index;
    use crate::store::sqlite::writer::tests::NoLanes;

    /// A candidate that was taken or settled between the search and the lease is no damage.
    #[test]
    fn what_was_taken_meanwhile_is_nobodys_fault() {
        let root = tempfile::tempdir().unwrap();
        let mut connection = schema::open_writer(&root.path().join("countersign.db")).unwrap();
        connection
            .execute(
                "INSERT INTO forward VALUES (zeroblob(16), 'a', 'in_flight', 7, 1, 7, 0, NULL, NULL, 0)",
                [],
            )
            .unwrap();
        let transaction = connection.transaction().unwrap();
        for found in [Found::Damaged(String::new()), Found::Unreadable(String::new())] {
            let candidate = Candidate { id: Id::from_bytes([0; 16]), due_at: 7, found };
            let now = from_milliseconds(1_000);
            let lease = Lease { destination: "a".into(), candidates: vec![candidate], now };
            let mut effects = Effects::new(&NoLanes);
            assert!(
                lease
                    .apply(&transaction, &mut Claims::load(&transaction).unwrap(), &mut effects)
                    .unwrap()
                    .is_empty()
            );
            assert_eq!((effects.corrupt.len(), effects.index_damaged), (0, false));
        }
    }

    /// One unreadable sector had failed each lease of its lane, for good.
    #[test]
    fn what_the_disk_does_not_give_away_is_tried_again_later() {
        let error = rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_IOERR_READ), None);
        let LoadError::Unreadable(what) = LoadError::from(error) else { panic!("not set aside") };

        let root = tempfile::tempdir().unwrap();
        let mut connection = schema::open_writer(&root.path().join("countersign.db")).unwrap();
        connection
            .execute(
                "INSERT INTO forward VALUES (zeroblob(16), 'a', 'waiting', 7, 3, 7, 0, NULL, NULL, 0)",
                [],
            )
            .unwrap();
        let candidate = Candidate { id: Id::from_bytes([0; 16]), due_at: 7, found: Found::Unreadable(what) };
        let now = from_milliseconds(1_000);
        let lease = Lease { destination: "a".into(), candidates: vec![candidate], now };
        let transaction = connection.transaction().unwrap();
        let mut effects = Effects::new(&NoLanes);
        assert!(
            lease
                .apply(&transaction, &mut Claims::load(&transaction).unwrap(), &mut effects)
                .unwrap()
                .is_empty()
        );
        assert_eq!((effects.corrupt.len(), effects.changes.len()), (1, 0));
        assert!(!effects.index_damaged);
        assert_eq!(next_due(&transaction, "a").unwrap(), Some(from_milliseconds(61_000)));
        let attempts: u32 =
            transaction.query_row("SELECT attempts FROM forward", [], |row| row.get(0)).unwrap();
        assert_eq!(attempts, 3);
    }

    const WAITING: &str =
        "INSERT INTO forward VALUES (zeroblob(16), 'a', 'waiting', 7, 0, 7, 0, NULL, NULL, 0);";

    /// It was the first to be due, every time, could never be taken, and nobody was told.
    #[test]
    fn a_forward_that_only_its_index_has_is_damage() {
        let root = tempfile::tempdir().unwrap();
        let mut connection = schema::open_writer(&root.path().join("countersign.db")).unwrap();
        connection
            .execute_batch(&format!("{WAITING}{}", beside_the_index("DELETE FROM forward WHERE due_at = 7;")))
            .unwrap();
        let now = from_milliseconds(1_000);
        let candidates = due(&connection, "a", 10, now).unwrap();
        assert_eq!(candidates.len(), 1);
        let lease = Lease { destination: "a".into(), candidates, now };
        let transaction = connection.transaction().unwrap();
        let mut effects = Effects::new(&NoLanes);
        assert!(
            lease
                .apply(&transaction, &mut Claims::load(&transaction).unwrap(), &mut effects)
                .unwrap()
                .is_empty()
        );
        assert_eq!((effects.corrupt.len(), effects.index_damaged), (1, true));
    }

    /// A delivery that its index has lost is there still: set aside, it would never be sent.
    #[test]
    fn a_delivery_that_is_gone_is_told_from_one_that_its_index_has_lost() {
        let root = tempfile::tempdir().unwrap();
        let connection = schema::open_writer(&root.path().join("countersign.db")).unwrap();
        connection.execute_batch(WAITING).unwrap();
        let now = from_milliseconds(1_000);
        let gone = due(&connection, "a", 10, now).unwrap();
        assert!(matches!(&gone[0].found, Found::Damaged(what) if what.contains("not there")));
        connection
            .execute_batch(
                "INSERT INTO delivery VALUES (zeroblob(16), 's', NULL, NULL, 1, '::1', 'POST', '/', 1, 'x', NULL,
                     NULL, 1, zeroblob(16), x'', x'');
                 PRAGMA writable_schema = 1;
                 UPDATE sqlite_schema SET rootpage =
                     (SELECT rootpage FROM sqlite_schema WHERE name = 'attempt_delivery')
                     WHERE name = 'sqlite_autoindex_delivery_1';
                 PRAGMA writable_schema = RESET;",
            )
            .unwrap();
        let Err(lost) = due(&connection, "a", 10, now) else { panic!("found") };
        assert!(lost.to_string().contains(verdict::MISPLACED), "{lost}");
    }
}
