//! Whose turn it is, in destinations with an order: the embedded store's queues (`sqlite/order.rs`), which several gateways
//! put forwards into and take them from. Whoever judges a key or changes who is first in it holds the key's lock, by the
//! database, to the end of the transaction; so the order is exact whichever gateway a delivery comes to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use deadpool_postgres::Object;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tokio_postgres::Error;
use tokio_postgres::types::ToSql;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::error::Trouble;
use super::lease::{self, BYTES_MAX};
use super::row::{self, COLUMNS, uuid};
use super::{Inner, connect, lock};
use crate::clock::{Timestamp, from_milliseconds};
use crate::delivery::Delivery;
use crate::forward::Order;
use crate::id::Id;
use crate::store::Lease;

/// What is added to the due time of a forward whose turn has not come: 35,000 years.
pub(super) const HELD: i64 = 1 << 50;

/// When a forward is due, whether or not its turn has come.
pub(super) fn due(at: i64) -> i64 {
    if at >= HELD { at - HELD } else { at }
}

/// Rows that one step looks at.
const ROWS_MAX: i64 = 500;
/// How often is looked for what is held for nothing.
const REVIEW: Duration = Duration::from_secs(10);

/// In one order, so that no two transactions wait for each other.
pub(super) const LOCK: &str = "
    SELECT pg_advisory_xact_lock(k) FROM (SELECT DISTINCT k FROM unnest($1::bigint[]) k ORDER BY k) keys";

const PLACES: &str = "SELECT delivery, order_key, arrival FROM countersign.ordered WHERE destination = $1 AND delivery = ANY($2)";
const ENQUEUE: &str = "
    WITH last AS (SELECT max(arrival) AS arrival FROM countersign.ordered WHERE destination = $1 AND order_key = $2),
    placed AS (
        INSERT INTO countersign.ordered (destination, order_key, arrival, delivery)
        SELECT $1, $2, greatest($3, last.arrival + 1), $4 FROM last)
    SELECT arrival IS NULL FROM last";
const IS_FIRST: &str = "
    SELECT NOT EXISTS (SELECT 1 FROM countersign.ordered
        WHERE destination = $1 AND order_key = $2 AND (arrival, delivery) < ($3, $4))";
const HOLD: &str = "
    UPDATE countersign.forward SET due_at = due_at + $3
    WHERE delivery = $1 AND destination = $2 AND state = 'waiting' AND due_at < $3";
const REMOVE: &str = "DELETE FROM countersign.ordered WHERE delivery = $1 AND destination = $2";
/// The first of a key, and where it stands.
const FIRST: &str = "
    SELECT o.delivery, f.state FROM countersign.ordered o
    LEFT JOIN countersign.forward f ON f.delivery = o.delivery AND f.destination = o.destination
    WHERE o.destination = $1 AND o.order_key = $2 ORDER BY o.arrival, o.delivery LIMIT 1";
/// It falls due when it did, if it is held.
const RELEASE: &str = "
    UPDATE countersign.forward SET due_at = due_at - $3
    WHERE delivery = $1 AND destination = $2 AND state = 'waiting' AND due_at >= $3";
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
        SELECT due_at, delivery FROM countersign.forward
        WHERE destination = $1 AND state = 'waiting' AND due_at >= $2 AND (due_at, delivery) > ($3, $4)
        ORDER BY due_at, delivery LIMIT $5
    ), released AS (
        UPDATE countersign.forward f SET due_at = f.due_at - $2 FROM looked_at l
        WHERE f.delivery = l.delivery AND f.destination = $1 AND f.state = 'waiting' AND f.due_at >= $2
            AND f.delivery = coalesce((
                SELECT (SELECT first.delivery FROM countersign.ordered first
                    WHERE first.destination = $1 AND first.order_key = o.order_key
                    ORDER BY first.arrival, first.delivery LIMIT 1)
                FROM countersign.ordered o WHERE o.delivery = l.delivery AND o.destination = $1), l.delivery)
        RETURNING 1
    )
    SELECT due_at, delivery, (SELECT count(*) FROM released) FROM looked_at
    ORDER BY due_at DESC, delivery DESC LIMIT 1";
const TAKE: &str = "
    UPDATE countersign.forward
    SET state = 'in_flight', attempts = attempts + 1, waited = waited + $3 - due_at, due_at = $3, held_by = $4,
        held_since = clock_timestamp()
    WHERE delivery = $1 AND destination = $2 AND state = 'waiting'
    RETURNING attempts, pending_since, replay, waited";
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
    JOIN countersign.forward f ON f.delivery = p.delivery AND f.destination = $1 AND f.settled_at IS NULL
    ON CONFLICT (delivery, destination) DO UPDATE SET order_key = EXCLUDED.order_key";
const DISBAND: &str = "
    WITH gone AS (
        DELETE FROM countersign.ordered WHERE destination = $1 AND (order_key, arrival, delivery) IN (
            SELECT order_key, arrival, delivery FROM countersign.ordered WHERE destination = $1 LIMIT $3)
        RETURNING 1
    ), released AS (
        UPDATE countersign.forward SET due_at = due_at - $2
        WHERE destination = $1 AND state = 'waiting' AND due_at >= $2 AND delivery IN (
            SELECT delivery FROM countersign.forward
            WHERE destination = $1 AND state = 'waiting' AND due_at >= $2 LIMIT $3)
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM released)";

/// The orders of the lanes of this gateway, as they were last arranged. Who holds one arranges, or puts right.
pub(super) type Arranged = Mutex<BTreeMap<Arc<str>, Arc<tokio::sync::Mutex<Option<Arc<Order>>>>>>;

/// What stands for a key in the database's locks.
pub(super) fn lock_of(destination: &str, key: &str) -> i64 {
    let digest = Sha256::new_with_prefix(destination).chain_update([0]).chain_update(key).finalize();
    let mut beginning = [0; 8];
    beginning.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(beginning)
}

/// Where a forward stands among those with its key.
struct Place {
    key: String,
    arrival: i64,
}

impl Inner {
    /// Leases what is due and has its turn; what has not is held from then on.
    pub(super) async fn lease_in_order(
        &self,
        order: &Order,
        destination: &Arc<str>,
        limit: i64,
        now: Timestamp,
    ) -> Result<(Vec<Lease>, Vec<(Id, String)>), Trouble> {
        let holder = self.id;
        connect::transaction(&self.pool, |client| async move {
            take(&client, order, destination, limit, now, holder).await
        })
        .await
    }

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
            let arrivals: Vec<i64> = unplaced.iter().map(|id| received_at(*id) << 10).collect();
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

    /// Those are over (`true`: by dying), and the turn of others comes, unless they are parked: in these lanes. In the
    /// transaction in which they end. Where they stood decides, whatever order this gateway knows of: others may have
    /// another by now.
    pub(super) async fn end_turns<'a>(
        &self,
        client: &Object,
        over: impl Iterator<Item = (Id, &'a Arc<str>, bool)>,
    ) -> Result<BTreeSet<Arc<str>>, Error> {
        let mut ended: BTreeMap<&Arc<str>, Vec<Uuid>> = BTreeMap::new();
        for (id, destination, died) in over {
            if !(died && self.parks(destination)) {
                ended.entry(destination).or_default().push(uuid(id));
            }
        }
        let mut released = BTreeSet::new();
        for (destination, ids) in ended {
            if end_turn(client, destination, &ids, self.parks(destination)).await? > 0 {
                released.insert(Arc::clone(destination));
            }
        }
        Ok(released)
    }

    /// Whether a dead letter holds up what is behind it. Without an order of our own that is for others to say.
    fn parks(&self, destination: &str) -> bool {
        self.outlet.order(destination).is_none_or(|order| order.parks())
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

async fn take(
    client: &Object,
    order: &Order,
    destination: &Arc<str>,
    limit: i64,
    now: Timestamp,
    holder: Uuid,
) -> Result<(Vec<Lease>, Vec<(Id, String)>), Error> {
    let at = now.as_millisecond();
    let due = client.prepare_cached(&lease::due_sql()).await?;
    let rows = client.query(&due, &[&&**destination, &at, &limit]).await?;
    let (mut deliveries, mut damaged) = (Vec::new(), Vec::new());
    for row in &rows {
        let id = row::id(row.try_get(0)?);
        match lease::decode(row, 1)? {
            Ok(delivery) => deliveries.push(Arc::new(delivery)),
            Err(what) => damaged.push((id, what)),
        }
    }
    let ids: Vec<Uuid> = deliveries.iter().map(|delivery| uuid(delivery.id)).collect();
    let select = client.prepare_cached(PLACES).await?;
    let mut places = BTreeMap::new();
    for row in client.query(&select, &[&&**destination, &ids]).await? {
        let place = Place { key: row.try_get(1)?, arrival: row.try_get(2)? };
        if place.key.starts_with(order.prefix()) {
            places.insert(row::id(row.try_get(0)?), place);
        }
    }
    let key = |delivery: &Arc<Delivery>| {
        places.get(&delivery.id).map_or_else(|| order.key(delivery), |place| place.key.clone())
    };
    let keys: Vec<String> = deliveries.iter().map(key).collect();
    let locks: Vec<i64> = keys.iter().map(|key| lock_of(destination, key)).collect();
    let lock = client.prepare_cached(LOCK).await?;
    client.query(&lock, &[&locks]).await?;
    let mut leases = Vec::new();
    for (delivery, key) in deliveries.into_iter().zip(keys) {
        let id = uuid(delivery.id);
        let first = match places.get(&delivery.id) {
            Some(place) => {
                let is_first = client.prepare_cached(IS_FIRST).await?;
                client.query_one(&is_first, &[&&**destination, &key, &place.arrival, &id]).await?
            }
            // One that has no place in this order, as after a replay, takes the last.
            None => {
                let remove = client.prepare_cached(REMOVE).await?;
                client.execute(&remove, &[&id, &&**destination]).await?;
                let enqueue = client.prepare_cached(ENQUEUE).await?;
                client.query_one(&enqueue, &[&&**destination, &key, &(at << 10), &id]).await?
            }
        };
        if !first.try_get::<_, bool>(0)? {
            let hold = client.prepare_cached(HOLD).await?;
            client.execute(&hold, &[&id, &&**destination, &HELD]).await?;
            continue;
        }
        let take = client.prepare_cached(TAKE).await?;
        if let Some(row) = client.query_opt(&take, &[&id, &&**destination, &at, &holder]).await? {
            leases.push(lease::of(delivery, destination, &row, 0)?);
        }
    }
    // What could not be read is taken as well, to be set aside.
    for (id, _) in &damaged {
        let take = client.prepare_cached(TAKE).await?;
        client.query_opt(&take, &[&uuid(*id), &&**destination, &at, &holder]).await?;
    }
    Ok((leases, damaged))
}

/// Takes forwards out of their queues; how many others have their turn now.
async fn end_turn(client: &Object, destination: &str, ids: &[Uuid], parks: bool) -> Result<u64, Error> {
    let select = client.prepare_cached(PLACES).await?;
    let mut keys = BTreeSet::new();
    for row in client.query(&select, &[&destination, &ids]).await? {
        keys.insert(row.try_get::<_, String>(1)?);
    }
    if keys.is_empty() {
        return Ok(0);
    }
    let locks: Vec<i64> = keys.iter().map(|key| lock_of(destination, key)).collect();
    let lock = client.prepare_cached(LOCK).await?;
    client.query(&lock, &[&locks]).await?;
    let remove = client.prepare_cached(REMOVE).await?;
    for id in ids {
        client.execute(&remove, &[id, &destination]).await?;
    }
    let mut released = 0;
    let (first, release) = (client.prepare_cached(FIRST).await?, client.prepare_cached(RELEASE).await?);
    for key in keys {
        while let Some(row) = client.query_opt(&first, &[&destination, &key]).await? {
            let id: Uuid = row.try_get(0)?;
            let stays = match row.try_get::<_, Option<&str>>(1)? {
                Some("waiting" | "in_flight") => true,
                Some("dead") => parks,
                Some(_) | None => false,
            };
            if stays {
                released += client.execute(&release, &[&id, &destination, &HELD]).await?;
                break;
            }
            client.execute(&remove, &[&id, &destination]).await?;
        }
    }
    Ok(released)
}

/// Milliseconds since the epoch, which a UUIDv7 begins with.
fn received_at(id: Uuid) -> i64 {
    from_milliseconds(i64::try_from(id.as_u128() >> 80).unwrap_or(i64::MAX)).as_millisecond()
}
