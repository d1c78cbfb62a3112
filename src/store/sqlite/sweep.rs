//! Retention, in small steps, so that deliveries are accepted in between. Pending and dead forwards keep their
//! delivery whatever its age.

use rusqlite::{OptionalExtension, Transaction, params};

use super::claims::Claims;
use super::work::{Effects, Work};
use crate::clock::{DIFFERENCE_MAX, Timestamp, earlier};
use crate::id::Id;
use crate::store::Swept;

/// Rows that one step looks at: about as much work as a group of deliveries that are accepted, which wait for it.
const ROWS_MAX: i64 = 64;
/// Bytes of bodies that one step removes: SQLite reads each page of a body to free it.
const BYTES_MAX: i64 = 4 << 20;

/// One step of a sweep.
pub(super) struct Sweep {
    pub(super) now: Timestamp,
    /// What was settled before may go.
    pub(super) before: Timestamp,
    pub(super) stage: Stage,
}

/// What a step looks at.
#[derive(Clone)]
pub(super) enum Stage {
    /// Deliveries with settled forwards, from this one on: those that must stay are passed once, not at each step.
    Settled(Option<Position>),
    /// Deliveries that never had a forward.
    Unrouted,
    /// Claims that have been expired for long enough.
    Claims,
}

/// A place in the index of settled forwards.
#[derive(Clone)]
pub(super) struct Position {
    settled_at: i64,
    id: Id,
    destination: String,
}

impl Work for Sweep {
    /// What was removed, and the next stage while there is one.
    type Output = (Swept, Option<Stage>);

    fn apply(
        &self,
        transaction: &Transaction<'_>,
        _: &mut Claims,
        _: &mut Effects<'_>,
    ) -> rusqlite::Result<Self::Output> {
        let before = self.before.as_millisecond();
        match &self.stage {
            Stage::Settled(after) => {
                let (deliveries, last) = settled(transaction, before, after.as_ref())?;
                let next = last.map_or(Stage::Unrouted, |last| Stage::Settled(Some(last)));
                Ok((Swept { deliveries, claims: 0 }, Some(next)))
            }
            Stage::Unrouted => {
                let deliveries = unrouted(transaction, before)?;
                let next = if deliveries > 0 { Stage::Unrouted } else { Stage::Claims };
                Ok((Swept { deliveries, claims: 0 }, Some(next)))
            }
            Stage::Claims => {
                let claims = claims(transaction, earlier(self.now, DIFFERENCE_MAX).as_millisecond())?;
                Ok((Swept { deliveries: 0, claims }, (claims > 0).then_some(Stage::Claims)))
            }
        }
    }
}

/// Removes deliveries; also returns the last row looked at, `None` when there were no more.
fn settled(
    transaction: &Transaction<'_>,
    before: i64,
    after: Option<&Position>,
) -> rusqlite::Result<(u64, Option<Position>)> {
    let mut select = transaction.prepare_cached(
        "SELECT settled_at, delivery, destination FROM forward
         WHERE (state = 'delivered' OR state = 'cancelled') AND settled_at < ?1
             AND (settled_at, delivery, destination) > (?2, ?3, ?4)
         ORDER BY settled_at, delivery, destination LIMIT ?5",
    )?;
    let start = Position { settled_at: i64::MIN, id: Id::from_bytes([0; 16]), destination: String::new() };
    let Position { settled_at, id, destination } = after.unwrap_or(&start);
    let rows =
        select.query_map(params![before, settled_at, id.as_bytes(), destination, ROWS_MAX], |row| {
            let id = Id::from_bytes(row.get(1)?);
            Ok(Position { settled_at: row.get(0)?, id, destination: row.get(2)? })
        })?;
    // Read to the end first: a statement must not meet its own deletions.
    let rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;

    let mut needed = transaction.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM forward WHERE delivery = ?1
             AND (settled_at IS NULL OR settled_at >= ?2 OR state = 'dead'))",
    )?;
    let (mut deliveries, mut bytes) = (0, 0);
    let mut last = None;
    for row in rows {
        if bytes >= BYTES_MAX {
            break;
        }
        let needed: bool = needed.query_row(params![row.id.as_bytes(), before], |row| row.get(0))?;
        if !needed && let Some(removed) = remove(transaction, row.id)? {
            deliveries += 1;
            bytes += removed;
        }
        last = Some(row);
    }
    Ok((deliveries, last))
}

fn unrouted(transaction: &Transaction<'_>, before: i64) -> rusqlite::Result<u64> {
    let mut select = transaction.prepare_cached(
        "SELECT id FROM delivery WHERE forwards = 0 AND received_at < ?1 ORDER BY received_at LIMIT ?2",
    )?;
    let ids = select.query_map([before, ROWS_MAX], |row| row.get(0).map(Id::from_bytes))?;
    let ids = ids.collect::<rusqlite::Result<Vec<_>>>()?;
    let (mut deliveries, mut bytes) = (0, 0);
    for id in ids {
        if bytes >= BYTES_MAX {
            break;
        }
        if let Some(removed) = remove(transaction, id)? {
            deliveries += 1;
            bytes += removed;
        }
    }
    Ok(deliveries)
}

fn claims(transaction: &Transaction<'_>, before: i64) -> rusqlite::Result<u64> {
    let mut delete = transaction.prepare_cached(
        "DELETE FROM claim WHERE row IN (SELECT row FROM claim WHERE expires_at <= ?1 LIMIT ?2)",
    )?;
    Ok(delete.execute([before, ROWS_MAX])? as u64)
}

/// Removes a delivery with all that belongs to it; the size of its body, `None` when it was gone.
fn remove(transaction: &Transaction<'_>, id: Id) -> rusqlite::Result<Option<i64>> {
    let id = id.as_bytes();
    transaction.prepare_cached("DELETE FROM attempt WHERE delivery = ?1")?.execute([id])?;
    transaction.prepare_cached("DELETE FROM forward WHERE delivery = ?1")?.execute([id])?;
    let mut delete =
        transaction.prepare_cached("DELETE FROM delivery WHERE id = ?1 RETURNING length(body)")?;
    delete.query_row([id], |row| row.get(0)).optional()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::from_milliseconds;
    use crate::store::sqlite::schema;
    use crate::store::sqlite::writer::tests::NoLanes;

    /// What each step removes of `count` deliveries with bodies of so many bytes.
    fn steps(count: i64, bytes: i64, forwards: i64) -> Vec<u64> {
        let root = tempfile::tempdir().unwrap();
        let mut connection = schema::open_writer(&root.path().join("countersign.db")).unwrap();
        let transaction = connection.transaction().unwrap();
        for n in 0..count {
            let id = Id::from_bytes(u128::try_from(n).unwrap().to_be_bytes());
            let delivery = "INSERT INTO delivery VALUES
                (?1, 's', NULL, NULL, ?2, 'x', 'x', 'x', 1, 'x', NULL, NULL, ?4, x'', x'', zeroblob(?3))";
            transaction.execute(delivery, params![id.as_bytes(), n, bytes, forwards]).unwrap();
            let forward =
                "INSERT INTO forward SELECT ?1, 'a', 'delivered', ?2, 1, ?2, 0, ?2, NULL, 0 WHERE ?3 > 0";
            transaction.execute(forward, params![id.as_bytes(), n, forwards]).unwrap();
        }
        let mut claims = Claims::load(&transaction).unwrap();
        let begin = if forwards > 0 { Stage::Settled(None) } else { Stage::Unrouted };
        let (mut stage, mut removed) = (Some(begin), Vec::new());
        while let Some(next @ (Stage::Settled(_) | Stage::Unrouted)) = stage {
            let now = from_milliseconds(1_000_000);
            let sweep = Sweep { now, before: now, stage: next };
            let (swept, after) = sweep.apply(&transaction, &mut claims, &mut Effects::new(&NoLanes)).unwrap();
            removed.extend((swept.deliveries > 0).then_some(swept.deliveries));
            stage = after;
        }
        removed
    }

    #[test]
    fn a_step_is_bounded_in_rows_and_bytes() {
        for forwards in [0, 1] {
            assert_eq!(steps(ROWS_MAX + 1, 1, forwards), [ROWS_MAX.unsigned_abs(), 1]);
            assert_eq!(steps(5, BYTES_MAX / 2, forwards), [2, 2, 1]);
        }
    }

    /// Of a busy day's claims only the first step would ever go.
    #[test]
    fn claims_go_in_steps_until_none_is_left() {
        let root = tempfile::tempdir().unwrap();
        let mut connection = schema::open_writer(&root.path().join("countersign.db")).unwrap();
        let transaction = connection.transaction().unwrap();
        let claims = "WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i <= ?1)
            INSERT INTO claim SELECT NULL, NULL, x'', x'', 0, NULL FROM i";
        transaction.execute(claims, [ROWS_MAX]).unwrap();
        let mut claims = Claims::load(&transaction).unwrap();
        let (mut stage, mut removed) = (Some(Stage::Claims), Vec::new());
        while let Some(next) = stage {
            let now = from_milliseconds(1_800_000_000_000);
            let sweep = Sweep { now, before: now, stage: next };
            let (swept, after) = sweep.apply(&transaction, &mut claims, &mut Effects::new(&NoLanes)).unwrap();
            removed.push(swept.claims);
            stage = after;
        }
        assert_eq!(removed, [ROWS_MAX.unsigned_abs(), 1, 0]);
    }
}
