//! A provider: signs, and speaks HTTP/1.1 byte by byte, so that tests can also send what no library would.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use bytes::Bytes;
use countersign::clock::{Clock, Timestamp};
use countersign::secret::Secret;
use countersign::verify::{Message, Signer, preset};
use http::{HeaderMap, Method};

use crate::backend::Backend;
use crate::support::PATIENCE;

/// A key of every preset: 32 bytes in base64 behind the prefix that some providers put before it.
pub(crate) const SECRET: &str = "whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTEyMzQ=";

/// Every provider there is a preset for.
pub(crate) const ALL: [&str; 7] =
    ["owlette", "owlette-legacy", "hostwares", "ownstak", "github", "stripe", "standard-webhooks"];

/// A source per provider, all with [`SECRET`], all to `backend`.
pub(crate) fn every_provider(backend: &Backend) -> String {
    let sources = ALL.map(|name| {
        format!(
            "[[source]]\nname = \"{name}\"\nprovider = \"{name}\"\nsecrets = [{{ value = \"{SECRET}\" }}]\nto = [\"legacy\"]\n"
        )
    });
    format!("{}[[destination]]\nname = \"legacy\"\nurl = \"{}\"\n", sources.concat(), backend.url())
}

/// A body in which every provider finds its id and event type.
pub(crate) fn body(id: &str) -> Vec<u8> {
    format!(
        r#"{{"id":"{id}","event":"deployment.completed","type":"deployment.completed","webhook_event_id":"{id}","webhook_event_type":"deployment_completed"}}"#
    )
    .into_bytes()
}

/// An answer, read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The head's lines below the status line, in lower case.
    pub(crate) headers: Vec<String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// A request that can still be spoilt before it is sent.
#[derive(Debug, Clone)]
pub(crate) struct Post {
    pub(crate) method: &'static str,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
}

impl Post {
    /// Signed now by `provider`'s rules with [`SECRET`].
    pub(crate) fn signed(provider: &str, target: &str, id: &str, event: &str, body: &[u8]) -> Self {
        Self::signed_at(provider, target, id, event, body, SECRET, Clock::system().now())
    }

    pub(crate) fn signed_at(
        provider: &str,
        target: &str,
        id: &str,
        event: &str,
        body: &[u8],
        secret: &str,
        now: Timestamp,
    ) -> Self {
        let scheme = preset(provider).unwrap().scheme.clone();
        let signer = Signer::new(scheme, &Secret::new(secret).unwrap()).unwrap();
        let bytes = Bytes::copy_from_slice(body);
        let message =
            Message { method: &Method::POST, url: target, id: Some(id), event: Some(event), body: &bytes };
        let signed: HeaderMap = signer.sign(&message, now).unwrap();
        let headers =
            signed.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
        Self { method: "POST", target: target.to_owned(), headers, body: body.to_vec() }
    }

    pub(crate) fn with(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(existing, _)| !existing.eq_ignore_ascii_case(name));
        self
    }

    /// As bytes, for a connection that is to stay open.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.head();
        bytes.extend_from_slice(format!("Content-Length: {}\r\n\r\n", self.body.len()).as_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }

    fn head(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\nHost: gateway\r\n", self.method, self.target).into_bytes();
        for (name, value) in &self.headers {
            head.extend_from_slice(format!("{name}: ").as_bytes());
            head.extend_from_slice(value);
            head.extend_from_slice(b"\r\n");
        }
        head
    }

    /// Sends it on a connection of its own.
    pub(crate) fn send(&self, to: SocketAddr) -> Answer {
        self.try_send(to).expect("the gateway answers")
    }

    /// `None` when the gateway is gone before it has answered.
    pub(crate) fn try_send(&self, to: SocketAddr) -> Option<Answer> {
        exchange(to, &self.clone().with("Connection", "close").bytes())
    }

    /// Sends the body in chunks of this size, without a length.
    pub(crate) fn send_chunked(&self, to: SocketAddr, size: usize) -> Answer {
        let mut bytes = self.head();
        bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n");
        for chunk in self.body.chunks(size) {
            bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        exchange(to, &bytes).expect("the gateway answers")
    }
}

/// Sends raw bytes and reads one answer.
pub(crate) fn exchange(to: SocketAddr, bytes: &[u8]) -> Option<Answer> {
    let mut wire = Wire::open(to)?;
    wire.write(bytes);
    wire.read()
}

/// A connection that requests are written to, in whatever pieces, and answers are read from.
pub(crate) struct Wire<S = TcpStream> {
    pub(crate) stream: S,
    unread: Vec<u8>,
}

impl Wire {
    /// `None` when nobody listens.
    pub(crate) fn open(to: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(to).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Some(Self::over(stream))
    }
}

impl<S: Read + Write> Wire<S> {
    pub(crate) fn over(stream: S) -> Self {
        Self { stream, unread: Vec::new() }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        // A gateway that refuses early closes while we still send; its answer is there all the same.
        let _ = self.stream.write_all(bytes);
    }

    /// The next answer, or what there is of it when the gateway closes; `None` when that is not even a head.
    pub(crate) fn read(&mut self) -> Option<Answer> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(mut answer) = parse(&self.unread)
                && let Some(length) = answer.header("content-length").and_then(|length| length.parse().ok())
                && answer.body.len() >= length
            {
                self.unread = answer.body.split_off(length);
                return Some(answer);
            }
            match self.stream.read(&mut buffer) {
                Ok(0) | Err(_) => return parse(&std::mem::take(&mut self.unread)),
                Ok(read) => self.unread.extend_from_slice(&buffer[..read]),
            }
        }
    }
}

fn parse(answer: &[u8]) -> Option<Answer> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, headers: lines.map(str::to_lowercase).collect(), body: answer[end + 4..].to_vec() })
}
