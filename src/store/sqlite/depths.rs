//! How full each lane is, counted in step with the commits, so that asking costs no query.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use rusqlite::Connection;

use super::health::lock;
use crate::clock::from_milliseconds;
use crate::store::Depth;

/// What a commit changed in one lane.
#[derive(Debug, Clone)]
pub(in crate::store) struct Change {
    pub(in crate::store) destination: Arc<str>,
    /// Since when the forward has been pending that came (+1) or went (-1).
    pub(in crate::store) pending: Option<(Timestamp, i8)>,
    /// Dead letters that came or went.
    pub(in crate::store) dead: i8,
}

#[derive(Debug, Default)]
pub(in crate::store) struct Depths(Mutex<BTreeMap<Arc<str>, Lane>>);

#[derive(Debug, Default)]
struct Lane {
    pending: u64,
    dead: u64,
    /// Pending forwards by the second since which they are: bounded by the age budget, not by their number.
    since: BTreeMap<i64, u64>,
}

impl Depths {
    /// Counts what is in the indexes.
    pub(super) fn load(connection: &Connection) -> rusqlite::Result<Self> {
        let mut lanes: BTreeMap<Arc<str>, Lane> = BTreeMap::new();
        let mut pending = connection.prepare(
            "SELECT destination, pending_since FROM forward INDEXED BY forward_pending WHERE settled_at IS NULL",
        )?;
        let mut rows = pending.query([])?;
        while let Some(row) = rows.next()? {
            let destination = row.get_ref(0)?.as_str()?;
            // A lane's rows lie together, and there may be very many: its name is allocated once.
            if !lanes.contains_key(destination) {
                lanes.insert(destination.into(), Lane::default());
            }
            if let Some(lane) = lanes.get_mut(destination) {
                lane.step_pending(from_milliseconds(row.get(1)?), 1);
            }
        }
        let mut dead = connection
            .prepare("SELECT destination, count(*) FROM forward WHERE state = 'dead' GROUP BY destination")?;
        let mut rows = dead.query([])?;
        while let Some(row) = rows.next()? {
            let destination = row.get_ref(0)?.as_str()?;
            lanes.entry(destination.into()).or_default().dead += row.get::<_, i64>(1)?.unsigned_abs();
        }
        Ok(Self(Mutex::new(lanes)))
    }

    pub(in crate::store) fn apply(&self, changes: Vec<Change>) {
        let mut lanes = lock(&self.0);
        for change in changes {
            let lane = lanes.entry(change.destination).or_default();
            if let Some((since, step)) = change.pending {
                lane.step_pending(since, step);
            }
            lane.dead = lane.dead.saturating_add_signed(change.dead.into());
        }
    }

    /// Counts anew by what another look at the tables has found: forwards that are pending since a second, and dead
    /// letters. Lanes that have been known stay, at 0.
    pub(in crate::store) fn replace(&self, pending: Vec<(Arc<str>, i64, u64)>, dead: Vec<(Arc<str>, u64)>) {
        let mut lanes = lock(&self.0);
        lanes.values_mut().for_each(|lane| *lane = Lane::default());
        for (destination, second, count) in pending {
            let lane = lanes.entry(destination).or_default();
            lane.pending += count;
            *lane.since.entry(second).or_default() += count;
        }
        for (destination, count) in dead {
            lanes.entry(destination).or_default().dead += count;
        }
    }

    pub(in crate::store) fn read(&self) -> Vec<(Arc<str>, Depth)> {
        lock(&self.0).iter().map(|(destination, lane)| (Arc::clone(destination), lane.depth())).collect()
    }
}

impl Lane {
    fn step_pending(&mut self, since: Timestamp, step: i8) {
        let second = since.as_millisecond().div_euclid(1_000);
        self.pending = self.pending.saturating_add_signed(step.into());
        let count = self.since.entry(second).or_default();
        *count = count.saturating_add_signed(step.into());
        if *count == 0 {
            self.since.remove(&second);
        }
    }

    fn depth(&self) -> Depth {
        let oldest = self.since.keys().next().map(|second| from_milliseconds(second.saturating_mul(1_000)));
        Depth { pending: self.pending, dead: self.dead, oldest }
    }
}
