//! Promise: a delivery id of a source is accepted once, and a request without one is never a duplicate by accident.

use std::thread;
use std::time::Duration;

use countersign::clock::{Clock, later};

use crate::backend::{Backend, Reply};
use crate::sender::{Post, SECRET};
use crate::sender::{body, every_provider};
use crate::support::Gateway;

fn requests(gateway: &Gateway, source: &str, outcome: &str) -> f64 {
    let series = format!("countersign_ingest_requests_total{{outcome=\"{outcome}\",source=\"{source}\"}}");
    gateway.metric(&series).unwrap()
}

#[test]
fn a_hundred_concurrent_copies_are_one_delivery() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    let copy = Post::signed("stripe", "/webhooks/stripe", "evt_1", "x", &body("evt_1"));
    let statuses: Vec<u16> = thread::scope(|scope| {
        let copies: Vec<_> = (0..100).map(|_| scope.spawn(|| copy.send(gateway.listen).status)).collect();
        copies.into_iter().map(|copy| copy.join().unwrap()).collect()
    });
    assert_eq!(statuses, [200; 100]);
    assert_eq!(requests(&gateway, "stripe", "stored"), 1.0);
    assert_eq!(requests(&gateway, "stripe", "duplicate"), 99.0);
    // A later delivery shows that no second forward came before it.
    Post::signed("stripe", "/webhooks/stripe", "evt_2", "x", &body("evt_2")).send(gateway.listen);
    let got = backend.eventually_got(2);
    assert_eq!(got.iter().filter(|got| got.header("countersign-delivery-id") == Some("evt_1")).count(), 1);
}

#[test]
fn duplicates_are_still_duplicates_after_a_restart() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    let post = |at| Post::signed_at("owlette", "/webhooks/owlette", "d-1", "x", &body("d-1"), SECRET, at);
    let now = Clock::system().now();
    assert_eq!(post(now).send(gateway.listen).status, 200);
    backend.eventually_got(1);
    let gateway = gateway.kill_and_restart();
    // A provider signs a retry afresh.
    assert_eq!(post(later(now, Duration::from_secs(5))).send(gateway.listen).status, 200);
    assert_eq!(requests(&gateway, "owlette", "stored"), 0.0);
    assert_eq!(requests(&gateway, "owlette", "duplicate"), 1.0);
}

#[test]
fn a_captured_request_with_a_fresh_id_is_absorbed() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    for (provider, header) in [("github", "x-github-delivery"), ("owlette", "roost-delivery")] {
        let target = format!("/webhooks/{provider}");
        let captured = Post::signed(provider, &target, "d-1", "push", br#"{"a":1}"#);
        assert_eq!(captured.send(gateway.listen).status, 200);
        let replayed = captured.without(header).with(header, "d-2");
        assert_eq!(replayed.send(gateway.listen).status, 200);
        assert_eq!(requests(&gateway, provider, "stored"), 1.0, "{provider}");
        assert_eq!(requests(&gateway, provider, "duplicate"), 1.0, "{provider}");
    }
}

#[test]
fn a_replay_is_refused_where_the_source_says_so() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&format!(
        "[[source]]\nname = \"gh\"\nprovider = \"github\"\nreplay_guard = \"reject\"\non_missing_id = \"reject\"\n\
         secrets = [{{ value = \"{SECRET}\" }}]\nto = [\"legacy\"]\n\
         [[destination]]\nname = \"legacy\"\nurl = \"{}\"\n",
        backend.url()
    ));
    let captured = Post::signed("github", "/webhooks/gh", "d-1", "push", br#"{"a":1}"#);
    assert_eq!(captured.send(gateway.listen).status, 200);
    // The provider's own retry is no replay.
    assert_eq!(captured.send(gateway.listen).status, 200);
    for _ in 0..2 {
        let replayed = captured.clone().without("x-github-delivery").with("x-github-delivery", "d-2");
        assert_eq!(replayed.send(gateway.listen).status, 401);
    }
    assert_eq!(captured.without("x-github-delivery").send(gateway.listen).status, 401);
}

#[test]
fn without_an_id_two_deliveries_are_two() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    // A token signs nothing, so not even equal bodies are the same delivery.
    let keyless =
        Post { headers: Vec::new(), ..Post::signed("ownstak", "/webhooks/ownstak", "", "", b"same") };
    let keyless = keyless.with("Authorization", format!("Bearer {SECRET}"));
    assert_eq!(keyless.send(gateway.listen).status, 200);
    assert_eq!(keyless.send(gateway.listen).status, 200);
    backend.eventually_got(2);
    assert_eq!(requests(&gateway, "ownstak", "stored"), 2.0);
}

#[test]
fn an_id_belongs_to_its_source() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    for provider in ["stripe", "hostwares"] {
        let target = format!("/webhooks/{provider}");
        assert_eq!(
            Post::signed(provider, &target, "same", "x", &body("same")).send(gateway.listen).status,
            200
        );
        assert_eq!(requests(&gateway, provider, "stored"), 1.0);
    }
}

#[test]
fn another_body_under_the_same_id_is_a_duplicate_and_counted_as_a_conflict() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    for body in [&br#"{"a":1}"#[..], br#"{"a":2}"#] {
        let post = Post::signed("github", "/webhooks/github", "d-1", "push", body);
        assert_eq!(post.send(gateway.listen).status, 200);
    }
    gateway.eventually_metric("countersign_ingest_conflicts_total{source=\"github\"}", 1.0);
    assert_eq!(backend.eventually_got(1)[0].body, br#"{"a":1}"#);
}

#[test]
fn a_redelivery_brings_a_dead_forward_back() {
    let backend = Backend::start(|number, _| Reply::Status(if number == 0 { 400 } else { 200 }));
    let gateway = Gateway::start(&every_provider(&backend));
    let post = Post::signed("github", "/webhooks/github", "d-1", "push", b"{}");
    assert_eq!(post.send(gateway.listen).status, 200);
    gateway.eventually_metric("countersign_forward_dead{destination=\"legacy\"}", 1.0);
    assert_eq!(post.send(gateway.listen).status, 200);
    let got = backend.eventually_got(2);
    assert_eq!(got[1].header("countersign-replay"), Some("true"));
    assert_eq!(got[0].header("webhook-id"), got[1].header("webhook-id"));
    gateway.eventually_metric("countersign_forward_dead{destination=\"legacy\"}", 0.0);
}
