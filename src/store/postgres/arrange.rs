//! Brings what is pending into a destination's order, or out of it, and puts right what gateways have left behind whose orders
//! differed, or that were ended half-way. In steps, so that no statement takes long however much there is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::types::ToSql;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::error::Trouble;
use super::lease::BYTES_MAX;
use super::order::HELD;
use super::row::{self, COLUMNS, uuid};
use super::{Inner, lock};
use crate::forward::Order;

/// Rows that one step looks at.
const ROWS_MAX: i64 = 500;
/// How often is looked for what is held for nothing.
const REVIEW: Duration = Duration::from_secs(10);

/// What holds up any key and should not, behind the place of $2 to $4: it is over, or a dead letter that nobody waits for.
const CLEAN: &str = "
    WITH looked_at AS MATERIALIZED (
        SELECT order_key, arrival, delivery FROM countersign.ordered
        WHERE destination = $1 AND (order_key, arrival, delivery) > ($2, $3, $4)
        ORDER BY order_key, arrival, delivery LIMIT $5
    ), cleaned AS (
        DELETE FROM countersign.ordered o USING looked_at l
        WHERE o.destination = $1 AND o.delivery = l.delivery AND NOT EXISTS (
            SELECT 1 FROM countersign.forward f WHERE f.delivery = o.delivery AND f.destination = $1
                AND (f.state IN ('waiting', 'in_flight') OR f.state = 'dead' AND $6))
    )
    SELECT order_key, arrival, delivery FROM looked_at ORDER BY order_key DESC, arrival DESC, delivery DESC LIMIT 1";
/// What is held and is the first of its key, or has no place at all, behind $3 and $4.
const RELEASE_ALL: &str = "
    WITH looked_at AS MATERIALIZED (
        SELECT due_at, delivery, destination, state FROM countersign.forward
        WHERE destination = $1 AND state = 'waiting' AND due_at >= $2 AND (due_at, delivery) > ($3, $4)
        ORDER BY due_at, delivery LIMIT $5
    ), released AS (
        UPDATE countersign.forward f SET due_at = f.due_at - $2 FROM looked_at l
        WHERE f.delivery = l.delivery AND f.destination = l.destination AND f.state = l.state AND f.due_at = l.due_at
            AND f.delivery = coalesce((
                SELECT (SELECT first.delivery FROM countersign.ordered first
                    WHERE first.destination = $1 AND first.order_key = o.order_key
                    ORDER BY first.arrival, first.delivery LIMIT 1)
                FROM countersign.ordered o WHERE o.delivery = l.delivery AND o.destination = $1), l.delivery)
        RETURNING 1
    )
    SELECT due_at, delivery, (SELECT count(*) FROM released) FROM looked_at
    ORDER BY due_at DESC, delivery DESC LIMIT 1";
/// Pending ones that have no place in the order, behind another.
const UNPLACED: &str = "
    SELECT f.delivery, f.order_key FROM (
        SELECT f.delivery, o.order_key FROM countersign.forward f
        LEFT JOIN countersign.ordered o ON o.delivery = f.delivery AND o.destination = f.destination
        WHERE f.destination = $1 AND f.state IN ('waiting', 'in_flight') AND f.delivery > $2
        ORDER BY f.delivery LIMIT $3) f";
const PLACE: &str = "
    INSERT INTO countersign.ordered (destination, order_key, arrival, delivery)
    SELECT $1, p.order_key, p.arrival, p.delivery
    FROM unnest($2::text[], $3::bigint[], $4::uuid[]) p(order_key, arrival, delivery)
    WHERE (SELECT f.settled_at IS NULL FROM countersign.forward f WHERE f.delivery = p.delivery AND f.destination = $1)
    ON CONFLICT (delivery, destination) DO UPDATE SET order_key = EXCLUDED.order_key";
const DISBAND: &str = "
    WITH gone AS (
        DELETE FROM countersign.ordered WHERE destination = $1 AND (order_key, arrival, delivery) IN (
            SELECT order_key, arrival, delivery FROM countersign.ordered WHERE destination = $1 LIMIT $3)
        RETURNING 1
    ), held AS MATERIALIZED (
        SELECT delivery, destination, state, due_at FROM countersign.forward
        WHERE destination = $1 AND state = 'waiting' AND due_at >= $2 LIMIT $3
    ), released AS (
        UPDATE countersign.forward f SET due_at = f.due_at - $2 FROM held h
        WHERE f.delivery = h.delivery AND f.destination = h.destination AND f.state = h.state AND f.due_at = h.due_at
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM released)";

/// The orders of the lanes of this gateway, as they were last arranged. Who holds one arranges, or puts right.
pub(super) type Arranged = Mutex<BTreeMap<Arc<str>, Arc<tokio::sync::Mutex<Option<Arc<Order>>>>>>;

impl Inner {
    /// Brings what is pending into an order, or out of it.
    pub(super) async fn arrange(&self, destination: &str, order: Option<Arc<Order>>) -> Result<(), Trouble> {
        let arranged = Arc::clone(lock(&self.arranged).entry(destination.into()).or_default());
        let mut arranged = arranged.lock().await;
        arranged.clone_from(&order);
        if let Some(order) = &order {
            self.place(destination, order).await?;
        }
        self.review(destination, order.as_deref()).await.map(drop)
    }

    /// Gives what is pending a place.
    async fn place(&self, destination: &str, order: &Order) -> Result<(), Trouble> {
        let mut after = Uuid::nil();
        loop {
            let rows = self.query(UNPLACED, &[&destination, &after, &ROWS_MAX]).await?;
            let Some(last) = rows.last() else { break };
            after = last.try_get(0)?;
            let mut unplaced = Vec::new();
            for row in &rows {
                let key: Option<&str> = row.try_get(1)?;
                if key.is_none_or(|key| !key.starts_with(order.prefix())) {
                    unplaced.push(row.try_get::<_, Uuid>(0)?);
                }
            }
            let keys = self.keys(order, &unplaced).await?;
            let arrivals: Vec<i64> =
                unplaced.iter().map(|id| row::id(*id).time().as_millisecond() << 10).collect();
            self.query(PLACE, &[&destination, &keys, &arrivals, &unplaced]).await?;
        }
        Ok(())
    }

    /// Lets go what is held for nothing; how many.
    async fn review(&self, destination: &str, order: Option<&Order>) -> Result<i64, Trouble> {
        let mut total = 0;
        let Some(order) = order else {
            loop {
                let rows = self.query(DISBAND, &[&destination, &HELD, &ROWS_MAX]).await?;
                let Some(row) = rows.first() else { return Ok(total) };
                let (gone, released): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
                total += released;
                if gone + released == 0 {
                    return Ok(total);
                }
            }
        };
        let (mut key, mut arrival, mut delivery) = (String::new(), i64::MIN, Uuid::nil());
        loop {
            let values: [&(dyn ToSql + Sync); 6] =
                [&destination, &key, &arrival, &delivery, &ROWS_MAX, &order.parks()];
            let rows = self.query(CLEAN, &values).await?;
            let Some(last) = rows.first() else { break };
            (key, arrival, delivery) = (last.try_get(0)?, last.try_get(1)?, last.try_get(2)?);
        }
        let (mut due_at, mut delivery) = (HELD, Uuid::nil());
        loop {
            let rows = self.query(RELEASE_ALL, &[&destination, &HELD, &due_at, &delivery, &ROWS_MAX]).await?;
            let Some(last) = rows.first() else { return Ok(total) };
            (due_at, delivery) = (last.try_get(0)?, last.try_get(1)?);
            total += last.try_get::<_, i64>(2)?;
        }
    }

    /// Puts right, at no more than a twentieth of its time, what gateways have left behind that had another order, or were
    /// ended half-way.
    pub(super) async fn keep_in_order(self: Arc<Self>, stop: CancellationToken) {
        let mut rest = REVIEW;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(rest) => {}
            }
            let began = Instant::now();
            let all: Vec<_> = lock(&self.arranged)
                .iter()
                .map(|(name, order)| (Arc::clone(name), Arc::clone(order)))
                .collect();
            for (destination, order) in all {
                // One that is being arranged is put right by that.
                let Ok(order) = order.try_lock() else { continue };
                match self.review(&destination, order.as_deref()).await {
                    Ok(0) => {}
                    Ok(_) => self.outlet.wake(&destination),
                    Err(trouble) => tracing::debug!(%destination, ?trouble, "order not reviewed"),
                }
            }
            rest = REVIEW.max(began.elapsed() * 20);
        }
    }

    /// The keys of these deliveries, which are in the order of their ids. One that cannot be read will be set aside when its
    /// turn comes.
    async fn keys(&self, order: &Order, ids: &[Uuid]) -> Result<Vec<String>, Trouble> {
        let sql = format!(
            "WITH sized AS (
                 SELECT id, sum(octet_length(body)) OVER (ORDER BY id) - octet_length(body) AS before
                 FROM countersign.delivery WHERE id = ANY($1))
             SELECT {COLUMNS} FROM sized s JOIN countersign.delivery d ON d.id = s.id
             WHERE s.before < {BYTES_MAX} ORDER BY d.id"
        );
        let (mut found, mut rest) = (BTreeMap::new(), ids);
        while !rest.is_empty() {
            let rows = self.query(&sql, &[&rest]).await?;
            let Some(last) = rows.last() else { break };
            let last: Uuid = last.try_get(0)?;
            rest = &rest[rest.partition_point(|id| *id <= last)..];
            let readable = rows.iter().filter_map(|row| row::decode(row, 0).ok());
            found.extend(readable.map(|delivery| (uuid(delivery.id), order.key(&delivery))));
        }
        Ok(ids.iter().map(|id| found.remove(id).unwrap_or_else(|| order.prefix().to_owned())).collect())
    }
}
