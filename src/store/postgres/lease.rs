//! Leasing forwards: taken, counted and read in one statement, past whatever other gateways are taking at the moment.

use std::sync::Arc;

use super::error::Trouble;
use super::row::{self, COLUMNS, uuid};
use super::{Inner, connect};
use crate::clock::{Timestamp, from_milliseconds};
use crate::id::Id;
use crate::store::Lease;
use crate::store::sqlite::Change;

/// Bytes of bodies in one lease, beyond which it is cut short: a lane's window must not fill the memory.
const BYTES_MAX: i64 = 16 << 20;

fn lease_sql() -> String {
    format!(
        "WITH due AS MATERIALIZED (
             SELECT delivery, due_at FROM countersign.forward
             WHERE destination = $1 AND state = 'waiting' AND due_at <= $2
             ORDER BY due_at, delivery LIMIT $3
             FOR UPDATE SKIP LOCKED
         ), sized AS (
             SELECT due.delivery, sum(coalesce(octet_length(d.body), 0)) OVER (ORDER BY due.due_at, due.delivery)
                 - coalesce(octet_length(d.body), 0) AS before
             FROM due LEFT JOIN countersign.delivery d ON d.id = due.delivery
         ), taken AS (
             UPDATE countersign.forward f
             SET state = 'in_flight', attempts = f.attempts + 1, held_by = $4, held_since = clock_timestamp()
             FROM sized s
             WHERE f.delivery = s.delivery AND f.destination = $1 AND f.state = 'waiting' AND s.before < {BYTES_MAX}
             RETURNING f.delivery, f.attempts, f.pending_since, f.replay, f.due_at
         )
         SELECT taken.delivery, taken.attempts, taken.pending_since, taken.replay, {COLUMNS}
         FROM taken LEFT JOIN countersign.delivery d ON d.id = taken.delivery
         ORDER BY taken.due_at, taken.delivery"
    )
}

/// A dead letter: visible, kept, never sent, and no longer in the way of others. No attempt has been made.
const SET_ASIDE: &str = "
    UPDATE countersign.forward
    SET state = 'dead', settled_at = $4, last_outcome = 'corrupt', attempts = attempts - 1, held_by = NULL, held_since = NULL
    WHERE delivery = $1 AND destination = $2 AND state = 'in_flight' AND held_by = $3
    RETURNING pending_since";

const NEXT_DUE: &str =
    "SELECT min(due_at) FROM countersign.forward WHERE destination = $1 AND state = 'waiting'";

/// Modulo the span they keep their distances: whole backlogs must not fall due in one moment.
const REIN_IN: &str = "
    UPDATE countersign.forward SET due_at = $2 + (due_at - $2) % greatest($3 - $2, 1)
    WHERE destination = $1 AND state = 'waiting' AND due_at > $3";

impl Inner {
    pub(super) async fn lease(
        &self,
        destination: &str,
        limit: usize,
        now: Timestamp,
    ) -> Result<Vec<Lease>, Trouble> {
        let destination: Arc<str> = destination.into();
        let (limit, at) = (i64::try_from(limit).unwrap_or(i64::MAX), now.as_millisecond());
        let sql = lease_sql();
        let rows = self.query(&sql, &[&&*destination, &at, &limit, &self.id]).await?;
        let mut leases = Vec::with_capacity(rows.len());
        let mut damaged = Vec::new();
        for row in &rows {
            let id = row::id(row.try_get(0)?);
            self.held.add(id, &destination);
            let found = match row.try_get::<_, Option<uuid::Uuid>>(4)? {
                Some(_) => row::decode(row, 4),
                None => Err("the delivery is not there".to_owned()),
            };
            match found {
                Ok(delivery) => leases.push(Lease {
                    delivery: Arc::new(delivery),
                    destination: Arc::clone(&destination),
                    attempt: u32::try_from(row.try_get::<_, i32>(1)?).unwrap_or(u32::MAX),
                    pending_since: from_milliseconds(row.try_get(2)?),
                    replay: row.try_get(3)?,
                }),
                Err(what) => damaged.push((id, what)),
            }
        }
        for (id, what) in damaged {
            self.set_aside(id, &destination, &what, now).await;
        }
        Ok(leases)
    }

    /// What fails here is found to be held by nobody later, and leased again.
    async fn set_aside(&self, id: Id, destination: &Arc<str>, what: &str, now: Timestamp) {
        self.metrics.store_corrupt_rows.inc();
        tracing::error!(delivery = %id, %destination, error = what, "corrupt row set aside");
        let _changing = self.activity.begin();
        let at = now.as_millisecond();
        match self.query(SET_ASIDE, &[&uuid(id), &&**destination, &self.id, &at]).await {
            Ok(rows) => {
                let since = rows.first().and_then(|row| row.try_get(0).ok()).map(from_milliseconds);
                let change = |since| Change {
                    destination: Arc::clone(destination),
                    pending: Some((since, -1)),
                    dead: 1,
                };
                self.depths.apply(since.map(change).into_iter().collect());
            }
            Err(trouble) => tracing::warn!(delivery = %id, ?trouble, "corrupt row not set aside"),
        }
        self.held.remove(id, destination);
    }

    pub(super) async fn next_due(&self, destination: &str) -> Result<Option<Timestamp>, Trouble> {
        let rows = self.query(NEXT_DUE, &[&destination]).await?;
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
            client.execute(&statement, &[&destination, &now, &latest]).await
        })
        .await
    }
}
