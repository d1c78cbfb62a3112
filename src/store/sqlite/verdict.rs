//! What a failure means: that of one piece of work, want of room, which passes, or the end of this process's trust in
//! the file.

use rusqlite::{Connection, ErrorCode, ffi};

use super::health::Health;
use super::space;
use crate::store::StoreError;

/// How a store contradicts itself, in the words of whoever finds it.
pub(super) const NOT_IN_TABLE: &str = "an index lists a forward that its table has not";
pub(super) const MISPLACED: &str = "a delivery is not where its index says";
pub(super) const OTHER_FORWARDS: &str = "a delivery has fewer forwards than it had";

/// Whether what was read is not what was written.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    // Without a code it is not from SQLite but from us: a value of another type or range than was written.
    error.sqlite_error_code().is_none() || is_file_damage(error)
}

/// Whether it is more than a single value that is not what was written.
pub(super) fn is_file_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// What SQLite would say of damage that we have found.
pub(super) fn corrupt(what: &str) -> rusqlite::Error {
    let error = ffi::Error::new(ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(error, Some(what.to_owned()))
}

/// What became of the store by a failure that was not a single value's. After a failed write or fsync the page cache may
/// differ from the disk for good, and neither we nor SQLite can find out: the only safe thing is to stop, and to start
/// over from the disk.
pub(super) fn judge(error: &rusqlite::Error, connection: &Connection, health: &Health) -> StoreError {
    // Rolled back, nothing of this has been written.
    let undone = connection.is_autocommit();
    let failure = error.sqlite_error();
    match failure.map(|failure| (failure.code, failure.extended_code)) {
        // The shared-memory index holds nothing that must last, so that no room for it is only that.
        Some((ErrorCode::DiskFull, _) | (_, ffi::SQLITE_IOERR_SHMSIZE)) if undone => StoreError::DiskFull,
        // The operating system took none of it, so that the page cache has nothing that the disk has not.
        Some((_, ffi::SQLITE_IOERR_WRITE)) if undone => match space::probe(health.file()) {
            Err(cause) if space::is_want_of_room(&cause) => StoreError::DiskFull,
            Err(cause) => health.latch(format!("a failed write: {error}: {cause}")),
            // There was none a moment ago, and there may be again.
            Ok(()) if health.was_full() => StoreError::DiskFull,
            Ok(()) => health.latch(format!("a failed write: {error}")),
        },
        // Somebody holds the write lock: nothing of ours has been written.
        Some((ErrorCode::DatabaseBusy, _)) if undone => StoreError::Busy,
        _ if is_file_damage(error) => health.latch_damaged(&error.to_string()),
        _ => health.latch(format!("a failed write: {error}")),
    }
}

/// Whether a failure is that of a single value: one that is not what we wrote, or one that is larger than SQLite takes.
pub(super) fn is_its_own(error: &rusqlite::Error) -> bool {
    matches!(
        error,
        rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::Utf8Error(..)
    ) || error.sqlite_error_code() == Some(ErrorCode::TooBig)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::space::Ballast;

    fn check(code: i32, expected: &[&str]) {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("countersign.db");
        let health = Health::new(file, Some(0), Ballast::find(root.path()));
        let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        let text = judge(&error, &Connection::open_in_memory().unwrap(), &health).to_string();
        assert!(expected.iter().all(|part| text.contains(part)), "{text}");
        assert_eq!(health.latched().is_some(), text.contains("shut itself"), "{text}");
    }

    /// The store said "a failed write" of a damaged file, and nothing of what to do.
    #[test]
    fn damage_is_called_damage_and_a_failed_write_one() {
        check(ffi::SQLITE_IOERR_FSYNC, &["the store has shut itself: a failed write: "]);
        check(ffi::SQLITE_IOERR_WRITE, &["the store has shut itself: a failed write: "]);
        check(ffi::SQLITE_CORRUPT, &["countersign.db is damaged (", "salvages what it holds"]);
    }

    #[test]
    fn what_is_read_is_damaged_or_only_not_to_be_had() {
        let sqlite = |code| rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        for code in [ffi::SQLITE_CORRUPT, ffi::SQLITE_NOTADB] {
            assert!(is_damage(&sqlite(code)) && is_file_damage(&sqlite(code)));
        }
        for code in [ffi::SQLITE_IOERR_READ, ffi::SQLITE_BUSY, ffi::SQLITE_CANTOPEN, ffi::SQLITE_NOMEM] {
            assert!(!is_damage(&sqlite(code)) && !is_file_damage(&sqlite(code)));
        }
        // A single value: the row is damaged, and the file need not be.
        let value = rusqlite::Error::IntegralValueOutOfRange(0, -1);
        assert!(is_damage(&value) && !is_file_damage(&value) && is_its_own(&value));
    }

    #[test]
    fn want_of_room_passes() {
        check(ffi::SQLITE_FULL, &["below its reserve"]);
        check(ffi::SQLITE_IOERR_SHMSIZE, &["below its reserve"]);
    }

    /// What SQLite says of the failure of a write, and of it, the operating system when it is asked again.
    #[test]
    fn a_failed_write_that_found_no_room_passes() {
        let write = |prepare: &dyn Fn(&std::path::Path, &Health), sql: &str| {
            let root = tempfile::tempdir().unwrap();
            let health = Health::new(root.path().join("countersign.db"), Some(0), Ballast::find(root.path()));
            let connection = Connection::open_in_memory().unwrap();
            connection.execute_batch(sql).unwrap();
            prepare(root.path(), &health);
            let error = rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_IOERR_WRITE), None);
            judge(&error, &connection, &health).to_string()
        };
        let link = |to: &'static str| {
            move |root: &std::path::Path, _: &Health| {
                std::os::unix::fs::symlink(to, root.join("probe")).unwrap();
            }
        };
        assert!(write(&link("/dev/full"), "").contains("below its reserve"));
        // A moment later there may be room again.
        assert!(write(&|_, health| health.note_full(), "").contains("below its reserve"));
        let broken = write(&link("/"), "");
        assert!(broken.contains("a failed write: ") && broken.contains("directory"), "{broken}");
        // What has not been undone may have been written in part.
        assert!(write(&link("/dev/full"), "BEGIN").contains("shut itself"));
    }

    #[test]
    fn a_failure_in_a_transaction_that_goes_on_is_no_refusal() {
        for code in [ffi::SQLITE_FULL, ffi::SQLITE_IOERR_SHMSIZE, ffi::SQLITE_BUSY] {
            let root = tempfile::tempdir().unwrap();
            let health = Health::new(root.path().join("countersign.db"), Some(0), Ballast::find(root.path()));
            let connection = Connection::open_in_memory().unwrap();
            connection.execute_batch("BEGIN").unwrap();
            let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
            judge(&error, &connection, &health);
            assert!(health.latched().is_some(), "{code}");
        }
    }
}
