//! Method and target, the headers a line each up to an empty one, and a body: whatever is asked, an answer is short, plain and
//! fit for a header; and nothing that is answered with a MAC can be a delivery's signature.

use countersign::verify::{Handshake, HandshakeAnswer, HandshakeOptions, Verifier, preset};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::support::{SECRET, line, now, received, verifier};

/// One for each kind.
const PROVIDERS: [&str; 12] = [
    "asana",
    "azure-event-grid",
    "dropbox",
    "meta",
    "monday",
    "ms-graph-clientstate",
    "notion",
    "slack",
    "trello",
    "twitch",
    "woocommerce",
    "x-twitter",
];
const ANSWER_BYTES_MAX: usize = 4 << 10;

pub(super) fn check(input: &[u8]) {
    let Some((first, mut rest)) = line(input) else { return };
    let Some((method, target)) = first.split_once(' ') else { return };
    let (Ok(method), true) = (Method::from_bytes(method.as_bytes()), target.starts_with('/')) else { return };
    let mut headers = HeaderMap::new();
    while let Some((text, next)) = line(rest) {
        rest = next;
        if text.is_empty() {
            break;
        }
        let Some((name, value)) = text.split_once(": ") else { return };
        let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) else {
            return;
        };
        headers.append(name, value);
    }
    for provider in PROVIDERS {
        let verifier =
            verifier(preset(provider).unwrap().scheme.clone()).with_handshake(HandshakeOptions::default());
        check_provider(&verifier, &method, target, &headers, rest);
    }
}

fn check_provider(verifier: &Verifier, method: &Method, target: &str, headers: &HeaderMap, body: &[u8]) {
    let mut request = received(target, headers.clone(), body);
    request.method = method.clone();
    let early = verifier.early_handshake(method, target, headers, now());
    for answer in [early, verifier.unsigned_handshake(&request)].into_iter().flatten().flatten() {
        match &answer {
            HandshakeAnswer::Text(text) | HandshakeAnswer::Json(text) => {
                assert!(text.len() <= ANSWER_BYTES_MAX && !text.contains(SECRET), "{text}");
                assert!(!text.contains(['<', '>']) && !text.contains(char::is_control), "{text:?}");
                check_mac(verifier, target, text);
            }
            HandshakeAnswer::Granted(origin) => {
                assert!(verifier.handshakes().contains(&Handshake::CloudEventsOptions), "{origin:?}");
                assert!(headers.values().any(|value| value == origin), "{origin:?}");
            }
            HandshakeAnswer::Keep(secret, echoed) => {
                let own = echoed.as_ref().is_none_or(|echoed| echoed.as_bytes() == secret.expose());
                assert!(own && verifier.handshakes().iter().any(|kind| kind.hands_over_secret()));
            }
            HandshakeAnswer::Confirm(url) => panic!("nothing proves who wants {url} to be asked for"),
            HandshakeAnswer::Empty | HandshakeAnswer::NoContent => {}
        }
    }
}

/// What is given to everybody who asks is no signature of a delivery.
fn check_mac(verifier: &Verifier, target: &str, text: &str) {
    let given = serde_json::from_str::<serde_json::Value>(text).ok();
    let Some(mac) = given.as_ref().and_then(|given| given["response_token"].as_str()) else { return };
    let (_, query) = target.split_once('?').unwrap();
    for (_, token) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        let value = HeaderValue::from_str(mac).unwrap();
        let headers =
            HeaderMap::from_iter([(HeaderName::from_static("x-twitter-webhooks-signature"), value)]);
        assert!(verifier.verify(received("/in", headers, token.as_bytes())).is_err(), "{token}");
    }
}
