//! The first page: how everything stands, and the last hour.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};
use std::time::Duration;
use tokio::time::Instant;

use super::Console;
use super::chart::line;
use super::enter::Visitor;
use super::history::{HOUR, Series};
use super::layout::{Tab, bytes, number, page, span, state, time};
use crate::admin::{DestinationStatus, Status};

pub(super) async fn show(State(console): State<Console>, Extension(visitor): Extension<Visitor>) -> Response {
    let status = console.gateway.status();
    let metrics = console.gateway.metrics();
    let totals = metrics.totals();
    let (free, reserve) = (metrics.store_disk_free.get(), metrics.store_disk_reserve.get());
    let now = Instant::now();
    let charts = [
        ("Accepted", Series::Stored),
        ("Duplicates", Series::Duplicate),
        ("Refused", Series::Refused),
        ("Delivered", Series::Delivered),
        ("Dead", Series::Dead),
    ];
    let acks = |span| console.history.acks([0.5, 0.99], span, &totals);
    let body = html! {
        div data-refresh="10" {
            h1 { "Overview" }
            (attention(&status))
            section.charts {
                @for (title, series) in charts { (line(title, "/s", &console.history.rates(series, now))) }
                figure.chart.figures {
                    figcaption { span { "Time to acknowledge" } }
                    table {
                        tr { th {} th.n { "p50" } th.n { "p99" } }
                        (ack_row("5 min", acks(Duration::from_mins(5))))
                        (ack_row("1 h", acks(HOUR)))
                    }
                }
            }
            section {
                h2 { "Since the start" }
                dl.facts {
                    (fact("Accepted", &number(totals.stored)))
                    (fact("Duplicates", &number(totals.duplicate)))
                    (fact("Refused", &number(totals.refused)))
                    (fact("Delivered", &number(totals.delivered)))
                    (fact("Dead", &number(totals.dead)))
                    div { dt { "Started" } dd { (time(&status.started_at)) } }
                    (fact("Version", &status.version))
                    (fact("Store", &format!("{} ({})", bytes(status.store.bytes), status.store.engine)))
                    (fact("Disk free", &bytes(u64::try_from(free).unwrap_or(0))))
                    (fact("Disk reserve", &bytes(u64::try_from(reserve).unwrap_or(0))))
                }
            }
            section {
                h2 { "Destinations" }
                div.wide { table {
                    thead { tr { th { "Destination" } th { "State" } th.n { "Backlog" } th { "Oldest" } th.n { "Dead" } } }
                    tbody { @for destination in &status.destinations { (backlog(destination)) } }
                } }
            }
        }
    };
    page(&visitor, Some(Tab::Overview), "Overview", &body)
}

fn fact(name: &str, value: &str) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

fn ack_row(span: &str, acks: Option<[f64; 2]>) -> Markup {
    html! {
        tr {
            th { (span) }
            @match acks {
                Some(quantiles) => { @for quantile in quantiles { td.n { (milliseconds(quantile)) } } }
                None => { td.n.dim { "–" } td.n.dim { "–" } }
            }
        }
    }
}

fn milliseconds(seconds: f64) -> String {
    let value = seconds * 1e3;
    if value < 10.0 { format!("{value:.1} ms") } else { format!("{value:.0} ms") }
}

fn backlog(destination: &DestinationStatus) -> Markup {
    html! {
        tr {
            td { a href="/destinations" { (destination.name) } }
            td { (state(&destination.state)) }
            td.n { (number(destination.pending)) }
            td { @if destination.pending > 0 { (span(destination.oldest_age_seconds)) } @else { span.dim { "–" } } }
            td.n { @if destination.dead > 0 { a href="/dead" { (number(destination.dead)) } } @else { "0" } }
        }
    }
}

/// What somebody should do something about; nothing when there is nothing.
fn attention(status: &Status) -> Markup {
    let secrets = status.sources.iter().flat_map(|source| {
        let warned = source.secrets.iter().filter(|secret| secret.warning);
        warned.map(move |secret| (&source.name, &secret.name, secret.advice.as_deref().unwrap_or_default()))
    });
    let secrets: Vec<_> = secrets.collect();
    let stopped: Vec<_> =
        status.destinations.iter().filter(|known| known.state != "open" && known.state != "none").collect();
    if status.ready && status.config_loaded && secrets.is_empty() && stopped.is_empty() {
        return html! { p.well { (state("ok")) " Deliveries are accepted." } };
    }
    html! {
        section.attention {
            h2 { "Needs attention" }
            ul {
                @if let Some(why) = &status.not_ready_because { li { strong { "No deliveries are accepted: " } (why) } }
                @if !status.config_loaded { li { "The latest load of the configuration was refused; the one before it is in force." } }
                @for (source, secret, advice) in secrets {
                    li { a href="/sources" { (source) } ": secret " strong { (secret) } ": " (advice) }
                }
                @for destination in stopped {
                    li { a href="/destinations" { (destination.name) } " is " (state(&destination.state)) }
                }
            }
        }
    }
}
