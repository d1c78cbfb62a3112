//! `countersign destinations list | pause | resume`.

use clap::Subcommand;
use countersign::admin::{DestinationStatus, Destinations};
use http::Method;

use super::ask::{ask, escaped, print_json, print_table};
use super::status::Gateway;
use super::{Failure, say};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the destinations and how they stand
    List {
        #[command(flatten)]
        gateway: Gateway,
        /// Print the document as JSON
        #[arg(long)]
        json: bool,
    },
    /// Begin no more attempts at a destination, over restarts too, until it is resumed
    Pause(One),
    /// Go on with the attempts at a destination
    Resume(One),
}

#[derive(Debug, clap::Args)]
pub(super) struct One {
    /// Its name
    name: String,
    #[command(flatten)]
    gateway: Gateway,
    /// Print the document as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::List { gateway, json } => {
            let list: Destinations = ask(gateway, Method::GET, "/api/v1/destinations")?;
            if *json {
                return print_json(&list);
            }
            let row = |one: &DestinationStatus| {
                let oldest = format!("{}s", one.oldest_age_seconds);
                let numbers = [one.running as u64, one.pending, one.dead].map(|number| number.to_string());
                let [running, pending, dead] = numbers;
                vec![one.name.clone(), one.state.clone(), running, pending, oldest, dead, one.url.clone()]
            };
            let headings = ["DESTINATION", "STATE", "RUNNING", "PENDING", "OLDEST", "DEAD", "URL"];
            print_table(&headings, &list.destinations.iter().map(row).collect::<Vec<_>>());
            Ok(())
        }
        Command::Pause(one) => set(one, "pause"),
        Command::Resume(one) => set(one, "resume"),
    }
}

fn set(one: &One, action: &str) -> Result<(), Failure> {
    let path = format!("/api/v1/destinations/{}/{action}", escaped(&one.name));
    let status: DestinationStatus = ask(&one.gateway, Method::POST, &path)?;
    if one.json {
        return print_json(&status);
    }
    say(&format!("{}: {}, {} pending", status.name, status.state, status.pending));
    Ok(())
}
