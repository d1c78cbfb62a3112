//! Promise: what gave up, and what was delivered, can be looked at and forwarded again, by id or by the thousand.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::{Value, json};

use crate::admin::{command, get, post};
use crate::backend::{Backend, Reply};
use crate::sender::{Post, SECRET, body};
use crate::support::{Gateway, countersign, eventually};

/// A backend whose answers can be changed, and a gateway that forwards everything from GitHub to it twice.
fn twice(status: u16, source: &str) -> (Arc<AtomicU16>, Backend, Gateway) {
    let answers = Arc::new(AtomicU16::new(status));
    let told = Arc::clone(&answers);
    let backend = Backend::start(move |_, _| Reply::Status(told.load(Ordering::SeqCst)));
    let url = backend.url();
    let gateway = Gateway::start(&format!(
        "[[source]]\nname = \"github\"\nprovider = \"github\"\nto = [\"a\", \"b\"]\n\
         secrets = [{{ value = \"{SECRET}\" }}]\n{source}\n\
         [[destination]]\nname = \"a\"\nurl = \"{url}/a\"\n[[destination]]\nname = \"b\"\nurl = \"{url}/b\"\n"
    ));
    (answers, backend, gateway)
}

fn send(gateway: &Gateway, id: &str) {
    let post = Post::signed("github", "/webhooks/github", id, "push", &body(id));
    assert_eq!(post.send(gateway.listen).status, 200);
}

fn settled(gateway: &Gateway) {
    for destination in ["a", "b"] {
        gateway
            .eventually_metric(&format!("countersign_forward_pending{{destination=\"{destination}\"}}"), 0.0);
    }
}

fn dead(gateway: &Gateway, destination: &str) -> f64 {
    gateway.metric(&format!("countersign_forward_dead{{destination=\"{destination}\"}}")).unwrap()
}

#[test]
fn a_delivery_is_shown_with_all_that_is_known_and_nothing_that_is_secret() {
    let (_, _backend, gateway) = twice(400, "");
    let hostile = "<script>alert(1)</script>";
    Post::signed("github", "/webhooks/github?token=hunter2", "d-1", "push", hostile.as_bytes())
        .with("X-Api-Key", "hunter2")
        .with("X-Shown", hostile)
        .send(gateway.listen);
    settled(&gateway);
    let list = get(&gateway, "deliveries?delivery_id=d-1");
    let id = list["deliveries"][0]["id"].as_str().unwrap();
    let text = get(&gateway, &format!("deliveries/{id}")).to_string();
    let detail: Value = serde_json::from_str(&text).unwrap();
    assert!(!text.contains("hunter2") && !text.contains("sha256="), "{text}");
    assert_eq!((&detail["body"], &detail["body_encoding"]), (&hostile.into(), &"utf-8".into()));
    assert_eq!((&detail["verified"], &detail["delivery_id"]), (&true.into(), &"d-1".into()));
    let states: Vec<_> = detail["forwards"].as_array().unwrap().iter().map(|f| f["state"].as_str()).collect();
    assert_eq!(states, [Some("dead"), Some("dead")]);
    assert_eq!(detail["attempts"][0]["status"], 400);
    assert!(detail["headers"].as_array().unwrap().contains(&json!(["x-shown", hostile])));
    let (status, raw) = gateway.admin_get(&format!("/api/v1/deliveries/{id}/body"));
    assert_eq!((status, raw.as_str()), (200, hostile));

    let shown = command(&gateway, &["deliveries", "show", id]);
    assert!(shown.1.contains("attempt 1: rejected 400") && !shown.1.contains("hunter2"), "{}", shown.1);
    assert_eq!(command(&gateway, &["deliveries", "show", id, "--body"]).1, hostile);
    let listed = command(&gateway, &["deliveries", "list", "--source", "github", "--since", "1h"]);
    assert!(listed.1.contains(id) && listed.1.contains("a: dead, b: dead"), "{}", listed.1);
}

#[test]
fn a_replay_to_one_destination_is_marked_keeps_its_id_and_leaves_the_others() {
    let (_, backend, gateway) = twice(200, "");
    send(&gateway, "d-1");
    let first = backend.eventually_got(2);
    settled(&gateway);
    let list = get(&gateway, "deliveries?state=delivered");
    let id = list["deliveries"][0]["id"].as_str().unwrap();
    let (status, changed) = post(&gateway, &format!("deliveries/{id}/replay"), json!({ "destination": "a" }));
    assert_eq!((status, &changed["changed"]), (200, &json!(["a"])));
    let again = backend.eventually_got(3).pop().unwrap();
    assert_eq!(again.target, "/hooks/a");
    assert_eq!(again.header("countersign-replay"), Some("true"));
    assert_eq!(again.header("webhook-id"), first[0].header("webhook-id"));
    assert_eq!((first[0].header("countersign-replay"), again.body), (None, body("d-1")));
    settled(&gateway);
    let (code, text, _) = command(&gateway, &["deliveries", "replay", id]);
    assert_eq!((code, text.as_str()), (Some(0), "a: forwarded again\nb: forwarded again\n"));
    backend.eventually_got(5);
    settled(&gateway);
    assert_eq!(backend.got().len(), 5);
    assert_eq!(post(&gateway, &format!("deliveries/{id}/replay"), json!({ "destination": "c" })).0, 404);
}

#[test]
fn dead_letters_are_grouped_replayed_at_a_rate_and_purged() {
    let (answers, backend, gateway) = twice(400, "");
    for n in 0..10 {
        send(&gateway, &format!("d-{n}"));
    }
    settled(&gateway);
    let document = get(&gateway, "dead");
    let group = |destination| json!({ "destination": destination, "outcome": "rejected", "count": 10 });
    assert_eq!(document["groups"], json!([group("a"), group("b")]));
    assert_eq!(document["deliveries"].as_array().unwrap().len(), 10);

    // Counting changes nothing.
    let dry = post(&gateway, "dead/replay", json!({ "destination": "a", "dry_run": true })).1;
    assert_eq!((&dry["state"], &dry["matched"], &dry["done"]), (&"done".into(), &10.into(), &0.into()));
    assert_eq!((dead(&gateway, "a"), dead(&gateway, "b")), (10.0, 10.0));

    answers.store(200, Ordering::SeqCst);
    let (code, text, error) =
        command(&gateway, &["dead", "replay", "--destination", "a", "--rate", "1000/s"]);
    assert_eq!((code, text.as_str()), (Some(0), "replay of 10 forwards: 10 done\n"), "{error}");
    backend.eventually_got(30);
    settled(&gateway);
    assert_eq!((dead(&gateway, "a"), dead(&gateway, "b")), (0.0, 10.0));

    let purged = post(&gateway, "dead/purge", json!({})).1;
    assert_eq!((&purged["kind"], &purged["done"]), (&"purge".into(), &10.into()));
    assert_eq!(dead(&gateway, "b"), 0.0);
    assert_eq!(get(&gateway, "dead")["groups"], json!([]));
    assert_eq!(get(&gateway, "deliveries?state=cancelled")["deliveries"].as_array().unwrap().len(), 10);
    assert_eq!(backend.got().len(), 30, "what was purged is not sent");
}

#[test]
fn a_slow_replay_tells_how_far_it_is_and_can_be_cancelled() {
    let (_, backend, gateway) = twice(200, "");
    for n in 0..10 {
        send(&gateway, &format!("d-{n}"));
    }
    settled(&gateway);
    assert_eq!(post(&gateway, "replay", json!({})).0, 400, "everything has to be asked for");
    assert_eq!(post(&gateway, "replay", json!({ "source": "github", "rate": "fast" })).0, 400);
    // One an hour: the first at once, and no second.
    let job = post(&gateway, "replay", json!({ "source": "github", "rate": "1/h" })).1;
    assert_eq!((&job["state"], &job["matched"], &job["done"]), (&"running".into(), &20.into(), &1.into()));
    let id = job["id"].as_str().unwrap();
    assert_eq!(get(&gateway, "jobs")["jobs"][0]["id"], job["id"]);
    let listed = command(&gateway, &["jobs", "list"]).1;
    assert!(listed.contains(id) && listed.contains("running"), "{listed}");
    let (code, text, _) = command(&gateway, &["jobs", "cancel", id]);
    assert!(code == Some(0) && text.starts_with(id), "{text}");
    eventually("the job ends", || get(&gateway, &format!("jobs/{id}"))["state"] == "cancelled");
    let ended = get(&gateway, &format!("jobs/{id}"));
    assert_eq!((&ended["done"], &ended["failed"]), (&1.into(), &0.into()), "it did not come to the rest");
    assert_eq!(post(&gateway, &format!("jobs/{id}/cancel"), json!({})).0, 409);
    backend.eventually_got(21);
    settled(&gateway);
    assert_eq!(backend.got().len(), 21);

    // Whoever interrupts the command is told that the job goes on, and how to end it.
    let admin = format!("http://{}", gateway.admin);
    let mut replay = countersign();
    replay.args(["replay", "--source", "github", "--rate", "1/h", "--admin", &admin]);
    let replay = replay.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let latest = || get(&gateway, "jobs")["jobs"][0].clone();
    eventually("it is running", || latest()["state"] == "running");
    let id = latest()["id"].as_str().unwrap().to_owned();
    let told =
        format!("the replay goes on in the gateway; `countersign jobs cancel {id}` ends it where it is\n");
    let interrupt = || Command::new("kill").args(["-INT", &replay.id().to_string()]).status().unwrap();
    assert!(interrupt().success());
    let output = replay.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr)), (Some(1), told.into()));
    assert_eq!(latest()["state"], "running");
    assert_eq!(post(&gateway, &format!("jobs/{id}/cancel"), json!({})).0, 200);

    // Only so many at a time; and none outlives the process.
    for _ in 0..4 {
        assert_eq!(post(&gateway, "replay", json!({ "source": "github", "rate": "1/h" })).0, 200);
    }
    assert_eq!(post(&gateway, "replay", json!({ "source": "github" })).0, 429);
    let gateway = gateway.kill_and_restart();
    assert_eq!(get(&gateway, "jobs"), json!({ "jobs": [] }));
}

#[test]
fn a_duplicate_of_a_dead_one_changes_nothing_where_it_is_absorbed() {
    let (_, backend, gateway) = twice(400, "on_duplicate_of_dead = \"absorb\"");
    send(&gateway, "d-1");
    settled(&gateway);
    send(&gateway, "d-1");
    let duplicates = "countersign_ingest_requests_total{outcome=\"duplicate\",source=\"github\"}";
    gateway.eventually_metric(duplicates, 1.0);
    assert_eq!((dead(&gateway, "a"), dead(&gateway, "b")), (1.0, 1.0));
    assert_eq!(backend.got().len(), 2);
}

#[test]
fn a_pause_outlives_a_restart() {
    let (_, backend, gateway) = twice(200, "");
    let (code, text, _) = command(&gateway, &["destinations", "pause", "a"]);
    assert_eq!((code, text.as_str()), (Some(0), "a: paused, 0 pending\n"));
    send(&gateway, "d-1");
    gateway
        .eventually_metric("countersign_forward_settled_total{destination=\"b\",state=\"delivered\"}", 1.0);
    let gateway = gateway.kill_and_restart();
    let listed = command(&gateway, &["destinations", "list"]).1;
    assert!(listed.contains("a            paused  0        1"), "{listed}");
    assert_eq!(backend.eventually_got(1)[0].target, "/hooks/b");
    assert_eq!(post(&gateway, "destinations/a/resume", json!({})).1["state"], "open");
    settled(&gateway);
    assert_eq!(backend.eventually_got(2)[1].target, "/hooks/a");
    let gateway = gateway.kill_and_restart();
    assert_eq!(get(&gateway, "destinations")["destinations"][0]["state"], "open");
    assert_eq!(post(&gateway, "destinations/c/pause", json!({})).0, 404);
}
