//! Judges a request by its head alone, and decides which of its headers go on to the backend.

use std::net::IpAddr;

use http::header::{self, CONTENT_LENGTH, HOST, HeaderName, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderValue, Method, Uri, Version};
use ipnet::IpNet;

use super::answer::Rejection;
use super::{Peer, wire};
use crate::config::Source;
use crate::delivery::{begins_to_cgi, is_same_to_cgi};
use crate::identity::Identity;

/// RFC 9110 §7.6.1 and what browsers and proxies add to it. Only this fixed list: a sender that nominates
/// `webhook-signature` in `Connection` changes nothing. The length is the transport's, set anew for the backend.
const HOP_BY_HOP: [HeaderName; 12] = [
    header::CONNECTION,
    CONTENT_LENGTH,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
];

/// What only a trusted proxy may say about the sender; and anything that begins with `x-forwarded-`.
const X_FORWARDED: &str = "x-forwarded-";
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: &str = "x-real-ip";

/// What neither [`wire`] (over HTTP/1) nor hyper (over HTTP/2) has judged.
pub(super) fn check(head: &Parts, header_bytes_max: usize) -> Result<(), Rejection> {
    if head.version == Version::HTTP_2 { check_http2(head, header_bytes_max) } else { Ok(()) }
}

/// One authority, an origin-form target, one length at most, no blanks around values (RFC 9113 §8.2.1). That names and values are well-formed, and nothing of
/// HTTP/1's framing is there, is hyper's to judge.
fn check_http2(head: &Parts, header_bytes_max: usize) -> Result<(), Rejection> {
    // As HTTP/1 would have it: a colon, a space and a line's end.
    let bytes: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if head.headers.len() > wire::LINES_MAX || bytes > header_bytes_max {
        return Err(Rejection::HeadTooLarge);
    }
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = hosts.next().map(HeaderValue::as_bytes);
    let authority = head.uri.authority().map(|authority| authority.as_str().as_bytes());
    let has_blanks = |value: &HeaderValue| value.as_bytes() != value.as_bytes().trim_ascii();
    let well_formed = hosts.next().is_none()
        && head.uri.scheme().is_none_or(|scheme| *scheme == Scheme::HTTPS || *scheme == Scheme::HTTP)
        && !head.headers.values().any(has_blanks)
        && authority.or(host).is_some_and(wire::is_authority)
        && host.is_none_or(|host| authority.is_none_or(|authority| host == authority))
        && head.uri.path_and_query().is_some_and(|target| wire::is_origin_form(target.as_str().as_bytes()))
        && head.headers.get_all(CONTENT_LENGTH).iter().count() <= 1
        && head.method != Method::CONNECT;
    if well_formed { Ok(()) } else { Err(Rejection::MalformedHead) }
}

/// Whether the source takes this method from this address and the holder of this certificate.
pub(super) fn allow(
    method: &Method,
    sender: IpAddr,
    identity: Option<&Identity>,
    source: &Source,
) -> Result<(), Rejection> {
    if !source.methods.contains(method) {
        return Err(Rejection::MethodNotAllowed(source.allowed_methods()));
    }
    allow_sender(sender, identity, source)
}

/// Whether the source takes anything from this address and the holder of this certificate.
pub(super) fn allow_sender(
    sender: IpAddr,
    identity: Option<&Identity>,
    source: &Source,
) -> Result<(), Rejection> {
    let (addresses, subjects) = (&source.allow_addresses, &source.allow_subjects);
    if !addresses.is_empty() && !addresses.iter().any(|network| network.contains(&sender)) {
        return Err(Rejection::AddressNotAllowed);
    }
    let allowed = |identity| subjects.iter().any(|rule| rule.matches(identity));
    if !subjects.is_empty() && !identity.is_some_and(allowed) {
        return Err(Rejection::CertificateNotAllowed);
    }
    Ok(())
}

/// Path and query as they were sent.
pub(super) fn target(uri: &Uri) -> String {
    uri.path_and_query().map_or("/", |target| target.as_str()).to_owned()
}

/// The sender's address: the peer's, or, behind trusted proxies, the last address that none of them vouches for
/// (read from right to left, since a stranger can write anything at the left end).
///
/// A proxy writes `Forwarded` or `X-Forwarded-For` and passes the other one on as a stranger sent it. When both are
/// there and tell different senders, neither is believed.
pub(super) fn sender(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> IpAddr {
    if !is_trusted(peer, trusted) {
        return peer;
    }
    let one = headers.contains_key(header::FORWARDED).then(|| {
        nearest(forwarded(headers).map(|element| address(parameter(element?, "for")?)), peer, trusted)
    });
    let other = headers
        .contains_key(X_FORWARDED_FOR)
        .then(|| nearest(list(headers, &X_FORWARDED_FOR).rev().map(|hop| address(hop?)), peer, trusted));
    match (one, other) {
        (Some(one), Some(other)) if one != other => peer,
        (Some(sender), _) | (None, Some(sender)) => sender,
        (None, None) => peer,
    }
}

/// Of hops, the last one first.
fn nearest(hops: impl Iterator<Item = Option<IpAddr>>, peer: IpAddr, trusted: &[IpNet]) -> IpAddr {
    let mut nearest = peer;
    for hop in hops {
        // What cannot be read was not written by a proxy of ours: the hop before it is the last that is known.
        let Some(hop) = hop else { break };
        nearest = hop;
        if !is_trusted(hop, trusted) {
            break;
        }
    }
    nearest
}

pub(super) fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    let address = address.to_canonical();
    trusted.iter().any(|net| net.contains(&address))
}

/// The scheme that the sender used: the connection's, or what a trusted proxy nearest to us says.
fn proto(headers: &HeaderMap, peer: &Peer, trusted: &[IpNet]) -> HeaderValue {
    let told = || {
        let element = forwarded(headers).next().flatten();
        let listed = || list(headers, &X_FORWARDED_PROTO).next_back().flatten();
        element.and_then(|element| parameter(element, "proto")).or_else(listed)
    };
    let told = if is_trusted(peer.address, trusted) { told() } else { None };
    let is_https = match told.map(str::to_ascii_lowercase).as_deref() {
        Some("https") => true,
        Some("http") => false,
        _ => peer.secure,
    };
    HeaderValue::from_static(if is_https { "proto=https" } else { "proto=http" })
}

/// The headers that go on: without hop-by-hop ones, without those in which only the gateway (`Countersign-*`) or a
/// trusted proxy may speak, and without twins of either. What is left of `Forwarded` is the scheme, which nothing else
/// tells; dispatch tells the rest.
pub(super) fn cleaned(
    mut headers: HeaderMap,
    authority: Option<&Authority>,
    peer: &Peer,
    trusted: &[IpNet],
) -> HeaderMap {
    let proto = proto(&headers, peer, trusted);
    let stranger = !is_trusted(peer.address, trusted);
    let removed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            begins_to_cgi(name, "countersign-")
                || HOP_BY_HOP.iter().any(|taken| is_same_to_cgi(name, taken.as_str()))
                || (stranger && (begins_to_cgi(name, X_FORWARDED) || is_same_to_cgi(name, X_REAL_IP)))
        })
        .cloned()
        .collect();
    for name in removed {
        headers.remove(name);
    }
    // RFC 9113 §8.3.1: what is `:authority` on HTTP/2 is `Host` everywhere else.
    if let Some(Ok(host)) = authority.map(|authority| HeaderValue::from_str(authority.as_str())) {
        headers.insert(HOST, host);
    }
    headers.insert(header::FORWARDED, proto);
    headers
}

/// The elements of all lines of a list header; `None` for one that is not text.
fn list<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl DoubleEndedIterator<Item = Option<&'h str>> {
    let lines = headers.get_all(name).iter();
    let elements = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    elements.map(|element| std::str::from_utf8(element).ok().map(str::trim))
}

/// The elements of `Forwarded` (RFC 7239 §4), the last one first; `None` for one that is not text. They are told apart from
/// the right: what a proxy appended is well-formed, also where it quotes what a stranger chose, as the host, and nothing
/// to the left of it can change where it begins.
fn forwarded(headers: &HeaderMap) -> impl Iterator<Item = Option<&str>> {
    let lines = headers.get_all(header::FORWARDED).iter().rev();
    let elements = lines.flat_map(|line| {
        let mut rest = Some(line.as_bytes());
        std::iter::from_fn(move || {
            let (before, last) = split_last(rest?);
            rest = before;
            Some(last)
        })
    });
    elements.map(|element| std::str::from_utf8(element).ok().map(str::trim))
}

/// What stands before the last comma that is not within quotes, and what stands after it.
fn split_last(line: &[u8]) -> (Option<&[u8]>, &[u8]) {
    let is_escaped = |at: usize| line[..at].iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1;
    let mut quoted = false;
    for (at, byte) in line.iter().enumerate().rev() {
        match byte {
            b'"' if !quoted || !is_escaped(at) => quoted = !quoted,
            b',' if !quoted => return (Some(&line[..at]), &line[at + 1..]),
            _ => {}
        }
    }
    (None, line)
}

/// A parameter of an element of `Forwarded`, without its quotes: `for=192.0.2.60;proto=http`, an IPv6 address quoted and in
/// brackets. `None` also when the element is malformed, or has it twice.
fn parameter<'e>(element: &'e str, wanted: &str) -> Option<&'e str> {
    let mut found = None;
    let mut rest = element;
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(text) => {
                let mut escaped = false;
                let end = text.bytes().position(|byte| {
                    let ends = byte == b'"' && !escaped;
                    escaped = byte == b'\\' && !escaped;
                    ends
                })?;
                (&text[..end], &text[end + 1..])
            }
            None => after.split_at(after.find(';').unwrap_or(after.len())),
        };
        if !wire::is_token(name.as_bytes()) || !(after.is_empty() || after.starts_with(';')) {
            return None;
        }
        if name.eq_ignore_ascii_case(wanted) && found.replace(value).is_some() {
            return None;
        }
        rest = after.trim_start_matches([';', ' ']);
    }
    found
}

fn address(text: &str) -> Option<IpAddr> {
    let bare =
        text.strip_prefix('[').and_then(|rest| rest.split_once(']')).map_or(text, |(inside, _)| inside);
    let address = bare.parse().ok().or_else(|| Some(text.parse::<std::net::SocketAddr>().ok()?.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(target: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method("POST").uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn heads_of_http2() {
        let check = |target: &str, headers: &[(&str, &str)], expected: bool| {
            let mut parts = parts(target, headers);
            parts.version = Version::HTTP_2;
            assert_eq!(check(&parts, 200).is_ok(), expected, "{target} {headers:?}");
        };
        check("https://x/a?b=%2e", &[("content-length", "1")], true);
        check("https://x:443/a", &[("host", "x:443")], true);
        check("/a", &[("host", "x")], true);
        check("/a", &[], false);
        check("https://x/a", &[("host", "y")], false);
        check("https://x/a", &[("host", "x"), ("host", "x")], false);
        check("https://u@x/a", &[], false);
        check("https://x/a", &[("content-length", "1"), ("content-length", "1")], false);
        check("https://x/{a}", &[], false);
        check("ftp://x/a", &[], false);
        check("https://x/a", &[("y", " z")], false);
        check("https://x/a", &[("y", "z\t")], false);
        check("https://x/a", &[("y", &"z".repeat(195))], true);
        check("https://x/a", &[("y", &"z".repeat(196))], false);
        let lines = |count: usize| {
            let mut parts = parts("https://x/a", &vec![("y", "z"); count]);
            parts.version = Version::HTTP_2;
            super::check(&parts, 9_999)
        };
        assert_eq!(lines(wire::LINES_MAX), Ok(()));
        assert_eq!(lines(wire::LINES_MAX + 1), Err(Rejection::HeadTooLarge));
    }

    #[test]
    fn only_trusted_proxies_are_believed_and_from_the_right() {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let check = |peer: &str, headers: &[(&str, &str)], expected: &str| {
            let sender = sender(&parts("/", headers).headers, peer.parse().unwrap(), &trusted);
            assert_eq!(sender, expected.parse::<IpAddr>().unwrap(), "{peer} {headers:?}");
        };
        check("192.0.2.1", &[("x-forwarded-for", "198.51.100.1")], "192.0.2.1");
        check("10.0.0.1", &[("x-forwarded-for", "198.51.100.1")], "198.51.100.1");
        check("10.0.0.1", &[("x-forwarded-for", "203.0.113.9, 198.51.100.1, 10.0.0.2")], "198.51.100.1");
        check("10.0.0.1", &[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2")], "2.2.2.2");
        check("10.0.0.1", &[("x-forwarded-for", "junk, 10.0.0.2")], "10.0.0.2");
        check("10.0.0.1", &[("forwarded", "for=\"[2001:db8::1]:4711\";proto=https")], "2001:db8::1");
        check("10.0.0.1", &[("forwarded", "for=192.0.2.7:80, for=10.1.1.1")], "192.0.2.7");
        check("::ffff:10.0.0.1", &[("x-forwarded-for", "198.51.100.1")], "198.51.100.1");
        check("10.0.0.1", &[("x-forwarded-for", "::ffff:198.51.100.1")], "198.51.100.1");
        check("10.0.0.1", &[("x-forwarded-for", "203.0.113.9, ::ffff:10.0.0.2")], "203.0.113.9");
        check("10.0.0.1", &[], "10.0.0.1");
        // A stranger's whole list, whatever it looks like, stays to the left of what the proxy appends.
        for forged in
            ["10.0.0.2", "198.51.100.1, 10.0.0.2, 10.0.0.3", "10.0.0.2,", "\"", "for=\"10.0.0.2", "[::1"]
        {
            check("10.0.0.1", &[("x-forwarded-for", &format!("{forged}, 203.0.113.9"))], "203.0.113.9");
            check(
                "10.0.0.1",
                &[("x-forwarded-for", forged), ("x-forwarded-for", "203.0.113.9")],
                "203.0.113.9",
            );
            check("10.0.0.1", &[("forwarded", &format!("{forged}, for=203.0.113.9"))], "203.0.113.9");
            check("10.0.0.1", &[("forwarded", forged), ("forwarded", "for=203.0.113.9")], "203.0.113.9");
            check("192.0.2.1", &[("x-forwarded-for", forged), ("forwarded", forged)], "192.0.2.1");
        }
        // Nor is anything read beyond a hop that names nobody.
        for nobody in ["unknown", "_hidden", "", "192.0.2.7.", "192.0.2.07", "192.0.2.7:x", "proxy.example"] {
            let (plain, element) =
                (format!("198.51.100.1, {nobody}"), format!("for=198.51.100.1, for={nobody}"));
            check("10.0.0.1", &[("x-forwarded-for", &plain)], "10.0.0.1");
            check("10.0.0.1", &[("x-forwarded-for", &format!("{plain}, 10.0.0.2"))], "10.0.0.2");
            check("10.0.0.1", &[("forwarded", &element)], "10.0.0.1");
            check("10.0.0.1", &[("forwarded", &format!("{element}, for=10.0.0.2"))], "10.0.0.2");
        }
        check("10.0.0.1", &[("forwarded", "by=10.0.0.1;proto=https")], "10.0.0.1");
        // A proxy that tells the host quotes what the sender chose to call it.
        for told in [
            "for=203.0.113.1;proto=http;host=\"a,for=192.0.2.1\"",
            "host=\"a,for=192.0.2.1\";for=203.0.113.1",
            "host=\"a;for=192.0.2.1;x=\";for=203.0.113.1",
            "for=203.0.113.1; host=\"a\\\",for=192.0.2.1\"",
            "for=203.0.113.1;host=\"a\\\\\"",
            "For=\"203.0.113.1\";host=\"\"",
        ] {
            for before in ["", "for=192.0.2.1,", "\",", "x=\"\\,", "\\,"] {
                check("10.0.0.1", &[("forwarded", &format!("{before}{told}"))], "203.0.113.1");
            }
        }
        for malformed in [
            "for=192.0.2.1;for=203.0.113.1",
            "for=\"192.0.2.1",
            "for=192.0.2.1\"",
            "for=\"\"192.0.2.1\"\"",
            "for = 192.0.2.1",
            "for=\"a,for=192.0.2.1\"",
            "for=192.0.2.1;host=\"a\"b",
            "for=192.0.2.1;host",
        ] {
            check("10.0.0.1", &[("forwarded", malformed)], "10.0.0.1");
        }
        // Where all are trusted, the first of them sent it.
        check("10.0.0.1", &[("x-forwarded-for", "10.0.0.4, 10.0.0.3, 10.0.0.2")], "10.0.0.4");
        // The proxy appends to the one that it knows, and passes on what a stranger wrote into the other.
        let (forged, told) = (("forwarded", "for=198.51.100.9"), ("x-forwarded-for", "203.0.113.66"));
        check("10.0.0.1", &[forged, told], "10.0.0.1");
        check("10.0.0.1", &[("forwarded", "for=203.0.113.66"), told], "203.0.113.66");
    }

    /// One byte that is not text used to hide the whole line, so that the sender passed for the proxy.
    #[test]
    fn what_is_not_text_hides_only_itself() {
        let mut headers = HeaderMap::new();
        let line = HeaderValue::from_bytes(b"\xff, 203.0.113.66").unwrap();
        headers.insert("x-forwarded-for", line);
        let sender = sender(&headers, [10, 0, 0, 1].into(), &["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(sender, IpAddr::from([203, 0, 113, 66]));
    }

    #[test]
    fn reserved_headers_do_not_get_through_and_nomination_changes_nothing() {
        let sent = parts(
            "/",
            &[
                ("host", "x"),
                ("connection", "webhook-signature"),
                ("webhook-signature", "v1,abc"),
                ("countersign-verified", "true"),
                ("countersign_verified", "true"),
                ("countersign.verified", "true"),
                ("content_length", "9"),
                ("transfer_encoding", "chunked"),
                ("http2-settings", "AAMAAABk"),
                ("forwarded", "for=1.1.1.1"),
                ("x-forwarded-prefix", "/admin"),
                ("x-real.ip", "1.1.1.1"),
                ("x-forwarded-for", "1.1.1.1"),
                ("x_forwarded_for", "1.1.1.1"),
                ("keep-alive", "1"),
                ("content-length", "3"),
            ],
        );
        let stranger = peer([192, 0, 2, 1], true);
        let authority = Authority::from_static("hooks.example");
        let stranger = cleaned(sent.headers.clone(), Some(&authority), &stranger, &[]);
        let mut names: Vec<_> = stranger.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["forwarded", "host", "webhook-signature"]);
        assert_eq!(stranger["host"], "hooks.example");
        assert_eq!(stranger["forwarded"], "proto=https");
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let proxy = cleaned(sent.headers, None, &peer([10, 0, 0, 1], false), &trusted);
        assert!(proxy.contains_key("x-forwarded-for"));
        assert_eq!(proxy["forwarded"], "proto=http");
        assert_eq!(proxy["host"], "x");
    }

    fn peer(address: [u8; 4], secure: bool) -> Peer {
        Peer { address: address.into(), secure, certificate: None }
    }

    #[test]
    fn the_scheme_is_the_connections_or_what_a_trusted_proxy_says() {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let check = |peer: &Peer, headers: &[(&str, &str)], expected: &str| {
            assert_eq!(proto(&parts("/", headers).headers, peer, &trusted), expected, "{peer:?} {headers:?}");
        };
        let (stranger, proxy) = (&peer([192, 0, 2, 1], false), &peer([10, 0, 0, 1], false));
        check(stranger, &[("x-forwarded-proto", "https"), ("forwarded", "proto=https")], "proto=http");
        check(proxy, &[("x-forwarded-proto", "http, HTTPS")], "proto=https");
        check(proxy, &[("forwarded", "proto=http, for=1.2.3.4;proto=\"https\"")], "proto=https");
        check(proxy, &[("x-forwarded-proto", "gopher")], "proto=http");
        check(&peer([10, 0, 0, 1], true), &[], "proto=https");
        check(&peer([10, 0, 0, 1], true), &[("x-forwarded-proto", "http")], "proto=http");
    }
}
