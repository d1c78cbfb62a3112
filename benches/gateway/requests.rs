//! Deliveries that are signed before anything is measured: as Hostwares sends them, each with an id and a signature of
//! its own. Only what differs is kept per delivery, so that a million of them fit into memory.

use std::fmt::Write as _;

use bytes::Bytes;
use countersign::clock::Clock;
use countersign::secret::Secret;
use countersign::verify::{Message, Signer, preset};
use http::Method;

/// Shared by the sender and everything that verifies.
pub(crate) const SECRET: &str = "a-secret-of-the-benchmark";

/// One element of the JSON that fills bodies up: like what providers send, neither a single long text nor all markup.
const FILLING: &str =
    r#"{"site":"s-4711","status":"live","at":1776871800,"url":"https://example.com/a/b?c=d"},"#;

/// Requests, ready to be written.
pub(crate) struct Deliveries {
    /// Head and beginning of the body of each, one behind the other, all of one length.
    beginnings: Vec<u8>,
    stride: usize,
    /// The rest of every body.
    end: Vec<u8>,
}

impl Deliveries {
    /// Signs `count` deliveries with bodies of about `body_bytes` (and no less than it takes), of `sources` in turn.
    /// No two calls make the same ids.
    pub(crate) fn sign(count: usize, body_bytes: usize, sources: usize) -> Self {
        let signer = Signer::new(preset("hostwares").unwrap().scheme.clone(), &Secret::new(SECRET).unwrap());
        let signer = signer.unwrap();
        let now = Clock::system().now();
        let salt = fastrand::u64(..);
        let beginning =
            |number: usize| format!(r#"{{"id":"d-{salt:016x}-{number:08}","event":"deploy","data":["#);
        let mut end = String::new();
        while beginning(0).len() + end.len() + FILLING.len() + 4 <= body_bytes {
            end += FILLING;
        }
        let rest = body_bytes.saturating_sub(beginning(0).len() + end.len() + 4);
        write!(end, "\"{}\"]}}", "x".repeat(rest)).unwrap();

        let (mut beginnings, mut stride) = (Vec::new(), 0);
        for number in 0..count {
            let beginning = beginning(number);
            let body = Bytes::from([beginning.as_bytes(), end.as_bytes()].concat());
            let message = Message { method: &Method::POST, url: "/", id: None, event: None, body: &body };
            let mut head = format!(
                "POST /webhooks/{} HTTP/1.1\r\n\
                 Host: hooks.example.com\r\n\
                 User-Agent: Hostwares-Webhooks/2.4 (+https://hostwares.example/docs/webhooks)\r\n\
                 Accept: */*\r\n\
                 Accept-Encoding: gzip, deflate, br\r\n\
                 Content-Type: application/json; charset=utf-8\r\n\
                 X-Hostwares-Event: deploy\r\n\
                 X-Hostwares-Attempt: 1\r\n\
                 X-Request-Id: {salt:016x}{number:016x}\r\n\
                 Traceparent: 00-{salt:016x}{number:016x}-{number:016x}-01\r\n\
                 Content-Length: {}\r\n",
                source(number % sources),
                body.len(),
            );
            for (name, value) in &signer.sign(&message, now).unwrap() {
                write!(head, "{name}: {}\r\n", value.to_str().unwrap()).unwrap();
            }
            head += "\r\n";
            if number == 0 {
                stride = head.len() + beginning.len();
                beginnings.reserve_exact(stride * count);
            }
            beginnings.extend_from_slice(head.as_bytes());
            beginnings.extend_from_slice(beginning.as_bytes());
            assert_eq!(beginnings.len(), stride * (number + 1), "one request is longer than the others");
        }
        Self { beginnings, stride, end: end.into_bytes() }
    }

    pub(crate) fn len(&self) -> usize {
        self.beginnings.len() / self.stride.max(1)
    }

    /// The bytes of one request, in two pieces.
    pub(crate) fn pieces(&self, index: usize) -> [&[u8]; 2] {
        [&self.beginnings[index * self.stride..][..self.stride], &self.end]
    }
}

/// The name of a source.
pub(crate) fn source(number: usize) -> String {
    format!("hostwares-{number:03}")
}
