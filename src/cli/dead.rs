//! `countersign dead list | replay | purge`: what gave up.

use clap::Subcommand;
use countersign::admin::Dead;
use http::Method;

use super::ask::{Pace, Which, ask, follow, or_dash, path, print_json, print_table};
use super::deliveries::print_deliveries;
use super::status::Gateway;
use super::{Failure, say};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show what dead letters died of, and list them, the newest first
    List {
        #[command(flatten)]
        which: Which,
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
    /// Forward dead letters again: all, or those that the options select
    Replay(Many),
    /// Cancel dead letters: all, or those that the options select; retention removes them later
    Purge(Many),
}

#[derive(Debug, clap::Args)]
pub(super) struct Many {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    pace: Pace,
    #[command(flatten)]
    gateway: Gateway,
    /// Print the document as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::List { which, limit, cursor, gateway, json } => {
            let mut query = which.query()?;
            query.push(("limit", limit.to_string()));
            query.extend(cursor.clone().map(|cursor| ("cursor", cursor)));
            let dead: Dead = ask(gateway, Method::GET, &path("dead", &query))?;
            if *json { print_json(&dead) } else { print(&dead, which) }
        }
        Command::Replay(Many { which, pace, gateway, json }) => {
            follow(gateway, "/api/v1/dead/replay", &which.order(pace)?, *json)
        }
        Command::Purge(Many { which, pace, gateway, json }) => {
            follow(gateway, "/api/v1/dead/purge", &which.order(pace)?, *json)
        }
    }
}

fn print(dead: &Dead, which: &Which) -> Result<(), Failure> {
    // The gateway counts all, by these two.
    let groups = dead.groups.iter().filter(|group| which.takes(&group.destination, group.outcome.as_deref()));
    let rows: Vec<_> = groups
        .map(|group| {
            vec![group.destination.clone(), or_dash(group.outcome.as_deref()), group.count.to_string()]
        })
        .collect();
    if rows.is_empty() && dead.groups_complete {
        say(if dead.groups.is_empty() {
            "there are no dead letters"
        } else {
            "there are no such dead letters"
        });
        return Ok(());
    }
    if which.is_about_forwards_only() {
        print_table(&["DESTINATION", "OUTCOME", "DEAD"], &rows);
        if !dead.groups_complete {
            say("(there are more: only the newest were counted)");
        }
        say("");
    }
    print_deliveries(&dead.deliveries);
    if let Some(cursor) = &dead.cursor {
        say(&format!("more: --cursor {cursor}"));
    }
    Ok(())
}
