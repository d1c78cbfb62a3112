//! Opens the database file: tells our file from others and from damage, brings older formats up to date, and sets how
//! each connection works.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior, ffi};

use super::directory::beside;
use super::{OpenError, space, verdict};

/// "CsGn": `file(1)` and our own check tell the database from any other by it.
pub(super) const APPLICATION_ID: i32 = 0x4373_476e;

/// The format that this version writes.
pub(super) const FORMAT: u32 = 3;

/// No version will have a format as high as this one: a number above it is a damaged one.
const NEVER: u32 = 1 << 16;

/// What leads from each format to the next, from an empty file (0) on.
const MIGRATIONS: [&str; FORMAT as usize] =
    [include_str!("format-1.sql"), include_str!("format-2.sql"), include_str!("format-3.sql")];

/// What the log keeps of its space when it is begun anew: as much as it usually has, and not what one bad hour made of it.
const LOG_KEPT: i64 = 8 << 20;

/// For how long an operator's `sqlite3` may hold the write lock before a commit is refused: well below any ack deadline.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);

/// For how long it may hold up the start, with a read that lasts, before the start is given up.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// The writer's connection, to a database of the current format of which everything is known to be on disk.
pub(super) fn open_writer(file: &Path) -> Result<Connection, OpenError> {
    let failed = |error| failure(file, error);
    let mut connection = connect(file).map_err(failed)?;

    let format = identify(&connection, file)?;

    configure(&connection).map_err(failed)?;
    rewrite_log(&connection, file)?;
    for (next, migration) in (1..).zip(MIGRATIONS).skip(format as usize) {
        migrate(&mut connection, migration, next).map_err(failed)?;
    }
    let busy = || OpenError::Busy { file: file.to_owned() };
    if !verify_durable(&connection, "RESTART", OPEN_TIMEOUT).map_err(failed)? {
        return Err(busy());
    }
    // Closed for it: closing any descriptor of a file gives up the locks that SQLite has on it.
    connection.close().map_err(|(_, error)| failed(error))?;
    sync_index(file).map_err(|source| OpenError::Log { file: file.to_owned(), source })?;
    let connection = connect(file).map_err(failed)?;
    configure(&connection).map_err(failed)?;
    if verify_durable(&connection, "TRUNCATE", OPEN_TIMEOUT).map_err(failed)? {
        Ok(connection)
    } else {
        Err(busy())
    }
}

/// Makes it durable that the log has been copied, before it is truncated: an empty log beside an older index looks like
/// one whose commits are cut off. The descriptor is for a caller that still has a connection: it must outlive that.
pub(super) fn sync_index(file: &Path) -> io::Result<File> {
    let index = File::open(beside(file, "-shm"))?;
    index.sync_all()?;
    Ok(index)
}

/// Judges a database that another process has open by its header and schema.
pub(super) fn check_format(file: &Path) -> Result<(), OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags).map_err(|error| failure(file, error))?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(|error| failure(file, error))?;
    identify(&connection, file).map(drop)
}

/// A new database in a file of its own. It is not durable, and not in its mode of work, before [`seal`].
pub(super) fn create(file: &Path) -> rusqlite::Result<Connection> {
    let mut connection = connect(file)?;
    connection.pragma_update_and_check(None, "journal_mode", "OFF", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "OFF")?;
    for (next, migration) in (1..).zip(MIGRATIONS) {
        migrate(&mut connection, migration, next)?;
    }
    Ok(connection)
}

/// Makes a database that has been created ready to be closed, synced and opened.
pub(super) fn seal(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))
}

/// An empty database of `format`.
pub(super) fn model(format: u32) -> rusqlite::Result<Connection> {
    let model = Connection::open_in_memory()?;
    for migration in &MIGRATIONS[..format as usize] {
        model.execute_batch(migration)?;
    }
    Ok(model)
}

/// Whether nobody has changed the schema since our migrations made it that of `format`: SQLite counts the changes.
fn is_untouched(connection: &Connection, format: u32) -> rusqlite::Result<bool> {
    let changes = |of: &Connection| of.pragma_query_value(None, "schema_version", |row| row.get::<_, i64>(0));
    Ok(changes(connection)? == changes(&model(format)?)?)
}

/// Whether the tables and indexes are those of `format`. Others beside them are an operator's.
fn is_schema(connection: &Connection, format: u32) -> rusqlite::Result<bool> {
    let expected = model(format)?;
    let mut statement = expected.prepare("SELECT type, name, tbl_name, sql FROM sqlite_schema")?;
    let mut rows = statement.query([])?;
    let mut find = connection.prepare(
        "SELECT count(*) FROM sqlite_schema WHERE type = ?1 AND name = ?2 AND tbl_name = ?3 AND sql IS ?4",
    )?;
    while let Some(row) = rows.next()? {
        let (kind, name, table): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let sql: Option<String> = row.get(3)?;
        let found: u32 = find.query_row(rusqlite::params![kind, name, table, sql], |row| row.get(0))?;
        if found != 1 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether each table and index stands on pages of its own.
fn has_distinct_roots(connection: &Connection) -> rusqlite::Result<bool> {
    let distinct = "SELECT count(*) = count(DISTINCT rootpage) FROM sqlite_schema WHERE rootpage <> 0";
    connection.query_row(distinct, [], |row| row.get(0))
}

/// The format of a database of ours, 0 of one that is empty; refuses others, newer ones, and damaged ones.
pub(super) fn identify(connection: &Connection, file: &Path) -> Result<u32, OpenError> {
    let failed = |error| failure(file, error);
    let application: i32 =
        connection.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(failed)?;
    let format: i64 =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    let tables: u32 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(failed)?;
    let fresh = application == 0 && tables == 0;
    // A number of the header may be damaged; all tables are not by accident those that we know.
    let damaged = |what: &str| OpenError::Damaged { file: file.to_owned(), source: verdict::corrupt(what) };
    let matches = |format: u32| is_schema(connection, format).map_err(failed);
    match u32::try_from(format) {
        Ok(format @ 0..NEVER) if application == APPLICATION_ID && format > FORMAT => {
            Err(OpenError::Newer { file: file.to_owned(), found: format, known: FORMAT })
        }
        Ok(0) if fresh => Ok(0),
        Ok(format @ 1..=FORMAT) if application == APPLICATION_ID => {
            if !has_distinct_roots(connection).map_err(failed)? {
                Err(damaged("two tables are said to stand on one page"))
            } else if matches(format)? {
                Ok(format)
            } else if is_untouched(connection, format).map_err(failed)? {
                Err(damaged("a table or an index is not the one that was made"))
            } else {
                Err(OpenError::Altered { file: file.to_owned() })
            }
        }
        _ if application == APPLICATION_ID || matches(FORMAT)? => {
            Err(damaged("the header is not the one that was written"))
        }
        _ => Err(OpenError::Foreign { file: file.to_owned() }),
    }
}

/// A connection that only reads.
pub(super) fn open_reader(file: &Path) -> rusqlite::Result<Connection> {
    let connection = connect(file)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

pub(super) fn connect(file: &Path) -> rusqlite::Result<Connection> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags)?;
    // Whichever connection is closed last would copy the log by itself, also one that cannot be trusted any more.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(64);
    // What operators keep in tables of their own neither fails a write of ours nor goes with it.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false)?;
    // Statement journals must not need space, which may be what has run out.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    Ok(connection)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // The writer checkpoints by itself: SQLite would hide from us that an automatic checkpoint failed.
    connection.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))?;
    connection.pragma_update_and_check(None, "journal_size_limit", LOG_KEPT, |_| Ok(()))?;
    connection.pragma_update(None, "cache_size", -(16 << 10))
}

fn migrate(connection: &mut Connection, migration: &str, format: u32) -> rusqlite::Result<()> {
    // A table that is made anew is renamed first: what an operator has made that names it must go on naming it.
    connection.pragma_update(None, "legacy_alter_table", true)?;
    let transaction = connection.transaction()?;
    let others = operators(&transaction, format - 1)?;
    transaction.execute_batch(migration)?;
    for (name, sql) in others {
        let gone = "SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = ?1)";
        if transaction.query_row(gone, [&name], |row| row.get(0))?
            && let Err(error) = transaction.execute_batch(&sql)
        {
            tracing::warn!(name, sql, %error, "an index or trigger that is not the gateway's could not be made again");
        }
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", format)?;
    transaction.commit()?;
    connection.pragma_update(None, "legacy_alter_table", false)
}

/// The indexes and triggers that an operator has put beside the tables of `format`: they go with a table that is made
/// anew.
fn operators(connection: &Connection, format: u32) -> rusqlite::Result<Vec<(String, String)>> {
    let known = model(format)?;
    let names = known
        .prepare("SELECT name FROM sqlite_schema")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<Vec<String>>>()?;
    let mut select = connection.prepare(
        "SELECT name, sql FROM sqlite_schema WHERE type IN ('index', 'trigger') AND sql IS NOT NULL",
    )?;
    let found = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let found = found.collect::<rusqlite::Result<Vec<(String, String)>>>()?;
    Ok(found.into_iter().filter(|(name, _)| !names.contains(name)).collect())
}

/// When the previous process ended after a failed fsync, the log may hold commits that the page cache shows and the
/// disk has not got, and no later fsync of the log would tell. Written anew, they are on disk before the first of them
/// is copied into the database: a power cut in the middle of that would leave half of a commit there, and nothing in the
/// log to complete it.
fn rewrite_log(connection: &Connection, file: &Path) -> Result<(), OpenError> {
    connection.busy_timeout(OPEN_TIMEOUT).map_err(|error| failure(file, error))?;
    // Nobody else may append meanwhile, neither we ourselves.
    let held = Transaction::new_unchecked(connection, TransactionBehavior::Immediate);
    let held = held.map_err(|error| failure(file, error))?;
    space::rewrite(&beside(file, "-wal"))
        .map_err(|source| OpenError::Log { file: file.to_owned(), source })?;
    held.rollback().map_err(|error| failure(file, error))
}

/// Copies the log into the database. False when another program kept us from it: the log must not be trusted then.
fn verify_durable(connection: &Connection, mode: &str, patience: Duration) -> rusqlite::Result<bool> {
    connection.busy_timeout(patience)?;
    let checkpoint = format!("PRAGMA wal_checkpoint({mode})");
    let (busy, pages): (bool, i64) =
        connection.query_row(&checkpoint, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    // When the switch to the log fails, SQLite says `wal` and goes on with a rollback journal, of whose removal, which is
    // the commit, nobody makes sure that it is on disk. Only then is there no log to count the pages of.
    if pages < 0 && !busy {
        let why = "the database cannot be given a write-ahead log".to_owned();
        return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_IOERR), Some(why)));
    }
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(!busy)
}

pub(super) fn failure(file: &Path, error: rusqlite::Error) -> OpenError {
    let file = PathBuf::from(file);
    match error.sqlite_error_code() {
        _ if verdict::is_file_damage(&error) => OpenError::Damaged { file, source: error },
        Some(ErrorCode::DatabaseBusy) => OpenError::Busy { file },
        Some(ErrorCode::DiskFull) => OpenError::Full { file, source: error },
        Some(ErrorCode::SystemIoFailure)
            if error.sqlite_extended_error_code() == Some(ffi::SQLITE_IOERR_SHMSIZE)
                || space::probe(&file).is_err_and(|error| space::is_want_of_room(&error)) =>
        {
            OpenError::Full { file, source: error }
        }
        _ => OpenError::Sqlite { file, source: error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With an operator's `sqlite3` in the middle of a read, nothing had been copied and nobody had noticed.
    #[test]
    fn a_log_that_somebody_reads_is_not_taken_for_copied() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("countersign.db");
        let connection = open_writer(&file).unwrap();
        let operator = Connection::open(&file).unwrap();
        operator.execute_batch("BEGIN; SELECT count(*) FROM claim").unwrap();
        connection.execute_batch("CREATE TABLE more (x)").unwrap();
        assert!(!verify_durable(&connection, "TRUNCATE", Duration::ZERO).unwrap());
        operator.execute_batch("COMMIT").unwrap();
        assert!(verify_durable(&connection, "TRUNCATE", Duration::ZERO).unwrap());
    }

    /// SQLite says `wal` and goes on with a rollback journal when there cannot be a log.
    #[test]
    fn a_database_without_a_log_is_not_relied_on() {
        let root = tempfile::tempdir().unwrap();
        let connection = connect(&root.path().join("countersign.db")).unwrap();
        let error = verify_durable(&connection, "TRUNCATE", Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("write-ahead log"), "{error}");
    }

    /// What a failed fsync kept from the disk, no later one brings there, unless it is written once more.
    #[test]
    fn a_log_that_was_left_is_written_anew() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("countersign.db");
        let connection = open_writer(&file).unwrap();
        connection.execute_batch("CREATE TABLE more (x)").unwrap();
        let log = File::options().write(true).open(beside(&file, "-wal")).unwrap();
        let (bytes, before) = (std::fs::read(beside(&file, "-wal")).unwrap(), std::time::UNIX_EPOCH);
        log.set_modified(before).unwrap();
        rewrite_log(&connection, &file).unwrap();
        assert_ne!(log.metadata().unwrap().modified().unwrap(), before);
        assert_eq!(std::fs::read(beside(&file, "-wal")).unwrap(), bytes);
        connection.execute_batch("CREATE TABLE further (x)").unwrap();
    }

    /// A full disk and a lock pass, and what is damaged is salvaged: each wants something else of an operator.
    #[test]
    fn a_start_that_fails_says_whether_waiting_helps() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("countersign.db");
        let failed = |code| failure(&file, rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
        assert!(matches!(failed(ffi::SQLITE_BUSY), OpenError::Busy { .. }));
        assert!(matches!(failed(ffi::SQLITE_CORRUPT), OpenError::Damaged { .. }));
        for code in [ffi::SQLITE_FULL, ffi::SQLITE_IOERR_SHMSIZE] {
            assert!(matches!(failed(code), OpenError::Full { .. }), "{code}");
        }
        for code in [ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_CANTOPEN] {
            assert!(matches!(failed(code), OpenError::Sqlite { .. }), "{code}");
        }
        // What SQLite takes for a broken disk, and the operating system, when it is asked, for a quota that is used up.
        std::os::unix::fs::symlink("/dev/full", root.path().join("probe")).unwrap();
        assert!(matches!(failed(ffi::SQLITE_IOERR_WRITE), OpenError::Full { .. }));
    }

    /// What an operator has changed is left alone, what is damaged is salvaged, and what is not ours is not touched.
    #[test]
    fn a_database_is_judged_by_its_header_and_its_schema() {
        let judged = |change: &str| {
            let root = tempfile::tempdir().unwrap();
            let file = root.path().join("countersign.db");
            let connection = create(&file).unwrap();
            if change.starts_with("UPDATE sqlite_schema") {
                connection.pragma_update(None, "writable_schema", true).unwrap();
            }
            connection.execute_batch(change).unwrap();
            match identify(&connection, &file) {
                Ok(format) => format!("format {format}"),
                Err(error) => format!("{error:?}"),
            }
        };
        for (change, expected) in [
            ("", "format 3"),
            ("CREATE TABLE theirs (x)", "format 3"),
            ("ALTER TABLE claim ADD COLUMN theirs TEXT", "Altered"),
            ("DROP INDEX claim_expiry", "Altered"),
            (
                "UPDATE sqlite_schema SET name = 'lost' WHERE name = 'claim_expiry'",
                "not the one that was made",
            ),
            ("UPDATE sqlite_schema SET rootpage = 5 WHERE name IN ('claim', 'attempt')", "on one page"),
            ("PRAGMA application_id = 7", "not the one that was written"),
            ("PRAGMA user_version = 70000", "not the one that was written"),
            ("PRAGMA user_version = 4", "Newer"),
            ("PRAGMA application_id = 7; DROP TABLE claim", "Foreign"),
        ] {
            let judged = judged(change);
            assert!(judged.contains(expected), "{change}: {judged}");
        }
    }
}
