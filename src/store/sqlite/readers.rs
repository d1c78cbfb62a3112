//! A few connections that only read, so that no query waits for a commit or delays one.

use std::path::Path;
use std::sync::{Arc, Mutex};

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::health::lock;
use super::{OpenError, schema};
use crate::store::StoreError;

#[derive(Debug)]
pub(super) struct Readers {
    /// As many permits as there are idle connections.
    free: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Connection>>>,
    connections: u32,
}

impl Readers {
    pub(super) fn open(file: &Path, connections: u32) -> Result<Self, OpenError> {
        let open = || {
            let connection = schema::open_reader(file)?;
            // In KiB. A body is read once: what each connection kept of its pages would be of use to nobody.
            connection.pragma_update(None, "cache_size", -512)?;
            Ok(connection)
        };
        let idle = (0..connections).map(|_| open()).collect::<Result<Vec<_>, _>>();
        let idle = idle.map_err(|error| schema::failure(file, error))?;
        Ok(Self { free: Arc::new(Semaphore::new(idle.len())), idle: Arc::new(Mutex::new(idle)), connections })
    }

    /// Runs `query` on a connection of its own, off the runtime's threads.
    pub(super) async fn run<T, F>(&self, query: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let permit = Arc::clone(&self.free).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let idle = Arc::clone(&self.idle);
        let task = tokio::task::spawn_blocking(move || {
            // Moved in, so that the connection is back before its permit whatever becomes of the caller.
            let _permit = permit;
            let gone = || StoreError::Read("an earlier query broke the connection".to_owned());
            let connection = lock(&idle).pop().ok_or_else(gone)?;
            let answer = query(&connection);
            lock(&idle).push(connection);
            answer.map_err(|error| StoreError::Read(error.to_string()))
        });
        task.await.map_err(|error| StoreError::Read(error.to_string()))?
    }

    /// Waits for running queries and closes the connections.
    pub(super) async fn close(&self) {
        if let Ok(_all) = self.free.acquire_many(self.connections).await {
            lock(&self.idle).clear();
            self.free.close();
        }
    }
}
