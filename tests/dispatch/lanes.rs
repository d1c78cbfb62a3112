//! Lanes keep their backends apart, keep to their limits, and lose nothing.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use countersign::clock::{Clock, later};
use countersign::dispatch::LaneState;
use countersign::forward::{BreakerPolicy, Concurrency, Outcome, Progress};
use countersign::store::Outlet;
use countersign::units::Rate;
use http::HeaderValue;

use crate::backend::{Backend, Reply};
use crate::support::{Gateway, MemoryStore, delivery, destination, eventually, retry_late};

fn is_in_flight(progress: Progress) -> bool {
    matches!(progress, Progress::InFlight { .. })
}

fn is_waiting(progress: Progress) -> bool {
    matches!(progress, Progress::Waiting { .. })
}

fn state(gateway: &Gateway, destination: &str) -> LaneState {
    gateway.lanes.states().into_iter().find(|lane| &*lane.destination == destination).unwrap().state
}

#[tokio::test]
async fn a_hanging_backend_does_not_delay_another_lane() {
    let slow = Backend::always(Reply::hang()).await;
    let quick = Backend::always(Reply::status(200)).await;
    let gateway =
        Gateway::start([destination("slow", &slow.url("/")), destination("quick", &quick.url("/"))]);
    for _ in 0..500 {
        gateway.forward(delivery(b"{}"), "slow");
        gateway.forward(delivery(b"{}"), "quick");
    }
    eventually("the quick lane is empty", || gateway.delivered() == 500).await;
    eventually("the slow lane is full", || slow.count() == 4).await;
    assert_eq!(gateway.count(is_in_flight), 4, "only what is being attempted is held in memory");
    assert_eq!(gateway.count(is_waiting), 496);
}

#[tokio::test]
async fn no_more_attempts_run_at_once_than_allowed() {
    let backend = Backend::always(Reply::status(200)).await;
    let gateway = Gateway::start([destination("legacy", &backend.url("/"))]);
    for _ in 0..300 {
        gateway.forward(delivery(b"{}"), "legacy");
    }
    eventually("all are delivered", || gateway.delivered() == 300).await;
    assert!((1..=4).contains(&backend.most_at_once()), "{}", backend.most_at_once());
}

#[tokio::test]
async fn what_an_earlier_run_left_is_sent_first_and_once() {
    let store = Arc::new(MemoryStore::default());
    for _ in 0..100 {
        store.put(delivery(b"old"), "legacy");
    }
    let backend = Backend::always(Reply::status(200)).await;
    let gateway = Gateway::start_with(store, [destination("legacy", &backend.url("/"))]);
    gateway.forward(delivery(b"new"), "legacy");
    eventually("all are delivered", || gateway.delivered() == 101).await;
    let seen = backend.seen();
    assert_eq!(seen.len(), 101);
    assert_eq!(seen.iter().filter(|seen| seen.body == b"new").count(), 1);
    assert!(seen[..90].iter().all(|seen| seen.body == b"old"), "the new one did not overtake");
}

#[tokio::test]
async fn new_forwards_do_not_wait_for_the_pause_of_failed_ones() {
    let backend = Backend::first(vec![Reply::status(500)]).await;
    let mut to = destination("legacy", &backend.url("/"));
    to.retry = retry_late();
    let gateway = Gateway::start([to]);
    gateway.forward(delivery(b"fails"), "legacy");
    eventually("it waits for its retry", || gateway.count(is_waiting) == 1 && backend.count() == 1).await;
    gateway.forward(delivery(b"new"), "legacy");
    eventually("the new one is delivered", || gateway.delivered() == 1).await;
}

#[tokio::test]
async fn an_open_breaker_stops_attempts_and_one_probe_closes_it() {
    let backend = Backend::first(vec![Reply::status(500); 4]).await;
    let mut to = destination("legacy", &backend.url("/"));
    to.concurrency = Concurrency::Fixed(NonZeroUsize::MIN);
    let pause = Duration::from_millis(50);
    to.breaker = Some(BreakerPolicy { failures: 3, probe_after: pause, probe_max: Duration::from_secs(2) });
    let gateway = Gateway::start([to]);
    for _ in 0..20 {
        gateway.forward(delivery(b"{}"), "legacy");
    }
    eventually("the breaker has opened", || state(&gateway, "legacy") != LaneState::Open).await;
    eventually("the backend is back", || gateway.delivered() == 20).await;
    assert_eq!(state(&gateway, "legacy"), LaneState::Open);
    assert_eq!(gateway.attempts("legacy", Outcome::RetryableStatus), 4, "three, and the first probe");
    assert_eq!(backend.count(), 24, "waiting cost no attempt");
}

#[tokio::test]
async fn refusals_do_not_open_the_breaker() {
    let backend = Backend::always(Reply::status(400)).await;
    let mut to = destination("legacy", &backend.url("/"));
    let pause = Duration::from_secs(60);
    to.breaker = Some(BreakerPolicy { failures: 2, probe_after: pause, probe_max: pause });
    let gateway = Gateway::start([to]);
    for _ in 0..20 {
        gateway.forward(delivery(b"{}"), "legacy");
    }
    eventually("all are dead", || gateway.count(|progress| progress == Progress::Dead) == 20).await;
    assert_eq!(state(&gateway, "legacy"), LaneState::Open);
}

#[tokio::test]
async fn a_rate_limit_holds_for_new_and_waiting_forwards() {
    let backend = Backend::always(Reply::status(200)).await;
    let mut to = destination("legacy", &backend.url("/"));
    to.rate = Some(Rate { events: 4, per: Duration::from_hours(1) });
    let gateway = Gateway::start([to]);
    for _ in 0..20 {
        gateway.forward(delivery(b"{}"), "legacy");
    }
    eventually("the first is delivered", || gateway.delivered() == 1).await;
    gateway.lanes.wake("legacy");
    assert_eq!((gateway.count(is_waiting), backend.count()), (19, 1), "the next is due in 15 minutes");
}

#[tokio::test]
async fn a_rate_limit_lets_everything_through_in_time() {
    let backend = Backend::always(Reply::status(200)).await;
    let mut to = destination("legacy", &backend.url("/"));
    to.rate = Some(Rate { events: 200, per: Duration::from_secs(1) });
    let gateway = Gateway::start([to]);
    for _ in 0..100 {
        gateway.forward(delivery(b"{}"), "legacy");
    }
    eventually("all are delivered", || gateway.delivered() == 100).await;
}

#[tokio::test]
async fn a_paused_lane_waits_and_goes_on() {
    let backend = Backend::always(Reply::status(200)).await;
    let gateway = Gateway::start([destination("legacy", &backend.url("/"))]);
    assert!(gateway.lanes.pause("legacy"));
    assert!(!gateway.lanes.pause("unknown"));
    for _ in 0..20 {
        gateway.forward(delivery(b"{}"), "legacy");
    }
    assert_eq!(state(&gateway, "legacy"), LaneState::Paused);
    assert_eq!((gateway.count(is_waiting), backend.count()), (20, 0));
    assert!(gateway.lanes.resume("legacy"));
    eventually("all are delivered", || gateway.delivered() == 20).await;
}

/// Ends within `patience`, and what settling takes.
async fn drain(gateway: &Gateway, patience: Duration) {
    let until = tokio::time::Instant::now() + patience + Duration::from_secs(2);
    gateway.lanes.drain(tokio::time::sleep(patience), until).await;
}

#[tokio::test]
async fn a_drain_lets_running_attempts_end() {
    let backend = Backend::always(Reply::hang()).await;
    let mut to = destination("legacy", &backend.url("/"));
    to.timeout = Duration::from_millis(300);
    let gateway = Gateway::start([to]);
    gateway.forward(delivery(b"{}"), "legacy");
    eventually("it is under way", || backend.count() == 1).await;
    drain(&gateway, Duration::from_secs(60)).await;
    assert_eq!(gateway.row().records[0].outcome, "timeout");
    assert!(is_waiting(gateway.row().progress));
    assert_eq!(backend.count(), 1, "it was not tried again");
}

#[tokio::test]
async fn a_drain_gives_back_what_it_cuts_off() {
    let backend = Backend::always(Reply::hang()).await;
    let gateway = Gateway::start([destination("legacy", &backend.url("/"))]);
    for _ in 0..10 {
        gateway.forward(delivery(b"{}"), "legacy");
    }
    eventually("four are under way", || backend.count() == 4).await;
    drain(&gateway, Duration::from_millis(50)).await;
    assert_eq!(gateway.count(is_waiting), 10, "nothing is left in flight");
    let rows = gateway.store.rows().clone();
    let cut: Vec<_> = rows.iter().filter(|row| !row.records.is_empty()).collect();
    assert_eq!(cut.len(), 4);
    for row in cut {
        assert_eq!(row.records[0].outcome, "interrupted");
        let now = Clock::system().now();
        assert!(matches!(row.progress, Progress::Waiting { due_at, attempts: 1 } if due_at <= now));
    }
    assert!(gateway.lanes.reserve("legacy").is_none());
}

#[tokio::test]
async fn an_attempt_that_has_not_begun_when_a_drain_begins_does_not_count() {
    let backend = Backend::always(Reply::status(200)).await;
    let mut to = destination("legacy", &backend.url("/"));
    // The second is leased ahead of its turn, which is 900 ms later.
    to.rate = Some(Rate { events: 1, per: Duration::from_millis(900) });
    let store = Arc::new(MemoryStore::default());
    store.put(delivery(b"1"), "legacy");
    store.put(delivery(b"2"), "legacy");
    let gateway = Gateway::start_with(store, [to]);
    eventually("both are leased", || gateway.count(is_waiting) == 0).await;
    drain(&gateway, Duration::from_secs(60)).await;
    if gateway.delivered() < 2 {
        let rows = gateway.store.rows().clone();
        let row = rows.iter().find(|row| is_waiting(row.progress)).unwrap();
        assert!(matches!(row.progress, Progress::Waiting { attempts: 0, .. }));
        assert!(row.records.is_empty());
    }
}

#[tokio::test]
async fn a_store_that_fails_for_a_while_loses_nothing() {
    let backend = Backend::always(Reply::status(200)).await;
    let store = Arc::new(MemoryStore::default());
    store.failing_settlements.store(3, Ordering::SeqCst);
    store.failing_leases.store(2, Ordering::SeqCst);
    for _ in 0..10 {
        store.put(delivery(b"{}"), "legacy");
    }
    let gateway = Gateway::start_with(store, [destination("legacy", &backend.url("/"))]);
    eventually("all are delivered", || gateway.delivered() == 10).await;
    assert_eq!(backend.count(), 10, "what is settled late is not sent again");
}

/// A backend that answers at once waited for the store's commits: four places took four forwards in the time of one.
#[tokio::test]
async fn places_do_not_wait_for_the_store_and_a_store_that_cannot_write_stops_the_lane() {
    let backend = Backend::always(Reply::status(200)).await;
    let store = Arc::new(MemoryStore::default());
    store.failing_settlements.store(u32::MAX, Ordering::SeqCst);
    for _ in 0..300 {
        store.put(delivery(b"{}"), "legacy");
    }
    let gateway = Gateway::start_with(store, [destination("legacy", &backend.url("/"))]);
    // What may wait to be written down, and the lane's four places.
    eventually("no more can begin", || backend.count() == 128 + 4).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((backend.count(), gateway.delivered()), (128 + 4, 0));
    gateway.store.failing_settlements.store(0, Ordering::SeqCst);
    eventually("all are delivered", || gateway.delivered() == 300).await;
    assert_eq!(backend.count(), 300);
}

/// The gateway ends at once when its store has latched: there is nothing that a settlement could still wait for.
#[tokio::test]
async fn a_latched_store_does_not_hold_a_drain_up() {
    let backend = Backend::always(Reply::hang()).await;
    let gateway = Gateway::start([destination("legacy", &backend.url("/"))]);
    for _ in 0..10 {
        gateway.forward(delivery(b"{}"), "legacy");
    }
    eventually("four are under way", || backend.count() == 4).await;
    gateway.store.latched.store(true, Ordering::SeqCst);
    let drained = tokio::time::timeout(Duration::from_secs(1), drain(&gateway, Duration::ZERO)).await;
    assert!(drained.is_ok(), "less than what a drain allows for settling");
    assert_eq!(gateway.count(is_in_flight), 4, "the next start finds them interrupted");
}

#[tokio::test]
async fn new_settings_take_effect_without_a_restart() {
    let (old, new) = (Backend::always(Reply::hang()).await, Backend::always(Reply::status(200)).await);
    let gateway = Gateway::start([destination("legacy", &old.url("/")), destination("gone", &new.url("/"))]);
    for _ in 0..10 {
        gateway.forward(delivery(b"{}"), "legacy");
    }
    eventually("the old backend is busy", || old.count() == 4).await;

    let mut changed = destination("legacy", &new.url("/"));
    changed.concurrency = Concurrency::Fixed(NonZeroUsize::new(6).unwrap());
    changed.headers.push(("x-api-key".parse().unwrap(), HeaderValue::from_static("k")));
    gateway.lanes.apply(&[Arc::new(changed), Arc::new(destination("added", &new.url("/")))]);
    eventually("the two new places empty the lane", || gateway.delivered() == 6).await;
    assert!(new.seen().iter().all(|seen| seen.one("x-api-key") == "k"));
    assert_eq!(gateway.count(is_in_flight), 4, "what was under way goes on");

    gateway.forward(delivery(b"{}"), "added");
    eventually("the added lane works", || gateway.delivered() == 7).await;
    gateway.forward(delivery(b"{}"), "gone");
    assert_eq!(gateway.count(is_waiting), 1, "it waits until its destination is back");
    let names: Vec<_> = gateway.lanes.states().into_iter().map(|lane| lane.destination).collect();
    assert_eq!(names, ["added".into(), "legacy".into()]);

    let back = [destination("legacy", &new.url("/")), destination("gone", &new.url("/"))].map(Arc::new);
    gateway.lanes.apply(&back);
    eventually("it is back", || gateway.delivered() == 8).await;
}

/// The clock was a day ahead when the gateway last ran: its retries would have come a day late. So they did when the
/// disk was full at the start.
#[tokio::test]
async fn what_is_due_in_a_day_is_reined_in_at_the_start() {
    let backend = Backend::always(Reply::status(200)).await;
    let store = Arc::new(MemoryStore::default());
    store.failing_rein_ins.store(1, Ordering::SeqCst);
    for _ in 0..2 {
        store.put(delivery(b"{}"), "legacy");
    }
    let now = Clock::system().now();
    let soon = Progress::Waiting { due_at: later(now, Duration::from_secs(1_800)), attempts: 1 };
    store.rows()[0].progress = soon;
    store.rows()[1].progress =
        Progress::Waiting { due_at: later(now, Duration::from_hours(24)), attempts: 1 };
    let gateway = Gateway::start_with(store, [destination("legacy", &backend.url("/"))]);
    let an_hour = later(now, Duration::from_secs(3_700));
    let reined = |progress| matches!(progress, Progress::Waiting { due_at, .. } if due_at < an_hour);
    eventually("it is reined in", || gateway.count(reined) == 2).await;
    assert_eq!(gateway.store.rows()[0].progress, soon, "what a backend may have asked for stays");
}

#[tokio::test]
async fn a_pause_is_not_cut_in_half_while_time_is_made_up() {
    let backend = Backend::always(Reply::with_header(503, "retry-after: 20")).await;
    // It stands still, so that it has to be past the time of what comes.
    let (clock, hand) = Clock::manual(later(Clock::system().now(), Duration::from_secs(60)));
    let _watch = clock.watch();
    hand.stall(Duration::from_secs(100));
    let steady = clock.steady();
    let mut to = destination("legacy", &backend.url("/"));
    to.retry.max_age = Duration::from_secs(7_200);
    let gateway = Gateway::start_by(clock, Arc::default(), [to]);
    gateway.forward(delivery(b"{}"), "legacy");
    gateway.first_record().await;
    let due_at = later(steady.time, Duration::from_secs(40));
    assert_eq!(gateway.row().progress, Progress::Waiting { due_at, attempts: 1 });
}

#[tokio::test]
async fn places_may_be_taken_and_used_outside_of_the_runtime() {
    let backend = Backend::always(Reply::status(200)).await;
    let gateway = Arc::new(Gateway::start([destination("legacy", &backend.url("/"))]));
    let writer = Arc::clone(&gateway);
    std::thread::spawn(move || (0..50).for_each(|_| writer.forward(delivery(b"{}"), "legacy")))
        .join()
        .unwrap();
    eventually("all are delivered", || gateway.delivered() == 50).await;
}

/// The backend fails as soon as it has more than eight at once.
#[tokio::test]
async fn an_adaptive_lane_stays_below_what_its_backend_bears_and_shows_where_it_is() {
    let slow = Duration::from_millis(50);
    let backend = Backend::overloaded(8, slow).await;
    let mut to = destination("legacy", &backend.url("/"));
    to.concurrency = Concurrency::Adaptive(NonZeroUsize::new(64).unwrap());
    let gateway = Gateway::start([to]);
    let shown = || gateway.metrics.lane_concurrency.with_label_values(&["legacy"]).get();
    assert_eq!(shown(), 1, "nothing is known yet");
    for _ in 0..300 {
        gateway.forward(delivery(b"{}"), "legacy");
    }
    eventually("it is allowed more", || shown() >= 3).await;
    eventually("all are delivered", || gateway.delivered() == 300).await;
    assert!(shown() <= 16, "{}", shown());
    assert_eq!(i64::try_from(gateway.lanes.states()[0].concurrency), Ok(shown()));
    let failed = gateway.attempts("legacy", Outcome::RetryableStatus);
    assert!(failed < 100, "{failed} of 300 were too many at once");
    // A reload that fixes it holds at once.
    gateway.lanes.apply(&[Arc::new(destination("legacy", &backend.url("/")))]);
    assert_eq!((shown(), gateway.lanes.states()[0].concurrency), (4, 4));
}

/// Each of them at the same time, for a while: what they do to their own lane is told elsewhere, outcome by outcome.
#[tokio::test]
async fn backends_that_misbehave_in_every_way_leave_another_lane_as_it_was() {
    let endless = || Reply::Endless(b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'x'; 65_536]);
    let dripping = || Reply::Endless(b"HTTP/1.1 200 OK\r\nx: ".to_vec(), b"x".to_vec());
    let misbehaving = [
        ("hangs", Reply::hang()),
        ("drips", dripping()),
        ("resets", Reply::SendAndReset(b"HTTP/1.1 2".to_vec())),
        ("giant", endless()),
        ("invalid", Reply::Send(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec())),
        ("redirects", Reply::with_header(302, "location: /")),
    ];
    let good = Backend::always(Reply::status(200)).await;
    let mut destinations = vec![destination("good", &good.url("/"))];
    let mut names = Vec::new();
    for (name, reply) in misbehaving {
        destinations.push(destination(name, &Backend::always(reply).await.url("/")));
        names.push(name);
    }
    destinations.push(destination("untrusted", &format!("https://127.0.0.1:{}/", good.address.port())));
    destinations.push(destination("nameless", "http://nowhere.invalid/"));
    names.extend(["untrusted", "nameless"]);
    let gateway = Gateway::start(destinations);
    for _ in 0..100 {
        for name in &names {
            gateway.forward(delivery(b"{}"), name);
        }
        gateway.forward(delivery(b"{}"), "good");
    }
    let delivered = || gateway.attempts("good", Outcome::Delivered) == 100;
    eventually("the good lane is empty", delivered).await;
    assert_eq!(state(&gateway, "good"), LaneState::Open);
    let attempts = |name| Outcome::ALL.map(|outcome| gateway.attempts(name, outcome)).iter().sum::<u64>();
    assert_eq!(attempts("good"), 100, "each was attempted once");
}

#[tokio::test]
async fn every_series_of_a_destination_is_there_from_the_start() {
    let gateway = Gateway::start([destination("legacy", "http://127.0.0.1:9/")]);
    let page = String::from_utf8(gateway.metrics.page().0).unwrap();
    for outcome in Outcome::ALL {
        let outcome = outcome.label();
        let series =
            format!("countersign_forward_attempts_total{{destination=\"legacy\",outcome=\"{outcome}\"}} 0");
        assert!(page.contains(&series), "{series}");
    }
    assert!(page.contains("countersign_lane_concurrency{destination=\"legacy\"} 4"));
    assert!(page.contains("countersign_forward_attempt_duration_seconds_count{destination=\"legacy\"} 0"));
    for (state, value) in [("open", 1), ("paused", 0), ("broken", 0), ("probing", 0)] {
        let series = format!("countersign_lane_state{{destination=\"legacy\",state=\"{state}\"}} {value}");
        assert!(page.contains(&series), "{series}");
    }
}
