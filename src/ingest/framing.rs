//! Follows the body of an HTTP/1 request over the wire, so that it is known where the next head begins. Chunks are held
//! to the grammar to the letter: two readers that disagree about the end of a chunk disagree about the next request.

use super::wire::{self, LINES_MAX};

/// A chunk's size and its extensions. Nobody sends any; what is longer is an attempt at something.
const CHUNK_LINE_BYTES_MAX: usize = 256;
/// All trailer lines together.
const TRAILER_BYTES_MAX: usize = 8 << 10;

/// The body broke its framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body is not framed as HTTP wants")]
pub(super) struct Broken;

/// What is still to come of a body.
#[derive(Debug)]
pub(super) enum Framing {
    /// So many bytes.
    Sized(u64),
    /// Chunks and trailers.
    Chunked(Chunked),
}

#[derive(Debug)]
pub(super) struct Chunked {
    next: Next,
    /// What has come of a line.
    line: Vec<u8>,
    trailers: usize,
    trailer_bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Size,
    Data(u64),
    /// The line's end behind the data.
    End,
    Trailer,
    Nothing,
}

impl Framing {
    pub(super) fn sized(length: u64) -> Self {
        Self::Sized(length)
    }

    pub(super) fn chunked() -> Self {
        let (next, line) = (Next::Size, Vec::new());
        Self::Chunked(Chunked { next, line, trailers: 0, trailer_bytes: 0 })
    }

    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Sized(left) => *left == 0,
            Self::Chunked(chunked) => chunked.next == Next::Nothing,
        }
    }

    /// How many of the next `bytes` belong to the body: all of them, unless it ends among them.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        match self {
            Self::Sized(left) => Ok(take(left, bytes)),
            Self::Chunked(chunked) => chunked.follow(bytes),
        }
    }
}

/// Takes up to `left` bytes.
fn take(left: &mut u64, bytes: &[u8]) -> usize {
    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
    *left -= taken as u64;
    taken
}

impl Chunked {
    fn follow(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        let mut at = 0;
        while at < bytes.len() && self.next != Next::Nothing {
            if let Next::Data(left) = &mut self.next {
                at += take(left, &bytes[at..]);
                if *left == 0 {
                    self.next = Next::End;
                }
                continue;
            }
            let rest = &bytes[at..];
            let end = rest.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(rest.len(), |end| end + 1);
            self.line.extend_from_slice(&rest[..taken]);
            at += taken;
            let bytes_max = match self.next {
                Next::Size => CHUNK_LINE_BYTES_MAX,
                Next::Trailer => TRAILER_BYTES_MAX - self.trailer_bytes,
                Next::End | Next::Data(_) | Next::Nothing => b"\r\n".len(),
            };
            if self.line.len() > bytes_max {
                return Err(Broken);
            }
            if end.is_some() {
                let line = self.line.strip_suffix(b"\r\n").ok_or(Broken)?;
                self.next = match self.next {
                    Next::Size => match chunk_size(line).ok_or(Broken)? {
                        0 => Next::Trailer,
                        size => Next::Data(size),
                    },
                    Next::Trailer if line.is_empty() => Next::Nothing,
                    Next::Trailer => {
                        wire::field(line).ok_or(Broken)?;
                        self.trailers += 1;
                        self.trailer_bytes += self.line.len();
                        if self.trailers > LINES_MAX {
                            return Err(Broken);
                        }
                        Next::Trailer
                    }
                    Next::End | Next::Data(_) | Next::Nothing => Next::Size,
                };
                self.line.clear();
            }
        }
        Ok(at)
    }
}

/// The size at the front of a chunk's line; `None` when the line is not as RFC 9112 §7.1 has it.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    // A signed integer of 64 bits holds it, whatever the next reader uses.
    let size = u64::from_str_radix(std::str::from_utf8(&line[..digits]).ok()?, 16).ok()?;
    (i64::try_from(size).is_ok() && are_extensions(&line[digits..])).then_some(size)
}

/// `*( BWS ";" BWS name [ BWS "=" BWS ( token / quoted-string ) ] )`
fn are_extensions(mut text: &[u8]) -> bool {
    while !text.is_empty() {
        let Some(after) = unblank(text).strip_prefix(b";") else { return false };
        let Some(after) = token(unblank(after)) else { return false };
        text = match unblank(after).strip_prefix(b"=") {
            None => after,
            Some(value) => {
                let value = unblank(value);
                match value.strip_prefix(b"\"").map_or_else(|| token(value), quoted) {
                    Some(after) => after,
                    None => return false,
                }
            }
        };
    }
    true
}

/// Without the blanks at the front.
fn unblank(text: &[u8]) -> &[u8] {
    let blanks = text.iter().take_while(|byte| matches!(byte, b'\t' | b' ')).count();
    &text[blanks..]
}

/// What follows a token.
fn token(text: &[u8]) -> Option<&[u8]> {
    let length = text.iter().take_while(|byte| wire::is_token(&[**byte])).count();
    (length > 0).then(|| &text[length..])
}

/// What follows a quoted string, whose first quote has been read.
fn quoted(text: &[u8]) -> Option<&[u8]> {
    let mut bytes = text.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return Some(&text[at + 1..]),
            b'\\' => {
                bytes.next().filter(|(_, byte)| matches!(byte, b'\t' | b' '..=b'~' | 0x80..))?;
            }
            b'\t' | b' '..=b'~' | 0x80.. => {}
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much of `bytes` is body, `None` when it is broken; the same when it comes byte by byte.
    fn followed(mut framing: impl FnMut() -> Framing, bytes: &[u8]) -> Option<(usize, bool)> {
        let mut whole = framing();
        let length = whole.follow(bytes).ok();
        let mut by_byte = framing();
        let mut taken = Some(0);
        for byte in bytes {
            taken = taken.and_then(|taken| Some(taken + by_byte.follow(&[*byte]).ok()?));
        }
        assert_eq!(length, taken, "{:?}", String::from_utf8_lossy(bytes));
        length.map(|length| (length, whole.is_done()))
    }

    #[test]
    fn a_length_is_followed_to_its_end() {
        assert_eq!(followed(|| Framing::sized(3), b"abcdef"), Some((3, true)));
        assert_eq!(followed(|| Framing::sized(3), b"ab"), Some((2, false)));
        assert_eq!(followed(|| Framing::sized(0), b"ab"), Some((0, true)));
    }

    #[test]
    fn chunks_are_followed_to_their_end() {
        let check = |body: &str| {
            let bytes = format!("{body}GET / ");
            assert_eq!(followed(Framing::chunked, bytes.as_bytes()), Some((body.len(), true)), "{body:?}");
        };
        check("0\r\n\r\n");
        check("3\r\nabc\r\n0\r\n\r\n");
        check("00A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n");
        check("3;x\r\nabc\r\n0;y=z;q=\"a;\\\"b\" ; r = s\r\n\r\n");
        let long = format!("a: {}\r\n", "b".repeat(100)).repeat(70);
        for trailers in [&"a: b\r\n".repeat(100), &long] {
            check(&format!("0\r\n{trailers}\r\n"));
        }
        check("3\r\n\r\na\r\n0\r\nTrailer: x\r\nEmpty:\r\n\r\n");
        assert_eq!(followed(Framing::chunked, b"3\r\nab"), Some((5, false)));
    }

    #[test]
    fn chunks_that_two_readers_may_read_in_two_ways_are_broken() {
        let long = format!("1;{}\r\n", "x".repeat(300));
        let trailers = format!("0\r\n{}\r\n", "a: b\r\n".repeat(101));
        let trailer = format!("0\r\na: {}\r\n\r\n", "b".repeat(9_000));
        let together = format!("0\r\n{}\r\n", format!("a: {}\r\n", "b".repeat(100)).repeat(90));
        for body in [
            "\r\n",
            "x\r\n",
            "0x3\r\n",
            "-3\r\n",
            "+3\r\n",
            " 3\r\n",
            "3 \r\n",
            "3\n",
            "3\rabc\r\n",
            "3\r\nabcd\r\n",
            "3\r\nabc0\r\n",
            "3\r\nabc\n0\r\n\r\n",
            "8000000000000000\r\n",
            "10000000000000003\r\n",
            "3;\r\n",
            "3;=x\r\n",
            "3;a=\r\n",
            "3;a=\"b\r\n",
            "3;a\n",
            "3;a\r;b\r\n",
            "3;a=\"\x01\"\r\n",
            "3 a\r\n",
            "0\r\n\n",
            "0\r\nTrailer\r\n\r\n",
            "0\r\n folded: x\r\n\r\n",
            "0\r\nGET / HTTP/1.1\r\n\r\n",
            &long,
            &trailers,
            &trailer,
            &together,
        ] {
            assert_eq!(followed(Framing::chunked, body.as_bytes()), None, "{body:?}");
        }
    }
}
