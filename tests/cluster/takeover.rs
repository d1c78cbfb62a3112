//! What a gateway leaves behind is done by the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::backend::{Backend, Reply};
use crate::group::{gateway, send};
use crate::server::{Server, query};
use crate::support::eventually;

/// Its attempt is counted, and made again by the other within the lease.
#[test]
fn a_killed_gateways_attempts_are_taken_over() {
    let url = Server::shared().database();
    let backend = Backend::start(|number, _| if number == 0 { Reply::Hang } else { Reply::Status(200) });
    let (mut first, second) = (gateway(&url, &backend), gateway(&url, &backend));
    assert_eq!(send(&first, "d-1").status, 200);
    assert_eq!(backend.eventually_got(1)[0].header("countersign-attempt"), Some("1"));
    first.kill();
    let got = backend.eventually_got(2);
    assert_eq!(got[1].header("countersign-attempt"), Some("2"));
    assert_eq!(got[0].header("webhook-id"), got[1].header("webhook-id"));
    second.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
    assert_eq!(
        query(&url, "SELECT state, attempts, held_by IS NULL FROM countersign.forward"),
        "delivered|2|t"
    );
}

/// A gateway that is alive keeps what it attempts, however long the backend takes: longer than a lease here.
#[test]
fn a_living_gateway_keeps_what_it_attempts() {
    let url = Server::shared().database();
    let backend = Backend::start(|_, _| Reply::Hang);
    let gateways = [gateway(&url, &backend), gateway(&url, &backend)];
    assert_eq!(send(&gateways[0], "d-1").status, 200);
    backend.eventually_got(1);
    let expires = "SELECT min(expires_at) FROM countersign.gateway";
    let first = query(&url, expires);
    eventually("every lease has been renewed past its first end", || {
        query(&url, &format!("SELECT clock_timestamp() > '{first}'::timestamptz + interval '1 s'")) == "t"
    });
    assert_eq!(backend.got().len(), 1);
    assert_eq!(query(&url, "SELECT state, attempts FROM countersign.forward"), "in_flight|1");
}

/// What waits for its next attempt is made by whoever is there when it is due.
#[test]
fn a_killed_gateways_retries_are_made_by_the_others() {
    let url = Server::shared().database();
    let backend = Backend::start(|number, _| Reply::Status(if number == 0 { 503 } else { 200 }));
    let (mut first, second) = (gateway(&url, &backend), gateway(&url, &backend));
    assert_eq!(send(&first, "d-1").status, 200);
    backend.eventually_got(1);
    eventually("it waits", || query(&url, "SELECT state FROM countersign.forward") == "waiting");
    first.kill();
    let got = backend.eventually_got(2);
    assert_eq!(got[1].header("countersign-attempt"), Some("2"));
    second.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
}

/// A drained gateway leaves nothing that anyone would have to wait for.
#[test]
fn a_drained_gateway_gives_back_what_it_holds() {
    let url = Server::shared().database();
    let open = Arc::new(AtomicBool::new(false));
    let is_open = Arc::clone(&open);
    let backend =
        Backend::start(
            move |_, _| {
                if is_open.load(Ordering::Relaxed) { Reply::Status(200) } else { Reply::Hang }
            },
        );
    let mut first = gateway(&url, &backend);
    assert_eq!(send(&first, "d-1").status, 200);
    backend.eventually_got(1);
    first.signal("TERM");
    assert_eq!(first.wait(), Some(0));
    assert_eq!(query(&url, "SELECT state, attempts FROM countersign.forward"), "waiting|1");
    assert_eq!(query(&url, "SELECT count(*) FROM countersign.gateway"), "0");
    assert_eq!(query(&url, "SELECT count(*) FROM countersign.share"), "0");
    open.store(true, Ordering::Relaxed);
    let _second = gateway(&url, &backend);
    assert_eq!(backend.eventually_got(2)[1].header("countersign-attempt"), Some("2"));
}
