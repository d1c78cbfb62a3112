//! When the database, a connection to it or a gateway fails, nothing that was acknowledged is lost, nothing is accepted twice,
//! and nobody has to do anything for it to go on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::Backend;
use crate::group::{gateway, send};
use crate::line::Line;
use crate::load::{go_on, judge, under_load};
use crate::server::{Server, query};
use crate::soak::soak;
use crate::support::eventually;

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
    let gateway = gateway(&line.instead_of(Server::shared().port(), &url), &backend);
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

/// Nobody has to be told when it is over, and the database is not met by a crowd: meanwhile each gateway tries with one
/// connection, whatever its senders do, and afterwards it opens what it had.
#[test]
fn a_long_outage_ends_by_itself_and_without_a_crowd() {
    let outage = Duration::from_secs(soak(6, 30) as u64);
    let (url, backend) = (Server::shared().database(), Backend::accepting());
    let line = Line::to(Server::shared().port());
    let through = line.instead_of(Server::shared().port(), &url);
    let gateways = [gateway(&through, &backend), gateway(&through, &backend)];
    let acknowledged = under_load(&gateways.each_ref(), |count| {
        go_on(count, 20);
        let before = line.opened();
        line.silence(true);
        for gateway in &gateways {
            eventually("it is not ready", || gateway.admin_get("/readyz").0 == 503);
        }
        thread::sleep(outage);
        line.silence(false);
        go_on(count, 100);
        // Ten each for work and one for the upkeep; of its tries there are at most two a second for each gateway.
        let (opened, tries) = (line.opened() - before, 2 * (10 + 1) + 4 * outage.as_secs() as usize);
        assert!(opened <= tries, "{opened} connections opened, {tries} allowed");
        eventually("no more connections are left than there were", || {
            let open = query(
                &url,
                "SELECT count(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND application_name = 'countersign'",
            );
            open.parse::<u32>().unwrap() <= 2 * (10 + 1)
        });
    });
    judge(&url, &backend, &acknowledged);
}

/// Each statement takes so much longer: whoever waits is told in time, and what was told to be stored is there once.
fn slow_way(delay: Duration) {
    let (url, backend) = (Server::shared().database(), Backend::accepting());
    let line = Line::to(Server::shared().port());
    let gateway = gateway(&line.instead_of(Server::shared().port(), &url), &backend);
    let acknowledged = under_load(&[&gateway], |count| {
        go_on(count, 10);
        line.delay(delay);
        thread::sleep(Duration::from_secs(soak(4, 30) as u64));
        line.delay(Duration::ZERO);
        go_on(count, 10);
    });
    judge(&url, &backend, &acknowledged);
}

#[test]
fn a_slow_way_to_the_database_delays_no_answer() {
    thread::scope(|scope| {
        for delay in [400, 1_500, 3_000] {
            scope.spawn(move || slow_way(Duration::from_millis(delay)));
        }
    });
}

/// Whatever does not fit is refused as our fault, and taken when there is room again.
#[test]
fn a_database_whose_disk_is_full_refuses_and_recovers_by_itself() {
    let Some(server) = Server::on_a_small_disk() else {
        println!("skipped: no disk can be mounted here");
        return;
    };
    let (url, backend) = (server.database(), Backend::accepting());
    let gateways = [gateway(&url, &backend), gateway(&url, &backend)];
    let reason = "countersign_ingest_rejections_total{reason=\"disk_full\",source=\"github\"}";
    let refused = || gateways.iter().map(|gateway| gateway.metric(reason).unwrap_or(0.0)).sum::<f64>();
    let acknowledged = under_load(&gateways.each_ref(), |count| {
        for _ in 0..soak(2, 20) {
            go_on(count, 20);
            let before = refused();
            server.fill_disk();
            eventually("deliveries are refused", || refused() >= before + 10.0);
            server.free_disk();
            go_on(count, 20);
        }
    });
    judge(&url, &backend, &acknowledged);
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
