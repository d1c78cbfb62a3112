//! The embedded engine: an SQLite database in a data directory that one process holds. One thread writes, in group
//! commits that are fsynced before anyone is answered; a few connections read. A failed write latches the store, a
//! full disk only refuses what would fill it. Any `sqlite3` can look into the file.

use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};

use self::accept::{Accept, Revive};
use self::directory::Refused;
use self::handed_over::{HandOver, Show};
use self::health::{Health, lock};
use self::lease::{Lease, ReinIn};
use self::operate::{Find, Operate};
use self::order::{Disband, Enqueue, Position, Review, Unplaced};
use self::paused::Paused;
use self::readers::Readers;
use self::row::{LoadError, Prepared};
use self::space::Ballast;
use self::sweep::{Stage, Sweep};
use self::uses::NoteUses;
use self::work::{Queued, Work};
use self::writer::Writer;
use crate::clock::{Moment, Timestamp, earlier};
use crate::dedup::id_keys;
use crate::delivery::Delivery;
use crate::forward::Order;
use crate::id::Id;
use crate::metrics::Metrics;
use crate::store::operators::{Change, DeadLetters, Filter, History, Listed, Operators, Page, Target};
use crate::store::{
    self, Accepted, Arrival, Depth, HandedOver, Outlet, Settlement, Store, StoreError, Swept, UseOfSecret,
};

mod accept;
mod check;
mod claims;
mod depths;
mod directory;
mod error;
mod handed_over;
mod health;
mod lease;
mod list;
mod load;
mod operate;
mod order;
mod paused;
mod readers;
mod row;
mod salvage;
mod schema;
mod scrub;
mod settle;
mod space;
mod sweep;
mod tools;
mod uses;
mod verdict;
mod work;
mod writer;

pub(in crate::store) use self::accept::{OrderKey, order_key, order_keys};
pub use self::check::Checked;
pub(in crate::store) use self::depths::{Change as DepthChange, Depths};
pub use self::error::OpenError;
pub(super) use self::paused::read as paused;
pub(in crate::store) use self::row::{Checksum, checksum, decode_headers, encode_headers};
pub use self::salvage::{Finding, SalvageError, Salvaged};
pub(in crate::store) use self::tools::Alone;
pub use self::tools::{Backup, backup, check, salvage};
pub(in crate::store) use self::work::Entry;

/// The database, in its directory.
const DATABASE: &str = "countersign.db";

/// Work that may wait for the writer. Seconds of it at any rate that an fsync allows: more would only be late.
const QUEUE_MAX: usize = 4_096;

/// Connections that read what is on its way.
const READERS: u32 = 3;
/// Connections that read what operators ask for: whatever they ask, it takes turns with nothing else.
const OPERATORS: u32 = 1;

/// How long closing may take: a disk that hangs must not hang the drain. What is left undone was promised to nobody.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// Where the store is, and what it heeds.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data directory; created, for the owner only, when it is missing.
    pub directory: PathBuf,
    /// Bytes of free disk space below which nothing new is accepted; 0 accepts until the disk is full. `None`: 1 GiB, or
    /// 5 % of the file system where that is less.
    pub disk_reserve: Option<u64>,
    /// Where commits and corrupt rows are counted.
    pub metrics: Metrics,
}

/// The embedded store. Dropping it without [`Store::close`] loses nothing, but leaves the closing to the writer.
pub struct Sqlite {
    /// `None` once closed. The writer ends when all copies are gone.
    queue: Mutex<Option<mpsc::Sender<Box<dyn Queued>>>>,
    readers: Readers,
    operators: Readers,
    depths: Arc<Depths>,
    health: Arc<Health>,
    /// Says which forwards wait for each other, whose keys are read before they are queued.
    outlet: Arc<dyn Outlet>,
    paused: Paused,
    /// Its sender is dropped when the writer has ended.
    running: watch::Receiver<()>,
    /// Keeps the reading of what nobody asks for going; `None` once closed.
    scrub: Mutex<Option<std::sync::mpsc::Sender<Infallible>>>,
}

/// Opens or creates the store. What was in flight when the previous process ended is waiting again, its attempt
/// counted. A damaged one is salvaged first: what is lost is logged and counted, and the damaged files are kept beside
/// it. Blocks for the time of a few fsyncs, and for reading the index of what is pending; a small store is read whole.
///
/// # Errors
/// When the directory cannot be used or is in use, or the file is newer, foreign, unreadable or not to be salvaged.
pub fn open(options: Options, outlet: Arc<dyn Outlet>) -> Result<Sqlite, OpenError> {
    let Options { directory, disk_reserve, metrics } = options;
    let unusable = |source| OpenError::Directory { directory: directory.clone(), source };
    let held = hold(&directory)?;
    let file = directory.join(DATABASE);
    let ballast = Ballast::find(&directory);
    // A full disk need not keep what waits from being delivered.
    let (connection, depths, claims) = loop {
        match load::load(&directory, &metrics) {
            Err(error) if error.is_want_of_room() && ballast.give() => {}
            loaded => break loaded?,
        }
    };
    load::tell(&directory, &metrics);
    for (destination, depth) in depths.read() {
        let pending = i64::try_from(depth.pending).unwrap_or(i64::MAX);
        metrics.forward_pending_at_start.with_label_values(&[&destination]).set(pending);
    }
    let depths = Arc::new(depths);
    let readers = Readers::open(&file, READERS)?;
    let operators = Readers::open(&file, OPERATORS)?;
    directory::sync(&directory).map_err(unusable)?;

    let paused = Paused::load(&directory, &*outlet);
    let health = Arc::new(Health::new(file, disk_reserve, ballast));
    let watch = health::watch(Arc::clone(&health), metrics.clone()).map_err(OpenError::Thread)?;
    let told = metrics.clone();
    let first = if load::is_small(health.file()) { scrub::EVERY } else { load::SCRUB_FIRST };
    let scrub = scrub::start(Arc::clone(&health), first, move |damaged| load::report(damaged, &told));
    let scrub = Mutex::new(Some(scrub.map_err(OpenError::Thread)?));
    let (queue, receiver) = mpsc::channel(QUEUE_MAX);
    let (ended, running) = watch::channel(());
    let writer = Writer {
        connection,
        queue: receiver,
        outlet: Arc::clone(&outlet),
        health: Arc::clone(&health),
        depths: Arc::clone(&depths),
        claims,
        metrics,
        checkpoint_at: writer::CHECKPOINT_PAGES,
        restart_at: writer::LOG_PAGES_MAX,
        log_restarted: false,
        held,
        _watch: watch,
        running: ended,
    };
    std::thread::Builder::new()
        .name("store-writer".to_owned())
        .spawn(move || writer.run())
        .map_err(OpenError::Thread)?;
    Ok(Sqlite {
        queue: Mutex::new(Some(queue)),
        readers,
        operators,
        depths,
        health,
        outlet,
        paused,
        running,
        scrub,
    })
}

/// The right to use a data directory in which there is no store: of a gateway that keeps its deliveries elsewhere. Given up
/// when dropped.
#[derive(Debug)]
pub struct Directory(#[expect(dead_code, reason = "held for as long as it is there")] directory::Held);

impl Directory {
    /// Creates the directory when it is missing, and locks it.
    ///
    /// # Errors
    /// When it cannot be used or is in use.
    pub fn hold(directory: &Path) -> Result<Self, OpenError> {
        hold(directory).map(Self)
    }
}

/// The right to use the data directory.
fn hold(directory: &Path) -> Result<directory::Held, OpenError> {
    directory::hold(directory).map_err(|refused| match refused {
        Refused::InUse(holder) => OpenError::InUse { directory: directory.to_owned(), holder },
        Refused::Io(source) => OpenError::Directory { directory: directory.to_owned(), source },
    })
}

/// Whether another process holds the data directory at this moment; then an [`OpenError::InUse`] that names it.
pub fn in_use(directory: &Path) -> Option<OpenError> {
    let holder = directory::holder(directory)?;
    Some(OpenError::InUse { directory: directory.to_owned(), holder })
}

/// Judges whether this version could open the store, while another process holds it; only header and schema are looked at.
///
/// # Errors
/// When the file is newer, damaged or cannot be read.
pub fn check_format(directory: &Path) -> Result<(), OpenError> {
    schema::check_format(&directory.join(DATABASE))
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqlite").field("health", &self.health).finish_non_exhaustive()
    }
}

impl Sqlite {
    fn queue(&self) -> Result<mpsc::Sender<Box<dyn Queued>>, StoreError> {
        match self.health.ended() {
            Some(ended) => Err(ended),
            None => lock(&self.queue).clone().ok_or(StoreError::Closed),
        }
    }

    /// Queues `work` behind what is queued, waiting for a place, and waits until it is durable. What dispatch has to
    /// tell must not be refused for being much; lanes bound how much it can be.
    async fn submit<W: Work>(&self, work: W) -> Result<W::Output, StoreError> {
        let queue = self.queue()?;
        let (job, answer) = work::job(work);
        queue.send(job).await.map_err(|_| StoreError::Closed)?;
        // `close` waits for all copies.
        drop(queue);
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    async fn read<T, F>(&self, query: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&rusqlite::Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        self.read_on(&self.readers, query).await
    }

    async fn read_on<T, F>(&self, readers: &Readers, query: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&rusqlite::Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        match self.health.ended() {
            Some(ended) => Err(ended),
            None => {
                let health = Arc::clone(&self.health);
                let query = move |connection: &_| {
                    query(connection).inspect_err(|error| {
                        if verdict::is_file_damage(error) {
                            health.latch_damaged(&error.to_string());
                        }
                    })
                };
                readers.run(query).await
            }
        }
    }

    /// The deliveries that have the filter's delivery id by their claims.
    async fn claimed(&self, filter: &Filter) -> Result<Vec<Id>, StoreError> {
        let Some(id) = &filter.delivery_id else { return Ok(Vec::new()) };
        let keys = match &filter.source {
            Some(source) => id_keys(source, id).to_vec(),
            None => filter.claimed_by.iter().flat_map(|source| id_keys(source, id)).collect(),
        };
        self.submit(Find { keys }).await
    }
}

#[async_trait]
impl Operators for Sqlite {
    async fn list(&self, filter: Filter, from: Option<Id>, limit: usize) -> Result<Page<Listed>, StoreError> {
        let claimed = self.claimed(&filter).await?;
        self.read_on(&self.operators, move |connection| list::list(connection, &filter, claimed, from, limit))
            .await
    }

    async fn history(&self, id: Id) -> Result<History, StoreError> {
        self.read_on(&self.operators, move |connection| list::history(connection, id)).await
    }

    async fn dead_letters(&self) -> Result<DeadLetters, StoreError> {
        self.read_on(&self.operators, list::dead_letters).await
    }

    async fn targets(
        &self,
        filter: Filter,
        change: Change,
        from: Option<Id>,
    ) -> Result<Page<Target>, StoreError> {
        let claimed = self.claimed(&filter).await?;
        self.read_on(&self.operators, move |connection| {
            list::targets(connection, &filter, claimed, change, from)
        })
        .await
    }

    async fn change(
        &self,
        change: Change,
        targets: Vec<Target>,
        at: Moment,
    ) -> Result<Vec<Target>, StoreError> {
        self.submit(Operate { change, targets, at }).await
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn accept(&self, arrival: Arrival) -> Result<Accepted, StoreError> {
        if let Some(fault) = self.health.fault() {
            return Err(fault);
        }
        let prepared = Prepared::new(&arrival.verified);
        let keys = order_keys(&arrival, &*self.outlet);
        let (job, answer) = work::job(Accept { arrival, prepared, keys });
        self.queue()?.try_send(job).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => StoreError::Busy,
            mpsc::error::TrySendError::Closed(_) => StoreError::Closed,
        })?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    async fn revive(&self, id: Id, now: Timestamp) -> Result<u64, StoreError> {
        self.submit(Revive { id, now }).await
    }

    async fn hand_over(&self, source: Arc<str>, given: HandedOver) -> Result<bool, StoreError> {
        if let Some(fault) = self.health.fault() {
            return Err(fault);
        }
        self.submit(HandOver { source, given }).await
    }

    async fn show_handed_over(&self, source: Arc<str>) -> Result<Vec<HandedOver>, StoreError> {
        self.submit(Show { source }).await
    }

    async fn note_uses(&self, uses: Vec<UseOfSecret>) -> Result<(), StoreError> {
        if let Some(fault) = self.health.fault() {
            return Err(fault);
        }
        self.submit(NoteUses(uses)).await
    }

    async fn uses(&self) -> Result<Vec<UseOfSecret>, StoreError> {
        self.read(uses::uses).await
    }

    async fn lease(
        &self,
        destination: &str,
        limit: usize,
        now: Timestamp,
    ) -> Result<Vec<store::Lease>, StoreError> {
        let destination: Arc<str> = destination.into();
        let asked = Arc::clone(&destination);
        let candidates = self.read(move |connection| lease::due(connection, &asked, limit, now)).await?;
        if candidates.is_empty() {
            return Ok(Vec::new());
        }
        self.submit(Lease { destination, candidates, now }).await
    }

    async fn next_due(&self, destination: &str) -> Result<Option<Timestamp>, StoreError> {
        let destination = destination.to_owned();
        self.read(move |connection| lease::next_due(connection, &destination)).await
    }

    async fn rein_in(&self, destination: &str, now: Timestamp, latest: Timestamp) -> Result<u64, StoreError> {
        self.submit(ReinIn { destination: destination.into(), now, latest }).await
    }

    async fn arrange(&self, destination: &str, order: Option<Arc<Order>>) -> Result<(), StoreError> {
        let destination: Arc<str> = destination.into();
        let Some(order) = order else {
            while self.submit(Disband { destination: Arc::clone(&destination) }).await? {}
            return Ok(());
        };
        let mut next = Some(Position::default());
        while let Some(after) = next {
            let (order, to) = (Arc::clone(&order), Arc::clone(&destination));
            let unplaced = self.read(move |connection| order::unplaced(connection, &order, &to, &after));
            let Unplaced { forwards, last } = unplaced.await?;
            next = last;
            if !forwards.is_empty() {
                self.submit(Enqueue { destination: Arc::clone(&destination), forwards }).await?;
            }
        }
        let mut next = Some(String::new());
        while let Some(after) = next {
            let (destination, order) = (Arc::clone(&destination), Arc::clone(&order));
            next = self.submit(Review { destination, order, after }).await?;
        }
        Ok(())
    }

    async fn set_paused(&self, destination: &str, paused: bool) -> Result<(), StoreError> {
        self.paused.set(destination, paused, &*self.outlet).await
    }

    async fn settle(&self, settlement: Settlement) -> Result<(), StoreError> {
        self.submit(settlement).await
    }

    async fn delivery(&self, id: Id) -> Result<Option<Delivery>, StoreError> {
        let loaded = self.read(move |connection| match row::load(connection, id) {
            Ok(delivery) => Ok(Ok(delivery)),
            Err(LoadError::Damaged(what) | LoadError::Unreadable(what)) => Ok(Err(StoreError::Read(what))),
            Err(LoadError::Sqlite(error)) => Err(error),
        });
        loaded.await?
    }

    fn depths(&self) -> Vec<(Arc<str>, Depth)> {
        self.depths.read()
    }

    async fn sweep(&self, now: Timestamp, keep_delivered: Duration) -> Result<Swept, StoreError> {
        let before = earlier(now, keep_delivered);
        let mut total = Swept::default();
        let mut stage = Some(Stage::Settled(None));
        while let Some(next) = stage {
            let swept;
            (swept, stage) = self.submit(Sweep { now, before, stage: next }).await?;
            total.deliveries += swept.deliveries;
            total.claims += swept.claims;
        }
        Ok(total)
    }

    fn bytes(&self) -> u64 {
        self.health.bytes()
    }

    fn fault(&self) -> Option<StoreError> {
        self.health.fault()
    }

    async fn close(&self) {
        drop(lock(&self.scrub).take());
        drop(lock(&self.queue).take());
        self.health.close();
        let ended = async {
            self.readers.close().await;
            self.operators.close().await;
            // An error is the sign: the sender has been dropped.
            while self.running.clone().changed().await.is_ok() {}
        };
        if tokio::time::timeout(CLOSE_MAX, ended).await.is_err() {
            tracing::warn!("store not closed in time: what was not answered may be lost, and nothing else");
        }
    }
}
