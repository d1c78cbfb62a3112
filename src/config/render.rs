//! Shows a problem with its place in the file: one line that a machine can read, the line of the file, and what would
//! be right. What may be secret is blotted out, since this text goes to logs.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet, normalize_untrusted_str};

use crate::reader::{Problem, Severity};

/// A file as it may be shown.
pub(super) struct Page<'a> {
    file_name: &'a str,
    text: &'a str,
    /// As long as `text`, so that places in one are places in the other.
    shown: String,
}

impl<'a> Page<'a> {
    /// Blots out what is `concealed`, and the lines that are not valid TOML: nobody knows what is a value there.
    pub(super) fn new(
        file_name: &'a str,
        text: &'a str,
        problems: &[Problem],
        concealed: &[Range<usize>],
    ) -> Self {
        let mut shown = text.as_bytes().to_vec();
        for range in concealed {
            blot(&mut shown[range.clone()], |byte| byte != b'\n');
        }
        for problem in problems.iter().filter(|problem| is_syntax(problem)) {
            let line = line_at(text, problem.span.start);
            let value = match text[line.clone()].find('=') {
                Some(at) => line.start + at..line.end,
                None if text[line.clone()].trim_start().starts_with('[') => continue,
                None => line,
            };
            blot(&mut shown[value], |byte| byte.is_ascii_alphanumeric() || byte >= 0x80);
        }
        // Whole characters are blotted out, byte by byte, so what is left is UTF-8.
        let shown = String::from_utf8(shown).unwrap_or_default();
        Self { file_name, text, shown }
    }

    /// `file:line:column: error: key.path: message`, the line, and the help.
    pub(super) fn render(&self, problem: &Problem) -> String {
        let severity = match problem.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let at = self.text.floor_char_boundary(problem.span.start);
        let line = line_at(self.text, at);
        let column = self.text[line.start..at].chars().count() + 1;
        let path = if problem.path.is_empty() { String::new() } else { format!("{}: ", problem.path) };
        let line_number = line_number(self.text, at);
        let title = format!(
            "{}:{line_number}:{column}: {severity}: {}",
            self.file_name,
            one_line(&(path + &problem.message))
        );
        // The first line of a table or a list says enough.
        let end = self.text.floor_char_boundary(problem.span.end).clamp(at, line.end);
        let place = AnnotationKind::Primary.span(at..end);
        let group = Level::ERROR
            .no_name()
            .primary_title(title)
            .element(Snippet::source(self.shown.as_str()).annotation(place))
            .element(Level::HELP.message(normalize_untrusted_str(&problem.help)));
        Renderer::plain().render(&[group])
    }
}

/// Whether `problem` is one of the syntax; all others name a key.
pub(super) fn is_syntax(problem: &Problem) -> bool {
    problem.path.is_empty()
}

/// The number, from 1, of the line in which byte `at` lies.
pub(super) fn line_number(text: &str, at: usize) -> usize {
    text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// The line in which byte `at` lies, without its end.
fn line_at(text: &str, at: usize) -> Range<usize> {
    let at = text.floor_char_boundary(at);
    let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let end = text[at..].find('\n').map_or(text.len(), |newline| at + newline);
    start..end
}

/// What was quoted from the file may have line breaks.
fn one_line(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escape).collect()
}

fn blot(bytes: &mut [u8], hides: impl Fn(u8) -> bool) {
    for byte in bytes {
        if hides(*byte) {
            *byte = b'*';
        }
    }
}
