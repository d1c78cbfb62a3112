//! A sender's JSON document as a tree, for what looks into it at will: conditions and templates. How many values it may have
//! is bounded, since each takes many times the bytes that it was written in.

use serde_json::Value;

/// About 10 MB of tree.
const VALUES_MAX: usize = 100_000;

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
