//! The backends of a walk, and what the outside of a gateway knows. One lock holds all of it, so that a crash is one
//! moment for everybody: what had been read or written down before it counts, and nothing after it.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use countersign::clock::{Clock, Timestamp};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::setting::DESTINATIONS;

/// What a backend does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    Accept,
    Fail,
    Refuse,
    Busy,
    Hang,
    Close,
}

impl Reply {
    const ALL: [Self; 6] = [Self::Accept, Self::Fail, Self::Refuse, Self::Busy, Self::Hang, Self::Close];

    fn bytes(self) -> Option<&'static [u8]> {
        match self {
            Self::Accept => Some(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
            Self::Fail => Some(b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n"),
            Self::Refuse => Some(b"HTTP/1.1 404 X\r\ncontent-length: 0\r\n\r\n"),
            Self::Busy => Some(b"HTTP/1.1 429 X\r\nretry-after: 90\r\ncontent-length: 0\r\n\r\n"),
            Self::Hang | Self::Close => None,
        }
    }
}

/// What a backend does with all requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Always(Reply),
    /// Something else each time.
    Mixed,
}

impl Mood {
    pub(crate) fn any(rng: &mut fastrand::Rng) -> Self {
        if rng.u8(0..4) == 0 { Self::Mixed } else { Self::Always(Reply::ALL[rng.usize(0..Reply::ALL.len())]) }
    }
}

/// A request that a backend has read to its end.
pub(crate) struct Got {
    pub(crate) era: u32,
    pub(crate) at: Timestamp,
    pub(crate) destination: &'static str,
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
    pub(crate) attempt: u32,
    pub(crate) replay: bool,
    pub(crate) reply: Reply,
    /// The connection, until the answer has been sent.
    open: Option<TcpStream>,
}

impl Got {
    pub(crate) fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_slice())
    }

    pub(crate) fn number(&self) -> u32 {
        text(self.header("x-request")).parse().expect("what we sent has a number")
    }

    /// Whether the gateway still waits for the answer.
    pub(crate) fn is_open(&self) -> bool {
        self.open.as_ref().is_some_and(is_open)
    }
}

pub(crate) struct Outside {
    clock: Clock,
    /// Counts the gateways of a walk; those before it are cut off.
    pub(crate) era: u32,
    pub(crate) got: Vec<Got>,
    /// Requests that the sender has read a 2xx for, by number.
    pub(crate) acked: Vec<u32>,
    pub(crate) moods: Vec<Mood>,
    rng: fastrand::Rng,
    /// Forwards that came again while an attempt, of this number, was open.
    pub(crate) overlaps: Vec<(u32, &'static str, u32)>,
}

#[derive(Clone)]
pub(crate) struct World(Arc<Mutex<Outside>>);

impl World {
    pub(crate) fn new(seed: u64, clock: Clock) -> Self {
        Self(Arc::new(Mutex::new(Outside {
            clock,
            era: 0,
            got: Vec::new(),
            acked: Vec::new(),
            moods: vec![Mood::Always(Reply::Accept); DESTINATIONS.len()],
            rng: fastrand::Rng::with_seed(seed),
            overlaps: Vec::new(),
        })))
    }

    /// Nothing happens outside while this is held. A failed check must not hide behind a poisoned lock.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Outside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The backends of one era, at an address of their own.
    pub(crate) async fn backend(&self) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (world, era) = (self.clone(), self.lock().era);
        let listening = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(world.clone().serve(stream, era));
            }
        });
        (address, listening)
    }

    async fn serve(self, mut stream: tokio::net::TcpStream, era: u32) {
        while let Some(got) = read_request(&mut stream).await {
            let copy = TcpStream::from(stream.as_fd().try_clone_to_owned().unwrap());
            let Some((index, reply)) = self.lock().note(got, copy, era) else { return };
            match reply.bytes() {
                Some(bytes) => {
                    // From here on the gateway may settle it.
                    self.lock().got[index].open = None;
                    if stream.write_all(bytes).await.is_err() {
                        return;
                    }
                }
                None => {
                    if reply == Reply::Hang {
                        let _ = stream.read_u8().await;
                    }
                    self.lock().got[index].open = None;
                    return;
                }
            }
        }
    }
}

impl Outside {
    /// Ends an era: what its gateway goes on to do reaches nobody.
    pub(crate) fn cut(&mut self) {
        self.era += 1;
        for got in &mut self.got {
            got.open = None;
        }
    }

    fn note(&mut self, mut got: Got, stream: TcpStream, era: u32) -> Option<(usize, Reply)> {
        // Read late, after the gateway had given up waiting for the answer: as good as never.
        if era != self.era || !is_open(&stream) {
            return None;
        }
        let index = DESTINATIONS.iter().position(|name| *name == got.destination).unwrap();
        got.reply = match self.moods[index] {
            Mood::Always(reply) => reply,
            Mood::Mixed => Reply::ALL[self.rng.usize(0..Reply::ALL.len())],
        };
        let same = |other: &&Got| (other.number(), other.destination) == (got.number(), got.destination);
        if let Some(other) = self.got.iter().filter(same).find(|other| other.is_open()) {
            self.overlaps.push((got.number(), got.destination, other.attempt));
        }
        (got.era, got.at) = (era, self.clock.now());
        got.open = Some(stream);
        let reply = got.reply;
        self.got.push(got);
        Some((self.got.len() - 1, reply))
    }
}

/// Whether the other side has not closed its connection.
fn is_open(stream: &TcpStream) -> bool {
    matches!(stream.peek(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

fn text(value: Option<&[u8]>) -> &str {
    value.map_or("", |value| std::str::from_utf8(value).unwrap())
}

/// `None` when the connection ended.
async fn read_request(stream: &mut tokio::net::TcpStream) -> Option<Got> {
    let mut bytes = Vec::new();
    let end = loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
    };
    let mut body = bytes.split_off(end + 4);
    let mut lines = bytes[..end].split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let line = String::from_utf8(lines.next()?.to_vec()).unwrap();
    let headers = lines.map(|line| {
        let colon = line.iter().position(|byte| *byte == b':').unwrap();
        let name = String::from_utf8(line[..colon].to_ascii_lowercase()).unwrap();
        (name, line[colon + 1..].trim_ascii().to_vec())
    });
    let headers: Vec<_> = headers.collect();
    let target = line.split(' ').nth(1).unwrap().to_owned();
    let destination = DESTINATIONS.into_iter().find(|name| target.starts_with(&format!("/{name}"))).unwrap();
    let mut got = Got {
        era: 0,
        at: Timestamp::UNIX_EPOCH,
        destination,
        target,
        headers,
        body: Vec::new(),
        attempt: 0,
        replay: false,
        reply: Reply::Hang,
        open: None,
    };
    got.attempt = text(got.header("countersign-attempt")).parse().unwrap();
    got.replay = got.header("countersign-replay").is_some();
    let length: usize = text(got.header("content-length")).parse().unwrap_or(0);
    let read = body.len();
    body.resize(length.max(read), 0);
    stream.read_exact(&mut body[read..]).await.ok()?;
    got.body = body;
    Some(got)
}
