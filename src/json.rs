//! A sender's JSON document as a tree, for what looks into it at will: conditions and templates. How many values it may have
//! is bounded, since each takes many times the bytes that it was written in. And as text for people, as it is.

use serde::de::IgnoredAny;
use serde_json::Value;

/// About 10 MB of tree.
const VALUES_MAX: usize = 100_000;
/// What indentation may make of a document.
const INDENTED_BYTES_MAX: usize = 1 << 20;

/// Why there is no tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JsonError {
    /// It is no JSON, or nested more than 127 levels deep.
    #[error("the body is not JSON")]
    NotJson,
    /// It is too large to be held as a tree.
    #[error("the body has more than 100,000 values")]
    TooManyValues,
}

/// Reads a whole document.
///
/// # Errors
/// When it is no JSON, or too large.
pub(crate) fn parse(document: &[u8]) -> Result<Value, JsonError> {
    if values(document) > VALUES_MAX {
        return Err(JsonError::TooManyValues);
    }
    serde_json::from_slice(document).map_err(|_| JsonError::NotJson)
}

/// JSON with lines and indentation, and every other character as it came: order, numbers and escapes are what was signed.
/// `None` for what is no JSON, or would be too long.
pub fn indented(text: &str) -> Option<String> {
    serde_json::from_str::<IgnoredAny>(text).ok()?;
    let mut indented = String::with_capacity(text.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    let mut rest = text.chars().peekable();
    let line = |indented: &mut String, depth: usize| {
        indented.push('\n');
        indented.extend(std::iter::repeat_n("  ", depth));
    };
    while let Some(c) = rest.next() {
        if indented.len() > INDENTED_BYTES_MAX {
            return None;
        }
        if in_string {
            indented.push(c);
            in_string = escaped || c != '"';
            escaped = c == '\\' && !escaped;
            continue;
        }
        match c {
            ' ' | '\t' | '\n' | '\r' => {}
            '{' | '[' => {
                indented.push(c);
                while rest.next_if(char::is_ascii_whitespace).is_some() {}
                if let Some(end) = rest.next_if(|next| matches!(next, '}' | ']')) {
                    indented.push(end);
                } else {
                    depth += 1;
                    line(&mut indented, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut indented, depth);
                indented.push(c);
            }
            ',' => {
                indented.push(c);
                line(&mut indented, depth);
            }
            ':' => indented.push_str(": "),
            c => {
                in_string = c == '"';
                indented.push(c);
            }
        }
    }
    Some(indented)
}

/// How many values a document has, keys included; more rather than fewer.
fn values(document: &[u8]) -> usize {
    let (mut in_text, mut after_backslash, mut count) = (false, false, 1);
    for byte in document {
        match (in_text, byte) {
            (true, b'"') if !after_backslash => in_text = false,
            (true, _) => after_backslash = *byte == b'\\' && !after_backslash,
            (false, b'"') => (in_text, after_backslash) = (true, false),
            (false, b',' | b':' | b'[' | b'{') => count += 1,
            (false, _) => {}
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indentation_changes_white_space_only() {
        let check =
            |text: &str, expected: Option<&str>| assert_eq!(indented(text).as_deref(), expected, "{text}");
        check(
            r#"{"b":1.50e400,"a":[ ],"c":{"x":"\" {,}: \\"},"d":[1,{}]}"#,
            Some(
                "{\n  \"b\": 1.50e400,\n  \"a\": [],\n  \"c\": {\n    \"x\": \"\\\" {,}: \\\\\"\n  },\n  \"d\": [\n    1,\n    {}\n  ]\n}",
            ),
        );
        check("\"<script>\"", Some("\"<script>\""));
        check("{", None);
        check("", None);
        check("a=b", None);
        // Deep and wide: a few kilobytes would become many.
        let deep = format!("{}{}{}", "[".repeat(120), vec!["1"; 40_000].join(","), "]".repeat(120));
        check(&deep, None);
    }

    #[test]
    fn the_size_of_the_tree_is_bounded() {
        let list = |elements: usize| format!("[{}1]", "1,".repeat(elements - 1)).into_bytes();
        assert!(parse(&list(VALUES_MAX - 1)).is_ok());
        assert_eq!(parse(&list(VALUES_MAX)), Err(JsonError::TooManyValues));
        let text = format!("\"{}\\\"{}\"", ",".repeat(VALUES_MAX), "[".repeat(VALUES_MAX));
        assert!(parse(text.as_bytes()).is_ok(), "what stands in a text is no value");
        for none in ["", "{", "{} {}", "\u{feff}{}", &"[".repeat(200)] {
            assert_eq!(parse(none.as_bytes()), Err(JsonError::NotJson), "{none}");
        }
    }
}
