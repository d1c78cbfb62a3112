//! `countersign verify`: a captured request, judged by a configuration, without a gateway.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use countersign::clock::{Clock, Timestamp};
use countersign::config::{self, Source};
use countersign::verify::{Captured, Cause, Explanation, OtherSource, Refusal};
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
    /// The captured request: request line, headers, an empty line, and the exact body; `-` for
    /// standard input
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
    let malformed = || {
        Failure::Usage(format!(
            "{}: this is not a captured request, which begins with a line such as `POST /path HTTP/1.1`, then headers, \
             an empty line and the exact body",
            arguments.request.display()
        ))
    };
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
        refused: (!source.accept_missing_id).then_some(Refusal::IdMissing),
    };
    let explanation = source.verifier.explain(&captured, &others);
    let verdict = Verdict::new(&config.sources, source, &request, &explanation, arguments.at.is_none());
    if arguments.json {
        verdict.print_json(explanation.complete)?;
    } else {
        verdict.print(explanation.complete);
    }
    if verdict.refused.is_none() { Ok(()) } else { Err(Failure::Failed(String::new())) }
}

/// What the gateway would make of a captured request.
struct Verdict {
    /// The reason's label and words.
    refused: Option<(&'static str, String)>,
    causes: Vec<Told>,
}

struct Told {
    cause: &'static str,
    proven: bool,
    text: String,
    advice: String,
}

impl Verdict {
    fn new(
        sources: &[Arc<Source>],
        source: &Source,
        request: &Request<'_>,
        explanation: &Explanation,
        is_judged_by_now: bool,
    ) -> Self {
        let mut refused = explanation.refusal.map(|refusal| (refusal.label(), refusal.to_string()));
        let told = |cause: &Cause| {
            let advice = match cause {
                // There is nothing to be let in here.
                Cause::Verifies => "none is needed",
                Cause::ClockOff { .. } if is_judged_by_now => {
                    "say with `--at` when it was received; if it was just now, set the clock that is wrong by NTP"
                }
                other => other.advice(),
            };
            Told {
                cause: cause.label(),
                proven: cause.is_proven(),
                text: cause.to_string(),
                advice: advice.to_owned(),
            }
        };
        let mut causes: Vec<_> = explanation.causes.iter().map(told).collect();
        // What comes before any signature: the path, then the method.
        let path = request.target.split_once('?').map_or(&*request.target, |(path, _)| path);
        let by_head = if path != source.path {
            let text = match sources.iter().find(|other| other.path == path) {
                Some(other) => {
                    format!("it was sent to {path}, which is the path of the source `{}`", other.name)
                }
                None => format!("it was sent to {path}, which is no source's path"),
            };
            let advice = format!("tell the sender the path {}", source.path);
            Some(("no_route", "wrong_path", text, advice))
        } else if !source.methods.contains(&request.method) {
            let text = format!("the source does not take the method {}", request.method);
            Some(("method_not_allowed", "method_not_allowed", text, "list it in `methods`".to_owned()))
        } else {
            None
        };
        if let Some((label, cause, text, advice)) = by_head {
            refused = refused.or_else(|| Some((label, text.clone())));
            causes.retain(|told| told.cause != "verifies");
            causes.insert(0, Told { cause, proven: true, text, advice });
        }
        Self { refused, causes }
    }

    fn print(&self, complete: bool) {
        match &self.refused {
            Some((label, text)) => say(&format!("refused: {text} ({label})")),
            None => say("accepted"),
        }
        for told in &self.causes {
            say(&format!("{}: {}", if told.proven { "cause" } else { "perhaps" }, told.text));
            if self.refused.is_some() {
                say(&format!("  to do: {}", told.advice));
            }
        }
        if !complete {
            say("not everything was tried: the body is large");
        }
    }

    fn print_json(&self, complete: bool) -> Result<(), Failure> {
        let causes = self.causes.iter().map(|told| {
            json!({ "cause": told.cause, "proven": told.proven, "text": told.text, "advice": told.advice })
        });
        let document = json!({
            "refused": self.refused.as_ref().map(|(label, _)| label),
            "causes": causes.collect::<Vec<_>>(),
            "complete": complete,
        });
        say(&serde_json::to_string_pretty(&document).map_err(|error| Failure::Failed(error.to_string()))?);
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let read = if path.as_os_str() == "-" {
        let mut text = Vec::new();
        std::io::stdin().read_to_end(&mut text).map(|_| text)
    } else {
        fs::read(path)
    };
    read.map_err(|error| Failure::Io(format!("{}: {error}", path.display())))
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
