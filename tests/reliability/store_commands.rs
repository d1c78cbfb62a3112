//! `countersign store`, and damage, as an operator of the built binary meets them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::backend::{Backend, Reply};
use crate::sender::{Post, every_provider};
use crate::support::{Gateway, eventually, run};

/// With a backend that refuses all: what is accepted waits.
fn waiting(count: usize) -> (Gateway, Vec<Vec<u8>>) {
    let down = Backend::start(|_, _| Reply::Status(503));
    let gateway = Gateway::start(&sections(&down));
    let bodies: Vec<_> = (0..count)
        .map(|number| {
            let filled = "0123456789".repeat(if number % 10 == 3 { 2_000 } else { number % 50 });
            format!(r#"{{"id":"evt_{number:04}","type":"x","filled":"{filled}"}}"#).into_bytes()
        })
        .collect();
    for (number, body) in bodies.iter().enumerate() {
        let post = Post::signed("stripe", "/webhooks/stripe", &format!("evt_{number:04}"), "x", body);
        assert_eq!(post.send(gateway.listen).status, 200);
    }
    (gateway, bodies)
}

/// Starts it anew with a backend that takes everything.
fn restart(gateway: &Gateway) -> (Gateway, Backend) {
    let (gateway, backend) = try_restart(gateway);
    (gateway.unwrap_or_else(|log| panic!("ended before it was ready; log: {log}")), backend)
}

/// The same; the log when it ends before it is ready.
fn try_restart(gateway: &Gateway) -> (Result<Gateway, String>, Backend) {
    let backend = Backend::accepting();
    gateway.rewrite(&sections(&backend));
    (Gateway::try_start_in(gateway.directory_held(), |_| ()).map_err(|(_, log)| log), backend)
}

fn sections(backend: &Backend) -> String {
    every_provider(backend) + "retry = { initial = \"200ms\", max = \"1s\" }\nbreaker = \"off\"\n"
}

fn store(gateway: &Gateway, arguments: &[&str]) -> (Option<i32>, String) {
    let config = gateway.config_path();
    let all: Vec<_> = ["store", arguments[0], "--config", config.to_str().unwrap()]
        .into_iter()
        .chain(arguments[1..].iter().copied())
        .collect();
    let output = run(&all);
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn the_commands_check_copy_and_salvage_a_store() {
    let (mut gateway, bodies) = waiting(40);
    let copy = gateway.directory().join("copy");
    let (code, text) = store(&gateway, &["check"]);
    assert_eq!((code, text.starts_with("ok: 40 deliveries, 40 forwards waiting")), (Some(0), true), "{text}");
    let (code, text) = store(&gateway, &["backup", "--to", copy.to_str().unwrap(), "--json"]);
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, document["checked"]["deliveries"].as_u64()), (Some(0), Some(40)), "{text}");
    let (code, text) = store(&gateway, &["salvage"]);
    assert_eq!((code, text.contains("in use by process")), (Some(74), true), "{text}");

    gateway.kill();
    let data = gateway.directory().join("data");
    let (code, text) = store(&gateway, &["salvage"]);
    assert_eq!((code, text.as_str()), (Some(0), "nothing is damaged\n"));
    fs::remove_file(data.join("countersign.db-wal")).unwrap_or_default();
    fs::remove_file(data.join("countersign.db-shm")).unwrap_or_default();
    fs::copy(copy.join("countersign.db"), data.join("countersign.db")).unwrap();
    let mut database = fs::read(data.join("countersign.db")).unwrap();
    database[..100].fill(0);
    fs::write(data.join("countersign.db"), database).unwrap();
    let (code, text) = store(&gateway, &["check"]);
    assert_eq!((code, text.contains("store salvage")), (Some(1), true), "{text}");
    let (code, text) = store(&gateway, &["salvage"]);
    assert_eq!((code, text.contains("kept: 40 deliveries, 40 forwards waiting")), (Some(0), true), "{text}");
    assert!(data.join("damaged-1/countersign.db").exists());

    let (_gateway, backend) = restart(&gateway);
    let got: BTreeSet<_> = backend.eventually_got(40).into_iter().map(|got| got.body).collect();
    assert_eq!(got, bodies.into_iter().collect());
}

#[test]
fn a_file_that_holds_nothing_of_ours_is_refused_with_what_to_do() {
    let (mut gateway, _) = waiting(1);
    gateway.signal("TERM");
    assert_eq!(gateway.wait(), Some(0));
    fs::write(gateway.directory().join("data/countersign.db"), "garbage ".repeat(5_000)).unwrap();
    let output = run(&["run", "--config", gateway.config_path().to_str().unwrap()]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(74), "{text}");
    assert!(
        text.contains("restore it from a backup") && text.contains("countersign store salvage"),
        "{text}"
    );
    assert_eq!(store(&gateway, &["salvage"]).0, Some(0));
    let (gateway, _) = restart(&gateway);
    // Who salvaged was no gateway: this one tells of it.
    assert!(gateway.log().contains("nothing of what it held can be read"));
    gateway.eventually_metric("countersign_store_corrupt_rows_total", 1.0);
}

/// Copying it had SQLite forget the part of the log behind the damage, and with it an acknowledged delivery, unsaid.
/// The log of a database that had been removed was thrown away, and what it held with it.
#[test]
fn a_database_that_is_missing_is_salvaged_from_its_log_or_named() {
    let (mut gateway, bodies) = waiting(5);
    gateway.kill();
    let file = gateway.directory().join("data/countersign.db");
    fs::remove_file(&file).unwrap();
    let (mut gateway, backend) = restart(&gateway);
    let got: BTreeSet<_> = backend.eventually_got(bodies.len()).into_iter().map(|got| got.body).collect();
    assert_eq!(got, bodies.into_iter().collect());
    assert!(gateway.log().contains("it is missing"));

    gateway.signal("TERM");
    assert_eq!(gateway.wait(), Some(0));
    fs::remove_file(&file).unwrap();
    let output = run(&["run", "--config", gateway.config_path().to_str().unwrap()]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(74), "{text}");
    assert!(text.contains("it is missing") && text.contains("countersign store salvage"), "{text}");
    assert_eq!(store(&gateway, &["salvage"]).0, Some(0));
    let (gateway, _) = restart(&gateway);
    gateway.eventually_metric("countersign_store_corrupt_rows_total", 1.0);
}

#[test]
fn a_damaged_store_is_not_copied_as_if_it_were_whole() {
    let (mut gateway, _) = waiting(2);
    gateway.kill();
    let data = gateway.directory().join("data");
    let log = data.join("countersign.db-wal");
    let mut bytes = fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&log, &bytes).unwrap();
    let index = fs::read(data.join("countersign.db-shm")).unwrap();
    let copy = gateway.directory().join("copy");
    let (code, text) = store(&gateway, &["backup", "--to", copy.to_str().unwrap()]);
    assert_eq!((code, text.contains("is damaged")), (Some(74), true), "{text}");
    assert!(!copy.exists());
    // What proves that something is missing is still there for the next start.
    assert_eq!(fs::read(data.join("countersign.db-shm")).unwrap(), index);
    assert_eq!(store(&gateway, &["check"]).0, Some(1));
}

/// From outside: bits flip in what SIGTERM or SIGKILL left, and each body arrives or its loss is told.
#[test]
fn a_gateway_delivers_what_a_flipped_bit_has_left() {
    let mut random = fastrand::Rng::with_seed(crate::seed());
    for (round, signal) in ["TERM", "KILL", "KILL"].into_iter().enumerate() {
        let (mut gateway, bodies) = waiting(30);
        gateway.signal(signal);
        gateway.wait();
        let name = if round == 2 { "countersign.db-wal" } else { "countersign.db" };
        let at = flip(&gateway.directory().join("data").join(name), &mut random);
        let (gateway, backend) = match try_restart(&gateway) {
            (Ok(gateway), backend) => (gateway, backend),
            // A damaged number of the format may be that of a newer version, which the operator knows.
            (Err(log), _) => {
                assert!(log.contains("if none did, it is damaged: `countersign store salvage"), "{log}");
                let (code, text) = store(&gateway, &["salvage"]);
                assert_eq!(code, Some(0), "{signal}, byte {at} of {name}: {text}");
                restart(&gateway)
            }
        };
        eventually("all is delivered or a dead letter", || {
            gateway.metric("countersign_forward_pending{destination=\"legacy\"}") == Some(0.0)
        });
        let got: BTreeSet<_> = backend.got().into_iter().map(|got| got.body).collect();
        let bodies: BTreeSet<_> = bodies.into_iter().collect();
        assert!(got.is_subset(&bodies), "{signal}, byte {at} of {name}: a body that nobody sent");
        let lost = bodies.difference(&got).count();
        let counted = gateway.metric("countersign_store_corrupt_rows_total").unwrap();
        assert!(
            lost <= 1 && counted >= lost as f64,
            "{signal}, byte {at} of {name}: {lost}, {counted} counted"
        );
    }
}

fn flip(file: &Path, random: &mut fastrand::Rng) -> usize {
    let mut bytes = fs::read(file).unwrap();
    let at = random.usize(..bytes.len());
    bytes[at] ^= 1 << random.u8(..8);
    fs::write(file, bytes).unwrap();
    at
}
