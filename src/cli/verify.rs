//! `countersign verify`: a captured request, judged by a configuration, without a gateway.

use std::fs;
use std::path::{Path, PathBuf};

use countersign::clock::{Clock, Timestamp};
use countersign::config;
use countersign::verify::{Captured, Explanation, OtherSource};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::json;

use super::send::parse_time;
use super::{Failure, chain, say};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file
    #[arg(long, short, value_name = "F")]
    config: PathBuf,
    /// The source whose path was asked for
    #[arg(long, value_name = "N")]
    source: String,
    /// The captured request: request line, headers, an empty line, and the exact body
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
    /// When it was received: Unix seconds or RFC 3339; the present otherwise
    #[arg(long, value_name = "T", value_parser = parse_time)]
    at: Option<Timestamp>,
    /// Print the document as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let now = Clock::system().now();
    let config = config::load(&arguments.config, &config::environment, now)
        .map_err(|error| Failure::Config(chain(error)))?;
    let source = config.sources.iter().find(|source| *source.name == *arguments.source);
    let source =
        source.ok_or_else(|| Failure::Usage(format!("there is no source `{}`", arguments.source)))?;
    let text = read(&arguments.request)?;
    let malformed =
        || Failure::Usage(format!("{}: this is not a captured request", arguments.request.display()));
    let request = Request::parse(&text).ok_or_else(malformed)?;

    let others = config.sources.iter().filter(|other| other.name != source.name);
    let others: Vec<_> = others
        .map(|other| OtherSource { name: &other.name, path: &other.path, verifier: &other.verifier })
        .collect();
    let captured = Captured {
        method: &request.method,
        target: &request.target,
        headers: &request.headers,
        body: Some(request.body),
        received_at: arguments.at.unwrap_or(now),
        refused: None,
    };
    let explanation = source.verifier.explain(&captured, &others);
    if arguments.json {
        print_json(&explanation)?;
    } else {
        print(&explanation);
    }
    if explanation.refusal.is_none() { Ok(()) } else { Err(Failure::Failed(String::new())) }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| Failure::Io(format!("{}: {error}", path.display())))
}

fn print(explanation: &Explanation) {
    match explanation.refusal {
        Some(refusal) => say(&format!("refused: {refusal} ({})", refusal.label())),
        None => say("accepted"),
    }
    for cause in &explanation.causes {
        say(&format!("{}: {cause}", if cause.is_proven() { "cause" } else { "perhaps" }));
        if explanation.refusal.is_some() {
            say(&format!("  to do: {}", cause.advice()));
        }
    }
    if !explanation.complete {
        say("not everything was tried: the body is large");
    }
}

fn print_json(explanation: &Explanation) -> Result<(), Failure> {
    let causes = explanation.causes.iter().map(|cause| {
        json!({
            "cause": cause.label(),
            "proven": cause.is_proven(),
            "text": cause.to_string(),
            "advice": cause.advice(),
        })
    });
    let document = json!({
        "refused": explanation.refusal.map(countersign::verify::Refusal::label),
        "causes": causes.collect::<Vec<_>>(),
        "complete": explanation.complete,
    });
    say(&serde_json::to_string_pretty(&document).map_err(|error| Failure::Failed(error.to_string()))?);
    Ok(())
}

/// A request as a capture has it; lines may end in a line feed alone, as editors leave them.
struct Request<'a> {
    method: Method,
    target: String,
    headers: HeaderMap,
    body: &'a [u8],
}

impl<'a> Request<'a> {
    fn parse(text: &'a [u8]) -> Option<Self> {
        let mut rest = text;
        let mut line = || {
            let end = rest.iter().position(|byte| *byte == b'\n')?;
            let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
            rest = &rest[end + 1..];
            Some(line)
        };
        let first = std::str::from_utf8(line()?).ok()?;
        let mut words = first.split(' ');
        let (method, target) = (words.next()?, words.next()?);
        let mut headers = HeaderMap::new();
        loop {
            let line = line()?;
            if line.is_empty() {
                break;
            }
            let colon = line.iter().position(|byte| *byte == b':')?;
            let name = HeaderName::from_bytes(&line[..colon]).ok()?;
            headers.append(name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?);
        }
        Some(Self { method: method.parse().ok()?, target: target.to_owned(), headers, body: rest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_is_read_with_its_exact_body() {
        for end in ["\r\n", "\n"] {
            let head = ["POST /in?a=1 HTTP/1.1", "Host: h", "X-Sig:  a:b ", "", ""].join(end);
            let text = [head.as_bytes(), b"{}\r\n\r\n\xff"].concat();
            let request = Request::parse(&text).unwrap();
            assert_eq!((request.method, &*request.target), (Method::POST, "/in?a=1"));
            assert_eq!(request.headers["x-sig"], "a:b");
            assert_eq!(request.body, b"{}\r\n\r\n\xff");
        }
        for torn in ["", "POST", "POST /in HTTP/1.1\r\nHost: h\r\n", "POST /in HTTP/1.1\nno colon\n\n"] {
            assert!(Request::parse(torn.as_bytes()).is_none(), "{torn:?}");
        }
    }
}
