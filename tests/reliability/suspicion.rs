//! What is taken for damage and is none, and what a salvage leaves alone: a sound store is not salvaged on suspicion, and
//! nothing valid is thrown away.

use std::fs;
use std::path::Path;
use std::time::Duration;

use countersign::clock::later;
use countersign::forward::Progress;
use countersign::metrics::Metrics;
use countersign::store::sqlite::{self, OpenError, Sqlite};
use countersign::store::{Accepted, Store as _};

use crate::corrupt::{body, listen, open, overwrite, store};
use crate::store_support::{Draft, at, draft, settlement};

/// Whether a start over `directory` has salvaged it, and what it has counted.
async fn start_over(directory: &Path) -> (bool, u64) {
    let metrics = Metrics::new();
    open(directory, &metrics).unwrap().close().await;
    (directory.join("damaged-1").exists(), metrics.store_corrupt_rows.get())
}

/// The map of memory is written back when the kernel likes: a power cut after a stop may leave the empty log beside a
/// map of the middle of the run. It was taken for four commits that are cut off, and the sound store was salvaged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_map_of_memory_beside_an_empty_log_does_not_salvage_a_sound_store() {
    let (stored, older) = (store(20, true).await, store(20, false).await);
    let directory = stored.root.path();
    let shared = |name: &Path| name.join("countersign.db-shm");
    fs::copy(shared(older.root.path()), shared(directory)).unwrap();
    assert_eq!(fs::metadata(directory.join("countersign.db-wal")).map_or(0, |log| log.len()), 0);
    // It is said, since a log that somebody removed looks the same.
    assert_eq!(start_over(directory).await, (false, 1));
    assert_eq!(start_over(directory).await, (false, 0));
}

/// A page that came damaged through memory, once, left a mark that was believed: a sound store was salvaged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_of_damage_on_a_sound_store_is_dropped() {
    let stored = store(20, true).await;
    let directory = stored.root.path();
    fs::write(directory.join("damage"), "database disk image is malformed").unwrap();
    assert_eq!(start_over(directory).await, (false, 0));
    assert!(!directory.join("damage").exists());
}

const DAY: i64 = 86_400;

/// Accepts a delivery at that second, whose claim holds for so many days, and delivers or kills its forwards.
async fn accept_and_settle(
    store: &Sqlite,
    (source, id, second): (&'static str, &'static str, i64),
    days: u64,
    to: &[(&'static str, Progress)],
) {
    let to_names = to.iter().map(|(name, _)| *name).collect();
    let draft = Draft { source, received_at: at(second), to: to_names, body: id.into(), ..draft(id) };
    let mut arrival = draft.arrival();
    arrival.claimed_until = later(at(second), Duration::from_hours(days * 24));
    assert!(matches!(store.accept(arrival).await, Ok(Accepted::Stored)), "{id}");
    for (lane, progress) in to {
        for lease in store.lease(lane, 1, at(second)).await.unwrap() {
            store.settle(settlement(&lease, *progress, None)).await.unwrap();
        }
    }
}

/// Damages what salvages whatever else there is, and loses nothing.
fn damage(directory: &Path) {
    overwrite(&directory.join("countersign.db"), 21, &[65]);
}

/// Of a delivery that has a dead letter the delivered forward stays for ever. By it, claims whose deliveries retention
/// had removed were taken for what is left of lost ones, and removed: what came again was forwarded again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_outlive_the_salvage_of_a_store_whose_deliveries_were_removed() {
    listen();
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), &Metrics::new()).unwrap();
    let half = [("billing", Progress::Delivered), ("ledger", Progress::Dead)];
    accept_and_settle(&store, ("first", "evt_old", 0), 7, &half).await;
    let ids: Vec<&'static str> = (0..50).map(|number| &*format!("evt_gone_{number}").leak()).collect();
    for id in &ids {
        accept_and_settle(&store, ("first", id, DAY), 7, &half[..1]).await;
    }
    assert_eq!(store.sweep(at(3 * DAY), Duration::from_hours(24)).await.unwrap().deliveries, 50);
    store.close().await;
    damage(root.path());
    assert_eq!(start_over(root.path()).await, (true, 0), "nothing is lost");
    let store = open(root.path(), &Metrics::new()).unwrap();
    for id in ids {
        let again = Draft { source: "first", received_at: at(3 * DAY), body: id.into(), ..draft(id) };
        let answer = store.accept(again.arrival()).await;
        assert!(matches!(answer, Ok(Accepted::Duplicate { conflict: false, .. })), "{id}: {answer:?}");
    }
    store.close().await;
}

/// Claims are made anew for as long as those of their source hold: a claim that had expired was back for seven days,
/// and what came under its id was acknowledged and not stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_has_expired_is_not_made_anew() {
    listen();
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), &Metrics::new()).unwrap();
    let delivered = [("billing", Progress::Delivered)];
    accept_and_settle(&store, ("first", "evt_old", 0), 1, &delivered).await;
    accept_and_settle(&store, ("first", "evt_lost_claim", 4 * DAY), 1, &delivered).await;
    accept_and_settle(&store, ("first", "evt_new", 4 * DAY), 1, &delivered).await;
    store.close().await;
    let connection = rusqlite::Connection::open(root.path().join("countersign.db")).unwrap();
    let gone = "DELETE FROM claim WHERE delivery IN (SELECT id FROM delivery WHERE delivery_id <> 'evt_new')";
    connection.execute(gone, []).unwrap();
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    // Nothing of them on a page either.
    drop(connection);
    damage(root.path());
    assert_eq!(start_over(root.path()).await, (true, 1), "one is made anew");
    let connection = rusqlite::Connection::open(root.path().join("countersign.db")).unwrap();
    let sql = "SELECT delivery_id, expires_at FROM claim JOIN delivery ON id = delivery ORDER BY delivery_id";
    let mut select = connection.prepare(sql).unwrap();
    let left = select.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))).unwrap();
    let left: Vec<_> = left.map(Result::unwrap).collect();
    let until = at(5 * DAY).as_millisecond();
    assert_eq!(left, [("evt_lost_claim".to_owned(), until), ("evt_new".to_owned(), until)]);
}

/// An operator's column was taken for damage, and what had been acknowledged with it was a dead letter after the salvage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_altered_table_is_refused_and_its_rows_can_be_salvaged() {
    let stored = store(20, true).await;
    let directory = stored.root.path();
    let store = open(directory, &Metrics::new()).unwrap();
    let connection = rusqlite::Connection::open(directory.join("countersign.db")).unwrap();
    connection
        .execute_batch("ALTER TABLE delivery ADD COLUMN note TEXT; ALTER TABLE forward ADD COLUMN note TEXT")
        .unwrap();
    let (id, bytes) = ("evt_altered", body(7));
    let arrival = Draft { source: "first", body: bytes.clone(), to: vec!["billing"], ..draft(id) }.arrival();
    store.accept(arrival).await.unwrap();
    drop(connection);
    store.close().await;
    let refused = open(directory, &Metrics::new()).unwrap_err();
    assert!(matches!(refused, OpenError::Altered { .. }), "{refused:?}");
    assert!(refused.to_string().contains("altered") && !directory.join("damaged-1").exists(), "{refused}");
    let salvaged = sqlite::salvage(directory).unwrap().unwrap();
    let expected = stored.bodies.len() as u64 + 1;
    assert_eq!((salvaged.deliveries, salvaged.findings), (expected, vec![]));
    open(directory, &Metrics::new()).unwrap().close().await;
}

/// What an operator does with `sqlite3` in a sound store is no damage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_operators_change_is_not_salvaged() {
    let (added, mapped) = (
        "INSERT INTO forward SELECT delivery, 'by_hand', state, due_at, attempts, pending_since, replay, settled_at,
             last_outcome, waited FROM forward LIMIT 1",
        "PRAGMA journal_mode = DELETE; PRAGMA auto_vacuum = FULL; VACUUM",
    );
    for change in [added, mapped] {
        let stored = store(20, true).await;
        let connection = rusqlite::Connection::open(stored.root.path().join("countersign.db")).unwrap();
        connection.execute_batch(change).unwrap();
        drop(connection);
        assert_eq!(start_over(stored.root.path()).await, (false, 0), "{change}");
        assert!(sqlite::check(stored.root.path()).unwrap().is_sound(), "{change}");
    }
}

/// What a salvage without room had left took the room of the next, and a report of one that came to nothing was told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_salvage_that_fails_leaves_nothing_behind() {
    let stored = store(20, true).await;
    let directory = stored.root.path();
    let names = ["countersign.db-unfinished", "countersign.db-unfinished-journal"];
    for name in names {
        fs::write(directory.join(name), [7; 4_096]).unwrap();
    }
    fs::write(directory.join("countersign.db"), [7; 40_960]).unwrap();
    let refused = open(directory, &Metrics::new()).unwrap_err();
    assert!(matches!(refused, OpenError::Salvage { .. } | OpenError::Foreign { .. }), "{refused:?}");
    for name in names {
        assert!(!directory.join(name).exists(), "{name}");
    }

    // As one leaves it that was interrupted before the new database had its name.
    let sound = store(20, true).await;
    let report = r#"{"deliveries":1,"pending":1,"claims":1,"damaged":"damaged-1",
        "findings":[{"delivery":null,"what":"never was","lost":true}]}"#;
    fs::write(sound.root.path().join("salvaged.json"), report).unwrap();
    assert_eq!(start_over(sound.root.path()).await, (false, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_store_has_lost_nothing() {
    let stored = store(0, true).await;
    damage(stored.root.path());
    let salvaged = sqlite::salvage(stored.root.path()).unwrap().unwrap();
    assert_eq!((salvaged.deliveries, salvaged.findings), (0, vec![]));
}
