//! The documents about refused requests, and their routes.

use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::audit::Told;
use super::refused::{Asked, Refused};
use super::{Known, Shown};

/// A refused request in quarantine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Rejections {
    /// The newest first.
    pub rejections: Vec<RejectionSummary>,
    /// Where to go on; absent at the end.
    pub cursor: Option<String>,
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Reverification {
    /// Its id.
    pub id: String,
    /// `stored`, `duplicate` or `refused`.
    pub outcome: String,
    /// Why it is still refused.
    pub reason: Option<String>,
}

/// The document of `POST /api/v1/rejections/reverify`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Reverifications {
    /// One for each request that was tried.
    pub reverified: Vec<Reverification>,
    /// Where to go on; absent at the end.
    pub cursor: Option<String>,
}

/// Which rejections are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RejectionQuery {
    /// Of this source.
    pub source: Option<String>,
    /// With this reason.
    pub reason: Option<String>,
    /// Without those that have been let in.
    #[serde(default)]
    #[param(required = false)]
    pub open: bool,
    /// At most so many; 100, when absent.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<u16>,
    /// Where an earlier answer ended.
    pub cursor: Option<String>,
}

pub(super) fn routes() -> OpenApiRouter<Known> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(explain))
}

/// For operators only.
pub(super) fn changes() -> OpenApiRouter<Known> {
    OpenApiRouter::new().routes(routes!(reverify_all)).routes(routes!(reverify))
}

/// Refused requests in quarantine, the newest first
#[utoipa::path(get, path = "/rejections", tag = "rejections", params(RejectionQuery),
    responses((status = 200, body = Rejections)))]
async fn list(
    State(gateway): Shown,
    Asked(query): Asked<RejectionQuery>,
) -> Result<Json<Rejections>, Refused> {
    gateway.rejections(query).await.map(Json)
}

/// A refused request: what was received, and why it is refused
#[utoipa::path(get, path = "/rejections/{id}", tag = "rejections",
    params(("id" = String, Path, description = "Its id")), responses((status = 200, body = Explained)))]
async fn explain(State(gateway): Shown, Path(id): Path<String>) -> Result<Json<Explained>, Refused> {
    gateway.rejection(&id).await.map(Json)
}

/// Let a refused request in that verifies by now, once
#[utoipa::path(post, path = "/rejections/{id}/reverify", tag = "rejections",
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, body = Reverification)))]
async fn reverify(State(gateway): Shown, Path(id): Path<String>) -> Result<Told<Reverification>, Refused> {
    gateway.reverify(&id).await.map(|one| Told(one.outcome.clone(), one))
}

/// The same of all that match and have not been let in
#[utoipa::path(post, path = "/rejections/reverify", tag = "rejections", params(RejectionQuery),
    responses((status = 200, body = Reverifications)))]
async fn reverify_all(
    State(gateway): Shown,
    Asked(query): Asked<RejectionQuery>,
) -> Result<Told<Reverifications>, Refused> {
    gateway.reverify_all(query).await.map(|all| Told(format!("{} tried", all.reverified.len()), all))
}
