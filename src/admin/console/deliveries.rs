//! Stored deliveries: searched, watched as they come, and one of them with all that is known of it.

use axum::extract::{Form, Path, Query, State};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use http::HeaderValue;
use http::header::CONTENT_DISPOSITION;
use maud::{Markup, html};
use serde::Deserialize;

use super::Console;
use super::body::{Shown, curl, masked, shown};
use super::enter::Visitor;
use super::layout::{Action, Tab, bytes, number, or_dash, page, plain, query, state, time};
use crate::admin::audit::Detail;
use crate::admin::deliveries::{Readers, body};
use crate::admin::refused::Refused;
use crate::admin::{
    AttemptDocument, Deliveries, DeliveryDetail, DeliveryQuery, DeliverySummary, ForwardDocument,
    ForwardsChanged, Status,
};

pub(super) fn pages() -> Router<Console> {
    Router::new()
        .route("/deliveries", get(list))
        .route("/deliveries/{id}", get(show))
        .route("/deliveries/{id}/body", get(download))
}

/// For operators only.
pub(super) fn changes() -> Router<Console> {
    Router::new()
        .route("/deliveries/{id}/replay", post(replay))
        .route("/deliveries/{id}/cancel", post(cancel))
}

/// What a form of the page asks for: a field that was left empty asks for nothing.
pub(super) fn given(asked: DeliveryQuery) -> DeliveryQuery {
    let some = |text: Option<String>| text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    DeliveryQuery {
        source: some(asked.source),
        event: some(asked.event),
        state: some(asked.state),
        delivery_id: some(asked.delivery_id),
        since: some(asked.since),
        until: some(asked.until),
        q: some(asked.q),
        destination: some(asked.destination),
        outcome: some(asked.outcome),
        limit: asked.limit,
        cursor: some(asked.cursor),
    }
}

async fn list(
    State(console): State<Console>,
    Extension(visitor): Extension<Visitor>,
    Query(asked): Query<DeliveryQuery>,
) -> Result<Response, Refused> {
    let asked = given(DeliveryQuery { limit: asked.limit.or(Some(50)), ..asked });
    let is_first = asked.cursor.is_none();
    let is_all = asked == DeliveryQuery { limit: asked.limit, ..DeliveryQuery::default() };
    let status = console.gateway.status();
    let found = console.gateway.deliveries(asked.clone()).await?;
    let body = html! {
        h1 { "Deliveries" }
        (search(&asked, &status, "/deliveries"))
        @if is_first {
            div.bar {
                button type="button" data-live-toggle hidden aria-pressed="false" { "Live tail" }
                span.dim data-live-state role="status" {}
                @if !is_all { a href="/deliveries" { "Clear the search" } }
            }
        }
        (table(&found, &asked))
        (more(&found, &asked, "/deliveries"))
    };
    Ok(page(&visitor, Some(Tab::Deliveries), "Deliveries", &body))
}

/// The fields by which deliveries are searched.
pub(super) fn search(asked: &DeliveryQuery, status: &Status, to: &str) -> Markup {
    let value = |text: &Option<String>| text.clone().unwrap_or_default();
    let states = ["waiting", "in_flight", "delivered", "dead", "cancelled", "unrouted"];
    html! {
        form.search method="get" action=(to) role="search" {
            label { "Text" input type="search" name="q" value=(value(&asked.q)) placeholder="in id, event or body" data-search; }
            label { "Source" (choice("source", status.sources.iter().map(|source| &*source.name), asked.source.as_deref())) }
            label { "Destination" (choice("destination", status.destinations.iter().map(|known| &*known.name), asked.destination.as_deref())) }
            @if to == "/deliveries" { label { "State" (choice("state", states, asked.state.as_deref())) } }
            label { "Event" input name="event" value=(value(&asked.event)); }
            label { "Delivery id" input name="delivery_id" value=(value(&asked.delivery_id)); }
            label { "Since" input name="since" value=(value(&asked.since)) placeholder="2h, or 2026-11-30T08:00:00Z"; }
            label { "Until" input name="until" value=(value(&asked.until)) placeholder="10m"; }
            @if let Some(outcome) = &asked.outcome { label { "Outcome" input name="outcome" value=(outcome); } }
            button.primary type="submit" { "Search" }
        }
    }
}

/// One of several, or any.
pub(super) fn choice<'a>(
    name: &str,
    known: impl IntoIterator<Item = &'a str>,
    chosen: Option<&str>,
) -> Markup {
    let known: Vec<_> = known.into_iter().collect();
    html! {
        select name=(name) {
            option value="" { "any" }
            // What is configured no more can still be asked for.
            @if let Some(chosen) = chosen.filter(|chosen| !known.contains(chosen)) {
                option value=(chosen) selected { (plain(chosen)) }
            }
            @for each in known { option value=(each) selected[chosen == Some(each)] { (each.replace('_', " ")) } }
        }
    }
}

pub(super) fn table(found: &Deliveries, asked: &DeliveryQuery) -> Markup {
    html! {
        div.wide { table {
            thead { tr {
                th { "Received" } th { "Source" } th { "Event" } th { "Delivery id" } th { "Verified" } th.n { "Size" }
                th { "Forwards" }
            } }
            tbody data-live-rows data-source=[asked.source.as_deref()] {
                @for delivery in &found.deliveries { (row(delivery)) }
            }
        } }
        @if found.deliveries.is_empty() {
            p.dim data-empty {
                @if found.cursor.is_some() { "Nothing among those looked at; there are more." } @else { "None." }
            }
        }
    }
}

fn row(delivery: &DeliverySummary) -> Markup {
    html! {
        tr data-id=(delivery.id) {
            td { a href={ "/deliveries/" (delivery.id) } {
                @match &delivery.received_at { Some(at) => { (time(at)) } None => { "lost" } }
            } }
            td { (or_dash(delivery.source.as_deref())) }
            td.long { (or_dash(delivery.event.as_deref())) }
            td.long { (or_dash(delivery.delivery_id.as_deref())) }
            td { @if delivery.verified { (state("ok")) } @else { (state("no")) } }
            td.n { (bytes(delivery.body_bytes)) }
            td.forwards {
                @for forward in &delivery.forwards {
                    span data-to=(forward.destination) { (forward.destination) " " (state(&forward.state)) @if forward.parked { " parked" } } " "
                }
                @if delivery.forwards.is_empty() { (state("unrouted")) }
            }
        }
    }
}

/// Where to go on.
pub(super) fn more(found: &Deliveries, asked: &DeliveryQuery, to: &str) -> Markup {
    let Some(cursor) = &found.cursor else { return html! {} };
    let pairs = [
        ("source", &asked.source),
        ("event", &asked.event),
        ("state", &asked.state),
        ("delivery_id", &asked.delivery_id),
        ("since", &asked.since),
        ("until", &asked.until),
        ("q", &asked.q),
        ("destination", &asked.destination),
        ("outcome", &asked.outcome),
    ];
    let pairs = pairs.into_iter().map(|(name, value)| (name, value.as_deref()));
    let next = query(pairs.chain([("cursor", Some(&**cursor))]));
    html! { p.more { a rel="next" href={ (to) (next) } { "Older" } } }
}

#[derive(Deserialize)]
struct View {
    view: Option<String>,
}

async fn show(
    State(console): State<Console>,
    Extension(visitor): Extension<Visitor>,
    Path(id): Path<String>,
    Query(view): Query<View>,
) -> Result<Response, Refused> {
    let detail = console.gateway.delivery(&id).await?;
    let status = console.gateway.status();
    let delivery = &detail.delivery;
    let is_pending =
        delivery.forwards.iter().any(|forward| matches!(&*forward.state, "waiting" | "in_flight"));
    let to = |what: &str| format!("/deliveries/{}/{what}", delivery.id);
    let body = html! {
        h1 { "Delivery " code.id { (delivery.id) } }
        div.bar {
            @if !delivery.forwards.is_empty() {
                (Action::new(to("replay"), "Replay to all").confirm("Forward it again to all its destinations?".to_owned()).button(&visitor))
            }
            @if is_pending {
                (Action::new(to("cancel"), "Cancel what is pending").confirm("Cancel what is pending of it?".to_owned()).button(&visitor))
            }
            button type="button" data-copy="curl" hidden { "Copy as curl" }
        }
        div.columns {
            section {
                h2 { "What came" }
                dl.facts {
                    div { dt { "Source" } dd { (or_dash(delivery.source.as_deref())) } }
                    div { dt { "Event" } dd { (or_dash(delivery.event.as_deref())) } }
                    div { dt { "Delivery id" } dd { (or_dash(delivery.delivery_id.as_deref())) } }
                    div { dt { "Received" } dd { @match &delivery.received_at { Some(at) => { (time(at)) } None => { "–" } } } }
                    div { dt { "Sender" } dd { (or_dash(delivery.sender.as_deref())) } }
                    div { dt { "Request" } dd { code { (or_dash(delivery.method.as_deref())) " " (plain(&detail.target)) } } }
                }
            }
            (verification(delivery))
        }
        section {
            h2 { "Forwards" }
            @if delivery.forwards.is_empty() { p { (state("unrouted")) " No route took it." } }
            @else { (forwards(&detail, &visitor)) }
            (timeline(&detail.attempts))
        }
        (headers(&detail.headers))
        (content(&detail, view.view.as_deref() == Some("raw")))
        (command(&detail, &status))
    };
    Ok(page(&visitor, Some(Tab::Deliveries), "Delivery", &body))
}

fn verification(delivery: &DeliverySummary) -> Markup {
    html! {
        section {
            h2 { "How it was verified" }
            dl.facts {
                div { dt { "Verified" } dd { @if delivery.verified { (state("ok")) } @else { (state("no")) } } }
                div { dt { "Scheme" } dd { (or_dash(delivery.scheme.as_deref())) } }
                div { dt { "Secret" } dd { (or_dash(delivery.secret.as_deref())) } }
                div { dt { "Skew" } dd {
                    @match delivery.skew_seconds { Some(skew) => { (skew) " s" } None => { span.dim { "no timestamp" } } }
                } }
            }
        }
    }
}

fn forwards(detail: &DeliveryDetail, visitor: &Visitor) -> Markup {
    let id = &detail.delivery.id;
    let row = |forward: &ForwardDocument| {
        html! {
            tr {
                td { (forward.destination) }
                td { (state(&forward.state)) @if forward.parked { " parked" } @if forward.replay { " replay" } }
                td.n { (forward.attempts) }
                td { (or_dash(forward.outcome.as_deref().map(|outcome| outcome.replace('_', " ")).as_deref())) }
                td { @match &forward.due_at { Some(at) => { (time(at)) } None => { span.dim { "–" } } } }
                td { @match &forward.settled_at { Some(at) => { (time(at)) } None => { span.dim { "–" } } } }
                td.actions {
                    @if matches!(&*forward.state, "waiting" | "in_flight") {
                        (Action::new(format!("/deliveries/{id}/cancel"), "Cancel").with("destination", &forward.destination).button(visitor))
                    } @else {
                        (Action::new(format!("/deliveries/{id}/replay"), "Replay").with("destination", &forward.destination).button(visitor))
                    }
                }
            }
        }
    };
    html! {
        div.wide { table {
            thead { tr {
                th { "Destination" } th { "State" } th.n { "Attempts" } th { "Outcome" } th { "Next attempt" } th { "Settled" } th {}
            } }
            tbody { @for forward in &detail.delivery.forwards { (row(forward)) } }
        } }
    }
}

fn timeline(attempts: &[AttemptDocument]) -> Markup {
    html! {
        h3 { "Attempts" }
        @if attempts.is_empty() { p.dim { "Nothing to tell: the first attempt that delivers is not kept." } }
        ol.timeline {
            @for attempt in attempts {
                li {
                    div {
                        @if let Some(at) = &attempt.started_at { (time(at)) " · " }
                        (attempt.destination) " · attempt " (attempt.number)
                        @if let Some(duration) = attempt.duration_ms { " · " (duration) " ms" }
                    }
                    div {
                        (state(if attempt.outcome == "delivered" { "delivered" } else { "failed" })) " " (attempt.outcome.replace('_', " "))
                        @if let Some(status) = attempt.status { " · status " (status) }
                    }
                    @if !attempt.detail.is_empty() { pre { (plain(&attempt.detail)) } }
                }
            }
        }
    }
}

pub(super) fn headers(headers: &[(String, String)]) -> Markup {
    html! {
        section {
            h2 { "Headers" }
            div.wide { table.headers { tbody {
                @for (name, value) in headers { tr { th scope="row" { (plain(name)) } td { (plain(value)) } } }
            } } }
        }
    }
}

fn content(detail: &DeliveryDetail, raw: bool) -> Markup {
    let id = &detail.delivery.id;
    let shown = shown(detail, raw);
    let text = match &shown {
        Shown::Pretty(text) | Shown::Text(text) | Shown::Hex(text) => text,
    };
    html! {
        section #body {
            h2 { "Body " small.dim { (number(detail.delivery.body_bytes)) " bytes" } }
            div.bar {
                @match &shown {
                    Shown::Pretty(_) => { strong { "Pretty" } a href={ "/deliveries/" (id) "?view=raw#body" } { "Raw" } }
                    Shown::Text(_) if raw => { a href={ "/deliveries/" (id) "#body" } { "Pretty" } strong { "Raw" } }
                    Shown::Text(_) => { strong { "Raw" } }
                    Shown::Hex(_) => { strong { "Not text" } }
                }
                a href={ "/deliveries/" (id) "/body" } download { "Download" }
            }
            @if detail.body_truncated { p.dim { "The beginning only: download it for all of it." } }
            @if text.is_empty() { p.dim { "Empty." } } @else { pre.body tabindex="0" { (plain(text)) } }
        }
    }
}

fn command(detail: &DeliveryDetail, status: &Status) -> Markup {
    let masked: Vec<_> = masked(detail).collect();
    let first = detail.delivery.forwards.first();
    let known =
        first.and_then(|forward| status.destinations.iter().find(|known| known.name == forward.destination));
    let url = known
        .map(|known| known.url.as_str())
        .filter(|url| !url.is_empty())
        .unwrap_or("http://localhost:3000/");
    html! {
        details {
            summary { "As a " code { "curl" } " command" }
            pre #curl { (plain(&curl(detail, url))) }
            @if !masked.is_empty() { p.dim { "Without what is masked: " (plain(&masked.join(", "))) } }
        }
    }
}

async fn download(
    State(console): State<Console>,
    readers: Extension<Readers>,
    Path(id): Path<String>,
) -> Result<Response, Refused> {
    let mut response = body(State(console.gateway), readers, Path(id.clone())).await?;
    // It is the id of a delivery: there is one.
    if let Ok(name) = HeaderValue::try_from(format!("attachment; filename=\"{id}.bin\"")) {
        response.headers_mut().insert(CONTENT_DISPOSITION, name);
    }
    Ok(response)
}

#[derive(Deserialize)]
struct Choice {
    destination: Option<String>,
}

async fn replay(
    State(console): State<Console>,
    Extension(visitor): Extension<Visitor>,
    Path(id): Path<String>,
    Form(choice): Form<Choice>,
) -> Result<Response, Refused> {
    let changed = console.gateway.replay_delivery(&id, choice.destination).await?;
    Ok(changed_now(&visitor, "Forwarded again", &changed))
}

async fn cancel(
    State(console): State<Console>,
    Extension(visitor): Extension<Visitor>,
    Path(id): Path<String>,
    Form(choice): Form<Choice>,
) -> Result<Response, Refused> {
    let changed = console.gateway.cancel_delivery(&id, choice.destination).await?;
    Ok(changed_now(&visitor, "Cancelled", &changed))
}

fn changed_now(visitor: &Visitor, what: &str, changed: &ForwardsChanged) -> Response {
    let said = match (&*changed.changed, &*changed.unchanged) {
        ([], unchanged) => format!("Nothing to change: {} as before.", unchanged.join(", ")),
        (done, []) => format!("{what}: {}.", done.join(", ")),
        (done, unchanged) => format!("{what}: {}. As before: {}.", done.join(", "), unchanged.join(", ")),
    };
    done(visitor, said, &format!("/deliveries/{}", changed.id), format!("to {}", changed.changed.join(", ")))
}

/// Goes back to a page, which says what has been done; `told` is for the audit log.
pub(super) fn done(visitor: &Visitor, said: String, back: &str, told: String) -> Response {
    visitor.session.say(said);
    let mut response = Redirect::to(back).into_response();
    response.extensions_mut().insert(Detail(told));
    response
}
