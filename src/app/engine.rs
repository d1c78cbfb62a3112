//! Opens the store that the configuration names, and with it the data directory, which each gateway has to itself
//! whatever the engine: the embedded store is in it, and the quarantine.

use std::sync::Arc;

use super::observed::Observed;
use super::{StartError, waiting};
use crate::admin::Events;
use crate::clock::Clock;
use crate::config::StoreConfig;
use crate::dispatch::Lanes;
use crate::metrics::Metrics;
use crate::store::operators::Operators;
use crate::store::sqlite::{self, Directory};
use crate::store::{Store, postgres};

/// What a gateway keeps in.
pub(super) struct Engine {
    pub(super) store: Arc<dyn Store>,
    /// The same store.
    pub(super) operators: Arc<dyn Operators>,
    /// The right to the data directory, where the store does not hold it itself.
    pub(super) directory: Option<Directory>,
    /// Whether there is a directory for the quarantine.
    pub(super) has_directory: bool,
}

/// Opens it; where a gateway may go before this one, as soon as that has closed its own.
pub(super) async fn open(
    config: &StoreConfig,
    lanes: &Arc<Lanes>,
    clock: &Clock,
    metrics: &Metrics,
    events: &Arc<Events>,
    follows: bool,
) -> Result<Engine, StartError> {
    let metrics = metrics.clone();
    let observed = |store| Arc::new(Observed { store, events: Arc::clone(events) });
    let Some(database) = &config.database else {
        let (directory, disk_reserve) = (config.path.clone(), config.disk_reserve);
        let options = sqlite::Options { directory, disk_reserve, metrics };
        let store = Arc::new(waiting::open_store(options, lanes, follows).await?);
        let operators = Arc::clone(&store) as _;
        return Ok(Engine { store: observed(store), operators, directory: None, has_directory: true });
    };
    let directory = match waiting::hold(&config.path, follows).await {
        Ok(directory) => Some(directory),
        Err(in_use @ sqlite::OpenError::InUse { .. }) => return Err(in_use.into()),
        // Deliveries are not kept there.
        Err(error) => {
            let reason = crate::causes::chain(&error);
            tracing::warn!(reason, "refused requests are not kept");
            None
        }
    };
    metrics.store_shared.set(1);
    let (database, connections) = (database.clone(), config.connections);
    let options = postgres::Options { database, connections, metrics };
    let store = postgres::open(options, Arc::clone(lanes) as _).await?;
    // Gateways whose clocks differ write down due times for each other.
    let ahead = store.clock_ahead_of(|| clock.steady().time).await.map_err(StartError::Clock)?;
    clock.shift_steady(ahead);
    tracing::info!(
        database_clock_ahead_ms = ahead.as_millis() as i64,
        "due times go by the database's clock"
    );
    let has_directory = directory.is_some();
    let store = Arc::new(store);
    let operators = Arc::clone(&store) as _;
    Ok(Engine { store: observed(store), operators, directory, has_directory })
}
