//! Promise: method, query, headers and body reach the backend as the provider sent them, under our own signature.

use bytes::Bytes;
use countersign::clock::Clock;
use countersign::delivery::Received;
use countersign::id::Id;
use countersign::secret::Secret;
use countersign::verify::{Enforcement, NamedSecret, Verifier, Window, preset};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use std::time::Duration;

use crate::backend::{Backend, Got, Reply};
use crate::sender::{Post, SECRET};
use crate::support::Gateway;

fn gateway(backend: &Backend, more: &str) -> Gateway {
    Gateway::start(&format!(
        "[[source]]\nname = \"own\"\nprovider = \"ownstak\"\nsecrets = [{{ value = \"{SECRET}\" }}]\nto = [\"legacy\"]\n\
         [[destination]]\nname = \"legacy\"\nurl = \"{}?fixed=1\"\n{more}",
        backend.url()
    ))
}

fn post(method: &'static str, target: &str, body: &[u8]) -> Post {
    let post = Post::signed("ownstak", target, "d-1", "x", body);
    Post { method, ..post }
}

#[test]
fn method_query_headers_and_body_arrive_as_sent() {
    let backend = Backend::accepting();
    let gateway = gateway(&backend, "");
    let body: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        let sent = post(method, "/webhooks/own?a=%2e&b=c%20d", &body)
            .without("x-own-webhook-event-id")
            .with("X-Odd", b"caf\xe9 \x80")
            .with("X-Twice", "1")
            .with("X-Twice", "2")
            .with("Content-Type", "application/x-www-form-urlencoded")
            .with("User-Agent", "Ownstak Webhook Client/1.0")
            .with("Connection", "x-odd")
            .with("Countersign-Source", "forged");
        assert_eq!(sent.send(gateway.listen).status, 200, "{method}");
    }
    let got = backend.eventually_got(4);
    let mut methods: Vec<_> = got.iter().map(|got| got.method.as_str()).collect();
    methods.sort_unstable();
    assert_eq!(methods, ["DELETE", "PATCH", "POST", "PUT"]);
    for got in got {
        assert_eq!(got.target, "/hooks?fixed=1&a=%2e&b=c%20d");
        assert_eq!(got.body, body);
        let all = |name: &str| -> Vec<_> {
            got.headers.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_slice()).collect()
        };
        assert_eq!(all("x-odd"), [b"caf\xe9 \x80"]);
        assert_eq!(all("x-twice"), [b"1", b"2"]);
        assert_eq!(all("content-type"), [b"application/x-www-form-urlencoded"]);
        assert_eq!(all("user-agent"), [&b"Ownstak Webhook Client/1.0"[..]]);
        assert_eq!(all("countersign-source"), [b"own"]);
    }
}

#[test]
fn every_attempt_is_signed_anew_under_the_same_webhook_id() {
    let backend = Backend::start(|number, _| Reply::Status(if number < 2 { 503 } else { 204 }));
    let secret = "whsec_bGVnYWN5LWxlZ2FjeS1sZWdhY3ktbGVnYWN5LTEyMzQ=";
    let gateway = gateway(
        &backend,
        &format!(
            "sign = {{ scheme = \"standard-webhooks\", secret = {{ value = \"{secret}\" }} }}\n\
             retry = {{ initial = \"100ms\", jitter = \"none\" }}\nheaders = {{ X-Api-Key = {{ value = \"key-key-key\" }} }}\n"
        ),
    );
    assert_eq!(post("POST", "/webhooks/own", b"{\"x\":1}").send(gateway.listen).status, 200);
    let got = backend.eventually_got(3);
    for (number, got) in got.iter().enumerate() {
        assert_eq!(got.header("countersign-attempt"), Some((number + 1).to_string().as_str()));
        assert_eq!(got.header("webhook-id"), got.header("idempotency-key"));
        assert_eq!(got.header("webhook-id"), backend.got()[0].header("webhook-id"));
        assert_eq!(got.header("x-api-key"), Some("key-key-key"));
        assert_eq!(got.header("countersign-delivery-id"), Some("d-1"));
        assert!(got.header("countersign-received-at").unwrap().ends_with('Z'));
        assert!(got.header("traceparent").unwrap().starts_with("00-"));
        assert!(got.header("forwarded").unwrap().contains("for=127.0.0.1"));
        verify_countersignature(got, secret);
    }
    gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
}

/// As a backend would, with the rules of Standard Webhooks.
fn verify_countersignature(got: &Got, secret: &str) {
    let secret = NamedSecret {
        name: "legacy".into(),
        secret: Secret::new(secret).unwrap(),
        not_before: None,
        not_after: None,
    };
    let window = Window { past: Duration::from_secs(300), future: Duration::from_secs(300) };
    let scheme = preset("standard-webhooks").unwrap().scheme.clone();
    let verifier =
        Verifier::new("standard-webhooks".into(), scheme, vec![secret], window, Enforcement::Enforce, None)
            .unwrap();
    let headers: HeaderMap = got
        .headers
        .iter()
        .map(|(name, value)| (HeaderName::try_from(name).unwrap(), HeaderValue::from_bytes(value).unwrap()))
        .collect();
    let now = Clock::system().now();
    let received = Received {
        id: Id::new(now, [0; 10]),
        source: "legacy".into(),
        received_at: now,
        sender: [127, 0, 0, 1].into(),
        method: Method::POST,
        target: got.target.clone(),
        headers,
        body: Bytes::from(got.body.clone()),
    };
    verifier.verify(received).unwrap();
}
