//! What operators change, many forwards in one statement. Whatever is under way at the same moment waits for the rows, and
//! then finds them changed.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_postgres::Row;
use uuid::Uuid;

use super::error::Trouble;
use super::row::{self, uuid};
use super::{Inner, connect};
use crate::clock::{Moment, Timestamp, from_milliseconds};
use crate::forward::State;
use crate::store::operators::{Change, Target};
use crate::store::sqlite::{DepthChange, Entry};

/// How often a change that was in another's way is tried.
const TRIES: u32 = 4;

/// In the order of the rows' keys, so that no two changes wait for each other.
fn sql(change: Change) -> String {
    let set = match change {
        Change::Requeue => {
            "state = 'waiting', due_at = $4, attempts = 0, pending_since = $4, waited = 0, replay = true,
                settled_at = NULL"
        }
        Change::Cancel | Change::Purge => {
            "state = 'cancelled', settled_at = $4, held_by = NULL, held_since = NULL"
        }
    };
    format!(
        "WITH found AS MATERIALIZED (
             SELECT f.delivery, f.destination, f.state, f.pending_since FROM countersign.forward f
             WHERE (f.delivery, f.destination) IN (SELECT * FROM unnest($1::uuid[], $2::text[]))
             ORDER BY f.delivery, f.destination FOR UPDATE
         ), changed AS (
             UPDATE countersign.forward f SET {set} FROM found
             WHERE f.delivery = found.delivery AND f.destination = found.destination AND found.state = ANY($3::text[])
             RETURNING f.delivery, f.destination
         )
         SELECT delivery, destination, state, pending_since FROM found JOIN changed USING (delivery, destination)"
    )
}

impl Inner {
    pub(super) async fn change(
        &self,
        change: Change,
        targets: &[Target],
        at: Moment,
    ) -> Result<Vec<Target>, Trouble> {
        let ids: Vec<Uuid> = targets.iter().map(|(id, _)| uuid(*id)).collect();
        let destinations: Vec<&str> = targets.iter().map(|(_, destination)| &**destination).collect();
        let fitting: Vec<&str> =
            State::ALL.into_iter().filter(|state| change.fits(*state)).map(State::label).collect();
        let time = match change {
            Change::Requeue => at.steady.time,
            Change::Cancel | Change::Purge => at.wall,
        };
        let time = time.as_millisecond();
        let (sql, mut tries) = (&sql(change), 0);
        let (ids, destinations, fitting) = (&ids, &destinations, &fitting);
        let changing = self.activity.begin();
        let (mut found, released) = loop {
            tries += 1;
            let done = connect::transaction(&self.pool, |client| async move {
                let statement = client.prepare_cached(sql).await?;
                let rows = client.query(&statement, &[ids, destinations, fitting, &time]).await?;
                let found = rows.iter().map(changed).collect::<Result<HashMap<_, _>, _>>()?;
                let over = found.keys().filter(|_| change != Change::Requeue);
                let over = over.map(|(id, destination)| (*id, destination, false));
                let released = self.end_turns(&client, over).await?;
                Ok::<_, Trouble>((found, released))
            });
            match done.await {
                Err(Trouble::Again(_)) if tries < TRIES => {}
                done => break done?,
            }
        };
        let mut changes = Vec::new();
        let mut changed = Vec::new();
        for target in targets {
            let Some((was, since)) = found.remove(target) else { continue };
            let destination = Arc::clone(&target.1);
            let dead = if was == Some(State::Dead) { -1 } else { 0 };
            let pending = match change {
                Change::Requeue => Some((from_milliseconds(time), 1)),
                Change::Cancel | Change::Purge if dead == 0 => Some((since, -1)),
                Change::Cancel | Change::Purge => None,
            };
            let entry = match change {
                Change::Requeue => Some(Entry::Requeued),
                Change::Cancel if dead == 0 => Some(Entry::Cancelled),
                Change::Cancel | Change::Purge => None,
            };
            if let Some(entry) = entry {
                entry.count(&destination, &self.metrics);
            }
            changes.push(DepthChange { destination, pending, dead });
            changed.push(target.clone());
        }
        self.depths.apply(changes);
        drop(changing);
        let requeued =
            changed.iter().filter(|_| change == Change::Requeue).map(|(_, destination)| destination);
        for destination in requeued.chain(&released) {
            self.outlet.wake(destination);
        }
        Ok(changed)
    }
}

/// What has been changed, what it was, and since when it had been pending.
fn changed(row: &Row) -> Result<(Target, (Option<State>, Timestamp)), tokio_postgres::Error> {
    let target: Target = (row::id(row.try_get(0)?), Arc::from(row.try_get::<_, &str>(1)?));
    Ok((target, (State::of_label(row.try_get(2)?), from_milliseconds(row.try_get(3)?))))
}
