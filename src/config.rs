//! What the program runs with: the resolved configuration. A file becomes a [`Config`] only through [`load`], which
//! reports every problem of the file in one run. Nothing here is a default that a reader of `config.example.toml`
//! could not find.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode, Uri};
use ipnet::IpNet;

use crate::forward::{BreakerPolicy, Concurrency, Order, RetryPolicy};
use crate::identity::SubjectRule;
use crate::secret::Secret;
use crate::shape::Shape;
use crate::units::Rate;
use crate::verify::{Signer, Verifier};

mod backend;
mod countersign;
mod database;
mod destination;
mod file;
mod listen;
mod networks;
mod render;
mod secrets;
mod shape;
mod source;
mod values;
mod verification;
mod when;

pub use crate::route::Route;
pub use backend::{BackendTls, ClientIdentity};
pub use database::{Database, Proof};
pub use file::{ConfigError, Refused, environment, load, parse};

/// How much earlier than `listen.ack_deadline` a sender is told that its backend is late, at least: the ack has to get there.
pub const SYNC_ROOM: Duration = Duration::from_millis(250);

/// Everything that the program needs to know.
#[derive(Debug)]
pub struct Config {
    /// The public listener.
    pub listen: Listen,
    /// Bounds of the public listener.
    pub limits: Limits,
    /// The operators' listener.
    pub admin: Admin,
    /// Where deliveries are kept.
    pub store: StoreConfig,
    /// Entries of the cache in front of the claims.
    pub dedup_cache_entries: u64,
    /// Senders, in the order of the file.
    pub sources: Vec<Arc<Source>>,
    /// Backends, in the order of the file.
    pub destinations: Vec<Arc<Destination>>,
    /// Doubts that do not refuse the file, rendered like errors.
    pub warnings: Vec<String>,
}

/// `[listen]`
#[derive(Debug, Clone, PartialEq)]
pub struct Listen {
    /// Port 0 picks a free port.
    pub address: SocketAddr,
    /// Certificate files, when the listener speaks TLS.
    pub tls: Option<Tls>,
    /// Peers that may name the sender: in `Forwarded`, `X-Forwarded-For` or a PROXY header.
    pub trusted_proxies: Vec<IpNet>,
    /// From the last byte of a request to its answer; above 0 and below 5 s.
    pub ack_deadline: Duration,
}

/// `listen.tls`; paths are already relative to the configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// PEM certificate chain, leaf first.
    pub cert: PathBuf,
    /// PEM private key.
    pub key: PathBuf,
    /// Who vouches for clients; `None` asks them for no certificate.
    pub client_ca: Option<ClientCa>,
}

/// `listen.tls.client_ca` and `listen.tls.client_certificate`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCa {
    /// PEM certificates of the authorities.
    pub path: PathBuf,
    /// Whether a connection without a client certificate is refused; one that does not verify always is.
    pub required: bool,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Body bytes that all requests in progress may hold together.
    pub in_flight: u64,
    /// Open connections.
    pub connections: usize,
    /// Open connections of one peer address.
    pub connections_per_address: usize,
    /// First byte, TLS handshake and whole head, each.
    pub head_read: Duration,
    /// The whole body.
    pub body_read: Duration,
    /// Bytes of all header lines together.
    pub header_bytes: usize,
    /// From the signal to stop until the process has ended, whatever is still in progress.
    pub drain: Duration,
    /// How much of it everything is served as usual, with readiness false; at least a second shorter than `drain`.
    pub drain_delay: Duration,
}

/// `[admin]`
#[derive(Debug, Clone)]
pub struct Admin {
    /// Loopback unless there are tokens.
    pub address: SocketAddr,
    /// Who may use the API.
    pub tokens: Vec<AdminToken>,
}

/// An element of `admin.tokens`.
#[derive(Debug, Clone)]
pub struct AdminToken {
    /// For the audit log.
    pub name: Arc<str>,
    /// What it may do.
    pub role: Role,
    /// The token itself.
    pub token: Secret,
}

/// What the bearer of an admin token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Look at everything.
    Viewer,
    /// Look at and change everything.
    Operator,
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// The database that several gateways share; `None` is the SQLite engine.
    pub database: Option<Database>,
    /// Connections to it at most.
    pub connections: usize,
    /// The data directory: of the SQLite engine, and of the quarantine.
    pub path: PathBuf,
    /// Free bytes below which nothing more is accepted; `None` goes by the size of the file system.
    pub disk_reserve: Option<u64>,
    /// How long settled deliveries are kept.
    pub keep_delivered: Duration,
    /// How long refused requests are kept.
    pub keep_quarantined: Duration,
}

/// `[[source]]`
#[derive(Debug)]
pub struct Source {
    /// Its name; the metrics' label.
    pub name: Arc<str>,
    /// The exact path.
    pub path: String,
    /// What the provider was told, up to the path.
    pub public_url: Option<String>,
    /// The preset's name, `custom`, or `none`.
    pub provider: Arc<str>,
    /// How its requests are verified.
    pub verifier: Verifier,
    /// Allowed methods.
    pub methods: Vec<Method>,
    /// Where its deliveries go.
    pub to: Vec<Route>,
    /// What happens when the same signed bytes come again under another id.
    pub replay_guard: ReplayGuard,
    /// Whether a request without a delivery id is accepted.
    pub accept_missing_id: bool,
    /// Whether a duplicate of a dead delivery brings its forwards back.
    pub revive_dead: bool,
    /// How long a delivery id is remembered.
    pub dedup_ttl: Duration,
    /// Largest body.
    pub body_max: u64,
    /// Requests per time; `None` is unlimited.
    pub rate: Option<Rate>,
    /// Senders' addresses; empty allows all.
    pub allow_addresses: Vec<IpNet>,
    /// Of whom a sender's certificate has to be; empty allows all, and those without one.
    pub allow_subjects: Vec<SubjectRule>,
    /// The answer to accepted and duplicate requests.
    pub ack: Ack,
    /// How long, from its last byte, a request waits for its backend's answer before it gets `ack`; `None` does not wait.
    /// Such a source has one destination.
    pub sync_deadline: Option<Duration>,
    /// Event types that are stored and acknowledged, not forwarded.
    pub drop_events: Vec<String>,
    /// Whether signed handshakes are stored and forwarded, too; they are answered here in any case.
    pub forward_handshake: bool,
}

impl Source {
    /// The allowed methods, as `Allow` lists them.
    pub fn allowed_methods(&self) -> HeaderValue {
        let names: Vec<&str> = self.methods.iter().map(Method::as_str).collect();
        HeaderValue::from_str(&names.join(", "))
            .expect("a method is made of characters that a header may have")
    }
}

/// What the replay guard does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayGuard {
    /// Answer 2xx, forward nothing.
    Absorb,
    /// Answer 401.
    Reject,
    /// Nothing.
    Off,
}

/// `source.ack`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// A 2xx status.
    pub status: StatusCode,
    /// The body.
    pub body: String,
    /// Its content type; sent only with a body.
    pub content_type: HeaderValue,
}

/// `[[destination]]`
#[derive(Debug, Clone)]
pub struct Destination {
    /// Its name; the metrics' label.
    pub name: Arc<str>,
    /// Where requests go; the sender's query is appended.
    pub url: Uri,
    /// Whom it is believed by, and what it is shown.
    pub tls: BackendTls,
    /// Whether it may be dialled at addresses that are not public.
    pub allow_private: bool,
    /// For a whole attempt.
    pub timeout: Duration,
    /// For resolving, connecting and the TLS handshake.
    pub connect_timeout: Duration,
    /// Attempts at once.
    pub concurrency: Concurrency,
    /// Attempts per time; `None` is unlimited.
    pub rate: Option<Rate>,
    /// When to try again, and when to give up.
    pub retry: RetryPolicy,
    /// When to stop trying for a while; `None` is never.
    pub breaker: Option<BreakerPolicy>,
    /// Which of its forwards wait for each other; `None` when none does.
    pub order: Option<Arc<Order>>,
    /// Makes the countersignature; `None` does not sign.
    pub sign: Option<Countersign>,
    /// Headers to set; secret ones are marked sensitive.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// How its requests differ from what the provider sent.
    pub shape: Shape,
}

impl Destination {
    /// Whatever it knows that nobody else may: headers, values of its template, and what its deliveries are signed with.
    pub fn secrets(&self) -> impl Iterator<Item = &[u8]> {
        let headers = self.headers.iter().map(|(_, value)| value).filter(|value| value.is_sensitive());
        let values = self.shape.body.iter().flat_map(|body| &body.secrets);
        // The same for every source.
        let signer = self.sign.as_ref().and_then(|sign| match sign {
            Countersign::Uniform(signer) => Some(&**signer),
            Countersign::AsProvider(signers) => signers.first().map(|(_, signer)| signer),
        });
        let texts = values.chain(signer.map(Signer::secret)).map(Secret::expose);
        headers.map(HeaderValue::as_bytes).chain(texts).filter(|secret| !secret.is_empty())
    }
}

/// `destination.sign`
#[derive(Debug, Clone)]
pub enum Countersign {
    /// In one format, whichever source a delivery came in by: Standard Webhooks.
    Uniform(Box<Signer>),
    /// In the format of the source that a delivery came in by, by its name.
    AsProvider(Vec<(Arc<str>, Signer)>),
}
