//! Promise: on the admin listener nobody takes from others what there is not enough of, by guessing, by being slow or by being
//! many; and nobody is taken for who sits on this machine.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;

use crate::admin::{exchange, get, request};
use crate::backend::Backend;
use crate::console::{Browser, TOKENS};
use crate::sender::{Post, every_provider};
use crate::support::{Gateway, PATIENCE, eventually};

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
