//! Refused requests: by reason, each explained in plain words, and let in once it verifies.

use axum::extract::{Form, Path, Query, State};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Router};
use maud::{Markup, html};

use super::Console;
use super::deliveries::{choice, done, headers};
use super::enter::Visitor;
use super::layout::{Action, Tab, bytes, number, page, plain, query, state, time};
use crate::admin::refused::Refused;
use crate::admin::{Explained, ExplainedCause, RejectionQuery, RejectionSummary, Reverification};
use serde::Deserialize;

pub(super) fn pages() -> Router<Console> {
    Router::new().route("/refused", get(list)).route("/refused/{id}", get(explain))
}

/// For operators only.
pub(super) fn changes() -> Router<Console> {
    Router::new()
        .route("/refused/reverify", post(reverify_all))
        .route("/refused/{id}/reverify", post(reverify))
}

#[derive(Default, Deserialize)]
struct Asked {
    source: Option<String>,
    reason: Option<String>,
    open: Option<String>,
    cursor: Option<String>,
}

impl From<Asked> for RejectionQuery {
    fn from(asked: Asked) -> Self {
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        Self {
            source: some(asked.source),
            reason: some(asked.reason),
            open: some(asked.open).is_some(),
            limit: Some(100),
            cursor: some(asked.cursor),
        }
    }
}

async fn list(
    State(console): State<Console>,
    Extension(visitor): Extension<Visitor>,
    Query(asked): Query<Asked>,
) -> Result<Response, Refused> {
    let asked = RejectionQuery::from(asked);
    let found = console.gateway.rejections(asked.clone()).await?;
    let status = console.gateway.status();
    let counts = reasons(&console);
    let (source, reason) = (asked.source.as_deref(), asked.reason.as_deref());
    let open = asked.open.then_some("yes");
    let all = Action::new("/refused/reverify".to_owned(), "Re-verify these")
        .with("source", source.unwrap_or_default())
        .with("reason", reason.unwrap_or_default())
        .confirm("Verify them again, and let those in that pass?".to_owned());
    let next = |cursor: &str| {
        query([("source", source), ("reason", reason), ("open", open), ("cursor", Some(cursor))])
    };
    let body = html! {
        h1 { "Refused" }
        section {
            h2 { "By reason, since the start" }
            @if counts.is_empty() { p.well { (state("ok")) " None has been refused." } } @else {
                div.wide { table {
                    thead { tr { th { "Source" } th { "Reason" } th.n { "Requests" } } }
                    tbody { @for (source, reason, count) in &counts { tr {
                        td { (source) }
                        td { a href={ "/refused" (query([("source", Some(&**source)), ("reason", Some(&**reason))])) } { (reason.replace('_', " ")) } }
                        td.n { (number(*count)) }
                    } } }
                } }
            }
        }
        h2 { "In quarantine" }
        form.search method="get" action="/refused" role="search" {
            label { "Source" (choice("source", status.sources.iter().map(|source| &*source.name), source)) }
            label { "Reason" (choice("reason", labels(&counts), reason)) }
            label { "Not let in" (choice("open", ["yes"], open)) }
            button.primary type="submit" { "Search" }
        }
        @if !found.rejections.is_empty() { div.bar { (all.button(&visitor)) } }
        div.wide { table {
            thead { tr { th { "Received" } th { "Source" } th { "Reason" } th { "Sender" } th { "Request" } th { "Let in" } } }
            tbody { @for each in &found.rejections { (row(each)) } }
        } }
        @if found.rejections.is_empty() { p.dim { "None." } }
        @if let Some(cursor) = &found.cursor { p.more { a rel="next" href={ "/refused" (next(cursor)) } { "Older" } } }
    };
    Ok(page(&visitor, Some(Tab::Refused), "Refused", &body))
}

/// Source, reason and count of what has been refused, the most first.
fn reasons(console: &Console) -> Vec<(String, String, u64)> {
    let mut counts = console.gateway.metrics().rejections();
    counts.sort_by(|a, b| b.2.cmp(&a.2).then_with(|| a.cmp(b)));
    counts
}

fn labels(counts: &[(String, String, u64)]) -> Vec<&str> {
    let mut labels: Vec<_> = counts.iter().map(|(_, reason, _)| &**reason).collect();
    labels.sort_unstable();
    labels.dedup();
    labels
}

fn row(rejected: &RejectionSummary) -> Markup {
    html! {
        tr {
            td { a href={ "/refused/" (rejected.id) } { (time(&rejected.received_at)) } }
            td { (rejected.source) }
            td { (rejected.reason.replace('_', " ")) }
            td { (rejected.sender) }
            td.long { code { (plain(&rejected.method)) " " (plain(&rejected.target)) } }
            td { @match &rejected.reverified { Some(outcome) => { (state(outcome)) } None => { span.dim { "no" } } } }
        }
    }
}

async fn explain(
    State(console): State<Console>,
    Extension(visitor): Extension<Visitor>,
    Path(id): Path<String>,
) -> Result<Response, Refused> {
    let explained = console.gateway.rejection(&id).await?;
    let rejected = &explained.rejection;
    let body = html! {
        h1 { "Refused: " (rejected.reason.replace('_', " ")) }
        div.bar {
            @if rejected.reverified.is_none() {
                (Action::new(format!("/refused/{}/reverify", rejected.id), "Re-verify").button(&visitor))
            }
        }
        (why(&explained))
        section {
            h2 { "What came" }
            dl.facts {
                div { dt { "Source" } dd { (rejected.source) } }
                div { dt { "Received" } dd { (time(&rejected.received_at)) } }
                div { dt { "Sender" } dd { (rejected.sender) } }
                div { dt { "Request" } dd { code { (plain(&rejected.method)) " " (plain(&rejected.target)) } } }
                div { dt { "Body" } dd { @match explained.body_bytes { Some(count) => { (bytes(count as u64)) } None => { "not kept" } } } }
                div { dt { "Id" } dd { code { (rejected.id) } } }
            }
        }
        (headers(&explained.headers))
    };
    Ok(page(&visitor, Some(Tab::Refused), "Refused", &body))
}

fn why(explained: &Explained) -> Markup {
    let cause = |cause: &ExplainedCause| {
        html! {
            li {
                strong { @if cause.proven { "Proven: " } @else { "Perhaps: " } }
                (plain(&cause.text)) br; span.dim { (plain(&cause.advice)) }
            }
        }
    };
    let outcome = explained.rejection.reverified.as_deref();
    html! {
        section {
            h2 { "Why" }
            @match (outcome, &explained.refused_now) {
                (Some("stored"), _) => p { (state("stored")) " It has been let in: " a href={ "/deliveries/" (explained.rejection.id) } { "the delivery" } "." },
                (Some(outcome), _) => p { (state(outcome)) " It has been verified again, and had been accepted before." },
                (None, Some(now)) => p { "It would be refused now, too: " strong { (now.replace('_', " ")) } "." },
                (None, None) => p { (state("ok")) " It verifies by now: re-verify it to let it in." },
            }
            @if !explained.causes.is_empty() { ol.causes { @for each in &explained.causes { (cause(each)) } } }
            @if !explained.complete { p.dim { "Not everything has been tried: there was more than fits in the time." } }
        }
    }
}

async fn reverify(
    State(console): State<Console>,
    Extension(visitor): Extension<Visitor>,
    Path(id): Path<String>,
) -> Result<Response, Refused> {
    let one = console.gateway.reverify(&id).await?;
    let said = match (&*one.outcome, one.reason.as_deref()) {
        ("refused", reason) => format!("Still refused: {}.", reason.unwrap_or("unknown").replace('_', " ")),
        (outcome, _) => format!("Let in: {outcome}."),
    };
    Ok(done(&visitor, said, &format!("/refused/{}", one.id), one.outcome))
}

async fn reverify_all(
    State(console): State<Console>,
    Extension(visitor): Extension<Visitor>,
    Form(asked): Form<Asked>,
) -> Result<Response, Refused> {
    let asked = RejectionQuery::from(asked);
    let back = query([("source", asked.source.as_deref()), ("reason", asked.reason.as_deref())]);
    let all = console.gateway.reverify_all(asked).await?;
    let tried = all.reverified.len();
    let let_in = all.reverified.iter().filter(|one: &&Reverification| one.outcome != "refused").count();
    let more = if all.cursor.is_some() { " There are more: do it again for them." } else { "" };
    let said = format!("{let_in} of {tried} let in.{more}");
    Ok(done(&visitor, said, &format!("/refused{back}"), format!("{tried} tried")))
}
