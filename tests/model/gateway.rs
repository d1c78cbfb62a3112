//! A whole gateway in this process, put together as `app` does it, which can be stopped, and which can crash.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use countersign::clock::Clock;
use countersign::config::{self, Config};
use countersign::dispatch::Lanes;
use countersign::ingest::{Ingest, Listener};
use countersign::metrics::Metrics;
use countersign::store::quarantine::Quarantine;
use countersign::store::{Outlet as _, Store, sqlite};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::setting::DESTINATIONS;

/// For writing down what a stop cut off.
const SETTLING: Duration = Duration::from_secs(10);

pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) metrics: Metrics,
    ingest: Arc<Ingest>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    /// Holds `data`.
    directory: TempDir,
    /// A process of its own, as far as tasks are concerned.
    runtime: Runtime,
}

fn parse(text: &str, directory: &TempDir, clock: &Clock) -> Config {
    config::parse(text, "model.toml", directory.path(), &|_| None, clock.now()).unwrap()
}

impl Gateway {
    /// Starts over what `directory` holds.
    pub(crate) async fn start(directory: TempDir, text: &str, clock: Clock) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let config = parse(text, &directory, &clock);
        let parts = runtime.spawn(async move {
            let metrics = Metrics::new();
            let listener = Listener::new(None, &config.listen, &config.limits).unwrap();
            let address = listener.address().unwrap();
            let lanes = Lanes::new(clock.clone(), metrics.clone());
            lanes.apply(&config.destinations);
            let options = sqlite::Options {
                directory: config.store.path.clone(),
                disk_reserve: config.store.disk_reserve,
                metrics: metrics.clone(),
            };
            let store: Arc<dyn Store> = Arc::new(sqlite::open(options, lanes.clone()).unwrap());
            lanes.start(&store);
            let ingest = Ingest::new(
                &config,
                store.clone(),
                lanes.clone(),
                Arc::new(Quarantine::none(&metrics)),
                clock,
                metrics.clone(),
            );
            let stop = CancellationToken::new();
            let (_, serving) = listener.serve(ingest.clone(), stop.clone());
            (address, store, lanes, metrics, ingest, stop, tokio::spawn(serving))
        });
        let (address, store, lanes, metrics, ingest, stop, serving) = parts.await.unwrap();
        Self { address, store, lanes, metrics, ingest, stop, serving, directory, runtime }
    }

    pub(crate) fn file(&self) -> std::path::PathBuf {
        self.directory.path().join("data/countersign.db")
    }

    pub(crate) fn reload(&self, text: &str, clock: &Clock) {
        let config = parse(text, &self.directory, clock);
        self.lanes.apply(&config.destinations);
        self.ingest.apply(&config);
    }

    /// Has every lane look at the clock, which does not tell when a hand has moved it.
    pub(crate) fn wake(&self) {
        for destination in DESTINATIONS {
            self.lanes.wake(destination);
        }
    }

    /// Ends as with SIGTERM; returns the directory.
    pub(crate) async fn stop(self, patience: Duration) -> TempDir {
        self.stop.cancel();
        self.serving.await.unwrap();
        let until = Instant::now() + patience;
        self.lanes.drain(sleep_until(until), until + SETTLING).await;
        self.store.close().await;
        self.runtime.shutdown_background();
        self.directory
    }

    /// What the disk would hold if the process ended now: the files as they are at this moment. The gateway itself
    /// goes on until it is stopped.
    pub(crate) fn image(&self) -> TempDir {
        let image = tempfile::tempdir().unwrap();
        fs::create_dir(image.path().join("data")).unwrap();
        // While somebody reads, the log is not begun anew, so that file and log fit together in whatever order they
        // are copied; a half-written commit at the end of the log is what a crash leaves, too.
        let reader = rusqlite::Connection::open(self.file()).unwrap();
        reader.execute_batch("BEGIN; SELECT count(*) FROM claim").unwrap();
        for name in ["data/countersign.db", "data/countersign.db-wal"] {
            fs::copy(self.directory.path().join(name), image.path().join(name)).unwrap();
        }
        image
    }
}
