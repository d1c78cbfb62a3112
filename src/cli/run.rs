//! `countersign run`: the gateway in the foreground, steered by signals.

use std::path::PathBuf;
use std::time::Duration;

use countersign::app::{App, Sockets};
use countersign::clock::Clock;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::logging::{self, LogFormat};
use super::notify::notify;
use super::{Failure, chain, check, full_runtime, say};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
    /// How logs are written to standard error; RUST_LOG filters them
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
    /// Take over from the gateway that runs on the same data directory, without refusing a request; it then stops.
    /// Start as usual when there is none
    #[arg(long)]
    takeover: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    logging::start(arguments.log_format, "info");
    let mut sockets = Sockets::of_supervisor().map_err(|error| Failure::Io(chain(error)))?;
    let path = arguments.config.clone();
    let config = check::load(&path)?;
    for warning in &config.warnings {
        tracing::warn!("{}", warning.trim_end());
    }
    let load = move || check::load(&path).map_err(|failure| failure.into_parts().1);
    if arguments.takeover {
        sockets = sockets.take_over(&config.store).map_err(|error| Failure::Io(chain(error)))?;
    }
    let runtime = full_runtime()?;
    let done = runtime.block_on(async {
        // A limit to the size of files is a full disk, and no reason to be killed: once handled, the write only fails.
        // Before the store is opened, which writes.
        let _limited = listen(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?;
        let app = App::start_on(sockets, config, Box::new(load), Clock::system()).await;
        steer(app.map_err(|error| Failure::Io(chain(error)))?).await
    });
    // All that could be waited for has been; a read that hangs in a dying disk must not keep the supervisor waiting.
    runtime.shutdown_timeout(Duration::from_millis(20));
    done
}

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::Io(format!("cannot handle signals: {error}")))
}

async fn steer(app: App) -> Result<(), Failure> {
    let mut hangup = listen(SignalKind::hangup())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    // Supervisors and tests wait for this line, and for nothing else on standard output.
    say(&format!("ready listen={} admin={}", app.listen_address(), app.admin_address()));
    notify("READY=1");
    loop {
        tokio::select! {
            _ = hangup.recv() => app.reload(),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            successor = app.handed_over() => {
                tracing::info!(successor, "handing over");
                break;
            }
            reason = app.failed() => {
                tracing::error!(reason, "cannot go on; exiting so that the supervisor starts a fresh process");
                app.give_up().await;
                return Err(Failure::Io(reason));
            }
        }
    }
    notify("STOPPING=1");
    tracing::info!("draining");
    tokio::select! {
        () = app.drain() => tracing::info!("drained"),
        _ = terminate.recv() => hurry(),
        _ = interrupt.recv() => hurry(),
    }
    Ok(())
}

/// Every 2xx was on disk before it was sent, and what is being forwarded is stored: the next start finds it interrupted.
fn hurry() {
    tracing::warn!("second signal: ending at once, with requests and attempts in progress");
}
