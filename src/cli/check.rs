//! `countersign check`: every problem of a configuration file in one run.

use std::path::{Path, PathBuf};

use countersign::clock::Clock;
use countersign::config::{self, Config};
use countersign::ingest::check_certificate;

use super::{Failure, chain, say, say_error};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let config = load(&arguments.config)?;
    for warning in &config.warnings {
        say_error(warning.trim_end());
    }
    let count = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    say(&format!(
        "{}: ok ({}, {}, {})",
        arguments.config.display(),
        count(config.sources.len(), "source"),
        count(config.destinations.len(), "destination"),
        count(config.warnings.len(), "warning"),
    ));
    Ok(())
}

pub(super) fn load(path: &Path) -> Result<Config, Failure> {
    let config = config::load(path, &config::environment, Clock::system().now())
        .map_err(|error| Failure::Config(chain(error)))?;
    if let Some(tls) = &config.listen.tls {
        // What is wrong inside the files is part of the configuration, too: found here, not at the start.
        check_certificate(tls).map_err(|error| {
            Failure::Config(format!("{}: error: listen.tls: {}", path.display(), chain(error)))
        })?;
    }
    Ok(config)
}
