//! The composition root: builds a gateway from its configuration, keeps it running, reloads and drains it. Every part
//! is an argument of the part above, so that tests start whole gateways side by side.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin;
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::dispatch::Lanes;
use crate::ingest::{BindError, Certificate, Ingest, Listener};
use crate::metrics::Metrics;
use crate::store::Store;
use crate::store::sqlite::{self, OpenError};

mod drain;
mod reload;
mod status;
mod upkeep;

pub use reload::Load;

/// A running gateway.
pub struct App {
    parts: Arc<Parts>,
    listen: SocketAddr,
    admin: SocketAddr,
    /// The public listener and all its connections.
    requests: TaskTracker,
    operators: JoinHandle<()>,
    failed: watch::Receiver<Option<String>>,
}

/// What the tasks of a gateway share.
struct Parts {
    /// The configuration in force.
    config: ArcSwap<Config>,
    /// The one that listeners, limits and store were made from; a reload does not change those.
    started_with: Arc<Config>,
    clock: Clock,
    started_at: Timestamp,
    metrics: Metrics,
    store: Arc<dyn Store>,
    lanes: Arc<Lanes>,
    ingest: Arc<Ingest>,
    certificate: Certificate,
    /// Reads the configuration anew.
    load: Box<Load>,
    /// Held by the one reload that may be under way.
    reloading: Mutex<()>,
    stages: Stages,
}

/// How far the end has come; each is cancelled when it begins.
#[derive(Default)]
struct Stages {
    /// Everything is served, and readiness is false.
    draining: CancellationToken,
    /// Nothing new is accepted.
    stopping: CancellationToken,
    /// The store is closed, and operators are served no more.
    ended: CancellationToken,
}

/// Why a gateway did not start. All of these are input or output; the configuration has been judged before.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The public listener cannot be set up.
    #[error(transparent)]
    Listen(#[from] BindError),
    /// The operators' listener cannot be set up.
    #[error("cannot listen on {address} (admin.address)")]
    Admin {
        /// The configured address.
        address: SocketAddr,
        /// Why.
        #[source]
        error: std::io::Error,
    },
}

impl App {
    /// Starts a gateway; it serves when this returns. `load` reads the configuration for a reload.
    ///
    /// # Errors
    /// When the store cannot be opened or an address cannot be had.
    pub async fn start(config: Config, load: Box<Load>, clock: Clock) -> Result<Self, StartError> {
        let metrics = Metrics::new();
        // Addresses first: a second gateway fails here, before it touches the first one's store.
        let listener = Listener::bind(&config.listen, &config.limits)?;
        let admin_error = |error| StartError::Admin { address: config.admin.address, error };
        let admin_socket = TcpListener::bind(config.admin.address).await.map_err(admin_error)?;
        let listen = listener
            .address()
            .map_err(|error| BindError::Address { address: config.listen.address, error })?;
        let admin = admin_socket.local_addr().map_err(admin_error)?;

        let lanes = Lanes::new(clock.clone(), metrics.clone());
        lanes.apply(&config.destinations);
        let options = sqlite::Options {
            directory: config.store.path.clone(),
            disk_reserve: config.store.disk_reserve,
            metrics: metrics.clone(),
        };
        let outlet = Arc::clone(&lanes);
        let opened = tokio::task::spawn_blocking(move || sqlite::open(options, outlet)).await;
        let opened = opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let store: Arc<dyn Store> = Arc::new(opened?);
        lanes.start(&store);

        let stages = Stages::default();
        let config = Arc::new(config);
        let ingest = Ingest::new(&config, Arc::clone(&store), clock.clone(), metrics.clone());
        let (certificate, serving) = listener.serve(Arc::clone(&ingest), stages.stopping.clone());
        let parts = Arc::new(Parts {
            ingest,
            certificate,
            load,
            reloading: Mutex::default(),
            stages,
            config: ArcSwap::new(Arc::clone(&config)),
            started_with: config,
            started_at: clock.now(),
            clock,
            metrics,
            store,
            lanes,
        });
        parts.note_loaded(true);
        let (failure, failed) = watch::channel(None);
        let requests = TaskTracker::new();
        requests.spawn(serving);
        requests.close();
        tokio::spawn(Arc::clone(&parts).upkeep(failure));
        let operators = tokio::spawn(Arc::clone(&parts).serve_admin(admin_socket));
        Ok(Self { parts, listen, admin, requests, operators, failed })
    }

    /// Where senders reach it.
    pub fn listen_address(&self) -> SocketAddr {
        self.listen
    }

    /// Where operators reach it.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// Resolves when the store has shut itself, with the reason; a supervisor should start the process anew.
    pub async fn failed(&self) -> String {
        let mut failed = self.failed.clone();
        match failed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "upkeep has ended".to_owned(),
        }
    }
}

impl Parts {
    async fn serve_admin(self: Arc<Self>, socket: TcpListener) {
        let router = admin::router(Arc::clone(&self) as Arc<dyn admin::Gateway>);
        let ended = self.stages.ended.clone();
        let served =
            axum::serve(socket, router).with_graceful_shutdown(async move { ended.cancelled().await });
        if let Err(error) = served.await {
            tracing::error!(%error, "the admin listener has ended");
        }
    }
}
