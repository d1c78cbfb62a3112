//! Floods of forged requests: honest senders are all served, in time, and nothing of the flood stays behind.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::Backend;
use crate::sender::{Post, every_provider};
use crate::soak;
use crate::support::Gateway;

const FLOODERS: usize = 4;
const HONEST: usize = 100;

/// Sends `count` forged requests, each with an id of its own, over as few connections as may be; the number refused with 401.
fn flood(to: SocketAddr, name: usize, count: usize) -> usize {
    let mut stream = TcpStream::connect(to).unwrap();
    let mut refused = 0;
    let mut answer = [0; 4096];
    for n in 0..count {
        if n > 0 && n % 1_000 == 0 {
            // A connection carries no more.
            stream = TcpStream::connect(to).unwrap();
        }
        let request = format!(
            "POST /webhooks/github HTTP/1.1\r\nHost: gateway\r\nX-GitHub-Delivery: {name}-{n}\r\nX-GitHub-Event: push\r\n\
             X-Hub-Signature-256: sha256={n:064x}\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut read = 0;
        while !answer[..read].ends_with(b"\r\n\r\n") {
            match stream.read(&mut answer[read..]) {
                Ok(0) | Err(_) => panic!("the gateway hung up after {n}"),
                Ok(more) => read += more,
            }
        }
        refused += usize::from(answer.starts_with(b"HTTP/1.1 401"));
    }
    refused
}

#[test]
fn a_flood_of_forged_requests_costs_honest_senders_nothing() {
    let backend = Backend::accepting();
    // At debug each refusal would be a line: what an operator runs with counts.
    let gateway = Gateway::start_with(&every_provider(&backend), |command| {
        command.env("RUST_LOG", "countersign=info");
    });
    Post::signed("github", "/webhooks/github", "warm", "push", b"warm").send(gateway.listen);
    let before = gateway.resident_bytes();
    let each = soak(2_500, 250_000);
    let flooding = AtomicUsize::new(FLOODERS);
    let mut times = Vec::new();
    let began = Instant::now();
    thread::scope(|scope| {
        let flooders: Vec<_> = (0..FLOODERS)
            .map(|name| {
                let (flooding, gateway) = (&flooding, &gateway);
                scope.spawn(move || {
                    let refused = flood(gateway.listen, name, each);
                    flooding.fetch_sub(1, Ordering::SeqCst);
                    refused
                })
            })
            .collect();
        let mut n = 0;
        while n < HONEST || flooding.load(Ordering::SeqCst) > 0 {
            let body = format!("honest {n}");
            let post = Post::signed("github", "/webhooks/github", &format!("h-{n}"), "push", body.as_bytes());
            let sent = Instant::now();
            let answer = post.send(gateway.listen);
            assert_eq!(answer.status, 200, "honest request {n}: {answer:?} {}", gateway.log());
            times.push(sent.elapsed());
            n += 1;
            // What honest senders cost is not what is measured.
            thread::sleep(Duration::from_millis(10));
        }
        for flooder in flooders {
            assert_eq!(flooder.join().unwrap(), each);
        }
    });
    let rate = (FLOODERS * each) as u64 / began.elapsed().as_secs().max(1);
    times.sort_unstable();
    let p99 = times[times.len() * 99 / 100];
    let grown = gateway.resident_bytes().saturating_sub(before) >> 20;
    println!("{} forged at {rate}/s, {} honest, p99 {p99:?}, {grown} MiB more", FLOODERS * each, times.len());
    // The id and the bytes of each honest delivery, and of no other.
    let remembered = gateway.metric("countersign_dedup_cache_entries").unwrap();
    assert!(remembered <= 2.0 * (times.len() + 1) as f64, "{remembered} ids");
    assert!(p99 < Duration::from_secs(3), "{p99:?}");
    assert!(grown < 32, "{grown} MiB");
    gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
    assert_eq!(backend.got().len(), times.len() + 1);
    let stored = "countersign_ingest_requests_total{outcome=\"stored\",source=\"github\"}";
    assert_eq!(gateway.metric(stored), Some((times.len() + 1) as f64));
}
