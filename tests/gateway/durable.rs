//! Promise: a 2xx means on disk, and what is on disk reaches the backend, whatever happens to the process.

use std::collections::HashSet;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::admin::get;
use crate::backend::{Backend, Reply};
use crate::sender::{Post, every_provider};
use crate::support::Gateway;

#[test]
fn an_attempt_cut_off_by_a_crash_is_made_again_and_stays_counted() {
    let backend = Backend::start(|number, _| if number == 0 { Reply::Hang } else { Reply::Status(200) });
    let gateway = Gateway::start(&every_provider(&backend));
    Post::signed("github", "/webhooks/github", "d-1", "push", b"{}").send(gateway.listen);
    backend.eventually_got(1);
    let gateway = gateway.kill_and_restart();
    let got = backend.eventually_got(2);
    assert_eq!(got[1].header("countersign-attempt"), Some("2"));
    gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
    // And is to be seen among the others.
    let id = get(&gateway, "deliveries")["deliveries"][0]["id"].clone();
    let attempts = get(&gateway, &format!("deliveries/{}", id.as_str().unwrap()))["attempts"].clone();
    let said = |attempt: &Value| format!("{} {}", attempt["number"], attempt["outcome"]);
    let seen: Vec<_> = attempts.as_array().unwrap().iter().map(said).collect();
    assert_eq!(seen, ["1 \"cut_off\"", "2 \"delivered\""], "{attempts}");
}

#[test]
fn a_drain_ends_with_zero_and_loses_nothing() {
    let backend = Backend::start(|number, _| {
        if number == 0 {
            thread::sleep(Duration::from_millis(500));
        }
        Reply::Status(if number < 3 { 503 } else { 200 })
    });
    let sections = every_provider(&backend) + "retry = { initial = \"100ms\", jitter = \"none\" }\n";
    let mut gateway = Gateway::start(&sections);
    for n in 0..3 {
        let id = format!("d-{n}");
        let post = Post::signed("github", "/webhooks/github", &id, "push", id.as_bytes());
        assert_eq!(post.send(gateway.listen).status, 200);
    }
    backend.eventually_got(1);
    gateway.signal("TERM");
    assert_eq!(gateway.wait(), Some(0));
    let gateway = gateway.kill_and_restart();
    gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
    let bodies: HashSet<_> = backend.got().into_iter().map(|got| got.body).collect();
    assert_eq!(bodies.len(), 3);
}

fn open_store(gateway: &Gateway) -> rusqlite::Connection {
    rusqlite::Connection::open(gateway.directory().join("data/countersign.db")).unwrap()
}

#[test]
fn a_store_that_cannot_write_is_a_503_and_ends_the_process_for_its_supervisor() {
    let backend = Backend::accepting();
    let mut gateway = Gateway::start(&every_provider(&backend));
    // The next commit fails in a way that no retry mends.
    open_store(&gateway).execute_batch("DROP TABLE forward").unwrap();
    let post = Post::signed("github", "/webhooks/github", "d-1", "push", b"{}");
    let answer = post.send(gateway.listen);
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").is_some());
    assert_eq!(gateway.wait(), Some(74));
    assert!(gateway.log().contains("the store has shut itself"), "{}", gateway.log());
    assert!(backend.got().is_empty());
}

#[test]
fn a_store_that_is_slow_is_a_503_at_the_deadline_and_what_became_of_it_is_counted() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&format!("listen.ack_deadline = \"300ms\"\n{}", every_provider(&backend)));
    let post = Post::signed("github", "/webhooks/github", "d-1", "push", b"{}");
    let stored = "countersign_ingest_requests_total{outcome=\"stored\",source=\"github\"}";
    let other = open_store(&gateway);
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let answer = post.send(gateway.listen);
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").is_some());
    assert_eq!(gateway.metric("countersign_ingest_late_total{source=\"github\"}"), Some(1.0));
    let acks = "countersign_ingest_ack_duration_seconds_count{source=\"github\"}";
    assert_eq!(gateway.metric(acks), Some(1.0), "late answers are measured, too");
    other.execute_batch("COMMIT").unwrap();
    // The provider tries again; whichever of the two came first, it is stored once.
    assert_eq!(post.send(gateway.listen).status, 200);
    gateway.eventually_metric(stored, 1.0);
    assert_eq!(backend.eventually_got(1).len(), 1);
}
