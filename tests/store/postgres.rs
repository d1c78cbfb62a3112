//! The engine that gateways share, on a real server: a database of its own for each test.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use countersign::clock::{Clock, Timestamp, from_milliseconds, later};
use countersign::config::Database;
use countersign::forward::{By, OnDead, Order, Progress};
use countersign::id::Id;
use countersign::metrics::Metrics;
use countersign::store::operators::Change;
use countersign::store::postgres::{OpenError, Options, Postgres, open};
use countersign::store::{Accepted, Outlet};
use tokio_postgres::{Client, NoTls};

use crate::line::Line;
use crate::server::{Server, query};
use crate::support::{Bench, Draft, Engine, Whole, at, draft, moment};

/// An empty database of the tests' server.
pub(crate) struct Shared {
    pub(crate) url: String,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self { url: Server::shared().database() }
    }

    pub(crate) async fn try_open(&self, outlet: Arc<dyn Outlet>) -> Result<Postgres, OpenError> {
        let database = Database::parse(&self.url).unwrap();
        open(Options { database, connections: 4, metrics: Metrics::new() }, outlet).await
    }
}

#[async_trait]
impl Engine for Shared {
    async fn open(&self, outlet: Arc<dyn Outlet>) -> Arc<dyn Whole> {
        Arc::new(self.try_open(outlet).await.unwrap())
    }
}

/// A session of somebody else's.
async fn session(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Waits until psql answers this.
async fn until(url: &str, sql: &str, answer: &str) {
    for _ in 0..600 {
        if query(url, sql) == answer {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{sql} does not become {answer}: {}", query(url, sql));
}

async fn bench() -> (Bench, String) {
    let engine = Shared::new();
    let url = engine.url.clone();
    (Bench::new(Box::new(engine)).await, url)
}

fn strict() -> Option<Arc<Order>> {
    Some(Arc::new(Order::new(By::Strict, OnDead::Park)))
}

async fn arranged(bench: &Bench, order: Option<Arc<Order>>) {
    bench.lanes.set_order("a", order.clone());
    bench.store.arrange("a", order).await.unwrap();
}

/// Its connection went back with an open transaction, which kept what it had locked from everybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_nobody_waits_for_leaves_no_transaction_open() {
    let (bench, url) = bench().await;
    arranged(&bench, strict()).await;
    let id = bench.stored(draft("1")).await;
    let other = session(&url).await;
    other.batch_execute("BEGIN; LOCK countersign.ordered IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let store = bench.store.clone();
    let lease = tokio::spawn(async move { store.lease("a", 1, at(0)).await });
    let waiting = "SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'countersign.ordered'::regclass";
    let waits = format!("SELECT count(*) > 0 FROM ({waiting}) w");
    until(&url, &waits, "t").await;
    let pids = query(&url, waiting);
    lease.abort();
    assert!(lease.await.unwrap_err().is_cancelled());
    other.batch_execute("COMMIT").await.unwrap();
    for pid in pids.lines() {
        let busy = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND state <> 'idle'");
        until(&url, &busy, "0").await;
        let ended = format!("[{pid}] FATAL:  terminating connection due to idle-in-transaction timeout");
        assert!(!Server::shared().log().contains(&ended), "only the server's timeout ended it");
    }
    assert_eq!(bench.leased_one("a", at(0)).await.delivery.id, id);
}

/// It was cancelled, and those behind it were held for good, when the second half failed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cancelled_gives_the_turn_on_or_is_not_cancelled() {
    let (bench, url) = bench().await;
    arranged(&bench, strict()).await;
    let (first, second) = (bench.stored(draft("1")).await, bench.stored(draft("2")).await);
    let cancel = || bench.store.change(Change::Cancel, vec![(first, Arc::from("a"))], moment(at(0), at(0)));
    query(&url, "ALTER TABLE countersign.ordered RENAME TO away");
    assert!(cancel().await.is_err());
    query(&url, "ALTER TABLE countersign.away RENAME TO ordered");
    assert_eq!(query(&url, "SELECT DISTINCT state FROM countersign.forward"), "waiting");
    assert_eq!(cancel().await.unwrap().len(), 1);
    bench.lanes.woken("a").await;
    assert_eq!(bench.leased_one("a", at(0)).await.delivery.id, second);
}

/// The one that it knew of stood for the one whose lease was lost on its way: nobody ever made that attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_its_gateway_does_not_know_of_is_given_back() {
    let (bench, url) = bench().await;
    bench.stored(draft("1")).await;
    bench.leased_one("a", at(0)).await;
    query(&url, "UPDATE countersign.forward SET attempts = 2, held_since = held_since - interval '1 minute'");
    until(&url, "SELECT state, attempts FROM countersign.forward", "waiting|2").await;
}

/// As many were read as there were places, however large they were.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_for_a_lease_in_order_is_bounded() {
    const SIZE: usize = 4 << 20;
    let engine = Shared::new();
    let line = Line::to(Server::shared().port());
    let url =
        engine.url.replace(&format!("127.0.0.1:{}", Server::shared().port()), &line.address.to_string());
    let bench = Bench::new(Box::new(Shared { url })).await;
    for n in 0..12 {
        let body = format!("{{\"site\":\"{n}\",\"filler\":\"{}\"}}", "x".repeat(SIZE));
        bench.stored(Draft { id: None, body: body.into(), ..draft("") }).await;
    }
    let by_site = By::Value("json:/site".parse().unwrap());
    arranged(&bench, Some(Arc::new(Order::new(by_site, OnDead::Park)))).await;
    let mut leased = Vec::new();
    while leased.len() < 12 {
        let before = line.passed();
        leased.extend(bench.leased("a", at(0)).await);
        let passed = line.passed() - before;
        assert!(passed < 5 * SIZE as u64, "{passed} bytes");
    }
}

/// A large body that is a key held up the batch, and those that waited for it.
#[tokio::test]
async fn keys_are_read_before_a_request_queues() {
    let (bench, _) = bench().await;
    arranged(&bench, strict()).await;
    let before = bench.lanes.asked.load(Ordering::SeqCst);
    let mut accepted = bench.store.accept(draft("1").arrival());
    assert!(futures_util::poll!(&mut accepted).is_pending());
    assert_eq!(bench.lanes.asked.load(Ordering::SeqCst), before + 1);
    assert_eq!(accepted.await, Ok(Accepted::Stored));
}

/// Each duplicate had used up a turn of its destination's rate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_a_duplicate_does_not_need_is_given_back() {
    let (bench, _) = bench().await;
    bench.lanes.open("a", 2);
    bench.stored(draft("1")).await;
    let repeated = bench.store.accept(draft("1").arrival()).await.unwrap();
    assert!(matches!(repeated, Accepted::Duplicate { .. }));
    assert_eq!(bench.lanes.given_back.load(Ordering::SeqCst), 1);
    assert_eq!(bench.lanes.dispatched(1).await.len(), 1);
}

/// A gateway whose order has not been configured yet, or not any more, ended the first, and those behind it were held for
/// good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_turn_is_given_on_by_gateways_of_every_configuration() {
    let (bench, url) = bench().await;
    arranged(&bench, strict()).await;
    let (_, second) = (bench.stored(draft("1")).await, bench.stored(draft("2")).await);
    let other = Bench::new(Box::new(Shared { url })).await;
    let lease = other.leased_one("a", at(0)).await;
    assert!(bench.leased("a", at(0)).await.is_empty(), "one is under way");
    other.settle(&lease, Progress::Delivered, at(0)).await;
    other.lanes.woken("a").await;
    assert_eq!(bench.leased_one("a", at(0)).await.delivery.id, second);
}

/// Whatever it came from: a version that did not know better, or steps that were ended half-way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_for_nothing_is_let_go() {
    let (bench, url) = bench().await;
    arranged(&bench, strict()).await;
    let (first, second) = (bench.stored(draft("1")).await, bench.stored(draft("2")).await);
    let due = "SELECT count(*) FROM countersign.forward WHERE state = 'waiting' AND due_at < 1::bigint << 50";
    // The first is over, and has kept its place.
    let over = format!(
        "UPDATE countersign.forward SET state = 'cancelled', settled_at = 1 WHERE delivery = '{first}'"
    );
    assert_eq!(query(&url, &format!("{over}; {due}")), "0");
    until(&url, due, "1").await;
    bench.lanes.woken("a").await;
    // One has no place, and no first to wait for.
    let hold = "UPDATE countersign.forward SET due_at = due_at + (1::bigint << 50) WHERE state = 'waiting'";
    query(&url, &format!("DELETE FROM countersign.ordered; {hold}"));
    until(&url, due, "1").await;
    // There is no order any more; a gateway that did not know has held one.
    arranged(&bench, None).await;
    query(&url, hold);
    until(&url, due, "1").await;
    assert_eq!(bench.leased_one("a", at(0)).await.delivery.id, second);
}

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
const DAY_MS: i64 = 86_400_000;
const TABLES: &str = "SELECT to_regclass('countersign.delivery_first') IS NULL, to_regclass('countersign.attempt_first') IS NULL";

/// Two that are delivered at the second attempt, and one that `next` becomes of.
async fn a_day(bench: &Bench, now: Timestamp, next: Progress) -> Vec<Id> {
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(bench.stored(Draft { id: None, received_at: now, ..draft("") }).await);
    }
    for lease in bench.leased("a", now).await {
        bench.settle(&lease, Progress::Waiting { due_at: now, attempts: 1 }, now).await;
    }
    for lease in bench.leased("a", now).await {
        let next = if lease.delivery.id == ids[2] { next } else { Progress::Delivered };
        bench.settle(&lease, next, now).await;
    }
    ids
}

/// Nothing of it is deleted row by row, but the forwards: also what is past the retention waits for the end of its day.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_that_retention_has_done_with_is_dropped() {
    let (bench, url) = bench().await;
    let tomorrow = from_milliseconds((Clock::system().now().as_millisecond() / DAY_MS + 1) * DAY_MS);
    let morning = later(tomorrow, 6 * HOUR);
    let ids = a_day(&bench, morning, Progress::Cancelled).await;
    let unrouted = bench.stored(Draft { id: None, received_at: morning, to: Vec::new(), ..draft("") }).await;
    let name = morning.strftime("%Y%m%d");
    let rows = format!(
        "SELECT (SELECT count(*) FROM countersign.delivery_{name}), count(*) FROM countersign.attempt_{name}"
    );
    assert_eq!(query(&url, &rows), "4|6");
    assert_eq!(bench.store.sweep(later(morning, 2 * HOUR), HOUR).await.unwrap().deliveries, 0);
    assert_eq!(query(&url, &rows), "4|6");
    assert_eq!(bench.store.sweep(later(tomorrow, 25 * HOUR), HOUR).await.unwrap().deliveries, 4);
    let left = format!(
        "SELECT count(*) FROM pg_class WHERE relname LIKE '%{name}%' UNION ALL SELECT count(*) FROM countersign.forward"
    );
    assert_eq!(query(&url, &left), "0\n0");
    for id in ids.into_iter().chain([unrouted]) {
        assert!(bench.store.delivery(id).await.unwrap().is_none());
    }
    // There is room for what comes, also for what comes late.
    for at in [morning, later(morning, 24 * HOUR), later(morning, 2_400 * HOUR)] {
        bench.stored(Draft { id: None, received_at: at, ..draft("") }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_with_a_dead_letter_is_kept_for_it() {
    let now = Clock::system().now();
    let (bench, url) = bench().await;
    let ids = a_day(&bench, now, Progress::Dead).await;
    let swept = bench.store.sweep(later(now, 2 * DAY), HOUR).await.unwrap();
    assert_eq!((swept.deliveries, query(&url, TABLES)), (2, "f|f".to_owned()));
    assert!(bench.store.delivery(ids[0]).await.unwrap().is_none());
    assert!(bench.store.delivery(ids[2]).await.unwrap().is_some());
    assert_eq!(bench.store.history(ids[2]).await.unwrap().attempts.len(), 2);
    let purged = bench.store.change(
        Change::Purge,
        vec![(ids[2], Arc::from("a"))],
        moment(later(now, 2 * DAY), later(now, 2 * DAY)),
    );
    assert_eq!(purged.await.unwrap().len(), 1);
    assert_eq!(bench.store.sweep(later(now, 2 * DAY), HOUR).await.unwrap().deliveries, 0, "late");
    assert_eq!(bench.store.sweep(later(now, 3 * DAY), HOUR).await.unwrap().deliveries, 1);
    assert_eq!(query(&url, TABLES), "t|t");
}

/// One that may not drop ended each sweep, and so all of retention.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_dropped_is_deleted_row_by_row() {
    let now = Clock::system().now();
    let (bench, url) = bench().await;
    a_day(&bench, now, Progress::Delivered).await;
    query(
        &url,
        "CREATE ROLE guest LOGIN; GRANT USAGE ON SCHEMA countersign TO guest;
         GRANT ALL ON ALL TABLES IN SCHEMA countersign TO guest;
         GRANT USAGE ON ALL SEQUENCES IN SCHEMA countersign TO guest",
    );
    let guest = Shared { url: url.replace("//countersign@", "//guest@") };
    let guest = guest.open(Arc::clone(&bench.lanes) as _).await;
    assert_eq!(guest.sweep(later(now, 2 * DAY), HOUR).await.unwrap().deliveries, 3);
    assert_eq!(query(&url, "SELECT count(*) FROM countersign.attempt"), "0");
    assert_eq!(query(&url, TABLES), "f|f");
    guest.close().await;
}

/// What takes a database back to format 1.
const BACK: &str = "
    ALTER TABLE countersign.delivery DETACH PARTITION countersign.delivery_first;
    ALTER TABLE countersign.attempt DETACH PARTITION countersign.attempt_first;
    DROP TABLE countersign.delivery, countersign.attempt;
    ALTER TABLE countersign.delivery_first RENAME TO delivery;
    ALTER INDEX countersign.delivery_first_pkey RENAME TO delivery_pkey;
    ALTER INDEX countersign.delivery_first_unrouted RENAME TO delivery_unrouted;
    ALTER TABLE countersign.attempt_first RENAME TO attempt;
    ALTER INDEX countersign.attempt_first_delivery RENAME TO attempt_delivery;
    ALTER TABLE countersign.attempt ALTER COLUMN number DROP DEFAULT;
    DROP SEQUENCE countersign.attempt_order;
    ALTER TABLE countersign.attempt ALTER COLUMN number ADD GENERATED ALWAYS AS IDENTITY (START 1000);
    DROP TABLE countersign.lane, countersign.share;
    UPDATE countersign.meta SET format = 1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tables_of_an_older_version_are_migrated_with_what_is_in_them() {
    let now = Clock::system().now();
    let (mut bench, url) = bench().await;
    let ids = a_day(&bench, now, Progress::Dead).await;
    bench.store.close().await;
    query(&url, BACK);
    // A clock was wrong once: it must not keep the days to come from being made.
    let stray =
        "INSERT INTO countersign.delivery SELECT 'ffffffff-ffff-7fff-bfff-ffffffffffff', source, NULL, event,
        received_at, sender, method, target, verified, scheme, secret, skew, 0, checksum, headers, body
        FROM countersign.delivery LIMIT 1";
    query(&url, stray);
    bench.restart().await;
    assert_eq!(query(&url, "SELECT format FROM countersign.meta"), "3");
    assert_eq!(query(&url, "SELECT count(*) FROM countersign.delivery_default"), "1");
    for id in &ids {
        assert!(bench.store.delivery(*id).await.unwrap().is_some());
    }
    assert_eq!(bench.store.revive(ids[2], now).await.unwrap(), 1);
    let lease = bench.leased_one("a", now).await;
    bench.settle(&lease, Progress::Delivered, now).await;
    let attempts = bench.store.history(ids[2]).await.unwrap().attempts;
    assert_eq!(
        attempts.iter().map(|attempt| attempt.number).collect::<Vec<_>>(),
        [1, 2, 1],
        "in their order"
    );
    assert_eq!(bench.store.sweep(later(now, 2 * DAY), HOUR).await.unwrap().deliveries, 4);
}

/// What was left between the two halves of a drop would have been there for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drop_that_was_ended_half_way_is_made_up_for() {
    let now = Clock::system().now();
    let (bench, url) = bench().await;
    let ids = a_day(&bench, now, Progress::Dead).await;
    query(&url, &format!("DELETE FROM countersign.forward WHERE delivery = '{}'", ids[0]));
    assert_eq!(bench.store.sweep(later(now, 2 * DAY), HOUR).await.unwrap().deliveries, 2);
    assert_eq!(query(&url, "SELECT id FROM countersign.delivery"), ids[2].to_string());
    assert_eq!(query(&url, "SELECT count(*) FROM countersign.attempt"), "2");
}
