//! What all pages have in common, and how what strangers have written is shown.

use std::borrow::Cow;
use std::fmt::Write as _;

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use maud::{DOCTYPE, Markup, html};

use super::enter::Visitor;

pub(super) const HTML: &str = "text/html; charset=utf-8";

/// The pages that the navigation names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tab {
    Overview,
    Deliveries,
    Dead,
    Refused,
    Destinations,
    Sources,
    Changes,
}

impl Tab {
    const ALL: [Self; 7] = [
        Self::Overview,
        Self::Deliveries,
        Self::Dead,
        Self::Refused,
        Self::Destinations,
        Self::Sources,
        Self::Changes,
    ];

    fn name_and_path(self) -> (&'static str, &'static str) {
        match self {
            Self::Overview => ("Overview", "/"),
            Self::Deliveries => ("Deliveries", "/deliveries"),
            Self::Dead => ("Dead letters", "/dead"),
            Self::Refused => ("Refused", "/refused"),
            Self::Destinations => ("Destinations", "/destinations"),
            Self::Sources => ("Sources", "/sources"),
            Self::Changes => ("Changes", "/changes"),
        }
    }
}

/// A page for whoever has been let in.
pub(super) fn page(visitor: &Visitor, tab: Option<Tab>, title: &str, body: &Markup) -> Response {
    let notice = visitor.session.take_notice();
    let operator = &visitor.operator;
    let top = html! {
        a.skip href="#main" { "Skip to content" }
        header {
            a.brand href="/" { "Countersign" }
            nav aria-label="Pages" {
                @for each in Tab::ALL {
                    @let (name, path) = each.name_and_path();
                    a href=(path) aria-current=[(tab == Some(each)).then_some("page")] { (name) }
                }
            }
            div.who {
                button type="button" data-theme-toggle title="Dark or light" aria-label="Dark or light" { "◐" }
                span { (operator.name) @if !visitor.may_change() { " (viewer)" } }
                @if visitor.session.token.is_some() {
                    form method="post" action="/logout" {
                        (seal(visitor))
                        button type="submit" { "Log out" }
                    }
                }
            }
        }
        main #main tabindex="-1" {
            @if let Some(notice) = notice { p.notice role="status" { (notice.0) } }
            (body)
        }
    };
    document(StatusCode::OK, title, &top)
}

/// A page for whoever has not.
pub(super) fn bare(status: StatusCode, title: &str, body: &Markup) -> Response {
    document(status, title, &html! { main.bare #main { (body) } })
}

fn document(status: StatusCode, title: &str, body: &Markup) -> Response {
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · Countersign" }
                link rel="icon" href="/assets/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/assets/console.css";
                script src="/assets/console.js" {}
            }
            body { (body) }
        }
    };
    (status, [(CONTENT_TYPE, HTML)], markup.into_string()).into_response()
}

/// What proves that a form is ours.
pub(super) fn seal(visitor: &Visitor) -> Markup {
    html! { input type="hidden" name="csrf" value=(visitor.session.csrf()); }
}

/// A button that changes something; nothing for whoever may not.
pub(super) struct Action<'a> {
    pub(super) to: String,
    pub(super) label: &'a str,
    /// Fields of the form.
    pub(super) with: Vec<(&'a str, &'a str)>,
    /// What to ask before it is sent.
    pub(super) confirm: Option<String>,
}

impl<'a> Action<'a> {
    pub(super) fn new(to: String, label: &'a str) -> Self {
        Self { to, label, with: Vec::new(), confirm: None }
    }

    pub(super) fn with(mut self, name: &'a str, value: &'a str) -> Self {
        self.with.push((name, value));
        self
    }

    pub(super) fn confirm(mut self, question: String) -> Self {
        self.confirm = Some(question);
        self
    }

    pub(super) fn button(self, visitor: &Visitor) -> Markup {
        if !visitor.may_change() {
            return html! {};
        }
        html! {
            form.action method="post" action=(self.to) data-confirm=[self.confirm] {
                (seal(visitor))
                @for (name, value) in self.with { input type="hidden" name=(name) value=(value); }
                button type="submit" { (self.label) }
            }
        }
    }
}

/// What went wrong.
pub(super) fn refusal(why: &str) -> Markup {
    html! { p.refusal role="alert" { (plain(why)) } }
}

/// A state, coloured by what it means.
pub(super) fn state(label: &str) -> Markup {
    let class = match label {
        "delivered" | "open" | "stored" | "ok" | "done" | "enforce" => "good",
        "dead" | "broken" | "failed" | "refused" => "bad",
        "observe" | "waiting" | "in_flight" | "probing" | "paused" | "unrouted" | "running" | "counting" => {
            "mind"
        }
        _ => "dim",
    };
    html! { span class={ "state " (class) } { (label.replace('_', " ")) } }
}

/// A time, which the script shows by the reader's clock.
pub(super) fn time(at: &str) -> Markup {
    // To the second: the whole is in the attribute.
    let short =
        at.split_once('.').map_or_else(|| at.trim_end_matches('Z'), |(second, _)| second).replace('T', " ");
    html! { time datetime=(at) title=(at) { (short) " UTC" } }
}

/// Text that strangers may have written: what cannot be seen, or would turn the direction of what follows, is shown by its
/// number. Escaping is left to the markup.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    let is_odd = |c: char| {
        (c.is_control() && c != '\n' && c != '\t')
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{61c}')
    };
    if !text.contains(is_odd) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_odd(c) {
            let _ = write!(shown, "\\u{{{:x}}}", u32::from(c));
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// The same where there may be nothing.
pub(super) fn or_dash(text: Option<&str>) -> Markup {
    match text {
        Some(text) => html! { (plain(text)) },
        None => html! { span.dim { "–" } },
    }
}

/// A number of bytes for people.
pub(super) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// A span of seconds for people.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Thousands apart.
pub(super) fn number(count: u64) -> String {
    let digits = count.to_string();
    let mut shown = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// A query string of what is given.
pub(super) fn query<'a>(pairs: impl IntoIterator<Item = (&'a str, Option<&'a str>)>) -> String {
    let encode = |text| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC);
    let given =
        pairs.into_iter().filter_map(|(name, value)| Some((name, value.filter(|value| !value.is_empty())?)));
    let shown: Vec<_> = given.map(|(name, value)| format!("{name}={}", encode(value))).collect();
    if shown.is_empty() { String::new() } else { format!("?{}", shown.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_shown() {
        assert_eq!(plain("a\u{202e}b\u{0}c\u{1b}[31m\td\n"), "a\\u{202e}b\\u{0}c\\u{1b}[31m\td\n");
        assert_eq!(plain("é ünïcode 漢字"), "é ünïcode 漢字");
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(
            (number(0), number(999), number(1_000), number(1_234_567)),
            ("0".to_owned(), "999".to_owned(), "1,000".to_owned(), "1,234,567".to_owned())
        );
        assert_eq!(
            (bytes(12), bytes(1_536), bytes(3 << 30)),
            ("12 B".to_owned(), "1.5 KiB".to_owned(), "3.0 GiB".to_owned())
        );
        assert_eq!(
            (span(59), span(61), span(3_720), span(200_000)),
            ("59 s".to_owned(), "1 min".to_owned(), "1 h 2 min".to_owned(), "2 days".to_owned())
        );
    }

    #[test]
    fn a_query_holds_what_is_given_and_nothing_else_of_it() {
        assert_eq!(query([("a", Some("x&b=\"<")), ("b", None), ("c", Some(""))]), "?a=x%26b%3D%22%3C");
        assert_eq!(query([("a", None)]), "");
    }
}
