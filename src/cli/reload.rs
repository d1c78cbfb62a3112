//! `countersign reload`: has a running gateway load its configuration anew, and tells what came of it.

use countersign::admin::Reloaded;
use http::{Method, StatusCode};

use super::status::{Gateway, detail, refusal};
use super::{Failure, say};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    gateway: Gateway,
    /// Print the gateway's answer as JSON, also when it refuses
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let answer = arguments.gateway.call(Method::POST, "/api/v1/reload")?;
    if arguments.json {
        say(String::from_utf8_lossy(answer.body()).trim_end());
    }
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::UNPROCESSABLE_ENTITY => return Err(Failure::Config(detail(&answer))),
        _ => return Err(Failure::Failed(refusal(&answer))),
    }
    let reloaded: Reloaded = serde_json::from_slice(answer.body())
        .map_err(|error| Failure::Failed(format!("this is not what a gateway answers: {error}")))?;
    if !arguments.json {
        for warning in &reloaded.warnings {
            say(warning);
        }
        for section in &reloaded.needs_restart {
            say(&format!("{section} differs from what is running; takes effect at the next start only"));
        }
        say("reloaded");
    }
    Ok(())
}
