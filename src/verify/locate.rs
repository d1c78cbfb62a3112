//! Where in a request a value is: `header:NAME`, `query:NAME`, `json:/pointer`, `form:NAME`. A value is found as the
//! bytes that were received; a value that is there twice is refused, since a backend might read the other one. JSON
//! is scanned without building a tree, so that no body takes more memory than it has bytes.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use http::header::GetAll;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use percent_encoding::percent_decode;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::Refusal;
use crate::delivery::is_same_to_cgi;

/// A document nested more deeply is not looked into: each level that is passed over takes a byte of memory.
const DEPTH_MAX: usize = 256 << 10;
/// Neither a key nor a value with escapes is read that is longer: without them it would be a copy, beside the body.
const ESCAPED_BYTES_MAX: usize = 64 << 10;

/// A place in a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Locator {
    Header(HeaderName),
    Query(String),
    Json(Pointer),
    Form(String),
}

impl Locator {
    pub(super) const HELP: &str =
        "`header:NAME`, `query:NAME`, `json:/pointer` or `form:NAME`, such as `header:X-Acme-Delivery`";

    /// Whether it can only be looked up when the body has been read.
    pub(super) fn needs_body(&self) -> bool {
        match self {
            Self::Header(_) | Self::Query(_) => false,
            Self::Json(_) | Self::Form(_) => true,
        }
    }
}

impl fmt::Display for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Query(name) => write!(f, "query:{name}"),
            Self::Json(pointer) => write!(f, "json:{}", pointer.as_str()),
            Self::Form(name) => write!(f, "form:{name}"),
        }
    }
}

/// Why a text is not a locator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum LocatorError {
    #[error("it does not say where to look")]
    Kind,
    #[error("the name is empty or not possible there")]
    Name,
    #[error("a JSON pointer begins with a slash")]
    Pointer,
}

impl FromStr for Locator {
    type Err = LocatorError;

    fn from_str(text: &str) -> Result<Self, LocatorError> {
        let (kind, name) = text.split_once(':').ok_or(LocatorError::Kind)?;
        let named = || if name.is_empty() { Err(LocatorError::Name) } else { Ok(name.to_owned()) };
        match kind {
            "header" => name.parse().map(Self::Header).map_err(|_| LocatorError::Name),
            "query" => named().map(Self::Query),
            "form" => named().map(Self::Form),
            "json" => Pointer::parse(name).map(Self::Json).ok_or(LocatorError::Pointer),
            _ => Err(LocatorError::Kind),
        }
    }
}

/// A JSON pointer (RFC 6901) to a text or a whole number. A step `*` is every element of a list: each must have the same
/// value there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pointer {
    text: String,
    steps: Vec<String>,
}

impl Pointer {
    fn parse(text: &str) -> Option<Self> {
        let steps = text.strip_prefix('/')?.split('/');
        let steps = steps.map(|step| step.replace("~1", "/").replace("~0", "~")).collect();
        Some(Self { text: text.to_owned(), steps })
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// The text or whole number there; `None` when the body is not JSON, or has nothing or something else there.
    /// Of a key that is there twice the last one counts, as it does for nearly every backend's parser.
    fn find<'b>(&self, body: &'b [u8]) -> Option<Cow<'b, str>> {
        if body.len() > ESCAPED_BYTES_MAX && !is_cheap(body) {
            return None;
        }
        let mut json = serde_json::Deserializer::from_slice(body);
        let found = Step(&self.steps).deserialize(&mut json).ok()?;
        json.end().ok()?;
        found
    }
}

/// Whether reading a JSON document takes little memory: it is not nested too deeply, and no key has to be copied that is
/// too long.
pub(super) fn is_cheap(json: &[u8]) -> bool {
    let (mut depth, mut in_text, mut after_backslash) = (0usize, false, false);
    // Of the text that is read, or was read last.
    let (mut length, mut has_escapes) = (0, false);
    for byte in json {
        match (in_text, byte) {
            (true, b'"') if !after_backslash => in_text = false,
            (true, _) => {
                after_backslash = *byte == b'\\' && !after_backslash;
                has_escapes |= after_backslash;
                length += 1;
            }
            (false, b'"') => (in_text, length, has_escapes) = (true, 0, false),
            (false, b':') if has_escapes && length > ESCAPED_BYTES_MAX => return false,
            (false, b'[' | b'{') if depth == DEPTH_MAX => return false,
            (false, b'[' | b'{') => depth += 1,
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            (false, _) => {}
        }
    }
    true
}

/// What a pointer is after: a text or a whole number. A text that is too long to be unescaped stays as it was written,
/// which is longer than anything that could be made use of.
fn text_of(json: &str) -> Option<Cow<'_, str>> {
    let text = json.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    match text {
        Some(text) if !text.contains('\\') || text.len() > ESCAPED_BYTES_MAX => Some(Cow::Borrowed(text)),
        Some(_) => serde_json::from_str(json).ok().map(Cow::Owned),
        None => {
            let number: serde_json::Number = serde_json::from_str(json).ok()?;
            (number.is_u64() || number.is_i64()).then(|| Cow::Owned(number.to_string()))
        }
    }
}

/// What is left of a pointer at some depth of the document.
struct Step<'p>(&'p [String]);

impl<'de> DeserializeSeed<'de> for Step<'_> {
    type Value = Option<Cow<'de, str>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        if self.0.is_empty() {
            return <&RawValue>::deserialize(deserializer).map(|raw| text_of(raw.get()));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Step<'_> {
    type Value = Option<Cow<'de, str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        let wanted = self.0.split_first();
        while let Some(is_wanted) = map.next_key_seed(Key(wanted.map(|(step, _)| &**step)))? {
            match wanted {
                Some((_, rest)) if is_wanted => found = map.next_value_seed(Step(rest))?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        if let Some((step, rest)) = self.0.split_first()
            && step == "*"
        {
            let mut common = list.next_element_seed(Step(rest))?.flatten();
            while let Some(element) = list.next_element_seed(Step(rest))? {
                common = common.filter(|value| element.as_ref() == Some(value));
            }
            return Ok(common);
        }
        let mut found = None;
        let wanted = self.0.split_first().and_then(|(step, rest)| Some((index(step)?, rest)));
        for index in 0usize.. {
            match wanted {
                Some((step, rest)) if step == index => match list.next_element_seed(Step(rest))? {
                    Some(element) => found = element,
                    None => break,
                },
                _ => {
                    if list.next_element::<IgnoredAny>()?.is_none() {
                        break;
                    }
                }
            }
        }
        Ok(found)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// RFC 6901 §4: digits, without zeros before others.
fn index(step: &str) -> Option<usize> {
    let is_index = step == "0" || step.starts_with(|c: char| matches!(c, '1'..='9'));
    if is_index { step.parse().ok() } else { None }
}

/// Whether the key of a member is this one. Compared where it stands: a copy of each would cost as much as the body.
struct Key<'k>(Option<&'k str>);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(self.0 == Some(key))
    }
}

/// A request in which values are looked up: received, or about to be signed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) method: &'a Method,
    /// What stands before `target` in the URL that the provider was told; empty when it is not known.
    pub(super) base_url: &'a str,
    /// The same with the standard port where it has none, and without it where it has it.
    pub(super) other_base_url: &'a str,
    /// Path and query.
    pub(super) target: &'a str,
    pub(super) headers: &'a HeaderMap,
    /// `None` while it has not been read.
    pub(super) body: Option<&'a [u8]>,
}

impl<'a> Request<'a> {
    /// The value at `locator`; `None` when it is absent, empty, or in a body that has not been read.
    pub(super) fn find(&self, locator: &Locator) -> Result<Option<Cow<'a, [u8]>>, Refusal> {
        let value = match locator {
            Locator::Header(name) => self.find_header(name)?.map(Cow::Borrowed),
            Locator::Query(name) => {
                let query = self.target.split_once('?').map_or("", |(_, query)| query);
                field(query.as_bytes(), name)?
            }
            Locator::Form(name) => field(self.body.unwrap_or_default(), name)?,
            Locator::Json(pointer) => self.body.and_then(|body| pointer.find(body)).map(|text| match text {
                Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
                Cow::Owned(text) => Cow::Owned(text.into_bytes()),
            }),
        };
        Ok(value.filter(|value| !value.is_empty()))
    }

    /// The values of a header that may be there several times, under this very name.
    pub(super) fn find_headers(&self, name: &HeaderName) -> Result<GetAll<'a, HeaderValue>, Refusal> {
        let is_twin = |other: &HeaderName| other != name && is_same_to_cgi(other.as_str(), name.as_str());
        if self.headers.keys().any(is_twin) {
            return Err(Refusal::DuplicateValue);
        }
        Ok(self.headers.get_all(name))
    }

    /// The value of a header that must be single; `None` when it is absent or empty. A twin, as with `_` for `-`, counts
    /// as a second one: CGI-like backends cannot tell them apart.
    pub(super) fn find_header(&self, name: &HeaderName) -> Result<Option<&'a [u8]>, Refusal> {
        let mut values = self.find_headers(name)?.iter();
        let first = values.next();
        if values.next().is_some() {
            return Err(Refusal::DuplicateValue);
        }
        Ok(first.map(HeaderValue::as_bytes).filter(|value| !value.is_empty()))
    }

    /// The value at the first of `locators` that has one.
    pub(super) fn find_first(&self, locators: &[Locator]) -> Result<Option<Cow<'a, [u8]>>, Refusal> {
        for locator in locators {
            if let Some(value) = self.find(locator)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// Whether what is absent now may still come with the body.
    pub(super) fn may_follow(&self, locators: &[Locator]) -> bool {
        self.body.is_none() && locators.iter().any(Locator::needs_body)
    }

    /// Every different name and value of the form in the body, sorted, without anything between them.
    pub(super) fn sorted_form(&self) -> Vec<u8> {
        let mut fields: Vec<_> = fields(self.body.unwrap_or_default()).collect();
        fields.sort_unstable();
        fields.dedup();
        fields.iter().flat_map(|(key, value)| [&**key, &**value]).collect::<Vec<_>>().concat()
    }

    /// Path without query.
    pub(super) fn path(&self) -> &'a str {
        self.target.split_once('?').map_or(self.target, |(path, _)| path)
    }
}

/// A field of `application/x-www-form-urlencoded` text that must be single.
fn field<'a>(form: &'a [u8], name: &str) -> Result<Option<Cow<'a, [u8]>>, Refusal> {
    let mut found = None;
    for (key, value) in raw_fields(form) {
        if decoded(key).as_ref() == name.as_bytes() && found.replace(decoded(value)).is_some() {
            return Err(Refusal::DuplicateValue);
        }
    }
    Ok(found)
}

fn raw_fields(form: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    form.split(|byte| *byte == b'&').map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=');
        at.map_or((pair, &[][..]), |at| (&pair[..at], &pair[at + 1..]))
    })
}

fn fields(form: &[u8]) -> impl Iterator<Item = (Cow<'_, [u8]>, Cow<'_, [u8]>)> {
    let given = raw_fields(form).filter(|(key, value)| !key.is_empty() || !value.is_empty());
    given.map(|(key, value)| (decoded(key), decoded(value)))
}

/// A URL up to its path, with the standard port added, or taken away; anything else as it is.
pub(super) fn other_port(base_url: &str) -> String {
    let port = if base_url.starts_with("https://") { ":443" } else { ":80" };
    let authority = base_url.split_once("://").map_or(base_url, |(_, authority)| authority);
    // The colons of an IPv6 address stand within brackets.
    let host_end = authority.rfind(']').unwrap_or(0);
    match base_url.strip_suffix(port) {
        Some(without) => without.to_owned(),
        None if authority.is_empty() || authority[host_end..].contains([':', '/']) => base_url.to_owned(),
        None => format!("{base_url}{port}"),
    }
}

fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'+') {
        return percent_decode(text).into();
    }
    let spaced: Vec<u8> = text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    Cow::Owned(percent_decode(&spaced).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        headers: &[(&'static str, &'static str)],
        target: &str,
        body: &[u8],
        at: &str,
    ) -> Result<Option<String>, Refusal> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        let request = Request {
            method: &Method::POST,
            base_url: "",
            other_base_url: "",
            target,
            headers: &map,
            body: Some(body),
        };
        let found = request.find(&at.parse().unwrap())?;
        Ok(found.map(|value| String::from_utf8(value.into_owned()).unwrap()))
    }

    #[test]
    fn json_values_are_found_by_pointer() {
        let found = |body: &str, at: &str| check(&[], "/", body.as_bytes(), &format!("json:{at}")).unwrap();
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(found(r#"{"a":1,"id":"x"}"#, "/id"), text("x"));
        assert_eq!(found(r#"{"id":42}"#, "/id"), text("42"));
        assert_eq!(found(r#"{"id":-42}"#, "/id"), text("-42"));
        assert_eq!(found(r#"{"a":{"b":["x",{"c":"deep"}]}}"#, "/a/b/1/c"), text("deep"));
        assert_eq!(found(r#"{"ids":["x","y","z"]}"#, "/ids/1"), text("y"));
        assert_eq!(found(r#"{"a/b":{"~":"escaped"}}"#, "/a~1b/~0"), text("escaped"));
        assert_eq!(found("[7]", "/0"), text("7"));
        // No other reader of pointers takes these for numbers: found by fuzzing.
        assert_eq!((found("[7]", "/00"), found("[6,7]", "/01"), found("[6,7]", "/+1")), (None, None, None));
        assert_eq!(found(r#"{"id":"a\u0062"}"#, "/id"), text("ab"));
        assert_eq!(found(r#"{"id":"first","id":"last"}"#, "/id"), text("last"));
        for nothing in [
            r#"{"id":""}"#,
            r#"{"id":null}"#,
            r#"{"id":1.5}"#,
            r#"{"id":true}"#,
            r#"{"id":{"id":"x"}}"#,
            r#"{"id":["x"]}"#,
            r#"{"id":"x""#,
            r#"{"id":"x"} trailing"#,
            r#"[1,2]"#,
            r#""id""#,
            "not json",
            "",
        ] {
            assert_eq!(found(nothing, "/id"), None, "{nothing}");
        }
    }

    #[test]
    fn every_element_of_a_list_has_the_same_value_or_none_counts() {
        let found = |body: &str| check(&[], "/", body.as_bytes(), "json:/v/*/s").unwrap();
        assert_eq!(found(r#"{"v":[{"s":"x"}]}"#).as_deref(), Some("x"));
        assert_eq!(found(r#"{"v":[{"s":"x"},{"a":1,"s":"x"}]}"#).as_deref(), Some("x"));
        for none in [
            r#"{"v":[]}"#,
            r#"{"v":[{"s":"x"},{"s":"y"}]}"#,
            r#"{"v":[{"s":"x"},{}]}"#,
            r#"{"v":[{},{"s":"x"}]}"#,
            r#"{"v":[{"s":"x"},{"s":"y"},{"s":"x"}]}"#,
            r#"{"v":{"s":"x"}}"#,
        ] {
            assert_eq!(found(none), None, "{none}");
        }
    }

    #[test]
    fn a_form_is_sorted_with_each_field_once() {
        let headers = HeaderMap::new();
        let sorted = |body: &str| {
            let request = Request {
                method: &Method::POST,
                base_url: "",
                other_base_url: "",
                target: "/",
                headers: &headers,
                body: Some(body.as_bytes()),
            };
            String::from_utf8(request.sorted_form()).unwrap()
        };
        assert_eq!(sorted("b=2&a=1"), "a1b2");
        assert_eq!(sorted("D=5678&D=1234&D=1234&S=x%2By+z&E="), "D1234D5678ESx+y z");
        assert_eq!(sorted(""), "");
    }

    #[test]
    fn the_standard_port_is_added_or_taken_away() {
        let check = |base: &str, expected: &str| assert_eq!(other_port(base), expected, "{base}");
        check("https://a.example", "https://a.example:443");
        check("https://a.example:443", "https://a.example");
        check("http://a.example", "http://a.example:80");
        check("http://[::1]", "http://[::1]:80");
        check("https://a.example:8443", "https://a.example:8443");
        check("https://a.example/proxied", "https://a.example/proxied");
        check("", "");
    }

    #[test]
    fn hostile_json_costs_no_more_than_its_bytes() {
        let deep = [vec![b'['; 200_000], vec![b']'; 200_000]].concat();
        assert_eq!(check(&[], "/", &deep, "json:/id"), Ok(None));
        let mut nested = br#"{"x":"#.to_vec();
        nested.extend_from_slice(&deep);
        nested.extend_from_slice(br#","id":"found"}"#);
        assert_eq!(check(&[], "/", &nested, "json:/id"), Ok(Some("found".into())));
        let long_number = format!(r#"{{"id":{}}}"#, "9".repeat(1_000_000));
        assert_eq!(check(&[], "/", long_number.as_bytes(), "json:/id"), Ok(None));
    }

    #[test]
    fn what_would_take_memory_is_not_looked_into() {
        let id = |begin: &str, fill: &str, times: usize, end: &str| {
            let body = format!("{begin}{}{end}", fill.repeat(times));
            check(&[], "/", body.as_bytes(), "json:/id").unwrap()
        };
        let nested =
            |levels: usize| id("{\"id\":\"1\",\"n\":", "[", levels, &format!("{}}}", "]".repeat(levels)));
        assert_eq!(nested(DEPTH_MAX - 1).as_deref(), Some("1"));
        assert_eq!(nested(DEPTH_MAX), None);
        let brackets = id("{\"n\":\"\\\"", "[", DEPTH_MAX, "\",\"id\":\"1\"}");
        assert_eq!(brackets.as_deref(), Some("1"), "within a text");
        let key = |escaped: &str, length: usize| {
            id(&format!("{{\"id\":\"1\",\"{escaped}"), "k", length - escaped.len(), "\":1}")
        };
        assert_eq!(key("\\n", ESCAPED_BYTES_MAX).as_deref(), Some("1"));
        assert_eq!(key("\\n", ESCAPED_BYTES_MAX + 1), None);
        assert_eq!(key("n", ESCAPED_BYTES_MAX + 1).as_deref(), Some("1"));
        let text =
            |escaped: &str| id(&format!("{{\"id\":\"{escaped}"), "i", ESCAPED_BYTES_MAX, "\"}").unwrap();
        assert!(text("\\n").starts_with("\\nii"), "as it was written");
        assert!(text("i").starts_with("iii"));
        let other = id("{\"id\":\"\\u0031\",\"text\":\"\\n", "x", DEPTH_MAX, "\"}");
        assert_eq!(other.as_deref(), Some("1"), "what is passed over may be long");
    }

    #[test]
    fn headers_must_be_single_under_any_spelling() {
        let find = |headers: &[(&'static str, &'static str)]| check(headers, "/", b"", "header:X-Acme-Id");
        assert_eq!(find(&[("x-acme-id", "1")]), Ok(Some("1".into())));
        assert_eq!(find(&[("x-acme-id", "")]), Ok(None));
        assert_eq!(find(&[("x-acme", "1")]), Ok(None));
        assert_eq!(find(&[("x-acme-id", "1"), ("x-acme-id", "1")]), Err(Refusal::DuplicateValue));
        assert_eq!(find(&[("x-acme-id", "1"), ("x_acme_id", "2")]), Err(Refusal::DuplicateValue));
        assert_eq!(find(&[("x-acme_id", "2")]), Err(Refusal::DuplicateValue));
    }

    #[test]
    fn query_and_form_fields_are_decoded_and_single() {
        let query = |target: &str| check(&[], target, b"", "query:s g");
        assert_eq!(query("/p?a=1&s+g=x%2By+z"), Ok(Some("x+y z".into())));
        assert_eq!(query("/p?s%20g=1&s+g=2"), Err(Refusal::DuplicateValue));
        assert_eq!(query("/p?s+g"), Ok(None));
        assert_eq!(query("/p"), Ok(None));
        assert_eq!(check(&[], "/p?payload=no", b"payload=%7B%7D&x=1", "form:payload"), Ok(Some("{}".into())));
    }

    #[test]
    fn a_text_that_is_no_place_is_refused() {
        let check = |text: &str, error| assert_eq!(text.parse::<Locator>(), Err(error), "{text}");
        check("X-Acme", LocatorError::Kind);
        check("cookie:x", LocatorError::Kind);
        check("header:", LocatorError::Name);
        check("header:a b", LocatorError::Name);
        check("query:", LocatorError::Name);
        check("json:id", LocatorError::Pointer);
    }
}
