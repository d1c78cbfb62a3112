//! The documents about stored deliveries, and their routes.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::stream;
use http::HeaderValue;
use http::header::{
    CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::audit::Told;
use super::refused::{Asked, Refused, Sent};
use super::{Known, Shown};

/// Which deliveries are wanted: everything that is given has to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeliveryQuery {
    /// Of this source.
    pub source: Option<String>,
    /// Of this event type.
    pub event: Option<String>,
    /// With a forward in this state (`waiting`, `in_flight`, `delivered`, `dead`, `cancelled`), or `unrouted`: with none.
    pub state: Option<String>,
    /// With this provider's identifier.
    pub delivery_id: Option<String>,
    /// Received at this time or later: RFC 3339, or how long ago, as `2h`.
    pub since: Option<String>,
    /// Received before this time: RFC 3339, or how long ago.
    pub until: Option<String>,
    /// With these bytes in the delivery id, the event type or the body.
    pub q: Option<String>,
    /// With a forward to this destination.
    pub destination: Option<String>,
    /// With a forward whose latest attempt ended so.
    pub outcome: Option<String>,
    /// At most so many; 100, when absent.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<u16>,
    /// Where an earlier answer ended.
    pub cursor: Option<String>,
}

/// How a forward stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ForwardDocument {
    /// Where to.
    pub destination: String,
    /// `waiting`, `in_flight`, `delivered`, `dead` or `cancelled`.
    pub state: String,
    /// Whether it waits behind a dead letter of its key, until that has been replayed, cancelled or purged.
    pub parked: bool,
    /// Attempts since it became pending.
    pub attempts: u32,
    /// RFC 3339; when the next attempt is due, while it waits.
    pub due_at: Option<String>,
    /// RFC 3339; since when it is, or was, pending.
    pub pending_since: String,
    /// Whether it was asked for again.
    pub replay: bool,
    /// RFC 3339; when it was settled.
    pub settled_at: Option<String>,
    /// How the latest attempt ended.
    pub outcome: Option<String>,
}

impl ForwardDocument {
    /// Its state in words.
    pub fn in_words(&self) -> String {
        if self.parked { format!("{} (parked)", self.state) } else { self.state.clone() }
    }
}

/// A delivery in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeliverySummary {
    /// The gateway's own id.
    pub id: String,
    /// The source that it came in by; like all that follows absent where the row is lost and only forwards are left.
    pub source: Option<String>,
    /// The provider's identifier.
    pub delivery_id: Option<String>,
    /// The event type.
    pub event: Option<String>,
    /// RFC 3339.
    pub received_at: Option<String>,
    /// The sender's address.
    pub sender: Option<String>,
    /// The method.
    pub method: Option<String>,
    /// Whether it was verified.
    pub verified: bool,
    /// The provider, `custom` for a source's own scheme, or `none`.
    pub scheme: Option<String>,
    /// The name of the secret that matched.
    pub secret: Option<String>,
    /// Seconds from the request's timestamp to the gateway's clock at receipt.
    pub skew_seconds: Option<i64>,
    /// Bytes of its body.
    pub body_bytes: u64,
    /// By destination; none when it is unrouted.
    pub forwards: Vec<ForwardDocument>,
}

/// A page of deliveries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Deliveries {
    /// The newest first.
    pub deliveries: Vec<DeliverySummary>,
    /// Where to go on; absent at the end. A page ends where enough has been looked at: it may be short, or empty, and not
    /// the last.
    pub cursor: Option<String>,
}

/// An attempt that failed, was a retry, or belonged to a replay: of others there is nothing to tell. Or one that was counted
/// and has no end on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AttemptDocument {
    /// Where to.
    pub destination: String,
    /// Its number, from 1; a replay begins anew.
    pub number: u32,
    /// RFC 3339; absent when it was cut off.
    pub started_at: Option<String>,
    /// How long it took; absent when it was cut off.
    pub duration_ms: Option<u64>,
    /// The outcome's label, or `cut_off`.
    pub outcome: String,
    /// The backend's status.
    pub status: Option<u16>,
    /// The beginning of the backend's answer, or the error's text.
    pub detail: String,
}

/// A delivery with all that is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeliveryDetail {
    /// As in the list.
    #[serde(flatten)]
    pub delivery: DeliverySummary,
    /// Path and query, with what may be secret masked.
    pub target: String,
    /// Its headers, with what may be secret masked.
    pub headers: Vec<(String, String)>,
    /// Its body, or the beginning of a large one.
    pub body: String,
    /// How `body` is written: `utf-8` as it is, or `base64`.
    pub body_encoding: String,
    /// Whether `body` is the beginning only.
    pub body_truncated: bool,
    /// In the order in which they ended.
    pub attempts: Vec<AttemptDocument>,
}

/// Which forwards of a delivery are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForwardChoice {
    /// The one to this destination; all, when absent.
    pub destination: Option<String>,
}

/// What a change has done to the forwards of a delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ForwardsChanged {
    /// The delivery.
    pub id: String,
    /// Destinations whose forward was changed.
    pub changed: Vec<String>,
    /// Destinations whose forward stands where the change does not fit, and so stayed as it was: what waits is not doubled.
    pub unchanged: Vec<String>,
}

pub(super) fn routes() -> OpenApiRouter<Known> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show)).routes(routes!(body))
}

/// For operators only.
pub(super) fn changes() -> OpenApiRouter<Known> {
    OpenApiRouter::new().routes(routes!(replay)).routes(routes!(cancel))
}

/// Stored deliveries, the newest first
#[utoipa::path(get, path = "/deliveries", tag = "deliveries", params(DeliveryQuery),
    responses((status = 200, body = Deliveries)))]
async fn list(
    State(gateway): Shown,
    Asked(query): Asked<DeliveryQuery>,
) -> Result<Json<Deliveries>, Refused> {
    gateway.deliveries(query).await.map(Json)
}

/// A delivery: how it was verified, its headers and body, its forwards and attempts
#[utoipa::path(get, path = "/deliveries/{id}", tag = "deliveries",
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, body = DeliveryDetail)))]
async fn show(State(gateway): Shown, Path(id): Path<String>) -> Result<Json<DeliveryDetail>, Refused> {
    gateway.delivery(&id).await.map(Json)
}

/// Bodies that are read at a time.
const READ_MAX: usize = 8;
/// Bytes of one that wait in its reader's connection.
const PART: usize = 64 << 10;

/// Places for readers of bodies: each holds a whole body in memory, and may be slow.
#[derive(Clone)]
pub(super) struct Readers(Arc<Semaphore>);

impl Readers {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(READ_MAX)))
    }

    fn take(self) -> Result<OwnedSemaphorePermit, Refused> {
        let none = |_| Refused::TooMany(format!("{READ_MAX} bodies are being read: try again"));
        self.0.try_acquire_owned().map_err(none)
    }
}

/// Keeps the place until the body has been read, or its reader is gone.
fn in_parts(body: Bytes, place: OwnedSemaphorePermit) -> Body {
    // Of a whole the connection would keep what it has not sent, and give the place back.
    Body::from_stream(stream::unfold((body, place), |(mut body, place)| async move {
        let part = body.split_to(body.len().min(PART));
        (!part.is_empty()).then_some((Ok::<_, Infallible>(part), (body, place)))
    }))
}

/// The body of a delivery, byte for byte
#[utoipa::path(get, path = "/deliveries/{id}/body", tag = "deliveries",
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>)))]
pub(super) async fn body(
    State(gateway): Shown,
    Extension(readers): Extension<Readers>,
    Path(id): Path<String>,
) -> Result<Response, Refused> {
    let place = readers.take()?;
    let body = gateway.delivery_body(&id).await?;
    let length = HeaderValue::from(body.len());
    // A stranger has written it: no browser may take it for a page of ours.
    let inert = [
        (CONTENT_TYPE, "application/octet-stream"),
        (CONTENT_DISPOSITION, "attachment"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (CONTENT_SECURITY_POLICY, "sandbox; default-src 'none'"),
    ];
    Ok((inert, [(CONTENT_LENGTH, length)], in_parts(body, place)).into_response())
}

/// Forward a delivery again, to all its destinations or one: marked as a replay, under the same id
#[utoipa::path(post, path = "/deliveries/{id}/replay", tag = "deliveries",
    params(("id" = String, Path, description = "Its id")),
    request_body = Option<ForwardChoice>, responses((status = 200, body = ForwardsChanged)))]
async fn replay(
    State(gateway): Shown,
    Path(id): Path<String>,
    Sent(choice): Sent<ForwardChoice>,
) -> Result<Told<ForwardsChanged>, Refused> {
    let changed = gateway.replay_delivery(&id, choice.destination).await?;
    Ok(Told(format!("to {}", changed.changed.join(", ")), changed))
}

/// Cancel what is pending of a delivery, at all its destinations or one
#[utoipa::path(post, path = "/deliveries/{id}/cancel", tag = "deliveries",
    params(("id" = String, Path, description = "Its id")),
    request_body = Option<ForwardChoice>, responses((status = 200, body = ForwardsChanged)))]
async fn cancel(
    State(gateway): Shown,
    Path(id): Path<String>,
    Sent(choice): Sent<ForwardChoice>,
) -> Result<Told<ForwardsChanged>, Refused> {
    let changed = gateway.cancel_delivery(&id, choice.destination).await?;
    Ok(Told(format!("to {}", changed.changed.join(", ")), changed))
}
