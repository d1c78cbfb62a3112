//! Accepts connections within their bounds (in number, per address, and in the time that a silent or idle one may
//! stay open) and hands each request to the pipeline.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::activity::{self, Activity};
use super::answer::Rejection;
use super::guard::Guarded;
use super::linger::Lingering;
use super::tls::{self, TlsError};
use super::{Ingest, Peer};
use crate::config::{Limits, Listen};
use crate::metrics::UNMATCHED;
use crate::patience::{Timer, sleep_until, timeout};

/// Connections that the kernel holds while all of ours are taken, or one gateway makes way for the next; it takes
/// net.core.somaxconn when that is less.
const BACKLOG: u32 = 4096;
/// When the gateway stops, a connection without a request may still begin one for so long: what a sender that keeps its
/// connection open had just sent is answered, and told that it was the last.
const STOPPING: Duration = Duration::from_secs(1);
/// Pauses after a failed accept, doubling: at the limit of open files accept fails at once, for ever.
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// What a head may have beside its header lines; and hyper's read buffer cannot be smaller.
const HEAD_BUFFER_EXTRA: usize = 16 << 10;
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 100;
/// What one HTTP/2 stream, and all of a connection, may send ahead of our reading.
const WINDOWS: (u32, u32) = (64 << 10, 1 << 20);

/// The bound public listener.
pub struct Listener {
    socket: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    limits: Limits,
}

/// What all connections share.
struct Shared {
    ingest: Arc<Ingest>,
    limits: Limits,
    tls: Arc<ArcSwapOption<ServerConfig>>,
    per_address: Mutex<HashMap<IpAddr, usize>>,
    stop: CancellationToken,
}

/// Replaces the certificate of a running listener.
#[derive(Clone)]
pub struct Certificate(Arc<ArcSwapOption<ServerConfig>>);

impl Certificate {
    /// Reads the files again; connections that are open keep the certificate that they began with.
    ///
    /// # Errors
    /// When a file cannot be used; the certificate in use stays.
    pub fn reload(&self, tls: &crate::config::Tls) -> Result<(), TlsError> {
        self.0.store(Some(tls::load(tls)?));
        Ok(())
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
        let tls = listen.tls.as_ref().map(tls::load).transpose()?;
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

/// How many connections the operating system lets us have: the limit of open files, raised as far as we may, less a
/// quarter for the store and the backends. Whoever opens more waits in the kernel and takes no file from a forward.
fn places() -> usize {
    let mut files = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: files.maximum, maximum: files.maximum };
    if setrlimit(Resource::Nofile, raised).is_ok() {
        files = raised;
    }
    let files = files.current.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    (files - files / 4).max(1)
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
            let _held = (place, seat);
            shared.connection(stream, peer).await;
        });
    }

    /// Counts a connection of `peer`, unless it has too many. Trusted proxies speak for many senders.
    fn seat(self: &Arc<Self>, peer: IpAddr) -> Option<Seat> {
        let mut per_address = self.per_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = per_address.entry(peer).or_insert(0);
        if *count >= self.limits.connections_per_address && !self.ingest.is_trusted_proxy(peer) {
            self.ingest.metrics.ingest_connections_refused.with_label_values(&["per_address"]).inc();
            return None;
        }
        *count += 1;
        self.ingest.metrics.ingest_connections.inc();
        Some(Seat { shared: Arc::clone(self), peer })
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, address: IpAddr) {
        // Answers are small and final: waiting to fill a packet only adds delay.
        let _ = stream.set_nodelay(true);
        let patience = self.limits.head_read;
        let opening = async {
            timeout(patience, stream.readable()).await.ok()?.ok()?;
            let stream = Lingering::new(stream);
            let Some(tls) = self.tls.load_full() else { return Some(Opened::Clear(stream)) };
            match timeout(patience, TlsAcceptor::from(tls).accept(stream)).await {
                Ok(Ok(stream)) => Some(Opened::Secure(Box::new(stream))),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "tls handshake failed");
                    None
                }
                Err(_) => None,
            }
        };
        let opened = tokio::select! {
            opened = opening => opened,
            () = self.stopped_for(STOPPING) => return,
        };
        let peer = Peer { address, secure: matches!(opened, Some(Opened::Secure(_))) };
        match opened {
            Some(Opened::Clear(stream)) => self.http1(stream, peer).await,
            Some(Opened::Secure(stream)) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                self.http2(stream, peer).await;
            }
            Some(Opened::Secure(stream)) => self.http1(stream, peer).await,
            None => {}
        }
    }

    async fn stopped_for(&self, time: Duration) {
        self.stop.cancelled().await;
        tokio::time::sleep(time).await;
    }

    async fn http1(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        peer: Peer,
    ) {
        let activity = Arc::new(Activity::new(self.limits.head_read));
        let (header_bytes, head_read) = (self.limits.header_bytes, self.limits.head_read);
        let stream = Guarded::new(stream, header_bytes, head_read, Arc::clone(&activity));
        let verdict = stream.verdict();
        let service = service_fn(|request| {
            let refused = verdict.get();
            let (shared, activity) = (&self, &activity);
            async move {
                Ok::<_, Infallible>(match refused {
                    Some(rejection) => shared.ingest.refuse(UNMATCHED, rejection, true),
                    None => shared.respond(request, peer, activity).await,
                })
            }
        });
        // The guard has judged every head before hyper sees it, in size and time, too.
        let connection = http1::Builder::new()
            .header_read_timeout(None)
            .max_buf_size(header_bytes + HEAD_BUFFER_EXTRA)
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service);
        // Nothing to tell it when the gateway stops: hyper would close an idle one at once, also over a request that is
        // on its way. Instead, every answer then says that it is the last.
        if let Err(error) = self.drive(connection, |_| (), &activity).await {
            tracing::debug!(%error, "connection ended");
        }
    }

    async fn http2(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        peer: Peer,
    ) {
        let activity = Arc::new(Activity::new(self.limits.head_read));
        let shared = Arc::clone(&self);
        let seen = Arc::clone(&activity);
        let service = service_fn(move |request| {
            let (shared, seen) = (Arc::clone(&shared), Arc::clone(&seen));
            async move { Ok::<_, Infallible>(shared.respond(request, peer, &seen).await) }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(Timer)
            .max_concurrent_streams(STREAMS_MAX)
            .max_pending_accept_reset_streams(20)
            .max_local_error_reset_streams(100)
            .max_header_list_size(u32::try_from(self.limits.header_bytes).unwrap_or(u32::MAX))
            .initial_stream_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1)
            .keep_alive_interval(activity::IDLE / 2)
            .keep_alive_timeout(self.limits.head_read)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = self.drive(connection, http2::Connection::graceful_shutdown, &activity).await {
            tracing::debug!(%error, "connection ended");
        }
    }

    /// Runs a connection to its end, and ends it when it is idle for too long or the gateway stops. `farewell`
    /// tells the sender then, and when the connection is spent.
    async fn drive<C, E>(
        &self,
        connection: C,
        farewell: impl Fn(Pin<&mut C>),
        activity: &Activity,
    ) -> Result<(), E>
    where
        C: Future<Output = Result<(), E>>,
    {
        let mut connection = pin!(connection);
        let mut stopping = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => return ended,
                () = self.stop.cancelled(), if !stopping => {
                    stopping = true;
                    farewell(connection.as_mut());
                }
                () = activity.spent.notified() => farewell(connection.as_mut()),
                () = tokio::time::sleep(STOPPING), if stopping => {
                    if !activity.is_busy() {
                        return Ok(());
                    }
                }
                () = sleep_until(activity.idle_until()), if !stopping => {
                    if activity.is_idle() {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn respond(
        &self,
        request: Request<Incoming>,
        peer: Peer,
        activity: &Activity,
    ) -> Response<Full<Bytes>> {
        let _busy = activity.begin();
        let http1 = request.version() < Version::HTTP_2;
        let answer = AssertUnwindSafe(Arc::clone(&self.ingest).answer(request, peer)).catch_unwind().await;
        let mut answer =
            answer.unwrap_or_else(|_| self.ingest.refuse(UNMATCHED, &Rejection::Internal, http1));
        if http1 && (self.stop.is_cancelled() || activity.is_spent()) {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }
}

/// A connection that is ready for its first request.
enum Opened {
    Clear(Lingering),
    Secure(Box<TlsStream<Lingering>>),
}

/// One counted connection.
struct Seat {
    shared: Arc<Shared>,
    peer: IpAddr,
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
