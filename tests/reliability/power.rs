//! Power cuts: `kill -9` cannot reveal a missing fsync, since the page cache survives it. The real gateway works on a disk
//! that writes down what is done to it; for every position in that journal the disk is made as a power cut there may have
//! left it, and the real store is opened on it.
//!
//! A failure tells how to see it again: `COUNTERSIGN_JOURNAL=… COUNTERSIGN_SEED=… cargo test --test reliability power`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use bytes::Bytes;
use countersign::clock::Clock;
use countersign::metrics::Metrics;
use countersign::store::Store as _;
use countersign::store::{Accepted, sqlite};
use fastrand::Rng;
use rusqlite::{Connection, OptionalExtension as _};

use crate::backend::{Backend, Reply};
use crate::disk::{Disk, Record, read_journal};
use crate::platter::{Cut, Platter};
use crate::sender::{Post, body, every_provider};
use crate::store_support::{Draft, Lanes, draft};
use crate::support::Gateway;
use crate::{seed, soak};

/// Of the forwards' attempts a half fails, so that both ends of a forward are written.
fn half_failing() -> Backend {
    Backend::start(|number, _| Reply::Status(if number % 2 == 0 { 503 } else { 200 }))
}

fn sections(backend: &Backend) -> String {
    every_provider(backend) + "retry = { initial = \"10ms\", max = \"20ms\" }\nbreaker = \"off\"\n"
}

/// Sends from a few sides at once; every acknowledgement goes into the disk's journal.
fn load(disk: &Disk, gateway: &Gateway, ids: std::ops::Range<usize>, padding: usize) {
    let next = AtomicUsize::new(ids.start);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= ids.end {
                        return;
                    }
                    let id = format!("d-{number}");
                    let mut body = body(&id);
                    body.resize(body.len() + number % 4 * padding, b' ');
                    let post = Post::signed("github", "/webhooks/github", &id, "x", &body);
                    if post.try_send(gateway.listen).is_some_and(|answer| answer.status == 200) {
                        disk.note_acked(&id, &body);
                    }
                }
            });
        }
    });
}

/// A first start, a kill, a second start that copies the log, and a clean end.
#[test]
fn a_power_cut_anywhere_loses_nothing_acknowledged() {
    let backend = half_failing();
    let disk = Disk::new(&sections(&backend));
    let mut gateway = disk.start().unwrap_or_else(|failed| panic!("{failed:?}"));
    load(&disk, &gateway, 0..soak(12, 60), 1_500);
    gateway.kill();
    let mut gateway = disk.start().unwrap_or_else(|failed| panic!("{failed:?}"));
    load(&disk, &gateway, 100..soak(106, 140), 1_500);
    gateway.signal("TERM");
    assert_eq!(gateway.wait(), Some(0));
    cut_everywhere(&disk, &backend, 0, usize::MAX);
}

/// While it runs, the log is copied once it is 8 MB long, and then written from its beginning again.
#[test]
fn a_power_cut_while_the_log_is_copied_loses_nothing_acknowledged() {
    let backend = half_failing();
    let disk = Disk::new(&sections(&backend));
    let mut gateway = disk.start().unwrap_or_else(|failed| panic!("{failed:?}"));
    load(&disk, &gateway, 0..18, 300_000);
    gateway.kill();
    cut_everywhere(&disk, &backend, 0, soak(25, 600));
}

/// A commit whose fsync failed is in the page cache and not on disk. The next start sees it there, and copied it into the
/// database: a power cut in the middle of that had left half of a commit.
#[test]
fn a_power_cut_after_a_failed_fsync_and_a_restart_loses_nothing_acknowledged() {
    let mut chance = Rng::with_seed(seed());
    for _ in 0..soak(1, 10) {
        let backend = half_failing();
        let disk = Disk::new(&sections(&backend));
        let mut gateway = disk.start().unwrap_or_else(|failed| panic!("{failed:?}"));
        disk.rule(&format!("fail fsync {} EIO", chance.usize(3..9)));
        load(&disk, &gateway, 0..12, 6_000);
        assert_eq!(gateway.wait(), Some(74), "{}", gateway.log());
        disk.rule("");
        let before = read_journal(&disk.journal());
        let failed = before.iter().position(|record| matches!(record, Record::FailedSync(_))).unwrap();
        let restarted = before.len();
        let mut gateway = disk.start().unwrap_or_else(|failed| panic!("{failed:?}"));
        load(&disk, &gateway, 100..102, 1_500);
        gateway.kill();
        let records = read_journal(&disk.journal());
        let (before, after) = records.split_at(restarted);
        // A reader that was closed last had copied it into the database while the process ended.
        assert!(before[failed..].iter().all(|record| is_write_to(record, DATABASE).is_none()));
        let copied = after.iter().position(|record| is_write_to(record, DATABASE).is_some()).unwrap();
        let (log, written) = (end_of_log(before), end_of_log(&after[..copied]));
        assert!(
            log > 0 && written == log,
            "{written} of {log} bytes were written anew before they were copied"
        );
        cut_everywhere(&disk, &backend, failed, usize::MAX);
    }
}

const DATABASE: &str = "data/countersign.db";
const LOG: &str = "data/countersign.db-wal";

/// Where a write to this file ends.
fn is_write_to(record: &Record, file: &str) -> Option<u64> {
    match record {
        Record::Write(path, offset, data) if path == file => Some(offset + data.len() as u64),
        _ => None,
    }
}

/// How far the log has been written since it was last truncated.
fn end_of_log(records: &[Record]) -> u64 {
    let truncated =
        records.iter().rposition(|record| matches!(record, Record::Truncate(path, 0) if path == LOG));
    let rest = &records[truncated.map_or(0, |at| at + 1)..];
    rest.iter().filter_map(|record| is_write_to(record, LOG)).max().unwrap_or(0)
}

/// Cuts the power after each record from `first` on, or at so many that chance picks.
#[expect(clippy::print_stdout, reason = "figures for docs/reliability.md")]
fn cut_everywhere(disk: &Disk, backend: &Backend, first: usize, at_most: usize) {
    let (opened, records, acked) = cut(disk, backend, first, at_most);
    assert!(acked > 0);
    println!("{opened} disks of {records} records, {acked} acknowledged, 0 lost");
}

/// Cuts the power after all has been done.
pub(crate) fn cut_at_the_end(disk: &Disk, backend: &Backend) {
    cut(disk, backend, usize::MAX, usize::MAX);
}

/// How many disks were opened, and how many records and acknowledgements there are.
fn cut(disk: &Disk, backend: &Backend, first: usize, at_most: usize) -> (usize, usize, usize) {
    let seed = seed();
    let journal = std::env::var_os("COUNTERSIGN_JOURNAL").map_or(disk.journal(), PathBuf::from);
    let records = read_journal(&journal);
    let acked = records.iter().filter(|record| matches!(record, Record::Acked(..))).count();
    let forwarded: HashSet<Vec<u8>> = backend.got().into_iter().map(|got| got.body).collect();
    let mut positions: Vec<usize> = (first.min(records.len())..=records.len()).collect();
    if positions.len() > at_most {
        Rng::with_seed(seed).shuffle(&mut positions);
        positions.truncate(at_most);
        positions.sort_unstable();
    }
    // Each worker goes through the journal once, and takes its share of the positions.
    let workers = thread::available_parallelism().map_or(2, usize::from).min(4);
    let (opened, failure) = (AtomicUsize::new(0), Mutex::new(None));
    thread::scope(|scope| {
        for worker in 0..workers {
            let (records, positions, forwarded) = (&records, &positions, &forwarded);
            let (opened, failure) = (&opened, &failure);
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let (mut platter, mut done) = (Platter::default(), 0);
                for position in positions.iter().skip(worker).step_by(workers) {
                    records[done..*position].iter().for_each(|record| platter.apply(record));
                    done = *position;
                    let mut chance = Rng::with_seed(seed ^ *position as u64);
                    let mixed = [Cut::Mixed, Cut::Torn].into_iter().cycle().take(soak(2, 16));
                    for cut in [Cut::Lost, Cut::Kept].into_iter().chain(mixed) {
                        if failure.lock().unwrap().is_some() {
                            return;
                        }
                        let directory = memory_directory();
                        platter.cut(cut, &mut chance, directory.path());
                        let held =
                            Held { directory: directory.path(), acked: &records[..*position], forwarded };
                        match runtime.block_on(held.check()) {
                            Ok(()) => opened.fetch_add(1, Ordering::Relaxed),
                            Err(wrong) => {
                                let wrong = format!("{wrong} (position {position}, {cut:?})");
                                failure.lock().unwrap().get_or_insert(wrong);
                                return;
                            }
                        };
                    }
                }
            });
        }
    });
    if let Some(wrong) = failure.into_inner().unwrap() {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("power-{seed}.journal"));
        std::fs::copy(journal, &kept).unwrap();
        panic!("{wrong}; COUNTERSIGN_JOURNAL={} COUNTERSIGN_SEED={seed}", kept.display());
    }
    (opened.into_inner(), records.len(), acked)
}

/// In memory where there is enough of it (Docker gives 64 MiB): what is opened here is not what is tested for its fsyncs.
fn memory_directory() -> tempfile::TempDir {
    let memory = "/dev/shm";
    let free_bytes = rustix::fs::statvfs(memory).map_or(0, |space| space.f_bavail * space.f_frsize);
    if free_bytes < 1 << 30 { tempfile::tempdir().unwrap() } else { tempfile::tempdir_in(memory).unwrap() }
}

/// What a power cut has left.
struct Held<'a> {
    directory: &'a Path,
    /// The journal until the cut.
    acked: &'a [Record],
    /// All bodies that a backend has got, then or later.
    forwarded: &'a HashSet<Vec<u8>>,
}

impl Held<'_> {
    /// What is wrong with it.
    async fn check(&self) -> Result<(), String> {
        let data = self.directory.join("data");
        let options =
            sqlite::Options { directory: data.clone(), disk_reserve: Some(0), metrics: Metrics::new() };
        let store = sqlite::open(options, Arc::new(Lanes::default()))
            .map_err(|error| format!("does not open: {error}: {:?}", std::error::Error::source(&error)))?;
        let found = self.look_into(&store, &data).await;
        // Also when something is wrong: a store that still writes would keep its directory from being removed.
        store.close().await;
        found
    }

    async fn look_into(&self, store: &sqlite::Sqlite, data: &Path) -> Result<(), String> {
        let database = Connection::open(data.join("countersign.db")).unwrap();
        let sound: String =
            database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).map_err(|e| e.to_string())?;
        if sound != "ok" {
            return Err(sound);
        }
        let mut last = None;
        for record in self.acked {
            let Record::Acked(id, body) = record else { continue };
            let stored = database
                .prepare_cached(
                    "SELECT body, state FROM delivery JOIN forward ON delivery = id WHERE delivery_id = ?1",
                )
                .and_then(|mut select| {
                    select
                        .query_row([id], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, String>(1)?)))
                        .optional()
                })
                .map_err(|error| error.to_string())?;
            match stored {
                None => return Err(format!("{id} is lost")),
                Some((stored, _)) if stored != *body => return Err(format!("{id} has another body")),
                Some((_, state)) if state == "waiting" => {}
                Some((_, state)) if state == "delivered" && self.forwarded.contains(body) => {}
                Some((_, state)) => return Err(format!("the forward of {id} is {state}")),
            }
            last = Some((id, body));
        }
        // The claims were written with the rest; the last is the one that was written last.
        if let Some((id, body)) = last {
            let (received_at, body) = (Clock::system().now(), Bytes::from(body.clone()));
            let again = Draft { source: "github", body, received_at, ..draft(id.clone().leak()) };
            match store.accept(again.arrival()).await {
                Ok(Accepted::Duplicate { conflict: false, .. }) => {}
                other => return Err(format!("{id} again: {other:?}")),
            }
        }
        Ok(())
    }
}
