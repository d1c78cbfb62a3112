//! Whatever senders put into a request, the log stays readable by machines, and a flood does not fill it.

use std::net::SocketAddr;

use crate::backend::Backend;
use crate::sender::{Post, body, every_provider, exchange};
use crate::soak;
use crate::support::Gateway;

/// Texts that break logs: quotes, line ends, control and escape characters, what is no UTF-8, other directions.
const HOSTILE: [&[u8]; 8] = [
    b"\"}\r\n{\"level\":\"ERROR\"",
    b"\x1b[2J\x1b]0;owned\x07",
    b"\xff\xfe\xc0\x80",
    b"\\u0000\\",
    b"\x00\x01\x7f",
    "\u{202e}\u{2028}\u{feff}".as_bytes(),
    b"${jndi:ldap://127.0.0.1/a}",
    b"%0d%0a{}",
];

/// Sends `bytes` as they are; what comes back does not matter here.
fn send(to: SocketAddr, parts: &[&[u8]]) {
    exchange(to, &parts.concat());
}

fn send_hostile(gateway: &Gateway) {
    let to = gateway.listen;
    for text in HOSTILE {
        let end = b"\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
        send(to, &[b"POST /webhooks/", text, b" HTTP/1.1", end]);
        send(to, &[text, b" /webhooks/github HTTP/1.1", end]);
        send(to, &[b"POST /webhooks/github HTTP/1.1\r\nX-Hub-Signature-256: ", text, end]);
        send(to, &[b"POST /webhooks/github HTTP/1.1\r\n", text, b": x", end]);
        send(to, &[b"POST /webhooks/github HTTP/1.1\r\nHost: ", text, b"\r\nContent-Length: 0\r\n\r\n"]);
        let visible: Vec<u8> = text.iter().copied().filter(|byte| *byte >= 0x20 && *byte != 0x7f).collect();
        let event = String::from_utf8_lossy(&visible).into_owned();
        Post::signed("hostwares", "/webhooks/hostwares", "d-1", &event, &body("d-1")).try_send(to);
    }
}

#[test]
fn every_line_of_the_log_is_json_and_no_text_of_a_refused_sender_is_in_it() {
    let backend = Backend::accepting();
    let gateway = Gateway::start_with(&every_provider(&backend), |command| {
        command.env("RUST_LOG", "countersign=trace,hyper=info");
    });
    send_hostile(&gateway);
    let log = gateway.log();
    let lines: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line:?}"))).collect();
    let refused = lines.iter().filter(|line| line["message"] == "request refused").count();
    println!("{} lines, {refused} of them refusals", lines.len());
    // One of a malformed head and one of a signature: more of the same are only counted.
    assert!(refused >= 2, "{log}");
    for trace in ["\u{1b}", "u001b", "owned", "jndi", "\u{202e}"] {
        let found = lines.iter().find(|line| line.to_string().contains(trace));
        assert!(found.is_none(), "{found:?}");
    }
}

#[test]
fn a_flood_of_refusals_costs_a_line_a_second_and_each_is_counted() {
    let backend = Backend::accepting();
    let gateway = Gateway::start_with(&every_provider(&backend), |command| {
        command.env("RUST_LOG", "info");
    });
    let count = soak(300, 20_000);
    let began = tokio::time::Instant::now();
    for n in 0..count {
        send(
            gateway.listen,
            &[format!("POST /nowhere/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").as_bytes()],
        );
    }
    let most = began.elapsed().as_secs() as usize + 2;
    let lines = gateway.log().lines().filter(|line| line.contains("request refused")).count();
    let suppressed =
        gateway.metric("countersign_ingest_rejections_unlogged_total{source=\"unmatched\"}").unwrap();
    println!("{count} refusals, {lines} lines");
    assert!((1..=most).contains(&lines), "{lines} lines, at most {most}");
    assert_eq!(suppressed as usize + lines, count);
}
