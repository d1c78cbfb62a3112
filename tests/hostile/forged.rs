//! What a sender writes into its headers never passes for what the gateway, or a proxy that it trusts, says.

use crate::backend::Backend;
use crate::sender::{Post, every_provider};
use crate::support::Gateway;

/// The names in which only the gateway speaks, and names that a backend behind CGI or its like takes for them.
fn reserved() -> Vec<String> {
    let ours = [
        "Countersign-Source",
        "Countersign-Event",
        "Countersign-Delivery-Id",
        "Countersign-Attempt",
        "Countersign-Received-At",
        "Countersign-Verified",
        "Countersign-Replay",
        "Countersign-Anything",
        "Webhook-Id",
        "Webhook-Timestamp",
        "Webhook-Signature",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Forwarded-Prefix",
        "X-Real-IP",
        "X-Api-Key",
    ];
    let twins = |name: &str| ["_", ".", "~", "'", "!"].map(|sign| name.replace('-', sign));
    let mixed = |name: &str| name.replacen('-', "_", 1);
    let mut names: Vec<String> = ours.iter().flat_map(|name| twins(name)).collect();
    names.extend(ours.iter().map(|name| mixed(name)));
    names.extend(ours.iter().flat_map(|name| [name.to_string(), name.to_lowercase(), name.to_uppercase()]));
    names.extend(
        ["Idempotency_Key", "Content_Length", "Transfer_Encoding", "Keep_Alive", "Forwarded"]
            .map(str::to_owned),
    );
    names
}

#[test]
fn nothing_of_ours_can_be_forged_at_the_backend() {
    let backend = Backend::accepting();
    let secret = "whsec_bGVnYWN5LWxlZ2FjeS1sZWdhY3ktbGVnYWN5LTEyMzQ=";
    let destination = format!(
        "headers = {{ X-Api-Key = {{ value = \"key-key-key\" }} }}\n\
         sign = {{ scheme = \"standard-webhooks\", secret = {{ value = \"{secret}\" }} }}\n"
    );
    let gateway = Gateway::start(&(every_provider(&backend) + &destination));
    let names = reserved();
    assert!(names.len() > 100);
    // Head lines are limited in number: some at a time.
    for (number, names) in names.chunks(40).enumerate() {
        let id = format!("d-{number}");
        let post = Post::signed("github", "/webhooks/github", &id, "push", id.as_bytes());
        let forged = names.iter().fold(post, |post, name| post.with(name, "forged-1").with(name, "forged-2"));
        let nominated = forged
            .with(
                "Connection",
                "x-nominated, x-github-delivery, countersign-verified, webhook-signature, host",
            )
            .with("X-Nominated", "stays")
            .with("Countersigned-By", "stays");
        assert_eq!(nominated.send(gateway.listen).status, 200, "{names:?}");
    }
    let rounds = names.len().div_ceil(40);
    for got in backend.eventually_got(rounds) {
        for (name, value) in &got.headers {
            let value = String::from_utf8_lossy(value);
            assert!(!value.contains("forged"), "{name}: {value}");
        }
        assert_eq!(got.header("countersign-verified"), Some("true"));
        assert_eq!(got.header("countersign-source"), Some("github"));
        assert_eq!(got.header("countersign-delivery-id").map(str::as_bytes), Some(&got.body[..]));
        assert_eq!(got.header("x-github-delivery").map(str::as_bytes), Some(&got.body[..]));
        assert_eq!(got.header("webhook-id"), got.header("idempotency-key"));
        assert!(got.header("webhook-signature").unwrap().starts_with("v1,"));
        assert_eq!(got.header("x-api-key"), Some("key-key-key"));
        assert_eq!(got.header("x-nominated"), Some("stays"));
        assert_eq!(got.header("countersigned-by"), Some("stays"));
        assert_eq!(got.header("forwarded"), Some("for=127.0.0.1;host=\"gateway\";proto=http"));
    }
    // What a sender may write into names and values breaks no line of the log.
    for line in gateway.log().lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
    }
}

/// `X.Hub-Signature-256` beside the real one was no second signature, though a backend behind CGI may read that one.
#[test]
fn twins_of_security_headers_are_duplicates() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    for (provider, header) in [
        ("github", "x-hub-signature-256"),
        ("github", "x-github-delivery"),
        ("stripe", "stripe-signature"),
        ("standard-webhooks", "webhook-id"),
        ("standard-webhooks", "webhook-timestamp"),
        ("standard-webhooks", "webhook-signature"),
    ] {
        let path = format!("/webhooks/{provider}");
        let post = Post::signed(provider, &path, "d-1", "push", b"{}");
        let (_, value) = post.headers.iter().find(|(name, _)| name == header).unwrap().clone();
        for sign in ["-", "_", ".", "~", "+", "|"] {
            let twin = header.replace('-', sign);
            let answer = post.clone().with(&twin, &value).send(gateway.listen);
            assert_eq!((answer.status, answer.body), (401, Vec::new()), "{provider} {twin}");
        }
        assert!(post.send(gateway.listen).status == 200, "{provider} {header}");
    }
}
