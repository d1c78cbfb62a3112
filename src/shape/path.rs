//! Paths with values of the delivery in them: `/sites/{json:/data/site_id}/{event}`. A value is percent-encoded whole, so that
//! a sender's text stays within its segment, and one that would be a step up or down the path is refused.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::delivery::Delivery;
use crate::verify::Place;

/// All but what RFC 3986 calls unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Longer ones are no names of anything, and servers refuse long paths.
const VALUE_BYTES_MAX: usize = 512;

/// A path and query with placeholders.
#[derive(Debug, Clone)]
pub struct PathTemplate(Vec<Part>);

#[derive(Debug, Clone)]
enum Part {
    Literal(String),
    Event,
    Source,
    DeliveryId,
    Id,
    Value(Place),
}

/// Why a path cannot be made of a delivery.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The delivery has nothing there.
    #[error("the URL names `{{{0}}}`, which the delivery does not have")]
    Missing(String),
    /// What it has there is too long.
    #[error("the URL names `{{{0}}}`, whose value is longer than {VALUE_BYTES_MAX} bytes")]
    TooLong(String),
    /// `.` or `..` would be another path.
    #[error("the URL would have `.` or `..` in its path")]
    Dots,
}

impl PathTemplate {
    /// Reads the placeholders of `text`; `None` when there is none.
    ///
    /// # Errors
    /// Where one is not known, or not closed, in bytes, and why.
    pub fn parse(text: &str) -> Result<Option<Self>, (usize, String)> {
        const KNOWN: &str = "{event}, {source}, {delivery_id}, {id}, {json:/pointer}, {header:NAME}, {query:NAME} or {form:NAME}";
        let (mut parts, mut at) = (Vec::new(), 0);
        while let Some(open) = text[at..].find('{').map(|open| at + open) {
            let close = text[open..].find('}').map(|close| open + close);
            let close = close.ok_or_else(|| (open, "the brace is not closed".to_owned()))?;
            parts.push(Part::Literal(text[at..open].to_owned()));
            let name = &text[open + 1..close];
            parts.push(match name {
                "event" => Part::Event,
                "source" => Part::Source,
                "delivery_id" => Part::DeliveryId,
                "id" => Part::Id,
                _ => Part::Value(name.parse::<Place>().map_err(|_| {
                    (open, format!("`{{{name}}}` is no value of a delivery; there are {KNOWN}"))
                })?),
            });
            at = close + 1;
        }
        if parts.is_empty() {
            return Ok(None);
        }
        parts.push(Part::Literal(text[at..].to_owned()));
        Ok(Some(Self(parts)))
    }

    /// Path and query for `delivery`.
    ///
    /// # Errors
    /// When a value is missing or cannot stand in a path.
    pub fn fill(&self, delivery: &Delivery) -> Result<String, PathError> {
        let mut filled = String::new();
        for part in &self.0 {
            let value = match part {
                Part::Literal(text) => {
                    filled.push_str(text);
                    continue;
                }
                Part::Event => delivery.event.clone(),
                Part::Source => Some(delivery.source.to_string()),
                Part::DeliveryId => delivery.delivery_id.clone(),
                Part::Id => Some(delivery.id.to_string()),
                Part::Value(place) => place.find_text(delivery),
            };
            let value = value.filter(|value| !value.is_empty());
            let value = value.ok_or_else(|| PathError::Missing(part.to_string()))?;
            if value.len() > VALUE_BYTES_MAX {
                return Err(PathError::TooLong(part.to_string()));
            }
            filled.extend(utf8_percent_encode(&value, ENCODED));
        }
        let path = filled.split('?').next().unwrap_or_default();
        if path.split('/').any(|segment| segment == "." || segment == "..") {
            return Err(PathError::Dots);
        }
        Ok(filled)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(text) => f.write_str(text),
            Self::Event => f.write_str("event"),
            Self::Source => f.write_str("source"),
            Self::DeliveryId => f.write_str("delivery_id"),
            Self::Id => f.write_str("id"),
            Self::Value(place) => place.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::tests::delivery;

    fn fill(text: &str, body: &str) -> Result<String, PathError> {
        PathTemplate::parse(text).unwrap().unwrap().fill(&delivery(body.as_bytes(), Some("a.b")))
    }

    #[test]
    fn values_stand_in_the_path_and_never_leave_their_segment() {
        let id = |id: &str| fill("/s/{json:/id}/x?e={event}", &format!("{{\"id\":{id}}}"));
        assert_eq!(id("\"one\"").unwrap(), "/s/one/x?e=a.b");
        assert_eq!(id("42").unwrap(), "/s/42/x?e=a.b");
        assert_eq!(
            id("\"../a/b?c#d&e=%2f ä\\r\\nX: y\\\\@\"").unwrap(),
            "/s/..%2Fa%2Fb%3Fc%23d%26e%3D%252f%20%C3%A4%0D%0AX%3A%20y%5C%40/x?e=a.b"
        );
        for dots in ["\".\"", "\"..\""] {
            assert_eq!(id(dots), Err(PathError::Dots));
        }
        assert_eq!(fill("/{json:/a}{json:/a}", "{\"a\":\".\"}"), Err(PathError::Dots));
        for nothing in ["\"\"", "null", "{}", "1.5"] {
            assert_eq!(id(nothing), Err(PathError::Missing("json:/id".to_owned())), "{nothing}");
        }
        let long = format!("\"{}\"", "x".repeat(VALUE_BYTES_MAX + 1));
        assert_eq!(id(&long), Err(PathError::TooLong("json:/id".to_owned())));
        assert_eq!(fill("/{source}/{delivery_id}/{id}", "").unwrap().len(), "/shop/evt_1/".len() + 36);
    }

    #[test]
    fn placeholders_are_known_or_refused() {
        assert!(PathTemplate::parse("/plain").unwrap().is_none());
        let wrong = |text: &str, at| assert_eq!(PathTemplate::parse(text).unwrap_err().0, at, "{text}");
        wrong("/{evnt}", 1);
        wrong("/a/{event", 3);
        wrong("/a/{json:id}", 3);
        wrong("/a/{}", 3);
    }
}
