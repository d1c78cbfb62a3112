//! Retention of what lies in no range that can be dropped, row by row, in small steps, by one gateway at a time. Pending and dead forwards keep their delivery whatever its age.

use std::time::Duration;

use deadpool_postgres::Object;
use uuid::Uuid;

use super::error::Trouble;
use super::{Inner, connect};
use crate::clock::{DIFFERENCE_MAX, Timestamp, earlier};
use crate::store::Swept;

/// Rows that one step looks at.
const ROWS_MAX: i64 = 1_000;

/// Held while a step is made; whoever does not get it leaves the sweep to the one that has it.
const TURN: &str = "SELECT pg_try_advisory_xact_lock(7162246531823823203)";

/// Deliveries all of whose forwards have been settled for long enough. Their rows are locked, so that none is brought back
/// meanwhile; a row that somebody is working on is left for the next sweep.
const SETTLED: &str = "
    WITH looked_at AS MATERIALIZED (
        SELECT settled_at, delivery, destination FROM countersign.forward
        WHERE (state = 'delivered' OR state = 'cancelled') AND settled_at < $1
            AND (settled_at, delivery, destination) > ($2, $3, $4)
        ORDER BY settled_at, delivery, destination LIMIT $5
    ), locked AS MATERIALIZED (
        SELECT f.delivery, f.destination
        FROM (SELECT DISTINCT delivery, 'delivered' AS one, 'cancelled' AS other, $1 AS before FROM looked_at) l
        JOIN countersign.forward f
            ON f.delivery = l.delivery AND (f.state = l.one OR f.state = l.other) AND f.settled_at < l.before
        FOR UPDATE OF f SKIP LOCKED
    ), gone AS MATERIALIZED (
        SELECT l.delivery FROM locked l GROUP BY l.delivery
        HAVING count(*) = (SELECT count(*) FROM countersign.forward f WHERE f.delivery = l.delivery)
    ), attempts AS (
        DELETE FROM countersign.attempt WHERE delivery IN (SELECT delivery FROM gone)
    ), forwards AS (
        DELETE FROM countersign.forward WHERE delivery IN (SELECT delivery FROM gone)
    ), deliveries AS (
        DELETE FROM countersign.delivery WHERE id IN (SELECT delivery FROM gone) RETURNING id
    )
    SELECT (SELECT count(*) FROM deliveries), l.settled_at, l.delivery, l.destination
    FROM (SELECT * FROM looked_at ORDER BY settled_at DESC, delivery DESC, destination DESC LIMIT 1) l";

const UNROUTED: &str = "
    DELETE FROM countersign.delivery WHERE id IN (
        SELECT id FROM countersign.delivery WHERE forwards = 0 AND received_at < $1
        ORDER BY received_at LIMIT $2 FOR UPDATE SKIP LOCKED)";

const CLAIMS: &str = "
    DELETE FROM countersign.claim WHERE key IN (
        SELECT key FROM countersign.claim WHERE expires_at <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED)";

/// A place in the index of settled forwards.
#[derive(Clone)]
struct Position {
    settled_at: i64,
    delivery: Uuid,
    destination: String,
}

enum Stage {
    Settled(Position),
    Unrouted,
    Claims,
}

impl Inner {
    pub(super) async fn sweep(&self, now: Timestamp, keep_delivered: Duration) -> Result<Swept, Trouble> {
        let before = earlier(now, keep_delivered).as_millisecond();
        let expired = earlier(now, DIFFERENCE_MAX).as_millisecond();
        self.make_ranges().await;
        let (dropped, before) = self.drop_ranges(before).await?;
        let mut total = Swept { deliveries: dropped, claims: 0 };
        let start = Position { settled_at: i64::MIN, delivery: Uuid::nil(), destination: String::new() };
        let mut stage = Some(Stage::Settled(start));
        while let Some(now) = stage {
            let step = connect::transaction(&self.pool, |client| async move {
                step(&client, &now, before, expired).await
            });
            let (swept, next) = step.await?;
            total.deliveries += swept.deliveries;
            total.claims += swept.claims;
            stage = next;
        }
        Ok(total)
    }
}

async fn step(
    client: &Object,
    stage: &Stage,
    before: i64,
    expired: i64,
) -> Result<(Swept, Option<Stage>), tokio_postgres::Error> {
    let turn = client.prepare_cached(TURN).await?;
    if !client.query_one(&turn, &[]).await?.try_get(0)? {
        return Ok((Swept::default(), None));
    }
    let deliveries = |deliveries| Swept { deliveries, claims: 0 };
    match stage {
        Stage::Settled(Position { settled_at, delivery, destination }) => {
            let statement = client.prepare_cached(SETTLED).await?;
            let looked = client
                .query_opt(&statement, &[&before, settled_at, delivery, destination, &ROWS_MAX])
                .await?;
            let Some(row) = looked else { return Ok((Swept::default(), Some(Stage::Unrouted))) };
            let count: i64 = row.try_get(0)?;
            let next = Position {
                settled_at: row.try_get(1)?,
                delivery: row.try_get(2)?,
                destination: row.try_get(3)?,
            };
            Ok((deliveries(count.unsigned_abs()), Some(Stage::Settled(next))))
        }
        Stage::Unrouted => {
            let statement = client.prepare_cached(UNROUTED).await?;
            let count = client.execute(&statement, &[&before, &ROWS_MAX]).await?;
            let next = if count > 0 { Stage::Unrouted } else { Stage::Claims };
            Ok((deliveries(count), Some(next)))
        }
        Stage::Claims => {
            let statement = client.prepare_cached(CLAIMS).await?;
            let claims = client.execute(&statement, &[&expired, &ROWS_MAX]).await?;
            Ok((Swept { deliveries: 0, claims }, (claims > 0).then_some(Stage::Claims)))
        }
    }
}
