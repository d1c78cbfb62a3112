//! The engine that several gateways share: a PostgreSQL database. What waits for a commit shares it; a forward belongs to the
//! gateway that attempts it for as long as that lets itself be heard of, and to whoever comes first afterwards. A database
//! that cannot be reached refuses, and is used again when it can be: nothing here latches.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use deadpool_postgres::{Object, Pool};
use jiff::SignedDuration;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use self::accept::Accept;
use self::arrange::Arranged;
use self::error::Trouble;
use self::held::{Activity, Held};
use self::lease::Floors;
use self::ranges::Late;
use self::row::Prepared;
use self::settle::Settle;
use self::upkeep::Upkeep;
use self::uses::Counted;
use crate::clock::{Moment, Timestamp, from_milliseconds};
use crate::config::Database;
use crate::delivery::Delivery;
use crate::forward::Order;
use crate::id::Id;
use crate::metrics::Metrics;
use crate::store::operators::{Change, DeadLetters, Filter, History, Listed, Operators, Page, Target};
use crate::store::sqlite::{Depths, order_keys};
use crate::store::{
    Accepted, Arrival, Depth, HandedOver, Lease, Outlet, Settlement, Store, StoreError, Swept, UseOfSecret,
};

mod accept;
mod arrange;
mod batch;
mod connect;
mod error;
mod handed_over;
mod held;
mod lease;
mod list;
mod operate;
mod order;
mod ranges;
mod row;
mod schema;
mod settle;
mod share;
mod sweep;
mod tls;
mod upkeep;
mod uses;

pub(in crate::store) use self::connect::connect;
pub use self::error::OpenError;
pub(in crate::store) use self::error::explain;
pub(in crate::store) use self::row::text;
pub(in crate::store) use self::schema::is_being_filled;

/// Work that may wait for a batch. Seconds of it: more would only be late.
const QUEUE_MAX: usize = 4_096;
/// How long closing may take.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// Where the store is, and what it heeds.
#[derive(Debug, Clone)]
pub struct Options {
    /// The database.
    pub database: Database,
    /// Connections to it at most, besides one for the gateway's own upkeep.
    pub connections: usize,
    /// Where commits and corrupt rows are counted.
    pub metrics: Metrics,
}

/// The store that gateways share. Dropped without [`Store::close`], what it attempts is taken over by others when its lease
/// has run out.
pub struct Postgres {
    inner: Arc<Inner>,
    /// `None` once closed.
    queues: Mutex<Option<Queues>>,
    /// Batches, and what runs for as long as the store is open.
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Clone)]
struct Queues {
    accept: mpsc::Sender<Accept>,
    settle: mpsc::Sender<Settle>,
}

/// What the tasks share.
struct Inner {
    /// Of this run of this gateway.
    id: Uuid,
    /// For operators who look into the table.
    name: String,
    pool: Pool,
    outlet: Arc<dyn Outlet>,
    metrics: Metrics,
    depths: Depths,
    held: Held,
    floors: Floors,
    arranged: Arranged,
    late: Late,
    counted: Counted,
    activity: Activity,
    /// Held while a destination is being paused, or resumed.
    pausing: tokio::sync::Mutex<()>,
    /// Why nobody can reach the database, for as long as nobody can.
    reason: Mutex<Option<String>>,
    closed: AtomicBool,
    bytes: AtomicU64,
    /// Has the upkeep look at once: something has failed.
    look: Notify,
}

/// Opens the store; makes its tables, or migrates them, where that has not been done.
///
/// # Errors
/// When the database cannot be reached or is none that a gateway can work with.
pub async fn open(options: Options, outlet: Arc<dyn Outlet>) -> Result<Postgres, OpenError> {
    let Options { database, connections, metrics } = options;
    let pool = connect::pool(&database, connections)?;
    let shown = database.shown();
    let unreachable = |trouble| {
        let reason = match StoreError::from(trouble) {
            StoreError::Unreachable(reason) => reason,
            other => other.to_string(),
        };
        OpenError::Unreachable { database: shown.clone(), reason }
    };
    // First without the pool, whose refusals are texts only.
    connect::prepare(&database).await?;
    let inner = Arc::new(Inner {
        id: Uuid::from_u128(fastrand::u128(..)),
        name: own_name(),
        pool,
        outlet,
        metrics,
        depths: Depths::default(),
        held: Held::default(),
        floors: Floors::default(),
        arranged: Arranged::default(),
        late: Late::default(),
        counted: Counted::default(),
        activity: Activity::default(),
        pausing: tokio::sync::Mutex::default(),
        reason: Mutex::default(),
        closed: AtomicBool::new(false),
        bytes: AtomicU64::new(0),
        look: Notify::new(),
    });
    let mut upkeep = Upkeep::new(Arc::clone(&inner), connect::pool(&database, 1)?);
    upkeep.begin().await.map_err(unreachable)?;
    inner.make_ranges().await;
    for (destination, depth) in inner.depths.read() {
        let pending = i64::try_from(depth.pending).unwrap_or(i64::MAX);
        inner.metrics.forward_pending_at_start.with_label_values(&[&destination]).set(pending);
    }

    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let (accept, accepts) = mpsc::channel(QUEUE_MAX);
    let (settle, settles) = mpsc::channel(QUEUE_MAX);
    let (places, shared) = ((connections * 2 / 5).max(1), Arc::clone(&inner));
    tasks.spawn(batch::run(accepts, places, tasks.clone(), move |jobs| Arc::clone(&shared).accept(jobs)));
    let (places, shared) = ((connections / 5).max(1), Arc::clone(&inner));
    tasks.spawn(batch::run(settles, places, tasks.clone(), move |jobs| Arc::clone(&shared).settle(jobs)));
    tasks.spawn(upkeep.run(stop.clone()));
    tasks.spawn(Arc::clone(&inner).keep_counting(stop.clone()));
    tasks.spawn(Arc::clone(&inner).keep_in_order(stop.clone()));
    tasks.close();
    Ok(Postgres { inner, queues: Mutex::new(Some(Queues { accept, settle })), tasks, stop })
}

/// Host and process, as far as they can be told.
fn own_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}/{}", host.trim(), std::process::id())
}

impl Inner {
    async fn query(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Trouble> {
        connect::on(&self.pool, |client: Arc<Object>| async move {
            let statement = client.prepare_cached(sql).await?;
            client.query(&statement, parameters).await
        })
        .await
    }

    /// Why nothing can be asked of the database.
    fn reason(&self) -> Option<String> {
        lock(&self.reason).clone()
    }

    fn fault(&self) -> Option<StoreError> {
        if self.closed.load(Ordering::SeqCst) {
            return Some(StoreError::Closed);
        }
        self.reason().map(StoreError::Unreachable)
    }

    /// From now on everything is refused at once: a database that comes back must not find a crowd waiting.
    fn fail(&self, reason: String) {
        lock(&self.reason).get_or_insert(reason);
    }

    /// True when it had failed.
    fn recover(&self) -> bool {
        lock(&self.reason).take().is_some()
    }

    fn note_bytes(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }
}

/// Nothing that holds these locks can panic half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Postgres {
    /// By how much the database's clock is ahead of `now`, to about a millisecond on a quick network: what gateways write
    /// down for each other they date by it.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn clock_ahead_of(
        &self,
        now: impl Fn() -> Timestamp + Send,
    ) -> Result<SignedDuration, StoreError> {
        const TIME: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint";
        // A connection may have to be made, which takes its time.
        self.inner.query(TIME, &[]).await?;
        let before = now();
        let rows = self.inner.query(TIME, &[]).await?;
        let there = rows.first().map_or(Ok(0), |row| row.try_get(0)).map_err(Trouble::from)?;
        let way = now().duration_since(before) / 2;
        Ok(from_milliseconds(there).duration_since(before) - way)
    }

    fn queues(&self) -> Result<Queues, StoreError> {
        match self.inner.fault() {
            Some(fault) => Err(fault),
            None => lock(&self.queues).clone().ok_or(StoreError::Closed),
        }
    }

    fn usable(&self) -> Result<&Inner, StoreError> {
        self.inner.fault().map_or(Ok(&*self.inner), Err)
    }
}

#[async_trait]
impl Store for Postgres {
    async fn accept(&self, arrival: Arrival) -> Result<Accepted, StoreError> {
        let queues = self.queues()?;
        let prepared = Prepared::new(&arrival.verified);
        let (reply, answer) = oneshot::channel();
        let keys = order_keys(&arrival, &*self.inner.outlet);
        let job = Accept { arrival, prepared, keys, reply };
        queues.accept.try_send(job).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => StoreError::Busy,
            mpsc::error::TrySendError::Closed(_) => StoreError::Closed,
        })?;
        // `close` waits for all copies.
        drop(queues);
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    async fn revive(&self, id: Id, now: Timestamp) -> Result<u64, StoreError> {
        Ok(self.usable()?.revive(id, now).await?)
    }

    async fn hand_over(&self, source: Arc<str>, given: HandedOver) -> Result<bool, StoreError> {
        Ok(self.usable()?.hand_over(&source, &given).await?)
    }

    async fn show_handed_over(&self, source: Arc<str>) -> Result<Vec<HandedOver>, StoreError> {
        Ok(self.usable()?.show_handed_over(&source).await?)
    }

    async fn note_uses(&self, uses: Vec<UseOfSecret>) -> Result<(), StoreError> {
        Ok(self.usable()?.note_uses(&uses).await?)
    }

    async fn uses(&self) -> Result<Vec<UseOfSecret>, StoreError> {
        Ok(self.usable()?.uses().await?)
    }

    async fn lease(&self, destination: &str, limit: usize, now: Timestamp) -> Result<Vec<Lease>, StoreError> {
        Ok(self.usable()?.lease(destination, limit, now).await?)
    }

    async fn next_due(&self, destination: &str) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.usable()?.next_due(destination).await?)
    }

    async fn rein_in(&self, destination: &str, now: Timestamp, latest: Timestamp) -> Result<u64, StoreError> {
        Ok(self.usable()?.rein_in(destination, now, latest).await?)
    }

    async fn arrange(&self, destination: &str, order: Option<Arc<Order>>) -> Result<(), StoreError> {
        Ok(self.usable()?.arrange(destination, order).await?)
    }

    async fn set_paused(&self, destination: &str, paused: bool) -> Result<(), StoreError> {
        Ok(self.usable()?.set_paused(destination, paused).await?)
    }

    async fn settle(&self, settlement: Settlement) -> Result<(), StoreError> {
        let queues = self.queues()?;
        let (reply, answer) = oneshot::channel();
        queues.settle.send(Settle { settlement, reply }).await.map_err(|_| StoreError::Closed)?;
        drop(queues);
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    async fn delivery(&self, id: Id) -> Result<Option<Delivery>, StoreError> {
        let sql = format!("SELECT {} FROM countersign.delivery d WHERE d.id = $1", row::COLUMNS);
        let rows = self.usable()?.query(&sql, &[&row::uuid(id)]).await?;
        rows.first().map(|row| row::decode(row, 0)).transpose().map_err(StoreError::Read)
    }

    fn depths(&self) -> Vec<(Arc<str>, Depth)> {
        self.inner.depths.read()
    }

    async fn sweep(&self, now: Timestamp, keep_delivered: Duration) -> Result<Swept, StoreError> {
        Ok(self.usable()?.sweep(now, keep_delivered).await?)
    }

    fn bytes(&self) -> u64 {
        self.inner.bytes.load(Ordering::Relaxed)
    }

    fn fault(&self) -> Option<StoreError> {
        self.inner.fault()
    }

    async fn close(&self) {
        if self.inner.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        drop(lock(&self.queues).take());
        self.stop.cancel();
        let inner = &self.inner;
        let ended = async {
            self.tasks.wait().await;
            // What is in flight waits again, its attempt counted, and need not be waited for.
            inner.query(upkeep::GIVE_ALL_BACK, &[&inner.id]).await
        };
        match timeout(CLOSE_MAX, ended).await {
            Ok(Ok(_)) => {}
            Ok(Err(trouble)) => {
                tracing::warn!(?trouble, "left to others to notice that this gateway is gone");
            }
            Err(_) => {
                tracing::warn!(
                    "store not closed in time: what was not answered may be lost, and nothing else"
                );
            }
        }
        inner.pool.close();
    }
}

#[async_trait]
impl Operators for Postgres {
    async fn list(&self, filter: Filter, from: Option<Id>, limit: usize) -> Result<Page<Listed>, StoreError> {
        Ok(self.usable()?.list(&filter, from, limit).await?)
    }

    async fn history(&self, id: Id) -> Result<History, StoreError> {
        Ok(self.usable()?.history(id).await?)
    }

    async fn dead_letters(&self) -> Result<DeadLetters, StoreError> {
        Ok(self.usable()?.dead_letters().await?)
    }

    async fn targets(
        &self,
        filter: Filter,
        change: Change,
        from: Option<Id>,
    ) -> Result<Page<Target>, StoreError> {
        Ok(self.usable()?.targets(&filter, change, from).await?)
    }

    async fn change(
        &self,
        change: Change,
        targets: Vec<Target>,
        at: Moment,
    ) -> Result<Vec<Target>, StoreError> {
        Ok(self.usable()?.change(change, &targets, at).await?)
    }
}
