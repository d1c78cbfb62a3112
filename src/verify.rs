//! Decides whether a request came from whom it says and is fresh. The only place where a [`Verified`] is built, and
//! a `Verified` is the only thing that the store takes. Pure: time is an argument. It does not know about paths,
//! destinations or duplicates.
//!
//! Other programs may use it, too. A provider is found by [`preset`], or described by a [`Scheme`] of one's own:
//!
//! ```
//! use bytes::Bytes;
//! use countersign::clock::Timestamp;
//! use countersign::secret::Secret;
//! use countersign::verify::{Enforcement, Message, NamedSecret, Refusal, Signer, Verifier, Window, preset};
//! use http::Method;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let scheme = preset("standard-webhooks").ok_or("no such provider")?.scheme.clone();
//! let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")?;
//!
//! // The sender's side.
//! let (now, body) = (Timestamp::from_second(1_800_000_000)?, Bytes::from_static(br#"{"type":"user.created"}"#));
//! let url = "https://hooks.example.com/in";
//! let message = Message { method: &Method::POST, url, id: Some("msg_1"), event: None, body: &body };
//! let headers = Signer::new(scheme.clone(), &secret)?.sign(&message, now)?;
//!
//! // The receiver's side. Several secrets at once make a rotation; each may have a time in which it is good.
//! let secrets = vec![NamedSecret::new("2027-01", secret)];
//! let public_url = Some("https://hooks.example.com".to_owned());
//! let verifier =
//!     Verifier::new("standard-webhooks".into(), scheme, secrets, Window::default(), Enforcement::Enforce, public_url)
//!         .map_err(|errors| format!("{errors:?}"))?;
//! let proof = verifier.check(&Method::POST, "/in", &headers, &body, now)?;
//! assert_eq!(proof.delivery_id.as_deref(), Some("msg_1"));
//! assert_eq!(proof.event.as_deref(), Some("user.created"));
//!
//! let forged = verifier.check(&Method::POST, "/in", &headers, b"{}", now);
//! assert_eq!(forged.unwrap_err(), Refusal::SignatureMismatch);
//! # Ok(())
//! # }
//! ```

use std::sync::Arc;

use http::{HeaderMap, Method};
use sha2::{Digest as _, Sha256};

use crate::clock::Timestamp;
use crate::delivery::{Delivery, Received, Verification};
use crate::secret::Secret;

mod algorithm;
mod check;
mod code;
mod encoding;
mod explain;
mod grammar;
mod handshake;
mod jwt;
mod key;
mod locate;
mod place;
mod presets;
mod published;
mod refusal;
mod rotation;
mod scheme;
pub mod sign;
mod signed;
mod template;
mod token;
mod window;

pub use check::{Proof, Published};
pub use explain::{BodyChange, Captured, Cause, Explanation, OtherSource, Part};
pub use handshake::{Handshake, HandshakeAnswer, HandshakeOptions, HandshakeRefusal};
pub use place::{Place, PlaceError};
pub use presets::{Preset, preset, presets};
pub use refusal::Refusal;
pub use rotation::{Advice, SecretUse, advise};
pub use scheme::{NotTokenAuth, Scheme};
pub use sign::{Message, SignedAgain, SignedRequest, Signer};
pub use window::Window;

pub(crate) use handshake::BODY_BYTES_MAX as HANDSHAKE_BYTES_MAX;
pub(crate) use key::SECRET_BYTES_MIN;

use check::Checker;
use handshake::Handshakes;
use locate::{Request, other_port};

/// What happens to a request that fails its verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enforcement {
    /// It is refused.
    Enforce,
    /// It is let through, marked as unverified, and counted.
    Observe,
}

/// A secret and the time in which it is valid.
#[derive(Debug, Clone)]
pub struct NamedSecret {
    /// How operators call it; the metrics' label.
    pub name: Arc<str>,
    /// The secret as the provider shows it, prefixes included.
    pub secret: Secret,
    /// The first moment at which it is valid; always, when absent.
    pub not_before: Option<Timestamp>,
    /// The last moment at which it is valid; for ever, when absent.
    pub not_after: Option<Timestamp>,
}

impl NamedSecret {
    /// A secret that is always valid.
    pub fn new(name: impl Into<Arc<str>>, secret: Secret) -> Self {
        Self { name: name.into(), secret, not_before: None, not_after: None }
    }

    /// Whether it is valid at `now`.
    pub fn is_active(&self, now: Timestamp) -> bool {
        self.not_before.is_none_or(|from| from <= now) && self.not_after.is_none_or(|to| now <= to)
    }
}

/// A secret that cannot be a key of the scheme, or a message that cannot be signed with it. The text never shows the
/// secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeyError(pub String);

/// What the signature covers; computed from the template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coverage {
    /// There is a timestamp, and it is signed.
    pub timestamp: bool,
    /// The delivery id is signed, wherever it is found.
    pub id: bool,
    /// The whole body is signed.
    pub body: bool,
}

/// Verifies the requests of one source.
#[derive(Debug)]
pub struct Verifier {
    provider: Arc<str>,
    /// `None` for `verify = "none"`.
    checked: Option<Checked>,
}

#[derive(Debug)]
struct Checked {
    checker: Checker,
    /// As they were configured, to sign what an operator sends to try a source.
    secrets: Vec<NamedSecret>,
    enforcement: Enforcement,
    base_url: String,
    other_base_url: String,
    handshake: HandshakeOptions,
}

impl Verifier {
    /// Decodes the secrets. `public_url` is what the provider was told, up to the path; only schemes for which
    /// [`Scheme::signs_url`] holds need it.
    ///
    /// # Errors
    /// One per secret that cannot be used, by its index; a missing `public_url` is reported as index 0.
    pub fn new(
        provider: Arc<str>,
        scheme: Scheme,
        secrets: Vec<NamedSecret>,
        window: Window,
        enforcement: Enforcement,
        public_url: Option<String>,
    ) -> Result<Self, Vec<(usize, KeyError)>> {
        if scheme.signs_url() && public_url.is_none() {
            let message =
                "the scheme signs the URL, and `public_url` does not say what the provider was told";
            return Err(vec![(0, KeyError(message.to_owned()))]);
        }
        if let Some(name) = scheme.config_names().first() {
            return Err(vec![(0, KeyError(format!("the scheme signs `{name}`, which is not configured")))]);
        }
        let checker = Checker::new(scheme, secrets.clone(), window)?;
        let base_url = public_url.unwrap_or_default().trim_end_matches('/').to_owned();
        let other_base_url = other_port(&base_url);
        let handshake = HandshakeOptions::default();
        let checked = Checked { checker, secrets, enforcement, base_url, other_base_url, handshake };
        Ok(Self { provider, checked: Some(checked) })
    }

    /// `verify = "none"`: lets everything through, marked as unverified, without delivery id and event type.
    pub fn unverified() -> Self {
        Self { provider: "none".into(), checked: None }
    }

    /// What happens to what does not verify; `None` for `verify = "none"`.
    pub fn enforcement(&self) -> Option<Enforcement> {
        self.checked.as_ref().map(|checked| checked.enforcement)
    }

    /// What the signature covers; nothing without verification.
    pub fn coverage(&self) -> Coverage {
        const NOTHING: Coverage = Coverage { timestamp: false, id: false, body: false };
        self.checked.as_ref().map_or(NOTHING, |checked| checked.checker.coverage())
    }

    /// Signs as the provider would at `now`, with the first secret that is valid.
    ///
    /// # Errors
    /// When nothing is verified here, no secret is valid, or the secret only verifies.
    pub fn provider_signer(&self, now: Timestamp) -> Result<Signer, KeyError> {
        let why = |text: &str| KeyError(text.to_owned());
        let checked = self.checked.as_ref().ok_or_else(|| why("nothing is verified here"))?;
        let secret = checked.secrets.iter().find(|secret| secret.is_active(now));
        let secret = secret.ok_or_else(|| why("no secret is valid"))?;
        Signer::new(checked.checker.scheme().clone(), &secret.secret)
    }

    /// The names of the secrets.
    pub fn secret_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.checked.iter().flat_map(|checked| checked.checker.secret_names())
    }

    /// The secrets in the order of the configuration, as if none had been used.
    pub fn secrets(&self) -> impl Iterator<Item = SecretUse> {
        self.checked.iter().flat_map(|checked| checked.checker.secrets())
    }

    /// Refuses what needs no body to be refused: a missing or malformed signature, a stale timestamp in the head, a
    /// wrong token. Always `Ok` when observing.
    ///
    /// # Errors
    /// The reason, when `verify` would refuse the request whatever its body.
    pub fn precheck(
        &self,
        method: &Method,
        target: &str,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        match &self.checked {
            Some(Checked {
                checker, enforcement: Enforcement::Enforce, base_url, other_base_url, ..
            }) => {
                let request = Request { method, base_url, other_base_url, target, headers, body: None };
                checker.precheck(&request, now)
            }
            Some(Checked { enforcement: Enforcement::Observe, .. }) | None => Ok(()),
        }
    }

    /// Verifies a request whose last byte had been read at `now`, whatever the enforcement. `target` is path and query.
    ///
    /// # Errors
    /// The reason, when it proves nothing; also when this verifies nothing.
    pub fn check(
        &self,
        method: &Method,
        target: &str,
        headers: &HeaderMap,
        body: &[u8],
        now: Timestamp,
    ) -> Result<Proof, Refusal> {
        let Some(Checked { checker, base_url, other_base_url, .. }) = &self.checked else {
            return Err(Refusal::NoActiveSecret);
        };
        let request = Request { method, base_url, other_base_url, target, headers, body: Some(body) };
        checker.check(&request, None, now)
    }

    /// The URL of the keys that `received` has to be verified with, when its source has no secrets and the sender publishes
    /// its keys. Only URLs that the provider documents.
    ///
    /// # Errors
    /// When the request names another place.
    pub fn keys_url(&self, received: &Received) -> Result<Option<String>, Refusal> {
        let Some(checked) = &self.checked else { return Ok(None) };
        let Received { method, target, headers, body, .. } = received;
        checked.checker.keys_url(&checked.request(method, target, headers, Some(body)))
    }

    /// Reads the document at a [`keys_url`](Self::keys_url): a certificate or a set of keys.
    ///
    /// # Errors
    /// When it has no key of the scheme.
    pub fn read_published(&self, document: &[u8]) -> Result<Published, KeyError> {
        match &self.checked {
            Some(Checked { checker, .. }) => checker.read_published(document),
            None => Err(KeyError("nothing is verified here".to_owned())),
        }
    }

    /// Verifies. When observing, refused requests are let through unverified, with the refusal noted.
    ///
    /// # Errors
    /// The reason, when the request is to be refused.
    pub fn verify(&self, received: Received) -> Result<Verified, Refusal> {
        self.verify_with(received, None)
    }

    /// The same with the keys from [`keys_url`](Self::keys_url).
    ///
    /// # Errors
    /// As [`verify`](Self::verify).
    pub fn verify_with(
        &self,
        received: Received,
        published: Option<&Published>,
    ) -> Result<Verified, Refusal> {
        self.verify_or_return(received, published).map_err(|(refusal, _)| refusal)
    }

    /// The same, giving back what is refused.
    ///
    /// # Errors
    /// As [`verify`](Self::verify), with what was received.
    pub fn verify_or_return(
        &self,
        received: Received,
        published: Option<&Published>,
    ) -> Result<Verified, (Refusal, Box<Received>)> {
        let Some(Checked { checker, enforcement, base_url, other_base_url, .. }) = &self.checked else {
            return Ok(Verified::new(received, self.unproven(), Facts::default()));
        };
        let request = Request {
            method: &received.method,
            base_url,
            other_base_url,
            target: &received.target,
            headers: &received.headers,
            body: Some(&received.body),
        };
        match (checker.check(&request, published, received.received_at), enforcement) {
            (Ok(proof), Enforcement::Enforce | Enforcement::Observe) => {
                let verification = Verification {
                    verified: true,
                    scheme: Arc::clone(&self.provider),
                    secret: Some(proof.secret),
                    skew_seconds: proof.skew_seconds,
                };
                let facts = Facts {
                    delivery_id: proof.delivery_id,
                    event: proof.event,
                    signed_digest: proof.signed_digest,
                    body_digest: proof.body_digest,
                    observed: None,
                };
                Ok(Verified::new(received, verification, facts))
            }
            (Err(refusal), Enforcement::Enforce | Enforcement::Observe) => self.refuse(received, refusal),
        }
    }

    /// What becomes of a request that proves nothing: the refusal, or, when observing, a request that is let through
    /// unverified, with the refusal noted.
    ///
    /// # Errors
    /// The refusal, with what was received, unless observing.
    pub fn refuse(&self, received: Received, refusal: Refusal) -> Result<Verified, (Refusal, Box<Received>)> {
        let observing = |checked: &&Checked| checked.enforcement == Enforcement::Observe;
        let Some(checked) = self.checked.as_ref().filter(observing) else {
            return Err((refusal, Box::new(received)));
        };
        let checker = &checked.checker;
        let Received { method, target, headers, body, .. } = &received;
        let request = checked.request(method, target, headers, Some(body));
        let facts = Facts {
            delivery_id: checker.delivery_id(&request).ok().flatten(),
            event: checker.event(&request).ok().flatten(),
            signed_digest: None,
            body_digest: None,
            observed: Some(refusal),
        };
        Ok(Verified::new(received, self.unproven(), facts))
    }

    /// The same for one whose signature is right.
    ///
    /// # Errors
    /// The refusal, unless observing.
    pub fn refuse_verified(&self, verified: Verified, refusal: Refusal) -> Result<Verified, Refusal> {
        if self.enforcement() != Some(Enforcement::Observe) {
            return Err(refusal);
        }
        let Verified { mut delivery, body_digest, observed, .. } = verified;
        Arc::make_mut(&mut delivery).verification.verified = false;
        let observed = observed.or(Some(refusal));
        Ok(Verified { delivery, body_digest, signed_digest: None, observed })
    }

    /// The verifier with what its source says about handshakes.
    pub fn with_handshake(mut self, options: HandshakeOptions) -> Self {
        if let Some(checked) = &mut self.checked {
            checked.handshake = options;
        }
        self
    }

    /// The handshakes that the provider demands of a new endpoint.
    pub fn handshakes(&self) -> &[Handshake] {
        self.checked.as_ref().map_or(&[], |checked| checked.checker.handshakes())
    }

    /// The answer to a request that is a handshake by its head; `None` when it is not. Nothing else about it is checked.
    pub fn early_handshake(
        &self,
        method: &Method,
        target: &str,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Option<Result<HandshakeAnswer, HandshakeRefusal>> {
        let checked = self.with_handshakes()?;
        checked.handshakes().early(&checked.request(method, target, headers, None), now)
    }

    /// Whether a request that `precheck` refuses may turn out to be a handshake once its body has been read.
    pub fn may_be_handshake(&self, method: &Method, target: &str, headers: &HeaderMap) -> bool {
        self.with_handshakes().is_some_and(|checked| {
            checked.handshakes().may_follow(&checked.request(method, target, headers, None))
        })
    }

    /// The answer to a handshake that its provider does not sign; `None` when it is none.
    pub fn unsigned_handshake(
        &self,
        received: &Received,
    ) -> Option<Result<HandshakeAnswer, HandshakeRefusal>> {
        let Received { method, target, headers, body, .. } = received;
        let checked = self.with_handshakes()?;
        checked.handshakes().unsigned(&checked.request(method, target, headers, Some(body)))
    }

    /// The answer to a handshake that has been verified; `None` when it is none, or only observed.
    pub fn signed_handshake(&self, verified: &Verified) -> Option<Result<HandshakeAnswer, HandshakeRefusal>> {
        let Delivery { headers, body, received_at, verification, .. } = &**verified.delivery();
        let checked = self.with_handshakes().filter(|_| verification.verified)?;
        checked.handshakes().signed(headers, body, verification.secret.as_deref(), *received_at)
    }

    fn with_handshakes(&self) -> Option<&Checked> {
        self.checked.as_ref().filter(|checked| !checked.checker.handshakes().is_empty())
    }

    fn unproven(&self) -> Verification {
        Verification { verified: false, scheme: Arc::clone(&self.provider), secret: None, skew_seconds: None }
    }
}

impl Checked {
    fn handshakes(&self) -> Handshakes<'_> {
        let Self { checker, handshake, .. } = self;
        Handshakes { kinds: checker.handshakes(), origins: checker.origins(), options: handshake, checker }
    }

    fn request<'a>(
        &'a self,
        method: &'a Method,
        target: &'a str,
        headers: &'a HeaderMap,
        body: Option<&'a [u8]>,
    ) -> Request<'a> {
        let Self { base_url, other_base_url, .. } = self;
        Request { method, base_url, other_base_url, target, headers, body }
    }
}

/// A request that may be stored.
#[derive(Debug, Clone)]
pub struct Verified {
    delivery: Arc<Delivery>,
    body_digest: [u8; 32],
    signed_digest: Option<[u8; 32]>,
    observed: Option<Refusal>,
}

#[derive(Default)]
struct Facts {
    delivery_id: Option<String>,
    event: Option<String>,
    signed_digest: Option<[u8; 32]>,
    body_digest: Option<[u8; 32]>,
    observed: Option<Refusal>,
}

impl Verified {
    fn new(received: Received, verification: Verification, facts: Facts) -> Self {
        let Received { id, source, received_at, sender, method, target, headers, body } = received;
        let Facts { delivery_id, event, signed_digest, body_digest, observed } = facts;
        let body_digest = body_digest.unwrap_or_else(|| Sha256::digest(&body).into());
        let delivery = Delivery {
            id,
            source,
            delivery_id,
            event,
            received_at,
            sender,
            method,
            target,
            headers,
            body,
            verification,
        };
        Self { delivery: Arc::new(delivery), body_digest, signed_digest, observed }
    }

    /// The delivery.
    pub fn delivery(&self) -> &Arc<Delivery> {
        &self.delivery
    }

    /// SHA-256 of the body.
    pub fn body_digest(&self) -> &[u8; 32] {
        &self.body_digest
    }

    /// SHA-256 of exactly the signed bytes, when a copy of them could come again as something new: when id or
    /// timestamp are outside of them, or the request has no id. `None` when nothing is signed, or everything is.
    pub fn signed_digest(&self) -> Option<&[u8; 32]> {
        self.signed_digest.as_ref()
    }

    /// Why enforcement would have refused it; `None` when it would not have.
    pub fn observed(&self) -> Option<Refusal> {
        self.observed
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Duration;

    use bytes::Bytes;
    use http::{HeaderName, HeaderValue};
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::id::Id;
    use crate::reader::{Problems, read_document};

    const NOW: i64 = 1_776_871_800;
    const SECRET: &str = "secret-0123456789";
    const URL: &str = "https://hooks.example.com/in?a=1";

    fn scheme(text: &str) -> Scheme {
        match preset(text) {
            Some(preset) => preset.scheme.clone(),
            None => {
                let problems = Problems::default();
                let scheme = read_document(text, &problems, |table| Scheme::read(&table));
                scheme.unwrap_or_else(|| panic!("{:?}", problems.into_sorted()))
            }
        }
    }

    fn secret(name: &str, text: &str) -> NamedSecret {
        NamedSecret {
            name: name.into(),
            secret: Secret::new(text).unwrap(),
            not_before: None,
            not_after: None,
        }
    }

    fn verifier(of: &str, secrets: Vec<NamedSecret>, enforcement: Enforcement) -> Verifier {
        let window = Window { past: Duration::from_mins(5), future: Duration::from_mins(5) };
        let url = Some("https://hooks.example.com/".to_owned());
        Verifier::new("provider".into(), scheme(of), secrets, window, enforcement, url).unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// A request of `of` that is right in everything.
    fn signed(of: &str, body: &str) -> Received {
        let body = Bytes::copy_from_slice(body.as_bytes());
        let message = Message { method: &Method::POST, url: URL, id: Some("id-1"), event: None, body: &body };
        let signer = Signer::new(scheme(of), &Secret::new(SECRET).unwrap()).unwrap();
        let headers = signer.sign(&message, at(NOW)).unwrap();
        Received {
            id: Id::new(at(NOW), [0; 10]),
            source: "source".into(),
            received_at: at(NOW),
            sender: IpAddr::V4(Ipv4Addr::LOCALHOST),
            method: Method::POST,
            target: "/in?a=1".to_owned(),
            headers,
            body,
        }
    }

    /// What becomes of a request of `of` after `change`, before and after its body has been read.
    fn outcomes(of: &str, change: impl FnOnce(&mut Received)) -> (Result<(), Refusal>, Result<(), Refusal>) {
        let verifier = verifier(of, vec![secret("only", SECRET)], Enforcement::Enforce);
        let mut received = signed(of, r#"{"id":"evt-1","type":"t","event":"t"}"#);
        change(&mut received);
        let early =
            verifier.precheck(&received.method, &received.target, &received.headers, received.received_at);
        (early, verifier.verify(received).map(drop))
    }

    /// Refused before the body is read, for the same reason as afterwards.
    fn check_early(of: &str, refusal: Refusal, change: impl FnOnce(&mut Received)) {
        assert_eq!(outcomes(of, change), (Err(refusal), Err(refusal)), "{of}");
    }

    fn check_late(of: &str, refusal: Refusal, change: impl FnOnce(&mut Received)) {
        assert_eq!(outcomes(of, change), (Ok(()), Err(refusal)), "{of}");
    }

    fn check_accepted(of: &str, change: impl FnOnce(&mut Received)) {
        assert_eq!(outcomes(of, change), (Ok(()), Ok(())), "{of}");
    }

    fn set(name: &'static str, value: &str) -> impl FnOnce(&mut Received) {
        let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
        move |received| drop(received.headers.insert(name, value))
    }

    fn remove(name: &'static str) -> impl FnOnce(&mut Received) {
        move |received| drop(received.headers.remove(name))
    }

    fn repeat(name: &'static str) -> impl FnOnce(&mut Received) {
        move |received| {
            let value = received.headers[name].clone();
            received.headers.append(name, value);
        }
    }

    /// Secrets of Standard Webhooks are base64; the others take this text as it is.
    const WEBHOOKS: &str = "auth = 'signature'\n\
        signature = { from = ['header:webhook-signature'], grammar = { kind = 'kv', separators = ' ', assign = ',', take = ['v1'] }, algorithm = 'hmac-sha256', encoding = 'base64' }\n\
        signed = '{id}.{timestamp}.{body}'\n\
        timestamp = { at = 'header:webhook-timestamp', unit = 's' }\n\
        delivery_id = ['header:webhook-id']";

    const FULL: &str = "auth = 'signature'\n\
        signature = { from = ['header:x-sig'], algorithm = 'hmac-sha512', encoding = 'base64url' }\n\
        signed = '{method}|{url}|{header:x-nonce}|{body}'\n\
        timestamp = { at = 'json:/at', unit = 'rfc3339' }\n\
        delivery_id = ['header:x-nonce']\n\
        require = [{ at = 'query:a', equals = '1' }]";

    #[test]
    fn signatures_missing_or_malformed_are_refused_before_the_body() {
        let name = "x-hub-signature-256";
        check_accepted("github", |_| {});
        check_early("github", Refusal::SignatureMissing, remove(name));
        check_early("github", Refusal::SignatureMissing, set(name, ""));
        for malformed in ["sha256=", "sha256=00", "x", "sha256=ÿ", "sha1=00", &"sha256=".repeat(4_000)] {
            check_early("github", Refusal::SignatureMalformed, set(name, malformed));
        }
        check_early("github", Refusal::DuplicateValue, repeat(name));
        check_early("stripe", Refusal::DuplicateValue, repeat("stripe-signature"));
        let many = format!("t={NOW}{}", format!(",v1={}", "0".repeat(64)).repeat(17));
        check_early("stripe", Refusal::TooManySignatures, set("stripe-signature", &many));
        check_accepted("stripe", |received| {
            let good = received.headers["stripe-signature"].to_str().unwrap();
            let sixteen = format!("{good}{}", format!(",v1={}", "0".repeat(64)).repeat(15));
            received.headers.insert("stripe-signature", sixteen.parse().unwrap());
        });
        let zeros = format!("sha256={}", "0".repeat(64));
        check_late("github", Refusal::SignatureMismatch, set(name, &zeros));
        check_late("github", Refusal::SignatureMismatch, |received| received.body = Bytes::new());
    }

    #[test]
    fn timestamps_are_judged_before_the_body_where_the_head_has_them() {
        let name = "webhook-timestamp";
        check_early(WEBHOOKS, Refusal::TimestampMissing, remove(name));
        check_early(WEBHOOKS, Refusal::TimestampMalformed, set(name, "-1"));
        check_early(WEBHOOKS, Refusal::TimestampMalformed, set(name, "１"));
        check_early(WEBHOOKS, Refusal::DuplicateValue, repeat(name));
        for of in ["stripe", "owlette", "hostwares", WEBHOOKS] {
            check_accepted(of, |received| received.received_at = at(NOW + 300));
            check_accepted(of, |received| received.received_at = at(NOW - 300));
            check_early(of, Refusal::TimestampTooOld, |received| received.received_at = at(NOW + 301));
            check_early(of, Refusal::TimestampTooNew, |received| received.received_at = at(NOW - 301));
        }
        let untimed = format!("v1={}", "0".repeat(64));
        check_early("stripe", Refusal::TimestampMissing, set("stripe-signature", &untimed));
        check_early("hostwares", Refusal::TimestampMissing, remove("x-hostwares-timestamp"));
        check_early("hostwares", Refusal::TimestampMalformed, set("x-hostwares-timestamp", "soon"));
        check_early("hostwares", Refusal::DuplicateValue, repeat("x-hostwares-timestamp"));
    }

    #[test]
    fn a_signed_id_must_be_there_and_unambiguous() {
        let name = "webhook-id";
        check_early(WEBHOOKS, Refusal::IdMissing, remove(name));
        check_early(WEBHOOKS, Refusal::DuplicateValue, repeat(name));
        for malformed in ["a.b", "a b", "ä", &"a".repeat(129)] {
            check_early(WEBHOOKS, Refusal::IdMalformed, set(name, malformed));
        }
        check_late(WEBHOOKS, Refusal::SignatureMismatch, set(name, "id-2"));
    }

    #[test]
    fn an_unsigned_id_must_be_single_and_short() {
        let name = "x-github-delivery";
        check_accepted("github", remove(name));
        check_accepted("github", set(name, "another.id"));
        check_late("github", Refusal::IdMalformed, set(name, &"a".repeat(257)));
        check_late("github", Refusal::DuplicateValue, repeat(name));
        check_late("github", Refusal::DuplicateValue, |received| {
            for event in ["push", "ping"] {
                received.headers.append("x-github-event", HeaderValue::from_static(event));
            }
        });
    }

    #[test]
    fn tokens_are_compared_before_the_body() {
        let name = "authorization";
        check_accepted("ownstak", |_| {});
        check_early("ownstak", Refusal::TokenMissing, remove(name));
        check_early("ownstak", Refusal::TokenMismatch, set(name, "Bearer secret"));
        check_early("ownstak", Refusal::TokenMismatch, set(name, "Bearer  secret-0123456789"));
        check_accepted("ownstak", set(name, &format!("bearer {SECRET}")));
        check_early("ownstak", Refusal::DuplicateValue, repeat(name));
        check_accepted("ownstak", set(name, &format!("Bearer {SECRET}")));

        // Of a secret that has it already, it is a part.
        let whole = format!("Bearer {SECRET}");
        let verifier = verifier("ownstak", vec![secret("only", &whole)], Enforcement::Enforce);
        for (presented, expected) in [(&*whole, Ok(())), (SECRET, Err(Refusal::TokenMismatch))] {
            let mut received = signed("ownstak", "{}");
            set(name, presented)(&mut received);
            assert_eq!(verifier.verify(received).map(drop), expected, "{presented}");
        }
    }

    /// Every part that this scheme signs, and `change` made to it after signing.
    fn check_full(expected: Result<(), Refusal>, change: impl FnOnce(&mut Received)) {
        let body = Bytes::from_static(br#"{"at":"2026-04-22T15:30:00Z"}"#);
        let without_nonce = FULL.replace("{header:x-nonce}", "{id}");
        let signer = Signer::new(scheme(&without_nonce), &Secret::new(SECRET).unwrap()).unwrap();
        let message = Message { method: &Method::PUT, url: URL, id: Some("n"), event: None, body: &body };
        let mut received = signed("github", "");
        received.headers = signer.sign(&message, at(NOW)).unwrap();
        (received.method, received.body) = (Method::PUT, body);
        change(&mut received);
        let verifier = verifier(FULL, vec![secret("only", SECRET)], Enforcement::Enforce);
        assert_eq!(verifier.verify(received).map(drop), expected);
    }

    #[test]
    fn method_url_and_headers_can_be_signed_and_required() {
        check_full(Ok(()), |_| {});
        check_full(Err(Refusal::SignatureMismatch), |received| received.method = Method::POST);
        check_full(Err(Refusal::SignatureMismatch), |received| received.target = "/in?a=1&b".to_owned());
        check_full(Err(Refusal::SignatureMismatch), set("x-nonce", "m"));
        check_full(Err(Refusal::ValueMissing), remove("x-nonce"));
        check_full(Err(Refusal::ValueMismatch), |received| received.target = "/in?a=2".to_owned());
        check_full(Err(Refusal::ValueMismatch), |received| received.target = "/in".to_owned());
        check_full(Err(Refusal::TimestampMissing), |received| received.body = Bytes::new());
        check_full(Err(Refusal::TimestampTooOld), |received| received.received_at = at(NOW + 301));
    }

    #[test]
    fn what_stands_in_the_body_is_awaited() {
        let of = "auth = 'signature'\n\
            signature = { from = ['header:x-sig', 'json:/sig'], algorithm = 'hmac-sha1', encoding = 'hex' }\n\
            signed = '{timestamp}{id}{json:/token}'\n\
            timestamp = { at = 'json:/at', unit = 's' }\n\
            delivery_id = ['json:/id']\n\
            require = [{ at = 'json:/v', equals = '1' }]";
        let verifier = verifier(of, vec![secret("only", SECRET)], Enforcement::Enforce);
        let unsigned = format!(r#"{{"v":1,"at":{NOW},"id":"i","token":"t"}}"#);
        let signature = signed(of, &unsigned).headers["x-sig"].to_str().unwrap().to_owned();
        let outcome = |body: String| {
            let mut received = signed("github", &body);
            received.headers.clear();
            assert_eq!(verifier.precheck(&Method::POST, "/", &received.headers, at(NOW)), Ok(()));
            verifier.verify(received).map(drop)
        };
        let good = unsigned.replace("}", &format!(r#","sig":"{signature}"}}"#));
        assert_eq!(outcome(good.clone()), Ok(()));
        assert_eq!(outcome(good.replace("\"t\"", "\"u\"")), Err(Refusal::SignatureMismatch));
        assert_eq!(outcome(good.replace("\"i\"", "\"j\"")), Err(Refusal::SignatureMismatch));
        assert_eq!(outcome(good.replace("\"id\"", "\"no\"")), Err(Refusal::IdMissing));
        assert_eq!(outcome(good.replace("\"at\"", "\"no\"")), Err(Refusal::TimestampMissing));
        assert_eq!(outcome(good.replace("\"v\":1", "\"v\":2")), Err(Refusal::ValueMismatch));
        assert_eq!(outcome(unsigned), Err(Refusal::SignatureMissing));
    }

    #[test]
    fn a_timestamp_beside_a_signature_in_the_body_is_awaited() {
        let of = "auth = 'signature'\n\
            signature = { from = ['header:x-sig', 'form:sig'], grammar = { kind = 'kv', separators = ',', assign = '=', take = ['v1'], timestamp = 't' }, algorithm = 'hmac-sha1', encoding = 'hex' }\n\
            signed = '{timestamp}{form:token}'\n\
            timestamp = { at = 'signature', unit = 's' }";
        let verifier = verifier(of, vec![secret("only", SECRET)], Enforcement::Enforce);
        let mut received = signed(of, "token=a");
        let signature = received.headers.remove("x-sig").unwrap();
        received.body = Bytes::from(format!("token=a&sig={}", signature.to_str().unwrap()));
        assert_eq!(verifier.precheck(&Method::POST, "/", &received.headers, at(NOW)), Ok(()));
        assert_eq!(verifier.verify(received).map(drop), Ok(()));
    }

    #[test]
    fn a_genuine_delivery_is_not_lost_for_a_strange_event() {
        let verifier = verifier("stripe", vec![secret("only", SECRET)], Enforcement::Enforce);
        let verify = |body: &str| verifier.verify(signed("stripe", body));
        for strange in
            [r#"{"type":"a\u0000b"}"#, r#"{"type":7.5}"#, &format!(r#"{{"type":"{}"}}"#, "x".repeat(257))]
        {
            assert_eq!(verify(strange).unwrap().delivery().event, None);
        }
        assert_eq!(verify(r#"{"type":"ü.v"}"#).unwrap().delivery().event.as_deref(), Some("ü.v"));
        assert_eq!(verify(r#"{"id":"a\nb"}"#).map(drop), Err(Refusal::IdMalformed));
    }

    #[test]
    fn secrets_are_used_within_their_time_and_named() {
        let with = |from: Option<i64>, to: Option<i64>| {
            let limited =
                NamedSecret { not_before: from.map(at), not_after: to.map(at), ..secret("new", SECRET) };
            let verifier =
                verifier("github", vec![secret("old", "secret-of-old"), limited], Enforcement::Enforce);
            verifier.verify(signed("github", "{}")).map(|verified| {
                verified.delivery().verification.secret.as_deref().unwrap_or_default().to_owned()
            })
        };
        let new = || Ok("new".to_owned());
        assert_eq!(with(None, None), new());
        assert_eq!(with(Some(NOW), Some(NOW)), new());
        assert_eq!(with(Some(NOW + 1), None), Err(Refusal::SignatureMismatch));
        assert_eq!(with(None, Some(NOW - 1)), Err(Refusal::SignatureMismatch));

        let retired = NamedSecret { not_after: Some(at(NOW - 1)), ..secret("retired", SECRET) };
        for of in ["github", "ownstak"] {
            let verifier = verifier(of, vec![retired.clone()], Enforcement::Enforce);
            assert_eq!(verifier.secret_names().map(|name| &**name).collect::<Vec<_>>(), ["retired"]);
            let received = signed(of, "{}");
            let early = verifier.precheck(&Method::POST, "/", &received.headers, at(NOW));
            assert_eq!(early, Err(Refusal::NoActiveSecret));
            assert_eq!(verifier.verify(received).map(drop), Err(Refusal::NoActiveSecret));
        }
        let nobody = verifier("github", Vec::new(), Enforcement::Enforce);
        assert_eq!(nobody.verify(signed("github", "{}")).map(drop), Err(Refusal::NoActiveSecret));
    }

    #[test]
    fn signed_bytes_are_digested_where_a_copy_could_come_as_new() {
        let digest = |of: &str, body: &str, change: fn(&mut Received)| {
            let verifier = verifier(of, vec![secret("only", SECRET)], Enforcement::Enforce);
            let mut received = signed(of, body);
            change(&mut received);
            verifier.verify(received).unwrap().signed_digest().copied()
        };
        let body = r#"{"id":"1"}"#;
        let plain = digest("github", body, |_| {});
        assert_eq!(plain, Some(Sha256::digest(body).into()));
        let disguise = |received: &mut Received| {
            received.headers.insert("x-github-delivery", HeaderValue::from_static("fresh"));
            let text = received.headers["x-hub-signature-256"].to_str().unwrap();
            let shouted = format!("sha256={}", text.strip_prefix("sha256=").unwrap().to_uppercase());
            received.headers.insert("x-hub-signature-256", shouted.parse().unwrap());
        };
        assert_eq!(digest("github", body, disguise), plain);
        assert!(digest("hostwares", body, |_| {}).is_some());
        assert!(digest("owlette", body, |_| {}).is_some());
        assert_eq!(digest("stripe", body, |_| {}), None);
        assert_eq!(digest(WEBHOOKS, body, |_| {}), None);
        // Nothing else would tell a captured copy from a new delivery.
        assert!(digest("stripe", "{}", |_| {}).is_some());
        assert_eq!(digest("ownstak", body, |_| {}), None);
    }

    #[test]
    fn observing_lets_through_and_tells_why_not() {
        let verifier = verifier("stripe", vec![secret("only", SECRET)], Enforcement::Observe);
        let good = verifier.verify(signed("stripe", r#"{"id":"1"}"#)).unwrap();
        assert_eq!((good.observed(), good.delivery().verification.verified), (None, true));
        assert_eq!(verifier.enforcement(), Some(Enforcement::Observe));

        let mut forged = signed("stripe", r#"{"id":"1","type":"t"}"#);
        forged.headers.clear();
        assert_eq!(verifier.precheck(&forged.method, &forged.target, &forged.headers, at(NOW)), Ok(()));
        let forged = verifier.verify(forged).unwrap();
        assert_eq!(forged.observed(), Some(Refusal::SignatureMissing));
        assert_eq!(forged.signed_digest(), None);
        let delivery = forged.delivery();
        assert_eq!((delivery.delivery_id.as_deref(), delivery.event.as_deref()), (Some("1"), Some("t")));
        let verification =
            Verification { verified: false, scheme: "provider".into(), secret: None, skew_seconds: None };
        assert_eq!(delivery.verification, verification);
    }

    #[test]
    fn observing_lets_a_strange_place_of_keys_through() {
        let mut received = signed("github", "{}");
        received.headers.clear();
        let new = |enforcement| verifier("aws-sns", Vec::new(), enforcement);
        assert_eq!(new(Enforcement::Enforce).keys_url(&received), Err(Refusal::ValueMissing));
        let observing = new(Enforcement::Observe);
        let refusal = observing.keys_url(&received).unwrap_err();
        assert_eq!(observing.refuse(received, refusal).unwrap().observed(), Some(Refusal::ValueMissing));
        assert_eq!(observing.secret_names().map(|name| &**name).collect::<Vec<_>>(), ["published"]);
        let pinned = verifier("github", vec![secret("only", SECRET)], Enforcement::Enforce);
        assert_eq!(pinned.keys_url(&signed("github", "{}")), Ok(None));
    }

    #[test]
    fn without_verification_nothing_is_believed() {
        let verifier = Verifier::unverified();
        assert_eq!(verifier.precheck(&Method::GET, "/", &HeaderMap::new(), at(NOW)), Ok(()));
        let verified = verifier.verify(signed("github", "{}")).unwrap();
        assert_eq!((verified.observed(), verified.signed_digest()), (None, None));
        let delivery = verified.delivery();
        assert_eq!((&*delivery.verification.scheme, delivery.verification.verified), ("none", false));
        assert_eq!((&delivery.delivery_id, &delivery.event), (&None, &None));
        assert_eq!(verifier.coverage(), Coverage { timestamp: false, id: false, body: false });
        assert_eq!(verifier.enforcement(), None);
    }

    #[test]
    fn skew_is_told_in_whole_seconds() {
        let verifier = verifier("stripe", vec![secret("only", SECRET)], Enforcement::Enforce);
        let mut received = signed("stripe", "{}");
        received.received_at = at(NOW - 7);
        let verified = verifier.verify(received).unwrap();
        assert_eq!(verified.delivery().verification.skew_seconds, Some(-7));
    }

    #[test]
    fn unusable_secrets_and_a_missing_url_are_reported() {
        let window = Window { past: Duration::ZERO, future: Duration::ZERO };
        let new = |of: &str, secrets| {
            Verifier::new("p".into(), scheme(of), secrets, window, Enforcement::Enforce, None).map(drop)
        };
        let secrets = vec![secret("short", "short"), secret("good", SECRET), secret("tiny", "Bearer x")];
        let too_short =
            |bytes: usize| KeyError(format!("the secret has {bytes} bytes; fewer than 8 can be guessed"));
        assert_eq!(new("ownstak", secrets), Err(vec![(0, too_short(5)), (2, too_short(1))]));
        assert_eq!(new("standard-webhooks", vec![secret("a", "whsec_!")]).unwrap_err().len(), 1);
        let errors = new(FULL, vec![secret("good", SECRET)]).unwrap_err();
        assert!(errors[0].1.0.contains("public_url"), "{errors:?}");
    }

    #[test]
    fn nothing_secret_is_shown() {
        let verifier = verifier("ownstak", vec![secret("only", SECRET)], Enforcement::Enforce);
        let signer = Signer::new(scheme("ownstak"), &Secret::new(SECRET).unwrap()).unwrap();
        let key = Signer::new(scheme("stripe"), &Secret::new(SECRET).unwrap()).unwrap();
        for shown in [format!("{verifier:?}"), format!("{signer:?}"), format!("{key:?}")] {
            assert!(!shown.contains(SECRET), "{shown}");
        }
        let name: HeaderName = "authorization".parse().unwrap();
        assert!(signed("ownstak", "{}").headers[name].is_sensitive());
    }
}
