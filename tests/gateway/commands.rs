//! The command line, as it is typed.

use std::process::Output;

use crate::backend::Backend;
use crate::sender::SECRET;
use crate::sender::every_provider;
use crate::support::{Gateway, run};

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn check(arguments: &[&str], code: i32, contains: &[&str]) -> Output {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output));
    for part in contains {
        assert!(text(&output).contains(part), "{arguments:?} lacks {part}: {}", text(&output));
    }
    output
}

#[test]
fn usage_and_exit_codes() {
    check(&["--version"], 0, &["countersign 0."]);
    check(
        &["--help"],
        0,
        &["run", "check", "demo", "send", "providers", "status", "reload", "healthcheck", "completions"],
    );
    check(&["run"], 64, &["--config"]);
    check(&["frobnicate"], 64, &["frobnicate"]);
    check(&["check", "--config", "/nonexistent.toml"], 78, &["/nonexistent.toml"]);
    check(&["run", "--config", "/nonexistent.toml"], 78, &["/nonexistent.toml"]);
    check(&["healthcheck", "--admin", "http://127.0.0.1:1"], 69, &["127.0.0.1:1"]);
    check(&["status", "--admin", "not a url"], 64, &["--admin"]);
    check(&["completions", "bash"], 0, &["_countersign"]);
}

#[test]
fn check_reports_every_problem_in_one_run() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.toml");
    std::fs::write(
        &path,
        "[listen]\nadress = \"x\"\nack_deadline = \"5s\"\n[[source]]\nname = \"A\"\nprovider = \"githbu\"\n\
         secrets = [{ value = \" \" }]\nto = [\"nowhere\"]\n",
    )
    .unwrap();
    let path = path.to_str().unwrap();
    check(
        &["check", "--config", path],
        78,
        &[
            "c.toml:2:1",
            "listen.adress",
            "did you mean `address`?",
            "c.toml:3:",
            "listen.ack_deadline",
            "source[0].name",
            "did you mean `github`?",
            "source[0].secrets[0]",
            "nowhere",
        ],
    );
}

#[test]
fn a_failure_tells_its_cause() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.toml");
    let write = |first: &str| {
        let rest = "admin.address = \"127.0.0.1:0\"\n[[source]]\nname = \"open\"\nverify = \"none\"\nto = [\"x\"]\n\
                    [[destination]]\nname = \"x\"\nurl = \"http://127.0.0.1:1/\"\n";
        std::fs::write(&path, format!("{first}\n{rest}")).unwrap();
    };
    let path = path.to_str().unwrap();
    write("listen.address = \"127.0.0.1:0\"\nstore.path = \"/proc/nowhere\"");
    check(&["run", "--config", path], 74, &["/proc/nowhere", "os error"]);
    check(&["run", "--config", "/nonexistent.toml"], 78, &["os error"]);

    // A key of another certificate used to be found at the start only, as an I/O failure.
    let [one, other] =
        [(); 2].map(|()| rcgen::generate_simple_self_signed(["x.example".to_owned()]).unwrap());
    std::fs::write(directory.path().join("cert.pem"), one.cert.pem()).unwrap();
    std::fs::write(directory.path().join("key.pem"), other.signing_key.serialize_pem()).unwrap();
    write("listen = { address = \"127.0.0.1:0\", tls = { cert = \"cert.pem\", key = \"key.pem\" } }");
    for command in ["check", "run"] {
        check(&[command, "--config", path], 78, &["listen.tls", "cert.pem", "KeyMismatch"]);
    }
}

#[test]
fn the_demo_delivers_everything_that_it_accepted() {
    check(&["demo"], 0, &["forged", "stale", "duplicates absorbed 1", "refused 2", "missing 0"]);
}

#[test]
fn providers_are_listed() {
    check(&["providers"], 0, &["standard-webhooks", "hostwares", "ownstak"]);
    check(&["providers", "github"], 0, &["https://docs.github.com", "[github]\n", "signed = \"{body}\""]);
    check(&["providers", "githbu"], 1, &["no provider `githbu`"]);
    let listed = check(&["providers", "--json"], 0, &[]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let github = listed.as_array().unwrap().iter().find(|preset| preset["name"] == "github").unwrap();
    assert_eq!((&github["auth"], &github["confirmed"]), (&"signature".into(), &true.into()));
    assert!(github.get("handshake").is_some());
    let slack = listed.as_array().unwrap().iter().find(|preset| preset["name"] == "slack").unwrap();
    assert_eq!(slack["handshake"], serde_json::json!(["url-verification"]));
}

#[test]
fn the_readme_has_the_whole_catalogue() {
    let printed = check(&["providers", "--markdown"], 0, &["[`stripe`]"]);
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert_eq!(printed.lines().count(), countersign::verify::presets().len() + 2);
    let readme = include_str!("../../README.md");
    let table =
        readme.split("<!-- providers -->\n").nth(1).unwrap().split("<!-- /providers -->").next().unwrap();
    assert_eq!(table, printed, "put the output of `countersign providers --markdown` in its place");
}

#[test]
fn what_send_prints_is_what_the_published_vector_says() {
    let directory = tempfile::tempdir().unwrap();
    let body = directory.path().join("body");
    std::fs::write(&body, r#"{"test": 2432232314}"#).unwrap();
    let printed = check(
        &[
            "send",
            "--provider",
            "standard-webhooks",
            "--secret",
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "--to",
            "http://127.0.0.1:1/",
            "--id",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "--now",
            "1614265330",
            "--body",
            body.to_str().unwrap(),
            "--print",
        ],
        0,
        &[
            "webhook-signature: v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
            "webhook-timestamp: 1614265330",
        ],
    );
    assert!(printed.stdout.ends_with(b"\n\n{\"test\": 2432232314}"));
}

#[test]
fn send_status_and_healthcheck_against_a_running_gateway() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    let send = |provider: &str, secret: &str, code: i32, status: &str| {
        let to = format!("http://{}/webhooks/{provider}", gateway.listen);
        check(&["send", "--provider", provider, "--secret", secret, "--to", &to], code, &[status]);
    };
    let providers =
        ["owlette", "owlette-legacy", "hostwares", "ownstak", "github", "stripe", "standard-webhooks"];
    for provider in providers {
        send(provider, SECRET, 0, "200");
    }
    send("github", "another-secret-entirely", 1, "401");
    backend.eventually_got(providers.len());
    let admin = format!("http://{}", gateway.admin);
    check(&["healthcheck", "--admin", &admin], 0, &["ready"]);
    check(&["status", "--admin", &admin], 0, &["github", "legacy", "open"]);
}
