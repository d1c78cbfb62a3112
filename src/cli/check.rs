//! `countersign check`: every problem of a configuration file in one run.

use std::path::{Path, PathBuf};

use countersign::clock::Clock;
use countersign::config::{self, Config};
use countersign::ingest::{Expiry, check_certificate};

use super::{Failure, chain, say, say_error};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let path = arguments.config.display();
    let (config, expiries) = load_all(&arguments.config)?;
    let now = Clock::system().now();
    let certificates = expiries.iter().filter(|expiry| expiry.is_near(now)).map(|expiry| {
        let verb = if expiry.is_past(now) { "expired" } else { "expires" };
        let (key, file, not_after) = (expiry.key(), expiry.path.display(), expiry.not_after);
        format!("{path}: warning: {key}: a certificate in {file} {verb} at {not_after}")
    });
    let warnings: Vec<String> = config.warnings.iter().cloned().chain(certificates).collect();
    for warning in &warnings {
        say_error(warning.trim_end());
    }
    let count = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    say(&format!(
        "{path}: ok ({}, {}, {})",
        count(config.sources.len(), "source"),
        count(config.destinations.len(), "destination"),
        count(warnings.len(), "warning"),
    ));
    Ok(())
}

pub(super) fn load(path: &Path) -> Result<Config, Failure> {
    load_all(path).map(|(config, _)| config)
}

fn load_all(path: &Path) -> Result<(Config, Vec<Expiry>), Failure> {
    let config = config::load(path, &config::environment, Clock::system().now())
        .map_err(|error| Failure::Config(chain(error)))?;
    // What is wrong inside the files is part of the configuration, too: found here, not at the start.
    let expiries = config.listen.tls.as_ref().map(check_certificate).transpose().map_err(|error| {
        Failure::Config(format!("{}: error: listen.tls: {}", path.display(), chain(error)))
    })?;
    Ok((config, expiries.unwrap_or_default()))
}
