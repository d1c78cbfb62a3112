//! The n-th operation on the disk fails, for every n until a run has no failure: no acknowledgement stands on nothing,
//! every request is answered in time, and the next start finds everything by itself, also when
//! the power is cut on top.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::{Backend, Reply};
use crate::disk::Disk;
use crate::power::cut_at_the_end;
use crate::sender::{Answer, Post, body, every_provider};
use crate::soak;
use crate::support::{Gateway, eventually};

/// An answer comes within `ack_deadline`, 2.5 s; never later than a provider waits.
const IN_TIME: Duration = Duration::from_secs(5);

const STORED: &str = "countersign_ingest_requests_total{outcome=\"stored\",source=\"github\"}";

fn sections(backend: &Backend) -> String {
    every_provider(backend) + "retry = { initial = \"10ms\", max = \"50ms\" }\nbreaker = \"off\"\n"
}

/// Sends a delivery; `None` when there is no process any more to answer it.
pub(crate) fn deliver(gateway: &Gateway, id: &str, body: &[u8]) -> Option<Answer> {
    let started = Instant::now();
    let answer = Post::signed("github", "/webhooks/github", id, "x", body).try_send(gateway.listen)?;
    assert!(started.elapsed() < IN_TIME, "{id}: {:?}", started.elapsed());
    match answer.status {
        200 => {}
        503 => assert!(answer.header("retry-after").is_some(), "{answer:?}"),
        other => panic!("{id}: {other}"),
    }
    Some(answer)
}

/// Sends a delivery; whether it was acknowledged.
pub(crate) fn is_acked(gateway: &Gateway, id: &str) -> bool {
    deliver(gateway, id, &body(id)).is_some_and(|answer| answer.status == 200)
}

/// What a restart has to find: each acknowledged delivery is a duplicate, and is forwarded.
pub(crate) fn find_all(gateway: &Gateway, backend: &Backend, acked: &HashSet<String>) {
    for id in acked {
        assert!(is_acked(gateway, id), "{id}");
    }
    assert_eq!(gateway.metric(STORED), Some(0.0), "an acknowledged delivery was new again");
    gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
    let forwarded: HashSet<Vec<u8>> = backend.got().into_iter().map(|got| got.body).collect();
    for id in acked {
        assert!(forwarded.contains(&body(id)), "{id} was never forwarded");
    }
}

/// A few deliveries, a duplicate, forwards that fail and succeed, and an end, on a disk with this rule. Whether the rule
/// was used.
fn run(rule: &str) -> bool {
    // Each first attempt fails.
    let seen = Mutex::new(HashSet::new());
    let backend = Backend::start(move |_, got| {
        Reply::Status(if seen.lock().unwrap().insert(got.body.clone()) { 503 } else { 200 })
    });
    let disk = Disk::new(&sections(&backend));
    disk.rule(rule);
    let acked = Mutex::new(HashSet::new());
    let note = |gateway: &Gateway, id: &str| {
        let is_acked = is_acked(gateway, id);
        if is_acked {
            disk.note_acked(id, &body(id));
            acked.lock().unwrap().insert(id.to_owned());
        }
        is_acked
    };
    match disk.start() {
        Ok(mut gateway) => {
            if note(&gateway, "a") && note(&gateway, "a") {
                eventually("a forward, or what keeps it", || !backend.got().is_empty() || disk.has_failed());
            }
            thread::scope(|scope| {
                for id in ["b", "c"] {
                    let (note, gateway) = (&note, &gateway);
                    // As a provider does: again, when it was refused.
                    scope.spawn(move || note(gateway, id) || note(gateway, id));
                }
            });
            let ended = gateway.ended();
            if ended.is_none() {
                if rule.contains("EDQUOT") {
                    // Want of room passes, and with it the refusals; or the process ends, when there was room again
                    // before it could find out why a write had failed.
                    disk.rule("");
                    eventually("a delivery is taken again", || {
                        note(&gateway, "d") || gateway.ended().is_some()
                    });
                }
                if gateway.ended().is_none() {
                    gateway.signal("TERM");
                }
            }
            match gateway.wait() {
                Some(0) => {}
                Some(74) => {
                    assert!(gateway.log().contains("the store has shut itself: "), "{}", gateway.log());
                }
                other => panic!("{other:?}: {}", gateway.log()),
            }
        }
        Err((code, log)) => {
            let said = log.lines().last().unwrap_or_default();
            // The configuration is on the same disk.
            let unreadable =
                code == Some(78) && log.contains("countersign.toml: error: the file cannot be read");
            assert!(unreadable || code == Some(74) && said.contains("/data"), "{code:?}: {log}");
        }
    }
    let used = disk.has_failed();
    cut_at_the_end(&disk, &backend);
    find_all(&disk.start_plain(), &backend, &acked.into_inner().unwrap());
    used
}

#[test]
fn whichever_operation_on_the_disk_fails_nothing_acknowledged_is_lost() {
    let sweeps = [
        ("mkdir", "EIO", 1),
        ("unlink", "EIO", 1),
        ("open", "EIO", 3),
        ("truncate", "EIO", 1),
        ("fsync", "EIO", 1),
        ("write", "EIO", 10),
        ("write", "TORN", 10),
        ("write", "ENOSPC", 10),
        ("write", "EDQUOT on", 10),
        ("change", "EROFS on", 15),
    ];
    // Usually so many are left out between two that are tried, by chance not the same as last time.
    let sweeps = sweeps.map(|(kind, error, stride)| {
        let stride = soak(stride, 1);
        (kind, error, stride, AtomicUsize::new(fastrand::usize(1..=stride)))
    });
    let (runs, last) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for (kind, error, stride, next) in &sweeps {
                    loop {
                        let n = next.fetch_add(*stride, Ordering::Relaxed);
                        let rule = match error.split_once(' ') {
                            Some((error, on)) => format!("fail {kind} {n} {error} {on}"),
                            None => format!("fail {kind} {n} {error}"),
                        };
                        let used = std::panic::catch_unwind(|| run(&rule)).unwrap_or_else(|panic| {
                            let said =
                                panic.downcast::<String>().map_or_else(|_| String::new(), |said| *said);
                            failures
                                .lock()
                                .unwrap()
                                .push(format!("on a disk with the rule {rule:?}: {said}"));
                            true
                        });
                        runs.fetch_add(1, Ordering::Relaxed);
                        if !used {
                            break;
                        }
                        last.fetch_max(n, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    println!("{} runs, up to operation {}", runs.into_inner(), last.into_inner());
    // Whoever sees this has what it takes to see it again.
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// SQLite had gone on with a rollback journal when the switch to the log failed, and the start had not looked: a power cut
/// brought the journal back, which undid what had been acknowledged.
#[test]
fn a_start_that_gets_no_log_is_refused() {
    let disk = Disk::new(&sections(&Backend::accepting()));
    // After two of directories it is that of the rollback journal in which the switch is made.
    disk.rule("fail fsync 3 EIO");
    let (code, log) = disk.start().err().expect("it does not start");
    let why = "cannot be given a write-ahead log";
    assert!(code == Some(74) && log.lines().last().unwrap().contains(why), "{code:?}: {log}");
}

/// Nothing that the operating system says about the log can be believed after a failed fsync: no acknowledgement, no
/// readiness, and a process that ends, so that the next reads what is on disk.
#[test]
fn after_a_failed_fsync_nothing_is_acknowledged_and_the_process_ends() {
    for _ in 0..soak(2, 50) {
        let backend = Backend::accepting();
        let disk = Disk::new(&sections(&backend));
        let mut gateway = disk.start().unwrap_or_else(|failed| panic!("{failed:?}"));
        disk.rule(&format!("fail fsync {} EIO", fastrand::usize(2..40)));
        let (next, acked) = (AtomicUsize::new(0), Mutex::new(HashSet::new()));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    loop {
                        let id = format!("d-{}", next.fetch_add(1, Ordering::Relaxed));
                        let failed_before = disk.has_failed();
                        match deliver(&gateway, &id, &body(&id)) {
                            Some(answer) if answer.status == 200 => {
                                assert!(!failed_before, "{id} was acknowledged after the failed fsync");
                                acked.lock().unwrap().insert(id);
                            }
                            Some(_) => {
                                let ready = gateway.try_admin_get("/readyz");
                                assert!(ready.is_none_or(|(status, _)| status == 503));
                            }
                            None => return,
                        }
                    }
                });
            }
        });
        assert_eq!(gateway.wait(), Some(74));
        let log = gateway.log();
        let said = log.lines().last().unwrap();
        assert!(said.contains("the store has shut itself: a failed write: disk I/O error"), "{said}");
        find_all(&disk.start_plain(), &backend, &acked.into_inner().unwrap());
    }
}
