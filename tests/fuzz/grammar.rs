//! A grammar of signature headers, as in `signature.grammar`, and, on the second line, the text of the header. In the
//! text NOW stands for the time, and SIG for the right signature of the timestamp in it. A request is accepted if and
//! only if that signature is one of its candidates by another reading of the grammar.

use bytes::Bytes;
use countersign::verify::{Message, Refusal, Signer};
use http::{HeaderMap, HeaderValue, Method};
use toml::{Table, Value};

use super::support::{BASE_URL, NOW, is_fresh, line, now, received, scheme, secret, signature, verifier};

const BODY: &[u8] = b"{}";
const CANDIDATES_MAX: usize = 16;

/// In place of a first line that is no grammar: most mutants of one are none.
const KNOWN: [&str; 9] = [
    "{ kind = \"whole\" }",
    "{ kind = \"prefix\", text = \"sha256=\" }",
    "{ kind = \"kv\", separators = \",\", assign = \"=\", take = [\"v1\"], timestamp = \"t\" }",
    "{ kind = \"kv\", separators = \" \", assign = \",\", take = [\"v1\"] }",
    "{ kind = \"kv\", separators = \"; \", assign = \":\", take = [\"h1\", \"h2\"], timestamp = \"ts\" }",
    "{ kind = \"kv\", separators = \",=\", assign = \"=\", take = [\"=\", \"é\"], timestamp = \"\" }",
    "{ kind = \"kv\", separators = \"&\", assign = \"|\", take = [\"*\"] }",
    "{ kind = \"positional\", separators = \",\", timestamp_index = 0 }",
    "{ kind = \"positional\", separators = \"|é\" }",
];

pub(super) fn check(input: &[u8]) {
    let Some((first, text)) = line(input) else { return };
    let known = || KNOWN[first.bytes().map(usize::from).sum::<usize>() % KNOWN.len()];
    let (grammar, scheme) = read(first).unwrap_or_else(|| read(known()).unwrap());
    let wants_timestamp = has_timestamp(&grammar);
    let signed = |timestamp: &str| {
        let timestamp = if wants_timestamp { format!("{timestamp}.") } else { String::new() };
        signature(&[timestamp.as_bytes(), BODY].concat())
    };

    let text = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let text = String::from_utf8_lossy(text).replace("NOW", &NOW.to_string());
    if grammar.contains_key("groups") {
        return;
    }
    let timestamp = Reading::new(&grammar, &text).timestamps.pop().unwrap_or_default();
    let text = text.replace("SIG", &signed(&timestamp));
    let Ok(value) = HeaderValue::from_str(&text) else { return };

    let verifier = verifier(scheme.clone());
    let outcome = |value: HeaderValue| {
        let headers = HeaderMap::from_iter([("x-signature".parse().unwrap(), value)]);
        let early = verifier.precheck(&Method::POST, "/in", &headers, now());
        let late = verifier.verify(received("/in", headers, BODY)).map(drop);
        assert!(early.is_ok() || late.is_err(), "{early:?} without the body and {late:?} with it: {text:?}");
        late
    };
    let found = outcome(value.clone());
    assert_eq!(found, outcome(value), "the same text twice: {text:?}");

    let Reading { signatures, timestamps } = Reading::new(&grammar, &text);
    let is_timely = !wants_timestamp || timestamps.first().is_some_and(|timestamp| is_fresh(timestamp));
    let right = signed(timestamps.first().map_or("", String::as_str));
    let is_signed = signatures.iter().any(|signature| signature.eq_ignore_ascii_case(&right));
    let is_accepted = !text.is_empty()
        && timestamps.len() < 2
        && signatures.len() <= CANDIDATES_MAX
        && is_timely
        && is_signed;
    assert_eq!(found.is_ok(), is_accepted, "{found:?} of {grammar:?} and {text:?}");
    if text.is_empty() {
        assert_eq!(found, Err(Refusal::SignatureMissing), "{grammar:?}");
    } else if timestamps.len() > 1 {
        assert_eq!(found, Err(Refusal::DuplicateValue), "{grammar:?} and {text:?}");
    } else if signatures.len() > CANDIDATES_MAX {
        assert_eq!(found, Err(Refusal::TooManySignatures), "{grammar:?} and {text:?}");
    }

    if is_plain(&grammar) {
        let message = Message {
            method: &Method::POST,
            url: BASE_URL,
            id: None,
            event: None,
            body: &Bytes::from_static(BODY),
        };
        let headers = Signer::new(scheme, &secret()).unwrap().sign(&message, now()).unwrap();
        assert_eq!(
            outcome(headers["x-signature"].clone()),
            Ok(()),
            "what we write by {grammar:?}: {headers:?}"
        );
    }
}

/// The grammar that `text` is, and a scheme with it.
fn read(text: &str) -> Option<(Table, countersign::verify::Scheme)> {
    let document: Table = toml::from_str(&format!("grammar = {text}")).ok()?;
    let grammar = document.get("grammar")?.as_table()?.clone();
    let (time, signed) = match has_timestamp(&grammar) {
        true => ("timestamp = { at = \"signature\", unit = \"s\" }", "{timestamp}.{body}"),
        false => ("", "{body}"),
    };
    let scheme = scheme(&format!(
        "auth = \"signature\"\n{time}\nsigned = \"{signed}\"\n[signature]\nfrom = [\"header:x-signature\"]\n\
         algorithm = \"hmac-sha256\"\nencoding = \"hex\"\ngrammar = {text}"
    ))?;
    Some((grammar, scheme))
}

fn has_timestamp(grammar: &Table) -> bool {
    grammar.contains_key("timestamp") || grammar.contains_key("timestamp_index")
}

fn text<'g>(grammar: &'g Table, key: &str) -> &'g str {
    grammar.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn take(grammar: &Table) -> Vec<&str> {
    grammar.get("take").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Whether nothing that we write could be taken for something else.
fn is_plain(grammar: &Table) -> bool {
    let sign = |text: &str| text.chars().all(|c| c.is_ascii_punctuation() && !"{}".contains(c));
    let name = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric());
    let (separators, assign, timestamp) =
        (text(grammar, "separators"), text(grammar, "assign"), text(grammar, "timestamp"));
    let index = grammar.get("timestamp_index").and_then(Value::as_integer).unwrap_or_default();
    match text(grammar, "kind") {
        "whole" => true,
        "prefix" => text(grammar, "text").chars().all(|c| c.is_ascii_graphic()),
        "kv" => {
            let names = take(grammar);
            sign(separators)
                && sign(assign)
                && !separators.contains(assign)
                && name(timestamp)
                && names.iter().all(|taken| name(taken) && *taken != timestamp)
        }
        _ => sign(separators) && index < 2,
    }
}

/// What a text holds.
#[derive(Default)]
struct Reading {
    signatures: Vec<String>,
    timestamps: Vec<String>,
}

impl Reading {
    fn new(grammar: &Table, header: &str) -> Self {
        let mut reading = Self::default();
        let separators: Vec<char> = text(grammar, "separators").chars().collect();
        let items =
            header.split(&separators[..]).map(|item| item.trim_matches([' ', '\t', '\n', '\r', '\x0c']));
        let items = items.filter(|item| !item.is_empty());
        match text(grammar, "kind") {
            "whole" => reading.signatures.push(header.to_owned()),
            "prefix" => {
                let (prefix, bytes) = (text(grammar, "text"), header.as_bytes());
                if bytes.get(..prefix.len()) == Some(prefix.as_bytes()) {
                    reading.signatures.push(header[prefix.len()..].to_owned());
                }
            }
            "kv" => {
                let assign = text(grammar, "assign");
                let value = |item: &str, name: &str| {
                    if name == "*" && take(grammar) == ["*"] {
                        return item.split_once(assign).map(|(_, value)| value.to_owned());
                    }
                    let begin = format!("{name}{assign}");
                    (!name.contains(assign) && item.starts_with(&begin))
                        .then(|| item[begin.len()..].to_owned())
                };
                for item in items {
                    let signature = take(grammar).iter().find_map(|name| value(item, name));
                    if let Some(signature) = signature {
                        reading.signatures.push(signature);
                    } else if grammar.contains_key("timestamp") {
                        reading.timestamps.extend(value(item, text(grammar, "timestamp")));
                    }
                }
            }
            _ => {
                let index = grammar.get("timestamp_index").and_then(Value::as_integer);
                for (at, item) in (0..).zip(items) {
                    let list =
                        if index == Some(at) { &mut reading.timestamps } else { &mut reading.signatures };
                    list.push(item.to_owned());
                }
            }
        }
        reading
    }
}
