//! What of a backend's answer is passed on to a sender that waits for it. Pure.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::client::Answer;
use crate::forward::Outcome;
use crate::replies::{self, ANSWER_BYTES_MAX, Reply};

/// What belongs to the connection (RFC 9110 §7.6.1), is set anew by our own server, or would speak for the gateway's whole
/// origin: a cookie, another way to reach it, the program that it is.
const KEPT_BACK: [HeaderName; 17] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-authentication-info"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::CONTENT_LENGTH,
    header::SET_COOKIE,
    HeaderName::from_static("set-cookie2"),
    header::DATE,
    header::SERVER,
    header::ALT_SVC,
    header::STRICT_TRANSPORT_SECURITY,
    HeaderName::from_static("clear-site-data"),
];

/// What the sender is told of an attempt with this `outcome`, at a destination that knows `secrets`. A failure
/// that another attempt follows is not the sender's to know: its own retry would only be a duplicate of ours. A redirect is
/// followed by nobody.
pub(super) fn reply(outcome: Outcome, answer: &Answer, secrets: &[&[u8]]) -> Reply {
    match outcome {
        Outcome::Delivered | Outcome::Rejected => {}
        Outcome::Redirected => return Reply::Unfit,
        Outcome::RetryableStatus
        | Outcome::DnsFailed
        | Outcome::AddressRefused
        | Outcome::ConnectFailed
        | Outcome::ConnectTimeout
        | Outcome::TlsFailed
        | Outcome::Timeout
        | Outcome::ConnectionLost
        | Outcome::InvalidResponse
        | Outcome::Interrupted
        | Outcome::GatewayResources
        | Outcome::Unsendable
        | Outcome::TemplateFailed => return Reply::Failed,
    }
    let bare = matches!(answer.status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT);
    let body = if bare { Bytes::new() } else { Bytes::copy_from_slice(&answer.body) };
    let passed = replies::Answer { status: answer.status, headers: end_to_end(&answer.headers), body };
    let is_told = secrets.iter().any(|secret| tells(&passed, secret));
    if !answer.is_whole || passed.bytes() > ANSWER_BYTES_MAX || is_told {
        return Reply::Unfit;
    }
    Reply::Answered(passed)
}

fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let named = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<_> = named.flat_map(|line| line.split(',')).map(str::trim).collect();
    let passes = |name: &HeaderName| {
        !KEPT_BACK.contains(name) && !named.iter().any(|named| name.as_str().eq_ignore_ascii_case(named))
    };
    let passing = headers.iter().filter(|(name, _)| passes(name));
    let mut passed = HeaderMap::new();
    for (name, value) in passing {
        // A copy: its own bytes are a part of all that had been read of the connection, which they would keep.
        let copy = HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone());
        passed.append(name, copy);
    }
    passed
}

/// Whether it repeats `secret`, as error pages do that print the request; not in other codings.
fn tells(answer: &replies::Answer, secret: &[u8]) -> bool {
    let has = |text: &[u8]| text.windows(secret.len()).any(|window| window == secret);
    has(&answer.body) || answer.headers.values().any(|value| has(value.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &'static str)], body: &[u8]) -> Answer {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: headers.fold(HeaderMap::new(), |mut headers, (name, value)| {
                headers.append(name, value);
                headers
            }),
            body: body.to_vec(),
            is_whole: true,
        }
    }

    fn passed(answer: &Answer) -> replies::Answer {
        match reply(Outcome::Delivered, answer, &[]) {
            Reply::Answered(passed) => passed,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_a_last_word_is_passed_on() {
        let said = answer(200, &[], b"x");
        for outcome in Outcome::ALL {
            let expected = match outcome {
                Outcome::Delivered | Outcome::Rejected => "answered",
                Outcome::Redirected => "unfit",
                _ => "failed",
            };
            let found = match reply(outcome, &said, &[]) {
                Reply::Answered(_) => "answered",
                Reply::Unfit => "unfit",
                Reply::Failed => "failed",
            };
            assert_eq!(found, expected, "{outcome:?}");
        }
    }

    #[test]
    fn what_belongs_to_the_connection_or_speaks_for_the_origin_stays_back() {
        let said = [
            ("content-type", "application/json"),
            ("content-encoding", "gzip"),
            ("x-twice", "1"),
            ("x-twice", "2"),
            ("connection", "keep-alive, X-Hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("content-length", "1"),
            ("trailer", "x-end"),
            ("upgrade", "h2c"),
            ("set-cookie", "session=1"),
            ("set-cookie", "session=2"),
            ("server", "legacy/1.0"),
            ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ];
        let passed = passed(&answer(200, &said, b"{}"));
        let expected = answer(200, &said[..4], b"");
        assert_eq!(passed.headers, expected.headers);
        assert_eq!(passed.body, "{}");
    }

    #[test]
    fn nothing_is_cut_and_no_secret_of_ours_is_told() {
        let unfit = |answer: &Answer, ours: &[&[u8]]| reply(Outcome::Rejected, answer, ours) == Reply::Unfit;
        assert!(!unfit(&answer(400, &[], &[b'x'; ANSWER_BYTES_MAX]), &[]));
        assert!(unfit(&answer(400, &[], &[b'x'; ANSWER_BYTES_MAX + 1]), &[]));
        assert!(unfit(&answer(400, &[("x-a", "b")], &[b'x'; ANSWER_BYTES_MAX]), &[]));
        assert!(unfit(&Answer { is_whole: false, ..answer(400, &[], b"x") }, &[]));

        let ours = [&b"k3y-k3y"[..]];
        assert!(!unfit(&answer(400, &[], b"for blue"), &ours));
        assert!(unfit(&answer(400, &[], b"bad key k3y-k3y!"), &ours));
        assert!(unfit(&answer(400, &[("x-echo", "k3y-k3y")], b""), &ours));
    }

    #[test]
    fn statuses_without_a_body_have_none() {
        for status in [204, 205] {
            assert_eq!(passed(&answer(status, &[], b"x")).body, "");
        }
    }
}
