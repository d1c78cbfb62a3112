//! What the commands over the admin API share: asking it, choosing deliveries, and printing tables and documents.

use std::fmt;
use std::io::IsTerminal as _;
use std::time::Duration;

use bytes::Bytes;
use countersign::admin::{Job, JobOrder};
use countersign::clock::{Clock, earlier};
use countersign::units::parse_duration;
use http::{Method, StatusCode};
use indicatif::{HumanDuration, ProgressBar, ProgressState, ProgressStyle};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use super::status::{Gateway, detail, refusal};
use super::{Failure, say, small_runtime};

/// Between two looks at a job.
const LOOK: Duration = Duration::from_millis(250);

/// Which deliveries, or which of their forwards.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Which {
    /// Of this source only
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Of this event type only
    #[arg(long, value_name = "TYPE")]
    event: Option<String>,
    /// With this provider's identifier
    #[arg(long, value_name = "ID")]
    delivery_id: Option<String>,
    /// Received since then: how long ago, as 2h, or a time, as 2026-11-30T08:00:00Z
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
    /// Received before then
    #[arg(long, value_name = "WHEN")]
    until: Option<String>,
    /// With this text in the delivery id, the event type or the body
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
    /// With a forward to this destination
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,
    /// With a forward whose latest attempt ended so, as timeout
    #[arg(long, value_name = "LABEL")]
    outcome: Option<String>,
}

impl Which {
    /// As parameters of a query; times that are meant from now on are fixed, so that all pages mean the same.
    pub(super) fn query(&self) -> Result<Vec<(&'static str, String)>, Failure> {
        let pairs = [
            ("source", self.source.clone()),
            ("event", self.event.clone()),
            ("delivery_id", self.delivery_id.clone()),
            ("since", self.since.as_deref().map(moment).transpose()?),
            ("until", self.until.as_deref().map(moment).transpose()?),
            ("q", self.text.clone()),
            ("destination", self.destination.clone()),
            ("outcome", self.outcome.clone()),
        ];
        Ok(pairs.into_iter().filter_map(|(key, value)| Some((key, value?))).collect())
    }

    /// Whether it may select forwards to this destination whose latest attempt ended so.
    pub(super) fn takes(&self, destination: &str, outcome: Option<&str>) -> bool {
        self.destination.as_deref().is_none_or(|wanted| wanted == destination)
            && self.outcome.as_deref().is_none_or(|wanted| Some(wanted) == outcome)
    }

    /// Whether it says nothing but where to, and how the latest attempt ended.
    pub(super) fn is_about_forwards_only(&self) -> bool {
        let others = [&self.source, &self.event, &self.delivery_id, &self.since, &self.until, &self.text];
        others.iter().all(|given| given.is_none())
    }

    /// As an order.
    pub(super) fn order(&self, how: &Pace) -> Result<JobOrder, Failure> {
        Ok(JobOrder {
            source: self.source.clone(),
            event: self.event.clone(),
            delivery_id: self.delivery_id.clone(),
            since: self.since.as_deref().map(moment).transpose()?,
            until: self.until.as_deref().map(moment).transpose()?,
            q: self.text.clone(),
            destination: self.destination.clone(),
            state: None,
            outcome: self.outcome.clone(),
            rate: how.rate.clone(),
            dry_run: how.dry_run,
        })
    }
}

/// How a change to many forwards is made.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Pace {
    /// At most so many, as 50/s
    #[arg(long, value_name = "RATE")]
    rate: Option<String>,
    /// Only count what would be changed
    #[arg(long)]
    dry_run: bool,
}

fn moment(text: &str) -> Result<String, Failure> {
    match parse_duration(text) {
        Ok(ago) => Ok(earlier(Clock::system().now(), ago).to_string()),
        Err(_) => match text.parse::<countersign::clock::Timestamp>() {
            Ok(at) => Ok(at.to_string()),
            Err(_) => Err(Failure::Usage(format!(
                "`{text}` is no time: write how long ago, as 2h, or when, as 2026-11-30T08:00:00Z"
            ))),
        },
    }
}

pub(super) fn escaped(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// The path of an API resource with a query.
pub(super) fn path(resource: &str, query: &[(&'static str, String)]) -> String {
    let pairs: Vec<_> = query.iter().map(|(key, value)| format!("{key}={}", escaped(value))).collect();
    format!("/api/v1/{resource}?{}", pairs.join("&"))
}

/// Asks for a document.
pub(super) fn ask<T: DeserializeOwned>(gateway: &Gateway, method: Method, path: &str) -> Result<T, Failure> {
    tell(gateway, method, path, Bytes::new())
}

/// Sends a document, and gets one.
pub(super) fn send<T: DeserializeOwned>(
    gateway: &Gateway,
    path: &str,
    document: &impl Serialize,
) -> Result<T, Failure> {
    let body = serde_json::to_vec(document).map_err(|error| Failure::Failed(error.to_string()))?;
    tell(gateway, Method::POST, path, body.into())
}

fn tell<T: DeserializeOwned>(
    gateway: &Gateway,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<T, Failure> {
    let answer = gateway.send(method, path, body)?;
    match answer.status() {
        StatusCode::OK => {}
        // It says what of the command line makes no sense.
        StatusCode::BAD_REQUEST => return Err(Failure::Usage(detail(&answer))),
        _ => return Err(Failure::Failed(refusal(&answer))),
    }
    serde_json::from_slice(answer.body())
        .map_err(|error| Failure::Failed(format!("this is not what a gateway answers: {error}")))
}

pub(super) fn print_json(document: &impl Serialize) -> Result<(), Failure> {
    say(&serde_json::to_string_pretty(document).map_err(|error| Failure::Failed(error.to_string()))?);
    Ok(())
}

/// Prints rows under headings, each column as wide as it must be.
pub(super) fn print_table(headings: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([headings[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..headings.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    say(&line(headings.to_vec()));
    for row in rows {
        say(&line(row.iter().map(String::as_str).collect()));
    }
}

/// What a stranger wrote, for a terminal: nothing of it is a command to it.
pub(super) fn inert(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

pub(super) fn or_dash(text: Option<&str>) -> String {
    text.map_or_else(|| "-".to_owned(), |text| inert(text).replace(['\n', '\t'], " "))
}

/// Orders a job and waits for its end, with a bar where somebody looks. Whoever interrupts that is told how to end the job.
pub(super) fn follow(gateway: &Gateway, path: &str, order: &JobOrder, json: bool) -> Result<(), Failure> {
    let runtime = small_runtime()?;
    let mut interrupt = runtime
        .block_on(async { signal(SignalKind::interrupt()) })
        .map_err(|error| Failure::Io(format!("cannot handle signals: {error}")))?;
    let mut job: Job = send(gateway, path, order)?;
    let bar = bar(json);
    let mut state = String::new();
    while !job.is_over() {
        if state != job.state {
            // Counting is no part of the pace.
            bar.reset_elapsed();
            state.clone_from(&job.state);
        }
        bar.set_message(format!("{} {}", job.kind, job.state));
        bar.set_length(job.matched);
        bar.set_position(job.done + job.skipped);
        if runtime.block_on(async { timeout(LOOK, interrupt.recv()).await.is_ok() }) {
            bar.finish_and_clear();
            let Job { id, kind, .. } = job;
            return Err(Failure::Failed(format!(
                "the {kind} goes on in the gateway; `countersign jobs cancel {id}` ends it where it is"
            )));
        }
        job = ask(gateway, Method::GET, &format!("/api/v1/jobs/{}", escaped(&job.id)))?;
    }
    bar.finish_and_clear();
    if json {
        print_json(&job)?;
    } else {
        say(&told(&job));
    }
    match (&*job.state, &job.error) {
        ("done", _) => Ok(()),
        (_, Some(error)) => Err(Failure::Failed(format!("the {} {}: {error}", job.kind, job.state))),
        (_, None) => Err(Failure::Failed(format!("the {} was {}", job.kind, job.state))),
    }
}

/// How far something is; hidden where standard error is no terminal.
pub(super) fn bar(json: bool) -> ProgressBar {
    let bar =
        if json || !std::io::stderr().is_terminal() { ProgressBar::hidden() } else { ProgressBar::new(0) };
    let style = ProgressStyle::with_template("{msg} [{wide_bar}] {pos}/{len} ({pace})");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.with_key("pace", |state: &ProgressState, text: &mut dyn fmt::Write| {
        let _ = write!(text, "{}", pace(state.pos(), state.len().unwrap_or_default(), state.elapsed()));
    }));
    bar
}

/// The mean, which is right for a pace that is held to a rate, however low, and what is left at that.
fn pace(done: u64, of: u64, elapsed: Duration) -> String {
    let rate = done as f64 / elapsed.as_secs_f64().max(f64::EPSILON);
    if done == 0 || elapsed < Duration::from_secs(1) {
        return "-".to_owned();
    }
    let left = of.saturating_sub(done) as f64 / rate;
    format!("{rate:.1}/s, {} left", HumanDuration(Duration::from_secs_f64(left.ceil())))
}

pub(super) fn told(job: &Job) -> String {
    if job.order.dry_run {
        return format!("{} forwards match; nothing was changed (dry run)", job.matched);
    }
    let mut text = format!("{} of {} forwards: {} done", job.kind, job.matched, job.done);
    if job.skipped > 0 {
        text.push_str(&format!(", {} changed meanwhile and left alone", job.skipped));
    }
    if job.failed > 0 {
        text.push_str(&format!(", {} failed", job.failed));
    }
    if job.is_over() && job.left() > 0 {
        text.push_str(&format!(", {} not come to", job.left()));
        if let Some(reached) = &job.reached {
            text.push_str(&format!("; it came to what was received at {reached}, go on with --since"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_follows_from_what_was_done_so_far() {
        let check = |done, of, seconds, expected: &str| {
            assert_eq!(pace(done, of, Duration::from_secs(seconds)), expected);
        };
        check(0, 100, 10, "-");
        check(5, 100, 0, "-");
        check(1, 121, 10, "0.1/s, 20 minutes left");
        check(50, 100, 10, "5.0/s, 10 seconds left");
        check(3, 3, 3, "1.0/s, 0 seconds left");
    }

    #[test]
    fn what_strangers_write_moves_no_cursor() {
        assert_eq!(inert("a\u{1b}[2Jb\r\nc\u{9b}"), "a\u{fffd}[2Jb\u{fffd}\nc\u{fffd}");
        assert_eq!(or_dash(Some("a\nb")), "a b");
        assert_eq!(or_dash(None), "-");
    }
}
