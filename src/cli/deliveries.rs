//! `countersign deliveries list | show | replay | cancel | tail`: what a running gateway has stored.

use std::collections::HashSet;

use clap::Subcommand;
use countersign::admin::{Deliveries, DeliveryDetail, DeliverySummary, ForwardChoice, ForwardsChanged};
use countersign::json;
use http::{Method, StatusCode};

use super::ask::{Which, ask, escaped, inert, or_dash, path, print_json, print_table, send};
use super::status::{Gateway, refusal};
use super::{Failure, say};

/// Deliveries of one source whose attempts `tail` knows.
const SHOWN_MAX: usize = 10_000;
/// Pages without a match that a list asks for before it says where to go on.
const PAGES_MAX: usize = 500;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List stored deliveries, the newest first
    List {
        #[command(flatten)]
        which: Which,
        /// With a forward in this state: waiting, in_flight, delivered, dead, cancelled; or unrouted
        #[arg(long, value_name = "STATE")]
        state: Option<String>,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
        /// Where an earlier list ended
        #[arg(long, value_name = "CURSOR")]
        cursor: Option<String>,
        #[command(flatten)]
        gateway: Gateway,
        /// Print the document as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a delivery: how it was verified, its headers and body, and what became of it
    Show {
        /// Its id, as in the list
        id: String,
        /// Print the body only, byte for byte
        #[arg(long, conflicts_with = "json")]
        body: bool,
        #[command(flatten)]
        gateway: Gateway,
        /// Print the document as JSON
        #[arg(long)]
        json: bool,
    },
    /// Forward a delivery again, to all its destinations or one: exit 1 when there was nothing to do
    Replay {
        #[command(flatten)]
        one: One,
    },
    /// Cancel what is pending of a delivery: exit 1 when nothing is
    Cancel {
        #[command(flatten)]
        one: One,
    },
    /// Print deliveries and attempts as they come, until interrupted
    Tail {
        /// Of this source only
        #[arg(long, value_name = "NAME")]
        source: Option<String>,
        #[command(flatten)]
        gateway: Gateway,
        /// Print a JSON document a line
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct One {
    /// Its id, as in the list
    id: String,
    /// Only to this destination
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,
    #[command(flatten)]
    gateway: Gateway,
    /// Print the document as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::List { which, state, limit, cursor, gateway, json } => {
            let mut query = which.query()?;
            query.extend(state.clone().map(|state| ("state", state)));
            let list = collect(gateway, &query, usize::from(*limit), cursor.clone())?;
            if *json {
                return print_json(&list);
            }
            print_deliveries(&list.deliveries);
            if let Some(cursor) = &list.cursor {
                say(&format!("more: --cursor {cursor}"));
            }
            Ok(())
        }
        Command::Show { id, body: true, gateway, .. } => {
            let answer = gateway.call(Method::GET, &format!("/api/v1/deliveries/{}/body", escaped(id)))?;
            if answer.status() != StatusCode::OK {
                return Err(Failure::Failed(refusal(&answer)));
            }
            use std::io::Write as _;
            let written = std::io::stdout().write_all(answer.body());
            written.map_err(|error| Failure::Io(format!("cannot write the body: {error}")))
        }
        Command::Show { id, body: false, gateway, json } => {
            let path = format!("/api/v1/deliveries/{}", escaped(id));
            let detail: DeliveryDetail = ask(gateway, Method::GET, &path)?;
            if *json { print_json(&detail) } else { print_detail(&detail) }
        }
        Command::Replay { one } => change(one, "replay", "forwarded again"),
        Command::Cancel { one } => change(one, "cancel", "cancelled"),
        Command::Tail { source, gateway, json } => tail(source.as_deref(), gateway, *json),
    }
}

/// Pages until there are `limit` matches, or enough has been looked at.
fn collect(
    gateway: &Gateway,
    query: &[(&'static str, String)],
    limit: usize,
    mut cursor: Option<String>,
) -> Result<Deliveries, Failure> {
    let mut deliveries = Vec::new();
    for _ in 0..PAGES_MAX {
        let mut query = query.to_vec();
        query.push(("limit", (limit - deliveries.len()).to_string()));
        query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
        let page: Deliveries = ask(gateway, Method::GET, &path("deliveries", &query))?;
        deliveries.extend(page.deliveries);
        cursor = page.cursor;
        if cursor.is_none() || deliveries.len() >= limit {
            break;
        }
    }
    Ok(Deliveries { deliveries, cursor })
}

pub(super) fn print_deliveries(deliveries: &[DeliverySummary]) {
    let rows: Vec<_> = deliveries
        .iter()
        .map(|delivery| {
            vec![
                delivery.id.clone(),
                or_dash(delivery.received_at.as_deref()),
                or_dash(delivery.source.as_deref()),
                or_dash(delivery.event.as_deref()),
                or_dash(delivery.delivery_id.as_deref()),
                forwards(delivery),
            ]
        })
        .collect();
    print_table(&["ID", "RECEIVED", "SOURCE", "EVENT", "DELIVERY ID", "FORWARDS"], &rows);
}

fn forwards(delivery: &DeliverySummary) -> String {
    if delivery.forwards.is_empty() {
        return "unrouted".to_owned();
    }
    let each =
        delivery.forwards.iter().map(|forward| format!("{}: {}", forward.destination, forward.in_words()));
    each.collect::<Vec<_>>().join(", ")
}

fn change(one: &One, action: &str, done: &str) -> Result<(), Failure> {
    let path = format!("/api/v1/deliveries/{}/{action}", escaped(&one.id));
    let changed: ForwardsChanged =
        send(&one.gateway, &path, &ForwardChoice { destination: one.destination.clone() })?;
    if one.json {
        print_json(&changed)?;
    } else {
        for destination in &changed.changed {
            say(&format!("{destination}: {done}"));
        }
        for destination in &changed.unchanged {
            say(&format!("{destination}: left as it is"));
        }
    }
    if changed.changed.is_empty() { Err(Failure::Failed(String::new())) } else { Ok(()) }
}

fn print_detail(detail: &DeliveryDetail) -> Result<(), Failure> {
    let delivery = &detail.delivery;
    let text = |text: &Option<String>| or_dash(text.as_deref());
    say(&format!("{} {} from {}", text(&delivery.method), inert(&detail.target), text(&delivery.sender)));
    say(&format!("received  {}", text(&delivery.received_at)));
    say(&format!("source    {}", text(&delivery.source)));
    say(&format!("event     {}", text(&delivery.event)));
    say(&format!("id        {} (provider's: {})", delivery.id, text(&delivery.delivery_id)));
    let mut verified = if delivery.verified { "yes" } else { "NO" }.to_owned();
    verified.push_str(&format!(", as {}", text(&delivery.scheme)));
    if let Some(secret) = &delivery.secret {
        verified.push_str(&format!(", by the secret `{}`", inert(secret)));
    }
    if let Some(skew) = delivery.skew_seconds {
        verified.push_str(&format!(", {skew} s after it was signed"));
    }
    say(&format!("verified  {verified}"));
    say("");
    for (name, value) in &detail.headers {
        say(&format!("{}: {}", inert(name), inert(value)));
    }
    say("");
    say(&body(detail));
    say("");
    let rows: Vec<_> = delivery
        .forwards
        .iter()
        .map(|forward| {
            let at = forward.due_at.as_ref().map(|at| format!("due {at}"));
            let at = at.or_else(|| forward.settled_at.clone());
            let replay = if forward.replay { "replay" } else { "" };
            vec![
                forward.destination.clone(),
                forward.in_words(),
                forward.attempts.to_string(),
                or_dash(forward.outcome.as_deref()),
                or_dash(at.as_deref()),
                replay.to_owned(),
            ]
        })
        .collect();
    if rows.is_empty() {
        say("unrouted: it was stored, and nothing forwards it");
    } else {
        print_table(&["DESTINATION", "STATE", "ATTEMPTS", "OUTCOME", "WHEN", ""], &rows);
    }
    for attempt in &detail.attempts {
        let status = attempt.status.map_or(String::new(), |status| format!(" {status}"));
        let after = attempt.duration_ms.map_or(String::new(), |duration| format!(" after {duration} ms"));
        say(&format!(
            "{} {} attempt {}: {}{status}{after}",
            or_dash(attempt.started_at.as_deref()),
            attempt.destination,
            attempt.number,
            attempt.outcome
        ));
        if !attempt.detail.is_empty() {
            say(&format!("    {}", inert(&attempt.detail).replace('\n', "\n    ")));
        }
    }
    Ok(())
}

/// JSON is laid out; what is no text is only told of.
fn body(detail: &DeliveryDetail) -> String {
    let bytes = detail.delivery.body_bytes;
    if detail.body_encoding != "utf-8" {
        return format!("(a body of {bytes} bytes that is no text; `--body` prints it)");
    }
    let mut text = json::indented(&detail.body).unwrap_or_else(|| detail.body.clone());
    if detail.body_truncated {
        text.push_str(&format!("\n(the beginning of {bytes} bytes; `--body` prints all)"));
    }
    inert(&text)
}

/// What is stored and what becomes of it, as the gateway tells it.
fn tail(source: Option<&str>, gateway: &Gateway, json: bool) -> Result<(), Failure> {
    let mut shown: HashSet<String> = HashSet::new();
    gateway.events(&mut |name, document| {
        let Ok(event) = serde_json::from_str::<serde_json::Value>(document) else { return };
        let text = |key: &str| or_dash(event[key].as_str());
        let (id, is_new) = (text("id"), name == "delivery");
        if is_new && source.is_none_or(|wanted| event["source"] == wanted) {
            // Of those that are shown, their attempts are, too: the latest, since a tail may go on for months.
            if shown.len() >= SHOWN_MAX {
                shown.clear();
            }
            shown.insert(id.clone());
        } else if !(name == "attempt" && (source.is_none() || shown.contains(&id))) {
            return;
        }
        if json {
            say(document);
        } else if is_new {
            let to: Vec<_> = event["destinations"].as_array().into_iter().flatten().collect();
            let to = to.iter().filter_map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
            let to = if to.is_empty() { "unrouted".to_owned() } else { format!("to {to}") };
            say(&format!(
                "{} {id} {} {} {} {to}",
                text("received_at"),
                text("source"),
                text("event"),
                text("delivery_id")
            ));
        } else {
            say(&format!(
                "  {id} {} attempt {}: {} ({} ms), {}",
                text("destination"),
                event["number"],
                text("outcome"),
                event["duration_ms"],
                text("state")
            ));
        }
    })?;
    Err(Failure::Unreachable("the gateway has ended the list of events".to_owned()))
}
