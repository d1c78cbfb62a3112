//! Destinations and sources, and who has changed what.

use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Router};
use maud::{Markup, html};

use super::Console;
use super::chart::short;
use super::deliveries::done;
use super::enter::Visitor;
use super::layout::{Action, Tab, number, page, plain, query, span, state, time};
use crate::admin::refused::Refused;
use crate::admin::{AuditEntry, DestinationStatus, SecretStatus, SourceStatus};

pub(super) fn pages() -> Router<Console> {
    Router::new()
        .route("/destinations", get(destinations))
        .route("/sources", get(sources))
        .route("/changes", get(audit))
}

/// For operators only.
pub(super) fn changes() -> Router<Console> {
    Router::new()
        .route("/sources/{name}/test", post(test))
        .route("/destinations/{name}/pause", post(pause))
        .route("/destinations/{name}/resume", post(resume))
        .route("/destinations/{name}/probe", post(probe))
}

async fn destinations(State(console): State<Console>, Extension(visitor): Extension<Visitor>) -> Response {
    let known = console.gateway.status().destinations;
    let body = html! {
        h1 { "Destinations" }
        div data-refresh="5" {
            div.wide { table {
                thead { tr {
                    th { "Destination" } th { "State" } th { "Attempts" } th { "Delivered" } th { "Failed" } th.n { "Backlog" }
                    th { "Oldest" } th.n { "Dead" } th {}
                } }
                tbody { @for each in &known { (destination(each, console.history.attempts(&each.name), &visitor)) } }
            } }
            p.dim { "Rates are those of the last minute. A paused destination stays paused over restarts; what comes for it waits." }
        }
    };
    page(&visitor, Some(Tab::Destinations), "Destinations", &body)
}

fn destination(known: &DestinationStatus, rates: Option<(f64, f64)>, visitor: &Visitor) -> Markup {
    let to = |what: &str| format!("/destinations/{}/{what}", known.name);
    let rate = |of: fn((f64, f64)) -> f64| {
        rates.map_or_else(|| "–".to_owned(), |rates| format!("{}/s", short(of(rates))))
    };
    let these = query([("destination", Some(&*known.name))]);
    html! {
        tr {
            td { strong { (known.name) } br; small.dim { (known.url) } }
            td { (state(&known.state)) br; small.dim { (meaning(&known.state)) } }
            td { (known.running) " of " (known.concurrency) }
            td { (rate(|rates| rates.0)) }
            td { (rate(|rates| rates.1)) }
            td.n { a href={ "/deliveries" (query([("destination", Some(&*known.name)), ("state", Some("waiting"))])) } { (number(known.pending)) } }
            td { @if known.pending > 0 { (span(known.oldest_age_seconds)) } @else { span.dim { "–" } } }
            td.n { a href={ "/dead" (these) } { (number(known.dead)) } }
            td.actions {
                @match &*known.state {
                    "paused" => (Action::new(to("resume"), "Resume").button(visitor)),
                    "broken" => {
                        (Action::new(to("probe"), "Probe now").button(visitor))
                        (Action::new(to("pause"), "Pause").button(visitor))
                    }
                    "open" | "probing" => (Action::new(to("pause"), "Pause").button(visitor)),
                    _ => {}
                }
            }
        }
    }
}

/// A lane's state in a few words.
fn meaning(state: &str) -> &'static str {
    match state {
        "open" => "breaker closed",
        "paused" => "by an operator",
        "broken" => "breaker open: waits, then one attempt",
        "probing" => "one attempt, to see whether it is back",
        _ => "not in the configuration",
    }
}

async fn pause(
    console: State<Console>,
    visitor: Extension<Visitor>,
    name: Path<String>,
) -> Result<Response, Refused> {
    set_paused(console, visitor, name, true).await
}

async fn resume(
    console: State<Console>,
    visitor: Extension<Visitor>,
    name: Path<String>,
) -> Result<Response, Refused> {
    set_paused(console, visitor, name, false).await
}

async fn set_paused(
    State(console): State<Console>,
    Extension(visitor): Extension<Visitor>,
    Path(name): Path<String>,
    paused: bool,
) -> Result<Response, Refused> {
    let status = console.gateway.set_paused(&name, paused).await?;
    let said = format!("{} is {}.", status.name, if paused { "paused" } else { "resumed" });
    Ok(done(&visitor, said, "/destinations", String::new()))
}

async fn probe(
    State(console): State<Console>,
    Extension(visitor): Extension<Visitor>,
    Path(name): Path<String>,
) -> Result<Response, Refused> {
    let status = console.gateway.probe(&name)?;
    Ok(done(
        &visitor,
        format!("{} is probed with the next that waits for it.", status.name),
        "/destinations",
        String::new(),
    ))
}

async fn sources(State(console): State<Console>, Extension(visitor): Extension<Visitor>) -> Response {
    let known = console.gateway.status().sources;
    let body = html! {
        h1 { "Sources" }
        @for each in &known { (source(each, &visitor)) }
    };
    page(&visitor, Some(Tab::Sources), "Sources", &body)
}

fn source(known: &SourceStatus, visitor: &Visitor) -> Markup {
    let url = known.url.clone().unwrap_or_else(|| known.path.clone());
    let id = format!("url-{}", known.name);
    let these = query([("source", Some(&*known.name))]);
    html! {
        section.source id=(known.name) {
            h2 { (known.name) " " small.dim { (known.provider) } " " (state(&known.enforcement)) }
            p { "Paste into the provider: " code id=(id) { (url) } " " button type="button" data-copy=(id) hidden { "Copy" }
                @if known.url.is_none() { br; span.dim { "below the address that the provider reaches; set " code { "listen.public_url" } " to have the whole here." } }
            }
            @if known.enforcement != "none" {
                div.bar { (Action::new(format!("/sources/{}/test", known.name), "Send a signed test delivery")
                    .confirm(format!("Send {} a delivery of the event type countersign.test? Its destinations get it, too.", known.name))
                    .button(visitor)) }
            }
            dl.facts {
                div { dt { "Verification" } dd { (meaning_of(&known.enforcement)) } }
                div { dt { "Stored" } dd { a href={ "/deliveries" (these) } { (number(known.stored)) } } }
                div { dt { "Duplicates" } dd { (number(known.duplicate)) } }
                div { dt { "Refused" } dd { a href={ "/refused" (these) } { (number(known.rejected)) } } }
                div { dt { "Unrouted" } dd { (number(known.unrouted)) } }
                div { dt { "Handshake" } dd {
                    @match (&known.handshake_at, known.has_handshake) {
                        (Some(at), _) => { "answered " (time(at)) }
                        (None, true) => { "none since the start" }
                        (None, false) => { span.dim { "the provider makes none" } }
                    }
                } }
            }
            @if known.secrets.is_empty() { p.dim { "No secrets." } } @else {
                h3 { "Secrets" }
                div.wide { table {
                    thead { tr { th { "Name" } th.n { "Uses" } th { "Last use" } th { "Valid from" } th { "Expires" } th { "Advice" } } }
                    tbody { @for each in &known.secrets { (secret(each)) } }
                } }
            }
        }
    }
}

async fn test(
    State(console): State<Console>,
    Extension(visitor): Extension<Visitor>,
    Path(name): Path<String>,
) -> Result<Response, Refused> {
    let sent = console.gateway.send_test(&name).await?;
    let told = format!("{} {}", sent.outcome, sent.id);
    let (said, back) = match (&*sent.outcome, &sent.reason) {
        ("stored", _) => {
            ("Sent, verified and stored: here it is.".to_owned(), format!("/deliveries/{}", sent.id))
        }
        (_, Some(reason)) => {
            (format!("Sent, and refused: {}.", reason.replace('_', " ")), "/sources".to_owned())
        }
        (outcome, None) => (format!("Sent: {outcome}."), "/sources".to_owned()),
    };
    Ok(done(&visitor, said, &back, told))
}

fn secret(known: &SecretStatus) -> Markup {
    let moment = |at: &Option<String>, none: &str| match at {
        Some(at) => time(at),
        None => html! { span.dim { (none) } },
    };
    html! {
        tr {
            td { (known.name) }
            td.n { (number(known.uses)) }
            td { (moment(&known.last_used_at, "never")) }
            td { (moment(&known.not_before, "always")) }
            td { (moment(&known.not_after, "never")) }
            td { @if let Some(advice) = &known.advice {
                @if known.warning { (state("mind")) " " } (advice)
            } }
        }
    }
}

fn meaning_of(enforcement: &str) -> &'static str {
    match enforcement {
        "enforce" => "what does not verify is refused",
        "observe" => "judged only: everything is let through",
        _ => "none: everything is let through",
    }
}

async fn audit(State(console): State<Console>, Extension(visitor): Extension<Visitor>) -> Response {
    let changes = console.gateway.audit().changes;
    let row = |change: &AuditEntry| {
        html! {
            tr {
                td { (time(&change.at)) }
                td { (plain(&change.by)) }
                td { (change.peer) }
                td.long { code { (plain(&change.action)) } }
                td.long { (plain(&change.detail)) }
                td.n { (change.status) }
            }
        }
    };
    let body = html! {
        h1 { "Changes" }
        p.dim { "Who has changed what, the latest 200. The log has all, under the target " code { "audit" } "." }
        div.wide { table {
            thead { tr { th { "When" } th { "Who" } th { "From" } th { "What" } th { "Detail" } th.n { "Answer" } } }
            tbody { @for change in changes.iter().take(200) { (row(change)) } }
        } }
        @if changes.is_empty() { p.dim { "None since the start." } }
    };
    page(&visitor, Some(Tab::Changes), "Changes", &body)
}
