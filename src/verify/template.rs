//! What is signed: a text with tokens for the parts of a request, such as `{timestamp}.{body}`. A template becomes
//! the pieces that are fed to a MAC one after the other, so the body is never copied. What a signature covers follows
//! from the template, and is declared nowhere.

use std::borrow::Cow;
use std::collections::BTreeMap;

use http::HeaderName;
use sha2::{Digest, Sha256};

use super::Refusal;
use super::check::is_id_byte;
use super::locate::{Locator, Request};

/// Bytes that are signed one after the other.
pub(super) type Pieces<'a> = Vec<Cow<'a, [u8]>>;

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template(Vec<Token>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Literal(String),
    Body,
    Timestamp,
    Id,
    Url,
    /// With the standard port where [`Token::Url`] has none, and without it where that has it.
    UrlOtherPort,
    /// Some escapes are decoded.
    UrlDecoded,
    UrlWithoutQuery,
    Method,
    PathAndQuery,
    Value(Locator),
    /// Every different name and value of the form, sorted.
    FormSorted,
    BodySha256,
    BodyCrc32,
    /// The shared secret itself.
    Secret,
    /// What the source's configuration says.
    Config(String),
}

/// Why a text is not a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TemplateError {
    #[error("a brace is not closed")]
    Unclosed,
    #[error("a closing brace stands alone")]
    Unopened,
    #[error("`\\{0}` is not an escape")]
    Escape(String),
    #[error("`{{{0}}}` is not a token")]
    Unknown(String),
    #[error("it signs nothing of the request")]
    Constant,
}

impl Template {
    pub(super) const HELP: &str = "text with {body}, {timestamp}, {id}, {url}, {url_nq}, {method}, {path_query}, \
         {header:NAME}, {query:NAME}, {json:/pointer} or {form:NAME}; \\n is a line feed, \\{ a brace";

    pub(super) fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut tokens = Vec::new();
        let mut literal = String::new();
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            match c {
                '\\' => literal.push(match rest.next() {
                    Some('n') => '\n',
                    Some(escaped @ ('\\' | '{' | '}')) => escaped,
                    other => return Err(TemplateError::Escape(other.map(String::from).unwrap_or_default())),
                }),
                '{' => {
                    let (name, after) = rest.as_str().split_once('}').ok_or(TemplateError::Unclosed)?;
                    if !literal.is_empty() {
                        tokens.push(Token::Literal(std::mem::take(&mut literal)));
                    }
                    tokens.push(Token::parse(name)?);
                    rest = after.chars();
                }
                '}' => return Err(TemplateError::Unopened),
                _ => literal.push(c),
            }
        }
        if !literal.is_empty() {
            tokens.push(Token::Literal(literal));
        }
        // A signature over a constant would be a token that anyone who has seen it can use for ever.
        let is_constant =
            |token: &Token| matches!(token, Token::Literal(_) | Token::Secret | Token::Config(_));
        if tokens.iter().all(is_constant) {
            return Err(TemplateError::Constant);
        }
        Ok(Self(tokens))
    }

    /// The template with what the configuration says in place of `{config:NAME}`.
    pub(super) fn with_config(mut self, values: &BTreeMap<String, String>) -> Self {
        for token in &mut self.0 {
            if let Token::Config(name) = token
                && let Some(value) = values.get(name)
            {
                *token = Token::Literal(value.clone());
            }
        }
        self
    }

    /// The names that the configuration still has to tell.
    pub(super) fn config_names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|token| if let Token::Config(name) = token { Some(&**name) } else { None })
    }

    /// The signed bytes, in pieces. `timestamp` and `id` are the received texts; where `secret` is absent, nothing
    /// stands for it.
    pub(super) fn pieces<'a>(
        &'a self,
        request: &Request<'a>,
        timestamp: Option<&'a str>,
        id: Option<&'a str>,
        secret: Option<&'a [u8]>,
    ) -> Result<Pieces<'a>, Refusal> {
        let mut pieces = Pieces::with_capacity(self.0.len() + 1);
        for token in &self.0 {
            let piece: Cow<'a, [u8]> = match token {
                Token::Literal(text) => Cow::Borrowed(text.as_bytes()),
                Token::Body => Cow::Borrowed(request.body.unwrap_or_default()),
                Token::Timestamp => Cow::Borrowed(timestamp.ok_or(Refusal::TimestampMissing)?.as_bytes()),
                Token::Id => Cow::Borrowed(id.ok_or(Refusal::IdMissing)?.as_bytes()),
                Token::Url | Token::UrlWithoutQuery => {
                    pieces.push(Cow::Borrowed(request.base_url.as_bytes()));
                    let path = if *token == Token::Url { request.target } else { request.path() };
                    Cow::Borrowed(path.as_bytes())
                }
                Token::UrlOtherPort => {
                    pieces.push(Cow::Borrowed(request.other_base_url.as_bytes()));
                    Cow::Borrowed(request.target.as_bytes())
                }
                Token::UrlDecoded => {
                    pieces.push(Cow::Borrowed(request.base_url.as_bytes()));
                    decoded(request.target)
                }
                Token::FormSorted => Cow::Owned(request.sorted_form()),
                Token::BodySha256 => {
                    Cow::Owned(hex::encode(Sha256::digest(request.body.unwrap_or_default())).into_bytes())
                }
                Token::BodyCrc32 => {
                    Cow::Owned(crc32(request.body.unwrap_or_default()).to_string().into_bytes())
                }
                Token::Secret => Cow::Borrowed(secret.unwrap_or_default()),
                Token::Config(_) => return Err(Refusal::ValueMissing),
                Token::Method => Cow::Borrowed(request.method.as_str().as_bytes()),
                Token::PathAndQuery => Cow::Borrowed(request.target.as_bytes()),
                Token::Value(locator) => request.find(locator)?.ok_or(Refusal::ValueMissing)?,
            };
            pieces.push(piece);
        }
        Ok(pieces)
    }

    /// The headers whose values are signed.
    pub(super) fn headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.0.iter().filter_map(|token| match token {
            Token::Value(Locator::Header(name)) => Some(name),
            _ => None,
        })
    }

    /// Where the values are that are signed.
    pub(super) fn places(&self) -> impl Iterator<Item = &Locator> {
        self.0.iter().filter_map(|token| match token {
            Token::Value(place) => Some(place),
            _ => None,
        })
    }

    /// Whether no byte of the body can change. A CRC-32 can be kept by whoever chooses what it is of, and sorted fields
    /// do not tell a name from its value.
    pub(super) fn has_body(&self) -> bool {
        self.0.iter().any(|token| matches!(token, Token::Body | Token::BodySha256))
    }

    pub(super) fn has_secret(&self) -> bool {
        self.0.contains(&Token::Secret)
    }

    pub(super) fn has_timestamp(&self) -> bool {
        self.0.contains(&Token::Timestamp)
    }

    pub(super) fn has_id(&self) -> bool {
        self.0.contains(&Token::Id)
    }

    pub(super) fn has_url(&self) -> bool {
        self.0.iter().any(|token| {
            matches!(token, Token::Url | Token::UrlOtherPort | Token::UrlDecoded | Token::UrlWithoutQuery)
        })
    }

    /// Whether nobody can change the delivery id that stands for `{id}` without breaking the signature.
    pub(super) fn covers_id(&self) -> bool {
        self.is_apart(&Token::Id)
    }

    /// Whether nobody can change the value at `locator` without breaking the signature.
    pub(super) fn covers(&self, locator: &Locator) -> bool {
        self.0.iter().any(|token| match token {
            Token::Literal(_)
            | Token::Timestamp
            | Token::Id
            | Token::UrlWithoutQuery
            | Token::UrlDecoded
            | Token::Method
            | Token::FormSorted
            | Token::BodyCrc32
            | Token::Secret
            | Token::Config(_) => false,
            Token::BodySha256 => locator.needs_body(),
            Token::Body => match locator {
                // No document that is cut short at either end is another one.
                Locator::Json(_) => true,
                Locator::Form(_) => self.is_apart(token),
                Locator::Header(_) | Locator::Query(_) => false,
            },
            Token::Url | Token::UrlOtherPort | Token::PathAndQuery => {
                matches!(locator, Locator::Query(_)) && self.is_apart(token)
            }
            Token::Value(signed) => signed == locator && self.is_apart(token),
        })
    }

    /// Whether the signed bytes tell where `token` ends, from their beginning or from their end: otherwise what is
    /// signed as `ab` and `c` is also signed as `a` and `bc`.
    fn is_apart(&self, token: &Token) -> bool {
        let (first, last) = (|text: &str| text.bytes().next(), |text: &str| text.bytes().next_back());
        is_apart(self.0.iter(), token, first) || is_apart(self.0.iter().rev(), token, last)
    }
}

/// Reads on while it is certain where each token ends. `near` is the byte of a literal that is met first.
fn is_apart<'t>(
    tokens: impl Iterator<Item = &'t Token>,
    wanted: &Token,
    near: fn(&str) -> Option<u8>,
) -> bool {
    let mut tokens = tokens.peekable();
    while let Some(token) = tokens.next() {
        let ends = match tokens.peek() {
            None => true,
            Some(Token::Literal(text)) => near(text).is_some_and(|byte| !token.may_have(byte)),
            Some(_) => token.is_fixed(),
        };
        if token == wanted || !ends {
            return ends;
        }
    }
    false
}

impl Token {
    /// Whether a source's requests have no choice here.
    fn is_fixed(&self) -> bool {
        match self {
            Self::Literal(_)
            | Self::UrlWithoutQuery
            | Self::Method
            | Self::BodySha256
            | Self::Secret
            | Self::Config(_) => true,
            Self::Body
            | Self::Timestamp
            | Self::Id
            | Self::Url
            | Self::UrlOtherPort
            | Self::UrlDecoded
            | Self::PathAndQuery
            | Self::Value(_)
            | Self::FormSorted
            | Self::BodyCrc32 => false,
        }
    }

    /// Whether `byte` may be part of what stands for the token, beyond what is fixed.
    fn may_have(&self, byte: u8) -> bool {
        match self {
            Self::Literal(_)
            | Self::UrlWithoutQuery
            | Self::Method
            | Self::BodySha256
            | Self::Secret
            | Self::Config(_) => false,
            Self::BodyCrc32 => byte.is_ascii_digit(),
            Self::Id => is_id_byte(byte),
            // In any unit.
            Self::Timestamp => byte.is_ascii_alphanumeric() || b"-:.+, ".contains(&byte),
            // One line of a head.
            Self::Url | Self::UrlOtherPort | Self::PathAndQuery | Self::Value(Locator::Header(_)) => {
                !b"\r\n\0".contains(&byte)
            }
            Self::Body
            | Self::UrlDecoded
            | Self::FormSorted
            | Self::Value(Locator::Query(_) | Locator::Json(_) | Locator::Form(_)) => true,
        }
    }

    fn parse(name: &str) -> Result<Self, TemplateError> {
        match name {
            "body" => Ok(Self::Body),
            "timestamp" => Ok(Self::Timestamp),
            "id" => Ok(Self::Id),
            "url" => Ok(Self::Url),
            "url_port" => Ok(Self::UrlOtherPort),
            "url_decoded" => Ok(Self::UrlDecoded),
            "form_sorted" => Ok(Self::FormSorted),
            "body_sha256_hex" => Ok(Self::BodySha256),
            "body_crc32" => Ok(Self::BodyCrc32),
            "secret" => Ok(Self::Secret),
            "url_nq" => Ok(Self::UrlWithoutQuery),
            "method" => Ok(Self::Method),
            "path_query" => Ok(Self::PathAndQuery),
            _ if name.starts_with("config:") && name.len() > "config:".len() => {
                Ok(Self::Config(name["config:".len()..].to_owned()))
            }
            _ => name.parse().map(Self::Value).map_err(|_| TemplateError::Unknown(name.to_owned())),
        }
    }
}

/// The escapes that HubSpot decodes before it signs a URL; all others stay.
const DECODED: [(&[u8; 2], u8); 12] = [
    (b"3A", b':'),
    (b"2F", b'/'),
    (b"3F", b'?'),
    (b"40", b'@'),
    (b"21", b'!'),
    (b"24", b'$'),
    (b"27", b'\''),
    (b"28", b'('),
    (b"29", b')'),
    (b"2A", b'*'),
    (b"2C", b','),
    (b"3B", b';'),
];

fn decoded(target: &str) -> Cow<'_, [u8]> {
    if !target.contains('%') {
        return Cow::Borrowed(target.as_bytes());
    }
    let mut bytes = Vec::with_capacity(target.len());
    let mut rest = target.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escape = after.first_chunk::<2>().filter(|_| byte == b'%');
        let known = escape.and_then(|digits| {
            DECODED.iter().find(|(escaped, _)| escaped.eq_ignore_ascii_case(digits)).map(|(_, byte)| *byte)
        });
        bytes.push(known.unwrap_or(byte));
        rest = if known.is_some() { &after[2..] } else { after };
    }
    Cow::Owned(bytes)
}

/// CRC-32 as in ISO-HDLC, zip and PNG.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut value = index as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { 0xEDB8_8320 ^ (value >> 1) } else { value >> 1 };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    !bytes.iter().fold(u32::MAX, |crc, byte| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, Method};

    use super::*;

    fn signed(template: &str) -> Result<String, Refusal> {
        let mut headers = HeaderMap::new();
        headers.insert("x-nonce", HeaderValue::from_static("N"));
        let request = Request {
            method: &Method::PUT,
            base_url: "https://hooks.example.com",
            other_base_url: "https://hooks.example.com:443",
            target: "/p/a%20b?x=%41&y",
            headers: &headers,
            body: Some(b"{\"a\":{\"b\":7}}"),
        };
        let template = Template::parse(template).unwrap();
        let pieces = template.pieces(&request, Some("T"), Some("I"), Some(b"S"))?;
        Ok(String::from_utf8(pieces.concat()).unwrap())
    }

    #[test]
    fn tokens_become_the_parts_of_the_request() {
        let check = |template: &str, expected: &str| {
            assert_eq!(signed(template), Ok(expected.to_owned()), "{template}");
        };
        check("{id}.{timestamp}.{body}", "I.T.{\"a\":{\"b\":7}}");
        check("{method}{url}", "PUThttps://hooks.example.com/p/a%20b?x=%41&y");
        check("{url_nq} {path_query}", "https://hooks.example.com/p/a%20b /p/a%20b?x=%41&y");
        check("{header:X-Nonce}|{query:x}|{json:/a/b}", "N|A|7");
        check("v0:\\n\\\\\\{\\}{timestamp}\n", "v0:\n\\{}T\n");
        check("{secret}.{body_crc32}", "S.2585560631");
        check("{url_port}", "https://hooks.example.com:443/p/a%20b?x=%41&y");
        assert_eq!(signed("{config:name}{body}"), Err(Refusal::ValueMissing));
        let told = BTreeMap::from([("name".to_owned(), "value".to_owned())]);
        let template = Template::parse("{config:name}|{config:other}{body}").unwrap().with_config(&told);
        assert_eq!(template.config_names().collect::<Vec<_>>(), ["other"]);
        assert_eq!(signed("{header:x-other}{body}"), Err(Refusal::ValueMissing));
        assert_eq!(signed("{form:x}{body}"), Err(Refusal::ValueMissing));
    }

    #[test]
    fn a_checksum_is_the_usual_one() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert_eq!(crc32(b""), 0);
    }

    #[test]
    fn some_escapes_of_a_url_are_decoded() {
        let check = |target: &str, expected: &str| assert_eq!(&*decoded(target), expected.as_bytes());
        check("/a?b=c", "/a?b=c");
        check("/a%20b%3Ac%2fd%%3", "/a%20b:c/d%%3");
        check("%253A%2C", "%253A,");
    }

    #[test]
    fn a_text_that_is_no_template_is_refused() {
        let check = |text: &str, error| assert_eq!(Template::parse(text), Err(error), "{text}");
        check("{body", TemplateError::Unclosed);
        check("body}", TemplateError::Unopened);
        check("{body}\\t", TemplateError::Escape("t".to_owned()));
        check("{body}\\", TemplateError::Escape(String::new()));
        check("{ts}.{body}", TemplateError::Unknown("ts".to_owned()));
        check("{header:}", TemplateError::Unknown("header:".to_owned()));
        check("{config:}{body}", TemplateError::Unknown("config:".to_owned()));
        check("{secret}", TemplateError::Constant);
        check("", TemplateError::Constant);
        check("constant", TemplateError::Constant);
    }

    #[test]
    fn coverage_follows_from_the_tokens() {
        let check = |template: &str, locator: &str, expected: bool| {
            let covered = Template::parse(template).unwrap().covers(&locator.parse().unwrap());
            assert_eq!(covered, expected, "{template} {locator}");
        };
        check("{body}", "json:/id", true);
        check("{body}", "form:id", true);
        check("{body}", "header:x-id", false);
        check("{body}", "query:id", false);
        check("{header:X-Id}\\n{body}", "header:x-id", true);
        check("{body}\\n{header:X-Id}", "header:x-id", true);
        check("{json:/a}", "json:/id", false);
        check("{json:/id}", "json:/id", true);
        check("{url}\\n{body}", "query:id", true);
        check("{body}\\n{path_query}", "query:id", true);
        check("{url_nq}\\n{body}", "query:id", false);
        // Found by fuzzing: bytes of it could be moved to its neighbour, as a new value under the old signature.
        for template in ["{body}{header:X-Id}", "{header:X-Id}|{body}", "{body}|{header:X-Id}"] {
            check(template, "header:x-id", false);
        }
        check("{url}{body}", "query:id", false);
        check("{url}{body}", "form:id", false);
        check("{timestamp}.{header:X-Nonce}{body}", "form:id", false);
        check("{timestamp}.{header:X-Nonce}{body}", "json:/id", true);
        // A time may have a dot.
        check("{timestamp}.{body}", "form:id", false);
        check("{timestamp}|{body}", "form:id", true);
        check("{path_query}.{body}", "query:id", false);
    }

    /// Found by fuzzing: with `{id}:{body}` the signature of the id `a` and the body `b:c` is that of `a:b` and `c`, so a
    /// captured request was accepted under many ids. Ids without a separator are no better.
    #[test]
    fn an_id_is_covered_where_the_signed_bytes_tell_its_end() {
        let check = |template: &str, expected: bool| {
            assert_eq!(Template::parse(template).unwrap().covers_id(), expected, "{template}");
        };
        for apart in [
            "{id}",
            "{id}.{timestamp}.{body}",
            "{body}.{id}",
            "v0:{method}{url_nq}{id}.{body}",
            "{timestamp}|{id}|{body}",
            "{url}\\n{id}\\n{body}",
            "{body}|{id}|{timestamp}",
            "{body}.{id}v0",
        ] {
            check(apart, true);
        }
        for near in [
            "{body}",
            "{id}{body}",
            "{body}{id}",
            "{id}:{body}",
            "{id}-{timestamp}.{body}",
            "{id}{timestamp}{body}",
            "{timestamp}{id}.{body}",
            // A time may have a fraction.
            "{timestamp}.{id}.{body}",
            "{body}.{id}.{body}",
            "{id}{id}",
        ] {
            check(near, false);
        }
    }
}
