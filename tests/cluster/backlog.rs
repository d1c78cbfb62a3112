//! What waits costs what is taken from it, not what it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::backend::{Backend, Reply};
use crate::group::{gateway, post};
use crate::sender::Wire;
use crate::server::{Server, query};
use crate::support::eventually;

const WAITING: usize = 3_000;

/// A planner that knows of no rows yet had read all of them: what waits for each lease, so that a gateway never caught up, and
/// claims and forwards for each batch, so that the first minutes went at half the pace.
#[test]
fn what_is_stored_is_not_read_for_each_batch_or_lease() {
    let url = Server::shared().database();
    let open = Arc::new(AtomicBool::new(false));
    let is_open = Arc::clone(&open);
    let backend = Backend::start(move |_, _| {
        while !is_open.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(20));
        }
        Reply::Status(200)
    });
    let gateway = gateway(&url, &backend);
    // What the planner knows stays what it is of empty tables.
    for table in ["claim", "forward", "delivery_first"] {
        query(&url, &format!("ALTER TABLE countersign.{table} SET (autovacuum_enabled = false)"));
    }
    thread::scope(|scope| {
        for worker in 0..8 {
            let gateway = &gateway;
            scope.spawn(move || {
                let mut wire = Wire::open(gateway.listen).unwrap();
                for n in (worker..WAITING).step_by(8) {
                    wire.write(&post(&format!("d-{n}")).bytes());
                    assert_eq!(wire.read().unwrap().status, 200);
                }
            });
        }
    });
    let read = || {
        let read = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'forward_waiting'";
        query(&url, read).parse::<usize>().unwrap()
    };
    let before = read();
    open.store(true, Ordering::Relaxed);
    eventually("everything is forwarded", || {
        query(
            &url,
            "SELECT NOT EXISTS (SELECT FROM countersign.forward WHERE state IN ('waiting', 'in_flight'))",
        ) == "t"
    });
    // Sessions tell what they have read when they rest, after a second.
    drop(gateway);
    eventually("the last session has ended", || {
        query(
            &url,
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'countersign' AND datname = current_database()",
        ) == "0"
    });
    let each = (read() - before) as f64 / WAITING as f64;
    println!("{each:.1} entries of the index read for each forward");
    // Half of the backlog for each lease of eight would be near 190; who looks by the clock reads some dozens on a slow machine.
    assert!(each < 90.0, "{each} entries of the index read for each forward");
    // The test itself asks for all forwards until they are delivered.
    for (what, sum) in [
        (
            "tables",
            "SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE relname ~ '^(claim|forward|delivery)'",
        ),
        (
            "indexes of keys",
            "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE indexrelname ~ '_pkey$'",
        ),
    ] {
        let whole = query(&url, sum).parse::<usize>().unwrap();
        println!("{whole} rows of {what} read");
        assert!(whole < 20 * WAITING, "{whole} rows of {what} read for {WAITING} deliveries");
    }
}
