//! What a destination allows holds for all gateways together: attempts at once, the rate, the breaker, and a pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::{Backend, Reply};
use crate::group::{SHARED, send};
use crate::sender::SECRET;
use crate::server::{Server, query};
use crate::support::{Gateway, countersign, eventually};

/// Requests that a backend has begun and not ended.
#[derive(Default)]
struct Busy {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Busy {
    /// One that takes so long.
    fn serve(&self, time: Duration) {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        thread::sleep(time);
        self.now.fetch_sub(1, Ordering::SeqCst);
    }

    /// Fewer may have been under way at once than may be: nobody knows how quickly the senders were.
    #[track_caller]
    fn never_more_than(&self, allowed: usize) {
        let most = self.most.load(Ordering::SeqCst);
        assert!((1..=allowed).contains(&most), "{most} at once");
    }
}

/// A backend that takes so long for each request, and never fails.
fn slow(time: Duration) -> (Backend, Arc<Busy>) {
    let busy = Arc::new(Busy::default());
    let served = Arc::clone(&busy);
    let backend = Backend::start(move |_, _| {
        served.serve(time);
        Reply::Status(200)
    });
    (backend, busy)
}

fn sections(backend: &Backend, lines: &str) -> String {
    format!(
        "{SHARED}[[source]]\nname = \"github\"\nprovider = \"github\"\nsecrets = [{{ value = \"{SECRET}\" }}]\n\
         to = [\"legacy\"]\n[[destination]]\nname = \"legacy\"\nurl = \"{}\"\n{lines}\n",
        backend.url()
    )
}

/// A gateway whose destination has these lines.
fn one(url: &str, backend: &Backend, lines: &str) -> Gateway {
    Gateway::start_with(&sections(backend, lines), |command| {
        command.env("DATABASE_URL", url);
    })
}

fn three(url: &str, backend: &Backend, lines: &str) -> [Gateway; 3] {
    [(); 3].map(|()| one(url, backend, lines))
}

/// Sends so many to each of these gateways at the same time, as providers do.
fn send_to_each(gateways: &[&Gateway], name: &str, count: usize) {
    thread::scope(|scope| {
        for (n, gateway) in gateways.iter().enumerate() {
            scope.spawn(move || {
                for m in 0..count {
                    assert_eq!(send(gateway, &format!("{name}-{n}-{m}")).status, 200);
                }
            });
        }
    });
}

/// Attempts that a gateway may run at once.
fn places(gateway: &Gateway) -> f64 {
    gateway.metric("countersign_lane_concurrency{destination=\"legacy\"}").unwrap()
}

#[track_caller]
fn eventually_divided(gateways: &[&Gateway], places_in_all: f64) {
    eventually("each has its share", || {
        let places: Vec<f64> = gateways.iter().map(|gateway| places(gateway)).collect();
        places.iter().sum::<f64>() == places_in_all && places.iter().all(|places| *places > 0.0)
    });
}

#[track_caller]
fn eventually_all(gateways: &[&Gateway], state: &str) {
    for gateway in gateways {
        let series = format!("countersign_lane_state{{destination=\"legacy\",state=\"{state}\"}}");
        gateway.eventually_metric(&series, 1.0);
    }
}

#[track_caller]
fn eventually_delivered(url: &str, count: usize) {
    let delivered = "SELECT count(*) FROM countersign.forward WHERE state = 'delivered'";
    eventually("everything is delivered", || query(url, delivered) == count.to_string());
}

#[test]
fn no_more_attempts_at_once_than_the_destination_allows() {
    let url = Server::shared().database();
    let (backend, busy) = slow(Duration::from_millis(30));
    // From the first moment on, while the places are being divided.
    let gateways = three(&url, &backend, "concurrency = 4");
    send_to_each(&gateways.each_ref(), "early", 30);
    eventually_divided(&gateways.each_ref(), 4.0);
    send_to_each(&gateways.each_ref(), "late", 70);
    eventually_delivered(&url, 300);
    assert_eq!(backend.got().len(), 300);
    busy.never_more_than(4);
}

#[test]
fn one_place_is_one_for_all_and_everything_gets_it() {
    let url = Server::shared().database();
    let (backend, busy) = slow(Duration::from_millis(10));
    let gateways = three(&url, &backend, "concurrency = 1");
    send_to_each(&gateways.each_ref(), "d", 20);
    eventually_delivered(&url, 60);
    assert_eq!(backend.got().len(), 60);
    busy.never_more_than(1);
    assert_eq!(gateways.each_ref().map(places).iter().sum::<f64>(), 1.0);
}

/// Killed or drained one after the other, each with another in its place at once.
#[test]
fn places_stay_exact_while_gateways_come_and_go() {
    let url = Server::shared().database();
    let (backend, busy) = slow(Duration::from_millis(20));
    let mut gateways = three(&url, &backend, "concurrency = 4");
    for round in 0..6 {
        thread::scope(|scope| {
            let (leaving, staying) = gateways.split_first_mut().unwrap();
            let staying: Vec<&Gateway> = staying.iter().collect();
            scope.spawn(move || send_to_each(&staying, &format!("r{round}"), 40));
            send_to_each(&[leaving], &format!("l{round}"), 10);
            leaving.signal(if round % 2 == 0 { "KILL" } else { "TERM" });
            leaving.wait();
        });
        gateways.rotate_left(1);
        gateways[2] = one(&url, &backend, "concurrency = 4");
    }
    eventually_delivered(&url, 6 * 90);
    busy.never_more_than(4);
}

#[test]
fn a_killed_gateways_places_are_used_by_the_others() {
    let url = Server::shared().database();
    let (backend, busy) = slow(Duration::from_millis(30));
    let [mut victim, one, other] = three(&url, &backend, "concurrency = 4");
    eventually_divided(&[&victim, &one, &other], 4.0);
    send_to_each(&[&victim, &one, &other], "early", 30);
    victim.kill();
    send_to_each(&[&one, &other], "meanwhile", 30);
    eventually_divided(&[&one, &other], 4.0);
    send_to_each(&[&one, &other], "late", 30);
    eventually_delivered(&url, 210);
    busy.never_more_than(4);
}

/// Longer than its lease: its places have been given away meanwhile.
#[test]
fn a_gateway_that_stood_still_has_no_more_than_the_others_leave() {
    let url = Server::shared().database();
    let (backend, busy) = slow(Duration::from_millis(30));
    let [still, one, other] = three(&url, &backend, "concurrency = 4");
    let all = [&still, &one, &other];
    eventually_divided(&all, 4.0);
    send_to_each(&all, "early", 30);
    still.signal("STOP");
    eventually_divided(&[&one, &other], 4.0);
    thread::scope(|scope| {
        scope.spawn(|| send_to_each(&[&one, &other], "meanwhile", 30));
        still.signal("CONT");
    });
    eventually_delivered(&url, 150);
    // A request that it was about to send when it was stopped may have left since.
    busy.never_more_than(6);
    busy.most.store(0, Ordering::SeqCst);
    send_to_each(&all, "late", 50);
    eventually_delivered(&url, 300);
    busy.never_more_than(4);
    eventually_divided(&all, 4.0);
}

#[test]
fn a_lowered_concurrency_holds_once_all_have_been_reloaded() {
    let url = Server::shared().database();
    let (backend, busy) = slow(Duration::from_millis(30));
    let gateways = three(&url, &backend, "concurrency = 9");
    eventually_divided(&gateways.each_ref(), 9.0);
    thread::scope(|scope| {
        scope.spawn(|| send_to_each(&gateways.each_ref(), "early", 60));
        for gateway in &gateways {
            gateway.rewrite(&sections(&backend, "concurrency = 3"));
            gateway.signal("HUP");
        }
    });
    eventually_divided(&gateways.each_ref(), 3.0);
    eventually_delivered(&url, 180);
    busy.never_more_than(9);
    busy.most.store(0, Ordering::SeqCst);
    send_to_each(&gateways.each_ref(), "late", 40);
    eventually_delivered(&url, 300);
    busy.never_more_than(3);
}

#[test]
fn the_rate_is_that_of_all_together() {
    let (url, backend) = (Server::shared().database(), Backend::accepting());
    let gateways = three(&url, &backend, "concurrency = 8\nrate = \"20/s\"");
    eventually_divided(&gateways.each_ref(), 8.0);
    let begun = Instant::now();
    send_to_each(&gateways.each_ref(), "d", 70);
    eventually_delivered(&url, 210);
    // Each gateway's first is at once.
    let at_least = Duration::from_secs_f64(f64::from(210 - 3) / (20.0 * 1.1));
    assert!(begun.elapsed() >= at_least, "{:?}", begun.elapsed());
}

#[test]
fn a_breaker_that_one_opens_is_open_for_all_and_one_of_them_probes() {
    let url = Server::shared().database();
    let (is_up, is_slow) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (up, busy, slow) = (Arc::clone(&is_up), Arc::new(Busy::default()), Arc::clone(&is_slow));
    let served = Arc::clone(&busy);
    let backend = Backend::start(move |_, _| {
        served.serve(if slow.load(Ordering::SeqCst) { Duration::from_millis(300) } else { Duration::ZERO });
        Reply::Status(if up.load(Ordering::SeqCst) { 200 } else { 503 })
    });
    // Long enough between two attempts for the others to have heard of the breaker.
    let breaker = "concurrency = 6\nbreaker = { failures = 2, probe_after = \"2s\", probe_max = \"2s\" }\n\
        retry = { initial = \"5s\", factor = 1.0, max = \"5s\", jitter = \"none\" }";
    let gateways = three(&url, &backend, breaker);
    eventually_divided(&gateways.each_ref(), 6.0);
    assert_eq!(send(&gateways[0], "first").status, 200);
    eventually_all(&gateways.each_ref(), "broken");
    let opened = gateways.iter().filter(|gateway| gateway.log().contains("as another gateway has found"));
    assert_eq!(opened.count(), 2, "one has opened it by itself");

    eventually("nothing is under way", || busy.now.load(Ordering::SeqCst) == 0);
    is_slow.store(true, Ordering::SeqCst);
    busy.most.store(0, Ordering::SeqCst);
    let before = backend.got().len();
    send_to_each(&gateways.each_ref(), "d", 10);
    backend.eventually_got(before + 3);
    // One probe at a time.
    busy.never_more_than(1);

    is_slow.store(false, Ordering::SeqCst);
    is_up.store(true, Ordering::SeqCst);
    eventually_delivered(&url, 31);
    eventually_all(&gateways.each_ref(), "open");
}

#[test]
fn a_pause_holds_at_all_gateways_and_over_restarts() {
    let (url, backend) = (Server::shared().database(), Backend::accepting());
    let gateways = three(&url, &backend, "");
    destinations(&gateways[0], "pause");
    eventually_all(&gateways.each_ref(), "paused");
    send_to_each(&gateways.each_ref(), "d", 5);
    drop(gateways);
    // Of other directories, as on other machines.
    let gateways = three(&url, &backend, "");
    eventually_all(&gateways.each_ref(), "paused");
    send_to_each(&gateways.each_ref(), "e", 5);
    assert_eq!(backend.got(), []);
    destinations(&gateways[2], "resume");
    eventually_all(&gateways.each_ref(), "open");
    eventually_delivered(&url, 30);
}

fn destinations(gateway: &Gateway, what: &str) {
    let admin = format!("http://{}", gateway.admin);
    let done = countersign().args(["destinations", what, "legacy", "--admin", &admin]).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}
