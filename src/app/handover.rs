//! How a gateway hands over to the next on the same data directory (`run --takeover`). The running one listens on a
//! Unix socket of the data directory's. The next one, which has read its configuration by then, asks there, gets the
//! listening sockets themselves, and gives the word; from then on the running one stops as on SIGTERM, and the next
//! one waits for the lock. Until the word is given, nothing has changed, whatever happens to the next one.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, recvmsg,
    sendmsg, socket_with, sockopt,
};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::sockets::prepare;
use crate::config::StoreConfig;
use crate::store::sqlite::{self, OpenError};

/// What is said, in this order; the number is that of the protocol.
const ASK: &[u8] = b"countersign takeover 1\n";
const GIVE: &[u8] = b"sockets\n";
const GO: &[u8] = b"go\n";
/// How long either side waits for the other's next word.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often other users that ask are told of.
const TELL: Duration = Duration::from_secs(10);

/// Why the running gateway did not hand over. It serves on.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// Nobody answers, and yet somebody holds the data directory.
    #[error("the running gateway does not hand over; it is stopping already, or of a version that cannot")]
    Unanswered(#[source] OpenError),
    /// This version cannot read the running one's data.
    #[error("not asking the running gateway to hand over")]
    Unreadable(#[source] OpenError),
    /// It answered and then fell silent, or said what makes no sense.
    #[error("the running gateway on {} did not hand over", directory.display())]
    Failed {
        /// Its data directory.
        directory: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
}

/// Asks whoever holds the data directory for its public and its admin socket, and to stop. `None` when nobody does.
pub(super) fn ask(store: &StoreConfig) -> Result<Option<[TcpListener; 2]>, HandoverError> {
    let directory = &*store.path;
    let failed = |error| HandoverError::Failed { directory: directory.to_owned(), error };
    let Some(stream) = reach(directory).map_err(failed)? else {
        return match sqlite::in_use(directory) {
            Some(holder) => Err(HandoverError::Unanswered(holder)),
            None => Ok(None),
        };
    };
    // Afterwards it would be too late: nobody would serve. A database serves both at once.
    if store.database.is_none() {
        sqlite::check_format(directory).map_err(HandoverError::Unreadable)?;
    }
    receive(stream).map(Some).map_err(failed)
}

/// Where a gateway on `directory` is asked: a name outside of the file system (unix(7), abstract), so that nothing is left
/// behind, and nothing is in the way of whoever copies the directory. Any user may take such a name, which is why both
/// sides look who the other is.
fn address(directory: &Path) -> io::Result<SocketAddrUnix> {
    let directory = directory.metadata()?;
    let name = format!("countersign/{}/{}", directory.dev(), directory.ino());
    Ok(SocketAddrUnix::new_abstract_name(name.as_bytes())?)
}

fn socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// A connection to the gateway on `directory`. Whoever has taken its name and is another user's, or lets nobody in, is
/// nobody: it must not keep this one from starting.
fn reach(directory: &Path) -> io::Result<Option<UnixStream>> {
    let socket = socket()?;
    // For this long it waits for a place in the other's queue.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(PATIENCE))?;
    let connected = address(directory).and_then(|address| Ok(connect(&socket, &address)?));
    match connected.as_ref().map_err(io::Error::kind) {
        Ok(()) => {}
        Err(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => return Ok(None),
        Err(io::ErrorKind::WouldBlock) => {
            tracing::warn!("whoever listens in the running gateway's place lets nobody in");
            return Ok(None);
        }
        Err(_) => return connected.map(|()| None),
    }
    let user = sockopt::socket_peercred(&socket)?.uid.as_raw();
    if !is_ours(user) {
        tracing::warn!(user, "another user listens in the running gateway's place");
        return Ok(None);
    }
    Ok(Some(socket.into()))
}

/// Whether it is a process of our own user's, or of root's.
fn is_ours(user: u32) -> bool {
    user == 0 || user == rustix::process::geteuid().as_raw()
}

fn receive(mut stream: UnixStream) -> io::Result<[TcpListener; 2]> {
    be_patient(&stream)?;
    stream.write_all(ASK)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut given = [0; GIVE.len()];
    let received =
        recvmsg(&stream, &mut [IoSliceMut::new(&mut given)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up: it is stopping already"));
    }
    let sockets: Result<[OwnedFd; 2], _> = descriptors.try_into();
    let (GIVE, Ok(sockets)) = (given.as_slice(), sockets) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer is not understood"));
    };
    let sockets = sockets.map(TcpListener::from);
    for socket in &sockets {
        prepare(socket)?;
    }
    stream.write_all(GO)?;
    Ok(sockets)
}

/// The running side.
pub(super) struct Door {
    listener: tokio::net::UnixListener,
    /// Copies of the public and the admin socket.
    sockets: Arc<[OwnedFd; 2]>,
}

impl Door {
    /// Opens the socket of `directory`, which this process holds.
    pub(super) fn open(directory: &Path, sockets: [BorrowedFd<'_>; 2]) -> io::Result<Self> {
        let [public, admin] = sockets;
        let sockets = [public.try_clone_to_owned()?, admin.try_clone_to_owned()?];
        let listener = socket()?;
        bind(&listener, &address(directory)?)?;
        listen(&listener, i32::MAX)?;
        let listener = UnixListener::from(listener);
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        Ok(Self { listener, sockets: Arc::new(sockets) })
    }

    /// Hands the sockets to the first that asks for them and then gives its word; its process id is told to
    /// `successor`. Ends then, or with `stop`, and closes the copies.
    pub(super) async fn serve(self, stop: CancellationToken, successor: watch::Sender<Option<i32>>) {
        let mut told = None;
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let asking = accepted.and_then(|(stream, _)| Ok((stream.peer_cred()?, stream.into_std()?)));
            let (who, stream) = match asking {
                Ok((who, stream)) if is_ours(who.uid()) => (who, stream),
                Ok((who, _)) => {
                    // Anybody can ask as often as they like.
                    if told.is_none_or(|told: Instant| told.elapsed() >= TELL) {
                        tracing::warn!(user = who.uid(), "hand-over refused to another user");
                        told = Some(Instant::now());
                    }
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, "hand-over: accept failed");
                    // At the limit of open files it fails at once, for ever.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            let given = Arc::clone(&self.sockets);
            let handed = tokio::task::spawn_blocking(move || give(stream, &given)).await;
            match handed.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) {
                Ok(()) => {
                    let _ = successor.send(Some(who.pid().unwrap_or_default()));
                    return;
                }
                Err(error) => tracing::warn!(%error, "hand-over broken off; serving on"),
            }
        }
    }
}

fn give(mut stream: UnixStream, sockets: &[OwnedFd; 2]) -> io::Result<()> {
    be_patient(&stream)?;
    expect(&mut stream, ASK)?;
    let rights = [sockets[0].as_fd(), sockets[1].as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&rights));
    sendmsg(&stream, &[IoSlice::new(GIVE)], &mut control, SendFlags::NOSIGNAL)?;
    expect(&mut stream, GO)
}

fn expect(stream: &mut UnixStream, words: &[u8]) -> io::Result<()> {
    let mut said = vec![0; words.len()];
    stream.read_exact(&mut said)?;
    if said == words { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidData, "unknown words")) }
}

fn be_patient(stream: &UnixStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}
