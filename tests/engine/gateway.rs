//! The engine under test: lanes and store, put together as `app` does it, which can be stopped, and which can crash.

use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use countersign::clock::{Clock, Moment, Timestamp, from_milliseconds, later};
use countersign::config::{self, Config, Destination};
use countersign::dedup::Keys;
use countersign::delivery::Received;
use countersign::dispatch::Lanes;
use countersign::forward::Concurrency;
use countersign::id::Id;
use countersign::metrics::Metrics;
use countersign::secret::Secret;
use countersign::store::{Arrival, Store, sqlite};
use countersign::verify::{Message, Signer, preset};
use http::Method;
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::time::Instant;

const SECRET: &str = "a secret of the test, long enough";
/// For how long an accepted id is claimed.
pub(crate) const TTL: Duration = Duration::from_mins(30);
pub(crate) const DESTINATIONS: [&str; 3] = ["a", "b", "c"];
/// The pauses of `a` and `b`, all there are; those of `c`, the last of which is repeated.
pub(crate) const PAUSES: [&[u64]; 3] = [&[5, 20, 60], &[10, 10, 10, 10, 10, 10], &[4, 8, 16, 32, 60]];
pub(crate) const AGE_MAX: Duration = Duration::from_mins(10);

const CONFIG: &str = r#"
source = [{ name = "s", provider = "github", secrets = [{ value = "a secret of the test, long enough" }], to = ["a", "b", "c"] }]
[[destination]]
name = "a"
url = "http://127.0.0.1:1/a"
timeout = "10s"
breaker = "off"
retry = { schedule = ["5s", "20s", "60s"], max_age = "10m", jitter = "none" }
[[destination]]
name = "b"
url = "http://127.0.0.1:1/b"
timeout = "10s"
breaker = { failures = 3, probe_after = "20s", probe_max = "40s" }
retry = { schedule = ["10s", "10s", "10s", "10s", "10s", "10s"], max_age = "10m", jitter = "none" }
[[destination]]
name = "c"
url = "http://127.0.0.1:1/c"
timeout = "10s"
breaker = "off"
retry = { initial = "4s", factor = 2.0, max = "60s", max_age = "10m", jitter = "none" }
"#;

fn config() -> &'static Config {
    static PARSED: OnceLock<Config> = OnceLock::new();
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    PARSED.get_or_init(|| config::parse(CONFIG, "engine.toml", Path::new("."), &|_| None, now).unwrap())
}

/// What a reload changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Attempts at once, by destination; 0 for one that is not there.
    pub(crate) concurrency: [usize; 3],
}

impl Setting {
    fn destinations(self, backend: SocketAddr) -> Vec<Arc<Destination>> {
        let each = config().destinations.iter().zip(self.concurrency);
        let there = each.filter_map(|(destination, concurrency)| {
            let mut destination = Destination::clone(destination);
            destination.url = format!("http://{backend}/{}", destination.name).parse().unwrap();
            destination.concurrency = Concurrency::Fixed(NonZeroUsize::new(concurrency)?);
            Some(Arc::new(destination))
        });
        there.collect()
    }
}

pub(crate) struct Gateway {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) metrics: Metrics,
    /// Looks into the tables.
    pub(crate) reader: Connection,
    /// Holds the store.
    directory: TempDir,
}

/// In memory, where there is such a place: what a walk is about is not how long an fsync takes.
pub(crate) fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

impl Gateway {
    /// Starts over what `directory` holds.
    pub(crate) fn start(directory: TempDir, setting: Setting, backend: SocketAddr, clock: &Clock) -> Self {
        let metrics = Metrics::new();
        let lanes = Lanes::new(clock.clone(), metrics.clone());
        lanes.apply(&setting.destinations(backend));
        let options = sqlite::Options {
            directory: directory.path().to_owned(),
            disk_reserve: Some(0),
            metrics: metrics.clone(),
        };
        let store: Arc<dyn Store> = Arc::new(sqlite::open(options, lanes.clone()).unwrap());
        lanes.start(&store);
        let reader = Connection::open(file(&directory)).unwrap();
        Self { store, lanes, metrics, reader, directory }
    }

    pub(crate) fn reload(&self, setting: Setting, backend: SocketAddr) {
        self.lanes.apply(&setting.destinations(backend));
    }

    /// Ends, attempts cut off; returns the directory.
    pub(crate) async fn stop(self) -> TempDir {
        let until = Instant::now() + Duration::from_mins(1);
        self.lanes.drain(async {}, until).await;
        drop(self.reader);
        self.store.close().await;
        self.directory
    }

    /// What the disk would hold if the process ended now. While somebody reads, the log is not begun anew, so that file and
    /// log fit together.
    pub(crate) fn image(&self) -> TempDir {
        let image = directory();
        self.reader.execute_batch("BEGIN; SELECT count(*) FROM claim").unwrap();
        for name in ["countersign.db", "countersign.db-wal"] {
            fs::copy(self.directory.path().join(name), image.path().join(name)).unwrap();
        }
        self.reader.execute_batch("COMMIT").unwrap();
        image
    }
}

fn file(directory: &TempDir) -> PathBuf {
    directory.path().join("countersign.db")
}

/// A genuine delivery, whose body is its number.
pub(crate) fn arrival(
    number: u32,
    key: &str,
    to: &[&'static str],
    revive_dead: bool,
    clock: &Clock,
) -> Arrival {
    let moment = clock.moment();
    let received_at = from_milliseconds(moment.wall.as_millisecond());
    let signer = Signer::new(preset("github").unwrap().scheme.clone(), &Secret::new(SECRET).unwrap());
    let (method, body) = (Method::POST, Bytes::from(number.to_string()));
    let message = Message { method: &method, url: "", id: Some(key), event: Some("push"), body: &body };
    let headers = signer.unwrap().sign(&message, received_at).unwrap();
    let mut chance = [0; 10];
    chance[6..].copy_from_slice(&number.to_be_bytes());
    let received = Received {
        id: Id::new(received_at, chance),
        source: "s".into(),
        received_at,
        sender: "2001:db8::1".parse().unwrap(),
        method,
        target: "/webhooks/s".to_owned(),
        headers,
        body,
    };
    let verified = config().sources[0].verifier.verify(received).unwrap();
    let at = Moment { wall: received_at, steady: moment.steady };
    Arrival {
        keys: Keys::of(&verified, false),
        verified: Arc::new(verified),
        at,
        claimed_until: later(at.latest(), TTL),
        destinations: to.iter().map(|name| Arc::from(*name)).collect(),
        revive_dead,
    }
}
