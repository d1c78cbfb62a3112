//! Accepts connections within their bounds, in number and per address.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Ingest;
use super::answer::TurnedAway;
use super::tls::{Expiry, Terms, TlsError};
use crate::config::{Limits, Listen};

/// Connections that the kernel holds while all of ours are taken, or one gateway makes way for the next; it takes
/// net.core.somaxconn when that is less.
const BACKLOG: u32 = 4096;
/// Pauses after a failed accept, doubling: at the limit of open files accept fails at once, for ever.
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// The bound public listener.
pub struct Listener {
    socket: TcpListener,
    tls: Option<Arc<Terms>>,
    limits: Limits,
}

/// What all connections share.
pub(super) struct Shared {
    pub(super) ingest: Arc<Ingest>,
    pub(super) limits: Limits,
    pub(super) tls: Arc<ArcSwapOption<Terms>>,
    per_address: Mutex<HashMap<IpAddr, usize>>,
    pub(super) stop: CancellationToken,
}

/// Replaces the certificate of a running listener.
#[derive(Clone)]
pub struct Certificate(Arc<ArcSwapOption<Terms>>);

impl Certificate {
    /// Reads the files again; connections that are open keep the certificate that they began with.
    ///
    /// # Errors
    /// When a file cannot be used; the certificate in use stays.
    pub fn reload(&self, tls: &crate::config::Tls) -> Result<(), TlsError> {
        self.0.store(Some(Terms::load(tls)?));
        Ok(())
    }

    /// When those in use end; empty in the clear.
    pub fn expiries(&self) -> Vec<Expiry> {
        self.0.load().as_ref().map(|terms| terms.expiries.clone()).unwrap_or_default()
    }
}

impl Listener {
    /// Takes a socket that was given, or binds the address, and reads the certificate.
    ///
    /// # Errors
    /// When either is not possible.
    pub fn new(
        given: Option<std::net::TcpListener>,
        listen: &Listen,
        limits: &Limits,
    ) -> Result<Self, BindError> {
        let tls = listen.tls.as_ref().map(Terms::load).transpose()?;
        let socket = match given {
            Some(socket) => TcpListener::from_std(socket),
            None => Self::bind(listen.address),
        };
        let socket = socket.map_err(|error| BindError::Address { address: listen.address, error })?;
        let mut limits = limits.clone();
        let places = places();
        if places < limits.connections {
            tracing::warn!(places, "the limit of open files allows fewer than limits.connections");
            limits.connections = places;
        }
        Ok(Self { socket, tls, limits })
    }

    fn bind(address: SocketAddr) -> io::Result<TcpListener> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    }

    /// The address, with the port that was picked.
    ///
    /// # Errors
    /// When the operating system does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until `stop`, then lets requests in progress finish; ends when no connection is left.
    pub fn serve(
        self,
        ingest: Arc<Ingest>,
        stop: CancellationToken,
    ) -> (Certificate, impl Future<Output = ()> + Send + 'static) {
        let tls = Arc::new(ArcSwapOption::new(self.tls));
        let certificate = Certificate(Arc::clone(&tls));
        let shared =
            Arc::new(Shared { ingest, limits: self.limits, tls, per_address: Mutex::default(), stop });
        (certificate, shared.accept_all(self.socket))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What store, quarantine, operators and a few attempts have open.
const OWN_FILES: usize = 48;

/// How many connections the operating system lets us have: the limit of open files, raised as far as we may, less a
/// quarter for the store and the backends, and no less than [`OWN_FILES`]. Whoever opens more waits in the kernel and takes no file from a forward.
fn places() -> usize {
    let mut files = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: files.maximum, maximum: files.maximum };
    if setrlimit(Resource::Nofile, raised).is_ok() {
        files = raised;
    }
    let files = files.current.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    files.saturating_sub((files / 4).max(OWN_FILES)).max(1)
}

/// Why the listener could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address cannot be had.
    #[error("cannot listen on {address} (listen.address)")]
    Address {
        /// The configured address.
        address: SocketAddr,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Shared {
    async fn accept_all(self: Arc<Self>, socket: TcpListener) {
        let connections = Arc::new(Semaphore::new(self.limits.connections));
        let tracker = TaskTracker::new();
        let mut pause = ACCEPT_PAUSE.0;
        let mut told: Option<Instant> = None;
        loop {
            // The place is taken before the connection: beyond the limit they wait in the kernel, not in our memory.
            let accepted = async {
                let place = Arc::clone(&connections).acquire_owned().await;
                (place, socket.accept().await)
            };
            let (place, accepted) = tokio::select! {
                () = self.stop.cancelled() => break,
                accepted = accepted => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    if told.is_none_or(|told| told.elapsed() >= ACCEPT_PAUSE.1) {
                        tracing::warn!(%error, "accept failed");
                        told = Some(Instant::now());
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(ACCEPT_PAUSE.1);
                    continue;
                }
            };
            pause = ACCEPT_PAUSE.0;
            self.admit(&tracker, place.ok(), stream, peer);
        }
        self.accept_rest(socket, &connections, &tracker);
        tracker.close();
        tracker.wait().await;
    }

    /// Takes the connections that the kernel has accepted for us already, as far as there are places: closing the socket
    /// resets those that are left, with whatever their senders have sent.
    fn accept_rest(
        self: &Arc<Self>,
        socket: TcpListener,
        connections: &Arc<Semaphore>,
        tracker: &TaskTracker,
    ) {
        // tokio's own accept would miss those of which it has not been told yet.
        let Ok(socket) = socket.into_std() else { return };
        // Not for as long as more come: they are not those that were waiting.
        for _ in 0..=BACKLOG {
            let Ok(place) = Arc::clone(connections).try_acquire_owned() else { return };
            match socket.accept() {
                Ok((stream, peer)) => {
                    if stream.set_nonblocking(true).is_ok()
                        && let Ok(stream) = TcpStream::from_std(stream)
                    {
                        self.admit(tracker, Some(place), stream, peer);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Its sender is gone already; the next may not be.
                Err(_) => {}
            }
        }
    }

    fn admit(
        self: &Arc<Self>,
        tracker: &TaskTracker,
        place: Option<OwnedSemaphorePermit>,
        stream: TcpStream,
        peer: SocketAddr,
    ) {
        let peer = peer.ip().to_canonical();
        let Some(seat) = self.seat(peer) else { return };
        let shared = Arc::clone(self);
        tracker.spawn(async move {
            let _place = place;
            shared.serve(stream, seat).await;
        });
    }

    /// Counts a connection of `peer`, unless it has too many. Trusted proxies speak for many senders.
    pub(super) fn seat(self: &Arc<Self>, peer: IpAddr) -> Option<Seat> {
        let mut per_address = self.per_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = per_address.entry(peer).or_insert(0);
        if *count >= self.limits.connections_per_address && !self.ingest.is_trusted_proxy(peer) {
            drop(per_address);
            self.ingest.turn_away(peer, TurnedAway::PerAddress);
            return None;
        }
        *count += 1;
        self.ingest.metrics.ingest_connections.inc();
        Some(Seat { shared: Arc::clone(self), peer })
    }
}

/// One counted connection.
pub(super) struct Seat {
    shared: Arc<Shared>,
    pub(super) peer: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.shared.ingest.metrics.ingest_connections.dec();
        let mut per_address = self.shared.per_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = per_address.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                per_address.remove(&self.peer);
            }
        }
    }
}
