//! Single flight: of concurrent copies one goes to the store, and the others wait until it is back.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::dedup::Key;

#[derive(Default)]
pub(super) struct Flights {
    /// How those who wait are told, where anybody does.
    underway: Mutex<HashMap<Key, Option<watch::Sender<bool>>>>,
}

/// The right to go; given up when dropped, whatever came of it.
pub(super) struct Flight<'f> {
    flights: &'f Flights,
    key: Key,
    known: bool,
}

impl Flight<'_> {
    /// The store had known the key: who waits need not go one after another.
    pub(super) fn note_known(&mut self) {
        self.known = true;
    }
}

impl Flights {
    /// Takes off; or waits for a copy that has, and then says whether the store had known the key.
    pub(super) async fn begin(&self, key: Key) -> Result<Flight<'_>, bool> {
        let mut back = match self.underway().entry(key) {
            Entry::Vacant(place) => {
                place.insert(None);
                return Ok(Flight { flights: self, key, known: false });
            }
            Entry::Occupied(mut flight) => {
                flight.get_mut().get_or_insert_with(|| watch::Sender::new(false)).subscribe()
            }
        };
        let told = back.changed().await;
        Err(told.is_ok() && *back.borrow())
    }

    fn underway(&self) -> MutexGuard<'_, HashMap<Key, Option<watch::Sender<bool>>>> {
        self.underway.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if let Some(Some(waiting)) = self.flights.underway().remove(&self.key) {
            waiting.send_replace(self.known);
        }
    }
}
