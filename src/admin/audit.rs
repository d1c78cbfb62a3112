//! Who has changed what, and when: every request that changes something is told to the gateway, which logs it and keeps
//! the latest.

use std::net::SocketAddr;

use axum::Json;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Known, Shown, problem};
use crate::config::Role;

/// Whose request it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// The name of the token, or `local` without tokens.
    pub name: String,
    /// What it may do.
    pub role: Role,
}

/// A change, done or refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// RFC 3339.
    pub at: String,
    /// The name of the token, or `local`.
    pub by: String,
    /// Where the request came from.
    pub peer: String,
    /// Method and path.
    pub action: String,
    /// What is to be known of it besides.
    pub detail: String,
    /// How it was answered.
    pub status: u16,
}

/// The latest changes; the log has all, under the target `audit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Audit {
    /// The newest first, at most 1,000, since the start of the process.
    pub changes: Vec<AuditEntry>,
}

/// An answer, and what the audit log is to say of it.
pub(super) struct Told<T>(pub(super) String, pub(super) T);

/// What the audit log is to say of an answer.
#[derive(Clone)]
pub(super) struct Detail(pub(super) String);

impl<T: Serialize> IntoResponse for Told<T> {
    fn into_response(self) -> Response {
        let mut response = Json(self.1).into_response();
        response.extensions_mut().insert(Detail(self.0));
        response
    }
}

pub(super) fn routes() -> OpenApiRouter<Known> {
    OpenApiRouter::new().routes(routes!(list))
}

/// Who has changed what, and when
#[utoipa::path(get, path = "/audit", tag = "gateway", responses((status = 200, body = Audit)))]
async fn list(State(gateway): Shown) -> Json<Audit> {
    Json(gateway.audit())
}

/// Lets operators only change something, and tells of it. Behind the guard, which says who the sender is.
pub(super) async fn operators_only(
    State(gateway): Shown,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let operator = request.extensions().get::<Operator>().cloned();
    let Some(operator) = operator.filter(|operator| operator.role == Role::Operator) else {
        return problem(StatusCode::FORBIDDEN, "this takes a token whose role is `operator`");
    };
    // The whole path, and never the query: what matters of it is told in the detail.
    let path = request.extensions().get::<axum::extract::OriginalUri>().map(|uri| uri.path().to_owned());
    let path = path.unwrap_or_else(|| request.uri().path().to_owned());
    let action = format!("{} {path}", request.method());
    let response = next.run(request).await;
    // Of another method there is nothing here that could have changed something.
    if response.status() == StatusCode::METHOD_NOT_ALLOWED {
        return response;
    }
    let detail = response.extensions().get::<Detail>().map(|detail| detail.0.clone()).unwrap_or_default();
    gateway.record(AuditEntry {
        at: String::new(),
        by: operator.name,
        peer: peer.to_string(),
        action,
        detail,
        status: response.status().as_u16(),
    });
    response
}
