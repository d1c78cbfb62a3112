//! Answers that are a problem document (RFC 9457), and what is read of a request, so that whatever is wrong with it is
//! told by one.

use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;

use super::auth::Denied;

const PROBLEM: &str = "application/problem+json";
/// When to come again where nobody can know it.
pub(super) const SOON: Duration = Duration::from_secs(1);

/// Why an answer cannot be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// 400.
    #[error("{0}")]
    BadRequest(String),
    /// 404.
    #[error("{0}")]
    NotFound(String),
    /// 409.
    #[error("{0}")]
    Conflict(String),
    /// 415.
    #[error("{0}")]
    UnsupportedMediaType(String),
    /// 422.
    #[error("{0}")]
    Unprocessable(String),
    /// 429.
    #[error("{0}")]
    TooMany(String),
    /// 503.
    #[error("{0}")]
    Unavailable(String),
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::UnsupportedMediaType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Unprocessable(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooMany(_) => {
                return later(StatusCode::TOO_MANY_REQUESTS, &self.to_string(), SOON);
            }
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        problem(status, &self.to_string())
    }
}

/// What is wrong (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Problem {
    /// `about:blank`: the status says what kind of problem it is.
    r#type: String,
    /// The status in words.
    title: String,
    /// The status.
    status: u16,
    /// What is wrong, and what would be right.
    detail: String,
}

/// The detail of a problem, beside its document: the console makes a page of it.
#[derive(Debug, Clone)]
pub(super) struct Why(pub(super) String);

pub(super) fn problem(status: StatusCode, detail: &str) -> Response {
    let title = status.canonical_reason().unwrap_or("Error").to_owned();
    let (r#type, detail) = ("about:blank".to_owned(), detail.to_owned());
    let why = Why(detail.clone());
    let body = Json(Problem { r#type, title, status: status.as_u16(), detail });
    let mut response = (status, [(CONTENT_TYPE, PROBLEM)], body).into_response();
    response.extensions_mut().insert(why);
    response
}

/// Gives errors that the router answers by itself (of method, path or size) the form of all others.
pub(super) async fn as_problems(request: Request, next: Next) -> Response {
    let method = request.method().clone();
    // Whose readers are load balancers, and people with curl.
    let is_plain = request.uri().path() == "/readyz";
    let response = next.run(request).await;
    let status = response.status();
    let is_told = response.headers().get(CONTENT_TYPE).is_some_and(|told| told == PROBLEM);
    if !(status.is_client_error() || status.is_server_error())
        || is_told
        || is_plain && status == StatusCode::SERVICE_UNAVAILABLE
    {
        return response;
    }
    let detail = match status {
        StatusCode::METHOD_NOT_ALLOWED => format!("this resource does not take {method}; see `Allow`"),
        StatusCode::PAYLOAD_TOO_LARGE => "the body is too large".to_owned(),
        _ => "the request cannot be understood".to_owned(),
    };
    let (mut told, replaced) = (problem(status, &detail), response);
    for (name, value) in replaced.headers() {
        if name != CONTENT_TYPE && name != CONTENT_LENGTH {
            told.headers_mut().append(name, value.clone());
        }
    }
    told
}

/// Asks to come again, after whole seconds and at least one, of a request that was refused for want of room.
pub(super) fn later(status: StatusCode, detail: &str, after: Duration) -> Response {
    let mut response = problem(status, detail);
    let seconds = after.as_millis().div_ceil(1_000).max(1);
    if let Ok(seconds) = HeaderValue::try_from(seconds.to_string()) {
        response.headers_mut().insert(RETRY_AFTER, seconds);
    }
    response
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        match self {
            Self::TooOften(after) => later(self.status(), &self.to_string(), after),
            Self::Token | Self::Host | Self::Origin | Self::Proxied => {
                problem(self.status(), &self.to_string())
            }
        }
    }
}

/// The parameters of a query.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        match Query::<T>::try_from_uri(&parts.uri) {
            Ok(Query(asked)) => Ok(Self(asked)),
            Err(rejection) => Err(Refused::BadRequest(rejection.body_text())),
        }
    }
}

/// A JSON document; no body at all is an empty one.
pub(super) struct Sent<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Sent<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let of = |kind: &HeaderValue| {
            kind.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii().to_vec()
        };
        let kind = request.headers().get(CONTENT_TYPE).map(of);
        let body = Bytes::from_request(request, state).await.map_err(IntoResponse::into_response)?;
        let document = if body.is_empty() { &b"{}"[..] } else { &body };
        if !body.is_empty() && !kind.is_some_and(|kind| kind.eq_ignore_ascii_case(b"application/json")) {
            let detail = "send a JSON document, with `Content-Type: application/json`".to_owned();
            return Err(Refused::UnsupportedMediaType(detail).into_response());
        }
        serde_json::from_slice(document)
            .map(Self)
            .map_err(|error| Refused::BadRequest(error.to_string()).into_response())
    }
}
