//! What the body may have been before something on the way changed it: bodies to try a signature on.

use serde::de::IgnoredAny;

use super::BodyChange;

/// An indented document can be many times as long as a compact one.
const REENCODED_BYTES_MAX: usize = 4 << 20;
/// What is sorted is read into a tree, many times as large.
const SORTED_BYTES_MAX: usize = 256 << 10;
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Bodies that `body` may have been, each with what has become of it; as many at most, whatever the body is.
pub(super) fn originals(body: &[u8]) -> impl Iterator<Item = (BodyChange, Vec<u8>)> {
    at_the_end(body)
        .into_iter()
        .chain(line_ends(body))
        .chain(json(body))
        .chain(sorted_json(body))
        .filter(move |(_, original)| original.as_slice() != body)
}

fn at_the_end(body: &[u8]) -> Vec<(BodyChange, Vec<u8>)> {
    let bare = body.trim_ascii_end();
    let with = |end: &[u8]| [bare, end].concat();
    let mut originals = vec![
        (BodyChange::NewlineAdded, bare.to_vec()),
        (BodyChange::NewlineRemoved, with(b"\n")),
        (BodyChange::NewlineRemoved, with(b"\r\n")),
        (BodyChange::NewlineAdded, body.trim_ascii().to_vec()),
    ];
    originals.push(match body.strip_prefix(BYTE_ORDER_MARK) {
        Some(rest) => (BodyChange::ByteOrderMark, rest.to_vec()),
        None => (BodyChange::ByteOrderMark, [BYTE_ORDER_MARK, body].concat()),
    });
    originals
}

fn line_ends(body: &[u8]) -> Vec<(BodyChange, Vec<u8>)> {
    if !body.contains(&b'\n') {
        return Vec::new();
    }
    let mut feeds = Vec::with_capacity(body.len());
    for (at, byte) in body.iter().enumerate() {
        if !(*byte == b'\r' && body.get(at + 1) == Some(&b'\n')) {
            feeds.push(*byte);
        }
    }
    let mut returns = Vec::with_capacity(feeds.len());
    for byte in &feeds {
        if *byte == b'\n' {
            returns.push(b'\r');
        }
        returns.push(*byte);
    }
    vec![(BodyChange::LineEnds, feeds), (BodyChange::LineEnds, returns)]
}

/// How a library writes JSON.
struct Style {
    /// After a comma and a colon, where the document is on one line.
    comma: &'static str,
    colon: &'static str,
    indent: Option<&'static str>,
}

const STYLES: [Style; 6] = [
    Style { comma: "", colon: "", indent: None },
    Style { comma: " ", colon: " ", indent: None },
    Style { comma: "", colon: " ", indent: None },
    Style { comma: "", colon: " ", indent: Some("  ") },
    Style { comma: "", colon: " ", indent: Some("    ") },
    Style { comma: "", colon: " ", indent: Some("\t") },
];

/// Which characters of a text a library escapes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Escapes {
    AsTheyAre,
    /// Only what must be.
    Few,
    /// Everything that is not ASCII, as Python does.
    NotAscii,
    /// And slashes, as PHP does.
    NotAsciiAndSlash,
    /// What HTML knows, as Go does.
    Html,
}

const ESCAPES: [Escapes; 5] =
    [Escapes::AsTheyAre, Escapes::Few, Escapes::NotAscii, Escapes::NotAsciiAndSlash, Escapes::Html];

/// The document with its keys sorted, as many senders have it, where something on the way has put them in another order. The
/// numbers are those that are written as libraries write them.
fn sorted_json(body: &[u8]) -> impl Iterator<Item = (BodyChange, Vec<u8>)> {
    let document = (body.len() <= SORTED_BYTES_MAX)
        .then(|| serde_json::from_slice::<serde_json::Value>(body).ok())
        .flatten()
        .filter(|document| document.is_object() || document.is_array());
    // Maps of this library are sorted.
    let sorted = document.and_then(|document| serde_json::to_vec(&document).ok());
    let other_order =
        sorted.filter(|sorted| reencode(body, &STYLES[0], Escapes::Few).as_ref() != Some(sorted));
    other_order.into_iter().flat_map(|sorted| json(&sorted).collect::<Vec<_>>())
}

/// The document as other libraries would have written it, with its keys in their order.
fn json(body: &[u8]) -> impl Iterator<Item = (BodyChange, Vec<u8>)> {
    let is_json = || body.len() <= REENCODED_BYTES_MAX && serde_json::from_slice::<IgnoredAny>(body).is_ok();
    let document = body.trim_ascii_start().first().filter(|byte| b"{[".contains(byte)).filter(|_| is_json());
    let styles = document.into_iter().flat_map(|_| ESCAPES).flat_map(|escapes| {
        // Where nothing can be escaped in another way, it has all been tried.
        let is_same = escapes != Escapes::AsTheyAre
            && reencode(body, &STYLES[0], escapes) == reencode(body, &STYLES[0], Escapes::AsTheyAre);
        STYLES.iter().filter(move |_| !is_same).map(move |style| (style, escapes))
    });
    styles.filter_map(|(style, escapes)| reencode(body, style, escapes)).flat_map(|text| {
        let with_end = [&text[..], b"\n"].concat();
        [(BodyChange::JsonReencoded, text), (BodyChange::JsonReencoded, with_end)]
    })
}

/// `None` when it would be too long. Of a document that is known to be JSON.
fn reencode(json: &[u8], style: &Style, escapes: Escapes) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(json.len());
    let mut depth = 0usize;
    let new_line = |out: &mut Vec<u8>, depth: usize, otherwise: &str| match style.indent {
        Some(indent) => {
            out.push(b'\n');
            (0..depth).for_each(|_| out.extend_from_slice(indent.as_bytes()));
        }
        None => out.extend_from_slice(otherwise.as_bytes()),
    };
    let mut at = 0;
    while let Some(&byte) = json.get(at) {
        at += 1;
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => {}
            b'"' => {
                let end = at + text_end(&json[at..])?;
                write_text(&mut out, &json[at - 1..end], escapes)?;
                at = end;
            }
            b'{' | b'[' => {
                out.push(byte);
                let rest = json[at..].trim_ascii_start();
                if let Some(close @ (b'}' | b']')) = rest.first() {
                    out.push(*close);
                    at = json.len() - rest.len() + 1;
                } else {
                    depth += 1;
                    new_line(&mut out, depth, "");
                }
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut out, depth, "");
                out.push(byte);
            }
            b',' => {
                out.push(byte);
                new_line(&mut out, depth, style.comma);
            }
            b':' => {
                out.push(byte);
                out.extend_from_slice(style.colon.as_bytes());
            }
            _ => out.push(byte),
        }
        if out.len() > REENCODED_BYTES_MAX {
            return None;
        }
    }
    Some(out)
}

/// Where the text ends whose first quote is before `rest`, its last quote included.
fn text_end(rest: &[u8]) -> Option<usize> {
    let mut after_backslash = false;
    let end = rest.iter().position(|byte| {
        let ends = *byte == b'"' && !after_backslash;
        after_backslash = *byte == b'\\' && !after_backslash;
        ends
    });
    end.map(|end| end + 1)
}

fn write_text(out: &mut Vec<u8>, quoted: &[u8], escapes: Escapes) -> Option<()> {
    if escapes == Escapes::AsTheyAre {
        out.extend_from_slice(quoted);
        return Some(());
    }
    let text: String = serde_json::from_slice(quoted).ok()?;
    for c in serde_json::to_string(&text).ok()?.chars() {
        let escaped = match escapes {
            Escapes::AsTheyAre | Escapes::Few => false,
            Escapes::NotAscii => !c.is_ascii(),
            Escapes::NotAsciiAndSlash => !c.is_ascii() || c == '/',
            Escapes::Html => matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}'),
        };
        match c {
            '/' if escaped => out.extend_from_slice(b"\\/"),
            _ if escaped => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.extend_from_slice(format!("\\u{unit:04x}").as_bytes());
                }
            }
            _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(received: &str, change: BodyChange, original: &str) {
        let found = originals(received.as_bytes()).find(|(_, body)| body == original.as_bytes());
        assert_eq!(found.map(|(change, _)| change), Some(change), "{received:?} was {original:?}");
    }

    #[test]
    fn what_libraries_make_of_a_document_is_undone() {
        let original = "{\"a\": [1, 2.50, {}], \"b\": \"caf\u{e9} </a>\", \"c\": []}";
        let compact = "{\"a\":[1,2.50,{}],\"b\":\"caf\u{e9} </a>\",\"c\":[]}";
        let pretty =
            "{\n  \"a\": [\n    1,\n    2.50,\n    {}\n  ],\n  \"b\": \"caf\u{e9} </a>\",\n  \"c\": []\n}";
        let php = "{\"a\":[1,2.50,{}],\"b\":\"caf\\u00e9 <\\/a>\",\"c\":[]}";
        let go = "{\"a\":[1,2.50,{}],\"b\":\"caf\u{e9} \\u003c/a\\u003e\",\"c\":[]}";
        let forms = [original, compact, pretty, php, go];
        for received in forms {
            for original in forms.iter().filter(|form| **form != received) {
                check(received, BodyChange::JsonReencoded, original);
                check(received, BodyChange::JsonReencoded, &format!("{original}\n"));
            }
        }
    }

    #[test]
    fn ends_of_lines_and_marks_are_undone() {
        check("{}\n", BodyChange::NewlineAdded, "{}");
        check("{}\r\n", BodyChange::NewlineAdded, "{}");
        check("{}", BodyChange::NewlineRemoved, "{}\n");
        check("{}", BodyChange::NewlineRemoved, "{}\r\n");
        check("a\nb", BodyChange::LineEnds, "a\r\nb");
        check("a\r\nb\n", BodyChange::LineEnds, "a\nb\n");
        check("\u{feff}a", BodyChange::ByteOrderMark, "a");
        check("a", BodyChange::ByteOrderMark, "\u{feff}a");
    }

    #[test]
    fn no_body_makes_many_or_large_ones() {
        let deep = format!("{}{}", "[".repeat(120), "]".repeat(120));
        let wide = format!("[{}]", vec![deep.as_str(); 4_000].join(","));
        for body in ["", "\"", "{\"a\":\"\\", &deep, &wide, "{\"\\ud83d\\ude00\":\"\\u0000/<\"}"] {
            let originals: Vec<_> = originals(body.as_bytes()).collect();
            assert!(originals.len() <= 7 + 4 * STYLES.len() * ESCAPES.len());
            let longest = originals.iter().map(|(_, body)| body.len()).max().unwrap_or(0);
            assert!(longest <= REENCODED_BYTES_MAX.max(body.len() + 3) + 1, "{longest}");
        }
    }
}
