//! A guard against the cost of a request growing unnoticed, by a measure that a busy machine does not change: how often,
//! and how much, the gateway allocates for one. SQLite's own allocations are not among them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::alloc::System;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;

use bytes::Bytes;
use countersign::clock::Clock;
use countersign::config;
use countersign::dispatch::Lanes;
use countersign::ingest::{Ingest, Listener};
use countersign::metrics::Metrics;
use countersign::secret::Secret;
use countersign::store::quarantine::Quarantine;
use countersign::store::{Store, sqlite};
use countersign::verify::{Message, Signer, preset};
use http::Method;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// How far the number of allocations may be off, either way: a bound that has become generous has to be lowered. Runs on
/// busy machines differ by 2 %: how requests fall into reads, and what timers do beside them, is chance.
const TOLERANCE: f64 = 0.1;
const REQUESTS: u64 = 200;
const SECRET: &str = "a-secret-of-the-test";

/// What a request with a body of so many bytes allocates.
struct Bound {
    body_bytes: usize,
    /// How often.
    allocations: f64,
    /// So many bytes beyond its body's own at most. It is what chance does to buffers that makes the bound a wide one; a
    /// second copy of the large body does not fit in.
    bytes_max: f64,
}

const BOUNDS: [Bound; 2] = [
    Bound { body_bytes: 1 << 10, allocations: 48.2, bytes_max: 9_000.0 },
    Bound { body_bytes: 64 << 10, allocations: 51.0, bytes_max: 45_000.0 },
];

#[test]
fn a_request_allocates_no_more_than_it_did() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let text = format!(
        "listen.address = \"127.0.0.1:0\"\nadmin.address = \"127.0.0.1:0\"\nstore.disk_reserve = \"1MiB\"\n\
         [[source]]\nname = \"hostwares\"\nprovider = \"hostwares\"\nsecrets = [{{ value = \"{SECRET}\" }}]\n\
         to = [\"backend\"]\n[[destination]]\nname = \"backend\"\nurl = \"http://127.0.0.1:9/\"\n"
    );
    let config = config::parse(&text, "test.toml", directory.path(), &|_| None, clock.now()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let stop = CancellationToken::new();
    let (address, store, serving) = runtime.block_on(async {
        let metrics = Metrics::new();
        let listener = Listener::new(None, &config.listen, &config.limits).unwrap();
        let address = listener.address().unwrap();
        let lanes = Lanes::new(clock.clone(), metrics.clone());
        lanes.apply(&config.destinations);
        // What is counted ends with the answer.
        assert!(lanes.pause("backend"));
        let options = sqlite::Options {
            directory: config.store.path.clone(),
            disk_reserve: config.store.disk_reserve,
            metrics: metrics.clone(),
        };
        let store: Arc<dyn Store> = Arc::new(sqlite::open(options, lanes.clone()).unwrap());
        lanes.start(&store);
        let ingest = Ingest::new(
            &config,
            Arc::clone(&store),
            lanes,
            Arc::new(Quarantine::none(&metrics)),
            clock.clone(),
            metrics,
        );
        let (_, serving) = listener.serve(ingest, stop.clone());
        (address, store, tokio::spawn(serving))
    });

    let mut wrong = Vec::new();
    for bound in BOUNDS {
        let body_bytes = bound.body_bytes;
        // A connection grows its buffers and a store its caches at first.
        let requests: Vec<_> = (0..2 * REQUESTS).map(|_| request(&clock, body_bytes)).collect();
        let (first, counted) = requests.split_at(REQUESTS as usize);
        let mut stream = TcpStream::connect(address).unwrap();
        exchange(&mut stream, first);
        let region = Region::new(ALLOCATOR);
        exchange(&mut stream, counted);
        let change = region.change();
        let each = |count: usize| count as f64 / REQUESTS as f64;
        let allocations = each(change.allocations + change.reallocations);
        let bytes = each(change.bytes_allocated) - body_bytes as f64;
        let line = format!(
            "{body_bytes} B body: {allocations:.1} allocations per request ({} expected), {bytes:.0} B beyond the body \
             ({} at most)",
            bound.allocations, bound.bytes_max
        );
        println!("{line}");
        if (allocations / bound.allocations - 1.0).abs() > TOLERANCE || bytes > bound.bytes_max {
            wrong.push(line);
        }
    }
    stop.cancel();
    runtime.block_on(async {
        serving.await.unwrap();
        store.close().await;
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn request(clock: &Clock, body_bytes: usize) -> Vec<u8> {
    let signer = Signer::new(preset("hostwares").unwrap().scheme.clone(), &Secret::new(SECRET).unwrap());
    let beginning = format!(r#"{{"id":"{:032x}","event":"deploy","pad":""#, fastrand::u128(..));
    let pad = "x".repeat(body_bytes - beginning.len() - 2);
    let body = Bytes::from(format!("{beginning}{pad}\"}}"));
    let message = Message { method: &Method::POST, url: "/", id: None, event: None, body: &body };
    let mut request = format!(
        "POST /webhooks/hostwares HTTP/1.1\r\nHost: hooks.example.com\r\nContent-Type: application/json\r\n\
         User-Agent: Hostwares-Webhooks/2.4\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in &signer.unwrap().sign(&message, clock.now()).unwrap() {
        request += &format!("{name}: {}\r\n", value.to_str().unwrap());
    }
    [request.as_bytes(), b"\r\n", &body].concat()
}

/// Sends one request after the other, and allocates nothing for it.
fn exchange(stream: &mut TcpStream, requests: &[Vec<u8>]) {
    let mut answer = [0; 1_024];
    for request in requests {
        stream.write_all(request).unwrap();
        let mut length = 0;
        while !answer[..length].ends_with(b"\r\n\r\n") {
            let read = stream.read(&mut answer[length..]).unwrap();
            assert_ne!(read, 0, "the gateway has closed");
            length += read;
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..length]));
    }
}
