//! What a gateway does on its own account: it keeps its lease on life, takes over what gateways have left behind that let
//! theirs lapse, gives back what it holds without knowing it, has its lanes keep to what all gateways share, counts, and notices when the
//! database is gone and when it is back. All on one connection that nothing else uses, so that a busy gateway is not taken
//! for a dead one.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Object, Pool};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Inner;
use super::error::Trouble;
use super::row;
use super::share::{News, TAKE_BACK};
use crate::clock::from_milliseconds;

/// Until when a gateway has to have been heard of.
const LEASE: Duration = Duration::from_secs(10);
/// How often it lets itself be heard.
const RENEW: Duration = Duration::from_secs(2);
/// How often it looks at what all gateways share, and for what has fallen due.
const LOOK: Duration = Duration::from_millis(200);
/// How often depths are counted anew where they can be; and how old the last count may become where something changes all
/// the time.
const COUNT: Duration = Duration::from_secs(2);
const COUNT_MAX: Duration = Duration::from_secs(30);
/// A database that does not answer within this is as good as none.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// The first and the longest pause between two tries to reach it.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

const RENEW_SQL: &str = "
    INSERT INTO countersign.gateway (id, name, expires_at) VALUES ($1, $2, clock_timestamp() + $3 * interval '1 ms')
    ON CONFLICT (id) DO UPDATE SET expires_at = EXCLUDED.expires_at
    RETURNING current_setting('fsync')";
/// In flight of a gateway that is not alive. Their attempts stay counted.
const TAKE_OVER: &str = "
    WITH left_behind AS MATERIALIZED (
        SELECT f.delivery, f.destination, f.state FROM countersign.forward f
        WHERE f.state = 'in_flight' AND NOT EXISTS (
            SELECT 1 FROM countersign.gateway g WHERE g.id = f.held_by AND g.expires_at > clock_timestamp())
        LIMIT 1000 FOR UPDATE SKIP LOCKED)
    UPDATE countersign.forward f SET state = 'waiting', held_by = NULL, held_since = NULL
    FROM left_behind l WHERE f.delivery = l.delivery AND f.destination = l.destination AND f.state = l.state
    RETURNING f.destination";
/// Gone for so long that nothing of theirs can be left.
const FORGET: &str = "
    DELETE FROM countersign.gateway g WHERE g.expires_at < clock_timestamp() - interval '1 hour'
        AND NOT EXISTS (SELECT 1 FROM countersign.forward f WHERE f.state = 'in_flight' AND f.held_by = g.id)";
/// Held for longer than any statement may take.
const HELD_LONG: &str = "
    SELECT delivery, destination, attempts, pending_since FROM countersign.forward
    WHERE state = 'in_flight' AND held_by = $1 AND held_since < clock_timestamp() - interval '15 s'";
const GIVE_BACK: &str = "
    UPDATE countersign.forward SET state = 'waiting', held_by = NULL, held_since = NULL
    WHERE delivery = $1 AND destination = $2 AND state = 'in_flight' AND held_by = $3 AND attempts = $4";
pub(super) const GIVE_ALL_BACK: &str = "
    WITH given AS (
        UPDATE countersign.forward SET state = 'waiting', held_by = NULL, held_since = NULL
        WHERE state = 'in_flight' AND held_by = $1
    ), left_alone AS (
        DELETE FROM countersign.share WHERE gateway = $1)
    DELETE FROM countersign.gateway WHERE id = $1";
const PENDING: &str = "
    SELECT destination, second, count(*) FROM (
        SELECT destination, div(pending_since, 1000)::bigint AS second FROM countersign.forward WHERE state = 'waiting'
        UNION ALL
        SELECT destination, div(pending_since, 1000)::bigint FROM countersign.forward WHERE state = 'in_flight') p
    GROUP BY destination, second";
const DEAD: &str =
    "SELECT destination, count(*) FROM countersign.forward WHERE state = 'dead' GROUP BY destination";
const BYTES: &str = "
    SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'countersign' AND c.relkind = 'r'";

/// The task itself.
pub(super) struct Upkeep {
    inner: Arc<Inner>,
    /// Of one connection.
    pool: Pool,
    renew_at: Instant,
    /// Until when no other gateway takes this one for dead.
    lease_until: Instant,
    /// When others may be taken for dead: not at once after nobody could reach the database.
    judge_at: Instant,
    /// Of breakers, until they have been written down.
    news: News,
}

impl Upkeep {
    pub(super) fn new(inner: Arc<Inner>, pool: Pool) -> Self {
        let now = Instant::now();
        Self { inner, pool, renew_at: now, lease_until: now, judge_at: now, news: News::new() }
    }

    /// Registers this gateway, and counts what there is.
    pub(super) async fn begin(&mut self) -> Result<(), Trouble> {
        self.round().await?;
        self.inner.count(true).await.map(drop)
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut pause = PAUSE.0;
        loop {
            let rest = if self.inner.reason().is_some() {
                let jitter = 0.5 + fastrand::f64() / 2.0;
                pause.mul_f64(jitter)
            } else {
                LOOK
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.inner.look.notified(), if self.inner.reason().is_none() => {}
                () = tokio::time::sleep(rest) => {}
            }
            let done = match timeout(ANSWER_MAX, self.round_or_another()).await {
                Ok(done) => done,
                Err(_) => Err(Trouble::Gone(format!("no answer within {} s", ANSWER_MAX.as_secs()))),
            };
            match done {
                Ok(()) => {
                    pause = PAUSE.0;
                    if self.inner.recover() {
                        // The others have to be given the time to be heard of again.
                        self.judge_at = Instant::now() + LEASE;
                        self.wake_all();
                    }
                }
                Err(trouble) => {
                    pause = (pause * 2).min(PAUSE.1);
                    self.renew_at = Instant::now();
                    let (Trouble::Gone(reason)
                    | Trouble::Busy(reason)
                    | Trouble::Again(reason)
                    | Trouble::Own(reason)) = trouble
                    else {
                        continue;
                    };
                    self.inner.fail(reason);
                }
            }
        }
    }

    fn wake_all(&self) {
        for (destination, _) in self.inner.depths.read() {
            self.inner.outlet.wake(&destination);
        }
    }

    /// Once more, where the connection alone may have come to its end.
    async fn round_or_another(&mut self) -> Result<(), Trouble> {
        match self.round().await {
            Err(Trouble::Gone(_)) if self.inner.reason().is_none() => self.round().await,
            done => done,
        }
    }

    /// Whatever is due of it all.
    async fn round(&mut self) -> Result<(), Trouble> {
        let connection = self.pool.get().await?;
        let done = self.look_after(&connection).await;
        if done.is_err() {
            // On this one nobody knows what is still to come.
            drop(Object::take(connection));
        }
        done
    }

    async fn look_after(&mut self, client: &Object) -> Result<(), Trouble> {
        let inner = Arc::clone(&self.inner);
        let now = Instant::now();
        if now >= self.renew_at {
            let renewed = Instant::now();
            let lease_ms = LEASE.as_millis() as f64;
            let renew = client.prepare_cached(RENEW_SQL).await?;
            let fsync = client.query_one(&renew, &[&inner.id, &inner.name, &lease_ms]).await?;
            if fsync.try_get::<_, &str>(0)? != "on" {
                // No session can keep to that; the next one is told what to do about it.
                return Err(Trouble::Gone("its fsync has been turned off".to_owned()));
            }
            self.lease_until = renewed + LEASE;
            self.renew_at = now + RENEW;
            self.give_back(client).await?;
            if now >= self.judge_at {
                self.take_over(client).await?;
            }
        }
        // Behind the renewal: what has been taken back from this gateway is seen, and what it has is its own until then.
        match inner.share(client, self.lease_until, &mut self.news).await {
            // Somebody holds a lane's row: nobody's accepts have to wait for that. What was not done is done in the next round.
            Err(Trouble::Busy(reason) | Trouble::Again(reason)) => {
                tracing::info!(reason, "places are not divided anew at the moment");
                Ok(())
            }
            done => done,
        }
    }

    /// What the database holds for this gateway and the gateway does not: an answer was lost.
    async fn give_back(&self, client: &Object) -> Result<(), Trouble> {
        let held = client.prepare_cached(HELD_LONG).await?;
        for row in client.query(&held, &[&self.inner.id]).await? {
            let (delivery, destination, attempt): (Uuid, &str, i32) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            let since = from_milliseconds(row.try_get(3)?);
            if self.inner.held.has(row::id(delivery), destination, attempt.unsigned_abs(), since) {
                continue;
            }
            let give_back = client.prepare_cached(GIVE_BACK).await?;
            if client.execute(&give_back, &[&delivery, &destination, &self.inner.id, &attempt]).await? > 0 {
                tracing::info!(%delivery, destination, "the answer to a lease was lost; the forward waits again");
                self.inner.outlet.wake(destination);
            }
        }
        Ok(())
    }

    async fn take_over(&self, client: &Object) -> Result<(), Trouble> {
        let take_over = client.prepare_cached(TAKE_OVER).await?;
        let rows = client.query(&take_over, &[]).await?;
        if !rows.is_empty() {
            tracing::warn!(forwards = rows.len(), "taken over from a gateway that is gone");
        }
        for row in &rows {
            self.inner.outlet.wake(row.try_get(0)?);
        }
        let take_back = client.prepare_cached(TAKE_BACK).await?;
        client.execute(&take_back, &[]).await?;
        let forget = client.prepare_cached(FORGET).await?;
        client.execute(&forget, &[]).await?;
        Ok(())
    }
}

impl Inner {
    /// Depths are counted here in step with this gateway's commits, and now and then in the tables, for what others do.
    /// A count that something has changed under is believed only when there has been no other for long.
    pub(super) async fn count(&self, believe: bool) -> Result<bool, Trouble> {
        let before = self.activity.quiet();
        if before.is_none() && !believe {
            return Ok(false);
        }
        let (pending, dead) = tokio::try_join!(self.query(PENDING, &[]), self.query(DEAD, &[]))?;
        let number = |count: i64| count.unsigned_abs();
        let pending = pending.iter().map(|row| {
            let (destination, second, count): (&str, i64, i64) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            Ok((Arc::from(destination), second, number(count)))
        });
        let pending = pending.collect::<Result<Vec<_>, tokio_postgres::Error>>()?;
        let dead =
            dead.iter().map(|row| Ok((Arc::from(row.try_get::<_, &str>(0)?), number(row.try_get(1)?))));
        let dead = dead.collect::<Result<Vec<_>, tokio_postgres::Error>>()?;
        let is_exact = before.is_some() && before == self.activity.quiet();
        if is_exact || believe {
            self.depths.replace(pending, dead);
        }
        let bytes = self.query(BYTES, &[]).await?;
        self.note_bytes(bytes.first().map_or(Ok(0), |row| row.try_get(0).map(number))?);
        Ok(is_exact || believe)
    }

    /// Counts for as long as it lives, at no more than a twentieth of its time.
    pub(super) async fn keep_counting(self: Arc<Self>, stop: CancellationToken) {
        let (mut rest, mut counted_at) = (COUNT, Instant::now());
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(rest) => {}
            }
            if self.reason().is_some() {
                continue;
            }
            let began = Instant::now();
            match self.count(counted_at.elapsed() >= COUNT_MAX).await {
                Ok(true) => counted_at = Instant::now(),
                Ok(false) => {}
                Err(trouble) => tracing::debug!(?trouble, "depths not counted"),
            }
            rest = COUNT.max(began.elapsed() * 20);
        }
    }
}
