//! Claiming and storing a batch of arrivals in one transaction and one round trip.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Object;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::batch::Job;
use super::error::Trouble;
use super::order::HELD;
use super::row::{self, Prepared, uuid};
use super::{Inner, connect, order};
use crate::clock::{Timestamp, from_milliseconds};
use crate::dedup::Key;
use crate::store::sqlite::{DepthChange, Entry, OrderKey, order_key};
use crate::store::{Accepted, Arrival, Lease, Slot, StoreError};

/// Every key is inserted, or its row locked until the end, where a claim that has not expired is there: the next statement
/// sees it however many others were about to claim the same. In the order of the keys, so that no two batches wait for
/// each other.
const CLAIM: &str = "
    INSERT INTO countersign.claim (key, delivery, body_digest, claimed_at, expires_at)
    SELECT * FROM unnest($1::bytea[], $2::uuid[], $3::bytea[], $4::bigint[], $5::bigint[]) ORDER BY 1
    ON CONFLICT (key) DO UPDATE SET delivery = EXCLUDED.delivery, body_digest = EXCLUDED.body_digest,
        claimed_at = EXCLUDED.claimed_at, expires_at = EXCLUDED.expires_at
    WHERE claim.expires_at <= EXCLUDED.claimed_at";

/// Stores what has got all its claims, and lets go those of what has not. Asked again after a connection was lost in the
/// middle of a commit, it finds its own, and writes the delivery as it is: the primary may have it alone, and a transaction
/// that writes nothing waits for no standby.
const STORE: &str = "
    WITH judged AS MATERIALIZED (
        SELECT a.*, i.delivery AS id_first, i.body_digest AS first_digest, g.delivery AS guard_first, 'dead' AS dead
        FROM unnest($1::uuid[], $2::bytea[], $3::bytea[], $4::bytea[], $5::boolean[], $6::bigint[])
            AS a(id, id_key, guard_key, body_digest, revive, now)
        LEFT JOIN countersign.claim i ON i.key = a.id_key
        LEFT JOIN countersign.claim g ON g.key = a.guard_key
    ), stored AS MATERIALIZED (
        SELECT id, now FROM judged
        WHERE (id_key IS NULL OR id_first = id) AND (guard_key IS NULL OR guard_first = id)
    ), undone AS (
        DELETE FROM countersign.claim c
        USING (SELECT j.id, k.key FROM judged j CROSS JOIN LATERAL (VALUES (j.id_key), (j.guard_key)) k(key)
            WHERE j.id NOT IN (SELECT id FROM stored)) u
        WHERE c.key = u.key AND c.delivery = u.id
    ), written AS (
        INSERT INTO countersign.delivery (id, source, delivery_id, event, received_at, sender, method, target, verified,
            scheme, secret, skew, forwards, checksum, headers, body)
        SELECT d.* FROM unnest($1::uuid[], $7::text[], $8::text[], $9::text[], $10::bigint[], $11::text[], $12::text[],
            $13::text[], $14::boolean[], $15::text[], $16::text[], $17::bigint[], $18::integer[], $19::bytea[],
            $20::bytea[], $21::bytea[]) AS d(id)
        WHERE d.id IN (SELECT id FROM stored)
        ON CONFLICT (id) DO UPDATE SET id = EXCLUDED.id
    ), ranked AS MATERIALIZED (
        SELECT f.*, s.now, l.last, row_number() OVER (PARTITION BY f.destination, f.order_key ORDER BY f.n) AS rank
        FROM unnest($22::uuid[], $23::text[], $24::boolean[], $26::text[], $27::bigint[]) WITH ORDINALITY
            AS f(delivery, destination, taken, order_key, arrival, n)
        JOIN stored s ON s.id = f.delivery
        CROSS JOIN LATERAL (SELECT max(o.arrival) AS last FROM countersign.ordered o
            WHERE o.destination = f.destination AND o.order_key = f.order_key) l
    ), placed AS (
        INSERT INTO countersign.ordered (destination, order_key, arrival, delivery)
        SELECT destination, order_key, greatest(arrival, last + 1) + rank, delivery FROM ranked
        WHERE order_key IS NOT NULL
        ON CONFLICT (delivery, destination) DO NOTHING
    ), turned AS MATERIALIZED (
        SELECT *, order_key IS NULL OR last IS NULL AND rank = 1 AS is_first FROM ranked
    ), forwarded AS (
        INSERT INTO countersign.forward (delivery, destination, state, due_at, attempts, pending_since, replay, held_by,
            held_since)
        SELECT delivery, destination, CASE WHEN taken AND is_first THEN 'in_flight' ELSE 'waiting' END,
            now + CASE WHEN is_first THEN 0 ELSE $28::bigint END, (taken AND is_first)::integer, now, false,
            CASE WHEN taken AND is_first THEN $25::uuid END, CASE WHEN taken AND is_first THEN clock_timestamp() END
        FROM turned
        ON CONFLICT (delivery, destination) DO NOTHING
        RETURNING delivery, destination, state
    ), revived AS (
        UPDATE countersign.forward f
        SET state = 'waiting', due_at = j.now, attempts = 0, pending_since = j.now, waited = 0, replay = true, settled_at = NULL
        FROM judged j
        WHERE j.revive AND j.id_first <> j.id AND f.delivery = j.id_first AND f.state = j.dead
        RETURNING f.delivery, f.destination
    )
    SELECT j.id, j.id_first, j.first_digest, j.guard_first, j.id IN (SELECT id FROM stored),
        ARRAY(SELECT r.destination FROM revived r WHERE r.delivery = j.id_first),
        ARRAY(SELECT f.destination FROM forwarded f WHERE f.delivery = j.id AND f.state = 'in_flight')
    FROM judged j";

/// The deadline must not end a wait for a standby: the commit would be answered as if it had been confirmed there.
const NO_DEADLINE: &str = "SET LOCAL statement_timeout = 0";

/// Two transactions in each other's way are rare: nobody's batch meets another's again and again.
const TRIES: u32 = 4;

/// An arrival that waits for its commit.
pub(super) struct Accept {
    pub(super) arrival: Arrival,
    pub(super) prepared: Prepared,
    /// Of destinations with an order.
    pub(super) keys: Vec<OrderKey>,
    pub(super) reply: oneshot::Sender<Result<Accepted, StoreError>>,
}

impl Job for Accept {
    fn bytes(&self) -> usize {
        self.prepared.headers.len() + self.arrival.verified.delivery().body.len()
    }

    fn keys(&self) -> [Option<Key>; 2] {
        [self.arrival.keys.id, self.arrival.keys.guard]
    }
}

/// A forward to be, with its place in the lane where there is one.
struct Forward {
    destination: Arc<str>,
    slot: Option<Slot>,
    /// Where the destination has an order.
    key: Option<String>,
}

struct Planned {
    job: Accept,
    forwards: Vec<Forward>,
}

/// What the database says of an arrival.
struct Verdict {
    accepted: Accepted,
    /// Lanes whose dead forwards have come back.
    revived: Vec<Arc<str>>,
    /// Lanes whose place is used: it is the forward's turn.
    in_flight: Vec<String>,
}

impl Inner {
    /// Commits a batch, tells the lanes, and answers.
    pub(super) async fn accept(self: Arc<Self>, jobs: Vec<Accept>) {
        let planned = jobs.into_iter().map(|job| self.plan(job)).collect();
        self.accept_planned(planned).await;
    }

    async fn accept_planned(&self, planned: Vec<Planned>) {
        let changing = self.activity.begin();
        let verdicts = self.commit(&planned).await;
        match verdicts {
            Ok(mut verdicts) => {
                for Planned { job, forwards } in planned {
                    let id = job.arrival.verified.delivery().id;
                    match verdicts.remove(&uuid(id)) {
                        Some(verdict) => self.conclude(job, forwards, verdict),
                        None => self.refuse(
                            job,
                            forwards,
                            StoreError::Read("the database did not judge it".to_owned()),
                        ),
                    }
                }
                drop(changing);
            }
            // One of them cannot be stored; the others must not suffer for it.
            Err(Trouble::Own(reason)) if planned.len() > 1 => {
                tracing::debug!(reason, "storing a batch one by one");
                drop(changing);
                for one in planned {
                    Box::pin(self.accept_planned(vec![one])).await;
                }
            }
            Err(trouble) => {
                if let Trouble::Own(reason) = &trouble {
                    tracing::error!(error = reason, "refused what cannot be stored");
                }
                let error = StoreError::from(trouble);
                for Planned { job, forwards } in planned {
                    self.refuse(job, forwards, error.clone());
                }
                drop(changing);
                self.look.notify_one();
            }
        }
    }

    /// Takes places in the lanes, before anything is written: a forward that has one needs no second write before it is
    /// sent.
    fn plan(&self, job: Accept) -> Planned {
        // Named twice is meant once.
        let mut destinations = job.arrival.destinations.clone();
        destinations.sort_unstable();
        destinations.dedup();
        let forwards = destinations.into_iter().map(|destination| {
            let order = self.outlet.order(&destination);
            let key =
                order.map(|order| order_key(&job.keys, &job.arrival, &destination, &order).into_owned());
            let slot = self.outlet.reserve(&destination);
            Forward { destination, slot, key }
        });
        let forwards: Vec<_> = forwards.collect();
        Planned { job, forwards }
    }

    async fn commit(&self, planned: &[Planned]) -> Result<HashMap<Uuid, Verdict>, Trouble> {
        let started = Instant::now();
        let (mut tries, mut lost) = (0, false);
        let outcome = loop {
            tries += 1;
            let done =
                connect::on(&self.pool, |client| async move { send(&client, planned, self.id).await }).await;
            match done {
                Err(Trouble::Again(_)) if tries < TRIES => {}
                // Whether it was committed is not known; asked again, it is.
                Err(Trouble::Gone(_)) if !lost && self.fault().is_none() => lost = true,
                done => break done,
            }
        };
        self.metrics.store_commit_duration.observe(started.elapsed().as_secs_f64());
        outcome
    }

    fn conclude(&self, job: Accept, forwards: Vec<Forward>, verdict: Verdict) {
        let now = job.arrival.at.steady.time;
        let delivery = job.arrival.verified.delivery();
        let stored = verdict.accepted == Accepted::Stored;
        let mut changes = Vec::new();
        if stored {
            changes.extend(forwards.iter().map(|forward| pending(&forward.destination, now, 0)));
        }
        changes.extend(verdict.revived.iter().map(|destination| pending(destination, now, -1)));
        self.depths.apply(changes);
        let delivery = Arc::clone(delivery);
        if stored {
            for forward in &forwards {
                Entry::Created.count(&forward.destination, &self.metrics);
                if verdict.in_flight.iter().any(|destination| **destination == *forward.destination) {
                    self.held.add(delivery.id, &forward.destination, 1, now);
                }
            }
        }
        for Forward { destination, slot, .. } in forwards {
            match slot {
                Some(slot) if verdict.in_flight.iter().any(|taken| **taken == *destination) => {
                    let lease = Lease {
                        delivery: Arc::clone(&delivery),
                        destination,
                        attempt: 1,
                        pending_since: now,
                        waited: Duration::ZERO,
                        replay: false,
                    };
                    self.outlet.dispatch(lease, slot);
                }
                // It was not needed, or it is another's turn.
                Some(slot) => self.outlet.give_back(&destination, slot),
                // Whoever was refused a place waits to be told that it may look again.
                None => self.outlet.wake(&destination),
            }
        }
        for destination in verdict.revived {
            Entry::Requeued.count(&destination, &self.metrics);
            self.outlet.wake(&destination);
        }
        // When the lanes have been told, which takes no time. A caller that has stopped waiting changes nothing: what was
        // committed stays.
        let _ = job.reply.send(Ok(verdict.accepted));
    }

    fn refuse(&self, job: Accept, forwards: Vec<Forward>, error: StoreError) {
        let _ = job.reply.send(Err(error));
        for Forward { destination, slot, .. } in forwards {
            match slot {
                Some(slot) => self.outlet.give_back(&destination, slot),
                None => self.outlet.wake(&destination),
            }
        }
    }
}

fn pending(destination: &Arc<str>, since: Timestamp, dead: i8) -> DepthChange {
    DepthChange { destination: Arc::clone(destination), pending: Some((since, 1)), dead }
}

async fn send(client: &Object, planned: &[Planned], holder: Uuid) -> Result<HashMap<Uuid, Verdict>, Trouble> {
    let (claim, store) = (client.prepare_cached(CLAIM).await?, client.prepare_cached(STORE).await?);
    let arrivals: Vec<&Arrival> = planned.iter().map(|planned| &planned.job.arrival).collect();
    let deliveries: Vec<_> = arrivals.iter().map(|arrival| arrival.verified.delivery()).collect();
    let prepared: Vec<&Prepared> = planned.iter().map(|planned| &planned.job.prepared).collect();

    let ids: Vec<Uuid> = deliveries.iter().map(|delivery| uuid(delivery.id)).collect();
    let digests: Vec<&[u8]> = arrivals.iter().map(|arrival| &arrival.verified.body_digest()[..]).collect();
    let id_keys: Vec<Option<&[u8]>> =
        arrivals.iter().map(|arrival| bytes(arrival.keys.id.as_ref())).collect();
    let guard_keys: Vec<Option<&[u8]>> =
        arrivals.iter().map(|arrival| bytes(arrival.keys.guard.as_ref())).collect();
    let revive: Vec<bool> = arrivals.iter().map(|arrival| arrival.revive_dead).collect();
    let now: Vec<i64> = arrivals.iter().map(|arrival| arrival.at.steady.time.as_millisecond()).collect();

    // A row for each key of each arrival.
    let keyed = |n: usize| [id_keys[n], guard_keys[n]].into_iter().flatten().map(move |key| (n, key));
    let keyed: Vec<(usize, &[u8])> = (0..arrivals.len()).flat_map(keyed).collect();
    let keys: Vec<&[u8]> = keyed.iter().map(|(_, key)| *key).collect();
    let key_ids: Vec<Uuid> = keyed.iter().map(|(n, _)| ids[*n]).collect();
    let key_digests: Vec<&[u8]> = keyed.iter().map(|(n, _)| digests[*n]).collect();
    let claimed_at: Vec<i64> =
        keyed.iter().map(|(n, _)| arrivals[*n].at.earliest().as_millisecond()).collect();
    let claimed_until: Vec<i64> =
        keyed.iter().map(|(n, _)| arrivals[*n].claimed_until.as_millisecond()).collect();

    let sources: Vec<&str> = deliveries.iter().map(|delivery| &*delivery.source).collect();
    let delivery_ids: Vec<Option<&str>> =
        deliveries.iter().map(|delivery| delivery.delivery_id.as_deref()).collect();
    let events: Vec<Option<&str>> = deliveries.iter().map(|delivery| delivery.event.as_deref()).collect();
    let received: Vec<i64> =
        deliveries.iter().map(|delivery| delivery.received_at.as_millisecond()).collect();
    let senders: Vec<&str> = prepared.iter().map(|prepared| &*prepared.sender).collect();
    let methods: Vec<&str> = deliveries.iter().map(|delivery| delivery.method.as_str()).collect();
    let targets: Vec<&str> = deliveries.iter().map(|delivery| &*delivery.target).collect();
    let verified: Vec<bool> = deliveries.iter().map(|delivery| delivery.verification.verified).collect();
    let schemes: Vec<&str> = deliveries.iter().map(|delivery| &*delivery.verification.scheme).collect();
    let secrets: Vec<Option<&str>> =
        deliveries.iter().map(|delivery| delivery.verification.secret.as_deref()).collect();
    let skews: Vec<Option<i64>> =
        deliveries.iter().map(|delivery| delivery.verification.skew_seconds).collect();
    let forwards: Vec<i32> =
        planned.iter().map(|planned| i32::try_from(planned.forwards.len()).unwrap_or(i32::MAX)).collect();
    let checksums: Vec<&[u8]> = prepared.iter().map(|prepared| &prepared.checksum[..]).collect();
    let headers: Vec<&[u8]> = prepared.iter().map(|prepared| &prepared.headers[..]).collect();
    let bodies: Vec<&[u8]> = deliveries.iter().map(|delivery| &delivery.body[..]).collect();

    let each = planned.iter().zip(&ids);
    let each: Vec<(Uuid, &Forward)> =
        each.flat_map(|(planned, id)| planned.forwards.iter().map(move |forward| (*id, forward))).collect();
    let forward_ids: Vec<Uuid> = each.iter().map(|(id, _)| *id).collect();
    let destinations: Vec<&str> = each.iter().map(|(_, forward)| &*forward.destination).collect();
    let taken: Vec<bool> = each.iter().map(|(_, forward)| forward.slot.is_some()).collect();

    let order_keys: Vec<Option<&str>> = each.iter().map(|(_, forward)| forward.key.as_deref()).collect();
    let arrivals: Vec<i64> = planned
        .iter()
        .flat_map(|planned| {
            let wall = planned.job.arrival.at.wall.as_millisecond() << 10;
            planned.forwards.iter().map(move |_| wall)
        })
        .collect();
    let ordered =
        each.iter().filter_map(|(_, forward)| Some((&*forward.destination, forward.key.as_deref()?)));
    let locks: Vec<i64> = ordered.map(|(destination, key)| order::lock_of(destination, key)).collect();
    let lock = client.prepare_cached(order::LOCK).await?;
    let lock_values: [&(dyn ToSql + Sync); 1] = [&locks];
    let in_turn = async {
        // Of those of one key, from whichever gateways, each has to see those before it.
        if locks.is_empty() { Ok(Vec::new()) } else { client.query(&lock, &lock_values).await }
    };

    let claims: [&(dyn ToSql + Sync); 5] = [&keys, &key_ids, &key_digests, &claimed_at, &claimed_until];
    let rows: [&(dyn ToSql + Sync); 28] = [
        &ids,
        &id_keys,
        &guard_keys,
        &digests,
        &revive,
        &now,
        &sources,
        &delivery_ids,
        &events,
        &received,
        &senders,
        &methods,
        &targets,
        &verified,
        &schemes,
        &secrets,
        &skews,
        &forwards,
        &checksums,
        &headers,
        &bodies,
        &forward_ids,
        &destinations,
        &taken,
        &holder,
        &order_keys,
        &arrivals,
        &HELD,
    ];
    // All of it leaves at once; where one fails, those behind it do, and the commit is a rollback.
    let (begun, claimed, locked, rows, patient, committed) = tokio::join!(
        biased;
        client.batch_execute("BEGIN"),
        client.execute(&claim, &claims),
        in_turn,
        client.query(&store, &rows),
        client.batch_execute(NO_DEADLINE),
        client.batch_execute("COMMIT"),
    );
    begun?;
    claimed?;
    locked?;
    let rows = rows?;
    patient?;
    committed?;
    let digests: HashMap<Uuid, &[u8]> = ids.iter().copied().zip(digests).collect();
    rows.iter().map(|row| verdict(row, &digests)).collect()
}

fn bytes(key: Option<&Key>) -> Option<&[u8]> {
    key.map(|key| &key.as_bytes()[..])
}

fn verdict(row: &tokio_postgres::Row, digests: &HashMap<Uuid, &[u8]>) -> Result<(Uuid, Verdict), Trouble> {
    let id: Uuid = row.try_get(0)?;
    let (id_first, guard_first): (Option<Uuid>, Option<Uuid>) = (row.try_get(1)?, row.try_get(3)?);
    let first_digest: Option<&[u8]> = row.try_get(2)?;
    let stored: bool = row.try_get(4)?;
    let revived: Vec<String> = row.try_get(5)?;
    let in_flight: Vec<String> = row.try_get(6)?;
    let accepted = match (stored, id_first, guard_first) {
        (true, _, _) => Accepted::Stored,
        // The id first: a repetition of the same bytes under the same id is a duplicate, not a replay.
        (false, Some(first), _) if first != id => {
            Accepted::Duplicate { first: row::id(first), conflict: first_digest != digests.get(&id).copied() }
        }
        (false, _, Some(first)) if first != id => Accepted::Replay { first: row::id(first) },
        (false, _, _) => return Err(Trouble::Own("a claim was neither made nor found".to_owned())),
    };
    Ok((id, Verdict { accepted, revived: revived.into_iter().map(Arc::from).collect(), in_flight }))
}

/// Brings the dead forwards of a delivery back.
const REVIVE: &str = "
    UPDATE countersign.forward
    SET state = 'waiting', due_at = $2, attempts = 0, pending_since = $2, waited = 0, replay = true, settled_at = NULL
    WHERE delivery = $1 AND state = 'dead'
    RETURNING destination";

impl Inner {
    pub(super) async fn revive(&self, id: crate::id::Id, now: Timestamp) -> Result<u64, Trouble> {
        let changing = self.activity.begin();
        let at = now.as_millisecond();
        let rows = self.query(REVIVE, &[&uuid(id), &at]).await?;
        let mut revived = Vec::new();
        for row in rows {
            revived.push(Arc::<str>::from(row.try_get::<_, &str>(0)?));
        }
        let now = from_milliseconds(at);
        self.depths.apply(revived.iter().map(|destination| pending(destination, now, -1)).collect());
        drop(changing);
        for destination in &revived {
            Entry::Requeued.count(destination, &self.metrics);
            self.outlet.wake(destination);
        }
        Ok(revived.len() as u64)
    }
}
