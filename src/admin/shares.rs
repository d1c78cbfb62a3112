//! Who has how many of something that there is not enough of for everybody.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts by key; those that have none take no room.
#[derive(Debug)]
pub(super) struct Shares<K>(Arc<Mutex<HashMap<K, usize>>>);

impl<K> Default for Shares<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Clone + Eq + Hash> Shares<K> {
    /// One more for `key`, until it is dropped; `None` when it has `max`.
    pub(super) fn take(&self, key: K, max: usize) -> Option<Share<K>> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key.clone()).or_insert(0);
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Share { of: Self(Arc::clone(&self.0)), key })
    }
}

/// One that is counted.
#[derive(Debug)]
pub(super) struct Share<K: Clone + Eq + Hash> {
    of: Shares<K>,
    key: K,
}

impl<K: Clone + Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut counts = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = counts.entry(self.key.clone()) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_and_gives_it_back() {
        let shares = Shares::default();
        let held: Vec<_> = (0..2).filter_map(|_| shares.take("a", 2)).collect();
        assert!(held.len() == 2 && shares.take("a", 2).is_none() && shares.take("b", 2).is_some());
        drop(held);
        assert!(shares.0.lock().unwrap().is_empty());
        assert!(shares.take("a", 2).is_some());
    }
}
