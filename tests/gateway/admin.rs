//! Promise: the admin API says what it does, does it for those who may, and tells who has done what.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::backend::Backend;
use crate::console::TOKENS;
use crate::sender::{Post, body, every_provider};
use crate::support::{Gateway, PATIENCE, countersign, eventually};

/// An answer of the admin listener: status, head and body.
pub(crate) fn exchange(gateway: &Gateway, request: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(gateway.admin).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_lowercase(), body.to_owned())
}

pub(crate) fn request(
    gateway: &Gateway,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> (u16, String, String) {
    let text = format!(
        "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        gateway.admin,
        body.len()
    );
    exchange(gateway, &text)
}

/// A document of the API, which must be there.
pub(crate) fn get(gateway: &Gateway, path: &str) -> Value {
    let (status, text) = gateway.admin_get(&format!("/api/v1/{path}"));
    assert_eq!(status, 200, "{path}: {text}");
    serde_json::from_str(&text).unwrap()
}

/// Sends a document to the API.
#[expect(clippy::needless_pass_by_value, reason = "a document is written where it is sent")]
pub(crate) fn post(gateway: &Gateway, path: &str, document: Value) -> (u16, Value) {
    let (path, json) = (format!("/api/v1/{path}"), "Content-Type: application/json\r\n");
    let (status, _, text) = request(gateway, "POST", &path, json, &document.to_string());
    (status, serde_json::from_str(&text).unwrap())
}

/// Runs a command against the gateway: exit code, standard output and error.
pub(crate) fn command(gateway: &Gateway, arguments: &[&str]) -> (Option<i32>, String, String) {
    let admin = format!("http://{}", gateway.admin);
    let output = countersign().args(arguments).args(["--admin", &admin]).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn whatever_is_wrong_is_a_problem_document() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    let json = "Content-Type: application/json\r\n";
    let large = format!("{{\"q\":\"{}\"}}", "x".repeat(70_000));
    let unknown = "/api/v1/deliveries/01890000-0000-7000-8000-000000000000";
    for (method, path, headers, body, expected) in [
        ("GET", "/nowhere", "", "", 404),
        ("GET", "/api/v1/nowhere", "", "", 404),
        ("GET", unknown, "", "", 404),
        ("DELETE", "/api/v1/status", "", "", 405),
        ("POST", "/metrics", "", "", 405),
        ("GET", "/api/v1/replay", "", "", 405),
        ("GET", "/api/v1/deliveries/x", "", "", 400),
        ("GET", "/api/v1/deliveries/%ff", "", "", 400),
        ("GET", "/api/v1/deliveries?nonsense=1", "", "", 400),
        ("GET", "/api/v1/deliveries?limit=0", "", "", 400),
        ("GET", "/api/v1/deliveries?limit=many", "", "", 400),
        ("GET", "/api/v1/deliveries?cursor=x", "", "", 400),
        ("GET", "/api/v1/deliveries?state=x", "", "", 400),
        ("GET", "/api/v1/deliveries?since=yesterday", "", "", 400),
        ("GET", "/api/v1/dead?state=waiting", "", "", 400),
        ("POST", "/api/v1/replay", json, "{", 400),
        ("POST", "/api/v1/replay", json, "{\"all\":true}", 400),
        ("POST", "/api/v1/replay", json, "{\"state\":\"waiting\"}", 400),
        ("POST", "/api/v1/replay", "Content-Type: text/plain\r\n", "{}", 415),
        ("POST", "/api/v1/replay", json, large.as_str(), 413),
    ] {
        let (status, head, text) = request(&gateway, method, path, headers, body);
        assert_eq!(status, expected, "{method} {path}: {text}");
        assert!(head.contains("content-type: application/problem+json"), "{method} {path}: {head}");
        let problem: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(problem["status"], expected);
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{text}");
        assert_eq!(expected == 405, head.contains("allow: "), "{method} {path}: {head}");
    }
}

#[test]
fn a_viewer_changes_nothing_and_changes_are_told_with_who_made_them() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&format!("{TOKENS}{}", every_provider(&backend)));
    let as_viewer = "Authorization: Bearer a-token-for-viewers\r\n";
    let as_operator = "Authorization: Bearer a-token-for-operators\r\n";
    let (_, _, document) = request(&gateway, "GET", "/api/v1/openapi.json", "", "");
    let document: Value = serde_json::from_str(&document).unwrap();
    let mut changes = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        if !path.starts_with("/api/") {
            continue;
        }
        let path = path.replace("{id}", "01890000-0000-7000-8000-000000000000").replace("{name}", "legacy");
        for method in item.as_object().unwrap().keys() {
            let method = method.to_uppercase();
            assert_eq!(request(&gateway, &method, &path, "", "").0, 401, "{method} {path}");
            if method == "POST" {
                changes += 1;
                assert_eq!(request(&gateway, &method, &path, as_viewer, "").0, 403, "{path}");
            } else if path != "/api/v1/events" {
                let status = request(&gateway, &method, &path, as_viewer, "").0;
                assert!(status == 200 || status == 404, "{method} {path}: {status}");
            }
        }
    }
    assert!(changes >= 12, "{changes}");
    let state = |as_whom: &str| {
        let text = request(&gateway, "GET", "/api/v1/destinations", as_whom, "").2;
        serde_json::from_str::<Value>(&text).unwrap()["destinations"][0]["state"].clone()
    };
    assert_eq!(state(as_viewer), "open");
    let pause = "/api/v1/destinations/legacy/pause";
    assert_eq!(request(&gateway, "POST", pause, as_operator, "").0, 200);
    assert_eq!(state(as_viewer), "paused");
    let json = format!("{as_operator}Content-Type: application/json\r\n");
    request(&gateway, "POST", "/api/v1/replay", &json, "{\"source\":\"github\"}");

    let text = request(&gateway, "GET", "/api/v1/audit", as_viewer, "").2;
    let audit: Value = serde_json::from_str(&text).unwrap();
    let changes = audit["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 2, "what was refused has changed nothing: {text}");
    assert_eq!((&changes[1]["by"], &changes[1]["status"]), (&"ops".into(), &200.into()));
    assert_eq!(changes[1]["action"], format!("POST {pause}"));
    assert!(changes[1]["at"].as_str().unwrap().starts_with("20") && text.contains("127.0.0.1"), "{text}");
    assert!(changes[0]["detail"].as_str().unwrap().contains("\"source\":\"github\""), "{text}");
    let log = gateway.log();
    assert!(log.lines().any(|line| line.contains("\"target\":\"audit\"") && line.contains(pause)), "{log}");
    assert!(!log.contains("a-token-for"), "{log}");
}

/// A page of another site, in a browser on this machine, that has a name of its own point to it.
#[test]
fn without_tokens_no_other_site_is_answered() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    let rebound = "GET /api/v1/deliveries HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    assert_eq!(exchange(&gateway, rebound).0, 403);
    let pause = "/api/v1/destinations/legacy/pause";
    assert_eq!(request(&gateway, "POST", pause, "Origin: https://evil.example\r\n", "").0, 403);
    let own = format!("Origin: http://{}\r\n", gateway.admin);
    assert_eq!(request(&gateway, "POST", pause, &own, "").0, 200);
}

#[test]
fn what_happens_is_told_as_it_happens() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    let mut stream = TcpStream::connect(gateway.admin).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET /api/v1/events HTTP/1.1\r\nHost: {}\r\n\r\n", gateway.admin).unwrap();
    let told: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
    let heard = Arc::clone(&told);
    let reader = std::thread::spawn(move || {
        let mut name = String::new();
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if let Some(event) = line.strip_prefix("event: ") {
                event.clone_into(&mut name);
            } else if let Some(document) = line.strip_prefix("data: ") {
                heard.lock().unwrap().push((name.clone(), serde_json::from_str(document).unwrap()));
            }
        }
    });
    let find = |name: &str| {
        let told = told.lock().unwrap();
        told.iter().find(|(event, _)| event == name).map(|(_, document)| document.clone())
    };
    let mut sent = 0;
    eventually("a delivery and its attempt are told", || {
        sent += 1;
        let id = format!("d-{sent}");
        Post::signed("github", "/webhooks/github", &id, "push", &body(&id)).send(gateway.listen);
        find("delivery").is_some() && find("attempt").is_some()
    });
    let (delivery, attempt) = (find("delivery").unwrap(), find("attempt").unwrap());
    assert_eq!((&delivery["source"], &delivery["destinations"]), (&"github".into(), &json!(["legacy"])));
    assert_eq!((&attempt["destination"], &attempt["state"]), (&"legacy".into(), &"delivered".into()));

    // Looked at from time to time, and compared with the look before.
    let mut turns = 0;
    eventually("a refusal and a lane's state are told", || {
        let forged = Post::signed("github", "/webhooks/github", "f", "x", b"{}");
        assert_eq!(Post { headers: Vec::new(), ..forged }.send(gateway.listen).status, 401);
        // Each state for longer than it takes until the next look.
        turns += 1;
        if turns % 40 == 1 {
            let action = if turns % 80 == 1 { "pause" } else { "resume" };
            post(&gateway, &format!("destinations/legacy/{action}"), json!({}));
        }
        find("rejection").is_some() && find("lane").is_some()
    });
    let (rejection, lane) = (find("rejection").unwrap(), find("lane").unwrap());
    assert_eq!((&rejection["source"], &rejection["reason"]), (&"github".into(), &"signature_missing".into()));
    assert_eq!(lane["destination"], "legacy");
    drop(gateway);
    reader.join().unwrap();
}

#[test]
fn the_command_line_says_why_it_was_not_answered() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&format!(
        "admin.tokens = [{{ name = \"ops\", role = \"operator\", value = \"a-token-for-operators\" }}]\n{}",
        every_provider(&backend)
    ));
    for arguments in [
        &["deliveries", "list"][..],
        &["deliveries", "tail"],
        &["dead", "list"],
        &["destinations", "list"],
        &["replay", "--since", "2h", "--dry-run"],
    ] {
        let (code, _, error) = command(&gateway, arguments);
        assert_eq!(code, Some(1), "{arguments:?}");
        assert!(error.contains("401") && error.contains("admin.tokens"), "{error}");
        let nobody = countersign().args(arguments).args(["--admin", "http://127.0.0.1:1"]).output().unwrap();
        assert_eq!(nobody.status.code(), Some(69), "{arguments:?}");
        assert!(String::from_utf8_lossy(&nobody.stderr).contains("cannot be reached"));
    }
    let (code, _, error) = command(&gateway, &["deliveries", "list", "--since", "yesterday"]);
    assert_eq!(code, Some(64));
    assert!(error.contains("2h"), "{error}");
    let token = ["--token", "a-token-for-operators"];
    for arguments in [
        &["deliveries", "show", "x"][..],
        &["deliveries", "list", "--state", "odd"],
        &["replay", "--source", "github", "--rate", "fast"],
        &["replay"],
    ] {
        let (code, _, error) = command(&gateway, &[arguments, &token[..]].concat());
        assert!(code == Some(64) && error.lines().count() == 1, "{arguments:?}: {code:?} {error}");
    }
    let (code, text, _) =
        command(&gateway, &[&["replay", "--since", "2h", "--dry-run", "--json"], &token[..]].concat());
    assert_eq!(code, Some(0));
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["matched"], 0);
    assert_eq!(command(&gateway, &[&["dead", "list"], &token[..]].concat()).1, "there are no dead letters\n");
}
