//! Judges the head of an HTTP/1 request as it is on the wire, before hyper sees it. hyper mends much of what two readers
//! can understand in two ways (bare line feeds, folded lines, a length beside `chunked`, a fragment in the target),
//! and the service behind it cannot tell any more; here it is refused. Pure: bytes in, verdict out.

use std::net::Ipv6Addr;

use super::answer::Rejection;
use super::framing::Framing;

/// The most header lines, or trailer lines.
pub(super) const LINES_MAX: usize = 100;
/// RFC 9112 §3 asks for at least 8,000; nobody registers a webhook with a longer address.
const REQUEST_LINE_BYTES_MAX: usize = 8 << 10;

/// What is known of a head of which not all has come yet.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// Where the line begins that is not complete, and how far it has been searched for its end.
    line_at: usize,
    searched: usize,
    /// Where the header lines begin; 0 before the request line is complete.
    fields_at: usize,
    lines: usize,
    is_http10: bool,
    hosts: usize,
    lengths: usize,
    length: u64,
    expectations: usize,
    codings: usize,
}

impl Head {
    /// Judges what has come of the head at the front of `bytes`, which begins as it did at the last call. Once the head
    /// is complete: its length, and how the body is framed.
    pub(super) fn judge(
        &mut self,
        bytes: &[u8],
        header_bytes_max: usize,
    ) -> Result<Option<(usize, Framing)>, Rejection> {
        loop {
            let end = bytes[self.searched..].iter().position(|byte| *byte == b'\n');
            let next = end.map_or(bytes.len(), |end| self.searched + end + 1);
            self.searched = next;
            if self.fields_at == 0 {
                // Anything but HTTP, as a TLS handshake, shows at once, even if no line ever ends.
                let first = bytes.get(self.line_at);
                if first.is_some_and(|first| !is_token_byte(*first) && *first != b'\r') {
                    return Err(Rejection::MalformedHead);
                }
                if next > REQUEST_LINE_BYTES_MAX {
                    return Err(Rejection::TargetTooLong);
                }
            } else if next - self.fields_at > header_bytes_max + b"\r\n".len() {
                return Err(Rejection::HeadTooLarge);
            }
            if end.is_none() {
                return Ok(None);
            }
            let line = bytes[self.line_at..next].strip_suffix(b"\r\n").ok_or(Rejection::MalformedHead)?;
            let is_first = std::mem::replace(&mut self.line_at, next) == 0;
            if is_first && line.is_empty() {
                // RFC 9112 §2.2: some senders end a body with a line of their own.
            } else if self.fields_at == 0 {
                self.request_line(line)?;
                self.fields_at = next;
            } else if line.is_empty() {
                return Ok(Some((next, self.framing()?)));
            } else {
                self.field(line)?;
            }
        }
    }

    /// Whether any of it has come.
    pub(super) fn has_begun(&self, bytes: &[u8]) -> bool {
        self.fields_at > 0 || bytes.len() > self.line_at
    }

    /// `method SP origin-form SP version`, with exactly these spaces.
    fn request_line(&mut self, line: &[u8]) -> Result<(), Rejection> {
        let mut words = line.split(|byte| *byte == b' ');
        let (method, target, version) = (words.next(), words.next(), words.next());
        let method = method.unwrap_or_default();
        self.is_http10 = version == Some(b"HTTP/1.0");
        let well_formed = is_token(method)
            && method != b"CONNECT"
            && target.is_some_and(is_origin_form)
            && (self.is_http10 || version == Some(b"HTTP/1.1"))
            && words.next().is_none();
        if well_formed { Ok(()) } else { Err(Rejection::MalformedHead) }
    }

    fn field(&mut self, line: &[u8]) -> Result<(), Rejection> {
        self.lines += 1;
        if self.lines > LINES_MAX {
            return Err(Rejection::HeadTooLarge);
        }
        let (name, value) = field(line).ok_or(Rejection::MalformedHead)?;
        let well_formed = if name.eq_ignore_ascii_case(b"host") {
            self.hosts += 1;
            is_authority(value)
        } else if name.eq_ignore_ascii_case(b"content-length") {
            self.lengths += 1;
            length(value).map(|length| self.length = length).is_some()
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.codings += 1;
            value.eq_ignore_ascii_case(b"chunked") && !self.is_http10
        } else if name.eq_ignore_ascii_case(b"expect") {
            self.expectations += 1;
            // The only one that there is.
            value.eq_ignore_ascii_case(b"100-continue")
        } else {
            true
        };
        if well_formed { Ok(()) } else { Err(Rejection::MalformedHead) }
    }

    /// One host, and a length or chunks or neither: with two, the next reader may choose the other.
    fn framing(&self) -> Result<Framing, Rejection> {
        if self.expectations > 1 {
            return Err(Rejection::MalformedHead);
        }
        match (self.hosts, self.lengths, self.codings) {
            (1, 0, 0) => Ok(Framing::sized(0)),
            (1, 1, 0) => Ok(Framing::sized(self.length)),
            (1, 0, 1) => Ok(Framing::chunked()),
            _ => Err(Rejection::MalformedHead),
        }
    }
}

/// Name and value of a header or trailer line without its end: a token, a colon right behind it, and text without
/// control characters; so a folded line is none.
pub(super) fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let is_text = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
    if !is_token(name) || !value.iter().all(is_text) {
        return None;
    }
    let is_blank = |byte: &u8| matches!(byte, b'\t' | b' ');
    let begin = value.iter().position(|byte| !is_blank(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !is_blank(byte)).map_or(begin, |last| last + 1);
    Some((name, &value[begin..end]))
}

/// Digits only, and no more than any reader's integer holds.
fn length(value: &[u8]) -> Option<u64> {
    let digits = value.iter().all(u8::is_ascii_digit);
    let length = std::str::from_utf8(value).ok()?.parse().ok()?;
    (digits && i64::try_from(length).is_ok()).then_some(length)
}

pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().copied().all(is_token_byte)
}

/// RFC 9110 §5.6.2.
fn is_token_byte(byte: u8) -> bool {
    const TOKEN: [bool; 256] = table(b"!#$%&'*+-.^_`|~");
    TOKEN[usize::from(byte)]
}

/// Letters, digits and these: looked up, since every byte of every head is.
const fn table(signs: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < signs.len() {
        table[signs[at] as usize] = true;
        at += 1;
    }
    table
}

/// An absolute path of RFC 3986 and perhaps a query; in the query also what browsers leave as it is. A fragment is
/// refused: hyper would drop it without a word, and the path would be another than the one that was sent.
pub(super) fn is_origin_form(target: &[u8]) -> bool {
    let path_ends = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
    let (path, query) = target.split_at(path_ends);
    const PATH: [bool; 256] = table(b"/-._~!$&'()*+,;=:@%");
    const QUERY: [bool; 256] = table(b"/-._~!$&'()*+,;=:@%?[]{}|\\^`");
    let escapes = path.split(|byte| *byte == b'%').skip(1);
    path.first() == Some(&b'/')
        && path.iter().all(|byte| PATH[usize::from(*byte)])
        && escapes.into_iter().all(|after| after.len() >= 2 && after[..2].iter().all(u8::is_ascii_hexdigit))
        && query.iter().all(|byte| QUERY[usize::from(*byte)])
}

/// A host name or address and, possibly, a port; never with user information, and never with what only a generic URI
/// may have in a host.
pub(super) fn is_authority(text: &[u8]) -> bool {
    let (host_is_good, rest) = match text.strip_prefix(b"[") {
        Some(inside) => {
            let Some(end) = inside.iter().position(|byte| *byte == b']') else { return false };
            let address = std::str::from_utf8(&inside[..end]).ok();
            (address.is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()), &inside[end + 1..])
        }
        None => {
            let is_host_byte = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
            let end = text.iter().position(|byte| *byte == b':').unwrap_or(text.len());
            (end > 0 && text[..end].iter().all(is_host_byte), &text[end..])
        }
    };
    let port_is_good = match rest.strip_prefix(b":") {
        None => rest.is_empty(),
        Some(b"") => true,
        Some(digits) => length(digits).is_some_and(|port| port <= u64::from(u16::MAX)),
    };
    host_is_good && port_is_good
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(bytes: &[u8], header_bytes_max: usize) -> Result<Option<usize>, Rejection> {
        Head::default().judge(bytes, header_bytes_max).map(|judged| judged.map(|(end, _)| end))
    }

    /// Whether the head is good; the same when it comes byte by byte.
    fn check(head: &str, expected: bool) {
        let whole = judged(head.as_bytes(), 200);
        let mut by_byte = (Head::default(), Ok(None));
        for end in 1..=head.len() {
            if by_byte.1 == Ok(None) {
                by_byte.1 =
                    by_byte.0.judge(&head.as_bytes()[..end], 200).map(|judged| judged.map(|(end, _)| end));
            }
        }
        assert_eq!(whole, by_byte.1, "{head:?}");
        let expected = if expected { Ok(Some(head.len())) } else { Err(Rejection::MalformedHead) };
        assert_eq!(whole, expected, "{head:?}");
    }

    #[test]
    fn request_lines() {
        let check = |line: &str, expected| check(&format!("{line}\r\nHost: x\r\n\r\n"), expected);
        check("POST /a HTTP/1.1", true);
        check("POST /a HTTP/1.0", true);
        check("POST /a HTTP/1.0\r\nTransfer-Encoding: chunked", false);
        check("\r\nPOST /a HTTP/1.1", true);
        check("\r\n\r\nPOST /a HTTP/1.1", false);
        check("\nPOST /a HTTP/1.1", false);
        check("P*ST /a?b=%2e&{c} HTTP/1.1", true);
        check("POST /a%2e HTTP/1.1", true);
        for line in [
            "POST  /a HTTP/1.1",
            "POST /a  HTTP/1.1",
            "POST /a HTTP/1.1 ",
            " POST /a HTTP/1.1",
            "POST\t/a HTTP/1.1",
            "POST /a",
            "POST /a HTTP/1.2",
            "POST /a HTTP/2.0",
            "POST /a http/1.1",
            "POST /a HTTP/1.1\r",
            "POST http://x/a HTTP/1.1",
            "POST * HTTP/1.1",
            "POST /a#b HTTP/1.1",
            "POST /a?b#c HTTP/1.1",
            "POST /a%2 HTTP/1.1",
            "POST /a%zz HTTP/1.1",
            "POST /{a} HTTP/1.1",
            "POST /é HTTP/1.1",
            "POST a HTTP/1.1",
            "P(ST /a HTTP/1.1",
            "CONNECT /a HTTP/1.1",
            "CONNECT x:1 HTTP/1.1",
        ] {
            check(line, false);
        }
    }

    #[test]
    fn header_lines() {
        let check = |lines: &str, expected| check(&format!("POST /a HTTP/1.1\r\n{lines}\r\n\r\n"), expected);
        check("Host: x\r\nContent-Length: 5", true);
        check("Host:x:80\r\nTransfer-Encoding:\tChunked ", true);
        check("Host: [::1]:80\r\nEmpty:\r\nExpect: 100-Continue\r\nLatin: \u{e9}", true);
        for lines in [
            "X: y",
            "Host: x\r\nHost: x",
            "Host:",
            "Host: a b",
            "Host: a/b",
            "Host: u@x",
            "Host: a,b",
            "Host: :80",
            "Host: x:99999",
            "Host: x:+1",
            "Host: [::1",
            "Host: [x]",
            "Host: [::1]x",
            "Host: x\r\nContent-Length: 5\r\nContent-Length: 5",
            "Host: x\r\nContent-Length: 5, 5",
            "Host: x\r\nContent-Length: +5",
            "Host: x\r\nContent-Length:",
            "Host: x\r\nContent-Length: 9223372036854775808",
            "Host: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
            "Host: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Host: x\r\nTransfer-Encoding: gzip, chunked",
            "Host: x\r\nTransfer-Encoding: chunked,",
            "Host: x\r\nTransfer-Encoding:",
            "Host: x\r\nX : y",
            "Host: x\r\n: y",
            "Host: x\r\nX",
            "Host: x\r\nX: y\r\n z",
            " X: y\r\nHost: x",
            "Host: x\r\nX: \0",
            "Host: x\r\nX: \x7f",
            "Host: x\r\nX: y\rZ: z",
            "Host: x\nX: y",
            "Host: x\r\nExpect: 200-ok",
            "Host: x\r\nExpect: 100-continue\r\nExpect: 100-continue",
        ] {
            check(lines, false);
        }
    }

    #[test]
    fn sizes() {
        let line = "POST /a HTTP/1.1\r\nHost: x\r\n";
        let padded =
            |bytes: usize| format!("{line}Y: {}\r\n\r\n", "z".repeat(bytes - "Host: x\r\nY: \r\n".len()));
        assert!(matches!(judged(padded(200).as_bytes(), 200), Ok(Some(_))));
        assert_eq!(judged(padded(201).as_bytes(), 200), Err(Rejection::HeadTooLarge));
        // Before its line ends.
        assert_eq!(judged(&padded(300).as_bytes()[..290], 200), Err(Rejection::HeadTooLarge));
        let lines = |count: usize| format!("{line}{}\r\n", "a:\r\n".repeat(count - 1));
        assert!(matches!(judged(lines(LINES_MAX).as_bytes(), 9_999), Ok(Some(_))));
        assert_eq!(judged(lines(LINES_MAX + 1).as_bytes(), 9_999), Err(Rejection::HeadTooLarge));
        let targeted = |bytes: usize| {
            let path = "a".repeat(bytes - "POST / HTTP/1.1\r\n".len());
            judged(format!("POST /{path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes(), 200)
        };
        assert!(matches!(targeted(REQUEST_LINE_BYTES_MAX), Ok(Some(_))));
        assert_eq!(targeted(REQUEST_LINE_BYTES_MAX + 1), Err(Rejection::TargetTooLong));
        let endless = format!("POST /{}", "a".repeat(REQUEST_LINE_BYTES_MAX));
        assert_eq!(judged(endless.as_bytes(), 200), Err(Rejection::TargetTooLong));
        assert_eq!(judged(b"\x16\x03\x01", 200), Err(Rejection::MalformedHead));
    }
}
