//! Leasing forwards: taken, counted and read in one statement, past whatever other gateways are taking at the moment.

use std::collections::BTreeMap;
use std::iter;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::{Error, Row};
use uuid::Uuid;

use super::error::Trouble;
use super::order::HELD;
use super::row::{self, COLUMNS, uuid};
use super::{Inner, connect, lock};
use crate::clock::{Timestamp, from_milliseconds};
use crate::delivery::Delivery;
use crate::id::Id;
use crate::store::Lease;
use crate::store::sqlite::{DepthChange, Entry};

/// Bytes of bodies in one lease, beyond which it is cut short: a lane's window must not fill the memory.
pub(super) const BYTES_MAX: i64 = 16 << 20;

/// Before when nothing of a backlog is due any more, by destination: what has been taken stays in the index until the next
/// vacuum, and each lease would read past all of it. What is given back may have been due before; it is looked for once in a
/// while, and whenever a lease comes short.
pub(super) type Floors = Mutex<BTreeMap<Arc<str>, Floor>>;

/// How long it is believed.
const FLOOR_KEPT: Duration = Duration::from_secs(1);

pub(super) struct Floor {
    due_at: i64,
    until: Instant,
}

/// What is due and meets a condition (`AND …`), locked, with the bytes of those before it.
fn due(condition: &str) -> String {
    format!(
        "
    WITH due AS MATERIALIZED (
        SELECT delivery, due_at FROM countersign.forward
        WHERE destination = $1 AND state = 'waiting' AND due_at <= $2 {condition}
        ORDER BY due_at, delivery LIMIT $3
        FOR UPDATE SKIP LOCKED
    ), sized AS (
        SELECT due.delivery, due.due_at, $1 AS destination, sum(coalesce(octet_length(d.body), 0))
            OVER (ORDER BY due.due_at, due.delivery) - coalesce(octet_length(d.body), 0) AS before
        FROM due LEFT JOIN countersign.delivery d ON d.id = due.delivery
    )"
    )
}

/// Of destinations without an order. What a forward waited since it was due, it waited for its lane, or for a gateway. Those
/// that are locked are waiting, and are not asked again: by the index of what waits, a planner that knows of no backlog yet
/// would read all of it for each lease, and all forwards by their destination.
fn lease_sql() -> String {
    format!(
        "{}, taken AS (
             UPDATE countersign.forward f
             SET state = 'in_flight', attempts = f.attempts + 1, waited = f.waited + $2 - f.due_at, due_at = $2,
                 held_by = $4, held_since = clock_timestamp()
             FROM sized s
             WHERE f.delivery = s.delivery AND f.destination = s.destination AND s.before < {BYTES_MAX}
             RETURNING f.delivery, f.attempts, f.pending_since, f.replay, f.waited, s.due_at
         )
         SELECT taken.attempts, taken.pending_since, taken.replay, taken.waited, taken.due_at, taken.delivery, {COLUMNS}
         FROM taken LEFT JOIN countersign.delivery d ON d.id = taken.delivery
         ORDER BY taken.due_at, taken.delivery",
        due("AND due_at >= $5")
    )
}

/// Of a destination with an order: what there may be a turn of.
pub(super) fn due_sql() -> String {
    format!(
        "{}
         SELECT s.delivery, {COLUMNS} FROM sized s LEFT JOIN countersign.delivery d ON d.id = s.delivery
         WHERE s.before < {BYTES_MAX} ORDER BY s.due_at, s.delivery",
        due("")
    )
}

/// A dead letter: visible, kept, never sent, and no longer in the way of others. No attempt has been made.
const SET_ASIDE: &str = "
    UPDATE countersign.forward
    SET state = 'dead', settled_at = $4, last_outcome = 'corrupt', attempts = attempts - 1, held_by = NULL, held_since = NULL
    WHERE delivery = $1 AND destination = $2 AND state = 'in_flight' AND held_by = $3
    RETURNING pending_since";

const NEXT_DUE: &str = "
    SELECT min(due_at) FROM countersign.forward WHERE destination = $1 AND state = 'waiting' AND due_at < $2";

/// Modulo the span they keep their distances: whole backlogs must not fall due in one moment.
const REIN_IN: &str = "
    UPDATE countersign.forward SET due_at = $2 + (due_at - $2) % greatest($3 - $2, 1)
    WHERE destination = $1 AND state = 'waiting' AND due_at > $3 AND due_at < $4";

/// A lease, of a row whose attempts, time, replay and wait stand from `first` on.
pub(super) fn of(
    delivery: Arc<Delivery>,
    destination: &Arc<str>,
    row: &Row,
    first: usize,
) -> Result<Lease, Error> {
    Ok(Lease {
        delivery,
        destination: Arc::clone(destination),
        attempt: u32::try_from(row.try_get::<_, i32>(first)?).unwrap_or(u32::MAX),
        pending_since: from_milliseconds(row.try_get(first + 1)?),
        replay: row.try_get(first + 2)?,
        waited: Duration::from_millis(row.try_get::<_, i64>(first + 3)?.unsigned_abs()),
    })
}

/// The delivery of a row, or what is wrong with it.
pub(super) fn decode(row: &Row, first: usize) -> Result<Result<Delivery, String>, Error> {
    Ok(match row.try_get::<_, Option<Uuid>>(first)? {
        Some(_) => row::decode(row, first),
        None => Err("the delivery is not there".to_owned()),
    })
}

impl Inner {
    pub(super) async fn lease(
        &self,
        destination: &str,
        limit: usize,
        now: Timestamp,
    ) -> Result<Vec<Lease>, Trouble> {
        let destination: Arc<str> = destination.into();
        let (limit, at) = (i64::try_from(limit).unwrap_or(i64::MAX), now.as_millisecond());
        let (leases, damaged) = match self.outlet.order(&destination) {
            Some(order) => self.lease_in_order(&order, &destination, limit, now).await?,
            None => {
                let rows = self.take_due(&destination, at, limit).await?;
                let (mut leases, mut damaged) = (Vec::with_capacity(rows.len()), Vec::new());
                for row in &rows {
                    match decode(row, 6)? {
                        Ok(delivery) => leases.push(of(Arc::new(delivery), &destination, row, 0)?),
                        Err(what) => damaged.push((row::id(row.try_get(5)?), what)),
                    }
                }
                (leases, damaged)
            }
        };
        for lease in &leases {
            self.held.add(lease.delivery.id, &destination, lease.attempt, lease.pending_since);
        }
        for (id, what) in damaged {
            self.set_aside(id, &destination, &what, now).await;
        }
        Ok(leases)
    }

    /// Takes what is due, the oldest first.
    async fn take_due(&self, destination: &Arc<str>, at: i64, limit: i64) -> Result<Vec<Row>, Trouble> {
        let sql = lease_sql();
        let now = Instant::now();
        let floor = lock(&self.floors).remove(destination).filter(|floor| now < floor.until);
        let due_at = floor.as_ref().map_or(i64::MIN, |floor| floor.due_at);
        let mut rows = self.query(&sql, &[&&**destination, &at, &limit, &self.id, &due_at]).await?;
        let missing = limit - i64::try_from(rows.len()).unwrap_or(limit);
        if missing == 0 {
            let due_at = rows.first().map_or(Ok(i64::MIN), |row| row.try_get(4))?;
            let until = floor.map_or(now + FLOOR_KEPT, |floor| floor.until);
            lock(&self.floors).insert(Arc::clone(destination), Floor { due_at, until });
        } else if due_at > i64::MIN {
            let rest = self.query(&sql, &[&&**destination, &at, &missing, &self.id, &i64::MIN]).await;
            // Those that are taken are attempted, whatever came of the rest.
            rows.extend(rest.unwrap_or_default());
        }
        Ok(rows)
    }

    /// What fails here is found to be held by nobody later, and leased again.
    async fn set_aside(&self, id: Id, destination: &Arc<str>, what: &str, now: Timestamp) {
        self.metrics.store_corrupt_rows.inc();
        tracing::error!(delivery = %id, %destination, error = what, "corrupt row set aside");
        let _changing = self.activity.begin();
        let at = now.as_millisecond();
        let done = connect::transaction(&self.pool, |client| async move {
            let set_aside = client.prepare_cached(SET_ASIDE).await?;
            let row = client.query_opt(&set_aside, &[&uuid(id), &&**destination, &self.id, &at]).await?;
            let Some(since) = row.map(|row| row.try_get(0)).transpose()? else { return Ok(None) };
            let released = self.end_turns(&client, iter::once((id, destination, true))).await?;
            Ok::<_, Error>(Some((from_milliseconds(since), released)))
        });
        match done.await {
            Ok(Some((since, released))) => {
                let pending = Some((since, -1));
                let change = DepthChange { destination: Arc::clone(destination), pending, dead: 1 };
                self.depths.apply(vec![change]);
                Entry::Dead.count(destination, &self.metrics);
                for destination in released {
                    self.outlet.wake(&destination);
                }
            }
            Ok(None) => {}
            Err(trouble) => tracing::warn!(delivery = %id, ?trouble, "corrupt row not set aside"),
        }
    }

    pub(super) async fn next_due(&self, destination: &str) -> Result<Option<Timestamp>, Trouble> {
        let rows = self.query(NEXT_DUE, &[&destination, &HELD]).await?;
        let due: Option<i64> = rows.first().map_or(Ok(None), |row| row.try_get(0))?;
        Ok(due.map(from_milliseconds))
    }

    pub(super) async fn rein_in(
        &self,
        destination: &str,
        now: Timestamp,
        latest: Timestamp,
    ) -> Result<u64, Trouble> {
        let (now, latest) = (now.as_millisecond(), latest.as_millisecond());
        connect::on(&self.pool, |client| async move {
            let statement = client.prepare_cached(REIN_IN).await?;
            client.execute(&statement, &[&destination, &now, &latest, &HELD]).await
        })
        .await
    }
}
