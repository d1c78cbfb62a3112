//! The one thread that writes. It takes what is queued into one transaction, so that however many are waiting pay for
//! one fsync, and answers them when it is done. What a single piece of work does to the tables is not decided here.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::claims::Claims;
use super::depths::Depths;
use super::directory::Held;
use super::health::Health;
use super::work::{Effects, Queued};
use super::{schema, verdict};
use crate::metrics::Metrics;
use crate::store::{Outlet, StoreError};

/// Work in one transaction. More would not save fsyncs worth mentioning, and the first would wait for the last.
const WORK_MAX: usize = 512;
/// Bytes in one transaction, for the same reason: the whole batch is written before anyone is answered.
const BYTES_MAX: usize = 16 << 20;
/// Pages in the log (4 KiB each) that are worth copying into the database.
pub(super) const CHECKPOINT_PAGES: i64 = 2_000;

/// Pages in the log (64 MiB) at which it is begun anew whoever reads: readers that overlap without a pause keep what has
/// long been copied from being written over.
pub(super) const LOG_PAGES_MAX: i64 = 16_000;

/// Why a batch was not committed.
enum Failure {
    /// By this piece of work, whatever else is in the batch.
    One(usize, StoreError),
    /// By what would have failed any.
    All(StoreError),
}

pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) queue: mpsc::Receiver<Box<dyn Queued>>,
    pub(super) outlet: Arc<dyn Outlet>,
    pub(super) health: Arc<Health>,
    pub(super) depths: Arc<Depths>,
    pub(super) claims: Claims,
    pub(super) metrics: Metrics,
    /// Pages in the log at which it is copied next.
    pub(super) checkpoint_at: i64,
    /// Pages in the log at which readers are waited for next, so that it begins anew.
    pub(super) restart_at: i64,
    /// Whether the log has been copied for want of room since the last commit.
    pub(super) log_restarted: bool,
    /// Given up last, when the database is closed.
    pub(super) held: Held,
    /// Keeps the watch over the file system going for as long as there is a writer.
    pub(super) _watch: std::sync::mpsc::Sender<Infallible>,
    /// Dropped when the thread ends, which is what `close` waits for.
    pub(super) running: watch::Sender<()>,
}

impl Writer {
    /// Works until every sender of the queue is gone and the queue is empty.
    pub(super) fn run(mut self) {
        while let Some(first) = self.queue.blocking_recv() {
            let mut bytes = first.bytes();
            let mut batch = vec![first];
            while batch.len() < WORK_MAX
                && bytes < BYTES_MAX
                && let Ok(next) = self.queue.try_recv()
            {
                bytes += next.bytes();
                batch.push(next);
            }
            self.process(batch);
        }
        self.finish();
    }

    fn process(&mut self, mut batch: Vec<Box<dyn Queued>>) {
        if let Some(latched) = self.health.latched() {
            return answer(batch, &Err(latched));
        }
        let outlet = Arc::clone(&self.outlet);
        let committed = catch_unwind(AssertUnwindSafe(|| self.commit(&mut batch, &*outlet)));
        let panicked = |_| Err(Failure::All(self.health.latch("the writer panicked".to_owned())));
        match committed.unwrap_or_else(panicked) {
            Ok(mut effects) => {
                let index_damaged = effects.index_damaged;
                self.depths.apply(std::mem::take(&mut effects.changes));
                for (destination, entry) in effects.entries.drain(..) {
                    entry.count(&destination, &self.metrics);
                }
                answer(batch, &Ok(()));
                if catch_unwind(AssertUnwindSafe(|| self.perform(effects))).is_err() {
                    self.health.latch("the outlet panicked".to_owned());
                }
                if index_damaged {
                    self.health.latch_damaged(verdict::NOT_IN_TABLE);
                }
                self.tend_claims();
                self.checkpoint();
            }
            Err(Failure::All(StoreError::DiskFull)) => self.process_in_little_room(batch),
            Err(Failure::All(error)) => answer(batch, &Err(error)),
            Err(Failure::One(index, error)) => {
                tracing::error!(%error, "refused what cannot be done");
                batch.remove(index).answer(Err(error));
                if !batch.is_empty() {
                    self.process(batch);
                }
            }
        }
    }

    /// Refuses what adds, and does the rest: deliveries that are stored already go on being leased and settled, which
    /// needs next to no space. Ends, since there is only so much room to be made between two commits, and only so many
    /// halves.
    fn process_in_little_room(&mut self, batch: Vec<Box<dyn Queued>>) {
        self.health.note_full();
        let full = Err(StoreError::DiskFull);
        let (adding, mut others): (Vec<_>, Vec<_>) = batch.into_iter().partition(|job| job.adds());
        let added = !adding.is_empty();
        answer(adding, &full);
        if added || self.make_room() {
            if !others.is_empty() {
                self.process(others);
            }
        } else if others.len() > 1 {
            let rest = others.split_off(others.len() / 2);
            self.process(others);
            self.process(rest);
        } else {
            answer(others, &full);
        }
    }

    /// Makes room on a full disk; true when there is more of it than before. What was kept aside goes into the database
    /// rather than into the log, which would soon have eaten it.
    fn make_room(&mut self) -> bool {
        self.restart_log()
            || self.health.give_room() && (self.restart_log() || self.health.latched().is_none())
    }

    /// Copies the whole log into the database, so that the next commit writes it from its beginning again, into the space
    /// that it has. True when it has been done, and is worth another try: once between two commits.
    fn restart_log(&mut self) -> bool {
        if self.log_restarted || self.health.latched().is_some() {
            return false;
        }
        let copied = self.connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| {
            let (busy, pages, copied): (bool, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(!busy && pages == copied)
        });
        self.log_restarted = copied.unwrap_or_else(|error| {
            let error = verdict::judge(&error, &self.connection, &self.health);
            tracing::debug!(%error, "log not copied");
            false
        });
        if self.log_restarted {
            self.checkpoint_at = CHECKPOINT_PAGES;
        }
        self.log_restarted
    }

    fn commit<'o>(
        &mut self,
        batch: &mut [Box<dyn Queued>],
        outlet: &'o dyn Outlet,
    ) -> Result<Effects<'o>, Failure> {
        let started = Instant::now();
        let mut effects = Effects::new(outlet);
        let mut current = None;
        let mut transact = || {
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            for (index, job) in batch.iter_mut().enumerate() {
                current = Some(index);
                job.apply(&transaction, &mut self.claims, &mut effects)?;
            }
            current = None;
            transaction.commit()
        };
        let outcome = transact();
        self.metrics.store_commit_duration.observe(started.elapsed().as_secs_f64());
        if let Err(error) = outcome {
            return Err(match current {
                // Rolled back, nothing of this has been written.
                Some(index) if verdict::is_its_own(&error) && self.connection.is_autocommit() => {
                    Failure::One(index, StoreError::Read(error.to_string()))
                }
                _ => Failure::All(verdict::judge(&error, &self.connection, &self.health)),
            });
        }
        self.log_restarted = false;
        if effects.deliveries > 0 {
            self.metrics.store_commit_deliveries.observe(effects.deliveries.into());
        }
        Ok(effects)
    }

    fn perform(&self, effects: Effects<'_>) {
        for (id, destination, what) in effects.corrupt {
            self.metrics.store_corrupt_rows.inc();
            tracing::error!(delivery = %id, %destination, error = what, "corrupt row set aside");
        }
        for (lease, slot) in effects.dispatches {
            self.outlet.dispatch(lease, slot);
        }
        for destination in effects.wakes {
            self.outlet.wake(&destination);
        }
    }

    /// Makes the claims of many batches quick to find, after everyone has been answered.
    fn tend_claims(&mut self) {
        if self.health.latched().is_some() {
            return;
        }
        // Full and busy pass, and the claims can be found as they are; anything else latches, which says so.
        if let Err(error) = self.claims.tend(&self.connection) {
            let error = verdict::judge(&error, &self.connection, &self.health);
            tracing::debug!(%error, "claims not moved into a run");
        }
    }

    /// Copies the log into the database when it has grown, after everyone has been answered.
    fn checkpoint(&mut self) {
        if self.health.latched().is_some() {
            return;
        }
        // Answers how many pages there are, and how many of them are left to copy.
        let pragma = |mode: &str| {
            self.connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
                let (all, copied): (i64, i64) = (row.get(1)?, row.get(2)?);
                Ok((all, all - copied))
            })
        };
        let mut length = 0;
        let outcome = pragma("NOOP").and_then(|(all, pages)| {
            length = all;
            if pages < self.checkpoint_at {
                return Ok(());
            }
            let copied = pragma("PASSIVE");
            // Whether a reader is in the way or the disk is full: not again with every commit.
            self.checkpoint_at = copied.as_ref().map_or(pages, |(_, left)| *left) + CHECKPOINT_PAGES;
            copied.map(drop)
        });
        // Full and busy pass, and the log keeps what was not copied; anything else latches, which says so.
        if let Err(error) = outcome {
            let error = verdict::judge(&error, &self.connection, &self.health);
            tracing::debug!(%error, "log not copied");
        }
        if length >= self.restart_at {
            // A reader that stays costs a pause of the busy timeout: not again before it is so much longer.
            self.restart_at = if self.restart_log() { LOG_PAGES_MAX } else { length + LOG_PAGES_MAX };
        }
    }

    fn finish(self) {
        let Self { connection, health, held, running, .. } = self;
        let mut index = None;
        let closed = if health.latched().is_some() {
            // What the log holds is for the next start to find out.
            Ok(())
        } else {
            connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| row.get(0)).and_then(
                |busy: bool| {
                    index = schema::sync_index(health.file()).ok();
                    if busy || index.is_none() {
                        return Ok(());
                    }
                    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
                },
            )
        };
        if let Err(error) = closed.and_then(|()| connection.close().map_err(|(_, error)| error)) {
            // Nothing is lost: the log is still there, and the next start copies it.
            tracing::warn!(%error, "store not closed cleanly");
        }
        drop(index);
        drop(held);
        drop(running);
    }
}

fn answer(batch: Vec<Box<dyn Queued>>, outcome: &Result<(), StoreError>) {
    for job in batch {
        job.answer(outcome.clone());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use rusqlite::Transaction;

    use super::*;
    use crate::store::sqlite::space::Ballast;
    use crate::store::sqlite::work::{Work, job};
    use crate::store::sqlite::{directory, schema};
    use crate::store::{Lease, Slot};

    /// Work that is one statement, after `READ` one that returns a byte; one that is not SQL panics, as a bug of ours would.
    struct Sql<const ADDS: bool>(&'static str);

    impl<const ADDS: bool> Work for Sql<ADDS> {
        type Output = usize;

        const ADDS: bool = ADDS;

        fn bytes(&self) -> usize {
            if ADDS { BYTES_MAX / 2 } else { 0 }
        }

        fn apply(
            &self,
            transaction: &Transaction<'_>,
            _: &mut Claims,
            _: &mut Effects<'_>,
        ) -> rusqlite::Result<usize> {
            assert_ne!(self.0, "panic");
            match self.0.strip_prefix("READ ") {
                Some(sql) => transaction.query_row(sql, [], |row| row.get::<_, u8>(0)).map(usize::from),
                None => transaction.execute(self.0, []),
            }
        }
    }

    const GROW: &str = "INSERT INTO attempt VALUES (x'00', 'a', 1, 0, 0, 'x', NULL, hex(zeroblob(1000000)))";
    const SMALL: &str = "UPDATE meter SET n = n + 1";

    pub(in crate::store::sqlite) struct NoLanes;

    impl Outlet for NoLanes {
        fn reserve(&self, _: &str) -> Option<Slot> {
            None
        }
        fn dispatch(&self, _: Lease, _: Slot) {}
        fn wake(&self, _: &str) {}
    }

    pub(in crate::store::sqlite) fn writer(root: &tempfile::TempDir) -> Writer {
        let connection = schema::open_writer(&root.path().join("countersign.db")).unwrap();
        connection.execute_batch("CREATE TABLE meter (n); INSERT INTO meter VALUES (0)").unwrap();
        Writer {
            depths: Arc::new(Depths::load(&connection).unwrap()),
            claims: Claims::load(&connection).unwrap(),
            connection,
            queue: mpsc::channel(1).1,
            outlet: Arc::new(NoLanes),
            health: Arc::new(Health::new(
                root.path().join("countersign.db"),
                Some(0),
                Ballast::find(root.path()),
            )),
            metrics: Metrics::new(),
            checkpoint_at: CHECKPOINT_PAGES,
            restart_at: LOG_PAGES_MAX,
            log_restarted: false,
            held: directory::hold(root.path()).unwrap(),
            _watch: std::sync::mpsc::channel().0,
            running: watch::channel(()).0,
        }
    }

    /// Processes the statements in one batch, those with `true` as adding ones, and returns the answers.
    pub(in crate::store::sqlite) fn process(
        writer: &mut Writer,
        work: &[(&'static str, bool)],
    ) -> Vec<Result<usize, StoreError>> {
        let jobs =
            work.iter().map(|(sql, adds)| if *adds { job(Sql::<true>(sql)) } else { job(Sql::<false>(sql)) });
        let (batch, answers): (Vec<_>, Vec<_>) = jobs.unzip();
        writer.process(batch);
        answers.into_iter().map(|answer| answer.blocking_recv().unwrap()).collect()
    }

    fn metered(writer: &Writer) -> i64 {
        writer.connection.query_row("SELECT n FROM meter", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_batch_is_one_commit() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = writer(&root);
        assert_eq!(process(&mut writer, &[(SMALL, true); 10]), vec![Ok(1); 10]);
        assert_eq!(metered(&writer), 10);
        assert_eq!(writer.metrics.store_commit_duration.get_sample_count(), 1);
    }

    #[test]
    fn what_is_queued_is_committed_in_batches_of_bounded_size() {
        let commits = |jobs: &mut dyn Iterator<Item = Box<dyn Queued>>| {
            let root = tempfile::tempdir().unwrap();
            let mut writer = writer(&root);
            let (queue, receiver) = mpsc::channel(3 * WORK_MAX);
            writer.queue = receiver;
            jobs.for_each(|job| assert!(queue.try_send(job).is_ok()));
            drop(queue);
            let metrics = writer.metrics.clone();
            writer.run();
            metrics.store_commit_duration.get_sample_count()
        };
        assert_eq!(commits(&mut (0..2 * WORK_MAX + 2).map(|_| job(Sql::<false>(SMALL)).0)), 3);
        assert_eq!(commits(&mut (0..10).map(|_| job(Sql::<true>(SMALL)).0)), 5);
    }

    #[test]
    fn a_full_disk_refuses_what_adds_and_does_the_rest() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = writer(&root);
        let pages: i64 = writer.connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        let limit = |writer: &Writer, pages: i64| {
            writer.connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())).unwrap();
        };
        limit(&writer, pages + 10);
        let answers = process(&mut writer, &[(SMALL, false), (GROW, true), (SMALL, false), (SMALL, true)]);
        assert_eq!(answers, [Ok(1), Err(StoreError::DiskFull), Ok(1), Err(StoreError::DiskFull)]);
        assert_eq!(metered(&writer), 2);
        assert_eq!(writer.health.latched(), None);

        limit(&writer, pages + 10_000);
        assert_eq!(process(&mut writer, &[(GROW, true)]), [Ok(1)], "it passes by itself");
    }

    #[test]
    fn what_finds_no_room_though_the_log_was_copied_is_refused_alone() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = writer(&root);
        let pages: i64 = writer.connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        writer.connection.pragma_update_and_check(None, "max_page_count", pages + 10, |_| Ok(())).unwrap();
        assert_eq!(process(&mut writer, &[(GROW, false)]), [Err(StoreError::DiskFull)]);
        assert!(writer.log_restarted);
        let answers = process(&mut writer, &[(SMALL, false), (GROW, false), (SMALL, false)]);
        assert_eq!(answers, [Ok(1), Err(StoreError::DiskFull), Ok(1)]);
        assert_eq!((metered(&writer), writer.health.latched()), (2, None));
    }

    #[test]
    fn a_failure_undoes_its_batch_and_ends_the_writing() {
        for broken in ["INSERT INTO nowhere VALUES (1)", "panic"] {
            let root = tempfile::tempdir().unwrap();
            let mut writer = writer(&root);
            let answers = process(&mut writer, &[(SMALL, false), (broken, false), (SMALL, true)]);
            let latched = writer.health.latched().unwrap();
            assert_eq!(answers, vec![Err(latched.clone()); 3]);
            assert_eq!(process(&mut writer, &[(SMALL, false)]), [Err(latched)]);
            assert_eq!(metered(&writer), 0);
        }
    }

    /// One value that cannot be read, or is too large, had ended the writing for everybody.
    #[test]
    fn what_fails_by_itself_fails_alone() {
        for broken in ["READ SELECT 'text'", "READ SELECT 256", "READ SELECT zeroblob(2000000000)"] {
            let root = tempfile::tempdir().unwrap();
            let mut writer = writer(&root);
            let answers =
                process(&mut writer, &[(SMALL, false), (broken, true), (SMALL, true), (broken, false)]);
            assert!(matches!(&answers[1], Err(StoreError::Read(_))), "{answers:?}");
            assert_eq!((&answers[0], &answers[2], &answers[3]), (&Ok(1), &Ok(1), &answers[1]));
            assert_eq!((metered(&writer), writer.health.latched()), (2, None));
        }
    }

    #[test]
    fn a_lock_held_by_somebody_else_passes() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = writer(&root);
        let other = Connection::open(root.path().join("countersign.db")).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert_eq!(process(&mut writer, &[(SMALL, false)]), [Err(StoreError::Busy)]);
        other.execute_batch("ROLLBACK").unwrap();
        assert_eq!(process(&mut writer, &[(SMALL, false)]), [Ok(1)]);
    }

    #[test]
    fn the_log_is_copied_before_it_grows_without_end() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = writer(&root);
        let (mut copied, mut before) = (0, None);
        for _ in 0..40 {
            assert_eq!(process(&mut writer, &[(GROW, true)]), [Ok(1)]);
            let database = root.path().join("countersign.db").metadata().unwrap().len();
            copied += usize::from(before.replace(database).is_some_and(|before| before != database));
        }
        assert!((5..=10).contains(&copied), "copied {copied} times in 40 commits");
        let log = root.path().join("countersign.db-wal").metadata().unwrap().len();
        assert!(log < 4 * 4_096 * CHECKPOINT_PAGES.unsigned_abs(), "{log} bytes after 80 MB");
    }

    /// Each read ended long before the log was long, but at each moment there was one: the log grew for ever.
    #[test]
    fn the_log_is_begun_anew_while_reads_overlap_without_a_pause() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = writer(&root);
        let begun = [0; 2].map(std::sync::atomic::AtomicU64::new);
        let done = AtomicBool::new(false);
        let read = |me: usize| {
            let connection = schema::open_reader(&root.path().join("countersign.db")).unwrap();
            while !done.load(Ordering::SeqCst) {
                let other = begun[1 - me].load(Ordering::SeqCst);
                connection.execute_batch("BEGIN; SELECT n FROM meter").unwrap();
                begun[me].fetch_add(1, Ordering::SeqCst);
                while begun[1 - me].load(Ordering::SeqCst) == other && !done.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                connection.execute_batch("COMMIT").unwrap();
            }
        };
        let longest = std::thread::scope(|scope| {
            scope.spawn(|| read(0));
            scope.spawn(|| read(1));
            let mut longest = 0;
            for _ in 0..60 {
                process(&mut writer, &[(GROW, true)]);
                longest = longest.max(root.path().join("countersign.db-wal").metadata().unwrap().len());
            }
            done.store(true, Ordering::SeqCst);
            longest
        });
        let most = 4_120 * (LOG_PAGES_MAX.unsigned_abs() + 1_000);
        assert!(longest < most, "{longest} bytes after 120 MB, at most {most}");
    }

    /// The room that is kept aside is the last there is: first the log gives what it can.
    #[test]
    fn room_is_made_by_the_log_first_and_then_of_what_is_kept_aside() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = writer(&root);
        let ballast = root.path().join("ballast");
        std::fs::write(&ballast, vec![0; 400 << 10]).unwrap();
        writer.health = Arc::new(Health::new(
            root.path().join("countersign.db"),
            Some(u64::MAX),
            Ballast::find(root.path()),
        ));
        for expected in [(true, 400 << 10), (true, 144 << 10), (true, 0), (false, 0)] {
            let made = writer.make_room();
            assert_eq!((made, ballast.metadata().unwrap().len()), expected);
        }
    }

    /// An empty log beside an index that still tells of commits looks after a power cut like a log that was cut off.
    #[test]
    fn the_log_is_emptied_at_the_end_only_when_its_index_is_on_disk() {
        for (index_lost, emptied) in [(false, true), (true, false)] {
            let root = tempfile::tempdir().unwrap();
            let mut writer = writer(&root);
            assert_eq!(process(&mut writer, &[(SMALL, true)]), [Ok(1)]);
            if index_lost {
                std::fs::remove_file(root.path().join("countersign.db-shm")).unwrap();
            }
            writer.run();
            let log = root.path().join("countersign.db-wal").metadata().map_or(0, |log| log.len());
            assert_eq!(log == 0, emptied, "{log} bytes, index lost: {index_lost}");
        }
    }

    /// On a full disk the next commit has no other room than that of the log.
    #[test]
    fn a_log_that_is_begun_anew_keeps_its_room() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = writer(&root);
        let length = || root.path().join("countersign.db-wal").metadata().unwrap().len();
        assert_eq!(process(&mut writer, &[(GROW, true)]), [Ok(1)]);
        let grown = length();
        assert!(grown > 1 << 20 && writer.restart_log());
        assert_eq!(process(&mut writer, &[(SMALL, true)]), [Ok(1)]);
        assert_eq!(length(), grown);
    }

    /// A log that somebody reads is not begun anew, and its room not there for the next commit.
    #[test]
    fn a_reader_that_stays_is_asked_for_the_log_only_now_and_then() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = writer(&root);
        writer.connection.busy_timeout(std::time::Duration::ZERO).unwrap();
        process(&mut writer, &[(SMALL, false)]);
        let reader = schema::open_reader(&root.path().join("countersign.db")).unwrap();
        reader.execute_batch("BEGIN; SELECT n FROM meter").unwrap();
        assert!(!writer.restart_log());
        writer.restart_at = 10;
        process(&mut writer, &[(GROW, true)]);
        let again = writer.restart_at - LOG_PAGES_MAX;
        assert!((10..CHECKPOINT_PAGES).contains(&again), "{again} pages in the log");
        reader.execute_batch("COMMIT").unwrap();
        assert!(writer.restart_log());
        writer.restart_at = 0;
        writer.log_restarted = false;
        process(&mut writer, &[(SMALL, false)]);
        assert_eq!(writer.restart_at, LOG_PAGES_MAX);
    }
}
