//! Judges a request by its head alone, and decides which of its headers go on to the backend.

use std::net::IpAddr;

use http::header::{self, CONTENT_LENGTH, HOST, HeaderName, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Uri, Version};
use ipnet::IpNet;

use super::answer::Rejection;
use crate::config::Source;

/// RFC 9110 §7.6.1 and what browsers and proxies add to it. Only this fixed list: a sender that nominates
/// `webhook-signature` in `Connection` changes nothing. The length is the transport's, set anew for the backend.
const HOP_BY_HOP: [HeaderName; 10] = [
    header::CONNECTION,
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

/// What only a trusted proxy may say about the sender.
const FORWARDING: [HeaderName; 5] = [
    header::FORWARDED,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-real-ip"),
];

/// The most header lines; with more, hyper answers 431 itself on HTTP/1.
pub(super) const LINES_MAX: usize = 100;

/// The rules of HTTP that hyper leaves to the service: one authority, an origin-form target, unambiguous framing.
pub(super) fn check(head: &Parts, header_bytes_max: usize) -> Result<(), Rejection> {
    // As on the wire: a colon, a space and a line's end. hyper only bounds its buffer, which is larger.
    let bytes: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if head.headers.len() > LINES_MAX || bytes > header_bytes_max {
        return Err(Rejection::HeadTooLarge);
    }
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = hosts.next();
    let well_formed = hosts.next().is_none()
        && match (head.version, head.uri.authority()) {
            (Version::HTTP_2, Some(authority)) => {
                is_authority(authority.as_str()) && host.is_none_or(|host| host == authority.as_str())
            }
            (_, Some(_)) => false,
            (_, None) => {
                host.and_then(|host| host.to_str().ok()).is_some_and(is_authority) && framed_once(head)
            }
        };
    let origin_form = head.uri.path().starts_with('/');
    if well_formed && origin_form && head.method != Method::CONNECT {
        Ok(())
    } else {
        Err(Rejection::MalformedHead)
    }
}

/// A host with, possibly, a port; never with user information.
fn is_authority(text: &str) -> bool {
    let Ok(authority) = text.parse::<Authority>() else { return false };
    let port = text.strip_prefix(authority.host());
    !authority.host().is_empty()
        && port.is_some_and(|port| {
            let digits = port.strip_prefix(':').unwrap_or("");
            port.is_empty()
                || digits.is_empty()
                || digits.parse::<u16>().is_ok_and(|_| !digits.starts_with('+'))
        })
}

fn framed_once(head: &Parts) -> bool {
    let lengths = head.headers.get_all(CONTENT_LENGTH).iter().count();
    let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => lengths <= 1,
        (Some(coding), None) => {
            lengths == 0
                && head.version == Version::HTTP_11
                && coding.as_bytes().eq_ignore_ascii_case(b"chunked")
        }
        (Some(_), Some(_)) => false,
    }
}

/// Whether the source takes this method from this address.
pub(super) fn allow(method: &Method, sender: IpAddr, source: &Source) -> Result<(), Rejection> {
    if !source.methods.contains(method) {
        let allowed: Vec<&str> = source.methods.iter().map(Method::as_str).collect();
        let allowed = HeaderValue::from_str(&allowed.join(", ")).map_err(|_| Rejection::Internal)?;
        return Err(Rejection::MethodNotAllowed(allowed));
    }
    if source.allow_addresses.is_empty() || source.allow_addresses.iter().any(|net| net.contains(&sender)) {
        Ok(())
    } else {
        Err(Rejection::AddressNotAllowed)
    }
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
    let told = |name: &HeaderName, read: fn(&str) -> Option<IpAddr>| {
        headers.contains_key(name).then(|| nearest(list(headers, name).map(|hop| read(hop?)), peer, trusted))
    };
    match (told(&header::FORWARDED, forwarded_for), told(&FORWARDING[1], address)) {
        (Some(one), Some(other)) if one != other => peer,
        (Some(sender), _) | (None, Some(sender)) => sender,
        (None, None) => peer,
    }
}

fn nearest(hops: impl DoubleEndedIterator<Item = Option<IpAddr>>, peer: IpAddr, trusted: &[IpNet]) -> IpAddr {
    let mut nearest = peer;
    for hop in hops.rev() {
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

/// The headers that go on: without hop-by-hop ones, without those in which only the gateway (`Countersign-*`) or a
/// trusted proxy may speak. Any other sign stands for `-` too: CGI and its like do not tell them apart.
pub(super) fn cleaned(mut headers: HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> HeaderMap {
    headers.remove(CONTENT_LENGTH);
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    let stranger = !is_trusted(peer, trusted);
    let removed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let twin = name.as_str().replace(|sign: char| !sign.is_ascii_alphanumeric(), "-");
            twin.starts_with("countersign-")
                || (stranger && FORWARDING.iter().any(|taken| taken.as_str() == twin))
        })
        .cloned()
        .collect();
    for name in removed {
        headers.remove(name);
    }
    headers
}

/// The elements of all lines of a list header; `None` for one that is not text.
fn list<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl DoubleEndedIterator<Item = Option<&'h str>> {
    let lines = headers.get_all(name).iter();
    let elements = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    elements.map(|element| std::str::from_utf8(element).ok().map(str::trim))
}

/// RFC 7239: `for=192.0.2.60;proto=http`, an IPv6 address quoted and in brackets, either with a port.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then(|| address(value.trim().trim_matches('"')))?
    })
}

fn address(text: &str) -> Option<IpAddr> {
    let bare =
        text.strip_prefix('[').and_then(|rest| rest.split_once(']')).map_or(text, |(inside, _)| inside);
    bare.parse().ok().or_else(|| text.parse::<std::net::SocketAddr>().ok().map(|address| address.ip()))
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
    fn heads() {
        let check = |target, headers: &[(&str, &str)], expected: bool| {
            assert_eq!(check(&parts(target, headers), 200).is_ok(), expected, "{target} {headers:?}");
        };
        check("/a", &[("host", "x")], true);
        check("/a?b=%2e", &[("host", "x:80"), ("content-length", "1")], true);
        check("/a", &[("host", "x"), ("transfer-encoding", "chunked")], true);
        check("/a", &[], false);
        check("/a", &[("host", "x"), ("host", "x")], false);
        check("/a", &[("host", "a b")], false);
        check("/a", &[("host", "x:99999999")], false);
        check("/a", &[("host", "x:abc")], false);
        check("/a", &[("host", ":80")], false);
        check("/a", &[("host", "[::1]:80")], true);
        check("/a", &[("host", "x"), ("y", &"z".repeat(186))], true);
        check("/a", &[("host", "x"), ("y", &"z".repeat(187))], false);
        check("/a", &[("host", "u@x")], false);
        check("http://x/a", &[("host", "x")], false);
        check("/a", &[("host", "x"), ("content-length", "1"), ("transfer-encoding", "chunked")], false);
        check("/a", &[("host", "x"), ("content-length", "1"), ("content-length", "1")], false);
        check("/a", &[("host", "x"), ("transfer-encoding", "gzip, chunked")], false);
        check(
            "/a",
            &[("host", "x"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            false,
        );
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
        check("10.0.0.1", &[], "10.0.0.1");
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
                ("x-forwarded-for", "1.1.1.1"),
                ("x_forwarded_for", "1.1.1.1"),
                ("keep-alive", "1"),
                ("content-length", "3"),
            ],
        );
        let stranger = cleaned(sent.headers.clone(), [192, 0, 2, 1].into(), &[]);
        let mut names: Vec<_> = stranger.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["host", "webhook-signature"]);
        let proxy = cleaned(sent.headers, [10, 0, 0, 1].into(), &["10.0.0.0/8".parse().unwrap()]);
        assert!(proxy.contains_key("x-forwarded-for"));
    }
}
