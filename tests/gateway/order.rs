//! Promise: forwards of one key arrive in the order of their acceptance, one at a time, whatever ends in between; and what
//! waits for a destination that is not configured any more waits visibly, until it is back.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::backend::{Backend, Got, Reply};
use crate::sender::{Post, SECRET};
use crate::support::{Gateway, eventually, run};

fn config(url: &str, lines: &str) -> String {
    format!(
        "[[source]]\nname = \"github\"\nprovider = \"github\"\nsecrets = [{{ value = \"{SECRET}\" }}]\nto = [\"legacy\"]\n\
         [[destination]]\nname = \"legacy\"\nurl = \"{url}\"\nbreaker = \"off\"\n\
         retry = {{ initial = \"20ms\", factor = 1.0, max = \"20ms\" }}\n{lines}"
    )
}

fn send(gateway: &Gateway, id: &str, body: &str) {
    let post = Post::signed("github", "/webhooks/github", id, "push", body.as_bytes());
    assert_eq!(post.send(gateway.listen).status, 200);
}

fn site_and_number(got: &Got) -> (u64, u64) {
    let body: serde_json::Value = serde_json::from_slice(&got.body).unwrap();
    (body["data"]["site"].as_u64().unwrap(), body["n"].as_u64().unwrap())
}

#[test]
fn one_key_keeps_its_order_through_failures_and_kill_nine() {
    static ACCEPTED: Mutex<Vec<(u64, u64)>> = Mutex::new(Vec::new());
    static BUSY: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
    let backend = Backend::start(|number, got| {
        let (site, n) = site_and_number(got);
        let busy = &BUSY[usize::try_from(site).unwrap()];
        assert_eq!(busy.fetch_add(1, Ordering::SeqCst), 0, "two of one site at once");
        let fails = number % 3 == 0;
        if !fails {
            ACCEPTED.lock().unwrap().push((site, n));
        }
        busy.fetch_sub(1, Ordering::SeqCst);
        Reply::Status(if fails { 503 } else { 200 })
    });
    let mut gateway = Gateway::start(&config(&backend.url(), "order = { key = \"/data/site\" }\n"));
    for n in 0..90 {
        if n == 60 {
            gateway = gateway.kill_and_restart();
        }
        send(&gateway, &format!("d-{n}"), &format!("{{\"data\":{{\"site\":{}}},\"n\":{n}}}", n % 3));
    }
    gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
    for site in 0..3 {
        let accepted = ACCEPTED.lock().unwrap();
        let mut of_site: Vec<_> = accepted.iter().filter(|(of, _)| *of == site).map(|(_, n)| *n).collect();
        // The kill may have come between an answer and its commit.
        of_site.dedup();
        assert_eq!(of_site, (0..90).filter(|n| n % 3 == site).collect::<Vec<_>>(), "site {site}");
    }
}

#[test]
fn a_dead_letter_parks_its_key_and_no_other() {
    let backend =
        Backend::start(|_, got| Reply::Status(if site_and_number(got) == (1, 0) { 400 } else { 200 }));
    let lines = |on_dead: &str| format!("order = {{ key = \"/data/site\" }}\non_dead = \"{on_dead}\"\n");
    let gateway = Gateway::start(&config(&backend.url(), &lines("park")));
    for (n, site) in [(0, 1), (1, 1), (2, 2), (3, 1), (4, 2)] {
        send(&gateway, &format!("d-{n}"), &format!("{{\"data\":{{\"site\":{site}}},\"n\":{n}}}"));
    }
    gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 2.0);
    assert_eq!(gateway.metric("countersign_forward_dead{destination=\"legacy\"}"), Some(1.0));
    let seen: Vec<_> = backend.got().iter().map(site_and_number).filter(|(site, _)| *site == 1).collect();
    assert_eq!(seen, [(1, 0)]);
    let listed = run(&["deliveries", "list", "--admin", &format!("http://{}", gateway.admin)]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(listed.matches("legacy: waiting (parked)").count(), 2, "{listed}");
    gateway.rewrite(&config(&backend.url(), &lines("continue")));
    gateway.signal("HUP");
    gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
    let seen: Vec<_> = backend.got().iter().map(site_and_number).filter(|(site, _)| *site == 1).collect();
    assert_eq!(seen, [(1, 0), (1, 1), (1, 3)]);
}

#[test]
fn a_destination_that_disappears_keeps_its_forwards_and_delivers_them_when_it_is_back() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateway = Gateway::start(&config(&format!("http://{closed}/"), ""));
    for n in 0..3 {
        send(&gateway, &format!("d-{n}"), &format!("[{n}]"));
    }
    let backend = Backend::accepting();
    let renamed = config(&backend.url(), "").replace("\"legacy\"", "\"other\"");
    gateway.rewrite(&renamed);
    gateway.signal("HUP");
    gateway.eventually_admin("/api/v1/status", "waiting (no destination)");
    let document: serde_json::Value = serde_json::from_str(&gateway.admin_get("/api/v1/status").1).unwrap();
    let gone = &document["destinations"][1];
    assert_eq!((&gone["name"], &gone["pending"]), (&"legacy".into(), &3.into()), "{document}");
    assert_eq!(gateway.metric("countersign_forward_pending{destination=\"legacy\"}"), Some(3.0));
    assert_eq!(gateway.metric("countersign_lane_state{destination=\"legacy\",state=\"open\"}"), None);
    let shown = run(&["status", "--admin", &format!("http://{}", gateway.admin)]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(
        shown.contains("legacy                   waiting (no destination)       0/0          3"),
        "{shown}"
    );
    // Also over a restart.
    let gateway = gateway.kill_and_restart();
    gateway.eventually_admin("/api/v1/status", "waiting (no destination)");
    assert_eq!(backend.got().len(), 0);
    gateway.rewrite(&config(&backend.url(), ""));
    gateway.signal("HUP");
    eventually("they are delivered, to where it is now", || backend.got().len() == 3);
    gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
    assert!(!gateway.admin_get("/api/v1/status").1.contains("no destination"));
}

/// What waits for its lane grows no older for its retries: after a pause longer than `max_age`, a failure is followed by
/// another attempt.
#[test]
fn a_pause_uses_up_no_age() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let lines = |url: &str| {
        config(url, "rate = \"0/s\"\n").replace("max = \"20ms\"", "max = \"20ms\", max_age = \"2s\"")
    };
    let other = lines(&format!("http://{closed}/")).replace("\"legacy\"", "\"other\"");
    let gateway =
        Gateway::start(&lines(&format!("http://{closed}/")).replace("breaker = \"off\"", "concurrency = 1"));
    // The breaker opens after ten failures, for thirty seconds.
    send(&gateway, "d-1", "{}");
    gateway.eventually_metric("countersign_lane_state{destination=\"legacy\",state=\"broken\"}", 1.0);
    gateway.rewrite(&other);
    gateway.signal("HUP");
    let old =
        || gateway.metric("countersign_forward_oldest_age_seconds{destination=\"legacy\"}").unwrap() > 3.0;
    eventually("it is older than max_age", old);
    let backend = Backend::start(|number, _| Reply::Status(if number == 0 { 503 } else { 200 }));
    gateway.rewrite(&lines(&backend.url()));
    gateway.signal("HUP");
    backend.eventually_got(2);
    gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
    assert_eq!(gateway.metric("countersign_forward_dead{destination=\"legacy\"}"), Some(0.0));
}
