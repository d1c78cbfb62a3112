//! The public edge: takes requests from senders and answers every one in time. `Ingest::answer` is the pipeline, in
//! the order in which a request meets it; each step goes on or refuses with one `Rejection`. Nothing here talks to
//! a backend.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, Version};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Moment, Timestamp, from_milliseconds, later};
use crate::config::{Config, ReplayGuard, SYNC_ROOM, Source};
use crate::dedup::Keys;
use crate::delivery::{Delivery, Received};
use crate::id::Id;
use crate::metrics::{Metrics, UNMATCHED};
use crate::replies::Backends;
use crate::route::{Matched, matching};
use crate::store::quarantine::{BODY_BYTES_MAX, Quarantine, Rejected};
use crate::store::{Accepted, Arrival, HandedOver, Store, StoreError};
use crate::verify::{Enforcement, HANDSHAKE_BYTES_MAX, HandshakeAnswer, HandshakeRefusal, Refusal, Verified};

mod activity;
mod answer;
mod body;
mod books;
mod claims;
mod connection;
mod framing;
mod guard;
mod head;
mod keys;
mod linger;
mod listener;
mod proxy;
mod rejections;
mod reverify;
mod routes;
mod sync;
mod tls;
mod wire;

pub use guard::Guarded;
pub use keys::{Fetch, FetchError};
pub use listener::{BindError, Certificate, Listener};
pub use reverify::{NotReverified, Reverified};
pub use tls::{Expiry, TlsError, check_certificate};

use answer::Rejection;
use body::{Budget, Reservation};
use books::Receipt;
use claims::Gate;
use keys::KeyCache;
use rejections::Rejections;
use routes::Routes;
use sync::{First, Sync};
use tls::Proven;

/// A body that takes about a millisecond to be verified: longer than another request on the same thread should wait.
const LARGE_BODY_BYTES: usize = 512 << 10;

/// What all requests share.
pub struct Ingest {
    clock: Clock,
    metrics: Metrics,
    /// Swapped whole at a reload; a request keeps the routes that it began with.
    routes: ArcSwap<Routes>,
    gate: Gate,
    sync: Sync,
    keys: KeyCache,
    quarantine: Arc<Quarantine>,
    /// Held by the one reverification that may be under way: once is once.
    reverifying: tokio::sync::Mutex<()>,
    rejections: Rejections,
    /// What monotonic time is counted from.
    origin: Instant,
    budget: Budget,
    header_bytes: usize,
    body_read: Duration,
    ack_deadline: Duration,
    /// Bodies that are not complete are waited for no more.
    cut: CancellationToken,
}

const HANDSHAKE: &str = "handshake";

/// How a request that was not refused came to its end.
enum Settled {
    /// It is the first of its kind; with who waits for its answer.
    Stored(Option<First>),
    /// Of the delivery `first`, which it has `revived` if it was dead.
    Duplicate { first: Id, revived: bool },
    /// Answered here, and perhaps kept for the backend as well.
    Handshake { answer: HandshakeAnswer, kept: Option<&'static str> },
}

impl Settled {
    /// The metrics' label. What is kept is counted as that, so that what was stored can be told from the count.
    fn label(&self) -> &'static str {
        match self {
            Self::Stored(_) => "stored",
            Self::Duplicate { .. } => "duplicate",
            Self::Handshake { kept, .. } => kept.unwrap_or(HANDSHAKE),
        }
    }
}

/// Where a request came in.
#[derive(Debug, Clone)]
struct Peer {
    address: IpAddr,
    /// Over TLS.
    secure: bool,
    certificate: Option<Arc<Proven>>,
}

impl Ingest {
    /// Builds the pipeline over `store`; `backends` are those whose answers senders may wait for. Limits and deadline are
    /// those of `config` until the process ends.
    pub fn new(
        config: &Config,
        store: Arc<dyn Store>,
        backends: Arc<dyn Backends>,
        quarantine: Arc<Quarantine>,
        clock: Clock,
        metrics: Metrics,
    ) -> Arc<Self> {
        let fetch = Arc::new(keys::Https::default());
        Self::with_fetch(config, store, backends, quarantine, clock, metrics, fetch)
    }

    /// The same with another way to the keys that senders publish.
    pub fn with_fetch(
        config: &Config,
        store: Arc<dyn Store>,
        backends: Arc<dyn Backends>,
        quarantine: Arc<Quarantine>,
        clock: Clock,
        metrics: Metrics,
        fetch: Arc<dyn Fetch>,
    ) -> Arc<Self> {
        let gate = Gate::new(store, config.dedup_cache_entries);
        let ingest = Self {
            routes: ArcSwap::from_pointee(Routes::new(config, None)),
            budget: Budget::new(config.limits.in_flight),
            header_bytes: config.limits.header_bytes,
            body_read: config.limits.body_read,
            ack_deadline: config.listen.ack_deadline,
            cut: CancellationToken::new(),
            rejections: Rejections::default(),
            origin: Instant::now(),
            clock,
            metrics,
            gate,
            sync: Sync::new(backends),
            keys: KeyCache::new(fetch),
            quarantine,
            reverifying: tokio::sync::Mutex::default(),
        };
        ingest.announce(config);
        Arc::new(ingest)
    }

    /// Replaces sources and trusted proxies. What a source whose rate is the same has used of it stays used.
    pub fn apply(&self, config: &Config) {
        self.announce(config);
        let routes = Routes::new(config, Some(&self.routes.load()));
        self.routes.store(Arc::new(routes));
        self.rejections
            .retain(|name| name == UNMATCHED || config.sources.iter().any(|source| &*source.name == name));
    }

    /// Refuses, from now on, every request whose body is not complete.
    pub fn cut_off(&self) {
        self.cut.cancel();
    }

    /// Brings the gauges that are read rather than counted up to date.
    pub fn refresh_gauges(&self) {
        self.metrics.ingest_in_flight_bytes.set(self.budget.used());
        self.metrics.dedup_cache_entries.set(self.gate.entries());
    }

    fn is_trusted_proxy(&self, peer: IpAddr) -> bool {
        head::is_trusted(peer, &self.routes.load().trusted_proxies)
    }

    /// Answers one request.
    async fn answer(self: Arc<Self>, request: Request<Incoming>, peer: Peer) -> Response<Full<Bytes>> {
        let routes = self.routes.load_full();
        let (head, body) = request.into_parts();
        let http1 = head.version < Version::HTTP_2;
        // Only HTTP/1 has to close: what is left of a refused body would be taken for the next request.
        let unread = http1 && !body.is_end_stream();

        if let Err(rejection) = head::check(&head, self.header_bytes) {
            // Where the head was misread, so may be where it ended.
            return self.refuse_unread(UNMATCHED, peer.address, &rejection, body, http1);
        }
        let entry = match routes.find(head.uri.path()) {
            Ok(entry) => Arc::clone(entry),
            Err(rejection) => return self.refuse_unread(UNMATCHED, peer.address, &rejection, body, unread),
        };
        let mut receipt = Receipt::new(&self, &entry);
        let response = self.answer_routed(&routes, &entry, head, body, &peer, unread, &mut receipt).await;
        // Whatever it was answered has been counted.
        receipt.close();
        response
    }

    /// Answers a request of a source.
    #[expect(clippy::too_many_arguments, reason = "the pieces of a request that has not become one")]
    async fn answer_routed(
        self: &Arc<Self>,
        routes: &Routes,
        entry: &Arc<routes::Entry>,
        head: Parts,
        mut body: Incoming,
        peer: &Peer,
        unread: bool,
        receipt: &mut Receipt,
    ) -> Response<Full<Bytes>> {
        let source = &entry.source;
        let sender = head::sender(&head.headers, peer.address, &routes.trusted_proxies);

        let target = head::target(&head.uri);
        let identity = peer.certificate.as_ref().map(|proven| &proven.identity);
        let now = self.clock.now();
        if let Some(shaken) = source.verifier.early_handshake(&head.method, &target, &head.headers, now) {
            let answer = head::allow_sender(sender, identity, source).and_then(|()| Ok(shaken?));
            let answer = match answer {
                Ok(answer) => answer,
                Err(rejection) => {
                    return self.refuse_unread(&source.name, sender, &rejection, body, unread);
                }
            };
            self.metrics.ingest_requests.with_label_values(&[&*source.name, HANDSHAKE]).inc();
            self.note_handshake(source, now);
            if !unread && !body.is_end_stream() {
                tokio::spawn(body::discard(body));
            }
            return answer::handshake(answer, source, unread);
        }

        // What can be refused without the body is refused before a byte of it is read.
        let precheck = |()| {
            let refusal = source.verifier.precheck(&head.method, &target, &head.headers, now).err();
            // Providers do not sign every handshake; for one of those a few bytes more are read.
            let hoped = source.verifier.may_be_handshake(&head.method, &target, &head.headers);
            if hoped { Ok(refusal) } else { refusal.map_or(Ok(None), |refusal| Err(refusal.into())) }
        };
        let early = head::allow(&head.method, sender, identity, source).and_then(precheck);
        let early = early.and_then(|refusal| {
            let body_max =
                if refusal.is_some() { HANDSHAKE_BYTES_MAX.min(source.body_max) } else { source.body_max };
            let reserved = self.budget.reserve(body.size_hint().exact(), body_max);
            let reservation = reserved.map_err(|rejection| rejection.unless_refused(refusal))?;
            Ok((reservation, body_max, refusal))
        });
        let (reservation, body_max, refusal) = match early {
            Ok(early) => early,
            Err(Rejection::Unverified(refusal)) => {
                let (head, trusted) = ((head.method, head.headers, head.uri), &routes.trusted_proxies);
                let whole =
                    self.set_aside_early(source, refusal, head, sender, peer, trusted, &mut body).await;
                // The answer is the same, whether or not its body was read.
                return match whole {
                    true => self.refuse(&source.name, sender, &refusal.into(), unread),
                    false => self.refuse_unread(&source.name, sender, &refusal.into(), body, unread),
                };
            }
            Err(rejection) => return self.refuse_unread(&source.name, sender, &rejection, body, unread),
        };
        let read = tokio::select! {
            biased;
            read = body::read(&mut body, body_max, self.body_read, reservation) => read,
            () = self.cut.cancelled() => Err(Rejection::Stopping),
        };
        let (bytes, reservation) = match read {
            Ok(read) => read,
            Err(rejection) => {
                let rejection = rejection.unless_refused(refusal);
                return self.refuse_unread(&source.name, sender, &rejection, body, unread);
            }
        };

        let last_byte = Instant::now();
        // To the millisecond, as the store keeps it: the first attempt and a later one tell the same time.
        let received_at = from_milliseconds(self.clock.now().as_millisecond());
        let received = Received {
            id: Id::new(received_at, std::array::from_fn(|_| fastrand::u8(..))),
            source: Arc::clone(&source.name),
            received_at,
            sender,
            method: head.method,
            target,
            headers: head::cleaned(head.headers, head.uri.authority(), peer, &routes.trusted_proxies),
            body: bytes,
        };
        // A task of its own: a sender that hangs up, or the deadline, must not stop half-way between commit and lane.
        let receipt = receipt.hand_on();
        let until = last_byte + self.sync_time(source);
        let answered = Arc::clone(self).accept(Arc::clone(entry), received, reservation, receipt, until);
        let in_time = tokio::time::timeout_at(last_byte + self.ack_deadline, tokio::spawn(answered)).await;
        // Late answers too: they are the slowest, and what an operator looks for.
        let ack_duration = self.metrics.ingest_ack_duration.with_label_values(&[&*source.name]);
        ack_duration.observe(last_byte.elapsed().as_secs_f64());
        match in_time {
            Ok(Ok(Ok(response))) => response,
            Ok(Ok(Err(rejection))) => rejection.response(false),
            // A bug, which has been counted where it panicked.
            Ok(Err(_)) => Rejection::Internal.response(false),
            Err(_) => {
                self.metrics.ingest_late.with_label_values(&[&*source.name]).inc();
                Rejection::Overloaded.response(false)
            }
        }
    }

    /// Verifies, claims and stores; counts the request exactly once, however it ends. Then, where the source wants it, waits
    /// until `until` for what the backend says.
    async fn accept(
        self: Arc<Self>,
        entry: Arc<routes::Entry>,
        received: Received,
        reservation: Reservation,
        mut receipt: Receipt,
        until: Instant,
    ) -> Result<Response<Full<Bytes>>, Rejection> {
        let source = &entry.source;
        let sender = received.sender;
        let outcome = self.store_once(&entry, received).await;
        drop(reservation);
        match &outcome {
            Ok(settled) => {
                self.metrics.ingest_requests.with_label_values(&[&*source.name, settled.label()]).inc();
            }
            Err(rejection) => self.count(&source.name, sender, rejection),
        }
        receipt.close();
        let (told, label) = match outcome? {
            Settled::Handshake { answer, .. } => return Ok(answer::handshake(answer, source, false)),
            Settled::Stored(_) | Settled::Duplicate { .. } if source.sync_deadline.is_none() => {
                return Ok(answer::ack(&source.ack));
            }
            Settled::Stored(first) => self.sync.conclude(first, until, &self.cut).await,
            Settled::Duplicate { first, revived } => self.sync.repeat(first, revived, until, &self.cut).await,
        };
        self.metrics.ingest_sync_answers.with_label_values(&[&*source.name, label]).inc();
        Ok(told.map_or_else(|| answer::ack(&source.ack), |told| answer::passed(&told)))
    }

    /// How long a request of `source` may wait for its backend; less than the answer's deadline, whatever a reload brought.
    fn sync_time(&self, source: &Source) -> Duration {
        source.sync_deadline.unwrap_or_default().min(self.ack_deadline.saturating_sub(SYNC_ROOM))
    }

    async fn store_once(&self, entry: &routes::Entry, received: Received) -> Result<Settled, Rejection> {
        let source = &entry.source;
        if let Some(shaken) = source.verifier.unsigned_handshake(&received) {
            let answer = self.shake_hands(source, received.received_at, received.sender, shaken?).await?;
            return Ok(Settled::Handshake { answer, kept: None });
        }
        let verified = match self.verify(source, received).await {
            Ok(verified) => verified,
            Err((rejection, received)) => {
                if let (Rejection::Unverified(refusal), Some(received)) = (&rejection, received) {
                    self.set_aside(*refusal, *received);
                }
                return Err(rejection);
            }
        };
        self.note_verified(source, &verified);
        let delivery = Arc::clone(verified.delivery());
        if let Some(shaken) = source.verifier.signed_handshake(&verified) {
            let answer = self.shake_hands(source, delivery.received_at, delivery.sender, shaken?).await?;
            let kept = match source.forward_handshake {
                true => Some(self.keep(entry, verified).await?.label()),
                false => None,
            };
            return Ok(Settled::Handshake { answer, kept });
        }
        let is_missing = delivery.delivery_id.is_none() && !source.accept_missing_id;
        let verified = match is_missing {
            true => {
                let judged = source.verifier.refuse_verified(verified, Refusal::IdMissing);
                judged.inspect_err(|refusal| self.set_aside_verified(*refusal, &delivery))?
            }
            false => verified,
        };
        if let Some(refusal) = verified.observed() {
            self.note_observed(source, refusal);
        }
        self.keep(entry, verified).await
    }

    /// Claims and stores what has been verified.
    async fn keep(&self, entry: &routes::Entry, verified: Verified) -> Result<Settled, Rejection> {
        let source = &entry.source;
        let verified = Arc::new(verified);
        entry.admit()?;
        let outcome = self.claim(source, Arc::clone(&verified)).await;
        if let Err(Rejection::Unverified(refusal)) = outcome {
            self.set_aside_verified(refusal, verified.delivery());
        }
        outcome
    }

    /// Verifies, with the keys that the sender publishes where it has to be, and a large body where that holds up nobody.
    /// What is refused is given back.
    async fn verify(
        &self,
        source: &Arc<Source>,
        received: Received,
    ) -> Result<Verified, (Rejection, Option<Box<Received>>)> {
        let published = match source.verifier.keys_url(&received) {
            Ok(Some(url)) => {
                let keys = self.keys.get(&source.name, &source.verifier, url).await;
                Some(keys.map_err(|_told| (Rejection::KeysMissing, None))?)
            }
            Ok(None) => None,
            Err(refusal) => return source.verifier.refuse(received, refusal).map_err(given_back),
        };
        if received.body.len() < LARGE_BODY_BYTES {
            let judged = source.verifier.verify_or_return(received, published.as_deref());
            return judged.map_err(given_back);
        }
        let source = Arc::clone(source);
        let work = move || source.verifier.verify_or_return(received, published.as_deref());
        match tokio::task::spawn_blocking(work).await {
            Ok(judged) => judged.map_err(given_back),
            // A bug, which has been logged where it panicked.
            Err(_) => Err((Rejection::Internal, None)),
        }
    }

    /// Claims and stores what has been verified.
    async fn claim(&self, source: &Source, verified: Arc<Verified>) -> Result<Settled, Rejection> {
        let delivery = verified.delivery();
        let (id, body_bytes) = (delivery.id, delivery.body.len());
        let matched = self.matched(source, delivery).await;
        let destinations = matched.as_ref().map_or(&[][..], |matched| &matched.destinations);
        let first = self.sync.begin(source, id, destinations);
        let at = Moment { wall: delivery.received_at, steady: self.clock.steady() };
        let arrival = Arrival {
            at,
            keys: Keys::of(&verified, source.replay_guard != ReplayGuard::Off),
            claimed_until: later(at.latest(), source.dedup_ttl),
            destinations: destinations.to_vec(),
            revive_dead: source.revive_dead,
            verified,
        };
        match self.gate.claim(arrival).await? {
            Accepted::Stored => {
                tracing::debug!(source = %source.name, %id, body_bytes, "delivery stored");
                self.note_matched(source, id, matched.as_ref());
                self.metrics.ingest_body_bytes.with_label_values(&[&*source.name]).observe(body_bytes as f64);
                Ok(Settled::Stored(first))
            }
            Accepted::Duplicate { first, conflict } => {
                tracing::debug!(source = %source.name, %first, conflict, "duplicate absorbed");
                if conflict {
                    self.metrics.ingest_conflicts.with_label_values(&[&*source.name]).inc();
                }
                Ok(Settled::Duplicate { first, revived: source.revive_dead })
            }
            Accepted::Replay { first } => {
                tracing::debug!(source = %source.name, %first, "signed bytes seen before under another id");
                match source.replay_guard {
                    ReplayGuard::Reject if source.verifier.enforcement() == Some(Enforcement::Observe) => {
                        self.note_observed(source, Refusal::Replayed);
                        Ok(Settled::Duplicate { first, revived: false })
                    }
                    ReplayGuard::Reject => Err(Refusal::Replayed.into()),
                    ReplayGuard::Absorb | ReplayGuard::Off => {
                        Ok(Settled::Duplicate { first, revived: false })
                    }
                }
            }
        }
    }

    /// Does what a handshake asks for beside its answer.
    async fn shake_hands(
        &self,
        source: &Source,
        at: Timestamp,
        sender: IpAddr,
        answer: HandshakeAnswer,
    ) -> Result<HandshakeAnswer, Rejection> {
        if let HandshakeAnswer::Confirm(url) = &answer {
            self.keys.ask(url).await.map_err(|error| {
                tracing::warn!(source = %source.name, %error, "a subscription could not be confirmed");
                Rejection::NotConfirmed
            })?;
        }
        if let HandshakeAnswer::Keep(secret, _) = &answer {
            let given = HandedOver { received_at: at, sender: sender.to_string(), secret: secret.clone() };
            if !self.gate.store().hand_over(Arc::clone(&source.name), given).await? {
                tracing::warn!(source = %source.name, "a secret is not kept; `countersign handed-over` shows those before it");
                return Err(Rejection::Overloaded);
            }
            tracing::warn!(source = %source.name, %sender, "a secret was handed over; `countersign handed-over` shows it once");
        }
        self.note_handshake(source, at);
        Ok(answer)
    }

    /// Where a delivery goes; `None` for an event that its source drops.
    async fn matched(&self, source: &Source, delivery: &Arc<Delivery>) -> Option<Matched> {
        if delivery.event.as_ref().is_some_and(|event| source.drop_events.contains(event)) {
            return None;
        }
        if delivery.body.len() < LARGE_BODY_BYTES || source.to.iter().all(|route| route.when.is_none()) {
            return Some(matching(&source.to, delivery));
        }
        let (routes, delivery) = (source.to.clone(), Arc::clone(delivery));
        let work = tokio::task::spawn_blocking(move || matching(&routes, &delivery)).await;
        // A bug, which has been logged where it panicked: what nobody could judge goes everywhere.
        Some(work.unwrap_or_else(|_| Matched::everything(&source.to)))
    }

    fn refuse(
        &self,
        source: &str,
        sender: IpAddr,
        rejection: &Rejection,
        close: bool,
    ) -> Response<Full<Bytes>> {
        self.count(source, sender, rejection);
        rejection.response(close)
    }

    /// Refuses a request of whose body something may be left.
    fn refuse_unread(
        &self,
        source: &str,
        sender: IpAddr,
        rejection: &Rejection,
        body: Incoming,
        close: bool,
    ) -> Response<Full<Bytes>> {
        if !close && !body.is_end_stream() {
            tokio::spawn(body::discard(body));
        }
        self.refuse(source, sender, rejection, close)
    }
}

fn given_back((refusal, received): (Refusal, Box<Received>)) -> (Rejection, Option<Box<Received>>) {
    (refusal.into(), Some(received))
}

impl From<Refusal> for Rejection {
    fn from(refusal: Refusal) -> Self {
        Self::Unverified(refusal)
    }
}

impl From<HandshakeRefusal> for Rejection {
    fn from(refusal: HandshakeRefusal) -> Self {
        match refusal {
            HandshakeRefusal::Malformed => Self::HandshakeMalformed,
            HandshakeRefusal::OriginNotAllowed => Self::OriginNotAllowed,
            HandshakeRefusal::Unverified(refusal) => Self::Unverified(refusal),
        }
    }
}

impl From<StoreError> for Rejection {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
