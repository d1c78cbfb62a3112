//! Bodies that are large, slow, or other than they say: each costs what it has, and all together no more than the budget.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::thread;

use tokio::time::Instant;

use crate::backend::{Backend, Reply};
use crate::limits::{cpu_seconds, more_files};
use crate::sender::{Post, every_provider};
use crate::soak;
use crate::support::{Gateway, PATIENCE, eventually};

const MIB: usize = 1 << 20;
/// What the connections on which the store reads keep of pages, each when it is first needed.
const READERS_KEEP: u64 = 4 << 20;

/// The most memory that the process has held since [`forget_peak`].
fn peak_bytes(gateway: &Gateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

fn forget_peak(gateway: &Gateway) {
    std::fs::write(format!("/proc/{}/clear_refs", gateway.id()), "5").unwrap();
}

/// Fills what is filled once and for all, as the store's cache of pages, and tells what the process then holds.
fn warm_up(gateway: &Gateway) -> u64 {
    for n in 0..24 {
        let id = format!("warm-{n}");
        let body = [id.as_bytes(), &vec![b'w'; MIB - 100]].concat();
        let post = Post::signed("github", "/webhooks/github", &id, "push", &body);
        assert_eq!(post.send(gateway.listen).status, 200);
    }
    gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
    // And the quarantine's.
    let mut forged = Post::signed("github", "/webhooks/github", "forged", "push", &[b'f'; MIB]);
    forged.body[0] = b'F';
    assert_eq!(forged.send(gateway.listen).status, 401);
    gateway.eventually_metric("countersign_quarantine_entries", 1.0);
    gateway.resident_bytes()
}

/// A JSON document of `length` bytes that begins and ends so.
fn filled(begin: &str, fill: &str, end: &str, length: usize) -> Vec<u8> {
    let times = (length - begin.len() - end.len()) / fill.len();
    [begin, &fill.repeat(times), end].concat().into_bytes()
}

/// Received, verified, looked into, stored, forwarded in vain, read from the store again and forwarded: a body is in
/// memory once.
#[test]
fn a_large_body_costs_little_more_than_its_size() {
    let backend = Backend::start(|_, got| {
        let first = got.header("countersign-attempt") == Some("1") && got.body.len() > 2 * MIB;
        Reply::Status(if first { 503 } else { 200 })
    });
    // Debug builds take their time for 25 MiB.
    let limits = "limits = { body = \"25MiB\" }\nlisten.ack_deadline = \"4900ms\"\n";
    let sections = format!("{limits}{}retry = {{ initial = \"100ms\" }}\n", every_provider(&backend));
    let gateway = Gateway::start_with(&sections, |command| {
        command.env("RUST_LOG", "countersign=info");
    });
    let rest = warm_up(&gateway);
    let (length, json) = (25 * MIB, soak(4, 25) * MIB);
    let number = filled("{\"id\":\"evt_3\",\"n\":[", "123456789,", "0]}", json);
    let texts = filled("{\"id\":\"evt_4\",\"n\":[", "\"\\u00e9\\n\",", "0]}", json);
    let key = filled("{\"", "k", "\":1,\"id\":\"evt_5\"}", json);
    let id = filled("{\"id\":\"", "i", "\"}", json);
    let (escaped_key, escaped_text, escaped_id) = (
        filled("{\"\\n", "k", "\":1,\"id\":\"evt_6\"}", json),
        filled("{\"type\":\"\\n", "t", "\",\"id\":\"evt_7\"}", json),
        filled("{\"id\":\"\\n", "i", "\"}", json),
    );
    let depth = filled("", "[", "", json);
    let github =
        |body: &[u8]| Post::signed("github", "/webhooks/github", &body.len().to_string(), "push", body);
    let stripe = |body: &[u8]| Post::signed("stripe", "/webhooks/stripe", "", "", body);
    let cases = [
        ("of a declared length", github(&vec![b'x'; length]), false, 200),
        ("in chunks", github(&vec![b'y'; length - 1]), true, 200),
        ("of numbers", stripe(&number), false, 200),
        ("of escaped texts", stripe(&texts), false, 200),
        ("with one long key", stripe(&key), false, 200),
        ("with an endless id", stripe(&id), false, 401),
        ("with one long key with an escape", stripe(&escaped_key), false, 200),
        ("with an endless type with an escape", stripe(&escaped_text), false, 200),
        ("with an endless id with an escape", stripe(&escaped_id), false, 401),
        ("of opening brackets", stripe(&depth), false, 200),
    ];
    let mut forwarded = backend.eventually_got(24).len();
    for (what, post, in_chunks, status) in cases {
        forget_peak(&gateway);
        let cpu = cpu_seconds(&gateway);
        let answer =
            if in_chunks { post.send_chunked(gateway.listen, 60_000) } else { post.send(gateway.listen) };
        // On a machine that is slow enough the answer is late, and the rest as it should be.
        assert!(answer.status == status || answer.status == 503, "{what}: {}", answer.status);
        if status == 200 {
            // In vain at first.
            forwarded += 2;
            assert!(
                backend.eventually_got(forwarded)[forwarded - 2..].iter().all(|got| got.body == post.body)
            );
        }
        gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
        let grown = peak_bytes(&gateway).saturating_sub(rest);
        let (bytes, cpu) = (post.body.len() as u64, cpu_seconds(&gateway) - cpu);
        println!(
            "{bytes} bytes {what}: {:.2} times their size at the most, {cpu:.2} s of CPU",
            grown as f64 / bytes as f64
        );
        assert!(grown <= bytes + bytes / 5 + READERS_KEEP, "{what}: {grown} bytes for {bytes}");
    }
}

/// So many zeros, compressed.
fn bomb(zeros: usize) -> Vec<u8> {
    let script = format!("head -c {zeros} /dev/zero | gzip -9");
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(output.stdout.len() > 10_000, "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn bombs_pass_as_the_bytes_that_they_are_and_lies_are_refused() {
    let body_max = 8 * MIB;
    let backend = Backend::accepting();
    let limits = "limits = { body = \"8MiB\", body_read = \"2s\" }\n";
    let gateway = Gateway::start_with(&format!("{limits}{}", every_provider(&backend)), |command| {
        command.env("RUST_LOG", "countersign=info");
    });
    let rest = warm_up(&gateway);
    backend.eventually_got(24);
    forget_peak(&gateway);
    let cpu = cpu_seconds(&gateway);

    let lie = Post::signed("stripe", "/webhooks/stripe", "", "", b"");
    let signature = String::from_utf8(lie.headers[0].1.clone()).unwrap();
    let head = format!("POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nStripe-Signature: {signature}\r\n");
    for (what, rest, fill, status) in [
        ("a gibibyte, declared", "Content-Length: 1073741824\r\n\r\n", &b""[..], 413),
        ("a gibibyte, asked for", "Expect: 100-continue\r\nContent-Length: 1073741824\r\n\r\n", b"", 413),
        ("more than a reader's integer holds", "Content-Length: 99999999999999999999\r\n\r\n", b"", 400),
        ("a gibibyte in one chunk", "Transfer-Encoding: chunked\r\n\r\n40000000\r\n", &[b'x'; 60_000], 413),
        ("the longest chunk", "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", &[b'x'; 60_000], 400),
        ("endless chunks", "Transfer-Encoding: chunked\r\n\r\n", b"10\r\nxxxxxxxxxxxxxxxx\r\n", 413),
        ("less than declared", "Content-Length: 8000000\r\n\r\nx", b"", 408),
    ] {
        let mut stream = TcpStream::connect(gateway.listen).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all([head.as_bytes(), rest.as_bytes()].concat().as_slice()).unwrap();
        let batch = fill.repeat(60_000 / fill.len().max(1));
        let mut sent = 0;
        while !batch.is_empty() && sent < 64 * MIB && stream.write_all(&batch).is_ok() {
            sent += batch.len();
        }
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{what}: {answer:?} after {sent} bytes");
    }
    for (coding, zeros) in [("gzip", 60_000_000), ("deflate", 50_000_000), ("br, gzip", 40_000_000)] {
        let body = bomb(zeros);
        let post = Post::signed("github", "/webhooks/github", coding, "push", &body)
            .with("Content-Encoding", coding);
        assert_eq!(post.send(gateway.listen).status, 200, "{coding}");
        eventually("it is forwarded as it came", || {
            let got = backend.got();
            got.iter().any(|got| got.body == body && got.header("content-encoding") == Some(coding))
        });
    }
    let deep = |opening: &str, closing: &str| [opening.repeat(200_000), closing.repeat(200_000)].concat();
    let digits = "9".repeat(1_000_000);
    let bodies = [
        ("arrays", deep("[", "]")),
        ("objects", deep("{\"id\":", "}").replace(":}", ":1}")),
        ("an id in arrays", format!("{{\"n\":{},\"id\":\"evt_deep\"}}", deep("[", "]"))),
        ("a number", digits.clone()),
        ("a number for an id", format!("{{\"id\":{digits}}}")),
        ("a number beside the id", format!("{{\"n\":-{digits}.{digits}e-{digits},\"id\":\"evt_long\"}}")),
        ("an exponent", format!("{{\"n\":1e{digits},\"id\":\"evt_exponent\"}}")),
        ("the same key", format!("{{{}\"id\":\"evt_last\"}}", "\"id\":\"evt_first\",".repeat(200_000))),
        ("half a surrogate", format!("{{\"id\":\"{}\"}}", "\\ud800".repeat(10_000))),
    ];
    for (what, body) in &bodies {
        let post = Post::signed("stripe", "/webhooks/stripe", "", "", body.as_bytes());
        let answer = post.send(gateway.listen);
        assert_eq!(answer.status, 200, "{what}");
    }
    assert_eq!(backend.eventually_got(24 + 3 + bodies.len()).len(), 24 + 3 + bodies.len());
    let cost = peak_bytes(&gateway).saturating_sub(rest);
    let cpu = cpu_seconds(&gateway) - cpu;
    println!("{} KiB more at the most, {cpu:.2} s of CPU", cost >> 10);
    assert!(cost < 2 * body_max as u64, "{cost} bytes");
    assert!(cpu < 20.0, "{cpu} s");
}

/// Senders that declare a mebibyte and stop before its end. The budget takes some of them; whoever comes then is told to
/// come back, at once, and their memory is the budget's.
#[test]
fn slow_bodies_take_no_more_than_the_budget_and_the_rest_come_back() {
    more_files();
    let (senders, budget) = if soak(0, 1) == 1 { (2_000, 256 * MIB) } else { (150, 32 * MIB) };
    let backend = Backend::accepting();
    let limits = format!(
        "limits = {{ connections_per_address = 10000, in_flight = \"{}MiB\", body_read = \"120s\" }}\n",
        budget / MIB
    );
    let gateway = Gateway::start_with(&format!("{limits}{}", every_provider(&backend)), |command| {
        command.env("RUST_LOG", "countersign=info");
    });
    let head = format!(
        "POST /webhooks/github HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: sha256={}\r\nContent-Length: {MIB}\r\n\r\n",
        "0".repeat(64)
    );
    let all_but_one = [head.as_bytes(), &vec![b'x'; MIB - 1]].concat();
    let rest = gateway.resident_bytes();
    forget_peak(&gateway);
    let slow = || -> Vec<TcpStream> {
        (0..senders / 5)
            .map(|_| {
                let mut stream = TcpStream::connect(gateway.listen).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                // Who is refused is hung up on, sooner or later.
                let _ = stream.write_all(&all_but_one);
                stream
            })
            .collect()
    };
    let held: Vec<TcpStream> = thread::scope(|scope| {
        let threads: Vec<_> = (0..5).map(|_| scope.spawn(slow)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    // A budget that is full to the last step: nobody waits for it.
    let refused = "countersign_ingest_rejections_total{reason=\"overloaded\",source=\"github\"}";
    let in_flight = "countersign_ingest_in_flight_bytes";
    let fits = budget / MIB;
    eventually("all have sent what they will", || gateway.metric(refused) >= Some((senders - fits) as f64));
    assert!(gateway.metric(in_flight).unwrap() <= budget as f64);
    let post = Post::signed("github", "/webhooks/github", "d-1", "push", &vec![b'y'; MIB]);
    let began = Instant::now();
    let mut told = 0;
    while gateway.metric(in_flight).unwrap() > (budget - 64 * 1024) as f64 && told < 5 {
        let answer = post.send(gateway.listen);
        assert_eq!(answer.status, 503);
        assert!(answer.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
        told += 1;
    }
    let each = began.elapsed() / told.max(1);
    let grown = peak_bytes(&gateway).saturating_sub(rest) / MIB as u64;
    println!("{senders} senders, {grown} MiB more resident, told to come back in {each:?}");
    assert!(grown < (budget / MIB + 100) as u64);
    drop(held);
    gateway.eventually_metric(in_flight, 0.0);
    assert_eq!(post.send(gateway.listen).status, 200);
    assert_eq!(backend.eventually_got(1).len(), 1);
}
