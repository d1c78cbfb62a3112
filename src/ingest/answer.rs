//! What a sender reads: the acknowledgement, or a refusal that tells the status and never why a check failed.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;

use crate::config::{Ack, Source};
use crate::replies::Answer;
use crate::store::StoreError;
use crate::units::Rate;
use crate::verify::{HandshakeAnswer, Refusal};

/// Why a request was refused: a status for the sender, a label for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rejection {
    /// The head breaks the rules of HTTP.
    MalformedHead,
    /// The head is larger, or has more lines, than allowed.
    HeadTooLarge,
    /// The request line is longer than anybody's path and query.
    TargetTooLong,
    /// The head did not come in time.
    HeadTooSlow,
    /// No source has this path.
    NoRoute,
    /// The source does not take this method; the value is for `Allow`.
    MethodNotAllowed(HeaderValue),
    /// The sender's address is not on the source's list.
    AddressNotAllowed,
    /// The sender has no certificate that is on the source's list, or none that is still good for its connection.
    CertificateNotAllowed,
    /// Signature, token or timestamp.
    Unverified(Refusal),
    /// More bytes than the source takes.
    BodyTooLarge,
    /// The body did not come in time.
    BodyTooSlow,
    /// The body ended early or broke its framing.
    BodyBroken,
    /// More verified requests than the source's rate; the next one passes after so long.
    RateLimited(Duration),
    /// All bytes in flight are taken.
    Overloaded,
    /// The gateway stops, and the rest of the body would come too late.
    Stopping,
    /// The keys that the sender publishes could not be had.
    KeysMissing,
    /// It looks like a handshake, and what it wants back is no provider's challenge.
    HandshakeMalformed,
    /// The origin that asks whether it may send is not allowed to.
    OriginNotAllowed,
    /// The URL that confirms a subscription could not be asked for.
    NotConfirmed,
    /// The store could not take it.
    Store(StoreError),
    /// A bug of ours.
    Internal,
}

/// Why a connection was closed before its first request, and without an answer: it may not even be one of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TurnedAway {
    /// Its address has as many connections as it may.
    PerAddress,
    /// A trusted proxy's PROXY header is malformed, or ends early.
    ProxyHeaderMalformed,
    /// It did not come in time.
    ProxyHeaderTooSlow,
    /// The TLS handshake failed: no common version, a client certificate that is missing or not vouched for, no TLS at all.
    TlsFailed,
    /// It did not end in time.
    TlsTooSlow,
}

impl TurnedAway {
    pub(super) const ALL: [Self; 5] = [
        Self::PerAddress,
        Self::ProxyHeaderMalformed,
        Self::ProxyHeaderTooSlow,
        Self::TlsFailed,
        Self::TlsTooSlow,
    ];

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::PerAddress => "per_address",
            Self::ProxyHeaderMalformed => "proxy_header_malformed",
            Self::ProxyHeaderTooSlow => "proxy_header_too_slow",
            Self::TlsFailed => "tls_failed",
            Self::TlsTooSlow => "tls_too_slow",
        }
    }
}

impl Rejection {
    /// Labels that can occur before a source is known.
    pub(super) const LABELS_WITHOUT_SOURCE: [&'static str; 7] = [
        "malformed_head",
        "head_too_large",
        "target_too_long",
        "head_too_slow",
        "no_route",
        "certificate_not_allowed",
        "internal",
    ];

    const LABELS_WITH_SOURCE: [&'static str; 18] = [
        "method_not_allowed",
        "address_not_allowed",
        "certificate_not_allowed",
        "body_too_large",
        "body_too_slow",
        "body_broken",
        "rate_limited",
        "overloaded",
        "stopping",
        "keys_missing",
        "handshake_malformed",
        "origin_not_allowed",
        "not_confirmed",
        "store_busy",
        "store_unreachable",
        "disk_full",
        "store_failed",
        "internal",
    ];

    /// All labels of a request whose source is known.
    pub(super) fn labels() -> impl Iterator<Item = &'static str> {
        Refusal::ALL.iter().map(|refusal| refusal.label()).chain(Self::LABELS_WITH_SOURCE)
    }

    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::MalformedHead => "malformed_head",
            Self::HeadTooLarge => "head_too_large",
            Self::TargetTooLong => "target_too_long",
            Self::HeadTooSlow => "head_too_slow",
            Self::NoRoute => "no_route",
            Self::MethodNotAllowed(_) => "method_not_allowed",
            Self::AddressNotAllowed => "address_not_allowed",
            Self::CertificateNotAllowed => "certificate_not_allowed",
            Self::Unverified(refusal) => refusal.label(),
            Self::BodyTooLarge => "body_too_large",
            Self::BodyTooSlow => "body_too_slow",
            Self::BodyBroken => "body_broken",
            Self::RateLimited(_) => "rate_limited",
            Self::Overloaded => "overloaded",
            Self::Stopping => "stopping",
            Self::KeysMissing => "keys_missing",
            Self::HandshakeMalformed => "handshake_malformed",
            Self::OriginNotAllowed => "origin_not_allowed",
            Self::NotConfirmed => "not_confirmed",
            Self::Store(StoreError::Busy) => "store_busy",
            Self::Store(StoreError::DiskFull) => "disk_full",
            Self::Store(StoreError::Unreachable(_)) => "store_unreachable",
            Self::Store(StoreError::Latched(_) | StoreError::Closed | StoreError::Read(_)) => "store_failed",
            Self::Internal => "internal",
        }
    }

    /// What a body that is too large for a handshake is refused for, when the head had shown it to be none but that.
    pub(super) fn unless_refused(self, refusal: Option<Refusal>) -> Self {
        match (self, refusal) {
            (Self::BodyTooLarge, Some(refusal)) => Self::Unverified(refusal),
            (other, _) => other,
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::MalformedHead | Self::BodyBroken | Self::HandshakeMalformed => StatusCode::BAD_REQUEST,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::AddressNotAllowed | Self::CertificateNotAllowed | Self::OriginNotAllowed => {
                StatusCode::FORBIDDEN
            }
            Self::Unverified(_) => StatusCode::UNAUTHORIZED,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::HeadTooSlow | Self::BodyTooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::RateLimited(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Overloaded
            | Self::Stopping
            | Self::KeysMissing
            | Self::NotConfirmed
            | Self::Store(_)
            | Self::Internal => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The answer; with `close` the last one of its connection.
    pub(super) fn response(&self, close: bool) -> Response<Full<Bytes>> {
        let status = self.status();
        let mut response = match self {
            // Every verification failure looks the same, and empty: Xero and others demand it.
            Self::Unverified(_) => Response::new(Full::default()),
            _ => problem(status),
        };
        *response.status_mut() = status;
        let headers = response.headers_mut();
        if let Self::MethodNotAllowed(allow) = self {
            headers.insert(ALLOW, allow.clone());
        }
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(RETRY_AFTER, HeaderValue::from(self.retry_after_seconds()));
        }
        if close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Drawn at random, so that many refused senders do not come back in the same second.
    fn retry_after_seconds(&self) -> u64 {
        match self {
            Self::RateLimited(wait) => wait.as_secs() + fastrand::u64(1..=3),
            Self::Store(StoreError::DiskFull | StoreError::Unreachable(_) | StoreError::Latched(_)) => {
                fastrand::u64(5..=30)
            }
            _ => fastrand::u64(1..=5),
        }
    }
}

/// The source's acknowledgement, the same for a new delivery and for a duplicate.
pub(super) fn ack(ack: &Ack) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(ack.body.clone()));
    *response.status_mut() = ack.status;
    if !ack.body.is_empty() {
        response.headers_mut().insert(CONTENT_TYPE, ack.content_type.clone());
    }
    response
}

/// What the backend said.
pub(super) fn passed(answer: &Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(answer.body.clone()));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers.clone();
    response
}

/// The answer to a handshake of `source`; with `close` the last one of its connection.
pub(super) fn handshake(answer: HandshakeAnswer, source: &Source, close: bool) -> Response<Full<Bytes>> {
    let typed = |content_type: &'static str, body: String| {
        let mut response = Response::new(Full::from(body));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        response
    };
    let mut response = match answer {
        HandshakeAnswer::Text(text) => typed("text/plain; charset=utf-8", text),
        HandshakeAnswer::Json(document) => typed("application/json", document),
        HandshakeAnswer::NoContent => {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        HandshakeAnswer::Granted(origin) => {
            let mut response = Response::new(Full::default());
            let headers = response.headers_mut();
            headers.insert("webhook-allowed-origin", origin);
            headers.insert("webhook-allowed-rate", allowed_rate(source.rate));
            headers.insert(ALLOW, source.allowed_methods());
            response
        }
        HandshakeAnswer::Keep(_, Some(echoed)) => {
            let mut response = Response::new(Full::default());
            response.headers_mut().insert("x-hook-secret", echoed);
            response
        }
        HandshakeAnswer::Empty | HandshakeAnswer::Keep(_, None) | HandshakeAnswer::Confirm(_) => {
            Response::new(Full::default())
        }
    };
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if close {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Requests a minute, as CloudEvents counts them.
fn allowed_rate(rate: Option<Rate>) -> HeaderValue {
    let a_minute = |rate: Rate| f64::from(rate.events) * 60.0 / rate.per.as_secs_f64();
    match rate {
        Some(rate) => HeaderValue::from((a_minute(rate) as u64).max(1)),
        None => HeaderValue::from_static("*"),
    }
}

/// RFC 9457 with nothing but the status.
fn problem(status: StatusCode) -> Response<Full<Bytes>> {
    let title = status.canonical_reason().unwrap_or("Error");
    let body = format!(r#"{{"type":"about:blank","title":"{title}","status":{}}}"#, status.as_u16());
    let mut response = Response::new(Full::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[test]
    fn own_faults_are_never_the_senders() {
        for rejection in [
            Rejection::Overloaded,
            Rejection::Stopping,
            Rejection::Internal,
            Rejection::Store(StoreError::Busy),
            Rejection::Store(StoreError::DiskFull),
            Rejection::Store(StoreError::Unreachable(String::new())),
            Rejection::Store(StoreError::Latched(String::new())),
        ] {
            let response = rejection.response(false);
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{rejection:?}");
            assert!(response.headers().contains_key(RETRY_AFTER), "{rejection:?}");
        }
    }

    #[tokio::test]
    async fn every_verification_failure_looks_the_same() {
        for refusal in Refusal::ALL {
            let response = Rejection::Unverified(*refusal).response(false);
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
            assert!(response.headers().is_empty());
            assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
        }
    }

    #[test]
    fn every_label_is_announced() {
        let announced: Vec<_> = Rejection::labels().chain(Rejection::LABELS_WITHOUT_SOURCE).collect();
        for rejection in [
            Rejection::MalformedHead,
            Rejection::HeadTooLarge,
            Rejection::TargetTooLong,
            Rejection::HeadTooSlow,
            Rejection::NoRoute,
            Rejection::MethodNotAllowed(HeaderValue::from_static("POST")),
            Rejection::AddressNotAllowed,
            Rejection::CertificateNotAllowed,
            Rejection::BodyTooLarge,
            Rejection::BodyTooSlow,
            Rejection::BodyBroken,
            Rejection::RateLimited(Duration::ZERO),
            Rejection::Overloaded,
            Rejection::Stopping,
            Rejection::KeysMissing,
            Rejection::HandshakeMalformed,
            Rejection::OriginNotAllowed,
            Rejection::NotConfirmed,
            Rejection::Store(StoreError::Busy),
            Rejection::Store(StoreError::DiskFull),
            Rejection::Store(StoreError::Unreachable(String::new())),
            Rejection::Store(StoreError::Closed),
            Rejection::Internal,
        ] {
            assert!(announced.contains(&rejection.label()), "{rejection:?}");
        }
    }
}
