//! SIGTERM: the process ends in time and with 0, whatever senders and backends are in the middle of; what was
//! acknowledged is stored or forwarded, and what is not was not acknowledged.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::Backend;
use crate::disk::Disk;
use crate::ending::Ending;
use crate::sender::{Post, SECRET, Wire, body, every_provider};
use crate::soak;
use crate::support::{Gateway, eventually};

/// Scheduling on a busy machine; a drain that waits for what it should not takes far longer.
const SLACK: Duration = Duration::from_secs(5);

/// Of a sender that nobody listens to any more.
const PAUSE: Duration = Duration::from_millis(20);

fn post(id: &str) -> Post {
    Post::signed("stripe", "/webhooks/stripe", id, "x", &body(id))
}

fn hung(id: &str) -> Post {
    Post::signed("github", "/webhooks/github", id, "push", &body(id))
}

/// A backend that takes every connection and never says anything.
fn hanging() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    address
}

/// Stripe goes to a backend that answers, GitHub to one that hangs.
fn sections(drain: &str, healthy: &Backend, hanging: &str) -> String {
    format!(
        "limits.drain = \"{drain}\"\nlimits.connections_per_address = 10000\n\
         [[source]]\nname = \"stripe\"\nprovider = \"stripe\"\nsecrets = [{{ value = \"{SECRET}\" }}]\nto = [\"legacy\"]\n\
         [[source]]\nname = \"github\"\nprovider = \"github\"\nsecrets = [{{ value = \"{SECRET}\" }}]\nto = [\"hanging\"]\n\
         [[destination]]\nname = \"legacy\"\nurl = \"{}\"\n\
         [[destination]]\nname = \"hanging\"\nurl = \"{hanging}\"\nconcurrency = 1000\ntimeout = \"15m\"\n",
        healthy.url(),
    )
}

/// Starts what has ended anew, with every backend well, and has everything delivered. None of the acknowledged ids may
/// be missing; bodies are compared whole.
fn nothing_is_lost(ended: &Gateway, backend: &Backend, acked: &[String]) {
    ended.rewrite(&sections("20s", backend, &backend.url()));
    let gateway = Gateway::start_in(ended.directory_held(), |_| ());
    for destination in ["legacy", "hanging"] {
        let pending = format!("countersign_forward_pending{{destination=\"{destination}\"}}");
        gateway.eventually_metric(&pending, 0.0);
    }
    let got: HashSet<Vec<u8>> = backend.got().into_iter().map(|got| got.body).collect();
    let lost: Vec<_> = acked.iter().filter(|id| !got.contains(&body(id))).collect();
    assert!(lost.is_empty(), "{} of {} lost: {lost:?}", lost.len(), acked.len());
}

/// What the senders of one gateway share.
#[derive(Default)]
struct Load {
    name: usize,
    next: AtomicUsize,
    stop: AtomicBool,
    acked: Mutex<Vec<String>>,
}

impl Load {
    fn id(&self) -> String {
        format!("g{}-{}", self.name, self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn ack(&self, id: String) {
        self.acked.lock().unwrap().push(id);
    }

    fn count(&self) -> usize {
        self.acked.lock().unwrap().len()
    }

    fn open(to: SocketAddr) -> Option<Wire> {
        let wire = Wire::open(to);
        if wire.is_none() {
            thread::sleep(PAUSE);
        }
        wire
    }

    /// A connection per request.
    fn one_by_one(&self, to: SocketAddr) {
        while !self.stop.load(Ordering::Relaxed) {
            let id = self.id();
            let post =
                if self.next.load(Ordering::Relaxed).is_multiple_of(4) { hung(&id) } else { post(&id) };
            match post.try_send(to) {
                Some(answer) if answer.status == 200 => self.ack(id),
                // Not acknowledged, so that nothing was promised.
                Some(_) | None => thread::sleep(PAUSE),
            }
        }
    }

    /// Two requests at a time on a connection that is kept, until it is closed.
    fn pipelined(&self, to: SocketAddr) {
        while !self.stop.load(Ordering::Relaxed) {
            let Some(mut wire) = Self::open(to) else { continue };
            let mut open = true;
            while open {
                let ids = [self.id(), self.id()];
                wire.write(&ids.each_ref().map(|id| post(id).bytes()).concat());
                for id in ids {
                    let answer = wire.read();
                    open &= answer.as_ref().is_some_and(|answer| answer.header("connection").is_none());
                    if answer.is_some_and(|answer| answer.status == 200) {
                        self.ack(id);
                    }
                }
            }
        }
    }

    /// A body that comes in pieces, before and after the signal.
    fn dripping(&self, to: SocketAddr) {
        while !self.stop.load(Ordering::Relaxed) {
            let id = self.id();
            let Some(mut wire) = Self::open(to) else { continue };
            let bytes = post(&id).bytes();
            for piece in bytes.chunks(bytes.len() / 8 + 1) {
                wire.write(piece);
                thread::sleep(Duration::from_millis(30));
            }
            if wire.read().is_some_and(|answer| answer.status == 200) {
                self.ack(id);
            }
        }
    }
}

/// A request of whose body the last bytes have not been sent.
struct Half {
    wire: Wire,
    id: String,
    rest: Vec<u8>,
}

impl Half {
    fn send(to: SocketAddr, id: String) -> Self {
        let post = post(&id);
        Self::begin(to, id, &post)
    }

    fn begin(to: SocketAddr, id: String, post: &Post) -> Self {
        let mut bytes = post.bytes();
        let rest = bytes.split_off(bytes.len() - 10);
        let mut wire = Wire::open(to).unwrap();
        wire.write(&bytes);
        Self { wire, id, rest }
    }
}

/// Bytes that requests with half a body hold: they have been read so far.
fn eventually_held(gateway: &Gateway) {
    eventually("the bodies are being read", || {
        gateway.metric("countersign_ingest_in_flight_bytes").unwrap() > 0.0
    });
}

#[test]
fn terminated_fifty_times_under_load_it_loses_nothing_and_exits_with_zero_in_time() {
    let rounds = soak(50, 500);
    let gateways = 10;
    let (slowest, total) = (Mutex::new(Duration::ZERO), AtomicUsize::new(0));
    thread::scope(|scope| {
        for name in 0..gateways {
            let (slowest, total) = (&slowest, &total);
            scope.spawn(move || {
                let backend = Backend::accepting();
                let hanging = format!("http://{}/", hanging());
                let load = Load { name, ..Load::default() };
                let mut gateway = Gateway::start(&sections("4s", &backend, &hanging));
                for round in 0..rounds / gateways {
                    // Those hold it up for as long as it may take.
                    let abandoned = if round % 5 == 0 { 3 } else { 0 };
                    let took = terminated_under_load(&mut gateway, &load, abandoned);
                    let mut slowest = slowest.lock().unwrap();
                    *slowest = took.max(*slowest);
                    drop(slowest);
                    gateway = Gateway::start_in(gateway.directory_held(), |_| ());
                }
                gateway.kill();
                let acked = load.acked.lock().unwrap();
                total.fetch_add(acked.len(), Ordering::Relaxed);
                nothing_is_lost(&gateway, &backend, &acked);
            });
        }
    });
    let (slowest, total) = (slowest.into_inner().unwrap(), total.into_inner());
    println!("{rounds} terminations, slowest exit {slowest:?}, {total} acknowledged, 0 lost");
}

fn terminated_under_load(gateway: &mut Gateway, load: &Load, abandoned: usize) -> Duration {
    let enough = load.count() + 40;
    let to = gateway.listen;
    load.stop.store(false, Ordering::Relaxed);
    let took = thread::scope(|scope| {
        let _ending = Ending(&load.stop);
        scope.spawn(|| load.one_by_one(to));
        scope.spawn(|| load.one_by_one(to));
        scope.spawn(|| load.pipelined(to));
        scope.spawn(|| load.dripping(to));
        let completed: Vec<_> = (0..3).map(|_| Half::send(to, load.id())).collect();
        let abandoned: Vec<_> = (0..abandoned).map(|_| Half::send(to, load.id())).collect();
        eventually("enough is acknowledged", || load.count() >= enough);
        eventually_held(gateway);
        let asked = Instant::now();
        gateway.signal("TERM");
        for Half { mut wire, id, rest } in completed {
            wire.write(&rest);
            let answer = wire.read().expect("what was begun is answered");
            assert_eq!(answer.status, 200, "{id}");
            load.ack(id);
        }
        for mut half in abandoned {
            let answer = half.wire.read().expect("what does not come in time is refused");
            assert_eq!((answer.status, answer.header("connection")), (503, Some("close")), "{}", half.id);
        }
        assert_eq!(gateway.wait(), Some(0), "{}", gateway.log());
        asked.elapsed()
    });
    assert!(took < Duration::from_secs(4) + SLACK, "{took:?}: {}", gateway.log());
    took
}

/// A thousand attempts used to hold the exit up for as long as a drain may take.
#[test]
fn a_thousand_hanging_forwards_are_left_at_once_and_are_not_lost() {
    let backend = Backend::accepting();
    let mut gateway = Gateway::start(&sections("60s", &backend, &format!("http://{}/", hanging())));
    let (next, acked) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let number = next.fetch_add(1, Ordering::Relaxed)
                    && number < 1000
                {
                    let id = format!("h-{number}");
                    assert_eq!(hung(&id).send(gateway.listen).status, 200);
                    acked.lock().unwrap().push(id);
                }
            });
        }
    });
    gateway.eventually_admin("/api/v1/status", "\"running\":1000");
    let asked = Instant::now();
    gateway.signal("TERM");
    assert_eq!(gateway.wait(), Some(0));
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(2) + SLACK, "{took:?}: {}", gateway.log());
    println!("1000 hanging forwards, exit after {took:?}");
    let acked = acked.into_inner().unwrap();
    assert_eq!(acked.len(), 1000);
    nothing_is_lost(&gateway, &backend, &acked);
}

#[test]
fn readiness_goes_first_then_new_connections_and_operators_see_it_to_the_end() {
    let backend = Backend::accepting();
    let mut gateway = Gateway::start(&format!(
        "limits.drain = \"60s\"\nlimits.drain_delay = \"3s\"\n{}",
        every_provider(&backend)
    ));
    let mut kept = Wire::open(gateway.listen).unwrap();
    let mut over_kept = |id: &str| {
        kept.write(&post(id).bytes());
        kept.read().unwrap()
    };
    assert_eq!(over_kept("d-1").status, 200);
    // So much of it that a minute's wait for the rest is not too slow.
    let long = [body("d-2"), vec![b' '; 64 << 10]].concat();
    let long = Post::signed("stripe", "/webhooks/stripe", "d-2", "x", &long);
    let mut half = Half::begin(gateway.listen, "d-2".to_owned(), &long);
    eventually_held(&gateway);

    gateway.signal("TERM");
    eventually("it is not ready", || {
        gateway.admin_get("/readyz") == (503, "not ready: draining\n".to_owned())
    });
    // Served as usual: connections are taken, and kept.
    let answer = over_kept("d-3");
    assert_eq!((answer.status, answer.header("connection")), (200, None));
    assert_eq!(post("d-4").send(gateway.listen).status, 200);

    eventually("no more connections are taken", || Wire::open(gateway.listen).is_none());
    assert_eq!(gateway.admin_get("/livez").0, 200);
    assert_eq!(gateway.admin_get("/readyz").0, 503);
    // The idle one is closed, the one with a request in progress is not.
    gateway.eventually_metric("countersign_ingest_connections", 1.0);
    half.wire.write(&half.rest);
    let answer = half.wire.read().unwrap();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert_eq!(gateway.wait(), Some(0));
    let gateway = Gateway::start_in(gateway.directory_held(), |_| ());
    gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
    assert_eq!(backend.eventually_got(4).len(), 4);
}

/// Closing the socket resets the connections that wait in its queue, and with them the requests that their senders have
/// sent already.
#[test]
fn what_the_kernel_has_accepted_is_answered_too() {
    let backend = Backend::accepting();
    let mut gateway = Gateway::start(&every_provider(&backend));
    gateway.signal("STOP");
    let mut queued: Vec<_> = (0..50)
        .map(|number| {
            let mut wire = Wire::open(gateway.listen).unwrap();
            wire.write(&post(&format!("d-{number}")).bytes());
            wire
        })
        .collect();
    gateway.signal("TERM");
    gateway.signal("CONT");
    for wire in &mut queued {
        assert_eq!(wire.read().expect("no reset").status, 200);
    }
    assert_eq!(gateway.wait(), Some(0));
}

#[test]
fn a_second_signal_ends_at_once_and_loses_nothing() {
    for second in ["TERM", "INT"] {
        let backend = Backend::accepting();
        let mut gateway = Gateway::start(&sections("10m", &backend, &format!("http://{}/", hanging())));
        let acked: Vec<_> = (0..20).map(|number| format!("s-{number}")).collect();
        for id in &acked[..10] {
            assert_eq!(post(id).send(gateway.listen).status, 200);
        }
        for id in &acked[10..] {
            assert_eq!(hung(id).send(gateway.listen).status, 200);
        }
        let _half = Half::send(gateway.listen, "never".to_owned());
        eventually_held(&gateway);
        gateway.signal("TERM");
        gateway.eventually_admin("/readyz", "draining");
        let asked = Instant::now();
        gateway.signal(second);
        assert_eq!(gateway.wait(), Some(0));
        assert!(asked.elapsed() < SLACK);
        assert!(gateway.log().contains("second signal"), "{}", gateway.log());
        nothing_is_lost(&gateway, &backend, &acked);
    }
}

/// Closing the store alone was given 5 s, however short the drain.
#[test]
fn a_disk_that_hangs_does_not_hold_the_exit_up() {
    let backend = Backend::accepting();
    let sections = sections("1s", &backend, &backend.url());
    let disk = Disk::new(&format!("listen.ack_deadline = \"100ms\"\n{sections}"));
    let mut gateway = disk.start().unwrap_or_else(|failed| panic!("{failed:?}"));
    assert_eq!(post("d-1").send(gateway.listen).status, 200);
    gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
    disk.rule("slow 600000");
    assert_eq!(post("d-2").send(gateway.listen).status, 503, "not on disk, and so not acknowledged");
    let asked = Instant::now();
    gateway.signal("TERM");
    assert_eq!(gateway.wait(), Some(0), "{}", gateway.log());
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    assert!(gateway.log().contains("the store could not be closed in time"), "{}", gateway.log());
    nothing_is_lost(&gateway, &backend, &["d-1".to_owned()]);
}
