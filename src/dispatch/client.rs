//! Talks HTTP/1.1 to one backend, or HTTP/2 to one that chooses it in the TLS handshake: resolves, connects, sends one
//! request, reads the answer up to a bound, and keeps the connection for the next. Written on hyper's connections instead of its pooled client because every step has its
//! own limit and its own outcome, which that client tells apart by text only. It never follows a redirect and inflates
//! nothing. Over HTTP/2, too, a connection has one request at a time: what breaks it costs one attempt and no other.
//!
//! Backends close idle connections whenever they like. A closed one is seen while it idles; when the request crosses
//! the end on its way and had not left whole, no backend can have acted on it, and it is sent again on a fresh
//! connection within the same attempt. Once it has left whole it may have been acted on: that is a counted attempt, so
//! that `Countersign-Attempt` tells the next request from this one, and a delivery whose backend dies of it is not sent
//! twice as often.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::uri::{Authority, Scheme};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_rustls::ConfigBuilderExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::failure::{Failure, shortage_of_files};
use super::meter::{Meter, Metered, Outgoing, OverTcp};
use super::resolve::Resolver;
use crate::address::Reach;
use crate::config::BackendTls;
use crate::patience::{timeout, timeout_at};

/// Bytes of an answer that are kept for operators.
pub(super) const KEPT_BYTES_MAX: usize = 4 * 1024;
/// Bytes of an answer that are read so that its connection can be kept; a longer answer costs its connection.
const READ_BYTES_MAX: usize = 64 * 1024;
/// What a backend that speaks HTTP/2 may send ahead; no more of an answer is read.
const WINDOW_BYTES: u32 = 64 * 1024;
/// What HTTP/2 is called in a TLS handshake.
const HTTP2: &[u8] = b"h2";
/// Bytes of an answer's head; hyper's own default is 400 KiB.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Common backends close idle connections after 5 s (Node, Apache, uvicorn): let go before they do.
const IDLE_MAX: Duration = Duration::from_secs(4);
/// Connections of one destination that wait for the next request.
const IDLE_CONNECTIONS_MAX: usize = 256;
/// A connection that is not free again this long after its answer is not worth keeping.
const FREE_AGAIN_MAX: Duration = Duration::from_millis(100);
/// Addresses of one name that an attempt dials; more would leave none of them time enough.
const ADDRESSES_MAX: usize = 8;

/// An open connection.
struct Link {
    sender: Sender,
    meter: Arc<Meter>,
    /// Stops with the link: left to itself it would go on sending to a backend that has answered and reads no more.
    _connection: AbortOnDropHandle<()>,
}

enum Sender {
    Http1(http1::SendRequest<Outgoing>),
    Http2(http2::SendRequest<Outgoing>),
}

impl Link {
    async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, hyper::Error> {
        let mut request = self.meter.begin(request);
        match &mut self.sender {
            Sender::Http1(sender) => sender.send_request(request).await,
            Sender::Http2(sender) => {
                name_authority(&mut request);
                sender.send_request(request).await
            }
        }
    }

    /// Whether nobody has closed it, and it can take a request at once.
    fn is_ready(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_ready(),
            Sender::Http2(sender) => sender.is_ready(),
        }
    }

    fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_closed(),
            Sender::Http2(sender) => sender.is_closed(),
        }
    }

    async fn ready(&mut self) -> Result<(), hyper::Error> {
        match &mut self.sender {
            Sender::Http1(sender) => sender.ready().await,
            Sender::Http2(sender) => sender.ready().await,
        }
    }
}

/// In HTTP/2 the host is a part of the target.
fn name_authority(request: &mut Request<Outgoing>) {
    let Some(host) = request.headers_mut().remove(HOST) else { return };
    let target = std::mem::take(request.uri_mut());
    let mut parts = target.into_parts();
    parts.scheme = Some(Scheme::HTTPS);
    parts.authority = Authority::try_from(host.as_bytes()).ok();
    // Without an authority it is refused where it is sent: no server gets a request to nobody.
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

/// TLS settings: those of all backends that have none of their own, or of one.
#[derive(Debug, Default)]
pub(super) struct Tls {
    own: BackendTls,
    config: OnceLock<Arc<ClientConfig>>,
}

impl Tls {
    pub(super) fn new(own: BackendTls) -> Self {
        Self { own, config: OnceLock::new() }
    }

    /// Made at first use, since gateways whose backends are all in the clear need no certificate authorities.
    fn config(&self) -> Result<Arc<ClientConfig>, rustls::Error> {
        if let Some(config) = self.config.get() {
            return Ok(Arc::clone(config));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = if self.own.authorities.is_empty() {
            builder.try_with_platform_verifier()?
        } else {
            let mut roots = RootCertStore::empty();
            for authority in &self.own.authorities {
                roots.add(authority.clone())?;
            }
            builder.with_root_certificates(roots)
        };
        let mut config = match &self.own.identity {
            None => builder.with_no_client_auth(),
            Some(own) => builder.with_client_auth_cert(own.chain.clone(), own.key.clone_key())?,
        };
        config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::clone(self.config.get_or_init(|| Arc::new(config))))
    }
}

/// What a backend answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// The body, or its beginning.
    pub(super) body: Vec<u8>,
    /// Whether it is all of it.
    pub(super) is_whole: bool,
}

/// Where the requests of one lane go, with the connections that are waiting for the next.
pub(super) struct Endpoint {
    secure: bool,
    resolver: Resolver,
    allow_private: bool,
    tls: Arc<Tls>,
    idle: Mutex<Vec<(Link, Instant)>>,
    /// Tells that there is one.
    kept: Notify,
}

impl Endpoint {
    pub(super) fn new(url: &Uri, allow_private: bool, tls: Arc<Tls>) -> Self {
        let secure = url.scheme() == Some(&Scheme::HTTPS);
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
        Self {
            secure,
            resolver: Resolver::new(host, port),
            allow_private,
            tls,
            idle: Mutex::default(),
            kept: Notify::new(),
        }
    }

    /// Sends `request` and reads its answer, all within `limit`, of which connecting may take `connect_limit`; of the
    /// answer's body so many bytes are kept.
    ///
    /// An answer with a 2xx status counts only when it is complete (or longer than is read) and the request has left
    /// whole: a backend that broke off in the middle of "yes", or said it to half a delivery, may not have done the
    /// work. For any other status the head says enough.
    pub(super) async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        limit: Duration,
        connect_limit: Duration,
        kept_max: usize,
    ) -> Result<Answer, Failure> {
        let deadline = Instant::now() + limit;
        // Pinned here: as arguments, futures take their place once more in each one that they are handed to, and thousands
        // of these wait at the same time.
        let sending = pin!(self.send(request, connect_limit));
        let (response, link) =
            timeout_at(deadline, sending).await.map_err(|_| Failure::Timeout { limit, status: None })??;
        let (head, body) = response.into_parts();
        let status = head.status;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Failure::Switched);
        }
        let mut kept = Vec::new();
        let read = match timeout_at(deadline, read(body, &mut kept, kept_max)).await {
            Ok(Ok(read)) => read,
            Ok(Err(error)) if status.is_success() => return Err(Failure::Body { status, error }),
            Err(_) if status.is_success() => return Err(Failure::Timeout { limit, status: Some(status) }),
            Ok(Err(_)) | Err(_) => None,
        };
        if status.is_success() {
            match timeout_at(deadline, link.meter.left_whole()).await {
                Ok(true) => {}
                Ok(false) => return Err(Failure::Unread(status)),
                Err(_) => return Err(Failure::Timeout { limit, status: Some(status) }),
            }
        }
        if read.is_some() {
            self.keep(link).await;
        }
        let is_whole = read.is_some_and(|bytes| bytes == kept.len());
        Ok(Answer { status, headers: head.headers, body: kept, is_whole })
    }

    /// Closes connections that have been idle for too long, whenever that is.
    pub(super) async fn prune(&self) {
        loop {
            let oldest = {
                let mut idle = self.lock();
                idle.retain(|(link, since)| since.elapsed() < IDLE_MAX && !link.is_closed());
                idle.iter().map(|(_, since)| *since).min()
            };
            match oldest {
                Some(since) => sleep_until(since + IDLE_MAX).await,
                None => self.kept.notified().await,
            }
        }
    }

    async fn send(
        &self,
        request: Request<Full<Bytes>>,
        connect_limit: Duration,
    ) -> Result<(Response<Incoming>, Link), Failure> {
        if let Some(mut link) = self.take_idle() {
            match link.send(request.clone()).await {
                Ok(response) => return Ok((response, link)),
                // Canceled: none of it was sent.
                Err(error)
                    if error.is_canceled() || (!link.meter.heard() && !link.meter.left_whole().await) =>
                {
                    tracing::debug!(host = self.resolver.host(), %error, "kept connection was gone, sending again");
                }
                Err(error) => return Err(Failure::Head(error)),
            }
        }
        // In memory of its own, which the long wait for the answer does not hold on to.
        let mut link = timeout(connect_limit, Box::pin(self.connect(connect_limit)))
            .await
            .map_err(|_| Failure::ConnectTimeout(connect_limit))??;
        match link.send(request).await {
            Ok(response) => Ok((response, link)),
            Err(error) => Err(link.meter.tls_failure().map_or(Failure::Head(error), Failure::Tls)),
        }
    }

    fn take_idle(&self) -> Option<Link> {
        let mut idle = self.lock();
        while let Some((link, since)) = idle.pop() {
            if link.is_ready() && since.elapsed() < IDLE_MAX {
                return Some(link);
            }
        }
        None
    }

    async fn keep(&self, mut link: Link) {
        if let Ok(Ok(())) = timeout(FREE_AGAIN_MAX, link.ready()).await {
            let mut idle = self.lock();
            // The oldest is the next to be closed by the other side.
            if idle.len() >= IDLE_CONNECTIONS_MAX {
                idle.remove(0);
            }
            idle.push((link, Instant::now()));
            self.kept.notify_one();
        }
    }

    async fn connect(&self, limit: Duration) -> Result<Link, Failure> {
        let stream = self.connect_tcp(limit).await?;
        // Small requests must not wait for the acknowledgement of earlier ones; where it fails, they only wait.
        let _ = stream.set_nodelay(true);
        if !self.secure {
            return handshake(stream, false).await;
        }
        let config = self.tls.config().map_err(|error| match shortage_of_files() {
            Some(shortage) => Failure::Tls(shortage),
            None => Failure::Authorities(error),
        })?;
        let name = ServerName::try_from(self.resolver.host().to_owned())
            .map_err(|error| Failure::Tls(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let stream = TlsConnector::from(config).connect(name, stream).await.map_err(Failure::Tls)?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP2);
        handshake(stream, http2).await
    }

    /// Tries one address after the other; each may take an equal share of what is left of `limit`, so that one that
    /// swallows packets does not hide the next. What must not be dialled is passed over, and is the failure only when
    /// nothing else is left.
    async fn connect_tcp(&self, limit: Duration) -> Result<TcpStream, Failure> {
        let deadline = Instant::now() + limit;
        let found = self.resolver.addresses().await.map_err(Failure::Dns)?;
        let reach = |address: &SocketAddr| Reach::of(address.ip());
        let allowed = found.iter().filter(|address| !reach(address).is_refused(self.allow_private));
        let allowed: Vec<_> = allowed.take(ADDRESSES_MAX).collect();
        let mut failure = match found.first() {
            None => Failure::Dns(Arc::new(io::Error::new(io::ErrorKind::NotFound, "it has no address"))),
            Some(address) => Failure::Refused(address.ip(), reach(address)),
        };
        for (n, address) in allowed.iter().enumerate() {
            let left = u32::try_from(allowed.len() - n).unwrap_or(u32::MAX);
            let share = deadline.saturating_duration_since(Instant::now()) / left;
            match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => failure = Failure::Connect(error),
                Err(_) => failure = Failure::ConnectTimeout(limit),
            }
        }
        Err(failure)
    }

    /// A panic while it was held leaves a vector of connections, which is good whatever is in it.
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Link, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn handshake(
    stream: impl AsyncRead + AsyncWrite + OverTcp + Send + Unpin + 'static,
    http2: bool,
) -> Result<Link, Failure> {
    let meter = Meter::new(http2);
    let stream = TokioIo::new(Metered::new(stream, Arc::clone(&meter)));
    // What goes wrong on it is told to the request that it goes wrong for.
    let (sender, connection) = if http2 {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_max_send_streams(1)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_header_list_size(HEAD_BYTES_MAX as u32)
            .handshake(stream)
            .await
            .map_err(Failure::Head)?;
        (Sender::Http2(sender), tokio::spawn(async move { connection.await.unwrap_or_default() }))
    } else {
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .handshake(stream)
            .await
            .map_err(Failure::Head)?;
        (Sender::Http1(sender), tokio::spawn(async move { connection.await.unwrap_or_default() }))
    };
    Ok(Link { sender, meter, _connection: AbortOnDropHandle::new(connection) })
}

/// Reads `body` up to its end (how many bytes it had) or the limit (`None`), and keeps its beginning.
async fn read(
    mut body: Incoming,
    kept: &mut Vec<u8>,
    kept_max: usize,
) -> Result<Option<usize>, hyper::Error> {
    let mut bytes = 0usize;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            let room = kept_max - kept.len();
            kept.extend_from_slice(&data[..data.len().min(room)]);
            bytes = bytes.saturating_add(data.len());
            if bytes > READ_BYTES_MAX {
                return Ok(None);
            }
        }
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::dispatch::resolve::tests::scripted;

    const SOON: Duration = Duration::from_millis(50);
    const LATE: Duration = Duration::from_secs(60);

    fn endpoint(resolver: Resolver, allow_private: bool) -> Endpoint {
        Endpoint {
            secure: false,
            resolver,
            allow_private,
            tls: Arc::default(),
            idle: Mutex::default(),
            kept: Notify::new(),
        }
    }

    async fn exchange(endpoint: &Endpoint, connect_limit: Duration) -> Result<Answer, Failure> {
        endpoint.exchange(Request::new(Full::default()), LATE, connect_limit, KEPT_BYTES_MAX).await
    }

    /// A backend that accepts everything, one connection after the other, and closes.
    async fn backend() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.read_u8().await.unwrap();
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                    .await
                    .unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn a_resolver_that_hangs_costs_the_connect_timeout_and_one_thread() {
        let (resolver, answers, asked) = scripted();
        let endpoint = endpoint(resolver, true);
        for _ in 0..5 {
            assert!(matches!(exchange(&endpoint, SOON).await, Err(Failure::ConnectTimeout(SOON))));
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        drop(answers);
    }

    /// Rebinding: the name is judged anew each time, by where it leads then.
    #[tokio::test]
    async fn a_name_that_has_become_private_is_not_dialled() {
        let address = backend().await;
        let (resolver, answers, _) = scripted();
        let endpoint = endpoint(resolver, false);
        let refused: Vec<_> = ["10.0.0.1:80", "[::ffff:127.0.0.1]:80", "169.254.169.254:80"]
            .map(|text| text.parse().unwrap())
            .into_iter()
            .chain([address])
            .collect();
        answers.send(Ok(refused)).unwrap();
        let failure = exchange(&endpoint, LATE).await.unwrap_err();
        assert_eq!(
            failure.describe(),
            "10.0.0.1 is a private address, where this destination must not be dialled"
        );
    }

    #[tokio::test]
    async fn what_must_not_be_dialled_or_is_dead_is_passed_over() {
        let address = backend().await;
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let metadata = "169.254.169.254:80".parse().unwrap();
        let (resolver, answers, _) = scripted();
        let endpoint = endpoint(resolver, true);
        answers.send(Ok(vec![metadata, closed, address])).unwrap();
        assert_eq!(exchange(&endpoint, LATE).await.unwrap().status, StatusCode::OK);
        answers.send(Ok(vec![metadata, closed])).unwrap();
        assert!(matches!(exchange(&endpoint, LATE).await, Err(Failure::Connect(_))));
        answers.send(Ok([vec![closed; ADDRESSES_MAX], vec![address]].concat())).unwrap();
        assert!(matches!(exchange(&endpoint, LATE).await, Err(Failure::Connect(_))), "not more than so many");
        answers.send(Ok(Vec::new())).unwrap();
        assert!(matches!(exchange(&endpoint, LATE).await, Err(Failure::Dns(_))));
    }
}
