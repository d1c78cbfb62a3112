//! `countersign jobs list | cancel`: replays and purges that go on in the gateway.

use clap::Subcommand;
use countersign::admin::{Job, Jobs};
use http::Method;

use super::ask::{ask, escaped, print_json, print_table, told};
use super::status::Gateway;
use super::{Failure, say};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the latest replays and purges, and how far they are
    List {
        #[command(flatten)]
        gateway: Gateway,
        /// Print the document as JSON
        #[arg(long)]
        json: bool,
    },
    /// Have one end where it is
    Cancel {
        /// Its id
        id: String,
        #[command(flatten)]
        gateway: Gateway,
        /// Print the document as JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::List { gateway, json } => {
            let list: Jobs = ask(gateway, Method::GET, "/api/v1/jobs")?;
            if *json {
                return print_json(&list);
            }
            let row = |job: &Job| {
                vec![job.id.clone(), job.state.clone(), told(job), job.by.clone(), job.started_at.clone()]
            };
            let headings = ["JOB", "STATE", "WHAT", "BY", "STARTED"];
            print_table(&headings, &list.jobs.iter().map(row).collect::<Vec<_>>());
            Ok(())
        }
        Command::Cancel { id, gateway, json } => {
            let path = format!("/api/v1/jobs/{}/cancel", escaped(id));
            let job: Job = ask(gateway, Method::POST, &path)?;
            if *json {
                return print_json(&job);
            }
            say(&format!("{}: {}", job.id, told(&job)));
            Ok(())
        }
    }
}
