//! What operators change, and the claims that lead to what they look for.

use std::sync::Arc;

use rusqlite::{OptionalExtension, Transaction, params};

use super::claims::Claims;
use super::order;
use super::work::{Effects, Work};
use crate::clock::{Moment, Timestamp, from_milliseconds};
use crate::dedup::Key;
use crate::forward::State;
use crate::id::Id;
use crate::store::operators::{Change, Target};

/// One change to many forwards.
pub(super) struct Operate {
    pub(super) change: Change,
    pub(super) targets: Vec<Target>,
    pub(super) at: Moment,
}

impl Work for Operate {
    type Output = Vec<Target>;

    fn apply(
        &self,
        transaction: &Transaction<'_>,
        _: &mut Claims,
        effects: &mut Effects<'_>,
    ) -> rusqlite::Result<Vec<Target>> {
        let mut select = transaction.prepare_cached(
            "SELECT state, pending_since FROM forward WHERE delivery = ?1 AND destination = ?2",
        )?;
        let mut changed = Vec::new();
        for (id, destination) in &self.targets {
            let key = params![id.as_bytes(), &**destination];
            let found = select.query_row(key, |row| {
                let state = State::of_label(row.get_ref(0)?.as_str()?);
                Ok(state.map(|state| (state, row.get(1).map(from_milliseconds))))
            });
            let Some((state, since)) = found.optional()?.flatten() else { continue };
            if self.change.fits(state) {
                self.make(transaction, *id, destination)?;
                self.tell(destination, state, since?, effects);
                if matches!(self.change, Change::Cancel | Change::Purge) {
                    order::ended(transaction, effects, destination, *id, false)?;
                }
                changed.push((*id, Arc::clone(destination)));
            }
        }
        Ok(changed)
    }
}

impl Operate {
    fn make(&self, transaction: &Transaction<'_>, id: Id, destination: &str) -> rusqlite::Result<()> {
        let (sql, at) = match self.change {
            Change::Requeue => (
                "UPDATE forward SET state = 'waiting', due_at = ?3, attempts = 0, pending_since = ?3, replay = 1,
                     waited = 0, settled_at = NULL
                 WHERE delivery = ?1 AND destination = ?2",
                self.at.steady.time,
            ),
            Change::Cancel | Change::Purge => (
                "UPDATE forward SET state = 'cancelled', settled_at = ?3 WHERE delivery = ?1 AND destination = ?2",
                self.at.wall,
            ),
        };
        let mut update = transaction.prepare_cached(sql)?;
        update.execute(params![id.as_bytes(), destination, at.as_millisecond()])?;
        Ok(())
    }

    fn tell(&self, destination: &Arc<str>, before: State, since: Timestamp, effects: &mut Effects<'_>) {
        let dead = before == State::Dead;
        match self.change {
            Change::Requeue => {
                let now = self.at.steady.time;
                if dead {
                    effects.revived(destination, now);
                } else {
                    effects.replayed(destination, now);
                }
                effects.wakes.insert(Arc::clone(destination));
            }
            Change::Cancel | Change::Purge if dead => effects.buried(destination),
            Change::Cancel | Change::Purge => effects.cancelled(destination, since),
        }
    }
}

/// Finds deliveries by what they have claimed, also where the claim has ended and is not removed yet.
pub(super) struct Find {
    pub(super) keys: Vec<Key>,
}

impl Work for Find {
    type Output = Vec<Id>;

    fn apply(
        &self,
        transaction: &Transaction<'_>,
        claims: &mut Claims,
        _: &mut Effects<'_>,
    ) -> rusqlite::Result<Vec<Id>> {
        let mut found = Vec::new();
        for key in &self.keys {
            found.extend(claims.find(transaction, *key, Timestamp::MIN)?.map(|claim| claim.delivery));
        }
        Ok(found)
    }
}
