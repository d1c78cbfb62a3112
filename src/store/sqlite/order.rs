//! Whose turn it is, in destinations with an order. Forwards with one key stand in a queue (table `ordered`), of which only
//! the first may be attempted: it keeps its place through all retries, and as a dead letter that parks its key. All
//! others are held, by a due time that lies out of reach, so that a lease does not walk through those that have to wait.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::claims::Claims;
use super::row::{self, LoadError};
use super::work::{Effects, Work};
use crate::clock::Timestamp;
use crate::delivery::Delivery;
use crate::forward::Order;
use crate::id::Id;

/// What is added to the due time of a forward whose turn has not come: 35,000 years.
pub(super) const HELD: i64 = 1 << 50;

/// When a forward is due, whether or not its turn has come.
pub(super) fn due(at: i64) -> i64 {
    if at >= HELD { at - HELD } else { at }
}

/// Rows that one step looks at, so that others are served in between.
const ROWS_MAX: i64 = 500;
/// Bytes of bodies that one step reads.
const BYTES_MAX: usize = 16 << 20;

/// Puts a forward behind those with its key; whether there are none.
pub(super) fn enqueue(
    transaction: &Transaction<'_>,
    destination: &str,
    key: &str,
    id: Id,
    now: Timestamp,
) -> rusqlite::Result<bool> {
    let mut last = transaction
        .prepare_cached("SELECT max(arrival) FROM ordered WHERE destination = ?1 AND order_key = ?2")?;
    let last: Option<i64> = last.query_row([destination, key], |row| row.get(0))?;
    // The clock says nothing about two of one millisecond, and may be set back.
    let arrival = (now.as_millisecond() << 10).max(last.map_or(i64::MIN, |last| last.saturating_add(1)));
    transaction.prepare_cached("INSERT INTO ordered VALUES (?1, ?2, ?3, ?4)")?.execute(params![
        destination,
        key,
        arrival,
        id.as_bytes()
    ])?;
    Ok(last.is_none())
}

/// Whether it is a forward's turn. One that has no place in this order, as after a replay, takes the last.
pub(super) fn is_first(
    transaction: &Transaction<'_>,
    order: &Order,
    destination: &str,
    delivery: &Delivery,
    now: Timestamp,
) -> rusqlite::Result<bool> {
    let id = delivery.id.as_bytes();
    let mut select = transaction
        .prepare_cached("SELECT order_key, arrival FROM ordered WHERE delivery = ?1 AND destination = ?2")?;
    let place: Option<(String, i64)> =
        select.query_row(params![id, destination], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    match place {
        Some((key, arrival)) if key.starts_with(order.prefix()) => {
            let mut earlier = transaction.prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM ordered
                     WHERE destination = ?1 AND order_key = ?2 AND (arrival, delivery) < (?3, ?4))",
            )?;
            let earlier: bool =
                earlier.query_row(params![destination, key, arrival, id], |row| row.get(0))?;
            Ok(!earlier)
        }
        Some(_) | None => {
            remove(transaction, destination, delivery.id)?;
            enqueue(transaction, destination, &order.key(delivery), delivery.id, now)
        }
    }
}

/// Has a waiting forward wait for its turn.
pub(super) fn hold(transaction: &Transaction<'_>, destination: &str, id: Id) -> rusqlite::Result<()> {
    let mut update = transaction.prepare_cached(
        "UPDATE forward SET due_at = due_at + ?3
         WHERE delivery = ?1 AND destination = ?2 AND state = 'waiting' AND due_at < ?3",
    )?;
    update.execute(params![id.as_bytes(), destination, HELD])?;
    Ok(())
}

/// A forward is over: delivered, cancelled, purged, or (`died`) a dead letter. The turn of the next comes, unless that is
/// parked behind it. To be called whenever that happens, in the same transaction.
pub(super) fn ended(
    transaction: &Transaction<'_>,
    effects: &mut Effects<'_>,
    destination: &Arc<str>,
    id: Id,
    died: bool,
) -> rusqlite::Result<()> {
    let Some(order) = effects.outlet.order(destination) else { return Ok(()) };
    if died && order.parks() {
        return Ok(());
    }
    match remove(transaction, destination, id)? {
        Some(key) => release(transaction, effects, &order, destination, &key),
        None => Ok(()),
    }
}

fn remove(transaction: &Transaction<'_>, destination: &str, id: Id) -> rusqlite::Result<Option<String>> {
    let mut delete = transaction
        .prepare_cached("DELETE FROM ordered WHERE delivery = ?1 AND destination = ?2 RETURNING order_key")?;
    delete.query_row(params![id.as_bytes(), destination], |row| row.get(0)).optional()
}

/// Has the first of a key fall due when it did, if it is held. What holds up the key and should not, loses its place.
fn release(
    transaction: &Transaction<'_>,
    effects: &mut Effects<'_>,
    order: &Order,
    destination: &Arc<str>,
    key: &str,
) -> rusqlite::Result<()> {
    let mut first = transaction.prepare_cached(
        "SELECT delivery FROM ordered WHERE destination = ?1 AND order_key = ?2 ORDER BY arrival, delivery LIMIT 1",
    )?;
    let mut state =
        transaction.prepare_cached("SELECT state FROM forward WHERE delivery = ?1 AND destination = ?2")?;
    let mut update = transaction.prepare_cached(
        "UPDATE forward SET due_at = due_at - ?3
         WHERE delivery = ?1 AND destination = ?2 AND state = 'waiting' AND due_at >= ?3",
    )?;
    while let Some(id) = first.query_row(params![&**destination, key], |row| row.get(0)).optional()? {
        let id = Id::from_bytes(id);
        let state: Option<String> =
            state.query_row(params![id.as_bytes(), &**destination], |row| row.get(0)).optional()?;
        let stays = match state.as_deref() {
            Some("waiting" | "in_flight") => true,
            Some("dead") => order.parks(),
            Some(_) | None => false,
        };
        if stays {
            if update.execute(params![id.as_bytes(), &**destination, HELD])? > 0 {
                effects.wakes.insert(Arc::clone(destination));
            }
            break;
        }
        remove(transaction, destination, id)?;
    }
    Ok(())
}

/// A place among what is pending for a destination.
#[derive(Clone, Default)]
pub(super) struct Position {
    state: String,
    due_at: i64,
    id: Vec<u8>,
}

/// What a look for forwards without a place has found.
pub(super) struct Unplaced {
    /// With their keys.
    pub(super) forwards: Vec<(Id, String)>,
    /// How far it has looked; `None` when there was nothing more.
    pub(super) last: Option<Position>,
}

/// Pending forwards behind `after` that have no place in `order`.
pub(super) fn unplaced(
    connection: &Connection,
    order: &Order,
    destination: &str,
    after: &Position,
) -> rusqlite::Result<Unplaced> {
    let mut select = connection.prepare_cached(
        "SELECT state, due_at, delivery FROM forward INDEXED BY forward_pending
         WHERE settled_at IS NULL AND destination = ?1 AND (state, due_at, delivery) > (?2, ?3, ?4)
         ORDER BY state, due_at, delivery LIMIT ?5",
    )?;
    let mut place = connection
        .prepare_cached("SELECT order_key FROM ordered WHERE delivery = ?1 AND destination = ?2")?;
    let mut rows = select.query(params![destination, after.state, after.due_at, after.id, ROWS_MAX])?;
    let (mut found, mut last, mut bytes) = (Vec::new(), None, 0);
    while let Some(row) = rows.next()?
        && bytes < BYTES_MAX
    {
        let id = Id::from_bytes(row.get(2)?);
        let key: Option<String> =
            place.query_row(params![id.as_bytes(), destination], |row| row.get(0)).optional()?;
        if key.is_none_or(|key| !key.starts_with(order.prefix())) {
            let key = match row::load(connection, id) {
                Ok(Some(delivery)) => {
                    bytes += delivery.body.len();
                    order.key(&delivery)
                }
                // It will be set aside when its turn comes.
                Ok(None) | Err(LoadError::Damaged(_) | LoadError::Unreadable(_)) => order.prefix().to_owned(),
                Err(LoadError::Sqlite(error)) => return Err(error),
            };
            found.push((id, key));
        }
        last = Some(Position { state: row.get(0)?, due_at: row.get(1)?, id: row.get(2)? });
    }
    Ok(Unplaced { forwards: found, last })
}

/// Gives forwards their places, by the time of their receipt where they had none.
pub(super) struct Enqueue {
    pub(super) destination: Arc<str>,
    pub(super) forwards: Vec<(Id, String)>,
}

impl Work for Enqueue {
    type Output = ();

    fn apply(
        &self,
        transaction: &Transaction<'_>,
        _: &mut Claims,
        _: &mut Effects<'_>,
    ) -> rusqlite::Result<()> {
        let mut insert = transaction.prepare_cached(
            "INSERT INTO ordered SELECT destination, ?3, ?4, delivery FROM forward
                 WHERE delivery = ?1 AND destination = ?2 AND settled_at IS NULL
             ON CONFLICT (delivery, destination) DO UPDATE SET order_key = excluded.order_key",
        )?;
        for (id, key) in &self.forwards {
            insert.execute(params![id.as_bytes(), &*self.destination, key, received_at(*id) << 10])?;
        }
        Ok(())
    }
}

/// Lets the first of each key go that is held for nothing, from the key behind `after` on; the last key that it has looked
/// at, `None` when there are no more.
pub(super) struct Review {
    pub(super) destination: Arc<str>,
    pub(super) order: Arc<Order>,
    pub(super) after: String,
}

impl Work for Review {
    type Output = Option<String>;

    fn apply(
        &self,
        transaction: &Transaction<'_>,
        _: &mut Claims,
        effects: &mut Effects<'_>,
    ) -> rusqlite::Result<Option<String>> {
        let mut next = transaction
            .prepare_cached("SELECT min(order_key) FROM ordered WHERE destination = ?1 AND order_key > ?2")?;
        let mut key = self.after.clone();
        for _ in 0..ROWS_MAX {
            match next.query_row(params![&*self.destination, key], |row| row.get(0))? {
                Some(found) => key = found,
                None => return Ok(None),
            }
            release(transaction, effects, &self.order, &self.destination, &key)?;
        }
        Ok(Some(key))
    }
}

/// Gives up the order of a destination, step by step; whether there is more to do.
pub(super) struct Disband {
    pub(super) destination: Arc<str>,
}

impl Work for Disband {
    type Output = bool;

    fn apply(
        &self,
        transaction: &Transaction<'_>,
        _: &mut Claims,
        _: &mut Effects<'_>,
    ) -> rusqlite::Result<bool> {
        let mut held = transaction.prepare_cached(
            "UPDATE forward SET due_at = due_at - ?2
             WHERE destination = ?1 AND delivery IN (SELECT delivery FROM forward INDEXED BY forward_pending
                 WHERE settled_at IS NULL AND destination = ?1 AND state = 'waiting' AND due_at >= ?2 LIMIT ?3)",
        )?;
        let mut places = transaction.prepare_cached(
            "DELETE FROM ordered WHERE destination = ?1 AND (order_key, arrival, delivery) IN
                 (SELECT order_key, arrival, delivery FROM ordered WHERE destination = ?1 LIMIT ?2)",
        )?;
        let released = held.execute(params![&*self.destination, HELD, ROWS_MAX])?;
        let removed = places.execute(params![&*self.destination, ROWS_MAX])?;
        Ok(released + removed > 0)
    }
}

/// Milliseconds since the epoch, which a UUIDv7 begins with.
fn received_at(id: Id) -> i64 {
    id.as_bytes()[..6].iter().fold(0, |time, byte| time << 8 | i64::from(*byte))
}
