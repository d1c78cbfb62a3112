//! What a connection to a backend tells besides what hyper does: whether a request has left whole, and whether anything
//! has come back since. Three decisions need it: a 2xx to half a request is none, half a request on a kept connection
//! that was closed without a word may be sent again, and a backend that only says "continue" is cut off.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::client::TlsStream;

/// Interim answers to one request. Servers send one or two; their number is not limited by anything else but time.
const INTERIM_MAX: u32 = 32;

/// Bytes that may come back to one request over HTTP/2: what is read of an answer, and leave to send on for the largest body.
const RECEIVED_BYTES_MAX: usize = 4 << 20;

/// How far the sending of a request has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    /// Some of it is still here.
    UnderWay,
    /// All of it is with the system.
    Whole,
    /// The rest cannot be sent: the backend does not take it, or the connection is gone.
    BrokenOff,
}

/// What is known of the exchange on a connection.
#[derive(Debug)]
pub(super) struct Meter {
    sending: watch::Sender<Sending>,
    /// The protocol code has taken over the last of the request.
    handed_over: AtomicBool,
    heard: AtomicBool,
    interim: AtomicU32,
    exchanges: AtomicU32,
    /// Nothing of the request has been sent, on a connection that has been used before.
    unproven: AtomicBool,
    /// Bytes that came back since the exchange began, where they are limited: over HTTP/2, where a backend may talk of
    /// other things than its answer for ever.
    received: Option<AtomicUsize>,
    /// Why TLS gave the connection up, which the protocol code of HTTP/2 passes on as text.
    tls: OnceLock<rustls::Error>,
}

impl Meter {
    pub(super) fn new(http2: bool) -> Arc<Self> {
        Arc::new(Self {
            sending: watch::Sender::new(Sending::Whole),
            handed_over: AtomicBool::new(false),
            heard: AtomicBool::new(false),
            interim: AtomicU32::new(0),
            exchanges: AtomicU32::new(0),
            unproven: AtomicBool::new(false),
            received: http2.then(AtomicUsize::default),
            tls: OnceLock::new(),
        })
    }

    /// A new exchange begins: what is returned is to be sent instead of `request`.
    pub(super) fn begin(self: &Arc<Self>, request: Request<Full<Bytes>>) -> Request<Outgoing> {
        // An empty body is never asked for.
        self.handed_over.store(request.body().is_end_stream(), Ordering::SeqCst);
        self.heard.store(false, Ordering::SeqCst);
        self.interim.store(0, Ordering::SeqCst);
        // Over HTTP/2 the end of a connection is announced, and what has come in between is nobody's answer.
        let used = self.exchanges.fetch_add(1, Ordering::SeqCst) > 0;
        self.unproven.store(used && self.received.is_none(), Ordering::SeqCst);
        if let Some(received) = &self.received {
            received.store(0, Ordering::SeqCst);
        }
        self.sending.send_replace(Sending::UnderWay);
        let mut request = request.map(|body| Outgoing { body, meter: Arc::clone(self) });
        let meter = Arc::clone(self);
        hyper::ext::on_informational(&mut request, move |_| {
            meter.interim.fetch_add(1, Ordering::SeqCst);
        });
        request
    }

    /// Whether anything came back since the exchange began.
    pub(super) fn heard(&self) -> bool {
        self.heard.load(Ordering::SeqCst)
    }

    /// Why TLS gave the connection up, if it has.
    pub(super) fn tls_failure(&self) -> Option<io::Error> {
        self.tls.get().map(|error| io::Error::new(io::ErrorKind::InvalidData, error.clone()))
    }

    /// Waits until the request has left whole (true) or cannot any more (false).
    pub(super) async fn left_whole(&self) -> bool {
        let ended =
            self.sending.subscribe().wait_for(|sending| *sending != Sending::UnderWay).await.map(|s| *s);
        matches!(ended, Ok(Sending::Whole))
    }

    fn end_sending(&self, end: Sending) {
        self.sending.send_if_modified(|sending| {
            let under_way = *sending == Sending::UnderWay;
            if under_way {
                *sending = end;
            }
            under_way
        });
    }
}

/// A request's body, which tells when the last of it has been taken.
pub(super) struct Outgoing {
    body: Full<Bytes>,
    meter: Arc<Meter>,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if self.body.is_end_stream() {
            self.meter.handed_over.store(true, Ordering::SeqCst);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream over TCP.
pub(super) trait OverTcp {
    /// The connection itself.
    fn tcp(&self) -> &TcpStream;
}

impl OverTcp for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl OverTcp for TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// The stream under the protocol code.
pub(super) struct Metered<S> {
    stream: S,
    meter: Arc<Meter>,
    deaf: bool,
}

impl<S> Metered<S> {
    pub(super) fn new(stream: S, meter: Arc<Meter>) -> Self {
        Self { stream, meter, deaf: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.meter.interim.load(Ordering::SeqCst) > INTERIM_MAX {
            let error = io::Error::new(io::ErrorKind::InvalidData, "too many interim answers");
            return Poll::Ready(Err(error));
        }
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        if let Some(error) = read.as_ref().err().and_then(io::Error::get_ref)
            && let Some(error) = error.downcast_ref::<rustls::Error>()
        {
            // The first is the cause of any other.
            self.meter.tls.get_or_init(|| error.clone());
        }
        read?;
        let bytes = buffer.filled().len() - before;
        if bytes > 0 {
            self.meter.heard.store(true, Ordering::SeqCst);
        }
        if let Some(received) = &self.meter.received
            && received.fetch_add(bytes, Ordering::SeqCst) > RECEIVED_BYTES_MAX
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "too much beside an answer")));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + OverTcp + Unpin> Metered<S> {
    /// Refuses to use a connection again that has ended, or that has more to read: the runtime may not have told the
    /// protocol code yet, which would take the rest of an earlier answer for the next one. Also over TLS, whose own
    /// messages are not told from others here; they are rare after the first answer.
    fn prove(&mut self) -> io::Result<()> {
        if !self.meter.unproven.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        match recv(self.stream.tcp(), &mut [0u8], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Err(error) if error == rustix::io::Errno::WOULDBLOCK => Ok(()),
            Ok(_) | Err(_) => Err(io::Error::new(io::ErrorKind::NotConnected, "it cannot be used again")),
        }
    }

    /// A backend may refuse a request before it has read it, and hang up on the rest. Its answer is still on the way
    /// when writing fails, so failures of writing are kept from the protocol code, which would not read it.
    fn outlive(&mut self, written: io::Result<usize>, length: usize) -> io::Result<usize> {
        written.or_else(|error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                self.deaf = true;
                self.meter.end_sending(Sending::BrokenOff);
                Ok(length)
            }
            _ => Err(error),
        })
    }
}

impl<S: AsyncWrite + OverTcp + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.deaf {
            return Poll::Ready(Ok(bytes.len()));
        }
        self.prove()?;
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        Poll::Ready(self.outlive(written, bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        if self.deaf {
            return Poll::Ready(Ok(length));
        }
        self.prove()?;
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices));
        Poll::Ready(self.outlive(written, length))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.deaf {
            return Poll::Ready(Ok(()));
        }
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(context)).map(|()| 0);
        self.outlive(flushed, 0)?;
        // The protocol code flushes when its own buffer is empty.
        if self.meter.handed_over.load(Ordering::SeqCst) {
            self.meter.end_sending(Sending::Whole);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S> Drop for Metered<S> {
    fn drop(&mut self) {
        self.meter.end_sending(Sending::BrokenOff);
    }
}
