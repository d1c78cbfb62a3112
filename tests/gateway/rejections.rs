//! Promise: what was refused is kept within bounds, explained to operators without a secret, and let in once when the cause
//! has been mended.

use std::time::Duration;

use countersign::clock::{Clock, earlier};
use serde_json::Value;

use crate::backend::Backend;
use crate::sender::{Post, SECRET, body};
use crate::support::{Gateway, eventually, run};

const OTHER: &str = "whsec_b3RoZXItb3RoZXItb3RoZXItb3RoZXItb3RoZXItMTIzNA==";

fn config(backend: &Backend, source: &str) -> String {
    format!("{source}\nto = [\"legacy\"]\n[[destination]]\nname = \"legacy\"\nurl = \"{}\"\n", backend.url())
}

fn source(provider: &str, secret: &str, more: &str) -> String {
    format!(
        "[[source]]\nname = \"{provider}\"\nprovider = \"{provider}\"\nsecrets = [{{ value = \"{secret}\" }}]\n{more}"
    )
}

/// A command against the gateway: exit code, standard output and error.
fn command(gateway: &Gateway, arguments: &[&str]) -> (Option<i32>, String, String) {
    let admin = format!("http://{}", gateway.admin);
    let output = run(&[arguments, &["--admin", &admin]].concat());
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn json(gateway: &Gateway, arguments: &[&str]) -> Value {
    let (code, out, error) = command(gateway, &[arguments, &["--json"]].concat());
    assert_eq!(code, Some(0), "{arguments:?}: {out}{error}");
    assert!(!out.contains(SECRET) && !out.contains(OTHER), "{out}");
    serde_json::from_str(&out).unwrap()
}

/// The ids of what is kept, the newest first.
fn ids(gateway: &Gateway) -> Vec<String> {
    let list = json(gateway, &["rejections", "list"]);
    let rejections = list["rejections"].as_array().unwrap();
    rejections.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_refused_request_is_explained_and_let_in_once_when_the_secret_has_been_mended() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&config(&backend, &source("github", OTHER, "")));
    let genuine = Post::signed("github", "/webhooks/github", "d-1", "push", &body("d-1"))
        .with("Cookie", "session=hunter2")
        .with("Authorization", "Bearer hunter2");
    let refused = genuine.send(gateway.listen);
    assert_eq!((refused.status, refused.body.len()), (401, 0));

    let kept = ids(&gateway);
    let [id] = &kept[..] else { panic!("{kept:?}") };
    let (code, text, _) = command(&gateway, &["rejections", "explain", id]);
    assert_eq!(code, Some(0));
    assert!(text.contains("signature_mismatch") && text.contains("secret that no source has"), "{text}");
    assert!(!text.contains("hunter2") && !text.contains(SECRET) && !text.contains(OTHER), "{text}");
    let (code, text, _) = command(&gateway, &["rejections", "reverify", id]);
    assert_eq!((code, &*text), (Some(1), &*format!("{id} refused: signature_mismatch\n")));

    gateway.rewrite(&config(&backend, &source("github", SECRET, "")));
    assert_eq!(command(&gateway, &["reload"]).0, Some(0));
    let explained = json(&gateway, &["rejections", "explain", id]);
    assert_eq!(explained["causes"][0]["cause"], "verifies");
    let (code, text, error) = command(&gateway, &["rejections", "reverify", id]);
    assert_eq!((code, &*text), (Some(0), &*format!("{id} stored\n")), "{error}");
    let got = backend.eventually_got(1);
    assert_eq!((&got[0].body, got[0].header("countersign-verified")), (&body("d-1"), Some("true")));
    assert_eq!(got[0].header("countersign-delivery-id"), Some("d-1"));

    let (code, _, error) = command(&gateway, &["rejections", "reverify", id]);
    assert_eq!(code, Some(1));
    assert!(error.contains("it has been reverified before: stored"), "{error}");
    assert_eq!(genuine.send(gateway.listen).status, 200);
    let series = |name: &str| gateway.metric(&format!("countersign_{name}{{source=\"github\"}}"));
    assert_eq!(
        gateway.metric("countersign_ingest_requests_total{outcome=\"duplicate\",source=\"github\"}"),
        Some(1.0)
    );
    assert_eq!(
        gateway.metric("countersign_ingest_requests_total{outcome=\"stored\",source=\"github\"}"),
        Some(1.0)
    );
    assert_eq!(series("quarantine_kept_total"), Some(1.0));

    // Once is once after a restart, too.
    let gateway = gateway.kill_and_restart();
    let (code, _, error) = command(&gateway, &["rejections", "reverify", id]);
    assert_eq!(code, Some(1));
    assert!(error.contains("it has been reverified before"), "{error}");
    assert_eq!(backend.eventually_got(1).len(), 1);
}

/// The beginning of a terminal's commands may stand in a header, as a character of its own.
#[test]
fn what_a_stranger_sent_is_no_command_to_a_terminal() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&config(&backend, &source("github", OTHER, "")));
    let forged = Post::signed("github", "/webhooks/github", "d-1", "push", &body("d-1"))
        .with("X-Note", "\u{9b}2J\u{9d}0;owned\u{9c}");
    assert_eq!(forged.send(gateway.listen).status, 401);
    let (code, text, _) = command(&gateway, &["rejections", "explain", &ids(&gateway)[0]]);
    assert_eq!(code, Some(0));
    assert!(text.contains("x-note: \u{fffd}2J\u{fffd}0;owned\u{fffd}"), "{text:?}");
}

/// Its sender had gone without the answer that it asked for. Let in later, it went to a backend that knows nothing of it.
#[test]
fn a_handshake_is_let_in_later_only_where_it_is_forwarded() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&config(&backend, &source("slack", OTHER, "")));
    let asked = br#"{"type":"url_verification","challenge":"3eZbrw1a"}"#;
    assert_eq!(Post::signed("slack", "/webhooks/slack", "d-1", "x", asked).send(gateway.listen).status, 401);
    let id = ids(&gateway).remove(0);
    let reverified = |more: &str| {
        gateway.rewrite(&config(&backend, &source("slack", SECRET, more)));
        assert_eq!(command(&gateway, &["reload"]).0, Some(0));
        command(&gateway, &["rejections", "reverify", &id])
    };
    assert_eq!(reverified("").1, format!("{id} refused: handshake\n"));
    assert_eq!(reverified("forward_handshake = true").1, format!("{id} stored\n"));
    assert_eq!(backend.eventually_got(1)[0].body, asked);
}

/// A duplicate stays one: the sender's own retry came first.
#[test]
fn what_has_been_accepted_meanwhile_is_a_duplicate() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&config(&backend, &source("github", OTHER, "")));
    let genuine = Post::signed("github", "/webhooks/github", "d-1", "push", &body("d-1"));
    assert_eq!(genuine.send(gateway.listen).status, 401);
    gateway.rewrite(&config(&backend, &source("github", SECRET, "")));
    assert_eq!(command(&gateway, &["reload"]).0, Some(0));
    assert_eq!(genuine.send(gateway.listen).status, 200);
    let all = json(&gateway, &["rejections", "reverify", "--all", "--source", "github"]);
    assert_eq!(all["reverified"][0]["outcome"], "duplicate");
    let again = json(&gateway, &["rejections", "reverify", "--all"]);
    assert_eq!(again["reverified"].as_array().unwrap().len(), 0);
    assert_eq!(backend.eventually_got(1).len(), 1);
}

/// Refused by its head, before its body was asked for: it is kept whole all the same. Hours later it is as stale as it
/// was when it came, and no staler.
#[test]
fn the_window_is_judged_by_the_time_of_arrival() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&config(&backend, &source("stripe", SECRET, "")));
    let then = earlier(Clock::system().now(), Duration::from_secs(900));
    let late = Post::signed_at("stripe", "/webhooks/stripe", "d-1", "x", &body("d-1"), SECRET, then);
    assert_eq!(late.send(gateway.listen).status, 401);
    let id = &ids(&gateway)[0];
    let explained = json(&gateway, &["rejections", "explain", id]);
    assert_eq!(
        (&explained["causes"][0]["cause"], &explained["causes"][0]["proven"]),
        (&"clock_off".into(), &true.into())
    );
    assert_eq!(explained["body_bytes"], body("d-1").len());
    let (code, text, _) = command(&gateway, &["rejections", "reverify", id]);
    assert_eq!(code, Some(1));
    assert!(text.ends_with("refused: timestamp_too_old\n"), "{text}");
    gateway.rewrite(&config(&backend, &source("stripe", SECRET, "window = { past = \"901s\" }")));
    assert_eq!(command(&gateway, &["reload"]).0, Some(0));
    let (code, text, error) = command(&gateway, &["rejections", "reverify", id]);
    assert_eq!(code, Some(0), "{text}{error}");
    assert_eq!(backend.eventually_got(1)[0].body, body("d-1"));
}

#[test]
fn nothing_that_proves_nothing_is_let_in() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&config(&backend, &source("github", SECRET, "")));
    let now = Clock::system().now();
    let forged = Post::signed_at("github", "/webhooks/github", "d-1", "push", &body("d-1"), OTHER, now);
    assert_eq!(forged.send(gateway.listen).status, 401);
    let id = &ids(&gateway)[0];
    for mended in [
        source("github", SECRET, "enforcement = \"observe\""),
        "[[source]]\nname = \"github\"\nverify = \"none\"".to_owned(),
    ] {
        gateway.rewrite(&config(&backend, &mended));
        assert_eq!(command(&gateway, &["reload"]).0, Some(0));
        let (code, text, _) = command(&gateway, &["rejections", "reverify", id]);
        assert_eq!(code, Some(1));
        assert!(text.contains("refused"), "{text}");
    }
    assert_eq!(
        gateway.metric("countersign_ingest_requests_total{outcome=\"stored\",source=\"github\"}"),
        Some(0.0)
    );
}

#[test]
fn a_flood_of_refused_requests_is_sampled_and_every_one_is_counted() {
    const COUNT: usize = 200;
    let backend = Backend::accepting();
    let gateway = Gateway::start(&config(&backend, &source("github", SECRET, "")));
    let now = Clock::system().now();
    for n in 0..COUNT {
        let id = format!("d-{n}");
        let forged =
            Post::signed_at("github", "/webhooks/github", &id, "push", &[b'x'; 32 << 10], OTHER, now);
        let refused = forged.send(gateway.listen);
        assert_eq!((refused.status, refused.body.len()), (401, 0));
    }
    let kept = || gateway.metric("countersign_quarantine_kept_total{source=\"github\"}").unwrap();
    let dropped = || {
        let series = |why| format!("countersign_quarantine_dropped_total{{source=\"github\",why=\"{why}\"}}");
        ["rate", "busy", "disk_full", "failed"]
            .map(|why| gateway.metric(&series(why)).unwrap())
            .iter()
            .sum::<f64>()
    };
    eventually("each is kept or counted", || kept() + dropped() == COUNT as f64);
    assert!(kept() >= 1.0);
    assert_eq!(gateway.metric("countersign_quarantine_entries"), Some(kept()));
    let bytes = gateway.metric("countersign_quarantine_bytes").unwrap();
    assert!((kept() * 32_768.0..=kept() * 40_960.0).contains(&bytes), "{bytes} bytes");
    let genuine = Post::signed("github", "/webhooks/github", "good", "push", &body("good"));
    assert_eq!(genuine.send(gateway.listen).status, 200);
}

#[test]
fn a_captured_request_is_explained_without_a_gateway() {
    let backend = Backend::accepting();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    crate::support::write_config(directory.path(), &config(&backend, &source("github", SECRET, "")));
    let verify = |post: &Post| {
        std::fs::write(file("request"), post.bytes()).unwrap();
        let (config, request) = (file("countersign.toml"), file("request"));
        let output =
            run(&["verify", "--config", &config, "--source", "github", "--request", &request, "--json"]);
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), document["causes"][0]["cause"].as_str().unwrap().to_owned())
    };
    let mut post = Post::signed("github", "/webhooks/github", "d-1", "push", &body("d-1"));
    assert_eq!(verify(&post), (Some(0), "verifies".to_owned()));
    post.body.push(b'\n');
    assert_eq!(verify(&post), (Some(1), "body_newline_added".to_owned()));
}

/// What a request is refused for by the gateway itself has been told as accepted.
#[test]
fn a_capture_is_judged_by_what_the_source_demands_beside_a_signature() {
    let backend = Backend::accepting();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let sources = format!(
        "{}\nto = [\"legacy\"]\n{}",
        source("stripe", SECRET, ""),
        source("github", SECRET, "on_missing_id = \"reject\"")
    );
    crate::support::write_config(directory.path(), &config(&backend, &sources));
    let verify = |post: &Post| {
        std::fs::write(file("request"), post.bytes()).unwrap();
        let (config, request) = (file("countersign.toml"), file("request"));
        let output = run(&["verify", "--config", &config, "--source", "github", "--request", &request]);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let good = || Post::signed("github", "/webhooks/github", "d-1", "push", b"{}");
    assert_eq!(verify(&good()).0, Some(0));
    let strange = |target: &str| Post { target: target.to_owned(), ..good() };
    for (post, words) in [
        (good().without("x-github-delivery"), "has no delivery id"),
        (Post { method: "PUT", ..good() }, "does not take the method PUT"),
        (strange("/webhooks/nope"), "is no source's path"),
        (strange("/webhooks/stripe?x=1"), "the path of the source `stripe`"),
    ] {
        let (code, text) = verify(&post);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.starts_with("refused: ") && text.contains(words), "{text}");
        assert!(!text.contains("accepted") && !text.contains("with the configuration in force"), "{text}");
    }
}

/// Each as an operator sees it: over the API by the command, and of a capture.
#[test]
fn every_kind_of_broken_request_has_a_cause_in_words() {
    let backend = Backend::accepting();
    let old = "an-old-secret-0123456789";
    let sources = format!(
        "[[source]]\nname = \"stripe\"\nprovider = \"stripe\"\nto = [\"legacy\"]\nsecrets = [{{ value = \"{OTHER}\" }}]\n\
         [[source]]\nname = \"github\"\nprovider = \"github\"\nsecrets = [{{ value = \"{SECRET}\" }},\
         {{ name = \"old\", value = \"{old}\", not_after = 2020-01-01T00:00:00Z }}]\n"
    );
    let gateway = Gateway::start(&config(&backend, &sources));
    let now = Clock::system().now();
    let (path, name, document) = ("/webhooks/github", "x-hub-signature-256", br#"{"id":"d-1","n":1}"#);
    let good = || Post::signed("github", path, "d-1", "push", document);
    let with_body = |body: &[u8]| Post { body: body.to_vec(), ..good() };
    let by = |secret: &str| Post::signed_at("github", path, "d-1", "push", document, secret, now);
    let signature =
        String::from_utf8(good().headers.iter().find(|(own, _)| own == name).unwrap().1.clone()).unwrap();
    let bare = || good().without(name);
    let stale = earlier(now, Duration::from_secs(7_200));
    let kinds = [
        (bare(), "signature_missing", "the header `x-hub-signature-256` is not there"),
        (bare().with(name, ""), "signature_empty", "has nothing in it"),
        (bare().with(name, "sha256=abc"), "signature_malformed", "hmac-sha256 in hex would be right"),
        (bare().with(name, &signature["sha256=".len()..]), "signature_form", "with nothing before it"),
        (good().with(name, &signature), "header_twice", "is there twice"),
        (with_body(b"{\"id\":\"d-1\",\"n\":1}\n"), "body_newline_added", "a newline was added"),
        (with_body(b"{\"id\": \"d-1\", \"n\": 1}"), "body_json_reencoded", "re-encoded"),
        (with_body(b"\x1f\x8b\x08\0"), "body_compressed", "compressed in transit"),
        (with_body(b""), "body_empty", "the body is empty"),
        (by(OTHER), "secret_of_other_source", "another source, `stripe`"),
        (by(old), "secret_expired", "another secret of this source, `old`, which expired"),
        (by(&format!("{SECRET}\n")), "sender_secret_has_space", "trailing newline"),
        (by("a-secret-of-nobody-0123"), "unknown_secret", "no source has"),
        (
            Post::signed_at("stripe", path, "d-1", "x", document, OTHER, now),
            "wrong_path",
            "the source `stripe` at",
        ),
        (
            Post::signed_at("slack", path, "d-1", "x", document, OTHER, now),
            "other_provider",
            "a header of the provider `slack`",
        ),
        (
            Post::signed_at("stripe", "/webhooks/stripe", "d-1", "x", document, OTHER, stale),
            "clock_off",
            "7200 s behind our clock",
        ),
    ];
    let request = gateway.directory().join("request");
    for (post, label, words) in kinds {
        let refused = post.send(gateway.listen);
        assert_eq!((refused.status, refused.body.len()), (401, 0), "{label}");
        let id = &ids(&gateway)[0];
        let explained = json(&gateway, &["rejections", "explain", id]);
        std::fs::write(&request, post.bytes()).unwrap();
        let of = post.target.rsplit('/').next().unwrap();
        let (config, request) = (gateway.config_path(), request.to_str().unwrap());
        let config = config.to_str().unwrap();
        let output = run(&["verify", "--config", config, "--source", of, "--request", request, "--json"]);
        assert_eq!(output.status.code(), Some(1), "{label}");
        for document in [explained, serde_json::from_slice(&output.stdout).unwrap()] {
            let told = document.to_string();
            assert_eq!(document["causes"][0]["cause"], label, "{told}");
            let text = document["causes"][0]["text"].as_str().unwrap();
            // The clock goes on.
            assert!(text.contains(words) || label == "clock_off", "{label}: {text}");
            assert!(document["causes"][0]["advice"].as_str().unwrap().len() > 10, "{told}");
            for secret in [SECRET, OTHER, old, &signature["sha256=".len()..]] {
                assert!(!told.contains(secret), "{label}: {told}");
            }
        }
    }
}
