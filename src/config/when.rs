//! `when` of a route: a condition, whose mistakes are shown where they stand in the file.

use super::values::Context;
use crate::reader::Value;
use crate::route::Condition;

const HELP: &str = "a condition in CEL (https://cel.dev) about body, headers, event, source, method and delivery_id, such as \
    \"body.status == 'failed'\"";

pub(super) fn read(value: &Value<'_>, context: &Context<'_>) -> Option<Condition> {
    let text = value.text()?;
    match Condition::parse(text) {
        Ok(condition) => Some(condition),
        Err(errors) => {
            let span = value.span();
            let written = context.text.get(span.clone()).unwrap_or_default();
            for error in errors {
                value.wrong_at(span.start + place(written, error.at), error.to_string(), HELP);
            }
            None
        }
    }
}

/// Where byte `at` of a text stands in the text as it is `written` in TOML, quotes included.
fn place(written: &str, at: usize) -> usize {
    let quotes = if written.starts_with("\"\"\"") || written.starts_with("'''") { 3 } else { 1 };
    let has_escapes = written.starts_with('"');
    let mut rest = written.get(quotes..).unwrap_or_default();
    if quotes == 3 {
        // A line feed at once after the quotes is no part of the text.
        rest = rest.strip_prefix("\r\n").or_else(|| rest.strip_prefix('\n')).unwrap_or(rest);
    }
    let mut passed = 0;
    while passed < at {
        let mut characters = rest.chars();
        let (taken, bytes) = match (characters.next(), characters.next()) {
            (None, _) => break,
            (Some('\\'), Some(escaped)) if has_escapes => {
                let digits = match escaped {
                    'x' => 2,
                    'u' => 4,
                    'U' => 8,
                    _ => 0,
                };
                let code = rest.get(2..2 + digits).and_then(|digits| u32::from_str_radix(digits, 16).ok());
                (1 + escaped.len_utf8() + digits, code.and_then(char::from_u32).map_or(1, char::len_utf8))
            }
            (Some(character), _) => (character.len_utf8(), character.len_utf8()),
        };
        passed += bytes;
        rest = rest.get(taken..).unwrap_or_default();
    }
    written.len() - rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_behind_quotes_and_escapes() {
        let check = |written: &str, at, before: &str| {
            assert_eq!(&written[..place(written, at)], before, "{written} {at}");
        };
        check("'abc'", 1, "'a");
        check("\"abc\"", 1, "\"a");
        check("\"\\\"a\"", 1, "\"\\\"");
        check("\"\\u00e4b\"", 2, "\"\\u00e4");
        check("'\\u'", 1, "'\\");
        check("'''\nab'''", 1, "'''\na");
        check("\"\"\"\r\nä\tb\"\"\"", 2, "\"\"\"\r\nä");
        check("\"ab\"", 2, "\"ab");
        check("\"ab\"", 99, "\"ab\"");
        check("", 0, "");
    }
}
