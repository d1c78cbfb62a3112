//! `countersign send`: signs as a provider would. With `--print` it only shows what it would send.

use std::path::PathBuf;

use bytes::Bytes;
use countersign::clock::{Clock, Timestamp};
use countersign::secret::Secret;
use countersign::verify::{Message, Preset, Signer, preset};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, StatusCode};
use serde_json::{Map, Value};

use super::ask::inert;
use super::http::Client;
use super::{Failure, events, say, small_runtime};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The provider to sign for; `countersign providers` lists them
    #[arg(long, value_name = "P")]
    provider: String,
    /// The secret shared with the receiver
    #[arg(long, value_name = "S", env = "COUNTERSIGN_SEND_SECRET", hide_env_values = true)]
    secret: String,
    /// Where to send it
    #[arg(long, value_name = "URL")]
    to: String,
    /// A file with the exact body, `-` for standard input; otherwise the event as the provider would send it, or a small
    /// JSON document where its body is not known
    #[arg(long, value_name = "F")]
    body: Option<PathBuf>,
    /// The delivery id; drawn at random otherwise
    #[arg(long, value_name = "I")]
    id: Option<String>,
    /// The event type; `countersign providers P` lists those whose bodies are known, the first of which is meant
    /// otherwise
    #[arg(long, value_name = "E")]
    event: Option<String>,
    /// The time to sign with: Unix seconds or RFC 3339; the present otherwise
    #[arg(long, value_name = "T", value_parser = parse_time)]
    now: Option<Timestamp>,
    /// The method
    #[arg(long, value_name = "M", default_value = "POST")]
    method: Method,
    /// Print headers and body instead of sending them
    #[arg(long)]
    print: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let now = arguments.now.unwrap_or_else(|| Clock::system().now());
    let request = build(arguments, now)?;
    if arguments.print {
        for (name, value) in request.headers() {
            say(&format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())));
        }
        say("");
        // Exactly what would be sent: a line feed more would not be what was signed.
        return write_raw(request.body());
    }
    let answer = small_runtime()?.block_on(async { Client::new()?.exchange(request).await })?;
    say(&format!("{}", answer.status()));
    for (name, value) in answer.headers() {
        say(&format!("{name}: {}", inert(&String::from_utf8_lossy(value.as_bytes()))));
    }
    if !answer.body().is_empty() {
        say("");
        write_raw(answer.body())?;
    }
    match answer.status() {
        status if status.is_success() => Ok(()),
        StatusCode::UNAUTHORIZED => Err(Failure::Failed(
            "refused; a gateway tells its operators why: `countersign rejections list`, or its console"
                .to_owned(),
        )),
        _ => Err(Failure::Failed(String::new())),
    }
}

fn build(arguments: &Arguments, now: Timestamp) -> Result<Request<Bytes>, Failure> {
    let name = &arguments.provider;
    let preset = preset(name).ok_or_else(|| {
        Failure::Usage(format!("there is no provider `{name}`; `countersign providers` lists them"))
    })?;
    let secret = Secret::new(arguments.secret.as_str())
        .map_err(|error| Failure::Usage(format!("--secret: {error}")))?;
    let signer = Signer::new(preset.scheme.clone(), &secret)
        .map_err(|error| Failure::Usage(format!("--secret: {error}")))?;
    let id = arguments.id.clone().unwrap_or_else(|| {
        countersign::id::Id::new(now, std::array::from_fn(|_| fastrand::u8(..))).to_string()
    });
    let event = arguments.event.as_deref();
    let event = event.unwrap_or_else(|| events::names(name).first().copied().unwrap_or("test"));
    let body = match &arguments.body {
        Some(path) => read(path)?,
        None => sample(preset, &id, event, now),
    };
    let message = Message {
        method: &arguments.method,
        url: &arguments.to,
        id: Some(&id),
        event: Some(event),
        body: &body,
    };
    let signed = signer
        .sign_whole(&message, now)
        .map_err(|error| Failure::Usage(format!("cannot be signed: {error}")))?;
    let mut request = Request::builder()
        .method(&arguments.method)
        .uri(&signed.url)
        .body(signed.body)
        .map_err(|error| Failure::Usage(format!("--to {}: {error}", arguments.to)))?;
    if request.uri().host().is_none() {
        return Err(Failure::Usage(format!("--to {}: use http://HOST:PORT/PATH", arguments.to)));
    }
    *request.headers_mut() = signed.headers;
    let kind = if signed.is_form { "application/x-www-form-urlencoded" } else { "application/json" };
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(request)
}

/// A body that carries id, event type and time where the provider's do; of an event that is known, the whole of it.
fn sample(preset: &Preset, id: &str, event: &str, now: Timestamp) -> Bytes {
    let known = events::body(&preset.name, event, id, now);
    let is_known = known.is_some();
    let mut body = known.unwrap_or_else(|| Value::Object(Map::new()));
    preset.scheme.fill(&mut body, id, event, now);
    if let Some(members) = body.as_object_mut().filter(|_| !is_known) {
        members.insert("sent_by".to_owned(), "countersign send".into());
    }
    body.to_string().into()
}

fn read(path: &std::path::Path) -> Result<Bytes, Failure> {
    use std::io::Read as _;
    let mut body = Vec::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut body).map(|_| ())
    } else {
        std::fs::read(path).map(|bytes| body = bytes)
    };
    read.map_err(|error| Failure::Io(format!("--body {}: {error}", path.display())))?;
    Ok(body.into())
}

fn write_raw(bytes: &[u8]) -> Result<(), Failure> {
    use std::io::Write as _;
    let mut stdout = std::io::stdout();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| Failure::Io(error.to_string()))
}

pub(super) fn parse_time(text: &str) -> Result<Timestamp, String> {
    match text.parse::<i64>() {
        Ok(seconds) => Timestamp::from_second(seconds).map_err(|error| error.to_string()),
        Err(_) => {
            text.parse().map_err(|_| "use Unix seconds or RFC 3339, such as 2026-12-01T00:00:00Z".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_its_values_where_the_provider_has_them() {
        let now = Timestamp::from_second(1_776_871_800).unwrap();
        let check = |provider: &str, expected: &str| {
            let body = sample(preset(provider).unwrap(), "id-1", "e", now);
            assert_eq!(String::from_utf8_lossy(&body), expected, "{provider}");
        };
        check("github", r#"{"sent_by":"countersign send"}"#);
        check("stripe", r#"{"id":"id-1","sent_by":"countersign send","type":"e"}"#);
        check("telnyx", r#"{"data":{"event_type":"e","id":"id-1"},"sent_by":"countersign send"}"#);
        check("sendgrid", r#"[{"event":"e"}]"#);
        let known = sample(preset("owlette").unwrap(), "id-1", "machine.online", now);
        assert!(String::from_utf8_lossy(&known).contains("foyer-wall-left"), "{known:?}");
        check("linear", r#"{"sent_by":"countersign send","type":"e","webhookTimestamp":1776871800000}"#);
    }
}
