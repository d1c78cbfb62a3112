//! SIGKILL under load: what was acknowledged is delivered or stored, and duplicates stay duplicates.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::backend::{Backend, Reply};
use crate::sender::{Post, body, every_provider};
use crate::support::{Gateway, eventually};

/// Sends until told to stop; returns the ids that were acknowledged.
fn load(gateway: &Gateway, next: &AtomicUsize, stop: &AtomicBool, acked: &Mutex<Vec<String>>) {
    while !stop.load(Ordering::Relaxed) {
        let id = format!("d-{}", next.fetch_add(1, Ordering::Relaxed));
        let post = Post::signed("stripe", "/webhooks/stripe", &id, "x", &body(&id));
        match post.try_send(gateway.listen) {
            Some(answer) if answer.status == 200 => acked.lock().unwrap().push(id),
            _ => {}
        }
    }
}

#[test]
fn acked_deliveries_survive_kill_nine() {
    // Half of the attempts fail, so that there are always waiting ones when the process dies.
    let backend = Backend::start(|number, _| Reply::Status(if number % 2 == 0 { 503 } else { 200 }));
    let sections =
        every_provider(&backend) + "retry = { initial = \"50ms\", max = \"200ms\" }\nbreaker = \"off\"\n";
    let mut gateway = Gateway::start(&sections);
    let (next, acked) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    for round in 1..=5 {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| load(&gateway, &next, &stop, &acked));
            }
            eventually("enough is acknowledged", || acked.lock().unwrap().len() >= round * 100);
            gateway.signal("KILL");
            stop.store(true, Ordering::Relaxed);
        });
        gateway = gateway.kill_and_restart();
    }
    let acked = acked.into_inner().unwrap();
    assert!(acked.len() >= 500);
    gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
    let got = backend.got();
    let bodies: HashSet<&[u8]> = got.iter().map(|got| got.body.as_slice()).collect();
    let lost: Vec<_> = acked.iter().filter(|id| !bodies.contains(body(id).as_slice())).collect();
    assert!(lost.is_empty(), "{} of {} lost: {lost:?}", lost.len(), acked.len());
    // And each is still a duplicate.
    for id in acked.iter().step_by(50) {
        let post = Post::signed("stripe", "/webhooks/stripe", id, "x", &body(id));
        assert_eq!(post.send(gateway.listen).status, 200);
    }
    let stored = "countersign_ingest_requests_total{outcome=\"stored\",source=\"stripe\"}";
    assert_eq!(gateway.metric(stored), Some(0.0));
}
