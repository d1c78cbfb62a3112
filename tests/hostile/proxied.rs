//! Who the sender is: behind trusted proxies that say so, by a PROXY header or `X-Forwarded-For`, and beside them. On
//! loopback every address of 127.0.0.0/8 is a peer of its own.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use crate::backend::Backend;
use crate::sender::{Post, SECRET};
use crate::support::{Gateway, PATIENCE};
use crate::tls::{NAME, Secure};

const PROXY: [u8; 4] = [127, 0, 0, 2];
const STRANGER: [u8; 4] = [127, 0, 0, 3];
const TRUSTED: &str = "listen.trusted_proxies = [\"127.0.0.2/32\", \"10.0.0.0/8\"]\n";

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// A source of 198.51.100.0/24 and one of everybody.
fn start(sections: &str, backend: &Backend) -> Gateway {
    let source = |name: &str, rules: &str| {
        format!(
            "[[source]]\nname = \"{name}\"\nprovider = \"github\"\nsecrets = [{{ value = \"{SECRET}\" }}]\nto = [\"legacy\"]\n{rules}"
        )
    };
    Gateway::start(&format!(
        "{TRUSTED}{sections}{}{}[[destination]]\nname = \"legacy\"\nurl = \"{}\"\n",
        source("listed", "allow_addresses = [\"198.51.100.0/24\"]\n"),
        source("open", ""),
        backend.url()
    ))
}

fn dial(gateway: &Gateway, from: [u8; 4]) -> TcpStream {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::from(from), 0)).unwrap();
    connect(&socket, &gateway.listen).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// All that comes back; nothing when the connection is reset.
fn rest(mut stream: impl std::io::Read) -> String {
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// What comes back for `bytes` in one piece, by its first line.
fn ask(gateway: &Gateway, from: [u8; 4], bytes: &[u8]) -> String {
    let mut stream = dial(gateway, from);
    stream.write_all(bytes).unwrap();
    rest(stream).lines().next().unwrap_or_default().to_owned()
}

/// A delivery, and what proxies on the way say about its sender.
fn post(source: &str, id: &str, forwarded_for: &str) -> Vec<u8> {
    let post = Post::signed("github", &format!("/webhooks/{source}"), id, "push", id.as_bytes());
    let post = if forwarded_for.is_empty() { post } else { post.with("X-Forwarded-For", forwarded_for) };
    post.with("Connection", "close").bytes()
}

fn v1(source: &str) -> Vec<u8> {
    let family = if source.contains(':') { "TCP6" } else { "TCP4" };
    let destination = if source.contains(':') { "::1" } else { "127.0.0.1" };
    format!("PROXY {family} {source} {destination} 56324 443\r\n").into_bytes()
}

fn v2(source: [u8; 4], tlvs: &[u8]) -> Vec<u8> {
    let length = u16::try_from(12 + tlvs.len()).unwrap().to_be_bytes();
    [SIGNATURE, b"\x21\x11", &length, &source, &[127, 0, 0, 1, 0xdc, 4, 1, 187], tlvs].concat()
}

#[test]
fn the_sender_is_whom_trusted_proxies_name_and_nobody_else() {
    let backend = Backend::accepting();
    let gateway = start("", &backend);
    let mapped = [
        SIGNATURE,
        b"\x21\x21\x00\x24",
        &Ipv4Addr::new(198, 51, 100, 3).to_ipv6_mapped().octets(),
        &[0; 15],
        &[1, 0xdc, 4, 1, 187],
    ]
    .concat();
    let tlvs = [&[4, 0x0b, 0xb8][..], &[0; 3_000]].concat();
    let listed = [198, 51, 100, 1];
    // Who connects, with which header, and what X-Forwarded-For says; the sender, where it is accepted as listed.
    let table = [
        (PROXY, v1("198.51.100.1"), "", Some("198.51.100.1")),
        (PROXY, v2(listed, &[]), "", Some("198.51.100.1")),
        (PROXY, v2(listed, &tlvs), "", Some("198.51.100.1")),
        (PROXY, v1("::ffff:198.51.100.2"), "", Some("198.51.100.2")),
        (PROXY, mapped, "", Some("198.51.100.3")),
        (PROXY, v1("203.0.113.1"), "", None),
        (PROXY, v2([203, 0, 113, 1], &[]), "", None),
        (PROXY, v1("2001:db8::1"), "", None),
        // Whom the header names is a stranger, and so is what he writes himself …
        (PROXY, v1("203.0.113.1"), "198.51.100.1", None),
        (PROXY, v1("198.51.100.1"), "203.0.113.1", Some("198.51.100.1")),
        // … but for another proxy of ours.
        (PROXY, v1("10.0.0.1"), "198.51.100.4", Some("198.51.100.4")),
        (PROXY, v1("10.0.0.1"), "203.0.113.1, 198.51.100.4, 10.0.0.2", Some("198.51.100.4")),
        (PROXY, v1("10.0.0.1"), "198.51.100.4, 203.0.113.1", None),
        // The proxy's own connection.
        (PROXY, b"PROXY UNKNOWN\r\n".to_vec(), "", None),
        (PROXY, b"PROXY UNKNOWN\r\n".to_vec(), "198.51.100.5", Some("198.51.100.5")),
        (PROXY, LOCAL.to_vec(), "", None),
        (PROXY, LOCAL.to_vec(), "198.51.100.5", Some("198.51.100.5")),
        (PROXY, Vec::new(), "", None),
        (PROXY, Vec::new(), "198.51.100.6", Some("198.51.100.6")),
        (PROXY, Vec::new(), "198.51.100.6, 203.0.113.1", None),
        (STRANGER, Vec::new(), "198.51.100.6", None),
    ];
    let mut accepted = 0;
    for (number, (from, header, forwarded_for, sender)) in table.into_iter().enumerate() {
        let what = format!("{} from {from:?}, {forwarded_for}", header.escape_ascii());
        let id = format!("d-{number}");
        let answer = ask(&gateway, from, &[header, post("listed", &id, forwarded_for)].concat());
        let Some(sender) = sender else {
            assert_eq!(answer, "HTTP/1.1 403 Forbidden", "{what}");
            continue;
        };
        assert_eq!(answer, "HTTP/1.1 200 OK", "{what}");
        accepted += 1;
        let got = backend.eventually_got(accepted);
        let got = got.iter().find(|got| got.body == id.as_bytes()).unwrap();
        let told = got.header("forwarded").unwrap();
        assert!(told.split(';').any(|pair| pair == format!("for={sender}")), "{what}: {told}");
    }
    assert_eq!(backend.got().len(), accepted);
}

#[test]
fn a_proxy_header_of_a_stranger_or_a_second_one_is_a_malformed_request() {
    let backend = Backend::accepting();
    let gateway = start("", &backend);
    let listed = [198, 51, 100, 1];
    for (from, begin) in [
        (STRANGER, v1("198.51.100.1")),
        (STRANGER, v2(listed, &[])),
        (STRANGER, LOCAL.to_vec()),
        // The proxy named a stranger, and here he speaks.
        (PROXY, [v1("203.0.113.1"), v1("198.51.100.1")].concat()),
        (PROXY, [v1("203.0.113.1"), v2(listed, &[])].concat()),
        (PROXY, [v2([10, 0, 0, 1], &[]), v1("198.51.100.1")].concat()),
        (PROXY, [LOCAL, &v1("198.51.100.1")].concat()),
        // Behind a request.
        (PROXY, [&b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n"[..], &v1("198.51.100.1")].concat()),
    ] {
        for source in ["listed", "open"] {
            let mut stream = dial(&gateway, from);
            stream.write_all(&[&begin[..], &post(source, "d-1", "")].concat()).unwrap();
            let answer = rest(stream);
            let last = &answer[answer.rfind("HTTP/1.1").unwrap()..];
            assert!(last.starts_with("HTTP/1.1 400 "), "{} from {from:?}: {answer}", begin.escape_ascii());
        }
    }
    // A method that is only called like the protocol, as any stranger may send it through a proxy of requests.
    let method = b"PROXY /webhooks/open HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_eq!(ask(&gateway, PROXY, method), "HTTP/1.1 405 Method Not Allowed");
    assert_eq!(ask(&gateway, PROXY, &post("open", "d-2", "")), "HTTP/1.1 200 OK");
    assert_eq!(backend.eventually_got(1).len(), 1);
}

#[test]
fn a_proxy_header_that_is_malformed_or_does_not_end_closes_the_connection() {
    let backend = Backend::accepting();
    let gateway = start("limits = { head_read = \"1s\" }\n", &backend);
    let refused = |reason: &str| {
        gateway
            .metric(&format!("countersign_ingest_connections_refused_total{{reason=\"{reason}\"}}"))
            .unwrap()
    };
    let request = post("open", "d-1", "");
    let malformed = [
        b"PROXY TCP4 198.51.100.1 127.0.0.1 056324 443\r\n".to_vec(),
        b"PROXY TCP4 198.51.100.1 127.0.0.1 56324 443\n".to_vec(),
        b"PROXY tcp4 198.51.100.1 127.0.0.1 56324 443\r\n".to_vec(),
        [&b"PROXY UNKNOWN "[..], &[b'x'; 200], b"\r\n"].concat(),
        [SIGNATURE, b"\x21\x11\xff\xff"].concat(),
        [SIGNATURE, b"\x22\x11\0\0"].concat(),
        v2([198, 51, 100, 1], &[4, 0xff, 0xff, 0]),
    ];
    for header in &malformed {
        let answer = ask(&gateway, PROXY, &[&header[..], &request].concat());
        assert_eq!(answer, "", "{}", header.escape_ascii());
    }
    // One that ends early, with the connection.
    let mut early = dial(&gateway, PROXY);
    early.write_all(&v1("198.51.100.1")[..20]).unwrap();
    early.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(rest(early), "");
    assert_eq!(refused("proxy_header_malformed"), (malformed.len() + 1) as f64);

    // Those that stop half-way, and one that drips for ever.
    let halves = [v1("198.51.100.1"), v2([198, 51, 100, 1], &[])].map(|header| {
        let mut stream = dial(&gateway, PROXY);
        stream.write_all(&header[..header.len() - 1]).unwrap();
        stream
    });
    let mut dripping = dial(&gateway, PROXY);
    let mut drip = dripping.try_clone().unwrap();
    let dripper = thread::spawn(move || {
        drip.write_all(b"PROXY UNKNOWN ").unwrap();
        while drip.write_all(b"x").is_ok() {
            thread::sleep(Duration::from_millis(100));
        }
    });
    assert!(halves.into_iter().all(|stream| rest(stream).is_empty()));
    assert_eq!(rest(&mut dripping), "");
    drop(dripping);
    dripper.join().unwrap();
    assert_eq!(refused("proxy_header_too_slow"), 3.0);
    // Silence is no header.
    assert_eq!(rest(dial(&gateway, PROXY)), "");
    assert_eq!(
        refused("proxy_header_malformed") + refused("proxy_header_too_slow"),
        (malformed.len() + 4) as f64
    );
    assert!(
        gateway.log().contains("\"connection refused\",\"peer\":\"127.0.0.2\",\"reason\":\"proxy_header_")
    );

    // A good one, byte by byte, in time.
    let mut slow = dial(&gateway, PROXY);
    slow.set_nodelay(true).unwrap();
    for byte in v1("198.51.100.1") {
        slow.write_all(&[byte]).unwrap();
    }
    slow.write_all(&post("listed", "d-2", "")).unwrap();
    assert!(rest(slow).starts_with("HTTP/1.1 200 OK\r\n"));
    assert_eq!(backend.eventually_got(1).len(), 1);
}

#[test]
fn connections_behind_a_proxy_count_for_whom_it_names() {
    let backend = Backend::accepting();
    let gateway = start("limits = { connections_per_address = 2, head_read = \"60s\" }\n", &backend);
    let open = |header: &[u8]| {
        let mut stream = dial(&gateway, PROXY);
        stream.write_all(header).unwrap();
        stream
    };
    let refused = "countersign_ingest_connections_refused_total{reason=\"per_address\"}";
    let flooding = v1("203.0.113.1");
    let held = [(); 2].map(|()| {
        let mut stream = open(&[&flooding[..], b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n"].concat());
        // Answered, so counted for whom the header names.
        stream.read_exact(&mut [0; 12]).unwrap();
        stream
    });
    assert_eq!(rest(open(&flooding)), "");
    assert_eq!(gateway.metric(refused), Some(1.0));
    // Neighbours behind the same proxy, the proxy itself, and another of ours behind it.
    assert_eq!(
        ask(&gateway, PROXY, &[v1("203.0.113.2"), post("open", "d-1", "")].concat()),
        "HTTP/1.1 200 OK"
    );
    let own: Vec<_> = (0..4).flat_map(|_| [open(LOCAL), open(b""), open(&v1("10.0.0.1"))]).collect();
    gateway.eventually_metric("countersign_ingest_connections", 14.0);
    drop((held, own));
    gateway.eventually_metric("countersign_ingest_connections", 0.0);
    assert_eq!(ask(&gateway, PROXY, &[flooding, post("open", "d-2", "")].concat()), "HTTP/1.1 200 OK");
    assert_eq!(backend.eventually_got(2).len(), 2);
}

#[test]
fn a_proxy_header_precedes_tls() {
    let secure = Secure::start(TRUSTED);
    let (gateway, config) = (&secure.gateway, &secure.client);
    let mut config = (**config).clone();
    config.alpn_protocols.clear();
    let config = Arc::new(config);
    let converse = |from: [u8; 4], header: &[u8], id: &str| {
        let name = ServerName::try_from(NAME).unwrap();
        let mut connection = ClientConnection::new(Arc::clone(&config), name).unwrap();
        let mut stream = dial(gateway, from);
        // Header and the beginning of the handshake in one piece.
        let mut first = header.to_vec();
        connection.write_tls(&mut first).unwrap();
        stream.write_all(&first).unwrap();
        let mut stream = StreamOwned::new(connection, stream);
        stream.write_all(&post("github", id, "")).ok()?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer).into_owned())
    };
    let tlvs = [&[4, 0x0b, 0xb8][..], &[0; 3_000]].concat();
    for (id, header) in [
        ("d-1", v1("198.51.100.1")),
        ("d-2", v2([198, 51, 100, 1], &[])),
        ("d-3", v2([198, 51, 100, 1], &tlvs)),
    ] {
        assert_eq!(converse(PROXY, &header, id).as_deref(), Some("HTTP/1.1 200"));
    }
    for got in secure.backend.eventually_got(3) {
        let told = got.header("forwarded").unwrap();
        assert!(told.contains("for=198.51.100.1;") && told.ends_with("proto=https"), "{told}");
    }
    assert_eq!(converse(PROXY, b"", "d-4").as_deref(), Some("HTTP/1.1 200"));
    assert_eq!(converse(STRANGER, b"", "d-5").as_deref(), Some("HTTP/1.1 200"));
    for (from, header) in [
        (STRANGER, v1("198.51.100.1")),
        (STRANGER, v2([198, 51, 100, 1], &[])),
        (PROXY, [v1("203.0.113.1"), v1("198.51.100.1")].concat()),
        (PROXY, b"PROXY TCP4 198.51.100.1\r\n".to_vec()),
    ] {
        assert_eq!(converse(from, &header, "d-6"), None, "{} from {from:?}", header.escape_ascii());
    }
    assert_eq!(secure.backend.eventually_got(5).len(), 5);
}
