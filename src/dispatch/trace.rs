//! W3C Trace Context: carries the sender's trace on to the backend, or begins one. It records and exports nothing.

use std::num::NonZeroU64;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::id::Id;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Replaces `traceparent` by that of the span `span`: a child of the sender's when that is well-formed, otherwise in a
/// trace of our own, whose id is the delivery's, so that all attempts to all destinations share it.
pub(super) fn continue_trace(headers: &mut HeaderMap, delivery: Id, span: NonZeroU64) {
    let theirs = headers.get_all(TRACEPARENT).iter().collect::<Vec<_>>();
    let parent = match theirs.as_slice() {
        [one] => one.to_str().ok().and_then(parse),
        _ => None,
    };
    let (trace, flags) = parent.map_or_else(
        || (hex::encode(delivery.as_bytes()), "01".to_owned()),
        |(trace, flags)| (trace.to_owned(), flags.to_owned()),
    );
    if parent.is_none() {
        // The specification: vendors' state without the trace that it belongs to is discarded.
        headers.remove(TRACESTATE);
    }
    let text = format!("00-{trace}-{span:016x}-{flags}");
    headers.insert(TRACEPARENT, HeaderValue::try_from(text).expect("hexadecimal digits and dashes"));
}

/// Trace id and flags of a well-formed value; of later versions the part that version 00 has.
fn parse(text: &str) -> Option<(&str, &str)> {
    let mut parts = text.splitn(5, '-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let more = parts.next().is_some();
    let is_hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_set = |text: &str| text.bytes().any(|b| b != b'0');
    (is_hex(version, 2)
        && version != "ff"
        && (version != "00" || !more)
        && is_hex(trace, 32)
        && is_set(trace)
        && is_hex(span, 16)
        && is_set(span)
        && is_hex(flags, 2))
    .then_some((trace, flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn check(values: &[&str], expected: &str) {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TRACEPARENT, value.parse().unwrap());
        }
        headers.insert(TRACESTATE, HeaderValue::from_static("vendor=1"));
        let span = NonZeroU64::new(0xabc).unwrap();
        continue_trace(&mut headers, Id::from_bytes([7; 16]), span);
        assert_eq!(headers.get_all(TRACEPARENT).iter().collect::<Vec<_>>(), [expected], "{values:?}");
        assert_eq!(headers.contains_key(TRACESTATE), expected.contains(TRACE), "{values:?}");
    }

    #[test]
    fn a_well_formed_trace_goes_on() {
        let ours = format!("00-{TRACE}-0000000000000abc-00");
        check(&[&format!("00-{TRACE}-00f067aa0ba902b7-00")], &ours);
        check(&[&format!("01-{TRACE}-00f067aa0ba902b7-00-what-later-versions-add")], &ours);
    }

    #[test]
    fn anything_else_begins_a_trace_of_the_delivery() {
        let ours = format!("00-{}-0000000000000abc-01", "07".repeat(16));
        check(&[], &ours);
        let good = format!("00-{TRACE}-00f067aa0ba902b7-01");
        check(&[&good, &good], &ours);
        for bad in [
            format!("00-{TRACE}-00f067aa0ba902b7-01-more"),
            format!("ff-{TRACE}-00f067aa0ba902b7-01"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{}-00f067aa0ba902b7-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-00f067aa0ba902b7"),
            String::new(),
        ] {
            check(&[&bad], &ours);
        }
    }
}
