//! The `countersign` binary: reads the command line and runs one command. Exit codes are decided here and in
//! [`cli::Failure`], nowhere else.

use std::process::ExitCode;

mod cli;

fn main() -> ExitCode {
    cli::run()
}
