//! Why an attempt got no complete answer, and what outcome that is. Each kind is typed where it arises, so that no
//! label depends on a library's wording.

use std::error::Error;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode, header};
use rustix::io::Errno;

use crate::address::Reach;
use crate::causes;
use crate::clock::{Timestamp, elapsed};
use crate::forward::Outcome;

/// So many bytes of a secret say nothing, and are likely to be something else.
const SECRET_BYTES_SHOWN_MAX: usize = 4;

/// Why an attempt got no complete answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the host name did not resolve")]
    Dns(#[source] Arc<io::Error>),
    #[error("{0} is {what}, where this destination must not be dialled", what = .1.describe())]
    Refused(IpAddr, Reach),
    #[error("no address took the connection")]
    Connect(#[source] io::Error),
    #[error("connecting took longer than {0:?}")]
    ConnectTimeout(Duration),
    #[error("no certificate authorities to check the backend with")]
    Authorities(#[source] rustls::Error),
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    #[error("the attempt took longer than {limit:?}")]
    Timeout {
        limit: Duration,
        /// Of an answer whose body did not end.
        status: Option<StatusCode>,
    },
    #[error("no answer")]
    Head(#[source] hyper::Error),
    #[error("the answer broke off")]
    Body {
        status: StatusCode,
        #[source]
        error: hyper::Error,
    },
    #[error("it answered {0} and hung up before the whole request had left")]
    Unread(StatusCode),
    #[error("the backend switched protocols, which nobody had asked for")]
    Switched,
}

impl Failure {
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Dns(error) if is_shortage(error) => Outcome::GatewayResources,
            Self::Connect(error) | Self::Tls(error) if is_shortage(error) => Outcome::GatewayResources,
            Self::Dns(_) => Outcome::DnsFailed,
            Self::Refused(..) => Outcome::AddressRefused,
            Self::Connect(_) => Outcome::ConnectFailed,
            Self::ConnectTimeout(_) => Outcome::ConnectTimeout,
            Self::Authorities(_) | Self::Tls(_) => Outcome::TlsFailed,
            Self::Timeout { .. } => Outcome::Timeout,
            Self::Head(error) | Self::Body { error, .. } => of_connection(error),
            Self::Unread(_) => Outcome::ConnectionLost,
            Self::Switched => Outcome::InvalidResponse,
        }
    }

    pub(super) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Timeout { status, .. } => *status,
            Self::Body { status, .. } | Self::Unread(status) => Some(*status),
            Self::Switched => Some(StatusCode::SWITCHING_PROTOCOLS),
            Self::Dns(_)
            | Self::Refused(..)
            | Self::Connect(_)
            | Self::ConnectTimeout(_)
            | Self::Authorities(_)
            | Self::Tls(_)
            | Self::Head(_) => None,
        }
    }

    /// The whole chain of causes in one line, for operators.
    pub(super) fn describe(&self) -> String {
        causes::chain(self)
    }
}

/// Whether the gateway, not the backend, lacks something: files, memory or local ports.
fn is_shortage(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::MFILE
                | Errno::NFILE
                | Errno::NOBUFS
                | Errno::NOMEM
                | Errno::ADDRNOTAVAIL
                // Threads, for which a resolver asks, and ports.
                | Errno::AGAIN
        )
    )
}

/// The error of opening a file, when files are what the gateway lacks. For failures of libraries that open files and
/// do not say why they could not: without one for its configuration, a resolver knows no name.
pub(super) fn shortage_of_files() -> Option<io::Error> {
    File::open("/dev/null").err().filter(is_shortage)
}

/// Tells a lost connection from one on which something other than HTTP was spoken.
fn of_connection(error: &hyper::Error) -> Outcome {
    if error.is_parse() {
        return Outcome::InvalidResponse;
    }
    let cause = io_error(error);
    if let Some(error) = http2_error(error)
        && cause.is_none()
    {
        // What we ended ourselves broke the rules of the protocol.
        return if error.is_library() { Outcome::InvalidResponse } else { Outcome::ConnectionLost };
    }
    // In TLS 1.3 a backend refuses a certificate, or the lack of one, after our end of the handshake.
    if cause.and_then(io::Error::get_ref).and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some() {
        return Outcome::TlsFailed;
    }
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        return Outcome::ConnectionLost;
    }
    match cause.map(io::Error::kind) {
        // What hyper's decoder of chunks says about sizes and line ends that are none.
        Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => Outcome::InvalidResponse,
        Some(_) => Outcome::ConnectionLost,
        None => Outcome::InvalidResponse,
    }
}

fn http2_error(error: &hyper::Error) -> Option<&h2::Error> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return Some(error);
        }
        source = error.source();
    }
    None
}

fn io_error(error: &hyper::Error) -> Option<&io::Error> {
    let mut source = error.source();
    while let Some(error) = source {
        let over_http2 = error.downcast_ref::<h2::Error>().and_then(h2::Error::get_io);
        if let Some(error) = error.downcast_ref::<io::Error>().or(over_http2) {
            return Some(error);
        }
        source = error.source();
    }
    None
}

/// The pause that `Retry-After` asks for, in either form: seconds, or a date (in the past: none at all). Any number of
/// digits is a number; what is too large is the longest duration, which the policy caps. Of several the longest holds:
/// somebody on the way has asked for it. What cannot be read asks for nothing.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    headers.get_all(header::RETRY_AFTER).iter().filter_map(|value| read_pause(value, now)).max()
}

fn read_pause(value: &HeaderValue, now: Timestamp) -> Option<Duration> {
    let text = value.to_str().ok()?.trim_ascii();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Some(text.parse().map_or(Duration::MAX, Duration::from_secs));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    // No date is too early for a timestamp, only too late.
    Some(Timestamp::try_from(date).map_or(Duration::MAX, |date| elapsed(now, date)))
}

/// The beginning of an answer's body as text that is safe to show: without control characters, which a terminal would
/// obey, and without `secrets`, which error pages like to repeat. (As they are; not in other codings.)
pub(super) fn readable(mut body: Vec<u8>, secrets: &[&[u8]]) -> String {
    const HIDDEN: &[u8] = b"[secret]";
    let mut at = 0;
    while at < body.len() {
        let rest = &body[at..];
        let lengths = secrets.iter().filter_map(|secret| {
            // At the end, where the body may have been cut, the beginning of a secret is enough.
            let length = secret.len().min(rest.len());
            let whole = length == secret.len() || length >= SECRET_BYTES_SHOWN_MAX;
            (whole && rest[..length] == secret[..length]).then_some(length)
        });
        if let Some(length) = lengths.max() {
            body.splice(at..at + length, HIDDEN.iter().copied());
            at += HIDDEN.len();
        } else {
            at += 1;
        }
    }
    let shown =
        |c: char| if c.is_control() && c != '\n' && c != '\t' { char::REPLACEMENT_CHARACTER } else { c };
    String::from_utf8_lossy(&body).chars().filter(|c| *c != '\r').map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::from_milliseconds;

    #[test]
    fn what_the_gateway_lacks_is_not_the_backends_fault() {
        let check = |errno: Errno, expected: [Outcome; 3]| {
            let failures = [
                Failure::Dns(Arc::new(errno.into())),
                Failure::Connect(errno.into()),
                Failure::Tls(errno.into()),
            ];
            assert_eq!(failures.each_ref().map(Failure::outcome), expected, "{failures:?}");
        };
        for errno in
            [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL, Errno::AGAIN]
        {
            check(errno, [Outcome::GatewayResources; 3]);
        }
        for errno in [Errno::CONNREFUSED, Errno::HOSTUNREACH, Errno::NETUNREACH, Errno::CONNRESET] {
            check(errno, [Outcome::DnsFailed, Outcome::ConnectFailed, Outcome::TlsFailed]);
        }
    }

    #[test]
    fn what_a_backend_says_is_safe_to_show() {
        let secrets = [&b"k3y-k3y"[..], b"longer", b"longer-by-far"];
        let check = |body: &[u8], expected: &str| assert_eq!(readable(body.to_vec(), &secrets), expected);
        check(b"", "");
        check("für blue:\r\n\tfine".as_bytes(), "für blue:\n\tfine");
        check(
            b"\x1b]0;owned\x07\x1b[2J\0\xff\xc2\x9b",
            "\u{fffd}]0;owned\u{fffd}\u{fffd}[2J\u{fffd}\u{fffd}\u{fffd}",
        );
        check(b"bad key k3y-k3y, k3y-k3y-k3y!", "bad key [secret], [secret]-k3y!");
        check(b"cut off: k3y-k3", "cut off: [secret]");
        check(b"k3y-", "[secret]");
        check(b"longer-by-far, longer-by-day", "[secret], [secret]-by-day");
        check(b"k3y", "k3y");
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let now = from_milliseconds(784_111_777_000); // Sun, 06 Nov 1994 08:49:37 GMT
        let check = |text: &str, expected: Option<u64>| {
            let headers = HeaderMap::from_iter([(header::RETRY_AFTER, text.parse().unwrap())]);
            assert_eq!(retry_after(&headers, now), expected.map(Duration::from_secs), "{text}");
        };
        check("0", Some(0));
        check("120", Some(120));
        check(" 120 ", Some(120));
        check("Sun, 06 Nov 1994 08:50:37 GMT", Some(60));
        check("Sun, 06 Nov 1994 08:00:00 GMT", Some(0));
        check("Sunday, 06-Nov-94 08:50:37 GMT", Some(60));
        check("Sun Nov  6 08:50:37 1994", Some(60));
        check("Thu, 01 Jan 1970 00:00:00 GMT", Some(0));
        for nonsense in [
            "",
            "-1",
            "+1",
            "1.5",
            "1e9",
            "0x10",
            "soon",
            "1h",
            "1, 2",
            "1994-11-06",
            "Sun, 31 Feb 2027 08:00:00 GMT",
        ] {
            check(nonsense, None);
        }
        let mut headers = HeaderMap::new();
        for text in ["soon", "10", "99", "5"] {
            headers.append(header::RETRY_AFTER, text.parse().unwrap());
        }
        assert_eq!(retry_after(&headers, now), Some(Duration::from_secs(99)));
        headers.append(header::RETRY_AFTER, HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(retry_after(&headers, now), Some(Duration::from_secs(99)));
        let endless = HeaderMap::from_iter([(header::RETRY_AFTER, "9".repeat(40).parse().unwrap())]);
        assert_eq!(retry_after(&endless, now), Some(Duration::MAX));
        let last =
            HeaderMap::from_iter([(header::RETRY_AFTER, "Fri, 31 Dec 9999 23:59:59 GMT".parse().unwrap())]);
        assert_eq!(retry_after(&last, now), Some(Duration::MAX));
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
