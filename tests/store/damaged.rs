//! What the embedded engine makes of damage, and what its commands say of it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use countersign::forward::Progress;
use countersign::store::sqlite::{OpenError, backup, check, salvage};
use countersign::store::{Accepted, Store as _};
use tempfile::TempDir;

use crate::secrets::{given, used};
use crate::sqlite::{Embedded, chain, database, directory, flip};
use crate::support::{Bench, Draft, Lanes, at, draft};

/// An engine in a directory of its own, and that directory.
async fn bench() -> (Bench, Arc<TempDir>) {
    let engine = Embedded::new();
    let root = Arc::clone(&engine.root);
    (Bench::new(Box::new(engine)).await, root)
}

fn with_body(id: &'static str, body: &'static str) -> Draft {
    Draft { body: Bytes::from_static(body.as_bytes()), ..draft(id) }
}

/// Damages a field of the header that says nothing of what is behind it, so that the next start salvages.
fn break_header(file: &Path) {
    let file = fs::File::options().write(true).open(file).unwrap();
    file.write_all_at(&[9], 59).unwrap();
}

/// What is left may be anything: it is kept, and not taken for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_left_of_a_store_is_salvaged() {
    for (id, delivered) in [(None, true), (None, false), (Some("1"), true), (Some("1"), false)] {
        let (mut bench, root) = bench().await;
        bench.stored(Draft { id, ..draft("") }).await;
        if delivered {
            let lease = bench.leased_one("a", at(0)).await;
            bench.settle(&lease, Progress::Delivered, at(0)).await;
        }
        bench.store.close().await;
        break_header(&database(&root));
        bench.restart().await;
        assert_eq!(bench.leased("a", at(0)).await.len(), usize::from(!delivered), "{id:?}");
        bench.store.close().await;
        assert_eq!(check(&directory(&root)).unwrap().deliveries, 1, "{id:?} {delivered}");
    }
}

/// They had been lost: a source that was about to be set up had to be registered anew at its provider. What had been shown
/// does not come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_that_were_handed_over_and_their_use_are_salvaged() {
    let (mut bench, root) = bench().await;
    // As long as an id, and longer than a page.
    let (short, long) = ("sixteen-bytes-ok", "x".repeat(5_000));
    for (source, secret) in [("a", short), ("a", &long), ("shown", "b537207f20cb")] {
        assert!(bench.store.hand_over(source.into(), given(secret)).await.unwrap());
    }
    assert_eq!(bench.store.show_handed_over("shown".into()).await.unwrap().len(), 1);
    let uses = [used("new", 3, Some(9)), used("old", 0, None)];
    bench.store.note_uses(uses.to_vec()).await.unwrap();
    bench.store.close().await;
    break_header(&database(&root));
    // There is no delivery; a store that has nothing else is not nothing.
    bench.restart().await;
    assert!(directory(&root).join("damaged-1").exists());
    let shown = bench.store.show_handed_over("a".into()).await.unwrap();
    let shown: Vec<_> = shown.iter().map(|given| given.secret.expose().to_vec()).collect();
    assert_eq!(shown, [short.as_bytes(), long.as_bytes()]);
    assert!(bench.store.show_handed_over("shown".into()).await.unwrap().is_empty());
    assert_eq!(bench.store.uses().await.unwrap(), uses);
}

/// The operator is told once, by the first gateway that starts, and finds each time what was there before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_salvage_keeps_what_it_found_and_is_told_once() {
    let engine = Embedded::new();
    let (root, metrics) = (Arc::clone(&engine.root), engine.metrics.clone());
    let mut bench = Bench::new(Box::new(engine)).await;
    let lost = with_body("1", "a lost body");
    bench.stored(lost.clone()).await;
    bench.stored(draft("2")).await;
    for number in 1..=3 {
        bench.store.close().await;
        break_header(&database(&root));
        if number == 1 {
            flip(&database(&root), b"", b"lost body", 1);
        }
        let damaged = fs::read(database(&root)).unwrap();
        bench.restart().await;
        let aside = directory(&root).join(format!("damaged-{number}"));
        assert_eq!(fs::read(aside.join("countersign.db")).unwrap(), damaged);
        assert!(aside.join("salvaged.json").exists() && !directory(&root).join("salvaged.json").exists());
        // A dead letter goes on saying that its delivery is lost.
        assert_eq!((metrics.store_corrupt_rows.get(), bench.depth("a").dead), (number, 1));
        bench.restart().await;
        assert_eq!(metrics.store_corrupt_rows.get(), number);
        assert_eq!(bench.leased("a", at(0)).await.len(), 1);
    }
    // Its provider may send it again.
    bench.stored(lost).await;
    bench.store.close().await;
    fs::remove_dir_all(directory(&root).join("damaged-2")).unwrap();
    break_header(&database(&root));
    assert_eq!(salvage(&directory(&root)).unwrap().unwrap().damaged, directory(&root).join("damaged-2"));
}

/// A copy of the files of a store that is running, as a killed process leaves them, after `change` has been made to its log.
fn killed(running: &TempDir, change: impl FnOnce(&mut Vec<u8>)) -> Embedded {
    let engine = Embedded::new();
    let to = directory(&engine.root);
    fs::create_dir_all(&to).unwrap();
    for name in ["countersign.db", "countersign.db-wal", "countersign.db-shm"] {
        fs::copy(directory(running).join(name), to.join(name)).unwrap();
    }
    let log = to.join("countersign.db-wal");
    let mut bytes = fs::read(&log).unwrap();
    change(&mut bytes);
    fs::write(log, bytes).unwrap();
    engine
}

/// Both rows stand on one page, which the log has twice: the damaged frame costs the row that the bit is in, and that one
/// only if no older frame has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_frame_of_the_log_costs_no_delivery_that_stands_on_an_older_one() {
    let (bench, running) = bench().await;
    bench.stored(with_body("1", "the first body")).await;
    bench.stored(with_body("2", "another body")).await;
    let killed = killed(&running, |log| {
        let newest = log.windows(10).rposition(|window| window == b"first body").unwrap();
        log[newest] ^= 1;
    });
    let salvaged = Bench::new(Box::new(killed)).await;
    let mut bodies: Vec<_> =
        salvaged.leased("a", at(0)).await.iter().map(|lease| lease.delivery.body.clone()).collect();
    bodies.sort();
    assert_eq!(bodies, ["another body", "the first body"]);
}

/// What stands beside the damaged bits of a frame is still what was written: also the claim of signed bytes, which no
/// delivery tells, and without which a captured request would be accepted once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_where_nothing_stands_costs_nothing() {
    const FRAME: usize = 24 + 4_096;
    let (bench, running) = bench().await;
    let draft = |id, body| Draft { guarded: true, ..with_body(id, body) };
    bench.stored(draft("1", "the first body")).await;
    let before = fs::metadata(directory(&running).join("countersign.db-wal")).unwrap().len();
    let second = bench.stored(draft("2", "another body")).await;
    let killed = killed(&running, |log| {
        for frame in log[usize::try_from(before).unwrap()..].chunks_exact_mut(FRAME) {
            assert_eq!(frame[24 + 1_500], 0);
            frame[24 + 1_500] = 1;
        }
    });
    let salvaged = Bench::new(Box::new(killed)).await;
    assert_eq!(salvaged.leased("a", at(0)).await.len(), 2);
    let replayed = salvaged.store.accept(draft("3", "another body").arrival()).await.unwrap();
    assert_eq!(replayed, Accepted::Replay { first: second });
}

/// One bit of a page says what is on it. Without it the page knows of no row, and all of them stand there still.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliveries_on_a_page_that_knows_of_none_are_found() {
    let (mut bench, root) = bench().await;
    let stored = [bench.stored(draft("1")).await, bench.stored(with_body("2", "another body")).await];
    bench.store.close().await;
    let bytes = fs::read(database(&root)).unwrap();
    let body = bytes.windows(12).position(|window| window == b"another body").unwrap();
    let file = fs::File::options().write(true).open(database(&root)).unwrap();
    file.write_all_at(&[bytes[body & !4_095] ^ 1], (body & !4_095) as u64).unwrap();
    bench.restart().await;
    let leased: Vec<_> = bench.leased("a", at(0)).await.iter().map(|lease| lease.delivery.id).collect();
    assert_eq!(leased, stored);
}

/// The next gateway opens the files, or moves them, as soon as this one has closed them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_store_has_no_file_open() {
    let (bench, root) = bench().await;
    let open = || {
        let descriptors = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let files = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
        files.filter(|file| file.starts_with(root.path().canonicalize().unwrap())).collect::<Vec<_>>()
    };
    assert!(!open().is_empty());
    bench.store.close().await;
    assert_eq!(open(), [] as [&Path; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_say_what_is_in_a_sound_store_and_leave_it_alone() {
    let (bench, root) = bench().await;
    for id in ["1", "2", "3"] {
        bench.stored(draft(id)).await;
    }
    let dead = bench.store.lease("a", 1, at(0)).await.unwrap().remove(0);
    bench.settle(&dead, Progress::Dead, at(0)).await;

    let running = check(&directory(&root)).unwrap();
    assert_eq!((running.deliveries, running.pending, running.dead), (3, 2, 1));
    assert!(running.is_sound());
    let refused = salvage(&directory(&root)).unwrap_err();
    assert!(matches!(refused, OpenError::InUse { .. }), "{refused:?}");
    let copy = root.path().join("copy");
    let made = backup(&directory(&root), &copy).unwrap();
    assert_eq!((&made.directory, &made.checked), (&copy, &running));
    assert_eq!(made.bytes, fs::metadata(copy.join("countersign.db")).unwrap().len());
    assert_eq!(fs::read_dir(&copy).unwrap().filter(|entry| !is_of_sqlite(entry)).count(), 1);
    let refused = backup(&directory(&root), &copy).unwrap_err();
    assert!(chain(&refused).contains("it is not empty"), "{}", chain(&refused));
    bench.store.close().await;

    let before = fs::read(database(&root)).unwrap();
    assert_eq!(check(&directory(&root)).unwrap(), running);
    assert_eq!(salvage(&directory(&root)).unwrap(), None);
    assert_eq!(fs::read(database(&root)).unwrap(), before);
}

fn is_of_sqlite(entry: &std::io::Result<fs::DirEntry>) -> bool {
    let name = entry.as_ref().unwrap().file_name().into_string().unwrap();
    name.ends_with("-wal") || name.ends_with("-shm")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_name_what_is_damaged_and_copy_nothing_of_it() {
    let (bench, root) = bench().await;
    bench.stored(draft("1")).await;
    bench.stored(with_body("2", "a damaged body")).await;
    bench.store.close().await;
    flip(&database(&root), b"", b"damaged body", 1);
    let checked = check(&directory(&root)).unwrap();
    assert_eq!((checked.deliveries, checked.problems.len(), checked.damaged.len()), (1, 0, 1));
    assert!(!checked.is_sound() && checked.damaged[0].lost);
    assert!(checked.damaged[0].what.ends_with("source 2"), "{checked:?}");

    break_header(&database(&root));
    let checked = check(&directory(&root)).unwrap();
    assert_eq!((checked.deliveries, checked.problems), (0, vec!["its header is damaged".to_owned()]));
    let copy = root.path().join("copy");
    let refused = backup(&directory(&root), &copy).unwrap_err();
    assert!(chain(&refused).contains("its header is damaged"), "{}", chain(&refused));
    assert!(!copy.exists());

    let salvaged = salvage(&directory(&root)).unwrap().unwrap();
    assert_eq!((salvaged.deliveries, salvaged.pending, salvaged.findings.len()), (1, 1, 1));
    assert!(check(&directory(&root)).unwrap().is_sound());
    assert_eq!(salvage(&directory(&root)).unwrap(), None);
}

#[test]
fn the_commands_make_no_store_where_there_is_none() {
    let root = tempfile::tempdir().unwrap();
    let nowhere = root.path().join("nowhere");
    let refused = [
        check(&nowhere).unwrap_err(),
        salvage(&nowhere).unwrap_err(),
        backup(&nowhere, root.path()).unwrap_err(),
    ];
    for error in refused {
        assert!(
            matches!(&error, OpenError::Directory { directory, .. } if *directory == nowhere),
            "{error:?}"
        );
    }
    assert!(check(root.path()).is_err() && backup(root.path(), &nowhere).is_err());
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

/// A store whose database somebody removed would look like one that starts for the first time, and nobody would be told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_gone_is_not_begun_anew() {
    let engine = Embedded::new();
    engine.open_now(Arc::new(Lanes::default())).unwrap().close().await;
    fs::remove_file(database(&engine.root)).unwrap();
    let refused = engine.open_now(Arc::new(Lanes::default())).unwrap_err();
    assert!(chain(&refused).contains("it is missing"), "{}", chain(&refused));
    assert!(!database(&engine.root).exists());
}

/// A large store would keep its gateway from starting for as long as it takes to read it; but not one that was seen damaged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_store_is_read_at_the_start_only_after_damage() {
    let engine = Embedded::new();
    let (root, metrics) = (Arc::clone(&engine.root), engine.metrics.clone());
    let mut bench = Bench::new(Box::new(engine)).await;
    bench.stored(with_body("1", "a damaged body")).await;
    bench.store.close().await;
    flip(&database(&root), b"", b"damaged body", 1);
    // SQLite goes by its header, and nothing of it takes room.
    fs::File::options().append(true).open(database(&root)).unwrap().set_len(65 << 20).unwrap();
    bench.restart().await;
    assert_eq!((bench.depth("a").dead, metrics.store_corrupt_rows.get()), (0, 0));
    bench.store.close().await;
    let mark = directory(&root).join("damage");
    fs::write(&mark, "a page that was met").unwrap();
    bench.restart().await;
    assert_eq!((bench.depth("a").dead, metrics.store_corrupt_rows.get()), (1, 1));
    assert!(!mark.exists(), "the file as such is sound");
}

/// What is kept aside is for a full disk, and gone when it has been given.
#[test]
fn a_start_that_fails_for_another_reason_leaves_the_room_that_is_kept_aside() {
    let engine = Embedded::new();
    fs::create_dir_all(directory(&engine.root)).unwrap();
    let ballast = directory(&engine.root).join("ballast");
    fs::write(&ballast, vec![0; 600 << 10]).unwrap();
    let theirs = rusqlite::Connection::open(database(&engine.root)).unwrap();
    theirs.execute_batch("CREATE TABLE theirs (x)").unwrap();
    let refused = engine.open_now(Arc::new(Lanes::default())).unwrap_err();
    assert!(matches!(refused, OpenError::Foreign { .. }), "{refused:?}");
    assert_eq!(fs::metadata(&ballast).unwrap().len(), 600 << 10);
}
