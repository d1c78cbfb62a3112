//! `countersign store check | backup | salvage`: what operators do with a data directory.

use std::path::PathBuf;

use clap::Subcommand;
use countersign::clock::Clock;
use countersign::config;
use countersign::store::sqlite::{self, Checked, Finding, Salvaged};
use serde::Serialize;

use super::{Failure, chain, say};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Read the whole store, a gateway may be using it; exit 0 when it is what was written, 1 with each problem
    Check(Which),
    /// Copy the store as it is at one moment, a gateway may be using it; the copy is fit for `store.path`
    Backup {
        #[command(flatten)]
        which: Which,
        /// The directory to make; it must be empty or missing
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
    /// Make a new store of what a damaged one holds, without a gateway; exit 0 when the store is usable afterwards
    ///
    /// What is lost is named, and the damaged files are kept in a directory `damaged-N` beside the new database. A
    /// gateway that finds its store damaged does the same at its start; this is for what it will not do by itself.
    Salvage(Which),
}

#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// The configuration file, of which only `store.path` matters
    #[arg(long, short, value_name = "FILE", required_unless_present = "path", conflicts_with = "path")]
    config: Option<PathBuf>,
    /// The data directory, where there is no configuration
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// Print one document as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Check(which) => check(which),
        Command::Backup { which, to } => backup(which, to),
        Command::Salvage(which) => salvage(which),
    }
}

fn check(which: &Which) -> Result<(), Failure> {
    let checked = sqlite::check(&which.directory()?).map_err(io)?;
    which.tell(&checked, || tell_checked(&checked))?;
    verdict(&checked)
}

fn backup(which: &Which, to: &std::path::Path) -> Result<(), Failure> {
    let backup = sqlite::backup(&which.directory()?, to).map_err(io)?;
    which.tell(&backup, || {
        say(&format!("{}: {} bytes", backup.directory.display(), backup.bytes));
        tell_checked(&backup.checked);
    })?;
    verdict(&backup.checked)
}

fn salvage(which: &Which) -> Result<(), Failure> {
    let salvaged = sqlite::salvage(&which.directory()?).map_err(io)?;
    which.tell(&salvaged, || match &salvaged {
        None => say("nothing is damaged"),
        Some(Salvaged { deliveries, pending, claims, handed_over, findings, damaged }) => {
            tell_findings(findings);
            let lost = findings.iter().filter(|finding| finding.lost).count();
            say(&format!(
                "kept: {deliveries} deliveries, {pending} forwards waiting, {claims} claims, {handed_over} secrets \
                 that were handed over; lost: {lost}; the damaged files are in {}",
                damaged.display()
            ));
        }
    })
}

fn tell_checked(checked: &Checked) {
    let Checked { deliveries, pending, dead, claims, damaged, problems } = checked;
    for problem in problems {
        say(&format!("damage: {problem}"));
    }
    tell_findings(damaged);
    if checked.is_sound() {
        say(&format!(
            "ok: {deliveries} deliveries, {pending} forwards waiting, {dead} dead, {claims} claims"
        ));
    } else if problems.is_empty() {
        say("a gateway sets damaged deliveries aside and serves the others");
    } else {
        say("stop the gateway, then `countersign store salvage`; or start it anew, which does the same");
    }
}

fn tell_findings(findings: &[Finding]) {
    for Finding { delivery, what, lost } in findings {
        let delivery = delivery.map_or(String::new(), |id| format!(" delivery {id}:"));
        say(&format!("{}:{delivery} {what}", if *lost { "lost" } else { "mended" }));
    }
}

fn verdict(checked: &Checked) -> Result<(), Failure> {
    if checked.is_sound() { Ok(()) } else { Err(Failure::Failed(String::new())) }
}

impl Which {
    fn directory(&self) -> Result<PathBuf, Failure> {
        let Some(file) = &self.config else { return Ok(self.path.clone().unwrap_or_default()) };
        // Secrets are not needed here, and whoever looks after the disk may not have them.
        let environment = |name: &str| config::environment(name).or_else(|| Some(NO_SECRET.to_owned()));
        let config = config::load(file, &environment, Clock::system().now()).map_err(|error| {
            Failure::Config(format!("{}\n(or name the data directory: --path DIR)", chain(error)))
        })?;
        match config.store.database {
            None => Ok(config.store.path),
            Some(database) => Err(Failure::Config(format!(
                "{}: the store is the database {}, not a data directory: check and back it up with its own tools, such \
                 as pg_amcheck and pg_dump",
                file.display(),
                database.shown()
            ))),
        }
    }

    fn tell(&self, document: &impl Serialize, text: impl FnOnce()) -> Result<(), Failure> {
        if self.json {
            say(&serde_json::to_string_pretty(document)
                .map_err(|error| Failure::Failed(error.to_string()))?);
        } else {
            text();
        }
        Ok(())
    }
}

/// What a missing secret is taken for: something that every scheme takes for a key.
const NO_SECRET: &str = "whsec_bm90LWEtc2VjcmV0LW5vdC1hLXNlY3JldC1ub3QtYS1zZWNyZXQ=";

fn io(error: sqlite::OpenError) -> Failure {
    Failure::Io(chain(error))
}
