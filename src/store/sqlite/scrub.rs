//! Reads what nobody asks for: damage in a store that is too large to be read whole at the start is to be found before
//! somebody needs what it hit. A thread goes through the store in short steps, most of its time asleep, so that neither
//! commits nor the copying of the log wait for it. What contradicts itself has the next start salvage the store.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, params};
use tokio::time::Instant;

use super::health::Health;
use super::row::{self, LoadError};
use super::salvage::Finding;
use super::{schema, verdict};
use crate::id::Id;

/// How often the whole store is read.
pub(super) const EVERY: Duration = Duration::from_hours(24);
/// Of which a step takes so many forwards, and so many deliveries: a few milliseconds.
const FORWARDS: i64 = 256;
const DELIVERIES: i64 = 16;
/// For each second of reading so many of sleep.
const REST: u32 = 9;

/// Starts the thread: its first pass after `first`, then one a day, until the sender is dropped. Deliveries that are
/// damaged are told to `report`; what is more than that latches.
pub(super) fn start(
    health: Arc<Health>,
    first: Duration,
    report: impl Fn(&[Finding]) + Send + 'static,
) -> io::Result<Sender<Infallible>> {
    let (owner, ended) = channel();
    thread::Builder::new().name("store-scrub".to_owned()).spawn(move || {
        let mut pause = first;
        while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) && health.ended().is_none() {
            match pass(health.file(), &ended, &report) {
                Ok(()) => tracing::debug!("store read"),
                Err(error) if verdict::is_damage(&error) => {
                    health.latch_damaged(&error.to_string());
                }
                Err(error) => tracing::warn!(%error, "store not read to its end"),
            }
            pause = EVERY;
        }
    })?;
    Ok(owner)
}

/// Reads the whole store once; damage that is not a single delivery's is the error.
fn pass(file: &Path, ended: &Receiver<Infallible>, report: impl Fn(&[Finding])) -> rusqlite::Result<()> {
    let connection = schema::open_reader(file)?;
    let mut stage = Some(Stage::Listed(None));
    while let Some(next) = stage {
        let started = Instant::now();
        // One state of the store for what a step compares.
        let transaction = connection.unchecked_transaction()?;
        stage = match next {
            Stage::Listed(after) => listed(&transaction, after)?,
            Stage::Forwards(after) => forwards(&transaction, after)?,
            Stage::Deliveries(after) => deliveries(&transaction, after, &report)?,
        };
        drop(transaction);
        if ended.recv_timeout(started.elapsed() * REST) != Err(RecvTimeoutError::Timeout) {
            return Ok(());
        }
    }
    Ok(())
}

/// What a step reads, from where on. What is pending first.
enum Stage {
    /// The index of what is pending: destination, state, due time, delivery.
    Listed(Option<(String, String, i64, Vec<u8>)>),
    /// Forwards, by their key.
    Forwards(Option<(Vec<u8>, String)>),
    /// Deliveries, by their row.
    Deliveries(i64),
}

fn listed(
    connection: &Connection,
    after: Option<(String, String, i64, Vec<u8>)>,
) -> rusqlite::Result<Option<Stage>> {
    let (destination, state, due_at, delivery) = after.unwrap_or_default();
    let mut select = connection.prepare_cached(
        "SELECT destination, state, due_at, delivery,
             EXISTS (SELECT 1 FROM forward AS own NOT INDEXED
                 WHERE own.delivery = entry.delivery AND own.destination = entry.destination
                     AND +own.state = entry.state AND +own.due_at = entry.due_at)
         FROM forward AS entry INDEXED BY forward_pending
         WHERE settled_at IS NULL AND (destination, state, due_at, delivery) > (?1, ?2, ?3, ?4)
         ORDER BY destination, state, due_at, delivery LIMIT ?5",
    )?;
    let mut rows = select.query(params![destination, state, due_at, delivery, FORWARDS])?;
    let mut last = None;
    while let Some(row) = rows.next()? {
        if !row.get::<_, bool>(4)? {
            return Err(verdict::corrupt(verdict::NOT_IN_TABLE));
        }
        last = Some((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
    }
    Ok(Some(last.map_or(Stage::Forwards(None), |last| Stage::Listed(Some(last)))))
}

fn forwards(connection: &Connection, after: Option<(Vec<u8>, String)>) -> rusqlite::Result<Option<Stage>> {
    let (delivery, destination) = after.unwrap_or_default();
    let mut select = connection.prepare_cached(
        "SELECT delivery, destination,
             settled_at IS NOT NULL OR EXISTS (SELECT 1 FROM forward AS entry INDEXED BY forward_pending
                 WHERE entry.settled_at IS NULL AND entry.destination = own.destination
                     AND entry.state = own.state AND entry.due_at = own.due_at AND entry.delivery = own.delivery)
         FROM forward AS own NOT INDEXED
         WHERE (delivery, destination) > (?1, ?2) ORDER BY delivery, destination LIMIT ?3",
    )?;
    let mut rows = select.query(params![delivery, destination, FORWARDS])?;
    let mut last = None;
    while let Some(row) = rows.next()? {
        if !row.get::<_, bool>(2)? {
            return Err(verdict::corrupt("a forward that waits is not in its index"));
        }
        last = Some((row.get(0)?, row.get(1)?));
    }
    Ok(Some(last.map_or(Stage::Deliveries(i64::MIN), |last| Stage::Forwards(Some(last)))))
}

fn deliveries(
    connection: &Connection,
    after: i64,
    report: impl Fn(&[Finding]),
) -> rusqlite::Result<Option<Stage>> {
    let mut select = connection.prepare_cached(
        "SELECT rowid, id, forwards > (SELECT count(*) FROM forward WHERE delivery = id)
         FROM delivery NOT INDEXED WHERE rowid > ?1 ORDER BY rowid LIMIT ?2",
    )?;
    let mut rows = select.query([after, DELIVERIES])?;
    let mut last = None;
    while let Some(row) = rows.next()? {
        let id = Id::from_bytes(row.get(1)?);
        if row.get(2)? {
            return Err(verdict::corrupt(verdict::OTHER_FORWARDS));
        }
        match row::load(connection, id) {
            Ok(Some(_)) => {}
            Ok(None) => return Err(verdict::corrupt(verdict::MISPLACED)),
            Err(LoadError::Damaged(what)) => report(&[Finding { delivery: Some(id), what, lost: true }]),
            Err(LoadError::Unreadable(what)) => report(&[Finding { delivery: Some(id), what, lost: false }]),
            Err(LoadError::Sqlite(error)) => return Err(error),
        }
        last = Some(row.get(0)?);
    }
    Ok(last.map(Stage::Deliveries))
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::store::sqlite::salvage;
    use crate::store::sqlite::space::Ballast;

    /// Reads a store of 600 forwards after `damage` has been done to it, of which SQLite does not know.
    fn check(damage: &str, expected: Option<&str>) {
        assert_eq!(findings(damage, expected), 0);
    }

    /// How many deliveries are told of.
    fn findings(damage: &str, expected: Option<&str>) -> usize {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("countersign.db");
        let connection = schema::open_writer(&file).unwrap();
        connection
            .execute_batch(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 600)
                 INSERT INTO forward (delivery, destination, state, due_at, attempts, pending_since, replay)
                 SELECT unhex(printf('%032x', i)), 'lane', 'waiting', 1000 + i, 0, 1000, 0 FROM n",
            )
            .unwrap();
        drop(connection);
        // As a table of its own the index takes what nobody else would put into it.
        let connection = Connection::open(&file).unwrap();
        connection.execute_batch(damage).unwrap();
        drop(connection);
        let found = Mutex::new(0);
        let (_owner, ended) = channel();
        let passed = pass(&file, &ended, |findings| *found.lock().unwrap() += findings.len());
        assert_eq!(passed.err().map(|error| error.to_string()), expected.map(str::to_owned), "{damage}");
        found.into_inner().unwrap()
    }

    /// Does `sql` to the table of forwards, and leaves the index of what is pending as it was.
    pub(in crate::store::sqlite) fn beside_the_index(sql: &str) -> String {
        let change = |from: &str, to: &str| {
            format!(
                "PRAGMA writable_schema = 1;
                 UPDATE sqlite_schema SET sql = replace(sql, 'WHERE {from}', 'WHERE {to}') WHERE name = 'forward_pending';
                 PRAGMA writable_schema = RESET;"
            )
        };
        let (entry, never) = ("settled_at IS NULL", "attempts > 5");
        [change(entry, never), sql.to_owned(), change(never, entry)].concat()
    }

    /// Due times that had flipped into the far future, or in the index only, were never due, and nobody was told.
    #[test]
    fn an_index_that_contradicts_its_table_is_found() {
        check("", None);
        let deleted = "DELETE FROM forward WHERE due_at = 1500;";
        check(&beside_the_index(deleted), Some(verdict::NOT_IN_TABLE));
        let moved =
            "INSERT INTO forward VALUES (zeroblob(16), 'lane', 'waiting', 7, 0, 7, 0, NULL, NULL, 0);";
        check(&beside_the_index(moved), Some("a forward that waits is not in its index"));
    }

    /// More than it had are an operator's.
    #[test]
    fn a_delivery_with_fewer_forwards_than_it_had_is_found() {
        let row = |forwards: u32| {
            format!(
                "INSERT INTO delivery VALUES (zeroblob(16), 's', NULL, NULL, 1, '::1', 'POST', '/', 1, 'x', NULL,
                     NULL, {forwards}, zeroblob(16), x'', x'');"
            )
        };
        check(&row(1), Some(verdict::OTHER_FORWARDS));
        let more = "INSERT INTO forward VALUES (zeroblob(16), 'lane', 'waiting', 7, 0, 7, 0, NULL, NULL, 0);";
        assert_eq!(findings(&format!("{}{more}", row(0)), None), 1, "its checksum is none");
    }

    /// What the thread makes of the store once it has read it: why it is latched, and what the next start is told.
    fn scrubbed(prepare: impl Fn(&Path), has_passed: impl Fn(&Path, &Health) -> bool) -> [Option<String>; 2] {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("countersign.db");
        prepare(&file);
        let health = Arc::new(Health::new(file.clone(), Some(0), Ballast::find(root.path())));
        let owner = start(Arc::clone(&health), Duration::ZERO, |_| {}).unwrap();
        while !has_passed(&file, &health) {
            thread::yield_now();
        }
        drop(owner);
        while Arc::strong_count(&health) > 1 {
            thread::yield_now();
        }
        [health.latched().map(|latched| latched.to_string()), salvage::marked(root.path())]
    }

    #[test]
    fn what_the_scrub_finds_has_the_next_start_salvage_and_nothing_else_does() {
        let damaged = |file: &Path| {
            let connection = schema::open_writer(file).unwrap();
            let forward =
                "INSERT INTO forward VALUES (zeroblob(16), 'a', 'waiting', 7, 0, 7, 0, NULL, NULL, 0);";
            let gone = beside_the_index("DELETE FROM forward WHERE due_at = 7;");
            connection.execute_batch(&format!("{forward}{gone}")).unwrap();
        };
        let [latched, marked] = scrubbed(damaged, |_, health| health.latched().is_some());
        assert!(latched.unwrap().contains("the next start salvages"));
        assert!(marked.unwrap().contains(verdict::NOT_IN_TABLE));
        // It has no tables: it cannot be read, and is not damaged.
        let [latched, marked] = scrubbed(|_| {}, |file, _| file.exists());
        assert_eq!((latched, marked), (None, None));
    }
}
