//! The backends of a walk: what they do with a request is decided when it comes.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use countersign::clock::{Clock, Timestamp};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::gateway::DESTINATIONS;

/// What a backend does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    Accept,
    Fail,
    Refuse,
    Busy,
    Close,
    Hang,
}

impl Reply {
    pub(crate) const ALL: [Self; 6] =
        [Self::Accept, Self::Fail, Self::Refuse, Self::Busy, Self::Close, Self::Hang];

    fn bytes(self) -> &'static [u8] {
        match self {
            Self::Accept => b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            Self::Fail => b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n",
            Self::Refuse => b"HTTP/1.1 404 X\r\ncontent-length: 0\r\n\r\n",
            Self::Busy => b"HTTP/1.1 429 X\r\nretry-after: 90\r\ncontent-length: 0\r\n\r\n",
            Self::Close | Self::Hang => b"",
        }
    }
}

/// A request that a backend has read to its end.
pub(crate) struct Got {
    pub(crate) era: u32,
    /// Steady time.
    pub(crate) at: Timestamp,
    pub(crate) number: u32,
    pub(crate) destination: &'static str,
    pub(crate) attempt: u32,
    pub(crate) replay: bool,
    /// The last word; `Hang` while there is none.
    pub(crate) reply: Reply,
    /// While the gateway waits.
    release: Option<oneshot::Sender<Reply>>,
}

impl Got {
    pub(crate) fn is_open(&self) -> bool {
        self.release.is_some()
    }
}

pub(crate) struct Outside {
    clock: Clock,
    pub(crate) era: u32,
    pub(crate) got: Vec<Got>,
    pub(crate) moods: [Reply; DESTINATIONS.len()],
}

#[derive(Clone)]
pub(crate) struct World(pub(crate) Rc<RefCell<Outside>>);

impl World {
    pub(crate) fn new(clock: Clock) -> Self {
        let moods = [Reply::Accept; DESTINATIONS.len()];
        Self(Rc::new(RefCell::new(Outside { clock, era: 0, got: Vec::new(), moods })))
    }

    /// Listens; tasks are local to the walk's thread.
    pub(crate) async fn listen(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let world = self.clone();
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::task::spawn_local(world.clone().serve(stream));
            }
        });
        address
    }

    /// What the gateway of this era goes on to do reaches nobody.
    pub(crate) fn cut(&self) {
        let mut outside = self.0.borrow_mut();
        outside.era += 1;
        outside.got.iter_mut().for_each(|got| got.release = None);
    }

    /// Answers what hangs at `destination`.
    pub(crate) fn release(&self, destination: &str, reply: Reply) {
        let mut outside = self.0.borrow_mut();
        for got in outside.got.iter_mut().filter(|got| got.destination == destination) {
            if let Some(release) = got.release.take() {
                got.reply = reply;
                let _ = release.send(reply);
            }
        }
    }

    async fn serve(self, mut stream: TcpStream) {
        let era = self.0.borrow().era;
        while let Some((number, destination, attempt, replay)) = read_request(&mut stream).await {
            let (index, reply, released) = {
                let mut outside = self.0.borrow_mut();
                if era != outside.era {
                    return;
                }
                let to = DESTINATIONS.iter().position(|name| *name == destination).unwrap();
                let reply = outside.moods[to];
                let (release, released) = oneshot::channel();
                let release = (reply == Reply::Hang).then_some(release);
                let at = outside.clock.steady().time;
                outside.got.push(Got { era, at, number, destination, attempt, replay, reply, release });
                (outside.got.len() - 1, reply, released)
            };
            let reply = if reply == Reply::Hang {
                tokio::select! {
                    reply = released => reply.unwrap_or(Reply::Close),
                    _ = stream.read_u8() => {
                        self.0.borrow_mut().got[index].release = None;
                        return;
                    }
                }
            } else {
                reply
            };
            if reply.bytes().is_empty() || stream.write_all(reply.bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// The number of its delivery, where to, which attempt, and whether it is a replay.
async fn read_request(stream: &mut TcpStream) -> Option<(u32, &'static str, u32, bool)> {
    let mut bytes = Vec::new();
    let end = loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_lowercase();
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let length: usize = header("content-length").unwrap().parse().unwrap();
    while bytes.len() < end + 4 + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    let number = std::str::from_utf8(&bytes[end + 4..]).unwrap().parse().unwrap();
    let target = head.split(' ').nth(1).unwrap();
    let destination = DESTINATIONS.into_iter().find(|name| target.strip_prefix('/') == Some(*name)).unwrap();
    let attempt = header("countersign-attempt").unwrap().parse().unwrap();
    Some((number, destination, attempt, header("countersign-replay").is_some()))
}
