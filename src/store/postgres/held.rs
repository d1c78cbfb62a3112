//! What this gateway attempts, as it knows itself. The database may say more: the answer to a lease can be lost on its way.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::Timestamp;
use crate::id::Id;

/// Delivery, destination, attempt, and since when the forward has been pending, in milliseconds.
type Attempt = (Id, Arc<str>, u32, i64);

/// Attempts that are under way here: an earlier one of the same forward says nothing of a later one, nor one before a replay.
#[derive(Debug, Default)]
pub(super) struct Held(Mutex<HashSet<Attempt>>);

impl Held {
    pub(super) fn add(&self, delivery: Id, destination: &Arc<str>, attempt: u32, since: Timestamp) {
        self.lock().insert((delivery, Arc::clone(destination), attempt, since.as_millisecond()));
    }

    pub(super) fn remove(&self, delivery: Id, destination: &Arc<str>, attempt: u32, since: Timestamp) {
        self.lock().remove(&(delivery, Arc::clone(destination), attempt, since.as_millisecond()));
    }

    pub(super) fn has(&self, delivery: Id, destination: &str, attempt: u32, since: Timestamp) -> bool {
        self.lock().contains(&(delivery, Arc::from(destination), attempt, since.as_millisecond()))
    }

    /// Nothing that holds it can panic half-way.
    fn lock(&self) -> MutexGuard<'_, HashSet<Attempt>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Changes that are under way, so that a count of the tables can tell whether it is of one moment with what has been counted
/// here.
#[derive(Debug, Default)]
pub(super) struct Activity {
    begun: AtomicU64,
    ended: AtomicU64,
}

/// A change under way; over when dropped.
pub(super) struct Changing<'a>(&'a Activity);

impl Activity {
    pub(super) fn begin(&self) -> Changing<'_> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        Changing(self)
    }

    /// A number that stays the same for as long as nothing changes; `None` while something does.
    pub(super) fn quiet(&self) -> Option<u64> {
        let ended = self.ended.load(Ordering::SeqCst);
        (self.begun.load(Ordering::SeqCst) == ended).then_some(ended)
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_believed_only_when_nothing_changed_meanwhile() {
        let activity = Activity::default();
        let before = activity.quiet();
        assert!(before.is_some());
        let change = activity.begin();
        assert_eq!(activity.quiet(), None);
        drop(change);
        assert!(activity.quiet().is_some() && activity.quiet() != before);
    }
}
