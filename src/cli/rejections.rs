//! `countersign rejections list | explain | reverify`: requests that a running gateway has refused.

use clap::Subcommand;
use countersign::admin::{Explained, Rejections, Reverification, Reverifications};
use http::Method;

use super::ask::{ask, escaped, inert, print_json};
use super::status::Gateway;
use super::{Failure, say};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List refused requests, the newest first
    List {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        gateway: Gateway,
        /// Print the document as JSON
        #[arg(long)]
        json: bool,
    },
    /// Tell why a request was refused, and what to do about it
    Explain {
        /// Its id, as in the list; the newest otherwise
        id: Option<String>,
        #[command(flatten)]
        gateway: Gateway,
        /// Print the document as JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a request in that verifies by now, once: exit 0, or 1 when it is still refused
    ///
    /// The window is judged by the time of its arrival.
    Reverify {
        /// Its id, as in the list
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        id: Option<String>,
        /// All that the other options select, and that have not been let in
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        gateway: Gateway,
        /// Print the document as JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// Of this source only
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Refused for this reason only, such as signature_mismatch
    #[arg(long, value_name = "LABEL")]
    reason: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// Where an earlier list ended
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
}

impl Which {
    fn query(&self) -> String {
        let mut query = format!("limit={}", self.limit);
        for (key, value) in [("source", &self.source), ("reason", &self.reason), ("cursor", &self.cursor)] {
            if let Some(value) = value {
                query.push_str(&format!("&{key}={}", escaped(value)));
            }
        }
        query
    }
}

pub(super) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::List { which, gateway, json } => {
            let path = format!("/api/v1/rejections?{}", which.query());
            let list: Rejections = ask(gateway, Method::GET, &path)?;
            if *json { print_json(&list) } else { print_list(&list) }
        }
        Command::Explain { id, gateway, json } => {
            let id = id.clone().map_or_else(|| newest(gateway), Ok)?;
            let explained: Explained =
                ask(gateway, Method::GET, &format!("/api/v1/rejections/{}", escaped(&id)))?;
            if *json { print_json(&explained) } else { print_explained(&explained) }
        }
        Command::Reverify { id: Some(id), gateway, json, .. } => {
            let path = format!("/api/v1/rejections/{}/reverify", escaped(id));
            let one: Reverification = ask(gateway, Method::POST, &path)?;
            if *json {
                print_json(&one)?;
            } else {
                say(&line(&one));
            }
            verdict(std::slice::from_ref(&one))
        }
        Command::Reverify { id: None, which, gateway, json, .. } => {
            let path = format!("/api/v1/rejections/reverify?{}", which.query());
            let all: Reverifications = ask(gateway, Method::POST, &path)?;
            if *json {
                print_json(&all)?;
            } else {
                all.reverified.iter().for_each(|one| say(&line(one)));
                if let Some(cursor) = &all.cursor {
                    say(&format!("more: --cursor {cursor}"));
                }
            }
            verdict(&all.reverified)
        }
    }
}

fn newest(gateway: &Gateway) -> Result<String, Failure> {
    let list: Rejections = ask(gateway, Method::GET, "/api/v1/rejections?limit=1")?;
    let newest = list.rejections.into_iter().next().map(|rejection| rejection.id);
    newest.ok_or_else(|| Failure::Failed("no refused request is kept".to_owned()))
}

fn verdict(all: &[Reverification]) -> Result<(), Failure> {
    if all.iter().any(|one| one.outcome == "refused") { Err(Failure::Failed(String::new())) } else { Ok(()) }
}

fn line(one: &Reverification) -> String {
    match &one.reason {
        Some(reason) => format!("{} {}: {reason}", one.id, one.outcome),
        None => format!("{} {}", one.id, one.outcome),
    }
}

fn print_list(list: &Rejections) -> Result<(), Failure> {
    say(&format!(
        "{:<36} {:<30} {:<20} {:<22} {:<16} {}",
        "ID", "RECEIVED", "SOURCE", "REASON", "SENDER", "REVERIFIED"
    ));
    for one in &list.rejections {
        let reverified = one.reverified.as_deref().unwrap_or("-");
        say(&format!(
            "{:<36} {:<30} {:<20} {:<22} {:<16} {reverified}",
            one.id, one.received_at, one.source, one.reason, one.sender
        ));
    }
    if let Some(cursor) = &list.cursor {
        say(&format!("more: --cursor {cursor}"));
    }
    Ok(())
}

fn print_explained(explained: &Explained) -> Result<(), Failure> {
    let Explained { rejection, headers, body_bytes, refused_now, causes, complete } = explained;
    say(&format!(
        "{} {} from {} at {}",
        inert(&rejection.method),
        inert(&rejection.target),
        rejection.sender,
        rejection.received_at
    ));
    say(&format!("source {}: refused for {}", rejection.source, rejection.reason));
    for (name, value) in headers {
        say(&format!("  {}: {}", inert(name), inert(value)));
    }
    match body_bytes {
        Some(bytes) => say(&format!("  body of {bytes} bytes")),
        None => say("  the body was not kept"),
    }
    match refused_now {
        Some(reason) => say(&format!("with the configuration in force: {reason}")),
        None => say("with the configuration in force: not refused"),
    }
    for cause in causes {
        say(&format!("{}: {}", if cause.proven { "cause" } else { "perhaps" }, inert(&cause.text)));
        say(&format!("  to do: {}", inert(&cause.advice)));
    }
    if !complete {
        say("not everything was tried: the body is large");
    }
    Ok(())
}
