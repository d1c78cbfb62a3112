//! Disks that are full, over a quota, read-only or slow: each request is answered in time, nothing acknowledged is lost,
//! what waits is delivered and settled, and what passes by itself passes without a restart.

use std::collections::HashSet;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::{Backend, Reply};
use crate::disk::Disk;
use crate::faults::{deliver, find_all, is_acked};
use crate::sender::{body, every_provider};
use crate::soak::{is_long, soak};
use crate::support::{Gateway, eventually, write_config};

/// A small disk: 64 MiB.
const TOTAL: u64 = 64 << 20;
/// After space has returned.
const RECOVERY: Duration = Duration::from_secs(5);
const PENDING: &str = "countersign_forward_pending{destination=\"legacy\"}";

fn sections(backend: &Backend) -> String {
    every_provider(backend) + "retry = { initial = \"50ms\", max = \"200ms\" }\nbreaker = \"off\"\n"
}

/// Accepts while the switch is on.
fn switched() -> (Backend, Arc<AtomicBool>) {
    let switch = Arc::new(AtomicBool::new(false));
    let on = Arc::clone(&switch);
    let reply = move || Reply::Status(if on.load(Ordering::Relaxed) { 200 } else { 503 });
    (Backend::start(move |_, _| reply()), switch)
}

fn taken_by_others(disk: &Disk, bytes: u64) {
    disk.rule(&format!("space {TOTAL} {bytes}"));
}

fn started(disk: &Disk) -> Gateway {
    disk.start().unwrap_or_else(|failed| panic!("{failed:?}"))
}

/// With no byte free: refusals in time, what waits is delivered and settled; and soon after there is space, acceptance.
#[test]
fn a_full_disk_refuses_delivers_what_waits_and_recovers_by_itself() {
    let (backend, accepts) = switched();
    let disk = Disk::with_default_reserve(&sections(&backend));
    taken_by_others(&disk, 0);
    let mut gateway = started(&disk);
    let mut numbers = 0..;
    let mut acked = HashSet::new();
    let mut is_acked = |gateway: &Gateway| {
        let id = format!("d-{}", numbers.next().unwrap());
        let is_acked = is_acked(gateway, &id);
        if is_acked {
            acked.insert(id);
        }
        is_acked
    };
    let (cycles, mut slowest) = (soak(3, 20), Duration::ZERO);
    for _ in 0..cycles {
        accepts.store(false, Ordering::Relaxed);
        assert!((0..10).all(|_| is_acked(&gateway)));
        // Whoever fills it also takes the first of what the store gives back for its own use.
        disk.rule(&format!("full {TOTAL} 2"));
        eventually("a delivery is refused", || !is_acked(&gateway));
        assert!(gateway.metric(PENDING) >= Some(10.0));
        accepts.store(true, Ordering::Relaxed);
        gateway.eventually_metric(PENDING, 0.0);
        assert!(!is_acked(&gateway));
        taken_by_others(&disk, 0);
        let freed = Instant::now();
        eventually("a delivery is accepted", || is_acked(&gateway));
        slowest = slowest.max(freed.elapsed());
        gateway.eventually_metric(PENDING, 0.0);
    }
    assert!(slowest < RECOVERY, "{slowest:?}");
    println!("{cycles} cycles, accepting again within {slowest:?}");
    // What was settled stays settled.
    let forwarded = backend.got().len();
    gateway.kill();
    let gateway = disk.start_plain();
    find_all(&gateway, &backend, &acked);
    assert_eq!(backend.got().len(), forwarded);
}

/// A 64 MiB volume, on which a reserve of 1 GiB had meant that nothing was ever accepted.
#[test]
fn a_small_disk_works_without_a_setting_and_refuses_before_it_is_full() {
    let backend = Backend::accepting();
    let disk = Disk::with_default_reserve(&sections(&backend));
    taken_by_others(&disk, 0);
    let gateway = started(&disk);
    assert!(is_acked(&gateway, "1"));
    // 5 % are 3.2 MiB, and the store keeps 4 MiB for itself.
    taken_by_others(&disk, TOTAL - (7 << 20));
    gateway.eventually_admin("/readyz", "below its reserve");
    assert!(!is_acked(&gateway, "2"));
    taken_by_others(&disk, TOTAL - (20 << 20));
    eventually("it is ready", || gateway.admin_get("/readyz").0 == 200);
    assert!(is_acked(&gateway, "2"));
}

/// What waits is delivered although the process was started on a full disk; and where there is no room even for that, the
/// start is refused with a reason.
#[test]
fn a_start_on_a_full_disk_delivers_what_waits_or_says_why_not() {
    let (backend, accepts) = switched();
    let disk = Disk::with_default_reserve(&sections(&backend));
    taken_by_others(&disk, 0);
    let mut gateway = started(&disk);
    let acked: HashSet<String> = (0..10).map(|number| format!("d-{number}")).collect();
    assert!(acked.iter().all(|id| is_acked(&gateway, id)));
    gateway.kill();
    disk.rule(&format!("full {TOTAL} 0"));
    let mut gateway = started(&disk);
    assert!(!is_acked(&gateway, "more"));
    accepts.store(true, Ordering::Relaxed);
    gateway.eventually_metric(PENDING, 0.0);
    gateway.kill();

    disk.rule("fail write 1 ENOSPC on");
    let (code, log) = disk.start().err().expect("there is no room to start in");
    let said = log.lines().last().unwrap();
    assert!(code == Some(74) && said.contains("no room on the disk for"), "{code:?}: {log}");
    disk.rule("");
    find_all(&started(&disk), &backend, &acked);
}

/// Sets a limit that looks like a broken disk to SQLite, lifts it again, and expects no more than refusals.
fn passes(gateway: &Gateway, set: impl Fn(), lift: impl Fn()) {
    assert!(is_acked(gateway, "before"));
    set();
    let mut numbers = 0..;
    let mut next_is_acked = || is_acked(gateway, &format!("d-{}", numbers.next().unwrap()));
    eventually("a delivery is refused", || !next_is_acked());
    gateway.eventually_admin("/readyz", "below its reserve");
    lift();
    eventually("a delivery is accepted", next_is_acked);
    gateway.eventually_metric(PENDING, 0.0);
}

/// It had ended the process, as a broken disk does.
#[test]
fn a_quota_is_a_full_disk_that_passes() {
    let backend = Backend::accepting();
    let disk = Disk::new(&sections(&backend));
    let gateway = started(&disk);
    passes(&gateway, || disk.rule("fail write 1 EDQUOT on"), || disk.rule(""));
}

/// The signal that comes with it kills a process which has not asked for it.
#[test]
fn a_limit_to_the_size_of_files_is_a_full_disk_that_passes() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&sections(&backend));
    let limit = |bytes: &str| {
        let id = gateway.id().to_string();
        let set = Command::new("prlimit").args(["--pid", &id, &format!("--fsize={bytes}:")]).status();
        assert!(set.unwrap().success());
    };
    passes(&gateway, || limit("65536"), || limit("unlimited"));
}

/// The signal was asked for only once the store was open, and opening it writes.
#[test]
fn a_start_under_a_limit_to_the_size_of_files_says_so() {
    let directory = tempfile::tempdir().unwrap();
    write_config(directory.path(), &sections(&Backend::accepting()));
    let mut limited = Command::new("prlimit");
    limited
        .args(["--fsize=4096", env!("CARGO_BIN_EXE_countersign"), "run", "--config"])
        .arg(directory.path().join("countersign.toml"));
    let output = limited.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(74), "{}: {text}", output.status);
    assert!(text.contains("no room on the disk"), "{text}");
}

/// The kernel makes a broken disk read-only: that does not pass.
#[test]
fn a_disk_that_becomes_read_only_ends_the_process_with_a_reason_and_loses_nothing() {
    let backend = Backend::accepting();
    let disk = Disk::new(&sections(&backend));
    let mut gateway = started(&disk);
    let acked: HashSet<String> = (0..10).map(|number| format!("d-{number}")).collect();
    assert!(acked.iter().all(|id| is_acked(&gateway, id)));
    disk.rule("fail change 1 EROFS on");
    thread::scope(|scope| {
        for number in 0..4 {
            let gateway = &gateway;
            // Refused, or, when the process has ended before, not connected; never left without an answer.
            scope.spawn(move || assert!(!is_acked(gateway, &format!("more-{number}"))));
        }
    });
    assert_eq!(gateway.wait(), Some(74));
    assert!(
        gateway.log().contains("a failed write: disk I/O error: Read-only file system"),
        "{}",
        gateway.log()
    );

    let (code, log) = disk.start().err().expect("a start needs to write");
    assert!(
        code == Some(74) && log.lines().last().unwrap().contains("Read-only file system"),
        "{code:?}: {log}"
    );
    disk.rule("");
    find_all(&started(&disk), &backend, &acked);
}

/// The fsync of a commit takes longer than senders wait: they are told in time, what they sent is stored all the same, and
/// what they send again is a duplicate. A drain waits for no disk.
fn slow_disk(ms: u32) {
    let backend = Backend::accepting();
    let disk = Disk::new(&sections(&backend));
    let mut gateway = started(&disk);
    disk.rule(&format!("slow {ms}"));
    thread::scope(|scope| {
        for number in 0..8 {
            let gateway = &gateway;
            scope.spawn(move || {
                let id = format!("d-{number}");
                let answer = deliver(gateway, &id, &body(&id)).unwrap();
                assert_eq!(answer.status, 503);
            });
        }
    });
    assert_eq!(gateway.metric("countersign_ingest_late_total{source=\"github\"}"), Some(8.0));
    disk.rule("");
    let acked: HashSet<String> = (0..8).map(|number| format!("d-{number}")).collect();
    eventually("what was late is accepted", || acked.iter().all(|id| is_acked(&gateway, id)));
    let stored = gateway.metric("countersign_ingest_requests_total{outcome=\"stored\",source=\"github\"}");
    assert_eq!(stored, Some(8.0));
    gateway.eventually_metric(PENDING, 0.0);
    disk.rule(&format!("slow {ms}"));
    let late = deliver(&gateway, "last", &body("last")).unwrap();
    assert_eq!(late.status, 503);
    gateway.signal("TERM");
    assert_eq!(gateway.wait(), Some(0));
    find_all(&disk.start_plain(), &backend, &acked);
}

#[test]
fn a_slow_disk_delays_no_answer_and_loses_nothing() {
    thread::scope(|scope| {
        scope.spawn(|| slow_disk(3_000));
        if is_long() {
            scope.spawn(|| slow_disk(10_000));
        }
    });
}
