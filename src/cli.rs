//! The command line: what can be typed, and the exit code of what became of it.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

mod ask;
mod check;
mod dead;
mod deliveries;
mod demo;
mod destinations;
mod events;
mod handed_over;
mod http;
mod jobs;
mod listen;
mod logging;
mod notify;
mod providers;
mod rejections;
mod reload;
mod replay;
mod run;
mod send;
mod status;
mod store;
mod verify;

/// A receiver-side webhook gateway: verifies what providers send, stores each delivery once, answers when it is on
/// disk, and forwards it to slow backends under one uniform signature.
#[derive(Debug, Parser)]
#[command(name = "countersign", version, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM, which drains (a second one ends at once); SIGHUP reloads the configuration
    Run(run::Arguments),
    /// Judge a configuration file: exit 0, or 78 with every problem
    Check(check::Arguments),
    /// Show what the gateway does, live: signed, forged, stale and duplicate deliveries, slow and failing backends
    Demo(demo::Arguments),
    /// Receive from one provider for an application that is being developed: prints each delivery, explains each refusal
    Listen(listen::Arguments),
    /// Sign a delivery as a provider would, send it, and print the answer
    Send(send::Arguments),
    /// Tell why a captured request is refused: exit 0 when it is not, else 1
    Verify(verify::Arguments),
    /// List the providers whose signatures are known
    Providers(providers::Arguments),
    /// Show how a running gateway stands
    Status(status::Arguments),
    /// Have a running gateway load its configuration anew: exit 0, or 78 with every problem, nothing changed
    Reload(reload::Arguments),
    /// Show the secrets that a provider's handshakes have handed over to a source: once, then they are gone
    HandedOver(handed_over::Arguments),
    /// List, explain or reverify requests that a running gateway has refused
    #[command(subcommand)]
    Rejections(rejections::Command),
    /// List, show, replay, cancel or follow what a running gateway has stored
    #[command(subcommand)]
    Deliveries(deliveries::Command),
    /// List, replay or purge dead letters
    #[command(subcommand)]
    Dead(dead::Command),
    /// Forward again what was delivered, dead or cancelled, by a filter
    Replay(replay::Arguments),
    /// List, pause or resume destinations
    #[command(subcommand)]
    Destinations(destinations::Command),
    /// List or cancel replays and purges
    #[command(subcommand)]
    Jobs(jobs::Command),
    /// Check, back up or salvage a data directory, or move it into a database
    #[command(subcommand)]
    Store(store::Command),
    /// Exit 0 when a running gateway is ready, else 1 (69 when it cannot be reached)
    Healthcheck(status::HealthArguments),
    /// Print a completion script for a shell
    Completions {
        /// The shell to complete for
        shell: clap_complete::Shell,
    },
}

/// Why a command failed, by exit code (those of sysexits.h).
#[derive(Debug)]
pub(crate) enum Failure {
    /// 1: it was done, and the answer is no.
    Failed(String),
    /// 64: the command line makes no sense.
    Usage(String),
    /// 69: the gateway cannot be reached.
    Unreachable(String),
    /// 74: reading, writing, binding or storing failed.
    Io(String),
    /// 78: the configuration is refused; the text holds every problem.
    Config(String),
}

impl Failure {
    fn into_parts(self) -> (u8, String) {
        match self {
            Self::Failed(text) => (1, text),
            Self::Usage(text) => (64, text),
            Self::Unreachable(text) => (69, text),
            Self::Io(text) => (74, text),
            Self::Config(text) => (78, text),
        }
    }

    fn exit(self) -> ExitCode {
        let (code, text) = self.into_parts();
        if !text.is_empty() {
            say_error(text.trim_end());
        }
        ExitCode::from(code)
    }
}

pub(crate) fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors; clap prints each where it belongs.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    let done = match arguments.command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Listen(arguments) => listen::run(&arguments),
        Command::Send(arguments) => send::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Providers(arguments) => providers::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Reload(arguments) => reload::run(&arguments),
        Command::HandedOver(arguments) => handed_over::run(&arguments),
        Command::Rejections(command) => rejections::run(&command),
        Command::Deliveries(command) => deliveries::run(&command),
        Command::Dead(command) => dead::run(&command),
        Command::Replay(arguments) => replay::run(&arguments),
        Command::Destinations(command) => destinations::run(&command),
        Command::Jobs(command) => jobs::run(&command),
        Command::Store(command) => store::run(&command),
        Command::Healthcheck(arguments) => status::healthcheck(&arguments),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "countersign", &mut std::io::stdout());
            Ok(())
        }
    };
    done.map_or_else(Failure::exit, |()| ExitCode::SUCCESS)
}

/// An error with its causes, in one line.
fn chain(error: impl Into<anyhow::Error>) -> String {
    format!("{:#}", error.into())
}

/// Prints a line to standard output; a closed pipe (`| head`) is the reader's decision, not an error.
pub(crate) fn say(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn say_error(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A runtime for a gateway.
fn full_runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Io(format!("cannot start: {error}")))
}

/// A runtime for a command that does one thing.
pub(crate) fn small_runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Io(format!("cannot start: {error}")))
}
