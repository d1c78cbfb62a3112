//! Damage on the disk: bits that flip and files that are cut off, in the database and in its log. No wrong body is ever
//! forwarded, whatever is intact is delivered, and what is lost is named in the log and counted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use countersign::clock::Timestamp;
use countersign::forward::Progress;
use countersign::id::Id;
use countersign::metrics::Metrics;
use countersign::store::sqlite::{self, OpenError, Options, Sqlite};
use countersign::store::{Accepted, AttemptRecord, Store};
use tempfile::TempDir;

use crate::store_support::{Draft, Lanes, at, draft, eventually, settlement};
use crate::{seed, soak};

/// What is in the store before it is damaged.
pub(crate) struct Stored {
    pub(crate) root: TempDir,
    /// The deliveries that wait, by their lane.
    waiting: BTreeMap<(Id, &'static str), Bytes>,
    pub(crate) bodies: BTreeMap<Id, Bytes>,
}

/// Everything that this process has logged. Ids are unique, so that tests do not see each other's.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Logged;

impl io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::WARN)
            .with_ansi(false)
            .with_writer(|| Logged)
            .init();
    });
}

/// What has been logged since there were so many bytes of it.
fn logged(since: usize) -> String {
    let log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
    String::from_utf8_lossy(&log[since..]).into_owned()
}

pub(crate) fn open(directory: &Path, metrics: &Metrics) -> Result<Sqlite, OpenError> {
    let options =
        Options { directory: directory.to_owned(), disk_reserve: Some(0), metrics: metrics.clone() };
    sqlite::open(options, Arc::new(Lanes::default()))
}

/// A body that a lane's delivery has: most are small, some go on over many pages.
pub(crate) fn body(number: usize) -> Bytes {
    let length = if number % 23 == 7 { 9_000 + number * 37 } else { 40 + number * 7 % 1_500 };
    let mut body = format!("{{\"number\":{number},\"filled\":\"").into_bytes();
    body.extend((0..length).map(|at| b'a' + u8::try_from((at * number + at / 7) % 26).unwrap()));
    body.extend_from_slice(b"\"}");
    Bytes::from(body)
}

/// Stores deliveries that wait, have been delivered and are dead letters, some of it already copied out of the log.
/// `clean` ends the process as SIGTERM does; otherwise the files are as SIGKILL leaves them.
pub(crate) async fn store(deliveries: usize, clean: bool) -> Stored {
    listen();
    let live = tempfile::tempdir().unwrap();
    let store = open(live.path(), &Metrics::new()).unwrap();
    let (mut waiting, mut bodies) = (BTreeMap::new(), BTreeMap::new());
    for number in 0..deliveries {
        // Where a delivery goes is decided by its source.
        let (source, to) = match number % 3 {
            0 => ("first", vec!["billing"]),
            1 => ("second", vec!["ledger"]),
            _ => ("third", vec!["billing", "ledger"]),
        };
        let id: &'static str = format!("evt_{number:06}").leak();
        let arrival =
            Draft { source, body: body(number), to: to.clone(), guarded: true, ..draft(id) }.arrival();
        let own = arrival.verified.delivery().id;
        store.accept(arrival).await.unwrap();
        bodies.insert(own, body(number));
        for lane in to {
            waiting.insert((own, lane), body(number));
            if number % 10 == 9 {
                attempt(&store, lane, &mut waiting).await;
            }
        }
        if !clean && number == deliveries / 3 {
            let connection = rusqlite::Connection::open(live.path().join("countersign.db")).unwrap();
            connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
        }
    }
    let root = tempfile::tempdir().unwrap();
    if clean {
        store.close().await;
    }
    copy(live.path(), root.path());
    store.close().await;
    Stored { root, waiting, bodies }
}

/// Leases some of what is due: every fourth is delivered, every fourth dies, every fourth waits for later, and every
/// fourth stays in flight.
async fn attempt(store: &Sqlite, lane: &'static str, waiting: &mut BTreeMap<(Id, &'static str), Bytes>) {
    for (index, lease) in store.lease(lane, 4, at(0)).await.unwrap().into_iter().enumerate() {
        let next = match index {
            0 => Progress::Delivered,
            1 => Progress::Dead,
            2 => Progress::Waiting { due_at: at(60), attempts: 1 },
            _ => continue,
        };
        if index < 2 {
            waiting.remove(&(lease.delivery.id, lane));
        }
        let record = AttemptRecord {
            started_at: at(0),
            duration: Duration::ZERO,
            outcome: "rejected",
            status: Some(503),
            detail: "no".to_owned(),
        };
        store.settle(settlement(&lease, next, Some(record))).await.unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    for name in ["countersign.db", "countersign.db-wal", "countersign.db-shm", "created"] {
        if from.join(name).exists() {
            fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }
}

/// What came of a damaged store.
#[derive(Debug, Default)]
struct Outcome {
    delivered: usize,
    lost: Vec<Id>,
    /// Of which the log says nothing.
    unnamed: Vec<Id>,
    /// Of which the log says that the delivery is lost, not only where it was to go.
    called_lost: Vec<Id>,
    counted: u64,
    /// Whether it had to be salvaged by command.
    refused: bool,
}

/// Starts over a damaged copy as an operator would, delivers all that there is, and holds it against what was stored.
async fn recover(stored: &Stored, directory: &Path, what: &str) -> Outcome {
    let metrics = Metrics::new();
    let mut outcome = Outcome::default();
    let since = LOG.lock().unwrap_or_else(PoisonError::into_inner).len();
    let store = match open(directory, &metrics) {
        Ok(store) => store,
        Err(refused) => {
            let text = format!("{refused:?} {refused}");
            let newer = matches!(refused, OpenError::Newer { .. }) && text.contains("store salvage");
            assert!(newer || text.contains("Nothing"), "{what}: {text}");
            sqlite::salvage(directory).unwrap().unwrap();
            outcome.refused = true;
            open(directory, &metrics).unwrap_or_else(|error| panic!("{what}: {error:?}"))
        }
    };
    let mut got = BTreeMap::new();
    for lane in ["billing", "ledger"] {
        loop {
            let leases = match store.lease(lane, 100, at(1_000_000)).await {
                Ok(leases) => leases,
                Err(error) => panic!("{what}: {error:?}"),
            };
            if leases.is_empty() && store.next_due(lane).await.unwrap().is_none() {
                break;
            }
            for lease in &leases {
                let id = lease.delivery.id;
                assert_eq!(stored.bodies.get(&id), Some(&lease.delivery.body), "{what}: wrong body of {id}");
                got.insert((id, lane), ());
            }
            let settled =
                leases.iter().map(|lease| store.settle(settlement(lease, Progress::Delivered, None)));
            for settled in futures_util::future::join_all(settled).await {
                settled.unwrap();
            }
        }
    }
    assert_eq!(store.fault(), None, "{what}");
    store.close().await;
    outcome.counted += metrics.store_corrupt_rows.get();
    let log = logged(since);
    for (id, lane) in stored.waiting.keys() {
        if got.contains_key(&(*id, *lane)) {
            outcome.delivered += 1;
        } else {
            outcome.lost.push(*id);
            if !log.contains(&id.to_string()) {
                outcome.unnamed.push(*id);
            }
            if log.contains(&format!("delivery=\"{id}\" lost=true error=\"it is damaged or lost")) {
                outcome.called_lost.push(*id);
            }
        }
    }
    assert!(outcome.lost.is_empty() || outcome.counted > 0, "{what}: {outcome:?}");
    // What has been salvaged is sound, and stays so.
    assert!(sqlite::check(directory).unwrap().problems.is_empty(), "{what}");
    outcome
}

/// What damage is done to: a store that has been closed, and one whose process was killed.
struct Targets {
    clean: Stored,
    killed: Stored,
}

impl Targets {
    async fn new() -> Self {
        Self { clean: store(150, true).await, killed: store(150, false).await }
    }

    /// A copy for this round, and the file in it that is to be damaged: the database after either end, or the log.
    fn copy(&self, round: usize) -> (&Stored, TempDir, &'static str) {
        let (stored, name) = match round % 3 {
            0 => (&self.clean, "countersign.db"),
            1 => (&self.killed, "countersign.db"),
            _ => (&self.killed, "countersign.db-wal"),
        };
        let directory = tempfile::tempdir().unwrap();
        copy(stored.root.path(), directory.path());
        (stored, directory, name)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flipped_bits_lose_at_most_the_row_they_hit_and_name_it() {
    let mut random = fastrand::Rng::with_seed(seed());
    let targets = Targets::new().await;
    let mut total = Outcome::default();
    for round in 0..soak(100, 5_000) {
        let (stored, directory, name) = targets.copy(round);
        let file = directory.path().join(name);
        let mut bytes = fs::read(&file).unwrap();
        let (byte, bit) = (random.usize(..bytes.len()), random.u8(..8));
        bytes[byte] ^= 1 << bit;
        fs::write(&file, bytes).unwrap();
        let what = format!("round {round}: bit {bit} of byte {byte} of {name} (clean: {})", round % 3 == 0);
        let outcome = recover(stored, directory.path(), &what).await;
        assert!(outcome.unnamed.is_empty(), "{what}: {outcome:?}");
        assert!(outcome.lost.len() <= 2, "{what}: {outcome:?}");
        total.delivered += outcome.delivered;
        total.lost.extend(outcome.lost);
        total.counted += outcome.counted;
    }
    println!("{} delivered, {} lost and named", total.delivered, total.lost.len());
}

/// One in the number of the format kept a gateway from starting, and so did one in the text of a table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_of_the_header_or_the_schema_keeps_no_store_from_opening() {
    let mut random = fastrand::Rng::with_seed(seed());
    let stored = store(3, true).await;
    let whole = fs::read(stored.root.path().join("countersign.db")).unwrap();
    // The upper half of the number of the format (the lower one may be a newer version's), and anything else.
    let format = 60 * 8..62 * 8;
    let others = std::iter::repeat_with(|| random.usize(..4_096 * 8)).take(soak(60, 4_000));
    for bit in format.chain(others) {
        let directory = tempfile::tempdir().unwrap();
        copy(stored.root.path(), directory.path());
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(directory.path().join("countersign.db"), bytes).unwrap();
        let what = format!("bit {} of byte {}", bit % 8, bit / 8);
        let outcome = recover(&stored, directory.path(), &what).await;
        assert_eq!(outcome.lost, [], "{what}");
        assert!(!outcome.refused || (62..64).contains(&(bit / 8)), "{what}: refused");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_cut_off_lose_only_what_stood_behind_the_cut() {
    let mut random = fastrand::Rng::with_seed(seed());
    let targets = Targets::new().await;
    let (mut delivered, mut lost, mut unnamed, mut called_lost) = (0, 0, 0, 0);
    for round in 0..soak(20, 500) {
        let (stored, directory, name) = targets.copy(round);
        let file = directory.path().join(name);
        let whole = fs::metadata(&file).unwrap().len();
        let length = if round < 3 { 0 } else { random.u64(..whole) };
        fs::File::options().write(true).open(&file).unwrap().set_len(length).unwrap();
        let mut left = BTreeSet::new();
        for name in ["countersign.db", "countersign.db-wal"] {
            left.extend(bodies_in(&fs::read(directory.path().join(name)).unwrap_or_default()));
        }
        let what = format!("round {round}: {name} cut off at {length} of {whole}");
        let outcome = recover(stored, directory.path(), &what).await;
        // What something still asks for is not called lost where all of it stands in one piece. (Where nothing asks,
        // it may be the remains of a row that has moved or been removed.)
        let missed: Vec<_> =
            outcome.called_lost.iter().filter(|id| left.contains(&stored.bodies[*id])).collect();
        assert!(missed.is_empty(), "{what}: {missed:?} are intact; {outcome:?}");
        delivered += outcome.delivered;
        lost += outcome.lost.len();
        unnamed += outcome.unnamed.len();
        called_lost += outcome.called_lost.len();
    }
    assert!(called_lost > 0, "the log is not read as it is written");
    println!("{delivered} delivered, {lost} lost, of which {unnamed} stood nowhere else");
}

/// The bodies that stand in a file in one piece.
fn bodies_in(file: &[u8]) -> Vec<Bytes> {
    let start: &[u8] = b"{\"number\":";
    let starts = file.windows(start.len()).enumerate().filter(|(_, window)| *window == start);
    let number = |at: usize| {
        let digits = file[at + start.len()..].iter().take_while(|byte| byte.is_ascii_digit());
        digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'))
    };
    let bodies = starts.map(|(at, _)| (at, body(number(at) % 1_000_000)));
    bodies.filter(|(at, body)| file[*at..].starts_with(body)).map(|(_, body)| body).collect()
}

/// What a power cut leaves of a transaction that had not been fsynced was promised to nobody. Where the processes that
/// used the log have left word of what they had promised, it is told from damage; without it, by what follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_a_power_cut_tore_is_no_damage() {
    let mut random = fastrand::Rng::with_seed(seed());
    let stored = store(40, false).await;
    let whole = fs::metadata(stored.root.path().join("countersign.db-wal")).unwrap().len();
    for round in 0..10 {
        let directory = tempfile::tempdir().unwrap();
        copy(stored.root.path(), directory.path());
        fs::remove_file(directory.path().join("countersign.db-shm")).unwrap();
        let log = directory.path().join("countersign.db-wal");
        let length = random.u64(..whole);
        fs::File::options().write(true).open(&log).unwrap().set_len(length).unwrap();
        if round % 2 == 0 && length > 10_000 {
            // A page of the last transaction that never came to the disk, before others that did.
            overwrite(&log, 32 + (length - 32) / 4_120 * 4_120 - 4_096, &[0; 4_000]);
        }
        let metrics = Metrics::new();
        open(directory.path(), &metrics).unwrap().close().await;
        let salvaged = directory.path().join("damaged-1").exists();
        assert!(!salvaged && metrics.store_corrupt_rows.get() == 0, "round {round}, cut off at {length}");
    }
}

/// What SQLite would take for a power cut and pass over in silence, or refuse to look at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_database_could_say_costs_nothing() {
    let stored = store(60, false).await;
    let database = "countersign.db";
    for (what, name, at, bytes) in [
        ("a header of zeros", database, 0, &[0; 100][..]),
        ("another program's number", database, 68, b"Xs"),
        ("no such format", database, 60, &[0x80]),
        ("tables in the list of free pages", database, 32, &[0, 0, 0, 5, 0, 0, 0, 1]),
        ("a log without its head", "countersign.db-wal", 0, &[7; 32]),
    ] {
        let directory = tempfile::tempdir().unwrap();
        copy(stored.root.path(), directory.path());
        // Into the database with it, so that it is there that the damage is done.
        if name == database {
            open(directory.path(), &Metrics::new()).unwrap().close().await;
        }
        overwrite(&directory.path().join(name), at, bytes);
        let outcome = recover(&stored, directory.path(), what).await;
        assert_eq!(outcome.lost, [], "{what}");
        assert_eq!(outcome.delivered, stored.waiting.len(), "{what}");
        assert!(directory.path().join("damaged-1/countersign.db").exists(), "{what}");
    }
}

pub(crate) fn overwrite(file: &Path, at: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt as _;
    fs::File::options().write(true).open(file).unwrap().write_all_at(bytes, at).unwrap();
}

/// A process that meets damage leaves word for the next one, which would not look for it in a large store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_that_is_met_while_running_is_mended_by_the_next_start() {
    let stored = store(60, true).await;
    let directory = stored.root.path();
    // Once before, so that nothing is in flight any more and the file is all there is.
    open(directory, &Metrics::new()).unwrap().close().await;
    let running = open(directory, &Metrics::new()).unwrap();
    let file = directory.join("countersign.db");
    let connection = rusqlite::Connection::open(&file).unwrap();
    let root = "SELECT rootpage FROM sqlite_schema WHERE name = 'forward_pending'";
    let root: i64 = connection.query_row(root, [], |row| row.get(0)).unwrap();
    drop(connection);
    overwrite(&file, (root.unsigned_abs() - 1) * 4_096, &[0xff; 64]);

    let refused = running.lease("billing", 1, at(1_000_000)).await;
    assert!(refused.is_err(), "{refused:?}");
    let fault = running.fault().unwrap().to_string();
    assert!(fault.contains("is damaged (") && fault.contains("the next start salvages"), "{fault}");
    assert!(fs::read_to_string(directory.join("damage")).unwrap().contains("malformed"));
    running.close().await;
    let outcome = recover(&stored, directory, "at the next start").await;
    assert_eq!((outcome.lost.len(), outcome.delivered), (0, stored.waiting.len()));
    assert!(!directory.join("damage").exists());
}

/// A copy that is made beside a running gateway is a store of its own: all that had been acknowledged before is in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_restores_to_a_working_store() {
    listen();
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("data");
    let store = Arc::new(open(&directory, &Metrics::new()).unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let acked = Arc::new(Mutex::new(Vec::new()));
    let load = tokio::spawn({
        let (store, stop, acked) = (Arc::clone(&store), Arc::clone(&stop), Arc::clone(&acked));
        async move {
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let id: &'static str = format!("evt_{number:06}").leak();
                let arrival = Draft { body: body(number), to: vec!["billing"], ..draft(id) }.arrival();
                store.accept(arrival).await.unwrap();
                acked.lock().unwrap().push(id);
            }
        }
    });
    let count = || acked.lock().unwrap().len();
    eventually(|| count() >= 50).await;
    let before = count();
    let to = root.path().join("copies/today");
    let (from, into) = (directory.clone(), to.clone());
    let backup = tokio::task::spawn_blocking(move || sqlite::backup(&from, &into)).await.unwrap().unwrap();
    stop.store(true, Ordering::Relaxed);
    load.await.unwrap();
    assert!(backup.checked.is_sound() && backup.checked.pending >= 50, "{:?}", backup.checked);
    assert!(sqlite::check(&directory).unwrap().is_sound(), "beside the one that uses it");
    assert!(matches!(sqlite::backup(&directory, &to), Err(OpenError::Directory { .. })), "over another");
    store.close().await;

    let restored = open(&to, &Metrics::new()).unwrap();
    let mut bodies = BTreeSet::new();
    loop {
        let leases = restored.lease("billing", 1_000, at(10)).await.unwrap();
        if leases.is_empty() {
            break;
        }
        bodies.extend(leases.into_iter().map(|lease| lease.delivery.body.clone()));
    }
    let missing = (0..before).filter(|number| !bodies.contains(&body(*number))).count();
    assert_eq!(missing, 0, "of {before} that had been acknowledged");
    // And what it holds is still claimed.
    let again = Draft { body: body(0), to: vec!["billing"], ..draft("evt_000000") }.arrival();
    assert!(matches!(restored.accept(again).await, Ok(Accepted::Duplicate { .. })));
    restored.close().await;
}

/// A migration emptied an operator's table that pointed at ours, had a view name a table that was gone, and dropped what
/// stood on ours; a trigger that named one kept the gateway from starting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_operators_have_added_outlives_a_migration() {
    let root = tempfile::tempdir().unwrap();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1"), root.path());
    let file = root.path().join("countersign.db");
    let added = "CREATE TABLE note (text, delivery, destination,
            FOREIGN KEY (delivery, destination) REFERENCES forward ON DELETE CASCADE);
        CREATE TABLE seen (id, FOREIGN KEY (id) REFERENCES delivery (id));
        INSERT INTO note SELECT 'look', delivery, destination FROM forward LIMIT 1;
        INSERT INTO seen SELECT id FROM delivery;
        CREATE VIEW dead_letters AS SELECT * FROM forward WHERE state = 'dead';
        CREATE INDEX forward_by_outcome ON forward (last_outcome);
        CREATE TABLE told (destination);
        CREATE TRIGGER tell AFTER UPDATE ON forward WHEN new.state = 'delivered'
            BEGIN INSERT INTO told VALUES (new.destination); END;
        CREATE TRIGGER claimed AFTER INSERT ON told BEGIN DELETE FROM told WHERE destination IN (SELECT key FROM claim); END;";
    rusqlite::Connection::open(&file).unwrap().execute_batch(added).unwrap();
    let store = open(root.path(), &Metrics::new()).unwrap();
    let day = Timestamp::from_second(1_795_700_000).unwrap();
    let leases = store.lease("audit", 100, day).await.unwrap();
    for lease in &leases {
        store.settle(settlement(lease, Progress::Delivered, None)).await.unwrap();
    }
    // Nor does theirs keep ours from going.
    store.sweep(Timestamp::from_second(1_895_700_000).unwrap(), Duration::ZERO).await.unwrap();
    store.close().await;
    let connection = rusqlite::Connection::open(&file).unwrap();
    let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, u32>(0)).unwrap() as usize;
    assert_eq!((count("SELECT count(*) FROM note"), count("SELECT count(*) FROM dead_letters")), (1, 3));
    assert_eq!(count("SELECT count(*) FROM told"), leases.len());
    assert_eq!(count("SELECT count(*) FROM sqlite_schema WHERE name = 'forward_by_outcome'"), 1);
    assert_eq!(count("SELECT count(*) FROM sqlite_schema WHERE sql LIKE '%countersign_%'"), 0);
}

/// One of the first version, where a guard's claim stood in a row of its own, is salvaged like any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_store_of_format_1_is_salvaged_with_its_claims() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1");
    let (sound, damaged) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    copy(&fixture, sound.path());
    copy(&fixture, damaged.path());
    open(sound.path(), &Metrics::new()).unwrap().close().await;
    overwrite(&damaged.path().join("countersign.db"), 0, &[0; 100]);
    open(damaged.path(), &Metrics::new()).unwrap().close().await;
    let expected = sqlite::check(sound.path()).unwrap();
    assert_eq!(sqlite::check(damaged.path()).unwrap(), expected);
    assert!(expected.claims > expected.deliveries, "{expected:?}");
}

/// A store that the first version wrote, with deliveries in every state, is what this one goes on with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_format_1_is_opened_and_goes_on() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1");
    let root = tempfile::tempdir().unwrap();
    copy(&fixture, root.path());
    let store = open(root.path(), &Metrics::new()).unwrap();
    let day = Timestamp::from_second(1_795_700_000).unwrap();
    let depths: Vec<_> =
        store.depths().iter().map(|(lane, depth)| (lane.to_string(), depth.pending, depth.dead)).collect();
    assert_eq!(depths, [("audit".to_owned(), 2, 0), ("legacy".to_owned(), 4, 3)]);
    let mut ids = BTreeSet::new();
    for lane in ["audit", "legacy"] {
        for lease in store.lease(lane, 100, day).await.unwrap() {
            assert_eq!(lease.attempt, 2);
            ids.insert((lane, lease.delivery.delivery_id.clone().unwrap(), lease.delivery.body.len()));
            store.settle(settlement(&lease, Progress::Delivered, None)).await.unwrap();
        }
    }
    let (push, ping) = ("00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002");
    let mut expected = BTreeSet::from([("audit", push.to_owned(), 9_632), ("audit", ping.to_owned(), 14)]);
    expected.insert(("legacy", push.to_owned(), 9_632));
    expected.extend((1..=3).map(|number| ("legacy", format!("evt_waiting_{number}"), 65)));
    assert_eq!(ids, expected);

    let again =
        |id| Draft { source: "stripe", received_at: day, to: vec!["legacy"], revive_dead: true, ..draft(id) };
    for id in ["evt_waiting_1", "evt_good_2", "evt_refused_3"] {
        let answer = store.accept(again(id).arrival()).await.unwrap();
        assert!(matches!(answer, Accepted::Duplicate { conflict: true, .. }), "{id}: {answer:?}");
    }
    let revived = store.lease("legacy", 100, day).await.unwrap();
    assert_eq!(revived.len(), 1);
    assert_eq!(revived[0].delivery.delivery_id.as_deref(), Some("evt_refused_3"));
    assert!(revived[0].replay);
    store.close().await;
    assert!(sqlite::check(root.path()).unwrap().is_sound());
}
