//! Verified deliveries for a store without a gateway in front of it, and lanes that take whatever they are given.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use countersign::clock::{Clock, later};
use countersign::dedup::Keys;
use countersign::delivery::Received;
use countersign::id::Id;
use countersign::metrics::Metrics;
use countersign::secret::Secret;
use countersign::store::sqlite::{self, Sqlite};
use countersign::store::{Arrival, Lease, Outlet, Slot};
use countersign::verify::{Enforcement, Message, NamedSecret, Scheme, Signer, Verifier, Window, preset};
use http::{HeaderMap, Method};
use tokio::sync::{Semaphore, mpsc};

/// The secret of everything that is signed here.
const SECRET: &str = "a-secret-of-the-benchmark";

/// Makes arrivals, each with an id of its own.
pub(crate) struct Arrivals {
    clock: Clock,
    signer: Signer,
    verifier: Verifier,
    body_bytes: usize,
    number: AtomicU64,
    salt: u64,
}

impl Arrivals {
    /// Hostwares deliveries with bodies of `body_bytes`.
    pub(crate) fn new(body_bytes: usize) -> Self {
        let scheme = preset("hostwares").unwrap().scheme.clone();
        Self {
            clock: Clock::system(),
            signer: Signer::new(scheme.clone(), &Secret::new(SECRET).unwrap()).unwrap(),
            verifier: verifier(scheme),
            body_bytes,
            number: AtomicU64::new(0),
            salt: fastrand::u64(..),
        }
    }

    /// A request as it is read from the wire, signed.
    pub(crate) fn received(&self) -> Received {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let beginning = format!(r#"{{"id":"d-{:016x}-{number:08}","event":"deploy","pad":""#, self.salt);
        let pad = "x".repeat(self.body_bytes.saturating_sub(beginning.len() + 2));
        let body = Bytes::from(format!("{beginning}{pad}\"}}"));
        let message = Message { method: &Method::POST, url: "/", id: None, event: None, body: &body };
        let now = self.clock.now();
        let mut headers: HeaderMap = self.signer.sign(&message, now).unwrap();
        for (name, value) in [
            ("user-agent", "Hostwares-Webhooks/2.4 (+https://hostwares.example/docs/webhooks)"),
            ("accept", "*/*"),
            ("content-type", "application/json; charset=utf-8"),
            ("x-hostwares-event", "deploy"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        Received {
            id: Id::new(now, std::array::from_fn(|_| fastrand::u8(..))),
            source: "hostwares".into(),
            received_at: now,
            sender: [127, 0, 0, 1].into(),
            method: Method::POST,
            target: "/webhooks/hostwares".to_owned(),
            headers,
            body,
        }
    }

    /// The same as the store takes it, for one destination.
    pub(crate) fn arrival(&self) -> Arrival {
        let verified = self.verifier.verify(self.received()).unwrap();
        let at = self.clock.moment();
        Arrival {
            keys: Keys::of(&verified, true),
            verified: Arc::new(verified),
            at,
            claimed_until: later(at.latest(), Duration::from_hours(7 * 24)),
            destinations: vec!["backend".into()],
            revive_dead: true,
        }
    }
}

/// Verifies what [`Arrivals`] makes, or the same content signed by another scheme.
pub(crate) fn verifier(scheme: Scheme) -> Verifier {
    let secret = NamedSecret {
        name: "bench".into(),
        secret: Secret::new(SECRET).unwrap(),
        not_before: None,
        not_after: None,
    };
    let minutes = Duration::from_mins(5);
    let window = Window { past: minutes, future: minutes };
    Verifier::new("bench".into(), scheme, vec![secret], window, Enforcement::Enforce, None).unwrap()
}

/// Lanes that always have a place, and hand on what they get.
pub(crate) struct Lanes {
    places: Arc<Semaphore>,
    dispatched: mpsc::UnboundedSender<(Lease, Slot)>,
}

impl Lanes {
    pub(crate) fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<(Lease, Slot)>) {
        let (dispatched, leases) = mpsc::unbounded_channel();
        (Arc::new(Self { places: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)), dispatched }), leases)
    }
}

impl Outlet for Lanes {
    fn reserve(&self, _: &str) -> Option<Slot> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    fn dispatch(&self, lease: Lease, slot: Slot) {
        // Nobody takes them any more at the end.
        let _ = self.dispatched.send((lease, slot));
    }

    fn wake(&self, _: &str) {}
}

/// Opens a store of its own.
pub(crate) fn open(directory: &std::path::Path, lanes: Arc<Lanes>) -> Sqlite {
    let options = sqlite::Options {
        directory: directory.to_owned(),
        disk_reserve: Some(1 << 20),
        metrics: Metrics::new(),
    };
    sqlite::open(options, lanes).unwrap()
}
