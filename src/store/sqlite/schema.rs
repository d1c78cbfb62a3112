//! Opens the database file: tells our file from others and from damage, brings older formats up to date, and sets how
//! each connection works.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::OpenError;

/// "CsGn": `file(1)` and our own check tell the database from any other by it.
const APPLICATION_ID: i32 = 0x4373_476e;

/// The format that this version writes.
const FORMAT: u32 = 1;

/// What leads from each format to the next, from an empty file (0) on.
const MIGRATIONS: [&str; FORMAT as usize] = [include_str!("format-1.sql")];

/// For how long an operator's `sqlite3` may hold the write lock before a commit is refused: well below any ack deadline.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);

/// For how long it may hold up the start, with a read that lasts, before the start is given up.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// The writer's connection, to a database of the current format of which everything is known to be on disk.
pub(super) fn open_writer(file: &Path) -> Result<Connection, OpenError> {
    let failed = |error| failure(file, error);
    let mut connection = connect(file).map_err(failed)?;

    let application: i32 =
        connection.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(failed)?;
    let tables: u32 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(failed)?;
    let fresh = application == 0 && tables == 0;
    if !fresh && application != APPLICATION_ID {
        return Err(OpenError::Foreign { file: file.to_owned() });
    }
    let format = format_of(&connection, file)?;

    configure(&connection).map_err(failed)?;
    for (next, migration) in (1..).zip(MIGRATIONS).skip(format as usize) {
        migrate(&mut connection, migration, next).map_err(failed)?;
    }
    if !verify_durable(&connection, OPEN_TIMEOUT).map_err(failed)? {
        return Err(OpenError::Busy { file: file.to_owned() });
    }
    Ok(connection)
}

/// Refuses the format of a database that another process has open, when it is newer.
pub(super) fn check_format(file: &Path) -> Result<(), OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags).map_err(|error| failure(file, error))?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(|error| failure(file, error))?;
    format_of(&connection, file).map(|_| ())
}

fn format_of(connection: &Connection, file: &Path) -> Result<u32, OpenError> {
    let format = connection.pragma_query_value(None, "user_version", |row| row.get(0));
    match format.map_err(|error| failure(file, error))? {
        newer if newer > FORMAT => {
            Err(OpenError::Newer { file: file.to_owned(), found: newer, known: FORMAT })
        }
        format => Ok(format),
    }
}

/// A connection that only reads.
pub(super) fn open_reader(file: &Path) -> Result<Connection, OpenError> {
    let open = || {
        let connection = connect(file)?;
        connection.pragma_update(None, "query_only", true)?;
        Ok(connection)
    };
    open().map_err(|error| failure(file, error))
}

fn connect(file: &Path) -> rusqlite::Result<Connection> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(64);
    // Statement journals must not need space, which may be what has run out.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    Ok(connection)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // The writer checkpoints by itself: SQLite would hide from us that an automatic checkpoint failed.
    connection.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))?;
    connection.pragma_update_and_check(None, "journal_size_limit", 64 << 20, |_| Ok(()))?;
    connection.pragma_update(None, "cache_size", -(16 << 10))
}

fn migrate(connection: &mut Connection, migration: &str, format: u32) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute_batch(migration)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", format)?;
    transaction.commit()
}

/// When the previous process ended after a failed fsync, the log may hold commits that the page cache shows and the
/// disk has not got, and no later fsync of the log would tell. Copying them into the database writes them anew. False
/// when another program kept us from it: the log must not be trusted then.
fn verify_durable(connection: &Connection, patience: Duration) -> rusqlite::Result<bool> {
    connection.busy_timeout(patience)?;
    let busy: bool = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(!busy)
}

/// Makes an index anew from its table, or all of them when none is named. Forwards whose state is none, which no lane
/// would ever ask for, become dead letters.
pub(super) fn rebuild(connection: &Connection, index: &str) -> rusqlite::Result<()> {
    let transaction = connection.unchecked_transaction()?;
    transaction.execute_batch(&format!(
        "REINDEX {index};
         UPDATE forward INDEXED BY forward_pending
         SET state = 'dead', settled_at = due_at, last_outcome = 'corrupt'
         WHERE settled_at IS NULL AND state NOT IN ('waiting', 'in_flight')"
    ))?;
    transaction.commit()
}

pub(super) fn failure(file: &Path, error: rusqlite::Error) -> OpenError {
    let file = PathBuf::from(file);
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            OpenError::Damaged { file, source: error }
        }
        Some(ErrorCode::DatabaseBusy) => OpenError::Busy { file },
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
        assert!(!verify_durable(&connection, Duration::ZERO).unwrap());
        operator.execute_batch("COMMIT").unwrap();
        assert!(verify_durable(&connection, Duration::ZERO).unwrap());
    }
}
