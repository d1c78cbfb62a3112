//! The composition root: builds a gateway from its configuration, keeps it running, reloads and drains it. Every part
//! is an argument of the part above, so that tests start whole gateways side by side.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::admin::{self, Events};
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::dispatch::Lanes;
use crate::ingest::{BindError, Certificate, Ingest, Listener};
use crate::metrics::Metrics;
use crate::store::operators::Operators;
use crate::store::quarantine::Quarantine;
use crate::store::sqlite::{Directory, OpenError};
use crate::store::{Store, StoreError, postgres};

mod audit;
mod deliveries;
mod drain;
mod engine;
mod expiry;
mod handover;
mod jobs;
mod lookout;
mod masks;
mod observed;
mod rejections;
mod reload;
mod sockets;
mod status;
mod time;
mod upkeep;
mod uses;
mod waiting;

pub use handover::HandoverError;
pub use reload::Load;
pub use sockets::{SocketError, Sockets};

use engine::Engine;
use handover::Door;
use uses::Uses;

/// A running gateway.
pub struct App {
    parts: Arc<Parts>,
    listen: SocketAddr,
    admin: SocketAddr,
    /// The public listener and all its connections.
    requests: TaskTracker,
    operators: JoinHandle<()>,
    failed: watch::Receiver<Option<String>>,
    successor: watch::Receiver<Option<i32>>,
    /// Goes on to the end of a drain, whose attempts are still settled by the clock.
    _time: AbortOnDropHandle<()>,
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
    /// The same store.
    operators: Arc<dyn Operators>,
    events: Arc<Events>,
    jobs: jobs::Known,
    changes: audit::Changes,
    quarantine: Arc<Quarantine>,
    /// Given up when everything in it is closed.
    directory: Mutex<Option<Directory>>,
    uses: Uses,
    lanes: Arc<Lanes>,
    ingest: Arc<Ingest>,
    certificate: Certificate,
    /// Reads the configuration anew.
    load: Box<Load>,
    /// Held by the one reload that may be under way.
    reloading: Arc<tokio::sync::Mutex<()>>,
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
    /// The shared store cannot be opened.
    #[error(transparent)]
    Database(#[from] postgres::OpenError),
    /// The shared store does not tell its time.
    #[error("the database cannot be asked for its time")]
    Clock(#[source] StoreError),
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
        error: io::Error,
    },
}

impl App {
    /// Starts a gateway on addresses of its own; it serves when this returns. `load` reads the configuration for a
    /// reload.
    ///
    /// # Errors
    /// When the store cannot be opened or an address cannot be had.
    pub async fn start(config: Config, load: Box<Load>, clock: Clock) -> Result<Self, StartError> {
        Self::start_on(Sockets::default(), config, load, clock).await
    }

    /// The same, on sockets that it was given. It then waits for as long as another process holds the data directory,
    /// and what connects meanwhile waits in the queues of the sockets.
    ///
    /// # Errors
    /// When the store cannot be opened or an address cannot be had.
    pub async fn start_on(
        sockets: Sockets,
        config: Config,
        load: Box<Load>,
        clock: Clock,
    ) -> Result<Self, StartError> {
        let metrics = Metrics::new();
        let time = AbortOnDropHandle::new(tokio::spawn(time::watch(&clock, &metrics)));
        let follows = sockets.is_given();
        // Addresses first: a second gateway fails here, before it touches the first one's store.
        let listener = Listener::new(sockets.public, &config.listen, &config.limits)?;
        let admin_error = |error| StartError::Admin { address: config.admin.address, error };
        let admin_socket = match sockets.admin {
            Some(socket) => Some(TcpListener::from_std(socket).map_err(admin_error)?),
            None => match TcpListener::bind(config.admin.address).await {
                // Of the gateway before this one; it is free when the store is.
                Err(error) if follows && error.kind() == ErrorKind::AddrInUse => None,
                bound => Some(bound.map_err(admin_error)?),
            },
        };
        let listen_error = |error| BindError::Address { address: config.listen.address, error };
        let listen = listener.address().map_err(listen_error)?;
        if follows {
            let (address, configured) = (listen, config.listen.address);
            tracing::info!(%address, %configured, "listening on the socket that was given");
        }

        let lanes = Lanes::new(clock.clone(), metrics.clone());
        lanes.apply(&config.destinations);
        let stages = Stages::default();
        let events = Arc::new(Events::new(stages.stopping.clone()));
        let Engine { store, operators, directory, has_directory } =
            engine::open(&config.store, &lanes, &clock, &metrics, &events, follows).await?;
        let admin_socket = match admin_socket {
            Some(socket) => socket,
            None => waiting::bind_when_free(config.admin.address).await.map_err(admin_error)?,
        };
        let admin = admin_socket.local_addr().map_err(admin_error)?;
        let door = Door::open(&config.store.path, [listener.as_fd(), admin_socket.as_fd()]);
        lanes.start(&store);

        let config = Arc::new(config);
        // Held with the data directory; a look at what is kept must not hold up the start.
        let quarantine = {
            let (path, metrics) = (config.store.path.clone(), metrics.clone());
            tokio::task::spawn_blocking(move || match has_directory {
                true => Quarantine::open(&path, &metrics),
                false => Quarantine::none(&metrics),
            })
            .await
        };
        let quarantine = Arc::new(quarantine.unwrap_or_else(|_| Quarantine::none(&metrics)));
        let ingest = Ingest::new(
            &config,
            Arc::clone(&store),
            Arc::clone(&lanes) as _,
            Arc::clone(&quarantine),
            clock.clone(),
            metrics.clone(),
        );
        let uses = Uses::new(Arc::clone(&store), metrics.clone());
        uses.begin(&config, clock.now()).await;
        let (certificate, serving) = listener.serve(Arc::clone(&ingest), stages.stopping.clone());
        let parts = Arc::new(Parts {
            ingest,
            certificate,
            load,
            reloading: Arc::default(),
            stages,
            config: ArcSwap::new(Arc::clone(&config)),
            started_with: config,
            started_at: clock.now(),
            clock,
            metrics,
            store,
            operators,
            events,
            jobs: jobs::Known::default(),
            changes: audit::Changes::default(),
            quarantine,
            directory: Mutex::new(directory),
            uses,
            lanes,
        });
        parts.note_loaded(true);
        let (failure, failed) = watch::channel(None);
        let requests = TaskTracker::new();
        requests.spawn(serving);
        requests.close();
        tokio::spawn(Arc::clone(&parts).upkeep(failure));
        tokio::spawn(Arc::clone(&parts).look_out());
        let operators = tokio::spawn(Arc::clone(&parts).serve_admin(admin_socket));
        let (taken_over, successor) = watch::channel(None);
        match door {
            Ok(door) => {
                tokio::spawn(door.serve(parts.stages.stopping.clone(), taken_over));
            }
            Err(error) => tracing::warn!(%error, "`run --takeover` will not work"),
        }
        Ok(Self { parts, listen, admin, requests, operators, failed, successor, _time: time })
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

    /// Resolves when another process has asked to take over and has got the sockets, with its id: it waits until this
    /// gateway has been drained.
    pub async fn handed_over(&self) -> i32 {
        let mut successor = self.successor.clone();
        let successor = successor.wait_for(Option::is_some).await.map(|successor| *successor);
        match successor {
            Ok(Some(successor)) => successor,
            // Nobody can ask.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

impl Parts {
    async fn serve_admin(self: Arc<Self>, socket: TcpListener) {
        let router = admin::router(Arc::clone(&self) as Arc<dyn admin::Gateway>);
        admin::serve(socket, router, self.stages.ended.clone()).await;
    }
}
