//! The operators' edge, never on the public listener. `GET /livez`, `/readyz` and `/metrics` take no token, nor does
//! `GET /api/v1/openapi.json`, which describes all the rest: it is made of the routes of the modules below, each of which
//! has its documents beside it. What changes something is for operators, and is audited. All other paths are the
//! `console`'s, the same for browsers.
//!
//! It knows what it is told through [`Gateway`], and changes nothing but through it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

mod audit;
mod auth;
mod connections;
mod console;
mod deliveries;
mod events;
mod handed_over;
mod jobs;
mod openapi;
mod pace;
mod places;
mod refused;
mod rejections;
mod reload;
mod shares;
mod status;

pub use audit::{Audit, AuditEntry, Operator};
pub use auth::{Denied, admit};
pub use connections::serve;
pub use deliveries::{
    AttemptDocument, Deliveries, DeliveryDetail, DeliveryQuery, DeliverySummary, ForwardChoice,
    ForwardDocument, ForwardsChanged,
};
pub use events::{Event, Events};
pub use handed_over::HandedOverSecret;
pub use jobs::{Dead, DeadGroupDocument, Job, JobKind, JobOrder, Jobs};
pub use places::{Destinations, Sources};
pub use refused::{Problem, Refused};
pub use rejections::{
    Explained, ExplainedCause, RejectionQuery, RejectionSummary, Rejections, Reverification, Reverifications,
};
pub use reload::Reloaded;
pub use status::{CertificateStatus, DestinationStatus, SecretStatus, SourceStatus, Status, StoreStatus};

use audit::Told;
use pace::Pace;
use refused::{SOON, as_problems, later, problem};

use crate::metrics::Metrics;
use crate::rate::Sampler;

/// Requests to the API at a time. Operators are few; a program that has run wild must not take the gateway with it.
const REQUESTS_MAX: usize = 64;
/// For how long a request may take. What it has begun in the background goes on.
const REQUEST_MAX: Duration = Duration::from_secs(30);
/// Bytes of a body: what can be said is short.
const BODY_MAX: usize = 64 << 10;

/// What the admin listener shows; the composition root implements it.
#[async_trait]
pub trait Gateway: Send + Sync + 'static {
    /// Who the sender of a request with these headers is, and what it may do; asked anew each time, so that a reload counts.
    ///
    /// # Errors
    /// When it may do nothing.
    fn admit(&self, headers: &HeaderMap) -> Result<Operator, Denied>;

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
    async fn rejections(&self, query: RejectionQuery) -> Result<Rejections, Refused>;

    /// One of them, explained.
    async fn rejection(&self, id: &str) -> Result<Explained, Refused>;

    /// Lets one in that verifies by now.
    async fn reverify(&self, id: &str) -> Result<Reverification, Refused>;

    /// The same of all that `query` wants and that have not been let in.
    async fn reverify_all(&self, query: RejectionQuery) -> Result<Reverifications, Refused>;

    /// The stored deliveries that `query` wants.
    async fn deliveries(&self, query: DeliveryQuery) -> Result<Deliveries, Refused>;

    /// One of them, with all that is known of it.
    async fn delivery(&self, id: &str) -> Result<DeliveryDetail, Refused>;

    /// Its body.
    async fn delivery_body(&self, id: &str) -> Result<Bytes, Refused>;

    /// Forwards a delivery again, to all its destinations or one.
    async fn replay_delivery(&self, id: &str, to: Option<String>) -> Result<ForwardsChanged, Refused>;

    /// Cancels what is pending of a delivery, at all its destinations or one.
    async fn cancel_delivery(&self, id: &str, to: Option<String>) -> Result<ForwardsChanged, Refused>;

    /// The dead letters: all in groups, and those that `query` wants.
    async fn dead(&self, query: DeliveryQuery) -> Result<Dead, Refused>;

    /// Begins a change to many forwards, in the name of `by`. Returns when it is over, or soon.
    async fn begin_job(self: Arc<Self>, kind: JobKind, order: JobOrder, by: String) -> Result<Job, Refused>;

    /// The changes to many forwards that are remembered.
    fn jobs(&self) -> Jobs;

    /// One of them.
    ///
    /// # Errors
    /// When it is not remembered.
    fn job(&self, id: &str) -> Result<Job, Refused>;

    /// Ends one of them where it is.
    ///
    /// # Errors
    /// When it is not remembered, or over.
    fn cancel_job(&self, id: &str) -> Result<Job, Refused>;

    /// Pauses or resumes a destination.
    async fn set_paused(&self, destination: &str, paused: bool) -> Result<DestinationStatus, Refused>;

    /// Sends a delivery to a source, signed as its provider would.
    async fn send_test(&self, source: &str) -> Result<Reverification, Refused>;

    /// Has a destination whose breaker is open be probed at once.
    ///
    /// # Errors
    /// When there is no such destination, or its breaker is not open.
    fn probe(&self, destination: &str) -> Result<DestinationStatus, Refused>;

    /// What happens, as it happens.
    fn events(&self) -> &Events;

    /// Logs and keeps that something was changed; when is not said by the caller.
    fn record(&self, entry: AuditEntry);

    /// The latest changes.
    fn audit(&self) -> Audit;
}

type Known = Arc<dyn Gateway>;
type Shown = State<Known>;

/// Whom the API lets in.
#[derive(Clone)]
struct Guard {
    gateway: Arc<dyn Gateway>,
    pace: Arc<Pace>,
    /// Decides which refusals are logged.
    refusals: Arc<Mutex<Sampler>>,
    origin: Instant,
}

/// The routes over `gateway`, for [`serve`].
pub fn router(gateway: Arc<dyn Gateway>) -> Router {
    let places = Arc::new(Semaphore::new(REQUESTS_MAX));
    let pace = Arc::new(Pace::new());
    let console = console::router(&gateway, &places, &pace);
    let nothing = || async { problem(StatusCode::NOT_FOUND, "there is no such resource") };
    let guarded =
        Guard { gateway: Arc::clone(&gateway), pace, refusals: Arc::default(), origin: Instant::now() };
    let audited = Arc::clone(&gateway);
    let changes = OpenApiRouter::new()
        .routes(routes!(reload))
        .routes(routes!(show_handed_over))
        .merge(deliveries::changes())
        .merge(jobs::changes())
        .merge(places::changes())
        .merge(rejections::changes())
        .route_layer(middleware::from_fn_with_state(audited, audit::operators_only));
    let api = OpenApiRouter::new()
        .routes(routes!(show_status))
        .merge(deliveries::routes())
        .merge(jobs::routes())
        .merge(places::routes())
        .merge(rejections::routes())
        .merge(audit::routes())
        .merge(events::routes())
        .merge(changes)
        .fallback(nothing)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn_with_state(guarded, guard))
        .layer(middleware::from_fn_with_state(places, limited));
    let (router, document) = OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(livez))
        .routes(routes!(readyz))
        .routes(routes!(show_metrics))
        .nest("/api/v1", api)
        .fallback(nothing)
        .with_state(gateway)
        .split_for_parts();
    let document = openapi::finish(document);
    router
        .route("/api/v1/openapi.json", get(move || openapi::serve(Arc::clone(&document))))
        .layer(middleware::from_fn(as_problems))
        .merge(console)
        .layer(Extension(deliveries::Readers::new()))
        .layer(middleware::from_fn(console::shut))
}

/// Whether the process serves
#[utoipa::path(get, path = "/livez", tag = "gateway",
    responses((status = 200, content_type = "text/plain; charset=utf-8", body = String)))]
async fn livez() -> &'static str {
    "ok\n"
}

/// Whether deliveries can be accepted, and why not
#[utoipa::path(get, path = "/readyz", tag = "gateway",
    responses((status = 200, content_type = "text/plain; charset=utf-8", body = String),
        (status = 503, content_type = "text/plain; charset=utf-8", body = String)))]
async fn readyz(State(gateway): Shown) -> Response {
    match gateway.ready() {
        Ok(()) => "ready\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response(),
    }
}

/// The metrics, for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "gateway",
    responses((status = 200, content_type = "text/plain", body = String)))]
async fn show_metrics(State(gateway): Shown) -> Response {
    let (page, content_type) = gateway.metrics().page();
    ([(CONTENT_TYPE, content_type)], page).into_response()
}

/// How the gateway stands
#[utoipa::path(get, path = "/status", tag = "gateway", responses((status = 200, body = Status)))]
async fn show_status(State(gateway): Shown) -> Json<Status> {
    Json(gateway.status())
}

/// Load the configuration anew, or, with every problem of it, keep the old one
#[utoipa::path(post, path = "/reload", tag = "gateway", responses((status = 200, body = Reloaded)))]
async fn reload(State(gateway): Shown) -> Result<Told<Reloaded>, Refused> {
    let reloaded = gateway.reload().await.map_err(Refused::Unprocessable)?;
    Ok(Told(String::new(), reloaded))
}

/// The secrets that a source's handshakes have handed over, which are then gone
#[utoipa::path(post, path = "/sources/{name}/handed-over", tag = "gateway",
    params(("name" = String, Path, description = "The source's name")),
    responses((status = 200, body = Vec<HandedOverSecret>)))]
async fn show_handed_over(State(gateway): Shown, Path(source): Path<String>) -> Result<Response, Refused> {
    match gateway.take_handed_over(&source).await {
        Ok(Some(secrets)) => {
            let told = Told(format!("{} shown", secrets.len()), secrets);
            Ok(([(CACHE_CONTROL, "no-store")], told).into_response())
        }
        Ok(None) => Err(Refused::NotFound("there is no such source".to_owned())),
        Err(why) => Err(Refused::Unavailable(why)),
    }
}

/// Bounds how many requests there are, and how long each takes.
async fn limited(State(places): State<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    let Ok(_place) = places.try_acquire() else {
        return later(
            StatusCode::SERVICE_UNAVAILABLE,
            "as many requests are answered as may at a time",
            SOON,
        );
    };
    match timeout(REQUEST_MAX, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let why = format!("not done within {} s", REQUEST_MAX.as_secs());
            later(StatusCode::SERVICE_UNAVAILABLE, &why, SOON)
        }
    }
}

async fn guard(
    State(guard): State<Guard>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    let response = match guard.pace.admit(&guard.gateway, peer.ip(), request.headers()) {
        Ok(operator) => {
            request.extensions_mut().insert(operator);
            next.run(request).await
        }
        Err(denied) => denied.into_response(),
    };
    let status = response.status();
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS) {
        let mut refusals = guard.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(unlogged) = refusals.note(guard.origin.elapsed()) {
            tracing::warn!(%peer, status = status.as_u16(), unlogged, "admin request refused");
        }
    }
    response
}
