//! Promise: everything has a limit, and what is over it is refused with the status that says so, never cut.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::backend::{Backend, Reply};
use crate::sender::{Post, SECRET, exchange};
use crate::sender::{body, every_provider};
use crate::support::{Gateway, PATIENCE, eventually};

fn source(more: &str, backend: &Backend) -> String {
    format!(
        "[[source]]\nname = \"gh\"\nprovider = \"github\"\nsecrets = [{{ value = \"{SECRET}\" }}]\nto = [\"legacy\"]\n{more}\n\
         [[destination]]\nname = \"legacy\"\nurl = \"{}\"\n",
        backend.url()
    )
}

#[test]
fn an_oversized_body_is_refused_and_nothing_of_it_is_stored() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&source("body_max = \"1000B\"", &backend));
    let sized =
        |size: usize| Post::signed("github", "/webhooks/gh", &format!("d-{size}"), "push", &vec![b'x'; size]);
    assert_eq!(sized(1_001).send(gateway.listen).status, 413);
    assert_eq!(sized(1_001).send_chunked(gateway.listen, 100).status, 413);
    // The answer is readable although the sender is far from done.
    assert_eq!(sized(20 << 20).send(gateway.listen).status, 413);
    assert_eq!(sized(999).send_chunked(gateway.listen, 100).status, 200);
    assert_eq!(sized(1_000).send(gateway.listen).status, 200);
    assert_eq!(backend.eventually_got(2).len(), 2);
}

#[test]
fn statuses_say_what_was_wrong_with_the_request() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    let good = Post::signed("github", "/webhooks/github", "d-1", "push", b"{}");
    let elsewhere = |target: &str| Post { target: target.to_owned(), ..good.clone() };
    for target in
        ["/", "/webhooks/github/", "/webhooks//github", "/Webhooks/github", "/webhooks/%67ithub", "/metrics"]
    {
        let answer = elsewhere(target).send(gateway.listen);
        assert_eq!(answer.status, 404, "{target}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    }
    let answer = Post { method: "GET", ..good.clone() }.send(gateway.listen);
    assert_eq!((answer.status, answer.header("allow")), (405, Some("post")));
    assert!(answer.header("server").is_none());
    let long = good.clone().with("X-Long", vec![b'x'; 32 << 10]);
    assert_eq!(long.send(gateway.listen).status, 431);
    let many = (0..150).fold(good.clone(), |post, n| post.with(&format!("X-{n}"), "x"));
    assert_eq!(many.send(gateway.listen).status, 431);
    for raw in [
        "POST /webhooks/github HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        "POST /webhooks/github HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 0\r\n\r\n",
        "POST http://x/webhooks/github HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        "POST /webhooks/github HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        "nonsense\r\n\r\n",
    ] {
        assert_eq!(
            exchange(gateway.listen, raw.as_bytes()).map(|answer| answer.status),
            Some(400),
            "{raw:?}"
        );
    }
    assert_eq!(good.send(gateway.listen).status, 200);
    assert_eq!(backend.eventually_got(1).len(), 1);
}

#[test]
fn slow_and_silent_senders_are_cut_off() {
    let backend = Backend::accepting();
    let limits = "limits = { head_read = \"1s\", body_read = \"1s\" }\n";
    let gateway = Gateway::start(&format!("{limits}{}", source("", &backend)));
    let open = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(gateway.listen).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    };
    let signed = Post::signed("github", "/webhooks/gh", "d-1", "push", b"{}");
    let signature =
        String::from_utf8(signed.headers.iter().find(|(n, _)| n == "x-hub-signature-256").unwrap().1.clone());
    let half = format!(
        "POST /webhooks/gh HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: {}\r\nContent-Length: 2\r\n\r\n{{",
        signature.unwrap()
    );
    for (mut stream, expected) in [
        (open(b""), ""),
        (open(b"POST /webhooks/gh HTTP/1.1\r\nHost"), ""),
        (open(half.as_bytes()), "HTTP/1.1 408"),
    ] {
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(answer.starts_with(expected), "{answer}");
        if expected.is_empty() {
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
        }
    }
    assert_eq!(signed.send(gateway.listen).status, 200);
}

#[test]
fn a_full_budget_of_bytes_in_flight_is_a_503_with_a_time_to_come_back() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&format!("limits = {{ in_flight = \"1MiB\" }}\n{}", source("", &backend)));
    let signed = Post::signed("github", "/webhooks/gh", "d-1", "push", &vec![b'x'; 600 << 10]);
    // Sends all but the last byte, and holds the place of what it has sent.
    let mut holder = TcpStream::connect(gateway.listen).unwrap();
    let signature = signed.headers.iter().find(|(name, _)| name == "x-hub-signature-256").unwrap();
    let head = format!(
        "POST /webhooks/gh HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: {}\r\nContent-Length: {}\r\n\r\n",
        std::str::from_utf8(&signature.1).unwrap(),
        signed.body.len()
    );
    holder.write_all(head.as_bytes()).unwrap();
    holder.write_all(&signed.body[1..]).unwrap();
    gateway.eventually_metric("countersign_ingest_in_flight_bytes", f64::from(600 << 10));
    let refused = signed.send(gateway.listen);
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    drop(holder);
    gateway.eventually_metric("countersign_ingest_in_flight_bytes", 0.0);
    assert_eq!(signed.send(gateway.listen).status, 200);
}

#[test]
fn rate_and_address_limits_of_a_source() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&source("rate = \"2/h\"", &backend));
    let post = |n: usize| {
        Post::signed("github", "/webhooks/gh", &format!("d-{n}"), "push", format!("{n}").as_bytes())
    };
    let forged = post(0).without("x-hub-signature-256");
    for _ in 0..5 {
        assert_eq!(forged.send(gateway.listen).status, 401, "forged requests use nothing up");
    }
    let statuses: Vec<_> = (0..4).map(|n| post(n).send(gateway.listen)).collect();
    assert_eq!(statuses[0].status, 200);
    let last = &statuses[3];
    assert_eq!(last.status, 429);
    assert!(last.header("retry-after").is_some());

    let gateway = Gateway::start(&source("allow_addresses = [\"192.0.2.0/24\"]", &backend));
    assert_eq!(post(9).send(gateway.listen).status, 403);
}

#[test]
fn connections_of_one_address_are_bounded() {
    let backend = Backend::accepting();
    let limits = "limits = { connections_per_address = 2 }\n";
    let gateway = Gateway::start(&format!("{limits}{}", source("", &backend)));
    let held: Vec<_> = (0..2).map(|_| TcpStream::connect(gateway.listen).unwrap()).collect();
    gateway.eventually_metric("countersign_ingest_connections", 2.0);
    let mut third = TcpStream::connect(gateway.listen).unwrap();
    third.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(matches!(third.read(&mut [0; 1]), Ok(0) | Err(_)));
    gateway.eventually_metric("countersign_ingest_connections_refused_total{reason=\"per_address\"}", 1.0);
    drop(held);
    eventually("a place is free again", || {
        Post::signed("github", "/webhooks/gh", "d-1", "push", b"{}")
            .try_send(gateway.listen)
            .is_some_and(|answer| answer.status == 200)
    });
}

#[test]
fn hanging_backends_change_no_ack_and_no_other_lane() {
    let hanging = Backend::start(|_, _| Reply::Hang);
    let healthy = Backend::accepting();
    let gateway = Gateway::start(&format!(
        "[[source]]\nname = \"slow\"\nprovider = \"hostwares\"\nsecrets = [{{ value = \"{SECRET}\" }}]\nto = [\"hanging\", \"healthy\"]\n\
         [[destination]]\nname = \"hanging\"\nurl = \"{}\"\nconcurrency = 4\n\
         [[destination]]\nname = \"healthy\"\nurl = \"{}\"\n",
        hanging.url(),
        healthy.url()
    ));
    for n in 0..200 {
        let post = Post::signed("hostwares", "/webhooks/slow", "", "x", &body(&format!("d-{n}")));
        assert_eq!(post.send(gateway.listen).status, 200);
    }
    healthy.eventually_got(200);
    gateway.eventually_metric("countersign_forward_pending{destination=\"healthy\"}", 0.0);
    gateway.eventually_metric("countersign_forward_pending{destination=\"hanging\"}", 200.0);
    // No ack took longer than the deadline; a backend's timeout is 30 s.
    let slow = "countersign_ingest_ack_duration_seconds_bucket{source=\"slow\",le=\"2.5\"}";
    assert_eq!(gateway.metric(slow), Some(200.0));
}
