//! A backend that does what a test tells it to, byte for byte.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the backend does when it has read a request.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// Sends these bytes and waits for the next request.
    Send(Vec<u8>),
    /// Sends these bytes and closes.
    SendAndClose(Vec<u8>),
    /// Sends these bytes and keeps silent, with the connection open.
    SendAndHang(Vec<u8>),
    /// Sends these bytes and resets the connection.
    SendAndReset(Vec<u8>),
    /// Sends the first bytes once and then the second for ever.
    Endless(Vec<u8>, Vec<u8>),
}

impl Reply {
    /// An empty answer with this status.
    pub(crate) fn status(status: u16) -> Self {
        Self::with_header(status, "x-nothing: 1")
    }

    /// An empty answer with this status and header line.
    pub(crate) fn with_header(status: u16, header: &str) -> Self {
        Self::Send(format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n{header}\r\n\r\n").into_bytes())
    }

    /// Silence.
    pub(crate) fn hang() -> Self {
        Self::SendAndHang(Vec::new())
    }
}

/// A request as it came in.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) line: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
    /// The number of the connection that it came on.
    pub(crate) connection: usize,
}

impl Seen {
    /// All values of a header, as text.
    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        let named = self.headers.iter().filter(|(found, _)| found == name);
        named.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
    }

    /// The only value of a header.
    pub(crate) fn one(&self, name: &str) -> String {
        let all = self.all(name);
        assert_eq!(all.len(), 1, "{name}: {all:?}");
        all.concat()
    }
}

type Script = dyn Fn(usize) -> Reply + Send + Sync;

/// A listening backend; it stops with the test's runtime.
#[derive(Clone)]
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Requests that are being answered, and the most that ever were at once.
    busy: Arc<(AtomicUsize, AtomicUsize)>,
}

impl Backend {
    /// Answers request number n (from 0) with `script(n)`.
    pub(crate) async fn start(script: impl Fn(usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backend =
            Self { address: listener.local_addr().unwrap(), seen: Arc::default(), busy: Arc::default() };
        let (script, serving): (Arc<Script>, _) = (Arc::new(script), backend.clone());
        tokio::spawn(async move {
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let (serving, script) = (serving.clone(), Arc::clone(&script));
                tokio::spawn(async move { serving.serve(stream, connection, &*script).await });
            }
        });
        backend
    }

    pub(crate) async fn always(reply: Reply) -> Self {
        Self::start(move |_| reply.clone()).await
    }

    /// Takes its time, and fails what comes when it has more than `most` at once.
    pub(crate) async fn overloaded(most: usize, time: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backend =
            Self { address: listener.local_addr().unwrap(), seen: Arc::default(), busy: Arc::default() };
        let serving = backend.clone();
        tokio::spawn(async move {
            for connection in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                let serving = serving.clone();
                tokio::spawn(async move {
                    while read_request(&mut stream, connection).await.is_some() {
                        let busy = serving.busy.0.fetch_add(1, Ordering::SeqCst) + 1;
                        tokio::time::sleep(time).await;
                        let status = Reply::status(if busy > most { 503 } else { 200 });
                        serving.busy.0.fetch_sub(1, Ordering::SeqCst);
                        if reply(&mut stream, status).await.is_none() {
                            return;
                        }
                    }
                });
            }
        });
        backend
    }

    /// Does first these, then answers 200.
    pub(crate) async fn first(replies: Vec<Reply>) -> Self {
        Self::start(move |n| replies.get(n).cloned().unwrap_or_else(|| Reply::status(200))).await
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub(crate) fn most_at_once(&self) -> usize {
        self.busy.1.load(Ordering::SeqCst)
    }

    async fn serve(&self, mut stream: TcpStream, connection: usize, script: &Script) {
        while let Some(request) = read_request(&mut stream, connection).await {
            let busy = self.busy.0.fetch_add(1, Ordering::SeqCst) + 1;
            self.busy.1.fetch_max(busy, Ordering::SeqCst);
            let number = {
                let mut seen = self.seen.lock().unwrap();
                seen.push(request);
                seen.len() - 1
            };
            let go_on = reply(&mut stream, script(number)).await;
            self.busy.0.fetch_sub(1, Ordering::SeqCst);
            if go_on.is_none() {
                return;
            }
        }
    }
}

async fn reply(stream: &mut TcpStream, reply: Reply) -> Option<()> {
    match reply {
        Reply::Send(bytes) => stream.write_all(&bytes).await.ok(),
        Reply::SendAndClose(bytes) => {
            stream.write_all(&bytes).await.ok()?;
            stream.shutdown().await.ok()?;
            None
        }
        Reply::SendAndHang(bytes) => {
            stream.write_all(&bytes).await.ok()?;
            // Until the other side closes.
            stream.read_u8().await.ok().and(None)
        }
        Reply::SendAndReset(bytes) => {
            stream.write_all(&bytes).await.ok()?;
            stream.set_zero_linger().ok()?;
            None
        }
        Reply::Endless(head, more) => {
            stream.write_all(&head).await.ok()?;
            loop {
                stream.write_all(&more).await.ok()?;
            }
        }
    }
}

/// `None` when the connection ended.
async fn read_request(stream: &mut TcpStream, connection: usize) -> Option<Seen> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let mut lines = head[..head.len() - 4].split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let line = String::from_utf8(lines.next()?.to_vec()).unwrap();
    let headers: Vec<_> = lines
        .map(|line| {
            let colon = line.iter().position(|byte| *byte == b':').unwrap();
            let name = String::from_utf8(line[..colon].to_ascii_lowercase()).unwrap();
            (name, line[colon + 1..].trim_ascii().to_vec())
        })
        .collect();
    let mut seen = Seen { line, headers, body: Vec::new(), connection };
    let length = seen.all("content-length").first().map_or(0, |text| text.parse().unwrap());
    seen.body.resize(length, 0);
    stream.read_exact(&mut seen.body).await.ok()?;
    Some(seen)
}
