//! Talks HTTP/1.1 to one backend: resolves, connects, sends one request, reads the answer up to a bound, and keeps
//! the connection for the next. Written on hyper's connections instead of its pooled client because every step has its
//! own limit and its own outcome, which that client tells apart by text only. It never follows a redirect and never
//! sends a request twice, except when none of it had left on a kept connection that the backend had just closed.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Scheme;
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_rustls::ConfigBuilderExt;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::failure::{Failure, shortage_of_files};
use crate::patience::{timeout, timeout_at};

/// Bytes of an answer that are kept for operators.
const KEPT_BYTES_MAX: usize = 4 * 1024;
/// Bytes of an answer that are read so that its connection can be kept; a longer answer costs its connection.
const READ_BYTES_MAX: usize = 64 * 1024;
/// Bytes of an answer's head; hyper's own default is 400 KiB.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Common backends close idle connections after 5 s (Node, Apache, uvicorn): let go before they do.
const IDLE_MAX: Duration = Duration::from_secs(4);
/// A connection that is not free again this long after its answer is not worth keeping.
const FREE_AGAIN_MAX: Duration = Duration::from_millis(100);

type Sender = http1::SendRequest<Full<Bytes>>;

/// TLS settings for all backends.
#[derive(Debug, Default)]
pub(super) struct Tls(OnceLock<Arc<ClientConfig>>);

impl Tls {
    /// Made at first use, since gateways whose backends are all in the clear need no certificate authorities.
    fn config(&self) -> Result<Arc<ClientConfig>, rustls::Error> {
        if let Some(config) = self.0.get() {
            return Ok(Arc::clone(config));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .try_with_platform_verifier()?
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::clone(self.0.get_or_init(|| Arc::new(config))))
    }
}

/// What a backend answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// The beginning of the body.
    pub(super) body: Vec<u8>,
}

/// Where the requests of one lane go, with the connections that are waiting for the next.
#[derive(Debug)]
pub(super) struct Endpoint {
    secure: bool,
    host: String,
    port: u16,
    tls: Arc<Tls>,
    idle: Mutex<Vec<(Sender, Instant)>>,
}

impl Endpoint {
    pub(super) fn new(url: &Uri, tls: Arc<Tls>) -> Self {
        let secure = url.scheme() == Some(&Scheme::HTTPS);
        Self {
            secure,
            host: url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
            port: url.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            tls,
            idle: Mutex::default(),
        }
    }

    /// Sends `request` and reads its answer, all within `limit`, of which connecting may take `connect_limit`.
    ///
    /// An answer with a 2xx status counts only when it is complete (or longer than is read): a backend that broke off
    /// in the middle of "yes" may not have done the work. For any other status the head says enough.
    pub(super) async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        limit: Duration,
        connect_limit: Duration,
    ) -> Result<Answer, Failure> {
        let deadline = Instant::now() + limit;
        let (response, sender) = timeout_at(deadline, self.send(request, connect_limit))
            .await
            .map_err(|_| Failure::Timeout { limit, status: None })??;
        let (head, body) = response.into_parts();
        let status = head.status;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Failure::Switched);
        }
        let mut kept = Vec::new();
        match timeout_at(deadline, read(body, &mut kept)).await {
            Ok(Ok(true)) => self.keep(sender).await,
            Ok(Ok(false)) => {}
            Ok(Err(error)) if status.is_success() => return Err(Failure::Body { status, error }),
            Err(_) if status.is_success() => return Err(Failure::Timeout { limit, status: Some(status) }),
            Ok(Err(_)) | Err(_) => {}
        }
        Ok(Answer { status, headers: head.headers, body: kept })
    }

    /// Closes connections that have been idle for too long.
    pub(super) fn prune(&self) {
        self.lock().retain(|(sender, since)| since.elapsed() < IDLE_MAX && !sender.is_closed());
    }

    async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        connect_limit: Duration,
    ) -> Result<(Response<Incoming>, Sender), Failure> {
        if let Some(mut sender) = self.take_idle() {
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, sender)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(Failure::Head(error.into_error())),
                },
            }
        }
        let mut sender = timeout(connect_limit, self.connect(connect_limit))
            .await
            .map_err(|_| Failure::ConnectTimeout(connect_limit))??;
        let response = sender.send_request(request).await.map_err(Failure::Head)?;
        Ok((response, sender))
    }

    fn take_idle(&self) -> Option<Sender> {
        let mut idle = self.lock();
        while let Some((sender, since)) = idle.pop() {
            if sender.is_ready() && since.elapsed() < IDLE_MAX {
                return Some(sender);
            }
        }
        None
    }

    async fn keep(&self, mut sender: Sender) {
        if let Ok(Ok(())) = timeout(FREE_AGAIN_MAX, sender.ready()).await {
            self.lock().push((sender, Instant::now()));
        }
    }

    async fn connect(&self, limit: Duration) -> Result<Sender, Failure> {
        let stream = self.connect_tcp(limit).await?;
        // Small requests must not wait for the acknowledgement of earlier ones; where it fails, they only wait.
        let _ = stream.set_nodelay(true);
        if !self.secure {
            return handshake(stream).await;
        }
        let config = self.tls.config().map_err(|error| match shortage_of_files() {
            Some(shortage) => Failure::Tls(shortage),
            None => Failure::Authorities(error),
        })?;
        let name = ServerName::try_from(self.host.clone())
            .map_err(|error| Failure::Tls(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let stream = TlsConnector::from(config).connect(name, stream).await.map_err(Failure::Tls)?;
        handshake(stream).await
    }

    /// Tries one address after the other; each may take an equal share of what is left of `limit`, so that one that
    /// swallows packets does not hide the next.
    async fn connect_tcp(&self, limit: Duration) -> Result<TcpStream, Failure> {
        let deadline = Instant::now() + limit;
        let addresses = self.resolve().await.map_err(Failure::Dns)?;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
        for (n, address) in addresses.iter().enumerate() {
            let left = u32::try_from(addresses.len() - n).unwrap_or(u32::MAX);
            let share = deadline.saturating_duration_since(Instant::now()) / left;
            match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(_) if left == 1 => return Err(Failure::ConnectTimeout(limit)),
                Err(_) => {}
            }
        }
        Err(if addresses.is_empty() { Failure::Dns(last) } else { Failure::Connect(last) })
    }

    async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = self.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, self.port)]);
        }
        match tokio::net::lookup_host((self.host.as_str(), self.port)).await {
            Ok(addresses) => Ok(addresses.collect()),
            Err(error) => Err(shortage_of_files().unwrap_or(error)),
        }
    }

    /// A panic while it was held leaves a vector of connections, which is good whatever is in it.
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Sender, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn handshake(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<Sender, Failure> {
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(Failure::Head)?;
    // Ends with its sender; what goes wrong on it is told to the request that it goes wrong for.
    tokio::spawn(async move { connection.await.ok() });
    Ok(sender)
}

/// Reads `body` up to its end (true) or the limit (false), and keeps its beginning.
async fn read(mut body: Incoming, kept: &mut Vec<u8>) -> Result<bool, hyper::Error> {
    let mut bytes = 0usize;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            let room = KEPT_BYTES_MAX - kept.len();
            kept.extend_from_slice(&data[..data.len().min(room)]);
            bytes = bytes.saturating_add(data.len());
            if bytes > READ_BYTES_MAX {
                return Ok(false);
            }
        }
    }
    Ok(true)
}
