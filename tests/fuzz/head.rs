//! What comes over a connection, as bytes: of it the guard gives hyper whole requests only, each of which hyper and a
//! reading of the grammar by other means understand in the same way; and that however the bytes are cut.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use countersign::ingest::Guarded;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};

const HEADER_BYTES_MAX: usize = 1_000;
const LINES_MAX: usize = 100;
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nHost: refused\r\nConnection: close\r\n\r\n";

thread_local! {
    static RUNTIME: tokio::runtime::Runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
}

pub(super) fn check(input: &[u8]) {
    RUNTIME.with(|runtime| runtime.block_on(check_stream(input)));
}

async fn check_stream(input: &[u8]) {
    let whole = Given::new(Pieces::whole(input), 8 << 10).await;
    let through = whole.bytes.strip_suffix(STAND_IN).filter(|bytes| input.starts_with(bytes));
    let through = through.unwrap_or(&whole.bytes);
    assert!(input.starts_with(through), "what was not sent came through: {}", whole.bytes.escape_ascii());

    for (pieces, size) in [
        (Pieces::small(input, 1), 1),
        (Pieces::small(input, 1), 64),
        (Pieces::small(input, 7), 3),
        (Pieces::whole(input), 5),
    ] {
        let cut = Given::new(pieces, size).await;
        assert_eq!(cut.is_broken, whole.is_broken, "in reads of {size}");
        // How much of a broken body came through before it was seen to be broken is chance.
        let (short, long) = if cut.bytes.len() < whole.bytes.len() { (&cut, &whole) } else { (&whole, &cut) };
        assert!(long.bytes.starts_with(&short.bytes) && (whole.is_broken || long.bytes == short.bytes));
    }
    if !whole.is_broken {
        let again = Given::new(Pieces::whole(&whole.bytes), 8 << 10).await;
        assert_eq!((again.bytes, again.is_broken), (whole.bytes.clone(), false), "given again");
    }

    let requests = read(&whole.bytes);
    let seen = Seen::by_hyper(input).await;
    assert!(seen.len() <= requests.len(), "hyper sees {} of {} requests", seen.len(), requests.len());
    for (seen, request) in seen.iter().zip(&requests) {
        assert_eq!(*seen, request.0);
    }
    let is_last = |request: &(Seen, bool)| request.1;
    let ended = seen.len().checked_sub(1).is_some_and(|last| is_last(&requests[last]));
    assert!(ended || seen.len() == requests.len(), "hyper misses what follows {:?}", seen.last());
}

/// What came through, and whether it ended in an error.
struct Given {
    bytes: Vec<u8>,
    is_broken: bool,
}

impl Given {
    async fn new(pieces: Pieces<'_>, buffer_bytes: usize) -> Self {
        let mut guarded = Guarded::new(pieces, HEADER_BYTES_MAX, Duration::from_secs(60));
        let (mut bytes, mut buffer) = (Vec::new(), vec![0; buffer_bytes]);
        let is_broken = loop {
            match guarded.read(&mut buffer).await {
                Ok(0) => break false,
                Ok(read) => bytes.extend_from_slice(&buffer[..read]),
                Err(_) => break true,
            }
        };
        Self { bytes, is_broken }
    }
}

/// Bytes that come in pieces of so many.
struct Pieces<'a> {
    bytes: &'a [u8],
    size: usize,
}

impl<'a> Pieces<'a> {
    fn whole(bytes: &'a [u8]) -> Self {
        Self::small(bytes, usize::MAX)
    }

    fn small(bytes: &'a [u8], size: usize) -> Self {
        Self { bytes, size }
    }
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let length = self.size.min(buffer.remaining()).min(self.bytes.len());
        let (piece, rest) = self.bytes.split_at(length);
        buffer.put_slice(piece);
        self.bytes = rest;
        Poll::Ready(Ok(()))
    }
}

/// A request as somebody understands it.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    method: String,
    target: String,
    headers: HeaderMap,
    /// `None` when not all of it came.
    body: Option<Vec<u8>>,
}

impl Seen {
    /// What hyper makes of a connection behind the guard.
    async fn by_hyper(sent: &[u8]) -> Vec<Self> {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
            let seen = Rc::clone(&seen);
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.ok().map(|body| body.to_bytes().to_vec());
                let target = head.uri.path_and_query().unwrap().as_str().to_owned();
                let request = Self { method: head.method.to_string(), target, headers: head.headers, body };
                seen.borrow_mut().push(request);
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            }
        });
        let stream = tokio::io::join(Pieces::whole(sent), tokio::io::sink());
        let stream = Guarded::new(stream, HEADER_BYTES_MAX, Duration::from_secs(60));
        let connection =
            http1::Builder::new().half_close(true).serve_connection(TokioIo::new(stream), service);
        // A broken body ends it with an error.
        let _ = connection.await;
        seen.take()
    }
}

/// The requests in what came through, each with whether it may be the connection's last.
fn read(mut bytes: &[u8]) -> Vec<(Seen, bool)> {
    let mut requests = Vec::new();
    while !bytes.is_empty() {
        let mut lines = [httparse::EMPTY_HEADER; LINES_MAX];
        let mut head = httparse::Request::new(&mut lines);
        let end = match head.parse(bytes) {
            Ok(httparse::Status::Complete(end)) => end,
            other => panic!("{other:?} for {}", bytes.escape_ascii()),
        };
        check_bytes(&bytes[..end]);
        let mut headers = HeaderMap::new();
        for line in head.headers.iter() {
            let name = HeaderName::from_bytes(line.name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(line.value).unwrap());
        }
        let (method, target) = (head.method.unwrap().to_owned(), head.path.unwrap().to_owned());
        assert!(method != "CONNECT" && target.starts_with('/') && !target.contains('#'), "{method} {target}");
        let all = |name: &str| headers.get_all(name).iter().collect::<Vec<_>>();
        let (hosts, lengths, codings) = (all("host"), all("content-length"), all("transfer-encoding"));
        assert!(hosts.len() == 1 && !hosts[0].is_empty(), "{hosts:?}");
        assert!(lengths.len() + codings.len() < 2, "{lengths:?} and {codings:?}");
        let is_http10 = head.version == Some(0);

        let rest = &bytes[end..];
        let (body, taken) = match (lengths.first(), codings.first()) {
            (Some(length), _) => {
                let length = length.to_str().unwrap().parse::<u64>().unwrap();
                let whole = usize::try_from(length).ok().filter(|length| *length <= rest.len());
                (whole.map(|length| rest[..length].to_vec()), whole.unwrap_or(rest.len()))
            }
            (None, Some(coding)) => {
                assert!(coding.as_bytes().eq_ignore_ascii_case(b"chunked") && !is_http10, "{coding:?}");
                chunks(rest).map_or((None, rest.len()), |(body, taken)| (Some(body), taken))
            }
            (None, None) => (Some(Vec::new()), 0),
        };
        let ends = |value: &&HeaderValue| {
            let value = value.as_bytes().to_ascii_lowercase();
            value.windows(5).any(|word| word == b"close") || value.windows(7).any(|word| word == b"upgrade")
        };
        let is_last = is_http10 || body.is_none() || all("connection").iter().any(ends);
        requests.push((Seen { method, target, headers, body }, is_last));
        bytes = &rest[taken..];
    }
    requests
}

/// Every line of a head ends in CR LF, neither of them stands anywhere else, and it is no larger than it may be.
fn check_bytes(head: &[u8]) {
    let text = head.split(|byte| *byte == b'\n');
    let lines: Vec<_> = text.map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect();
    let good = |line: &&[u8]| !line.iter().any(|byte| b"\r\0".contains(byte));
    assert!(lines.iter().all(good), "{}", head.escape_ascii());
    assert!(head.windows(2).all(|two| two[1] != b'\n' || two[0] == b'\r'), "{}", head.escape_ascii());
    let begin = usize::from(head.starts_with(b"\r\n")) * 2;
    let line_end = head[begin..].iter().position(|byte| *byte == b'\n').unwrap() + 1;
    assert!(head.len() - begin - line_end <= HEADER_BYTES_MAX + 2, "{} bytes", head.len());
}

/// The body in chunks and how many bytes it takes with its trailers; `None` when it is not complete.
fn chunks(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let line = &bytes[at..];
        let line = &line[..line.windows(2).position(|two| two == b"\r\n")?];
        assert!(!line.iter().any(|byte| b"\r\n\0".contains(byte)), "{}", line.escape_ascii());
        let digits = line.iter().position(|byte| b"; \t".contains(byte)).unwrap_or(line.len());
        let size = usize::from_str_radix(std::str::from_utf8(&line[..digits]).unwrap(), 16).unwrap();
        at += line.len() + 2;
        if size == 0 {
            // A line whose end has not come is nothing to anybody yet.
            let judged = bytes.iter().rposition(|byte| *byte == b'\n')? + 1;
            let mut trailers = [httparse::EMPTY_HEADER; LINES_MAX];
            return match httparse::parse_headers(&bytes[at..judged], &mut trailers) {
                Ok(httparse::Status::Complete((end, _))) => {
                    assert!(bytes[at..at + end].windows(2).all(|two| two[1] != b'\n' || two[0] == b'\r'));
                    Some((body, at + end))
                }
                Ok(httparse::Status::Partial) => None,
                Err(error) => panic!("{error} in the trailers of {}", bytes.escape_ascii()),
            };
        }
        body.extend_from_slice(bytes.get(at..at.checked_add(size)?)?);
        at += size;
        let line = &bytes[at..];
        let line = &line[..=line.iter().position(|byte| *byte == b'\n')?];
        assert_eq!(line, b"\r\n", "behind a chunk");
        at += line.len();
    }
}
