//! Whose turn it is, in destinations with an order: the embedded store's queues (`sqlite/order.rs`), which several gateways
//! put forwards into and take them from. Whoever judges a key or changes who is first in it holds the key's lock, by the
//! database, to the end of the transaction; so the order is exact whichever gateway a delivery comes to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use deadpool_postgres::Object;
use sha2::{Digest as _, Sha256};
use tokio_postgres::Error;
use uuid::Uuid;

use super::error::Trouble;
use super::lease;
use super::row::{self, uuid};
use super::{Inner, connect};
use crate::clock::Timestamp;
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
    SELECT o.delivery,
        (SELECT f.state FROM countersign.forward f WHERE f.delivery = o.delivery AND f.destination = o.destination)
    FROM countersign.ordered o
    WHERE o.destination = $1 AND o.order_key = $2 ORDER BY o.arrival, o.delivery LIMIT 1";
/// It falls due when it did, if it is held.
const RELEASE: &str = "
    UPDATE countersign.forward SET due_at = due_at - $3
    WHERE delivery = $1 AND destination = $2 AND state = 'waiting' AND due_at >= $3";
const TAKE: &str = "
    UPDATE countersign.forward
    SET state = 'in_flight', attempts = attempts + 1, waited = waited + $3 - due_at, due_at = $3, held_by = $4,
        held_since = clock_timestamp()
    WHERE delivery = $1 AND destination = $2 AND state = 'waiting'
    RETURNING attempts, pending_since, replay, waited";

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
