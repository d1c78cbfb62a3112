//! Sources and destinations, and pausing these.

use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::audit::Told;
use super::refused::Refused;
use super::{DestinationStatus, Known, Reverification, Shown, SourceStatus};

/// The configured sources.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Sources {
    /// In the order of the configuration.
    pub sources: Vec<SourceStatus>,
}

/// The configured destinations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Destinations {
    /// In the order of the configuration.
    pub destinations: Vec<DestinationStatus>,
}

pub(super) fn routes() -> OpenApiRouter<Known> {
    OpenApiRouter::new().routes(routes!(sources)).routes(routes!(destinations))
}

/// For operators only.
pub(super) fn changes() -> OpenApiRouter<Known> {
    OpenApiRouter::new()
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(probe))
        .routes(routes!(test))
}

/// The sources: how they stand, and what to do about their secrets
#[utoipa::path(get, path = "/sources", tag = "gateway", responses((status = 200, body = Sources)))]
async fn sources(State(gateway): Shown) -> Json<Sources> {
    Json(Sources { sources: gateway.status().sources })
}

/// The destinations: how they and their lanes stand
#[utoipa::path(get, path = "/destinations", tag = "gateway", responses((status = 200, body = Destinations)))]
async fn destinations(State(gateway): Shown) -> Json<Destinations> {
    Json(Destinations { destinations: gateway.status().destinations })
}

/// Begin no more attempts at a destination
///
/// What is under way ends by itself; what comes waits, and uses up no attempt. It stays paused over restarts, until it is
/// resumed.
#[utoipa::path(post, path = "/destinations/{name}/pause", tag = "gateway",
    params(("name" = String, Path, description = "Its name")), responses((status = 200, body = DestinationStatus)))]
async fn pause(State(gateway): Shown, Path(name): Path<String>) -> Result<Told<DestinationStatus>, Refused> {
    gateway.set_paused(&name, true).await.map(|status| Told(String::new(), status))
}

/// Go on with the attempts at a destination
#[utoipa::path(post, path = "/destinations/{name}/resume", tag = "gateway",
    params(("name" = String, Path, description = "Its name")), responses((status = 200, body = DestinationStatus)))]
async fn resume(State(gateway): Shown, Path(name): Path<String>) -> Result<Told<DestinationStatus>, Refused> {
    gateway.set_paused(&name, false).await.map(|status| Told(String::new(), status))
}

/// Attempt the next forward of a destination whose breaker is open, without waiting any longer
#[utoipa::path(post, path = "/destinations/{name}/probe", tag = "gateway",
    params(("name" = String, Path, description = "Its name")), responses((status = 200, body = DestinationStatus)))]
async fn probe(State(gateway): Shown, Path(name): Path<String>) -> Result<Told<DestinationStatus>, Refused> {
    gateway.probe(&name).map(|status| Told(String::new(), status))
}

/// Send a delivery to a source, signed with its secret as its provider would
///
/// It has the event type `countersign.test`, and is verified, stored and forwarded like any other.
#[utoipa::path(post, path = "/sources/{name}/test", tag = "gateway",
    params(("name" = String, Path, description = "Its name")), responses((status = 200, body = Reverification)))]
async fn test(State(gateway): Shown, Path(name): Path<String>) -> Result<Told<Reverification>, Refused> {
    gateway.send_test(&name).await.map(|sent| Told(format!("{} {}", sent.outcome, sent.id), sent))
}
