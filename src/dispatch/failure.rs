//! Why an attempt got no complete answer, and what outcome that is. Each kind is typed where it arises, so that no
//! label depends on a library's wording.

use std::error::Error;
use std::fs::File;
use std::io;
use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use rustix::io::Errno;

use crate::clock::{Timestamp, elapsed};
use crate::forward::Outcome;

/// Why an attempt got no complete answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the host name did not resolve")]
    Dns(#[source] io::Error),
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
    #[error("the backend switched protocols, which nobody had asked for")]
    Switched,
}

impl Failure {
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Dns(error) | Self::Connect(error) | Self::Tls(error) if is_shortage(error) => {
                Outcome::GatewayResources
            }
            Self::Dns(_) => Outcome::DnsFailed,
            Self::Connect(_) => Outcome::ConnectFailed,
            Self::ConnectTimeout(_) => Outcome::ConnectTimeout,
            Self::Authorities(_) | Self::Tls(_) => Outcome::TlsFailed,
            Self::Timeout { .. } => Outcome::Timeout,
            Self::Head(error) | Self::Body { error, .. } => of_connection(error),
            Self::Switched => Outcome::InvalidResponse,
        }
    }

    pub(super) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Timeout { status, .. } => *status,
            Self::Body { status, .. } => Some(*status),
            Self::Switched => Some(StatusCode::SWITCHING_PROTOCOLS),
            Self::Dns(_)
            | Self::Connect(_)
            | Self::ConnectTimeout(_)
            | Self::Authorities(_)
            | Self::Tls(_)
            | Self::Head(_) => None,
        }
    }

    /// The whole chain of causes in one line, for operators.
    pub(super) fn describe(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            text.push_str(&format!(": {error}"));
            source = error.source();
        }
        text
    }
}

/// Whether the gateway, not the backend, lacks something: files, memory or local ports.
fn is_shortage(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL)
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
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        return Outcome::ConnectionLost;
    }
    match io_kind(error) {
        // What hyper's decoder of chunks says about sizes and line ends that are none.
        Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => Outcome::InvalidResponse,
        Some(_) => Outcome::ConnectionLost,
        None => Outcome::InvalidResponse,
    }
}

fn io_kind(error: &hyper::Error) -> Option<io::ErrorKind> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        source = error.source();
    }
    None
}

/// The pause that `Retry-After` asks for, in either form: seconds, or a date (in the past: none at all). Any number of
/// digits is a number; what is too large is the longest duration, which the policy caps.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim_ascii();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Some(text.parse().map_or(Duration::MAX, Duration::from_secs));
    }
    let date = Timestamp::try_from(httpdate::parse_http_date(text).ok()?).ok()?;
    Some(elapsed(now, date))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::from_milliseconds;

    #[test]
    fn what_the_gateway_lacks_is_not_the_backends_fault() {
        let check = |errno: Errno, expected: [Outcome; 3]| {
            let failures =
                [Failure::Dns, Failure::Connect, Failure::Tls].map(|failure| failure(errno.into()));
            assert_eq!(failures.each_ref().map(Failure::outcome), expected, "{failures:?}");
        };
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL] {
            check(errno, [Outcome::GatewayResources; 3]);
        }
        for errno in [Errno::CONNREFUSED, Errno::HOSTUNREACH, Errno::NETUNREACH, Errno::CONNRESET] {
            check(errno, [Outcome::DnsFailed, Outcome::ConnectFailed, Outcome::TlsFailed]);
        }
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
        for nonsense in ["", "-1", "+1", "1.5", "soon", "1h", "1994-11-06"] {
            check(nonsense, None);
        }
        let endless = HeaderMap::from_iter([(header::RETRY_AFTER, "9".repeat(40).parse().unwrap())]);
        assert_eq!(retry_after(&endless, now), Some(Duration::MAX));
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
