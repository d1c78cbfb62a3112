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
