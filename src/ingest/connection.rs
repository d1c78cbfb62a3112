//! One connection from its first byte to its end: whose it is, TLS, HTTP/1 or HTTP/2, how long it may be silent or idle,
//! and how it ends when the gateway stops.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::activity::{self, Activity};
use super::answer::{Rejection, TurnedAway};
use super::guard::Guarded;
use super::linger::Lingering;
use super::listener::{Seat, Shared};
use super::tls::Proven;
use super::{Peer, proxy};
use crate::metrics::UNMATCHED;
use crate::patience::{Timer, sleep_until, timeout};

/// When the gateway stops, a connection without a request may still begin one for so long: what a sender that keeps its
/// connection open had just sent is answered, and told that it was the last.
const STOPPING: Duration = Duration::from_secs(1);
/// What a head may have beside its header lines; and hyper's read buffer cannot be smaller.
const HEAD_BUFFER_EXTRA: usize = 16 << 10;
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 100;
/// What one HTTP/2 stream, and all of a connection, may send ahead of our reading.
const WINDOWS: (u32, u32) = (64 << 10, 1 << 20);

/// A connection that is ready for its first request.
enum Opened {
    Clear(Lingering),
    Secure(Box<TlsStream<Lingering>>, Option<Arc<Proven>>),
}

impl Shared {
    /// Serves one connection to its end.
    pub(super) async fn serve(self: Arc<Self>, stream: TcpStream, seat: Seat) {
        // Answers are small and final: waiting to fill a packet only adds delay.
        let _ = stream.set_nodelay(true);
        let patience = self.limits.head_read;
        let opening = async {
            // The first byte is looked at to be sure of it: tokio takes a new socket for readable until that is tried.
            timeout(patience, stream.peek(&mut [0])).await.ok()?.ok()?;
            let (stream, seat) = self.attributed(stream, seat).await?;
            let Some(tls) = self.tls.load_full() else { return Some((Opened::Clear(stream), seat)) };
            let why = match timeout(patience, TlsAcceptor::from(Arc::clone(&tls.config)).accept(stream)).await
            {
                Ok(Ok(stream)) => match tls.proven(stream.get_ref().1) {
                    Ok(certificate) => {
                        return Some((Opened::Secure(Box::new(stream), certificate), seat));
                    }
                    Err(error) => {
                        tracing::debug!(%error, "client certificate cannot be read");
                        TurnedAway::TlsFailed
                    }
                },
                Ok(Err(error)) => {
                    tracing::debug!(%error, "tls handshake failed");
                    TurnedAway::TlsFailed
                }
                Err(_) => TurnedAway::TlsTooSlow,
            };
            self.ingest.turn_away(seat.peer, why);
            None
        };
        let opened = tokio::select! {
            opened = opening => opened,
            () = self.stopped_for(STOPPING) => return,
        };
        let Some((opened, seat)) = opened else { return };
        let peer = |certificate| Peer { address: seat.peer, secure: true, certificate };
        match opened {
            Opened::Clear(stream) => {
                self.http1(stream, Peer { address: seat.peer, secure: false, certificate: None }).await;
            }
            Opened::Secure(stream, certificate) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                self.http2(stream, peer(certificate)).await;
            }
            Opened::Secure(stream, certificate) => self.http1(stream, peer(certificate)).await,
        }
    }

    /// Reads the PROXY header that a trusted proxy may begin with. From then on the connection is that of the address in
    /// it, for everything, and counts as one of its connections.
    async fn attributed(self: &Arc<Self>, mut stream: TcpStream, seat: Seat) -> Option<(Lingering, Seat)> {
        if !self.ingest.is_trusted_proxy(seat.peer) {
            return Some((Lingering::new(stream, Bytes::new()), seat));
        }
        let why = match timeout(self.limits.head_read, proxy::read(&mut stream)).await {
            Ok(Ok((None, read))) => return Some((Lingering::new(stream, read), seat)),
            Ok(Ok((Some(source), read))) => {
                drop(seat);
                return Some((Lingering::new(stream, read), self.seat(source)?));
            }
            Ok(Err(proxy::Malformed)) => TurnedAway::ProxyHeaderMalformed,
            Err(_) => TurnedAway::ProxyHeaderTooSlow,
        };
        self.ingest.turn_away(seat.peer, why);
        None
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
        let header_bytes = self.limits.header_bytes;
        let stream = Guarded::new(stream, header_bytes, self.limits.head_read);
        let (verdict, activity) = (stream.verdict(), stream.activity());
        let service = service_fn(|request| {
            let refused = verdict.get();
            let (shared, activity, peer) = (&self, &activity, peer.clone());
            async move {
                Ok::<_, Infallible>(match refused {
                    Some(rejection) => shared.ingest.refuse(UNMATCHED, peer.address, rejection, true),
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
            let (shared, seen, peer) = (Arc::clone(&shared), Arc::clone(&seen), peer.clone());
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
        if let Some(tls) = self.tls.load().as_ref()
            && let Err(rejection) = tls.admit(peer.certificate.as_deref(), self.ingest.clock.now())
        {
            // The next one begins with a handshake, which a client with another certificate may pass.
            activity.spend();
            return self.ingest.refuse_unread(
                UNMATCHED,
                peer.address,
                &rejection,
                request.into_body(),
                http1,
            );
        }
        let address = peer.address;
        let answer = AssertUnwindSafe(Arc::clone(&self.ingest).answer(request, peer)).catch_unwind().await;
        let mut answer =
            answer.unwrap_or_else(|_| self.ingest.refuse(UNMATCHED, address, &Rejection::Internal, http1));
        if http1 && (self.stop.is_cancelled() || activity.is_spent()) {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }
}
