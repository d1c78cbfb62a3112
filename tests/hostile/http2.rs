//! HTTP/2 by hand, frame by frame: what the gateway announces, what it refuses, and what floods and silence get.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::limits::cpu_seconds;
use crate::sender::Post;
use crate::soak;
use crate::support::PATIENCE;
use crate::tls::{NAME, Secure};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

impl Secure {
    /// A connection over which nothing has been said yet.
    fn dial(&self) -> Wire {
        Wire::dial(self.gateway.listen, &self.client)
    }

    /// The same after preface and settings.
    fn open(&self) -> Wire {
        Wire::open(self.gateway.listen, &self.client)
    }

    /// Sends a good delivery on a connection of its own.
    fn accepts(&self, id: &str) -> bool {
        let post = Post::signed("github", "/webhooks/github", id, "push", id.as_bytes());
        send(self.gateway.listen, &self.client, &post) == Answer::Status(200)
    }
}

/// Sends a request on a connection of its own.
pub(crate) fn send(to: SocketAddr, client: &Arc<ClientConfig>, post: &Post) -> Answer {
    let mut wire = Wire::open(to, client);
    let mut headers = request(post.method, &post.target);
    headers.extend(post.headers.iter().map(|(name, value)| (&**name, std::str::from_utf8(value).unwrap())));
    wire.frame(HEADERS, END_HEADERS, 1, &block(&headers));
    wire.frame(DATA, END_STREAM, 1, &post.body);
    wire.answer(1)
}

/// What a stream comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Status(u16),
    /// RST_STREAM.
    Reset,
    /// GOAWAY, or the end of the connection.
    Closed,
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

struct Wire(StreamOwned<ClientConnection, TcpStream>);

impl Wire {
    fn dial(to: SocketAddr, client: &Arc<ClientConfig>) -> Self {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        let connection = ClientConnection::new(Arc::clone(client), name).unwrap();
        let mut wire = Self(StreamOwned::new(connection, stream));
        wire.0.flush().unwrap();
        wire
    }

    fn open(to: SocketAddr, client: &Arc<ClientConfig>) -> Self {
        let mut wire = Self::dial(to, client);
        wire.send(PREFACE);
        wire.frame(SETTINGS, 0, 0, b"");
        wire
    }

    /// False once the gateway has closed.
    fn send(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).and_then(|()| self.0.flush()).is_ok()
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.send(&frame(kind, flags, stream, payload))
    }

    /// `None` at the end of the connection.
    fn read(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).ok()?;
        Some(Frame { kind, flags, stream: u32::from_be_bytes(stream), payload })
    }

    /// Reads up to the answer of a stream.
    fn answer(&mut self, stream: u32) -> Answer {
        while let Some(frame) = self.read() {
            match frame.kind {
                HEADERS if frame.stream == stream => return Answer::Status(status(&frame.payload)),
                RST_STREAM if frame.stream == stream => return Answer::Reset,
                GOAWAY => return Answer::Closed,
                _ => {}
            }
        }
        Answer::Closed
    }

    /// Whether a ping still gets its answer.
    fn is_alive(&mut self) -> bool {
        self.frame(PING, 0, 0, b"alive???");
        while let Some(frame) = self.read() {
            match frame.kind {
                PING if frame.flags == 1 && frame.payload == b"alive???" => return true,
                GOAWAY => return false,
                _ => {}
            }
        }
        false
    }

    /// Reads until the gateway closes.
    fn closes(&mut self) {
        while self.read().is_some() {}
        // Not our own patience that has ended.
        assert!(
            !matches!(self.0.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
        );
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The status of an answer's header block: in our answers always its first field.
fn status(block: &[u8]) -> u16 {
    // Indexed: 200, 204, 206, 304, 400, 404, 500; or a literal that names the indexed name.
    let indexed = [200, 204, 206, 304, 400, 404, 500];
    match block[0] {
        first if first & 0x80 != 0 => indexed[usize::from(first & 0x7f) - 8],
        _ if block[1] & 0x80 != 0 => {
            // Huffman: digits 0, 1 and 2 have five bits, the others six.
            let bits: String =
                block[2..][..usize::from(block[1] & 0x7f)].iter().map(|b| format!("{b:08b}")).collect();
            let mut rest = &bits[..];
            let mut status = 0;
            for _ in 0..3 {
                let five = u16::from_str_radix(&rest[..5], 2).unwrap();
                let (digit, length) = if five < 3 {
                    (five, 5)
                } else {
                    (u16::from_str_radix(&rest[..6], 2).unwrap() - 0b011001 + 3, 6)
                };
                status = status * 10 + digit;
                rest = &rest[length..];
            }
            status
        }
        _ => std::str::from_utf8(&block[2..5]).unwrap().parse().unwrap(),
    }
}

/// Literals without indexing and without Huffman.
fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| {
        let mut bytes = integer(text.len());
        bytes.extend_from_slice(text.as_bytes());
        bytes
    };
    headers.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// With a prefix of seven bits.
fn integer(mut value: usize) -> Vec<u8> {
    if value < 127 {
        return vec![u8::try_from(value).unwrap()];
    }
    value -= 127;
    let mut bytes = vec![127];
    while value >= 128 {
        bytes.push(u8::try_from(value % 128).unwrap() | 128);
        value /= 128;
    }
    bytes.push(u8::try_from(value).unwrap());
    bytes
}

fn request<'a>(method: &'a str, path: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![(":method", method), (":scheme", "https"), (":authority", NAME), (":path", path)]
}

#[test]
fn the_settings_are_ours_and_a_delivery_comes_through_whole() {
    let secure = Secure::start("");
    let mut wire = secure.open();
    let first = wire.read().unwrap();
    assert_eq!((first.kind, first.flags, first.stream), (SETTINGS, 0, 0));
    let settings: Vec<(u16, u32)> = first
        .payload
        .chunks(6)
        .map(|setting| {
            let (id, value) = setting.split_at(2);
            (u16::from_be_bytes(id.try_into().unwrap()), u32::from_be_bytes(value.try_into().unwrap()))
        })
        .collect();
    // Streams at once, a stream's window, a frame, a header list.
    assert_eq!(settings, [(3, 100), (4, 64 << 10), (5, 16 << 10), (6, 32 << 10)]);

    assert!(secure.accepts("d-1"));
    let got = secure.backend.eventually_got(1).remove(0);
    assert_eq!(got.body, b"d-1");
    assert_eq!(got.header("forwarded"), Some("for=127.0.0.1;host=\"gateway.example\";proto=https"));
}

#[test]
fn malformed_requests_over_http2_are_refused_or_reset() {
    use Answer::{Closed, Reset, Status};
    let secure = Secure::start("");
    let post = Post::signed("github", "/webhooks/github", "d-1", "push", b"{}");
    let path = "/webhooks/github";
    let without = |name: &'static str| {
        request("POST", path).into_iter().filter(move |(existing, _)| *existing != name).collect::<Vec<_>>()
    };
    let with = |name: &'static str, value: &'static str| {
        let mut headers = request("POST", path);
        headers.push((name, value));
        headers
    };
    let instead = |name: &'static str, value: &'static str| {
        let replaced = request("POST", path).into_iter();
        replaced.map(|(n, v)| if n == name { (n, value) } else { (n, v) }).collect::<Vec<_>>()
    };
    let mut late = request("POST", path);
    late.rotate_left(1);
    late.insert(0, ("x-first", "1"));
    type Row<'a> = (Vec<(&'a str, &'a str)>, &'a [Answer]);
    let table: Vec<Row<'_>> = vec![
        (without(":method"), &[Reset, Closed]),
        (without(":path"), &[Reset, Closed]),
        (without(":scheme"), &[Reset, Closed]),
        (without(":authority"), &[Status(400), Reset]),
        (late, &[Reset, Closed]),
        (with(":path", "/webhooks/stripe"), &[Reset, Closed]),
        (with(":method", "POST"), &[Reset, Closed]),
        (with(":status", "200"), &[Reset, Closed]),
        (with(":other", "1"), &[Reset, Closed]),
        (with(":protocol", "websocket"), &[Reset, Closed]),
        (with("X-Upper", "1"), &[Reset, Closed]),
        (with("", "1"), &[Reset, Closed]),
        (with("x y", "1"), &[Reset, Closed]),
        (with("x:y", "1"), &[Reset, Closed]),
        (with("x", "a\r\nb: c"), &[Reset, Closed]),
        (with("x", "a\nb"), &[Reset, Closed]),
        (with("x", "a\0b"), &[Reset, Closed]),
        (with("connection", "close"), &[Reset, Closed]),
        (with("keep-alive", "1"), &[Reset, Closed]),
        (with("proxy-connection", "close"), &[Reset, Closed]),
        (with("transfer-encoding", "chunked"), &[Reset, Closed]),
        (with("upgrade", "h2c"), &[Reset, Closed]),
        (with("te", "gzip"), &[Reset, Closed]),
        (with("content-length", "3"), &[Reset, Closed, Status(400)]),
        (with("content-length", "+2"), &[Reset, Closed, Status(400)]),
        (with("content-length", "2, 2"), &[Reset, Closed, Status(400)]),
        (with("host", "other.example"), &[Status(400)]),
        (instead(":authority", "user@gateway.example"), &[Status(400), Reset]),
        (instead(":authority", "gateway.example:99999"), &[Status(400), Reset]),
        (instead(":authority", "a b"), &[Status(400), Reset, Closed]),
        (instead(":authority", ""), &[Status(400), Reset, Closed]),
        (instead(":path", ""), &[Status(400), Reset, Closed]),
        (instead(":path", "*"), &[Status(400), Reset, Closed]),
        (instead(":path", "webhooks/github"), &[Status(400), Reset, Closed]),
        (instead(":path", "https://gateway.example/webhooks/github"), &[Status(400), Reset, Closed]),
        (instead(":path", "/webhooks/github HTTP/1.1"), &[Status(400), Reset, Closed]),
        (instead(":path", "/webhooks/github\r\nx: y"), &[Status(400), Reset, Closed]),
        (instead(":path", "//webhooks/github"), &[Status(404)]),
        (instead(":path", "/webhooks/%67ithub"), &[Status(404)]),
        (instead(":path", "/webhooks/github/"), &[Status(404)]),
        (instead(":path", "/webhooks/github;x"), &[Status(404)]),
        (instead(":path", "/metrics"), &[Status(404)]),
        (instead(":method", "GET"), &[Status(405)]),
        (instead(":method", "TRACE"), &[Status(405)]),
        (instead(":method", "P OST"), &[Reset, Closed]),
        (vec![(":method", "CONNECT"), (":authority", NAME)], &[Status(400), Reset, Closed]),
    ];
    for (headers, expected) in table {
        let mut wire = secure.open();
        let signed = post.headers.iter().map(|(name, value)| (&**name, std::str::from_utf8(value).unwrap()));
        let all: Vec<_> = headers.iter().copied().chain(signed).collect();
        wire.frame(HEADERS, END_HEADERS, 1, &block(&all));
        wire.frame(DATA, END_STREAM, 1, &post.body);
        let answer = wire.answer(1);
        assert!(expected.contains(&answer), "{answer:?} for {headers:?}");
    }
    // The length that fits is good, and so are the same headers otherwise.
    assert!(secure.accepts("d-2"));
    assert_eq!(secure.backend.eventually_got(1).len(), 1);
    let stored = "countersign_ingest_requests_total{outcome=\"stored\",source=\"github\"}";
    assert_eq!(secure.gateway.metric(stored), Some(1.0));
}

#[test]
fn floods_over_http2_cost_little_and_keep_nobody_out() {
    let secure = Secure::start("");
    assert!(secure.accepts("d-0"));
    let frames = soak(20_000, 400_000);
    let head = block(&request("POST", "/webhooks/github"));
    let nowhere = block(&request("GET", "/nowhere"));
    let opening = frame(HEADERS, END_HEADERS, 1, &head);
    // One entry of 4,000 bytes in the table of headers, then thousands of references to it.
    let mut bomb = nowhere.clone();
    bomb.push(0x40);
    bomb.extend([integer(1), b"x".to_vec(), integer(4_000), vec![b'y'; 4_000]].concat());
    bomb.extend(vec![0xbe; 10_000]);
    let stream = |n: usize| u32::try_from(2 * n + 1).unwrap();
    // What it begins with, what follows again and again, and whether the connection outlives it.
    type Flood<'a> = (&'a str, bool, Vec<u8>, Box<dyn Fn(usize) -> Vec<u8> + 'a>);
    let floods: Vec<Flood<'_>> = vec![
        (
            "rapid reset",
            false,
            vec![],
            Box::new(|n| {
                let reset = frame(RST_STREAM, 0, stream(n), &8u32.to_be_bytes());
                [frame(HEADERS, END_HEADERS, stream(n), &head), reset].concat()
            }),
        ),
        (
            "continuation",
            false,
            frame(HEADERS, 0, 1, &head),
            Box::new(|_| frame(CONTINUATION, 0, 1, &block(&[("x", "y")]))),
        ),
        (
            "empty continuation",
            false,
            frame(HEADERS, 0, 1, &head),
            Box::new(|_| frame(CONTINUATION, 0, 1, b"")),
        ),
        ("settings", true, vec![], Box::new(|_| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0x7f, 0]))),
        ("ping", true, vec![], Box::new(|_| frame(PING, 0, 0, b"12345678"))),
        ("empty data", false, opening.clone(), Box::new(|_| frame(DATA, 0, 1, b""))),
        ("tiny data", false, opening.clone(), Box::new(|_| frame(DATA, 0, 1, b"x"))),
        ("window update", true, opening, Box::new(|_| frame(WINDOW_UPDATE, 0, 1, &1u32.to_be_bytes()))),
        ("streams", false, vec![], Box::new(|n| frame(HEADERS, END_HEADERS, stream(n), &head))),
        (
            "hpack bomb",
            false,
            vec![],
            Box::new(|n| frame(HEADERS, END_HEADERS | END_STREAM, stream(n), &bomb)),
        ),
        (
            "zero window",
            false,
            frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]),
            Box::new(|n| frame(HEADERS, END_HEADERS | END_STREAM, stream(n), &nowhere)),
        ),
        ("priority", true, vec![], Box::new(|n| frame(2, 0, stream(n), &[0, 0, 0, 0, 1]))),
        ("unknown", true, vec![], Box::new(|_| frame(0xfa, 0xff, 1, b"grease"))),
    ];
    for (name, survives, first, next) in floods {
        let (memory, cpu) = (secure.gateway.resident_bytes(), cpu_seconds(&secure.gateway));
        let mut wire = secure.open();
        wire.0.sock.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        wire.send(&first);
        // A hundred at once, and nothing is read: who floods does not wait for answers.
        let mut sent = 0;
        while sent < frames {
            let batch: Vec<u8> = (sent..sent + 100).flat_map(&next).collect();
            if !wire.send(&batch) {
                break;
            }
            sent += 100;
        }
        assert!(secure.accepts(name), "nobody else is kept out by {name}");
        let grown = secure.gateway.resident_bytes().saturating_sub(memory);
        let cpu = cpu_seconds(&secure.gateway) - cpu;
        let alive = wire.is_alive();
        let end = if alive { "goes on" } else { "closed" };
        println!("{name}: {sent} frames, {end}, {} KiB more resident, {cpu:.2} s of CPU", grown >> 10);
        assert!(grown < 32 << 20, "{name}: {grown} bytes");
        assert!(cpu < soak(2, 20) as f64, "{name}: {cpu} s");
        assert_eq!(alive, survives, "{name}");
    }
}

#[test]
fn an_http2_connection_carries_so_many_requests_too() {
    let secure = Secure::start("");
    let mut wire = secure.open();
    let nowhere = block(&request("GET", "/nowhere"));
    let mut answered = 0;
    for stream in (1..4_000).step_by(2) {
        wire.frame(HEADERS, END_HEADERS | END_STREAM, stream, &nowhere);
        if wire.answer(stream) != Answer::Status(404) {
            break;
        }
        answered += 1;
    }
    // The notice may overtake the last answer.
    assert!((999..1_100).contains(&answered), "{answered}");
}

#[test]
fn silence_and_slowness_over_tls_and_http2_have_their_time() {
    let secure = Secure::start("limits = { head_read = \"1s\", body_read = \"1s\" }\n");
    // A handshake that stays half open.
    let mut half = TcpStream::connect(secure.gateway.listen).unwrap();
    half.set_read_timeout(Some(PATIENCE)).unwrap();
    half.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").unwrap();
    // A handshake, then nothing; a preface that stops; settings, then nothing; a head that does not end.
    let silent = secure.dial();
    let mut partial = secure.dial();
    partial.send(&PREFACE[..10]);
    let idle = secure.open();
    let mut unfinished = secure.open();
    unfinished.frame(HEADERS, 0, 1, &block(&request("POST", "/webhooks/github")));
    // A body that does not come is answered.
    let mut slow = secure.open();
    let mut headers = request("POST", "/webhooks/github");
    headers.push((
        "x-hub-signature-256",
        "sha256=0000000000000000000000000000000000000000000000000000000000000000",
    ));
    slow.frame(HEADERS, END_HEADERS, 1, &block(&headers));
    slow.frame(DATA, 0, 1, b"x");
    assert_eq!(slow.answer(1), Answer::Status(408));
    for mut wire in [silent, partial, idle, unfinished] {
        wire.closes();
    }
    assert!(matches!(half.read(&mut [0; 64]), Ok(0)) || matches!(half.read(&mut [0; 64]), Ok(0) | Err(_)));
    secure.gateway.eventually_metric("countersign_ingest_connections", 1.0);
    drop(slow);
    secure.gateway.eventually_metric("countersign_ingest_connections", 0.0);
}
