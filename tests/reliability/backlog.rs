//! Very many waiting forwards: the start does not wait for them, they do not fill the memory, and after an outage they
//! come at the allowed rate, all of them, while new deliveries are acknowledged as ever.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use countersign::clock::{Clock, Moment, Steady, later};
use countersign::dedup::Keys;
use countersign::delivery::Received;
use countersign::id::Id;
use countersign::metrics::Metrics;
use countersign::store::{Accepted, Arrival, Store as _, sqlite};
use countersign::verify::Verifier;
use futures_util::future::join_all;
use http::{HeaderMap, Method};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::backend::{Backend, Reply};
use crate::sender::Post;
use crate::soak;
use crate::store_support::Lanes;
use crate::support::{Gateway, PATIENCE};

const BODY_BYTES: usize = 1 << 10;

/// The body of the `number`th that waits.
fn body(number: usize) -> Bytes {
    format!("{number:0>BODY_BYTES$}").into()
}

/// Has `count` deliveries wait for `legacy` in the store below `directory`, written by the store itself.
fn fill(directory: &Path, count: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let options = sqlite::Options {
            directory: directory.join("data"),
            disk_reserve: Some(0),
            metrics: Metrics::new(),
        };
        let store = sqlite::open(options, Arc::new(Lanes::default())).unwrap();
        let (now, verifier) = (Clock::system().now(), Verifier::unverified());
        let arrival = |number: usize| {
            let mut order = [0; 10];
            order[2..].copy_from_slice(&number.to_be_bytes());
            let received = Received {
                id: Id::new(now, order),
                source: "plain".into(),
                received_at: now,
                sender: [127, 0, 0, 1].into(),
                method: Method::POST,
                target: "/webhooks/plain".to_owned(),
                headers: HeaderMap::new(),
                body: body(number),
            };
            let verified = Arc::new(verifier.verify(received).unwrap());
            Arrival {
                keys: Keys::of(&verified, false),
                verified,
                at: Moment { wall: now, steady: Steady { time: now, behind: Duration::ZERO } },
                claimed_until: later(now, Duration::from_hours(1)),
                destinations: vec!["legacy".into()],
                revive_dead: false,
            }
        };
        for first in (0..count).step_by(500) {
            let accepted = (first..count.min(first + 500)).map(|number| store.accept(arrival(number)));
            for accepted in join_all(accepted).await {
                assert_eq!(accepted, Ok(Accepted::Stored));
            }
        }
        store.close().await;
    });
}

fn sections(backend: &Backend, destination: &str) -> String {
    format!(
        "[[source]]\nname = \"plain\"\nverify = \"none\"\nto = [\"legacy\"]\n\
         [[destination]]\nname = \"legacy\"\nurl = \"{}\"\n{destination}\n",
        backend.url()
    )
}

/// Starts over a store that is there already.
fn start(directory: Arc<TempDir>, sections: &str) -> Gateway {
    crate::support::write_config(directory.path(), sections);
    Gateway::start_in(directory, |command| {
        command.env("RUST_LOG", "countersign=warn");
    })
}

fn post(gateway: &Gateway, text: &str) -> u16 {
    let post = Post {
        method: "POST",
        target: "/webhooks/plain".to_owned(),
        headers: Vec::new(),
        body: text.as_bytes().to_vec(),
    };
    post.send(gateway.listen).status
}

/// Memory that the process holds, in MiB.
fn resident(gateway: &Gateway) -> u64 {
    gateway.resident_bytes() >> 20
}

/// MiB. The process itself takes some 30; 16 attempts under way, and as many that are being leased, add next to nothing.
/// The waiting bodies alone would be 98.
const RESIDENT_MAX: u64 = 80;

#[test]
fn a_hundred_thousand_waiting_delay_no_start_and_fill_no_memory() {
    let waiting = 100_000;
    let directory = Arc::new(tempfile::tempdir().unwrap());
    fill(directory.path(), waiting);

    let hanging = Backend::start(|_, _| Reply::Hang);
    let started = Instant::now();
    let mut gateway = start(Arc::clone(&directory), &sections(&hanging, ""));
    let ready = started.elapsed();
    let at_ready = resident(&gateway);
    hanging.eventually_got(16);
    assert_eq!(post(&gateway, "new"), 200);
    let pending = gateway.metric("countersign_forward_pending{destination=\"legacy\"}");
    assert_eq!(pending, Some((waiting + 1) as f64));
    let while_hanging = resident(&gateway);
    gateway.kill();

    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    let fast = Backend::start(move |_, _| {
        count.fetch_add(1, Ordering::Relaxed);
        Reply::Status(200)
    });
    let drained = soak(5_000, waiting + 1);
    let started = Instant::now();
    let gateway = start(directory, &sections(&fast, ""));
    let again = started.elapsed();
    let mut while_draining = 0;
    let started = Instant::now();
    while accepted.load(Ordering::Relaxed) < drained {
        assert!(started.elapsed() < PATIENCE * 10);
        while_draining = while_draining.max(resident(&gateway));
        thread::sleep(Duration::from_millis(20));
    }
    println!(
        "{waiting} waiting: ready in {ready:?} and {again:?}; {at_ready} MiB at ready, {while_hanging} MiB while the \
         backend hangs, {while_draining} MiB while {drained} are delivered in {:?}",
        started.elapsed()
    );
    assert!(ready.max(again) < Duration::from_secs(2));
    assert!(at_ready.max(while_hanging).max(while_draining) < RESIDENT_MAX);
}

#[test]
fn what_waited_through_an_outage_comes_at_the_allowed_rate() {
    const RATE: usize = 1_000;
    let waiting = soak(3_000, 50_000);
    let directory = Arc::new(tempfile::tempdir().unwrap());
    fill(directory.path(), waiting);

    let up = Arc::new(AtomicBool::new(false));
    let (arrivals, bodies) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(HashSet::new())));
    let backend = {
        let (up, arrivals, bodies) = (Arc::clone(&up), Arc::clone(&arrivals), Arc::clone(&bodies));
        Backend::start(move |_, got| {
            arrivals.lock().unwrap().push(Instant::now());
            if !up.load(Ordering::Relaxed) {
                return Reply::Status(503);
            }
            bodies.lock().unwrap().insert(got.body.clone());
            Reply::Status(200)
        })
    };
    let destination = format!(
        "rate = \"{RATE}/s\"\nbreaker = {{ failures = 10, probe_after = \"100ms\", probe_max = \"200ms\" }}\n\
         retry = {{ initial = \"100ms\", max = \"200ms\" }}"
    );
    let gateway = start(directory, &sections(&backend, &destination));
    gateway.eventually_admin("/metrics", "countersign_lane_state{destination=\"legacy\",state=\"broken\"} 1");
    up.store(true, Ordering::Relaxed);
    let started = Instant::now();
    let mut acks = Vec::new();
    while bodies.lock().unwrap().len() < waiting + acks.len() {
        assert!(started.elapsed() < PATIENCE + Duration::from_secs((waiting / RATE * 2) as u64));
        let sent = Instant::now();
        // Few enough that the backlog shrinks.
        if acks.len() < waiting / 5 {
            assert_eq!(post(&gateway, &format!("new {}", acks.len())), 200);
            acks.push(sent.elapsed());
        }
        thread::sleep(Duration::from_millis(20));
    }
    let took = started.elapsed();
    gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
    assert_eq!(gateway.metric("countersign_forward_dead{destination=\"legacy\"}"), Some(0.0));

    let bodies = bodies.lock().unwrap();
    assert!((0..waiting).all(|number| bodies.contains(&body(number)[..])), "not all were delivered");
    let arrivals = arrivals.lock().unwrap();
    let window = Duration::from_secs(2);
    let most =
        (0..arrivals.len()).map(|n| arrivals[n..].partition_point(|time| *time < arrivals[n] + window));
    let most = most.max().unwrap();
    acks.sort();
    let (p50, p99) = (acks[acks.len() / 2], acks[acks.len() * 99 / 100]);
    println!(
        "{waiting} after an outage in {took:?}, at most {most} in {window:?} at {RATE}/s; {} new ones meanwhile, \
         answered in {p50:?} (p99 {p99:?})",
        acks.len()
    );
    // A tenth for what is held up on its way and then arrives with the next.
    assert!(most <= RATE * 2 * 11 / 10);
}
