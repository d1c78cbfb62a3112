//! The documents about refused requests, and their routes.

use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use super::{Gateway, Shown, problem};

/// A refused request in quarantine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RejectionSummary {
    /// Its id; that of the delivery, once it has been let in.
    pub id: String,
    /// The source whose path was asked for.
    pub source: String,
    /// The refusal's label, as in `countersign_ingest_rejections_total`.
    pub reason: String,
    /// RFC 3339.
    pub received_at: String,
    /// The sender's address.
    pub sender: String,
    /// The method.
    pub method: String,
    /// Path and query, with what may be secret masked.
    pub target: String,
    /// What came of its reverification: `stored` or `duplicate`; absent while there was none that let it in.
    pub reverified: Option<String>,
}

/// The document of `GET /api/v1/rejections`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rejections {
    /// The newest first.
    pub rejections: Vec<RejectionSummary>,
    /// Where to go on; absent at the end.
    pub cursor: Option<String>,
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExplainedCause {
    /// A word for programs.
    pub cause: String,
    /// Whether the request verifies with this mended; otherwise it is a hint.
    pub proven: bool,
    /// A sentence.
    pub text: String,
    /// What to do about it.
    pub advice: String,
}

/// The document of `GET /api/v1/rejections/{id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explained {
    /// What was refused.
    #[serde(flatten)]
    pub rejection: RejectionSummary,
    /// Its headers, with what may be secret masked.
    pub headers: Vec<(String, String)>,
    /// Bytes of the body; absent when it was not kept.
    pub body_bytes: Option<usize>,
    /// Why it would be refused now, at the time of its arrival; absent when it would not be.
    pub refused_now: Option<String>,
    /// The likeliest first.
    pub causes: Vec<ExplainedCause>,
    /// Whether everything was tried.
    pub complete: bool,
}

/// The document of `POST /api/v1/rejections/{id}/reverify`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reverification {
    /// Its id.
    pub id: String,
    /// `stored`, `duplicate` or `refused`.
    pub outcome: String,
    /// Why it is still refused.
    pub reason: Option<String>,
}

/// The document of `POST /api/v1/rejections/reverify`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reverifications {
    /// One for each request that was tried.
    pub reverified: Vec<Reverification>,
    /// Where to go on; absent at the end.
    pub cursor: Option<String>,
}

/// Which rejections are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RejectionQuery {
    /// Of this source.
    pub source: Option<String>,
    /// With this reason.
    pub reason: Option<String>,
    /// Without those that have been let in.
    pub open: bool,
    /// At most so many; 100, when absent.
    pub limit: Option<usize>,
    /// Where an earlier answer ended.
    pub cursor: Option<String>,
}

/// Why an answer cannot be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RejectionRefused {
    /// 400.
    #[error("{0}")]
    BadRequest(String),
    /// 404.
    #[error("{0}")]
    NotFound(String),
    /// 409.
    #[error("{0}")]
    Conflict(String),
    /// 503.
    #[error("{0}")]
    Unavailable(String),
}

impl IntoResponse for RejectionRefused {
    fn into_response(self) -> Response {
        let status = match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        problem(status, &self.to_string())
    }
}

impl RejectionQuery {
    fn parse(query: Option<&str>) -> Result<Self, RejectionRefused> {
        let mut wanted = Self::default();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(value).decode_utf8_lossy().into_owned();
            let wrong = |what: &str| RejectionRefused::BadRequest(format!("`{key}` must be {what}"));
            match key {
                "source" => wanted.source = Some(value),
                "reason" => wanted.reason = Some(value),
                "cursor" => wanted.cursor = Some(value),
                "open" => wanted.open = value.parse().map_err(|_| wrong("true or false"))?,
                "limit" => wanted.limit = Some(value.parse().map_err(|_| wrong("a number"))?),
                _ => return Err(RejectionRefused::BadRequest(format!("there is no parameter `{key}`"))),
            }
        }
        Ok(wanted)
    }
}

type Asked = std::sync::Arc<dyn Gateway>;

pub(super) fn routes() -> Router<Asked> {
    Router::new().route("/rejections", get(list)).route("/rejections/{id}", get(explain))
}

/// For operators only.
pub(super) fn changes() -> Router<Asked> {
    Router::new()
        .route("/rejections/reverify", post(reverify_all))
        .route("/rejections/{id}/reverify", post(reverify))
}

async fn list(State(gateway): Shown, RawQuery(query): RawQuery) -> Result<Response, RejectionRefused> {
    let query = RejectionQuery::parse(query.as_deref())?;
    Ok(Json(gateway.rejections(query).await?).into_response())
}

async fn explain(State(gateway): Shown, Path(id): Path<String>) -> Result<Response, RejectionRefused> {
    Ok(Json(gateway.rejection(&id).await?).into_response())
}

async fn reverify(State(gateway): Shown, Path(id): Path<String>) -> Result<Response, RejectionRefused> {
    Ok(Json(gateway.reverify(&id).await?).into_response())
}

async fn reverify_all(
    State(gateway): Shown,
    RawQuery(query): RawQuery,
) -> Result<Response, RejectionRefused> {
    let query = RejectionQuery::parse(query.as_deref())?;
    Ok(Json(gateway.reverify_all(query).await?).into_response())
}
