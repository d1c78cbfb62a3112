//! Requests that were refused, kept for operators to ask why, and to be let in once the cause is mended. Whoever can reach
//! the gateway decides what is put here, so everything has a limit: what comes of each source in a second, what waits to
//! be written, bytes, and age. It is a database of its own, which is never synced: losing it loses no delivery, and
//! nobody who is answered waits for it.

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, header};
use rusqlite::{Connection, OptionalExtension, Row, params};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::StoreError;
use super::sqlite::{decode_headers, encode_headers};
use crate::clock::{Timestamp, earlier, from_milliseconds};
use crate::id::Id;
use crate::metrics::Metrics;
use crate::rate::Limiter;
use crate::units::Rate;

/// All that is kept.
const BYTES_MAX: i64 = 64 << 20;
/// What the file may have besides: pages are not full, and free ones are used again.
const SLACK: i64 = 16 << 20;
/// Of each source: enough to see what is wrong, and a flood is more of the same.
const RATE: Rate = Rate { events: 10, per: Duration::from_secs(1) };
/// Larger bodies are left out: SQLite copies them.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// Of requests that wait to be written.
const PENDING_BYTES_MAX: usize = 16 << 20;
const PENDING_MAX: usize = 256;
/// What a row takes besides its content.
const ROW_BYTES: i64 = 512;
const FILE: &str = "quarantine.db";
/// A file of another version is none: what is in it is not worth a migration.
const VERSION: i64 = 1;
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS rejection (
        id          BLOB PRIMARY KEY NOT NULL,
        source      TEXT NOT NULL,
        reason      TEXT NOT NULL,
        received_at INTEGER NOT NULL,
        sender      TEXT NOT NULL,
        method      TEXT NOT NULL,
        target      TEXT NOT NULL,
        headers     BLOB NOT NULL,
        body        BLOB,
        bytes       INTEGER NOT NULL,
        reverified  TEXT
    ) STRICT;
    CREATE INDEX IF NOT EXISTS rejection_by_source ON rejection (source, id);";

/// A refused request.
#[derive(Debug, Clone)]
pub struct Rejected {
    /// The id that it would have had as a delivery.
    pub id: Id,
    /// The source whose path was asked for.
    pub source: Arc<str>,
    /// The label of the refusal.
    pub reason: Arc<str>,
    /// When its last byte had been read.
    pub received_at: Timestamp,
    /// The sender's address.
    pub sender: IpAddr,
    /// The method.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// The headers as a delivery would have had them, without cookies.
    pub headers: HeaderMap,
    /// The exact bytes; `None` when they were not read, or too many.
    pub body: Option<Bytes>,
    /// What came of its reverification: the outcome's label.
    pub reverified: Option<String>,
}

/// Which rejections are wanted; the newest first.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of this source only.
    pub source: Option<String>,
    /// With this reason only.
    pub reason: Option<String>,
    /// Older than this one only: where an earlier answer ended.
    pub before: Option<Id>,
    /// Whether those that have been reverified are left out.
    pub open: bool,
    /// At most so many.
    pub limit: usize,
}

/// The right to put one request in; its source's rate has been used.
#[derive(Debug)]
pub struct Place {
    bytes: OwnedSemaphorePermit,
}

enum Job {
    Keep(Box<Rejected>, OwnedSemaphorePermit),
    Sweep(Timestamp),
    Mark(Id, String),
    /// Answers when everything before it is written.
    Flush(mpsc::SyncSender<()>),
}

/// Where refused requests are kept.
#[derive(Debug)]
pub struct Quarantine {
    queue: Mutex<Option<mpsc::SyncSender<Job>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    file: PathBuf,
    pending: Arc<Semaphore>,
    rates: Mutex<HashMap<Arc<str>, Limiter>>,
    origin: Instant,
    metrics: Metrics,
}

impl Quarantine {
    /// Opens or makes the quarantine of a data directory that this process holds. One that cannot be read is begun anew;
    /// where there is none to be had, nothing is kept, and that is told.
    pub fn open(directory: &Path, metrics: &Metrics) -> Self {
        let file = directory.join(FILE);
        let writer = Kept::read(&file, metrics.clone()).map(|kept| {
            let (queue, jobs) = mpsc::sync_channel(PENDING_MAX);
            let thread = std::thread::Builder::new().name("quarantine".to_owned());
            (queue, thread.spawn(move || kept.write(&jobs)).ok())
        });
        match writer {
            Ok((queue, Some(writer))) => Self {
                queue: Mutex::new(Some(queue)),
                writer: Mutex::new(Some(writer)),
                file,
                ..Self::none(metrics)
            },
            Ok((_, None)) => Self::none(metrics),
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "refused requests are not kept");
                Self::none(metrics)
            }
        }
    }

    /// One that keeps nothing.
    pub fn none(metrics: &Metrics) -> Self {
        Self {
            queue: Mutex::default(),
            writer: Mutex::default(),
            file: PathBuf::new(),
            pending: Arc::new(Semaphore::new(PENDING_BYTES_MAX)),
            rates: Mutex::default(),
            origin: Instant::now(),
            metrics: metrics.clone(),
        }
    }

    /// A place for a request of `source` whose body has at most so many bytes; `None`, counted, when it has had its share
    /// or too much waits.
    pub fn reserve(&self, source: &Arc<str>, body_bytes: usize) -> Option<Place> {
        let within_rate = {
            let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
            let limiter = rates.entry(Arc::clone(source)).or_insert_with(|| Limiter::new(RATE, RATE.events));
            limiter.claim(self.origin.elapsed(), Duration::ZERO).is_ok()
        };
        if !within_rate {
            self.count_dropped(source, "rate");
            return None;
        }
        let bytes = u32::try_from(body_bytes.min(BODY_BYTES_MAX) + (64 << 10)).ok()?;
        match Arc::clone(&self.pending).try_acquire_many_owned(bytes) {
            Ok(bytes) => Some(Place { bytes }),
            Err(_) => {
                self.count_dropped(source, "busy");
                None
            }
        }
    }

    /// Keeps `rejected`, unless too much waits. Never waits itself.
    pub fn keep(&self, place: Place, mut rejected: Rejected) {
        // Nothing that signs or verifies reads them.
        rejected.headers.remove(header::COOKIE);
        rejected.body = rejected.body.filter(|body| body.len() <= BODY_BYTES_MAX);
        let source = Arc::clone(&rejected.source);
        if !self.send(Job::Keep(Box::new(rejected), place.bytes)) {
            self.count_dropped(&source, "busy");
        }
    }

    /// Counts a request of `source` that is not kept.
    pub fn count_dropped(&self, source: &str, why: &str) {
        self.metrics.quarantine_dropped.with_label_values(&[source, why]).inc();
    }

    /// Forgets what is older than `keep`.
    pub fn sweep(&self, now: Timestamp, keep: Duration) {
        self.send(Job::Sweep(earlier(now, keep)));
    }

    /// Notes what came of a reverification.
    pub fn mark(&self, id: Id, outcome: &str) {
        self.send(Job::Mark(id, outcome.to_owned()));
    }

    /// The rejections that `filter` wants, without their bodies. Blocks.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn list(&self, filter: &Filter) -> Result<Vec<Rejected>, StoreError> {
        let before = filter.before.map_or([255; 16], |id| *id.as_bytes());
        self.read(|connection| {
            let mut select = connection.prepare(
                "SELECT id, source, reason, received_at, sender, method, target, headers, NULL, reverified
                 FROM rejection
                 WHERE id < ?1 AND (?2 IS NULL OR source = ?2) AND (?3 IS NULL OR reason = ?3)
                     AND (NOT ?4 OR reverified IS NULL)
                 ORDER BY id DESC LIMIT ?5",
            )?;
            let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
            let rows = select
                .query_map(params![before, filter.source, filter.reason, filter.open, limit], rejected)?;
            rows.filter_map(Result::transpose).collect()
        })
    }

    /// The rejection with this id. Blocks.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn find(&self, id: Id) -> Result<Option<Rejected>, StoreError> {
        self.read(|connection| {
            let mut select = connection.prepare(
                "SELECT id, source, reason, received_at, sender, method, target, headers, body, reverified
                 FROM rejection WHERE id = ?1",
            )?;
            Ok(select.query_row([id.as_bytes()], rejected).optional()?.flatten())
        })
    }

    /// Writes what waits, and ends. Blocks.
    pub fn close(&self) {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = writer.join();
        }
    }

    fn send(&self, job: Job) -> bool {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.as_ref().is_some_and(|queue| queue.try_send(job).is_ok())
    }

    fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let (told, done) = mpsc::sync_channel(1);
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let queue = queue.ok_or(StoreError::Closed)?;
        // What an operator has just seen refused is there.
        if queue.send(Job::Flush(told)).is_ok() {
            drop(queue);
            let _ = done.recv();
        }
        let failed = |error: rusqlite::Error| StoreError::Read(error.to_string());
        let connection = connect(&self.file).map_err(failed)?;
        query(&connection).map_err(failed)
    }
}

/// `None` for a row that is not what was written.
fn rejected(row: &Row<'_>) -> rusqlite::Result<Option<Rejected>> {
    let text = |column: usize| row.get::<_, String>(column);
    let read = || -> Option<Rejected> {
        Some(Rejected {
            id: Id::from_bytes(row.get(0).ok()?),
            source: row.get(1).ok()?,
            reason: row.get(2).ok()?,
            received_at: from_milliseconds(row.get(3).ok()?),
            sender: text(4).ok()?.parse().ok()?,
            method: Method::from_bytes(text(5).ok()?.as_bytes()).ok()?,
            target: text(6).ok()?,
            headers: decode_headers(&row.get::<_, Vec<u8>>(7).ok()?)?,
            body: row.get::<_, Option<Vec<u8>>>(8).ok()?.map(Bytes::from),
            reverified: row.get(9).ok()?,
        })
    };
    Ok(read())
}

fn connect(file: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(file)?;
    connection.busy_timeout(Duration::from_secs(2))?;
    Ok(connection)
}

/// To write to.
fn open(file: &Path) -> rusqlite::Result<Connection> {
    let connection = connect(file)?;
    // One open file where a log would take three: open files are for connections.
    connection.pragma_update(None, "journal_mode", "truncate")?;
    connection.pragma_update(None, "synchronous", "off")?;
    // In KiB: nothing here is read twice.
    connection.pragma_update(None, "cache_size", -256)?;
    let page_bytes: i64 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
    connection.pragma_update(None, "max_page_count", (BYTES_MAX + SLACK) / page_bytes)?;
    Ok(connection)
}

/// The same of one that may be damaged, or missing.
fn open_checked(file: &Path) -> rusqlite::Result<Connection> {
    let connection = open(file)?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let health: String = connection.pragma_query_value(None, "quick_check", |row| row.get(0))?;
    if !(version == 0 || version == VERSION) || health != "ok" {
        return Err(rusqlite::Error::InvalidQuery);
    }
    connection.execute_batch(SCHEMA)?;
    connection.pragma_update(None, "user_version", VERSION)?;
    Ok(connection)
}

fn open_or_renew(file: &Path) -> rusqlite::Result<Connection> {
    open_checked(file).or_else(|error| {
        tracing::warn!(file = %file.display(), %error, "the quarantine is damaged, and begun anew");
        for end in ["", "-journal"] {
            let mut name = file.as_os_str().to_owned();
            name.push(end);
            let _ = fs::remove_file(PathBuf::from(name));
        }
        open_checked(file)
    })
}

/// The writer's side.
struct Kept {
    file: PathBuf,
    /// Bytes by source.
    sources: HashMap<Arc<str>, i64>,
    entries: i64,
    metrics: Metrics,
}

impl Kept {
    fn read(file: &Path, metrics: Metrics) -> rusqlite::Result<Self> {
        let connection = open_or_renew(file)?;
        let (mut sources, mut entries) = (HashMap::new(), 0);
        {
            let mut select =
                connection.prepare("SELECT source, count(*), sum(bytes) FROM rejection GROUP BY source")?;
            let mut rows = select.query([])?;
            while let Some(row) = rows.next()? {
                entries += row.get::<_, i64>(1)?;
                sources.insert(row.get::<_, Arc<str>>(0)?, row.get::<_, i64>(2)?);
            }
        }
        let mut kept = Self { file: file.to_owned(), sources, entries, metrics };
        kept.shrink(&connection)?;
        Ok(kept)
    }

    fn write(mut self, jobs: &mpsc::Receiver<Job>) {
        self.show();
        // Closed while there is nothing to do.
        let mut connection = None;
        loop {
            let job = jobs.try_recv().or_else(|_| {
                connection = None;
                jobs.recv()
            });
            let Ok(job) = job else { return };
            let opened = connection.take().map_or_else(|| open(&self.file), Ok);
            if let Err(error) = opened.and_then(|opened| self.work(connection.insert(opened), job)) {
                tracing::debug!(%error, "the quarantine could not be written");
            }
            self.show();
        }
    }

    fn work(&mut self, connection: &Connection, job: Job) -> rusqlite::Result<()> {
        match job {
            Job::Keep(rejected, _pending) => {
                let source = Arc::clone(&rejected.source);
                let kept = self.insert(connection, &rejected).and_then(|()| self.shrink(connection));
                let metrics = &self.metrics;
                match &kept {
                    Ok(()) => metrics.quarantine_kept.with_label_values(&[&*source]).inc(),
                    Err(_) => metrics.quarantine_dropped.with_label_values(&[&*source, "failed"]).inc(),
                }
                kept
            }
            Job::Sweep(before) => self.sweep(connection, before),
            Job::Mark(id, outcome) => {
                let update = "UPDATE rejection SET reverified = ?2 WHERE id = ?1";
                connection.execute(update, params![id.as_bytes(), outcome]).map(drop)
            }
            Job::Flush(told) => {
                let _ = told.send(());
                Ok(())
            }
        }
    }

    fn show(&self) {
        self.metrics.quarantine_bytes.set(self.bytes());
        self.metrics.quarantine_entries.set(self.entries);
    }

    fn bytes(&self) -> i64 {
        self.sources.values().sum()
    }

    fn insert(&mut self, connection: &Connection, rejected: &Rejected) -> rusqlite::Result<()> {
        let headers = encode_headers(&rejected.headers);
        let body = rejected.body.as_deref();
        let content = headers.len() + rejected.target.len() + body.map_or(0, <[u8]>::len);
        // A large row has pages of its own.
        let content = if content > 2 << 10 { content.next_multiple_of(4 << 10) } else { content };
        let bytes = i64::try_from(content).unwrap_or(i64::MAX / 2) + ROW_BYTES;
        let mut insert = connection.prepare_cached(
            "INSERT INTO rejection
                 (id, source, reason, received_at, sender, method, target, headers, body, bytes)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?;
        insert.execute(params![
            rejected.id.as_bytes(),
            &*rejected.source,
            &*rejected.reason,
            rejected.received_at.as_millisecond(),
            rejected.sender.to_string(),
            rejected.method.as_str(),
            rejected.target,
            headers,
            body,
            bytes,
        ])?;
        *self.sources.entry(Arc::clone(&rejected.source)).or_default() += bytes;
        self.entries += 1;
        Ok(())
    }

    /// Removes the oldest of the source that has the most, until all fit: a flood at one drives nothing out of others.
    fn shrink(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        while self.bytes() > BYTES_MAX {
            let Some((source, held)) = self.sources.iter_mut().max_by_key(|(_, bytes)| **bytes) else {
                return Ok(());
            };
            let mut delete = connection.prepare_cached(
                "DELETE FROM rejection WHERE id = (SELECT min(id) FROM rejection WHERE source = ?1) RETURNING bytes",
            )?;
            match delete.query_row([&**source], |row| row.get::<_, i64>(0)).optional()? {
                Some(bytes) => {
                    *held = (*held - bytes).max(0);
                    self.entries -= 1;
                }
                None => *held = 0,
            }
        }
        Ok(())
    }

    fn sweep(&mut self, connection: &Connection, before: Timestamp) -> rusqlite::Result<()> {
        let mut delete = connection
            .prepare_cached("DELETE FROM rejection WHERE received_at < ?1 RETURNING source, bytes")?;
        let mut rows = delete.query([before.as_millisecond()])?;
        while let Some(row) = rows.next()? {
            let (source, bytes): (Arc<str>, i64) = (row.get(0)?, row.get(1)?);
            if let Some(held) = self.sources.get_mut(&source) {
                *held = (*held - bytes).max(0);
            }
            self.entries -= 1;
        }
        self.sources.retain(|_, bytes| *bytes > 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(source: &str, ms: i64, body_bytes: usize) -> Rejected {
        let received_at = from_milliseconds(1_800_000_000_000 + ms);
        Rejected {
            id: Id::new(received_at, [7; 10]),
            source: source.into(),
            reason: "signature_mismatch".into(),
            received_at,
            sender: [127, 0, 0, 1].into(),
            method: Method::POST,
            target: "/in".to_owned(),
            headers: HeaderMap::from_iter([
                (header::COOKIE, http::HeaderValue::from_static("a=b")),
                (header::HOST, http::HeaderValue::from_static("h")),
            ]),
            body: Some(Bytes::from(vec![b'x'; body_bytes])),
            reverified: None,
        }
    }

    fn put(quarantine: &Quarantine, rejected: Rejected) {
        let bytes = Arc::clone(&quarantine.pending).try_acquire_many_owned(0).unwrap();
        quarantine.keep(Place { bytes }, rejected);
        // What waits has a bound of its own.
        quarantine.find(Id::from_bytes([0; 16])).unwrap();
    }

    fn ids(quarantine: &Quarantine, filter: &Filter) -> Vec<Id> {
        quarantine.list(filter).unwrap().into_iter().map(|rejected| rejected.id).collect()
    }

    fn all() -> Filter {
        Filter { limit: 1_000, ..Filter::default() }
    }

    #[test]
    fn what_is_kept_is_found_again_without_cookies() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Quarantine::open(directory.path(), &Metrics::new());
        let quarantine = open();
        let (first, second) = (rejected("a", 1, 300 << 10), rejected("b", 2, 0));
        put(&quarantine, first.clone());
        put(&quarantine, second.clone());
        quarantine.close();
        assert!(quarantine.list(&all()).is_err(), "closed");

        let quarantine = open();
        let found = quarantine.find(first.id).unwrap().unwrap();
        assert_eq!((found.body, &*found.source), (first.body, "a"));
        assert_eq!(found.headers.keys().collect::<Vec<_>>(), [header::HOST]);
        assert_eq!(ids(&quarantine, &all()), [second.id, first.id]);
        let of = |filter| ids(&quarantine, &filter);
        assert_eq!(of(Filter { source: Some("a".to_owned()), ..all() }), [first.id]);
        assert_eq!(of(Filter { reason: Some("x".to_owned()), ..all() }), []);
        assert_eq!(of(Filter { limit: 1, ..all() }), [second.id]);
        assert_eq!(of(Filter { before: Some(second.id), ..all() }), [first.id]);
        quarantine.mark(second.id, "stored");
        assert_eq!(of(Filter { open: true, ..all() }), [first.id]);
        quarantine.sweep(from_milliseconds(1_800_000_000_002), Duration::ZERO);
        assert_eq!(of(all()), [second.id]);
    }

    #[test]
    fn bytes_have_a_limit_and_a_flood_drives_out_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let metrics = Metrics::new();
        let quarantine = Quarantine::open(directory.path(), &metrics);
        let quiet = rejected("quiet", 0, 1 << 20);
        put(&quarantine, quiet.clone());
        for n in 1..=80 {
            put(&quarantine, rejected("flooded", n, 1 << 20));
        }
        assert!(metrics.quarantine_bytes.get() <= BYTES_MAX);
        let kept = ids(&quarantine, &all());
        assert!((60..=64).contains(&kept.len()), "{}", kept.len());
        assert!(kept.contains(&quiet.id));
        assert!(kept.contains(&rejected("flooded", 80, 0).id), "the newest");
        quarantine.close();
        let on_disk: u64 = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(on_disk <= (BYTES_MAX + SLACK + (8 << 20)).unsigned_abs(), "{on_disk}");
    }

    #[test]
    fn a_source_has_its_share_and_what_waits_has_a_bound() {
        let metrics = Metrics::new();
        let quarantine = Quarantine::none(&metrics);
        let (a, b, c) = (Arc::from("a"), Arc::from("b"), Arc::from("c"));
        let places: Vec<_> = (0..100).filter_map(|_| quarantine.reserve(&a, 0)).collect();
        assert!((10..100).contains(&places.len()), "{}", places.len());
        let dropped = |source, why| metrics.quarantine_dropped.with_label_values(&[source, why]).get();
        assert_eq!(dropped("a", "rate"), 100 - places.len() as u64);
        drop(places);
        let sources = [&b, &c].into_iter().cycle().take(20);
        let large: Vec<_> = sources.filter_map(|source| quarantine.reserve(source, BODY_BYTES_MAX)).collect();
        assert!(large.len() < 16, "{}", large.len());
        assert_eq!(dropped("b", "busy") + dropped("c", "busy"), 20 - large.len() as u64);
    }

    #[test]
    fn a_damaged_file_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), vec![7; 9_000]).unwrap();
        let quarantine = Quarantine::open(directory.path(), &Metrics::new());
        put(&quarantine, rejected("a", 1, 10));
        assert_eq!(ids(&quarantine, &all()).len(), 1);
    }
}
