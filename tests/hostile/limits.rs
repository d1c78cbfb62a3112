//! Limits in time and number, each with a sender that runs into it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::Backend;
use crate::http2;
use crate::sender::{Post, every_provider};
use crate::soak;
use crate::support::{Gateway, PATIENCE, eventually, write_config};
use crate::tls::Secure;

/// Of user and system together.
pub(crate) fn cpu_seconds(gateway: &Gateway) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", gateway.id())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split(' ').collect();
    let ticks: u64 = fields[12..14].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

fn open(gateway: &Gateway, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.listen).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

fn rest(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn deliver(gateway: &Gateway, id: &str) -> bool {
    let post = Post::signed("github", "/webhooks/github", id, "push", id.as_bytes());
    post.try_send(gateway.listen).is_some_and(|answer| answer.status == 200)
}

#[test]
fn a_head_that_does_not_end_is_told_so_and_silence_is_not() {
    let backend = Backend::accepting();
    let limits = "limits = { head_read = \"1s\", body_read = \"1s\" }\n";
    let gateway = Gateway::start(&format!("{limits}{}", every_provider(&backend)));
    let silent = open(&gateway, b"");
    let first = b"POST /webhooks/github HTTP/1.1\r\nHost: x\r\n";
    let stopped = open(&gateway, first);
    // One byte after another, for ever.
    let mut dripping = open(&gateway, first);
    let drip = dripping.try_clone().unwrap();
    let dripper = thread::spawn(move || {
        let mut drip = drip;
        while drip.write_all(b"x").is_ok() {
            thread::sleep(Duration::from_millis(100));
        }
    });
    // A second head, after an answer.
    let second = open(&gateway, b"GET /none HTTP/1.1\r\nHost: x\r\n\r\nGET /none HT");
    assert_eq!(rest(silent), "");
    assert!(rest(stopped).starts_with("HTTP/1.1 408 Request Timeout\r\n"));
    let mut answer = [0; 12];
    dripping.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
    drop(dripping);
    dripper.join().unwrap();
    let answers = rest(second);
    assert!(answers.starts_with("HTTP/1.1 404"), "{answers}");
    assert!(answers.contains("HTTP/1.1 408") && answers.contains("connection: close"), "{answers}");
    let slow = "countersign_ingest_rejections_total{reason=\"head_too_slow\",source=\"unmatched\"}";
    assert_eq!(gateway.metric(slow), Some(3.0));
    assert!(deliver(&gateway, "d-1"));
}

#[test]
fn a_connection_carries_so_many_requests_and_says_which_is_the_last() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    let requests = "GET /none HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1_200);
    let answers = rest(open(&gateway, requests.as_bytes()));
    assert_eq!(answers.matches("HTTP/1.1 404").count(), 1_000);
    let last = &answers[answers.rfind("HTTP/1.1").unwrap()..];
    assert_eq!(answers.matches("connection: close").count(), 1);
    assert!(last.contains("connection: close"), "{last}");
}

/// The body is asked for only where it is wanted: route, method, declared size and required headers come first.
#[test]
fn who_waits_for_100_continue_gets_the_refusal_instead() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    let post = Post::signed("hostwares", "/webhooks/hostwares", "", "x", b"{\"id\":\"d-1\"}");
    let ask = |method: &str, path: &str, length: usize, without: &str| {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n"
        );
        for (name, value) in post.clone().without(without).headers {
            head += &format!("{name}: {}\r\n", String::from_utf8(value).unwrap());
        }
        head + "\r\n"
    };
    let (path, length) = ("/webhooks/hostwares", post.body.len());
    let signature = post.headers.iter().map(|(name, _)| name.clone()).find(|name| name.contains("signature"));
    for (head, status) in [
        (ask("POST", "/elsewhere", length, ""), 404),
        (ask("PUT", path, length, ""), 405),
        (ask("POST", path, 2 << 20, ""), 413),
        (ask("POST", path, length, &signature.unwrap()), 401),
    ] {
        let answer = rest(open(&gateway, head.as_bytes()));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
    let mut stream = open(&gateway, ask("POST", path, length, "").as_bytes());
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(&post.body).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(rest(stream).starts_with("HTTP/1.1 200"));
}

/// At the limit of open files accept fails at once, for ever: without a pause, one core is gone, and the disk soon full
/// of log lines. A gateway that was started with the limit takes fewer connections than it has files; one whose limit was
/// lowered behind its back runs into it.
#[test]
fn more_connections_than_files_cost_neither_cpu_nor_log() {
    more_files();
    let files = soak(300, 1_024);
    for lowered in [false, true] {
        let backend = Backend::accepting();
        let limits = "limits = { connections_per_address = 10000, head_read = \"60s\" }\n";
        let sections = format!("{limits}{}", every_provider(&backend));
        let gateway = if lowered {
            let gateway = Gateway::start(&sections);
            let limit = Command::new("prlimit")
                .args(["--pid", &gateway.id().to_string(), &format!("--nofile={files}:{files}")])
                .status();
            assert!(limit.unwrap().success());
            gateway
        } else {
            start_limited(files, &sections)
        };
        // Those that the kernel's backlog does not hold, either, try on and on, as a browser would.
        let dialling = tokio::runtime::Runtime::new().unwrap();
        let held: Vec<_> = (0..soak(1_500, 5_000))
            .map(|_| dialling.spawn(tokio::net::TcpStream::connect(gateway.listen)))
            .collect();
        if lowered {
            eventually("accept fails", || gateway.log().contains("accept failed"));
        } else {
            gateway.eventually_metric("countersign_ingest_connections", (files - files / 4) as f64);
        }
        let (cpu, lines, window) = (cpu_seconds(&gateway), gateway.log().lines().count(), 3.0);
        thread::sleep(Duration::from_secs_f64(window));
        let cpu = (cpu_seconds(&gateway) - cpu) / window;
        let lines = (gateway.log().lines().count() - lines) as f64 / window;
        let (crowd, cpu) = (held.len(), cpu * 100.0);
        drop(dialling);
        drop(held);
        let began = Instant::now();
        eventually("the gateway serves again", || deliver(&gateway, "d-1"));
        let recovered = began.elapsed();
        println!(
            "{crowd} connections, {files} files, lowered {lowered}: {cpu:.1} % CPU, {lines} log lines/s, \
             serves again after {recovered:?}"
        );
        assert!(cpu < 10.0 && lines < 20.0);
        assert!(recovered.as_secs() < 5);
        assert_eq!(backend.eventually_got(1).len(), 1);
    }
}

/// Slow heads, slow bodies, silence, and senders that read no answer, as slowhttptest has them: each is closed in its
/// time, costs little until then, and an honest sender notices nothing.
#[test]
fn a_crowd_of_slow_senders_costs_little_and_is_gone_in_time() {
    more_files();
    let backend = Backend::accepting();
    let limits = "limits = { connections_per_address = 10000, head_read = \"5s\", body_read = \"5s\" }\n";
    let gateway = Gateway::start(&format!("{limits}{}", every_provider(&backend)));
    assert!(deliver(&gateway, "d-0"));
    let crowd = soak(150, 1_000);
    let before = gateway.resident_bytes();
    let signature = "0".repeat(64);
    let head =
        format!("POST /webhooks/github HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: sha256={signature}\r\n");
    let body = format!("{head}Content-Length: 1000000\r\n\r\nx");
    let unread = "GET /none HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100) + "G";
    let slow = |bytes: &str| (0..crowd).map(|_| open(&gateway, bytes.as_bytes())).collect::<Vec<_>>();
    let began = Instant::now();
    let (silent, heads, bodies, unread) = (slow(""), slow(&head), slow(&body), slow(&unread));
    let connections = "countersign_ingest_connections";
    let held = (4 * crowd) as f64;
    eventually("all are there", || gateway.metric(connections).is_some_and(|open| open >= held));
    let mut times: Vec<_> = (0..50)
        .map(|n| {
            let sent = Instant::now();
            assert!(deliver(&gateway, &format!("honest-{n}")));
            sent.elapsed()
        })
        .collect();
    times.sort_unstable();
    let slowest = times[times.len() - 1];
    let each = gateway.resident_bytes().saturating_sub(before) / (4 * crowd as u64);
    assert!(silent.into_iter().all(|stream| rest(stream).is_empty()));
    for stream in heads.into_iter().chain(bodies) {
        assert!(rest(stream).starts_with("HTTP/1.1 408"));
    }
    for stream in unread {
        assert!(rest(stream).contains("HTTP/1.1 408"));
    }
    gateway.eventually_metric(connections, 0.0);
    let gone = began.elapsed();
    println!(
        "{held} slow connections, {each} bytes more resident for each, honest at most {slowest:?}, gone after {gone:?}"
    );
    assert!(each < 64 << 10);
    assert!(slowest.as_secs() < 5);
    assert!(gone < Duration::from_secs(5 + 5));
    assert!(deliver(&gateway, "d-2"));
}

#[test]
fn half_open_handshakes_cost_little_and_are_gone_in_time() {
    more_files();
    let secure = Secure::start("limits = { connections_per_address = 10000, head_read = \"2s\" }\n");
    let gateway = &secure.gateway;
    let post = |id: &str| Post::signed("github", "/webhooks/github", id, "push", id.as_bytes());
    let deliver =
        |id: &str| http2::send(gateway.listen, &secure.client, &post(id)) == http2::Answer::Status(200);
    assert!(deliver("d-0"));
    let (before, crowd, began) = (gateway.resident_bytes(), soak(150, 1_000), Instant::now());
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let held: Vec<_> = (0..crowd).map(|_| open(gateway, hello)).collect();
    let connections = "countersign_ingest_connections";
    eventually("all are there", || gateway.metric(connections) >= Some(crowd as f64));
    let sent = Instant::now();
    assert!(deliver("d-1"));
    let honest = sent.elapsed();
    let each = gateway.resident_bytes().saturating_sub(before) / crowd as u64;
    drop(held.into_iter().map(|mut stream| stream.read_to_end(&mut Vec::new())).collect::<Vec<_>>());
    gateway.eventually_metric(connections, 0.0);
    let gone = began.elapsed();
    println!(
        "{crowd} half-open handshakes, {each} bytes more resident for each, honest {honest:?}, gone after {gone:?}"
    );
    assert!(each < 64 << 10);
    assert!(gone < Duration::from_secs(2 + 5));
}

/// As many as the system allows.
pub(crate) fn more_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

/// A gateway that is started under a limit of open files.
fn start_limited(files: usize, sections: &str) -> Gateway {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    write_config(directory.path(), sections);
    let log = std::fs::File::create(directory.path().join("log")).unwrap();
    Gateway::start_in(directory, |command| {
        let mut limited = Command::new("sh");
        limited.arg("-c").arg(format!("ulimit -n {files} && exec \"$0\" \"$@\""));
        limited.arg(command.get_program()).args(command.get_args()).stdout(Stdio::piped()).stderr(log);
        *command = limited;
    })
}

#[test]
fn connections_leave_files_for_forwards() {
    let backend = Backend::accepting();
    let limits = "limits = { connections_per_address = 10000, head_read = \"60s\" }\n";
    let gateway = start_limited(100, &format!("{limits}{}", every_provider(&backend)));
    // Accepted before the crowd; what it delivers has to be forwarded in spite of it.
    let post = Post::signed("github", "/webhooks/github", "d-1", "push", b"{}").with("Connection", "close");
    let bytes = post.bytes();
    let (line, rest_of_it) = bytes.split_at(32);
    let mut early = open(&gateway, line);
    gateway.eventually_metric("countersign_ingest_connections", 1.0);
    let held: Vec<_> = (0..200).map(|_| open(&gateway, b"")).collect();
    gateway.eventually_metric("countersign_ingest_connections", 52.0);
    early.write_all(rest_of_it).unwrap();
    assert!(rest(early).starts_with("HTTP/1.1 200"));
    assert_eq!(backend.eventually_got(1).len(), 1);
    drop(held);
}
