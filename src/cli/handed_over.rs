//! `countersign handed-over`: shows, once, the secrets that a provider has handed over in its handshakes.

use countersign::admin::HandedOverSecret;
use http::{Method, StatusCode};

use super::ask::escaped;
use super::status::{Gateway, refusal};
use super::{Failure, say};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The source's name
    source: String,
    #[command(flatten)]
    gateway: Gateway,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let path = format!("/api/v1/sources/{}/handed-over", escaped(&arguments.source));
    let answer = arguments.gateway.call(Method::POST, &path)?;
    if answer.status() != StatusCode::OK {
        return Err(Failure::Failed(refusal(&answer)));
    }
    if arguments.json {
        say(String::from_utf8_lossy(answer.body()).trim_end());
        return Ok(());
    }
    let secrets: Vec<HandedOverSecret> = serde_json::from_slice(answer.body())
        .map_err(|error| Failure::Failed(format!("this is not what a gateway answers: {error}")))?;
    if secrets.is_empty() {
        say("nothing has been handed over since it was last asked");
    }
    for given in &secrets {
        say(&format!("{} from {}: {}", given.received_at, given.sender, given.secret));
    }
    Ok(())
}
