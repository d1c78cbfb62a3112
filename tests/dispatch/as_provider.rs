//! `sign = { scheme = "provider" }`: a backend's own verifier of the provider, written here from the providers' documents and
//! with nothing of ours, takes what it is sent a week after the sender had signed it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use countersign::clock::{Clock, Timestamp};
use countersign::config::{self, Destination};
use countersign::forward::Progress;
use countersign::secret::Secret;
use countersign::verify::{Message, Signer, preset};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderValue, Method};
use sha2::Sha256;

use crate::backend::{Backend, Reply, Seen};
use crate::support::{Gateway, delivery, eventually};

const THEIRS: &str = "the-secret-of-the-provider";
const OURS: &str = "the-secret-of-the-backend";
/// The first in the form of Standard Webhooks.
const THEIRS_BASE64: &str = "whsec_dGhlLXNlY3JldC1vZi10aGUtcHJvdmlkZXI=";
const OURS_BASE64: &str = "whsec_dGhlLXNlY3JldC1vZi10aGUtYmFja2VuZA==";
const SIGNED_AT: i64 = 1_776_871_800;
const WEEK: i64 = 7 * 86_400;
const BODY: &[u8] = b"{\"id\":\"evt_1\",\"type\":\"deployment.failed\",\"note\":\"caf\xc3\xa9\"}";

fn mac(parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(OURS.as_bytes()).unwrap();
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().to_vec()
}

fn hex(parts: &[&[u8]]) -> String {
    hex::encode(mac(parts))
}

/// Asserts that `text` is a time within five minutes of `now`, in a unit of so many to the second.
#[track_caller]
fn fresh(text: &str, per_second: i64, now: i64) {
    let age = now - text.parse::<i64>().unwrap() / per_second;
    assert!((-300..=300).contains(&age), "{text} is {age} s old");
}

/// A destination as a configuration with one source has it.
fn configured(provider: &str, secret: &str, url: &str) -> Destination {
    let theirs = if secret == OURS_BASE64 { THEIRS_BASE64 } else { THEIRS };
    let text = format!(
        "[[source]]\nname = \"shop\"\nprovider = \"{provider}\"\nsecrets = [{{ value = \"{theirs}\" }}]\nto = [\"legacy\"]\n\
         [[destination]]\nname = \"legacy\"\nurl = \"{url}\"\n\
         sign = {{ scheme = \"provider\", secret = {{ value = \"{secret}\" }} }}\n"
    );
    let config = config::parse(&text, "c.toml", Path::new("/nonexistent"), &|_| None, Timestamp::UNIX_EPOCH);
    let config = config.unwrap_or_else(|error| panic!("{error}"));
    (*config.destinations[0]).clone()
}

/// What the backend gets, `after` the provider has signed.
async fn delivered(provider: &str, after: i64) -> Seen {
    let is_base64 = ["svix", "standard-webhooks"].contains(&provider);
    let (theirs, ours) = if is_base64 { (THEIRS_BASE64, OURS_BASE64) } else { (THEIRS, OURS) };
    let backend = Backend::always(Reply::status(200)).await;
    let to = configured(provider, ours, &backend.url("/hooks"));
    let signed_at = Timestamp::from_second(SIGNED_AT).unwrap();
    let body = Bytes::from_static(BODY);
    let message = Message {
        method: &Method::POST,
        url: "https://hooks.example.com/in",
        id: Some("msg_1"),
        event: Some("deployment.failed"),
        body: &body,
    };
    let scheme = preset(provider).unwrap().scheme.clone();
    let mut sent = delivery(BODY);
    sent.headers =
        Signer::new(scheme, &Secret::new(theirs).unwrap()).unwrap().sign(&message, signed_at).unwrap();
    sent.received_at = signed_at;
    let has_id_header = message.id.is_some_and(|id| sent.headers.values().any(|value| value == id));
    sent.delivery_id = has_id_header.then(|| "msg_1".to_owned());
    sent.verification.scheme = provider.into();
    let (clock, _hand) = Clock::manual(Timestamp::from_second(SIGNED_AT + after).unwrap());
    let gateway = Gateway::start_by(
        clock,
        Arc::default(),
        [Destination {
            retry: countersign::forward::RetryPolicy {
                max_age: Duration::from_secs(30 * 86_400),
                ..to.retry.clone()
            },
            ..to
        }],
    );
    let before: Vec<_> = sent.headers.values().map(|value| value.as_bytes().to_vec()).collect();
    gateway.forward(sent, "legacy");
    eventually("it is settled", || gateway.count(|progress| progress == Progress::Delivered) == 1).await;
    let seen = backend.seen().remove(0);
    let stale = |value: &Vec<u8>| value.len() >= 40 && before.contains(value);
    assert!(
        !seen.headers.iter().any(|(_, value)| stale(value)),
        "{provider}: the sender's signature is still there"
    );
    assert_eq!(seen.body, BODY);
    seen
}

/// `verify` gets what the backend got and its time.
async fn check(provider: &str, verify: impl Fn(&Seen, i64)) {
    for after in [3_600, WEEK] {
        verify(&delivered(provider, after).await, SIGNED_AT + after);
    }
}

#[tokio::test]
async fn an_unmodified_verifier_accepts_what_is_delivered_a_week_later() {
    // Over the body alone.
    for (provider, header, prefix) in [
        ("github", "x-hub-signature-256", "sha256="),
        ("bitbucket", "x-hub-signature", "sha256="),
        ("owlette-legacy", "x-owlette-signature", "sha256="),
        ("sentry", "sentry-hook-signature", ""),
        ("dropbox", "x-dropbox-signature", ""),
        ("pagerduty", "x-pagerduty-signature", "v1="),
    ] {
        check(provider, |seen, _| {
            assert_eq!(seen.one(header), format!("{prefix}{}", hex(&[BODY])), "{provider}");
        })
        .await;
    }
    check("shopify", |seen, _| assert_eq!(seen.one("x-shopify-hmac-sha256"), STANDARD.encode(mac(&[BODY]))))
        .await;
    // A list with its time, `t.body` and `t:body`.
    for (provider, header, separators, (time, sign), between) in [
        ("stripe", "stripe-signature", ',', ("t=", "v1="), "."),
        ("owlette", "roost-signature", ',', ("t=", "v1="), "."),
        ("paddle", "paddle-signature", ';', ("ts=", "h1="), ":"),
    ] {
        check(provider, |seen, now| {
            let value = seen.one(header);
            let (first, second) = value.split_once(separators).unwrap();
            let (time, signature) = (first.strip_prefix(time).unwrap(), second.strip_prefix(sign).unwrap());
            fresh(time, 1, now);
            assert_eq!(signature, hex(&[time.as_bytes(), between.as_bytes(), BODY]), "{provider}");
        })
        .await;
    }
    // A header with the time.
    for (provider, header, time) in [
        ("slack", "x-slack-signature", "x-slack-request-timestamp"),
        ("zoom", "x-zm-signature", "x-zm-request-timestamp"),
    ] {
        check(provider, |seen, now| {
            let time = seen.one(time);
            fresh(&time, 1, now);
            let expected = format!("v0={}", hex(&[b"v0:", time.as_bytes(), b":", BODY]));
            assert_eq!(seen.one(header), expected, "{provider}");
        })
        .await;
    }
    check("hostwares", |seen, now| {
        fresh(&seen.one("x-hostwares-timestamp"), 1, now);
        assert_eq!(seen.one("x-hostwares-signature"), format!("sha256={}", hex(&[BODY])));
    })
    .await;
    // The id is signed, and stays the sender's.
    for (provider, family) in [("svix", "svix"), ("standard-webhooks", "webhook")] {
        check(provider, |seen, now| {
            let time = seen.one(&format!("{family}-timestamp"));
            fresh(&time, 1, now);
            assert_eq!(seen.one(&format!("{family}-id")), "msg_1");
            let expected = STANDARD.encode(mac(&[b"msg_1.", time.as_bytes(), b".", BODY]));
            assert_eq!(seen.one(&format!("{family}-signature")), format!("v1,{expected}"));
        })
        .await;
    }
    check("zendesk", |seen, now| {
        let time = seen.one("x-zendesk-webhook-signature-timestamp");
        fresh(&time.parse::<Timestamp>().unwrap().as_second().to_string(), 1, now);
        let expected = STANDARD.encode(mac(&[time.as_bytes(), BODY]));
        assert_eq!(seen.one("x-zendesk-webhook-signature"), expected);
    })
    .await;
    // A secret in place of a signature.
    check("ownstak", |seen, _| assert_eq!(seen.one("authorization"), OURS)).await;
}

#[tokio::test]
async fn a_delivery_whose_source_is_gone_is_a_dead_letter_that_says_so() {
    let backend = Backend::always(Reply::status(200)).await;
    let gateway = Gateway::start([configured("github", OURS, &backend.url("/"))]);
    let mut sent = delivery(b"{}");
    sent.source = "another".into();
    gateway.forward(sent, "legacy");
    let record = gateway.first_record().await;
    assert_eq!(record.outcome, "unsendable");
    assert!(record.detail.contains("there is no source `another` any more"), "{}", record.detail);
    assert_eq!(backend.count(), 0);
}

/// `enforcement = "observe"` lets through what does not verify. Signed again, a forgery was genuine to the backend.
#[tokio::test]
async fn what_was_not_verified_is_not_signed_again() {
    let backend = Backend::always(Reply::status(200)).await;
    let gateway = Gateway::start([configured("github", OURS, &backend.url("/"))]);
    let mut sent = delivery(BODY);
    sent.verification.verified = false;
    sent.headers.insert("x-hub-signature-256", HeaderValue::from_static("sha256=f0"));
    gateway.forward(sent, "legacy");
    eventually("it is settled", || gateway.delivered() == 1).await;
    let seen = backend.seen().remove(0);
    assert_eq!(
        (seen.one("x-hub-signature-256"), seen.one("countersign-verified")),
        ("sha256=f0".to_owned(), "false".to_owned())
    );
}

/// With the providers' own SDKs, which `tests/sdk/install` installs where it can, on a clock that says when it is.
#[tokio::test]
async fn official_verifiers_accept_what_is_delivered_an_hour_and_a_week_later() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sdk = root.join("target/sdk");
    if !sdk.join("ready").exists() {
        println!("skipped: tests/sdk/install has not installed the providers' verifiers");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let written = |name: &str, got: Vec<serde_json::Value>| {
        let path = directory.path().join(name);
        std::fs::write(&path, serde_json::Value::from(got).to_string()).unwrap();
        path
    };
    for after in [3_600, WEEK] {
        let mut got = Vec::new();
        for provider in ["stripe", "slack", "svix", "standard-webhooks", "github"] {
            let seen = delivered(provider, after).await;
            let headers = seen.headers.iter().map(|(name, value)| {
                (name.clone(), serde_json::Value::from(String::from_utf8_lossy(value).into_owned()))
            });
            let is_base64 = ["svix", "standard-webhooks"].contains(&provider);
            let (ours, theirs) = if is_base64 { (OURS_BASE64, THEIRS_BASE64) } else { (OURS, THEIRS) };
            got.push(serde_json::json!({
                "provider": provider,
                "secret": ours,
                "other": theirs,
                "headers": headers.collect::<serde_json::Map<_, _>>(),
                "body": STANDARD.encode(&seen.body),
            }));
        }
        let github = written("github.json", vec![got.pop().unwrap()]);
        let others = written("others.json", got);
        let clock = directory.path().join("clock");
        let ahead = (SIGNED_AT + after) * 1_000 - Clock::system().now().as_millisecond();
        std::fs::write(&clock, ahead.to_ne_bytes()).unwrap();
        let run = |program: &Path, script: &Path, file: &Path| {
            let output = std::process::Command::new(program)
                .arg(script)
                .arg(file)
                .env("LD_PRELOAD", crate::preload::library("clock"))
                .env("COUNTERSIGN_TEST_CLOCK", &clock)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
            text.lines().filter(|line| line.starts_with("verified ")).count()
        };
        assert_eq!(run(&sdk.join("python/bin/python3"), &root.join("tests/sdk/verify.py"), &others), 4);
        // Where node looks for the SDK.
        let script = sdk.join("verify.mjs");
        std::fs::copy(root.join("tests/sdk/verify.mjs"), &script).unwrap();
        assert_eq!(run(Path::new("node"), &script, &github), 1);
    }
}
