//! What reaches a backend.

use std::sync::Arc;

use bytes::Bytes;
use countersign::clock::Clock;
use countersign::config::Countersign;
use countersign::delivery::Received;
use countersign::forward::Progress;
use countersign::secret::Secret;
use countersign::verify::{Enforcement, NamedSecret, Signer, Verifier, Window, preset};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::backend::{Backend, Reply, Seen};
use crate::support::{Gateway, delivery, destination, eventually};

/// What a backend sees of `sent` at its first attempt.
async fn seen(sent: countersign::delivery::Delivery) -> Seen {
    let backend = Backend::always(Reply::status(200)).await;
    let gateway = Gateway::start([destination("legacy", &backend.url("/hooks?own=1"))]);
    gateway.forward(sent, "legacy");
    eventually("it is delivered", || gateway.delivered() == 1).await;
    backend.seen().remove(0)
}

#[tokio::test]
async fn method_query_headers_and_body_arrive_byte_for_byte() {
    let body: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let mut sent = delivery(&body);
    sent.method = Method::DELETE;
    sent.target = "/webhooks/shop?a=%2F&a=+&%zz".to_owned();
    for (name, value) in [
        ("content-type", b"application/json".as_slice()),
        ("x-latin", b"caf\xe9 \xff"),
        ("x-list", b"1, 2"),
        ("x-list", b"3"),
        ("x-empty", b""),
        ("user-agent", b"Shop/1.0"),
    ] {
        sent.headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap());
    }
    let seen = seen(sent).await;
    assert_eq!(seen.line, "DELETE /hooks?own=1&a=%2F&a=+&%zz HTTP/1.1");
    assert_eq!(seen.body, body);
    assert_eq!(seen.one("content-length"), "300000");
    assert_eq!(seen.one("content-type"), "application/json");
    assert_eq!(seen.all("x-list"), ["1, 2", "3"]);
    assert_eq!(seen.one("x-empty"), "");
    assert_eq!(seen.one("user-agent"), "Shop/1.0");
    let latin = seen.headers.iter().find(|(name, _)| name == "x-latin").unwrap();
    assert_eq!(latin.1, b"caf\xe9 \xff");
}

#[tokio::test]
async fn nothing_is_added_but_what_is_documented() {
    let mut names: Vec<_> = seen(delivery(b"{}")).await.headers.into_iter().map(|(name, _)| name).collect();
    names.sort();
    let expected = [
        "content-length",
        "countersign-attempt",
        "countersign-delivery-id",
        "countersign-event",
        "countersign-received-at",
        "countersign-source",
        "countersign-verified",
        "forwarded",
        "host",
        "idempotency-key",
        "traceparent",
        "webhook-id",
    ];
    assert_eq!(names, expected);
}

#[tokio::test]
async fn a_delivery_that_fails_twice_arrives_at_the_third_attempt_under_the_same_id() {
    let backend = Backend::first(vec![Reply::status(503), Reply::SendAndClose(Vec::new())]).await;
    let gateway = Gateway::start([destination("legacy", &backend.url("/"))]);
    let sent = delivery(b"{\"n\":1}");
    let id = sent.id.to_string();
    gateway.forward(sent, "legacy");
    eventually("it is delivered", || gateway.delivered() == 1).await;
    let seen = backend.seen();
    let attempts: Vec<_> = seen.iter().map(|seen| seen.one("countersign-attempt")).collect();
    assert_eq!(attempts, ["1", "2", "3"]);
    for attempt in &seen {
        assert_eq!(attempt.one("webhook-id"), id);
        assert_eq!(attempt.one("idempotency-key"), id);
        assert_eq!(attempt.body, b"{\"n\":1}");
    }
    let traces: Vec<_> = seen.iter().map(|seen| seen.one("traceparent")).collect();
    assert_eq!(traces[0][..36], traces[2][..36], "one trace");
    assert_ne!(traces[0], traces[2], "a span per attempt");
}

#[tokio::test]
async fn a_replay_says_so() {
    let backend = Backend::first(vec![Reply::status(400)]).await;
    let gateway = Gateway::start([destination("legacy", &backend.url("/"))]);
    gateway.forward(delivery(b"{}"), "legacy");
    eventually("it is dead", || gateway.count(|progress| progress == Progress::Dead) == 1).await;
    gateway.revive().await;
    eventually("it is delivered", || gateway.delivered() == 1).await;
    let seen = backend.seen();
    assert_eq!(seen[0].all("countersign-replay"), Vec::<String>::new());
    assert_eq!(
        (seen[1].one("countersign-replay").as_str(), seen[1].one("countersign-attempt").as_str()),
        ("true", "1")
    );
}

#[tokio::test]
async fn connections_are_kept_for_the_next_delivery() {
    let backend = Backend::always(Reply::status(200)).await;
    let gateway = Gateway::start([destination("legacy", &backend.url("/"))]);
    for n in 1..=20 {
        gateway.forward(delivery(b"{}"), "legacy");
        eventually("it is delivered", || gateway.delivered() == n).await;
    }
    assert!(backend.seen().iter().all(|seen| seen.connection == 0));
}

#[tokio::test]
async fn a_kept_connection_that_the_backend_closed_costs_no_attempt() {
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec();
    let backend = Backend::always(Reply::SendAndClose(answer)).await;
    let gateway = Gateway::start([destination("legacy", &backend.url("/"))]);
    for n in 1..=20 {
        gateway.forward(delivery(b"{}"), "legacy");
        eventually("it is settled", || gateway.store.rows().iter().all(|row| !row.records.is_empty())).await;
        // A request may have left before the news of the close came in: then it is an attempt like any other.
        eventually("it is delivered", || gateway.delivered() == n).await;
    }
}

/// Signs and verifies for real: what the backend got passes the public verification API under the same secret.
#[tokio::test]
async fn the_countersignature_verifies_at_every_attempt() {
    let secret = || Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    let standard = preset("standard-webhooks").unwrap();
    let backend = Backend::first(vec![Reply::status(500)]).await;
    let mut to = destination("legacy", &backend.url("/hooks"));
    to.sign = Some(Countersign::Uniform(Box::new(Signer::new(standard.scheme.clone(), &secret()).unwrap())));
    let gateway = Gateway::start([to]);
    let mut sent = delivery(b"{\"price\": \"\xff\"}");
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        sent.headers.insert(name, HeaderValue::from_static("the provider's own"));
    }
    let id = sent.id;
    gateway.forward(sent, "legacy");
    eventually("it is delivered", || gateway.delivered() == 1).await;

    let five_minutes = std::time::Duration::from_secs(300);
    let named = NamedSecret { name: "only".into(), secret: secret(), not_before: None, not_after: None };
    let window = Window { past: five_minutes, future: five_minutes };
    let verifier = Verifier::new(
        "standard-webhooks".into(),
        standard.scheme.clone(),
        vec![named],
        window,
        Enforcement::Enforce,
        None,
    )
    .unwrap();
    for attempt in backend.seen() {
        assert_eq!(attempt.one("webhook-id"), id.to_string());
        let headers: HeaderMap = attempt
            .headers
            .iter()
            .map(|(name, value)| {
                (name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value).unwrap())
            })
            .collect();
        let received = Received {
            id,
            source: Arc::from("gateway"),
            received_at: Clock::system().now(),
            sender: "127.0.0.1".parse().unwrap(),
            method: Method::POST,
            target: "/hooks".to_owned(),
            headers,
            body: Bytes::from(attempt.body.clone()),
        };
        let verified = verifier.verify(received).unwrap();
        assert_eq!(verified.delivery().delivery_id, Some(id.to_string()));
    }
}
