//! The composition root: builds a gateway from its configuration, keeps it running, reloads and drains it. Every part
//! is an argument of the part above, so that tests start whole gateways side by side.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::admin;
use crate::clock::{Clock, Timestamp};
use crate::config::{Config, StoreConfig};
use crate::dispatch::Lanes;
use crate::ingest::{BindError, Certificate, Ingest, Listener, TlsError};
use crate::metrics::Metrics;
use crate::store::Store;
use crate::store::sqlite::{self, OpenError};

mod status;
mod upkeep;

/// How long a drain waits for requests and attempts in progress.
pub const DRAIN: Duration = Duration::from_secs(20);

/// A running gateway.
pub struct App {
    parts: Arc<Parts>,
    certificate: Certificate,
    listen: SocketAddr,
    admin: SocketAddr,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
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
    stop: CancellationToken,
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
    /// Starts a gateway; it serves when this returns.
    ///
    /// # Errors
    /// When the store cannot be opened or an address cannot be had.
    pub async fn start(config: Config, clock: Clock) -> Result<Self, StartError> {
        let metrics = Metrics::new();
        metrics.config_last_reload_success.set(1);
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

        let stop = CancellationToken::new();
        let config = Arc::new(config);
        let parts = Arc::new(Parts {
            ingest: Ingest::new(&config, Arc::clone(&store), clock.clone(), metrics.clone()),
            config: ArcSwap::new(Arc::clone(&config)),
            started_with: config,
            started_at: clock.now(),
            clock,
            metrics,
            store,
            lanes,
            stop: stop.clone(),
        });
        let (certificate, serving) = listener.serve(Arc::clone(&parts.ingest), stop.clone());
        let (failure, failed) = watch::channel(None);
        let tasks = vec![
            tokio::spawn(serving),
            tokio::spawn(Arc::clone(&parts).serve_admin(admin_socket)),
            tokio::spawn(Arc::clone(&parts).upkeep(failure)),
        ];
        Ok(Self { parts, certificate, listen, admin, stop, tasks, failed })
    }

    /// Where senders reach it.
    pub fn listen_address(&self) -> SocketAddr {
        self.listen
    }

    /// Where operators reach it.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// Puts a new configuration in force: sources, destinations, secrets and certificates. What needs a restart is
    /// named in the log and stays as it was.
    ///
    /// # Errors
    /// When a certificate file cannot be used: everything stays as it was.
    pub fn reload(&self, config: Config) -> Result<(), TlsError> {
        let parts = &self.parts;
        if let (Some(_), Some(tls)) = (&parts.started_with.listen.tls, &config.listen.tls) {
            self.certificate.reload(tls)?;
        }
        for section in needs_restart(&parts.started_with, &config) {
            tracing::warn!(section, "differs from what is running; takes effect at the next start only");
        }
        for (name, depth) in parts.store.depths() {
            if depth.pending > 0 && !config.destinations.iter().any(|destination| destination.name == name) {
                let pending = depth.pending;
                tracing::warn!(destination = %name, pending, "not in the file any more; what waits for it stays stored");
            }
        }
        parts.lanes.apply(&config.destinations);
        parts.ingest.apply(&config);
        parts.config.store(Arc::new(config));
        Ok(())
    }

    /// Tells operators whether the latest load of the configuration succeeded.
    pub fn note_reload(&self, succeeded: bool) {
        self.parts.metrics.config_last_reload_success.set(i64::from(succeeded));
    }

    /// Resolves when the store has shut itself, with the reason; a supervisor should start the process anew.
    pub async fn failed(&self) -> String {
        let mut failed = self.failed.clone();
        match failed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "upkeep has ended".to_owned(),
        }
    }

    /// Stops taking requests, lets what is in progress finish, gives the rest back to the store, and closes it.
    pub async fn drain(self, patience: Duration) {
        let until = Instant::now() + patience;
        self.stop.cancel();
        let requests = async {
            for task in self.tasks {
                if timeout_at(until, task).await.is_err() {
                    tracing::warn!("drain: connections were still open at the deadline");
                }
            }
        };
        tokio::join!(requests, self.parts.lanes.drain(until.saturating_duration_since(Instant::now())));
        self.parts.store.close().await;
    }
}

impl Parts {
    async fn serve_admin(self: Arc<Self>, socket: TcpListener) {
        let router = admin::router(Arc::clone(&self) as Arc<dyn admin::Gateway>);
        let stop = self.stop.clone();
        let served =
            axum::serve(socket, router).with_graceful_shutdown(async move { stop.cancelled().await });
        if let Err(error) = served.await {
            tracing::error!(%error, "the admin listener has ended");
        }
    }
}

/// Sections that a reload cannot put in force, and that differ from those the gateway was started with.
fn needs_restart(started: &Config, new: &Config) -> Vec<&'static str> {
    let mut listen = new.listen.clone();
    listen.trusted_proxies.clone_from(&started.listen.trusted_proxies);
    if listen.tls.is_some() == started.listen.tls.is_some() {
        listen.tls.clone_from(&started.listen.tls);
    }
    let store = StoreConfig { keep_delivered: started.store.keep_delivered, ..new.store.clone() };
    let sections = [
        ("listen", listen != started.listen),
        ("limits", new.limits != started.limits),
        ("admin.address", new.admin.address != started.admin.address),
        ("store", store != started.store),
        ("dedup.cache_entries", new.dedup_cache_entries != started.dedup_cache_entries),
    ];
    sections.into_iter().filter(|(_, changed)| *changed).map(|(section, _)| section).collect()
}
