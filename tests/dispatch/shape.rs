//! What a backend gets in place of what the provider sent, as a configuration says it.

use std::path::Path;

use countersign::clock::Timestamp;
use countersign::config::{self, Destination};
use countersign::forward::{Outcome, Progress};
use http::{HeaderName, HeaderValue, Method};

use crate::backend::{Backend, Reply, Seen};
use crate::support::{Gateway, delivery, eventually};

/// The destination of a configuration with these `lines`; templates are files in `directory`.
fn configured(directory: &Path, url: &str, lines: &str) -> Destination {
    let text = format!(
        "[[source]]\nname = \"shop\"\nverify = \"none\"\nto = [\"legacy\"]\n\
         [[destination]]\nname = \"legacy\"\nurl = \"{url}\"\n{lines}\n"
    );
    let config = config::parse(&text, "c.toml", directory, &|_| None, Timestamp::UNIX_EPOCH);
    (*config.unwrap_or_else(|error| panic!("{error}")).destinations[0]).clone()
}

const BODY: &[u8] = b"{\"site\":\"../s\",\"name\":\"a\\\"b\\r\\nX-Evil: 1\",\"n\":3}";

async fn seen(path: &str, lines: &str) -> Seen {
    let directory = tempfile::tempdir().unwrap();
    let template = "{\"text\": {{ body.name }}, \"n\": {{ body.n }}, \"again\": {{ replay }}}";
    std::fs::write(directory.path().join("t.json.j2"), template).unwrap();
    let backend = Backend::always(Reply::status(200)).await;
    let gateway = Gateway::start([configured(directory.path(), &backend.url(path), lines)]);
    let mut sent = delivery(BODY);
    sent.target = "/webhooks/shop?q=1".to_owned();
    for (name, value) in [
        ("content-type", "application/x-json"),
        ("content-encoding", "identity"),
        ("x-old", "1"),
        ("x-old", "2"),
        ("x-gone", "secret"),
        ("x-kept", "kept"),
        ("webhook-signature", "v1,old"),
    ] {
        sent.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    gateway.forward(sent, "legacy");
    eventually("it is delivered", || gateway.delivered() == 1).await;
    backend.seen().remove(0)
}

#[tokio::test]
async fn headers_are_renamed_and_removed_and_the_rest_stays() {
    let seen = seen("/in", "rename_headers = { X-Old = \"X-New\" }\nremove_headers = [\"X-Gone\"]").await;
    assert_eq!(seen.all("x-new"), ["1", "2"]);
    assert_eq!((seen.all("x-old").len(), seen.all("x-gone").len()), (0, 0));
    assert_eq!(
        (seen.one("x-kept").as_str(), seen.one("content-type").as_str()),
        ("kept", "application/x-json")
    );
    assert_eq!((seen.line.as_str(), &*seen.body), ("POST /in?q=1 HTTP/1.1", BODY));
}

#[tokio::test]
async fn method_path_and_body_are_made_and_no_value_leaves_its_place() {
    let lines = "method = \"PUT\"\ntemplate = \"t.json.j2\"\ncontent_type = \"application/vnd.x+json\"";
    let seen = seen("/sites/{json:/site}/{event}?s={source}", lines).await;
    assert_eq!(seen.line, "PUT /sites/..%2Fs/order.paid?s=shop&q=1 HTTP/1.1");
    assert_eq!(seen.one("content-type"), "application/vnd.x+json");
    assert_eq!(seen.all("content-encoding").len() + seen.all("x-evil").len(), 0);
    let body: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
    assert_eq!(body, serde_json::json!({ "text": "a\"b\r\nX-Evil: 1", "n": 3, "again": false }));
    assert_eq!(seen.one("content-length"), seen.body.len().to_string());
}

/// What is signed is what is sent.
#[tokio::test]
async fn the_countersignature_covers_the_body_that_is_sent() {
    use base64::Engine as _;
    use hmac::{Hmac, KeyInit as _, Mac as _};
    let sign = "sign = { scheme = \"standard-webhooks\", secret = { value = \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\" } }";
    let seen = seen("/in", &format!("template = \"t.json.j2\"\n{sign}")).await;
    let base64 = base64::engine::general_purpose::STANDARD;
    let key = base64.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&key).unwrap();
    mac.update(format!("{}.{}.", seen.one("webhook-id"), seen.one("webhook-timestamp")).as_bytes());
    mac.update(&seen.body);
    assert!(seen.body.starts_with(b"{\"text\""));
    assert_eq!(seen.one("webhook-signature"), format!("v1,{}", base64.encode(mac.finalize().into_bytes())));
}

#[tokio::test]
async fn a_template_that_fails_makes_a_dead_letter_with_its_place_and_sends_nothing() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("t.json.j2"), "{\"a\": 1,\n \"b\": {{ body.secret.nothing }}}")
        .unwrap();
    let backend = Backend::always(Reply::status(200)).await;
    let gateway =
        Gateway::start([configured(directory.path(), &backend.url("/in"), "template = \"t.json.j2\"")]);
    gateway.forward(delivery(BODY), "legacy");
    eventually("it is dead", || gateway.count(|progress| progress == Progress::Dead) == 1).await;
    let record = gateway.first_record().await;
    assert_eq!((record.outcome, record.status), ("template_failed", None));
    assert_eq!(record.detail, "t.json.j2:2:14: undefined value");
    assert_eq!((backend.count(), gateway.attempts("legacy", Outcome::TemplateFailed)), (0, 1));
}

#[tokio::test]
async fn a_path_that_cannot_be_filled_makes_a_dead_letter_too() {
    let backend = Backend::always(Reply::status(200)).await;
    let to = configured(Path::new("/"), &backend.url("/{json:/nothing}"), "");
    let gateway = Gateway::start([to]);
    gateway.forward(delivery(BODY), "legacy");
    let record = gateway.first_record().await;
    assert_eq!(record.outcome, "template_failed");
    assert_eq!(record.detail, "the URL names `{json:/nothing}`, which the delivery does not have");
    assert_eq!(backend.count(), 0);
}

/// Whatever a `GET` of a template is for, an empty body has a length, and a method may be any.
#[tokio::test]
async fn a_method_may_be_set_without_a_template() {
    let seen = seen("/in", "method = \"PATCH\"").await;
    assert!(seen.line.starts_with(Method::PATCH.as_str()), "{}", seen.line);
    assert_eq!(seen.body, BODY);
}

/// An error page repeated the key that a template had put into the body, and it stood in the history of attempts.
#[tokio::test]
async fn a_secret_of_a_template_is_not_shown_when_a_backend_repeats_it() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("t.j2"), "{\"key\": {{ values.key }}}").unwrap();
    let lines = "template = \"t.j2\"\ntemplate_values = { key = { value = \"r0uting-k3y\" } }";
    let page = b"HTTP/1.1 400 X\r\ncontent-length: 24\r\n\r\nno such key: r0uting-k3y";
    let backend = Backend::always(Reply::Send(page.to_vec())).await;
    let gateway = Gateway::start([configured(directory.path(), &backend.url("/"), lines)]);
    gateway.forward(delivery(BODY), "legacy");
    assert_eq!(gateway.first_record().await.detail, "no such key: [secret]");
    assert_eq!(backend.seen()[0].body, b"{\"key\": \"r0uting-k3y\"}".as_slice());
}
