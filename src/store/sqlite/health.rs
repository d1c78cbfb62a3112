//! Whether the store can be written to: the latch that a failed write closes for good, the reserve of disk space that
//! passes by itself, and the end. What is asked of the file system is asked by a thread of its own, since a file system
//! that hangs must not take the runtime's timers along; everybody else reads what it saw last.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use super::directory::beside;
use super::salvage;
use super::space::{self, Ballast, Room};
use crate::metrics::Metrics;
use crate::store::StoreError;

/// The reserve when none is configured: so much,
const RESERVE_MAX: u64 = 1 << 30;
/// or one twentieth of a file system on which that is less.
const RESERVE_SHARE: u64 = 20;

/// How old a look at the file system may be: readiness comes back as soon as this.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Health {
    latched: OnceLock<String>,
    closed: AtomicBool,
    /// The database.
    file: PathBuf,
    /// `None`: depends on the size of the file system.
    reserve: Option<u64>,
    ballast: Ballast,
    /// Whether the free space was below the reserve.
    below_reserve: AtomicBool,
    /// Whether a write failed for want of room, which a quota or a limit to the size of files may be the reason of.
    full: AtomicBool,
    /// Whether the free space could not be found out.
    unknown: AtomicBool,
    /// Size of the store's files.
    bytes: AtomicU64,
    /// What was free at the last look, and below how much nothing is accepted.
    room: [AtomicU64; 2],
}

impl Health {
    /// Looks once, so that what is read is true from the beginning.
    pub(super) fn new(file: PathBuf, reserve: Option<u64>, ballast: Ballast) -> Self {
        let health = Self {
            latched: OnceLock::new(),
            closed: AtomicBool::new(false),
            file,
            reserve,
            ballast,
            below_reserve: AtomicBool::new(false),
            full: AtomicBool::new(false),
            unknown: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            room: [const { AtomicU64::new(0) }; 2],
        };
        health.look();
        health
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Size of the store's files when they were last looked at.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Why nothing can be done any more: latched, or closed.
    pub(super) fn ended(&self) -> Option<StoreError> {
        self.latched().or_else(|| self.closed.load(Ordering::Acquire).then_some(StoreError::Closed))
    }

    pub(super) fn latched(&self) -> Option<StoreError> {
        self.latched.get().cloned().map(StoreError::Latched)
    }

    /// Why nothing new can be accepted now.
    pub(super) fn fault(&self) -> Option<StoreError> {
        self.ended().or_else(|| self.below_reserve.load(Ordering::Relaxed).then_some(StoreError::DiskFull))
    }

    /// Refuses everything from now on. The first reason stays.
    pub(super) fn latch(&self, reason: String) -> StoreError {
        if self.latched.set(reason.clone()).is_ok() {
            tracing::error!(error = reason, "store latched");
        }
        StoreError::Latched(self.latched.get().cloned().unwrap_or(reason))
    }

    /// The same, because the file is damaged: the next start salvages it.
    pub(super) fn latch_damaged(&self, what: &str) -> StoreError {
        let file = self.file();
        if self.latched.get().is_none() {
            salvage::mark(file.parent().unwrap_or(file), what);
        }
        let file = file.display();
        self.latch(format!("{file} is damaged ({what}): the next start salvages what it holds"))
    }

    /// Whether a write has failed for want of room, and no look has found any since.
    pub(super) fn was_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Refuses what is new until there is room to be seen, beginning now.
    pub(super) fn note_full(&self) {
        self.full.store(true, Ordering::Relaxed);
        self.below_reserve.store(true, Ordering::Relaxed);
    }

    /// Gives back some of the room that was kept aside, for work that adds nothing; false when there is none.
    pub(super) fn give_room(&self) -> bool {
        self.ballast.give()
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    fn show(&self, metrics: &Metrics) {
        for (gauge, seen) in [&metrics.store_disk_free, &metrics.store_disk_reserve].iter().zip(&self.room) {
            gauge.set(i64::try_from(seen.load(Ordering::Relaxed)).unwrap_or(i64::MAX));
        }
    }

    fn look(&self) {
        let bytes =
            ["", "-wal", "-shm"].iter().map(|suffix| space::size_of(&beside(&self.file, suffix))).sum();
        self.bytes.store(bytes, Ordering::Relaxed);

        let full = self.full.load(Ordering::Relaxed)
            && space::probe(&self.file).is_err_and(|error| space::is_want_of_room(&error));
        self.full.store(full, Ordering::Relaxed);
        let room = space::room(self.file.parent().unwrap_or(&self.file));
        let unknown = self.unknown.swap(room.is_err(), Ordering::Relaxed);
        let below = match room {
            Ok(Room { total, free }) => {
                let reserve = self.reserve.unwrap_or_else(|| default_reserve(total));
                let owed = self.ballast.owed(total);
                let wanted = reserve.saturating_add(owed);
                for (seen, bytes) in self.room.iter().zip([free, wanted]) {
                    seen.store(bytes, Ordering::Relaxed);
                }
                let below = full || free < wanted;
                if !below {
                    self.ballast.keep(owed);
                }
                below
            }
            // Not knowing is no reason to refuse: a disk that is really full says so at the next write.
            Err(error) => {
                if !unknown {
                    tracing::warn!(%error, "free disk space unknown");
                }
                full
            }
        };
        let before = self.below_reserve.swap(below, Ordering::Relaxed);
        if below && !before {
            tracing::warn!(reserve = self.reserve, "disk below its reserve, deliveries are refused");
        } else if before && !below {
            tracing::info!("disk above its reserve again");
        }
    }
}

fn default_reserve(file_system_bytes: u64) -> u64 {
    RESERVE_MAX.min(file_system_bytes / RESERVE_SHARE)
}

/// Starts the thread that looks, with traffic or without, and shows what it sees, until the sender is dropped.
pub(super) fn watch(health: Arc<Health>, metrics: Metrics) -> io::Result<Sender<Infallible>> {
    let (owner, ended): (_, Receiver<Infallible>) = channel();
    health.show(&metrics);
    thread::Builder::new().name("store-watch".to_owned()).spawn(move || {
        while ended.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
            health.look();
            health.show(&metrics);
        }
    })?;
    Ok(owner)
}

/// The data behind our mutexes is consistent between statements, so that a panic elsewhere does not spoil it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that was refusing for want of space got no traffic any more, and so never looked again.
    #[test]
    fn space_is_found_again_without_anybody_asking_for_it() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("countersign.db");
        std::fs::write(&file, "12").unwrap();
        let health = Arc::new(Health::new(file.clone(), Some(1), Ballast::find(root.path())));
        assert_eq!((health.fault(), health.bytes()), (None, 2));
        health.below_reserve.store(true, Ordering::Relaxed);
        assert_eq!(health.fault(), Some(StoreError::DiskFull));

        let owner = watch(Arc::clone(&health), Metrics::new()).unwrap();
        std::fs::write(root.path().join("countersign.db-wal"), "345").unwrap();
        while health.fault().is_some() || health.bytes() != 5 {
            thread::yield_now();
        }
        drop(owner);
        while Arc::strong_count(&health) > 1 {
            thread::yield_now();
        }
    }

    #[test]
    fn a_small_disk_has_a_small_reserve() {
        assert_eq!(
            [10, 20_000, 100_000].map(|gib| default_reserve(gib << 30)),
            [512 << 20, 1 << 30, 1 << 30]
        );
    }

    fn health(root: &tempfile::TempDir, reserve: u64) -> Health {
        Health::new(root.path().join("countersign.db"), Some(reserve), Ballast::find(root.path()))
    }

    /// An alert compares the two before the disk is full.
    #[test]
    fn operators_see_what_is_free_and_what_has_to_be() {
        let root = tempfile::tempdir().unwrap();
        let health = health(&root, 5_000);
        let metrics = Metrics::new();
        let shown = || {
            health.show(&metrics);
            (metrics.store_disk_free.get(), metrics.store_disk_reserve.get())
        };
        let free = i64::try_from(space::room(root.path()).unwrap().free).unwrap();
        let (seen, reserve) = shown();
        assert!(seen > 0 && (seen - free).abs() < 4 << 30, "{seen} of {free}");
        // At the first look, nothing has been kept aside yet.
        assert!((5_001..=5_000 + (8 << 20)).contains(&reserve), "{reserve}");
        health.look();
        assert_eq!(shown().1, 5_000);
    }

    #[test]
    fn room_is_kept_aside_only_of_what_is_above_the_reserve() {
        for (reserve, kept) in [(0, true), (u64::MAX, false)] {
            let root = tempfile::tempdir().unwrap();
            let health = health(&root, reserve);
            assert_eq!(health.fault(), (!kept).then_some(StoreError::DiskFull));
            assert_eq!(health.give_room(), kept, "{reserve}");
        }
    }

    /// A quota is not to be seen in the free space: what refused goes on only once a trial has found room.
    #[test]
    fn a_write_that_found_no_room_refuses_until_there_is_some() {
        let root = tempfile::tempdir().unwrap();
        let health = health(&root, 0);
        let probe = root.path().join("probe");
        let full = || std::os::unix::fs::symlink("/dev/full", &probe).unwrap();
        full();
        health.look();
        assert_eq!((health.fault(), health.was_full()), (None, false), "nobody has asked");
        assert!(probe.symlink_metadata().is_ok());
        health.note_full();
        assert_eq!((health.fault(), health.was_full()), (Some(StoreError::DiskFull), true));
        health.look();
        assert_eq!((health.fault(), health.was_full()), (Some(StoreError::DiskFull), true));
        // The trial has removed what stood in its way.
        health.look();
        assert_eq!((health.fault(), health.was_full()), (None, false));
    }

    /// A line every second would bury what led to it.
    #[test]
    fn the_log_says_once_that_the_disk_is_full_and_once_that_it_is_not() {
        #[derive(Clone, Default)]
        struct Lines(Arc<Mutex<Vec<u8>>>);
        impl io::Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                lock(&self.0).extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::default();
        let made = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || made.clone()).finish();
        let told = || {
            let text = String::from_utf8(std::mem::take(&mut *lock(&lines.0))).unwrap();
            let count = |what| text.lines().filter(|line| line.contains(what)).count();
            [count("disk below"), count("disk above"), count("free disk space unknown")]
        };
        tracing::subscriber::with_default(subscriber, || {
            let root = tempfile::tempdir().unwrap();
            let mut health = health(&root, 0);
            for (reserve, expected) in [(0, [0; 3]), (u64::MAX, [1, 0, 0]), (0, [0, 1, 0])] {
                health.reserve = Some(reserve);
                health.look();
                assert_eq!(told(), expected, "{reserve}");
                health.look();
                assert_eq!(told(), [0; 3], "{reserve}");
            }
            // Not to know it is no reason to refuse.
            health.file = root.path().join("nowhere/countersign.db");
            health.look();
            assert_eq!((told(), health.fault()), ([0, 0, 1], None));
            health.look();
            assert_eq!(told(), [0; 3]);
        });
    }
}
