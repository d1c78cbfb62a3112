//! Promise: the admin API says what it does, does it for those who may, and tells who has done what.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::backend::Backend;
use crate::console::{Browser, TOKENS};
use crate::sender::{Post, body, every_provider};
use crate::support::{Gateway, PATIENCE, countersign, eventually};

/// An answer of the admin listener: status, head and body.
fn exchange(gateway: &Gateway, request: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(gateway.admin).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_lowercase(), body.to_owned())
}

fn request(gateway: &Gateway, method: &str, path: &str, headers: &str, body: &str) -> (u16, String, String) {
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

/// Whoever tries tokens is told to come again later, and nothing of the one that it has just tried; probes and metrics, and
/// who is in already, notice nothing.
#[test]
fn who_is_wrong_too_often_has_to_wait_and_takes_nothing_from_others() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&format!("{TOKENS}{}", every_provider(&backend)));
    let as_operator = "Authorization: Bearer a-token-for-operators\r\n";
    let session = Browser::logged_in(&gateway, "a-token-for-operators");
    for _ in 0..30 {
        assert_eq!(request(&gateway, "GET", "/api/v1/status", "", "").0, 401, "no token is no wrong one");
    }
    let mut answers = (0..5_000).map(|n| {
        let wrong = format!("Authorization: Bearer not-a-token-of-ours-{n}\r\n");
        request(&gateway, "GET", "/api/v1/status", &wrong, "")
    });
    let (status, head, text) = answers.find(|answer| answer.0 != 401).unwrap();
    assert!(status == 429 && head.contains("retry-after: 1"), "{status} {head}");
    assert!(head.contains("content-type: application/problem+json"), "{head} {text}");
    eventually("the right one is not told from a wrong one", || {
        request(&gateway, "GET", "/api/v1/status", "Authorization: Bearer wrong\r\n", "");
        request(&gateway, "GET", "/api/v1/status", as_operator, "").0 == 429
    });
    eventually("nor at the login", || {
        request(&gateway, "GET", "/api/v1/status", "Authorization: Bearer wrong\r\n", "");
        let page = Browser::new(&gateway).login("a-token-for-operators");
        page.status == 429 && page.header("retry-after").is_some() && page.text.contains("come again later")
    });
    for path in ["/livez", "/readyz", "/metrics", "/api/v1/openapi.json", "/login", "/assets/console.css"] {
        assert_eq!(request(&gateway, "GET", path, "", "").0, 200, "{path}");
    }
    assert_eq!(session.get("/deliveries").status, 200, "who is logged in sends no token");
    eventually("it is over", || request(&gateway, "GET", "/api/v1/status", as_operator, "").0 == 200);
}

/// A head that never ends held its connection for ever, and there was no bound to their number: files of the process, which
/// deliveries need.
#[test]
fn slow_and_many_connections_are_ended() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    let connect = || {
        let stream = TcpStream::connect(gateway.admin).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let until_closed = |mut stream: TcpStream| {
        let mut answer = Vec::new();
        if let Err(error) = stream.read_to_end(&mut answer) {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "it is open still");
        }
        answer
    };
    let mut held = Vec::new();
    for n in 0..64 {
        let mut stream = connect();
        // Some say nothing, and some never come to the end.
        if n % 2 == 0 {
            stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").unwrap();
        }
        held.push(stream);
    }
    eventually("an address has no more than its share", || {
        let mut more = connect();
        let _ = more.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        held.push(connect());
        until_closed(more).is_empty()
    });
    for stream in held {
        until_closed(stream);
    }
    assert_eq!(request(&gateway, "GET", "/livez", "", "").0, 200);
    let mut large = connect();
    let _ =
        write!(large, "GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Large: {}\r\n\r\n", "x".repeat(1 << 20));
    let mut answer = String::new();
    let _ = large.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

/// They had all places for requests, of the API and of those who were logged in, too.
#[test]
fn slow_logins_take_nothing_from_those_who_are_in() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&format!("{TOKENS}{}", every_provider(&backend)));
    let session = Browser::logged_in(&gateway, "a-token-for-operators");
    let slow: Vec<_> = (0..50)
        .map(|_| {
            let mut stream = TcpStream::connect(gateway.admin).unwrap();
            let head = "POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n\
                        Content-Length: 100\r\n\r\ncsrf=";
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    eventually("there is no place for one more", || request(&gateway, "GET", "/login", "", "").0 == 503);
    let as_operator = "Authorization: Bearer a-token-for-operators\r\n";
    assert_eq!(request(&gateway, "GET", "/api/v1/status", as_operator, "").0, 200);
    assert_eq!(session.get("/deliveries").status, 200);
    drop(slow);
    eventually("there is", || request(&gateway, "GET", "/login", "", "").0 == 200);
}

/// A body is in memory for as long as it is being read: fifty readers that took their time cost 600 MiB.
#[test]
fn bodies_are_read_by_a_few_at_a_time() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    // More than the kernel keeps between two sockets.
    let large = format!("[\"{}\"]", "x".repeat(16 << 20));
    let sent = Post::signed("github", "/webhooks/github", "large", "push", large.as_bytes());
    assert_eq!(sent.send(gateway.listen).status, 200);
    let id = get(&gateway, "deliveries")["deliveries"][0]["id"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/deliveries/{id}/body");
    let slow: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = TcpStream::connect(gateway.admin).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", gateway.admin).unwrap();
            // The head has come: the rest waits.
            stream.read_exact(&mut [0; 12]).unwrap();
            stream
        })
        .collect();
    for path in [&*path, &path.replace("/api/v1", "")] {
        let (status, head, _) = request(&gateway, "GET", path, "", "");
        assert!(status == 429 && head.contains("retry-after: 1"), "{path}: {head}");
    }
    drop(slow);
    let mut whole = (0, String::new(), String::new());
    eventually("a place is free", || {
        whole = request(&gateway, "GET", &path, "", "");
        whole.0 == 200
    });
    assert!(whole.1.contains(&format!("content-length: {}", large.len())) && whole.2 == large, "{}", whole.1);
}

/// Of names, addresses and origins that a page of another site could bring a browser to send, and of those that it could not.
#[test]
fn without_tokens_names_and_origins_are_taken_by_the_letter() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    let port = gateway.admin.port();
    let ask = |method: &str, target: &str, headers: &str| {
        exchange(
            &gateway,
            &format!("{method} {target} HTTP/1.1\r\n{headers}Connection: close\r\nContent-Length: 0\r\n\r\n"),
        )
        .0
    };
    for host in ["LocalHost", "127.0.0.1", "127.8.9.10:1", "[::1]:8081", "[::ffff:127.0.0.1]"] {
        assert_eq!(ask("GET", "/api/v1/status", &format!("Host: {host}\r\n")), 200, "{host}");
    }
    for host in [
        "localhost.evil.example",
        "evil.example:8081",
        "localhost.",
        "127.0.0.1.evil.example",
        "127.0.0.1.",
        "2130706433",
        "0x7f.1",
        "0.0.0.0",
        "[::]",
        "[::ffff:10.0.0.1]",
        "localhost, evil.example",
        "localhost:8081:8081",
        "/localhost",
    ] {
        let status = ask("GET", "/api/v1/status", &format!("Host: {host}\r\n"));
        assert!(status == 403 || status == 400, "{host}: {status}");
    }
    let foreign = "Host: evil.example\r\n";
    for target in ["http://localhost/api/v1/status", "http://127.0.0.1/", "/", "/login", "/live"] {
        assert_eq!(ask("GET", target, foreign), 403, "{target}");
    }
    let pause = "/api/v1/destinations/legacy/pause";
    for origin in [
        "null",
        "",
        "http://evil.example",
        "https://localhost",
        "http://localhost:1",
        "http://localhost",
        "http://127.0.0.1",
        "HTTP://localhost",
        "file://",
        "moz-extension://localhost",
    ] {
        let headers = format!("Host: localhost:{port}\r\nOrigin: {origin}\r\n");
        assert_eq!(ask("POST", pause, &headers), 403, "{origin}");
    }
    // Whom a proxy on this machine lets in does not sit here.
    for target in ["/api/v1/status", "/", "/login"] {
        assert_eq!(ask("GET", target, "Host: localhost\r\nX-Forwarded-For: 10.0.0.1\r\n"), 403, "{target}");
    }
    let own = format!("Host: localhost:{port}\r\nOrigin: http://localhost:{port}\r\n");
    assert_eq!(ask("POST", pause, &own), 200);
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
