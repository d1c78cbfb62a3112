//! What a sender sees while every backend hangs: `cargo bench --bench hanging [-- RATE SECONDS]` (1,000/s for 30 s).
//!
//! An open loop over 64 connections of 1 KiB Hostwares deliveries, each signed for itself; latency counts from the time
//! at which a request was due, so a gateway that falls behind cannot hide it. Everything runs on this machine, on
//! loopback, and shares its processors.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark that cannot go on should say where"
)]

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use countersign::clock::Clock;
use countersign::secret::Secret;
use countersign::verify::{Message, Signer, preset};
use http::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

const SECRET: &str = "a-secret-of-the-benchmark";
const CONNECTIONS: u64 = 64;

struct Answer {
    ok: bool,
    latency: Duration,
}

struct Gateway(Child);

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::main]
async fn main() {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let (rate, seconds) = (numbers.first().copied().unwrap_or(1_000), numbers.get(1).copied().unwrap_or(30));

    // Accepts into the kernel's queue and never reads.
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("countersign.toml");
    let text = format!(
        "listen.address = \"127.0.0.1:0\"\nadmin.address = \"127.0.0.1:0\"\nstore.disk_reserve = \"1MiB\"\n\
         [[source]]\nname = \"hostwares\"\nprovider = \"hostwares\"\nsecrets = [{{ value = \"{SECRET}\" }}]\n\
         to = [\"hanging\"]\n[[destination]]\nname = \"hanging\"\nurl = \"http://{}/\"\n",
        backend.local_addr().unwrap()
    );
    std::fs::write(&config, text).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_countersign"))
        .arg("run")
        .arg("--config")
        .arg(&config)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let gateway = Gateway(child);
    let address = ready.split_whitespace().find_map(|word| word.strip_prefix("listen=")).unwrap().to_owned();

    let scheme = preset("hostwares").unwrap().scheme.clone();
    let signer = Arc::new(Signer::new(scheme, &Secret::new(SECRET).unwrap()).unwrap());
    let start = Instant::now() + Duration::from_millis(200);
    let senders: Vec<_> = (0..CONNECTIONS)
        .map(|connection| {
            tokio::spawn(send(address.clone(), Arc::clone(&signer), connection, start, rate, rate * seconds))
        })
        .collect();
    let mut answers = Vec::new();
    for sender in senders {
        answers.extend(sender.await.unwrap());
    }
    answers.sort_by_key(|answer| answer.latency);
    let quantile = |q: f64| answers[((answers.len() - 1) as f64 * q) as usize].latency.as_secs_f64() * 1e3;
    println!(
        "{} requests at {rate}/s: {} x 2xx; p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms, max {:.1} ms; resident {} MiB",
        answers.len(),
        answers.iter().filter(|answer| answer.ok).count(),
        quantile(0.5),
        quantile(0.99),
        quantile(0.999),
        quantile(1.0),
        resident_mib(gateway.0.id()),
    );
}

async fn send(
    address: String,
    signer: Arc<Signer>,
    connection: u64,
    start: Instant,
    rate: u64,
    total: u64,
) -> Vec<Answer> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut answers = Vec::new();
    for number in (connection..total).step_by(CONNECTIONS as usize) {
        let due = start + Duration::from_nanos(number * 1_000_000_000 / rate);
        sleep_until(due).await;
        let body = format!(r#"{{"id":"d-{number}","event":"x","pad":"{}"}}"#, "x".repeat(1_000));
        let body = Bytes::from(body);
        let message = Message { method: &Method::POST, url: "/", id: None, event: None, body: &body };
        let mut request = format!(
            "POST /webhooks/hostwares HTTP/1.1\r\nHost: gateway\r\nContent-Length: {}\r\n",
            body.len()
        );
        for (name, value) in &signer.sign(&message, Clock::system().now()).unwrap() {
            request += &format!("{name}: {}\r\n", value.to_str().unwrap());
        }
        request += "\r\n";
        let mut bytes = request.into_bytes();
        bytes.extend_from_slice(&body);
        stream.write_all(&bytes).await.unwrap();
        let mut answer = Vec::new();
        // The acknowledgement has no body.
        while !answer.ends_with(b"\r\n\r\n") {
            assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "the gateway has closed");
        }
        answers.push(Answer { ok: answer.starts_with(b"HTTP/1.1 200"), latency: due.elapsed() });
    }
    answers
}

fn resident_mib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}
