//! What the embedded engine promises about its files.

use std::error::Error;
use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use countersign::forward::Progress;
use countersign::metrics::Metrics;
use countersign::store::sqlite::{OpenError, Options, Sqlite, check_format, in_use, open};
use countersign::store::{Accepted, Depth, Lease, Outlet, Slot, Store, StoreError};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rusqlite::Connection;
use tempfile::TempDir;

use crate::support::{Bench, Draft, Engine, Lanes, Whole, at, draft};

/// A data directory that vanishes with the test.
pub(crate) struct Embedded {
    pub(crate) root: Arc<TempDir>,
    pub(crate) metrics: Metrics,
    disk_reserve: Option<u64>,
}

impl Embedded {
    pub(crate) fn new() -> Self {
        Self { root: Arc::new(tempfile::tempdir().unwrap()), metrics: Metrics::new(), disk_reserve: Some(0) }
    }

    pub(crate) fn open_now(&self, outlet: Arc<dyn Outlet>) -> Result<Sqlite, OpenError> {
        let directory = directory(&self.root);
        open(Options { directory, disk_reserve: self.disk_reserve, metrics: self.metrics.clone() }, outlet)
    }

    fn refused(&self) -> OpenError {
        self.open_now(Arc::new(Lanes::default())).unwrap_err()
    }
}

#[async_trait]
impl Engine for Embedded {
    async fn open(&self, outlet: Arc<dyn Outlet>) -> Arc<dyn Whole> {
        for _ in 0..1_000 {
            match self.open_now(Arc::clone(&outlet)) {
                // A program that another test is starting has this process's files, and with them the lock, until it runs.
                Err(OpenError::InUse { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
                opened => return Arc::new(opened.unwrap()),
            }
        }
        panic!("the directory is in use");
    }
}

pub(crate) fn directory(root: &TempDir) -> PathBuf {
    root.path().join("not/yet/there")
}

pub(crate) fn database(root: &TempDir) -> PathBuf {
    directory(root).join("countersign.db")
}

/// What an operator reads: the error with everything behind it.
pub(crate) fn chain(error: &dyn Error) -> String {
    let rest = error.source().map_or(String::new(), |source| format!(": {}", chain(source)));
    format!("{error}{rest}")
}

#[tokio::test]
async fn a_second_process_is_refused_by_name() {
    let engine = Embedded::new();
    let first = engine.open_now(Arc::new(Lanes::default())).unwrap();
    let error = engine.refused();
    assert!(matches!(error, OpenError::InUse { .. }), "{error:?}");
    for text in [chain(&error), chain(&in_use(&directory(&engine.root)).unwrap())] {
        assert!(text.contains(directory(&engine.root).to_str().unwrap()), "{text}");
        assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    }
    first.close().await;
    assert!(in_use(&directory(&engine.root)).is_none());
    engine.open_now(Arc::new(Lanes::default())).unwrap().close().await;
}

#[tokio::test]
async fn a_newer_format_is_refused_and_left_alone() {
    let engine = Embedded::new();
    engine.open_now(Arc::new(Lanes::default())).unwrap().close().await;
    let connection = Connection::open(database(&engine.root)).unwrap();
    check_format(&directory(&engine.root)).unwrap();
    connection.pragma_update(None, "user_version", 7).unwrap();
    drop(connection);
    let error = check_format(&directory(&engine.root)).unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 7, known: 3, .. }), "{error:?}");
    let before = std::fs::read(database(&engine.root)).unwrap();
    let error = engine.refused();
    assert!(matches!(error, OpenError::Newer { found: 7, known: 3, .. }), "{error:?}");
    assert!(chain(&error).contains("has format 7, and this version knows formats up to 3"));
    assert_eq!(std::fs::read(database(&engine.root)).unwrap(), before);
}

#[test]
fn a_file_that_is_no_database_is_refused_with_what_to_do() {
    let engine = Embedded::new();
    std::fs::create_dir_all(directory(&engine.root)).unwrap();
    std::fs::write(database(&engine.root), "garbage ".repeat(1_000)).unwrap();
    let error = engine.refused();
    assert!(matches!(error, OpenError::Salvage { .. }), "{error:?}");
    for what_to_do in ["restore it from a backup", "countersign store salvage"] {
        assert!(chain(&error).contains(what_to_do), "{}", chain(&error));
    }
}

#[test]
fn another_programs_database_is_not_touched() {
    let engine = Embedded::new();
    std::fs::create_dir_all(directory(&engine.root)).unwrap();
    let connection = Connection::open(database(&engine.root)).unwrap();
    connection.execute_batch("CREATE TABLE theirs (x)").unwrap();
    drop(connection);
    for error in [engine.refused(), check_format(&directory(&engine.root)).unwrap_err()] {
        assert!(matches!(error, OpenError::Foreign { .. }), "{error:?}");
    }
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("file");
    std::fs::write(&file, "").unwrap();
    let options = Options { directory: file.join("data"), disk_reserve: Some(0), metrics: Metrics::new() };
    let error = open(options, Arc::new(Lanes::default())).unwrap_err();
    assert!(matches!(error, OpenError::Directory { .. }), "{error:?}");
    assert!(chain(&error).contains("file/data"), "{}", chain(&error));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_sets_one_delivery_aside_and_no_other() {
    let engine = Embedded::new();
    let (root, metrics) = (Arc::clone(&engine.root), engine.metrics.clone());
    let mut bench = Bench::new(Box::new(engine)).await;
    let mut ids = Vec::new();
    let (first, large) = ("the first body".to_owned(), format!("{}the large body", "x".repeat(1 << 20)));
    for (id, body) in [("1", first), ("2", "the second body".to_owned()), ("3", large)] {
        ids.push(bench.stored(Draft { body: Bytes::from(body), ..draft(id) }).await);
    }
    bench.store.close().await;
    flip(&database(&root), b"", b"second body", 1);
    bench.restart().await;

    let leased: Vec<_> = bench.leased("a", at(0)).await.iter().map(|lease| lease.delivery.id).collect();
    assert_eq!(leased, [ids[0], ids[2]]);
    assert_eq!(bench.depth("a"), Depth { pending: 2, dead: 1, oldest: Some(at(0)) });
    assert!(matches!(bench.store.delivery(ids[1]).await.unwrap_err(), StoreError::Read(_)));
    crate::support::eventually(|| metrics.store_corrupt_rows.get() == 1).await;
    assert_eq!(bench.store.fault(), None);
    // Asked for again, it is looked at again, and set aside again.
    assert_eq!(bench.store.revive(ids[1], at(9)).await.unwrap(), 1);
    assert!(bench.leased("a", at(9)).await.is_empty());
    assert_eq!(bench.depth("a").dead, 1);
    bench.store.close().await;
    flip(&database(&root), b"", b"the large body", 1);
    bench.restart().await;
    let leased: Vec<_> = bench.leased("a", at(0)).await.iter().map(|lease| lease.delivery.id).collect();
    assert_eq!(leased, [ids[0]]);
    assert_eq!(bench.depth("a").dead, 2);
}

/// The provider may send again what was lost, and must not have anything done again that was delivered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_frees_the_id_of_what_is_lost_and_of_nothing_else() {
    let engine = Embedded::new();
    let root = Arc::clone(&engine.root);
    let mut bench = Bench::new(Box::new(engine)).await;
    let delivered = Draft { body: Bytes::from_static(b"a delivered body"), ..draft("1") };
    let lost = Draft { body: Bytes::from_static(b"a lost body"), ..draft("2") };
    let first = bench.stored(delivered.clone()).await;
    let lease = bench.leased_one("a", at(0)).await;
    bench.settle(&lease, Progress::Delivered, at(0)).await;
    bench.stored(lost.clone()).await;
    bench.store.close().await;
    flip(&database(&root), b"", b"delivered body", 1);
    flip(&database(&root), b"", b"lost body", 1);
    bench.restart().await;

    let again = bench.store.accept(delivered.arrival()).await.unwrap();
    assert_eq!(again, Accepted::Duplicate { first, conflict: false });
    bench.stored(lost).await;
}

/// Flips a bit of what stands between `before` and the rest of `pattern`, of which there is one.
pub(crate) fn flip(file: &Path, before: &[u8], pattern: &[u8], bit: u8) {
    let mut bytes = std::fs::read(file).unwrap();
    let whole = [before, pattern].concat();
    let at = bytes.windows(whole.len()).position(|window| window == whole).unwrap();
    bytes[at + before.len()] ^= bit;
    std::fs::write(file, bytes).unwrap();
}

/// What stands before the destination in the index of what is pending: the types of the other columns.
const INDEX_ENTRY: &[u8] = &[44, 5, 0];

/// The index went on listing a forward whose row had another destination by now. It was the first to be due, every time,
/// and could never be taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forward_whose_destination_is_damaged_goes_where_its_index_says() {
    for bit in [1, 0x80] {
        let engine = Embedded::new();
        let (root, metrics) = (Arc::clone(&engine.root), engine.metrics.clone());
        let mut bench = Bench::new(Box::new(engine)).await;
        let first = bench.stored(Draft { to: vec!["lane"], ..draft("1") }).await;
        let second = bench.stored(Draft { to: vec!["lane"], ..draft("2") }).await;
        bench.store.close().await;
        flip(&database(&root), first.as_bytes(), b"lane", bit);
        bench.restart().await;

        assert!(metrics.store_corrupt_rows.get() >= 1);
        assert_eq!(bench.store.depths().len(), 1, "{:?}", bench.store.depths());
        let leased: Vec<_> =
            bench.leased("lane", at(0)).await.iter().map(|lease| lease.delivery.id).collect();
        assert_eq!(leased, [first, second]);
        assert_eq!(bench.store.fault(), None);
    }
}

/// One bit of an index, which holds nothing that is not in the table as well, had stopped every start, or closed the
/// latch as soon as SQLite did not find the entry that it was about to change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_index_costs_nothing() {
    let since = at(0).as_millisecond().to_be_bytes();
    for (after, pattern, bit) in [(INDEX_ENTRY, &b"lanewaiting"[..], 0x80), (&[], &since[2..], 1)] {
        let engine = Embedded::new();
        let root = Arc::clone(&engine.root);
        let mut bench = Bench::new(Box::new(engine)).await;
        let id = bench.stored(Draft { to: vec!["lane"], ..draft("1") }).await;
        bench.store.close().await;
        flip(&database(&root), if after.is_empty() { id.as_bytes() } else { after }, pattern, bit);
        bench.restart().await;
        assert_eq!(bench.depth("lane"), Depth { pending: 1, dead: 0, oldest: Some(at(0)) });
        assert_eq!(bench.leased_one("lane", at(0)).await.delivery.id, id);
        assert_eq!(bench.store.fault(), None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_write_closes_the_latch_for_good() {
    let engine = Embedded::new();
    let root = Arc::clone(&engine.root);
    let bench = Bench::new(Box::new(engine)).await;
    let id = bench.stored(draft("1")).await;
    let connection = Connection::open(database(&root)).unwrap();
    connection.execute_batch("ALTER TABLE claim RENAME TO gone").unwrap();
    let latched = bench.store.accept(draft("2").arrival()).await.unwrap_err();
    assert!(matches!(&latched, StoreError::Latched(why) if why.contains("claim")), "{latched:?}");

    connection.execute_batch("ALTER TABLE gone RENAME TO claim").unwrap();
    let store = &bench.store;
    assert_eq!(store.fault(), Some(latched.clone()));
    assert_eq!(store.accept(draft("3").arrival()).await.unwrap_err(), latched);
    assert_eq!(store.lease("a", 1, at(0)).await.unwrap_err(), latched);
    assert_eq!(store.revive(id, at(0)).await.unwrap_err(), latched);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn below_the_reserve_deliveries_are_refused_and_the_rest_goes_on() {
    let mut engine = Embedded::new();
    let store = engine.open_now(Arc::new(Lanes::default())).unwrap();
    assert_eq!(store.accept(draft("1").arrival()).await.unwrap(), Accepted::Stored);
    store.close().await;

    engine.disk_reserve = Some(u64::MAX);
    let bench = Bench::new(Box::new(engine)).await;
    assert_eq!(bench.store.accept(draft("2").arrival()).await.unwrap_err(), StoreError::DiskFull);
    assert_eq!(bench.store.fault(), Some(StoreError::DiskFull));
    let lease = bench.leased_one("a", at(0)).await;
    bench.settle(&lease, Progress::Delivered, at(0)).await;
    assert_eq!(bench.depth("a"), Depth::default());
}

/// Lanes that let the writer wait in the middle of a transaction.
struct Gate(AtomicBool);

impl Outlet for Gate {
    fn reserve(&self, _: &str) -> Option<Slot> {
        while self.0.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        None
    }

    fn dispatch(&self, _: Lease, _: Slot) {}

    fn wake(&self, _: &str) {}
}

#[tokio::test]
async fn a_full_queue_refuses_and_what_was_queued_is_stored() {
    let gate = Arc::new(Gate(AtomicBool::new(true)));
    let engine = Embedded::new();
    let store = engine.open_now(Arc::clone(&gate) as _).unwrap();
    let mut queued: FuturesUnordered<_> =
        (0..5_000).map(|_| store.accept(Draft { id: None, ..draft("") }.arrival())).collect();
    // What is refused is refused at once; the others wait for the gate.
    let mut refused = 0;
    let mut poll = async || poll_fn(|context| Poll::Ready(queued.poll_next_unpin(context))).await;
    while let Poll::Ready(Some(answer)) = poll().await {
        assert_eq!(answer, Err(StoreError::Busy));
        refused += 1;
    }
    assert!((1..1_000).contains(&refused), "{refused}");
    // Nobody waits for the answer any more, and it is stored all the same.
    drop(queued);
    gate.0.store(false, Ordering::Release);
    store.close().await;
    assert_eq!(store.depths()[0].1.pending, 5_000 - refused);
}

/// Bodies of any size share a commit, but not more of them than can be written while their senders wait.
#[tokio::test]
async fn large_bodies_do_not_wait_for_one_commit_together() {
    let gate = Arc::new(Gate(AtomicBool::new(true)));
    let engine = Embedded::new();
    let store = engine.open_now(Arc::clone(&gate) as _).unwrap();
    assert!(store.bytes() >= 4_096);
    let body = Bytes::from(vec![b'x'; 8 << 20]);
    let large = Draft { id: None, body, ..draft("") };
    let mut queued: FuturesUnordered<_> = (0..6).map(|_| store.accept(large.clone().arrival())).collect();
    assert!(poll_fn(|context| Poll::Ready(queued.poll_next_unpin(context))).await.is_pending());
    gate.0.store(false, Ordering::Release);
    while let Some(answer) = queued.next().await {
        assert_eq!(answer, Ok(Accepted::Stored));
    }
    assert!(engine.metrics.store_commit_duration.get_sample_count() >= 3);
    store.close().await;
}

/// An fsync that hangs had hung the drain with it, until somebody killed the process.
#[tokio::test(start_paused = true)]
async fn a_writer_that_hangs_does_not_hang_the_close() {
    let gate = Arc::new(Gate(AtomicBool::new(true)));
    let store = Arc::new(Embedded::new().open_now(Arc::clone(&gate) as _).unwrap());
    let accepting = Arc::clone(&store);
    let accepted = tokio::spawn(async move { accepting.accept(draft("1").arrival()).await });
    tokio::task::yield_now().await;
    let started = tokio::time::Instant::now();
    store.close().await;
    assert_eq!(started.elapsed().as_secs(), 5);
    assert_eq!(store.accept(draft("2").arrival()).await.unwrap_err(), StoreError::Closed);
    gate.0.store(false, Ordering::Release);
    assert_eq!(accepted.await.unwrap(), Ok(Accepted::Stored));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_attempts_with_something_to_tell_leave_a_row() {
    let engine = Embedded::new();
    let root = Arc::clone(&engine.root);
    let bench = Bench::new(Box::new(engine)).await;
    let attempts = async |id, moves: &[Progress]| {
        let id = bench.stored(draft(id)).await;
        for next in moves {
            let lease = bench.leased_one("a", at(0)).await;
            bench.settle(&lease, *next, at(0)).await;
            bench.store.revive(id, at(0)).await.unwrap();
        }
        let connection = Connection::open(database(&root)).unwrap();
        let sql = "SELECT count(*) FROM attempt WHERE delivery = ?1";
        connection.query_row(sql, [id.as_bytes()], |row| row.get::<_, i64>(0)).unwrap()
    };
    let waiting = Progress::Waiting { due_at: at(0), attempts: 1 };
    assert_eq!(attempts("1", &[Progress::Delivered]).await, 0);
    assert_eq!(attempts("2", &[waiting, Progress::Delivered]).await, 2);
    assert_eq!(attempts("3", &[Progress::Dead, Progress::Delivered]).await, 2, "the second is a replay");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_is_counted_by_the_deliveries_that_it_stored() {
    let engine = Embedded::new();
    let metrics = engine.metrics.clone();
    let bench = Bench::new(Box::new(engine)).await;
    bench.stored(draft("1")).await;
    let lease = bench.leased_one("a", at(0)).await;
    bench.settle(&lease, Progress::Delivered, at(0)).await;
    assert_eq!(metrics.store_commit_duration.get_sample_count(), 3);
    let deliveries = &metrics.store_commit_deliveries;
    assert_eq!((deliveries.get_sample_count(), deliveries.get_sample_sum()), (1, 1.0));
}
