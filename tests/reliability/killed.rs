//! SIGKILL at random moments (under load, while starting, just after, in the middle of a checkpoint): what was
//! acknowledged is forwarded or stored, its body equal, and a copy of it is a duplicate.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rusqlite::Connection;
use sha2::{Digest as _, Sha256};

use crate::backend::{Backend, Got, Reply};
use crate::sender::{ALL, Post, body, every_provider};
use crate::soak;
use crate::support::{Gateway, countersign, eventually};

/// A source, its id of a delivery (empty where it has none), and the SHA-256 of the body.
type Content = (String, String, [u8; 32]);

fn content(source: &str, id: Option<&str>, body: &[u8]) -> Content {
    (source.to_owned(), id.unwrap_or_default().to_owned(), Sha256::digest(body).into())
}

/// Sizes of bodies; the largest is sent by itself when the log is to grow.
const LARGE: usize = 200 << 10;
const SIZES: [usize; 6] = [0, 300, 1 << 10, 300, 8 << 10, 40 << 10];
/// From here on the log is copied into the database (2,000 pages).
const CHECKPOINT_BYTES: u64 = 2_000 * 4_096;

/// One delivery as a provider sends it; a copy is the same again.
#[derive(Debug, Clone)]
struct Sent {
    source: &'static str,
    id: String,
    size: usize,
}

impl Sent {
    /// The `number`th; a few share their id, so that copies of them arrive at once, or on both sides of a kill.
    fn number(number: usize, large: bool) -> Self {
        let number = if number % 10 == 1 { number - 1 } else { number };
        let (kind, size) = if large { ("large", LARGE) } else { ("d", SIZES[number / 7 % SIZES.len()]) };
        Self { source: ALL[number % ALL.len()], id: format!("{kind}-{number}"), size }
    }

    fn body(&self) -> Vec<u8> {
        // Where neither id nor time is signed, two empty bodies are one and the same delivery.
        if self.size == 0 && self.source == "standard-webhooks" {
            return Vec::new();
        }
        let mut text = body(&self.id);
        text.pop();
        text.extend_from_slice(b",\"pad\":\"");
        text.resize(text.len().max(self.size.saturating_sub(2)), b'.');
        text.extend_from_slice(b"\"}");
        text
    }

    fn content(&self) -> Content {
        let id = Some(&*self.id).filter(|_| self.source != "owlette-legacy");
        content(self.source, id, &self.body())
    }

    fn post(&self) -> Post {
        Post::signed(self.source, &format!("/webhooks/{}", self.source), &self.id, "x", &self.body())
    }
}

/// What backend and senders have written down.
#[derive(Default)]
struct Notes {
    acked: Mutex<HashMap<Content, Sent>>,
    /// What the backend has answered with 2xx.
    accepted: Mutex<HashSet<Content>>,
    /// Attempts by our id and number, and the ids under which a content came.
    attempts: Mutex<HashSet<(String, u32)>>,
    ids: Mutex<HashMap<Content, String>>,
    /// What must not happen.
    broken: Mutex<Vec<String>>,
    /// From now on every answer is 200.
    calm: AtomicBool,
}

impl Notes {
    fn backend(self: &Arc<Self>) -> Backend {
        let notes = Arc::clone(self);
        Backend::start(move |number, got| notes.note(number, got))
    }

    fn note(&self, number: usize, got: &Got) -> Reply {
        let source = got.header("countersign-source").unwrap();
        let content = content(source, got.header("countersign-delivery-id"), &got.body);
        let id = got.header("webhook-id").unwrap().to_owned();
        let attempt = got.header("countersign-attempt").unwrap().parse().unwrap();
        if !self.attempts.lock().unwrap().insert((id.clone(), attempt)) {
            self.broken.lock().unwrap().push(format!("attempt {attempt} of {id} came twice"));
        }
        let first = self.ids.lock().unwrap().entry(content.clone()).or_insert(id.clone()).clone();
        if first != id {
            self.broken.lock().unwrap().push(format!("{first} came again as {id}"));
        }
        match number % 50 {
            _ if self.calm.load(Ordering::Relaxed) => {}
            0 => return Reply::Hang,
            1..20 => return Reply::Status(503),
            _ => {}
        }
        self.accepted.lock().unwrap().insert(content);
        Reply::Status(200)
    }

    /// Sends until told to stop.
    fn load(&self, gateway: &Gateway, next: &AtomicUsize, large: bool, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let sent = Sent::number(next.fetch_add(1, Ordering::Relaxed), large);
            match sent.post().try_send(gateway.listen) {
                Some(answer) if answer.status == 200 => {
                    self.acked.lock().unwrap().insert(sent.content(), sent);
                }
                // Cut off in the middle of the answer, or refused: nothing was promised.
                _ => {}
            }
        }
    }

    /// Acknowledged, and in none of these.
    fn missing(&self, stored: &HashSet<Content>) -> Vec<Sent> {
        let (acked, accepted) = (self.acked.lock().unwrap(), self.accepted.lock().unwrap());
        let lost =
            acked.iter().filter(|(content, _)| !accepted.contains(*content) && !stored.contains(*content));
        lost.map(|(_, sent)| sent.clone()).collect()
    }
}

/// What is waiting or in flight, read from a copy: opening the file itself would change it.
fn pending(data: &Path) -> HashSet<Content> {
    let copy = tempfile::tempdir().unwrap();
    for name in ["countersign.db", "countersign.db-wal"] {
        let _ = fs::copy(data.join(name), copy.path().join(name));
    }
    let connection = Connection::open(copy.path().join("countersign.db")).unwrap();
    let mut select = connection
        .prepare("SELECT source, delivery_id, body FROM delivery WHERE id IN (SELECT delivery FROM forward WHERE settled_at IS NULL)")
        .unwrap();
    let rows = select.query_map([], |row| {
        let id: Option<String> = row.get(1)?;
        Ok(content(&row.get::<_, String>(0)?, id.as_deref(), &row.get::<_, Vec<u8>>(2)?))
    });
    rows.unwrap().map(Result::unwrap).collect()
}

/// Starts a process that is killed at a random moment of its start.
fn kill_while_starting(gateway: &Gateway) {
    let mut child = countersign()
        .args(["run", "--config"])
        .arg(gateway.config_path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_micros(fastrand::u64(0..60_000)));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Copies of these are answered like the first and not stored.
fn assert_duplicates(gateway: &Gateway, sent: &[Sent]) {
    let stored = || ALL.map(|source| requests(gateway, source, "stored")).iter().sum::<f64>();
    let before = stored();
    thread::scope(|scope| {
        for part in sent.chunks(sent.len().div_ceil(4).max(1)) {
            scope.spawn(move || {
                for sent in part {
                    assert_eq!(sent.post().send(gateway.listen).status, 200, "{sent:?}");
                }
            });
        }
    });
    assert_eq!(stored(), before, "copies were stored");
}

fn requests(gateway: &Gateway, source: &str, outcome: &str) -> f64 {
    let series = format!("countersign_ingest_requests_total{{outcome=\"{outcome}\",source=\"{source}\"}}");
    gateway.metric(&series).unwrap()
}

#[test]
fn acked_deliveries_survive_kill_nine() {
    let notes = Arc::new(Notes::default());
    let backend = notes.backend();
    // Hanging and failing attempts are always under way, so that every kill finds forwards in all states.
    let sections = every_provider(&backend)
        + "concurrency = 64\ntimeout = \"500ms\"\nconnect_timeout = \"500ms\"\nbreaker = \"off\"\n\
           retry = { initial = \"50ms\", max = \"200ms\" }\n";
    let quiet = |command: &mut std::process::Command| {
        command.env("RUST_LOG", "countersign=warn");
    };
    let mut gateway = Gateway::start_with(&sections, quiet);
    let (next, rounds) = (AtomicUsize::new(0), soak(50, 200));
    for round in 0..rounds {
        let large = round % 5 == 2;
        let log = gateway.directory().join("data/countersign.db-wal");
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| notes.load(&gateway, &next, large, &stop));
            }
            match round % 5 {
                0 => {}
                2 => eventually("the log has grown", || log.metadata().unwrap().len() > CHECKPOINT_BYTES),
                _ => thread::sleep(Duration::from_millis(fastrand::u64(0..100))),
            }
            thread::sleep(Duration::from_micros(fastrand::u64(0..5_000)));
            gateway.signal("KILL");
            stop.store(true, Ordering::Relaxed);
        });
        gateway.kill();
        if round % 5 == 4 {
            kill_while_starting(&gateway);
        }
        if round % 10 == 9 || round + 1 == rounds {
            let lost = notes.missing(&pending(&gateway.directory().join("data")));
            assert!(lost.is_empty(), "lost by round {round}: {lost:?}");
        }
        gateway = Gateway::start_in(gateway.directory_held(), quiet);
        let acked = notes.acked.lock().unwrap();
        let some: Vec<_> = acked.values().take(5).cloned().collect();
        drop(acked);
        assert_duplicates(&gateway, &some);
    }
    notes.calm.store(true, Ordering::Relaxed);
    gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
    assert_eq!(gateway.metric("countersign_forward_dead{destination=\"legacy\"}"), Some(0.0));
    let lost = notes.missing(&HashSet::new());
    assert!(lost.is_empty(), "never forwarded: {lost:?}");
    let all: Vec<_> = notes.acked.lock().unwrap().values().cloned().collect();
    assert_duplicates(&gateway, &all);
    let broken = notes.broken.lock().unwrap();
    assert!(broken.is_empty(), "{broken:?}");
    let attempts = notes.attempts.lock().unwrap().len();
    println!("{rounds} kills, {} acknowledged, 0 lost, {attempts} attempts", all.len());
    assert!(all.len() > rounds * 10, "too little was sent to prove anything");
}
