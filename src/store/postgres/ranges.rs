//! Retention by ranges: deliveries and attempts lie in partitions by the day of receipt, with which their ids begin. A day that
//! retention has done with is dropped, whatever its size, and leaves nothing for a vacuum. One with a forward that has to stay
//! is emptied row by row (`sweep.rs`). Forwards, which are small, and are looked for whatever their day, lie in one table.

use std::cmp::{max, min};
use std::collections::BTreeMap;
use std::sync::Mutex;

use deadpool_postgres::Object;
use tokio_postgres::Error;
use uuid::Uuid;

use super::error::Trouble;
use super::{Inner, connect, lock, row};
use crate::clock::from_milliseconds;

/// Milliseconds.
const DAY: i64 = 86_400_000;
/// How many days are there before they are needed.
const AHEAD: i64 = 3;
/// Forwards that one step looks at.
const ROWS_MAX: i64 = 5_000;
/// Of the lock that whoever makes or drops a range holds; the next after the sweep's.
const TURN: &str = "SELECT pg_try_advisory_xact_lock(7162246531823823204)";
/// Bytes of a range whose deliveries are counted.
const COUNTED_MAX: i64 = 64 << 20;
/// Bytes and, about, deliveries of a range.
const STATISTICS: &str =
    "SELECT pg_relation_size(oid), greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = to_regclass($1)";
/// Who waits for a lock on a whole table has everybody else wait.
const IMPATIENT: &str = "SET LOCAL lock_timeout = '1s'";

const NOW: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint";
const RANGES: &str = "
    SELECT c.relname, pg_get_expr(c.relpartbound, c.oid)
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'countersign.delivery'::regclass";
/// Not where it is there by now, nor where some of its ids are in the default already.
const MAY_BE_MADE: &str = "
    SELECT to_regclass($3) IS NULL
        AND NOT EXISTS (SELECT 1 FROM countersign.delivery_default WHERE id >= $1 AND id < $2)
        AND NOT EXISTS (SELECT 1 FROM countersign.attempt_default WHERE delivery >= $1 AND delivery < $2)";
const HAS_OPEN: &str = "
    SELECT EXISTS (SELECT 1 FROM countersign.forward WHERE state = 'dead' AND delivery >= $1 AND delivery < $2)
        OR EXISTS (SELECT 1 FROM countersign.forward WHERE state = 'waiting' AND delivery >= $1 AND delivery < $2)
        OR EXISTS (SELECT 1 FROM countersign.forward WHERE state = 'in_flight' AND delivery >= $1 AND delivery < $2)";
/// The last time that some were settled too late, of those behind $1 and $2.
const LATE: &str = "
    WITH looked_at AS MATERIALIZED (
        SELECT delivery, destination, settled_at FROM countersign.forward
        WHERE (delivery, destination) > ($1, $2) AND delivery < $3 ORDER BY delivery, destination LIMIT $4
    )
    SELECT delivery, destination, (
        SELECT max(coalesce(settled_at, $5)) FROM looked_at WHERE settled_at IS NULL OR settled_at >= $5)
    FROM looked_at ORDER BY delivery DESC, destination DESC LIMIT 1";
const FORGET: &str = "
    DELETE FROM countersign.forward WHERE (delivery, destination) IN (
        SELECT delivery, destination FROM countersign.forward
        WHERE delivery >= $1 AND delivery < $2 AND (state = 'delivered' OR state = 'cancelled') AND settled_at < $3
        ORDER BY delivery, destination LIMIT $4 FOR UPDATE SKIP LOCKED)";
/// What a drop has left behind that was not completed: the first ones, since they lose their forwards in this order.
const ORPHANS: &str = "
    WITH looked_at AS MATERIALIZED (
        SELECT id, forwards FROM countersign.delivery WHERE id >= $1 AND id < $2 ORDER BY id LIMIT $3
    ), gone AS (
        DELETE FROM countersign.delivery d USING looked_at l
        WHERE d.id = l.id AND l.forwards > 0
            AND NOT EXISTS (SELECT 1 FROM countersign.forward f WHERE f.delivery = l.id)
        RETURNING d.id
    ), attempts AS (
        DELETE FROM countersign.attempt WHERE delivery IN (SELECT id FROM gone)
    )
    SELECT count(*) FROM gone";
const IS_EMPTY: &str =
    "SELECT NOT EXISTS (SELECT 1 FROM countersign.forward WHERE delivery >= $1 AND delivery < $2)";

/// Until when ranges are known to have something that was settled too late, by their ends: it is looked for in all of them.
pub(super) type Late = Mutex<BTreeMap<Uuid, i64>>;

/// What the ids of a partition lie in.
struct Range {
    /// What the names of its tables end in.
    name: String,
    /// The first id, `None` of the first range; and the first behind it.
    low: Option<Uuid>,
    high: Uuid,
}

impl Range {
    /// From the bounds as the database writes them; `None` of the default.
    fn parse(table: &str, bounds: &str) -> Option<Self> {
        let mut ids = bounds.split('\'').filter_map(|part| Uuid::parse_str(part).ok());
        let name = table.strip_prefix("delivery_")?.to_owned();
        let first = ids.next()?;
        Some(match ids.next() {
            Some(high) => Self { name, low: Some(first), high },
            None => Self { name, low: None, high: first },
        })
    }

    fn day(low: i64) -> Self {
        let name = from_milliseconds(low).strftime("%Y%m%d").to_string();
        Self { name, low: Some(first_id(low)), high: first_id(low + DAY) }
    }

    fn low(&self) -> Uuid {
        self.low.unwrap_or_default()
    }
}

/// The first id of a time.
fn first_id(at: i64) -> Uuid {
    Uuid::from_u128(u128::from(at.unsigned_abs()) << 80)
}

/// The time that an id begins with.
fn time(id: Uuid) -> i64 {
    row::id(id).time().as_millisecond()
}

impl Inner {
    /// Makes the ranges of today and of the days to come where they are not there yet. It can be done without them.
    pub(super) async fn make_ranges(&self) {
        if let Err(trouble) = self.make_missing_ranges().await {
            tracing::warn!(?trouble, "ranges of the days to come are not made");
        }
    }

    async fn make_missing_ranges(&self) -> Result<(), Trouble> {
        let known = self.ranges().await?;
        let end = known.iter().map(|range| time(range.high)).max().unwrap_or(0);
        let now: i64 = self.query(NOW, &[]).await?.first().map_or(Ok(0), |row| row.try_get(0))?;
        let today = now - now.rem_euclid(DAY);
        let mut next = max(end, today);
        while next <= today + AHEAD * DAY {
            let range = &Range::day(next);
            next += DAY;
            connect::transaction(&self.pool, |client| async move { make(&client, range).await }).await?;
        }
        Ok(())
    }

    async fn ranges(&self) -> Result<Vec<Range>, Trouble> {
        let rows = self.query(RANGES, &[]).await?;
        let mut ranges = Vec::new();
        for row in &rows {
            ranges.extend(Range::parse(row.try_get(0)?, row.try_get(1)?));
        }
        Ok(ranges)
    }

    /// Drops the ranges all of which was settled before then; how many deliveries they had, and before when what is not in
    /// one of the others has to have been settled, to be deleted by itself.
    pub(super) async fn drop_ranges(&self, before: i64) -> Result<(u64, i64), Trouble> {
        let (mut dropped, mut rows_before) = (0, before);
        let ranges = self.ranges().await?;
        // Also of those that another gateway has dropped.
        lock(&self.late).retain(|high, _| ranges.iter().any(|range| range.high == *high));
        for range in ranges {
            let gone = time(range.high) <= before;
            if gone && self.has_open(&range).await? {
                dropped += self.delete_orphans(&range).await?;
                continue;
            }
            let late = if gone { self.late(&range, before).await? } else { None };
            if late.is_some_and(|late| late - before > DAY) {
                // That is not waited for: what else is settled goes meanwhile.
                dropped += self.delete_orphans(&range).await?;
            } else if gone && late.is_none() {
                self.forget(&range, before).await?;
                match self.drop_range(&range).await {
                    Ok(deliveries) => dropped += deliveries,
                    // Somebody reads all of it, as pg_dump does: a later sweep drops it.
                    Err(Trouble::Busy(reason)) => {
                        tracing::info!(range = range.name, reason, "not dropped yet");
                    }
                    Err(trouble) => {
                        tracing::warn!(range = range.name, ?trouble, "not dropped, but emptied row by row");
                        dropped += self.delete_orphans(&range).await?;
                    }
                }
            } else if let Some(low) = range.low {
                // Nothing in it was settled before it was received.
                rows_before = min(rows_before, time(low));
            }
        }
        Ok((dropped, rows_before))
    }

    async fn has_open(&self, range: &Range) -> Result<bool, Trouble> {
        let rows = self.query(HAS_OPEN, &[&range.low(), &range.high]).await?;
        Ok(rows.first().map_or(Ok(true), |row| row.try_get(0))?)
    }

    /// When something in it was settled, where that was too late: not the last.
    async fn late(&self, range: &Range, before: i64) -> Result<Option<i64>, Trouble> {
        let known = lock(&self.late).get(&range.high).copied();
        if let Some(late) = known.filter(|late| before <= *late) {
            return Ok(Some(late));
        }
        let (mut delivery, mut destination) = (range.low(), String::new());
        loop {
            let rows = self.query(LATE, &[&delivery, &destination, &range.high, &ROWS_MAX, &before]).await?;
            let Some(last) = rows.first() else { return Ok(None) };
            if let Some(late) = last.try_get(2)? {
                lock(&self.late).insert(range.high, late);
                return Ok(Some(late));
            }
            (delivery, destination) = (last.try_get(0)?, last.try_get(1)?);
        }
    }

    async fn forget(&self, range: &Range, before: i64) -> Result<(), Trouble> {
        let mut deleted = 1;
        while deleted > 0 {
            deleted = connect::on(&self.pool, |client| async move {
                let statement = client.prepare_cached(FORGET).await?;
                client.execute(&statement, &[&range.low(), &range.high, &before, &ROWS_MAX]).await
            })
            .await?;
        }
        Ok(())
    }

    async fn delete_orphans(&self, range: &Range) -> Result<u64, Trouble> {
        let mut total = 0;
        loop {
            let rows = self.query(ORPHANS, &[&range.low(), &range.high, &ROWS_MAX]).await?;
            let deleted: i64 = rows.first().map_or(Ok(0), |row| row.try_get(0))?;
            total += deleted.unsigned_abs();
            if deleted == 0 {
                return Ok(total);
            }
        }
    }

    /// How many deliveries it had, about where they are many; none, where it is not gone: somebody has brought one back meanwhile.
    async fn drop_range(&self, range: &Range) -> Result<u64, Trouble> {
        connect::transaction(&self.pool, |client| async move { drop_it(&client, range).await }).await
    }
}

async fn make(client: &Object, Range { name, low, high }: &Range) -> Result<(), Error> {
    client.batch_execute(IMPATIENT).await?;
    let low = low.unwrap_or_default();
    let table = format!("countersign.delivery_{name}");
    if !client.query_one(TURN, &[]).await?.try_get::<_, bool>(0)?
        || !client.query_one(MAY_BE_MADE, &[&low, high, &table]).await?.try_get::<_, bool>(0)?
    {
        return Ok(());
    }
    for table in ["delivery", "attempt"] {
        let sql = format!(
            "CREATE TABLE countersign.{table}_{name} (LIKE countersign.{table} INCLUDING ALL);
             ALTER TABLE countersign.{table} ATTACH PARTITION countersign.{table}_{name}
                 FOR VALUES FROM ('{low}') TO ('{high}')"
        );
        client.batch_execute(&sql).await?;
    }
    Ok(())
}

async fn drop_it(client: &Object, range: &Range) -> Result<u64, Error> {
    let Range { name, high, .. } = range;
    client.batch_execute(IMPATIENT).await?;
    // Another gateway may be at it, or have been quicker.
    let (its_turn, table) = (client.query_one(TURN, &[]).await?, format!("countersign.delivery_{name}"));
    let statistics = client.query_opt(STATISTICS, &[&table]).await?;
    let Some(statistics) = statistics.filter(|_| its_turn.try_get(0).unwrap_or(false)) else { return Ok(0) };
    let count: i64 = match statistics.try_get::<_, i64>(0)? {
        // The count of a large one could outlast its deadline.
        COUNTED_MAX.. => statistics.try_get(1)?,
        _ => client.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await?.try_get(0)?,
    };
    // Whoever is about to accept one of that day is waited for, or waits.
    let lock = "LOCK TABLE ONLY countersign.delivery, ONLY countersign.attempt IN ACCESS EXCLUSIVE MODE";
    client.batch_execute(lock).await?;
    if !client.query_one(IS_EMPTY, &[&range.low(), high]).await?.try_get::<_, bool>(0)? {
        return Ok(0);
    }
    let tables = format!("DROP TABLE countersign.delivery_{name}, countersign.attempt_{name}");
    client.batch_execute(&tables).await?;
    tracing::info!(range = name, deliveries = count, "dropped what retention has done with");
    Ok(count.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_as_the_database_writes_it() {
        let day = Range::day(20_000 * DAY);
        assert_eq!(day.name, "20241004");
        let bounds = format!("FOR VALUES FROM ('{}') TO ('{}')", day.low(), day.high);
        let read = Range::parse("delivery_20241004", &bounds).unwrap();
        assert_eq!((&*read.name, read.low, read.high), ("20241004", day.low, day.high));
        assert_eq!((time(day.low()), time(day.high)), (20_000 * DAY, 20_001 * DAY));
        let first = format!("FOR VALUES FROM (MINVALUE) TO ('{}')", day.high);
        assert_eq!(Range::parse("delivery_first", &first).unwrap().low, None);
        assert!(Range::parse("delivery_default", "DEFAULT").is_none());
    }
}
