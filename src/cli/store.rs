//! `countersign store check | backup | salvage | copy`: what operators do with a data directory.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use countersign::clock::Clock;
use countersign::config::{self, Config, ConfigError, StoreConfig};
use countersign::store::sqlite::{self, Checked, Finding, Salvaged};
use countersign::store::{self, Compared, Content};
use serde::Serialize;

use super::ask::{bar, print_table};
use super::{Failure, chain, say, small_runtime};

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
    /// Move what the store holds into the PostgreSQL database of another configuration, without a gateway on either; exit 0 when
    /// both hold the same afterwards, 1 when they do not
    ///
    /// The database has to be empty. Interrupted, it goes on where it was when it is run again; until it has come to its end no
    /// gateway starts on the database. Refused requests are not moved.
    Copy {
        #[command(flatten)]
        which: Which,
        /// The configuration file whose `store.url` names the database
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
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
        Command::Copy { which, to } => copy(which, to),
    }
}

fn check(which: &Which) -> Result<(), Failure> {
    let checked = sqlite::check(&which.directory()?).map_err(io)?;
    which.tell(&checked, || tell_checked(&checked))?;
    verdict(&checked)
}

fn backup(which: &Which, to: &Path) -> Result<(), Failure> {
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

fn copy(which: &Which, to: &Path) -> Result<(), Failure> {
    let from = which.directory()?;
    let StoreConfig { database, .. } = load(to).map_err(|error| Failure::Config(chain(error)))?.store;
    let database = database.ok_or_else(|| {
        let file = to.display();
        Failure::Config(format!(
            "{file}: the store is a data directory, not a database: engine = \"postgres\" and a `url`"
        ))
    })?;
    let bar = bar(which.json);
    let progress = |table, done, total| {
        bar.set_message(table);
        bar.set_length(total);
        bar.set_position(done);
    };
    let copied = small_runtime()?.block_on(store::copy(&from, &database, progress));
    bar.finish_and_clear();
    let tables = copied.map_err(|error| Failure::Io(chain(error)))?;
    which.tell(&tables, || {
        let row = |table: &Compared| {
            let Compared { table: name, from, to } = table;
            let cell = |content: &Content| format!("{} {}", content.rows, &content.digest[..16]);
            let verdict = if table.is_same() { "same" } else { "DIFFERENT" };
            vec![(*name).to_owned(), cell(from), cell(to), verdict.to_owned()]
        };
        print_table(&["TABLE", "STORE", "DATABASE", ""], &tables.iter().map(row).collect::<Vec<_>>());
    })?;
    if tables.iter().all(Compared::is_same) {
        return Ok(());
    }
    let advice = "the store was changed since the copy was begun, or the database; drop its schema `countersign` and copy again";
    Err(Failure::Failed(advice.to_owned()))
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
        let config = load(file).map_err(|error| {
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

/// Secrets are not needed here, and whoever looks after the disk may not have them.
fn load(file: &Path) -> Result<Config, ConfigError> {
    let environment = |name: &str| config::environment(name).or_else(|| Some(NO_SECRET.to_owned()));
    config::load(file, &environment, Clock::system().now())
}

/// What a missing secret is taken for: something that every scheme takes for a key.
const NO_SECRET: &str = "whsec_bm90LWEtc2VjcmV0LW5vdC1hLXNlY3JldC1ub3QtYS1zZWNyZXQ=";

fn io(error: sqlite::OpenError) -> Failure {
    Failure::Io(chain(error))
}
