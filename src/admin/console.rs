//! The console: what the API does, as pages. Whoever has no session logs in with a token; what a page shows and does goes
//! through [`Gateway`](super::Gateway), is judged by the role of that token, and is audited in its name. The pages are
//! complete without the script, which adds what is live. Nothing is loaded from anywhere else, and no page may run or
//! style what is not in the files served here: whatever strangers have sent is text.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use http::HeaderValue;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use tokio::sync::Semaphore;
use tokio::time::Instant;

mod body;
mod chart;
mod dead;
mod deliveries;
mod enter;
mod history;
mod layout;
mod overview;
mod places;
mod rejections;
mod session;

use super::audit::Operator;
use super::pace::Pace;
use super::{BODY_MAX, Known, audit, limited};
use crate::rate::Sampler;
use history::History;
use session::Sessions;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// For how long events are told at a time: a browser asks again by itself, and then its session has to be good still.
const LIVE_MAX: Duration = Duration::from_mins(2);

/// Logins at a time: whoever sends one slowly is nobody yet, and takes no place from those who are somebody.
const LOGINS_MAX: usize = 16;

/// What the pages are made from.
#[derive(Clone)]
struct Console {
    gateway: Known,
    sessions: Arc<Sessions>,
    history: Arc<History>,
    pace: Arc<Pace>,
    /// Decides which refusals are logged.
    refusals: Arc<Mutex<Sampler>>,
    origin: Instant,
}

/// The pages over `gateway`; requests to them, but for the login, and to the API share `places`.
pub(super) fn router(gateway: &Known, places: &Arc<Semaphore>, pace: &Arc<Pace>) -> Router {
    let console = Console {
        gateway: Arc::clone(gateway),
        sessions: Arc::new(Sessions::new()),
        history: History::follow(gateway),
        pace: Arc::clone(pace),
        refusals: Arc::default(),
        origin: Instant::now(),
    };
    let changes = Router::new()
        .merge(deliveries::changes())
        .merge(dead::changes())
        .merge(rejections::changes())
        .merge(places::changes())
        .route_layer(middleware::from_fn_with_state(Arc::clone(gateway), audit::operators_only))
        // Not for operators only, and told by itself.
        .route("/logout", post(enter::logout))
        .route_layer(middleware::from_fn_with_state(console.clone(), enter::from_our_forms));
    let pages = Router::new()
        .route("/", get(overview::show))
        .route("/live", get(live))
        .merge(deliveries::pages())
        .merge(dead::pages())
        .merge(rejections::pages())
        .merge(places::pages())
        .merge(changes)
        .route_layer(middleware::from_fn(enter::as_pages))
        .route_layer(middleware::from_fn_with_state(console.clone(), enter::enter));
    let logins = Arc::new(Semaphore::new(LOGINS_MAX));
    let login = Router::new()
        .route("/login", get(enter::show_login).post(enter::login))
        .route_layer(middleware::from_fn(enter::as_pages))
        .layer(middleware::from_fn_with_state(logins, limited));
    Router::new()
        .route(
            "/assets/console.css",
            get(|| asset("text/css; charset=utf-8", include_str!("console/console.css"))),
        )
        .route(
            "/assets/console.js",
            get(|| asset("text/javascript; charset=utf-8", include_str!("console/console.js"))),
        )
        .route("/assets/icon.svg", get(|| asset("image/svg+xml", include_str!("console/icon.svg"))))
        .merge(pages)
        .layer(middleware::from_fn_with_state(Arc::clone(places), limited))
        .merge(login)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(console)
}

/// What happens, as it happens: the API's events, for who has a session.
async fn live(State(console): State<Console>, Extension(operator): Extension<Operator>) -> Response {
    super::events::told(&console.gateway, &operator, Some(Instant::now() + LIVE_MAX))
}

async fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-cache")], text).into_response()
}

/// Says to the browser what nothing that is served here may do.
pub(super) async fn shut(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let said = [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        // Not `no-referrer`, with which browsers send forms from the origin `null`.
        (REFERRER_POLICY, "same-origin"),
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in said {
        // What is served as bytes has a stricter one of its own.
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}
