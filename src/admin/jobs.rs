//! The documents about dead letters and about changes to many forwards, and their routes.

use axum::Json;
use axum::extract::{Extension, Path, State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::audit::{Operator, Told};
use super::deliveries::{DeliveryQuery, DeliverySummary};
use super::refused::{Asked, Refused, Sent};
use super::{Known, Shown};

/// Dead letters at one destination that died of the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeadGroupDocument {
    /// Where to.
    pub destination: String,
    /// How the last attempt ended; `corrupt` when the delivery could not be read.
    pub outcome: Option<String>,
    /// How many.
    pub count: u64,
}

/// The dead letters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Dead {
    /// All of them by destination and outcome, whatever the query.
    pub groups: Vec<DeadGroupDocument>,
    /// Whether `groups` counts all, or there are so many that it counts the newest only.
    pub groups_complete: bool,
    /// Deliveries with a dead letter that match, the newest first.
    pub deliveries: Vec<DeliverySummary>,
    /// Where to go on; absent at the end.
    pub cursor: Option<String>,
}

/// Which forwards are to be changed, and how fast. Everything that is given has to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobOrder {
    /// Of deliveries of this source.
    pub source: Option<String>,
    /// Of deliveries of this event type.
    pub event: Option<String>,
    /// Of deliveries with this provider's identifier.
    pub delivery_id: Option<String>,
    /// Of deliveries received at this time or later: RFC 3339, or how long ago, as `2h`.
    pub since: Option<String>,
    /// Of deliveries received before this time; the time of the order, when absent.
    pub until: Option<String>,
    /// Of deliveries with these bytes in their id, event type or body.
    pub q: Option<String>,
    /// To this destination.
    pub destination: Option<String>,
    /// In this state: `delivered`, `dead` or `cancelled`, in which what was purged is, too. Dead letters are `dead`; replayed are
    /// both `delivered` and `dead` ones, when absent.
    pub state: Option<String>,
    /// Whose latest attempt ended so.
    pub outcome: Option<String>,
    /// At most so many, as `50/s`; as fast as they are written down, when absent.
    pub rate: Option<String>,
    /// Only count.
    #[serde(default)]
    pub dry_run: bool,
}

/// A change to many forwards, in the background. It ends with the process: what it has done by then stays done, and its
/// last log line tells how far it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// Its id.
    pub id: String,
    /// `replay` or `purge`.
    pub kind: String,
    /// What was ordered.
    pub order: JobOrder,
    /// By whom.
    pub by: String,
    /// `counting`, `running`, `done`, `cancelled` or `failed`.
    pub state: String,
    /// Forwards that match, as far as they have been counted.
    pub matched: u64,
    /// Forwards that have been changed.
    pub done: u64,
    /// Forwards that were changed by something else in the meantime, and so left alone.
    pub skipped: u64,
    /// Forwards that the store could not change, whereupon the job ended; it did not come to those after them.
    pub failed: u64,
    /// RFC 3339.
    pub started_at: String,
    /// RFC 3339.
    pub ended_at: Option<String>,
    /// RFC 3339; when the last delivery that it came to had been received: the order of arrival is the order of replays.
    pub reached: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
}

impl Job {
    /// Forwards that match and that it has not come to, or not yet.
    pub fn left(&self) -> u64 {
        self.matched.saturating_sub(self.done + self.skipped + self.failed)
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        self.ended_at.is_some()
    }
}

/// What is to be done to many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobKind {
    /// Replay what was settled.
    Replay,
    /// Replay dead letters.
    ReplayDead,
    /// Purge dead letters.
    PurgeDead,
}

/// The jobs that are remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Jobs {
    /// The newest first.
    pub jobs: Vec<Job>,
}

pub(super) fn routes() -> OpenApiRouter<Known> {
    OpenApiRouter::new().routes(routes!(dead)).routes(routes!(list)).routes(routes!(show))
}

/// For operators only.
pub(super) fn changes() -> OpenApiRouter<Known> {
    OpenApiRouter::new()
        .routes(routes!(replay))
        .routes(routes!(replay_dead))
        .routes(routes!(purge_dead))
        .routes(routes!(cancel))
}

/// Dead letters: what they died of, and a page of them
#[utoipa::path(get, path = "/dead", tag = "dead letters", params(DeliveryQuery),
    responses((status = 200, body = Dead)))]
async fn dead(State(gateway): Shown, Asked(query): Asked<DeliveryQuery>) -> Result<Json<Dead>, Refused> {
    gateway.dead(query).await.map(Json)
}

/// Changes to many forwards: those that run, and the latest that are over
#[utoipa::path(get, path = "/jobs", tag = "jobs", responses((status = 200, body = Jobs)))]
async fn list(State(gateway): Shown) -> Json<Jobs> {
    Json(gateway.jobs())
}

/// How far a change to many forwards has come
#[utoipa::path(get, path = "/jobs/{id}", tag = "jobs",
    params(("id" = String, Path, description = "Its id")), responses((status = 200, body = Job)))]
async fn show(State(gateway): Shown, Path(id): Path<String>) -> Result<Json<Job>, Refused> {
    gateway.job(&id).map(Json)
}

/// End a change to many forwards where it is
#[utoipa::path(post, path = "/jobs/{id}/cancel", tag = "jobs",
    params(("id" = String, Path, description = "Its id")), responses((status = 200, body = Job)))]
async fn cancel(State(gateway): Shown, Path(id): Path<String>) -> Result<Told<Job>, Refused> {
    gateway.cancel_job(&id).map(|job| Told(format!("after {}", job.done), job))
}

/// Forward again whatever matches and is delivered, dead or cancelled
///
/// At least one condition has to be given. The answer comes when the job is over, or after two seconds.
#[utoipa::path(post, path = "/replay", tag = "jobs", request_body = JobOrder,
    responses((status = 200, body = Job)))]
async fn replay(
    State(gateway): Shown,
    Extension(operator): Extension<Operator>,
    Sent(order): Sent<JobOrder>,
) -> Result<Told<Job>, Refused> {
    begin(gateway, JobKind::Replay, order, operator).await
}

/// Forward dead letters again: all, or those that match
///
/// The answer comes when the job is over, or after two seconds.
#[utoipa::path(post, path = "/dead/replay", tag = "dead letters", request_body = Option<JobOrder>,
    responses((status = 200, body = Job)))]
async fn replay_dead(
    State(gateway): Shown,
    Extension(operator): Extension<Operator>,
    Sent(order): Sent<JobOrder>,
) -> Result<Told<Job>, Refused> {
    begin(gateway, JobKind::ReplayDead, order, operator).await
}

/// Cancel dead letters: all, or those that match
///
/// They are removed by retention, like what was delivered, and can be replayed until then. The answer comes when the job is
/// over, or after two seconds.
#[utoipa::path(post, path = "/dead/purge", tag = "dead letters", request_body = Option<JobOrder>,
    responses((status = 200, body = Job)))]
async fn purge_dead(
    State(gateway): Shown,
    Extension(operator): Extension<Operator>,
    Sent(order): Sent<JobOrder>,
) -> Result<Told<Job>, Refused> {
    begin(gateway, JobKind::PurgeDead, order, operator).await
}

async fn begin(
    gateway: Known,
    kind: JobKind,
    order: JobOrder,
    operator: Operator,
) -> Result<Told<Job>, Refused> {
    begun(gateway, kind, order, &operator).await.map(|(job, told)| Told(told, job))
}

/// Begins a job; it, and what the audit log is to say of it.
pub(super) async fn begun(
    gateway: Known,
    kind: JobKind,
    order: JobOrder,
    operator: &Operator,
) -> Result<(Job, String), Refused> {
    let told = serde_json::to_string(&order).unwrap_or_default();
    let job = gateway.begin_job(kind, order, operator.name.clone()).await?;
    let told = format!("job {} {told}", job.id);
    Ok((job, told))
}
