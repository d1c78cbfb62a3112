//! Gateways whose wall clocks are five minutes off, either way: what one writes down for another comes when it should.

use std::path::Path;
use std::process::Command;

use crate::backend::{Backend, Reply};
use crate::group::{gateway, gateway_with, send, stored};
use crate::preload;
use crate::server::{Server, query};
use crate::support::eventually;

/// Has a process see a wall clock that is so far ahead.
fn ahead(directory: &Path, seconds: i64) -> impl FnOnce(&mut Command) + use<> {
    let file = directory.join(format!("clock{seconds}"));
    std::fs::write(&file, (seconds * 1_000).to_ne_bytes()).unwrap();
    move |command| {
        command.env("LD_PRELOAD", preload::library("clock")).env("COUNTERSIGN_TEST_CLOCK", file);
    }
}

/// By its own clock the other's retry was due five minutes later, or had been for as long.
#[test]
fn retries_are_made_when_they_are_due_by_whoever_is_there() {
    let files = tempfile::tempdir().unwrap();
    for seconds in [300, -300] {
        let url = Server::shared().database();
        let backend = Backend::start(|number, _| Reply::Status(if number == 0 { 503 } else { 200 }));
        let mut wrong = gateway_with(&url, &backend, ahead(files.path(), seconds));
        let right = gateway(&url, &backend);
        assert_eq!(send(&wrong, "d-1").status, 200);
        backend.eventually_got(1);
        eventually("it waits", || query(&url, "SELECT state FROM countersign.forward") == "waiting");
        // 5 s after its failure, whatever its own clock says.
        let away = "SELECT due_at - extract(epoch FROM clock_timestamp()) * 1000 BETWEEN -30000 AND 6000
            FROM countersign.forward";
        assert_eq!(query(&url, away), "t", "{seconds} s ahead");
        wrong.kill();
        assert_eq!(backend.eventually_got(2)[1].header("countersign-attempt"), Some("2"));
        right.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
    }
}

/// A lease ends by the database's clock: a gateway that is five minutes ahead takes nothing from one that lives, and the
/// same delivery is one at all of them.
#[test]
fn nobody_takes_over_from_a_gateway_that_lives() {
    let files = tempfile::tempdir().unwrap();
    let url = Server::shared().database();
    let backend = Backend::start(|_, _| Reply::Hang);
    let right = gateway(&url, &backend);
    let late = gateway_with(&url, &backend, ahead(files.path(), -300));
    let early = gateway_with(&url, &backend, ahead(files.path(), 300));
    for gateway in [&right, &late, &early] {
        assert_eq!(send(gateway, "d-1").status, 200);
    }
    assert_eq!(stored(&url), ["d-1"]);
    backend.eventually_got(1);
    let renewed = "SELECT count(*) FROM countersign.gateway WHERE expires_at > ";
    let first = query(&url, "SELECT max(expires_at) FROM countersign.gateway");
    eventually("all have looked for gateways that are gone", || {
        query(&url, &format!("{renewed} '{first}'::timestamptz + interval '5 s'")) == "3"
    });
    assert_eq!(backend.got().len(), 1);
    assert_eq!(query(&url, "SELECT state, attempts FROM countersign.forward"), "in_flight|1");
}
