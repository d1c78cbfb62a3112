//! Raw HTTP/1 requests, and the answers that each must get: `heads.txt`.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::{Backend, Got};
use crate::ending::Ending;
use crate::sender::{Post, SECRET};
use crate::soak;
use crate::support::{Gateway, PATIENCE};

const PATH: &str = "/webhooks/gh";

/// One request of the table.
struct Case {
    /// Its line, for messages.
    line: &'static str,
    statuses: Vec<u16>,
    part: &'static str,
    replacement: Vec<u8>,
}

fn table() -> Vec<Case> {
    let mut cases = Vec::new();
    for line in include_str!("heads.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut words = line.splitn(3, ' ');
        let (statuses, part, text) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
        let statuses: Vec<u16> = statuses.split(',').map(|status| status.parse().unwrap()).collect();
        let control: Vec<u8> = (0..32).chain([127]).filter(|byte| !b"\t\r\n".contains(byte)).collect();
        let variants: &[(&str, &[u8])] =
            &[("{ctl}", &control), ("{sep}", br#""(),/;<=>?@[\]{}"#), ("{high}", b"\x80\x85\xa0\xe9\xff")];
        let text = unescape(text);
        match variants.iter().find_map(|(name, bytes)| Some((find(&text, name.as_bytes())?, name, bytes))) {
            None => cases.push(Case { line, statuses, part, replacement: text }),
            Some((at, name, bytes)) => {
                for byte in *bytes {
                    let replacement = [&text[..at], &[*byte], &text[at + name.len()..]].concat();
                    cases.push(Case { line, statuses: statuses.clone(), part, replacement });
                }
            }
        }
    }
    cases
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let (byte, length) = match (first, after.first()) {
            (b'\\', Some(b'r')) => (b'\r', 2),
            (b'\\', Some(b'n')) => (b'\n', 2),
            (b'\\', Some(b't')) => (b'\t', 2),
            (b'\\', Some(b'0')) => (0, 2),
            (b'\\', Some(b'\\')) => (b'\\', 2),
            (b'\\', Some(b'x')) => {
                (u8::from_str_radix(std::str::from_utf8(&rest[2..4]).unwrap(), 16).unwrap(), 4)
            }
            _ => (*first, 1),
        };
        bytes.push(byte);
        rest = &rest[length..];
    }
    bytes
}

fn replace(text: Vec<u8>, name: &str, by: &[u8]) -> Vec<u8> {
    match find(&text, name.as_bytes()) {
        None => text,
        Some(at) => {
            let rest = replace(text[at + name.len()..].to_vec(), name, by);
            [&text[..at], by, &rest].concat()
        }
    }
}

/// The bodies of a case's two requests, which tell which of them came through.
fn bodies(number: usize) -> [String; 2] {
    [format!("{number:05}-first-body"), format!("{number:05}-second-one")]
}

fn signature_lines(number: usize, body: &str) -> Vec<u8> {
    let post = Post::signed("github", PATH, &format!("{number}-{body}"), "push", body.as_bytes());
    post.headers.iter().flat_map(|(name, value)| [name.as_bytes(), b": ", value, b"\r\n"].concat()).collect()
}

impl Case {
    fn bytes(&self, number: usize) -> Vec<u8> {
        let [body, second] = bodies(number);
        let signature = signature_lines(number, &body);
        let part = |name: &str, good: &str| -> Vec<u8> {
            if self.part == name { self.replacement.clone() } else { good.as_bytes().to_vec() }
        };
        let mut bytes = match self.part {
            "raw" => self.replacement.clone(),
            "line" | "host" | "field" | "framing" => [
                part("line", &format!("POST {PATH} HTTP/1.1")),
                b"\r\n".to_vec(),
                part("host", "Host: gateway"),
                b"\r\n{sig}".to_vec(),
                part("field", "X-Other: 1"),
                b"\r\n".to_vec(),
                part("framing", "Content-Length: 16\r\n\r\n{b}"),
            ]
            .concat(),
            other => panic!("{other} in {:?}", self.line),
        };
        while let Some(at) = find(&bytes, b"{x*") {
            let end = at + find(&bytes[at..], b"}").unwrap();
            let count = std::str::from_utf8(&bytes[at + 3..end]).unwrap().parse().unwrap();
            bytes.splice(at..=end, vec![b'x'; count]);
        }
        let (first, last) = body.as_bytes().split_at(8);
        for (name, by) in [
            ("{path}", PATH.as_bytes()),
            ("{sig}", &signature),
            ("{b}", body.as_bytes()),
            ("{b1}", first),
            ("{b2}", last),
        ] {
            bytes = replace(bytes, name, by);
        }
        let next =
            format!("POST {PATH} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\nContent-Length: 16\r\n");
        let signature = signature_lines(number, &second);
        [&bytes[..], next.as_bytes(), &signature, b"\r\n", second.as_bytes()].concat()
    }
}

/// Sends the bytes, and reads until the gateway closes: the status of each answer, and whether each refusal before
/// verification has a problem document.
fn statuses(to: SocketAddr, bytes: &[u8]) -> Vec<u16> {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // A gateway that refuses early closes while we still send; its answer is there all the same.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let closed = stream.read_to_end(&mut answer);
    assert!(closed.is_ok(), "not closed after {:?}", String::from_utf8_lossy(&answer));
    let mut statuses = Vec::new();
    let mut rest = &answer[..];
    while let Some(end) = find(rest, b"\r\n\r\n") {
        let head = std::str::from_utf8(&rest[..end]).unwrap().to_lowercase();
        rest = &rest[end + 4..];
        let status: u16 = head.strip_prefix("http/1.").unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let is_bodiless = status == 100 || (statuses.is_empty() && bytes.starts_with(b"HEAD"));
        let body = &rest[..if is_bodiless { 0 } else { length.unwrap() }];
        rest = &rest[body.len()..];
        if status >= 400 && status != 401 && !is_bodiless {
            assert!(head.contains("content-type: application/problem+json"), "{head}");
            let problem: serde_json::Value = serde_json::from_slice(body).unwrap();
            assert_eq!(problem["status"], status);
        }
        statuses.push(status);
    }
    assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(rest));
    statuses
}

fn sections(backend: &Backend) -> String {
    format!(
        "limits = {{ head_read = \"5s\", body_read = \"5s\" }}\n[[source]]\nname = \"gh\"\nprovider = \"github\"\n\
         secrets = [{{ value = \"{SECRET}\" }}]\nto = [\"legacy\"]\nbody_max = \"1000000B\"\n\
         [[destination]]\nname = \"legacy\"\nurl = \"{}\"\n",
        backend.url()
    )
}

/// Runs the cases on four threads; the bodies of what was acknowledged.
fn run(cases: &[Case], from: usize, to: SocketAddr) -> BTreeSet<Vec<u8>> {
    let next = AtomicUsize::new(0);
    let workers = || {
        let mut acknowledged = Vec::new();
        while let Some((number, case)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|n| Some((n, cases.get(n)?)))
        {
            let number = from + number;
            let got = statuses(to, &case.bytes(number));
            assert_eq!(
                got,
                case.statuses,
                "{} ({:?})",
                case.line,
                String::from_utf8_lossy(&case.replacement)
            );
            // The second request's answer is the last that there can be; a raw case may have others before.
            let finals: Vec<u16> = got.iter().copied().filter(|status| *status != 100).collect();
            let [first, second] = bodies(number);
            if finals[0] == 200 {
                acknowledged.push(first.into_bytes());
            }
            if finals.len() > 1 && finals.last() == Some(&200) {
                acknowledged.push(second.into_bytes());
            }
        }
        acknowledged
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(workers)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// One well-formed request, whatever it was made of.
#[track_caller]
fn assert_well_formed(got: &Got) {
    assert_eq!((got.method.as_str(), got.target.split('?').next()), ("POST", Some("/hooks")));
    assert!(got.header("host").is_some() && got.header("host") != Some("gateway"));
    assert_eq!(got.header("content-length"), Some("16"));
    for gone in [
        "transfer-encoding",
        "te",
        "trailer",
        "upgrade",
        "http2-settings",
        "expect",
        "connection",
        "x-trailer",
    ] {
        assert_eq!(got.header(gone), None, "{gone}");
    }
    for twin in ["content_length", "transfer_encoding"] {
        assert_eq!(got.header(twin), None, "{twin}");
    }
    assert_eq!(got.header("countersign-verified"), Some("true"));
}

#[test]
fn each_raw_request_gets_its_answer_and_nothing_refused_goes_on() {
    let cases = table();
    assert!(cases.len() >= 300);
    let backend = Backend::accepting();
    let gateway = Gateway::start(&sections(&backend));
    let acknowledged = run(&cases, 0, gateway.listen);
    println!("{} requests, {} acknowledged deliveries", cases.len(), acknowledged.len());
    gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
    let got = backend.got();
    assert_eq!(got.len(), acknowledged.len());
    assert_eq!(got.iter().map(|got| got.body.clone()).collect::<BTreeSet<_>>(), acknowledged);
    for got in &got {
        assert_well_formed(got);
    }
    let stored = "countersign_ingest_requests_total{outcome=\"stored\",source=\"gh\"}";
    assert_eq!(gateway.metric(stored), Some(acknowledged.len() as f64));
    // hyper's own answers would not be counted.
    let malformed = "countersign_ingest_rejections_total{reason=\"malformed_head\",source=\"unmatched\"}";
    assert!(gateway.metric(malformed).unwrap() > 200.0);
    for line in gateway.log().lines() {
        assert!(line.bytes().all(|byte| byte >= b' '), "{line:?}");
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
    }
}

#[test]
fn a_flood_of_malformed_requests_costs_honest_senders_nothing() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&sections(&backend));
    let cases: Vec<_> = table().into_iter().filter(|case| !case.statuses.contains(&200)).collect();
    let (to, rounds) = (gateway.listen, soak(4, 60));
    let before = gateway.resident_bytes();
    let done = AtomicBool::new(false);
    let (honest, p99) = thread::scope(|scope| {
        let honest = scope.spawn(|| {
            let (mut sent, mut times) = (0, Vec::new());
            while !done.load(Ordering::Relaxed) {
                let body = format!("honest-{sent}");
                let post = Post::signed("github", PATH, &body, "push", body.as_bytes());
                let began = Instant::now();
                assert_eq!(post.send(to).status, 200);
                times.push(began.elapsed());
                sent += 1;
                // What honest senders cost is not what is measured.
                thread::sleep(Duration::from_millis(20));
            }
            times.sort_unstable();
            (sent, times[times.len() * 99 / 100])
        });
        let end = Ending(&done);
        for round in 0..rounds {
            assert!(run(&cases, round * cases.len(), to).is_empty());
        }
        drop(end);
        honest.join().unwrap()
    });
    let grown = gateway.resident_bytes().saturating_sub(before);
    let (malformed, grown_kib) = (rounds * cases.len(), grown >> 10);
    println!("{malformed} malformed, {honest} honest, p99 {p99:?}, {grown_kib} KiB more resident");
    assert!(p99.as_secs() < 1, "{p99:?}");
    assert!(grown < 16 << 20, "{grown} bytes");
    gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
    assert_eq!(backend.got().len(), honest);
}
