//! Dead letters: what they died of, and changes to many forwards at once, with how far they have come.

use axum::extract::{Form, Path, Query, State};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Router};
use maud::{Markup, html};
use serde::Deserialize;

use super::Console;
use super::deliveries::{choice, done, given, more, search, table};
use super::enter::Visitor;
use super::layout::{Action, Tab, number, page, plain, query, seal, state, time};
use crate::admin::refused::Refused;
use crate::admin::{DeadGroupDocument, Deliveries, DeliveryQuery, Job, JobKind, JobOrder};

pub(super) fn pages() -> Router<Console> {
    Router::new().route("/dead", get(show)).route("/jobs/{id}", get(job))
}

/// For operators only.
pub(super) fn changes() -> Router<Console> {
    Router::new()
        .route("/dead/replay", post(replay_dead))
        .route("/dead/purge", post(purge_dead))
        .route("/replay", post(replay))
        .route("/jobs/{id}/cancel", post(cancel))
}

async fn show(
    State(console): State<Console>,
    Extension(visitor): Extension<Visitor>,
    Query(asked): Query<DeliveryQuery>,
) -> Result<Response, Refused> {
    let asked = given(DeliveryQuery { limit: asked.limit.or(Some(50)), ..asked });
    let dead = console.gateway.dead(asked.clone()).await?;
    let status = console.gateway.status();
    let jobs = console.gateway.jobs().jobs;
    let all: u64 = dead.groups.iter().map(|group| group.count).sum();
    let found = Deliveries { deliveries: dead.deliveries, cursor: dead.cursor };
    let body = html! {
        h1 { "Dead letters" }
        section {
            h2 { "By destination and cause" }
            @if dead.groups.is_empty() { p.well { (state("ok")) " There are none." } } @else {
                @if !dead.groups_complete { p.dim { "There are many: the newest are counted." } }
                div.wide { table {
                    thead { tr { th { "Destination" } th { "Died of" } th.n { "Letters" } th {} } }
                    tbody { @for group in &dead.groups { (self::group(group, &visitor)) } }
                } }
                p.dim { (number(all)) " in all. What is purged can be replayed until retention removes it." }
            }
        }
        @if visitor.may_change() {
            (order_form(&visitor, &asked, "Replay or purge those that match"))
        }
        @if !jobs.is_empty() {
            section {
                h2 { "Jobs" }
                div.wide { table {
                    thead { tr { th { "Began" } th { "What" } th { "By" } th { "State" } th.n { "Done" } th.n { "Matched" } } }
                    tbody { @for each in &jobs { tr {
                        td { a href={ "/jobs/" (each.id) } { (time(&each.started_at)) } }
                        td { (each.kind) @if each.order.dry_run { " (dry run)" } }
                        td { (plain(&each.by)) }
                        td { (state(&each.state)) }
                        td.n { (number(each.done)) }
                        td.n { (number(each.matched)) }
                    } } }
                } }
            }
        }
        h2 { "Letters" }
        (search(&asked, &status, "/dead"))
        (table(&found, &asked))
        (more(&found, &asked, "/dead"))
    };
    Ok(page(&visitor, Some(Tab::Dead), "Dead letters", &body))
}

fn group(group: &DeadGroupDocument, visitor: &Visitor) -> Markup {
    let outcome = group.outcome.as_deref();
    let these = query([("destination", Some(&*group.destination)), ("outcome", outcome)]);
    let action = |to: &str, label| {
        let question = format!("{label} {} dead letters of {}?", group.count, group.destination);
        let action =
            Action::new(to.to_owned(), label).with("destination", &group.destination).confirm(question);
        action.with("outcome", outcome.unwrap_or_default()).button(visitor)
    };
    html! {
        tr {
            td { (group.destination) }
            td { (outcome.unwrap_or("unknown").replace('_', " ")) }
            td.n { a href={ "/dead" (these) } { (number(group.count)) } }
            td.actions { (action("/dead/replay", "Replay")) (action("/dead/purge", "Purge")) }
        }
    }
}

/// A change by filter, which begins with what the page was searched for.
fn order_form(visitor: &Visitor, asked: &DeliveryQuery, title: &str) -> Markup {
    let value = |text: &Option<String>| text.clone().unwrap_or_default();
    html! {
        details open[*asked != DeliveryQuery { limit: asked.limit, ..DeliveryQuery::default() }] {
            summary { (title) }
            form.search method="post" action="/dead/replay" data-confirm="Change all that match?" {
                (seal(visitor))
                label { "Destination" input name="destination" value=(value(&asked.destination)); }
                label { "Died of" input name="outcome" value=(value(&asked.outcome)); }
                label { "Source" input name="source" value=(value(&asked.source)); }
                label { "Event" input name="event" value=(value(&asked.event)); }
                label { "Delivery id" input name="delivery_id" value=(value(&asked.delivery_id)); }
                label { "Since" input name="since" value=(value(&asked.since)) placeholder="2h"; }
                label { "Until" input name="until" value=(value(&asked.until)); }
                label { "Text" input name="q" value=(value(&asked.q)); }
                label { "At most" input name="rate" placeholder="50/s"; }
                label { "Dry run" (choice("dry_run", ["yes"], None)) }
                button.primary type="submit" { "Replay" }
                button type="submit" formaction="/dead/purge" { "Purge" }
            }
        }
    }
}

/// An order as a form sends it: a field that was left empty orders nothing.
#[derive(Deserialize)]
struct Order {
    source: Option<String>,
    event: Option<String>,
    delivery_id: Option<String>,
    since: Option<String>,
    until: Option<String>,
    q: Option<String>,
    destination: Option<String>,
    state: Option<String>,
    outcome: Option<String>,
    rate: Option<String>,
    dry_run: Option<String>,
}

impl From<Order> for JobOrder {
    fn from(order: Order) -> Self {
        let some =
            |text: Option<String>| text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        Self {
            source: some(order.source),
            event: some(order.event),
            delivery_id: some(order.delivery_id),
            since: some(order.since),
            until: some(order.until),
            q: some(order.q),
            destination: some(order.destination),
            state: some(order.state),
            outcome: some(order.outcome),
            rate: some(order.rate),
            dry_run: some(order.dry_run).is_some(),
        }
    }
}

async fn replay(
    console: State<Console>,
    visitor: Extension<Visitor>,
    order: Form<Order>,
) -> Result<Response, Refused> {
    begin(console, visitor, JobKind::Replay, order).await
}

async fn replay_dead(
    console: State<Console>,
    visitor: Extension<Visitor>,
    order: Form<Order>,
) -> Result<Response, Refused> {
    begin(console, visitor, JobKind::ReplayDead, order).await
}

async fn purge_dead(
    console: State<Console>,
    visitor: Extension<Visitor>,
    order: Form<Order>,
) -> Result<Response, Refused> {
    begin(console, visitor, JobKind::PurgeDead, order).await
}

async fn begin(
    State(console): State<Console>,
    Extension(visitor): Extension<Visitor>,
    kind: JobKind,
    Form(order): Form<Order>,
) -> Result<Response, Refused> {
    let (job, told) =
        crate::admin::jobs::begun(console.gateway, kind, order.into(), &visitor.operator).await?;
    Ok(done(&visitor, said(&job), &format!("/jobs/{}", job.id), told))
}

async fn cancel(
    State(console): State<Console>,
    Extension(visitor): Extension<Visitor>,
    Path(id): Path<String>,
) -> Result<Response, Refused> {
    let job = console.gateway.cancel_job(&id)?;
    let back = format!("/jobs/{}", job.id);
    Ok(done(&visitor, "It ends where it is.".to_owned(), &back, format!("after {}", job.done)))
}

fn said(job: &Job) -> String {
    match &*job.state {
        "done" if job.order.dry_run => format!("{} match; nothing was changed.", job.matched),
        "done" => format!("{} of {} changed.", job.done, job.matched),
        _ => "It has begun.".to_owned(),
    }
}

async fn job(
    State(console): State<Console>,
    Extension(visitor): Extension<Visitor>,
    Path(id): Path<String>,
) -> Result<Response, Refused> {
    let job = console.gateway.job(&id)?;
    let order = serde_json::to_value(&job.order).unwrap_or_default();
    let conditions = order
        .as_object()
        .map(|fields| fields.iter().filter(|(_, value)| value.is_string()).collect::<Vec<_>>());
    let body = html! {
        // A job that is over has no more to tell.
        div data-refresh=[(!job.is_over()).then_some("1")] {
            h1 { "Job: " (job.kind) @if job.order.dry_run { ", dry run" } " " (state(&job.state)) }
            section {
                progress max=(job.matched.max(1)) value=(job.done + job.skipped + job.failed) aria-label="Progress" {}
                dl.facts {
                    div { dt { "Matched" } dd { (number(job.matched)) } }
                    div { dt { "Done" } dd { (number(job.done)) } }
                    div { dt { "Left alone" } dd { (number(job.skipped)) } }
                    div { dt { "Failed" } dd { (number(job.failed)) } }
                    @if !job.order.dry_run { div { dt { "Not reached" } dd { (number(job.left())) } } }
                    div { dt { "By" } dd { (plain(&job.by)) } }
                    div { dt { "Began" } dd { (time(&job.started_at)) } }
                    div { dt { "Ended" } dd { @match &job.ended_at { Some(at) => { (time(at)) } None => { "–" } } } }
                    @for (name, value) in conditions.unwrap_or_default() {
                        div { dt { (name.replace('_', " ")) } dd { (plain(value.as_str().unwrap_or_default())) } }
                    }
                }
                @if let Some(error) = &job.error { p.refusal { (plain(error)) } }
                @if !job.is_over() {
                    div.bar { (Action::new(format!("/jobs/{}/cancel", job.id), "End it here").button(&visitor)) }
                }
            }
            p { a href="/dead" { "To the dead letters" } }
        }
    };
    Ok(page(&visitor, Some(Tab::Dead), "Job", &body))
}
