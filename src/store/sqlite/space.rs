//! Room on the disk: what is kept aside for the work that must go on when the disk is full, and whether a failed write
//! was want of room. Settling what backends have accepted adds next to nothing, but next to nothing is more than
//! a full disk has: it would be delivered again after the next start.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::directory::beside;

/// What is kept aside at most: room for tens of thousands of settlements.
const BALLAST_MAX: u64 = 8 << 20;
/// And at most so much of a small file system: one sixteenth.
const BALLAST_SHARE: u64 = 16;
/// What is given of it at once. Whoever is filling the disk may get it before we do; but not all of it.
const SLICE: u64 = 256 << 10;

/// A file that is there to be cut: its blocks are the room that the store still has when nobody else has any.
#[derive(Debug)]
pub(super) struct Ballast {
    path: PathBuf,
    /// Its size.
    bytes: AtomicU64,
    /// The file system does not take it for another reason than want of room: the store goes without.
    refused: AtomicBool,
}

impl Ballast {
    /// Finds what an earlier process has kept aside.
    pub(super) fn find(directory: &Path) -> Self {
        let path = directory.join("ballast");
        let bytes = AtomicU64::new(size_of(&path));
        Self { path, bytes, refused: AtomicBool::new(false) }
    }

    /// How much has to be free, beside any reserve, before it is whole; 0 when it is.
    pub(super) fn owed(&self, file_system_bytes: u64) -> u64 {
        if self.refused.load(Ordering::Relaxed) {
            return 0;
        }
        let whole = BALLAST_MAX.min(file_system_bytes / BALLAST_SHARE);
        whole.saturating_sub(self.bytes.load(Ordering::Acquire))
    }

    /// Keeps so much more aside, if there is so much.
    pub(super) fn keep(&self, more: u64) {
        if more == 0 {
            return;
        }
        let whole = self.bytes.load(Ordering::Acquire).saturating_add(more);
        let open = || File::options().write(true).create(true).truncate(false).open(&self.path);
        self.note(whole, open().and_then(|file| Ok(fallocate(file, FallocateFlags::empty(), 0, whole)?)));
    }

    /// What came of keeping this much aside.
    fn note(&self, whole: u64, kept: io::Result<()>) {
        match kept {
            Ok(()) => self.bytes.store(whole, Ordering::Release),
            // There may be another time.
            Err(error) if is_want_of_room(&error) => {}
            Err(error) => {
                self.refused.store(true, Ordering::Relaxed);
                tracing::info!(%error, "no room can be kept aside for when the disk is full");
            }
        }
    }

    /// Gives a part of the room back to the disk; false when there is none.
    pub(super) fn give(&self) -> bool {
        let bytes = self.bytes.load(Ordering::Acquire);
        if bytes == 0 {
            return false;
        }
        let left = bytes.saturating_sub(SLICE);
        let cut = File::options().write(true).open(&self.path).and_then(|file| file.set_len(left));
        // What cannot be cut is not there.
        self.bytes.store(if cut.is_ok() { left } else { 0 }, Ordering::Release);
        cut.is_ok()
    }
}

/// Whether this says that there is no room, whoever set the limit: it passes, and nothing has been lost.
pub(super) fn is_want_of_room(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
}

/// What the operating system says to a write beside `file`, as far out as the store's files reach. SQLite tells a full
/// disk from a broken one, but takes a quota and a limit to the size of files for a broken one.
pub(super) fn probe(file: &Path) -> io::Result<()> {
    let end = size_of(file).max(size_of(&beside(file, "-wal")));
    let path = file.with_file_name("probe");
    // Two pages, so that one is whole.
    let written = File::create(&path).and_then(|probe| probe.write_all_at(&[0; 2 << 12], end));
    let _ = fs::remove_file(&path);
    written
}

/// How much room a file system has, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) total: u64,
    /// For us: some may be kept for root.
    pub(super) free: u64,
}

/// The room of the file system of `directory`.
pub(super) fn room(directory: &Path) -> io::Result<Room> {
    let space = statvfs(directory)?;
    let bytes = |blocks: u64| blocks.saturating_mul(space.f_frsize);
    Ok(Room { total: bytes(space.f_blocks), free: bytes(space.f_bavail) })
}

/// The size of a file; 0 when it is not there.
pub(super) fn size_of(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Writes a file's own bytes over it and waits until they are on disk, whatever of them was there before. Takes no
/// space. Does nothing to a file that is not there.
pub(super) fn rewrite(path: &Path) -> io::Result<()> {
    let file = match File::options().read(true).write(true).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let mut chunk = vec![0; 1 << 20];
    let mut offset = 0;
    loop {
        let read = file.read_at(&mut chunk, offset)?;
        if read == 0 {
            return file.sync_all();
        }
        file.write_all_at(&chunk[..read], offset)?;
        offset += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn whoever_set_the_limit_it_is_want_of_room() {
        for (error, expected) in [
            (Errno::NOSPC, true),
            (Errno::DQUOT, true),
            (Errno::FBIG, true),
            (Errno::IO, false),
            (Errno::ROFS, false),
        ] {
            assert_eq!(is_want_of_room(&error.into()), expected, "{error}");
        }
    }

    #[test]
    fn room_is_kept_found_given_in_slices_and_made_whole() {
        let root = tempfile::tempdir().unwrap();
        let (path, total) = (root.path().join("ballast"), 8 << 20);
        let ballast = Ballast::find(root.path());
        assert_eq!((ballast.owed(total), ballast.owed(1 << 40)), (512 << 10, 8 << 20));
        assert!(!ballast.give());
        ballast.keep(ballast.owed(total));
        assert_eq!((size_of(&path), ballast.owed(total)), (512 << 10, 0));
        let found = Ballast::find(root.path());
        assert!(found.give());
        assert_eq!((size_of(&path), found.owed(total)), (256 << 10, 256 << 10));
        assert!(found.give());
        assert!(!found.give());
        found.keep(found.owed(total));
        assert_eq!((size_of(&path), found.owed(total)), (512 << 10, 0));
    }

    /// A file system that cannot set blocks aside would owe them for ever, and the store would never be above its reserve.
    #[test]
    fn a_file_system_that_keeps_no_room_aside_owes_none() {
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/null", root.path().join("ballast")).unwrap();
        let ballast = Ballast::find(root.path());
        ballast.keep(ballast.owed(8 << 20));
        assert_eq!(ballast.owed(8 << 20), 0);
        assert!(!ballast.give());
    }

    /// Whoever fills the disk while room is kept aside, or a quota that is used up, must not end the keeping for good: the
    /// next full disk would find nothing kept.
    #[test]
    fn room_that_is_not_there_now_is_kept_later() {
        let root = tempfile::tempdir().unwrap();
        let ballast = Ballast::find(root.path());
        let owed = ballast.owed(8 << 20);
        for error in [Errno::NOSPC, Errno::DQUOT, Errno::FBIG] {
            ballast.note(owed, Err(error.into()));
            assert_eq!((ballast.owed(8 << 20), ballast.give()), (owed, false), "{error}");
        }
        ballast.keep(owed);
        assert_eq!(ballast.owed(8 << 20), 0);
    }

    /// What the next write will meet, as far out as the log reaches; and nothing is left of the trial.
    #[test]
    fn a_trial_says_what_a_write_would_meet() {
        let root = tempfile::tempdir().unwrap();
        let (file, probed) = (root.path().join("any.db"), root.path().join("probe"));
        probe(&file).unwrap();
        std::os::unix::fs::symlink("/dev/full", &probed).unwrap();
        assert!(is_want_of_room(&probe(&file).unwrap_err()));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);

        let written = root.path().join("written");
        fs::write(&written, "").unwrap();
        fs::write(beside(&file, "-wal"), [0; 5_000]).unwrap();
        std::os::unix::fs::symlink(&written, &probed).unwrap();
        probe(&file).unwrap();
        assert_eq!(size_of(&written), 5_000 + 8_192);
    }

    #[test]
    fn what_is_written_over_stays_what_it_was() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("any.db-wal");
        rewrite(&path).unwrap();
        assert!(!path.exists());
        let bytes: Vec<u8> = (0..5_u32 << 18).map(|number| (number / 1_000) as u8).collect();
        fs::write(&path, &bytes).unwrap();
        rewrite(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes);
        // A disk that does not take it must not be relied on.
        let full = root.path().join("full");
        std::os::unix::fs::symlink("/dev/full", &full).unwrap();
        assert!(is_want_of_room(&rewrite(&full).unwrap_err()));
        assert!(rewrite(root.path()).is_err());
    }
}
