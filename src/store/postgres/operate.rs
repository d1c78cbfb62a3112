//! What operators change, many forwards in one statement. Whatever is under way at the same moment waits for the rows, and
//! then finds them changed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use uuid::Uuid;

use super::Inner;
use super::error::Trouble;
use super::row::{self, uuid};
use crate::clock::{Moment, from_milliseconds};
use crate::forward::State;
use crate::id::Id;
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
        let (sql, mut tries) = (sql(change), 0);
        let changing = self.activity.begin();
        let rows = loop {
            tries += 1;
            match self.query(&sql, &[&ids, &destinations, &fitting, &time]).await {
                Err(Trouble::Again(_)) if tries < TRIES => {}
                done => break done?,
            }
        };
        let mut found = HashMap::new();
        for row in &rows {
            let target: Target = (row::id(row.try_get(0)?), Arc::from(row.try_get::<_, &str>(1)?));
            let was = State::of_label(row.try_get(2)?);
            found.insert(target, (was, from_milliseconds(row.try_get(3)?)));
        }
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
        match change {
            Change::Requeue => {
                for (_, destination) in &changed {
                    self.outlet.wake(destination);
                }
            }
            Change::Cancel | Change::Purge => self.end_turns(&changed).await?,
        }
        Ok(changed)
    }

    /// Of those that are over by an operator's doing. What fails here is made up for when the lane is arranged next.
    async fn end_turns(&self, changed: &[Target]) -> Result<(), Trouble> {
        let mut ended: BTreeMap<Arc<str>, Vec<Id>> = BTreeMap::new();
        for (id, destination) in changed {
            ended.entry(Arc::clone(destination)).or_default().push(*id);
        }
        for (destination, ids) in ended {
            if let Some(order) = self.outlet.order(&destination) {
                self.end_turn(&order, &destination, &ids).await?;
            }
        }
        Ok(())
    }
}
