//! `countersign run`: the gateway in the foreground, steered by signals.

use std::path::PathBuf;
use std::time::Duration;

use countersign::app::{App, DRAIN};
use countersign::clock::Clock;
use countersign::config::Config;
use tokio::signal::unix::{SignalKind, signal};

use super::logging::{self, LogFormat};
use super::{Failure, chain, check, full_runtime, say};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
    /// How logs are written to standard error; RUST_LOG filters them
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    logging::start(arguments.log_format, "info");
    let config = load_and_warn(arguments)?;
    let runtime = full_runtime()?;
    let done = runtime.block_on(async {
        let app = App::start(config, Clock::system()).await.map_err(|error| Failure::Io(chain(error)))?;
        steer(app, arguments).await
    });
    // A read that hangs in a dying disk must not keep the supervisor waiting.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

async fn steer(app: App, arguments: &Arguments) -> Result<(), Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::Io(format!("cannot handle signals: {error}")));
    let mut hangup = listen(SignalKind::hangup())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    // Supervisors and tests wait for this line, and for nothing else on standard output.
    say(&format!("ready listen={} admin={}", app.listen_address(), app.admin_address()));
    loop {
        tokio::select! {
            _ = hangup.recv() => reload(&app, arguments),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            reason = app.failed() => {
                tracing::error!(reason, "cannot go on; exiting so that the supervisor starts a fresh process");
                // Nothing can be written down any more, so there is nothing to wait for.
                app.drain(Duration::ZERO).await;
                return Err(Failure::Io(reason));
            }
        }
    }
    tracing::info!("draining");
    app.drain(DRAIN).await;
    tracing::info!("drained");
    Ok(())
}

fn reload(app: &App, arguments: &Arguments) {
    let reloaded = load_and_warn(arguments)
        .map_err(|failure| failure.into_parts().1)
        .and_then(|config| app.reload(config).map_err(chain));
    app.note_reload(reloaded.is_ok());
    match reloaded {
        Ok(()) => tracing::info!("configuration reloaded"),
        Err(problems) => tracing::error!(problems, "reload refused; the old configuration stays in force"),
    }
}

fn load_and_warn(arguments: &Arguments) -> Result<Config, Failure> {
    let config = check::load(&arguments.config)?;
    for warning in &config.warnings {
        tracing::warn!("{}", warning.trim_end());
    }
    Ok(config)
}
