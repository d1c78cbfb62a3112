//! The operators' edge, never on the public listener:
//!
//! | route | token | answer |
//! |---|---|---|
//! | `GET /livez` | no | 200 while the process serves |
//! | `GET /readyz` | no | 200 when deliveries can be accepted, else 503 and why |
//! | `GET /metrics` | no | Prometheus text |
//! | `GET /api/v1/status` | viewer | [`Status`] |
//! | `GET /api/v1/rejections?source=&reason=&open=&limit=&cursor=` | viewer | [`Rejections`], the newest first |
//! | `GET /api/v1/rejections/{id}` | viewer | [`Explained`]: what was received, and why it is refused |
//! | `POST /api/v1/rejections/{id}/reverify` | operator | [`Reverification`]; 409 when it has been let in before |
//! | `POST /api/v1/rejections/reverify?source=&reason=&limit=&cursor=` | operator | [`Reverifications`] |
//! | `POST /api/v1/reload` | operator | [`Reloaded`], or 422 with every problem of the configuration |
//! | `POST /api/v1/sources/{name}/handed-over` | operator | [`HandedOverSecret`]s, which are then gone |
//!
//! It knows what it is told through [`Gateway`], and changes nothing but through it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use tokio::time::Instant;

mod auth;
mod handed_over;
mod rejections;
mod reload;
mod status;

pub use auth::{Denied, admit};
pub use handed_over::HandedOverSecret;
pub use rejections::{
    Explained, ExplainedCause, RejectionQuery, RejectionRefused, RejectionSummary, Rejections,
    Reverification, Reverifications,
};
pub use reload::Reloaded;
pub use status::{CertificateStatus, DestinationStatus, SecretStatus, SourceStatus, Status, StoreStatus};

use crate::config::Role;
use crate::metrics::Metrics;
use crate::rate::Sampler;

/// What the admin listener shows; the composition root implements it.
#[async_trait]
pub trait Gateway: Send + Sync + 'static {
    /// What the sender of a request with these headers may do; asked anew each time, so that a reload counts.
    ///
    /// # Errors
    /// When it may do nothing.
    fn admit(&self, headers: &HeaderMap) -> Result<Role, Denied>;

    /// Whether deliveries can be accepted.
    ///
    /// # Errors
    /// Why not.
    fn ready(&self) -> Result<(), String>;

    /// The catalogue behind `/metrics`, with the gauges that are read rather than counted brought up to date.
    fn metrics(&self) -> &Metrics;

    /// How things stand.
    fn status(&self) -> Status;

    /// The secrets that handshakes of this source have handed over, which are then kept no more; `None` without such a source.
    ///
    /// # Errors
    /// Why the store cannot tell.
    async fn take_handed_over(&self, source: &str) -> Result<Option<Vec<HandedOverSecret>>, String>;

    /// Loads the configuration anew. Reloads come one after the other, and go on when the future is dropped.
    ///
    /// # Errors
    /// With every problem of the configuration, and no secret; everything has stayed as it was.
    async fn reload(self: Arc<Self>) -> Result<Reloaded, String>;

    /// The requests in quarantine that `query` wants.
    async fn rejections(&self, query: RejectionQuery) -> Result<Rejections, RejectionRefused>;

    /// One of them, explained.
    async fn rejection(&self, id: &str) -> Result<Explained, RejectionRefused>;

    /// Lets one in that verifies by now.
    async fn reverify(&self, id: &str) -> Result<Reverification, RejectionRefused>;

    /// The same of all that `query` wants and that have not been let in.
    async fn reverify_all(&self, query: RejectionQuery) -> Result<Reverifications, RejectionRefused>;
}

type Shown = State<Arc<dyn Gateway>>;

/// Whom the API lets in.
#[derive(Clone)]
struct Guard {
    gateway: Arc<dyn Gateway>,
    /// Decides which refusals are logged.
    refusals: Arc<Mutex<Sampler>>,
    origin: Instant,
}

/// The routes over `gateway`, to be served with the peer's address as [`ConnectInfo`].
pub fn router(gateway: Arc<dyn Gateway>) -> Router {
    let nothing = || async { problem(StatusCode::NOT_FOUND, "there is no such resource") };
    let guarded = Guard { gateway: Arc::clone(&gateway), refusals: Arc::default(), origin: Instant::now() };
    let changes = Router::new()
        .route("/reload", post(reload))
        .route("/sources/{name}/handed-over", post(show_handed_over))
        .merge(rejections::changes())
        .route_layer(middleware::from_fn(operators_only));
    let api = Router::new()
        .route("/status", get(show_status))
        .merge(rejections::routes())
        .merge(changes)
        .fallback(nothing)
        .layer(middleware::from_fn_with_state(guarded, guard));
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(show_metrics))
        .nest("/api/v1", api)
        .fallback(nothing)
        .with_state(gateway)
}

async fn readyz(State(gateway): Shown) -> Response {
    match gateway.ready() {
        Ok(()) => "ready\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response(),
    }
}

async fn show_metrics(State(gateway): Shown) -> Response {
    let (page, content_type) = gateway.metrics().page();
    ([(CONTENT_TYPE, content_type)], page).into_response()
}

async fn show_status(State(gateway): Shown) -> Json<Status> {
    Json(gateway.status())
}

async fn reload(State(gateway): Shown) -> Response {
    match gateway.reload().await {
        Ok(reloaded) => Json(reloaded).into_response(),
        Err(problems) => problem(StatusCode::UNPROCESSABLE_ENTITY, &problems),
    }
}

async fn show_handed_over(State(gateway): Shown, Path(source): Path<String>) -> Response {
    match gateway.take_handed_over(&source).await {
        Ok(Some(secrets)) => ([(CACHE_CONTROL, "no-store")], Json(secrets)).into_response(),
        Ok(None) => problem(StatusCode::NOT_FOUND, "there is no such source"),
        Err(why) => problem(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}

async fn guard(
    State(guard): State<Guard>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    let response = match guard.gateway.admit(request.headers()) {
        Ok(role) => {
            request.extensions_mut().insert(role);
            next.run(request).await
        }
        Err(denied) => problem(denied.status(), &denied.to_string()),
    };
    if matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        let mut refusals = guard.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(unlogged) = refusals.note(guard.origin.elapsed()) {
            tracing::warn!(%peer, status = response.status().as_u16(), unlogged, "admin request refused");
        }
    }
    response
}

/// Behind [`guard`], which says what the sender may do.
async fn operators_only(request: Request, next: Next) -> Response {
    if request.extensions().get::<Role>() == Some(&Role::Operator) {
        next.run(request).await
    } else {
        problem(StatusCode::FORBIDDEN, "this takes a token whose role is `operator`")
    }
}

/// RFC 9457.
fn problem(status: StatusCode, detail: &str) -> Response {
    #[derive(Serialize)]
    struct Problem<'a> {
        r#type: &'static str,
        title: &'static str,
        status: u16,
        detail: &'a str,
    }
    let title = status.canonical_reason().unwrap_or("Error");
    let body = Json(Problem { r#type: "about:blank", title, status: status.as_u16(), detail });
    (status, [(CONTENT_TYPE, "application/problem+json")], body).into_response()
}
