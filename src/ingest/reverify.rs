//! What becomes of refused requests: they are set aside in the quarantine, explained on demand, and let in once when the
//! configuration has been mended.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Uri};
use hyper::body::{Body as _, Incoming};
use ipnet::IpNet;

use super::answer::Rejection;
use super::body::{self, Budget};
use super::{BODY_BYTES_MAX, HANDSHAKE, Ingest, Peer, Rejected, Settled, head};
use crate::clock::from_milliseconds;
use crate::config::{ReplayGuard, Source};
use crate::delivery::{Delivery, Received};
use crate::id::Id;
use crate::store::{StoreError, quarantine};
use crate::verify::{Captured, Explanation, KeyError, Message, OtherSource, Refusal};

/// For how long the body of a request is read that its head has had refused already.
const EARLY_READ: Duration = Duration::from_secs(2);

/// What came of a reverification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reverified {
    /// It is a delivery now, with the id that it had in the quarantine.
    Stored,
    /// Its delivery id, or its bytes, had been accepted meanwhile.
    Duplicate,
    /// It still does not verify; the label says why.
    Refused(&'static str),
}

impl Reverified {
    /// The metrics' label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Duplicate => "duplicate",
            Self::Refused(_) => "refused",
        }
    }
}

/// Why a request cannot be verified again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReverified {
    /// There is no such request in quarantine.
    #[error("there is no such rejection; it may have been removed to make room")]
    Unknown,
    /// It has been let in already.
    #[error("it has been reverified before: {0}")]
    Already(String),
    /// Its body was not kept.
    #[error("its body was not kept: it was too large, or did not come in time")]
    BodyMissing,
    /// The source is gone.
    #[error("there is no source `{0}` any more")]
    NoSource(Arc<str>),
    /// A test delivery cannot be signed.
    #[error("it cannot be signed: {0}")]
    Unsigned(KeyError),
    /// The quarantine or the store cannot do it now.
    #[error("{0}")]
    Failed(String),
}

impl From<StoreError> for NotReverified {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Ingest {
    /// Puts what the head of a request has had refused in quarantine, with its body when that comes soon. Whether the whole
    /// body has been read.
    #[expect(clippy::too_many_arguments, reason = "the pieces of a request that has not become one")]
    pub(super) async fn set_aside_early(
        &self,
        source: &Source,
        refusal: Refusal,
        (method, headers, uri): (Method, HeaderMap, Uri),
        sender: IpAddr,
        peer: &Peer,
        trusted: &[IpNet],
        body: &mut Incoming,
    ) -> bool {
        // Who waits for a word before sending a body gets the refusal instead.
        let is_asked_for = headers.contains_key(http::header::EXPECT);
        let declared = body.size_hint().exact();
        let most = source.body_max.min(BODY_BYTES_MAX as u64);
        let room = declared.unwrap_or(most).min(most);
        let Some(place) = self.place(&source.name, usize::try_from(room).unwrap_or(BODY_BYTES_MAX)) else {
            return body.is_end_stream();
        };
        let read = async {
            // The place is what bounds all of these together.
            let reservation = Budget::new(2 * BODY_BYTES_MAX as u64).reserve(declared, most)?;
            tokio::select! {
                biased;
                read = body::read(body, most, EARLY_READ, reservation) => read,
                () = self.cut.cancelled() => Err(Rejection::Stopping),
            }
        };
        let bytes = if is_asked_for { None } else { read.await.ok().map(|(bytes, _)| bytes) };
        let whole = bytes.is_some();
        let received_at = from_milliseconds(self.clock.now().as_millisecond());
        let rejected = Rejected {
            id: Id::new(received_at, std::array::from_fn(|_| fastrand::u8(..))),
            source: Arc::clone(&source.name),
            reason: refusal.label().into(),
            received_at,
            sender,
            method,
            target: head::target(&uri),
            headers: head::cleaned(headers, uri.authority(), peer, trusted),
            body: bytes,
            reverified: None,
        };
        self.quarantine.keep(place, rejected);
        whole
    }

    /// Puts what does not verify in quarantine.
    pub(super) fn set_aside(&self, refusal: Refusal, received: Received) {
        let Some(place) = self.place(&received.source, received.body.len()) else { return };
        let Received { id, source, received_at, sender, method, target, headers, body } = received;
        let reason = refusal.label().into();
        let body = Some(body);
        self.quarantine.keep(
            place,
            Rejected {
                id,
                source,
                reason,
                received_at,
                sender,
                method,
                target,
                headers,
                body,
                reverified: None,
            },
        );
    }

    /// Puts what verifies and is refused all the same in quarantine.
    pub(super) fn set_aside_verified(&self, refusal: Refusal, delivery: &Delivery) {
        let Delivery { id, source, received_at, sender, method, target, headers, body, .. } =
            delivery.clone();
        self.set_aside(refusal, Received { id, source, received_at, sender, method, target, headers, body });
    }

    fn place(&self, source: &Arc<str>, body_bytes: usize) -> Option<quarantine::Place> {
        if self.gate.store().fault().is_some() {
            self.quarantine.count_dropped(source, "disk_full");
            return None;
        }
        self.quarantine.reserve(source, body_bytes)
    }

    /// Why `rejected` is refused by the configuration in force. Takes up to some seconds of computing.
    pub fn explain(&self, rejected: &Rejected) -> Option<Explanation> {
        let routes = self.routes.load_full();
        let source = routes.sources().find(|source| source.name == rejected.source)?;
        let mut others: Vec<_> = routes
            .sources()
            .filter(|other| other.name != source.name)
            .map(|other| OtherSource { name: &other.name, path: &other.path, verifier: &other.verifier })
            .collect();
        others.sort_by_key(|other| other.name);
        // What the source demands beside a proof may have been changed since.
        let is_demanded = |refusal: &Refusal| {
            (*refusal != Refusal::IdMissing || !source.accept_missing_id)
                && (*refusal != Refusal::Replayed || source.replay_guard == ReplayGuard::Reject)
        };
        let captured = Captured {
            method: &rejected.method,
            target: &rejected.target,
            headers: &rejected.headers,
            body: rejected.body.as_deref(),
            received_at: rejected.received_at,
            refused: Refusal::from_label(&rejected.reason).filter(is_demanded),
        };
        Some(source.verifier.explain(&captured, &others))
    }

    /// The headers and fields of queries in which any source has its signatures and tokens.
    pub fn proof_places(&self) -> (Vec<String>, Vec<String>) {
        let routes = self.routes.load_full();
        let places = routes.sources().map(|source| source.verifier.proof_places());
        places.fold((Vec::new(), Vec::new()), |(mut headers, mut fields), (more, other)| {
            headers.extend(more);
            fields.extend(other);
            (headers, fields)
        })
    }

    /// Verifies a request in quarantine by the configuration in force, at the time of its arrival, and lets it in if that
    /// succeeds: once. It goes through the same claims as any other.
    ///
    /// # Errors
    /// When it cannot be tried.
    pub async fn reverify(self: Arc<Self>, id: Id) -> Result<Reverified, NotReverified> {
        // A task of its own: an operator who hangs up must not stop it between commit and mark.
        let done = tokio::spawn(async move { self.reverify_now(id).await }).await;
        done.unwrap_or_else(|error| Err(NotReverified::Failed(error.to_string())))
    }

    async fn reverify_now(&self, id: Id) -> Result<Reverified, NotReverified> {
        let _turn = self.reverifying.lock().await;
        let quarantine = Arc::clone(&self.quarantine);
        let found = tokio::task::spawn_blocking(move || quarantine.find(id)).await;
        let found = found.map_err(|error| NotReverified::Failed(error.to_string()))??;
        let rejected = found.ok_or(NotReverified::Unknown)?;
        if let Some(outcome) = rejected.reverified {
            return Err(NotReverified::Already(outcome));
        }
        // What was let in before a crash may not have been marked.
        if self.gate.store().delivery(id).await?.is_some() {
            return Err(NotReverified::Already("stored".to_owned()));
        }
        let routes = self.routes.load_full();
        let source = routes.sources().find(|source| source.name == rejected.source);
        let source = source.ok_or_else(|| NotReverified::NoSource(Arc::clone(&rejected.source)))?;
        let Rejected { received_at, sender, method, target, headers, body, .. } = rejected;
        let body = body.ok_or(NotReverified::BodyMissing)?;
        let received = Received {
            id,
            source: Arc::clone(&source.name),
            received_at,
            sender,
            method,
            target,
            headers,
            body,
        };
        let outcome = self.admit_again(source, received).await?;
        let name = &*source.name;
        match &outcome {
            Reverified::Stored | Reverified::Duplicate => {
                self.metrics.ingest_received.with_label_values(&[name]).inc();
                self.metrics.ingest_requests.with_label_values(&[name, outcome.label()]).inc();
                self.quarantine.mark(id, outcome.label());
            }
            Reverified::Refused(_) => {}
        }
        tracing::info!(source = name, %id, outcome = outcome.label(), "request reverified");
        self.metrics.quarantine_reverified.with_label_values(&[name, outcome.label()]).inc();
        Ok(outcome)
    }

    /// Sends a delivery to a source as its provider would, past the listener: signed with the source's secret, it is verified,
    /// claimed, stored and forwarded like any other. Its id.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub async fn send_test(self: Arc<Self>, source: &str) -> Result<(Id, Reverified), NotReverified> {
        let routes = self.routes.load_full();
        let found = routes.sources().find(|known| &*known.name == source).cloned();
        let source = found.ok_or_else(|| NotReverified::NoSource(source.into()))?;
        // A task of its own: an operator who hangs up must not stop it between commit and count.
        let sent = tokio::spawn(async move { self.send_test_now(&source).await }).await;
        sent.unwrap_or_else(|error| Err(NotReverified::Failed(error.to_string())))
    }

    async fn send_test_now(&self, source: &Arc<Source>) -> Result<(Id, Reverified), NotReverified> {
        let received_at = from_milliseconds(self.clock.now().as_millisecond());
        let id = Id::new(received_at, std::array::from_fn(|_| fastrand::u8(..)));
        let signer = source.verifier.provider_signer(received_at).map_err(NotReverified::Unsigned)?;
        let (name, event) = (id.to_string(), "countersign.test");
        let mut body = serde_json::json!({ "sent_by": "countersign console" });
        signer.fill(&mut body, &name, event, received_at);
        let base = source.public_url.as_deref().unwrap_or("http://localhost").trim_end_matches('/');
        let (method, url) =
            (source.methods.first().cloned().unwrap_or(Method::POST), format!("{base}{}", source.path));
        let body = body.to_string().into();
        let message =
            Message { method: &method, url: &url, id: Some(&name), event: Some(event), body: &body };
        let signed = signer.sign_whole(&message, received_at).map_err(NotReverified::Unsigned)?;
        let mut headers = signed.headers;
        let kind = if signed.is_form { "application/x-www-form-urlencoded" } else { "application/json" };
        headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
        let target = signed.url.strip_prefix(base).unwrap_or(&source.path).to_owned();
        let received = Received {
            id,
            source: Arc::clone(&source.name),
            received_at,
            sender: std::net::Ipv4Addr::LOCALHOST.into(),
            method,
            target,
            headers,
            body: signed.body,
        };
        let outcome = self.admit_again(source, received).await?;
        match &outcome {
            Reverified::Stored | Reverified::Duplicate => {
                self.metrics.ingest_received.with_label_values(&[&*source.name]).inc();
                self.metrics.ingest_requests.with_label_values(&[&*source.name, outcome.label()]).inc();
            }
            Reverified::Refused(_) => {}
        }
        Ok((id, outcome))
    }

    async fn admit_again(
        &self,
        source: &Arc<Source>,
        received: Received,
    ) -> Result<Reverified, NotReverified> {
        let verified = match self.verify(source, received).await {
            Ok(verified) => verified,
            Err((Rejection::Unverified(refusal), _)) => return Ok(Reverified::Refused(refusal.label())),
            Err((rejection, _)) => return Err(NotReverified::Failed(rejection.label().to_owned())),
        };
        // What `enforcement = "observe"` or `verify = "none"` would let through has proven nothing.
        if let Some(refusal) = verified.observed() {
            return Ok(Reverified::Refused(refusal.label()));
        }
        let delivery = verified.delivery();
        if !delivery.verification.verified {
            return Ok(Reverified::Refused("unverified"));
        }
        // Its sender had no answer then, and gets none now; it says nothing that a backend waits for.
        if !source.forward_handshake && source.verifier.signed_handshake(&verified).is_some() {
            return Ok(Reverified::Refused(HANDSHAKE));
        }
        if delivery.delivery_id.is_none() && !source.accept_missing_id {
            return Ok(Reverified::Refused(Refusal::IdMissing.label()));
        }
        match self.claim(source, Arc::new(verified)).await {
            Ok(Settled::Stored(_)) => Ok(Reverified::Stored),
            Ok(Settled::Duplicate { .. } | Settled::Handshake { .. }) => Ok(Reverified::Duplicate),
            Err(Rejection::Unverified(refusal)) => Ok(Reverified::Refused(refusal.label())),
            Err(rejection) => Err(NotReverified::Failed(rejection.label().to_owned())),
        }
    }
}
