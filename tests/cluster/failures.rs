//! When the database, a connection to it or a gateway fails, nothing that was acknowledged is lost, nothing is accepted twice,
//! and nobody has to do anything for it to go on.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::Backend;
use crate::group::{gateway, send, stored};
use crate::line::Line;
use crate::server::{Server, query};
use crate::support::{Gateway, eventually};

/// What senders have got a 2xx for.
type Acknowledged = Mutex<BTreeSet<String>>;

/// Sends to these gateways in turn, as four providers do that try again elsewhere, while `disturb` does its worst.
fn under_load(gateways: &[&Gateway], disturb: impl FnOnce(&AtomicUsize)) -> BTreeSet<String> {
    let acknowledged = Acknowledged::default();
    let (stop, number, count) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let n = number.fetch_add(1, Ordering::Relaxed);
                    let id = format!("d-{n:05}");
                    for gateway in gateways.iter().cycle().skip(n).take(gateways.len()) {
                        match crate::group::post(&id).try_send(gateway.listen) {
                            Some(answer) if answer.status == 200 => {
                                acknowledged.lock().unwrap().insert(id.clone());
                                count.fetch_add(1, Ordering::Relaxed);
                                break;
                            }
                            Some(answer) => {
                                assert_eq!(answer.status, 503);
                                assert!(answer.header("retry-after").is_some());
                            }
                            None => {}
                        }
                    }
                }
            });
        }
        disturb(&count);
        stop.store(true, Ordering::Relaxed);
    });
    acknowledged.into_inner().unwrap()
}

/// Waits until so many more have been acknowledged.
fn go_on(count: &AtomicUsize, more: usize) {
    let until = count.load(Ordering::Relaxed) + more;
    eventually("deliveries are accepted", || count.load(Ordering::Relaxed) >= until);
}

/// Acknowledged ⊆ stored, each stored once, and each forwarded.
fn judge(url: &str, backend: &Backend, acknowledged: &BTreeSet<String>) {
    let stored = stored(url);
    let known: BTreeSet<String> = stored.iter().cloned().collect();
    assert_eq!(known.len(), stored.len(), "one is stored twice");
    let lost: Vec<_> = acknowledged.difference(&known).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    eventually("everything is forwarded", || {
        query(url, "SELECT count(*) FROM countersign.forward WHERE state <> 'delivered'") == "0"
    });
    let got = backend.got();
    let forwarded: BTreeSet<String> =
        got.iter().map(|got| got.header("countersign-delivery-id").unwrap().to_owned()).collect();
    assert_eq!(forwarded, known);
}

#[test]
fn one_of_three_gateways_is_killed_under_load() {
    let (url, backend) = (Server::shared().database(), Backend::accepting());
    let victim = gateway(&url, &backend);
    let others = [gateway(&url, &backend), gateway(&url, &backend)];
    let acknowledged = under_load(&[&victim, &others[0], &others[1]], |count| {
        go_on(count, 30);
        victim.signal("KILL");
        go_on(count, 30);
    });
    judge(&url, &backend, &acknowledged);
}

#[test]
fn connections_that_the_server_ends_cost_nothing_that_was_acknowledged() {
    let (url, backend) = (Server::shared().database(), Backend::accepting());
    let gateways = [gateway(&url, &backend), gateway(&url, &backend)];
    let acknowledged = under_load(&gateways.each_ref(), |count| {
        for _ in 0..5 {
            go_on(count, 10);
            let ended = query(
                &url,
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                 WHERE datname = current_database() AND application_name = 'countersign'",
            );
            assert_ne!(ended, "0");
        }
        go_on(count, 10);
    });
    judge(&url, &backend, &acknowledged);
}

#[test]
fn a_primary_that_crashes_is_a_503_until_it_is_back() {
    let mut server = Server::start(&[]);
    let (url, backend) = (server.database(), Backend::accepting());
    let gateways = [gateway(&url, &backend), gateway(&url, &backend)];
    let mut acknowledged = under_load(&gateways.each_ref(), |count| {
        go_on(count, 20);
        server.down("QUIT");
        for gateway in &gateways {
            eventually("it is not ready", || gateway.admin_get("/readyz").0 == 503);
            let refused = send(gateway, "refused");
            assert_eq!(refused.status, 503);
            assert!(refused.header("retry-after").is_some());
        }
        server.up();
        go_on(count, 20);
    });
    for gateway in &gateways {
        eventually("it is ready again", || gateway.admin_get("/readyz").0 == 200);
        let reason = "countersign_ingest_rejections_total{reason=\"store_unreachable\",source=\"github\"}";
        assert!(gateway.metric(reason).unwrap() >= 1.0);
    }
    eventually("what was refused is accepted", || send(&gateways[0], "refused").status == 200);
    acknowledged.insert("refused".to_owned());
    judge(&url, &backend, &acknowledged);
}

/// A network that swallows everything: no answer comes late, and when it is back nobody has to do anything.
#[test]
fn a_database_that_falls_silent_is_a_503_in_time() {
    let (url, backend) = (Server::shared().database(), Backend::accepting());
    let line = Line::to(Server::shared().port());
    let through = url.replace(&format!("127.0.0.1:{}", Server::shared().port()), &line.address.to_string());
    let gateway = gateway(&through, &backend);
    assert_eq!(send(&gateway, "d-1").status, 200);
    line.silence(true);
    let asked = Instant::now();
    assert_eq!(send(&gateway, "d-2").status, 503);
    assert!(asked.elapsed() < Duration::from_secs(5), "the deadline is 2.5 s: {:?}", asked.elapsed());
    eventually("it is not ready", || gateway.admin_get("/readyz").0 == 503);
    let asked = Instant::now();
    for n in 0..20 {
        assert_eq!(send(&gateway, &format!("e-{n}")).status, 503);
    }
    assert!(asked.elapsed() < Duration::from_secs(5), "nobody waits for what is known to be gone");
    line.silence(false);
    eventually("it is ready again", || gateway.admin_get("/readyz").0 == 200);
    eventually("it accepts again", || send(&gateway, "d-2").status == 200);
    judge(&url, &backend, &["d-1", "d-2"].map(str::to_owned).into());
}

/// A statement that waits for a lock that somebody holds: the deadline holds, and the delivery is there once.
#[test]
fn a_database_that_is_slow_is_a_503_at_the_deadline() {
    let (url, backend) = (Server::shared().database(), Backend::accepting());
    let gateway = gateway(&url, &backend);
    assert_eq!(send(&gateway, "d-1").status, 200);
    let lock = "BEGIN; LOCK countersign.delivery IN EXCLUSIVE MODE; SELECT pg_sleep(8)";
    let asked = thread::scope(|scope| {
        scope.spawn(|| query(&url, lock));
        eventually("the table is locked", || {
            query(
                &url,
                "SELECT count(*) FROM pg_locks WHERE mode = 'ExclusiveLock' AND granted
                     AND relation = 'countersign.delivery'::regclass",
            ) == "1"
        });
        let asked = Instant::now();
        assert_eq!(send(&gateway, "d-2").status, 503);
        asked.elapsed()
    });
    assert!(asked < Duration::from_secs(6), "the deadline is 2.5 s: {asked:?}");
    eventually("it accepts again", || send(&gateway, "d-2").status == 200);
    judge(&url, &backend, &["d-1", "d-2"].map(str::to_owned).into());
}

/// A server that is set up anew while gateways run: their sessions keep to the commits that they were judged by. Else it
/// would be a 200 here, for what is on no disk.
#[test]
fn commits_last_whatever_the_server_is_set_to_later() {
    let server = Server::start(&[]);
    let (url, backend) = (server.database(), Backend::accepting());
    let gateway = gateway(&url, &backend);
    assert_eq!(send(&gateway, "d-1").status, 200);
    // One that waits for nothing from now on, and has a standby to wait for that is not there.
    query(&url, "ALTER SYSTEM SET synchronous_commit = off");
    query(&url, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    query(&url, "SELECT pg_reload_conf()");
    let number = AtomicUsize::new(0);
    eventually("a commit waits for the standby", || {
        let n = number.fetch_add(1, Ordering::Relaxed);
        send(&gateway, &format!("e-{n}")).status == 503
    });
}

/// No session can keep to that: everything is refused until it is on again.
#[test]
fn a_server_whose_fsync_is_turned_off_is_not_trusted_any_more() {
    let server = Server::start(&[]);
    let (url, backend) = (server.database(), Backend::accepting());
    let gateway = gateway(&url, &backend);
    assert_eq!(send(&gateway, "d-1").status, 200);
    query(&url, "ALTER SYSTEM SET fsync = off");
    query(&url, "SELECT pg_reload_conf()");
    eventually("it is not ready", || gateway.admin_get("/readyz").0 == 503);
    assert_eq!(send(&gateway, "d-2").status, 503);
    query(&url, "ALTER SYSTEM SET fsync = on");
    query(&url, "SELECT pg_reload_conf()");
    eventually("it is ready again", || gateway.admin_get("/readyz").0 == 200);
    eventually("it accepts again", || send(&gateway, "d-2").status == 200);
}
