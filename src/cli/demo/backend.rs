//! The backends of the demo: each verifies the gateway's countersignature, says what it got, and answers in its manner.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use countersign::clock::Clock;
use countersign::delivery::Received;
use countersign::id::Id;
use countersign::secret::Secret;
use countersign::verify::{Enforcement, NamedSecret, Verifier, Window, preset};
use http::{HeaderMap, Method, StatusCode};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::cli::say;

/// How a backend treats what it gets.
#[derive(Debug, Clone, Copy)]
pub(super) enum Manner {
    Swift,
    Sleepy(Duration),
    FailsTwice,
}

/// What a backend has seen.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Count {
    pub(super) requests: usize,
    pub(super) failed: usize,
    pub(super) delivered: usize,
    pub(super) verified: usize,
}

pub(super) struct Backends {
    seen: Arc<Mutex<Seen>>,
    verifier: Arc<Verifier>,
    began: Instant,
}

#[derive(Default)]
struct Seen {
    counts: BTreeMap<&'static str, Count>,
    delivered: HashMap<(&'static str, Bytes), usize>,
}

impl Backends {
    pub(super) fn new(secret: &str, began: Instant) -> Self {
        let secret = NamedSecret {
            name: "demo".into(),
            secret: Secret::new(secret).expect("the demo's secret is not blank"),
            not_before: None,
            not_after: None,
        };
        let scheme = preset("standard-webhooks").expect("a preset of ours").scheme.clone();
        let window = Window { past: Duration::from_mins(5), future: Duration::from_mins(5) };
        let provider = "standard-webhooks".into();
        let verifier = Verifier::new(provider, scheme, vec![secret], window, Enforcement::Enforce, None)
            .expect("the demo's secret is a key of the scheme");
        Self { seen: Arc::default(), verifier: Arc::new(verifier), began }
    }

    /// Starts a backend on a free port.
    pub(super) async fn start(&self, name: &'static str, manner: Manner) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        self.seen().counts.insert(name, Count::default());
        let backend = Backend {
            name,
            manner,
            seen: Arc::clone(&self.seen),
            verifier: Arc::clone(&self.verifier),
            began: self.began,
        };
        let backend = Arc::new(backend);
        let router = Router::new().fallback(move |method: Method, headers: HeaderMap, body: Bytes| {
            let backend = Arc::clone(&backend);
            async move { backend.take(method, headers, body).await }
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(address)
    }

    /// How many of these have not been delivered.
    pub(super) fn missing(&self, accepted: &[(&'static str, Bytes)]) -> usize {
        let seen = self.seen();
        accepted.iter().filter(|accepted| !seen.delivered.contains_key(*accepted)).count()
    }

    pub(super) fn counts(&self) -> Vec<(&'static str, Count)> {
        self.seen().counts.iter().map(|(name, count)| (*name, *count)).collect()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Backend {
    name: &'static str,
    manner: Manner,
    seen: Arc<Mutex<Seen>>,
    verifier: Arc<Verifier>,
    began: Instant,
}

impl Backend {
    async fn take(&self, method: Method, headers: HeaderMap, body: Bytes) -> StatusCode {
        let attempt: u32 = text(&headers, "countersign-attempt").parse().unwrap_or(0);
        let source = text(&headers, "countersign-source").to_owned();
        let verified = self.verifies(method, &headers, &body);
        let status = match self.manner {
            _ if !verified => StatusCode::UNAUTHORIZED,
            Manner::FailsTwice if attempt < 3 => StatusCode::SERVICE_UNAVAILABLE,
            Manner::Swift | Manner::FailsTwice => StatusCode::OK,
            Manner::Sleepy(nap) => {
                self.say(&source, attempt, "got it, is busy with it");
                tokio::time::sleep(nap).await;
                StatusCode::OK
            }
        };
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let count = seen.counts.entry(self.name).or_default();
            count.requests += 1;
            count.verified += usize::from(verified);
            if status.is_success() {
                count.delivered += 1;
                *seen.delivered.entry((self.name, body)).or_default() += 1;
            } else {
                count.failed += 1;
            }
        }
        self.say(&source, attempt, &format!("answers {}", status.as_u16()));
        status
    }

    fn verifies(&self, method: Method, headers: &HeaderMap, body: &Bytes) -> bool {
        let now = Clock::system().now();
        let received = Received {
            id: Id::new(now, [0; 10]),
            source: "demo".into(),
            received_at: now,
            sender: [127, 0, 0, 1].into(),
            method,
            target: "/hooks".to_owned(),
            headers: headers.clone(),
            body: body.clone(),
        };
        self.verifier.verify(received).is_ok()
    }

    fn say(&self, source: &str, attempt: u32, what: &str) {
        let name = self.name;
        let at = self.began.elapsed().as_secs_f64();
        say(&format!("{at:>7.2}s {:>41} {name:<7} {what} ({source}, attempt {attempt})", "──▶"));
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> &'h str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
}
